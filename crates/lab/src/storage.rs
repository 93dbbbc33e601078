//! The shared directory as one host sees it: a file server of its own (bindfs) between the NAS's directory and the host,
//! so that a test can hang or take away the storage of that host alone.
//!
//! bindfs passes owners, modes and locks through and caches no names or attributes, so what one host writes the others
//! see at once. It stands for a mount of NFS in all but the protocol: while it hangs, whoever touches a file waits, and
//! cannot be killed before the server answers or is gone. It does not enforce POSIX ACLs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::tools;
use crate::wait::eventually;

/// How long bindfs may take until its mount is there. It takes some milliseconds.
const MOUNT_LIMIT: Duration = Duration::from_secs(10);

/// A mount of the shared directory outside of the host it is for. Dropping it ends its server.
#[derive(Debug)]
pub struct Mounted {
    server: Child,
    path: PathBuf,
}

impl Mounted {
    /// Serves `directory` at `path`, which is made if it does not exist; see [`crate::topology::Storage`] for what locks are worth.
    pub fn start(directory: &Path, path: &Path, locks_between_hosts: bool) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut command = tools::command("bindfs")?;
        command
            .args(["-f", "--multithreaded"])
            .args(locks_between_hosts.then_some("--enable-lock-forwarding"))
            .args(["-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0"])
            .args([directory, path])
            .stdin(Stdio::null());
        let server = command.spawn().context("cannot start bindfs")?;
        let mut mounted = Self { server, path: path.to_owned() };
        eventually(MOUNT_LIMIT, "a mount of the shared directory", || {
            if let Some(status) = mounted.server.try_wait()? {
                bail!("bindfs ended with {status}");
            }
            let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
            let there = mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str());
            if there { Ok(()) } else { bail!("{} is not mounted yet", path.display()) }
        })?;
        Ok(mounted)
    }

    /// Makes everybody who touches the storage wait.
    pub fn hang(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets them go on.
    pub fn release(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.server), signal)
            .with_context(|| format!("cannot signal the server of {}", self.path.display()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing to be told: both fail only if the server has ended already, which is what is wanted.
        let _ended = self.server.kill();
        let _status = self.server.wait();
        // With its server gone the mount answers with errors; without it the place can be used again.
        let _unmounted = unmount(&self.path, UnmountFlags::DETACH);
    }
}

/// Mounts what is mounted at `source` also at `target` in the mount namespace of the process `pid`. The calling process
/// must have one thread, and is in that namespace afterwards: this is for a process of its own.
pub fn graft(pid: u32, source: &Path, target: &Path) -> Result<()> {
    use rustix::fs::CWD;
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;

    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, clone).with_context(|| format!("cannot take the mount {}", source.display()))?;
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .with_context(|| format!("cannot enter {path}"))?;
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("cannot mount at {}", target.display()))
}
