//! Merging access logs: what `phalanx logs` takes for the segments of four nodes, beside `sort -m` and AWStats's logresolvemerge, on one core each.
//!
//! All read the same files, warm in the page cache, and write to the same file system. `sort` gets lines that begin with their time, all of the same
//! width, so that it need compare bytes only; that is the quickest that it can do. Phalanx does what it always does: it sorts lines out by
//! site, writes each into its own account's home as that account, counts traffic, journals each batch and syncs each log. The peers write one
//! file and sync nothing, but for two: one that syncs what it wrote, and one that sorts lines out by site.
//!
//! Deliberately absent: compressed logs and host names looked up, which logresolvemerge can also do.

mod lines;
mod merger;
mod sum;
mod timed;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::report::{Figures, Report};
use super::{Scale, say};
use crate::{paths, tools};
use lines::{Shape, Written};
use merger::{Merged, Share};
use sum::{Order, Sum};
use timed::{Timed, Took};

const NODES: [&str; 4] = ["web1", "web2", "web3", "web4"];
const MB: f64 = 1e6;
const MB_FULL: u64 = 5_000;
const MB_QUICK: u64 = 300;
const LIMIT: Duration = Duration::from_secs(3_600);
const RESOLVEMERGE: &str = "usr/share/awstats/tools/logresolvemerge.pl";
const PHALANX: &str = "phalanx logs";
const SORT: &str = "sort -m";
const SORT_SYNC: &str = "sort -m, then sync";
const SORT_SPLIT: &str = "sort -m, then awk, by site";
const AWSTATS: &str = "logresolvemerge";
const CPU: &str = "CPU time";
const USER: &str = "CPU time, user";
const WALL: &str = "time";
const ON_DISK: &str = "time until on the disk";
const RATE: &str = "a core's rate";
const MEMORY: &str = "memory, RSS, at most";
/// `sort -m` is to take no less CPU time.
const GOAL: f64 = 1.0;

/// One run of one of them.
struct Run {
    took: Took,
    on_disk_s: f64,
}

/// Measures; `mb` is the size of all lines, in millions of bytes.
pub fn measure(scale: Scale, mb: Option<u64>, report: &mut Report) -> Result<()> {
    let mb = mb.unwrap_or(scale.pick(MB_FULL, MB_QUICK));
    let folder = Folder::new()?;
    let resolvemerge = fetch_resolvemerge(&folder.0)?;
    let sites = scale.pick(200, 20);
    say(&format!("logs: {mb} MB of lines of {} nodes and {sites} sites", NODES.len()));
    let segments = merger::segments_of(&folder.0);
    let written = lines::write(&segments, &Shape { nodes: &NODES, sites, bytes: mb * 1_000_000 })?;
    let share = Share::new(&folder.0, sites, &written)?;
    let count = written.segments.iter().map(|(_, segments)| segments.len()).sum::<usize>();
    let case =
        format!("{mb} MB in {} lines, {count} segments of {} nodes, {sites} sites", written.plain.lines, NODES.len());
    let peers = peers(&folder.0, count, &resolvemerge);
    let mut ours = Vec::new();
    let mut theirs: Vec<Vec<Run>> = peers.iter().map(|_| Vec::new()).collect();
    for round in 1..=scale.rounds() {
        for (peer, runs) in peers.iter().zip(&mut theirs).filter(|(peer, _)| round == 1 || !peer.is_slow) {
            say(&format!("logs: {}, round {round}", peer.subject));
            runs.push(peer.run(&folder.0, &written)?);
        }
        say(&format!("logs: {PHALANX}, round {round}"));
        warm(&written)?;
        let merged = share.merge()?;
        check(&merged, &written)?;
        say(&format!("logs: {} batches", merged.batches));
        ours.push(Run { on_disk_s: merged.took.wall_s, took: merged.took });
    }
    rows(report, &case, PHALANX, &ours, written.bytes)?;
    for (peer, runs) in peers.iter().zip(&theirs) {
        rows(report, &case, peer.subject, runs, written.bytes)?;
    }
    for metric in [CPU, USER, WALL, ON_DISK, RATE, MEMORY] {
        report.compare_to(&case, metric, SORT);
    }
    if let Some(ratio) = report.ratio(&case, PHALANX, CPU) {
        report.goal("CPU time to merge logs, as a ratio to sort -m", GOAL, ratio);
    }
    Ok(())
}

fn rows(report: &mut Report, case: &str, subject: &str, runs: &[Run], bytes: u64) -> Result<()> {
    let mut row = |metric, of: &dyn Fn(&Run) -> f64| -> Result<()> {
        let values: Vec<f64> = runs.iter().map(of).collect();
        report.row(case, subject, metric, Figures::of(&values)?);
        Ok(())
    };
    row((CPU, "s"), &|run| run.took.cpu_s())?;
    row((USER, "s"), &|run| run.took.user_s)?;
    row((RATE, "MB/s"), &|run| bytes as f64 / MB / run.took.cpu_s())?;
    row((WALL, "s"), &|run| run.took.wall_s)?;
    row((ON_DISK, "s"), &|run| run.on_disk_s)?;
    row((MEMORY, "MiB"), &|run| run.took.rss_mib)
}

/// Every line once at its site, told where it stood, in order, and counted.
fn check(merged: &Merged, written: &Written) -> Result<()> {
    let Merged { sum, order, counted, .. } = merged;
    ensure!(*sum == written.placed, "{} lines were merged, {} written, or others", sum.lines, written.placed.lines);
    ensure!(order.behind == 0, "{} lines are out of order", order.behind);
    ensure!(*counted == written.plain.lines, "{counted} requests were counted");
    Ok(())
}

/// Another program that merges.
struct Peer {
    subject: &'static str,
    /// Its command; the files follow.
    words: Vec<String>,
    /// It is run once.
    is_slow: bool,
}

fn peers(folder: &Path, files: usize, resolvemerge: &Path) -> [Peer; 4] {
    // All at once: it would merge sixteen at a time otherwise, and what comes of that again.
    let sort = format!("sort -m --batch-size={}", files + 1);
    let (output, split) = (output(folder), split(folder));
    let shell = |line: String| ["sh", "-c", &line, "sh"].map(str::to_owned).to_vec();
    let by_site = format!(r#"awk '!/^#/ {{ print > ("{}/" $2) }}'"#, split.display());
    let awstats = vec!["perl".to_owned(), resolvemerge.display().to_string()];
    let peer = |subject, words| Peer { subject, words, is_slow: false };
    [
        peer(SORT, sort.split(' ').map(str::to_owned).collect()),
        peer(SORT_SYNC, shell(format!("{sort} \"$@\" && sync '{}'", output.display()))),
        peer(SORT_SPLIT, shell(format!("{sort} \"$@\" | {by_site}"))),
        Peer { is_slow: true, ..peer(AWSTATS, awstats) },
    ]
}

/// Where a peer's output goes; and the directory for those that have more than one.
fn output(folder: &Path) -> PathBuf {
    folder.join("merged")
}

fn split(folder: &Path) -> PathBuf {
    folder.join("split")
}

impl Peer {
    fn run(&self, folder: &Path, written: &Written) -> Result<Run> {
        warm(written)?;
        let (subject, result, output, split) = (self.subject, folder.join("took"), output(folder), split(folder));
        fs::create_dir(&split).with_context(|| format!("cannot make {}", split.display()))?;
        let start = timed::words(&result)?;
        let (time, before) = start.split_first().context("time has a name")?;
        let mut command = tools::command(time)?;
        command.args(before).args(&self.words).env("LC_ALL", "C").stdin(Stdio::null());
        command.args(written.segments.iter().flat_map(|(_, segments)| segments).map(|segment| &segment.path));
        command.stdout(File::create(&output).with_context(|| format!("cannot make {}", output.display()))?);
        let took = Timed::start(command, &result)?.finish(LIMIT)?;
        let begin = Instant::now();
        let mut files = vec![output.clone()];
        for entry in fs::read_dir(&split)? {
            files.push(entry?.path());
        }
        for path in &files {
            File::open(path)?.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
        }
        let on_disk_s = took.wall_s + begin.elapsed().as_secs_f64();
        let (sum, behind, behind_second) = read(&files)?;
        ensure!(sum == written.plain, "{subject} wrote {} lines of {}, or others", sum.lines, written.plain.lines);
        ensure!(behind_second == 0, "{subject}: {behind_second} lines are seconds out of order");
        if behind > 0 {
            say(&format!("logs: {subject}: {behind} lines are out of order within their second"));
        }
        fs::remove_file(&output)?;
        fs::remove_dir_all(&split)?;
        Ok(Run { took, on_disk_s })
    }
}

/// The lines of all files, and how many are out of order in their own: at all, and by a second.
fn read(files: &[PathBuf]) -> Result<(Sum, u64, u64)> {
    let (mut sum, mut behind, mut behind_second) = (Sum::default(), 0, 0);
    for path in files {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut order = Order::default();
        sum::plain(BufReader::with_capacity(1 << 20, file), &mut sum, &mut order)
            .with_context(|| format!("reading {}", path.display()))?;
        behind += order.behind;
        behind_second += order.behind_second;
    }
    Ok((sum, behind, behind_second))
}

/// The same beginning for all: what is read is in the page cache, and the disk has nothing to do.
fn warm(written: &Written) -> Result<()> {
    for segment in written.segments.iter().flat_map(|(_, segments)| segments) {
        std::io::copy(&mut File::open(&segment.path)?, &mut std::io::sink())?;
    }
    rustix::fs::sync();
    Ok(())
}

/// AWStats's program, of Debian's package, which needs nothing of it; installing it would put a job into this machine's cron.
fn fetch_resolvemerge(folder: &Path) -> Result<PathBuf> {
    let mut command = tools::command("apt-get")?;
    let status = command.args(["download", "-qq", "awstats"]).current_dir(folder).status()?;
    ensure!(status.success(), "apt-get download awstats failed with {status}");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            tools::run("dpkg-deb", [Path::new("--extract"), &path, &folder.join("awstats")])?;
        }
    }
    let program = folder.join("awstats").join(RESOLVEMERGE);
    ensure!(program.exists(), "the package awstats has no {RESOLVEMERGE}");
    Ok(program)
}

/// What lies on the disk meanwhile: removed at the end, however that comes.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = paths::built().join("bench-logs");
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            say(&format!("{} is left: {error}", self.0.display()));
        }
    }
}
