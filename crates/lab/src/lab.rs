//! A lab from the outside: bringing one up, finding one that runs, keeping evidence of what failed in it, ending it.

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::cgroup::Group;
use crate::guest::kernel::Kernel;
use crate::host::Host;
use crate::protocol::{self, Action, HostStatus, Progress, Request};
use crate::topology::{self, Kind, Topology};
use crate::{guest, image, paths, tools};

/// How long a lab may take to end before it is killed.
const END_LIMIT: Duration = Duration::from_secs(15);

/// What lab to bring up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The topology, by name or by path.
    pub topology: String,
    /// Whether the hosts are plain Debian, without the product.
    pub bare: bool,
    /// The product's package; `None` takes the newest that was built.
    pub deb: Option<PathBuf>,
    /// The lab's name, at most 24 of a-z, 0-9 and '-'; `None` makes one that no other lab has.
    pub name: Option<String>,
    /// Whether the lab stays when this process ends. Otherwise it ends with the [`Lab`], or with the process.
    pub detached: bool,
}

impl Options {
    /// The product's hosts in `topology`, for the life of the [`Lab`].
    pub fn new(topology: &str) -> Self {
        Self { topology: topology.to_owned(), ..Self::default() }
    }

    /// Plain Debian hosts in `topology`, for the life of the [`Lab`].
    pub fn bare(topology: &str) -> Self {
        Self { bare: true, ..Self::new(topology) }
    }
}

/// A running lab. If it was not detached, dropping it ends it; if that happens while a test fails, the journals of its
/// hosts are collected first.
#[derive(Debug)]
pub struct Lab {
    name: String,
    run: PathBuf,
    topology: Topology,
    keeper: Option<Keeper>,
}

/// What keeps a lab that was not detached: when the pipe closes, it ends.
#[derive(Debug)]
struct Keeper {
    child: Child,
    lifeline: Option<ChildStdin>,
}

impl Lab {
    /// Makes what images are missing, starts the hosts and waits until they are up. Progress goes to standard error.
    pub fn up(options: &Options) -> Result<Self> {
        tools::check()?;
        let file = topology::find(&options.topology)?;
        let topology = Topology::read(&file)?;
        let images = image::layers(options.bare, options.deb.as_deref())?;
        let has_guests = topology.hosts.iter().any(|host| host.kind == Kind::Guest);
        let guests = if has_guests { Some(guest::provide(&images)?) } else { None };
        let name = options.name.clone().unwrap_or_else(unique_name);
        topology::check_name(&name, 24)?;
        fs::create_dir_all(paths::runs())?;
        let starting = File::create(paths::runs().join("starting.lock"))?;
        starting.lock()?;
        sweep()?;
        let run = paths::runs().join(&name);
        fs::create_dir(&run).with_context(|| {
            format!(
                "a lab called {name} is up already: `phalanx-lab down --lab {name}` ends it, --name gives another name"
            )
        })?;
        fs::copy(&file, run.join("topology.toml"))?;
        let mut child = spawn_supervisor(&name, &run, &images, guests, options.detached)?;
        let stdout = child.stdout.take().context("the supervisor has no output")?;
        let keeper = Keeper { lifeline: child.stdin.take(), child };
        // From here on dropping `lab` ends it, also when it fails to start.
        let mut lab = Self { name, run, topology, keeper: Some(keeper) };
        lab.await_up(BufReader::new(stdout), starting)?;
        lab.have_watched()?;
        if options.detached {
            lab.keeper = None;
        }
        Ok(lab)
    }

    /// The lab called `name`, which runs already.
    pub fn find(name: &str) -> Result<Self> {
        let run = paths::runs().join(name);
        ensure!(is_running(&run)?, "no lab called {name} is up; {}", known()?);
        let topology = Topology::read(&run.join("topology.toml"))?;
        Ok(Self { name: name.to_owned(), run, topology, keeper: None })
    }

    /// The only lab that runs.
    pub fn only() -> Result<Self> {
        match &names()?[..] {
            [name] => Self::find(name),
            _ => bail!("say which lab, with --lab; {}", known()?),
        }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is made from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The directory on the machine's disk that is the shared storage.
    pub fn storage(&self) -> PathBuf {
        self.run.join("nas")
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> Result<Host<'_>> {
        Ok(Host::of(self, self.topology.host(name)?))
    }

    /// All hosts, in the topology's order.
    pub fn hosts(&self) -> Result<Vec<Host<'_>>> {
        self.topology.hosts.iter().map(|host| self.host(&host.name)).collect()
    }

    /// The state of all hosts.
    pub fn status(&self) -> Result<Vec<HostStatus>> {
        protocol::ask(&self.run, &Request::Status)
    }

    /// Ends the lab and waits until it is gone.
    pub fn down(mut self) -> Result<()> {
        if let Some(keeper) = self.keeper.take() {
            return keeper.end();
        }
        // The supervisor ends instead of replying.
        let _ended: Result<()> = protocol::ask(&self.run, &Request::Down);
        crate::eventually(END_LIMIT, &format!("the end of the lab {}", self.name), || {
            ensure!(!is_running(&self.run)?, "its supervisor still runs");
            Ok(())
        })
    }

    /// Waits until the lab has ended, whoever ends it.
    pub fn wait(&self) -> Result<()> {
        let path = self.run.join("lock");
        match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            lock => {
                let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
                lock.lock_shared().with_context(|| format!("cannot wait for the lock {}", path.display()))
            }
        }
    }

    /// Collects the journals, logs and consoles of all hosts, also of killed and frozen ones, into a folder with the lab's name below
    /// `target/lab-failures` and returns it.
    ///
    /// # Errors
    /// The folder can't be written, or the lab has ended. What a single host can't give stands in its file instead.
    pub fn journals(&self) -> Result<PathBuf> {
        self.collect(&self.name)
    }

    /// The error of a test that failed in this lab, with the name of the folder that has the hosts' journals: it is called as the
    /// test, `target/lab-failures/TEST`.
    pub fn failed(&self, error: anyhow::Error) -> anyhow::Error {
        match self.collect(&test_name().unwrap_or_else(|| self.name.clone())) {
            Ok(folder) => error.context(format!("the journals of the hosts are in {}", folder.display())),
            Err(other) => error.context(format!("the journals of the hosts could not be collected: {other:#}")),
        }
    }

    fn collect(&self, folder: &str) -> Result<PathBuf> {
        let folder = paths::failures().join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let disks = PathBuf::from(format!("/proc/{}/root/run/lab", self.supervisor()?));
        for host in self.hosts()? {
            let (journal, console) = host.journal(&disks);
            fs::write(folder.join(format!("{}.journal", host.name())), words(journal))?;
            let console = fs::read(&console).with_context(|| format!("cannot read {}", console.display()));
            let console = console.unwrap_or_else(|error| format!("{error:#}").into_bytes());
            fs::write(folder.join(format!("{}.console", host.name())), console)?;
            // What daemons log beside the journal.
            let logs = disks.join(host.name()).join("root/var/log/phalanx");
            if !logs.exists() {
                // A guest's disk can't be read from here; it is asked, and one that is off has no answer.
                let said = host.run("cd /var/log/phalanx && tail -v -n 500 *.log");
                let text = said.map_or_else(|error| format!("{error:#}"), |said| said.stdout);
                fs::write(folder.join(format!("{}.logs", host.name())), text)?;
            }
            let folders = [logs.clone(), logs.join("access"), logs.join("rspamd")];
            for log in folders.iter().filter_map(|logs| fs::read_dir(logs).ok()).flatten() {
                let log = log?;
                if log.file_type()?.is_file() {
                    let name = format!("{}.{}", host.name(), log.file_name().to_string_lossy());
                    fs::copy(log.path(), folder.join(name))?;
                }
            }
        }
        fs::copy(self.run.join("supervisor.log"), folder.join("supervisor.log"))?;
        Ok(folder)
    }

    /// The process that holds the lab, in the caller's PID namespace.
    pub(crate) fn supervisor(&self) -> Result<i32> {
        let stream = protocol::connect(&self.run)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).context("cannot tell who the supervisor is")?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Where the lab keeps what its hosts leave.
    pub(crate) fn run_directory(&self) -> &Path {
        &self.run
    }

    pub(crate) fn act(&self, host: &str, action: Action) -> Result<()> {
        protocol::ask(&self.run, &Request::Act { host: host.to_owned(), action })
    }

    /// Starts a process that outlives this one and removes what the lab leaves if it is killed.
    fn have_watched(&self) -> Result<()> {
        let lock = File::open(self.run.join("lock"))?;
        let mut command = tools::command("setsid")?;
        command.arg("--fork").arg(paths::program()?).arg("watch");
        command.stdin(lock).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        let status = command.status().context("cannot start what watches over the lab")?;
        ensure!(status.success(), "what watches over the lab ended with {status}");
        Ok(())
    }

    fn await_up(&self, progress: impl BufRead, starting: File) -> Result<()> {
        let mut starting = Some(starting);
        for line in progress.lines() {
            let line = line.context("cannot read the supervisor's progress")?;
            match serde_json::from_str(&line).with_context(|| format!("not a progress message: {line:?}"))? {
                // Now the directory is marked as in use, and others may sweep.
                Progress::Begun => starting = None,
                Progress::Step(text) => eprintln!("lab: {}: {text}", self.name),
                Progress::Up => return Ok(()),
                Progress::Failed(reason) => bail!("the lab {} did not come up: {reason}", self.name),
            }
        }
        drop(starting);
        let log = fs::read_to_string(self.run.join("supervisor.log")).unwrap_or_default();
        bail!("the supervisor of the lab {} ended early: {}", self.name, log.trim())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        if thread::panicking() {
            eprintln!("lab: {:#}", self.failed(anyhow!("a test panicked")));
        }
        if let Err(error) = keeper.end() {
            eprintln!("lab: {error:#}");
        }
    }
}

impl Keeper {
    /// Closes the lifeline and waits. If the lab takes too long, its first process is killed, which ends all the same.
    fn end(mut self) -> Result<()> {
        drop(self.lifeline.take());
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > END_LIMIT {
                self.child.kill()?;
                self.child.wait()?;
                bail!("the lab did not end by itself within {END_LIMIT:?}; it was killed");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Brings a lab up, lets `test` do what it wants with it, and ends it. If `test` fails, the journals of the hosts are
/// collected first, and the failure says where they are.
pub fn scenario(options: &Options, test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::up(options)?;
    let result = test(&lab).map_err(|error| lab.failed(error));
    result.and(lab.down())
}

/// The name of the test that this thread runs, without its modules.
fn test_name() -> Option<String> {
    let thread = thread::current();
    let name = thread.name().filter(|name| *name != "main")?;
    name.rsplit("::").next().map(str::to_owned)
}

fn words(text: Result<String>) -> String {
    text.unwrap_or_else(|error| format!("{error:#}"))
}

/// The names of the labs that run on this machine, in order.
pub fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(paths::runs()).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() && is_running(&path)? {
            names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn known() -> Result<String> {
    let names = names()?;
    Ok(match &names[..] {
        [] => "none is: `phalanx-lab up figure-1` brings one up".to_owned(),
        names => format!("up are: {}", names.join(", ")),
    })
}

/// Whether a supervisor holds the lock of the run directory.
fn is_running(run: &Path) -> Result<bool> {
    match File::open(run.join("lock")) {
        Err(_) => Ok(false),
        Ok(lock) => match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => {
                Err(anyhow!(error).context(format!("cannot test the lock in {}", run.display())))
            }
        },
    }
}

/// Waits until the lab ends whose lock is on standard input, and removes what it left. A lab that was not killed has left nothing.
pub fn watch() -> Result<()> {
    let lock = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    lock.lock_shared().context("cannot wait for the lab's lock")?;
    let starting = File::create(paths::runs().join("starting.lock"))?;
    starting.lock()?;
    sweep()
}

/// Removes what labs left that were killed. The caller holds the lock for starting.
fn sweep() -> Result<()> {
    for entry in fs::read_dir(paths::runs())? {
        let run = entry?.path();
        if !run.is_dir() || is_running(&run)? {
            continue;
        }
        let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What is no lab has no topology, and is not ours. A lab killed before it had one is an empty directory.
        let Ok(topology) = Topology::read(&run.join("topology.toml")) else {
            let _kept_unless_empty = fs::remove_dir(&run);
            continue;
        };
        for host in &topology.hosts {
            if let Err(error) = Group::named(&name, &host.name).sweep() {
                eprintln!("lab: something of the lab {name} that was killed stays: {error:#}");
            }
        }
        fs::remove_dir_all(&run).with_context(|| format!("cannot remove the left-over {}", run.display()))?;
    }
    Ok(())
}

/// A name that no lab of another process and no other lab of this one has.
fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn spawn_supervisor(
    name: &str,
    run: &Path,
    images: &[PathBuf],
    guests: Option<(Kernel, PathBuf)>,
    detached: bool,
) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    let log = File::create(run.join("supervisor.log"))?;
    let mut command = tools::command("unshare")?;
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(paths::program()?).args(["supervise", "--name", name, "--run"]).arg(run);
    for image in images {
        command.arg("--image").arg(image);
    }
    if let Some((kernel, image)) = guests {
        command.arg("--guest-kernel").arg(kernel.dir()).arg("--guest-image").arg(image);
    }
    if detached {
        command.arg("--detached").stdin(Stdio::null());
    } else {
        command.stdin(Stdio::piped());
    }
    // A group of its own, so that Ctrl-C in a terminal reaches the caller alone.
    command.stdout(Stdio::piped()).stderr(log).process_group(0);
    command.spawn().context("cannot start the supervisor")
}
