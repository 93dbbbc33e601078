//! A machine that joined at the panel is handed over to its master when it becomes a slave, and back to the panel when it has left: nobody tells
//! the machine where to go. Its leave goes on over the death of the panel. Meanwhile no request fails.

use super::join_and_leave::{download_from, is_whole, slow_page};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, WHO, WHO_PAGE};
use phalanx_lab::load::clock_ms;
use serde_json::{Value, json};
use std::time::Duration;

/// The machine that is handed over.
const SERVER: &str = "web3";
/// Where agents are served, by the panel and by the cluster's master.
const PANEL: &str = "10.9.0.30:7400";
const MASTER: &str = "10.9.0.11:341";
/// The most seconds that the load goes on, if nothing stops it.
const LOAD_S: u32 = 200;
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until the machine's agent has a connection to `upstream`, and to no other.
fn follows(figure: &Figure, upstream: &str) -> Result<()> {
    eventually(LIMIT, &format!("{SERVER}'s link to {upstream} alone"), || {
        let peers = "ss -Htn state established '( dport = :7400 or dport = :341 )' | awk '{ print $4 }'";
        let seen = figure.host(SERVER).text(peers)?;
        ensure!(seen == upstream, "{seen:?}");
        Ok(())
    })
}

/// The cluster's slave as the panel has it.
fn slave(figure: &Figure) -> Result<Value> {
    Ok(figure.json("cluster show web")?["slaves"][SERVER].clone())
}

/// Asks that the slave leave, and kills the panel while the slave has a connection. Returns once the removal is done.
fn leaves_over_the_death_of_the_panel(figure: &Figure) -> Result<()> {
    let mut download = download_from(figure, SERVER)?;
    let (status, task) = figure.api("DELETE", &format!("/clusters/web/slaves/{SERVER}?deadline_s=90"), None)?;
    ensure!(status == 202, "{status}: {task}");
    let path = format!("/tasks/{}", task["id"]);
    let cp = figure.host("cp");
    cp.text("systemctl kill --signal KILL phalanx-panel")?;
    eventually(LIMIT, "another panel that waits for the slave's connection", || {
        let (status, task) = figure.api("GET", &path, None)?;
        let flows = task["progress"]["flows"].as_u64().unwrap_or(0);
        ensure!(status == 200 && task["state"] == "running" && flows > 0, "{status}: {task}");
        Ok(())
    })?;
    let starts = cp.text("systemctl show --property NRestarts --value phalanx-panel")?;
    ensure!(starts == "1" && download.is_running()?, "started again {starts} times, while the download went on");

    eventually(LIMIT, "the slave's leave", || {
        let (_, task) = figure.api("GET", &path, None)?;
        ensure!(task["state"] == "done", "{task}");
        let detail = task["detail"].as_str().context("the task tells what came of it")?;
        ensure!(detail.ends_with("no connection was cut"), "{detail}");
        Ok(())
    })?;
    ensure!(!download.is_running()?, "the slave has left before its last connection ended");
    is_whole(download)
}

#[test]
fn hand_over() -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[("slow.php", &slow_page())])?;
        let client = figure.host("client");
        let mut load = figure.load(WHO, WHO_PAGE, LOAD_S);
        load.rate = 25;
        let load = load.start(&client)?;

        figure.phalanx(&format!("server add {SERVER} --kind web --address 10.9.0.13/24"))?;
        figure.join(SERVER, "cp")?;
        follows(figure, PANEL)?;

        figure.phalanx(&format!("cluster add-slave web {SERVER}"))?;
        follows(figure, MASTER)?;
        figure.settled(&[SERVER, "lb"])?;
        figure.serves_through(SERVER, LIMIT)?;

        leaves_over_the_death_of_the_panel(figure)?;
        ensure!(slave(figure)? == json!(null), "{SERVER} is a slave still");
        follows(figure, PANEL)?;
        eventually(LIMIT, &format!("an idle {SERVER}"), || {
            figure.host(SERVER).text("! systemctl is-active --quiet phalanx-proxy")
        })?;
        let left_ms = clock_ms();
        std::thread::sleep(Duration::from_secs(1));

        let records = load.stop(&client)?;
        let bad: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
        ensure!(bad.is_empty(), "{} of {} requests failed: {bad:?}", bad.len(), records.len());
        ensure!(records.last().is_some_and(|last| last.clock_ms > left_ms), "the load had ended before: {records:?}");
        let served = records.iter().filter(|record| record.text == SERVER).count();
        ensure!(served > 10, "{SERVER} took its part: {served} of {} requests", records.len());
        println!("{} requests, none failed; {SERVER} had {served} of them", records.len());
        Ok(())
    })
}
