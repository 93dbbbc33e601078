//! A web node dies under load: it is passed by within three seconds, others do not notice, and it comes back by itself.

use anyhow::{Result, ensure};
use phalanx_lab::figure::{EXTERNAL, Figure};
use phalanx_lab::load::{Load, Record};
use phalanx_lab::{Host, eventually};
use std::time::{Duration, Instant};

/// The longest time from a death until no new connection goes to the dead node, in milliseconds.
const NOTICE_MS: u64 = 3_000;

/// Lets `host` die by `kill` in the middle of a load, and live again by `revive` after it.
fn dies(kill: impl Fn(&Host<'_>) -> Result<()>, revive: impl Fn(&Host<'_>) -> Result<()>) -> Result<()> {
    let figure = Figure::up()?;
    figure.site("who", "who.example.org", &[("who.php", "<?php echo gethostname();")])?;
    for node in ["web1", "web2"] {
        eventually(Duration::from_secs(5), "an answer from each node", || {
            let answer = figure.get_from(node, "who.example.org", "/who.php")?;
            ensure!(answer.body == node, "{answer:?}");
            Ok(())
        })?;
    }
    let client = figure.host("client");
    let target = format!("{EXTERNAL}:80").parse()?;
    let mut load = Load::new(target, "who.example.org", "/who.php", 12);
    // Requests that were under way when the node died end by their own patience; it must not delay those that follow.
    (load.threads, load.patience_ms) = (48, 2_000);
    // Flows that live on the other node, over the death.
    let flow = Load {
        rate: 2,
        threads: 1,
        keep: true,
        patience_ms: 5_000,
        ..Load::new(target, "who.example.org", "/who.php", 12)
    };
    let flows: Vec<_> = (0..4).map(|_| flow.start(&client)).collect::<Result<_>>()?;
    let begin = Instant::now();
    let running = load.start(&client)?;
    std::thread::sleep(Duration::from_secs(4).saturating_sub(begin.elapsed()));
    let victim = figure.host("web2");
    kill(&victim)?;
    // Dead by now: how long the lab took to kill it is not the balancer's time.
    let death_ms = begin.elapsed().as_millis() as u64;
    let records = running.finish()?;

    // The load began a little after `begin`, so its clock is behind: what it calls `death_ms` is later than the death.
    let late: Vec<&Record> = records.iter().filter(|r| r.at_ms > death_ms + NOTICE_MS && !r.ok()).collect();
    ensure!(
        late.is_empty(),
        "{} requests failed later than {NOTICE_MS} ms after the death: {:?}",
        late.len(),
        late.first()
    );
    let after = records.iter().filter(|r| r.at_ms > death_ms + NOTICE_MS).count();
    ensure!(after > 300, "only {after} requests were made after the death was to be noticed");
    let failed = records.iter().filter(|r| !r.ok()).map(|r| r.at_ms);
    let last = failed.max().map_or(0, |at| at.saturating_sub(death_ms));
    println!(
        "{} requests, {} failed, the last {last} ms after the death",
        records.len(),
        records.iter().filter(|r| !r.ok()).count()
    );

    for flow in flows {
        let answers = flow.finish()?;
        if answers.first().is_some_and(|first| first.text == "web1") {
            let bad = answers.iter().find(|answer| !answer.ok() || answer.text != "web1");
            ensure!(bad.is_none(), "a flow on the other node noticed: {bad:?}");
        }
    }

    revive(&victim)?;
    eventually(Duration::from_secs(60), "web2's return to service", || {
        let body = figure.get("who.example.org", "/who.php")?.body;
        ensure!(body == "web2", "{body}");
        Ok(())
    })
}

#[test]
fn death_killed() -> Result<()> {
    dies(|host| host.kill(), |host| host.boot())
}

#[test]
fn death_frozen() -> Result<()> {
    dies(|host| host.freeze(), |host| host.thaw())
}

#[test]
fn death_cut_off() -> Result<()> {
    dies(|host| host.cut(), |host| host.heal())
}
