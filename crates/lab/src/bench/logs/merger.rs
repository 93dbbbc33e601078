//! Phalanx's merger as it is: `phalanx logs` with the guard beside it, on a share, in a mount namespace in which both find their files where they
//! always look. Nothing of the machine's own is touched.

use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::lines::{self, Written};
use super::sum::{Order, Sum, merged};
use super::timed::{self, Timed, Took};
use crate::{eventually, paths, tools};

/// The product's words for what lies on a share.
const LOGS: &str = ".phalanx-logs";
const LOGS_OWNER: u32 = 1_900_000_000;
const MARKER: &str = "0123456789abcdef0123456789abcdef";
/// The node that merges; it has no lines of its own.
const NODE: &str = "merger";
const SHARE: &str = "bench";
/// Sites to an account.
const PER_ACCOUNT: u32 = 5;
/// A merger that gets no further for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The guard's namespace: what is looked for in fixed places lies in memory there, but for the share.
const WORLD: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/phalanx /run/share
mount --bind "$1/share" /run/share
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p /var/lib/phalanx/directory
sqlite3 /var/lib/phalanx/directory/directory.sqlite < "$1/directory.sql"
mount -t tmpfs -o mode=755 tmpfs /var/log
exec "$2" guard --config "$1/guard.json"
"#;

/// A share with segments on it that nobody has merged.
#[derive(Debug)]
pub struct Share {
    folder: PathBuf,
    sites: u32,
    segments: usize,
}

/// What a run came to.
#[derive(Debug)]
pub struct Merged {
    /// What it took; the time is until the merger says that all is on the disk.
    pub took: Took,
    /// Batches that it made.
    pub batches: u64,
    /// The lines of all sites.
    pub sum: Sum,
    /// Of each site by itself.
    pub order: Order,
    /// Requests by its count of traffic.
    pub counted: u64,
}

/// Where segments are to be written, in directories by node, so that they lie on the share.
pub fn segments_of(folder: &Path) -> PathBuf {
    folder.join("share").join(LOGS)
}

impl Share {
    /// Makes a share of `folder`, around the segments there.
    pub fn new(folder: &Path, sites: u32, written: &Written) -> Result<Self> {
        let segments = written.segments.iter().map(|(_, segments)| segments.len()).sum();
        let share = Self { folder: folder.to_owned(), sites, segments };
        let root = folder.join("share");
        write(&root.join(".phalanx-share"), format!("{MARKER}\n").as_bytes())?;
        fs::create_dir_all(root.join(".phalanx-guard"))?;
        fs::set_permissions(root.join(".phalanx-guard"), fs::Permissions::from_mode(0o1777))?;
        for (node, segments) in &written.segments {
            let all = segments.iter().map(|it| (it.name.clone(), json!({ "len": it.len, "is_closed": true })));
            let all: serde_json::Map<String, Value> = all.collect();
            let beat = json!({ "number": 1, "complete_to_us": 1, "segments": all });
            write(&root.join(LOGS).join(node).join("heartbeat.json"), beat.to_string().as_bytes())?;
        }
        give_to_merger(&root.join(LOGS))?;
        let nodes: Vec<&str> = written.segments.iter().map(|(node, _)| node.as_str()).chain([NODE]).collect();
        let mount = json!({ "share": SHARE, "marker": MARKER, "mount_point": "/run/share" });
        let config = json!({ "node": NODE, "share": mount, "merges_under": 1, "nodes": nodes, "streams": ["access"] });
        write(&folder.join("logs.json"), config.to_string().as_bytes())?;
        write(&folder.join("guard.json"), json!({ "shares": [mount] }).to_string().as_bytes())?;
        write(&folder.join("directory.sql"), share.directory().as_bytes())?;
        Ok(share)
    }

    /// Merges all there is, from nothing.
    pub fn merge(&self) -> Result<Merged> {
        self.reset()?;
        let program = program()?;
        let mut world = tools::command("unshare")?;
        world.args(["--mount", "--propagation", "private", "sh", "-ec", WORLD, "sh"]);
        world.arg(&self.folder).arg(&program).stdin(Stdio::null()).env("RUST_LOG", "error");
        let guard = Guard(world.spawn().context("cannot start the guard")?);
        let inside = PathBuf::from(format!("/proc/{}/root/run/phalanx", guard.0.id()));
        eventually(Duration::from_secs(20), "the guard's word for the share", || {
            let verdict = read_json(&inside.join(format!("guard/{SHARE}.json")))?.context("no verdict yet")?;
            ensure!(verdict["ok"] == true, "{verdict}");
            Ok(())
        })?;
        let result = self.folder.join("took");
        let mut command = tools::command("nsenter")?;
        command.arg(format!("--mount=/proc/{}/ns/mnt", guard.0.id())).arg("--").args(timed::words(&result)?);
        command.arg(&program).args(["logs", "--config"]).arg(self.folder.join("logs.json"));
        command.stdin(Stdio::null()).env("RUST_LOG", "warn");
        let begin = Instant::now();
        let mut merger = Timed::start(command, &result)?;
        self.wait(&mut merger, &inside)?;
        let wall_s = begin.elapsed().as_secs_f64();
        // It says of itself how a round went when that is over, which is after the state.
        let status = eventually(Duration::from_secs(20), "the merger's word on its first round", || {
            read_json(&inside.join("logs/status.json"))?.context("nothing yet")
        })?;
        rustix::process::kill_process(merger.process()?, rustix::process::Signal::TERM)?;
        let took = Took { wall_s, ..merger.finish(Duration::from_secs(20))? };
        ensure!(status["failing"] == "" && status["refused"] == json!({}), "not all was merged: {status}");
        self.result(took)
    }

    /// What a run that is over has left. Logs are read file by file, those that were moved aside first.
    fn result(&self, took: Took) -> Result<Merged> {
        let logs = segments_of(&self.folder);
        ensure!(!logs.join("cluster/access.log").exists(), "lines were taken for no site's");
        let state = read_json(&logs.join("state.json"))?.context("there is no state")?;
        let batches = state["number"].as_u64().context("the state has no number")?;
        let (mut sum, mut order) = (Sum::default(), Order::default());
        for number in 0..self.sites {
            let site = lines::site(number);
            let folder = self.folder.join(format!("share/home/{}/logs/{site}", account(number)));
            let mut of_site = Order::default();
            for path in parts(&folder)? {
                let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
                merged(BufReader::with_capacity(1 << 20, file), &site, &mut sum, &mut of_site)
                    .with_context(|| format!("reading {}", path.display()))?;
            }
            order.behind += of_site.behind;
            order.behind_second += of_site.behind_second;
        }
        Ok(Merged { took, batches, sum, order, counted: counted(&logs.join("traffic"))? })
    }

    fn wait(&self, merger: &mut Timed, inside: &Path) -> Result<()> {
        let state = segments_of(&self.folder).join("state.json");
        let mut last = (Instant::now(), Value::Null);
        loop {
            merger.ensure_running()?;
            let seen = read_json(&state)?.unwrap_or_default();
            let nodes = seen["segments"].as_object();
            let places = nodes.iter().flat_map(|nodes| nodes.values()).filter_map(Value::as_object);
            if places.flat_map(|places| places.values()).filter(|place| place["is_done"] == true).count()
                == self.segments
            {
                return Ok(());
            }
            if seen["number"] != last.1 {
                last = (Instant::now(), seen["number"].clone());
            }
            if last.0.elapsed() > PATIENCE {
                let status = read_json(&inside.join("logs/status.json"))?.unwrap_or_default();
                anyhow::bail!("the merger has not moved for {PATIENCE:?}; it says {status}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Removes what a run leaves, and makes homes.
    fn reset(&self) -> Result<()> {
        let root = self.folder.join("share");
        for name in ["state.json", "journal.json"] {
            remove(fs::remove_file(root.join(LOGS).join(name)))?;
        }
        for name in ["traffic", "cluster", NODE] {
            remove(fs::remove_dir_all(root.join(LOGS).join(name)))?;
        }
        remove(fs::remove_dir_all(root.join("home")))?;
        for number in (0..self.sites).step_by(PER_ACCOUNT as usize) {
            let home = root.join("home").join(account(number));
            fs::create_dir_all(&home)?;
            let uid = uid(number);
            chown(&home, Some(uid), Some(uid)).context("cannot give a home to its account")?;
        }
        Ok(())
    }

    /// The node's directory, as its agent would have written it.
    fn directory(&self) -> String {
        let mut sql = "
            CREATE TABLE position (one INTEGER PRIMARY KEY, incarnation INTEGER, term INTEGER, revision INTEGER, log_from INTEGER);
            CREATE TABLE account (name TEXT PRIMARY KEY, uid INTEGER UNIQUE, share TEXT, body TEXT) WITHOUT ROWID;
            CREATE TABLE host (name TEXT PRIMARY KEY, site TEXT, account TEXT) WITHOUT ROWID;
            BEGIN; INSERT INTO position VALUES (1, 1, 1, 1, 0);\n"
            .to_owned();
        for number in 0..self.sites {
            let (site, account, uid) = (lines::site(number), account(number), uid(number));
            if number.is_multiple_of(PER_ACCOUNT) {
                let body = json!({ "name": account, "uid": uid, "logical_server": "web", "owner": "owner" });
                sql.push_str(&format!("INSERT INTO account VALUES ('{account}', {uid}, '{SHARE}', '{body}');\n"));
            }
            sql.push_str(&format!("INSERT INTO host VALUES ('{site}', '{site}', '{account}');\n"));
        }
        sql + "COMMIT;\n"
    }
}

/// The guard, which the namespace lives as long as.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _already_gone = (self.0.kill(), self.0.wait());
    }
}

fn account(site: u32) -> String {
    format!("a{}", site / PER_ACCOUNT)
}

fn uid(site: u32) -> u32 {
    LOGS_OWNER + 1 + site / PER_ACCOUNT
}

/// The product, optimised.
fn program() -> Result<PathBuf> {
    let path = paths::target().join("release/phalanx");
    ensure!(path.exists(), "{} is not built: cargo build --release --package phalanx-cli", path.display());
    Ok(path)
}

fn give_to_merger(logs: &Path) -> Result<()> {
    let mut command: Command = tools::command("chown")?;
    let status = command.args(["--recursive", &format!("{LOGS_OWNER}:{LOGS_OWNER}")]).arg(logs).status()?;
    ensure!(status.success(), "chown failed with {status}");
    Ok(())
}

/// The files of a log in the order in which they were written.
fn parts(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = match name.strip_prefix("access.log-") {
            None => (u32::MAX, 0),
            Some(aside) => {
                let (day, number) = aside.split_once('.').unwrap_or((aside, "1"));
                (day.parse()?, number.parse::<u32>()?)
            }
        };
        parts.push((place, entry.path()));
    }
    parts.sort();
    Ok(parts.into_iter().map(|(_, path)| path).collect())
}

/// Requests of all sites and days.
fn counted(folder: &Path) -> Result<u64> {
    let mut requests = 0;
    for entry in fs::read_dir(folder).context("cannot list what was counted")? {
        let part = read_json(&entry?.path())?.unwrap_or_default();
        let sites = part["sites"].as_object().context("no sites were counted")?;
        let days = sites.values().filter_map(Value::as_object).flat_map(|days| days.values());
        requests += days.filter_map(|day| day["requests"].as_u64()).sum::<u64>();
    }
    Ok(requests)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    File::create(path)
        .and_then(|mut file| file.write_all(content))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => {
            let text = read.with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is not JSON", path.display()))
        }
    }
}

fn remove(done: std::io::Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot remove a former run"),
        _ => Ok(()),
    }
}
