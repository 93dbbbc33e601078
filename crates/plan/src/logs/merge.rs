//! One batch of lines: from several segments, by time of completion, sorted out by site.
//!
//! Lines are handed over ([`Medium`]) as soon as a site has a piece of them, while they are in the processor's cache. The same bytes within the
//! same [`Limits`] give the same lines, whenever it is asked for: a batch that a crash interrupted is made again from the segments. Memory is
//! bounded by [`Pieces`], by what comes late ([`Limits::late_max`]), and by a buffer for each segment.

mod numbers;
mod source;

use super::date::Day;
use super::line::Counts;
use super::segment::SegmentName;
use numbers::Numbers;
use phalanx_model::Name;
use serde::{Deserialize, Serialize};
use source::{Head, Source};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// A segment's part that was not merged yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Whose it is.
    pub node: Name,
    /// The segment.
    pub segment: SegmentName,
    /// Where the part begins: at a line's beginning.
    pub from: u64,
    /// Where it ends, at most.
    pub until: u64,
    /// Whether the segment ends there for good.
    pub is_closed: bool,
}

/// How far a batch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Lines completed later than this stay for a later batch.
    pub closes_us: u64,
    /// All lines merged so far were completed at this time or earlier; those before it come late.
    pub merged_to_us: u64,
    /// The batch ends when it has so many bytes of lines.
    pub bytes_max: usize,
    /// It also ends when so many bytes of it are late, or notes: these wait for its end in memory.
    pub late_max: usize,
}

/// How much waits in memory to be handed over. It changes when that happens, not what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// Bytes of one site.
    pub site: usize,
    /// Bytes of memory for all sites.
    pub all: usize,
}

/// Where a batch comes from and where it goes.
pub trait Medium {
    /// Why something did not work.
    type Error;
    /// Appends at most `len` bytes of an input, from an offset of its segment, to `into`; at least one where there are some before the
    /// input's end.
    fn read(&mut self, input: &Input, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), Self::Error>;
    /// Takes the ordered lines of these sites; `all` are the batch's sites so far.
    fn take(&mut self, all: &[SiteLines], these: std::ops::Range<usize>) -> Result<(), Self::Error>;
}

/// What was counted of a site on a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests.
    pub requests: u64,
    /// Messages of mail that were received or handed in.
    #[serde(default)]
    pub messages: u64,
    /// Bytes sent, heads included.
    pub sent: u64,
    /// Bytes received, heads included.
    pub received: u64,
}

impl Traffic {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        let Self { requests, messages, sent, received } = other;
        self.requests = self.requests.saturating_add(requests);
        self.messages = self.messages.saturating_add(messages);
        self.sent = self.sent.saturating_add(sent);
        self.received = self.received.saturating_add(received);
    }
}

/// The lines of one site in a batch, as its log gets them: those that were not handed over yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteLines {
    /// The site's name as it stands in the lines.
    pub site: String,
    /// Lines in order.
    pub ordered: Vec<u8>,
    /// Lines that come too late for their place.
    pub late: Vec<u8>,
    /// How many those are.
    pub late_lines: u64,
    /// What was counted, by day.
    pub traffic: BTreeMap<Day, Traffic>,
}

impl SiteLines {
    fn count(&mut self, day: Day, count: Traffic) {
        if count != Traffic::default() {
            self.traffic.entry(day).or_default().add(count);
        }
    }
}

/// A batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gathered {
    /// By site, in the order in which they appear first.
    pub sites: Vec<SiteLines>,
    /// What is no line of a request: notes of proxies, and what can't be read; each a line that begins with `#`.
    pub notes: Vec<u8>,
    /// How far each input was taken.
    pub positions: Vec<u64>,
    /// Whether each input's last line was the one that ends it.
    pub ended: Vec<bool>,
    /// The time of the last line that is in order.
    pub merged_to_us: u64,
    /// Lines of requests.
    pub lines: u64,
    /// Whether it ended because it has as many bytes as it may.
    pub is_full: bool,
}

/// Merges `inputs` within `limits`. What is in order and still in the result was not handed over.
///
/// # Errors
/// The medium's.
pub fn gather<M: Medium>(
    inputs: &[Input],
    limits: Limits,
    pieces: Pieces,
    medium: &mut M,
) -> Result<Gathered, M::Error> {
    let mut batch = Batch::new(limits.merged_to_us, pieces);
    let mut sources: Vec<Source<'_>> = inputs.iter().map(Source::new).collect();
    let mut heads = BinaryHeap::new();
    for index in 0..sources.len() {
        if index == 0 || !goes_on(&inputs[index - 1], &inputs[index]) {
            begin(&mut sources, index, &mut heads, medium, &mut batch.gathered.notes)?;
        }
    }
    let mut bytes = 0;
    'batch: while let Some(Reverse((_, mut index))) = heads.pop() {
        let mut next = heads.peek().map_or(LAST, |Reverse(next)| *next);
        loop {
            let source = &mut sources[index];
            if source.head.at_us > limits.closes_us {
                break 'batch;
            }
            if bytes >= limits.bytes_max || batch.late + batch.gathered.notes.len() >= limits.late_max {
                batch.gathered.is_full = true;
                break 'batch;
            }
            bytes += source.head.len;
            batch.take(source, medium)?;
            if !source.advance(medium, &mut batch.gathered.notes)? {
                if inputs.get(index + 1).is_some_and(|next| goes_on(&inputs[index], next)) {
                    begin(&mut sources, index + 1, &mut heads, medium, &mut batch.gathered.notes)?;
                }
                break;
            }
            // As long as this one has the earliest, the others need not be asked.
            if (source.head.at_us, index) > next {
                if let Some(mut first) = heads.peek_mut() {
                    let later = Reverse((source.head.at_us, index));
                    Reverse((_, index)) = std::mem::replace(&mut *first, later);
                }
                next = heads.peek().map_or(LAST, |Reverse(next)| *next);
            }
        }
    }
    let mut gathered = batch.end();
    gathered.positions = sources.iter().map(Source::offset).collect();
    gathered.ended = sources.iter().map(Source::has_ended).collect();
    Ok(gathered)
}

/// After all heads.
const LAST: (u64, usize) = (u64::MAX, usize::MAX);

/// Whether `next` is the segment after `input`: its lines are later ones, so that it is read when `input` is at its end. Otherwise who has
/// much to catch up on would have the beginnings of all segments in memory.
fn goes_on(input: &Input, next: &Input) -> bool {
    input.node == next.node && input.segment.is_of_boot_of(&next.segment) && input.segment < next.segment
}

/// Looks for the first line of a source, or of the one that follows it where it has none.
fn begin<M: Medium>(
    sources: &mut [Source<'_>],
    index: usize,
    heads: &mut BinaryHeap<Reverse<(u64, usize)>>,
    medium: &mut M,
    notes: &mut Vec<u8>,
) -> Result<(), M::Error> {
    let mut index = index;
    loop {
        if sources[index].advance(medium, notes)? {
            heads.push(Reverse((sources[index].head.at_us, index)));
            return Ok(());
        }
        match sources.get(index + 1) {
            Some(next) if goes_on(sources[index].input(), next.input()) => index += 1,
            _ => return Ok(()),
        }
    }
}

/// The sites that have lines in a whole segment, and the time of its last one.
///
/// # Errors
/// The medium's.
pub fn sites_of<M: Medium>(input: &Input, medium: &mut M) -> Result<(BTreeSet<String>, Option<u64>), M::Error> {
    let whole = Input { from: 0, ..input.clone() };
    let mut source = Source::new(&whole);
    let (mut sites, mut last_us) = (BTreeSet::new(), None);
    let mut notes = Vec::new();
    while source.advance(medium, &mut notes)? {
        let site = source.site();
        if !sites.contains(site) {
            sites.insert(site.to_vec());
        }
        last_us = last_us.max(Some(source.head.at_us));
        notes.clear();
        source.pass();
    }
    Ok((sites.into_iter().map(|site| String::from_utf8_lossy(&site).into_owned()).collect(), last_us))
}

struct Batch {
    gathered: Gathered,
    pieces: Pieces,
    /// Memory that ordered lines have, and bytes of late ones.
    held: usize,
    late: usize,
    /// What was counted of each site on the day of its last line.
    today: Vec<(Day, Traffic)>,
    numbers: Numbers,
}

impl Batch {
    fn new(merged_to_us: u64, pieces: Pieces) -> Self {
        let gathered = Gathered { merged_to_us, ..Gathered::default() };
        Self { gathered, pieces, held: 0, late: 0, today: vec![], numbers: Numbers::new() }
    }

    /// What it came to.
    fn end(self) -> Gathered {
        let Self { mut gathered, today, .. } = self;
        for (lines, (day, count)) in gathered.sites.iter_mut().zip(today) {
            lines.count(day, count);
        }
        gathered
    }

    /// Puts a source's next line where it belongs, passes it, and hands over what is a piece by then.
    fn take<M: Medium>(&mut self, source: &mut Source<'_>, medium: &mut M) -> Result<(), M::Error> {
        let Head { at_us, counts, sent, received, .. } = source.head;
        let mut index = self.index_of(source.site());
        let count = match counts {
            Counts::Request => Some(Traffic { requests: 1, sent, received, ..Traffic::default() }),
            Counts::Message => Some(Traffic { messages: 1, sent, received, ..Traffic::default() }),
            Counts::Bytes => Some(Traffic { sent, received, ..Traffic::default() }),
            Counts::Nothing => None,
        };
        if let Some(count) = count {
            let (day, today) = &mut self.today[index];
            let day_of_line = Day::of_us(at_us);
            if *day != day_of_line {
                let day_before = std::mem::replace(day, day_of_line);
                self.gathered.sites[index].count(day_before, std::mem::take(today));
            }
            today.add(count);
        }
        if matches!(counts, Counts::Message | Counts::Bytes) {
            // Mail has one log for all domains, in which their lines are in order.
            index = self.index_of(b"-");
        }
        let lines = &mut self.gathered.sites[index];
        if at_us < self.gathered.merged_to_us {
            let len_before = lines.late.len();
            source.append_to(&mut lines.late);
            self.late += lines.late.len() - len_before;
            lines.late_lines += 1;
        } else {
            let held_before = lines.ordered.capacity();
            source.append_to(&mut lines.ordered);
            self.held += lines.ordered.capacity() - held_before;
            self.gathered.merged_to_us = at_us;
        }
        self.gathered.lines += 1;
        source.pass();
        self.hand_over(index, medium)
    }

    fn hand_over<M: Medium>(&mut self, index: usize, medium: &mut M) -> Result<(), M::Error> {
        let sites = &mut self.gathered.sites;
        if self.held > self.pieces.all {
            // Many sites with few lines each, or many that had many: their memory is given back, too.
            medium.take(sites, 0..sites.len())?;
            sites.iter_mut().for_each(|lines| lines.ordered = Vec::new());
            self.held = 0;
        } else if sites[index].ordered.len() >= self.pieces.site {
            medium.take(sites, index..index + 1)?;
            sites[index].ordered.clear();
        }
        Ok(())
    }

    fn index_of(&mut self, site: &[u8]) -> usize {
        let (index, is_new) = self.numbers.of(site);
        if is_new {
            let site = String::from_utf8_lossy(site).into_owned();
            self.gathered.sites.push(SiteLines { site, ..SiteLines::default() });
            self.today.push((Day(0), Traffic::default()));
        }
        index
    }
}

#[cfg(test)]
mod tests;
