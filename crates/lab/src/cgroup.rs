//! The control groups of one host, from outside: what makes it killable, freezable and slow as a whole.
//!
//! Two layouts are known: cgroup v2 alone (Debian's default), and v1 controllers with an empty v2 hierarchy beside them.
//! Freezing always uses v2, because what v1 has frozen cannot be killed, and a lab that was killed must vanish.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::wait::eventually;

const ROOT: &str = "/sys/fs/cgroup";

/// The v1 hierarchies a host has a group in, if the machine has them.
const V1: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "blkio", "systemd"];

/// In v2 only: where processes of the lab enter a host, since a group with controllers and groups takes none.
const VISITORS: &str = "visitors";

/// The scheduling period for a quota of CPU time.
const PERIOD_US: i64 = 100_000;

/// How long left-over processes may take to end.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// How the names of all groups of the lab begin.
const PREFIX: &str = "lab-";

/// A host's group, in all hierarchies.
#[derive(Clone, Debug)]
pub struct Group {
    name: String,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// One v2 hierarchy with all controllers.
    Unified,
    /// Controllers in v1 hierarchies, and v2 in `unified` without any.
    Hybrid,
}

/// How much CPU time a host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pace {
    /// As much as the machine gives.
    Max,
    /// A part of one CPU, in percent, at least 1.
    Percent(u32),
}

impl std::str::FromStr for Pace {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let percent =
            text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|percent| (1..=100_000).contains(percent));
        percent
            .map(Self::Percent)
            .with_context(|| format!("{text:?} is no pace: say a part of one CPU such as 10%, or max"))
    }
}

impl Group {
    /// The group of `host` in the lab called `lab`; made if it does not exist.
    pub fn make(lab: &str, host: &str) -> Result<Self> {
        let group = Self::named(lab, host);
        if group.layout == Layout::Unified {
            // Refused for a controller the kernel does not have; the others are then set one by one.
            for controller in ["+cpu", "+memory", "+pids", "+io"] {
                write(&Path::new(ROOT).join("cgroup.subtree_control"), controller)?;
            }
        }
        for folder in group.folders() {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make the control group {}", folder.display()))?;
        }
        if group.layout == Layout::Unified {
            fs::create_dir_all(group.v2().join(VISITORS)).context("cannot make a control group for visitors")?;
        }
        Ok(group)
    }

    /// The group of `host` in the lab called `lab`, which exists.
    pub fn named(lab: &str, host: &str) -> Self {
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        Self { name: format!("{PREFIX}{lab}.{host}"), layout: if unified { Layout::Unified } else { Layout::Hybrid } }
    }

    /// The files into which the launcher of the host writes its number before it starts.
    pub fn launcher_entries(&self) -> Vec<PathBuf> {
        self.folders().into_iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// The files into which a later process writes its number to share the host's fate: its CPU time, freezing, killing.
    pub fn visitor_entries(&self) -> Vec<PathBuf> {
        match self.layout {
            Layout::Unified => vec![self.v2().join(VISITORS).join("cgroup.procs")],
            Layout::Hybrid => self.launcher_entries(),
        }
    }

    /// The number of the host's first process in the caller's PID namespace, if it runs and has set itself up.
    pub fn init(&self) -> Option<i32> {
        let systemd = match self.layout {
            Layout::Unified => self.v2(),
            Layout::Hybrid => Path::new(ROOT).join("systemd").join(&self.name),
        };
        let text = fs::read_to_string(systemd.join("payload/init.scope/cgroup.procs")).ok()?;
        // A process of a namespace that the caller cannot see is shown as 0.
        text.lines().filter_map(|line| line.parse().ok()).find(|pid| *pid > 0)
    }

    /// Stops (`true`) or continues all processes of the host; its kernel part goes on and answers ping.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        write(&self.v2().join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Kills all processes of the host, also frozen ones, and waits until they have ended.
    pub fn kill(&self, limit: Duration) -> Result<()> {
        eventually(limit, "the end of a host's processes", || {
            // Again and again, since a command may be entering just now.
            write(&self.v2().join("cgroup.kill"), "1")?;
            ensure!(self.is_empty(), "there are still some in {}", self.v2().display());
            Ok(())
        })?;
        self.freeze(false)
    }

    /// Whether no process is left in it.
    fn is_empty(&self) -> bool {
        fs::read_to_string(self.v2().join("cgroup.events")).is_ok_and(|text| text.contains("populated 0"))
    }

    /// Gives the host as a whole the CPU time `pace`. `lowered` belongs to the host: it keeps the quotas within that had to
    /// be lowered, until they are given back.
    pub fn pace(&self, pace: Pace, lowered: &mut Vec<Lowered>) -> Result<()> {
        let quota = match pace {
            Pace::Max => None,
            Pace::Percent(percent) => Some(PERIOD_US * i64::from(percent) / 100),
        };
        match self.layout {
            Layout::Unified => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                write(&self.v2().join("cpu.max"), &format!("{quota} {PERIOD_US}"))
            }
            Layout::Hybrid => self.pace_v1(quota, lowered),
        }
    }

    /// In v1 a group's quota may not be less than that of a group within it, so those are lowered first.
    fn pace_v1(&self, quota: Option<i64>, lowered: &mut Vec<Lowered>) -> Result<()> {
        let folder = Path::new(ROOT).join("cpu").join(&self.name);
        write(&folder.join("cpu.cfs_quota_us"), "-1")?;
        // The outermost were lowered last, and are given back first. One that has changed since is no longer ours.
        for Lowered { file, was, is } in lowered.drain(..).rev() {
            if read_number(&file) == Some(is) {
                write(&file, &was.to_string())?;
            }
        }
        let Some(quota) = quota else { return Ok(()) };
        lower_quotas(&folder, quota, lowered)?;
        write(&folder.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
        write(&folder.join("cpu.cfs_quota_us"), &quota.to_string())
    }

    /// Kills what a killed lab left in the group (such as a command that was frozen with its host) and removes it.
    pub fn sweep(&self) -> Result<()> {
        if self.v2().exists() {
            self.kill(SWEEP_LIMIT)?;
        }
        self.remove()
    }

    /// Removes the group and all within it. Fails if a process is left in it.
    pub fn remove(&self) -> Result<()> {
        self.folders().iter().try_for_each(|folder| remove_tree(folder))
    }

    fn v2(&self) -> PathBuf {
        match self.layout {
            Layout::Unified => Path::new(ROOT).join(&self.name),
            Layout::Hybrid => Path::new(ROOT).join("unified").join(&self.name),
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        if self.layout == Layout::Unified {
            return vec![self.v2()];
        }
        let present = V1.iter().map(|name| Path::new(ROOT).join(name)).filter(|hierarchy| hierarchy.is_dir());
        present.map(|hierarchy| hierarchy.join(&self.name)).chain([self.v2()]).collect()
    }
}

/// A quota within a host that was lowered when the host was given less than it.
#[derive(Clone, Debug)]
pub struct Lowered {
    file: PathBuf,
    was: i64,
    is: i64,
}

fn lower_quotas(folder: &Path, parent_quota: i64, lowered: &mut Vec<Lowered>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        lower_quotas(&path, parent_quota, lowered)?;
        let file = path.join("cpu.cfs_quota_us");
        // A group that vanished meanwhile needs no quota.
        let (Some(was), Some(period)) = (read_number(&file), read_number(&path.join("cpu.cfs_period_us"))) else {
            continue;
        };
        // The kernel takes no quota of less than a millisecond.
        let is = (parent_quota * period / PERIOD_US).max(1000);
        if was > is {
            write(&file, &is.to_string())?;
            lowered.push(Lowered { file, was, is });
        }
    }
    Ok(())
}

fn read_number(file: &Path) -> Option<i64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Removes a group with all groups in it; one that is not there is fine.
fn remove_tree(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the control group {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}
