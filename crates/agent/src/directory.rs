//! The directory's thread: the one writer of the local SQLite file, and of all that is derived from it.
//!
//! A batch is committed first and acknowledged; then what it touched is derived: the configuration of changed accounts on web nodes,
//! homes on the machine that keeps the share. What is still to be derived is marked in the database by the transaction that changed
//! it, so a crash in between loses nothing. Beside that, all accounts are looked at in turns, a page a second, so that what was
//! changed by hand is mended too; looking at what is as it should be writes nothing.

use crate::accounts::{Accounts, Why};
use crate::events::Events;
use crate::mail::Mail;
use crate::paths::Paths;
use crate::renew::Renewals;
use anyhow::{Context, anyhow};
use phalanx_host::directory::{ChangesRead, DirectoryError, Reader, Writer};
use phalanx_model::{Name, Position};
use phalanx_plan::session::{Batch, Snapshot};
use phalanx_plan::spec::NodeSpec;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that wait.
const QUEUE_LEN: usize = 1_024;
/// Dirty accounts that are derived before the next request is looked at, and how long that may take: the account that is under way
/// is finished, and checking the configuration of one that is awake takes some 50 ms.
const DERIVED_AT_ONCE: usize = 100;
const DERIVED_IN: Duration = Duration::from_millis(100);
/// Accounts that are looked at each second in turns.
const LOOKED_AT_ONCE: usize = 1_000;
/// A round of looking begins no sooner than this after the one before.
const ROUND_INTERVAL: Duration = Duration::from_secs(20);
/// How long the thread waits for a request before it looks at accounts.
const IDLE: Duration = Duration::from_secs(1);
/// Problems that are reported at once.
const PROBLEMS_MAX: usize = 10;

enum Request {
    Apply(Batch, Answer<Position>),
    Collect(Snapshot, Answer<Position>),
    Forget(Answer<Position>),
    Serve(Option<Box<NodeSpec>>),
}

type Answer<T> = oneshot::Sender<Result<T, DirectoryError>>;

/// The way to the thread.
#[derive(Clone)]
pub struct DirectoryHandle {
    requests: mpsc::Sender<Request>,
    /// A connection of its own for reading the log of changes.
    log: Arc<Mutex<Writer>>,
    /// What is committed.
    pub head: Arc<watch::Sender<Position>>,
    forgotten: Arc<AtomicBool>,
    problems: Arc<Mutex<Vec<String>>>,
}

/// Opens the directory and starts its thread.
///
/// # Errors
/// The database can't be opened or made.
pub fn start(
    paths: &Paths,
    events: Arc<Events>,
    spec: Option<NodeSpec>,
    renewals: Renewals,
) -> anyhow::Result<DirectoryHandle> {
    let path = paths.directory();
    let writer = Writer::open(&path)?;
    let reader = Reader::open(&path)?;
    let (requests, queue) = mpsc::channel(QUEUE_LEN);
    let head = Arc::new(watch::Sender::new(writer.position()?));
    let problems = Arc::new(Mutex::new(Vec::new()));
    let handle = DirectoryHandle {
        requests,
        log: Arc::new(Mutex::new(Writer::open(&path)?)),
        head: head.clone(),
        forgotten: Arc::default(),
        problems: problems.clone(),
    };
    let accounts = Accounts::new(paths, Handle::current(), events.clone(), renewals);
    let mail = Mail::new(Path::new("/"), Handle::current(), events);
    let worker = Worker { writer, reader, queue, head, accounts, mail, spec, problems, round: Round::default() };
    std::thread::Builder::new()
        .name("directory".into())
        .spawn(move || worker.run())
        .context("no thread can be started")?;
    Ok(handle)
}

impl DirectoryHandle {
    /// Commits a batch.
    pub async fn apply(&self, batch: Batch) -> anyhow::Result<()> {
        self.ask(|answer| Request::Apply(batch, answer)).await.map(drop)
    }

    /// Takes a piece of a snapshot; the last one replaces the directory.
    pub async fn collect(&self, piece: Snapshot) -> anyhow::Result<()> {
        self.ask(|answer| Request::Collect(piece, answer)).await.map(drop)
    }

    /// Empties the directory, since the machine left the cluster that it belongs to.
    pub async fn forget(&self) -> anyhow::Result<()> {
        self.ask(Request::Forget).await?;
        self.forgotten.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the directory was emptied since this was asked last.
    pub fn take_forgotten(&self) -> bool {
        self.forgotten.swap(false, Ordering::Relaxed)
    }

    /// Tells what this node is now.
    pub async fn serve(&self, spec: Option<NodeSpec>) -> anyhow::Result<()> {
        self.requests.send(Request::Serve(spec.map(Box::new))).await.map_err(|_| gone())
    }

    /// Reads changes for a slave, beside the thread: a slave does not wait until this node has derived its own files.
    pub async fn changes_after(&self, after: Position) -> anyhow::Result<ChangesRead> {
        let log = self.log.clone();
        let read = move || log.lock().unwrap_or_else(PoisonError::into_inner).changes_after(after);
        Ok(tokio::task::spawn_blocking(read).await??)
    }

    /// What could not be derived, in words for a person.
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> anyhow::Result<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| gone())?;
        Ok(answered.await.map_err(|_| gone())??)
    }
}

fn gone() -> anyhow::Error {
    anyhow!("the directory's thread has ended; the agent must be started anew")
}

/// Where the looking in turns stands.
#[derive(Default)]
struct Round {
    after: Option<Name>,
    next_at: Option<Instant>,
    /// A whole round was made since the start or the last spec.
    is_repeated: bool,
}

struct Worker {
    writer: Writer,
    reader: Reader,
    queue: mpsc::Receiver<Request>,
    head: Arc<watch::Sender<Position>>,
    accounts: Accounts,
    mail: Mail,
    spec: Option<NodeSpec>,
    problems: Arc<Mutex<Vec<String>>>,
    round: Round,
}

impl Worker {
    fn run(mut self) {
        let runtime = Handle::clone(&self.accounts.runtime);
        let mut wait = Duration::ZERO;
        loop {
            match runtime.block_on(async { tokio::time::timeout(wait, self.queue.recv()).await }) {
                Ok(Some(request)) => self.answer(request),
                Ok(None) => return,
                Err(_) => {}
            }
            wait = match self.derive() {
                Ok(0) => self.look().map_or_else(|error| self.failed(&error), |()| IDLE),
                Ok(_) => Duration::ZERO,
                Err(error) => self.failed(&error),
            };
            if let Err(error) = self.accounts.take_failures(&self.reader) {
                wait = self.failed(&error);
            }
            let mut problems = self.accounts.problems(PROBLEMS_MAX);
            problems.extend(self.mail.problems(PROBLEMS_MAX - problems.len()));
            *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
        }
    }

    fn failed(&self, error: &anyhow::Error) -> Duration {
        tracing::error!(error = format!("{error:#}"), "files could not be derived from the directory; trying again");
        IDLE
    }

    fn answer(&mut self, request: Request) {
        let is_heard = match request {
            Request::Apply(batch, answer) => {
                self.pass("before a change of the directory");
                let done = self.writer.apply(&batch).and_then(|()| self.moved());
                self.pass("after a change of the directory");
                answer.send(done).is_ok()
            }
            Request::Collect(piece, answer) => {
                let done = self.writer.collect(&piece).and_then(|()| self.moved());
                answer.send(done).is_ok()
            }
            Request::Forget(answer) => {
                let empty = Snapshot { at: Position::default(), piece: 0, rows: vec![], last: true };
                let done = self.writer.collect(&empty).and_then(|()| self.moved());
                answer.send(done).is_ok()
            }
            Request::Serve(spec) => {
                self.spec = spec.map(|spec| *spec);
                self.round = Round::default();
                true
            }
        };
        if !is_heard {
            tracing::debug!("nobody waited for the directory's answer any more");
        }
    }

    /// A place for crashes.
    fn pass(&self, place: &str) {
        self.accounts.renewals.crash.pass(place);
    }

    fn moved(&self) -> Result<Position, DirectoryError> {
        let position = self.writer.position()?;
        self.head.send_replace(position);
        Ok(position)
    }

    /// Derives what the last batches touched. Returns how many rows of mail or accounts that were.
    fn derive(&mut self) -> anyhow::Result<usize> {
        let of_mail = self.mail.derive(self.spec.as_ref(), &mut self.writer, &self.reader)?;
        let mut dirty = self.writer.dirty(DERIVED_AT_ONCE)?;
        if dirty.is_empty() {
            return Ok(of_mail);
        }
        let (position, begun) = (self.writer.position()?, Instant::now());
        self.pass("before changed accounts are derived");
        let mut work = self.accounts.begin(self.spec.as_ref(), &self.reader, Why::Ordered);
        let mut done = 0;
        while done < dirty.len() && (done == 0 || begun.elapsed() < DERIVED_IN) {
            work.derive(&dirty[done].account, dirty[done].uid)?;
            done += 1;
        }
        work.finish()?;
        self.pass("after changed accounts were derived");
        dirty.truncate(done);
        self.writer.clear_dirty(&dirty, position)?;
        Ok(done)
    }

    /// Looks at the next page of accounts; at the beginning of a round, also for what belongs to no account.
    fn look(&mut self) -> anyhow::Result<()> {
        let Round { after, next_at, is_repeated } = &mut self.round;
        let why = if *is_repeated { Why::Looked } else { Why::Ordered };
        if after.is_none() {
            if next_at.is_some_and(|at| Instant::now() < at) {
                return Ok(());
            }
            *next_at = Some(Instant::now() + ROUND_INTERVAL);
            self.mail.look(self.spec.as_ref(), &mut self.writer, &self.reader)?;
        }
        let is_first = after.is_none();
        let page = self.reader.accounts(after.as_ref(), LOOKED_AT_ONCE)?;
        *after = page.last().map(|(account, _)| account.name.clone()).filter(|_| page.len() == LOOKED_AT_ONCE);
        *is_repeated |= after.is_none();
        let mut work = self.accounts.begin(self.spec.as_ref(), &self.reader, why);
        if is_first {
            work.remove_strangers()?;
        }
        for (account, _) in &page {
            work.derive(&account.name, account.uid)?;
        }
        work.finish()
    }
}
