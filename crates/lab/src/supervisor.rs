//! The process that a lab lives in: the first of its own PID, mount and network namespaces. When it ends, however it ends,
//! the kernel removes everything that was made: processes, mounts, networks.
//!
//! It boots the hosts, then serves [`Request`]s until it is asked to end or its lifeline (standard input) closes. It is
//! the only one that changes hosts; commands in hosts are run by callers themselves (`enter`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::cgroup::Group;
use crate::container::{self, Container};
use crate::guest::kernel::Kernel;
use crate::guest::machine::{self as guest, GuestMachine};
use crate::image;
use crate::machine::Machine;
use crate::network;
use crate::protocol::{self, HostStatus, Progress, Request};
use crate::topology::{Host, Kind, Topology};

/// How long the end of a host's processes may take before the supervisor goes on without waiting any longer.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How a supervisor is started.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The lab's name.
    pub name: String,
    /// Its run directory, which has `topology.toml`.
    pub run: PathBuf,
    /// The images below the hosts' disks, the uppermost first.
    pub images: Vec<PathBuf>,
    /// The directory of the kernel that guests boot, and the image of their disks; needed where the topology has guests.
    pub guests: Option<(PathBuf, PathBuf)>,
    /// Whether the lab ends when standard input closes.
    pub lifeline: bool,
}

/// Runs a lab to its end. Writes [`Progress`] to standard output; returns only if the lab cannot start.
pub fn run(setting: Setting) -> Result<()> {
    // A session of its own: if the caller is killed while a file server is stopped, the kernel hangs up the caller's process
    // group, and this must live on to clean up.
    rustix::process::setsid().context("cannot make a session")?;
    let mut out = std::io::stdout();
    let lock = lock(&setting.run)?;
    protocol::write_line(&mut out, &Progress::Begun)?;
    let supervisor = match Supervisor::start(setting, lock) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            protocol::write_line(&mut out, &Progress::Failed(format!("{error:#}")))?;
            bail!("the lab could not start");
        }
    };
    let supervisor = Arc::new(supervisor);
    if supervisor.setting.lifeline {
        let watched = Arc::clone(&supervisor);
        thread::spawn(move || {
            // Whatever comes is of no interest; the end is.
            let mut end = Vec::new();
            let _closed = std::io::stdin().take(1 << 20).read_to_end(&mut end);
            watched.end()
        });
    }
    let listener = protocol::listen(&supervisor.setting.run)?;
    let begin = Instant::now();
    if let Err(error) = supervisor.boot_all() {
        protocol::write_line(&mut out, &Progress::Failed(format!("{error:#}")))?;
        supervisor.end();
    }
    let seconds = begin.elapsed().as_secs_f64();
    protocol::write_line(&mut out, &Progress::Step(format!("{} hosts in {seconds:.1} s", supervisor.machines.len())))?;
    protocol::write_line(&mut out, &Progress::Up)?;
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept a connection")?;
        let supervisor = Arc::clone(&supervisor);
        thread::spawn(move || {
            if let Err(error) = protocol::serve(stream, |request| supervisor.handle(request)) {
                eprintln!("lab: a caller went away: {error:#}");
            }
        });
    }
    Ok(())
}

/// Takes the lock that tells others that the run directory is in use.
pub fn lock(run: &Path) -> Result<File> {
    let path = run.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    lock.try_lock().with_context(|| format!("the lab in {} is running already", run.display()))?;
    Ok(lock)
}

struct Supervisor {
    setting: Setting,
    topology: Topology,
    machines: BTreeMap<String, Mutex<Machine>>,
    groups: Vec<Group>,
    _lock: File,
    _images: Vec<File>,
}

impl Supervisor {
    /// Makes networks and disks. Boots nothing yet.
    fn start(setting: Setting, lock: File) -> Result<Self> {
        let topology = Topology::read(&setting.run.join("topology.toml"))?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
            .context("cannot take the mounts out of the machine's sight")?;
        mount("lab", "/run", "tmpfs", MountFlags::empty(), Some(c"mode=755")).context("cannot mount /run")?;
        fs::create_dir_all("/run/netns")?;
        network::make_bridges(&topology)?;
        fs::create_dir_all(setting.run.join("nas"))?;
        let mut machines = BTreeMap::new();
        for host in &topology.hosts {
            let machine = make(host, &setting, &topology);
            let machine = machine.with_context(|| format!("cannot make the host {}", host.name))?;
            machines.insert(host.name.clone(), Mutex::new(machine));
        }
        let groups = topology.hosts.iter().map(|host| Group::named(&setting.name, &host.name)).collect();
        let images = setting.images.iter().map(|image| image::hold(image)).collect::<Result<_>>()?;
        Ok(Self { setting, topology, machines, groups, _lock: lock, _images: images })
    }

    /// Boots all hosts at once and waits for them.
    fn boot_all(&self) -> Result<()> {
        thread::scope(|scope| {
            let boot = |name, machine: &Mutex<Machine>| -> Result<()> {
                machine
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .boot()
                    .with_context(|| format!("cannot boot {name}"))
            };
            let boots: Vec<_> =
                self.machines.iter().map(|(name, machine)| scope.spawn(move || boot(name, machine))).collect();
            boots.into_iter().try_for_each(|boot| boot.join().unwrap_or_else(|_| bail!("a boot panicked")))
        })
    }

    fn handle(&self, request: Request) -> Result<serde_json::Value> {
        match request {
            Request::Status => Ok(serde_json::to_value(self.status()?)?),
            Request::Act { host, action } => {
                self.topology.host(&host)?;
                let machine = self.machines.get(&host).context("the host is not there")?;
                let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
                machine.act(action).with_context(|| format!("cannot do that to {host}"))?;
                Ok(serde_json::Value::Null)
            }
            Request::Down => self.end(),
        }
    }

    fn status(&self) -> Result<Vec<HostStatus>> {
        let one = |host: &Host| {
            let machine = self.machines.get(&host.name).context("the host is not there")?;
            let state = match machine.try_lock() {
                Ok(mut machine) => machine.state()?,
                Err(TryLockError::WouldBlock) => "busy".to_owned(),
                Err(TryLockError::Poisoned(_)) => "broken: an action on it panicked".to_owned(),
            };
            let addresses = host.interfaces.iter().map(|interface| interface.address.to_string()).collect();
            Ok(HostStatus { name: host.name.clone(), state, addresses })
        };
        self.topology.hosts.iter().map(one).collect()
    }

    /// Ends the lab and this process. What cannot be cleaned up is found by the next lab that starts.
    fn end(&self) -> ! {
        let mut clean = true;
        for group in &self.groups {
            if let Err(error) = group.kill(END_LIMIT).and_then(|()| group.remove()) {
                eprintln!("lab: at the end: {error:#}");
                clean = false;
            }
        }
        // The directory is what the next lab finds left-overs by.
        if clean && let Err(error) = fs::remove_dir_all(&self.setting.run) {
            eprintln!("lab: cannot remove the run directory: {error}");
        }
        std::process::exit(0);
    }
}

/// Makes a host of the topology.
fn make(host: &Host, setting: &Setting, topology: &Topology) -> Result<Machine> {
    let Setting { name, run, images, guests, lifeline: _ } = setting;
    let (lab, run, names) = (name.clone(), run.clone(), names(topology));
    match host.kind {
        Kind::Container => {
            let parts = container::Parts { lab, images: images.clone(), run, names };
            Ok(Machine::Container(Box::new(Container::make(host.clone(), parts)?)))
        }
        Kind::Guest => {
            let (kernel, image) = guests.clone().context("the lab was given no kernel for guests")?;
            let parts = guest::Parts { lab, run, names, kernel: Kernel::open(&kernel)?, image };
            Ok(Machine::Guest(Box::new(GuestMachine::make(host.clone(), &parts)?)))
        }
    }
}

/// What /etc/hosts is on every host: each host by the address of its last interface, which is the inner one.
fn names(topology: &Topology) -> String {
    let line =
        |host: &Host| host.interfaces.last().map(|interface| format!("{}\t{}\n", interface.address.ip, host.name));
    let lines: String = topology.hosts.iter().filter_map(line).collect();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{lines}")
}
