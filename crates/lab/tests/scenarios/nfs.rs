//! Figure 1 on real NFS 4.2 and control groups v2: both nodes write with locks and lose no update, the NAS dies and comes back under
//! load, nothing is ever written beneath a mount point, and accounts' limits hold.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure};
use phalanx_lab::load::{Load, Record};

const SITE: &str = "count.example.org";
const NODES: [&str; 2] = ["web1", "web2"];
const SHARE: &str = "/srv/phalanx/content";

/// Counts requests in a file, as a guest book or a shop does: under a lock, and on disk before it answers.
const COUNT: &str = "<?php
$file = fopen('counter', 'c+');
if (!$file || !flock($file, LOCK_EX)) { http_response_code(500); exit; }
$count = (int) stream_get_contents($file) + 1;
rewind($file);
if (!fwrite($file, (string) $count) || !fsync($file)) { http_response_code(500); exit; }
flock($file, LOCK_UN);
echo gethostname(), ' ', $count;";

const HOG: &str = "<?php ini_set('memory_limit', '-1'); for ($all = []; ; ) { $all[] = str_repeat('x', 1 << 20); }";
const FORKS: &str = "<?php for ($i = 0, $all = []; $i < 60; $i++) { $all[] = @proc_open(['sleep', '2'], [], $pipes); }
echo count(array_filter($all));";
const BUSY: &str = "<?php for ($i = 0; $i < 20000000; $i++); echo 'done';";

#[test]
fn nfs() -> Result<()> {
    let figure = Figure::up_nfs()?;
    let outcome = both_nodes_serve(&figure)
        .and_then(|()| no_update_is_lost(&figure))
        .and_then(|()| a_mount_that_is_taken_away_comes_back(&figure))
        .and_then(|()| the_nas_dies_and_comes_back_under_load(&figure))
        .and_then(|()| limits_hold(&figure));
    outcome.map_err(|error| match figure.lab.journals() {
        Ok(folder) => error.context(format!("the journals of the hosts are in {}", folder.display())),
        Err(other) => error.context(format!("the journals of the hosts could not be collected: {other:#}")),
    })
}

fn both_nodes_serve(figure: &Figure) -> Result<()> {
    figure.site("count", SITE, &[("page.txt", "from the NAS"), ("count.php", COUNT)])?;
    for node in NODES {
        eventually(Duration::from_secs(20), &format!("pages from {node}"), || {
            let page = figure.get_from(node, SITE, "/page.txt")?;
            ensure!((page.status, &*page.body) == (200, "from the NAS"), "{page:?}");
            let counted = figure.get_from(node, SITE, "/count.php")?;
            ensure!(counted.status == 200 && counted.body.starts_with(node), "{counted:?}");
            Ok(())
        })?;
        let options = figure.host(node).text(&format!("findmnt -n -t nfs4 -o OPTIONS {SHARE}"))?;
        for option in ["vers=4.2", "hard", "nosuid", "nodev", "acregmax=3", "lookupcache=pos"] {
            ensure!(options.split(',').any(|found| found == option), "{node} mounts without {option}: {options}");
        }
    }
    Ok(())
}

/// A load on the counter, through the balancer.
fn counting(figure: &Figure, rate: u32, seconds: u32) -> Result<Vec<Record>> {
    load(rate, seconds)?.start(&figure.host("client"))?.finish()
}

fn load(rate: u32, seconds: u32) -> Result<Load> {
    let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, SITE, "/count.php", seconds);
    (load.rate, load.threads, load.patience_ms) = (rate, 16, 8_000);
    Ok(load)
}

/// The counter's value as the NAS has it.
fn counter(figure: &Figure) -> Result<u64> {
    let text = figure.host("nas").text(&format!("cat /srv/nas/web/home/count/sites/{SITE}/counter"))?;
    text.parse().with_context(|| format!("the counter is {text:?}"))
}

/// What was counted for each request that was answered with 200. No two were told the same: that would be a lost update.
fn counted(records: &[Record]) -> Result<BTreeSet<u64>> {
    let mut counted = BTreeSet::new();
    for record in records.iter().filter(|record| record.ok()) {
        let count = record.text.split(' ').nth(1).and_then(|count| count.parse().ok());
        let count = count.with_context(|| format!("no count in {record:?}"))?;
        ensure!(counted.insert(count), "{count} was counted twice: an update was lost");
    }
    Ok(counted)
}

fn no_update_is_lost(figure: &Figure) -> Result<()> {
    let before = counter(figure)?;
    let records = counting(figure, 30, 10)?;
    let counted = counted(&records)?;
    ensure!(counted.len() == records.len(), "{} of {} requests failed", records.len() - counted.len(), records.len());
    let after = counter(figure)?;
    ensure!(after - before == counted.len() as u64, "{} requests, but from {before} to {after}", counted.len());
    for node in NODES {
        let share = records.iter().filter(|record| record.text.starts_with(node)).count();
        ensure!(share * 4 > records.len(), "{node} answered only {share} of {} requests", records.len());
    }
    println!("{} increments from two nodes, none lost", counted.len());
    Ok(())
}

/// The empty, sealed directory beneath the share, seen in a mount namespace of its own: nothing was written into it, and nothing can be.
fn nothing_is_beneath(figure: &Figure) -> Result<()> {
    const LOOK: &str = r#"exec unshare --mount sh -ec '
        umount -l "$1"; findmnt -n -o SOURCE "$1"; ls -A "$1"; if touch "$1/x" 2>/dev/null; then echo writable; fi
        umount -l "$1"; if mountpoint -q "$1"; then echo mounted; fi; ls -A "$1"' look "#;
    for node in NODES {
        let seen = figure.host(node).text(&format!("{LOOK}{SHARE}"))?;
        ensure!(seen == "phalanx-seal", "beneath the share of {node} is more than its seal: {seen}");
    }
    Ok(())
}

fn a_mount_that_is_taken_away_comes_back(figure: &Figure) -> Result<()> {
    nothing_is_beneath(figure)?;
    let node = figure.host("web2");
    node.text(&format!("umount -l {SHARE}; ! touch {SHARE}/x 2>/dev/null"))?;
    eventually(Duration::from_secs(60), "the return of the mount", || {
        node.text(&format!("findmnt -n -t nfs4 {SHARE}"))?;
        let page = figure.get_from("web2", SITE, "/page.txt")?;
        ensure!(page.status == 200, "{page:?}");
        Ok(())
    })?;
    nothing_is_beneath(figure)
}

fn the_nas_dies_and_comes_back_under_load(figure: &Figure) -> Result<()> {
    const LOAD_S: u32 = 75;
    let nas = figure.host("nas");
    let (before, begin) = (counter(figure)?, Instant::now());
    let running = load(15, LOAD_S)?.start(&figure.host("client"))?;
    std::thread::sleep(Duration::from_secs(6));
    nas.kill()?;
    for node in NODES {
        eventually(Duration::from_secs(20), &format!("that {node} leaves service"), || {
            let shown = figure.json(&format!("server show {node}"))?;
            ensure!(shown["state"]["report"]["in_service"] == false, "{shown}");
            Ok(())
        })?;
    }
    println!(
        "the NAS died after {:.1?}; both nodes are out of service after {:.1?}",
        Duration::from_secs(6),
        begin.elapsed()
    );
    nas.boot()?;
    println!("the NAS is up again after {:.1?}", begin.elapsed());
    for node in NODES {
        eventually(Duration::from_secs(90), &format!("the service of {node}, by itself"), || {
            let counted = figure.get_from(node, SITE, "/count.php")?;
            ensure!(counted.status == 200, "{counted:?}");
            Ok(())
        })?;
        println!("{node} serves again after {:.1?}", begin.elapsed());
    }
    let records = running.finish()?;
    let counted = counted(&records)?;
    let after = counter(figure)?;
    ensure!(counted.last().is_some_and(|last| *last <= after), "the NAS forgot: {:?} of {after}", counted.last());
    ensure!(
        after - before >= counted.len() as u64,
        "{} were acknowledged, but it went from {before} to {after}",
        counted.len()
    );
    println!("{} of {} requests were counted over the death of the NAS", counted.len(), records.len());

    let records = counting(figure, 20, 5)?;
    let failed: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
    ensure!(failed.is_empty(), "{} requests fail after the NAS came back: {:?}", failed.len(), failed.first());
    nothing_is_beneath(figure)
}

fn limits_hold(figure: &Figure) -> Result<()> {
    const HUNGRY: &str = "hungry.example.org";
    figure.site(
        "hungry",
        HUNGRY,
        &[("hog.php", HOG), ("forks.php", FORKS), ("busy.php", BUSY), ("ok.php", "<?php echo 'ok';")],
    )?;
    figure.phalanx("account change hungry --memory-mib 64 --processes 32")?;
    let uid = figure.host("nas").text("stat -c %u /srv/nas/web/home/hungry")?;
    let group = format!("/sys/fs/cgroup/phalanx.slice/phalanx-account.slice/phalanx-account-{uid}.slice");
    let node = figure.host("web1");
    let limit = |file: &str, wanted: &str| {
        eventually(Duration::from_secs(20), &format!("{wanted} in {file} of the account's control group"), || {
            figure.get_from("web1", HUNGRY, "/ok.php")?;
            let found = node.text(&format!("stat -f -c %T {group}; cat {group}/{file}"))?;
            ensure!(found == format!("cgroup2fs\n{wanted}"), "{found}");
            Ok(())
        })
    };
    let events = |file: &str, key: &str| -> Result<u64> {
        let text = node.text(&format!("sed -n 's/^{key} //p' {group}/{file}"))?;
        text.parse().with_context(|| format!("{key} in {file} is {text:?}"))
    };

    limit("memory.max", "67108864")?;
    let hog = figure.get_from("web1", HUNGRY, "/hog.php")?;
    ensure!(hog.status != 200 && events("memory.events", "oom_kill")? > 0, "the memory hog lives: {hog:?}");
    neighbour_answers(figure)?;

    limit("pids.max", "32")?;
    let forks = figure.get_from("web1", HUNGRY, "/forks.php")?;
    let started: u32 = forks.body.parse().with_context(|| format!("{forks:?}"))?;
    ensure!(started < 32 && events("pids.events", "max")? > 0, "{started} processes were started");
    neighbour_answers(figure)?;

    figure.phalanx("account change hungry --cpu-percent 10")?;
    limit("cpu.max", "10000 100000")?;
    let before = events("cpu.stat", "nr_throttled")?;
    let address = figure.address("web1")?;
    let busy = format!("curl -sS -m 30 -o /dev/null -H 'Host: {HUNGRY}' http://{address}/busy.php");
    let busy = figure.host("lb").spawn(&busy)?;
    neighbour_answers(figure)?;
    eventually(Duration::from_secs(20), "that the busy account is slowed", || {
        let after = events("cpu.stat", "nr_throttled")?;
        ensure!(after > before + 5, "throttled {before} times before, {after} after");
        Ok(())
    })?;
    drop(busy);
    Ok(())
}

/// Another account on the same node is none the worse.
fn neighbour_answers(figure: &Figure) -> Result<()> {
    let begin = Instant::now();
    let counted = figure.get_from("web1", SITE, "/count.php")?;
    ensure!(
        counted.status == 200 && begin.elapsed() < Duration::from_secs(5),
        "{counted:?} after {:?}",
        begin.elapsed()
    );
    Ok(())
}
