//! Shares and homes on the machine that keeps them.
//!
//! A home belongs to a customer, who may put anything into it at any time. Root therefore opens each path from the share's root by
//! openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, one level at a time, and changes the owner only of a directory that it has
//! open and that belongs to root. A removed account's home is moved aside, never deleted.

use crate::atomic::{self, Access, FileError, failed};
use phalanx_model::mail::MAIL;
use phalanx_model::share::{HOMES, MARKER_FILE};
use phalanx_model::{Name, Uid};
use phalanx_plan::guard_config::PROBE_DIRECTORY;
use phalanx_plan::logs::{DIRECTORY, OWNER};
use phalanx_plan::spec::KeptShare;
use phalanx_plan::steps::observed::SeenShare;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, fchmod, fchown, fstat, mkdirat, openat2, renameat, statat};
use rustix::io::Errno;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// What every home has, with the mode: sites, PHP's sessions (which tell who is logged in), temporary files, logs.
const PARTS: [(&str, u32); 4] = [("sites", 0o750), ("sessions", 0o700), ("tmp", 0o700), ("logs", 0o750)];
/// Where homes of removed accounts go, below the homes.
const REMOVED: &str = ".removed";

/// Why a home could not be made or moved aside.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The file system's words.
    #[error("{path}: {what} failed", path = path.display())]
    File {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A directory of this name is somebody else's.
    #[error("{path} belongs to uid {owner}, not to {uid}; move it away or give the account another name", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        uid: Uid,
    },
}

/// Looks for a share's marker.
pub fn observe_share(share: &KeptShare) -> SeenShare {
    match atomic::read(&Path::new(share.path.as_str()).join(MARKER_FILE)) {
        Ok(Some(bytes)) => SeenShare::Marked(String::from_utf8_lossy(&bytes).trim_end().to_owned()),
        Ok(None) => SeenShare::Unmarked,
        Err(error) => SeenShare::Unknown(format!("{error}: {}", error.source)),
    }
}

/// Makes a share: its directory, the homes' directory, the marker file last, so that a share with a marker is complete.
///
/// # Errors
/// The file system's words.
pub fn keep_share(share: &KeptShare) -> Result<(), FileError> {
    let root = Path::new(share.path.as_str());
    let removed = root.join(HOMES).join(REMOVED);
    std::fs::create_dir_all(&removed).map_err(failed(&removed, "making the directory"))?;
    // Guards of nodes write there, as nobody where the server squashes root.
    let probes = root.join(PROBE_DIRECTORY);
    std::fs::create_dir_all(&probes).map_err(failed(&probes, "making the directory"))?;
    let logs = root.join(DIRECTORY);
    std::fs::create_dir_all(&logs).map_err(failed(&logs, "making the directory"))?;
    chown(&logs, Some(OWNER), Some(OWNER)).map_err(failed(&logs, "giving it to the owner of logs"))?;
    for (directory, mode) in
        [(root.to_owned(), 0o755), (root.join(HOMES), 0o755), (removed, 0o700), (probes, 0o1777), (logs, 0o700)]
    {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&directory, permissions).map_err(failed(&directory, "setting the mode"))?;
    }
    atomic::write(&root.join(MARKER_FILE), format!("{}\n", share.marker.as_str()).as_bytes(), Access::PUBLIC)
}

/// Makes what is missing of an account's home: the home, its parts, and these document roots (paths below the home).
///
/// What the customer put in a directory's place, such as a symbolic link to where the site really lies, is the customer's choice and
/// stays: httpd follows it as the account.
///
/// Says whether there was a home already and it was root's: what somebody took from its account, or what a crash left half made.
///
/// # Errors
/// The file system's words, or the home is another's.
pub fn make_home<'r>(
    share_root: &Path,
    account: &Name,
    uid: Uid,
    document_roots: impl Iterator<Item = &'r str>,
) -> Result<bool, HomeError> {
    let homes_path = share_root.join(HOMES);
    let homes = open_root(&homes_path)?;
    let was_roots = statat(&homes, account.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|seen| seen.st_uid == 0);
    let home_path = homes_path.join(account.as_str());
    let not_a_directory =
        || HomeError::File { path: home_path.clone(), what: "opening the directory", source: Errno::NOTDIR.into() };
    let home = enter(&homes, account.as_str(), 0o750, uid, &home_path)?.ok_or_else(not_a_directory)?;
    for (part, mode) in PARTS {
        enter(&home, part, mode, uid, &home_path.join(part))?;
    }
    for document_root in document_roots {
        let mut path = home_path.clone();
        let mut at =
            home.try_clone().map_err(|source| HomeError::File { path: path.clone(), what: "opening", source })?;
        for part in document_root.split('/') {
            path.push(part);
            let Some(entered) = enter(&at, part, 0o750, uid, &path)? else { break };
            at = entered;
        }
    }
    Ok(was_roots)
}

/// Makes the directory for a domain's mailboxes, if it is missing, and gives it to its account. The probe mailbox has one, too.
///
/// # Errors
/// The file system's words, or the directory is another account's.
pub fn make_mail_directory(share_root: &Path, domain: &str, uid: Uid) -> Result<(), HomeError> {
    let mail_path = share_root.join(MAIL);
    let path = mail_path.join(domain);
    let failed = |what| move |source| HomeError::File { path: mail_path.clone(), what, source };
    let root = open_root(share_root)?;
    match mkdirat(&root, MAIL, Mode::from_raw_mode(0o711)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed("making the directory")(errno.into())),
    }
    let mail = open_beneath(&root, MAIL).map_err(|errno| failed("opening the directory")(errno.into()))?;
    match enter(&mail, domain, 0o700, uid, &path)? {
        Some(_) => Ok(()),
        None => Err(HomeError::File { path, what: "opening the directory", source: Errno::NOTDIR.into() }),
    }
}

/// Moves a home aside, to a name that tells when; one that is not there is fine.
///
/// # Errors
/// The file system's words, or the home is another's.
pub fn retire_home(share_root: &Path, account: &Name, uid: Uid, now_unix_s: u64) -> Result<(), HomeError> {
    let homes_path = share_root.join(HOMES);
    let home_path = homes_path.join(account.as_str());
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |errno: Errno| HomeError::File { path, what, source: errno.into() }
    };
    let homes = open_root(&homes_path)?;
    let home = match open_beneath(&homes, account.as_str()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(failed("opening", &home_path))?,
    };
    let owner = fstat(&home).map_err(failed("looking at it", &home_path))?.st_uid;
    if owner != uid.get() {
        return Err(HomeError::Foreign { path: home_path, owner, uid });
    }
    let removed = open_beneath(&homes, REMOVED).map_err(failed("opening", &homes_path.join(REMOVED)))?;
    let name = format!("{account}-{uid}-{now_unix_s}");
    renameat(&homes, account.as_str(), &removed, &name).map_err(failed("moving it aside", &home_path))
}

fn open_root(path: &Path) -> Result<OwnedFd, HomeError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| HomeError::File {
        path: path.to_owned(),
        what: "opening",
        source: errno.into(),
    })
}

fn open_beneath(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(at, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// Opens the directory `name` below `at`, making it where it is missing; what root made and has not yet given away goes to `uid`. None where
/// something else that belongs to `uid` has the name.
fn enter(at: impl AsFd, name: &str, mode: u32, uid: Uid, path: &Path) -> Result<Option<OwnedFd>, HomeError> {
    let failed = |what| move |errno: Errno| HomeError::File { path: path.to_owned(), what, source: errno.into() };
    match mkdirat(&at, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed("making the directory")(errno)),
    }
    let opened = match open_beneath(&at, name) {
        Err(Errno::LOOP | Errno::NOTDIR) => {
            let owner = statat(&at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("looking at it"))?.st_uid;
            return if owner == uid.get() {
                Ok(None)
            } else {
                Err(HomeError::Foreign { path: path.to_owned(), owner, uid })
            };
        }
        opened => opened.map_err(failed("opening the directory"))?,
    };
    match fstat(&opened).map_err(failed("looking at it"))?.st_uid {
        owner if owner == uid.get() => {}
        0 => {
            let (owner, group) = (rustix::fs::Uid::from_raw(uid.get()), rustix::fs::Gid::from_raw(uid.get()));
            fchmod(&opened, mode.into()).map_err(failed("setting the mode"))?;
            fchown(&opened, Some(owner), Some(group)).map_err(failed("giving it to the account"))?;
        }
        owner => return Err(HomeError::Foreign { path: path.to_owned(), owner, uid }),
    }
    Ok(Some(opened))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn share(root: &Path) {
        std::fs::create_dir_all(root.join(HOMES).join(REMOVED)).expect("made");
    }

    fn account() -> (Name, Uid) {
        ("alice".parse().expect("a name"), Uid::FIRST)
    }

    #[test]
    fn a_home_is_made_whole_and_twice_is_as_once() {
        let root = tempfile::tempdir().expect("a directory");
        share(root.path());
        let (name, uid) = account();
        for _ in 0..2 {
            make_home(root.path(), &name, uid, ["sites/www.example.org/public"].into_iter()).expect("made");
        }
        let home = root.path().join("home/alice");
        for (path, mode) in [("", 0o750), ("sessions", 0o700), ("sites/www.example.org/public", 0o750)] {
            let metadata = home.join(path).metadata().expect("it is there");
            assert_eq!(
                (metadata.uid(), metadata.gid(), metadata.mode() & 0o777),
                (uid.get(), uid.get(), mode),
                "{path}"
            );
        }
    }

    #[test]
    fn a_customers_symlink_is_never_followed() {
        let root = tempfile::tempdir().expect("a directory");
        let outside = tempfile::tempdir().expect("a directory");
        share(root.path());
        let (name, uid) = account();
        make_home(root.path(), &name, uid, std::iter::empty()).expect("made");
        let link = root.path().join("home/alice/sites/www.example.org");
        symlink(outside.path(), &link).expect("linked");
        let make = || make_home(root.path(), &name, uid, ["sites/www.example.org/public", "sites/b"].into_iter());
        let error = make().expect_err("a link that is not the customer's");
        assert!(matches!(error, HomeError::Foreign { .. }), "{error}");
        std::os::unix::fs::lchown(&link, Some(uid.get()), Some(uid.get())).expect("given to the customer");
        assert!(!make().expect("the customer's own choice"), "nobody took it");
        std::os::unix::fs::chown(root.path().join("home/alice"), Some(0), Some(0)).expect("taken");
        assert!(make().expect("given back"), "somebody took it");
        assert!(!make().expect("it is the account's"));
        assert!(root.path().join("home/alice/sites/b").is_dir(), "the other site has its place");
        assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 0);
        assert_eq!(outside.path().metadata().expect("there").uid(), 0);
    }

    #[test]
    fn another_accounts_home_is_left_alone_and_a_removed_one_moves_aside() {
        let root = tempfile::tempdir().expect("a directory");
        share(root.path());
        let (name, uid) = account();
        make_home(root.path(), &name, uid, std::iter::empty()).expect("made");
        let other = Uid::LAST;
        assert!(matches!(make_home(root.path(), &name, other, std::iter::empty()), Err(HomeError::Foreign { .. })));
        assert!(matches!(retire_home(root.path(), &name, other, 7), Err(HomeError::Foreign { .. })));
        retire_home(root.path(), &name, uid, 7).expect("moved");
        assert!(root.path().join(format!("home/.removed/alice-{uid}-7/sites")).exists());
        retire_home(root.path(), &name, uid, 8).expect("nothing is there any more");
    }
}
