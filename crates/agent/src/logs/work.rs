//! The rounds.

use super::status::Status;
use crate::check::guard_refusal;
use anyhow::Context;
use phalanx_host::directory::{self, Reader};
use phalanx_host::facts;
use phalanx_host::logs::{LogShare, MergeStorage, NodeDepot};
use phalanx_plan::logs::merge::Room;
use phalanx_plan::logs::segment::SegmentName;
use phalanx_plan::logs::{LOCAL, LogsConfig, LogsShare, round, ship};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PERIOD: Duration = Duration::from_secs(1);
/// So long batches are begun before this node's own lines are shipped again, and its heartbeat with them.
const MERGING_MAX: Duration = Duration::from_secs(5);

/// What the thread has.
pub struct Worker {
    config: Arc<Mutex<LogsConfig>>,
    status: Status,
    directory: Option<Reader>,
    /// The last round has left lines that could be merged at once.
    has_more: bool,
}

impl Worker {
    /// A worker that follows this configuration.
    pub fn new(config: Arc<Mutex<LogsConfig>>) -> Self {
        Self { config, status: Status::default(), directory: None, has_more: false }
    }

    /// Works until the process ends.
    pub fn run(mut self) {
        loop {
            let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let done = self.round(&config);
            self.status.finish(done.err().map(|error| format!("{error:#}")));
            if !self.has_more {
                std::thread::sleep(PERIOD);
            }
        }
    }

    fn round(&mut self, config: &LogsConfig) -> anyhow::Result<()> {
        self.has_more = false;
        let Some(LogsShare { share, .. }) = &config.share else { return Ok(()) };
        let opened = open(config)?;
        let boot_id = facts::boot_id()?;
        let present = SegmentName::first(&boot_id).with_context(|| format!("{boot_id:?} is no boot id"))?;
        let mut depot = NodeDepot { node: &config.node, local: Path::new(LOCAL), share: &opened };
        ship::round(&mut depot, &config.node, &present, unix_us())?;
        let Some(grant) = config.merges_under else { return Ok(()) };
        let (begin, mut room) = (Instant::now(), Room::default());
        loop {
            let reader = match self.directory.take() {
                Some(reader) => reader,
                None => Reader::open(Path::new(directory::PATH))?,
            };
            let mut storage = MergeStorage::new(&opened, share, &reader)?;
            let outcome = round::round(&mut storage, &mut room, grant, &config.nodes, unix_us())?;
            self.directory = Some(reader);
            for (site, why) in outcome.refused {
                self.status.refuse(site, why);
            }
            outcome.gaps.iter().for_each(|gap| tracing::warn!("{}", gap.trim_end()));
            if !outcome.has_more || begin.elapsed() > MERGING_MAX {
                self.has_more = outcome.has_more;
                break;
            }
            // A share that was found wrong meanwhile gets no more.
            open(config)?;
        }
        Ok(())
    }
}

/// The share, if the guard vouches for it and it is the right one.
fn open(config: &LogsConfig) -> anyhow::Result<LogShare> {
    let share = config.share.as_ref().context("the cluster has no share")?;
    if let Some(why) = guard_refusal(&share.share) {
        anyhow::bail!("share {}: {why}", share.share);
    }
    Ok(LogShare::open(share)?)
}

fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
