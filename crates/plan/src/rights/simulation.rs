//! A mail cluster's rights over many bad days: one seed makes a whole run, and makes it again.
//!
//! Nodes, the NAS and the panel speak late or never; nodes lose power, are fenced, and come back with the configuration that they had. What is
//! chosen is chosen by the product's own functions: the fleet's rules, the specs, the rendered file that says what a node may do, what the
//! share tells, the verdict, and what counts as released. At no moment may two nodes use one right.

use super::{Comparison, Held, RightsConfig, compare, verdict};
use crate::mail::released;
use crate::session::dice::Dice;
use crate::spec::mail::MailSecrets;
use crate::spec::{ClusterSpec, NodeSpec, Work, cluster_spec};
use crate::steps::Observed;
use crate::steps::observed::SeenUnit;
use crate::steps::units::Unit;
use phalanx_model::cluster::{MailService, NodeSettings};
use phalanx_model::grant::Proof;
use phalanx_model::server::BootId;
use phalanx_model::share::Marker;
use phalanx_model::{Cluster, ClusterKind, Fleet, FleetChange, Name, Right, Server, Share, ShareKind};
use std::collections::{BTreeMap, BTreeSet};

const NODES: [&str; 3] = ["mail1", "mail2", "mail3"];
const STEPS: usize = 400;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn boot(number: u64) -> BootId {
    format!("5c0e3ab1-8c5a-4f5c-9e0f-{number:012}").parse().expect("a boot id")
}

/// A machine of the cluster.
#[derive(Default)]
struct Node {
    has_power: bool,
    /// It hears nobody but the share, and nobody hears it.
    is_cut_off: bool,
    boot: u64,
    /// The number of the spec on its disk.
    spec: Option<usize>,
    /// The rights that its daemons use now.
    uses: BTreeSet<Right>,
}

struct World {
    fleet: Fleet,
    /// All specs that there were, of the mail cluster and of the NAS; the last ones hold.
    specs: Vec<(ClusterSpec, ClusterSpec)>,
    nodes: BTreeMap<Name, Node>,
    /// What the share tells, by file.
    share: BTreeMap<String, Held>,
    dice: Dice,
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    let mut change = |change: FleetChange| fleet.apply(change).expect("it may be");
    let server = |text: &str, kind, last: u8| {
        let address = format!("10.9.0.{last}/24").parse().expect("an address");
        FleetChange::AddServer { server: Server::new(name(text), kind, address) }
    };
    change(server("nas", ClusterKind::Nas, 20));
    for (last, node) in (41..).zip(NODES) {
        change(server(node, ClusterKind::Mail, last));
    }
    change(FleetChange::AddCluster { cluster: Cluster::new(name("storage"), ClusterKind::Nas, name("nas")) });
    let share = Share {
        name: name("letters"),
        kind: ShareKind::NfsManaged,
        nas: Some(name("storage")),
        path: "/srv/nas/mail".parse().expect("a path"),
        marker: Marker::from_bits(7),
    };
    change(FleetChange::AddShare { share });
    let mail = Some(MailService { host_name: "mail.example.net".parse().expect("a host name") });
    let cluster = Cluster::new(name("mail"), ClusterKind::Mail, name(NODES[0]));
    change(FleetChange::AddCluster { cluster: Cluster { mail, share: Some(name("letters")), ..cluster } });
    for node in &NODES[1..] {
        let settings = NodeSettings::default();
        change(FleetChange::AddSlave { cluster: name("mail"), server: name(node), settings });
    }
    fleet
}

impl World {
    fn new(seed: u64) -> Self {
        let nodes = NODES.map(|node| (name(node), Node { has_power: true, ..Node::default() })).into();
        let mut world = Self { fleet: fleet(), specs: vec![], nodes, share: BTreeMap::new(), dice: Dice(seed) };
        world.commit();
        world
    }

    /// What the panel makes of the fleet as it is now.
    fn commit(&mut self) {
        let seed = "5eed".to_owned();
        let secrets = MailSecrets { seed, tls_chain_pem: String::new(), tls_key_pem: String::new() };
        let secrets = BTreeMap::from([(name("mail"), secrets)]);
        let spec =
            |cluster| cluster_spec(&self.fleet, &BTreeMap::new(), &secrets, &name(cluster)).expect("it is there");
        self.specs.push((spec("mail"), spec("storage")));
    }

    fn change(&mut self, change: FleetChange) {
        if self.fleet.apply(change).is_ok() {
            self.commit();
        }
    }

    fn node(&mut self, node: &Name) -> &mut Node {
        self.nodes.get_mut(node).expect("a node of the cluster")
    }

    fn spec_of(&self, node: &Name) -> Option<&NodeSpec> {
        Some(&self.specs[self.nodes[node].spec?].0.nodes[node])
    }

    fn any_node(&mut self) -> Name {
        name(NODES[self.dice.roll(NODES.len() as u64) as usize])
    }

    /// The NAS's agent adopts the newest spec and has the share tell what came later.
    fn nas_acts(&mut self) {
        let newest = &self.specs[self.specs.len() - 1].1;
        let Work::Nas(nas) = &newest.nodes[&name("nas")].work else { panic!("it is a nas") };
        for kept in nas.shares.iter().flat_map(|share| &share.rights) {
            let file = kept.held.file();
            if compare(&kept.held, self.share.get(&file)) == Comparison::Older {
                self.share.insert(file, kept.held.clone());
            }
        }
    }

    /// A node's agent and systemd: what its configuration does not name ends, sooner or later; what it names begins if the share says so.
    fn node_acts(&mut self, node: &Name) {
        let Some(spec) = self.spec_of(node).filter(|_| self.nodes[node].has_power) else { return };
        let Work::Mail(Some(mail)) = &spec.work else { panic!("it is a mail node") };
        let may = RightsConfig::of(spec, mail);
        let begin: BTreeSet<Right> = (may.rights.iter())
            .filter(|(_, expected)| verdict(expected, self.share.get(&expected.held.file())).is_none())
            .map(|(right, _)| right.clone())
            .collect();
        let is_slow_to_end = self.dice.roll(2) == 0;
        let uses = &mut self.node(node).uses;
        uses.retain(|right| is_slow_to_end || may.rights.contains_key(right));
        uses.extend(begin);
    }

    /// What the node's agent sees and reports, and what the panel makes of it.
    fn node_reports(&mut self, node: &Name) {
        let (Some(spec), Some(under)) = (self.spec_of(node), self.nodes[node].spec) else { return };
        let uses = &self.nodes[node].uses;
        let opens = uses.contains(&Right::Mailboxes);
        let queue = |right: &Right| match right {
            Right::Queue(of) => Some(of.clone()),
            Right::Mailboxes | Right::Logs => None,
        };
        let observed = Observed {
            queue_users: uses.iter().filter_map(queue).collect(),
            units: BTreeMap::from([(
                Unit::Mailboxes,
                SeenUnit { active: opens, enabled: opens, ..SeenUnit::default() },
            )]),
            ..Observed::default()
        };
        let released = released(Some(spec), &observed);
        // Only what was seen under the spec that ends it counts.
        if under + 1 == self.specs.len() {
            let grants = self.fleet.clusters["mail"].grants.clone();
            let let_go =
                |(right, grant): &(Right, phalanx_model::Grant)| grant.holder == *node && released.contains(right);
            for (right, grant) in grants.into_iter().filter(let_go) {
                self.pass(right, grant.number, Proof::Released);
            }
        }
        let boot = Some(boot(self.nodes[node].boot));
        let ends = self.fleet.servers[node].fenced.as_ref().is_some_and(|fenced| fenced.is_seen && fenced.boot != boot);
        if ends {
            self.change(FleetChange::Unfence { server: node.clone() });
        }
    }

    fn pass(&mut self, right: Right, number: u64, proof: Proof) {
        self.change(FleetChange::PassGrant { cluster: name("mail"), right, number, proof });
    }

    fn loses_power(&mut self, node: &Name) {
        let machine = self.node(node);
        machine.uses.clear();
        machine.has_power = false;
    }

    fn gets_power(&mut self, node: &Name) {
        let machine = self.node(node);
        if !machine.has_power {
            machine.has_power = true;
            machine.boot += 1;
        }
    }

    /// A fence is begun, goes on or fails. It goes on when the share tells of it; then the power is taken, and seen to be off.
    fn fence(&mut self, node: &Name) {
        let server = node.clone();
        match &self.fleet.servers[node].fenced {
            None => {
                let boot = Some(boot(self.nodes[node].boot));
                self.change(FleetChange::BeginFence { server, boot });
                if self.dice.roll(2) == 0 {
                    self.fence(node);
                }
            }
            Some(_) if self.dice.roll(4) == 0 && !self.fleet.servers[node].is_fenced() => {
                self.change(FleetChange::Unfence { server });
            }
            Some(_) if self.is_told() => {
                self.loses_power(node);
                self.change(FleetChange::Fence { server });
            }
            Some(_) => {}
        }
    }

    /// Whether the share tells all that the newest spec wants told.
    fn is_told(&self) -> bool {
        let Work::Nas(nas) = &self.specs[self.specs.len() - 1].1.nodes[&name("nas")].work else { return false };
        let mut kept = nas.shares.iter().flat_map(|share| &share.rights);
        kept.all(|kept| self.share.get(&kept.held.file()) == Some(&kept.held))
    }

    fn what_the_fenced_had_moves(&mut self) {
        for (right, grant) in self.fleet.clusters["mail"].grants.clone() {
            if self.fleet.servers[&grant.holder].is_fenced() {
                self.pass(right, grant.number, Proof::Fenced);
            }
        }
    }

    fn hears(&self, node: &Name) -> bool {
        self.nodes[node].has_power && !self.nodes[node].is_cut_off
    }

    fn adopts_newest(&mut self, node: &Name) {
        let newest = self.specs.len() - 1;
        if self.hears(node) {
            self.node(node).spec = Some(newest);
        }
    }

    fn step(&mut self) {
        let node = self.any_node();
        match self.dice.roll(18) {
            0 if self.dice.roll(4) == 0 => self.node(&node).is_cut_off ^= true,
            0 | 1 => {
                let right = if self.dice.roll(4) > 0 { Right::Mailboxes } else { Right::Queue(self.any_node()) };
                self.change(FleetChange::AskGrant { cluster: name("mail"), right, to: node });
            }
            2 => self.adopts_newest(&node),
            3 => self.nas_acts(),
            5..=8 => self.node_acts(&node),
            9 | 10 if self.hears(&node) => self.node_reports(&node),
            4 if self.dice.roll(3) == 0 => self.loses_power(&node),
            4 | 11 | 14..=17 => self.gets_power(&node),
            12 => self.fence(&node),
            13 => self.what_the_fenced_had_moves(),
            _ => {}
        }
    }

    /// At most one node uses each right.
    fn check(&self) {
        let mut users: BTreeMap<&Right, Vec<&Name>> = BTreeMap::new();
        for (node, machine) in &self.nodes {
            machine.uses.iter().for_each(|right| users.entry(right).or_default().push(node));
        }
        for (right, nodes) in users {
            assert!(nodes.len() <= 1, "{right} is used by {nodes:?}");
        }
    }

    /// All have power, hear each other and act: then each right is used, by its holder.
    fn settles(&mut self) {
        for _ in 0..40 {
            for node in NODES.map(name) {
                if !self.fleet.servers[&node].is_fenced() {
                    self.change(FleetChange::Unfence { server: node.clone() });
                }
                self.gets_power(&node);
                self.node(&node).is_cut_off = false;
                self.adopts_newest(&node);
                self.nas_acts();
                self.node_acts(&node);
                self.check();
                self.node_reports(&node);
            }
        }
        let told = self.fleet.clusters["mail"].grants.iter().filter(|(right, _)| **right != Right::Logs);
        for (right, grant) in told {
            assert_eq!(grant.moving_to, None, "{right} still moves");
            assert!(self.nodes[&grant.holder].uses.contains(right), "{} does not use {right}", grant.holder);
        }
    }
}

/// One run; returns how often a right has moved.
fn run(seed: u64) -> u64 {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
        world.check();
    }
    world.settles();
    world.fleet.clusters["mail"].grants.values().map(|grant| grant.number - 1).sum()
}

#[test]
fn one_node_at_a_time_has_a_right() {
    let replay = std::env::var("PHALANX_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: Vec<u64> = replay.map_or_else(|| (0..200).collect(), |seed| vec![seed]);
    let mut moves = 0;
    for seed in &seeds {
        match std::panic::catch_unwind(|| run(*seed)) {
            Ok(moved) => moves += moved,
            Err(panic) => {
                eprintln!("replay with PHALANX_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(moves > seeds.len() as u64, "{moves} moves in {} runs: nothing happened", seeds.len());
    println!("{moves} moves in {} runs", seeds.len());
}
