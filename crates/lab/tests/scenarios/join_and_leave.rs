//! A slave joins and leaves under load, and no request fails.

use anyhow::{Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure};
use phalanx_lab::load::Load;
use std::time::Duration;

#[test]
fn join_and_leave() -> Result<()> {
    let figure = Figure::up()?;
    figure.site("who", "who.example.org", &[("who.php", "<?php echo gethostname();")])?;
    eventually(Duration::from_secs(5), "an answer", || {
        let answer = figure.get("who.example.org", "/who.php")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, "who.example.org", "/who.php", 60);
    load.rate = 50;
    let running = load.start(&figure.host("client"))?;

    figure.phalanx("server add web3 --kind web --address 10.9.0.13/24")?;
    figure.phalanx("cluster add-slave web web3")?;
    figure.join("web3", "web1")?;
    figure.settled(&["web1", "web2", "web3"])?;
    eventually(Duration::from_secs(20), "a request on the new slave", || {
        let body = figure.get("who.example.org", "/who.php")?.body;
        ensure!(body == "web3", "{body}");
        Ok(())
    })?;

    figure.phalanx("cluster remove-slave web web3 --deadline 20s")?;
    eventually(Duration::from_secs(30), "the slave's leave", || {
        let shown = figure.json("cluster show web")?;
        ensure!(shown["slaves"].get("web3").is_none(), "{shown}");
        Ok(())
    })?;
    // What it was is taken back: it mounts nothing and serves nothing.
    eventually(Duration::from_secs(20), "an idle web3", || {
        let web3 = figure.host("web3");
        web3.text(
            "! systemctl is-active --quiet phalanx-proxy && ! grep -q ' /srv/phalanx/content ' /proc/self/mountinfo",
        )
    })?;

    let records = running.finish()?;
    let bad: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
    ensure!(bad.is_empty(), "{} of {} requests failed, the first: {:?}", bad.len(), records.len(), bad.first());
    ensure!(records.iter().any(|record| record.text == "web3"), "web3 took its part");
    Ok(())
}
