//! What Eve takes of the node: up to her limits and not more, while Bob is served.

use super::{NODE, Scene};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::load::{Load, Record};
use serde_json::Value;
use std::time::Duration;

/// The longest that one of Bob's answers may take while Eve hogs.
const PATIENCE_US: u64 = 3_000_000;
/// How long Bob's load goes on, in seconds; it begins when the hog has what it can get.
const LOAD_SECONDS: u32 = 8;
/// How long a hog goes on by itself, in seconds: longer than it takes to get there, and than the load.
const HOG_SECONDS: u32 = 60;

/// Something that a hog takes as much of as it can get.
#[derive(Clone, Copy, Debug)]
enum Goods {
    Processes,
    Memory,
    Cpu,
}

struct Hog {
    what: &'static str,
    goods: Goods,
    /// A line of shell. `$END` is when it shall stop, in seconds since 1970.
    code: &'static str,
}

const HOGS: [Hog; 3] = [
    Hog {
        what: "a fork bomb",
        goods: Goods::Processes,
        code: "perl -e 'while (time < $ARGV[0]) { defined fork or select undef, undef, undef, 0.01 }' $END",
    },
    // Several: the kernel ends the one that has most, and the others still hold what they have.
    Hog {
        what: "a memory hog",
        goods: Goods::Memory,
        code: "for i in 1 2 3 4 5 6 7 8; do while test $(date +%s) -lt $END; do perl -e 'while (time < $ARGV[0]) { \
               push @a, chr(65 + @a % 26) x 2e6; select undef, undef, undef, 0.02 }' $END; done & done; wait",
    },
    Hog {
        what: "a busy loop",
        goods: Goods::Cpu,
        code: "for i in 1 2 3 4 5 6 7 8; do perl -e 'while (time < $ARGV[0]) {}' $END & done; wait",
    },
];

/// Eve's limits, as the account has them.
struct Limits {
    processes: u64,
    memory: u64,
    /// Of one core, in hundredths.
    cpu_percent: u64,
}

impl Limits {
    fn of(limits: &Value) -> Result<Self> {
        let get = |name: &str| limits[name].as_u64().with_context(|| format!("no {name} in {limits}"));
        Ok(Self { processes: get("processes")?, memory: get("memory_mib")? << 20, cpu_percent: get("cpu_percent")? })
    }

    /// That the kernel holds Eve to just these. A machine that is busy with other things can't show it by what she gets of its time.
    fn are_set(&self, scene: &Scene) -> Result<()> {
        const READ: &str = r#"group=$(systemctl show --value -p ControlGroup phalanx-account-$1.slice)
            of() { cd /sys/fs/cgroup/$1$group 2> /dev/null || cd /sys/fs/cgroup$group; }
            echo $(of pids; cat pids.max) $(of memory; cat memory.limit_in_bytes 2> /dev/null || cat memory.max) \
                $(of cpu; cat cpu.cfs_quota_us cpu.cfs_period_us 2> /dev/null || cat cpu.max)"#;
        let text = scene.node().exec(&["sh", "-eu", "-c", READ, "read", &scene.eve.uid.to_string()], b"")?.text()?;
        let numbers: Result<Vec<u64>, _> = text.split(' ').map(str::parse).collect();
        let Ok([processes, memory, quota, period]) = numbers.as_deref() else {
            anyhow::bail!("the kernel's limits are {text:?}")
        };
        let is_right = (*processes, *memory, quota * 100 / period) == (self.processes, self.memory, self.cpu_percent);
        ensure!(is_right, "the kernel's limits are {text:?}");
        Ok(())
    }

    /// How much of `goods` shows that the hog has what it can get, and the most that it may have.
    fn range(&self, goods: Goods) -> (u64, u64) {
        match goods {
            Goods::Processes => (self.processes * 9 / 10, self.processes),
            Goods::Memory => (self.memory * 3 / 4, self.memory),
            // A busy machine has less to give. A quota counts for each tenth of a second, so that the ends of a sample may cut one in two.
            Goods::Cpu => (self.cpu_percent / 10, self.cpu_percent * 120 / 100),
        }
    }
}

/// What Eve has taken at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_us: u64,
    processes: u64,
    memory: u64,
    /// Of all processes that live, and of those that they waited for.
    cpu_us: u64,
    /// How often she was held back: was refused a process, ran into the limit of memory, or had to wait for CPU time.
    refused: [u64; 3],
}

impl Sample {
    fn take(scene: &Scene) -> Result<Self> {
        // In a control group of either version: a hierarchy for all, or one for each of the goods. A refused fork counts where it was tried.
        const READ: &str = r#"slice=phalanx-account-$1.slice
            group=$(systemctl show --value -p ControlGroup $slice)
            of() { cd /sys/fs/cgroup/$1$group 2> /dev/null || cd /sys/fs/cgroup$group; }
            shown() { systemctl show --value -p $1 $slice; }
            field() { awk -v name="$2" '$1 == name { print $2 }' "$1"; }
            ticks() { pgrep -U $1 | sed 's|.*|/proc/&/stat|' | xargs cat 2> /dev/null | awk '{ sum += $14 + $15 + $16 + $17 } END { print sum + 0 }'; }
            echo $(($(date +%s%N) / 1000)) $(shown TasksCurrent) $(shown MemoryCurrent) $(ticks $1)0000 \
                $(of pids; cat pids.events */pids.events | awk '{ sum += $2 } END { print sum }') $(of memory; cat memory.failcnt 2> /dev/null || field memory.events max) \
                $(of cpu; field cpu.stat nr_throttled)"#;
        let text = scene.node().exec(&["sh", "-eu", "-c", READ, "read", &scene.eve.uid.to_string()], b"")?.text()?;
        let numbers: Vec<u64> = text
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("what Eve takes: {text}"))?;
        let [at_us, processes, memory, cpu_us, refused @ ..] = numbers.as_slice() else {
            anyhow::bail!("what Eve takes: {text}")
        };
        let refused = refused.try_into().with_context(|| format!("what Eve takes: {text}"))?;
        Ok(Self { at_us: *at_us, processes: *processes, memory: *memory, cpu_us: *cpu_us, refused })
    }

    /// What she has of `goods`; of CPU time, what she had since `before`, in hundredths of a core.
    fn level(&self, goods: Goods, before: &Self) -> u64 {
        match goods {
            Goods::Processes => self.processes,
            Goods::Memory => self.memory,
            // What ended and was not waited for does not count any more.
            Goods::Cpu => self.cpu_us.saturating_sub(before.cpu_us) * 100 / (self.at_us - before.at_us).max(1),
        }
    }
}

/// Each hog in turn.
pub fn are_held(scene: &Scene) -> Result<()> {
    let limits = Limits::of(&scene.figure.json("account show eve")?["limits"])?;
    ensure!(
        (limits.processes, limits.cpu_percent, limits.memory) == (128, 100, 512 << 20),
        "other limits than thought"
    );
    limits.are_set(scene)?;
    for hog in &HOGS {
        is_held(scene, &limits, hog)?;
        scene.bob_answers()?;
        // systemd may have given up Eve's PHP while there was no process left for it; the launcher opens its socket again.
        eventually(Duration::from_secs(25), "Eve's recovery", || {
            let answer = scene.figure.get_from(NODE, &scene.eve.site, "/id.php")?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn is_held(scene: &Scene, limits: &Limits, hog: &Hog) -> Result<()> {
    let Hog { what, goods, code } = hog;
    let uid = scene.eve.uid;
    // A name of its own for each: the node may hold what was read of another for a while.
    let script = format!("{}.php", what.replace(' ', "-"));
    let page = format!("<?php shell_exec(<<<'CODE'\nEND=$(($(date +%s) + {HOG_SECONDS})); {code}\nCODE);");
    scene.figure.put("eve", &format!("sites/{}/{script}", scene.eve.site), &page)?;
    let address = scene.figure.address(NODE)?;
    let before = Sample::take(scene)?;
    let line = format!("exec curl -sS -m {HOG_SECONDS} -H 'Host: {}' http://{address}/{script}", scene.eve.site);
    let asking = scene.figure.host("lb").spawn(&line)?;

    let (least, most) = limits.range(*goods);
    let mut last = before;
    eventually(Duration::from_secs(25), &format!("{what} that takes what it can get"), || {
        std::thread::sleep(Duration::from_millis(500));
        let now = Sample::take(scene)?;
        let level = now.level(*goods, &last);
        last = now;
        ensure!(level >= least, "it has {level} of {least}; {} {}", asking.stdout(), asking.stderr());
        Ok(())
    })?;
    let (records, samples) = loaded(scene, last)?;
    drop(asking);

    let levels: Vec<u64> = samples.windows(2).map(|pair| pair[1].level(*goods, &pair[0])).collect();
    let high = levels.iter().filter(|level| **level >= least).count();
    let (first, end) = (levels.first().copied().unwrap_or(0), levels.last().copied().unwrap_or(0));
    ensure!(
        first >= least && end >= least && high * 4 >= levels.len() * 3,
        "{what} was not there all the time: {levels:?}, {least}"
    );
    // Of everything, not only of what this hog is after.
    for goods in [Goods::Processes, Goods::Memory, Goods::Cpu] {
        let (_, most) = limits.range(goods);
        let levels: Vec<u64> = samples.windows(2).map(|pair| pair[1].level(goods, &pair[0])).collect();
        ensure!(levels.iter().all(|level| *level <= most), "{what} had more {goods:?} than {most}: {levels:?}");
    }
    let refused = samples.last().map_or(0, |last| last.refused[*goods as usize]) - before.refused[*goods as usize];
    // Who shares a busy machine does not come near to a quota of its time.
    let is_idle = levels.iter().all(|level| *level >= most * 3 / 4);
    ensure!(refused > 0 || (matches!(goods, Goods::Cpu) && !is_idle), "{what} was never refused anything: {samples:?}");
    bob_is_served(what, &records)?;
    println!("{what} had {levels:?} of {most} and was refused {refused} times");

    // Requests for it may still wait at the socket of Eve's PHP; they shall not begin it again.
    scene.as_eve_on_nas(&format!("rm {script}"))?;
    eventually(Duration::from_secs(10), "the end of all that Eve runs", || {
        scene
            .node()
            .text(&format!("systemctl kill --signal=KILL phalanx-account-{uid}.slice; ! pgrep -U {uid}"))
            .map(drop)
    })
}

/// Loads Bob's site and looks every second at what Eve has, from before the load until after it.
fn loaded(scene: &Scene, before: Sample) -> Result<(Vec<Record>, Vec<Sample>)> {
    let target = format!("{}:80", scene.figure.address(NODE)?).parse()?;
    let load = Load { rate: 10, ..Load::new(target, &scene.bob.site, "/id.php", LOAD_SECONDS) };
    let running = load.start(&scene.figure.host("lb"))?;
    let mut samples = vec![before];
    for _ in 0..LOAD_SECONDS {
        std::thread::sleep(Duration::from_secs(1));
        samples.push(Sample::take(scene)?);
    }
    let records = running.finish()?;
    std::thread::sleep(Duration::from_millis(500));
    samples.push(Sample::take(scene)?);
    Ok((records, samples))
}

fn bob_is_served(what: &str, records: &[Record]) -> Result<()> {
    let bad: Vec<_> = records.iter().filter(|record| !record.ok() || record.took_us > PATIENCE_US).collect();
    ensure!(
        records.len() >= 50 && bad.is_empty(),
        "{what}: {} of {} answers of Bob's, such as {:?}",
        bad.len(),
        records.len(),
        bad.first()
    );
    let mut times: Vec<u64> = records.iter().map(|record| record.took_us).collect();
    times.sort_unstable();
    println!(
        "under {what} of Eve's Bob answers in {} ms at the median, {} ms at most",
        times[times.len() / 2] / 1_000,
        times[times.len() - 1] / 1_000
    );
    Ok(())
}
