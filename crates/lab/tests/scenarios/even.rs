//! New connections are spread by weight, and the nodes see the client's own address.

use anyhow::{Result, ensure};
use phalanx_lab::figure::{EXTERNAL, Figure};
use phalanx_lab::load::Load;
use std::collections::BTreeMap;
use std::time::Duration;

/// Asks for a page that names its node, over `requests` new connections, and counts by node.
fn spread(figure: &Figure, requests: u64) -> Result<BTreeMap<String, u64>> {
    let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, "who.example.org", "/who.php", 60);
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

#[test]
fn even_and_weight() -> Result<()> {
    let figure = Figure::up()?;
    figure.site("who", "who.example.org", &[("who.php", "<?php echo gethostname();")])?;
    for node in ["web1", "web2"] {
        phalanx_lab::eventually(Duration::from_secs(5), "an answer from each node", || {
            let answer = figure.get_from(node, "who.example.org", "/who.php")?;
            ensure!(answer.body == node, "{answer:?}");
            Ok(())
        })?;
    }

    let nodes = spread(&figure, 1_000)?;
    for node in ["web1", "web2"] {
        let count = nodes.get(node).copied().unwrap_or(0);
        ensure!((480..=520).contains(&count), "of 1,000 connections {node} got {count}: {nodes:?}");
    }

    let log = figure.host("web1").text("grep -c ' 198.51.100.100 ' /var/log/phalanx/access.log || true")?;
    ensure!(log.parse::<u64>()? >= 480, "web1's log has the client's own address in {log} lines");

    figure.phalanx("cluster weight web web1 30")?;
    figure.phalanx("cluster weight web web2 10")?;
    phalanx_lab::eventually(Duration::from_secs(10), "a share of 75 % for web1", || {
        let nodes = spread(&figure, 100)?;
        ensure!(nodes.get("web1") == Some(&75), "{nodes:?}");
        Ok(())
    })?;
    let nodes = spread(&figure, 1_000)?;
    let count = nodes.get("web1").copied().unwrap_or(0);
    ensure!((735..=765).contains(&count), "at weights 3:1 web1 got {count} of 1,000: {nodes:?}");
    Ok(())
}
