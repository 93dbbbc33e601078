//! A new configuration for an account that is awake, without a moment in which nobody answers.
//!
//! httpd's own graceful restart starts its new child only at its parent's next look, once a second; with one child, as accounts have,
//! requests wait that long. So a second httpd is started at the same address (SO_REUSEPORT, which the kernel grants to the same
//! uid only), and the first one ends, gracefully, when the second listens. One that does not come up is taken back: the account goes on
//! with what it has.
//!
//! That an account has to read its files anew is noted in `/run` before they change, and struck out when it has. So neither a crash at any
//! point nor a failure leaves an account with what is no longer in force: the next look at it finds the note. A machine that starts
//! anew has no notes, and nobody who is awake.

use crate::crash::CrashPoints;
use crate::ending;
use crate::launcher::listeners;
use anyhow::{Context, ensure};
use phalanx_host::atomic::failed;
use phalanx_host::service;
use phalanx_model::Uid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OwnedMutexGuard;

/// Where the notes are, a file for each account.
const NOTES: &str = "/run/phalanx/renew";
/// An httpd that does not listen within this time will not.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// Where each account has a directory that was awake since the machine started: the launcher makes it before it starts an httpd.
const WOKEN: &str = "/run/phalanx/account";

/// What has to be renewed, and who is at it. Its clones are one.
#[derive(Debug, Clone)]
pub struct Renewals {
    notes: PathBuf,
    locks: Arc<Mutex<BTreeMap<Uid, Arc<tokio::sync::Mutex<()>>>>>,
    /// Where the agent ends itself, for tests.
    pub crash: CrashPoints,
}

/// One account, which nobody else renews and whose files nobody else changes meanwhile.
#[derive(Debug)]
pub struct Held {
    uid: Uid,
    note: PathBuf,
    crash: CrashPoints,
    _lock: OwnedMutexGuard<()>,
}

impl Renewals {
    /// With the notes that were left.
    pub fn new(crash: CrashPoints) -> Self {
        Self { notes: NOTES.into(), locks: Arc::default(), crash }
    }

    /// Takes hold of an account, when nobody else does.
    pub async fn hold(&self, uid: Uid) -> Held {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(uid).or_default().clone()
        };
        Held { uid, note: self.note(uid), crash: self.crash.clone(), _lock: lock.lock_owned().await }
    }

    /// Whether an account has to read its files anew.
    pub fn is_wanted(&self, uid: Uid) -> bool {
        self.note(uid).exists()
    }

    fn note(&self, uid: Uid) -> PathBuf {
        self.notes.join(uid.to_string())
    }
}

impl Held {
    /// Notes that the account has to read its files anew. To be done before they change.
    ///
    /// # Errors
    /// The note can't be written.
    pub fn want(&self) -> anyhow::Result<()> {
        let directory = self.note.parent().unwrap_or(Path::new(NOTES));
        std::fs::create_dir_all(directory).map_err(failed(directory, "making the directory"))?;
        Ok(std::fs::write(&self.note, b"").map_err(failed(&self.note, "writing"))?)
    }

    /// Strikes the note out.
    ///
    /// # Errors
    /// The note can't be removed.
    pub fn forget(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(&self.note) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed.map_err(failed(&self.note, "removing"))?),
        }
    }

    /// Has the account's httpd and PHP take their files anew, if they run. The other accounts are not touched.
    ///
    /// # Errors
    /// The new httpd did not come up; the old one serves on, and the note stays.
    pub async fn renew(&self) -> anyhow::Result<()> {
        let uid = self.uid;
        let [main, other] = service::httpd_units(uid);
        let (old, new) = match httpds(uid).await? {
            [false, false] => return self.forget(),
            [false, true] => (other, main),
            [true, false] => (main, other),
            [true, true] => {
                // Left by a renewal that was cut off. Which of them has read what is not known.
                service::stop_unit(&other).await?;
                gone(uid).await?;
                (main, other)
            }
        };
        if let Err(error) = come_up(uid, &new).await {
            service::stop_unit(&new).await?;
            return Err(error.context("the httpd with the new configuration did not come up; the former one serves on"));
        }
        self.crash.pass("account-renew: both httpds run");
        ending::end(uid, &old).await?;
        self.crash.pass("account-renew: the former httpd was told to end");
        service::reload_php(uid).await?;
        self.crash.pass("account-renew: all was done, but that is not noted");
        self.forget()
    }
}

/// Whether an account's httpd runs, or is being started.
///
/// # Errors
/// systemd does not answer.
pub async fn is_awake(uid: Uid) -> anyhow::Result<bool> {
    Ok(httpds(uid).await?.contains(&true))
}

/// Which of its two httpds run. For most accounts that is known without asking systemd, which takes milliseconds.
async fn httpds(uid: Uid) -> anyhow::Result<[bool; 2]> {
    if Path::new(WOKEN).join(uid.to_string()).exists() {
        return Ok(service::httpds_active(uid).await?);
    }
    Ok([false, false])
}

/// Starts a second httpd and waits until it listens beside the first.
async fn come_up(uid: Uid, unit: &str) -> anyhow::Result<()> {
    service::start_unit(unit).await?;
    let listens = until(uid, |listening| listening >= 2).await?;
    ensure!(listens, "{unit} does not listen; see its journal and logs/error.log in the home");
    Ok(())
}

/// Waits until one httpd of two no longer listens.
async fn gone(uid: Uid) -> anyhow::Result<()> {
    let is_gone = until(uid, |listening| listening < 2).await?;
    ensure!(is_gone, "the second httpd of account {uid} does not end");
    Ok(())
}

async fn until(uid: Uid, is_so: impl Fn(usize) -> bool) -> anyhow::Result<bool> {
    let begin = Instant::now();
    while begin.elapsed() < LISTEN_LIMIT {
        if is_so(listening(uid).await?) {
            return Ok(true);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(false)
}

/// How many sockets of the account listen at its address.
async fn listening(uid: Uid) -> anyhow::Result<usize> {
    let found = tokio::task::spawn_blocking(move || listeners::of(uid.loopback())).await;
    let found = found.context("the look at listening sockets ended")??;
    Ok(found.iter().filter(|listener| listener.is_exact && listener.uid == uid.get()).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewals(notes: &Path) -> Renewals {
        Renewals { notes: notes.join("renew"), ..Renewals::new(CrashPoints::default()) }
    }

    #[tokio::test]
    async fn a_note_outlives_who_made_it() {
        let place = tempfile::tempdir().expect("a directory");
        let held = renewals(place.path()).hold(Uid::FIRST).await;
        assert!(!renewals(place.path()).is_wanted(Uid::FIRST));
        held.want().expect("noted");
        held.want().expect("noted twice");
        assert!(renewals(place.path()).is_wanted(Uid::FIRST) && !renewals(place.path()).is_wanted(Uid::LAST));
        held.forget().expect("struck out");
        held.forget().expect("nothing is there");
        assert!(!renewals(place.path()).is_wanted(Uid::FIRST));
    }

    #[tokio::test]
    async fn one_account_is_held_once_and_another_beside_it() {
        let place = tempfile::tempdir().expect("a directory");
        let renewals = renewals(place.path());
        let first = renewals.hold(Uid::FIRST).await;
        let _other = renewals.hold(Uid::LAST).await;
        let again = renewals.clone();
        let mut waiting = tokio::spawn(async move { again.hold(Uid::FIRST).await });
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err(), "held twice");
        drop(first);
        waiting.await.expect("held now");
    }
}
