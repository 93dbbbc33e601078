//! A merged log where it lies: a site's in its account's home, or the cluster's beside the segments.
//!
//! A home's owner may remove, replace or lock what is there at any moment. What comes of it for his own log is an answer
//! ([`Refused`]), not an error; an error means that the share does not do its work.

use super::{LogShare, act_as, charged_to, errno, names_in, open_beneath};
use crate::atomic::{FileError, failed};
use phalanx_model::share::HOMES;
use phalanx_plan::logs::OWNER;
use phalanx_plan::logs::batch::Log;
use phalanx_plan::logs::rotate::{self, Seen};
use rustix::fd::OwnedFd;
use rustix::fs::{
    Advice, AtFlags, FileType, Mode, OFlags, Stat, fadvise, fstat, fsync, mkdirat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// The cluster's own log.
const CLUSTER: &str = "cluster";

/// The directory of a log has so many names at most.
const NAMES_MAX: usize = 4_096;

/// Why an owner's place takes nothing, in words for a person.
pub type Refused = String;

/// Where a merged log lies.
#[derive(Debug)]
pub struct SiteLog<'s> {
    share: &'s LogShare,
    log: &'s Log,
}

/// A log that is written to, and may not have it yet after a crash.
#[derive(Debug)]
#[must_use = "what is written is there for good once it is settled"]
pub struct Unsettled {
    file: File,
    /// What was written lies from here on.
    from: u64,
}

/// A part of a merged log, for whoever reads it on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// The file, which is another one after it was moved aside.
    pub file: u64,
    /// Where the part ends.
    pub offset: u64,
    /// Whole lines.
    pub text: Vec<u8>,
}

impl<'s> SiteLog<'s> {
    /// The log on the share.
    pub fn new(share: &'s LogShare, log: &'s Log) -> Self {
        Self { share, log }
    }

    /// Length and age; zero where there is none.
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn look(&self) -> Result<Result<Seen, Refused>, FileError> {
        self.answer("looking at it", || {
            let directory = self.directory()?;
            match statat(&directory, self.name(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(Seen::default()),
                Err(error) => Err(error),
                Ok(stat) => {
                    is_file(&stat)?;
                    let micros = stat.st_mtime.saturating_mul(1_000_000) as u64 + stat.st_mtime_nsec as u64 / 1_000;
                    Ok(Seen { len: stat.st_size as u64, written_us: micros })
                }
            }
        })
    }

    /// The names in its directory.
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn beside(&self) -> Result<Result<Vec<String>, Refused>, FileError> {
        self.answer("listing", || self.names())
    }

    /// Moves it aside, unless something has that name, and removes the names that are outdated.
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn move_aside(&self, name: &str) -> Result<Result<(), Refused>, FileError> {
        self.answer("moving it aside", || {
            let directory = self.directory()?;
            match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error),
            }
            match renameat(&directory, self.name(), &directory, name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            for outdated in rotate::outdated(self.name(), &self.names()?) {
                match unlinkat(&directory, &outdated, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// Opens it for writing; it is made where there is none.
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn open(&self) -> Result<Result<Unsettled, Refused>, FileError> {
        self.answer("opening", || {
            // What is a FIFO must not be waited for.
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK;
            let file = open_beneath(self.directory()?, self.name(), flags)?;
            is_file(&fstat(&file)?)?;
            Ok(Unsettled { file: File::from(file), from: u64::MAX })
        })
    }

    /// Writes `bytes` at `at`, or at its end where that is before. They are there for good once they are [settled](Self::settle).
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn write(&self, open: &mut Unsettled, at: u64, bytes: &[u8]) -> Result<Result<(), Refused>, FileError> {
        let Unsettled { file, from } = open;
        let written = charged_to(self.owner(), || {
            let at = at.min(fstat(&*file)?.st_size as u64);
            *from = at.min(*from);
            file.write_all_at(bytes, at).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        });
        self.told("writing", written)
    }

    /// Waits until what was written is there for good.
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn settle(&self, written: Unsettled) -> Result<Result<(), Refused>, FileError> {
        self.told("syncing", fsync(&written.file))
    }

    /// Whole lines from `offset` of `file`, or of what is its place now from the beginning; without a place, the last `len_max` bytes.
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn read(&self, from: Option<(u64, u64)>, len_max: usize) -> Result<Result<Reading, Refused>, FileError> {
        self.answer("reading", || {
            let file = match open_beneath(self.directory()?, self.name(), OFlags::RDONLY | OFlags::NONBLOCK) {
                Err(Errno::NOENT) => return Ok(Reading::default()),
                opened => opened?,
            };
            let stat = fstat(&file)?;
            is_file(&stat)?;
            let (inode, len) = (stat.st_ino, stat.st_size as u64);
            let (offset, is_whole) = match from {
                Some((file, offset)) if file == inode && offset <= len => (offset, true),
                Some(_) => (0, true),
                None => (len.saturating_sub(len_max as u64), len <= len_max as u64),
            };
            let mut text = vec![0; usize::try_from(len - offset).unwrap_or(usize::MAX).min(len_max)];
            let read = File::from(file).read_at(&mut text, offset);
            text.truncate(read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?);
            let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            text.truncate(end);
            let offset = offset + end as u64;
            if !is_whole {
                let begin = text.iter().position(|byte| *byte == b'\n').map_or(end, |first| first + 1);
                text.drain(..begin);
            }
            Ok(Reading { file: inode, offset, text })
        })
    }

    fn answer<T>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<Result<T, Refused>, FileError> {
        self.told(what, act_as(self.owner(), work))
    }

    fn owner(&self) -> u32 {
        match self.log {
            Log::Site { uid, .. } => uid.get(),
            Log::Cluster => OWNER,
        }
    }

    /// An error's meaning: the owner's doing, or the share's.
    fn told<T>(&self, what: &'static str, done: Result<T, Errno>) -> Result<Result<T, Refused>, FileError> {
        match done {
            Ok(done) => Ok(Ok(done)),
            Err(error) if matches!(self.log, Log::Site { .. }) && is_the_owners(error) => {
                let error = std::io::Error::from(error);
                Ok(Err(format!("{}: {what}: {error}", self.path().display())))
            }
            Err(error) => Err(errno(&self.path(), what)(error)),
        }
    }

    /// The names in its directory. An owner may have made millions: then his log takes nothing.
    fn names(&self) -> Result<Vec<String>, Errno> {
        names_in(self.directory()?, NAMES_MAX)?.ok_or(Errno::MLINK)
    }

    fn name(&self) -> &'static str {
        self.share.stream.file()
    }

    fn path(&self) -> PathBuf {
        match self.log {
            Log::Site { site, account, .. } => PathBuf::from(format!("{HOMES}/{account}/logs/{site}/{}", self.name())),
            Log::Cluster => self.share.path.join(CLUSTER).join(self.name()),
        }
    }

    /// The log's directory, made where it is missing.
    fn directory(&self) -> Result<OwnedFd, Errno> {
        let Log::Site { site, account, .. } = self.log else { return self.share.directory(CLUSTER) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = open_beneath(&self.share.root, &format!("{HOMES}/{account}"), flags)?;
        for part in ["logs", site] {
            at = match open_beneath(&at, part, flags) {
                Err(Errno::NOENT) => {
                    match mkdirat(&at, part, Mode::from_raw_mode(0o750)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error),
                    }
                    open_beneath(&at, part, flags)?
                }
                opened => opened?,
            };
        }
        Ok(at)
    }
}

impl Unsettled {
    /// Has Linux begin to write it back: whoever waits for many files does not wait for each by itself. What is on its way is not dropped from
    /// memory, as the advice says otherwise. It is no more than advice, so its failure is nobody's.
    pub fn begin(&self) {
        let _advice = fadvise(&self.file, self.from, None, Advice::DontNeed);
    }
}

/// A log of the cluster that is open.
#[derive(Debug)]
pub struct Whole {
    file: File,
    path: PathBuf,
}

impl Whole {
    /// Reads some bytes from `offset` on; none at the end.
    ///
    /// # Errors
    /// The share does not do its work.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> Result<usize, FileError> {
        self.file.read_at(into, offset).map_err(failed(&self.path, "reading"))
    }
}

/// The cluster's logs that are chosen from the names in their directory.
///
/// # Errors
/// The share does not do its work.
pub fn whole_files(share: &LogShare, choose: impl FnOnce(&[String]) -> Vec<String>) -> Result<Vec<Whole>, FileError> {
    let mut files = Vec::new();
    for name in choose(&share.names(CLUSTER)?) {
        let path = share.path.join(CLUSTER).join(&name);
        let opened = act_as(OWNER, || open_beneath(&share.logs, &format!("{CLUSTER}/{name}"), OFlags::RDONLY));
        files.push(Whole { file: File::from(opened.map_err(errno(&path, "opening"))?), path });
    }
    Ok(files)
}

fn is_file(stat: &Stat) -> Result<(), Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NXIO),
    }
}

/// What comes of what an owner did to his place, or of his quota, and of nothing else.
fn is_the_owners(error: Errno) -> bool {
    const THEIRS: [Errno; 13] = [
        Errno::LOOP,
        Errno::NOTDIR,
        Errno::ISDIR,
        Errno::NXIO,
        Errno::ACCESS,
        Errno::PERM,
        Errno::DQUOT,
        Errno::NOENT,
        Errno::FBIG,
        Errno::TXTBSY,
        Errno::XDEV,
        Errno::MLINK,
        Errno::EXIST,
    ];
    THEIRS.contains(&error)
}
