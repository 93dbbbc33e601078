//! How much slower one account's answers get while another account of the same node runs a fork bomb, a memory hog or busy loops.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::NODE;
use crate::bench::report::{Figures, Report, quantile};
use crate::bench::{Scale, client, probe, say, tenants};
use crate::figure::Figure;
use crate::load::{Load, Record};
use crate::{Host, eventually};

const ACCOUNT: &str = "noisy";
const SITE: &str = "noisy.example.org";
/// Requests a second for the quiet neighbour.
const RATE: u32 = 50;
/// From the start of the misbehaviour to the first request that counts.
const LEAD: Duration = Duration::from_secs(1);
const QUIET: &str = "nothing beside";

/// Ways to misbehave, without pause and until `$t` seconds are over: in tables, and as a line of shell.
const DEEDS: [(&str, &str); 3] = [
    ("fork bomb", r#"perl -e "fork while time < \$^T + $t""#),
    (
        "memory hog",
        r#"e=$(($(date +%s) + $t)); while [ $(date +%s) -lt $e ]; do
             timeout -s KILL $t perl -e "while (1) { push @a, chr(65 + @a % 26) x 10000000 }"; done"#,
    ),
    ("busy loops", r#"for i in 1 2 3 4 5 6 7 8; do timeout -s KILL $t sh -c "while :; do :; done" & done; wait"#),
];

/// Measures; the quiet neighbours are the accounts of the sites `fixed` (static) and `php`.
pub fn measure(figure: &Figure, scale: Scale, report: &mut Report, fixed: u32, php: u32) -> Result<()> {
    let seconds = scale.pick(6, 2);
    figure.site(ACCOUNT, SITE, &[("index.html", "noisy")])?;
    for (number, (_, deed)) in DEEDS.iter().enumerate() {
        // Both loads, the lead, and some room for their start.
        let script = format!("<?php shell_exec('t={}; {deed}');", 2 * seconds + 6);
        figure.put(ACCOUNT, &format!("sites/{SITE}/deed{number}.php"), &script)?;
    }
    tenants::answers(figure, NODE, SITE, "index.html")?;
    let neighbours = [("static", client::site(fixed), tenants::STATIC.0), ("PHP", client::site(php), tenants::PHP.0)];
    say("wake: answers with nothing beside");
    for (kind, site, path) in &neighbours {
        note(report, kind, QUIET, &ask(figure, site, path, seconds)?)?;
    }
    for (number, (deed, _)) in DEEDS.iter().enumerate() {
        say(&format!("wake: answers beside this: {deed}"));
        beside(figure, report, number, deed, &neighbours, seconds)?;
    }
    for (kind, ..) in &neighbours {
        for metric in ["p50", "p99"] {
            report.compare_to(&case(kind), metric, QUIET);
        }
    }
    Ok(())
}

fn beside(
    figure: &Figure,
    report: &mut Report,
    number: usize,
    deed: &str,
    neighbours: &[(&str, String, &str)],
    seconds: u32,
) -> Result<()> {
    let (node, address) = (figure.host(NODE), figure.address(NODE)?);
    let uid = figure.json(&format!("account show {ACCOUNT}"))?["uid"].as_u64().context("the account has a uid")?;
    let line = format!("exec curl -sS -m 60 -H 'Host: {SITE}' 'http://{address}/deed{number}.php'");
    let running = figure.host("lb").spawn(&line)?;
    thread::sleep(LEAD);
    let used_before_s = cpu_s(&node, uid)?;
    for (kind, site, path) in neighbours {
        note(report, kind, deed, &ask(figure, site, path, seconds)?)?;
    }
    let used_s = cpu_s(&node, uid)? - used_before_s;
    ensure!(used_s > 0.2, "the {deed} used {used_s} s of CPU: it did not misbehave");
    let case = "both loads together";
    report.row(case, deed, ("CPU of who misbehaves", "s"), Figures::one(used_s));
    // It ends by itself; the next one begins on a node that is quiet again.
    let _answer = running.wait(Duration::from_secs(60))?;
    eventually(Duration::from_secs(30), &format!("the end of the {deed}"), || {
        let left = probe::cost(&node, &format!("pgrep -U {uid}"))?.processes;
        ensure!(left < 20, "there are {left} processes left of it");
        Ok(())
    })
}

/// CPU time that an account's slice has used, in seconds. The second version of control groups counts it whatever controllers it has.
fn cpu_s(node: &Host<'_>, uid: u64) -> Result<f64> {
    let line = format!(
        "group=$(systemctl show --property ControlGroup --value phalanx-account-{uid}.slice)
         cat /sys/fs/cgroup/unified$group/cpu.stat /sys/fs/cgroup$group/cpu.stat 2>/dev/null | awk '/^usage_usec/ {{ print $2; exit }}'"
    );
    Ok(node.text(&line)?.parse::<f64>().context("the slice's CPU time")? / 1e6)
}

fn ask(figure: &Figure, site: &str, path: &str, seconds: u32) -> Result<Vec<Record>> {
    let mut load = Load::new(format!("{}:80", figure.address(NODE)?).parse()?, site, &format!("/{path}"), seconds);
    (load.rate, load.threads) = (RATE, 32);
    load.start(&figure.host("lb"))?.finish()
}

fn case(kind: &str) -> String {
    format!("{kind} page, {RATE} req/s")
}

fn note(report: &mut Report, kind: &str, beside: &str, records: &[Record]) -> Result<()> {
    let case = &case(kind);
    let took: Vec<f64> = records.iter().filter(|r| r.ok()).map(|r| r.took_us as f64 / 1e3).collect();
    report.row(case, beside, ("p50", "ms"), Figures::one(quantile(&took, 50)?));
    report.row(case, beside, ("p99", "ms"), Figures::one(quantile(&took, 99)?));
    report.row(case, beside, ("failed", ""), Figures::one((records.len() - took.len()) as f64));
    Ok(())
}
