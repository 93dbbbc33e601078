//! The files of the access log. One is never renamed, and never written to again once another is begun: what is in it can be known by its
//! name and offset.

use phalanx_plan::logs::segment::{END, SegmentName, header};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A segment so long, or so old, is closed and another one begun.
const LEN_MAX: u64 = 64 << 20;
const AGE_MAX: Duration = Duration::from_secs(3_600);
/// After a failure a segment is begun so much later: each try may leave a file.
const PAUSE: Duration = Duration::from_secs(1);

/// The segments of this boot, of which the last one is open.
#[derive(Debug)]
pub struct Segments {
    directory: PathBuf,
    node: String,
    first: SegmentName,
    open: Option<Open>,
    failed: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
    begun: Instant,
}

impl Segments {
    /// Segments of `node` in this boot.
    ///
    /// # Errors
    /// The boot's id is none.
    pub fn new(directory: &Path, node: &str, boot_id: &str) -> io::Result<Self> {
        let first =
            SegmentName::first(boot_id).ok_or_else(|| io::Error::other(format!("{boot_id:?} is no boot id")))?;
        Ok(Self { directory: directory.to_owned(), node: node.to_owned(), first, open: None, failed: None })
    }

    /// Where they lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Begins one after all that are there, unless one is open.
    ///
    /// # Errors
    /// The file system's words.
    pub fn begin(&mut self) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        if self.failed.is_some_and(|failed| failed.elapsed() < PAUSE) {
            return Err(io::Error::other("it failed a moment ago"));
        }
        let begun = self.make();
        self.failed = begun.is_err().then(Instant::now);
        self.open = Some(begun?);
        Ok(())
    }

    fn make(&self) -> io::Result<Open> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&self.directory)?;
        let mut name = self.first.clone();
        for entry in fs::read_dir(&self.directory)? {
            let found = entry?.file_name().to_str().and_then(|name| name.parse::<SegmentName>().ok());
            name =
                found.filter(|found| found.is_of_boot_of(&name) && *found >= name).map_or(name, |found| found.next());
        }
        let path = self.directory.join(name.to_string());
        let mut file = OpenOptions::new().create_new(true).append(true).mode(0o640).open(&path)?;
        let begun_unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let header = header(&self.node, &name, u64::try_from(begun_unix_us).unwrap_or(u64::MAX));
        if let Err(error) = file.write_all(header.as_bytes()) {
            // It says nothing; the next one takes its name.
            fs::remove_file(&path)?;
            return Err(error);
        }
        Ok(Open { file, len: header.len() as u64, begun: Instant::now() })
    }

    /// Writes whole lines. After a failure the segment gets no more: its last line may be a part of one.
    ///
    /// # Errors
    /// The file system's words.
    pub fn write(&mut self, lines: &str) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| open.len >= LEN_MAX || open.begun.elapsed() >= AGE_MAX) {
            self.end()?;
        }
        self.begin()?;
        let Some(open) = &mut self.open else { return Err(io::Error::other("no segment is open")) };
        let written = open.file.write_all(lines.as_bytes());
        match written {
            Ok(()) => open.len += lines.len() as u64,
            Err(_) => {
                self.open = None;
                self.failed = Some(Instant::now());
            }
        }
        written
    }

    /// Closes the one that is open, if any.
    ///
    /// # Errors
    /// The file system's words; it then looks as one that was cut off.
    pub fn end(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some(mut open) => open.file.write_all(format!("{END}\n").as_bytes()),
            None => Ok(()),
        }
    }
}
