//! Nodes that write, ship and merge, in one process, with crashes at every point, a share that is cut off, clocks apart and a customer who
//! damages what is his: every line that is on a node's disk ends up in one place, once.
//!
//! A failing run names its seed; `PHALANX_SEED=N cargo nextest run -p phalanx-plan logs::simulation` replays it.

use super::batch::{Counted, Log, STATE, State, TRAFFIC};
use super::date::Day;
use super::merge::{Input, Pieces, Traffic};
use super::rotate::Seen;
use super::round::{Bounds, Outcome, Storage, round};
use super::segment::{END, SegmentName, header};
use super::ship::{self, Depot, KEPT_US, Local};
use super::stream::Stream;
use crate::session::dice::Dice;
use phalanx_model::{Name, Uid};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const SITES: [&str; 4] = ["one.org", "two.org", "gone.org", "evil.org"];
const NODES: [&str; 3] = ["a", "b", "c"];
const DAY_US: u64 = 86_400_000_000;
/// Few lines are a piece, and some pieces a batch.
const BOUNDS: Bounds = Bounds { bytes_max: 1_500, late_max: 300, pieces: Pieces { site: 150, all: 700 } };

/// The process ended, or the share does not answer.
#[derive(Debug, PartialEq, Eq)]
struct Broken;

#[derive(Default)]
struct Node {
    /// What is on its disk, and when it was last written to.
    disk: BTreeMap<SegmentName, (Vec<u8>, u64)>,
    /// The first segment of this boot, and the one that is written.
    boot: u64,
    present: Option<SegmentName>,
    skew_us: i64,
}

#[derive(Default)]
struct World {
    nodes: BTreeMap<Name, Node>,
    small: BTreeMap<String, Vec<u8>>,
    segments: BTreeMap<(Name, SegmentName), Vec<u8>>,
    /// Merged logs, by site or `-`, and name.
    logs: BTreeMap<(String, String), (Vec<u8>, u64)>,
    /// What was written to those and may not be on the disk yet: where it begins.
    unsettled: Vec<((String, String), usize)>,
    /// The customer has put something else into the place of his log.
    is_blocked: bool,
    /// `gone.org` has an account just now.
    is_back: bool,
    /// Operations until one breaks; none for never.
    fuse: Option<u64>,
    dice: Option<Dice>,
    now_us: u64,
    written: Vec<Written>,
    refused: Vec<(String, String)>,
    cut_off: BTreeSet<(Name, SegmentName)>,
}

#[derive(Debug)]
struct Written {
    at_us: u64,
    site: &'static str,
    id: usize,
    segment: (Name, SegmentName),
}

impl World {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice.as_mut().expect("there are dice").roll(sides)
    }

    /// Counts one operation; the one that breaks may have been done before.
    fn burn(&mut self) -> Result<(), Broken> {
        match &mut self.fuse {
            None => Ok(()),
            Some(0) => {
                self.lose_unsettled();
                Err(Broken)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Of what was not settled some is there, some is not, and some has a hole before it.
    fn lose_unsettled(&mut self) {
        for (log, from) in std::mem::take(&mut self.unsettled) {
            let (lost, holed) = (self.roll(3) == 0, self.roll(2) == 0);
            let Some((text, _)) = self.logs.get_mut(&log).filter(|_| lost) else { continue };
            let from = from.min(text.len());
            match holed {
                true => text[from..].fill(0),
                false => text.truncate(from),
            }
        }
    }

    fn set_small(&mut self, name: &str, content: &[u8]) -> Result<(), Broken> {
        let broken = self.burn();
        if broken.is_ok() || self.roll(2) == 0 {
            self.small.insert(name.to_owned(), content.to_owned());
        }
        broken
    }

    fn time_of(&self, node: &Node) -> u64 {
        self.now_us.saturating_add_signed(node.skew_us)
    }

    fn begin_segment(&mut self, name: &Name) {
        let now_us = self.time_of(&self.nodes[name]);
        let node = self.nodes.get_mut(name).unwrap();
        let first = SegmentName::first(&format!("{:032x}", node.boot)).unwrap();
        let segment = node.present.as_ref().filter(|it| it.is_of_boot_of(&first)).map_or(first, SegmentName::next);
        node.disk.insert(segment.clone(), (header(name.as_str(), &segment, now_us).into_bytes(), now_us));
        node.present = Some(segment);
    }

    /// A proxy ends: cleanly, or with a part of a line on the disk.
    fn stop(&mut self, name: &Name, cleanly: bool) {
        let torn = self.roll(2) == 0;
        let node = self.nodes.get_mut(name).unwrap();
        let segment = node.present.clone().unwrap();
        let (text, _) = node.disk.get_mut(&segment).unwrap();
        if cleanly {
            text.extend_from_slice(format!("{END}\n").as_bytes());
        } else {
            text.extend_from_slice(if torn { b"1700000000.00" } else { b"" });
            self.cut_off.insert((name.clone(), segment));
        }
    }

    fn request(&mut self, name: &Name) {
        let (site, id) = (SITES[self.roll(4) as usize], self.written.len());
        let node = &self.nodes[name];
        let at_us = self.time_of(node);
        let segment = node.present.clone().unwrap();
        let line = format!("{}.{:06} {site} 10 1 id{id} {at_us}\n", at_us / 1_000_000, at_us % 1_000_000);
        let (text, written_us) = self.nodes.get_mut(name).unwrap().disk.get_mut(&segment).unwrap();
        text.extend_from_slice(line.as_bytes());
        *written_us = at_us;
        self.written.push(Written { at_us, site, id, segment: (name.clone(), segment) });
    }

    fn ship(&mut self, name: &Name) -> Result<(), Broken> {
        let (present, now_us) = {
            let node = &self.nodes[name];
            (SegmentName::first(&format!("{:032x}", node.boot)).unwrap(), self.time_of(node))
        };
        ship::round(&mut NodeDepot { world: self, node: name }, name, &present, now_us).map(drop)
    }

    fn merge(&mut self) -> Option<Outcome> {
        let nodes: BTreeSet<Name> = self.nodes.keys().cloned().collect();
        let now_us = self.now_us;
        let outcome = round(self, Stream::Access, BOUNDS, 1, &nodes, now_us).ok();
        if let Some(outcome) = &outcome {
            self.refused.extend(outcome.refused.iter().cloned());
        }
        outcome
    }
}

/// The disk of one node, and the share.
struct NodeDepot<'w> {
    world: &'w mut World,
    node: &'w Name,
}

impl Depot for NodeDepot<'_> {
    type Error = Broken;

    fn locals(&mut self) -> Result<Vec<Local>, Broken> {
        let disk = self.world.nodes[self.node].disk.iter();
        Ok(disk
            .map(|(name, (text, at))| Local { name: name.clone(), len: text.len() as u64, written_us: *at })
            .collect())
    }

    fn shipped(&mut self) -> Result<Vec<SegmentName>, Broken> {
        self.world.burn()?;
        let ours = self.world.segments.keys().filter(|(node, _)| node == self.node);
        Ok(ours.map(|(_, name)| name.clone()).collect())
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, Broken> {
        self.world.burn()?;
        Ok(self.world.small.get(name).cloned())
    }

    fn set(&mut self, name: &str, content: &[u8]) -> Result<(), Broken> {
        self.world.set_small(name, content)
    }

    fn copy(&mut self, name: &SegmentName, part: Range<u64>) -> Result<(), Broken> {
        let (from, mut until) = (part.start as usize, part.end as usize);
        let broken = self.world.burn();
        let holed = broken.is_err() && self.world.roll(2) == 0;
        if broken.is_err() {
            until = from + self.world.roll((until - from) as u64 + 1) as usize;
        }
        let bytes = self.world.nodes[self.node].disk[name].0[from..until].to_vec();
        let file = self.world.segments.entry((self.node.clone(), name.clone())).or_default();
        file.resize(file.len().max(until), 0);
        // The last bytes alone have reached the server before the crash.
        let skipped = if holed { bytes.len() / 2 } else { 0 };
        file[from + skipped..until].copy_from_slice(&bytes[skipped..]);
        broken
    }

    fn remove_local(&mut self, name: &SegmentName) -> Result<(), Broken> {
        self.world.burn()?;
        self.world.nodes.get_mut(self.node).unwrap().disk.remove(name);
        Ok(())
    }

    fn remove_shipped(&mut self, name: &SegmentName) -> Result<(), Broken> {
        self.world.burn()?;
        self.world.segments.remove(&(self.node.clone(), name.clone()));
        Ok(())
    }
}

impl Storage for World {
    type Error = Broken;

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, Broken> {
        self.burn()?;
        Ok(self.small.get(name).cloned())
    }

    fn set(&mut self, name: &str, content: &[u8]) -> Result<(), Broken> {
        self.set_small(name, content)
    }

    fn nodes(&mut self) -> Result<Vec<Name>, Broken> {
        self.burn()?;
        Ok(self.nodes.keys().cloned().collect())
    }

    fn len(&mut self, node: &Name, segment: &SegmentName) -> Result<u64, Broken> {
        self.burn()?;
        Ok(self.segments[&(node.clone(), segment.clone())].len() as u64)
    }

    fn segments(&mut self, node: &Name) -> Result<Vec<SegmentName>, Broken> {
        self.burn()?;
        let of_node = self.segments.keys().filter(|(of, _)| of == node);
        Ok(of_node.map(|(_, name)| name.clone()).collect())
    }

    fn read(&mut self, input: &Input, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), Broken> {
        self.burn()?;
        let text = &self.segments[&(input.node.clone(), input.segment.clone())];
        into.extend(text.iter().skip(offset as usize).take(len));
        Ok(())
    }

    fn owner(&mut self, site: &str) -> Result<Option<(Name, Uid)>, Broken> {
        self.burn()?;
        Ok((site != "gone.org" || self.is_back).then(|| ("account".parse().unwrap(), Uid::FIRST)))
    }

    fn look(&mut self, log: &Log) -> Result<Result<Seen, String>, Broken> {
        self.burn()?;
        let name = log.name().to_owned();
        if name == "evil.org" && self.is_blocked {
            return Ok(Err("it is a directory".to_owned()));
        }
        let found = self.logs.get(&(name, Stream::Access.file().to_owned()));
        Ok(Ok(found.map_or(Seen::default(), |(text, at)| Seen { len: text.len() as u64, written_us: *at })))
    }

    fn beside(&mut self, log: &Log) -> Result<Result<Vec<String>, String>, Broken> {
        self.burn()?;
        let name = log.name().to_owned();
        Ok(Ok(self.logs.keys().filter(|(of, _)| *of == name).map(|(_, file)| file.clone()).collect()))
    }

    fn move_aside(&mut self, log: &Log, name: &str) -> Result<Result<(), String>, Broken> {
        let broken = self.burn();
        let of = log.name().to_owned();
        let aside = (of.clone(), name.to_owned());
        if (broken.is_ok() || self.roll(2) == 0)
            && !self.logs.contains_key(&aside)
            && let Some(log) = self.logs.remove(&(of, Stream::Access.file().to_owned()))
        {
            self.logs.insert(aside, log);
        }
        broken.map(Ok)
    }

    fn write(&mut self, log: &Log, base: u64, bytes: &[u8]) -> Result<Result<(), String>, Broken> {
        let name = log.name().to_owned();
        if name == "evil.org" && self.is_blocked {
            return Ok(Err("it is a directory".to_owned()));
        }
        let broken = self.burn();
        let len = if broken.is_ok() { bytes.len() } else { self.roll(bytes.len() as u64 + 1) as usize };
        let now_us = self.now_us;
        let key = (name, Stream::Access.file().to_owned());
        let (text, at) = self.logs.entry(key.clone()).or_default();
        let from = text.len().min(base as usize);
        self.unsettled.push((key, from));
        text.resize(text.len().max(from + len), 0);
        text[from..from + len].copy_from_slice(&bytes[..len]);
        *at = now_us;
        if broken.is_err() {
            self.lose_unsettled();
        }
        broken.map(Ok)
    }

    fn settle(&mut self) -> Result<Vec<(Log, String)>, Broken> {
        self.burn()?;
        self.unsettled.clear();
        Ok(vec![])
    }
}

fn play(seed: u64) {
    let mut world = World { dice: Some(Dice(seed)), now_us: 1_700_000_000_000_000, ..World::default() };
    for (number, name) in NODES.into_iter().enumerate() {
        let name: Name = name.parse().unwrap();
        let skew_us = [0, world.roll(40_000_000) as i64, -(world.roll(40_000_000) as i64)][number];
        world.nodes.insert(name.clone(), Node { boot: seed * 100 + number as u64 * 10, skew_us, ..Node::default() });
        world.begin_segment(&name);
    }
    let names: Vec<Name> = world.nodes.keys().cloned().collect();
    for _ in 0..400 {
        let name = names[world.roll(3) as usize].clone();
        match world.roll(20) {
            0..=9 => world.request(&name),
            10..=12 => drop(world.ship(&name)),
            13..=14 => drop(world.merge()),
            // Everybody's last operations, at one of which all break.
            15..=16 => {
                world.fuse = Some(world.roll(60));
                let _broken = (world.ship(&name), world.merge());
                world.fuse = None;
            }
            17 => {
                let (cleanly, reboots) = (world.roll(2) == 0, world.roll(3) == 0);
                world.stop(&name, cleanly);
                world.nodes.get_mut(&name).unwrap().boot += u64::from(reboots);
                world.begin_segment(&name);
            }
            18 if world.roll(2) == 0 => world.is_back = !world.is_back,
            18 => world.is_blocked = !world.is_blocked,
            _ => world.now_us += if world.roll(12) == 0 { DAY_US } else { world.roll(15_000_000) },
        }
        world.now_us += world.roll(300_000);
    }
    world.is_blocked = false;
    for name in &names {
        world.stop(name, true);
        world.begin_segment(name);
    }
    for _ in 0..12 {
        world.now_us += 30_000_000;
        for name in &names {
            world.ship(name).unwrap();
        }
        while world.merge().unwrap().has_more {}
    }
    check(&world);
    // What is merged is removed, and nothing of it comes again.
    world.now_us += KEPT_US + DAY_US;
    let before = world.logs.clone();
    for _ in 0..3 {
        for name in &names {
            world.ship(name).unwrap();
        }
        assert_eq!(world.merge().unwrap().lines, 0);
    }
    assert_eq!(world.logs, before);
    // With the next batch the state forgets them too.
    for name in &names {
        world.request(name);
    }
    for _ in 0..2 {
        names.iter().for_each(|name| world.ship(name).unwrap());
        world.now_us += 60_000_000;
        world.merge().unwrap();
    }
    let left: usize = world.nodes.values().map(|node| node.disk.len()).sum();
    assert!(left <= NODES.len() && world.segments.len() <= NODES.len(), "{left} segments are left");
    let state: State = serde_json::from_slice(&world.small[STATE]).unwrap();
    assert!(state.segments.values().map(BTreeMap::len).sum::<usize>() <= NODES.len(), "{state:?}");
}

/// All of a log, what was moved aside first.
fn whole(world: &World, site: &str) -> String {
    let files = world.logs.iter().filter(|((of, _), _)| of == site);
    let mut files: Vec<_> = files.map(|((_, name), (text, _))| (name, text)).collect();
    let key = |name: &str| {
        let rest = name.strip_prefix("access.log-").unwrap_or("99999999").to_owned();
        let (day, number) =
            rest.split_once('.').map_or((rest.clone(), 1), |(day, n)| (day.to_owned(), n.parse().unwrap()));
        (day, number)
    };
    files.sort_by_key(|(name, _)| key(name));
    files.into_iter().map(|(_, text)| String::from_utf8(text.clone()).expect("no hole")).collect()
}

fn check(world: &World) {
    let mut found: BTreeMap<usize, u32> = BTreeMap::new();
    for site in ["one.org", "two.org", "evil.org", "gone.org", "-"] {
        let (mut is_late, mut last) = (false, 0);
        for line in whole(world, site).lines() {
            match line {
                // The customer's own write may have broken off before it.
                line if line.contains("# late: ") && (site == "evil.org" || line.starts_with('#')) => is_late = true,
                "# end of late block" => is_late = false,
                line if line.starts_with('#') => {}
                line => {
                    let line = if site == "-" { line.split_once(' ').unwrap().1 } else { line };
                    let words: Vec<&str> = line.split(' ').collect();
                    let id = words[0].strip_prefix("id").and_then(|id| id.parse::<usize>().ok());
                    let (Some(id), [_, at, segment, _offset]) = (id, &words[..]) else {
                        // A write that broke, and what the customer put there before it was tried again.
                        assert_eq!(site, "evil.org", "{line:?}");
                        continue;
                    };
                    let written = &world.written[id];
                    assert_eq!((written.id, written.segment.1.stem().as_str()), (id, *segment));
                    assert_eq!(if site == "-" { "gone.org" } else { site }, written.site, "line {id} is another's");
                    *found.entry(id).or_default() += 1;
                    let at: u64 = at.parse().unwrap();
                    assert!(is_late || site == "-" || at >= last, "line {id} is out of order in the log of {site}");
                    last = last.max(if is_late { 0 } else { at });
                }
            }
        }
    }
    let evil_lost = world.refused.iter().any(|(site, _)| site == "evil.org");
    for written in &world.written {
        let count = found.get(&written.id).copied().unwrap_or(0);
        let is_right = count == 1 || (count == 0 && written.site == "evil.org" && evil_lost);
        assert!(is_right, "{count} times in its log: {written:?}");
    }
    check_gaps(world);
    check_traffic(world);
}

fn check_gaps(world: &World) {
    for (node, segment) in &world.cut_off {
        let mark = format!("# gap: {node} stopped uncleanly (boot {}, segment {})", segment.boot(), segment.number());
        let count = |site: &str| whole(world, site).lines().filter(|line| line.starts_with(&mark)).count();
        assert_eq!(count("-"), 1, "{mark}");
        for site in ["one.org", "two.org"] {
            let had_lines =
                world.written.iter().any(|it| it.site == site && it.segment == (node.clone(), segment.clone()));
            assert_eq!(count(site), usize::from(had_lines), "{mark} in the log of {site}");
        }
    }
    let all: usize = whole(world, "-").lines().filter(|line| line.starts_with("# gap: ")).count();
    assert_eq!(all, world.cut_off.len(), "a gap where there is none");
}

fn check_traffic(world: &World) {
    let mut counted = Counted::default();
    for (name, text) in world.small.iter().filter(|(name, _)| name.starts_with(TRAFFIC)) {
        counted.add(&serde_json::from_slice(text).unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    let mut expected = Counted::default();
    for Written { at_us, site, .. } in &world.written {
        let days = expected.sites.entry((*site).to_owned()).or_default();
        let one = Traffic { requests: 1, sent: 10, received: 1, ..Traffic::default() };
        days.entry(Day::of_us(*at_us).iso()).or_default().add(one);
    }
    assert_eq!(counted, expected);
}

#[test]
fn every_line_is_merged_once_whatever_breaks() {
    let seeds = match std::env::var("PHALANX_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("PHALANX_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..150,
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| play(seed));
        if let Err(panic) = result {
            eprintln!("seed {seed}: PHALANX_SEED={seed} cargo nextest run -p phalanx-plan logs::simulation");
            std::panic::resume_unwind(panic);
        }
    }
}
