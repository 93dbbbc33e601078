//! Waking one account: everything between "it sleeps" and "its httpd accepts connections".
//!
//! What an account's units need from outside is put into `/run`: its socket directory, which root owns and only the account may enter,
//! and a drop-in for each unit that binds the home, since a unit's name can hold the uid but not the account's name and share as
//! well. systemd finds new drop-ins by itself; one that changes, which happens when an account moves, costs a daemon-reload.
//!
//! Systemd, nft and the look at the share run side by side; the port is then tried every other millisecond.

use super::listeners::{self, Listener, Squatter};
use super::protocol::Refusal;
use super::{phrase, systemd};
use anyhow::Context;
use phalanx_host::command::{self, CommandError, LIMIT};
use phalanx_host::facts;
use phalanx_model::account::ACCOUNT_PORT;
use phalanx_model::share::{HOMES, mount_point};
use phalanx_model::{Account, Limits, Name, Uid};
use phalanx_plan::account::home;
use phalanx_plan::guard_config::{VERDICTS, Verdict};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// Where accounts' socket directories are.
const RUN: &str = "/run/phalanx/account";
/// Where drop-ins of this boot are.
const UNITS: &str = "/run/systemd/system";
/// A home that is not seen within this time is on a share that hangs.
const HOME_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection over loopback is accepted or refused at once, unless nftables drops the answer of a squatter.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(2);
/// How often systemd is asked whether an httpd that does not answer has failed.
const LOOK: Duration = Duration::from_millis(250);

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
    /// Accounts whose address is in the set of owners.
    owners: Mutex<BTreeSet<Uid>>,
    /// The limits that were set for accounts' slices.
    limits: Mutex<HashMap<Uid, Limits>>,
    /// Looks at shares under way, which may hang: each keeps its permit until it really ends.
    looks: Arc<Semaphore>,
}

impl Cell {
    /// Nothing is known yet. `looks_max` bounds how many threads a share that hangs can hold.
    pub fn new(looks_max: usize) -> Self {
        let looks = Arc::new(Semaphore::new(looks_max));
        Self { owners: Mutex::default(), limits: Mutex::default(), looks }
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

    /// Applies new limits or another PHP to an account that is awake.
    pub async fn adjust(&self, was: &Account, is: &Account) {
        let done = async {
            self.limit(is).await?;
            if was.php != is.php {
                write_if_other(&run_directory(is.uid).join("php.env"), &php_env(is)).map_err(|e| failed(&e))?;
                systemd::stop_php(is.uid).await.map_err(|e| failed(&e))?;
            }
            Ok::<(), Refusal>(())
        };
        match done.await {
            Ok(()) => tracing::info!("account {} has new limits or another PHP", is.uid),
            Err(refusal) => tracing::error!("account {}: {}", is.uid, refusal.why),
        }
    }

    async fn own_address(&self, uid: Uid) -> Result<(), Refusal> {
        if lock(&self.owners).contains(&uid) {
            return Ok(());
        }
        add_owners(&[uid]).await.map_err(|e| failed(&e))?;
        lock(&self.owners).insert(uid);
        Ok(())
    }

    async fn limit(&self, account: &Account) -> Result<(), Refusal> {
        if lock(&self.limits).get(&account.uid) == Some(&account.limits) {
            return Ok(());
        }
        systemd::limit(account.uid, &account.limits).await.map_err(|e| failed(&e))?;
        lock(&self.limits).insert(account.uid, account.limits);
        Ok(())
    }
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
        Connected::Yes | Connected::NoAnswer => drop(evict(uid).await?),
    }
    prepare(&account, &share).await?;
    let start = async { systemd::start(uid).await.map_err(|e| failed(&e)) };
    tokio::try_join!(see_home(cell, &account, &share), cell.own_address(uid), cell.limit(&account), start)?;
    if let Err(refusal) = until_it_answers(uid, deadline).await {
        // Perhaps somebody holds the address without listening.
        if evict(uid).await? == 0 {
            return Err(refusal);
        }
        systemd::start(uid).await.map_err(|e| failed(&e))?;
        until_it_answers(uid, deadline).await?;
    }
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

/// Ends other accounts' processes that hold this one's address; says how many there were.
async fn evict(uid: Uid) -> Result<usize, Refusal> {
    let ended = tokio::task::spawn_blocking(move || listeners::end_squatters(uid)).await;
    let ended = ended.map_err(|e| failed(&e))?.map_err(|e| retry(format!("{e:#}")))?;
    for Squatter { uid: squatter, pid } in &ended {
        tracing::error!("account {squatter} held the address of account {uid}; its process {pid} was ended");
    }
    Ok(ended.len())
}

/// The account's place in `/run`, and the drop-ins that bind its home.
async fn prepare(account: &Account, share: &Name) -> Result<(), Refusal> {
    let at = |path: &Path, error: std::io::Error| retry(format!("{}: {error}", path.display()));
    let directory = run_directory(account.uid);
    make_directory(&directory, account.uid).map_err(|e| at(&directory, e))?;
    let env = directory.join("php.env");
    write_if_other(&env, &php_env(account)).map_err(|e| at(&env, e))?;
    let mut has_changed = false;
    for unit in ["phalanx-httpd", "phalanx-httpd-alt", "phalanx-php"] {
        let path = PathBuf::from(UNITS).join(format!("{unit}@{}.service.d/home.conf", account.uid));
        has_changed |= write_if_other(&path, &drop_in(account, share)).map_err(|e| at(&path, e))?;
    }
    if has_changed {
        systemd::read_drop_ins().await.map_err(|e| failed(&e))?;
    }
    Ok(())
}

fn run_directory(uid: Uid) -> PathBuf {
    Path::new(RUN).join(uid.to_string())
}

/// Root's, and only the account may enter: it can use what is in there, but put nothing in its place.
fn make_directory(path: &Path, uid: Uid) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::os::unix::fs::chown(path, Some(0), Some(uid.get()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o750))
}

/// Names are of `a-z`, `0-9` and `-`, so that nothing here can mean anything else to systemd.
fn drop_in(account: &Account, share: &Name) -> String {
    let (name, home) = (&account.name, home(&account.name));
    let from = home_on(share, name);
    format!(
        "[Service]\nBindPaths={}:{home}\nEnvironment=HOME={home} USER={name} LOGNAME={name} TMPDIR={home}/tmp\n",
        from.display()
    )
}

fn php_env(account: &Account) -> String {
    format!("PHP_VERSION={}\n", account.php)
}

fn home_on(share: &Name, account: &Name) -> PathBuf {
    Path::new(&mount_point(share)).join(HOMES).join(account.as_str())
}

/// Writes a file unless it has this content. Says whether another content was there.
fn write_if_other(path: &Path, content: &str) -> std::io::Result<bool> {
    let had = match std::fs::read_to_string(path) {
        Ok(text) if text == content => return Ok(false),
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let beside = path.with_extension("new");
    std::fs::write(&beside, content)?;
    std::fs::rename(&beside, path)?;
    Ok(had)
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

async fn until_it_answers(uid: Uid, deadline: Instant) -> Result<(), Refusal> {
    let mut next_look = Instant::now() + LOOK;
    while connect(uid).await != Connected::Yes {
        let now = Instant::now();
        if now > deadline {
            return Err(retry(format!("the httpd of account {uid} took too long to start")));
        }
        if now > next_look {
            next_look = now + LOOK;
            if let Some(state) = systemd::failure(uid).await.map_err(|e| failed(&e))? {
                let unit = format!("phalanx-httpd@{uid}.service");
                let why = format!("{unit} did not start ({state}); see its journal and logs/error.log in the home");
                return Err(retry(why));
            }
        }
        sleep(POLL).await;
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
    fn a_drop_in_binds_the_home_and_nothing_else() {
        let account = crate::launcher::tests::account(Uid::FIRST);
        expect_lines(
            &drop_in(&account, &"web".parse().expect("a name")),
            &[
                "[Service]",
                "BindPaths=/srv/phalanx/web/home/alice:/home/alice",
                "Environment=HOME=/home/alice USER=alice LOGNAME=alice TMPDIR=/home/alice/tmp",
            ],
        );
    }

    fn expect_lines(text: &str, lines: &[&str]) {
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn a_file_is_replaced_only_by_other_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("unit.service.d/home.conf");
        assert!(!write_if_other(&path, "a").expect("made"));
        assert!(!write_if_other(&path, "a").expect("the same"));
        assert!(write_if_other(&path, "b").expect("another"));
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "b");
    }
}
