//! Access logs: thousands of requests over two nodes, while nodes, agents, proxies, shippers, the merger and the share are killed, hung or cut off
//! as the dice say. Every line that is on a node's disk is in its site's log once, in order or in a marked late block; cut-off segments
//! are marked; what was counted is what the lines say; GoAccess reads the log as it is.
//!
//! A run prints its seed; `PHALANX_SEED=N make scenario NAME=logs` throws the same dice again.

mod merged;

use anyhow::{Context, Result, ensure};
use merged::{Merged, OnDisk};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, NODES};
use phalanx_lab::load::{Load, Record, Running};
use phalanx_lab::protocol::Action;
use std::time::{Duration, Instant};

/// Accounts with their sites.
const SITES: [(&str, &str); 2] = [("one", "one.example.org"), ("two", "two.example.org")];
/// The account of a customer who puts a directory into the place of his log.
const EVIL: (&str, &str) = ("evil", "evil.example.org");
/// What a program says went wrong, where one asks it to.
const BAD_PHP: &str = "<?php error_log('it went wrong: ' . $_GET['at']); echo 'it did';";
/// Requests a second and site, and for how long.
const RATE: u32 = 220;
const LOAD: Duration = Duration::from_secs(50);
/// The merger waits 20 s for a node that is silent; a node that was killed needs some to come back.
const MERGED_LIMIT: Duration = Duration::from_secs(90);

/// What happens to a node in the middle of the load.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Proxy,
    Agent,
    Logs,
    Node,
    StorageHangs,
    StorageIsLost,
}

const BLOWS: [Blow; 6] = [Blow::Proxy, Blow::Agent, Blow::Logs, Blow::Node, Blow::StorageHangs, Blow::StorageIsLost];

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

fn strike(figure: &Figure, blow: Blow, node: &str) -> Result<()> {
    let host = figure.host(node);
    // After a boot it may not be there yet.
    let kill = |unit: &str| {
        eventually(Duration::from_secs(30), &format!("{unit} to kill"), || {
            host.text(&format!("systemctl kill --kill-whom=main --signal=KILL {unit}")).map(drop)
        })
    };
    match blow {
        Blow::Proxy => kill("phalanx-proxy"),
        Blow::Agent => kill("phalanx-agent"),
        Blow::Logs => kill("phalanx-logs"),
        Blow::Node => {
            host.act(Action::Kill)?;
            host.act(Action::Boot)
        }
        Blow::StorageHangs => {
            host.hang_storage()?;
            std::thread::sleep(Duration::from_secs(3));
            host.release_storage()
        }
        Blow::StorageIsLost => {
            host.lose_storage()?;
            std::thread::sleep(Duration::from_secs(2));
            host.return_storage()
        }
    }
}

/// Each blow once, and others, on nodes and at times of the dice's choice.
fn strike_all(figure: &Figure, dice: &mut Dice, until: Instant) -> Result<()> {
    let mut blows = BLOWS.to_vec();
    for last in (1..blows.len()).rev() {
        blows.swap(last, dice.roll(last + 1));
    }
    let mut count = 0;
    while Instant::now() < until {
        let blow = blows.pop().unwrap_or(BLOWS[dice.roll(3)]);
        let node = NODES[dice.roll(2)];
        println!("{blow:?} on {node}");
        strike(figure, blow, node)?;
        count += 1;
        std::thread::sleep(Duration::from_millis(300 + dice.roll(2_000) as u64));
    }
    ensure!(blows.is_empty(), "{blows:?} did not happen in time");
    println!("{count} blows");
    Ok(())
}

fn set_up(figure: &Figure) -> Result<()> {
    for (account, site) in SITES.iter().chain([&EVIL]) {
        figure.site(account, site, &[("page.txt", "a page"), ("bad.php", BAD_PHP)])?;
    }
    // Before there is a line.
    figure.put(EVIL.0, &format!("logs/{}/access.log/mine", EVIL.1), "a directory in its place")?;
    for (_, site) in SITES.iter().chain([&EVIL]) {
        for node in NODES {
            figure.node_answers(node, site, "/page.txt", "a page")?;
        }
    }
    Ok(())
}

fn start(figure: &Figure, site: &str, rate: u32) -> Result<Running> {
    let seconds = u32::try_from(LOAD.as_secs())? + 120;
    let load = Load { rate, threads: 32, patience_ms: 2_000, ..figure.load(site, "/page.txt", seconds) };
    load.start(&figure.host("client"))
}

/// Waits until the merged logs have what the nodes' disks have, and no more is to come.
fn all_is_merged(figure: &Figure) -> Result<(OnDisk, Merged)> {
    eventually(MERGED_LIMIT, "that all lines are merged", || {
        let on_disk = OnDisk::read(figure)?;
        let merged = Merged::read(figure)?;
        let missing = on_disk.lines.iter().filter(|(site, _)| site != EVIL.1).filter(|line| !merged.has(line)).count();
        ensure!(missing == 0, "{missing} of {} lines are missing", on_disk.lines.len());
        let unmarked: Vec<_> = on_disk.cut_off.iter().filter(|cut| merged.marks("-", cut) == 0).collect();
        ensure!(unmarked.is_empty(), "no mark of {unmarked:?}");
        Ok((on_disk, merged))
    })
}

/// Nothing twice, nothing that is on no disk, all in order, marks where they belong.
fn judge(on_disk: &OnDisk, merged: &Merged) -> Result<()> {
    merged.is_once_and_in_order()?;
    for line in &merged.lines {
        ensure!(on_disk.lines.contains(line), "{line:?} is on no disk");
    }
    for cut in &on_disk.cut_off {
        for (_, site) in SITES {
            let had_lines = on_disk.lines.iter().any(|(of, at)| of == site && at.starts_with(&format!("{cut} ")));
            let marks = merged.marks(site, cut);
            ensure!(marks == usize::from(had_lines), "{marks} marks of {cut} in the log of {site}");
        }
        ensure!(merged.marks("-", cut) == 1, "{} marks of {cut}", merged.marks("-", cut));
    }
    Ok(())
}

/// What was counted is what the lines say; the client counted no more answers than there are lines, but for what a gap may have taken.
fn counts_agree(figure: &Figure, on_disk: &OnDisk, answers: &[(&str, usize)]) -> Result<()> {
    eventually(Duration::from_secs(30), "the panel's count of all lines", || {
        let counted = merged::counted(figure)?;
        for (_, site) in SITES.iter().chain([&EVIL]) {
            let lines = on_disk.lines.iter().filter(|(of, _)| of == site).count() as u64;
            let count = counted.get(*site).copied().unwrap_or_default();
            ensure!(count == lines, "{count} requests were counted of {site}, whose lines are {lines}");
        }
        Ok(())
    })?;
    for (site, answers) in answers {
        let lines = on_disk.lines.iter().filter(|(of, _)| of == site).count();
        // In a tenth of a second a node that ends uncleanly may have answered a part of the requests of that time.
        let lost_max = on_disk.cut_off.len() * RATE as usize / 5;
        println!("{site}: {answers} answers, {lines} lines, {} segments cut off", on_disk.cut_off.len());
        ensure!(lines + lost_max >= *answers, "{answers} answers of {site}, {lines} lines, {lost_max} may be lost");
    }
    Ok(())
}

/// GoAccess reads every line of a merged log.
fn goaccess_reads_it(figure: &Figure, merged: &Merged) -> Result<()> {
    let (account, site) = SITES[0];
    let line = format!(
        "goaccess /srv/nas/web/home/{account}/logs/{site}/access.log --log-format=COMBINED --no-global-config --no-progress -o /tmp/report.json && cat /tmp/report.json"
    );
    let text = figure.host("nas").text(&line)?;
    let report: serde_json::Value = serde_json::from_str(&text).context("GoAccess wrote no JSON")?;
    let general = &report["general"];
    let lines = merged.lines.iter().filter(|(of, _)| of == site).count() as u64;
    let valid = general["valid_requests"].as_u64();
    ensure!(valid == Some(lines) && general["failed_requests"] == 0, "{lines} lines, GoAccess says {general}");
    println!("GoAccess read {lines} lines of {site}");
    Ok(())
}

/// The panel shows the log's end, and goes on with what is merged meanwhile, each line once.
fn the_panel_shows_it(figure: &Figure) -> Result<()> {
    let (_, site) = SITES[0];
    let cp = figure.host("cp");
    let end = figure.phalanx(&format!("site log {site} --lines 3"))?;
    ensure!(end.lines().count() == 3 && end.contains("\"GET /page.txt HTTP/1.1\" 200 "), "{end}");
    let follows = cp.spawn(&format!("timeout 15 phalanx site log {site} --lines 1 --follow"))?;
    std::thread::sleep(Duration::from_secs(2));
    for mark in 0..3 {
        let answer = figure.get(site, &format!("/page.txt?mark-{mark}-"))?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    let followed = follows.wait(Duration::from_secs(30))?.stdout;
    for mark in 0..3 {
        let count = followed.matches(&format!("?mark-{mark}-")).count();
        ensure!(count == 1, "mark {mark} was shown {count} times: {followed}");
    }
    println!("followed: {} lines", followed.lines().count());
    Ok(())
}

/// What goes wrong at a site on either node is in the site's one error log, each message once, with its node.
fn errors_are_merged(figure: &Figure) -> Result<()> {
    let (account, site) = SITES[0];
    for number in 0..4 {
        for node in NODES {
            figure.node_answers(node, site, &format!("/bad.php?at={node}-{number}-"), "it did")?;
            if number == 1 {
                figure.host(node).text("systemctl kill --kill-whom=main --signal=KILL phalanx-logs")?;
            }
        }
    }
    let path = format!("/srv/nas/web/home/{account}/logs/{site}/error.log");
    let text = eventually(MERGED_LIMIT, "that errors are merged", || {
        let text = figure.host("nas").text(&format!("cat {path}"))?;
        for node in NODES {
            for number in 0..4 {
                let said = format!("it went wrong: {node}-{number}-");
                let lines: Vec<&str> = text.lines().filter(|line| line.contains(&said)).collect();
                ensure!(lines.len() == 1, "{} lines with {said}: {text}", lines.len());
                ensure!(lines[0].split(' ').nth(1) == Some(node), "it names its node: {}", lines[0]);
            }
        }
        Ok(text)
    })?;
    println!("{}", text.lines().next().unwrap_or_default());
    let shown = figure.phalanx(&format!("site log {site} --errors --lines 20"))?;
    ensure!(shown.contains("it went wrong: web2-3-"), "{shown}");
    Ok(())
}

fn the_customer_is_told(figure: &Figure) -> Result<()> {
    eventually(Duration::from_secs(20), "the refusal in the master's report", || {
        let report = figure.report("web1")?;
        let told = report["problems"].to_string();
        ensure!(told.contains(&format!("the access log of {} takes no lines", EVIL.1)), "{told}");
        Ok(())
    })
}

#[test]
fn logs() -> Result<()> {
    let seed = match std::env::var("PHALANX_SEED") {
        Ok(seed) => seed.parse().context("PHALANX_SEED is no number")?,
        Err(_) => phalanx_lab::load::clock_ms(),
    };
    println!("the seed is {seed}: PHALANX_SEED={seed} make scenario NAME=logs");
    Figure::scenario(|figure| {
        set_up(figure)?;
        let client = figure.host("client");
        let until = Instant::now() + LOAD;
        let loads: Vec<Running> = SITES.iter().map(|(_, site)| start(figure, site, RATE)).collect::<Result<_>>()?;
        let evil = start(figure, EVIL.1, 5)?;
        strike_all(figure, &mut Dice(seed), until)?;
        the_customer_is_told(figure)?;
        let mut answers = Vec::new();
        for (load, (_, site)) in loads.into_iter().zip(SITES) {
            let records: Vec<Record> = load.stop(&client)?;
            answers.push((site, records.iter().filter(|record| record.ok()).count()));
        }
        evil.stop(&client)?;
        let (on_disk, merged) = all_is_merged(figure)?;
        ensure!(on_disk.lines.len() > 10_000, "only {} lines", on_disk.lines.len());
        ensure!(!on_disk.cut_off.is_empty(), "no proxy was killed");
        judge(&on_disk, &merged)?;
        counts_agree(figure, &on_disk, &answers)?;
        goaccess_reads_it(figure, &merged)?;
        the_panel_shows_it(figure)?;
        errors_are_merged(figure)?;
        println!("{} lines, {} in late blocks", merged.lines.len(), merged.late);
        figure.settled(&NODES)
    })
}
