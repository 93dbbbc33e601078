//! What a merger writes down: where it is ([`State`]) and what it is about to do ([`Journal`]).
//!
//! Before a line is written to a log, the journal says how far the batch may go and where in that log its lines begin, and is made to last;
//! logs that turn up later are added to it before anything is written there. When all lines are, the state follows. Whoever finds a journal with a number
//! above the state's carries it out again: the same bytes at the same places.

use super::date::rfc3339;
use super::merge::{Input, Limits, SiteLines, Traffic};
use super::segment::SegmentName;
use phalanx_model::{Name, Uid};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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

/// A batch that is being carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Its number, one more than the state's.
    pub number: u64,
    /// The number of the grant under which it was begun.
    pub grant: u64,
    /// The parts of segments that it may take.
    pub inputs: Vec<Input>,
    /// How far it goes within them.
    pub limits: Limits,
    /// Where lines go. The cluster's log comes first.
    pub outputs: Vec<Output>,
    /// Sites that had no owner when they were asked for; their lines go to the cluster's log, whatever becomes of them meanwhile.
    pub strangers: BTreeSet<String>,
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// What a log gets of lines that came late; nothing where there are none.
pub fn late_block(lines: &SiteLines) -> Vec<u8> {
    let SiteLines { late, late_lines, .. } = lines;
    if late.is_empty() {
        return Vec::new();
    }
    let mut text = format!("# late: {late_lines} lines that came when later ones were here already\n").into_bytes();
    text.extend_from_slice(late);
    text.extend_from_slice(b"# end of late block\n");
    text
}

/// What the cluster's log gets of a site's text: each line with the site before it.
pub fn of_stranger(site: &str, text: &[u8]) -> Vec<u8> {
    let mut of_site = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if !line.starts_with(b"#") {
            of_site.extend_from_slice(site.as_bytes());
            of_site.push(b' ');
        }
        of_site.extend_from_slice(line);
    }
    of_site
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
