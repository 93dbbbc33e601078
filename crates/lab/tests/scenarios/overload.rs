//! PHP work burns one node's CPU: the node gets less, then nothing new, and comes back when the work is done. Nobody's request fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_lab::figure::{Figure, NODES, WHO, WHO_PAGE};
use phalanx_lab::load::{Record, clock_ms};
use phalanx_lab::{Pace, eventually};

/// Burns CPU until a moment, so that requests that had to wait for others end with them.
const BURN: &str =
    "<?php while (microtime(true) < (float)$_GET['until']) { hash('sha256', str_repeat('x', 4096)); } echo 'done';";
/// How long the work goes on.
const BURN_S: u64 = 15;
/// How long connections are made before the work begins, and after it ended; and the most in all.
const BEFORE: Duration = Duration::from_secs(6);
const AFTER_MS: u64 = 20_000;
const LOAD_S: u32 = 150;
/// How long after the work its part is to be back: the pressure that the kernel tells is an average over ten seconds.
const BACK_MS: u64 = 12_000;
/// When the node's share must have fallen.
const NOTICE_MS: u64 = 5_000;
/// The balancer counts new connections in turns of ten or so: a window must hold some of them.
const RATE: u32 = 40;

/// The part of the connections that began between two moments and were answered by web2, in percent.
fn share_of_web2(records: &[Record], from_ms: u64, until_ms: u64) -> Result<u64> {
    let window: Vec<&Record> = records.iter().filter(|r| (from_ms..until_ms).contains(&r.clock_ms)).collect();
    ensure!(window.len() >= 50, "only {} connections between {from_ms} and {until_ms} ms", window.len());
    let count = window.iter().filter(|r| r.text == "web2").count();
    Ok((100 * count / window.len()) as u64)
}

#[test]
fn overload() -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[])?;
        figure.site("burn", "burn.example.org", &[("burn.php", BURN)])?;
        for node in NODES {
            figure.node_answers(node, "burn.example.org", "/burn.php?until=0", "done")?;
        }
        figure.host("web2").pace(Pace::Percent(30))?;
        figure.serves_through("web2", Duration::from_secs(20))?;
        burns(figure)
    })
}

/// Lets web2 burn its CPU under a load of short requests.
fn burns(figure: &Figure) -> Result<()> {
    let client = figure.host("client");
    let mut load = figure.load(WHO, WHO_PAGE, LOAD_S);
    // A slow node keeps its clients waiting; that must not delay the others.
    (load.rate, load.threads, load.patience_ms) = (RATE, 64, 20_000);
    let begin_ms = clock_ms();
    let load = load.start(&client)?;
    std::thread::sleep(BEFORE);

    let burn_ms = clock_ms();
    let line = format!(
        "until=$(($(date +%s) + {BURN_S})); for i in 1 2 3 4 5 6 7 8; do \
           curl -sS -m 60 -H 'Host: burn.example.org' \"http://10.9.0.12/burn.php?until=$until\" & sleep 0.1; done; wait"
    );
    let mut burning = figure.host("lb").spawn(&line)?;
    eventually(Duration::from_millis(2 * NOTICE_MS), "web2's overload in `phalanx status`", || {
        let status = figure.json("status")?;
        let shown = status.to_string();
        ensure!(shown.contains("\"overloaded\""), "{shown}");
        Ok(())
    })?;
    let told_ms = clock_ms() - burn_ms;
    ensure!(burning.is_running()?, "the work goes on");
    burning.wait(Duration::from_secs(60))?.text()?;
    let over_ms = clock_ms();
    std::thread::sleep(Duration::from_millis(AFTER_MS));
    let records = load.stop(&client)?;

    if let Some(bad) = records.iter().find(|record| !record.ok()) {
        anyhow::bail!("a request failed: {bad:?}");
    }
    let before = share_of_web2(&records, begin_ms, burn_ms)?;
    let during = share_of_web2(&records, burn_ms + NOTICE_MS, burn_ms + 1_000 * BURN_S - 1_000)?;
    let after = share_of_web2(&records, over_ms + BACK_MS, over_ms + AFTER_MS)?;
    println!("web2 got {before} % before, {during} % under overload (told after {told_ms} ms), {after} % after");
    ensure!((40..=60).contains(&before), "web2 got {before} % before it was overloaded");
    ensure!(during <= 15, "web2 got {during} % from {NOTICE_MS} ms after the work began");
    ensure!((35..=60).contains(&after), "web2 got {after} % after it was overloaded");
    Ok(())
}
