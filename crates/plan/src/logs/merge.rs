//! One batch of lines: from several segments, by time of completion, sorted out by site.
//!
//! The same bytes between the same positions give the same result, whenever it is asked for: a batch that a crash interrupted is made
//! again from the segments. Memory is bounded by the batch ([`Limits`]) and a buffer for each segment.

use super::date::Day;
use super::line::{self, Counts, LEN_MAX};
use super::round::BYTES_MAX;
use super::segment::{END, SegmentName};
use phalanx_model::Name;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::ops::Range;

/// So much of a segment is read at once.
const CHUNK_LEN: usize = 256 * 1024;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Lines completed later than this stay for a later batch.
    pub closes_us: u64,
    /// All lines merged so far were completed at this time or earlier; those before it come late.
    pub merged_to_us: u64,
    /// The batch ends when it has so many bytes of lines.
    pub bytes_max: usize,
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

/// The lines of one site in a batch, as its log gets them.
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

/// Memory of former batches, for the next one: what is asked of the kernel anew each time costs more than to fill it.
#[derive(Debug, Default)]
pub struct Room(Vec<Vec<u8>>);

impl Room {
    /// Keeps the memory of a batch that was carried out, but no more than twice what a batch may have.
    pub fn keep(&mut self, gathered: Gathered) {
        self.0.extend(gathered.sites.into_iter().map(|lines| lines.ordered).filter(|text| text.capacity() > 0));
        let mut capacity = 0;
        self.0.retain_mut(|text| {
            text.clear();
            capacity += text.capacity();
            capacity <= 2 * BYTES_MAX
        });
        // The sites with the most lines come first in the next batch too, and find the largest at the end.
        self.0.sort_by_key(Vec::capacity);
    }
}

/// Merges `inputs` within `limits`. `read` appends at most so many bytes of an input, from an offset of its segment, to a buffer; it
/// must append at least one where there are some before the input's end.
///
/// # Errors
/// What `read` answers.
pub fn gather<E>(
    inputs: &[Input],
    limits: Limits,
    room: &mut Room,
    mut read: impl FnMut(&Input, u64, usize, &mut Vec<u8>) -> Result<(), E>,
) -> Result<Gathered, E> {
    let mut batch = Batch::new(limits.merged_to_us, room);
    let mut sources: Vec<Source<'_>> = inputs.iter().map(Source::new).collect();
    let mut heads = BinaryHeap::new();
    for index in 0..sources.len() {
        if index == 0 || !goes_on(&inputs[index - 1], &inputs[index]) {
            begin(&mut sources, index, &mut heads, &mut read, &mut batch.gathered.notes)?;
        }
    }
    let mut bytes = 0;
    'batch: while let Some(Reverse((_, index))) = heads.pop() {
        let next = heads.peek().map_or((u64::MAX, usize::MAX), |Reverse(next)| *next);
        let source = &mut sources[index];
        // As long as this one has the earliest, the others need not be asked.
        loop {
            if source.head.at_us > limits.closes_us {
                break 'batch;
            }
            if bytes >= limits.bytes_max {
                batch.gathered.is_full = true;
                break 'batch;
            }
            bytes += source.head.len;
            batch.take(source);
            if !source.advance(&mut read, &mut batch.gathered.notes)? {
                if inputs.get(index + 1).is_some_and(|next| goes_on(&inputs[index], next)) {
                    begin(&mut sources, index + 1, &mut heads, &mut read, &mut batch.gathered.notes)?;
                }
                break;
            }
            if (source.head.at_us, index) > next {
                heads.push(Reverse((source.head.at_us, index)));
                break;
            }
        }
    }
    let mut gathered = batch.gathered;
    gathered.positions = sources.iter().map(|source| source.offset).collect();
    gathered.ended = sources.iter().map(|source| source.ended).collect();
    Ok(gathered)
}

/// Whether `next` is the segment after `input`: its lines are later ones, so that it is read when `input` is at its end. Otherwise who has
/// much to catch up on would have the beginnings of all segments in memory.
fn goes_on(input: &Input, next: &Input) -> bool {
    input.node == next.node && input.segment.is_of_boot_of(&next.segment) && input.segment < next.segment
}

/// Looks for the first line of a source, or of the one that follows it where it has none.
fn begin<E>(
    sources: &mut [Source<'_>],
    index: usize,
    heads: &mut BinaryHeap<Reverse<(u64, usize)>>,
    read: &mut impl FnMut(&Input, u64, usize, &mut Vec<u8>) -> Result<(), E>,
    notes: &mut Vec<u8>,
) -> Result<(), E> {
    let mut index = index;
    loop {
        if sources[index].advance(read, notes)? {
            heads.push(Reverse((sources[index].head.at_us, index)));
            return Ok(());
        }
        match sources.get(index + 1) {
            Some(next) if goes_on(sources[index].input, next.input) => index += 1,
            _ => return Ok(()),
        }
    }
}

/// The sites that have lines in a whole segment, and the time of its last one.
///
/// # Errors
/// What `read` answers.
pub fn sites_of<E>(
    input: &Input,
    mut read: impl FnMut(&Input, u64, usize, &mut Vec<u8>) -> Result<(), E>,
) -> Result<(Vec<String>, Option<u64>), E> {
    let whole = Input { from: 0, ..input.clone() };
    let mut source = Source::new(&whole);
    let (mut sites, mut last_us) = (std::collections::BTreeSet::new(), None);
    let mut notes = Vec::new();
    while source.advance(&mut read, &mut notes)? {
        let site = &source.buffer[source.start..][source.head.site.clone()];
        if !sites.contains(site) {
            sites.insert(site.to_vec());
        }
        last_us = last_us.max(Some(source.head.at_us));
        notes.clear();
        source.pass();
    }
    Ok((sites.into_iter().map(|site| String::from_utf8_lossy(&site).into_owned()).collect(), last_us))
}

/// One input, with its next line at hand.
struct Source<'i> {
    input: &'i Input,
    buffer: Vec<u8>,
    /// Where in the buffer the next line begins, and the same in the segment.
    start: usize,
    offset: u64,
    head: Head,
    ended: bool,
    /// What tells its lines from others, but for the offset.
    identity: Vec<u8>,
}

/// A line that was looked at; ranges are relative to its beginning.
#[derive(Debug, Clone, Default)]
struct Head {
    at_us: u64,
    /// With its end.
    len: usize,
    counts: Counts,
    site: Range<usize>,
    sent: u64,
    received: u64,
    merged: Range<usize>,
}

impl<'i> Source<'i> {
    fn new(input: &'i Input) -> Self {
        let identity = format!(" {} ", input.segment.stem()).into_bytes();
        Self { input, buffer: Vec::new(), start: 0, offset: input.from, head: Head::default(), ended: false, identity }
    }

    /// Finds the next line of a request; notes on the way go to `notes`. False at the end of what there is.
    fn advance<E>(
        &mut self,
        read: &mut impl FnMut(&Input, u64, usize, &mut Vec<u8>) -> Result<(), E>,
        notes: &mut Vec<u8>,
    ) -> Result<bool, E> {
        let mut looked_at = 0;
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(found) = memchr::memchr(b'\n', &rest[looked_at..]) {
                let len = looked_at + found + 1;
                if let Some(head) = head_of(&rest[..len - 1]) {
                    self.head = head;
                    self.ended = false;
                    return Ok(true);
                }
                self.note(len, notes);
                looked_at = 0;
                continue;
            }
            let (rest_len, end) = (rest.len(), self.offset + rest.len() as u64);
            if rest_len >= LEN_MAX || (end >= self.input.until && self.input.is_closed && rest_len > 0) {
                self.note(rest_len, notes);
                looked_at = 0;
                continue;
            }
            if end >= self.input.until {
                return Ok(false);
            }
            looked_at = rest_len;
            self.buffer.drain(..self.start);
            self.start = 0;
            let wanted = usize::try_from(self.input.until - end).unwrap_or(usize::MAX).min(CHUNK_LEN);
            read(self.input, end, wanted, &mut self.buffer)?;
            if self.buffer.len() <= looked_at {
                return Ok(false);
            }
        }
    }

    /// Goes on to the next line.
    fn pass(&mut self) {
        self.start += self.head.len;
        self.offset += self.head.len as u64;
    }

    /// Notes what is no line of a request, and goes on.
    fn note(&mut self, len: usize, notes: &mut Vec<u8>) {
        const SHOWN_MAX: usize = 200;
        let bytes = &self.buffer[self.start..][..len];
        let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        self.ended = text == END.as_bytes();
        if !self.ended && !text.starts_with(b"# segment ") {
            let what = if text.starts_with(b"#") { "" } else { "not a line: " };
            let shown: String =
                text.iter().take(SHOWN_MAX).flat_map(|byte| byte.escape_ascii()).map(char::from).collect();
            let Input { node, segment, .. } = self.input;
            let note = format!("# {node} {} {}: {what}{shown}\n", segment.stem(), self.offset);
            notes.extend_from_slice(note.as_bytes());
        }
        self.start += len;
        self.offset += len as u64;
    }
}

fn head_of(line: &[u8]) -> Option<Head> {
    let found = line::parse(line)?;
    Some(Head {
        at_us: found.at_us,
        len: line.len() + 1,
        counts: found.counts,
        site: found.site_from..found.site_from + found.site.len(),
        sent: found.sent,
        received: found.received,
        merged: line.len() - found.merged.len()..line.len(),
    })
}

struct Batch<'r> {
    gathered: Gathered,
    room: &'r mut Room,
    by_name: HashMap<Vec<u8>, usize>,
    /// The sites seen last, by a few bits of their names: a look here is quicker than a hash that withstands chosen names.
    recent: Box<[u32; 1 << RECENT_BITS]>,
}

/// So many bits of a name tell where its site is at hand: room for more sites than a batch mostly has, and still in the processor's
/// nearest cache.
const RECENT_BITS: u32 = 11;

/// Some bits of a site's name, eight bytes at a time. Whoever chooses names so that they have the same ones makes them slower, nothing else.
fn bits_of(site: &[u8]) -> usize {
    // Bits from everywhere: 2^64 divided by the golden ratio.
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
    let (words, rest) = site.as_chunks::<8>();
    let rest = rest.iter().fold(site.len() as u64, |rest, byte| rest << 8 | u64::from(*byte));
    let bits = words.iter().fold(rest, |bits, word| (bits.wrapping_mul(SPREAD)) ^ u64::from_le_bytes(*word));
    (bits.wrapping_mul(SPREAD) >> (u64::BITS - RECENT_BITS)) as usize
}

impl<'r> Batch<'r> {
    fn new(merged_to_us: u64, room: &'r mut Room) -> Self {
        let gathered = Gathered { merged_to_us, ..Gathered::default() };
        Self { gathered, room, by_name: HashMap::new(), recent: Box::new([u32::MAX; 1 << RECENT_BITS]) }
    }

    /// Puts a source's next line where it belongs, and passes it.
    fn take(&mut self, source: &mut Source<'_>) {
        let Head { at_us, len: _, counts, site, sent, received, merged } = source.head.clone();
        let line = &source.buffer[source.start..];
        let mut index = self.index_of(&line[site]);
        let count = match counts {
            Counts::Request => Some(Traffic { requests: 1, sent, received, ..Traffic::default() }),
            Counts::Message => Some(Traffic { messages: 1, sent, received, ..Traffic::default() }),
            Counts::Bytes => Some(Traffic { sent, received, ..Traffic::default() }),
            Counts::Nothing => None,
        };
        if let Some(count) = count {
            self.gathered.sites[index].traffic.entry(Day::of_us(at_us)).or_default().add(count);
        }
        if matches!(counts, Counts::Message | Counts::Bytes) {
            // Mail has one log for all domains, in which their lines are in order.
            index = self.index_of(b"-");
        }
        let is_late = at_us < self.gathered.merged_to_us;
        let lines = &mut self.gathered.sites[index];
        let text = if is_late { &mut lines.late } else { &mut lines.ordered };
        text.reserve(merged.len() + source.identity.len() + NUMBER_LEN_MAX + 1);
        text.extend_from_slice(&line[merged]);
        text.extend_from_slice(&source.identity);
        push_number(text, source.offset);
        text.push(b'\n');
        lines.late_lines += u64::from(is_late);
        self.gathered.merged_to_us = self.gathered.merged_to_us.max(at_us);
        self.gathered.lines += 1;
        source.pass();
    }

    fn index_of(&mut self, site: &[u8]) -> usize {
        let bits = bits_of(site);
        let recent = self.recent[bits] as usize;
        if self.gathered.sites.get(recent).is_some_and(|lines| lines.site.as_bytes() == site) {
            return recent;
        }
        let index = match self.by_name.get(site) {
            Some(index) => *index,
            None => {
                let index = self.gathered.sites.len();
                let name = String::from_utf8_lossy(site).into_owned();
                let ordered = self.room.0.pop().unwrap_or_default();
                self.gathered.sites.push(SiteLines { site: name, ordered, ..SiteLines::default() });
                self.by_name.insert(site.to_vec(), index);
                index
            }
        };
        // No batch has as many sites as make it another's.
        self.recent[bits] = index as u32;
        index
    }
}

/// The digits of the highest number.
const NUMBER_LEN_MAX: usize = 20;

fn push_number(text: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; NUMBER_LEN_MAX];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests;
