//! Running commands inside a host, from outside: the command joins the host's control groups, so that it is frozen, slowed
//! and killed with it, and then its namespaces. The host itself is prepared for none of this.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::cgroup::Group;
use crate::tools;

/// How much is kept of what a command writes to each of its outputs; the rest is read and thrown away.
const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// How long outputs may stay open after a command ended, for a process that it left behind.
const LINGER: Duration = Duration::from_millis(300);

/// What a command in a host gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 128 and the signal's number if a signal ended it.
    pub status: i32,
    /// What it wrote to its standard output, at most 64 MiB.
    pub stdout: String,
    /// What it wrote to its standard error, at most 64 MiB.
    pub stderr: String,
}

impl Output {
    /// Whether the status was 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// The standard output without the white space around it, or an error with the command's own words.
    pub fn text(self) -> Result<String> {
        let Self { status, stdout, stderr } = self;
        ensure!(status == 0, "it ended with status {status}, and said: {} {}", stdout.trim(), stderr.trim());
        Ok(stdout.trim().to_owned())
    }
}

/// A command line that runs `words` as root inside the host whose groups are `group`.
pub fn command(group: &Group, words: &[&str]) -> Result<Command> {
    let Some(pid) = group.init() else {
        bail!("it is not running (see `phalanx-lab status`)");
    };
    let entries: Vec<_> = group.visitor_entries().iter().map(|entry| entry.display().to_string()).collect();
    let join = format!("for entry in {}; do echo $$ > $entry || exit 125; done; exec \"$@\"", entries.join(" "));
    let mut command = tools::command("sh")?;
    command.args(["-c", &join, "enter", "nsenter", "--target", &pid.to_string(), "--all", "--"]);
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    command.args(["env", "-i", "-C", "/root", "HOME=/root", "LANG=C.UTF-8", "USER=root"]);
    command.args(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", &format!("TERM={terminal}")]);
    command.args(words);
    Ok(command)
}

/// A line of shell that runs exactly these words.
pub fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ")
}

/// A running command whose output is collected. Dropping it kills it with all that it started, unless that has made a
/// session of its own.
#[derive(Debug)]
pub struct Background {
    shown: String,
    child: Child,
    stdout: Collector,
    stderr: Collector,
    status: Option<ExitStatus>,
}

impl Background {
    /// Starts `command` with `input` as its standard input. `shown` is what errors call it.
    pub fn start(mut command: Command, input: &[u8], shown: &str) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            let input = input.to_vec();
            // A command that does not read its input to the end says so by its status.
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = Collector::start(child.stdout.take());
        let stderr = Collector::start(child.stderr.take());
        Ok(Self { shown: shown.to_owned(), child, stdout, stderr, status: None })
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> Result<bool> {
        if self.status.is_none() {
            self.status = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.shown))?;
        }
        Ok(self.status.is_none())
    }

    /// Waits until it ends. After `limit` it is killed, and the failure has what it wrote.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        use std::os::unix::process::ExitStatusExt;
        let begin = Instant::now();
        while self.is_running()? {
            if begin.elapsed() >= limit {
                let said = format!("{} {}", self.stdout(), self.stderr());
                bail!("{} did not end within {limit:?}; it said: {}", self.shown, said.trim());
            }
            thread::sleep(Duration::from_millis(2));
        }
        let until = Instant::now() + LINGER;
        self.stdout.finish(until);
        self.stderr.finish(until);
        let status = self.status.and_then(|status| status.code().or(status.signal().map(|signal| 128 + signal)));
        let status = status.with_context(|| format!("{} ended in no known way", self.shown))?;
        Ok(Output { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Asks it to end by SIGINT, as Ctrl-C does, and waits as [`Background::wait`].
    pub fn stop(mut self, limit: Duration) -> Result<Output> {
        if self.is_running()? {
            kill_process_group(Pid::from_child(&self.child), Signal::INT)
                .with_context(|| format!("cannot interrupt {}", self.shown))?;
        }
        self.wait(limit)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It may have ended by itself in this moment; both calls then fail, and nothing is left to do.
            let _gone = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _status = self.child.wait();
        }
    }
}

/// A thread that reads an output to its end.
#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(source: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let Some(mut source) = source else { return };
            let mut buffer = vec![0; 64 << 10];
            // An error while reading is the end of what can be known, like the end of the output.
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let room = OUTPUT_BYTES_MAX - bytes.len();
                bytes.extend_from_slice(&buffer[..count.min(room)]);
            }
        });
        Self { bytes, thread }
    }

    fn finish(&self, until: Instant) {
        while !self.thread.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_shell_reads_the_words_back() {
        let words = ["printf", "%s|", "a b", "it's", "$(id)", "", "-n", "\n"];
        let line = super::quoted(&words);
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$(id)||-n|\n|");
    }
}
