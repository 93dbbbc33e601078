//! New connections are spread by weight, and the nodes see the client's own address.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, NODES, WHO, WHO_PAGE};

/// The client's address, as the topology gives it.
const CLIENT: &str = "198.51.100.100";

/// Asks for the page that names its node, over `requests` new connections, and counts by node.
fn spread(figure: &Figure, requests: u64) -> Result<BTreeMap<String, u64>> {
    let mut load = figure.load(WHO, WHO_PAGE, 60);
    (load.requests, load.rate) = (requests, 250);
    let records = load.start(&figure.host("client"))?.finish()?;
    ensure!(records.len() as u64 == requests, "{} of {requests} requests were made", records.len());
    let mut nodes = BTreeMap::new();
    for record in records {
        ensure!(record.ok(), "a request failed: {record:?}");
        *nodes.entry(record.text).or_default() += 1;
    }
    Ok(nodes)
}

/// How many requests for the page a node's log has from the client's own address, and from any other.
fn logged(figure: &Figure, node: &str) -> Result<(u64, u64)> {
    // The fields: time, site, bytes sent and received, client, two hyphens, date, request.
    let script = format!(
        "cat /var/log/phalanx/access/*.log | awk '$2 == \"{WHO}\" && $11 == \"{WHO_PAGE}\" {{ if ($5 == \"{CLIENT}\") own++; else other++ }} \
         END {{ print own + 0, other + 0 }}'"
    );
    let text = figure.host(node).text(&script)?;
    let (own, other) = text.split_once(' ').unwrap_or((&text, ""));
    Ok((own.parse()?, other.parse()?))
}

/// As [`logged`], when all lines of earlier requests are there: the proxy lets them gather for a tenth of a second.
fn logged_before(figure: &Figure, node: &str) -> Result<(u64, u64)> {
    std::thread::sleep(Duration::from_millis(500));
    logged(figure, node)
}

/// Measurements until the balancer changed nothing during one of them. On a busy machine it does: a node under pressure gets less.
const TRIES_MAX: usize = 6;

/// The balancer's rules with their handles, which are others after each change.
fn rules(figure: &Figure) -> Result<String> {
    figure.host("lb").text("nft -a list table ip phalanx_balancer")
}

/// As [`thousand_once`], while the nodes' own loads are equal from the first connection to the last.
fn thousand(figure: &Figure, parts: [RangeInclusive<u64>; 2]) -> Result<()> {
    for _ in 0..TRIES_MAX {
        eventually(Duration::from_secs(60), "that neither node is under pressure", || {
            for node in NODES {
                let report = figure.report(node)?;
                ensure!(report["load"]["score_percent"] == 100, "{node}: {}", report["load"]);
            }
            Ok(())
        })?;
        let before = rules(figure)?;
        let outcome = thousand_once(figure, parts.clone());
        if rules(figure)? == before {
            return outcome;
        }
        println!("the balancer changed its rules while it was measured: {outcome:?}");
    }
    bail!("in each of {TRIES_MAX} measurements the balancer changed its rules")
}

/// Makes 1,000 connections; `parts` are the bounds of each node's part. Each node's log has those that it answered, all with the
/// client's address.
fn thousand_once(figure: &Figure, parts: [RangeInclusive<u64>; 2]) -> Result<()> {
    let before: Vec<_> = NODES.iter().map(|node| logged_before(figure, node)).collect::<Result<_>>()?;
    let nodes = spread(figure, 1_000)?;
    println!("of 1,000 connections: {nodes:?}");
    for ((node, part), (own, other)) in NODES.into_iter().zip(parts).zip(before) {
        let count = nodes.get(node).copied().unwrap_or(0);
        ensure!(part.contains(&count), "of 1,000 connections {node} got {count}, not {part:?}: {nodes:?}");
        eventually(Duration::from_secs(5), &format!("{count} lines with {CLIENT} in the log of {node}"), || {
            let now = logged(figure, node)?;
            ensure!(now == (own + count, other), "{own} + {count} are due, it has {now:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn even_and_weight() -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[])?;
        // ±2 % of each node's 500.
        thousand(figure, [490..=510, 490..=510])?;

        figure.phalanx("cluster weight web web1 30")?;
        figure.phalanx("cluster weight web web2 10")?;
        eventually(Duration::from_secs(10), "a share of 75 % for web1", || {
            let nodes = spread(figure, 100)?;
            ensure!(nodes.get("web1") == Some(&75), "{nodes:?}");
            Ok(())
        })?;
        // ±2 % of 750 and of 250.
        thousand(figure, [735..=765, 245..=255])
    })
}
