//! Files that are there whole or not at all.

use rustix::fs::{Gid, Uid, fchmod, fchown};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What could not be done with a file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what} failed", path = path.display())]
pub struct FileError {
    /// The file or directory.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// For `map_err`: `what` failed at `path`.
pub fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { path, what, source }
}

/// Who may do what with a file: its group and its mode. The owner is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The group; none for the process's own.
    pub group: Option<u32>,
    /// The mode's permission bits.
    pub mode: u32,
}

impl Access {
    /// Everybody may read.
    pub const PUBLIC: Access = Access { group: None, mode: 0o644 };
    /// Root alone.
    pub const SECRET: Access = Access { group: None, mode: 0o600 };
}

/// The number of a local group; none where there is no such group.
///
/// # Errors
/// The groups can't be read.
pub fn group_id(group: &str) -> Result<Option<u32>, FileError> {
    let path = Path::new("/etc/group");
    let text = fs::read_to_string(path).map_err(failed(path, "reading"))?;
    Ok(text.lines().find_map(|line| line.strip_prefix(group)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok()))
}

/// Replaces a file's content: written beside it, synced, renamed over it, the directory synced.
///
/// # Errors
/// The file or its directory can't be written; the old content is then still there.
pub fn write(path: &Path, content: &[u8], access: Access) -> Result<(), FileError> {
    let beside = beside(path);
    let file = stage(&beside, content, access).map_err(failed(&beside, "writing"))?;
    file.sync_all().map_err(failed(&beside, "syncing"))?;
    fs::rename(&beside, path).map_err(failed(path, "renaming into place"))?;
    sync_directory_of(path)
}

/// As [`write`], without syncing: for many files that the caller syncs together. Readers never see a part; a power failure may take
/// the new content.
///
/// # Errors
/// The file or its directory can't be written; the old content is then still there.
pub fn replace(path: &Path, content: &[u8], access: Access) -> Result<(), FileError> {
    let beside = beside(path);
    stage(&beside, content, access).map_err(failed(&beside, "writing"))?;
    fs::rename(&beside, path).map_err(failed(path, "renaming into place"))
}

/// Makes `path` a symbolic link to `target`, replacing what link was there, atomically.
///
/// # Errors
/// The directory can't be written.
pub fn link(path: &Path, target: &str) -> Result<(), FileError> {
    let beside = beside(path);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&beside, "removing")(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &beside).map_err(failed(&beside, "linking"))?;
    fs::rename(&beside, path).map_err(failed(path, "renaming into place"))?;
    sync_directory_of(path)
}

/// Reads a file that may be missing.
///
/// # Errors
/// It is there and can't be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "reading")(error)),
    }
}

/// Removes a file or a directory with all that it holds; one that is not there is fine.
///
/// # Errors
/// It is there and can't be removed.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let is_directory = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(path, "looking at it")(error)),
        Ok(metadata) => metadata.is_dir(),
    };
    let done = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    done.map_err(failed(path, "removing"))
}

/// Makes what was renamed in `path`'s directory last.
///
/// # Errors
/// The directory can't be synced.
pub fn sync_directory_of(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|opened| opened.sync_all()).map_err(failed(directory, "syncing"))
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn stage(path: &Path, content: &[u8], Access { group, mode }: Access) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    fchown(&file, Some(Uid::ROOT), group.map(Gid::from_raw))?;
    fchmod(&file, mode.into())?;
    Ok(file)
}
