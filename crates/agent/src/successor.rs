//! A new httpd in the place of an account's former one, without a moment in which nobody answers.
//!
//! httpd's own graceful restart starts its new child only at its parent's next look, once a second; with one child, as accounts have,
//! requests wait that long. So a second httpd is started at the same address (SO_REUSEPORT, which the kernel grants to the same
//! uid only), and the first one ends, gracefully, when the second listens. One that does not come up is taken back: the account goes on
//! with what it has.
//!
//! An httpd that was told to end may be at a long answer. The next one does not wait for it: there are more units than two. Only where so
//! many changes follow each other that all units are taken, the one that was told first is ended before it is done.

use crate::crash::CrashPoints;
use crate::ending;
use crate::launcher::listeners;
use anyhow::{Context, ensure};
use phalanx_host::service::{self, Httpd, HttpdState};
use phalanx_model::Uid;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// An httpd that does not listen within this time will not.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// How much longer an httpd may finish its answers whose unit is needed. A change is to be live within a second.
const LAST_GRACE: Duration = Duration::from_millis(300);
/// Where each account has a directory that was awake since the machine started: the launcher makes it before it starts an httpd.
const WOKEN: &str = "/run/phalanx/account";

/// Has the account's httpd and PHP take their files anew, if they run. To be called by one at a time for an account.
///
/// # Errors
/// The new httpd did not come up; the old one serves on.
pub async fn renew(uid: Uid, crash: &CrashPoints) -> anyhow::Result<()> {
    let httpds = httpds(uid).await?;
    // More than one was left by a renewal that was cut off. Which of them has read what is not known.
    let former: Vec<&Httpd> = httpds.iter().filter(|httpd| httpd.state == HttpdState::Runs).collect();
    if former.is_empty() {
        return Ok(());
    }
    let unit = match httpds.iter().find(|httpd| httpd.state == HttpdState::Free) {
        Some(free) => &free.unit,
        None => free_up(uid, &httpds).await?,
    };
    if let Err(error) = come_up(uid, unit).await {
        service::stop_units(&[unit]).await?;
        let httpds = self::httpds(uid).await?;
        if httpds.iter().all(|httpd| httpd.unit == *unit || httpd.state != HttpdState::Runs) {
            // It was put to sleep meanwhile. What wakes it reads the new files.
            return Ok(());
        }
        return Err(error.context("the httpd with the new configuration did not come up; the former one serves on"));
    }
    crash.renewal("account-renew: both httpds run");
    ending::end(uid, &former).await?;
    crash.renewal("account-renew: the former httpd was told to end");
    service::reload_php(uid).await?;
    crash.renewal("account-renew: all was done, but that is not noted");
    Ok(())
}

/// Whether an account's httpd listens. Asked of the kernel, which takes a tenth of the time that systemd needs for an answer.
///
/// # Errors
/// The kernel does not tell.
pub async fn is_awake(uid: Uid) -> anyhow::Result<bool> {
    Ok(!listening(uid).await?.is_empty())
}

/// What its httpds are at. For most accounts it is known without asking systemd, which takes milliseconds, that there are none.
async fn httpds(uid: Uid) -> anyhow::Result<Vec<Httpd>> {
    if Path::new(WOKEN).join(uid.to_string()).exists() {
        return Ok(service::httpds(uid).await?);
    }
    Ok(Vec::new())
}

/// Frees one of the account's units, all of which are taken: that of who was told to end first.
async fn free_up(uid: Uid, httpds: &[Httpd]) -> anyhow::Result<&str> {
    // Where none was told to end, renewals were cut off one after the other. The last of those httpds has to do for the account.
    let ends = |httpd: &&Httpd| httpd.state == HttpdState::Ends;
    let oldest = httpds.iter().filter(ends).min_by_key(|httpd| httpd.since_us);
    let taken = oldest.or(httpds.first()).context("an account has units")?;
    ending::end(uid, &[taken]).await?;
    ending::insist(uid, taken, LAST_GRACE).await?;
    service::stop_unit_wholly(&taken.unit).await?;
    Ok(&taken.unit)
}

/// Starts another httpd and waits until it listens beside what is there.
async fn come_up(uid: Uid, unit: &str) -> anyhow::Result<()> {
    let before = listening(uid).await?;
    service::start_unit(unit).await?;
    let begin = Instant::now();
    // A socket that was not there is the new one's: nobody else may listen there.
    while listening(uid).await?.is_subset(&before) {
        ensure!(begin.elapsed() < LISTEN_LIMIT, "{unit} does not listen; see its journal");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The inodes of the account's sockets that listen at its address.
async fn listening(uid: Uid) -> anyhow::Result<BTreeSet<u64>> {
    let found = tokio::task::spawn_blocking(move || listeners::of(uid.loopback())).await;
    let found = found.context("the look at listening sockets ended")??;
    let is_own = |listener: &listeners::Listener| listener.is_exact && listener.uid == uid.get();
    Ok(found.into_iter().filter(is_own).map(|listener| listener.inode).collect())
}
