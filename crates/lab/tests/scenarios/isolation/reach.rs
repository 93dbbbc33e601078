//! Lets the probe run as Eve's PHP on all targets, and judges what it could reach.

use super::targets::{Pids, Target, Targets};
use super::{NODE, Scene};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const PROBE: &str = include_str!("probe.php");

/// Services of the machine that are nobody's business, one that is for all (the resolver), and what a careless Bob lets run. What the last
/// hears it writes: nftables would drop an answer of Bob's in any case, and so hide that Eve's words came through.
const SERVICES: &str = "for listen in TCP4-LISTEN:3306 UDP4-LISTEN:3306 TCP6-LISTEN:3306,ipv6only=1 UDP6-LISTEN:3306,ipv6only=1 \
    UDP4-LISTEN:53,bind=127.0.0.1; do socat $listen,fork EXEC:cat & done
    as_bob='setpriv --reuid @BOB@ --regid @BOB@ --clear-groups'
    for listen in ABSTRACT-LISTEN:neighbour TCP4-LISTEN:9001,bind=@BOB_IP@; do $as_bob socat $listen,fork EXEC:cat & done
    exec $as_bob socat -u UDP4-RECV:9002,bind=@BOB_IP@ STDOUT";

/// One way to get at things: what it must reach, and what it must not.
pub struct Try {
    pub name: &'static str,
    pub own: Vec<String>,
    pub other: Vec<Target>,
}

/// Lets the probe run as Eve's PHP and tells what it could reach that is not Eve's.
pub fn none_is_reached(scene: &Scene) -> Result<()> {
    let Scene { figure, eve, bob } = scene;
    let node = scene.node();
    let address = figure.address(NODE)?;
    let line = SERVICES
        .replace("@BOB_IP@", &bob.ip.to_string())
        .replace("@BOB@", &bob.uid.to_string())
        .replace("@NODE@", &address);
    let services = node.spawn(&line)?;
    let segment = node.text("ls /var/log/phalanx/access/*.log | head -n 1")?;
    let (eves, bobs) = (Pids::of(scene, eve)?, Pids::of(scene, bob)?);
    let tries = Targets { scene, address: &address, eves, bobs, segment }.tries()?;
    all_are_real(scene, &tries)?;

    let targets: BTreeMap<_, _> = tries.iter().map(|each| (each.name, each.to_json())).collect();
    let text = PROBE.replace("@TARGETS@", &serde_json::to_string_pretty(&targets)?);
    figure.put(eve.name, &format!("sites/{}/probe.php", eve.site), &text)?;
    let line = format!("curl -sS -m 50 -H 'Host: {}' http://{address}/probe.php", eve.site);
    let answer = figure.host("lb").text(&line)?;
    let report: Value = serde_json::from_str(&answer).with_context(|| format!("the probe wrote {answer:?}"))?;
    ensure!(report.as_object().is_some_and(|made| made.len() == tries.len()), "not what was asked for: {report:#}");
    let wrong: Vec<String> =
        tries.iter().filter_map(|each| each.check(&report[each.name]).err()).map(|e| e.to_string()).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What was stopped meanwhile was out of reach because of that.
    all_are_real(scene, &tries)?;
    let heard = services.stdout();
    ensure!(heard.contains("from root") && !heard.contains("from the probe"), "Bob heard {heard:?}");
    let count: usize = tries.iter().map(|each| each.other.len()).sum();
    println!("{} ways of code lead to none of {count} targets", tries.len());
    scene.bob_answers()
}

/// Fails with the names of the targets that are not there.
fn all_are_real(scene: &Scene, tries: &[Try]) -> Result<()> {
    const EACH: &str =
        r#"for proof; do timeout 5 sh -c "$proof" > /dev/null 2>&1 < /dev/null || printf '%s\036' "$proof"; done"#;
    // Many are tried in several ways and proved once.
    let proofs: BTreeSet<&str> =
        tries.iter().flat_map(|each| &each.other).map(|target| target.proof.as_str()).collect();
    let words: Vec<&str> = ["sh", "-c", EACH, "proofs"].into_iter().chain(proofs).collect();
    let text = scene.node().exec(&words, b"")?.text()?;
    let failed: BTreeSet<&str> = text.split('\u{1e}').collect();
    let unreal = |target: &&Target| failed.contains(target.proof.as_str());
    let unreal: BTreeMap<_, _> =
        tries.iter().flat_map(|each| &each.other).filter(unreal).map(|target| (&target.name, &target.proof)).collect();
    ensure!(unreal.is_empty(), "these targets are not there to be reached: {unreal:#?}");
    Ok(())
}

impl Try {
    fn to_json(&self) -> Value {
        json!({ "own": self.own, "other": self.other.iter().map(|target| &target.name).collect::<Vec<_>>() })
    }

    /// `seen` is what the probe reports of it.
    fn check(&self, seen: &Value) -> Result<()> {
        let Self { name, own, other } = self;
        ensure!(!own.is_empty() && !other.is_empty(), "{name} lacks targets");
        for target in own {
            let got = seen["own"].get(target).with_context(|| format!("{name}: nothing about {target}: {seen:#}"))?;
            ensure!(!got.is_null(), "{name}: the probe can't even reach {target}, which is its own");
        }
        let mut reached = BTreeMap::new();
        for Target { name: target, .. } in other {
            let got = seen["other"].get(target).with_context(|| format!("{name}: nothing about {target}: {seen:#}"))?;
            if !got.is_null() {
                reached.insert(target, got);
            }
        }
        ensure!(reached.is_empty(), "{name}: code of one account reached {reached:#?}");
        Ok(())
    }
}
