//! A program on one core, and what it took. Measured by GNU time, which is small: who is started takes over the peak of memory of who starts it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::tools;

/// What a run took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Took {
    /// CPU time in user mode.
    pub user_s: f64,
    /// CPU time in the kernel, on the program's behalf.
    pub system_s: f64,
    /// From start to end.
    pub wall_s: f64,
    /// The peak of the resident set.
    pub rss_mib: f64,
}

impl Took {
    /// CPU time.
    pub fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Timed {
    child: Child,
    result: PathBuf,
    shown: String,
}

/// The words before a program's own: on the last core alone, measured into `result`.
pub fn words(result: &Path) -> Result<Vec<String>> {
    let last = std::thread::available_parallelism().context("cannot tell how many cores there are")?.get() - 1;
    let time = ["time", "--quiet", "--format", "%U %S %e %M", "--output"].map(str::to_owned);
    let pin = ["taskset", "--cpu-list"].map(str::to_owned);
    Ok(time.into_iter().chain([result.display().to_string()]).chain(pin).chain([last.to_string()]).collect())
}

impl Timed {
    /// Starts a command that begins with [`words`] for the same `result`, or comes to them.
    pub fn start(mut command: Command, result: &Path) -> Result<Self> {
        let shown = tools::shown(&command);
        let child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        Ok(Self { child, result: result.to_owned(), shown })
    }

    /// The process that is measured.
    pub fn process(&self) -> Result<rustix::process::Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let child: i32 = children.trim().parse().with_context(|| format!("`{}` has {children:?}", self.shown))?;
        rustix::process::Pid::from_raw(child).context("no process has the number 0")
    }

    /// Fails if it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "`{}` ended: {ended:?}", self.shown);
        Ok(())
    }

    /// Waits for its end.
    pub fn finish(mut self, limit: Duration) -> Result<Took> {
        let begin = Instant::now();
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if begin.elapsed() > limit => anyhow::bail!("`{}` runs for {limit:?}", self.shown),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        ensure!(status.success(), "`{}` failed with {status}", self.shown);
        let text = std::fs::read_to_string(&self.result).context("cannot read what time wrote")?;
        parse(&text).with_context(|| format!("not what time writes: {text:?}"))
    }
}

impl Drop for Timed {
    /// Where it was not waited for: the program first, since `time` would leave it behind.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            if let Ok(process) = self.process() {
                let _already_gone = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
            let _already_gone = (self.child.kill(), self.child.wait());
        }
    }
}

fn parse(text: &str) -> Option<Took> {
    let mut words = text.split_whitespace().map(str::parse::<f64>);
    let mut next = || words.next()?.ok();
    let (user_s, system_s, wall_s, rss_kib) = (next()?, next()?, next()?, next()?);
    Some(Took { user_s, system_s, wall_s, rss_mib: rss_kib / 1024.0 })
}
