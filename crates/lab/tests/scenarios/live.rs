//! A new account with a new site answers on every node within a second, and nothing of anybody else's is touched. Ditto changes and removal,
//! also those that follow each other at once.

mod one_after_the_other;

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, LOGICAL};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NODES: [&str; 2] = ["web1", "web2"];
const LIMIT: Duration = Duration::from_secs(1);

/// Every lasting process of an account on a node with the moment it was started, every file of its configuration with its time of change,
/// and the runs of its units and of those that all accounts share. (PHP's workers come and go with requests.)
fn footprint(figure: &Figure, node: &str, uid: u64) -> Result<String> {
    let look = format!(
        "for p in $(pgrep -U {uid} -f 'apache2|php-fpm: master'); do echo $p $(cut -d' ' -f22 /proc/$p/stat); done; \
         find /var/lib/phalanx/accounts/{uid} -printf '%p %T@\\n' | sort; \
         systemctl show -p InvocationID,NRestarts,StateChangeTimestampMonotonic phalanx-httpd@{uid} phalanx-php@{uid} phalanx-proxy phalanx-launcher; \
         readlink /var/lib/phalanx/live"
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

/// A change of an account that is awake counts on both nodes within the limit; its removal leaves neither process nor configuration.
fn change_and_remove_account(figure: &Figure) -> Result<()> {
    let uid = figure.json("account show new")?["uid"].as_u64().context("the account has a uid")?;
    let (status, answer) = figure.api("PATCH", "/accounts/new", Some(&json!({"limits": {"processes": 77}})))?;
    ensure!(status == 200, "{status} {answer}");
    let look = format!("systemctl show -p TasksMax --value phalanx-account-{uid}.slice | grep -x 77");
    eventually(LIMIT, "77 processes", || {
        NODES.iter().try_for_each(|node| figure.host(node).text(&look).map(drop).with_context(|| (*node).to_owned()))
    })?;
    let (status, answer) = figure.api("DELETE", "/accounts/new", None)?;
    ensure!((200..300).contains(&status), "{status} {answer}");
    eventually(LIMIT, "the end of all that the account had", || {
        NODES.iter().try_for_each(|node| nothing_is_left(figure, node, uid))
    })
}

fn nothing_is_left(figure: &Figure, node: &str, uid: u64) -> Result<()> {
    let look = format!("! pgrep -a -U {uid} && ! test -e /var/lib/phalanx/accounts/{uid}");
    figure.host(node).text(&look).map(drop).with_context(|| node.to_owned())
}

#[test]
fn live() -> Result<()> {
    Figure::scenario(|figure| {
        beside_another_account(figure)?;
        one_after_the_other::one_after_the_other(figure)
    })
}

/// A new account is made, changed and removed beside one of which nothing is touched.
fn beside_another_account(figure: &Figure) -> Result<()> {
    figure.site("old", "old.example.org", &[("index.html", "old site"), ("page.php", "<?php echo 'old page';")])?;
    let uid = figure.json("account show old")?["uid"].as_u64().context("the account has a uid")?;
    for node in NODES {
        eventually(Duration::from_secs(5), "the old site", || {
            let answer = figure.get_from(node, "old.example.org", "/")?;
            ensure!(answer.body == "old site", "{answer:?}");
            let answer = figure.get_from(node, "old.example.org", "/page.php")?;
            ensure!(answer.body == "old page", "{answer:?}");
            Ok(())
        })?;
    }
    let footprints = |figure: &Figure| -> Result<BTreeMap<&str, String>> {
        NODES.into_iter().map(|node| Ok((node, footprint(figure, node, uid)?))).collect()
    };
    let before = footprints(figure)?;
    ensure!(before.values().all(|text| text.lines().count() > 5), "the old account is awake: {before:?}");
    let runs_php = |node: &str| figure.host(node).text(&format!("pgrep -U {uid} -f 'php-fpm: master'"));
    ensure!(runs_php("web1").is_ok() && runs_php("web2").is_ok(), "the old account's PHP runs: {before:?}");

    let (status, answer) = figure.api("POST", "/accounts", Some(&json!({"name": "new", "logical_server": LOGICAL})))?;
    ensure!(status == 201, "{status} {answer}");
    // A new site: an empty document root answers 403 by the account's own httpd.
    let added = becomes(figure, "new.example.org", 403, || {
        figure.api("POST", "/sites", Some(&json!({"name": "new.example.org", "account": "new"})))
    })?;
    // A change: another host name for the same site.
    let changed = becomes(figure, "alias.example.org", 403, || {
        figure.api("PATCH", "/sites/new.example.org", Some(&json!({"aliases": ["alias.example.org"]})))
    })?;
    // Removal: the node itself says that it does not know the name.
    let removed = becomes(figure, "new.example.org", 404, || figure.api("DELETE", "/sites/new.example.org", None))?;
    change_and_remove_account(figure)?;

    println!("on both nodes: added in {added:?}, changed in {changed:?}, removed in {removed:?}");
    std::thread::sleep(Duration::from_secs(2));
    let after = footprints(figure)?;
    ensure!(before == after, "something of the old account changed:\n{before:#?}\n{after:#?}");
    Ok(())
}
