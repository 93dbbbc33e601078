//! The node's health: the guard's verdict is fresh and good, and the share's marker can be read and is the right one.
//!
//! The marker is read by one thread, one read at a time, so that a hung share costs one thread and never a task. Whoever asks while
//! a read is under way waits for the next one, for at most a second in all.

use phalanx_plan::proxy_config::ShareCheck;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How old the guard's verdict may be.
const VERDICT_LIFETIME_MS: u64 = 5_000;
/// How long a read of the marker may take.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Those who may wait for a read.
const WAITING_MAX: usize = 64;

/// The guard's verdict on a share.
#[derive(Debug, Deserialize)]
struct Verdict {
    ok: bool,
    #[serde(default)]
    why: String,
    at_boottime_ms: u64,
}

/// Answers whether the node should get requests.
#[derive(Debug)]
pub struct Health {
    reads: mpsc::Sender<MarkerRead>,
}

#[derive(Debug)]
struct MarkerRead {
    file: PathBuf,
    answer: oneshot::Sender<io::Result<String>>,
}

impl Health {
    /// Starts the reading thread.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start() -> io::Result<Self> {
        let (reads, mut waiting) = mpsc::channel::<MarkerRead>(WAITING_MAX);
        std::thread::Builder::new().name("share-marker".into()).spawn(move || {
            while let Some(MarkerRead { file, answer }) = waiting.blocking_recv() {
                // After a hang, those who gave up are passed over without a read for each.
                if !answer.is_closed() {
                    let _ = answer.send(read_start(&file));
                }
            }
        })?;
        Ok(Self { reads })
    }

    /// `Ok` with the page's line where the node is healthy, else the reason in one line.
    ///
    /// # Errors
    /// The reason why the node should get nothing.
    pub async fn ask(&self, share: Option<&ShareCheck>) -> Result<String, String> {
        let share = share.ok_or("no share is set up on this node")?;
        judge_verdict(&share.verdict_file, boottime_ms())?;
        let name = &share.share;
        let (answer, answered) = oneshot::channel();
        let read = MarkerRead { file: share.marker_file.clone(), answer };
        self.reads.try_send(read).map_err(|_| format!("share {name}: reads of its marker hang"))?;
        let found = match tokio::time::timeout(READ_TIMEOUT, answered).await {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => return Err(format!("share {name}: its marker can't be read: {error}")),
            Ok(Err(_)) | Err(_) => return Err(format!("share {name}: its marker could not be read within a second")),
        };
        if found.trim_end_matches('\n') != share.marker.as_str() {
            return Err(format!("share {name}: another share is mounted in its place"));
        }
        Ok(format!("ok {}", share.marker.as_str()))
    }
}

/// Milliseconds since the machine's start, the time it slept included.
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Seconds since the start are never negative.
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

fn judge_verdict(file: &Path, now_ms: u64) -> Result<(), String> {
    // The file lies in memory (/run), so that reading it never waits for a disk.
    let text = read_start(file).map_err(|error| format!("the guard's verdict can't be read: {error}"))?;
    let verdict: Verdict =
        serde_json::from_str(&text).map_err(|error| format!("the guard's verdict is not understood: {error}"))?;
    let age_ms = now_ms.saturating_sub(verdict.at_boottime_ms);
    if age_ms > VERDICT_LIFETIME_MS {
        return Err(format!("the guard's verdict is {} s old", age_ms / 1_000));
    }
    if !verdict.ok {
        let why: String = verdict.why.chars().filter(|c| !c.is_control()).take(300).collect();
        return Err(format!("the guard says: {why}"));
    }
    Ok(())
}

/// The first kilobytes of a small file as text.
fn read_start(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(4_096).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: &str = "0123456789abcdef0123456789abcdef";

    fn check(directory: &Path) -> ShareCheck {
        ShareCheck {
            share: "web".parse().expect("a name"),
            marker: MARKER.parse().expect("a marker"),
            marker_file: directory.join("marker"),
            verdict_file: directory.join("verdict"),
        }
    }

    #[tokio::test]
    async fn every_doubt_takes_the_node_out() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let put = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        let check = check(directory.path());
        let health = Health::start().expect("started");
        let verdict = |ok: bool, age_ms: u64| {
            let at = boottime_ms().saturating_sub(age_ms);
            format!(r#"{{"ok":{ok},"why":"the probe\nhangs","at_boottime_ms":{at}}}"#)
        };
        let said = async |share: Option<&ShareCheck>| match health.ask(share).await {
            Ok(line) => line,
            Err(why) => format!("not: {why}"),
        };
        assert_eq!(said(None).await, "not: no share is set up on this node");
        assert!(said(Some(&check)).await.starts_with("not: the guard's verdict can't be read"));
        put("verdict", "{");
        assert!(said(Some(&check)).await.starts_with("not: the guard's verdict is not understood"));
        put("verdict", &verdict(false, 0));
        assert_eq!(said(Some(&check)).await, "not: the guard says: the probehangs");
        put("verdict", &verdict(true, 0));
        assert!(said(Some(&check)).await.starts_with("not: share web: its marker can't be read"));
        put("marker", &format!("{}\n", MARKER.replace('0', "1")));
        assert_eq!(said(Some(&check)).await, "not: share web: another share is mounted in its place");
        put("marker", &format!("{MARKER}\n"));
        assert_eq!(said(Some(&check)).await, format!("ok {MARKER}"));
    }

    #[test]
    fn an_old_verdict_does_not_count() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("verdict");
        std::fs::write(&file, r#"{"ok":true,"why":"","at_boottime_ms":1000}"#).expect("written");
        assert_eq!(judge_verdict(&file, 6_000), Ok(()));
        assert_eq!(judge_verdict(&file, 7_100), Err("the guard's verdict is 6 s old".into()));
    }

    #[tokio::test]
    async fn a_share_that_hangs_costs_one_second_and_one_thread() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let check = check(directory.path());
        let health = Health::start().expect("started");
        let verdict = format!(r#"{{"ok":true,"at_boottime_ms":{}}}"#, boottime_ms());
        std::fs::write(&check.verdict_file, verdict).expect("written");
        // Opening a FIFO that nobody writes to hangs, like a share whose server is gone.
        let made = std::process::Command::new("mkfifo").arg(&check.marker_file).status().expect("mkfifo runs");
        assert!(made.success());
        let why = health.ask(Some(&check)).await.expect_err("it hangs");
        assert_eq!(why, "share web: its marker could not be read within a second");
    }
}
