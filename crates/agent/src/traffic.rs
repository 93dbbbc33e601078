//! What was counted of sites, on its way to the panel: from the share, where it was counted with the lines, to this machine's disk by
//! `phalanx logs`, and from there by the agent, which touches no share.
//!
//! Each batch's count is a file, by number. The panel adds a part that begins where the last one ended, and says up to which number it has all:
//! so each count is added once, whatever is sent twice.

use crate::keep;
use anyhow::Context;
use phalanx_host::atomic::{self, Access};
use phalanx_host::logs::LogShare;
use phalanx_model::share::Marker;
use phalanx_plan::logs::batch::{Counted, CountedPart, TRAFFIC, traffic_name, traffic_number};
use phalanx_plan::logs::stream::Stream;
use phalanx_plan::session::UpMessage;
use std::path::{Path, PathBuf};

/// Counts that the panel has not yet, a directory for each share and in it one for each stream.
const WAITING: &str = "/var/lib/phalanx/logs/traffic";
/// The name of the number up to which the panel has all.
const KEPT: &str = "kept.json";
/// A part has so many batches at most, and so many sites: a frame has room for them.
const BATCHES_MAX: usize = 1_000;
const SITES_MAX: usize = 20_000;
/// So many batches are handed over before the next round.
const HANDED_MAX: usize = 200;

/// Takes counts from the share to the disk, in the order of their numbers, and removes from the share what the panel has.
pub fn hand_over(share: &LogShare, source: &Marker, stream: Stream) -> anyhow::Result<()> {
    let place = place(source, stream);
    std::fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    let kept = kept_number(&place)?;
    let mut numbers: Vec<u64> = share.names(TRAFFIC)?.iter().filter_map(|name| traffic_number(name)).collect();
    numbers.sort_unstable();
    for number in numbers.into_iter().take(HANDED_MAX) {
        let name = format!("{TRAFFIC}/{}", traffic_name(number));
        let to = place.join(traffic_name(number));
        if number <= kept {
            share.remove(&name)?;
        } else if !to.exists() {
            let content = share.get(&name)?.with_context(|| format!("{name} is gone"))?;
            atomic::write(&to, &content, Access::SECRET)?;
        }
    }
    Ok(())
}

/// What the panel is to add next, a message for each share and stream.
pub fn next() -> anyhow::Result<Vec<UpMessage>> {
    let mut messages = Vec::new();
    for entry in list(Path::new(WAITING))? {
        let name = entry.file_name().and_then(|name| name.to_str());
        let Some(source) = name.and_then(|name| name.parse::<Marker>().ok()) else { continue };
        for stream in Stream::ALL {
            if let Some(part) = part(&place(&source, stream))? {
                messages.push(UpMessage::Traffic { source: source.clone(), stream, part });
            }
        }
    }
    Ok(messages)
}

/// The panel has all up to `upto`.
pub fn kept(source: &Marker, stream: Stream, upto: u64) -> anyhow::Result<()> {
    let place = place(source, stream);
    if !place.exists() || kept_number(&place)? == upto {
        return Ok(());
    }
    keep::store(&place.join(KEPT), &upto)?;
    for number in numbers(&place)?.into_iter().filter(|number| *number <= upto) {
        atomic::remove(&place.join(traffic_name(number)))?;
    }
    Ok(())
}

fn place(source: &Marker, stream: Stream) -> PathBuf {
    Path::new(WAITING).join(source.as_str()).join(stream.to_string())
}

fn part(place: &Path) -> anyhow::Result<Option<CountedPart>> {
    let after = kept_number(place)?;
    let mut part = CountedPart { after, upto: after, counted: Counted::default() };
    for number in numbers(place)?.into_iter().filter(|number| *number > after).take(BATCHES_MAX) {
        let counted: Counted = keep::load(&place.join(traffic_name(number)))?.unwrap_or_default();
        part.counted.add(&counted);
        part.upto = number;
        if part.counted.sites.len() >= SITES_MAX {
            break;
        }
    }
    Ok((part.upto > after).then_some(part))
}

fn kept_number(place: &Path) -> anyhow::Result<u64> {
    Ok(keep::load(&place.join(KEPT))?.unwrap_or(0))
}

fn numbers(place: &Path) -> anyhow::Result<Vec<u64>> {
    let names = list(place)?.into_iter();
    let mut numbers: Vec<u64> = names.filter_map(|path| traffic_number(path.file_name()?.to_str()?)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn list(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        listing => {
            let entries = listing.with_context(|| format!("listing {}", directory.display()))?;
            entries.map(|entry| Ok(entry?.path())).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_plan::logs::merge::Traffic;

    #[test]
    fn a_part_goes_on_where_the_panel_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path();
        assert_eq!(part(place).expect("looked"), None);
        let count = |site: &str| {
            let one = Traffic { requests: 1, sent: 10, received: 2, ..Traffic::default() };
            let days = std::collections::BTreeMap::from([("2026-11-28".to_owned(), one)]);
            Counted { sites: [(site.to_owned(), days)].into() }
        };
        for (number, site) in [(3, "a.org"), (7, "a.org"), (8, "b.org")] {
            keep::store(&place.join(traffic_name(number)), &count(site)).expect("written");
        }
        let whole = part(place).expect("read").expect("there is some");
        assert_eq!((whole.after, whole.upto), (0, 8));
        assert_eq!(whole.counted.sites["a.org"]["2026-11-28"].requests, 2);
        keep::store(&place.join(KEPT), &3_u64).expect("written");
        let rest = part(place).expect("read").expect("there is some");
        assert_eq!((rest.after, rest.upto), (3, 8));
        assert_eq!(rest.counted.sites["a.org"]["2026-11-28"].requests, 1);
        keep::store(&place.join(KEPT), &8_u64).expect("written");
        assert_eq!(part(place).expect("read"), None);
    }
}
