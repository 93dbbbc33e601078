//! A node's own segments, and their copies on the share.

use super::{LogShare, errno, open_beneath};
use crate::atomic::{FileError, failed};
use phalanx_model::Name;
use phalanx_plan::logs::OWNER;
use phalanx_plan::logs::segment::SegmentName;
use phalanx_plan::logs::ship::{Depot, Local};
use rustix::fs::OFlags;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// So much is read and written at once.
const PIECE_LEN: u64 = 256 * 1024;

/// The segments of one node.
#[derive(Debug)]
pub struct NodeDepot<'s> {
    /// Whose.
    pub node: &'s Name,
    /// Where its proxy writes them.
    pub local: &'s Path,
    /// Where they go.
    pub share: &'s LogShare,
}

impl Depot for NodeDepot<'_> {
    type Error = FileError;

    fn locals(&mut self) -> Result<Vec<Local>, FileError> {
        let listing = match fs::read_dir(self.local) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing.map_err(failed(self.local, "listing"))?,
        };
        let mut names: Vec<SegmentName> = Vec::new();
        for entry in listing {
            let entry = entry.map_err(failed(self.local, "listing"))?;
            names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        let mut locals = Vec::new();
        for name in names {
            let path = self.local.join(name.to_string());
            let seen = fs::symlink_metadata(&path).map_err(failed(&path, "looking at it"))?;
            let written = seen.modified().map_err(failed(&path, "looking at it"))?;
            let written_us = written.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            locals.push(Local { name, len: seen.len(), written_us: u64::try_from(written_us).unwrap_or(u64::MAX) });
        }
        Ok(locals)
    }

    fn shipped(&mut self) -> Result<Vec<SegmentName>, FileError> {
        self.share.segments(self.node)
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        self.share.get(name)
    }

    fn set(&mut self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.share.set(name, content)
    }

    fn copy(&mut self, name: &SegmentName, part: Range<u64>) -> Result<(), FileError> {
        let from_path = self.local.join(name.to_string());
        // The directory is the proxy's, who could put a link there.
        let options = fs::OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).clone();
        let from = options.open(&from_path).map_err(failed(&from_path, "opening"))?;
        let to_path = self.share.path.join(self.node.as_str()).join(name.to_string());
        let to = super::act_as(OWNER, || {
            let directory = self.share.directory(self.node.as_str())?;
            open_beneath(&directory, &name.to_string(), OFlags::WRONLY | OFlags::CREATE)
        });
        let to = File::from(to.map_err(errno(&to_path, "opening"))?);
        let mut piece = Vec::new();
        let mut at = part.start;
        while at < part.end {
            let len = (part.end - at).min(PIECE_LEN);
            piece.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            from.read_exact_at(&mut piece, at).map_err(failed(&from_path, "reading"))?;
            to.write_all_at(&piece, at).map_err(failed(&to_path, "writing"))?;
            at += len;
        }
        to.sync_all().map_err(failed(&to_path, "syncing"))
    }

    fn remove_local(&mut self, name: &SegmentName) -> Result<(), FileError> {
        let path = self.local.join(name.to_string());
        fs::remove_file(&path).map_err(failed(&path, "removing"))
    }

    fn remove_shipped(&mut self, name: &SegmentName) -> Result<(), FileError> {
        self.share.remove(&format!("{}/{name}", self.node))
    }
}
