//! Looking up hosts, on a thread of its own: SQLite may wait for the disk, and tasks must not.
//!
//! Answers are kept for a while. An answer is at most [`LIFETIME`](cache::LIFETIME) older than the directory, so a removed or suspended
//! site is gone that much after the commit that says so. As long as answers are used, the thread looks by itself whether the file has
//! changed (`PRAGMA data_version`), so that nobody waits for that; when nobody asks, it sleeps. There is one thread, since the numbers
//! that SQLite gives can be compared within one connection alone.

mod cache;

use cache::{Answer, Cache};
use phalanx_host::directory::{DirectoryError, Reader};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Look-ups that may wait for the thread.
const WAITING_MAX: usize = 8_192;
/// After so long, answers that are used are confirmed: before they expire, also where the thread is late.
const CONFIRM_EVERY: Duration = Duration::from_millis(8);
/// How often the thread looks whether another file has taken the directory's place.
const FILE_CHECK_EVERY: Duration = Duration::from_millis(100);
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

/// Answers from what is kept, or hands look-ups to the thread.
#[derive(Debug)]
pub struct Directory {
    cache: Arc<Mutex<Cache>>,
    lookups: SyncSender<Lookup>,
}

#[derive(Debug)]
struct Lookup {
    host: String,
    answer: oneshot::Sender<Result<Answer, LookupError>>,
}

impl Directory {
    /// Starts the thread. The file need not exist yet: each look-up tries anew until it does.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(path: &Path) -> io::Result<Self> {
        let (lookups, receiver) = sync_channel(WAITING_MAX);
        let cache = Arc::<Mutex<Cache>>::default();
        let thread = Thread { path: path.to_owned(), open: None, cache: cache.clone(), failing: false };
        std::thread::Builder::new().name("directory".into()).spawn(move || thread.run(&receiver))?;
        Ok(Self { cache, lookups })
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
    pub async fn host(&self, host: &str) -> Result<Answer, LookupError> {
        if let Some(answer) = lock(&self.cache).find(host, Instant::now()) {
            return Ok(answer);
        }
        let (answer, answered) = oneshot::channel();
        let lookup = Lookup { host: host.to_owned(), answer };
        self.lookups.try_send(lookup).map_err(|_| LookupError::Busy)?;
        match tokio::time::timeout(TIMEOUT, answered).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(LookupError::Unreadable),
            Err(_) => Err(LookupError::TimedOut),
        }
    }
}

fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    // A cache is whole after every operation, also one that panicked in another thread.
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Thread {
    path: PathBuf,
    open: Option<Open>,
    cache: Arc<Mutex<Cache>>,
    failing: bool,
}

struct Open {
    reader: Reader,
    file: Option<FileId>,
    file_checked: Instant,
    /// Changes with each commit.
    version: i64,
}

/// Device and inode: another file under the same name has others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl Thread {
    fn run(mut self, lookups: &Receiver<Lookup>) {
        loop {
            let next = match lookups.recv_timeout(CONFIRM_EVERY) {
                Err(RecvTimeoutError::Timeout) if lock(&self.cache).is_used() => {
                    let confirmed = self.confirm().map(drop);
                    // Where that fails, nothing is kept any more: who asks next is told.
                    let _ = self.note(confirmed);
                    continue;
                }
                // Nobody asks: what is kept may expire.
                Err(RecvTimeoutError::Timeout) => lookups.recv().ok(),
                next => next.ok(),
            };
            let Some(Lookup { host, answer }) = next else { return };
            // Whoever asked may have given up; that is no concern here.
            let _ = answer.send(self.find(&host));
        }
    }

    fn find(&mut self, host: &str) -> Result<Answer, LookupError> {
        let read = self.read(host);
        self.note(read)?.ok_or(LookupError::NotFilled)
    }

    /// None where the directory was never filled.
    fn read(&mut self, host: &str) -> Result<Option<Answer>, DirectoryError> {
        let cache = self.cache.clone();
        let reader = self.confirm()?;
        // Others may have asked for the same meanwhile.
        if let Some(answer) = lock(&cache).find(host, Instant::now()) {
            return Ok(Some(answer));
        }
        let answer = reader.host(host)?.map(Arc::new);
        if answer.is_none() && !reader.is_filled()? {
            return Ok(None);
        }
        lock(&cache).keep(host, &answer);
        Ok(Some(answer))
    }

    /// Opens the file where that is needed, and drops all that is kept if it has changed.
    fn confirm(&mut self) -> Result<&Reader, DirectoryError> {
        let at = Instant::now();
        let open = match self.open.take() {
            Some(open) if at.duration_since(open.file_checked) < FILE_CHECK_EVERY => open,
            before => self.reopen(before, at)?,
        };
        let version = open.reader.data_version()?;
        let mut cache = lock(&self.cache);
        if open.version != version {
            cache.clear();
        }
        cache.confirm(at);
        Ok(&self.open.insert(Open { version, ..open }).reader)
    }

    /// Keeps what was open before, unless another file has taken its place. One that was removed is read on as long as it is open.
    fn reopen(&self, before: Option<Open>, at: Instant) -> Result<Open, DirectoryError> {
        let file = std::fs::metadata(&self.path).ok().map(|found| FileId(found.dev(), found.ino()));
        match before {
            Some(open) if file.is_none() || open.file == file => Ok(Open { file_checked: at, ..open }),
            _ => {
                lock(&self.cache).clear();
                let reader = Reader::open(&self.path)?;
                Ok(Open { version: reader.data_version()?, reader, file, file_checked: at })
            }
        }
    }

    /// Tells the log when the directory begins to fail, and forgets all that was read before.
    fn note<T>(&mut self, read: Result<T, DirectoryError>) -> Result<T, LookupError> {
        if let Err(error) = &read {
            self.open = None;
            lock(&self.cache).clear();
            if !self.failing {
                let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
                tracing::error!("{error}: {cause}");
            }
        }
        self.failing = read.is_err();
        read.map_err(|_| LookupError::Unreadable)
    }
}

#[cfg(test)]
mod tests;
