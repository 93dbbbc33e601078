//! `phalanx logs`: ships this node's logs to the share and, where the grant to merge is held, merges those of the cluster. A small daemon
//! of its own, as root, so that a share that hangs holds up neither agent nor serving.
//!
//! A thread does one round each second; all of it may hang with the share, and the process can be ended at any point of it. It begins none
//! while the guard does not vouch for the share. Two processes never work at once: the later one waits for the lock of the earlier.
//!
//! Deliberately absent: choices, which are [`phalanx_plan::logs`]' own.

mod collect;
mod read;
mod source;
mod status;
mod trace;
mod work;

pub use read::{read, read_aside};
pub use status::problems;
pub use trace::{trace, trace_aside};

use anyhow::Context;
use phalanx_plan::logs::LogsConfig;
use phalanx_plan::logs::stream::Stream;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};

/// Where it finds its configuration.
pub const CONFIG: &str = "/var/lib/phalanx/live/logs.json";
/// What it remembers of what it collects.
const STATE: &str = "/var/lib/phalanx/logs/collected";
/// Its lock and what it says of itself.
const RUN: &str = "/run/phalanx/logs";

/// Runs until it is told to end. SIGHUP makes it read its configuration again; one that can't be read leaves the former in force.
///
/// # Errors
/// The configuration can't be read at the start, or the thread can't be started.
pub async fn run(config: &Path) -> anyhow::Result<()> {
    let (mut hang_up, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    let shared = Arc::new(Mutex::new(load(config)?));
    std::fs::create_dir_all(RUN).with_context(|| format!("making {RUN}"))?;
    let worker = work::Worker::new(shared.clone());
    std::thread::Builder::new().name("logs".into()).spawn(move || {
        let _lock = lock();
        worker.run();
    })?;
    crate::notify::send("READY=1");
    loop {
        tokio::select! {
            _ = hang_up.recv() => match load(config) {
                Ok(config) => *shared.lock().unwrap_or_else(PoisonError::into_inner) = config,
                Err(error) => tracing::error!("{error:#}; the former configuration stays in force"),
            },
            _ = terminate.recv() => {
                let first = work::first_segment()?;
                return Stream::ALL.into_iter().try_for_each(|stream| {
                    collect::told_to_end(&Path::new(STATE).join(stream.to_string()), &first)
                });
            },
        }
    }
}

fn load(path: &Path) -> anyhow::Result<LogsConfig> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a configuration of logs", path.display()))
}

/// Waits for an earlier process that a hanging share does not let end.
fn lock() -> Option<File> {
    let path = Path::new(RUN).join("lock");
    let locked = OpenOptions::new().create(true).append(true).open(&path).and_then(|file| file.lock().map(|()| file));
    match locked {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::error!("{} can't be locked: {error}; going on without", path.display());
            None
        }
    }
}
