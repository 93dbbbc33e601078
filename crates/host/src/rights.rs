//! Who has a right, as a share tells it ([`phalanx_plan::rights`]): written by who keeps the share, read by who mounts it.
//!
//! Written in place, in one write of a sector, and synced. A reader that meets half a write understands nothing and does nothing.

use crate::atomic::{FileError, failed};
use phalanx_model::Right;
use phalanx_plan::rights::{DIRECTORY, FILE_LEN, Held, KeptRight, queue_directory};
use phalanx_plan::spec::KeptShare;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// What a share tells of the rights that it shall tell of. What can't be understood is left out, and so written anew.
///
/// # Errors
/// A file is there and can't be read.
pub fn observe(share: &KeptShare) -> Result<Vec<Held>, FileError> {
    let root = Path::new(share.path.as_str());
    let told = share.rights.iter().map(|kept| read(&root.join(kept.held.file())));
    told.filter_map(Result::transpose).collect()
}

/// What one file tells; none where it is not there or was not written whole.
///
/// # Errors
/// It is there and can't be read.
pub fn read(path: &Path) -> Result<Option<Held>, FileError> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed(path, "opening"))?,
    };
    let mut bytes = Vec::with_capacity(FILE_LEN);
    file.take(FILE_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed(path, "reading"))?;
    Ok(Held::from_bytes(&bytes))
}

/// Makes the share at `root` tell these, and makes the directories of queues.
///
/// # Errors
/// The share can't be written.
pub fn tell(root: &Path, rights: &[KeptRight]) -> Result<(), FileError> {
    let own = root.join(DIRECTORY);
    for (directory, mode) in [(own.clone(), 0o755), (own.join("rights"), 0o755), (own.join("queues"), 0o711)] {
        make(&directory, mode)?;
    }
    for KeptRight { held, address: _ } in rights {
        let path = root.join(held.file());
        match &held.right {
            Right::Mailboxes | Right::Logs => make(&own.join("rights").join(held.cluster.as_str()), 0o755)?,
            Right::Queue(server) => make(&root.join(queue_directory(server)), 0o755)?,
        }
        write(&path, &held.to_bytes())?;
    }
    Ok(())
}

fn make(directory: &Path, mode: u32) -> Result<(), FileError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(failed(directory, "making the directory")(error));
        }
        _ => {}
    }
    let permissions = PermissionsExt::from_mode(mode);
    fs::set_permissions(directory, permissions).map_err(failed(directory, "setting the mode"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(failed(path, "opening"))?;
    file.write_all_at(bytes, 0).and_then(|()| file.set_len(FILE_LEN as u64)).map_err(failed(path, "writing"))?;
    file.sync_all().map_err(failed(path, "syncing"))?;
    crate::atomic::sync_directory_of(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_model::share::Marker;
    use std::collections::BTreeSet;

    fn kept(holder: &str, number: u64, right: Right) -> KeptRight {
        let name = |text: &str| text.parse().expect("a name");
        KeptRight {
            held: Held { cluster: name("mail"), right, holder: name(holder), number, is_void: false },
            address: None,
        }
    }

    #[test]
    fn what_is_told_is_read_and_what_is_torn_is_not() {
        let root = tempfile::tempdir().expect("a directory");
        let queue = || Right::Queue("mail2".parse().expect("a name"));
        let rights = vec![kept("mail1", 1, Right::Mailboxes), kept("mail2", 1, queue())];
        let share = |rights| KeptShare {
            share: "letters".parse().expect("a name"),
            marker: Marker::from_bits(7),
            path: "/srv/x".parse().expect("a path"),
            nfs_clients: BTreeSet::new(),
            rights,
        };
        let files = |rights: &[KeptRight]| -> Vec<Option<Held>> {
            rights.iter().map(|kept| read(&root.path().join(kept.held.file())).expect("readable")).collect()
        };
        assert_eq!(files(&rights), vec![None, None]);
        assert!(observe(&share(rights.clone())).expect("nothing is there").is_empty());
        tell(root.path(), &rights).expect("written");
        assert_eq!(files(&rights), rights.iter().map(|kept| Some(kept.held.clone())).collect::<Vec<_>>());
        let moved = [kept("mail1", 2, queue())];
        tell(root.path(), &moved).expect("written");
        assert_eq!(files(&moved), vec![Some(moved[0].held.clone())]);
        let path = root.path().join(moved[0].held.file());
        fs::write(&path, &moved[0].held.to_bytes()[..100]).expect("torn");
        assert_eq!(files(&moved), vec![None]);
    }
}
