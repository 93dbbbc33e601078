//! One probe of a share, in a process of its own, since every line of it may hang.
//!
//! It reads the marker, then writes, syncs, reads back and removes a file, so that no cache can answer for a server that is gone.

use anyhow::{Context, bail, ensure};
use phalanx_model::share::MARKER_FILE;
use phalanx_plan::guard_config::PROBE_DIRECTORY;
use rustix::fs::{Advice, Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// What to probe.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Where the share is mounted.
    pub mount_point: PathBuf,
    /// What its marker file must hold.
    pub marker: String,
    /// The number of this probe; makes the probe file's name and content its own.
    pub number: u64,
}

/// A probe's exit codes, by what they mean.
const WRONG_MARKER: u8 = 10;
const NO_MARKER: u8 = 11;
const NOT_WRITABLE: u8 = 12;

/// Leftovers of killed probes that one probe removes at most.
const LEFTOVERS_MAX: usize = 100;
/// A block that every file system takes for direct I/O.
const BLOCK_LEN: usize = 4_096;

/// Probes and returns the exit code that tells the guard what was found; what is wrong in detail goes to the log.
pub fn run(probe: &Probe) -> u8 {
    match marker(probe) {
        Err(error) => {
            tracing::warn!("{error:#}");
            return NO_MARKER;
        }
        Ok(found) if found != probe.marker => {
            tracing::warn!("the marker is {found:?}, not {:?}", probe.marker);
            return WRONG_MARKER;
        }
        Ok(_) => {}
    }
    match write_and_read_back(probe) {
        Ok(()) => 0,
        Err(error) => {
            tracing::warn!("{error:#}");
            NOT_WRITABLE
        }
    }
}

/// What a probe's end means: nothing is wrong, or what is.
pub(super) fn meaning(status: ExitStatus) -> Option<String> {
    let words = match status.code().map(u8::try_from) {
        Some(Ok(0)) => return None,
        Some(Ok(WRONG_MARKER)) => "another share is mounted there: its marker is not this one's",
        Some(Ok(NO_MARKER)) => "the share's marker file can't be read",
        Some(Ok(NOT_WRITABLE)) => "the share can't be written and read back",
        _ if status.signal().is_some() => "the probe was killed after it hung",
        _ => "the probe failed",
    };
    Some(words.to_owned())
}

fn marker(probe: &Probe) -> anyhow::Result<String> {
    let path = probe.mount_point.join(MARKER_FILE);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let mut text = String::new();
    file.take(100).read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

fn write_and_read_back(probe: &Probe) -> anyhow::Result<()> {
    let directory = probe.mount_point.join(PROBE_DIRECTORY);
    // Looked for first: a server that squashes root refuses to make it before it sees that it is there.
    if !directory.is_dir()
        && let Err(error) = std::fs::create_dir(&directory)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        bail!("making {}: {error}", directory.display());
    }
    let node = node_name()?;
    remove_leftovers(&directory, &format!("{node}-"))?;
    let path = directory.join(format!("{node}-{}", probe.number));
    let mut content = format!("{node} {} {}\n", probe.number, std::process::id()).into_bytes();
    content.resize(BLOCK_LEN, b' ');
    let done = write(&path, &content).and_then(|()| read_back(&path, &content));
    let removed = std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()));
    done.and(removed)
}

/// The node's own name: probes of several nodes meet in one directory.
pub(super) fn node_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host's name")?;
    Ok(name.trim().replace('/', "_"))
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut file = File::create_new(path).with_context(|| format!("making {}", path.display()))?;
    file.write_all(content).with_context(|| format!("writing {}", path.display()))?;
    file.sync_all().with_context(|| format!("syncing {}", path.display()))?;
    // Only a hint; direct I/O below is what goes past the cache.
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("dropping {}", path.display()))
}

/// Reads past the cache where the file system can (tmpfs, for one, has nothing but its cache).
fn read_back(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let direct = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
    let file = match direct {
        Err(rustix::io::Errno::INVAL) => {
            File::open(path).with_context(|| format!("opening {}", path.display()))?.into()
        }
        other => other.with_context(|| format!("opening {}", path.display()))?,
    };
    let mut space = vec![0_u8; 2 * BLOCK_LEN];
    let start = space.as_ptr().align_offset(BLOCK_LEN).min(BLOCK_LEN);
    let block = &mut space[start..start + BLOCK_LEN];
    let read = rustix::io::pread(&file, &mut *block, 0).with_context(|| format!("reading {}", path.display()))?;
    ensure!(block[..read] == *content, "{} does not hold what was written", path.display());
    Ok(())
}

fn remove_leftovers(directory: &Path, prefix: &str) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let ours = entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    for entry in ours.take(LEFTOVERS_MAX) {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::debug!(%error, "a leftover is gone already");
        }
    }
    Ok(())
}
