//! The panel exchanges packets with masters alone: counters in the hosts' kernels prove it.

use anyhow::{Result, ensure};
use phalanx_lab::figure::Figure;

/// Counts what a host exchanges with another address, by the kernel's own counters.
fn count(figure: &Figure, host: &str, address: &str) -> Result<()> {
    let rules = format!(
        "table ip lab_count {{\n chain in {{ type filter hook input priority -300; ip saddr {address} counter\n }}\n \
         chain out {{ type filter hook output priority -300; ip daddr {address} counter\n }}\n}}"
    );
    figure.host(host).exec(&["nft", "-f", "-"], rules.as_bytes())?.text().map(drop)
}

fn counted(figure: &Figure, host: &str) -> Result<u64> {
    let text = figure.host(host).text("nft list table ip lab_count | grep -o 'packets [0-9]*' | cut -d' ' -f2")?;
    Ok(text.lines().filter_map(|line| line.parse::<u64>().ok()).sum())
}

#[test]
fn masters_only() -> Result<()> {
    let figure = Figure::up()?;
    let panel = figure.address("cp")?;
    for host in ["web1", "web2", "nas"] {
        count(&figure, host, &panel)?;
    }
    // A whole day's work in short: accounts, sites, a node's settings, a rollback, a look at everything.
    figure.site("work", "work.example.org", &[("index.html", "work")])?;
    figure.phalanx("cluster weight web web2 20")?;
    figure.phalanx("cluster drain web web2")?;
    figure.phalanx("cluster undrain web web2")?;
    figure.phalanx("account change work --cpu-percent 50")?;
    figure.phalanx("status")?;
    figure.settled(&["web1", "web2"])?;
    phalanx_lab::eventually(std::time::Duration::from_secs(10), "the site on the slave", || {
        let answer = figure.get_from("web2", "work.example.org", "/")?;
        ensure!(answer.body == "work", "{answer:?}");
        Ok(())
    })?;

    ensure!(counted(&figure, "web1")? > 2, "the master and the panel talk");
    ensure!(counted(&figure, "nas")? > 2, "the NAS, a master too, and the panel talk");
    let slave = counted(&figure, "web2")?;
    ensure!(slave == 0, "the panel and the slave exchanged {slave} packets");
    Ok(())
}
