//! Collecting what daemons write to their own files into segments of this node: see [`phalanx_plan::logs::collect`].
//!
//! Files may be moved aside to `NAME.1` and made anew at any time, as logrotate(8) does; they must not be truncated.

use crate::keep;
use anyhow::Context;
use phalanx_host::atomic;
use phalanx_model::Name;
use phalanx_plan::logs::collect::{At, Intent, Memory, PART_LEN_MAX, Part, Reader, SEGMENT_LEN_MAX, Written};
use phalanx_plan::logs::segment::{END, SegmentName};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What is about to be written, and by that where it is.
const INTENT: &str = "intent.json";
/// Names the boot in which the collector was told to end: what daemons wrote until then was not cut off.
const ENDED: &str = "ended";

/// The collector of one stream.
pub struct Collector<R> {
    node: Name,
    reader: R,
    /// By name.
    sources: BTreeMap<String, PathBuf>,
    /// Where segments are written.
    segments: PathBuf,
    /// Where the intent is kept.
    state: PathBuf,
    /// Where it is, once that is known.
    place: Option<Place>,
}

#[derive(Debug, Clone)]
struct Place {
    segment: SegmentName,
    len: u64,
    last_us: u64,
    at: BTreeMap<String, At>,
    memory: Memory,
}

impl<R: Reader> Collector<R> {
    /// A collector of these sources.
    pub fn new(node: Name, reader: R, sources: BTreeMap<String, PathBuf>, segments: &Path, state: &Path) -> Self {
        Self { node, reader, sources, segments: segments.to_owned(), state: state.to_owned(), place: None }
    }

    /// Whether it collects for this node, with this reader.
    pub fn is_of(&self, node: &Name, is_same: impl Fn(&R) -> bool) -> bool {
        self.node == *node && is_same(&self.reader)
    }

    /// Collects what is new. `first` is the first segment of this boot. Returns whether there is more right now.
    pub fn round(&mut self, first: &SegmentName, now_us: u64) -> anyhow::Result<bool> {
        let mut place = match self.place.take() {
            Some(place) => place,
            None => self.begin(first)?,
        };
        let mut parts = BTreeMap::new();
        let mut has_more = false;
        for (source, path) in &self.sources {
            let from = place.at.get(source).copied().unwrap_or_default();
            let (part, is_cut) = part(path, from)?;
            has_more |= is_cut;
            parts.insert(source.clone(), part);
        }
        if parts.values().all(|part| part.from == part.to && !part.is_after_loss) {
            self.place = Some(place);
            return Ok(false);
        }
        if place.len >= SEGMENT_LEN_MAX {
            place = self.next_segment(place)?;
        }
        let intent = Intent {
            segment: place.segment,
            base: place.len,
            last_us: place.last_us,
            now_us,
            parts,
            memory: place.memory,
        };
        keep::store(&self.state.join(INTENT), &intent)?;
        self.place = Some(self.carry_out(intent)?);
        Ok(has_more)
    }

    fn begin(&self, first: &SegmentName) -> anyhow::Result<Place> {
        for directory in [&self.segments, &self.state] {
            std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let ended: Option<String> = keep::load(&self.state.join(ENDED))?;
        atomic::remove(&self.state.join(ENDED))?;
        let intent: Option<Intent> = keep::load(&self.state.join(INTENT))?;
        let Some(intent) = intent else {
            return Ok(Place {
                segment: first.clone(),
                len: 0,
                last_us: 0,
                at: BTreeMap::new(),
                memory: Memory::default(),
            });
        };
        let place = self.carry_out(intent)?;
        if place.segment.is_of_boot_of(first) {
            return Ok(place);
        }
        // The machine was started anew. If daemons ended before that, all of their lines are in the files.
        if ended.as_deref() == Some(place.segment.boot()) {
            self.close(&place)?;
        }
        Ok(Place { segment: first.clone(), len: 0, ..place })
    }

    fn next_segment(&self, place: Place) -> anyhow::Result<Place> {
        self.close(&place)?;
        Ok(Place { segment: place.segment.next(), len: 0, ..place })
    }

    fn close(&self, place: &Place) -> anyhow::Result<()> {
        self.write(&place.segment, place.len, format!("{END}\n").as_bytes())
    }

    fn carry_out(&self, intent: Intent) -> anyhow::Result<Place> {
        let mut texts = BTreeMap::new();
        for (source, Part { from, to, .. }) in &intent.parts {
            // An earlier version may have had more of them.
            let Some(path) = self.sources.get(source) else { continue };
            texts.insert(source.clone(), read(path, *from, *to)?);
        }
        let Written { bytes, last_us, memory } = intent.carry_out(&self.node, &self.reader, &texts);
        self.write(&intent.segment, intent.base, &bytes)?;
        let at = intent.parts.into_iter().map(|(source, part)| (source, part.to)).collect();
        Ok(Place { segment: intent.segment, len: intent.base + bytes.len() as u64, last_us, at, memory })
    }

    fn write(&self, segment: &SegmentName, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.segments.join(segment.to_string());
        let written =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(&path).and_then(|file| {
                file.write_all_at(bytes, at)?;
                file.sync_all()
            });
        written.with_context(|| format!("writing {}", path.display()))?;
        Ok(atomic::sync_directory_of(&path)?)
    }
}

/// Notes that the process was told to end, so that the segment counts as whole after a restart of the machine.
pub fn told_to_end(state: &Path, first: &SegmentName) -> anyhow::Result<()> {
    std::fs::create_dir_all(state).with_context(|| format!("making {}", state.display()))?;
    keep::store(&state.join(ENDED), &first.boot())
}

/// What is new in a source, whole lines, and whether there is more.
fn part(path: &Path, from: At) -> anyhow::Result<(Part, bool)> {
    let nothing = Part { from, to: from, is_after_loss: false };
    let Some((file, id)) = open(path)? else { return Ok((nothing, false)) };
    if from.file == id || from.file == 0 {
        let from = At { file: id, offset: if from.file == 0 { 0 } else { from.offset } };
        return whole_lines(&file, path, from, false);
    }
    // Another file has its place: the rest of the one before comes first.
    if let Some((aside, _)) = open(&aside(path))?.filter(|(_, id)| *id == from.file) {
        let (part, has_more) = whole_lines(&aside, path, from, true)?;
        if part.from != part.to {
            return Ok((part, has_more));
        }
        return whole_lines(&file, path, At { file: id, offset: 0 }, false);
    }
    let (part, has_more) = whole_lines(&file, path, At { file: id, offset: 0 }, false)?;
    Ok((Part { is_after_loss: true, ..part }, has_more))
}

/// From `from` on; `is_over`: nothing is written to it any more, so that its last line may be without an end.
fn whole_lines(file: &File, path: &Path, from: At, is_over: bool) -> anyhow::Result<(Part, bool)> {
    let looking = || format!("reading {}", path.display());
    let len = file.metadata().with_context(looking)?.len();
    let wanted = len.saturating_sub(from.offset).min(PART_LEN_MAX);
    let mut text = vec![0; usize::try_from(wanted)?];
    file.read_exact_at(&mut text, from.offset).with_context(looking)?;
    let is_all = from.offset + wanted >= len;
    let whole = match memchr::memrchr(b'\n', &text) {
        _ if is_over && is_all => text.len(),
        Some(end) => end + 1,
        // Nobody writes such a line; it is taken in pieces.
        None if !is_all => text.len(),
        None => 0,
    };
    let to = At { offset: from.offset + whole as u64, ..from };
    Ok((Part { from, to, is_after_loss: false }, !is_all))
}

/// The bytes of a part, wherever its file is by now.
fn read(path: &Path, from: At, to: At) -> anyhow::Result<Vec<u8>> {
    if from == to {
        return Ok(Vec::new());
    }
    for path in [path.to_owned(), aside(path)] {
        if let Some((file, _)) = open(&path)?.filter(|(_, id)| *id == to.file) {
            let mut text = vec![0; usize::try_from(to.offset - from.offset)?];
            file.read_exact_at(&mut text, from.offset).with_context(|| format!("reading {}", path.display()))?;
            return Ok(text);
        }
    }
    // It was removed between the intent and now; what a crash left of it in the segment stays.
    tracing::warn!("{} was moved aside twice before it was read to its end", path.display());
    Ok(Vec::new())
}

fn open(path: &Path) -> anyhow::Result<Option<(File, u64)>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => {
            let file = opened.with_context(|| format!("opening {}", path.display()))?;
            let seen = file.metadata().with_context(|| format!("looking at {}", path.display()))?;
            // The number of a file that was removed is soon another's; when it was made tells them apart, where the file system knows.
            let made = seen.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            let made_ns = u64::try_from(made.as_nanos()).unwrap_or_default();
            Ok(Some((file, seen.ino().rotate_left(40) ^ made_ns)))
        }
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_plan::logs::collect::Take;

    /// Text is taken as it is.
    struct Plain;

    impl Reader for Plain {
        fn take(&self, _: &str, line: &str, _: u64, _: &mut Memory) -> Option<Take> {
            Some(Take { at_us: Some(1_000_000), text: line.to_owned(), ..Take::default() })
        }
    }

    struct Machine {
        root: tempfile::TempDir,
        boot: u32,
    }

    impl Machine {
        fn new() -> Self {
            Self { root: tempfile::tempdir().expect("a directory"), boot: 1 }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn first(&self) -> SegmentName {
            format!("{:032x}-1.log", self.boot).parse().expect("a segment")
        }

        fn collector(&self) -> Collector<Plain> {
            let sources = BTreeMap::from([("a".to_owned(), self.path("a.log"))]);
            Collector::new(
                "mail1".parse().expect("a name"),
                Plain,
                sources,
                &self.path("segments"),
                &self.path("state"),
            )
        }

        fn say(&self, text: &str) {
            let mut all = std::fs::read_to_string(self.path("a.log")).unwrap_or_default();
            all.push_str(text);
            // In place, as a daemon appends.
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.path("a.log"));
            file.expect("opened").write_all_at(all.as_bytes(), 0).expect("written");
        }

        fn rotate(&self) {
            std::fs::rename(self.path("a.log"), self.path("a.log.1")).expect("moved aside");
        }

        /// What all segments say, without heads.
        fn said(&self) -> Vec<String> {
            let mut names: Vec<_> = std::fs::read_dir(self.path("segments"))
                .expect("segments")
                .map(|entry| entry.expect("a segment").path())
                .collect();
            names.sort();
            let text: String = names.iter().map(|path| std::fs::read_to_string(path).expect("a segment")).collect();
            let last = |line: &str| line.rsplit(' ').next().expect("a word").to_owned();
            text.lines().filter(|line| !line.starts_with("# segment")).map(last).collect()
        }
    }

    #[test]
    fn each_line_is_there_once_whenever_it_ends() {
        let machine = Machine::new();
        let mut collector = machine.collector();
        collector.round(&machine.first(), 1).expect("nothing yet");
        machine.say("one\ntwo\nha");
        collector.round(&machine.first(), 1).expect("collected");
        // It ends after the intent was kept, and after it was carried out: both are done again.
        for _ in 0..2 {
            collector = machine.collector();
            collector.round(&machine.first(), 1).expect("collected");
        }
        machine.say("lf\nthree\n");
        let whole = std::fs::read(machine.path("segments").join(machine.first().to_string())).expect("a segment");
        collector.round(&machine.first(), 1).expect("collected");
        std::fs::write(machine.path("segments").join(machine.first().to_string()), &whole[..whole.len() - 3])
            .expect("cut");
        machine.collector().round(&machine.first(), 1).expect("collected");
        let text = std::fs::read(machine.path("segments").join(machine.first().to_string())).expect("a segment");
        assert!(text.ends_with(b"three\n"), "what is written again has its place");
    }

    #[test]
    fn a_file_that_is_moved_aside_is_read_to_its_end() {
        let machine = Machine::new();
        let mut collector = machine.collector();
        machine.say("one\n");
        collector.round(&machine.first(), 1).expect("collected");
        machine.say("two\n");
        machine.rotate();
        machine.say("three\n");
        collector = machine.collector();
        for _ in 0..3 {
            collector.round(&machine.first(), 1).expect("collected");
        }
        assert_eq!(machine.said(), ["one", "two", "three"]);
        machine.say("four\n");
        machine.rotate();
        machine.say("five\n");
        machine.rotate();
        machine.say("six\n");
        for _ in 0..3 {
            collector.round(&machine.first(), 1).expect("collected");
        }
        assert_eq!(machine.said(), ["one", "two", "three", "missing", "six"]);
    }

    #[test]
    fn a_segment_ends_where_the_machine_was_switched_off_in_order() {
        let mut machine = Machine::new();
        for is_in_order in [true, false] {
            machine.say("one\n");
            machine.collector().round(&machine.first(), 1).expect("collected");
            let before = machine.path("segments").join(machine.first().to_string());
            if is_in_order {
                told_to_end(&machine.path("state"), &machine.first()).expect("noted");
            }
            machine.boot += 1;
            machine.say("two\n");
            machine.collector().round(&machine.first(), 1).expect("collected");
            let text = std::fs::read_to_string(before).expect("a segment");
            assert_eq!(text.ends_with("# end\n"), is_in_order);
        }
        assert_eq!(machine.said().iter().filter(|word| *word == "two").count(), 2);
    }
}
