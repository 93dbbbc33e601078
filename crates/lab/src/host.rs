//! One host of a lab from the outside: commands in it, and what can be done to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::{Group, Pace};
use crate::enter::{self, Background, Output};
use crate::guest::{self, Shell};
use crate::lab::Lab;
use crate::protocol::Action;
use crate::topology::{self, Kind};
use crate::{forward, paths, tools};

/// How long a command in a host may take if nothing else is said.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// How long a guest may take to tell its journal.
const JOURNAL_LIMIT: Duration = Duration::from_secs(20);

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

impl<'a> Host<'a> {
    /// The host that `declared` describes in a lab that runs.
    pub(crate) fn of(lab: &'a Lab, declared: &'a topology::Host) -> Self {
        let name = &declared.name;
        let inside = match declared.kind {
            Kind::Container => Inside::Container(Group::named(lab.name(), name)),
            Kind::Guest => Inside::Guest(guest::machine::directory(lab.run_directory(), name)),
        };
        Self { lab, name, inside }
    }
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

    /// Its journal, and the file that has its console's text. A container's is read below `disks`, where the lab's own mounts are seen.
    pub(crate) fn journal(&self, disks: &Path) -> (Result<String>, PathBuf) {
        match &self.inside {
            Inside::Container(_) => journal_on_disk(&disks.join(self.name), self.lab.run_directory(), self.name),
            Inside::Guest(directory) => journal_of_guest(directory),
        }
    }

    fn start(&self, words: &[&str], input: &[u8]) -> Result<Background> {
        let shown = format!("`{}` on {}", words.join(" "), self.name);
        Background::start(self.command(words)?, input, &shown)
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
