//! The end of an account's former httpd, as soon as its last request is answered.
//!
//! An httpd that is told to end gracefully looks once a second whether its children have finished. Until it has seen that, its unit is not
//! free for the next configurations. A signal wakes it up, and one that asks for the
//! immediate end takes nothing from anybody when there is no child left. Who keeps this is nobody: if the agent ends, httpd looks by itself.
//!
//! The process is held (pidfd_open(2)) before it is looked at, so that its number can't pass to another one.

use anyhow::Context;
use phalanx_host::service::{self, Httpd};
use phalanx_model::Uid;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::Path;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);
/// The units' own bound for their end, and a little more.
const LIMIT: Duration = Duration::from_secs(11);

/// A process, and the means to signal it and no other.
struct Held {
    pid: i32,
    handle: OwnedFd,
}

/// Tells httpds of an account to end when their requests are answered, and does not wait for that.
///
/// # Errors
/// systemd does not take the order.
pub async fn end(uid: Uid, httpds: &[&Httpd]) -> anyhow::Result<()> {
    // Held before the order: whether systemd has carried it out when it has taken it is not known.
    let parents: Vec<Held> = httpds.iter().filter_map(|httpd| hold(uid, httpd.pid?)).collect();
    let units: Vec<&str> = httpds.iter().map(|httpd| httpd.unit.as_str()).collect();
    service::stop_units(&units).await?;
    for parent in parents {
        tokio::spawn(hasten(parent));
    }
    Ok(())
}

/// Waits until an httpd that was told to end has done so, and ends it after `grace` at the latest.
///
/// # Errors
/// It can't be ended.
pub async fn insist(uid: Uid, httpd: &Httpd, grace: Duration) -> anyhow::Result<()> {
    let Some(parent) = httpd.pid.and_then(|pid| hold(uid, pid)) else { return Ok(()) };
    let begin = Instant::now();
    // A signal of no effect tells whether there is still a process.
    while pidfd_send_signal(&parent.handle, Signal::CONT).is_ok() {
        if begin.elapsed() > grace {
            tracing::warn!(%uid, unit = httpd.unit, "changes follow each other so fast that a former httpd is ended in its last answers");
            return match pidfd_send_signal(&parent.handle, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => Ok(()),
                Err(error) => Err(error).with_context(|| format!("{} can't be ended", httpd.unit)),
            };
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Takes hold of a process if it is the account's.
fn hold(uid: Uid, pid: i32) -> Option<Held> {
    let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let owner = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?;
    (owner.parse() == Ok(uid.get())).then_some(Held { pid, handle })
}

/// Wakes a process that ends as soon as it has no children, until it has ended.
async fn hasten(parent: Held) {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        tokio::time::sleep(POLL).await;
        match has_children(Path::new("/proc"), parent.pid) {
            Ok(true) => {}
            Ok(false) => match pidfd_send_signal(&parent.handle, Signal::TERM) {
                Ok(()) => {}
                Err(Errno::SRCH) => return,
                Err(error) => return tracing::warn!(%error, "an httpd that ends can't be hastened"),
            },
            // It has ended, or the kernel does not tell whose child a process is.
            Err(_) => return,
        }
    }
}

/// Whether a process has children that live (proc_pid_task(5), proc_pid_stat(5)); those that wait to be noticed do not.
fn has_children(proc: &Path, pid: i32) -> std::io::Result<bool> {
    let children = std::fs::read_to_string(proc.join(format!("{pid}/task/{pid}/children")))?;
    let lives = |child: &str| {
        let stat = std::fs::read_to_string(proc.join(child).join("stat")).ok()?;
        // The name before it is in parentheses and may hold anything.
        let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
        Some(!matches!(state, 'Z' | 'X'))
    };
    Ok(children.split_whitespace().any(|child| lives(child) == Some(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_that_wait_to_be_noticed_do_not_count() {
        let proc = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = proc.path().join(path);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        assert!(has_children(proc.path(), 7).is_err(), "there is no such process");
        write("7/task/7/children", "");
        assert!(!has_children(proc.path(), 7).expect("read"));
        write("7/task/7/children", "8 9 ");
        write("8/stat", "8 (apache2) Z 7 7");
        assert!(!has_children(proc.path(), 7).expect("read"), "8 is finished, and 9 is gone");
        write("9/stat", "9 (odd) Z name) S 7 7");
        assert!(has_children(proc.path(), 7).expect("read"));
    }
}
