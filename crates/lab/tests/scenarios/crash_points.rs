//! The agent is killed at each step of an apply and converges all the same, and services never stop.
//!
//! The points come from the plan: `PHALANX_AGENT_STOP_BEFORE=N` lets the agent kill itself before its step N/2 begins (N even), or after
//! that was done but before it was noted (N odd). The numbers are counted up until the plan has no such point any more.

use anyhow::{Context, Result, bail, ensure};
use phalanx_lab::figure::{EXTERNAL, Figure};
use phalanx_lab::load::Load;
use phalanx_lab::{Background, Host, eventually};
use std::collections::BTreeSet;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// More points than any plan here has.
const POINTS_MAX: u64 = 60;
/// What the agent writes when nothing is left to do.
const CONVERGED: &str = "the node is as it should be";

fn up() -> Result<Figure> {
    let figure = Figure::up()?;
    figure.site("who", "who.example.org", &[("who.php", "<?php echo gethostname();"), ("page.html", "here")])?;
    for node in ["web1", "web2"] {
        eventually(Duration::from_secs(5), "an answer from each node", || {
            let answer = figure.get_from(node, "who.example.org", "/who.php")?;
            ensure!(answer.body == node, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(figure)
}

/// Runs the agent by hand; with a point, until it kills itself there.
fn agent(host: &Host<'_>, point: Option<u64>) -> Result<Background> {
    let stop = point.map_or(String::new(), |point| format!("PHALANX_AGENT_STOP_BEFORE={point} "));
    host.spawn(&format!("NO_COLOR=1 {stop}exec phalanx agent run 2>&1"))
}

fn end(agent: Background) -> Result<()> {
    let ended = agent.stop(Duration::from_secs(10))?;
    ensure!(ended.stdout.contains("the agent ends"), "the agent ended badly: {ended:?}");
    Ok(())
}

/// Makes `change` while web2's agent is to die at `point`, then lets it converge. Returns the step it died at, or nothing where the plan
/// has no such point.
fn dies_at(figure: &Figure, point: u64, change: &str) -> Result<Option<String>> {
    let web2 = figure.host("web2");
    let mut doomed = agent(&web2, Some(point))?;
    eventually(LIMIT, "the doomed agent's link", || {
        ensure!(doomed.is_running()?, "it ended before the change: {}", doomed.stdout());
        ensure!(doomed.stdout().contains("connected"), "{}", doomed.stdout());
        Ok(())
    })?;
    figure.phalanx(change)?;
    let died = eventually(LIMIT, &format!("the death at point {point} of `{change}`, or its end"), || {
        let said = doomed.stdout();
        match doomed.is_running()? {
            false => Ok(true),
            true if said.contains(CONVERGED) => Ok(false),
            true => bail!("it runs: {said}"),
        }
    })?;
    if !died {
        end(doomed)?;
        return Ok(None);
    }
    let ended = doomed.wait(LIMIT)?;
    ensure!(ended.status == 137, "it ended in another way: {ended:?}");
    let journal: serde_json::Value = serde_json::from_str(&web2.text("cat /var/lib/phalanx/agent/journal.json")?)?;
    let now = journal["now"].as_u64().context("the journal's step")?;
    let step = journal["steps"][now as usize].as_str().context("the step's name")?.to_owned();

    let survivor = agent(&web2, None)?;
    eventually(LIMIT, &format!("convergence after a death at point {point}, {step}, of `{change}`"), || {
        let said = survivor.stdout();
        ensure!(said.contains(CONVERGED), "{said}");
        Ok(())
    })?;
    end(survivor)?;
    Ok(Some(step))
}

/// What the node shows of the address: in its interface, its rules, its proxy's configuration, and by an answer.
fn check(figure: &Figure, port: Option<u64>) -> Result<()> {
    let web2 = figure.host("web2");
    let seen = web2.text(
        "ip -4 -o address show dev eth0 | grep -o '10.9.0.112/24 .*eth0:phx' | head -n 1; ip rule show from 10.9.0.112; \
         grep -o '10.9.0.112:[0-9]*' /var/lib/phalanx/live/proxy.json; grep -c /srv/phalanx/content /proc/self/mountinfo",
    )?;
    match port {
        Some(port) => {
            for part in ["eth0:phx", "7399:", "7400:", &format!("10.9.0.112:{port}")] {
                ensure!(seen.contains(part), "{part:?} is missing in {seen}");
            }
            let ask = format!("curl -sS -m 5 -H 'Host: who.example.org' http://10.9.0.112:{port}/who.php");
            let body = figure.host("lb").text(&ask)?;
            ensure!(body == "web2", "{body}");
            ensure!(seen.lines().count() == 5, "too much is there: {seen}");
        }
        None => ensure!(seen == "2", "something is left, or there is more than the seal and the share: {seen}"),
    }
    Ok(())
}

#[test]
fn crash_points_of_a_change() -> Result<()> {
    let figure = up()?;
    figure.host("web2").text("systemctl stop phalanx-agent")?;
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let mut requests = 0;
    let (mut adds, mut removes) = (true, true);
    for point in 0..POINTS_MAX {
        if !adds && !removes {
            break;
        }
        let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, "who.example.org", "/page.html", 3);
        (load.rate, load.threads) = (25, 8);
        let load = load.start(&figure.host("client"))?;
        // Other files each time, so that they are staged and checked anew.
        let port = 8100 + point;
        let add = format!(
            "address add {EXTERNAL}:81 --balancer front --cluster web --port {port} --internal web2=10.9.0.112"
        );
        let step = dies_at(&figure, point, &add)?;
        adds = step.is_some();
        added.extend(step);
        check(&figure, Some(port))?;
        let step = dies_at(&figure, point, &format!("address remove {EXTERNAL}:81"))?;
        removes = step.is_some();
        removed.extend(step);
        check(&figure, None)?;
        let records = load.finish()?;
        requests += records.len();
        if let Some(bad) = records.iter().find(|record| !record.ok()) {
            bail!("a request failed while the agent died at point {point} ({added:?}, {removed:?}): {bad:?}");
        }
    }
    ensure!(!adds && !removes, "the plans never end: {added:?}, {removed:?}");
    println!("{requests} requests, none failed; died at each of {added:?} and {removed:?}");
    let died = |steps: &[String], wanted: &[&str]| {
        wanted.iter().find(|step| steps.iter().filter(|s| s == *step).count() < 2).map(ToString::to_string)
    };
    let missing = died(&added, &["add-address", "add-rule", "stage", "validate", "switch", "reload", "verify"]);
    ensure!(missing.is_none(), "the agent did not die before and after {missing:?}: {added:?}");
    let missing = died(&removed, &["switch", "reload", "verify", "remove-rule", "remove-address"]);
    ensure!(missing.is_none(), "the agent did not die before and after {missing:?}: {removed:?}");

    figure.host("web2").text("systemctl start phalanx-agent")?;
    figure.settled(&["web1", "web2", "lb"])
}

#[test]
fn crash_points_of_a_join() -> Result<()> {
    let figure = up()?;
    let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, "who.example.org", "/who.php", 30);
    load.rate = 25;
    let load = load.start(&figure.host("client"))?;
    let web3 = figure.host("web3");
    // Each life of the agent does two steps and dies before the second is noted.
    web3.write_file(
        "/etc/systemd/system/phalanx-agent.service.d/crash.conf",
        b"[Service]\nEnvironment=PHALANX_AGENT_STOP_BEFORE=3\nRestartSec=100ms\n",
    )?;
    web3.text("systemctl daemon-reload")?;
    figure.phalanx("server add web3 --kind web --address 10.9.0.13/24")?;
    figure.phalanx("cluster add-slave web web3")?;
    figure.join("web3", "web1")?;
    figure.settled(&["web3"])?;
    eventually(Duration::from_secs(20), "a request on the new slave", || {
        let body = figure.get("who.example.org", "/who.php")?.body;
        ensure!(body == "web3", "{body}");
        Ok(())
    })?;
    let (joined, steps) = lives(&web3)?;
    println!("joined in {joined} lives: {steps:?}");
    ensure!(joined >= 7, "the agent died only {joined} times: {steps:?}");
    for step in
        ["seal-mount-point", "mount", "set-route", "add-rule", "stage", "switch", "load-table", "start", "verify"]
    {
        ensure!(steps.contains(step), "no life did {step}: {steps:?}");
    }

    figure.phalanx("cluster remove-slave web web3 --deadline 5s")?;
    eventually(LIMIT, "an idle web3", || {
        web3.text(
            "! systemctl is-active --quiet phalanx-proxy phalanx-guard phalanx-launcher && \
             ! grep -q ' /srv/phalanx/content ' /proc/self/mountinfo && ! nft list table inet phalanx_accounts 2> /dev/null && \
             ! ip rule show | grep -q '^7[34]' && ! ip route show table 7400 2> /dev/null | grep -q default && test -z \"$(pgrep -f /usr/sbin/apach[e]2)\"",
        )
    })?;
    let (all, steps) = lives(&web3)?;
    println!("left in {} lives", all - joined);
    ensure!(all - joined >= 4, "the agent died only {} times: {steps:?}", all - joined);
    for step in ["stop", "remove-mount", "remove-table", "remove-rule", "remove-route"] {
        ensure!(steps.contains(step), "no life did {step}: {steps:?}");
    }
    let records = load.finish()?;
    let bad = records.iter().find(|record| !record.ok());
    // A panic, so that the hosts' journals are kept.
    assert!(bad.is_none() && records.len() > 500, "{} requests, one failed: {bad:?}", records.len());
    ensure!(records.iter().any(|record| record.text == "web3"), "web3 took its part");
    figure.settled(&["web1", "web2", "lb"])
}

/// How often the agent killed itself, and the steps that it began.
fn lives(host: &Host<'_>) -> Result<(usize, BTreeSet<String>)> {
    let log = host.text("journalctl -u phalanx-agent --no-pager -o cat | grep -E 'begins|ends here'")?;
    let begun = log.lines().filter_map(|line| line.split_once("step=\"")?.1.split('"').next());
    Ok((log.matches("ends here").count(), begun.map(str::to_owned).collect()))
}
