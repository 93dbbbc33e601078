//! Logs on a node's disk and on the share, for [`phalanx_plan::logs`].
//!
//! Root of a node is nobody to an NFS server that squashes it, and homes belong to customers who may put anything into them. So files on the
//! share are opened as whoever they belong to ([`act_as`]): the logs on their way as [`OWNER`], a site's log as its account, which then can reach
//! nothing that the account could not. Paths are opened beneath the share's root and without symlinks, and from a descriptor of the root whose
//! marker was read, so that nothing is written where another share, or none, is mounted.
//!
//! Every call here may hang as long as the share does: this is for a process of its own.

mod depot;
mod identity;
mod site;
mod storage;

pub use depot::NodeDepot;
pub use identity::act_as;
use identity::charged_to;
pub use site::{Reading, SiteLog, Whole, whole_files};
pub use storage::MergeStorage;

use crate::atomic::{FileError, failed};
use phalanx_model::Name;
use phalanx_model::share::MARKER_FILE;
use phalanx_plan::logs::segment::SegmentName;
use phalanx_plan::logs::stream::Stream;
use phalanx_plan::logs::{LogsShare, OWNER};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, fsync, mkdirat, openat2, renameat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The logs of a stream on a share whose marker was read.
#[derive(Debug)]
pub struct LogShare {
    root: OwnedFd,
    logs: OwnedFd,
    stream: Stream,
    /// For words only.
    path: PathBuf,
}

impl LogShare {
    /// Opens the share that is mounted at its place, if it is that one.
    ///
    /// # Errors
    /// It is not, or its logs' directory is missing.
    pub fn open(share: &LogsShare, stream: Stream) -> Result<Self, FileError> {
        let path = Path::new(&share.mount_point);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(errno(path, "opening"))?;
        let mut marker = String::new();
        let marker_path = path.join(MARKER_FILE);
        let file = open_beneath(&root, MARKER_FILE, OFlags::RDONLY).map_err(errno(&marker_path, "opening"))?;
        File::from(file).take(100).read_to_string(&mut marker).map_err(failed(&marker_path, "reading"))?;
        if marker.trim_end() != share.marker.as_str() {
            return Err(failed(&marker_path, "finding this share's marker")(std::io::ErrorKind::InvalidData.into()));
        }
        let name = stream.directory();
        let path = path.join(name);
        let logs = act_as(OWNER, || match open_beneath(&root, name, OFlags::RDONLY | OFlags::DIRECTORY) {
            // One within the logs' directory is its owner's to make.
            Err(Errno::NOENT) if stream != Stream::Access => {
                mkdirat(&root, name, Mode::RWXU)?;
                open_beneath(&root, name, OFlags::RDONLY | OFlags::DIRECTORY)
            }
            opened => opened,
        });
        let logs = logs.map_err(errno(&path, "opening"))?;
        Ok(Self { root, logs, stream, path })
    }

    /// A small file; none where there is none.
    ///
    /// # Errors
    /// The file system's words.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.path.join(name);
        match act_as(OWNER, || open_beneath(&self.logs, name, OFlags::RDONLY)) {
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(errno(&path, "opening")(error)),
            Ok(file) => {
                let mut content = Vec::new();
                File::from(file).read_to_end(&mut content).map_err(failed(&path, "reading"))?;
                Ok(Some(content))
            }
        }
    }

    /// Replaces a small file: written beside it, synced, renamed over it, the directory synced.
    fn set(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
        let path = self.path.join(name);
        let (parent, name) = name.rsplit_once('/').unwrap_or((".", name));
        let beside = format!(".{name}.new");
        act_as(OWNER, || {
            let directory = self.directory(parent).map_err(errno(&path, "making the directory of"))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
            let file = open_beneath(&directory, &beside, flags).map_err(errno(&path, "making"))?;
            let mut file = File::from(file);
            file.write_all(content).map_err(failed(&path, "writing"))?;
            file.sync_all().map_err(failed(&path, "syncing"))?;
            renameat(&directory, &beside, &directory, name).map_err(errno(&path, "renaming into place"))?;
            fsync(&directory).map_err(errno(&path, "syncing the directory of"))
        })
    }

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// The file system's words.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.path.join(name);
        let (parent, name) = name.rsplit_once('/').unwrap_or((".", name));
        act_as(OWNER, || {
            let directory = self.directory(parent).map_err(errno(&path, "opening the directory of"))?;
            match unlinkat(&directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(errno(&path, "removing")(error)),
            }
        })
    }

    /// The names in a directory; none where there is no directory.
    ///
    /// # Errors
    /// The file system's words.
    pub fn names(&self, directory: &str) -> Result<Vec<String>, FileError> {
        let path = self.path.join(directory);
        act_as(OWNER, || match open_beneath(&self.logs, directory, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(error) => Err(errno(&path, "opening")(error)),
            Ok(opened) => names_in(opened, usize::MAX).map(Option::unwrap_or_default).map_err(errno(&path, "listing")),
        })
    }

    /// The segments of a node.
    fn segments(&self, node: &Name) -> Result<Vec<SegmentName>, FileError> {
        Ok(self.names(node.as_str())?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A directory below the logs', made where it is missing.
    fn directory(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match open_beneath(&self.logs, name, flags) {
            Err(Errno::NOENT) => {
                mkdirat(&self.logs, name, Mode::RWXU)?;
                open_beneath(&self.logs, name, flags)
            }
            opened => opened,
        }
    }
}

/// Opens `path` below `at`, through no symlink; what is made belongs to its owner alone.
fn open_beneath(at: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o640) } else { Mode::empty() };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(at, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, resolve)
}

/// The names in a directory; none where there are more than `count_max`.
fn names_in(directory: OwnedFd, count_max: usize) -> Result<Option<Vec<String>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::new(directory)? {
        if names.len() >= count_max {
            return Ok(None);
        }
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(Some(names))
}

fn errno(path: &Path, what: &'static str) -> impl FnOnce(Errno) -> FileError {
    let failed = failed(path, what);
    move |errno| failed(errno.into())
}

#[cfg(test)]
mod tests;
