//! A round of the merger: finish the batch that a crash interrupted, see what can be merged, write it down, carry it out.
//!
//! Every step can be the last one before a crash, and every error leaves things so that the next round goes on from there.

use super::batch::{
    Counted, JOURNAL, Journal, Log, Output, Place, STATE, State, gap, text_of, text_of_unknown, traffic_file,
};
use super::merge::{Gathered, Input, Limits, Room, gather, sites_of};
use super::rotate::{self, Seen};
use super::segment::SegmentName;
use super::ship::{HEARTBEAT, Heartbeat};
use super::stream::Stream;
use super::watermark::{Spoken, closes};
use phalanx_model::{Name, Uid};
use std::collections::{BTreeMap, BTreeSet};

/// A batch has so many bytes of lines at most. What a merger needs of memory is seven times this at the worst (four for lines and the room that is kept
/// of the batch before, three for what is late or of no known site), and a buffer for each boot of each node that it has lines of.
pub const BYTES_MAX: usize = 32 << 20;
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
    /// Writes to a log at `base`, or at its end where that is before; for good no sooner than [`Self::settle`].
    fn write(&mut self, log: &Log, base: u64, bytes: &[u8]) -> Result<Result<(), String>, Self::Error>;
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

/// One round of a stream under the grant of number `grant`; `nodes` are those that should speak, `room` is memory of former rounds.
///
/// # Errors
/// The storage fails, holds something damaged, or the grant is another's. Nothing is lost: the next round goes on.
pub fn round<S: Storage>(
    storage: &mut S,
    stream: Stream,
    room: &mut Room,
    grant: u64,
    nodes: &BTreeSet<Name>,
    now_us: u64,
) -> Result<Outcome, RoundError<S::Error>> {
    let state: State = read(storage, STATE)?.unwrap_or_default();
    if state.grant > grant {
        return Err(RoundError::NotTheHolder { seen: state.grant, own: grant });
    }
    let pending: Option<Journal> = read(storage, JOURNAL)?;
    if let Some(journal) = pending.filter(|journal| journal.after.number > state.number) {
        let limits = limits_of(&journal);
        let gathered =
            gather(&journal.inputs, limits, room, |input, offset, len, into| storage.read(input, offset, len, into))?;
        return carry_out(storage, stream, &journal, &gathered);
    }
    let view = View::of(storage, &state)?;
    let spoken = nodes.iter().filter_map(|node| view.heartbeats.get(node));
    let closes_us = closes(spoken.map(|beat| Spoken { complete_to_us: beat.complete_to_us }), now_us);
    let inputs = view.inputs(storage, &state)?;
    let limits = Limits { closes_us, merged_to_us: state.merged_to_us, bytes_max: BYTES_MAX };
    let gathered = gather(&inputs, limits, room, |input, offset, len, into| storage.read(input, offset, len, into))?;
    let Some(mut journal) = plan(state.clone(), inputs, &gathered, limits, grant, &view) else {
        return Ok(Outcome { closes_us, number: state.number, ..Outcome::default() });
    };
    journal.outputs = outputs(storage, stream, &journal, &gathered, now_us)?;
    write(storage, JOURNAL, &journal)?;
    let outcome = carry_out(storage, stream, &journal, &gathered)?;
    let has_more = gathered.is_full;
    room.keep(gathered);
    Ok(Outcome { has_more, ..outcome })
}

/// A journal's batch ends where it ended.
fn limits_of(journal: &Journal) -> Limits {
    Limits { closes_us: journal.closes_us, merged_to_us: journal.merged_to_us, bytes_max: usize::MAX }
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

/// The batch that `gathered` makes of `inputs`; none where there is nothing to do.
fn plan(
    state: State,
    inputs: Vec<Input>,
    gathered: &Gathered,
    limits: Limits,
    grant: u64,
    view: &View,
) -> Option<Journal> {
    let mut after = State { number: state.number + 1, grant, merged_to_us: gathered.merged_to_us, ..state.clone() };
    let (mut parts, mut cut) = (vec![], vec![]);
    for (index, input) in inputs.into_iter().enumerate() {
        let (at, ended) = (gathered.positions[index], gathered.ended[index]);
        let is_at_end = input.is_closed && at >= input.until;
        if is_at_end && !ended {
            cut.push(Input { from: 0, until: at, ..input.clone() });
        }
        let place = Place { at, is_done: is_at_end || ended };
        let before = after.segments.entry(input.node.clone()).or_default().insert(input.segment.clone(), place);
        if before.unwrap_or_default() != place {
            parts.push(Input { until: at, is_closed: is_at_end, ..input });
        }
    }
    if parts.is_empty() {
        return None;
    }
    for (node, segments) in &mut after.segments {
        segments.retain(|name, place| !(place.is_done && view.is_gone(node, name)));
    }
    after.segments.retain(|_, segments| !segments.is_empty());
    let Limits { closes_us, merged_to_us, bytes_max: _ } = limits;
    Some(Journal { after, inputs: parts, closes_us, merged_to_us, cut, outputs: vec![] })
}

/// Where a batch's lines go, and how long those logs are.
fn outputs<S: Storage>(
    storage: &mut S,
    stream: Stream,
    journal: &Journal,
    gathered: &Gathered,
    now_us: u64,
) -> Result<Vec<Output>, RoundError<S::Error>> {
    if !stream.is_by_site() {
        return Ok(vec![output(storage, stream, Log::Cluster, now_us)?]);
    }
    let mut sites: BTreeSet<String> = gathered.sites.iter().map(|lines| lines.site.clone()).collect();
    for cut in &journal.cut {
        sites.extend(sites_of(cut, |input, offset, len, into| storage.read(input, offset, len, into))?.0);
    }
    let mut outputs = Vec::new();
    for site in sites.into_iter().filter(|site| site != "-") {
        if let Some((account, uid)) = storage.owner(&site)? {
            outputs.push(output(storage, stream, Log::Site { site, account, uid }, now_us)?);
        }
    }
    outputs.push(output(storage, stream, Log::Cluster, now_us)?);
    Ok(outputs)
}

fn output<S: Storage>(storage: &mut S, stream: Stream, log: Log, now_us: u64) -> Result<Output, RoundError<S::Error>> {
    let looked = match storage.look(&log)? {
        Ok(seen) if rotate::is_due(seen, now_us) => {
            storage.beside(&log)?.map(|others| (0, Some(rotate::name(stream.file(), seen, &others))))
        }
        looked => looked.map(|seen| (seen.len, None)),
    };
    Ok(match looked {
        Ok((base, aside)) => Output { log, base, aside, refused: None },
        Err(why) => Output { log, base: 0, aside: None, refused: Some(why) },
    })
}

/// Writes a batch's lines where its journal says, what it counted, and then the state.
fn carry_out<S: Storage>(
    storage: &mut S,
    stream: Stream,
    journal: &Journal,
    gathered: &Gathered,
) -> Result<Outcome, RoundError<S::Error>> {
    let gaps = gaps(storage, journal)?;
    let mut unknown = gathered.notes.clone();
    let mut refused = Vec::new();
    let mut by_site: BTreeMap<&str, &super::merge::SiteLines> =
        gathered.sites.iter().map(|lines| (lines.site.as_str(), lines)).collect();
    for output in &journal.outputs {
        let text = match &output.log {
            Log::Site { site, .. } => {
                let marks: String =
                    gaps.iter().filter(|gap| gap.sites.contains(site)).map(|gap| gap.mark.as_str()).collect();
                text_of(by_site.remove(site.as_str()), &marks)
            }
            Log::Cluster => {
                for lines in by_site.values() {
                    match stream.is_by_site() {
                        true => unknown.extend(text_of_unknown(lines)),
                        false => unknown.extend_from_slice(&text_of(Some(lines), "")),
                    }
                }
                gaps.iter().for_each(|gap| unknown.extend_from_slice(gap.mark.as_bytes()));
                std::mem::take(&mut unknown).into()
            }
        };
        if let Err(why) = put(storage, output, &text)? {
            refused.push((output.log.clone(), why));
        }
    }
    // All logs first, and then one wait for all: a disk makes one way of it.
    refused.extend(storage.settle()?);
    let number = journal.after.number;
    let counted = Counted::of(&gathered.sites);
    if !counted.sites.is_empty() {
        write(storage, &traffic_file(number), &counted)?;
    }
    write(storage, STATE, &journal.after)?;
    let gaps = gaps.into_iter().map(|gap| gap.mark).collect();
    let refused = refused.into_iter().map(|(log, why)| (log.name().to_owned(), why)).collect();
    Ok(Outcome { lines: gathered.lines, refused, gaps, has_more: false, closes_us: journal.closes_us, number })
}

struct Gap {
    mark: String,
    sites: BTreeSet<String>,
}

fn gaps<S: Storage>(storage: &mut S, journal: &Journal) -> Result<Vec<Gap>, RoundError<S::Error>> {
    let mut gaps = Vec::new();
    for cut in &journal.cut {
        let (sites, last_us) = sites_of(cut, |input, offset, len, into| storage.read(input, offset, len, into))?;
        gaps.push(Gap { mark: gap(cut, last_us), sites: sites.into_iter().collect() });
    }
    Ok(gaps)
}

fn put<S: Storage>(storage: &mut S, output: &Output, text: &[u8]) -> Result<Result<(), String>, RoundError<S::Error>> {
    let Output { log, base, aside, refused } = output;
    if let Some(why) = refused {
        return Ok(Err(why.clone()));
    }
    if text.is_empty() {
        return Ok(Ok(()));
    }
    if let Some(aside) = aside
        && let Err(why) = storage.move_aside(log, aside)?
    {
        return Ok(Err(why));
    }
    Ok(storage.write(log, *base, text)?)
}

fn read<S: Storage, T: serde::de::DeserializeOwned>(
    storage: &mut S,
    file: &str,
) -> Result<Option<T>, RoundError<S::Error>> {
    let Some(bytes) = storage.get(file)? else { return Ok(None) };
    let damaged = |error: serde_json::Error| RoundError::Damaged { file: file.to_owned(), why: error.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

fn write<S: Storage>(storage: &mut S, file: &str, value: &impl serde::Serialize) -> Result<(), RoundError<S::Error>> {
    let text = serde_json::to_vec(value).expect("plain data with text keys");
    Ok(storage.set(file, &text)?)
}
