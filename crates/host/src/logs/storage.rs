//! The share as the merger sees it, with the directory that knows whose a site is.

use super::site::Unsettled;
use super::{LogShare, SiteLog, act_as, errno, open_beneath};
use crate::atomic::{FileError, failed};
use crate::directory::{DirectoryError, Reader};
use phalanx_model::share::HOMES;
use phalanx_model::{Name, Uid};
use phalanx_plan::logs::OWNER;
use phalanx_plan::logs::batch::{Log, TRAFFIC};
use phalanx_plan::logs::merge::Input;
use phalanx_plan::logs::rotate::Seen;
use phalanx_plan::logs::round::Storage;
use phalanx_plan::logs::segment::SegmentName;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, OFlags, statat};
use rustix::io::{Errno, pread};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;

/// Directories of the logs' that are no node's.
const OTHERS: [&str; 2] = [TRAFFIC, "cluster"];
/// Segments that are open at once.
const OPEN_MAX: usize = 64;
/// Logs that are written to and not settled; each is open meanwhile.
const UNSETTLED_MAX: usize = 512;

/// Why the merger's storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The share.
    #[error("{0}: {source}", source = .0.source)]
    Share(#[from] FileError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// This node knows nothing of sites yet.
    #[error("this node's directory was never filled")]
    NoDirectory,
}

/// The storage of one round: a file of another node that is opened again shows what was written meanwhile.
#[derive(Debug)]
pub struct MergeStorage<'s> {
    share: &'s LogShare,
    share_name: &'s Name,
    directory: &'s Reader,
    open: HashMap<(Name, SegmentName), File>,
    unsettled: HashMap<Log, Unsettled>,
    /// Logs that did not take what they were settled with, before anybody asked.
    refused: Vec<(Log, String)>,
}

impl<'s> MergeStorage<'s> {
    /// The storage on the share of this name.
    ///
    /// # Errors
    /// The directory can't be read, or holds nothing.
    pub fn new(share: &'s LogShare, share_name: &'s Name, directory: &'s Reader) -> Result<Self, StorageError> {
        if !directory.is_filled()? {
            return Err(StorageError::NoDirectory);
        }
        Ok(Self { share, share_name, directory, open: HashMap::new(), unsettled: HashMap::new(), refused: vec![] })
    }

    /// Settles what was written so far.
    fn wait(&mut self) -> Result<(), FileError> {
        self.unsettled.values().for_each(Unsettled::begin);
        for (log, written) in self.unsettled.drain() {
            if let Err(why) = SiteLog::new(self.share, &log).settle(written)? {
                self.refused.push((log, why));
            }
        }
        Ok(())
    }

    fn open(&mut self, node: &Name, segment: &SegmentName) -> Result<&File, FileError> {
        let key = (node.clone(), segment.clone());
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&key) {
            self.open.clear();
        }
        match self.open.entry(key) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let name = format!("{node}/{segment}");
                let opened = act_as(OWNER, || open_beneath(&self.share.logs, &name, OFlags::RDONLY));
                let opened = opened.map_err(errno(&self.share.path.join(name), "opening"))?;
                Ok(place.insert(File::from(opened)))
            }
        }
    }
}

impl Storage for MergeStorage<'_> {
    type Error = StorageError;

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.share.get(name)?)
    }

    fn set(&mut self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        Ok(self.share.set(name, content)?)
    }

    fn nodes(&mut self) -> Result<Vec<Name>, StorageError> {
        let names = self.share.names(".")?;
        Ok(names.iter().filter(|name| !OTHERS.contains(&name.as_str())).filter_map(|name| name.parse().ok()).collect())
    }

    fn segments(&mut self, node: &Name) -> Result<Vec<SegmentName>, StorageError> {
        Ok(self.share.segments(node)?)
    }

    fn len(&mut self, node: &Name, segment: &SegmentName) -> Result<u64, StorageError> {
        let path = self.share.path.join(node.as_str()).join(segment.to_string());
        Ok(self.open(node, segment)?.metadata().map_err(failed(&path, "looking at it"))?.len())
    }

    fn read(&mut self, input: &Input, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), StorageError> {
        let path = self.share.path.join(input.node.as_str()).join(input.segment.to_string());
        let file = self.open(&input.node, &input.segment)?;
        Ok(append(file, offset, len, into).map_err(errno(&path, "reading"))?)
    }

    fn owner(&mut self, site: &str) -> Result<Option<(Name, Uid)>, StorageError> {
        let Some(entry) = self.directory.host(site)?.filter(|entry| entry.site.as_str() == site) else {
            return Ok(None);
        };
        let account = self.directory.account_named(&entry.account)?;
        if account.is_none_or(|(_, share)| share != *self.share_name) {
            return Ok(None);
        }
        let home = format!("{HOMES}/{}", entry.account);
        match statat(&self.share.root, &home, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_uid == entry.uid.get() => Ok(Some((entry.account, entry.uid))),
            // Not made yet, or taken from its account.
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(errno(&self.share.path.join(home), "looking at it")(error).into()),
        }
    }

    fn look(&mut self, log: &Log) -> Result<Result<Seen, String>, StorageError> {
        Ok(SiteLog::new(self.share, log).look()?)
    }

    fn beside(&mut self, log: &Log) -> Result<Result<Vec<String>, String>, StorageError> {
        Ok(SiteLog::new(self.share, log).beside()?)
    }

    fn move_aside(&mut self, log: &Log, name: &str) -> Result<Result<(), String>, StorageError> {
        Ok(SiteLog::new(self.share, log).move_aside(name)?)
    }

    fn write(&mut self, log: &Log, at: u64, bytes: &[u8]) -> Result<Result<(), String>, StorageError> {
        let site_log = SiteLog::new(self.share, log);
        if self.unsettled.len() >= UNSETTLED_MAX && !self.unsettled.contains_key(log) {
            self.wait()?;
        }
        let open = match self.unsettled.entry(log.clone()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => match site_log.open()? {
                Ok(open) => place.insert(open),
                Err(why) => return Ok(Err(why)),
            },
        };
        Ok(site_log.write(open, at, bytes)?)
    }

    fn settle(&mut self) -> Result<Vec<(Log, String)>, StorageError> {
        self.wait()?;
        Ok(std::mem::take(&mut self.refused))
    }
}

/// Appends at most `len` bytes of `file` from `offset` on to `into`, into room that nobody has filled before.
fn append(file: &File, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), Errno> {
    let end = into.len() + len;
    // All the room there is is read into, whatever was asked for: so there should be no more.
    into.reserve_exact(len);
    pread(file, spare_capacity(into), offset)?;
    into.truncate(end);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_is_read_is_no_more_than_what_is_taken() {
        const LEN: usize = 4_096;
        const REST: usize = 100;
        let bytes: Vec<u8> = (0..20 * LEN).map(|index| (index / 7) as u8).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("written");
        let (mut buffer, mut offset) = (Vec::new(), 0);
        while offset < bytes.len() {
            buffer.drain(..buffer.len().saturating_sub(REST));
            let before = buffer.len();
            append(&file, offset as u64, LEN, &mut buffer).expect("read");
            assert_eq!(buffer[before..], bytes[offset..offset + LEN]);
            assert!(buffer.capacity() <= LEN + REST, "room for {} bytes", buffer.capacity());
            offset += LEN;
        }
        append(&file, offset as u64, LEN, &mut buffer).expect("there is no more");
        assert_eq!(buffer.len(), LEN + REST);
    }
}
