//! With the panel and all agents stopped everything serves on; back again, they catch up and do nothing twice.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure};
use phalanx_lab::load::Load;
use std::time::Duration;

const SERVERS: [&str; 4] = ["lb", "nas", "web1", "web2"];

/// When each daemon was started and each file changed, on all servers.
fn footprint(figure: &Figure) -> Result<String> {
    let mut all = String::new();
    for host in SERVERS {
        all += &figure.host(host).text(
            "for unit in phalanx-proxy phalanx-balancer phalanx-launcher phalanx-guard $(systemctl list-units --plain --no-legend 'phalanx-httpd@*' 'phalanx-php@*.service' | cut -d' ' -f1); do \
               echo $unit $(systemctl show -p InvocationID --value $unit); done; \
             find /var/lib/phalanx/generations /var/lib/phalanx/live /var/lib/phalanx/accounts -printf '%p %T@ %l\\n' 2>/dev/null | sort",
        )?;
        all.push('\n');
    }
    Ok(all)
}

#[test]
fn without_panel_and_agents() -> Result<()> {
    let figure = Figure::up()?;
    figure.site("who", "who.example.org", &[("who.php", "<?php echo gethostname();")])?;
    figure.site("asleep", "asleep.example.org", &[("index.html", "good morning")])?;
    for node in ["web1", "web2"] {
        eventually(Duration::from_secs(5), "an answer from each node", || {
            let answer = figure.get_from(node, "who.example.org", "/who.php")?;
            ensure!(answer.body == node, "{answer:?}");
            Ok(())
        })?;
    }
    figure.settled(&SERVERS)?;
    let before = footprint(&figure)?;
    ensure!(before.contains("phalanx-httpd@"), "{before}");

    figure.host("cp").text("systemctl stop phalanx-panel")?;
    for host in SERVERS {
        figure.host(host).text("systemctl stop phalanx-agent")?;
    }
    let load = Load::new(format!("{EXTERNAL}:80").parse()?, "who.example.org", "/who.php", 8);
    let records = load.start(&figure.host("client"))?.finish()?;
    let bad = records.iter().find(|record| !record.ok());
    ensure!(records.len() > 500 && bad.is_none(), "{} requests; {bad:?}", records.len());
    // Waking needs neither of them.
    for node in ["web1", "web2"] {
        let answer = figure.get_from(node, "asleep.example.org", "/")?;
        ensure!(answer.body == "good morning", "{node}: {answer:?}");
    }
    // Nor does passing by a dead node.
    figure.host("web2").freeze()?;
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..10 {
        let answer = figure.get("who.example.org", "/who.php")?;
        ensure!(answer.body == "web1", "a frozen node is passed by after 3 s: {answer:?}");
    }
    figure.host("web2").thaw()?;

    let during = footprint(&figure)?;
    figure.host("cp").text("systemctl start phalanx-panel")?;
    for host in SERVERS {
        figure.host(host).text("systemctl start phalanx-agent")?;
    }
    figure.settled(&SERVERS)?;
    let after = footprint(&figure)?;
    let changed = during.lines().zip(after.lines()).find(|(a, b)| a != b);
    ensure!(during == after, "something was done again: {changed:?}");

    // What was missed is caught up with: a change made right after the panel's return reaches every node.
    figure.phalanx("site add late.example.org --account who").context("a change after the return")?;
    for node in ["web1", "web2"] {
        eventually(Duration::from_secs(5), "the late site", || {
            let answer = figure.get_from(node, "late.example.org", "/")?;
            ensure!(answer.status == 403, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}
