//! Waking one account: everything between "it sleeps" and "its httpd accepts connections".
//!
//! The account's place in `/run` ([`place`](super::place)) is made first. Then systemd, nft and the look at the share run side by side,
//! and the port is tried until it is open.

use super::listeners::{self, Listener, Squatter};
use super::place::{Limited, Places, home_on};
use super::protocol::Refusal;
use super::{phrase, systemd};
use anyhow::Context;
use phalanx_host::command::{self, CommandError, LIMIT};
use phalanx_host::facts;
use phalanx_model::account::ACCOUNT_PORT;
use phalanx_model::{Account, Name, Uid};
use phalanx_plan::guard_config::{VERDICTS, Verdict};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// A home that is not seen within this time is on a share that hangs.
const HOME_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection over loopback is accepted or refused at once, unless nftables drops the answer of a squatter.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
/// No httpd is up sooner.
const FIRST_TRY: Duration = Duration::from_millis(15);
/// A port is tried again after this part of the time that was waited for it, within these bounds: many may be waited for at once.
const NEXT_TRY_PART: u32 = 25;
const NEXT_TRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How often systemd is asked whether an httpd that does not answer has failed.
const LOOK: Duration = Duration::from_secs(1);
/// How many addresses get their owner together. An element says whom an address belongs to whether or not the account is awake, or is
/// at all; so neighbours in number share the cost of a call of nft.
const OWNERS_AT_ONCE: u32 = 64;

/// An account as it was woken.
#[derive(Debug, Clone)]
pub struct Woken {
    /// Its row of the directory.
    pub account: Account,
    /// The share that its home is on.
    pub share: Name,
    /// The device that the share was on: the home is bound from there.
    pub device: String,
}

/// What the launcher remembers across wakes, so that it does nothing twice.
#[derive(Debug)]
pub struct Cell {
    places: Places,
    /// The first accounts of the blocks whose addresses are in the set of owners.
    owners: Mutex<BTreeSet<Uid>>,
    /// Looks at shares under way, which may hang: each keeps its permit until it really ends.
    looks: Arc<Semaphore>,
}

impl Cell {
    /// Nothing is known yet. `looks_max` bounds how many threads a share that hangs can hold.
    ///
    /// # Errors
    /// The limits that accounts have in common can't be written.
    pub fn new(looks_max: usize) -> anyhow::Result<Self> {
        let places = Places::default();
        places.write_common_limits()?;
        Ok(Self { places, owners: Mutex::default(), looks: Arc::new(Semaphore::new(looks_max)) })
    }

    /// Mends what accounts that are awake need and may have lost: their addresses in the set, if the table was made anew; the
    /// sockets of their PHP.
    pub async fn mend(&self, awake: &[Uid]) {
        if let Err(error) = add_owners(awake).await {
            tracing::error!("the accounts' nftables set: {}", phrase(&error));
        }
        if let Err(error) = systemd::revive_sockets().await {
            tracing::error!("the accounts' PHP sockets: {}", phrase(&error));
        }
    }

    /// Applies the limits of an account that was awake before the launcher, if they changed while nobody was there to see it.
    pub async fn adopt(&self, account: &Account) {
        let done = async {
            if self.places.write_limits(account)? != Limited::AsBefore {
                systemd::limit(account.uid, &account.limits).await?;
            }
            anyhow::Ok(())
        };
        if let Err(error) = done.await {
            tracing::error!("account {}: {error:#}", account.uid);
        }
    }

    /// Applies new limits or another PHP to an account that is awake.
    pub async fn adjust(&self, was: &Account, is: &Account) {
        let done = async {
            if was.limits != is.limits {
                self.places.write_limits(is)?;
                systemd::limit(is.uid, &is.limits).await?;
            }
            if was.php != is.php {
                self.places.write_php(is)?;
                systemd::stop_php(is.uid).await?;
            }
            anyhow::Ok(())
        };
        match done.await {
            Ok(()) => tracing::info!("account {} has new limits or another PHP", is.uid),
            Err(error) => tracing::error!("account {}: {error:#}", is.uid),
        }
    }

    async fn own_address(&self, uid: Uid) -> Result<(), Refusal> {
        let block = block(uid);
        let Some(first) = block.first().copied() else { return Ok(()) };
        if lock(&self.owners).contains(&first) {
            return Ok(());
        }
        add_owners(&block).await.map_err(|e| failed(&e))?;
        lock(&self.owners).insert(first);
        Ok(())
    }
}

/// An account and its neighbours in number.
fn block(uid: Uid) -> Vec<Uid> {
    let first = uid.get() - uid.get() % OWNERS_AT_ONCE;
    (first..first + OWNERS_AT_ONCE).filter_map(|number| Uid::try_from(number).ok()).collect()
}

/// The locks are held for a look at a map only; nothing in there can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes an account, or finds that it is awake.
///
/// # Errors
/// Why not, for the proxy's log.
pub async fn wake(cell: &Cell, account: Account, share: Name, limit: Duration) -> Result<Woken, Refusal> {
    let deadline = Instant::now() + limit;
    let uid = account.uid;
    let device = well(&share)?;
    match connect(uid).await {
        Connected::Yes if is_own(uid)? => return Ok(Woken { account, share, device }),
        Connected::Refused => {}
        Connected::Yes | Connected::NoAnswer => evict(uid).await?,
    }
    if cell.places.prepare(&account, &share).map_err(|e| retry(format!("{e:#}")))? == Limited::Changed {
        systemd::limit(uid, &account.limits).await.map_err(|e| failed(&e))?;
    }
    let start = async { systemd::start(uid).await.map_err(|e| failed(&e)) };
    tokio::try_join!(start, see_home(cell, &account, &share), cell.own_address(uid))?;
    until_it_answers(cell, uid, deadline).await?;
    Ok(Woken { account, share, device })
}

/// The device of a share that may be served from.
fn well(share: &Name) -> Result<String, Refusal> {
    let refuse = |why: String| Refusal { why: format!("share {share}: {why}"), retry: true };
    let verdict = verdict(share).map_err(|error| refuse(format!("the guard's verdict: {error}")))?;
    match verdict.refusal(facts::boottime_ms()) {
        Some(why) => Err(refuse(why)),
        None => Ok(verdict.device),
    }
}

/// The device that the guard last saw a share on, if it says so.
pub fn device_of(share: &Name) -> Option<String> {
    verdict(share).ok().map(|verdict| verdict.device).filter(|device| !device.is_empty())
}

fn verdict(share: &Name) -> anyhow::Result<Verdict> {
    let path = Path::new(VERDICTS).join(format!("{share}.json"));
    let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a verdict", path.display()))
}

/// Whether who answers on the account's address is the account.
///
/// # Errors
/// A service of the system holds the port on all addresses.
fn is_own(uid: Uid) -> Result<bool, Refusal> {
    let found = listeners::of(uid.loopback()).map_err(|e| retry(format!("{e:#}")))?;
    if let Some(Listener { uid: owner, .. }) = found.iter().find(|l| Uid::try_from(l.uid).is_err()) {
        let why = format!("uid {owner}, which is no account, listens on port {ACCOUNT_PORT} of all addresses");
        return Err(retry(format!("{why}; accounts can't start: give that service another port or one address")));
    }
    Ok(found.iter().any(|l| l.is_exact && l.uid == uid.get()))
}

/// Ends other accounts' processes that listen on this one's address.
async fn evict(uid: Uid) -> Result<(), Refusal> {
    let ended = tokio::task::spawn_blocking(move || listeners::end_squatters(uid)).await;
    let ended = ended.map_err(|e| failed(&e))?.map_err(|e| retry(format!("{e:#}")))?;
    for Squatter { uid: squatter, pid } in &ended {
        tracing::error!("account {squatter} held the address of account {uid}; its process {pid} was ended");
    }
    Ok(())
}

/// The home is a directory of the account's. Looked at in a thread, which a share that hangs may keep.
async fn see_home(cell: &Cell, account: &Account, share: &Name) -> Result<(), Refusal> {
    let path = home_on(share, &account.name);
    let Ok(permit) = cell.looks.clone().try_acquire_owned() else {
        return Err(retry(format!("share {share} hangs: earlier looks at homes have not ended")));
    };
    let looked_at = path.clone();
    let look = tokio::task::spawn_blocking(move || {
        let seen = std::fs::symlink_metadata(&looked_at);
        drop(permit);
        seen
    });
    let path = path.display();
    let seen = timeout(HOME_TIMEOUT, look).await.map_err(|_| retry(format!("{path} does not answer")))?;
    let metadata = seen.map_err(|e| failed(&e))?.map_err(|error| retry(format!("{path}: {error}")))?;
    if !metadata.is_dir() || metadata.uid() != account.uid.get() {
        return Err(retry(format!("{path} is not a directory of uid {}", account.uid)));
    }
    Ok(())
}

async fn add_owners(uids: &[Uid]) -> Result<(), CommandError> {
    let mut elements = String::from("{ ");
    for (place, uid) in uids.iter().enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        write!(elements, "{comma}{} . {uid}", uid.loopback()).expect("a String takes everything");
    }
    elements.push_str(" }");
    command::succeed("nft", &["add", "element", "inet", "phalanx_accounts", "owners", &elements], LIMIT).await.map(drop)
}

/// What came of connecting to an account's port.
#[derive(PartialEq)]
enum Connected {
    /// Somebody accepts.
    Yes,
    /// Nobody listens there.
    Refused,
    /// Whoever listens there may not answer, or can't.
    NoAnswer,
}

async fn connect(uid: Uid) -> Connected {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect((uid.loopback(), ACCOUNT_PORT))).await {
        Ok(Ok(_)) => Connected::Yes,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Connected::Refused,
        Ok(Err(_)) | Err(_) => Connected::NoAnswer,
    }
}

/// Waits until the httpd accepts connections and the door to PHP is there, which systemd makes while httpd starts.
async fn until_it_answers(cell: &Cell, uid: Uid, deadline: Instant) -> Result<(), Refusal> {
    let begin = Instant::now();
    let mut next_look = begin + LOOK;
    sleep(FIRST_TRY).await;
    while !(connect(uid).await == Connected::Yes && cell.places.has_php_socket(uid)) {
        let now = Instant::now();
        if now > deadline {
            return Err(retry(format!("the httpd of account {uid} took too long to start")));
        }
        if now > next_look {
            next_look = now + LOOK;
            if let Some(state) = systemd::failure(uid).await.map_err(|e| failed(&e))? {
                let unit = format!("phalanx-httpd@{uid}.service");
                let why = format!("{unit} did not start ({state}); see its journal");
                return Err(retry(why));
            }
        }
        let (shortest, longest) = NEXT_TRY;
        sleep(((now - begin) / NEXT_TRY_PART).clamp(shortest, longest)).await;
    }
    Ok(())
}

fn retry(why: String) -> Refusal {
    Refusal { why, retry: true }
}

fn failed(error: &dyn std::error::Error) -> Refusal {
    retry(phrase(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_number_get_their_addresses_together() {
        let uid = |place| Uid::try_from(Uid::FIRST.get() + place).expect("in the range");
        let whole = block(uid(1_000));
        assert_eq!(whole.len(), OWNERS_AT_ONCE as usize);
        assert!(whole.contains(&uid(1_000)) && whole.iter().all(|neighbour| block(*neighbour) == whole));
        assert!(block(Uid::FIRST).contains(&Uid::FIRST) && block(Uid::LAST).contains(&Uid::LAST));
    }
}
