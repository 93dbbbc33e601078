//! How much slower one account's answers get while another account of the same node runs a fork bomb, a memory hog or busy loops.

use std::thread;
use std::time::{Duration, Instant};

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

/// A way to misbehave, without pause and until `$t` seconds are over.
struct Deed {
    /// In tables.
    name: &'static str,
    /// As a line of shell.
    line: &'static str,
    /// What of its account's slice shows that it does, and how much that is at least: near what its limits allow.
    property: &'static str,
    at_least: u64,
}

const DEEDS: [Deed; 3] = [
    Deed {
        name: "fork bomb",
        line: r#"perl -e "while (time < \$^T + $t) { defined fork or select undef, undef, undef, 0.01 }""#,
        property: "TasksCurrent",
        at_least: 110,
    },
    Deed {
        name: "memory hog",
        line: r#"e=$(($(date +%s) + $t)); while [ $(date +%s) -lt $e ]; do
             timeout -s KILL $t perl -e "while (1) { push @a, chr(65 + @a % 26) x 10000000 }"; done"#,
        property: "MemoryCurrent",
        at_least: 150 << 20,
    },
    Deed {
        name: "busy loops",
        line: r#"for i in 1 2 3 4 5 6 7 8; do timeout -s KILL $t sh -c "while :; do :; done" & done; wait"#,
        property: "TasksCurrent",
        at_least: 16,
    },
];
/// The part of one CPU that who misbehaves uses at least; its account may use one.
const CPU_PART: f64 = 0.3;

/// Measures; the quiet neighbours are the accounts of the sites `fixed` (static) and `php`.
pub fn measure(figure: &Figure, scale: Scale, report: &mut Report, fixed: u32, php: u32) -> Result<()> {
    let seconds = scale.pick(6, 2);
    figure.site(ACCOUNT, SITE, &[("index.html", "noisy")])?;
    for (number, Deed { line, .. }) in DEEDS.iter().enumerate() {
        // Both loads, the lead, and some room for their start and for the looks in between.
        let script = format!("<?php shell_exec('t={}; {line}');", 2 * seconds + 12);
        figure.put(ACCOUNT, &format!("sites/{SITE}/deed{number}.php"), &script)?;
    }
    tenants::answers(figure, NODE, SITE, "index.html")?;
    let neighbours = [("static", client::site(fixed), tenants::STATIC.0), ("PHP", client::site(php), tenants::PHP.0)];
    say("wake: answers with nothing beside");
    for (kind, site, path) in &neighbours {
        note(report, kind, QUIET, &ask(figure, site, path, seconds)?)?;
    }
    for (number, deed) in DEEDS.iter().enumerate() {
        say(&format!("wake: answers beside this: {}", deed.name));
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
    deed: &Deed,
    neighbours: &[(&str, String, &str)],
    seconds: u32,
) -> Result<()> {
    let (node, address) = (figure.host(NODE), figure.address(NODE)?);
    let uid = figure.json(&format!("account show {ACCOUNT}"))?["uid"].as_u64().context("the account has a uid")?;
    let line = format!("exec curl -sS -m 60 -H 'Host: {SITE}' 'http://{address}/deed{number}.php'");
    let running = figure.host("lb").spawn(&line)?;
    thread::sleep(LEAD);
    misbehaves(&node, uid, deed)?;
    let (begin, used_before_s) = (Instant::now(), cpu_s(&node, uid)?);
    for (kind, site, path) in neighbours {
        note(report, kind, deed.name, &ask(figure, site, path, seconds)?)?;
    }
    let (used_s, passed_s) = (cpu_s(&node, uid)? - used_before_s, begin.elapsed().as_secs_f64());
    misbehaves(&node, uid, deed)?;
    let deed = deed.name;
    ensure!(used_s > CPU_PART * passed_s, "the {deed} used {used_s} s of CPU in {passed_s} s: it did not misbehave");
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

/// Who misbehaves takes what its limits let it take.
fn misbehaves(node: &Host<'_>, uid: u64, Deed { name, property, at_least, .. }: &Deed) -> Result<()> {
    let line = format!("systemctl show --value -p {property} phalanx-account-{uid}.slice");
    eventually(Duration::from_secs(5), &format!("{property} of at least {at_least} for the {name}"), || {
        let taken: u64 = node.text(&line)?.parse()?;
        ensure!(taken >= *at_least, "it is {taken}");
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
