//! One account can neither read nor run as another: tried by code and by `.htaccess` on a node, as a customer would who wants to.
//!
//! Everything is tried twice, on what is the attacker's own and on what is the neighbour's, and the first must succeed; what is the
//! neighbour's must be there and within reach but for the walls: what can't fail proves nothing. The neighbour is careless: what it has is
//! readable for all, so that only the walls between accounts count.

use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;
use phalanx_lab::{Host, eventually};
use std::net::Ipv4Addr;
use std::time::Duration;

mod hogs;
mod ports;
mod races;
mod reach;
mod targets;
mod tricks;

const NODE: &str = "web1";
const SECRET: &str = "the secret of bob";
const VICTIM: &str = include_str!("isolation/victim.php");
/// Where accounts' httpds listen.
const PORT: u16 = 808;
/// Where agents listen: for slaves, and for balancers.
const AGENT: u16 = 341;
const SCORE: u16 = 342;

/// An account as others see it.
struct Party {
    name: &'static str,
    site: String,
    uid: u32,
    ip: Ipv4Addr,
}

/// Eve attacks, Bob is attacked; both live on one node.
struct Scene<'a> {
    figure: &'a Figure,
    eve: Party,
    bob: Party,
}

impl<'a> Scene<'a> {
    fn set(figure: &'a Figure) -> Result<Self> {
        let id = "<?php echo 'RAN-AS ', posix_getuid();";
        figure.site("eve", "eve.example.org", &[("id.php", id), ("index.html", "page of eve")])?;
        figure.site(
            "bob",
            "bob.example.org",
            &[("id.php", &VICTIM.replace("@SECRET@", SECRET)), ("index.html", "page of bob")],
        )?;
        figure.put("eve", "private.txt", "own secret")?;
        figure.put("bob", "private.txt", SECRET)?;
        figure.put("bob", "open/to-all.txt", SECRET)?;
        let scene = Self { eve: party(figure, "eve")?, bob: party(figure, "bob")?, figure };
        scene.bob_is_careless()?;
        for party in [&scene.bob, &scene.eve] {
            eventually(Duration::from_secs(10), "an answer of each account", || {
                let answer = scene.figure.get_from(NODE, &party.site, "/id.php")?;
                ensure!(answer.body == format!("RAN-AS {}", party.uid), "{answer:?}");
                Ok(())
            })?;
        }
        Ok(scene)
    }

    fn node(&self) -> Host<'_> {
        self.figure.host(NODE)
    }

    /// All that Bob has may be read by everybody, and one directory written to.
    fn bob_is_careless(&self) -> Result<()> {
        let home = "/srv/nas/web/home/bob";
        self.figure.host("nas").text(&format!("chmod -R o+rX {home} && chmod o+w {home}/open")).map(drop)
    }

    /// Runs a script of shell on the NAS as Eve, in her document root.
    fn as_eve_on_nas(&self, script: &str) -> Result<String> {
        let id = self.eve.uid.to_string();
        let root = format!("/srv/nas/web/home/eve/sites/{}", self.eve.site);
        let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "env", "-C", &root, "sh", "-eu"];
        self.figure.host("nas").exec(&words, script.as_bytes())?.text()
    }

    fn bob_answers(&self) -> Result<()> {
        let answer = self.figure.get_from(NODE, &self.bob.site, "/")?;
        ensure!(answer.status == 200 && answer.body == "page of bob", "{answer:?}");
        Ok(())
    }
}

fn party(figure: &Figure, name: &'static str) -> Result<Party> {
    let uid = figure.json(&format!("account show {name}"))?["uid"].as_u64().context("the account has a uid")?;
    let uid = u32::try_from(uid)?;
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() + (uid - 1_900_000_000));
    Ok(Party { name, site: format!("{name}.example.org"), uid, ip })
}

#[test]
fn isolation() -> Result<()> {
    Figure::scenario(|figure| {
        let scene = Scene::set(figure)?;
        reach::none_is_reached(&scene)?;
        ports::agents_are_out_of_reach(&scene)?;
        tricks::lead_nowhere(&scene)?;
        races::agent_follows_no_link(&scene)?;
        races::static_pages_show_no_swapped_target(&scene)?;
        ports::squatters_are_ended(&scene)
    })
}

#[test]
fn isolation_of_hogs() -> Result<()> {
    Figure::scenario(|figure| hogs::are_held(&Scene::set(figure)?))
}
