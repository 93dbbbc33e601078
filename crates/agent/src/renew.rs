//! Who has to read a new configuration, and who is at it.
//!
//! Each account that is renewed has a task of its own, so that nobody waits for another account's httpd, and whoever changes files does
//! not wait at all. Changes that come while a renewal waits for its turn are one renewal; those that come while it runs are one more.
//! The removal of an account does not wait for its renewal but cuts it off. How one httpd takes another's place is in [`successor`].
//!
//! That an account has to read its files anew is noted in `/run` before they change, and struck out when it has. So neither a crash at any
//! point nor a failure leaves an account with what is no longer in force: the agent begins with the notes that were left, and what failed is
//! tried again by whoever looks at the accounts in turns. A machine that starts anew has no notes, and nobody who is awake.

use crate::crash::CrashPoints;
use crate::successor;
use anyhow::Context;
use phalanx_host::atomic::failed;
use phalanx_model::Uid;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

/// Where the notes are, a file for each account.
const NOTES: &str = "/run/phalanx/renew";
/// Accounts that are renewed at the same time: more than are when all of them are, so that a change of one need not wait for that.
const AT_ONCE: usize = 16;

/// What has to be renewed, and who is at it. Its clones are one.
#[derive(Debug, Clone)]
pub struct Renewals {
    notes: PathBuf,
    runtime: Handle,
    slots: Arc<Semaphore>,
    accounts: Arc<Mutex<BTreeMap<Uid, Entry>>>,
    /// Where the agent ends itself, for tests.
    pub crash: CrashPoints,
}

/// One account. There is none where nothing is wanted.
#[derive(Debug, Default)]
struct Entry {
    /// How often its files have changed.
    changes: u64,
    /// How many are changing its files now: as long as there are any, the note stays.
    changing: u32,
    /// Who removes it: nobody renews it any more.
    is_leaving: bool,
    task: Option<Task>,
    failure: Option<String>,
}

#[derive(Debug)]
struct Task {
    abort: AbortHandle,
    ended: Renewal,
}

/// A renewal that is under way.
#[derive(Debug, Clone)]
pub struct Renewal(watch::Receiver<()>);

/// An account whose files are being changed. If this is dropped, the note stays.
#[derive(Debug)]
pub struct Wanted {
    uid: Uid,
    renewals: Renewals,
    is_begun: bool,
}

/// An account that is being removed.
#[derive(Debug)]
pub struct Leaving {
    uid: Uid,
    renewals: Renewals,
}

impl Renewals {
    /// Without the notes that were left: see [`Renewals::resume`]. To be called where a runtime is.
    pub fn new(crash: CrashPoints) -> Self {
        let (slots, accounts) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::default());
        Self { notes: NOTES.into(), runtime: Handle::current(), slots, accounts, crash }
    }

    /// Begins what was left by an agent that ended before it was done. What can't be begun is found by whoever looks at the accounts in turns.
    pub fn resume(&self) {
        let uid = |name: std::ffi::OsString| Uid::try_from(name.to_str()?.parse::<u32>().ok()?).ok();
        let left: Vec<Uid> = match std::fs::read_dir(&self.notes) {
            Ok(entries) => entries.filter_map(|entry| uid(entry.ok()?.file_name())).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return tracing::warn!(%error, "the notes of who has to read files anew can't be listed"),
        };
        for uid in left {
            match self.want(uid) {
                Ok(wanted) => drop(wanted.begin()),
                Err(error) => {
                    tracing::warn!(%uid, error = format!("{error:#}"), "it can't begin to read its files anew")
                }
            }
        }
    }

    /// Notes that the account has to read its files anew. To be done before they change.
    ///
    /// # Errors
    /// The note can't be written.
    pub fn want(&self, uid: Uid) -> anyhow::Result<Wanted> {
        let mut accounts = self.lock();
        std::fs::create_dir_all(&self.notes).map_err(failed(&self.notes, "making the directory"))?;
        let note = self.note(uid);
        std::fs::write(&note, b"").map_err(failed(&note, "writing"))?;
        accounts.entry(uid).or_default().changing += 1;
        Ok(Wanted { uid, renewals: self.clone(), is_begun: false })
    }

    /// Whether an account has to read its files anew.
    pub fn is_wanted(&self, uid: Uid) -> bool {
        self.note(uid).exists()
    }

    /// Begins again where a note was left and nobody is at it. Returns why it was left, in words for a person, if that is known.
    ///
    /// # Errors
    /// The note can't be written.
    pub fn retry(&self, uid: Uid) -> anyhow::Result<Option<String>> {
        let (failure, is_under_way) = match self.lock().get(&uid) {
            Some(entry) => (entry.failure.clone(), entry.is_under_way()),
            None => (None, false),
        };
        if !is_under_way {
            drop(self.want(uid)?.begin());
        }
        Ok(failure)
    }

    /// The accounts whose last renewal failed, and why. Those that are at another one are not told of.
    pub fn failures(&self) -> Vec<(Uid, String)> {
        let failed =
            |(uid, entry): (&Uid, &Entry)| Some((*uid, entry.failure.clone()?)).filter(|_| !entry.is_under_way());
        self.lock().iter().filter_map(failed).collect()
    }

    /// Cuts an account's renewal off, and lets none begin until what this returns is gone.
    pub async fn leave(&self, uid: Uid) -> Leaving {
        let task = {
            let mut accounts = self.lock();
            let entry = accounts.entry(uid).or_default();
            entry.is_leaving = true;
            entry.task.take()
        };
        if let Some(Task { abort, ended }) = task {
            abort.abort();
            ended.ended().await;
        }
        Leaving { uid, renewals: self.clone() }
    }

    /// Has an account's task begin, or go on.
    fn begin(&self, uid: Uid, entry: &mut Entry) -> Renewal {
        entry.changes += 1;
        if let Some(Task { ended, .. }) = entry.task.as_ref().filter(|task| task.ended.is_under_way()) {
            return ended.clone();
        }
        let (alive, ended) = watch::channel(());
        let ended = Renewal(ended);
        if !entry.is_leaving {
            let task = self.runtime.spawn(run(self.clone(), uid, alive));
            entry.task = Some(Task { abort: task.abort_handle(), ended: ended.clone() });
        }
        ended
    }

    /// How often the account's files have changed.
    fn changes(&self, uid: Uid) -> u64 {
        self.lock().get(&uid).map_or(0, |entry| entry.changes)
    }

    /// Takes in how a renewal ended that began after so many changes. Says whether there is no reason for another one.
    fn settle(&self, uid: Uid, changes: u64, result: anyhow::Result<()>) -> bool {
        let mut accounts = self.lock();
        let Some(entry) = accounts.get_mut(&uid) else { return true };
        let is_whole = entry.changes == changes;
        let result = if is_whole && entry.changing == 0 { result.and_then(|()| self.forget(uid)) } else { result };
        entry.failure = result.err().map(|error| {
            tracing::warn!(%uid, error = format!("{error:#}"), "the account has not read its files anew; it is tried again");
            format!("{error:#}")
        });
        if is_whole {
            entry.task = None;
            if entry.is_idle() {
                accounts.remove(&uid);
            }
        }
        is_whole
    }

    /// Strikes the note out.
    fn forget(&self, uid: Uid) -> anyhow::Result<()> {
        let note = self.note(uid);
        match std::fs::remove_file(&note) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed.map_err(failed(&note, "removing"))?),
        }
    }

    fn note(&self, uid: Uid) -> PathBuf {
        self.notes.join(uid.to_string())
    }

    /// Nothing that is done under the lock leaves an entry half-way.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uid, Entry>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_under_way(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.ended.is_under_way())
    }

    /// Whether there is nothing to remember.
    fn is_idle(&self) -> bool {
        let Self { changes: _, changing, is_leaving, task, failure } = self;
        *changing == 0 && !is_leaving && task.is_none() && failure.is_none()
    }
}

impl Renewal {
    /// Waits until it has ended, one way or another.
    pub async fn ended(mut self) {
        while self.0.changed().await.is_ok() {}
    }

    fn is_under_way(&self) -> bool {
        // Who sends is the task: it is gone with it, also if it was cut off.
        self.0.has_changed().is_ok()
    }
}

impl Wanted {
    /// The files have changed: has the account take them, if it is awake. The other accounts are not touched.
    pub fn begin(mut self) -> Renewal {
        let renewals = self.renewals.clone();
        let mut accounts = renewals.lock();
        let entry = accounts.entry(self.uid).or_default();
        // At once: a renewal that ends in between would strike out a note that is still wanted, or leave one that nobody sees to.
        self.is_begun = true;
        entry.changing = entry.changing.saturating_sub(1);
        renewals.begin(self.uid, entry)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if self.is_begun {
            return;
        }
        let mut accounts = self.renewals.lock();
        let Some(entry) = accounts.get_mut(&self.uid) else { return };
        entry.changing = entry.changing.saturating_sub(1);
        if entry.is_idle() {
            accounts.remove(&self.uid);
        }
    }
}

impl Leaving {
    /// The account is gone, and so is what it had to read.
    ///
    /// # Errors
    /// The note can't be removed.
    pub fn gone(self) -> anyhow::Result<()> {
        self.renewals.forget(self.uid)
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.renewals.lock().remove(&self.uid);
    }
}

/// Renews an account until all changes are in force, or it has failed. Holds `_alive` as long as it is at it.
async fn run(renewals: Renewals, uid: Uid, _alive: watch::Sender<()>) {
    loop {
        let turn = renewals.slots.acquire().await;
        let changes = renewals.changes(uid);
        let result = match turn {
            Ok(_turn) => successor::renew(uid, &renewals.crash).await,
            Err(closed) => Err(closed).context("nobody is renewed any more"),
        };
        if renewals.settle(uid, changes, result) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
