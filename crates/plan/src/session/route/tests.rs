//! Where a follower dials: told, refused, out of reach, back home; and that nothing sends it out of the fleet.

use super::*;
use crate::session::dice::Dice;

fn place(name: &str) -> Place {
    let name = if name == "panel" { PANEL_NAME.to_owned() } else { format!("{name}{NODE_SUFFIX}") };
    Place { address: "10.9.0.1:341".to_owned(), name }
}

#[test]
fn a_follower_goes_where_it_is_told_and_home_if_nobody_is_there() {
    let mut route = Route::new(place("panel"));
    assert!(route.on_told(place("web1"), 0));
    assert_eq!(route.place(None), place("web1"));
    route.on_failed(&place("web1"), TOLD_TIME_MAX_MS - 1);
    assert_eq!(route.place(None), place("web1"), "it is tried for a while");
    route.on_failed(&place("web1"), TOLD_TIME_MAX_MS);
    assert_eq!(route.place(None), place("panel"));

    // Once the master has it, the spec says where to go, also after the link broke.
    assert!(route.on_told(place("web1"), 0));
    assert_eq!(route.on_served(&place("web1"), None, 50_000), None);
    route.on_failed(&place("web1"), 60_000);
    assert_eq!(route.place(None), place("web1"), "it was served there just now");
    route.on_served(&place("web1"), Some(&place("web1")), 70_000);
    route.on_failed(&place("web1"), 900_000);
    assert_eq!(route.place(Some(place("web1"))), place("web1"));
    assert_eq!(route.place(None), place("panel"), "where it goes when it is no slave any more");
}

#[test]
fn only_the_panel_becomes_the_home() {
    let mut route = Route::new(place("web1"));
    assert!(route.on_told(place("panel"), 0));
    assert_eq!(route.on_served(&place("panel"), None, 1), Some(place("panel")));
    assert_eq!(route.on_served(&place("panel"), None, 2), None, "it is kept once");
    assert_eq!(route.place(None), place("panel"));
}

#[test]
fn nobody_is_sent_out_of_the_fleet() {
    let mut route = Route::new(place("panel"));
    for (address, name) in [
        ("10.9.0.1:341", "evil.example.org"),
        ("10.9.0.1:341", ".node.phalanx"),
        ("10.9.0.1:341", "a b.node.phalanx"),
        ("10.9.0.1", "panel.phalanx"),
        ("10.9.0.1:0", "panel.phalanx"),
        (":7400", "panel.phalanx"),
        ("a/b:7400", "panel.phalanx"),
        (&format!("{}:7400", "a".repeat(300)), "panel.phalanx"),
    ] {
        assert!(!route.on_told(Place { address: address.to_owned(), name: name.to_owned() }, 0), "{address} {name}");
    }
    assert_eq!(route.place(None), place("panel"));
}

/// The panel (0), two masters (1 and 2), and a server that is moved between them.
struct World {
    /// Whose slave it is: 0 of nobody, by the panel's store.
    member_of: usize,
    /// What each upstream has learned of that.
    known: [usize; 3],
    is_up: [bool; 3],
    route: Route,
    /// By its own spec.
    master: Option<usize>,
    now_ms: u64,
}

const NAMES: [&str; 3] = ["panel", "web1", "web2"];

impl World {
    /// One attempt: dial, be served or be sent on. Returns who served.
    fn attempt(&mut self) -> Option<usize> {
        self.now_ms += 5_000;
        let at = self.route.place(self.master.map(|master| place(NAMES[master])));
        let upstream = NAMES.iter().position(|name| place(name) == at).expect("only places of the fleet are dialled");
        if !self.is_up[upstream] {
            self.route.on_failed(&at, self.now_ms);
            return None;
        }
        // A master whose own way to the panel is closed sends nobody on: it may be the one that is behind.
        let owner = self.known[upstream];
        if owner != upstream && (upstream == 0 || self.is_up[0]) {
            // A master says first that it has no work for the server.
            if upstream != 0 {
                self.master = None;
            }
            let next = if upstream == 0 { owner } else { 0 };
            assert!(self.route.on_told(place(NAMES[next]), self.now_ms));
            return None;
        }
        if owner == upstream {
            self.master = (upstream != 0).then_some(upstream);
        }
        let master = self.master.map(|master| place(NAMES[master]));
        if let Some(home) = self.route.on_served(&at, master.as_ref(), self.now_ms) {
            assert!(home.is_panel());
        }
        Some(upstream)
    }

    /// The panel learns at once; a master when it and the panel are up.
    fn learn(&mut self) {
        self.known[0] = self.member_of;
        for master in [1, 2] {
            if self.is_up[0] && self.is_up[master] {
                self.known[master] = self.member_of;
            }
        }
    }
}

fn run(seed: u64) {
    let mut dice = Dice(seed);
    let home = place(NAMES[dice.roll(3) as usize]);
    let mut world =
        World { member_of: 0, known: [0; 3], is_up: [true; 3], route: Route::new(home), master: None, now_ms: 0 };
    for _ in 0..200 {
        match dice.roll(8) {
            0 => world.member_of = dice.roll(3) as usize,
            1 => world.is_up[dice.roll(3) as usize] ^= true,
            2..=3 => world.learn(),
            _ => {
                world.attempt();
            }
        }
    }
    world.is_up = [true; 3];
    world.learn();
    let served: Vec<Option<usize>> = (0..20).map(|_| world.attempt()).collect();
    assert_eq!(served[15..], [Some(world.member_of); 5], "{served:?}");
}

#[test]
fn in_the_end_the_right_one_serves() {
    let replay = std::env::var("PHALANX_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in replay.map_or_else(|| (0..2_000).collect(), |seed| vec![seed]) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("replay with PHALANX_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
