//! A guest as a host of a topology: what a data centre gives a machine (a host name, the neighbours' names, a cable with an
//! address, a data disk), and what can be done to it from outside.
//!
//! Its control groups hold all its processes, so it is frozen, slowed and killed as a whole. Its disks are files in the
//! lab's run directory and go with it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::{Guest, GuestSpec, disk};
use crate::cgroup::{Group, Lowered, Pace};
use crate::faults::Faults;
use crate::network;
use crate::topology::{self, Host, Storage};

/// How long a guest may take from its command line's first answer until all its services have started.
const UP_LIMIT: Duration = Duration::from_secs(90);

/// How long its first configuration may take.
const CONFIGURE_LIMIT: Duration = Duration::from_secs(30);

/// How long a killed guest may take to vanish.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The most memory of a guest. What it has not touched costs nothing.
const MEMORY_MIB: u32 = 512;

/// The size of a data disk, a sparse file.
const DATA_DISK_MIB: u32 = 2048;

/// Gives a fresh guest its identity; its standard input is what /etc/hosts shall be.
const CONFIGURE: &str =
    "set -e; cat >/etc/hosts; echo NAME >/etc/hostname; rm -f /etc/resolv.conf; : >/etc/resolv.conf";

/// Mounts the data disk, now and at each boot: services wait for `local-fs.target`, so no NFS server starts before its disk is there.
const MOUNT_DATA: &str = "set -e; mkdir -p STORAGE; echo 'LABEL=data STORAGE ext4 defaults 0 2' >>/etc/fstab; \
     systemctl daemon-reload; systemctl start local-fs.target; mountpoint -q STORAGE";

/// What guests of a lab are made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The lab's name.
    pub lab: String,
    /// The lab's run directory.
    pub run: PathBuf,
    /// What is written to /etc/hosts.
    pub names: String,
    /// The kernel they boot.
    pub kernel: Kernel,
    /// The disk image they are copies of.
    pub image: PathBuf,
}

/// One guest, with or without power.
#[derive(Debug)]
pub struct GuestMachine {
    host: Host,
    group: Group,
    names: String,
    spec: GuestSpec,
    guest: Option<Guest>,
    faults: Faults,
    lowered: Vec<Lowered>,
}

/// Where a lab keeps a guest's disks, command line and logs.
pub fn directory(run: &Path, name: &str) -> PathBuf {
    run.join(name)
}

impl GuestMachine {
    /// Makes the guest's control groups and its data disk. Runs nothing yet.
    pub fn make(host: Host, parts: &Parts) -> Result<Self> {
        let group = Group::make(&parts.lab, &host.name)?;
        let dir = directory(&parts.run, &host.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // A name of its own, so that a newer image's cache may drop the other while this lab lives.
        let image = dir.join("root.ext4");
        std::fs::hard_link(&parts.image, &image)
            .with_context(|| format!("cannot link {} to {}", parts.image.display(), image.display()))?;
        let data_disk = if host.storage == Storage::Owned {
            let path = dir.join("data.ext4");
            disk::data_disk(&path, DATA_DISK_MIB)?;
            Some(path)
        } else {
            None
        };
        // The topology was checked: a guest has exactly one.
        let interface = host.interfaces.first().context("a guest needs an interface")?;
        let spec = GuestSpec {
            name: host.name.clone(),
            port: network::port(&host, 0),
            address: (interface.address.ip, interface.address.prefix),
            gateway: host.gateway,
            memory_mib: MEMORY_MIB,
            // The supervisor's own namespace has the bridges.
            netns: None,
            bridge: interface.network.clone(),
            kernel: parts.kernel.clone(),
            image,
            groups: group.launcher_entries(),
            data_disk,
            dir,
        };
        let names = parts.names.clone();
        Ok(Self { host, group, names, spec, guest: None, faults: Faults::default(), lowered: Vec::new() })
    }

    /// What a person reads about its state; see [`crate::protocol::HostStatus::state`].
    pub fn state(&mut self) -> Result<String> {
        let Some(guest) = &self.guest else { return Ok("killed".to_owned()) };
        if !guest.is_running() {
            return Ok(if guest.has_power() { "ended by itself" } else { "killed" }.to_owned());
        }
        Ok(self.faults.to_string())
    }

    /// Gives it power and waits until all its services have started.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "it is running already");
        if let Some(guest) = &mut self.guest {
            network::set_taps(&self.host, true)?;
            guest.boot_again()?;
        } else {
            self.guest = Some(Guest::boot(&self.spec)?);
            self.configure()?;
        }
        let state = self.power()?.wait_until_up(UP_LIMIT)?;
        ensure!(matches!(&*state, "running" | "degraded"), "systemd is {state:?} after boot");
        Ok(())
    }

    /// Takes its power: what it has not synced is lost.
    pub fn kill(&mut self) -> Result<()> {
        self.power()?;
        // The network first, so that it says goodbye to nobody.
        network::set_taps(&self.host, false)?;
        self.group.kill(KILL_LIMIT)?;
        if let Some(guest) = &mut self.guest {
            guest.kill()?;
        }
        self.faults = self.faults.after_kill();
        Ok(())
    }

    /// Stops or continues the guest as a whole. Unlike a container's, its kernel stops too: it answers no ping.
    pub fn set_frozen(&mut self, frozen: bool) -> Result<()> {
        self.power()?;
        self.group.freeze(frozen)?;
        self.faults.frozen = frozen;
        Ok(())
    }

    /// Pulls or plugs its cable.
    pub fn set_cut(&mut self, cut: bool) -> Result<()> {
        self.power()?;
        network::set_taps(&self.host, !cut)?;
        self.faults.cut = cut;
        Ok(())
    }

    /// Limits its CPU time, that of its kernel included, also over a kill and boot.
    pub fn set_pace(&mut self, pace: Pace) -> Result<()> {
        self.group.pace(pace, &mut self.lowered)?;
        self.faults = self.faults.at(pace);
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.guest.as_ref().is_some_and(Guest::is_running)
    }

    /// The guest, if it runs.
    fn power(&self) -> Result<&Guest> {
        let running = self.guest.as_ref().filter(|guest| guest.is_running());
        running.with_context(|| format!("it is not running: `phalanx-lab boot {}` starts it", self.host.name))
    }

    fn configure(&self) -> Result<()> {
        let shell = self.power()?.shell();
        let mut script = CONFIGURE.replace("NAME", &self.host.name);
        if self.spec.data_disk.is_some() {
            script = format!("{script}\n{}", MOUNT_DATA.replace("STORAGE", topology::STORAGE_PATH));
        }
        // A power cut must not take it away again.
        script += "\nsync";
        let output = shell.run(&script, self.names.as_bytes(), CONFIGURE_LIMIT)?;
        output.text().map(drop).context("cannot give the guest its names and disks")
    }
}
