//! Figure 1 on real NFS 4.2 and control groups v2: both nodes write with locks and lose no update, the NAS dies and comes back under
//! load, nothing is ever written beneath a mount point, accounts' limits hold, and the exports change while the NAS's agent dies.

use super::crash_points;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Answer, Figure, NODES, SHARE};
use phalanx_lab::load::{Load, Record, clock_ms};

const SITE: &str = "count.example.org";
const HUNGRY: &str = "hungry.example.org";

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
/// Burns CPU until a moment of the node's clock.
const BUSY: &str =
    "<?php while (microtime(true) < (float)$_GET['until']) { hash('sha256', str_repeat('x', 4096)); } echo 'done';";

/// The part of a core that the busy account may have, in percent; how long it is watched; and how much more than its limit it may have
/// been given in that time: the kernel hands out a quota for each tenth of a second, and each processor may keep a slice of the last.
const CPU_PERCENT: u64 = 10;
const WATCH_S: u64 = 8;
const CPU_MARGIN_PERCENT: u64 = 2;

#[test]
fn nfs() -> Result<()> {
    Figure::scenario_nfs(|figure| {
        both_nodes_serve(figure)?;
        no_update_is_lost(figure)?;
        a_mount_that_is_taken_away_comes_back(figure)?;
        the_nas_dies_and_comes_back_under_load(figure)?;
        add_the_hungry_account(figure)?;
        NODES.iter().try_for_each(|node| limits_hold(figure, node))?;
        exports_change_while_the_agent_dies(figure)?;
        for line in ["account remove count --with-sites", "account remove hungry --with-sites"] {
            figure.phalanx(line)?;
        }
        crash_points::the_nas_leaves(figure)
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
    load(figure, rate, seconds).start(&figure.host("client"))?.finish()
}

fn load(figure: &Figure, rate: u32, seconds: u32) -> Load {
    Load { rate, threads: 16, patience_ms: 8_000, ..figure.load(SITE, "/count.php", seconds) }
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

fn nothing_is_beneath(figure: &Figure) -> Result<()> {
    NODES.iter().try_for_each(|node| figure.nothing_is_beneath(node))
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
    const LOAD_S: u32 = 300;
    let client = figure.host("client");
    let nas = figure.host("nas");
    let (before, begin) = (counter(figure)?, Instant::now());
    let running = load(figure, 15, LOAD_S).start(&client)?;
    std::thread::sleep(Duration::from_secs(6));
    nas.kill()?;
    for node in NODES {
        eventually(Duration::from_secs(20), &format!("that {node} leaves service"), || {
            let report = figure.report(node)?;
            ensure!(report["in_service"] == false, "{report}");
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
    // The load went on over it all, and goes on for a moment on the share that is back.
    let back_ms = clock_ms();
    std::thread::sleep(Duration::from_secs(5));
    let records = running.stop(&client)?;
    let served = records.iter().filter(|record| record.ok() && record.clock_ms > back_ms).count();
    ensure!(served > 40, "only {served} requests were answered after the service was back");
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

/// The NAS's agent dies at each step of changes of its exports: the nodes go on reading and writing, and no update is lost.
fn exports_change_while_the_agent_dies(figure: &Figure) -> Result<()> {
    const LOAD_S: u32 = 300;
    let load = load(figure, 10, LOAD_S).start(&figure.host("client"))?;
    crash_points::who_may_mount_changes(figure)?;
    counted(&crash_points::unharmed(figure, load)?)?;
    figure.settled(&["web1", "web2", "nas", "lb"])
}

fn add_the_hungry_account(figure: &Figure) -> Result<()> {
    figure.site(
        "hungry",
        HUNGRY,
        &[("hog.php", HOG), ("forks.php", FORKS), ("busy.php", BUSY), ("ok.php", "<?php echo 'ok';")],
    )?;
    figure.phalanx("account change hungry --memory-mib 64 --processes 32 --io-weight 37 --cpu-percent 100").map(drop)
}

/// The control group of the hungry account on one node.
struct Limits<'a> {
    figure: &'a Figure,
    node: &'a str,
    group: String,
}

impl Limits<'_> {
    fn text(&self, line: &str) -> Result<String> {
        self.figure.host(self.node).text(&format!("cd {} && {line}", self.group))
    }

    /// Waits until the kernel has `wanted` in a file of the account's group, in the one hierarchy of version 2.
    fn holds(&self, file: &str, wanted: &str) -> Result<()> {
        let what = format!("{wanted:?} in {file} of the account's control group on {}", self.node);
        eventually(Duration::from_secs(20), &what, || {
            self.get("/ok.php")?;
            let found = self.text(&format!("stat -f -c %T . && cat {file}"))?;
            ensure!(found == format!("cgroup2fs\n{wanted}"), "{found}");
            Ok(())
        })
    }

    fn event(&self, file: &str, key: &str) -> Result<u64> {
        let text = self.text(&format!("sed -n 's/^{key} //p' {file}"))?;
        text.parse().with_context(|| format!("{key} in {file} is {text:?}"))
    }

    fn get(&self, path: &str) -> Result<Answer> {
        self.figure.get_from(self.node, HUNGRY, path)
    }
}

fn limits_hold(figure: &Figure, node: &str) -> Result<()> {
    let uid = figure.host("nas").text("stat -c %u /srv/nas/web/home/hungry")?;
    let group = format!("/sys/fs/cgroup/phalanx.slice/phalanx-account.slice/phalanx-account-{uid}.slice");
    let limits = Limits { figure, node, group };

    limits.holds("memory.max", "67108864")?;
    limits.holds("memory.swap.max", "0")?;
    let hog = limits.get("/hog.php")?;
    ensure!(hog.status != 200 && limits.event("memory.events", "oom_kill")? > 0, "the memory hog lives: {hog:?}");
    neighbour_answers(figure, node)?;

    limits.holds("pids.max", "32")?;
    let forks = limits.get("/forks.php")?;
    let started: u32 = forks.body.parse().with_context(|| format!("{forks:?}"))?;
    ensure!(started < 32 && limits.event("pids.events", "max")? > 0, "{started} processes were started");
    neighbour_answers(figure, node)?;

    io_weight_is_set(&limits, &uid)?;
    cpu_is_limited(&limits)
}

/// systemd has the account's I/O weight, and so has the kernel, where it can weigh I/O: Debian's kernel for guests has no such file.
fn io_weight_is_set(limits: &Limits<'_>, uid: &str) -> Result<()> {
    eventually(Duration::from_secs(20), &format!("the I/O weight of the account on {}", limits.node), || {
        let set = format!("systemctl show -p IOWeight --value phalanx-account-{uid}.slice");
        let found =
            limits.text(&format!("{set}; if test -e io.weight; then cat io.weight; else echo default 37; fi"))?;
        ensure!(found == "37\ndefault 37", "{found:?}");
        Ok(())
    })
}

/// A busy loop gets its part of a core, and not more, by the kernel's own count and the node's own clock.
fn cpu_is_limited(limits: &Limits<'_>) -> Result<()> {
    let Limits { figure, node, .. } = limits;
    figure.phalanx(&format!("account change hungry --cpu-percent {CPU_PERCENT}"))?;
    limits.holds("cpu.max", &format!("{} 100000", CPU_PERCENT * 1_000))?;
    let throttled = limits.event("cpu.stat", "nr_throttled")?;
    let address = figure.address(node)?;
    let until = figure.host(node).text("date +%s")?.parse::<u64>()? + WATCH_S + 12;
    let ask = format!("curl -sS -m 60 -o /dev/null -H 'Host: {HUNGRY}' 'http://{address}/busy.php?until={until}'");
    let busy = [figure.host("lb").spawn(&ask)?, figure.host("lb").spawn(&ask)?];
    eventually(Duration::from_secs(10), "that the busy account is slowed", || {
        let after = limits.event("cpu.stat", "nr_throttled")?;
        ensure!(after > throttled + 5, "throttled {throttled} times before, {after} after");
        Ok(())
    })?;
    let look = "cut -d' ' -f1 /proc/uptime && sed -n 's/^usage_usec //p' cpu.stat";
    let seen = limits.text(&format!("({look}; sleep {WATCH_S}; {look})"))?;
    let numbers: Vec<f64> =
        seen.lines().map(str::parse).collect::<Result<_, _>>().with_context(|| format!("{seen:?}"))?;
    let [from_s, used_us, until_s, used_later_us] = numbers[..] else {
        bail!("not two times and two usages: {seen:?}")
    };
    let percent = (used_later_us - used_us) / 1e4 / (until_s - from_s);
    println!("a busy loop that may have {CPU_PERCENT} % of a core had {percent:.1} % on {node}");
    ensure!(percent <= (CPU_PERCENT + CPU_MARGIN_PERCENT) as f64, "it had {percent} % of a core on {node}");
    ensure!(percent >= CPU_PERCENT as f64 / 2.0, "it was to be busy, but had only {percent} % of a core on {node}");
    neighbour_answers(figure, node)?;
    drop(busy);
    figure.phalanx("account change hungry --cpu-percent 100").map(drop)
}

/// Another account on the same node is none the worse.
fn neighbour_answers(figure: &Figure, node: &str) -> Result<()> {
    let begin = Instant::now();
    let counted = figure.get_from(node, SITE, "/count.php")?;
    ensure!(
        counted.status == 200 && begin.elapsed() < Duration::from_secs(5),
        "{counted:?} after {:?}",
        begin.elapsed()
    );
    Ok(())
}
