//! A host on the machine's own kernel: Debian with systemd as its first process, in namespaces and control groups of its
//! own, started by systemd-nspawn. Its disk is a writable layer in memory over the shared images.
//!
//! Nothing of the lab is inside. What the lab sets from outside is what a data centre gives: a host name, names of the
//! neighbours in /etc/hosts, cables with addresses, and the shared directory.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};

use crate::cgroup::{Group, Lowered, Pace};
use crate::enter::{self, Background};
use crate::faults::Faults;
use crate::storage::Mounted;
use crate::topology::{self, Host, Storage};
use crate::{network, tools};

/// How long a host may take to start all its services. It takes half a second on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How long a killed host may take to vanish.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Makes limits of units work inside: v1 controllers are mounted read-only at first, and systemd looks only once.
const ALLOW_LIMITS: &str = "for c in cpu cpuacct memory pids blkio; do \
     ! [ -d /sys/fs/cgroup/$c ] || mount -o remount,bind,rw /sys/fs/cgroup/$c || exit 1; done; \
     systemctl daemon-reexec && systemctl is-system-running --wait";

/// What a container is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The lab's name.
    pub lab: String,
    /// The root file systems it is a layer over, the uppermost first.
    pub images: Vec<PathBuf>,
    /// The lab's run directory.
    pub run: PathBuf,
    /// What is written to /etc/hosts.
    pub names: String,
}

/// One host, with or without power.
#[derive(Debug)]
pub struct Container {
    host: Host,
    group: Group,
    parts: Parts,
    place: PathBuf,
    launcher: Option<Child>,
    mounted: Option<Mounted>,
    faults: Faults,
    lowered: Vec<Lowered>,
}

impl Container {
    /// Makes the host's disk and control groups. Runs nothing yet.
    pub fn make(host: Host, parts: Parts) -> Result<Self> {
        let group = Group::make(&parts.lab, &host.name)?;
        let place = Path::new("/run/lab").join(&host.name);
        fs::create_dir_all(&place)?;
        mount("lab", &place, "tmpfs", MountFlags::empty(), Some(c"size=4g,mode=755"))
            .with_context(|| format!("cannot mount a disk in memory for {}", host.name))?;
        let [upper, work, root] = ["upper", "work", "root"].map(|name| place.join(name));
        for folder in [&upper.join("etc"), &work, &root] {
            fs::create_dir_all(folder)?;
        }
        fs::write(upper.join("etc/hostname"), format!("{}\n", host.name))?;
        fs::write(upper.join("etc/hosts"), &parts.names)?;
        let layers: Vec<_> = parts.images.iter().map(|image| image.display().to_string()).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
        tools::run(
            "mount",
            ["-t", "overlay", "lab", "-o", &options].map(Path::new).into_iter().chain([root.as_path()]),
        )?;
        Ok(Self {
            host,
            group,
            parts,
            place,
            launcher: None,
            mounted: None,
            faults: Faults::default(),
            lowered: Vec::new(),
        })
    }

    /// What a person reads about its state; see [`crate::protocol::HostStatus::state`].
    pub fn state(&mut self) -> Result<String> {
        let Some(launcher) = &mut self.launcher else { return Ok("killed".to_owned()) };
        if launcher.try_wait()?.is_some() {
            return Ok("ended by itself".to_owned());
        }
        Ok(self.faults.to_string())
    }

    /// Gives it power and waits until all its services have started.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.launcher.is_none(), "it is running already");
        network::plug(&self.host)?;
        if self.host.storage.is_mounted() {
            let locks_between_hosts = self.host.storage == Storage::Mounted;
            self.mounted = Some(Mounted::start(&self.storage(), &self.storage_mount(), locks_between_hosts)?);
        }
        let notify_path = self.place.join("notify");
        if notify_path.exists() {
            fs::remove_file(&notify_path)?;
        }
        let ready = UnixDatagram::bind(&notify_path).context("cannot listen for the host's readiness")?;
        self.launcher = Some(self.launch(&notify_path)?);
        self.await_ready(&ready)?;
        let output = self.inside(&["sh", "-c", ALLOW_LIMITS], BOOT_LIMIT)?;
        let state = output.stdout.trim();
        ensure!(matches!(state, "running" | "degraded"), "systemd is {state:?} after boot: {}", output.stderr.trim());
        Ok(())
    }

    /// Starts systemd-nspawn in the host's control groups.
    fn launch(&self, notify: &Path) -> Result<Child> {
        let name = &self.host.name;
        let entries: Vec<_> = self.group.launcher_entries().iter().map(|entry| entry.display().to_string()).collect();
        let join = format!("for entry in {}; do echo $$ > $entry || exit 125; done; exec \"$@\"", entries.join(" "));
        let console = File::options().create(true).append(true).open(self.parts.run.join(format!("{name}.console")))?;
        let mut command = tools::command("sh")?;
        command.args(["-c", &join, "launch", "systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--boot"]);
        command.args([
            "--resolv-conf=off",
            "--timezone=off",
            "--capability=all",
            "--notify-ready=yes",
            "--console=pipe",
        ]);
        command.arg(format!("--machine={name}")).arg(format!("--hostname={name}"));
        command.arg(format!("--network-namespace-path={}", network::namespace(name).display()));
        command.arg(format!("--directory={}", self.place.join("root").display()));
        if let Some(source) = self.storage_source() {
            command.arg(format!("--bind={}:{}", source.display(), topology::STORAGE_PATH));
        }
        command.arg("systemd.journald.forward_to_console=0");
        command.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network").env("NOTIFY_SOCKET", notify);
        command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
        command.spawn().context("cannot start systemd-nspawn")
    }

    /// Waits until the host's systemd says that it has started everything.
    fn await_ready(&mut self, ready: &UnixDatagram) -> Result<()> {
        ready.set_read_timeout(Some(Duration::from_millis(100)))?;
        let begin = Instant::now();
        let mut message = [0; 4096];
        loop {
            if let Ok(length) = ready.recv(&mut message)
                && message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
                && self.group.init().is_some()
            {
                return Ok(());
            }
            let ended = self.launcher.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                bail!("systemd-nspawn ended with {status}: {}", self.console_end());
            }
            ensure!(begin.elapsed() < BOOT_LIMIT, "it was not up after {BOOT_LIMIT:?}: {}", self.console_end());
        }
    }

    /// Takes its power.
    pub fn kill(&mut self) -> Result<()> {
        let mut launcher = self.launcher.take().context("it is not running")?;
        // The network first, so that no process says goodbye to its peers.
        network::unplug(&self.host)?;
        // Processes that wait for hung storage end only when its server is gone, which must not free them to write.
        if let Some(mounted) = self.mounted.take() {
            self.group.freeze(true)?;
            drop(mounted);
        }
        self.group.kill(KILL_LIMIT)?;
        launcher.wait().context("cannot wait for systemd-nspawn")?;
        self.faults = self.faults.after_kill();
        Ok(())
    }

    /// Stops or continues all its processes.
    pub fn set_frozen(&mut self, frozen: bool) -> Result<()> {
        self.require_power()?;
        self.group.freeze(frozen)?;
        self.faults.frozen = frozen;
        Ok(())
    }

    /// Pulls or plugs its cables.
    pub fn set_cut(&mut self, cut: bool) -> Result<()> {
        self.require_power()?;
        network::set_links(&self.host, !cut)?;
        self.faults.cut = cut;
        Ok(())
    }

    /// Limits its CPU time, also over a kill and boot.
    pub fn set_pace(&mut self, pace: Pace) -> Result<()> {
        self.group.pace(pace, &mut self.lowered)?;
        self.faults = self.faults.at(pace);
        Ok(())
    }

    /// Lets whoever touches the storage wait, or go on.
    pub fn set_storage_hung(&mut self, hung: bool) -> Result<()> {
        let mounted = self.mounted.as_ref().context("it does not mount the shared storage (or is not running)")?;
        if hung {
            mounted.hang()?
        } else {
            mounted.release()?
        }
        self.faults.hung = hung;
        Ok(())
    }

    /// Unmounts the storage under its feet, or mounts it again.
    pub fn set_storage_lost(&mut self, lost: bool) -> Result<()> {
        ensure!(self.mounted.is_some(), "it does not mount the shared storage (or is not running)");
        ensure!(lost != self.faults.lost, "its storage is already {}", if lost { "lost" } else { "there" });
        if lost {
            self.inside(&["umount", "--lazy", topology::STORAGE_PATH], KILL_LIMIT)?.text()?;
        } else {
            let pid = self.group.init().context("it is not running")?.to_string();
            let program = std::env::current_exe()?;
            let mount = self.storage_mount();
            let words = [Path::new("graft"), Path::new(&pid), &mount, Path::new(topology::STORAGE_PATH)];
            tools::run(&program.to_string_lossy(), words)?;
        }
        self.faults.lost = lost;
        Ok(())
    }

    fn inside(&self, words: &[&str], limit: Duration) -> Result<enter::Output> {
        let command = enter::command(&self.group, words)?;
        Background::start(command, &[], &words.join(" "))?.wait(limit)
    }

    fn require_power(&self) -> Result<()> {
        ensure!(self.launcher.is_some(), "it is not running: `phalanx-lab boot {}` starts it", self.host.name);
        Ok(())
    }

    fn storage(&self) -> PathBuf {
        self.parts.run.join("nas")
    }

    fn storage_mount(&self) -> PathBuf {
        Path::new("/run/storage").join(&self.host.name)
    }

    fn storage_source(&self) -> Option<PathBuf> {
        match self.host.storage {
            Storage::None => None,
            Storage::Owned => Some(self.storage()),
            Storage::Mounted | Storage::MountedOwnLocks => Some(self.storage_mount()),
        }
    }

    /// The last lines of its console, for an error.
    fn console_end(&self) -> String {
        let path = self.parts.run.join(format!("{}.console", self.host.name));
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}
