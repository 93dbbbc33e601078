//! The directory: how long after the API's 201 a new site is live on all nodes, and what the daemons need, as the number of sites grows.
//!
//! "Live" is an answer of the account's own httpd for the new host name, so that it holds the whole way: panel, master, slave, NAS (the document
//! root), the account's configuration. The clock is one process's, on the panel's host, which polls the nodes every 2 ms.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client::{self, Change, Seen};
use super::probe::{self, Cost};
use super::report::{Figures, Report, quantile};
use super::{Scale, say, tenants};
use crate::eventually;
use crate::figure::Figure;

/// Ten sites to an account.
const PER_ACCOUNT: u32 = 10;
/// How long one size may be added for; a size that is not reached is measured as far as it came.
const FILL_S: u32 = 180;
/// How long the nodes may be behind then.
const CATCH_UP: Duration = Duration::from_secs(300);
/// An account that is awake all the time.
const AWAKE: &str = "awake";
/// What is done to sites, in words.
const CHANGES: [(Change, &str); 3] =
    [(Change::Add, "site added"), (Change::Alias, "alias added"), (Change::Remove, "site removed")];
const ACCEPTED: &str = "request to its answer, median";
const LIVE: &str = "answer to live on all nodes, median";
const LIVE_P95: &str = "answer to live on all nodes, p95";
const LIVE_LAST: &str = "answer to live on all nodes, longest";
const ADDED: &str = "accounts and sites added";
const BEHIND: &str = "behind after the last 201";
/// What is told of each daemon at each size.
const PER_SIZE: [&str; 3] = ["CPU per site added", "memory, RSS", "memory, PSS"];
/// Promise of the design.
const GOAL_MS: f64 = 1_000.0;

/// Whose time and memory is measured: the words for tables, the host, the unit.
const DAEMONS: [(&str, &str, &str); 9] = [
    ("panel", "cp", "phalanx-panel"),
    ("agent, master", "web1", "phalanx-agent"),
    ("agent, slave", "web2", "phalanx-agent"),
    ("agent, NAS", "nas", "phalanx-agent"),
    ("agent, balancer", "lb", "phalanx-agent"),
    ("launcher, master", "web1", "phalanx-launcher"),
    ("launcher, slave", "web2", "phalanx-launcher"),
    ("proxy, master", "web1", "phalanx-proxy"),
    ("proxy, slave", "web2", "phalanx-proxy"),
];

/// Measures.
pub fn measure(figure: &Figure, scale: Scale, report: &mut Report) -> Result<()> {
    let site = "awake.example.org";
    figure.site(AWAKE, site, &[("index.html", "awake")])?;
    for node in ["web1", "web2"] {
        tenants::answers(figure, node, site, "")?;
    }
    let sizes = scale.pick(&[1_000, 10_000, 100_000][..], &[100, 300][..]);
    let (mut present, mut smallest) = (0, None);
    for (step, size) in sizes.iter().enumerate() {
        say(&format!("directory: adding sites through the API until there are {size}"));
        let before = costs(figure)?;
        let filled = tenants::fill(figure, present..*size, PER_ACCOUNT, FILL_S)?;
        let (from, wanted) = (present, *size);
        present += filled.sites;
        ensure!(filled.sites > 0, "no site was added: {filled:?}");
        if present < wanted {
            say(&format!(
                "directory: after {FILL_S} s there are {present} of {wanted} sites; that is what is measured"
            ));
        }
        let case = &format!("{present} sites");
        let added = f64::from(filled.sites + filled.accounts);
        report.row(case, "panel", (ADDED, "1/s"), Figures::one(added / filled.seconds));
        let behind = caught_up(figure, present - 1)?;
        report.row(case, "nodes", (BEHIND, "s"), Figures::one(behind.as_secs_f64()));
        let after = costs(figure)?;
        for (((subject, ..), before), after) in DAEMONS.iter().zip(&before).zip(&after) {
            let per_site_us = (after.cpu_s - before.cpu_s) / f64::from(present - from) * 1e6;
            report.row(case, subject, (PER_SIZE[0], "µs"), Figures::one(per_site_us));
            report.row(case, subject, (PER_SIZE[1], "MiB"), Figures::one(after.rss_mib));
            report.row(case, subject, (PER_SIZE[2], "MiB"), Figures::one(after.pss_mib));
        }
        changes(figure, scale, report, case, u32::try_from(step)?)?;
        compare_sizes(report, smallest.get_or_insert_with(|| case.clone()));
        if present < wanted {
            break;
        }
    }
    Ok(())
}

/// Adds, changes and removes sites one by one, of an account that is awake and of some that sleep before the first change of each.
fn changes(figure: &Figure, scale: Scale, report: &mut Report, case: &str, step: u32) -> Result<()> {
    let nodes = [figure.address("web1")?, figure.address("web2")?];
    let count = scale.pick(20, 3);
    let awake = vec![AWAKE.to_owned(); count as usize];
    // Each size has accounts of its own to wake. The last account of a size was woken to see that the nodes have caught up.
    let sleepy: Vec<String> = (step * count..(step + 1) * count).map(client::account).collect();
    for (state, accounts) in [("awake", awake), ("asleep", sleepy)] {
        say(&format!("directory: {count} changes of each kind, {case}, account {state}"));
        let seen = tenants::live(figure, &nodes, &accounts)?;
        for (change, words) in CHANGES {
            let seen: Vec<&Seen> = seen.iter().filter(|seen| seen.change == change).collect();
            ensure!(seen.len() == accounts.len(), "{} of {} changes were seen", seen.len(), accounts.len());
            let live: Vec<f64> = seen.iter().map(|seen| seen.live_ms).collect();
            let accepted: Vec<f64> = seen.iter().map(|seen| seen.accepted_ms).collect();
            let (subject, last) = (subject(words, state), quantile(&live, 100)?);
            report.row(case, &subject, (ACCEPTED, "ms"), Figures::of(&accepted)?);
            report.row(case, &subject, (LIVE, "ms"), Figures::of(&live)?);
            report.row(case, &subject, (LIVE_P95, "ms"), Figures::one(quantile(&live, 95)?));
            report.row(case, &subject, (LIVE_LAST, "ms"), Figures::one(last));
            report.goal(&format!("{LIVE_LAST}, {case}, {subject}, of {count}, ms"), GOAL_MS, last);
        }
    }
    for (_, words) in CHANGES {
        for metric in [LIVE, LIVE_P95, LIVE_LAST] {
            report.compare_two(case, metric, &subject(words, "asleep"), &subject(words, "awake"));
        }
    }
    Ok(())
}

fn subject(words: &str, state: &str) -> String {
    format!("{words}, account {state}")
}

/// What grows with the number of sites, compared with the smallest number.
fn compare_sizes(report: &mut Report, smallest: &str) {
    for (subject, ..) in DAEMONS {
        for metric in PER_SIZE {
            report.compare_cases(subject, metric, smallest);
        }
    }
    for (_, words) in CHANGES {
        for metric in [ACCEPTED, LIVE, LIVE_P95, LIVE_LAST] {
            report.compare_cases(&subject(words, "awake"), metric, smallest);
        }
        report.compare_cases(&subject(words, "asleep"), ACCEPTED, smallest);
    }
    report.compare_cases("panel", ADDED, smallest);
    report.compare_cases("nodes", BEHIND, smallest);
}

fn costs(figure: &Figure) -> Result<Vec<Cost>> {
    DAEMONS.iter().map(|(_, host, unit)| probe::unit(&figure.host(host), unit)).collect()
}

/// How long it takes from now until both nodes serve this site: its document root is empty, which is 403.
fn caught_up(figure: &Figure, number: u32) -> Result<Duration> {
    let begin = Instant::now();
    for node in ["web1", "web2"] {
        eventually(CATCH_UP, &format!("the last site on {node}"), || {
            let answer = figure.get_from(node, &client::site(number), "/")?;
            ensure!(answer.status == 403, "{answer:?}");
            Ok(())
        })
        .context("the nodes are to catch up with what was added")?;
    }
    Ok(begin.elapsed())
}
