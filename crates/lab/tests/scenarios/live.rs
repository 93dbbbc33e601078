//! A new account with a new site answers on every node within a second, and nothing of anybody else's is touched.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, LOGICAL};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(1);

/// Every process of an account on a node with the moment it was started, and every file of its configuration with its time of change.
fn footprint(figure: &Figure, node: &str, uid: u64) -> Result<String> {
    let look = format!(
        "for p in $(pgrep -U {uid}); do echo $p $(cut -d' ' -f22 /proc/$p/stat); done; \
         find /var/lib/phalanx/accounts/{uid} -printf '%p %T@\\n' | sort; \
         systemctl show -p InvocationID,NRestarts,StateChangeTimestampMonotonic phalanx-httpd@{uid} phalanx-php@{uid}"
    );
    figure.host(node).text(&look)
}

/// Asks every node until each answers as it shall; the time it took from `since`.
fn answers_everywhere(figure: &Figure, since: Instant, host: &str, status: u16, body: &str) -> Result<Duration> {
    for node in ["web1", "web2"] {
        eventually(LIMIT, &format!("the answer {status} {body:?} of {node} for {host}"), || {
            let answer = figure.get_from(node, host, "/")?;
            ensure!(answer.status == status && answer.body.contains(body), "{answer:?}");
            Ok(())
        })?;
    }
    let took = since.elapsed();
    ensure!(took <= LIMIT, "it took {took:?}");
    Ok(took)
}

#[test]
fn live() -> Result<()> {
    let figure = Figure::up()?;
    figure.site("old", "old.example.org", &[("index.html", "old site")])?;
    let uid = figure.json("account show old")?["uid"].as_u64().context("the account has a uid")?;
    for node in ["web1", "web2"] {
        eventually(Duration::from_secs(5), "the old site", || {
            let answer = figure.get_from(node, "old.example.org", "/")?;
            ensure!(answer.body == "old site", "{answer:?}");
            Ok(())
        })?;
    }
    let footprints = |figure: &Figure| -> Result<BTreeMap<&str, String>> {
        ["web1", "web2"].into_iter().map(|node| Ok((node, footprint(figure, node, uid)?))).collect()
    };
    let before = footprints(&figure)?;
    ensure!(before.values().all(|text| text.lines().count() > 5), "the old account is awake: {before:?}");

    // A new account with a new site: an empty document root answers 403 by the account's own httpd.
    let (status, answer) = figure.api("POST", "/accounts", Some(&json!({"name": "new", "logical_server": LOGICAL})))?;
    ensure!(status == 201, "{status} {answer}");
    let (status, answer) = figure.api("POST", "/sites", Some(&json!({"name": "new.example.org", "account": "new"})))?;
    ensure!(status == 201, "{status} {answer}");
    let added = answers_everywhere(&figure, Instant::now(), "new.example.org", 403, "")?;

    // A change: another host name for the same site.
    let (status, answer) =
        figure.api("PATCH", "/sites/new.example.org", Some(&json!({"aliases": ["alias.example.org"]})))?;
    ensure!(status == 200, "{status} {answer}");
    let changed = answers_everywhere(&figure, Instant::now(), "alias.example.org", 403, "")?;

    // Removal: the node itself says that it does not know the name.
    let (status, answer) = figure.api("DELETE", "/sites/new.example.org", None)?;
    ensure!(status == 204 || status == 200, "{status} {answer}");
    let removed = answers_everywhere(&figure, Instant::now(), "new.example.org", 404, "")?;
    let (status, answer) = figure.api("DELETE", "/accounts/new", None)?;
    ensure!(status == 204 || status == 200, "{status} {answer}");

    println!("on both nodes: added in {added:?}, changed in {changed:?}, removed in {removed:?}");
    std::thread::sleep(Duration::from_secs(2));
    let after = footprints(&figure)?;
    ensure!(before == after, "something of the old account changed:\n{before:#?}\n{after:#?}");
    Ok(())
}
