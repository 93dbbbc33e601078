//! The rounds.

use super::STATE;
use super::collect::Collector;
use super::source::Source;
use super::status::Status;
use crate::check::guard_refusal;
use anyhow::Context;
use phalanx_host::directory::{self, Reader};
use phalanx_host::facts;
use phalanx_host::logs::{LogShare, MergeStorage, NodeDepot};
use phalanx_model::Name;
use phalanx_plan::logs::collect;
use phalanx_plan::logs::errors::{self, SiteErrors};
use phalanx_plan::logs::mail::{self, MailReader};
use phalanx_plan::logs::round::Bounds;
use phalanx_plan::logs::segment::SegmentName;
use phalanx_plan::logs::stream::Stream;
use phalanx_plan::logs::{LogsConfig, LogsShare, round, ship};
use phalanx_plan::mail::LOGS;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PERIOD: Duration = Duration::from_secs(1);
/// So long batches are begun before this node's own lines are shipped again, and its heartbeat with them.
const MERGING_MAX: Duration = Duration::from_secs(5);

/// So many parts of sources are collected before they are shipped.
const PARTS_MAX: usize = 16;

/// What the thread has.
pub struct Worker {
    config: Arc<Mutex<LogsConfig>>,
    status: Status,
    directory: Option<Reader>,
    mail: Option<Collector<MailReader>>,
    errors: Option<Collector<SiteErrors>>,
    /// The last round has left lines that could be merged at once.
    has_more: bool,
}

impl Worker {
    /// A worker that follows this configuration.
    pub fn new(config: Arc<Mutex<LogsConfig>>) -> Self {
        Self { config, status: Status::default(), directory: None, mail: None, errors: None, has_more: false }
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
        let first = first_segment()?;
        // One stream does not wait for another's trouble. What could not be collected is not shipped: the segment may not be whole.
        let mut done = Ok(());
        for stream in &config.streams {
            let collected = self.collect(config, *stream, &first);
            let worked = collected.and_then(|()| self.stream(config, *stream, &first));
            done = done.and(worked.with_context(|| format!("{stream} logs")));
        }
        done
    }

    /// What daemons say goes into segments whether or not the share is there.
    fn collect(&mut self, config: &LogsConfig, stream: Stream, first: &SegmentName) -> anyhow::Result<()> {
        match stream {
            Stream::Access => Ok(()),
            Stream::Mail => {
                let file = |name: &str| (name.to_owned(), Source::File(Path::new(LOGS).join(format!("{name}.log"))));
                let sources = || mail::SOURCES.into_iter().map(file).collect();
                let reader = MailReader { balancers: config.balancers.clone() };
                round_of(&mut self.mail, reader, &config.node, sources, stream, first)
            }
            Stream::Errors => {
                let sources = || [("journal".to_owned(), Source::Journal(errors::IDENTIFIER))].into();
                round_of(&mut self.errors, SiteErrors, &config.node, sources, stream, first)
            }
        }
    }

    fn stream(&mut self, config: &LogsConfig, stream: Stream, first: &SegmentName) -> anyhow::Result<()> {
        let Some(LogsShare { share, marker, .. }) = &config.share else { return Ok(()) };
        let opened = open(config, stream)?;
        let mut depot = NodeDepot { node: &config.node, local: Path::new(stream.local()), share: &opened };
        ship::round(&mut depot, &config.node, first, unix_us())?;
        let Some(grant) = config.merges_under else { return Ok(()) };
        let begin = Instant::now();
        loop {
            let reader = match self.directory.take() {
                Some(reader) => reader,
                None => Reader::open(Path::new(directory::PATH))?,
            };
            let mut storage = MergeStorage::new(&opened, share, &reader)?;
            let outcome = round::round(&mut storage, stream, Bounds::USUAL, grant, &config.nodes, unix_us())?;
            self.directory = Some(reader);
            for (site, why) in outcome.refused {
                self.status.refuse(stream, &site, why);
            }
            outcome.gaps.iter().for_each(|gap| tracing::warn!("{}", gap.trim_end()));
            if !outcome.has_more || begin.elapsed() > MERGING_MAX {
                self.has_more |= outcome.has_more;
                break;
            }
            // A share that was found wrong meanwhile gets no more.
            open(config, stream)?;
        }
        crate::traffic::hand_over(&opened, marker, stream)
    }
}

/// Lets the collector of a stream collect what is new; one for another node or reader begins anew.
fn round_of<R: collect::Reader + PartialEq>(
    collector: &mut Option<Collector<R>>,
    reader: R,
    node: &Name,
    sources: impl FnOnce() -> BTreeMap<String, Source>,
    stream: Stream,
    first: &SegmentName,
) -> anyhow::Result<()> {
    let collector = match collector {
        Some(collector) if collector.is_of(node, &reader) => collector,
        other => {
            let state = Path::new(STATE).join(stream.to_string());
            other.insert(Collector::new(node.clone(), reader, sources(), Path::new(stream.local()), &state))
        }
    };
    for _ in 0..PARTS_MAX {
        if !collector.round(first, unix_us())? {
            break;
        }
    }
    Ok(())
}

/// The share, if the guard vouches for it and it is the right one.
pub fn open(config: &LogsConfig, stream: Stream) -> anyhow::Result<LogShare> {
    let share = config.share.as_ref().context("the cluster has no share")?;
    if let Some(why) = guard_refusal(&share.share) {
        anyhow::bail!("share {}: {why}", share.share);
    }
    Ok(LogShare::open(share, stream)?)
}

/// The name of this boot's first segment.
pub fn first_segment() -> anyhow::Result<SegmentName> {
    let boot_id = facts::boot_id()?;
    SegmentName::first(&boot_id).with_context(|| format!("{boot_id:?} is no boot id"))
}

fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
