//! What is said between a running lab's supervisor and everybody else: one request and one reply, each a line of JSON,
//! over a socket in the lab's run directory. Whoever may open the socket is root already, so there is no other check.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::cgroup::Pace;

/// The longest line that either side reads.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// How long a request may take; a boot is the longest.
const REPLY_LIMIT: Duration = Duration::from_secs(150);

/// What the supervisor is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Tell the state of all hosts.
    Status,
    /// End the lab.
    Down,
    /// Do something to one host.
    Act {
        /// The host's name.
        host: String,
        /// What to do.
        action: Action,
    },
}

/// What can be done to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Take its power: all processes end at once, it answers nothing more, its disk stays.
    Kill,
    /// Give a killed host power again and wait until it is up.
    Boot,
    /// Stop all its processes; its kernel still answers ping.
    Freeze,
    /// Let them go on.
    Thaw,
    /// Pull its network cables.
    Cut,
    /// Plug them in again.
    Heal,
    /// Limit the CPU time of the host as a whole.
    Pace(Pace),
    /// Let everybody on it who touches the shared storage wait.
    HangStorage,
    /// End that.
    ReleaseStorage,
    /// Unmount the shared storage under its feet.
    LoseStorage,
    /// Mount it again.
    ReturnStorage,
}

/// The state of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// `running`, `killed`, or what is done to it, separated by commas: `frozen`, `cut`, `paced 10%`, `storage hung`,
    /// `storage lost`; `busy` while it is being killed or booted.
    pub state: String,
    /// Its addresses, with the lengths of their prefixes.
    pub addresses: Vec<String>,
}

/// What the supervisor writes to its standard output while it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// It holds the lock of the run directory: nobody will take the directory for a left-over.
    Begun,
    /// A step that a person may like to see.
    Step(String),
    /// All hosts are up.
    Up,
    /// The lab could not start and is ending.
    Failed(String),
}

/// The reply on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply<T> {
    Done(T),
    Refused(String),
}

/// Opens the socket on which the supervisor listens.
pub fn listen(run: &Path) -> Result<UnixListener> {
    let (_folder, path) = short_path(run)?;
    UnixListener::bind(path).with_context(|| format!("cannot listen in {}", run.display()))
}

/// Connects to the supervisor whose run directory is `run`.
pub fn connect(run: &Path) -> Result<UnixStream> {
    let (_folder, path) = short_path(run)?;
    let stream = UnixStream::connect(path).with_context(|| format!("no lab is running in {}", run.display()))?;
    stream.set_read_timeout(Some(REPLY_LIMIT))?;
    stream.set_write_timeout(Some(REPLY_LIMIT))?;
    Ok(stream)
}

/// Asks the supervisor whose run directory is `run`, and waits for its reply.
pub fn ask<T: for<'a> Deserialize<'a>>(run: &Path, request: &Request) -> Result<T> {
    let mut stream = connect(run)?;
    write_line(&mut stream, request)?;
    match read_line(&stream).context("the lab's supervisor gave no reply")? {
        Reply::Done(value) => Ok(value),
        Reply::Refused(reason) => Err(anyhow!(reason)),
    }
}

/// Reads one request, lets `handle` answer it, and writes the reply.
pub fn serve(mut stream: UnixStream, handle: impl FnOnce(Request) -> Result<serde_json::Value>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let reply = match read_line(&stream).and_then(handle) {
        Ok(value) => Reply::Done(value),
        Err(error) => Reply::Refused(format!("{error:#}")),
    };
    write_line(&mut stream, &reply)
}

/// Writes `value` as one line.
pub fn write_line(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value).context("cannot encode a message")?;
    line.push(b'\n');
    out.write_all(&line).context("cannot write a message")?;
    out.flush().context("cannot write a message")
}

fn read_line<T: for<'a> Deserialize<'a>>(stream: &UnixStream) -> Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line).context("cannot read a message")?;
    serde_json::from_str(&line).with_context(|| format!("not a message: {line:?}"))
}

/// A path to the socket that fits into the 108 bytes of a socket's address, however deep the run directory is. It is good
/// as long as the folder is open.
fn short_path(run: &Path) -> Result<(File, PathBuf)> {
    let folder = File::open(run).with_context(|| format!("cannot open the run directory {}", run.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/control.sock", folder.as_raw_fd()));
    Ok((folder, path))
}
