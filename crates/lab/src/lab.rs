//! A lab from the outside: bringing one up, finding one that runs, and doing things to its hosts.

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::cgroup::{Group, Pace};
use crate::enter::{self, Background, Output};
use crate::guest::kernel::Kernel;
use crate::guest::{self, Shell};
use crate::protocol::{self, Action, HostStatus, Progress, Request};
use crate::topology::{self, Kind, Topology};
use crate::{forward, image, paths, tools};

/// How long a command in a host may take if nothing else is said.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// How long a guest may take to tell its journal.
const JOURNAL_LIMIT: Duration = Duration::from_secs(20);

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
        let topology::Host { name, kind, .. } = self.topology.host(name)?;
        let inside = match kind {
            Kind::Container => Inside::Container(Group::named(&self.name, name)),
            Kind::Guest => Inside::Guest(guest::machine::directory(&self.run, name)),
        };
        Ok(Host { lab: self, name, inside })
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

    /// Collects the journals and consoles of all hosts, also of killed and frozen ones, into a folder and returns it.
    pub fn journals(&self) -> Result<PathBuf> {
        let folder = paths::built().join("failures").join(&self.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let disks = PathBuf::from(format!("/proc/{}/root/run/lab", self.supervisor()?));
        for host in self.hosts()? {
            let (journal, console) = match &host.inside {
                Inside::Container(_) => journal_on_disk(&disks.join(host.name), &self.run, host.name),
                Inside::Guest(directory) => journal_of_guest(directory),
            };
            let journal = journal.unwrap_or_else(|error| format!("{error:#}"));
            fs::write(folder.join(format!("{}.journal", host.name)), journal)?;
            fs::copy(&console, folder.join(format!("{}.console", host.name)))
                .with_context(|| format!("cannot copy {}", console.display()))?;
        }
        fs::copy(self.run.join("supervisor.log"), folder.join("supervisor.log"))?;
        Ok(folder)
    }

    /// The process that holds the lab, in the caller's PID namespace.
    fn supervisor(&self) -> Result<i32> {
        let stream = protocol::connect(&self.run)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).context("cannot tell who the supervisor is")?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    fn act(&self, host: &str, action: Action) -> Result<()> {
        protocol::ask(&self.run, &Request::Act { host: host.to_owned(), action })
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
            match self.journals() {
                Ok(folder) => eprintln!("lab: the journals of the hosts are in {}", folder.display()),
                Err(error) => eprintln!("lab: cannot collect the journals: {error:#}"),
            }
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

/// A container's journal, read from its disk rather than inside, since it may be dead; and where its console is.
fn journal_on_disk(disk: &Path, run: &Path, name: &str) -> (Result<String>, PathBuf) {
    let directory = format!("--directory={}", disk.join("root/var/log/journal").display());
    let journal = tools::run("journalctl", ["--no-pager", "--output=short-precise", "--quiet", &directory]);
    (journal, run.join(format!("{name}.console")))
}

/// A guest's journal, which only the guest can read; and where its console is, which a dead one has left too.
fn journal_of_guest(directory: &Path) -> (Result<String>, PathBuf) {
    let line = "journalctl --no-pager --output=short-precise --quiet";
    let journal = Shell::of(directory).run(line, b"", JOURNAL_LIMIT).and_then(Output::text);
    (journal, directory.join(guest::CONSOLE))
}

/// Brings a lab up, lets `test` do what it wants with it, and ends it. If `test` fails, the journals of the hosts are
/// collected first, and the failure says where they are.
pub fn scenario(options: &Options, test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::up(options)?;
    let result = test(&lab);
    let result = result.map_err(|error| match lab.journals() {
        Ok(folder) => error.context(format!("the journals of the hosts are in {}", folder.display())),
        Err(other) => error.context(format!("the journals of the hosts could not be collected: {other:#}")),
    });
    result.and(lab.down())
}

/// One host of a lab.
#[derive(Clone, Debug)]
pub struct Host<'a> {
    lab: &'a Lab,
    name: &'a str,
    inside: Inside,
}

/// The way into a host.
#[derive(Clone, Debug)]
enum Inside {
    /// Through its control groups into its namespaces.
    Container(Group),
    /// Through the shell that its directory has.
    Guest(PathBuf),
}

impl Host<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Whether it has a kernel of its own, and is entered without a terminal.
    pub fn is_guest(&self) -> bool {
        matches!(self.inside, Inside::Guest(_))
    }

    /// Runs a line of shell as root in the host, for at most 60 s. Any exit status is an `Ok`.
    pub fn run(&self, line: &str) -> Result<Output> {
        self.run_for(RUN_LIMIT, line)
    }

    /// As [`Host::run`], for at most `limit`.
    pub fn run_for(&self, limit: Duration, line: &str) -> Result<Output> {
        let output = match &self.inside {
            Inside::Container(_) => self.spawn(line)?.wait(limit),
            Inside::Guest(directory) => Shell::of(directory).run(line, b"", limit).with_context(|| format!("`{line}`")),
        };
        output.with_context(|| format!("on {}", self.name))
    }

    /// As [`Host::run`], but an exit status other than 0 is an error with the command's words. Returns what it wrote,
    /// without the white space around it.
    pub fn text(&self, line: &str) -> Result<String> {
        self.run(line)?.text().with_context(|| format!("`{line}` on {}", self.name))
    }

    /// Starts a line of shell in the host that goes on while the test does other things. On a guest its output comes as a
    /// whole at its end, and dropping or stopping the [`Background`] leaves it running in the guest, for an hour at most:
    /// give it an end of its own.
    pub fn spawn(&self, line: &str) -> Result<Background> {
        self.start(&["sh", "-c", line], &[])
    }

    /// Runs a program with exactly these words, without a shell, with `input` as its standard input, for at most 60 s.
    pub fn exec(&self, words: &[&str], input: &[u8]) -> Result<Output> {
        let output = match &self.inside {
            Inside::Container(_) => self.start(words, input)?.wait(RUN_LIMIT),
            Inside::Guest(directory) => Shell::of(directory).run(&enter::quoted(words), input, RUN_LIMIT),
        };
        output.with_context(|| format!("on {}", self.name))
    }

    /// Writes a file with mode 0644 in the host; folders above it are made.
    pub fn write_file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let script = "umask 022 && mkdir -p -- \"$(dirname -- \"$1\")\" && cat > \"$1\"";
        // Input that is empty would leave the command without a pipe to read from, and /dev/null does as well.
        let output = self.exec(&["sh", "-c", script, "write", path], bytes)?;
        output.text().map(drop).with_context(|| format!("cannot write {path} on {}", self.name))
    }

    /// The command that runs `words` in the host with the caller's own standard input and outputs. On a guest it has no terminal:
    /// the input is read to its end before, and the outputs come at the end.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        match &self.inside {
            Inside::Container(group) => {
                enter::command(group, words).with_context(|| format!("cannot enter {}", self.name))
            }
            Inside::Guest(directory) => {
                let mut command = Command::new(paths::program()?);
                command.arg("enter-guest").arg(directory).arg("--").args(words);
                Ok(command)
            }
        }
    }

    /// Takes its power: see [`Action::Kill`].
    pub fn kill(&self) -> Result<()> {
        self.act(Action::Kill)
    }

    /// Gives it power again and waits until it is up: see [`Action::Boot`].
    pub fn boot(&self) -> Result<()> {
        self.act(Action::Boot)
    }

    /// Stops all its processes: see [`Action::Freeze`].
    pub fn freeze(&self) -> Result<()> {
        self.act(Action::Freeze)
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<()> {
        self.act(Action::Thaw)
    }

    /// Pulls its network cables.
    pub fn cut(&self) -> Result<()> {
        self.act(Action::Cut)
    }

    /// Plugs them in again.
    pub fn heal(&self) -> Result<()> {
        self.act(Action::Heal)
    }

    /// Limits its CPU time; it stays so over a kill and boot.
    pub fn pace(&self, pace: Pace) -> Result<()> {
        self.act(Action::Pace(pace))
    }

    /// Lets everybody on it who touches the shared storage wait.
    pub fn hang_storage(&self) -> Result<()> {
        self.act(Action::HangStorage)
    }

    /// Ends that.
    pub fn release_storage(&self) -> Result<()> {
        self.act(Action::ReleaseStorage)
    }

    /// Unmounts the shared storage under its feet.
    pub fn lose_storage(&self) -> Result<()> {
        self.act(Action::LoseStorage)
    }

    /// Mounts it again.
    pub fn return_storage(&self) -> Result<()> {
        self.act(Action::ReturnStorage)
    }

    /// Does `action` to it.
    pub fn act(&self, action: Action) -> Result<()> {
        self.lab.act(self.name, action)
    }

    /// Carries connections to 127.0.0.1:`local` of the machine (0 takes a free port) to 127.0.0.1:`port` of the host, as
    /// long as this process lives. Returns where it listens.
    pub fn forward(&self, port: u16, local: u16) -> Result<SocketAddr> {
        self.forward_to(SocketAddr::from(([127, 0, 0, 1], port)), local)
    }

    /// As [`Host::forward`], to whatever address the host can reach.
    pub fn forward_to(&self, target: SocketAddr, local: u16) -> Result<SocketAddr> {
        if self.is_guest() {
            bail!("{} is a guest: its loopback cannot be reached from outside", self.name);
        }
        let namespace = format!("/proc/{}/root/run/netns/{}", self.lab.supervisor()?, self.name);
        forward::start(namespace.into(), target, local)
    }

    fn start(&self, words: &[&str], input: &[u8]) -> Result<Background> {
        let shown = format!("`{}` on {}", words.join(" "), self.name);
        Background::start(self.command(words)?, input, &shown)
    }
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
