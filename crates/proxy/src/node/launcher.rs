//! The launcher's client: asks it to wake accounts and tells it which were used.
//!
//! One task owns the connection. Requests to wake one account while another for it is under way are one. When the connection is
//! lost, all who wait are told, and the next request makes a new one.

use super::accounts::Accounts;
use phalanx_model::Uid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Requests that may wait for the task.
const REQUESTS_MAX: usize = 4_096;
/// How often the launcher is told which accounts were used.
const TELL_USED_EVERY: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(5) };
/// Accounts in one line.
const USED_PER_LINE_MAX: usize = 1_000;
/// For connecting to the launcher and writing a line to it.
const IO_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest line that the launcher may send.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Why an account could not be woken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WakeError {
    /// The launcher can't do it.
    #[error("the launcher can't wake it: {why}")]
    Refused {
        /// The launcher's own words.
        why: String,
        /// Whether it may be worth another try soon.
        retry: bool,
    },
    /// The launcher can't be talked to.
    #[error("the launcher can't be reached: {0}")]
    Unreachable(String),
    /// Too many requests wait already.
    #[error("too many requests wait for the launcher")]
    Busy,
}

/// Hands requests to the task.
#[derive(Debug, Clone)]
pub struct Launcher {
    requests: mpsc::Sender<WakeRequest>,
    used: Arc<Mutex<BTreeSet<Uid>>>,
}

#[derive(Debug)]
struct WakeRequest {
    uid: Uid,
    answer: oneshot::Sender<Result<(), WakeError>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum ToLauncher<'a> {
    Wake(Uid),
    Used(&'a [Uid]),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FromLauncher {
    Ready(Uid),
    Error {
        uid: Uid,
        why: String,
        #[serde(default)]
        retry: bool,
    },
}

impl WakeError {
    /// Whether another try soon may help: the launcher said so, or is being started anew.
    pub fn is_passing(&self) -> bool {
        match self {
            WakeError::Refused { why: _, retry } => *retry,
            WakeError::Unreachable(_) => true,
            WakeError::Busy => false,
        }
    }
}

impl Launcher {
    /// Starts the task. The launcher need not be there yet. Accounts with requests under way count as used as long as these last.
    pub fn start(path: &Path, accounts: Accounts) -> Self {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let used = Arc::<Mutex<BTreeSet<Uid>>>::default();
        let client =
            Client { path: path.to_owned(), used: used.clone(), accounts, connection: None, waiting: HashMap::new() };
        tokio::spawn(client.run(receiver));
        Self { requests, used }
    }

    /// Wakes an account; returns when its httpd accepts connections. The caller bounds the time.
    ///
    /// # Errors
    /// See [`WakeError`].
    pub async fn wake(&self, uid: Uid) -> Result<(), WakeError> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(WakeRequest { uid, answer }).map_err(|_| WakeError::Busy)?;
        answered.await.unwrap_or_else(|_| Err(WakeError::Unreachable("it was given up".to_owned())))
    }

    /// Notes that an account had a request.
    pub fn used(&self, uid: Uid) {
        lock(&self.used).insert(uid);
    }
}

fn lock(used: &Mutex<BTreeSet<Uid>>) -> std::sync::MutexGuard<'_, BTreeSet<Uid>> {
    // A set is whole after every operation, also one that panicked in another thread.
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Client {
    path: PathBuf,
    used: Arc<Mutex<BTreeSet<Uid>>>,
    accounts: Accounts,
    connection: Option<Connection>,
    waiting: HashMap<Uid, Vec<oneshot::Sender<Result<(), WakeError>>>>,
}

struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    /// Bytes of a line that has not ended yet.
    partial: Vec<u8>,
}

impl Client {
    async fn run(mut self, mut requests: mpsc::Receiver<WakeRequest>) {
        let mut tell_used = interval(TELL_USED_EVERY);
        tell_used.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.wake(request).await,
                    None => return,
                },
                lines = read_lines(&mut self.connection) => match lines {
                    Ok(lines) => lines.iter().for_each(|line| self.take(line)),
                    Err(error) => self.lose(&error),
                },
                _ = tell_used.tick() => self.tell_used().await,
            }
        }
    }

    async fn wake(&mut self, WakeRequest { uid, answer }: WakeRequest) {
        let waiters = self.waiting.entry(uid).or_default();
        // Those who gave up make place for a new request: their line may have been lost with its answer.
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(answer);
        if waiters.len() == 1
            && let Err(error) = self.send(&ToLauncher::Wake(uid)).await
        {
            self.lose(&error);
        }
    }

    async fn tell_used(&mut self) {
        self.waiting.retain(|_, waiters| waiters.iter().any(|waiter| !waiter.is_closed()));
        let mut used = std::mem::take(&mut *lock(&self.used));
        used.extend(self.accounts.busy());
        let used: Vec<Uid> = used.into_iter().collect();
        for uids in used.chunks(USED_PER_LINE_MAX) {
            if let Err(error) = self.send(&ToLauncher::Used(uids)).await {
                self.lose(&error);
                return;
            }
        }
    }

    async fn send(&mut self, message: &ToLauncher<'_>) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let work = async {
            let connection = match &mut self.connection {
                Some(connection) => connection,
                none => {
                    let (reader, writer) = UnixStream::connect(&self.path).await?.into_split();
                    none.insert(Connection { reader, writer, partial: Vec::new() })
                }
            };
            connection.writer.write_all(&line).await
        };
        timeout(IO_TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn take(&mut self, line: &[u8]) {
        let (uid, result) = match serde_json::from_slice(line) {
            Ok(FromLauncher::Ready(uid)) => (uid, Ok(())),
            Ok(FromLauncher::Error { uid, why, retry }) => (uid, Err(WakeError::Refused { why, retry })),
            Err(error) => {
                tracing::warn!("the launcher said something that is not understood: {error}");
                return;
            }
        };
        for waiter in self.waiting.remove(&uid).unwrap_or_default() {
            // Whoever waited may have given up.
            let _ = waiter.send(result.clone());
        }
    }

    fn lose(&mut self, error: &io::Error) {
        if self.connection.take().is_some() || !self.waiting.is_empty() {
            tracing::warn!("no connection to the launcher at {}: {error}", self.path.display());
        }
        for (_, waiters) in self.waiting.drain() {
            for waiter in waiters {
                let _ = waiter.send(Err(WakeError::Unreachable(error.to_string())));
            }
        }
    }
}

/// Whole lines that have come; waits for ever without a connection.
async fn read_lines(connection: &mut Option<Connection>) -> io::Result<Vec<Vec<u8>>> {
    let Some(Connection { reader, writer: _, partial }) = connection else { return std::future::pending().await };
    // One read at a time: nothing is lost when this is cancelled between reads.
    if reader.read_buf(partial).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') else {
        return if partial.len() > LINE_BYTES_MAX {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"))
        } else {
            Ok(Vec::new())
        };
    };
    let rest = partial.split_off(end + 1);
    let lines = std::mem::replace(partial, rest);
    Ok(lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_long_request_keeps_its_account_awake_until_it_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("launcher.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        let accounts = Accounts::default();
        let launcher = Launcher::start(&path, accounts.clone());
        let download = accounts.begin(Uid::FIRST, 1);
        let (stream, _) = listener.accept().await.expect("the launcher is told");
        let mut lines = BufReader::new(stream).lines();
        for _ in 0..3 {
            let line = lines.next_line().await.expect("a line").expect("more");
            assert_eq!(line, format!(r#"{{"used":[{}]}}"#, Uid::FIRST));
        }
        drop(download);
        launcher.used(Uid::LAST);
        let line = lines.next_line().await.expect("a line").expect("more");
        assert_eq!(line, format!(r#"{{"used":[{}]}}"#, Uid::LAST));
    }
}
