//! A round of the merger: finish the batch that a crash interrupted, or see what can be merged and carry that out ([`super::carry`]).
//!
//! Every step can be the last one before a crash, and every error leaves things so that the next round goes on from there.

use super::batch::{JOURNAL, Journal, Log, Place, STATE, State};
use super::carry::Carrying;
use super::merge::{Gathered, Input, Limits, Pieces, gather};
use super::rotate::Seen;
use super::segment::SegmentName;
use super::ship::{HEARTBEAT, Heartbeat};
use super::stream::Stream;
use super::watermark::{Spoken, closes};
use phalanx_model::{Name, Uid};
use std::collections::{BTreeMap, BTreeSet};

/// How much a merger does at a time. What it needs of memory is at the worst five times `late_max` (late lines with the room that a growing
/// text has, the block that they become, and that once more with the site before each), what `pieces` have, and a buffer for each boot of each
/// node that it has lines of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// See [`Limits::bytes_max`].
    pub bytes_max: usize,
    /// See [`Limits::late_max`].
    pub late_max: usize,
    /// What is handed over.
    pub pieces: Pieces,
}

impl Bounds {
    /// What has shown to be good.
    pub const USUAL: Self = Self {
        bytes_max: 256 << 20,
        late_max: 16 << 20,
        // Of a few hundred sites all pieces have room in the processor's cache.
        pieces: Pieces { site: 32 << 10, all: 32 << 20 },
    };
}

/// So many segments are merged at once at most.
pub const INPUTS_MAX: usize = 4_096;

/// The share as a merger needs it. Names are relative to the logs' directory.
/// What fails is tried again by the next round.
pub trait Storage {
    /// Why something did not work.
    type Error;
    /// A small file; none where there is none.
    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, Self::Error>;
    /// Replaces a small file, whole and for good.
    fn set(&mut self, name: &str, content: &[u8]) -> Result<(), Self::Error>;
    /// The nodes that have a directory.
    fn nodes(&mut self) -> Result<Vec<Name>, Self::Error>;
    /// The segments of a node.
    fn segments(&mut self, node: &Name) -> Result<Vec<SegmentName>, Self::Error>;
    /// The length of a segment that is there.
    fn len(&mut self, node: &Name, segment: &SegmentName) -> Result<u64, Self::Error>;
    /// Appends at most `len` bytes of a segment from `offset` to `into`; at least one where it has them.
    fn read(&mut self, input: &Input, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), Self::Error>;
    /// The account of a site; none where there is no such site.
    fn owner(&mut self, site: &str) -> Result<Option<(Name, Uid)>, Self::Error>;
    /// A merged log; refused where something else has its place.
    fn look(&mut self, log: &Log) -> Result<Result<Seen, String>, Self::Error>;
    /// The names in its directory.
    fn beside(&mut self, log: &Log) -> Result<Result<Vec<String>, String>, Self::Error>;
    /// Moves a log aside, unless something has that name already, and removes the names that are outdated.
    fn move_aside(&mut self, log: &Log, name: &str) -> Result<Result<(), String>, Self::Error>;
    /// Writes to a log at `at`, or at its end where that is before; for good no sooner than [`Self::settle`].
    fn write(&mut self, log: &Log, at: u64, bytes: &[u8]) -> Result<Result<(), String>, Self::Error>;
    /// Waits until all that was written is there for good; answers the logs that took it not after all, and why.
    fn settle(&mut self) -> Result<Vec<(Log, String)>, Self::Error>;
}

/// Why a round came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoundError<E> {
    /// The storage's words.
    #[error("{0}")]
    Storage(E),
    /// A file is not what a merger writes.
    #[error("{file} can't be read: {why}")]
    Damaged {
        /// Which.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// Another node has merged under a higher number.
    #[error("the grant to merge has number {seen}, this node has {own}")]
    NotTheHolder {
        /// The one that was seen.
        seen: u64,
        /// This node's.
        own: u64,
    },
}

impl<E> From<E> for RoundError<E> {
    fn from(error: E) -> Self {
        Self::Storage(error)
    }
}

/// What a round came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Lines of requests that were merged.
    pub lines: u64,
    /// Logs that took nothing, and why.
    pub refused: Vec<(String, String)>,
    /// Marks of gaps.
    pub gaps: Vec<String>,
    /// Whether there is more to merge right now.
    pub has_more: bool,
    /// The time up to which all is merged, in microseconds since 1970.
    pub closes_us: u64,
    /// The last batch.
    pub number: u64,
}

/// One round of a stream under the grant of number `grant`; `nodes` are those that should speak.
///
/// # Errors
/// The storage fails, holds something damaged, or the grant is another's. Nothing is lost: the next round goes on.
pub fn round<S: Storage>(
    storage: &mut S,
    stream: Stream,
    bounds: Bounds,
    grant: u64,
    nodes: &BTreeSet<Name>,
    now_us: u64,
) -> Result<Outcome, RoundError<S::Error>> {
    let state: State = read(storage, STATE)?.unwrap_or_default();
    if state.grant > grant {
        return Err(RoundError::NotTheHolder { seen: state.grant, own: grant });
    }
    let view = View::of(storage, &state)?;
    let pending: Option<Journal> = read(storage, JOURNAL)?;
    let (journal, is_new) = match pending.filter(|journal| journal.number > state.number) {
        Some(journal) if journal.grant > grant => {
            return Err(RoundError::NotTheHolder { seen: journal.grant, own: grant });
        }
        Some(journal) => (Journal { grant, ..journal }, false),
        None => {
            let spoken = nodes.iter().filter_map(|node| view.heartbeats.get(node));
            let closes_us = closes(spoken.map(|beat| Spoken { complete_to_us: beat.complete_to_us }), now_us);
            let Bounds { bytes_max, late_max, pieces: _ } = bounds;
            let limits = Limits { closes_us, merged_to_us: state.merged_to_us, bytes_max, late_max };
            let (inputs, number) = (view.inputs(storage, &state)?, state.number + 1);
            let (outputs, strangers) = (vec![], BTreeSet::new());
            (Journal { number, grant, inputs, limits, outputs, strangers }, true)
        }
    };
    let (inputs, limits) = (journal.inputs.clone(), journal.limits);
    let mut carrying = Carrying::new(storage, stream, journal, is_new, now_us);
    let gathered = gather(&inputs, limits, bounds.pieces, &mut carrying)?;
    match after(&state, carrying.journal(), &gathered, &view) {
        Some((after, cut)) => carrying.finish(gathered, &after, &cut),
        None => Ok(Outcome { closes_us: limits.closes_us, number: state.number, ..Outcome::default() }),
    }
}

/// What lies on the share.
struct View {
    heartbeats: BTreeMap<Name, Heartbeat>,
    segments: BTreeMap<Name, BTreeSet<SegmentName>>,
}

impl View {
    fn of<S: Storage>(storage: &mut S, state: &State) -> Result<Self, RoundError<S::Error>> {
        let mut nodes: BTreeSet<Name> = storage.nodes()?.into_iter().collect();
        nodes.extend(state.segments.keys().cloned());
        let (mut heartbeats, mut segments) = (BTreeMap::new(), BTreeMap::new());
        for node in nodes {
            // The heartbeat last: it names what lies there, since segments are announced before they are shipped.
            segments.insert(node.clone(), storage.segments(&node)?.into_iter().collect());
            if let Some(heartbeat) = read(storage, &format!("{node}/{HEARTBEAT}"))? {
                heartbeats.insert(node.clone(), heartbeat);
            }
        }
        Ok(Self { heartbeats, segments })
    }

    /// What can be read and was not merged, by node, boot and number.
    fn inputs<S: Storage>(&self, storage: &mut S, state: &State) -> Result<Vec<Input>, S::Error> {
        let mut inputs = Vec::new();
        let all = self.segments.iter().flat_map(|(node, names)| names.iter().map(move |name| (node, name)));
        for (node, name) in all {
            let Place { at: from, is_done } = state.place(node, name);
            // Whose node has never spoken may still be written to.
            let Some(beat) = self.heartbeats.get(node).filter(|_| !is_done) else { continue };
            let (until, is_closed) = match beat.segments.get(name) {
                Some(shipped) => (shipped.len, shipped.is_closed),
                // Its node no longer has it: it is at its end.
                None => (storage.len(node, name)?, true),
            };
            if (from < until || is_closed) && inputs.len() < INPUTS_MAX {
                inputs.push(Input { node: node.clone(), segment: name.clone(), from, until, is_closed });
            }
        }
        Ok(inputs)
    }

    /// Whether a segment is neither on the share nor on its node any more.
    fn is_gone(&self, node: &Name, name: &SegmentName) -> bool {
        let on_share = self.segments.get(node).is_some_and(|found| found.contains(name));
        let on_node = self.heartbeats.get(node).is_none_or(|beat| beat.segments.contains_key(name));
        !on_share && !on_node
    }
}

/// The state once a batch is carried out, and the segments that were cut off; none where there is nothing to do.
fn after(state: &State, journal: &Journal, gathered: &Gathered, view: &View) -> Option<(State, Vec<Input>)> {
    let Journal { number, grant, .. } = *journal;
    let mut after = State { number, grant, merged_to_us: gathered.merged_to_us, ..state.clone() };
    let (mut cut, mut goes_on) = (vec![], false);
    for (index, input) in journal.inputs.iter().enumerate() {
        let (at, ended) = (gathered.positions[index], gathered.ended[index]);
        let is_at_end = input.is_closed && at >= input.until;
        if is_at_end && !ended {
            cut.push(Input { from: 0, until: at, ..input.clone() });
        }
        let place = Place { at, is_done: is_at_end || ended };
        let before = after.segments.entry(input.node.clone()).or_default().insert(input.segment.clone(), place);
        goes_on |= before.unwrap_or_default() != place;
    }
    if !goes_on {
        return None;
    }
    for (node, segments) in &mut after.segments {
        segments.retain(|name, place| !(place.is_done && view.is_gone(node, name)));
    }
    after.segments.retain(|_, segments| !segments.is_empty());
    Some((after, cut))
}

fn read<S: Storage, T: serde::de::DeserializeOwned>(
    storage: &mut S,
    file: &str,
) -> Result<Option<T>, RoundError<S::Error>> {
    let Some(bytes) = storage.get(file)? else { return Ok(None) };
    let damaged = |error: serde_json::Error| RoundError::Damaged { file: file.to_owned(), why: error.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}
