//! Processes that have, or may open, mailboxes: Dovecot's, and doveadm that a person runs; and processes that work in a mail queue.
//!
//! A mailbox is opened by one node at a time, and whoever stops a Dovecot must see that nothing of it is left: a process that a dead
//! file server holds outlives even SIGKILL, and writes when the server is back. So the kernel is asked, not systemd.
//!
//! Dovecot's of the unit that opens no mailbox are left out.

use crate::atomic::{FileError, failed};
use phalanx_model::Name;
use phalanx_plan::steps::shares::MOUNTS;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The unit whose Dovecot opens no mailbox.
const HARMLESS: &str = "/phalanx-logins.service";

/// The process ids of all openers of mailboxes on this machine.
///
/// # Errors
/// The kernel's list of processes can't be read.
pub fn all() -> Result<Vec<i32>, FileError> {
    let pid = |process: PathBuf| process.file_name()?.to_str()?.parse::<i32>().ok();
    Ok(processes()?.filter(|process| is_opener(process)).filter_map(pid).collect())
}

/// The directories of all processes below `/proc`.
fn processes() -> Result<impl Iterator<Item = PathBuf>, FileError> {
    let place = Path::new("/proc");
    let entries = fs::read_dir(place).map_err(failed(place, "listing"))?;
    let is_number = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<i32>().is_ok());
    Ok(entries.filter_map(Result::ok).filter(move |entry| is_number(&entry.file_name())).map(|entry| entry.path()))
}

/// Whether the process of this directory below `/proc` is one. One that is gone meanwhile is none; one that is dying still is.
fn is_opener(process: &Path) -> bool {
    // Of a process that is ending the link may be gone; its name is left.
    let program =
        fs::read_link(process.join("exe")).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let is_dovecots =
        ["/usr/lib/dovecot/", "/usr/sbin/dovecot", "/usr/bin/doveadm"].iter().any(|p| program.starts_with(p));
    let name = || fs::read_to_string(process.join("comm")).unwrap_or_default();
    let may_be = is_dovecots || (program.is_empty() && NAMES.contains(&name().trim_end()));
    if !may_be {
        return false;
    }
    let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    !cgroup.contains(HARMLESS)
}

/// What Dovecot's processes that touch mailboxes are called.
const NAMES: [&str; 8] =
    ["dovecot", "imap", "pop3", "lmtp", "indexer-worker", "quota-status", "managesieve", "doveadm"];

/// The servers whose queue's mount is the working directory of a process here. All of Postfix works in its queue's directory, and so do
/// `postqueue` and `postsuper`.
///
/// # Errors
/// The kernel's list of processes can't be read.
pub fn queue_users() -> Result<BTreeSet<Name>, FileError> {
    let prefix = format!("{MOUNTS}queue@");
    let user = |process: &Path| {
        let cwd = fs::read_link(process.join("cwd")).ok()?;
        let below = cwd.to_str()?.strip_prefix(&prefix)?;
        below.split(['/', ' ']).next()?.parse().ok()
    };
    Ok(processes()?.filter_map(|process| user(&process)).collect())
}

/// Ends them all, at once.
///
/// # Errors
/// One can't be told to end.
pub fn end_all() -> Result<(), FileError> {
    for pid in all()? {
        let Some(process) = rustix::process::Pid::from_raw(pid) else { continue };
        match rustix::process::kill_process(process, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => {
                let path = Path::new("/proc").join(pid.to_string());
                return Err(failed(&path, "ending the process")(errno.into()));
            }
        }
    }
    Ok(())
}
