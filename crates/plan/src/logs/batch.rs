//! What a merger writes down: where it is ([`State`]) and what it is about to do ([`Journal`]).
//!
//! A batch is planned, its journal is made to last, then its lines are written at the places that the journal names, then the state
//! follows. Whoever finds a journal with a number above the state's carries it out again: the same bytes at the same places.

use super::date::rfc3339;
use super::merge::{Input, SiteLines, Traffic};
use super::segment::SegmentName;
use phalanx_model::{Name, Uid};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Where the state lies, below the logs' directory on the share.
pub const STATE: &str = "state.json";
/// Where the journal lies.
pub const JOURNAL: &str = "journal.json";
/// The directory of what was counted, a file for each batch until the panel has it.
pub const TRAFFIC: &str = "traffic";

/// Where a merger is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The last batch that was carried out.
    pub number: u64,
    /// The highest number of the grant under which one was planned.
    pub grant: u64,
    /// The time of the last line that is in order.
    pub merged_to_us: u64,
    /// How far segments were merged.
    pub segments: BTreeMap<Name, BTreeMap<SegmentName, Place>>,
}

/// How far a segment was merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// So many bytes of it.
    pub at: u64,
    /// Whether that is all.
    pub is_done: bool,
}

impl State {
    /// How far a segment was merged.
    pub fn place(&self, node: &Name, segment: &SegmentName) -> Place {
        self.segments.get(node).and_then(|segments| segments.get(segment)).copied().unwrap_or_default()
    }
}

/// A batch that is to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The state once it is.
    pub after: State,
    /// The parts of segments that are merged, up to where they are.
    pub inputs: Vec<Input>,
    /// The time up to which.
    pub closes_us: u64,
    /// The time of the last line in order before it.
    pub merged_to_us: u64,
    /// Segments that were cut off: their whole, to see whose lines they have.
    pub cut: Vec<Input>,
    /// Where lines go; those of sites that are not here go to the cluster's log, which is always the last.
    pub outputs: Vec<Output>,
}

/// One log that a batch writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Which.
    pub log: Log,
    /// Its length before.
    pub base: u64,
    /// The name that it is moved to first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<String>,
    /// Why it takes nothing; its lines are counted, and lost by whoever owns the place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A merged log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Log {
    /// A site's own, in its account's home.
    Site {
        /// The site.
        site: String,
        /// The account.
        account: Name,
        /// Who it is written as.
        uid: Uid,
    },
    /// What belongs to no site that is known, beside the segments.
    Cluster,
}

impl Log {
    /// The name of its site; `-` for the cluster's.
    pub fn name(&self) -> &str {
        match self {
            Self::Site { site, .. } => site,
            Self::Cluster => "-",
        }
    }
}

/// What a batch counted: one line of what goes to the panel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// By site and day (`2026-11-28`).
    pub sites: BTreeMap<String, BTreeMap<String, Traffic>>,
}

impl Counted {
    /// What these lines count; those without a site are passed over.
    pub fn of(sites: &[SiteLines]) -> Self {
        let mut counted = Self::default();
        for SiteLines { site, traffic, .. } in sites.iter().filter(|lines| lines.site != "-") {
            let days = counted.sites.entry(site.clone()).or_default();
            for (day, count) in traffic {
                days.entry(day.iso()).or_default().add(*count);
            }
        }
        counted
    }

    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        for (site, days) in &other.sites {
            let ours = self.sites.entry(site.clone()).or_default();
            for (day, count) in days {
                ours.entry(day.clone()).or_default().add(*count);
            }
        }
    }
}

/// What a share's batches counted, from one number to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedPart {
    /// All batches up to this number were counted before.
    pub after: u64,
    /// The last batch of this part.
    pub upto: u64,
    /// What they counted.
    pub counted: Counted,
}

/// The name of a batch's count.
pub fn traffic_file(number: u64) -> String {
    format!("{TRAFFIC}/{}", traffic_name(number))
}

/// As [`traffic_file`], without its directory. Names are in the order of numbers.
pub fn traffic_name(number: u64) -> String {
    format!("{number:020}.json")
}

/// The number that a name has.
pub fn traffic_number(name: &str) -> Option<u64> {
    name.strip_suffix(".json")?.parse().ok().filter(|number| traffic_name(*number) == name)
}

/// What a site's log gets of a batch: lines in order, the block of late ones, marks of gaps. Lines alone, as they mostly are, are not copied.
pub fn text_of<'l>(lines: Option<&'l SiteLines>, gaps: &str) -> Cow<'l, [u8]> {
    if let Some(SiteLines { ordered, late, .. }) = lines
        && late.is_empty()
        && gaps.is_empty()
    {
        return Cow::Borrowed(ordered);
    }
    let mut text = Vec::new();
    if let Some(SiteLines { ordered, late, late_lines, .. }) = lines {
        text.extend_from_slice(ordered);
        if !late.is_empty() {
            text.extend_from_slice(
                format!("# late: {late_lines} lines that came when later ones were here already\n").as_bytes(),
            );
            text.extend_from_slice(late);
            text.extend_from_slice(b"# end of late block\n");
        }
    }
    text.extend_from_slice(gaps.as_bytes());
    Cow::Owned(text)
}

/// What the cluster's log gets of a site's lines: each with the site before it.
pub fn text_of_unknown(lines: &SiteLines) -> Vec<u8> {
    let mut text = Vec::new();
    for line in text_of(Some(lines), "").split_inclusive(|byte| *byte == b'\n') {
        if !line.starts_with(b"#") {
            text.extend_from_slice(lines.site.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(line);
    }
    text
}

/// The mark of a segment that was cut off.
pub fn gap(cut: &Input, last_us: Option<u64>) -> String {
    let Input { node, segment, .. } = cut;
    let since = last_us.map_or_else(|| "its beginning".to_owned(), rfc3339);
    format!(
        "# gap: {node} stopped uncleanly (boot {}, segment {}); its lines since {since} may be missing\n",
        segment.boot(),
        segment.number()
    )
}
