//! Several versions of PHP beside each other: each account has its own, and changing one account's touches no other.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure, LOGICAL};
use phalanx_lab::load::{Load, Record};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const NODES: [&str; 2] = ["web1", "web2"];
const OLD: &str = "8.2";
const NEW: &str = "8.4";
/// What a site says of itself, after so long that under load some request is always under way.
const PAGE: &str = "<?php usleep(50000); echo PHP_MAJOR_VERSION, '.', PHP_MINOR_VERSION, ' on ', gethostname();";
/// The launcher looks at the directory every five seconds, and a site that was added may need a moment.
const SOON: Duration = Duration::from_secs(15);

/// Waits until both nodes run an account's scripts with a version of PHP.
fn runs_with(figure: &Figure, account: &str, version: &str) -> Result<()> {
    for node in NODES {
        eventually(SOON, &format!("{account} with PHP {version} on {node}"), || {
            let answer = figure.get_from(node, &format!("{account}.example.org"), "/")?;
            ensure!(answer.status == 200 && answer.body == format!("{version} on {node}"), "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The processes of an account on both nodes, each with the moment of its start and its program.
fn processes(figure: &Figure, account: &str) -> Result<Vec<String>> {
    let uid = figure.json(&format!("account show {account}"))?["uid"].as_u64().context("the account has a uid")?;
    let look = format!(
        "for p in $(pgrep -U {uid}); do echo $p $(cut -d' ' -f22 /proc/$p/stat) $(readlink /proc/$p/exe); done"
    );
    NODES.iter().map(|node| figure.host(node).text(&look)).collect()
}

/// Which versions ran a load's requests, by node, in the order in which they first did.
fn versions(records: &[Record]) -> BTreeMap<&str, Vec<&str>> {
    let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (version, node) in records.iter().filter_map(|record| record.text.split_once(" on ")) {
        let order = seen.entry(node).or_default();
        if order.last() != Some(&version) {
            order.push(version);
        }
    }
    seen
}

/// Beside each other, on both nodes.
fn side_by_side(figure: &Figure) -> Result<()> {
    for (account, version) in [("ada", OLD), ("grace", NEW)] {
        figure.phalanx(&format!("account add {account} --logical-server {LOGICAL} --php {version}"))?;
        figure.phalanx(&format!("site add {account}.example.org --account {account}"))?;
        figure.put(account, &format!("sites/{account}.example.org/index.php"), PAGE)?;
    }
    runs_with(figure, "ada", OLD)?;
    runs_with(figure, "grace", NEW)
}

/// One account gets another version while it is asked: every request is answered, and the other account's processes stay.
fn changed_under_load(figure: &Figure) -> Result<()> {
    let grace = processes(figure, "grace")?;
    ensure!(grace.iter().all(|seen| seen.contains("php-fpm")), "both nodes run PHP: {grace:?}");
    let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, "ada.example.org", "/", 14);
    load.rate = 40;
    let running = load.start(&figure.host("client"))?;
    std::thread::sleep(Duration::from_secs(2));
    figure.phalanx(&format!("account change ada --php {NEW}"))?;
    let records = running.finish()?;
    let failed: Vec<&Record> = records.iter().filter(|record| !record.ok()).collect();
    ensure!(failed.is_empty(), "{} of {} requests failed: {failed:#?}", failed.len(), records.len());
    let versions = versions(&records);
    let expected = NODES.into_iter().map(|node| (node, vec![OLD, NEW])).collect();
    ensure!(versions == expected, "each node goes from {OLD} to {NEW} once: {versions:?}");
    ensure!(processes(figure, "grace")? == grace, "processes of another account changed: {grace:?}");
    let longest = records.iter().map(|record| record.took_us).max().unwrap_or_default() / 1_000;
    println!("{} requests during the change, none failed; the longest took {longest} ms", records.len());
    runs_with(figure, "ada", NEW)
}

/// A version that no node has is refused by name, and changes nothing.
fn unknown_version(figure: &Figure) -> Result<()> {
    for (method, path, body) in [
        ("POST", "/accounts", json!({"name": "alan", "logical_server": LOGICAL, "php": "7.4"})),
        ("PATCH", "/accounts/ada", json!({"php": "7.4"})),
    ] {
        let (status, answer) = figure.api(method, path, Some(&body))?;
        ensure!(status == 409 && answer["rule"] == "php-is-installed", "{status} {answer}");
        ensure!(answer["detail"] == "PHP 7.4 is not installed on web1, web2", "{answer}");
        ensure!(answer["hint"] == "apt install php7.4-fpm there, or take what all nodes have: 8.2, 8.4", "{answer}");
    }
    runs_with(figure, "ada", NEW)
}

/// One node loses a version, as when its package is removed: the node says so, others get no new account with it, pages
/// that are no scripts are served on; and when it is back, so are the scripts.
fn lost_version(figure: &Figure) -> Result<()> {
    let (web2, daemon) = (figure.host("web2"), format!("/usr/sbin/php-fpm{NEW}"));
    figure.put("ada", "sites/ada.example.org/plain.html", "plain")?;
    web2.text(&format!("mv {daemon} /root/ && systemctl kill --signal=KILL 'phalanx-php@*.service'"))?;
    let said =
        format!("it wants PHP {NEW}, which is not installed on web2: apt install php{NEW}-fpm (installed: {OLD})");
    eventually(Duration::from_secs(60), "the node's own words", || {
        let report = figure.json("server show web2")?["state"]["report"].clone();
        let problems: BTreeSet<&str> =
            report["problems"].as_array().into_iter().flatten().filter_map(|p| p.as_str()).collect();
        ensure!(
            ["ada", "grace"].iter().all(|name| problems.contains(format!("account {name}: {said}").as_str())),
            "{report}"
        );
        let events = figure.phalanx("events --limit 200")?;
        ensure!(events.contains(&format!("account ada: {said}")), "{events}");
        Ok(())
    })?;
    let (status, answer) =
        figure.api("POST", "/accounts", Some(&json!({"name": "alan", "logical_server": LOGICAL, "php": NEW})))?;
    ensure!(status == 409 && answer["detail"] == format!("PHP {NEW} is not installed on web2"), "{status} {answer}");
    let script = figure.get_from("web2", "ada.example.org", "/")?;
    ensure!(script.status == 503, "{script:?}");
    let plain = figure.get_from("web2", "ada.example.org", "/plain.html")?;
    ensure!(plain.status == 200 && plain.body == "plain", "{plain:?}");
    web2.text(&format!("mv /root/php-fpm{NEW} {daemon}"))?;
    runs_with(figure, "ada", NEW)?;
    eventually(Duration::from_secs(60), "no problem any more", || {
        let report = figure.json("server show web2")?["state"]["report"].clone();
        ensure!(report["problems"].as_array().is_some_and(Vec::is_empty), "{report}");
        Ok(())
    })
}

#[test]
fn php_versions() -> Result<()> {
    Figure::scenario(|figure| {
        side_by_side(figure)?;
        changed_under_load(figure)?;
        unknown_version(figure)?;
        lost_version(figure)
    })
}
