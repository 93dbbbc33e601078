//! A new account with a new site answers on every node within a second, and nothing of anybody else's is touched.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, LOGICAL};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Asks both nodes for a host name, again and again, and writes when (ns), which node and what status.
const POLL: &str = r#"for round in $(seq 400); do for node in $2 $3; do
    echo $(date +%s%N) $node $(curl -s -o /dev/null -m 1 -w '%{http_code}' -H "Host: $1" "http://$node/"); done; done"#;

/// Makes a change by the API and returns how long after it was sent the last node answered `host` with `status`, for good.
fn becomes(
    figure: &Figure,
    host: &str,
    status: u16,
    change: impl FnOnce() -> Result<(u16, Value)>,
) -> Result<Duration> {
    let nodes = [figure.address("web1")?, figure.address("web2")?];
    let poll = format!("poll() {{ {POLL}\n}}; poll {host} {} {}", nodes[0], nodes[1]);
    let polling = figure.host("lb").spawn(&poll)?;
    let sent = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let (code, answer) = change()?;
    ensure!((200..300).contains(&code), "{code} {answer}");
    std::thread::sleep(2 * LIMIT);
    let seen = polling.stdout();
    drop(polling);
    let mut live = BTreeMap::new();
    for line in seen.lines() {
        let [at, node, code] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        if code == status.to_string() {
            live.entry(node.to_owned()).or_insert(at.parse::<u128>()?);
        } else {
            live.remove(node);
        }
    }
    ensure!(live.len() == 2, "not all nodes answer {host} with {status} after {:?}: {seen}", 2 * LIMIT);
    let last = live.values().max().context("two nodes")?;
    let took = Duration::from_nanos(u64::try_from(last.saturating_sub(sent))?);
    ensure!(took <= LIMIT, "{host} took {took:?} to answer {status} everywhere: {seen}");
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

    let (status, answer) = figure.api("POST", "/accounts", Some(&json!({"name": "new", "logical_server": LOGICAL})))?;
    ensure!(status == 201, "{status} {answer}");
    // A new site: an empty document root answers 403 by the account's own httpd.
    let added = becomes(&figure, "new.example.org", 403, || {
        figure.api("POST", "/sites", Some(&json!({"name": "new.example.org", "account": "new"})))
    })?;
    // A change: another host name for the same site.
    let changed = becomes(&figure, "alias.example.org", 403, || {
        figure.api("PATCH", "/sites/new.example.org", Some(&json!({"aliases": ["alias.example.org"]})))
    })?;
    // Removal: the node itself says that it does not know the name.
    let removed = becomes(&figure, "new.example.org", 404, || figure.api("DELETE", "/sites/new.example.org", None))?;
    let (status, answer) = figure.api("DELETE", "/accounts/new", None)?;
    ensure!((200..300).contains(&status), "{status} {answer}");

    println!("on both nodes: added in {added:?}, changed in {changed:?}, removed in {removed:?}");
    std::thread::sleep(Duration::from_secs(2));
    let after = footprints(&figure)?;
    ensure!(before == after, "something of the old account changed:\n{before:#?}\n{after:#?}");
    Ok(())
}
