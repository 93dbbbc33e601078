//! A web node dies under load: it is passed by within three seconds, others do not notice, and it comes back by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_lab::figure::{Figure, WHO, WHO_PAGE};
use phalanx_lab::load::{Load, Record, clock_ms};
use phalanx_lab::protocol::Action;

/// The longest time from a death until no new connection goes to the dead node, in milliseconds. It is counted from the moment before
/// the lab was told to kill, by the one clock that test and client share.
const NOTICE_MS: u64 = 3_000;
/// How long the load goes on before the death, and how long after it.
const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_secs(9);
/// Flows that are kept over the death; new connections take turns, so each node has some.
const FLOWS: u32 = 4;

/// Lets `victim` die by `death` in the middle of a load, and live again by `revival` after it.
fn dies(victim: &str, death: Action, revival: Action) -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[])?;
        figure.serves_through(victim, Duration::from_secs(20))?;
        let client = figure.host("client");
        let flow = Load { rate: 2, threads: 1, keep: true, ..figure.load(WHO, WHO_PAGE, 60) };
        let flows: Vec<_> = (0..FLOWS).map(|_| flow.start(&client)).collect::<Result<_>>()?;
        let mut load = figure.load(WHO, WHO_PAGE, 60);
        // Requests that were under way when the node died end by their own patience; it must not delay those that follow.
        (load.threads, load.patience_ms) = (48, 2_000);
        let running = load.start(&client)?;
        std::thread::sleep(BEFORE);
        let host = figure.host(victim);
        let death_ms = clock_ms();
        host.act(death)?;
        println!("the lab took {} ms to kill {victim}", clock_ms() - death_ms);
        std::thread::sleep(AFTER);
        let records = running.stop(&client)?;
        let flows: Vec<_> = flows.into_iter().map(|flow| flow.stop(&client)).collect::<Result<_>>()?;

        is_passed_by(victim, death_ms, &records)?;
        flows_go_on(victim, death_ms, &flows)?;
        host.act(revival)?;
        figure.serves_through(victim, Duration::from_secs(60))?;
        figure.settled(&["web1", "web2"])
    })
}

/// It took its part of the connections while it lived; none that began later than [`NOTICE_MS`] after its death went there.
fn is_passed_by(victim: &str, death_ms: u64, records: &[Record]) -> Result<()> {
    let (before, after): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.clock_ms < death_ms);
    let served = before.iter().filter(|record| record.text == victim).count();
    ensure!(before.len() > 200 && served * 100 >= before.len() * 40, "{victim} answered {served} of {}", before.len());
    let is_late = |record: &&&Record| record.clock_ms > death_ms + NOTICE_MS;
    let late: Vec<_> = after.iter().filter(is_late).collect();
    ensure!(late.len() > 300, "only {} requests were made after the death was to be noticed", late.len());
    let bad: Vec<_> = late.iter().filter(|record| !record.ok() || record.text == victim).collect();
    ensure!(bad.is_empty(), "{} went to the dead node later than {NOTICE_MS} ms: {:?}", bad.len(), bad.last());

    let failed: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
    // One that began this long before the death had its answer long ago.
    let early = failed.iter().find(|record| record.clock_ms + 1_000 < death_ms);
    ensure!(early.is_none(), "a request failed before the death: {early:?}");
    let last = failed.iter().map(|record| record.clock_ms.saturating_sub(death_ms)).max().unwrap_or(0);
    println!("{} requests, {} failed, the last {last} ms after the death of {victim}", records.len(), failed.len());
    Ok(())
}

/// Connections to the other node, opened before the death and kept over it, carry on. There is at least one of them.
fn flows_go_on(victim: &str, death_ms: u64, flows: &[Vec<Record>]) -> Result<()> {
    let is_elsewhere = |answers: &&Vec<Record>| answers.first().is_some_and(|first| first.ok() && first.text != victim);
    let elsewhere: Vec<_> = flows.iter().filter(is_elsewhere).collect();
    ensure!(!elsewhere.is_empty(), "no flow was on the other node: {flows:?}");
    for answers in &elsewhere {
        let after = answers.iter().filter(|answer| answer.clock_ms > death_ms + NOTICE_MS).count();
        ensure!(after >= 8, "a flow has only {after} answers after the death was to be noticed");
        let bad = answers.iter().find(|answer| !answer.ok() || answer.text == victim);
        ensure!(bad.is_none(), "a flow on the other node noticed: {bad:?}");
    }
    println!("{} of {} flows were on the other node and did not notice", elsewhere.len(), flows.len());
    Ok(())
}

#[test]
fn death_killed() -> Result<()> {
    dies("web2", Action::Kill, Action::Boot)
}

/// The other node's way to the panel dies with it.
#[test]
fn death_of_the_master() -> Result<()> {
    dies("web1", Action::Kill, Action::Boot)
}

#[test]
fn death_frozen() -> Result<()> {
    dies("web2", Action::Freeze, Action::Thaw)
}

#[test]
fn death_cut_off() -> Result<()> {
    dies("web2", Action::Cut, Action::Heal)
}
