//! Collecting what daemons write into segments of this node: see [`phalanx_plan::logs::collect`].

use super::source::{News, Source};
use crate::keep;
use anyhow::Context;
use phalanx_host::atomic;
use phalanx_model::Name;
use phalanx_plan::logs::collect::{At, Intent, Reader, SEGMENT_LEN_MAX};
use phalanx_plan::logs::segment::{END, SegmentName};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What is about to be written, and by that where it is.
const INTENT: &str = "intent.json";
/// Names the boot in which the collector was told to end: what daemons wrote until then was not cut off.
const ENDED: &str = "ended";

/// The collector of one stream.
pub struct Collector<R> {
    node: Name,
    reader: R,
    /// By name.
    sources: BTreeMap<String, Source>,
    /// Where segments are written.
    segments: PathBuf,
    /// Where the intent is kept.
    state: PathBuf,
    /// What was written last, once that is known.
    written: Option<Intent>,
}

impl<R: Reader> Collector<R> {
    /// A collector of these sources.
    pub fn new(node: Name, reader: R, sources: BTreeMap<String, Source>, segments: &Path, state: &Path) -> Self {
        Self { node, reader, sources, segments: segments.to_owned(), state: state.to_owned(), written: None }
    }

    /// Whether it collects for this node, with this reader.
    pub fn is_of(&self, node: &Name, reader: &R) -> bool
    where
        R: PartialEq,
    {
        self.node == *node && self.reader == *reader
    }

    /// Collects what is new. `first` is the first segment of this boot. Returns whether there is more right now.
    pub fn round(&mut self, first: &SegmentName, now_us: u64) -> anyhow::Result<bool> {
        let written = match self.written.take() {
            Some(written) => written,
            None => self.begin(first, now_us)?,
        };
        let (mut parts, mut has_news, mut has_more) = (BTreeMap::new(), false, false);
        for (name, source) in &self.sources {
            let from = written.at.get(name).unwrap_or(&At::Start);
            let News { part, is_cut } = source.news(from)?;
            has_news |= !part.text.is_empty() || part.is_after_loss;
            has_more |= is_cut;
            parts.insert(name.clone(), part);
        }
        if !has_news {
            self.written = Some(written);
            return Ok(has_more);
        }
        let written = match written.end() >= SEGMENT_LEN_MAX {
            true => {
                self.close(&written)?;
                let next = written.segment.next();
                written.in_segment(next, now_us)
            }
            false => written,
        };
        let next = written.next(&self.node, &self.reader, parts, now_us);
        keep::store(&self.state.join(INTENT), &next)?;
        self.carry_out(&next)?;
        self.written = Some(next);
        Ok(has_more)
    }

    fn begin(&self, first: &SegmentName, now_us: u64) -> anyhow::Result<Intent> {
        for directory in [&self.segments, &self.state] {
            let made = DirBuilder::new().recursive(true).mode(0o750).create(directory);
            made.with_context(|| format!("making {}", directory.display()))?;
        }
        let (intent, ended) = (self.state.join(INTENT), self.state.join(ENDED));
        let ended_in: Option<String> = keep::load(&ended)?;
        let mut written = keep::load(&intent)?.unwrap_or_else(|| Intent::first(first.clone()));
        if !written.segment.is_of_boot_of(first) {
            // The machine was started anew. If daemons ended before that, all of their lines are there.
            self.carry_out(&written)?;
            if ended_in.as_deref() == Some(written.segment.boot()) {
                self.close(&written)?;
            }
            written = written.in_segment(first.clone(), now_us);
            // The old segment is never written again; it may be merged and gone by then.
            keep::store(&intent, &written)?;
        }
        self.carry_out(&written)?;
        atomic::remove(&ended)?;
        Ok(written)
    }

    fn carry_out(&self, intent: &Intent) -> anyhow::Result<()> {
        match intent.bytes.is_empty() {
            true => Ok(()),
            false => self.write(&intent.segment, intent.base, intent.bytes.as_bytes()),
        }
    }

    fn close(&self, written: &Intent) -> anyhow::Result<()> {
        match written.end() {
            // Not begun.
            0 => Ok(()),
            end => self.write(&written.segment, end, format!("{END}\n").as_bytes()),
        }
    }

    fn write(&self, segment: &SegmentName, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.segments.join(segment.to_string());
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).clone();
        let written = options.open(&path).and_then(|file| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_plan::logs::collect::{Memory, Take};

    const NOW_US: u64 = 2_000_000;

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
            let sources = BTreeMap::from([("a".to_owned(), Source::File(self.path("a.log")))]);
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
        collector.round(&machine.first(), NOW_US).expect("nothing yet");
        machine.say("one\ntwo\nha");
        collector.round(&machine.first(), NOW_US).expect("collected");
        // It ends after the intent was kept, and after it was carried out: both are done again.
        for _ in 0..2 {
            collector = machine.collector();
            collector.round(&machine.first(), NOW_US).expect("collected");
        }
        machine.say("lf\nthree\n");
        let whole = std::fs::read(machine.path("segments").join(machine.first().to_string())).expect("a segment");
        collector.round(&machine.first(), NOW_US).expect("collected");
        std::fs::write(machine.path("segments").join(machine.first().to_string()), &whole[..whole.len() - 3])
            .expect("cut");
        machine.collector().round(&machine.first(), NOW_US).expect("collected");
        let text = std::fs::read(machine.path("segments").join(machine.first().to_string())).expect("a segment");
        assert!(text.ends_with(b"three\n"), "what is written again has its place");
    }

    #[test]
    fn a_file_that_is_moved_aside_is_read_to_its_end() {
        let machine = Machine::new();
        let mut collector = machine.collector();
        machine.say("one\n");
        collector.round(&machine.first(), NOW_US).expect("collected");
        machine.say("two\n");
        machine.rotate();
        machine.say("three\n");
        collector = machine.collector();
        for _ in 0..3 {
            collector.round(&machine.first(), NOW_US).expect("collected");
        }
        assert_eq!(machine.said(), ["one", "two", "three"]);
        machine.say("four\n");
        machine.rotate();
        machine.say("five\n");
        machine.rotate();
        machine.say("six\n");
        for _ in 0..3 {
            collector.round(&machine.first(), NOW_US).expect("collected");
        }
        assert_eq!(machine.said(), ["one", "two", "three", "missing", "six"]);
    }

    #[test]
    fn a_segment_ends_where_the_machine_was_switched_off_in_order() {
        let mut machine = Machine::new();
        for is_in_order in [true, false] {
            machine.say("one\n");
            machine.collector().round(&machine.first(), NOW_US).expect("collected");
            let before = machine.path("segments").join(machine.first().to_string());
            if is_in_order {
                told_to_end(&machine.path("state"), &machine.first()).expect("noted");
            }
            machine.boot += 1;
            machine.say("two\n");
            machine.collector().round(&machine.first(), NOW_US).expect("collected");
            let text = std::fs::read_to_string(before).expect("a segment");
            assert_eq!(text.ends_with("# end\n"), is_in_order);
        }
        assert_eq!(machine.said().iter().filter(|word| *word == "two").count(), 2);
    }
}
