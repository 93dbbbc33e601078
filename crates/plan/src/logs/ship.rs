//! What the shipper of a node does: copy what the share has not, say how far it is, remove what is merged.
//!
//! A byte is written to the place that it has in the segment, so that to copy it twice is to copy it once. What counts as shipped is what
//! was synced, as the last heartbeat has it: the length of the share's file says nothing after a crash, since a network file system may
//! write later pages before earlier ones.

use super::batch::{STATE, State};
use super::segment::SegmentName;
use phalanx_model::Name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// So many bytes are shipped between two heartbeats.
const ROUND_BYTES_MAX: u64 = 64 << 20;

/// The name of a node's heartbeat, in its directory.
pub const HEARTBEAT: &str = "heartbeat.json";

/// Lines reach their segment within a tenth of a second; more than this, and they come late.
pub const SETTLE_US: u64 = 500_000;

/// Segments that are merged are kept for so long, for a person to look at.
pub const KEPT_US: u64 = 86_400_000_000;
/// All segments of a node together have so many bytes at most: the oldest go first, merged ones before others.
pub const LOCAL_BYTES_MAX: u64 = 4 << 30;

/// What a node says of its segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts how often it was said, so that silence is seen.
    pub number: u64,
    /// All lines that were completed before this are shipped: microseconds since 1970 by the node's clock.
    pub complete_to_us: u64,
    /// The segments that the node has.
    pub segments: BTreeMap<SegmentName, Shipped>,
}

/// How far a segment was shipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// So many bytes are on the share for good.
    pub len: u64,
    /// Whether that is all, and nothing more will come.
    pub is_closed: bool,
}

/// A segment on the node's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub name: SegmentName,
    /// Its length.
    pub len: u64,
    /// When it was last written to, in microseconds since 1970.
    pub written_us: u64,
}

/// A node's disk and the share as a shipper needs them. What fails is tried again by the next round.
pub trait Depot {
    /// Why something did not work.
    type Error;
    /// The segments on the node's disk. Their names are listed before their lengths are looked at, so that one that has a successor in
    /// the list has all its bytes.
    fn locals(&mut self) -> Result<Vec<Local>, Self::Error>;
    /// The segments of this node on the share.
    fn shipped(&mut self) -> Result<Vec<SegmentName>, Self::Error>;
    /// A small file on the share; none where there is none.
    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, Self::Error>;
    /// Replaces a small file on the share, whole and for good.
    fn set(&mut self, name: &str, content: &[u8]) -> Result<(), Self::Error>;
    /// Copies a part of a segment to the same place on the share, for good.
    fn copy(&mut self, name: &SegmentName, part: Range<u64>) -> Result<(), Self::Error>;
    /// Removes a segment from the node's disk.
    fn remove_local(&mut self, name: &SegmentName) -> Result<(), Self::Error>;
    /// Removes a segment from the share.
    fn remove_shipped(&mut self, name: &SegmentName) -> Result<(), Self::Error>;
}

/// One round of a shipper. `present` is the name of the first segment of this boot. Returns what was said.
///
/// # Errors
/// Disk or share fail. Nothing is lost: the next round goes on.
pub fn round<D: Depot>(depot: &mut D, node: &Name, present: &SegmentName, now_us: u64) -> Result<Heartbeat, D::Error> {
    let file = format!("{node}/{HEARTBEAT}");
    // One that can't be read begins anew: what is shipped twice is shipped once.
    let before: Heartbeat = depot.get(&file)?.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let mut locals = depot.locals()?;
    locals.sort_by_key(|local| (local.written_us, local.name.clone()));
    let known = |local: &Local| (local.name.clone(), before.segments.get(&local.name).copied().unwrap_or_default());
    let segments: BTreeMap<SegmentName, Shipped> = locals.iter().map(known).collect();
    let mut beat = Heartbeat { number: before.number + 1, segments, ..before.clone() };
    if beat.segments.keys().any(|name| !before.segments.contains_key(name)) {
        // Announced first: one that lies on the share and is not announced counts as removed from its node.
        say(depot, &file, &beat)?;
    }
    let mut room = ROUND_BYTES_MAX;
    for local in &locals {
        let shipped = beat.segments.entry(local.name.clone()).or_default();
        let end = local.len.min(shipped.len.saturating_add(room));
        if shipped.len < end {
            depot.copy(&local.name, shipped.len..end)?;
            room -= end - shipped.len;
            shipped.len = end;
        }
        shipped.is_closed = shipped.len >= local.len && is_over(&local.name, present, &locals);
    }
    let is_all = locals.iter().all(|local| beat.segments[&local.name].len >= local.len);
    if is_all {
        beat.complete_to_us = now_us.saturating_sub(SETTLE_US);
    }
    say(depot, &file, &beat)?;
    clean(depot, node, &locals, now_us)?;
    Ok(beat)
}

fn say<D: Depot>(depot: &mut D, file: &str, beat: &Heartbeat) -> Result<(), D::Error> {
    depot.set(file, &serde_json::to_vec(beat).expect("plain data with text keys"))
}

/// Removes what is merged and old: from the disk first, so that what lies on the share alone is known to be merged.
fn clean<D: Depot>(depot: &mut D, node: &Name, locals: &[Local], now_us: u64) -> Result<(), D::Error> {
    // A state that can't be read is the merger's to complain of.
    let state: State = depot.get(STATE)?.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    for name in outdated(locals, node, &state, now_us) {
        depot.remove_local(&name)?;
    }
    for name in depot.shipped()? {
        if state.place(node, &name).is_done && !locals.iter().any(|local| local.name == name) {
            depot.remove_shipped(&name)?;
        }
    }
    Ok(())
}

/// Whether nothing more will be written to `segment`: its boot is over, or a later one of the boot was begun.
pub fn is_over(segment: &SegmentName, present: &SegmentName, all: &[Local]) -> bool {
    let later = |other: &Local| other.name.is_of_boot_of(segment) && other.name > *segment;
    !segment.is_of_boot_of(present) || all.iter().any(later)
}

/// The segments that can go from the node's disk, oldest first; `merged` says how far the merger is.
pub fn outdated(all: &[Local], node: &Name, merged: &State, now_us: u64) -> Vec<SegmentName> {
    let mut by_age: Vec<&Local> = all.iter().collect();
    by_age.sort_by_key(|local| (local.written_us, local.name.clone()));
    let is_merged = |local: &Local| merged.place(node, &local.name).is_done;
    let is_old = |local: &Local| local.written_us.saturating_add(KEPT_US) < now_us;
    let mut gone: Vec<&Local> = by_age.iter().copied().filter(|local| is_merged(local) && is_old(local)).collect();
    let mut left: u64 =
        all.iter().map(|local| local.len).sum::<u64>() - gone.iter().map(|local| local.len).sum::<u64>();
    // The one that is being written stays in any case.
    let newest = by_age.last().map(|local| &local.name);
    for wants_merged in [true, false] {
        for local in by_age.iter().copied().filter(|local| is_merged(local) == wants_merged) {
            if left > LOCAL_BYTES_MAX && !gone.contains(&local) && Some(&local.name) != newest {
                left -= local.len;
                gone.push(local);
            }
        }
    }
    gone.into_iter().map(|local| local.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::batch::Place;
    use super::*;

    fn segment(boot: u8, number: u64) -> SegmentName {
        format!("{:032x}-{number}.log", boot).parse().unwrap()
    }

    fn local(boot: u8, number: u64, len: u64, written_us: u64) -> Local {
        Local { name: segment(boot, number), len, written_us }
    }

    #[test]
    fn a_segment_is_over_when_a_later_one_is_begun() {
        let all = [local(1, 1, 0, 0), local(2, 1, 0, 0), local(2, 2, 0, 0)];
        let is_over = |name: &SegmentName| is_over(name, &segment(2, 1), &all);
        assert_eq!(all.each_ref().map(|local| is_over(&local.name)), [true, true, false]);
    }

    #[test]
    fn what_is_merged_goes_by_age_and_the_rest_only_for_room() {
        let node: Name = "web1".parse().unwrap();
        let all = [local(1, 1, 5, 1), local(1, 2, 5, 2), local(1, 3, 5, KEPT_US)];
        let mut merged = State::default();
        let done = Place { at: 5, is_done: true };
        merged.segments.entry(node.clone()).or_default().extend([(segment(1, 1), done), (segment(1, 3), done)]);
        assert_eq!(outdated(&all, &node, &merged, KEPT_US + 100), [segment(1, 1)]);
        assert!(outdated(&all, &node, &merged, 0).is_empty());
        let all = [local(1, 1, LOCAL_BYTES_MAX, 1), local(1, 2, 5, 2), local(1, 3, 5, 3)];
        assert_eq!(outdated(&all, &node, &State::default(), 9), [segment(1, 1)]);
        let all = [local(1, 1, 5, 1), local(1, 2, LOCAL_BYTES_MAX - 6, 2), local(1, 3, 6, 3), local(1, 4, 6, 4)];
        assert_eq!(outdated(&all, &node, &merged, 9), [segment(1, 1), segment(1, 3)]);
    }
}
