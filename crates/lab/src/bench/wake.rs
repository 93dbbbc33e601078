//! Accounts: the cold first answer, memory while awake, hundreds awake at once, and what is left for one account while its neighbour misbehaves.
//!
//! All on one node, asked from the balancer's host at the node's own address. Memory is the proportional set (PSS) of all processes with the
//! account's uid: page tables and what the kernel holds for them are not in it.

mod neighbour;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use super::report::{Figures, Report, quantile};
use super::{Scale, client, probe, say, tenants};
use crate::figure::Figure;
use crate::load::Record;

const NODE: &str = "web1";
/// PHP's workers end after 20 s without a request; its master stays.
const PHP_IDLE: Duration = Duration::from_secs(25);
/// Wakes at a time when many are woken.
const WAKERS: u32 = 16;

/// Measures.
pub fn measure(figure: &Figure, scale: Scale, report: &mut Report) -> Result<()> {
    let (few, many) = scale.pick((20, 500), (4, 20));
    let (fixed, php, crowd) = (0..few, few..2 * few, 2 * few..2 * few + many);
    say(&format!("wake: {} accounts and their pages", crowd.end));
    tenants::accounts(figure, 0..crowd.end)?;
    tenants::publish(figure, fixed.clone(), tenants::STATIC)?;
    tenants::publish(figure, php.clone(), tenants::PHP)?;
    tenants::publish(figure, crowd.clone(), tenants::STATIC)?;

    let kinds = [("static", &fixed, tenants::STATIC.0, 60.0), ("PHP", &php, tenants::PHP.0, 150.0)];
    for (kind, sites, path, goal_ms) in kinds {
        say(&format!("wake: the first answers of {few} accounts, {kind}"));
        answers(figure, report, kind, sites.clone(), path, goal_ms)?;
    }
    memory(figure, report, &fixed, &php)?;
    crowded(figure, report, crowd)?;
    neighbour::measure(figure, scale, report, fixed.start, php.start)
}

/// Asks for one page of each site in turn; every answer is to be 200.
fn ask(figure: &Figure, sites: Range<u32>, path: &str, threads: u32) -> Result<Vec<Record>> {
    let target = format!("{}:80", figure.address(NODE)?);
    let records = tenants::sweep(&figure.host("lb"), &target, sites.clone(), path, threads)?;
    let failed = records.iter().find(|record| !record.ok());
    ensure!(failed.is_none(), "a first answer was none: {failed:?}");
    ensure!(records.len() == sites.len(), "{} of {} were asked", records.len(), sites.len());
    Ok(records)
}

fn took_ms(records: &[Record]) -> Vec<f64> {
    records.iter().map(|record| record.took_us as f64 / 1e3).collect()
}

fn answers(
    figure: &Figure,
    report: &mut Report,
    case: &str,
    sites: Range<u32>,
    path: &str,
    goal_ms: f64,
) -> Result<()> {
    let cold = took_ms(&ask(figure, sites.clone(), path, 1)?);
    let warm = took_ms(&ask(figure, sites, path, 1)?);
    for (subject, took) in [("first answer", &cold), ("second answer", &warm)] {
        report.row(case, subject, ("median", "ms"), Figures::of(took)?);
        report.row(case, subject, ("p95", "ms"), Figures::one(quantile(took, 95)?));
    }
    report.compare_to(case, "median", "second answer");
    report.compare_to(case, "p95", "second answer");
    report.goal(&format!("first answer, {case}, median, ms"), goal_ms, quantile(&cold, 50)?);
    Ok(())
}

fn memory(figure: &Figure, report: &mut Report, fixed: &Range<u32>, php: &Range<u32>) -> Result<()> {
    const METRIC: (&str, &str) = ("memory per awake account, PSS", "MiB");
    say("wake: memory of those that are awake");
    let case = &format!("{} accounts awake", fixed.len() + php.len());
    let static_mib = each_mib(figure, fixed)?;
    let busy_mib = each_mib(figure, php)?;
    thread::sleep(PHP_IDLE);
    let idle_mib = each_mib(figure, php)?;
    for (subject, mib) in [("static", &static_mib), ("PHP, just asked", &busy_mib), ("PHP, idle", &idle_mib)] {
        report.row(case, subject, METRIC, Figures::of(mib)?);
    }
    report.compare_to(case, METRIC.0, "static");
    report.goal("memory per awake account, static, MiB", 2.0, quantile(&static_mib, 50)?);
    report.goal("memory per awake account, PHP idle, MiB", 10.0, quantile(&idle_mib, 50)?);
    Ok(())
}

fn each_mib(figure: &Figure, sites: &Range<u32>) -> Result<Vec<f64>> {
    let node = figure.host(NODE);
    let uids = sites.clone().map(|number| uid(figure, number));
    uids.map(|uid| Ok(probe::cost(&node, &format!("pgrep -U {}", uid?))?.pss_mib)).collect()
}

/// The uid of the account that site `number` has.
fn uid(figure: &Figure, number: u32) -> Result<u64> {
    let (status, answer) = figure.api("GET", &format!("/accounts/{}", client::account(number)), None)?;
    let uid: Option<u64> = answer.get("uid").and_then(Value::as_u64);
    uid.with_context(|| format!("account {number} has no uid: {status} {answer}"))
}

/// The uids of the accounts whose httpd listens on the node.
fn awake(figure: &Figure) -> Result<BTreeSet<String>> {
    let text = figure.host(NODE).text("ss -Hltne 'sport = :808' | grep -o 'uid:[0-9]*'")?;
    Ok(text.lines().filter_map(|line| line.strip_prefix("uid:")).map(str::to_owned).collect())
}

/// Hundreds of accounts awake at once.
fn crowded(figure: &Figure, report: &mut Report, sites: Range<u32>) -> Result<()> {
    let case = &format!("{} accounts woken at once", sites.len());
    say(&format!("wake: {case}, {WAKERS} at a time"));
    let cold = ask(figure, sites.clone(), tenants::STATIC.0, WAKERS)?;
    let ends = cold.iter().map(|record| record.at_ms as f64 + record.took_us as f64 / 1e3);
    let all_s = ends.fold(0.0, f64::max) / 1e3;
    let again = ask(figure, sites.clone(), tenants::STATIC.0, 1)?;
    let uids: Vec<String> = sites.map(|number| Ok(uid(figure, number)?.to_string())).collect::<Result<_>>()?;
    let sum = probe::cost(&figure.host(NODE), &format!("pgrep -U {}", uids.join(",")))?;
    let awake = awake(figure)?;
    let asleep: Vec<_> = uids.iter().filter(|uid| !awake.contains(*uid)).collect();
    ensure!(asleep.is_empty(), "{} of {} accounts are not awake at once: {asleep:?}", asleep.len(), uids.len());
    let count = uids.len() as f64;
    report.row(case, "node", ("all have answered after", "s"), Figures::one(all_s));
    report.row(case, "node", ("accounts woken", "1/s"), Figures::one(count / all_s));
    report.row(case, "first answer", ("median", "ms"), Figures::of(&took_ms(&cold))?);
    report.row(case, "first answer", ("p95", "ms"), Figures::one(quantile(&took_ms(&cold), 95)?));
    report.row(case, "second answer, one at a time", ("median", "ms"), Figures::of(&took_ms(&again))?);
    report.row(case, "second answer, one at a time", ("p95", "ms"), Figures::one(quantile(&took_ms(&again), 95)?));
    report.row(case, "node", ("accounts awake then, with those of before", ""), Figures::one(awake.len() as f64));
    report.row(case, "these accounts", ("memory in all, PSS", "MiB"), Figures::one(sum.pss_mib));
    report.row(case, "these accounts", ("memory each, PSS", "MiB"), Figures::one(sum.pss_mib / count));
    report.row(case, "these accounts", ("processes", ""), Figures::one(f64::from(sum.processes)));
    for metric in ["median", "p95"] {
        report.compare_to(case, metric, "second answer, one at a time");
    }
    report.goal(&format!("memory per awake account, static, {case}, MiB"), 2.0, sum.pss_mib / count);
    Ok(())
}
