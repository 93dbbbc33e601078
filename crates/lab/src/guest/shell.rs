//! The way to run commands in a guest: a serial line that carries one short line per command, and a directory that
//! guest and lab share (hostfs), with the command, its input, its outputs and its status in files.
//!
//! The line is a FIFO that the guest's kernel reads as `ttyS0`, where systemd's debug shell listens. Each command runs in
//! the background of that shell, in a session of its own, so one that hangs blocks no other and can be killed. None of
//! this needs the guest's network, and outputs may be of any content. Any process of the lab may use a guest's
//! shell, knowing only the guest's directory; several may do so at once.
//!
//! Outputs reach the lab when the command ends: a guest keeps them in its cache until then.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::io::Errno;

use super::{Pace, remove_if_there};
use crate::Output;

/// Where the guest mounts the shared directory: a place of its own in a file system that is gone with each boot.
const MOUNT_POINT: &str = "/run/phalanx-lab";

/// How much of each output is read; what is longer is cut.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// How often the shell is called until it answers: what is written before it listens may be thrown away.
const CALL_EVERY: Duration = Duration::from_millis(300);

/// Where this process looks for the next free number of a command, in all guests.
static JOBS: AtomicU64 = AtomicU64::new(0);

/// A guest's command line, as seen from the lab.
#[derive(Clone, Debug)]
pub struct Shell {
    line: PathBuf,
    mail: PathBuf,
}

impl Shell {
    /// The shell of the guest whose directory ([`super::GuestSpec::dir`]) this is, running or not.
    pub fn of(dir: &Path) -> Shell {
        Shell { line: dir.join("line"), mail: dir.join("mail") }
    }

    /// Makes a fresh line and an empty mail directory, for a boot.
    pub(super) fn prepare(&self) -> Result<()> {
        if self.mail.exists() {
            fs::remove_dir_all(&self.mail).with_context(|| format!("cannot empty {}", self.mail.display()))?;
        }
        fs::create_dir(&self.mail).with_context(|| format!("cannot make {}", self.mail.display()))?;
        remove_if_there(&self.line)?;
        mknodat(CWD, &self.line, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .with_context(|| format!("cannot make the FIFO {}", self.line.display()))
    }

    /// The FIFO that is the guest's `ttyS0`.
    pub(super) fn line(&self) -> &Path {
        &self.line
    }

    /// Calls the shell until it answers through the shared directory. `alive` fails if the guest has ended.
    pub(super) fn await_answer(&self, limit: Duration, alive: impl Fn() -> Result<()>) -> Result<()> {
        let answer = self.mail.join("ready");
        let call = format!(
            "mkdir -p {MOUNT_POINT}; mountpoint -q {MOUNT_POINT} || mount -t hostfs lab {MOUNT_POINT}; \
             : >{MOUNT_POINT}/mail/ready"
        );
        let mut pace = Pace::until(limit);
        let mut called: Option<Instant> = None;
        while !answer.exists() {
            alive()?;
            if called.is_none_or(|at| at.elapsed() >= CALL_EVERY) {
                called = Some(Instant::now());
                if let Some(mut line) = self.open_line()? {
                    writeln!(line, "{call}").context("cannot write to the guest's line")?;
                }
            }
            if !pace.wait() {
                bail!("its command line did not answer within {limit:?}");
            }
        }
        Ok(())
    }

    /// Runs a line of shell as root with `input` as its standard input and waits for it; when `limit` is over it is killed,
    /// with all of its session. What it leaves running in other sessions stays. Any exit status is an `Ok`.
    ///
    /// # Errors
    /// If the command does not end in time, or the guest is off or ends.
    pub fn run(&self, command: &str, input: &[u8], limit: Duration) -> Result<Output> {
        let job = Job::begin(&self.mail, command)?;
        fs::write(job.file("in"), input).context("cannot hand the command's input over")?;
        let at = &job.in_guest;
        // The outputs are synced before the status appears, since a daemon that the command left behind may hold them open.
        let script = format!(
            "cd /root; export HOME=/root LANG=C.UTF-8\n\
             setsid sh -c 'echo $$ >{at}.pid; exec sh {at}.sh' <{at}.in >{at}.out 2>{at}.err\n\
             status=$?; sync {at}.out {at}.err; echo $status >{at}.tmp; mv {at}.tmp {at}.status\n"
        );
        fs::write(job.file("job"), script).context("cannot hand the command over")?;
        self.type_in(&format!("sh {at}.job &"))?;

        let mut pace = Pace::until(limit);
        while !job.file("status").exists() {
            if self.open_line()?.is_none() {
                bail!("the guest has ended");
            }
            if !pace.wait() {
                self.type_in(&format!("kill -KILL -- -$(cat {at}.pid)"))?;
                bail!("it did not end within {limit:?}");
            }
        }
        let text = job.read("status")?;
        let status = text.trim().parse().with_context(|| format!("the command's status is {text:?}"))?;
        let output = Output { status, stdout: job.read("out")?, stderr: job.read("err")? };
        job.remove()?;
        Ok(output)
    }

    /// Types a line into the shell, whole, since it is shorter than `PIPE_BUF`. The FIFO takes hundreds of lines that the
    /// guest has not read; more are an error.
    fn type_in(&self, text: &str) -> Result<()> {
        let mut line = self.open_line()?.context("the guest is off")?;
        line.write_all(format!("{text}\n").as_bytes()).context("cannot write to the guest's line")
    }

    /// The line, for writing without blocking; `None` if no guest has it open for reading.
    fn open_line(&self) -> Result<Option<File>> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        match OpenOptions::new().write(true).custom_flags(flags).open(&self.line) {
            Ok(line) => Ok(Some(line)),
            Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot open {}", self.line.display())),
        }
    }
}

/// One command's files. Whoever makes `NUMBER.sh` owns the number until that file is removed, as the last.
struct Job {
    path: PathBuf,
    in_guest: String,
}

impl Job {
    fn begin(mail: &Path, command: &str) -> Result<Job> {
        loop {
            let number = JOBS.fetch_add(1, Ordering::Relaxed).to_string();
            let path = mail.join(&number);
            match File::create_new(path.with_extension("sh")) {
                Ok(mut file) => {
                    file.write_all(command.as_bytes()).context("cannot hand the command over")?;
                    return Ok(Job { path, in_guest: format!("{MOUNT_POINT}/mail/{number}") });
                }
                // Another process's command. There are as many as commands that run or were given up.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context("cannot hand the command over; is the guest off?"),
            }
        }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.path.with_extension(suffix)
    }

    fn read(&self, suffix: &str) -> Result<String> {
        let path = self.file(suffix);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut bytes = Vec::new();
        let read = file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn remove(&self) -> Result<()> {
        for suffix in ["in", "job", "pid", "out", "err", "status", "sh"] {
            remove_if_there(&self.file(suffix))?;
        }
        Ok(())
    }
}
