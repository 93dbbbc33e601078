//! Processes that have, or may open, mailboxes: Dovecot's, and doveadm that a person runs.
//!
//! A mailbox is opened by one node at a time, and whoever stops a Dovecot must see that nothing of it is left: a process that a dead
//! file server holds outlives even SIGKILL, and writes when the server is back. So the kernel is asked, not systemd.
//!
//! Dovecot's of the unit that opens no mailbox are left out.

use crate::atomic::{FileError, failed};
use std::fs;
use std::path::Path;

/// The unit whose Dovecot opens no mailbox.
const HARMLESS: &str = "/phalanx-logins.service";

/// The process ids of all openers of mailboxes on this machine.
///
/// # Errors
/// The kernel's list of processes can't be read.
pub fn all() -> Result<Vec<i32>, FileError> {
    let place = Path::new("/proc");
    let entries = fs::read_dir(place).map_err(failed(place, "listing"))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.filter(|pid| is_opener(&place.join(pid.to_string()))).collect())
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
