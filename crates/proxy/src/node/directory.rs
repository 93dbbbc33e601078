//! Looking up hosts, on threads of their own: SQLite may wait for the disk, and tasks must not.
//!
//! Nothing is cached here beyond what SQLite keeps in memory, so a row is seen by the first look-up after its commit.

use phalanx_host::directory::{HostEntry, Reader};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const THREADS: usize = 2;
/// Look-ups that may wait for each thread.
const WAITING_MAX: usize = 4_096;
/// How long a look-up may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a host can't be looked up now.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The directory can't be read; the log of the service says why.
    #[error("the directory can't be read")]
    Unreadable,
    /// The node has not got its directory yet: that it knows no host means nothing.
    #[error("the directory has not been filled yet")]
    NotFilled,
    /// Too many look-ups wait already.
    #[error("too many look-ups wait for the directory")]
    Busy,
    /// It took too long.
    #[error("the directory did not answer in time")]
    TimedOut,
}

/// Hands look-ups to the threads.
#[derive(Debug)]
pub struct Directory {
    threads: Vec<mpsc::Sender<Lookup>>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Lookup {
    host: String,
    answer: oneshot::Sender<Result<Option<HostEntry>, LookupError>>,
}

impl Directory {
    /// Starts the threads. The file need not exist yet: each look-up tries anew until it does.
    ///
    /// # Errors
    /// A thread can't be started.
    pub fn start(path: &Path) -> io::Result<Self> {
        let mut threads = Vec::new();
        for number in 0..THREADS {
            let (sender, receiver) = mpsc::channel(WAITING_MAX);
            let path = path.to_owned();
            let name = format!("directory-{number}");
            std::thread::Builder::new().name(name).spawn(move || Worker::new(path).run(receiver))?;
            threads.push(sender);
        }
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// Whether hosts can be looked up.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), LookupError> {
        // No host has this name; the answer "nobody" is given by a directory that was filled only.
        self.host("").await.map(drop)
    }

    /// Who answers for `host`, given in lower case without a port.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn host(&self, host: &str) -> Result<Option<HostEntry>, LookupError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let (answer, answered) = oneshot::channel();
        let lookup = Lookup { host: host.to_owned(), answer };
        self.threads[turn].try_send(lookup).map_err(|_| LookupError::Busy)?;
        match tokio::time::timeout(TIMEOUT, answered).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(LookupError::Unreadable),
            Err(_) => Err(LookupError::TimedOut),
        }
    }
}

struct Worker {
    path: PathBuf,
    reader: Option<Reader>,
    failing: bool,
}

impl Worker {
    fn new(path: PathBuf) -> Self {
        Self { path, reader: None, failing: false }
    }

    fn run(mut self, mut lookups: mpsc::Receiver<Lookup>) {
        while let Some(Lookup { host, answer }) = lookups.blocking_recv() {
            // Whoever asked may have given up; that is no concern here.
            let _ = answer.send(self.find(&host));
        }
    }

    fn find(&mut self, host: &str) -> Result<Option<HostEntry>, LookupError> {
        let found = match &self.reader {
            Some(reader) => reader.host(host),
            None => Reader::open(&self.path).and_then(|reader| self.reader.insert(reader).host(host)),
        };
        let found = match (found, &self.reader) {
            (Ok(None), Some(reader)) => reader.is_filled().map(|is_filled| is_filled.then_some(None)),
            (found, _) => found.map(Some),
        };
        match found {
            Ok(found) => {
                self.failing = false;
                found.ok_or(LookupError::NotFilled)
            }
            Err(error) => {
                self.reader = None;
                if !self.failing {
                    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    tracing::error!("{error}: {cause}");
                }
                self.failing = true;
                Err(LookupError::Unreadable)
            }
        }
    }
}
