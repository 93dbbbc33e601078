//! The launcher: wakes accounts when phalanx-proxy asks, puts idle ones to sleep. A small daemon of its own (`phalanx launcher`, as
//! root), so that waking needs neither agent nor panel.
//!
//! phalanx-proxy connects to a Unix socket and writes a JSON object a line ([`protocol`]). One loop owns what is known of every account
//! ([`table`]); what takes time (systemd, the share) runs in tasks of bounded number ([`wake`]), which tell the loop how they
//! ended. An account's limits, and whether it may run at all, are the directory's; the launcher looks again whenever the directory has
//! changed, so that a change of limits or a suspension reaches an account that is awake.
//!
//! The launcher also keeps the directory's file open for writing, so that its readers find the `-wal` and `-shm` files while no agent
//! runs. Its end puts nobody to sleep: the accounts' units are systemd's.
//!
//! Deliberately absent: rendering accounts' configuration (the agent does it when rows change), and any trust in what accounts do: it
//! reads nothing that they write.

pub mod listeners;
mod memory;
mod place;
mod protocol;
mod systemd;
mod table;
mod wake;

use self::protocol::Refusal;
use self::table::{Table, Waiter};
use self::wake::{Cell, Woken};
use anyhow::Context;
use phalanx_host::directory::{self, Reader};
use phalanx_host::{facts, service};
use phalanx_model::{Account, AccountState, Name, Uid};
use phalanx_plan::launcher_config::LauncherConfig;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

/// Where the launcher finds its configuration.
pub const CONFIG: &str = "/var/lib/phalanx/live/launcher.json";
/// The socket that phalanx-proxy connects to.
pub const SOCKET: &str = "/run/phalanx/launcher/launcher.sock";

const PERIOD: Duration = Duration::from_secs(5);
/// How often the directory is asked whether it has changed.
const LOOK: Duration = Duration::from_millis(400);
/// Messages to the loop that may wait.
const MAIL_MAX: usize = 4_096;
/// Accounts that are put to sleep by one call of systemctl.
const SLEEP_BATCH_MAX: usize = 32;

/// What the loop is told.
enum Mail {
    /// Somebody wants this account awake.
    Wake(Uid, Waiter),
    /// These accounts had requests.
    Used(Vec<Uid>),
    /// A wake has ended.
    Woken(Uid, Result<Woken, Refusal>),
    /// These accounts sleep.
    Asleep(Vec<Uid>),
}

/// Runs until it is told to end. SIGHUP makes it read its configuration again; one that can't be read leaves the former in force.
///
/// # Errors
/// The configuration, the directory or the socket can't be opened at the start.
pub async fn run(config: &Path) -> anyhow::Result<()> {
    let settings = load(config)?;
    let _kept_open = directory::keep_open(Path::new(directory::PATH))?;
    let reader = Reader::open(Path::new(directory::PATH))?;
    let (sender, mut mail) = mpsc::channel(MAIL_MAX);
    let listener = protocol::listen(Path::new(SOCKET))?;
    tokio::spawn(protocol::serve(listener, sender.clone()));
    let mut launcher = Launcher::new(settings, reader, sender)?;
    for uid in service::accounts_awake().await? {
        launcher.adopt(uid);
    }
    let (mut hang_up, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    let (mut tick, mut look) = (tokio::time::interval(PERIOD), tokio::time::interval(LOOK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    crate::notify::send("READY=1");
    loop {
        tokio::select! {
            Some(mail) = mail.recv() => launcher.take(mail),
            _ = tick.tick() => launcher.tick(),
            _ = look.tick() => launcher.follow(),
            _ = hang_up.recv() => match load(config) {
                Ok(settings) => launcher.settings = settings,
                Err(error) => tracing::error!("{error:#}; the former configuration stays in force"),
            },
            _ = terminate.recv() => return Ok(()),
        }
    }
}

fn load(path: &Path) -> anyhow::Result<LauncherConfig> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a launcher's configuration", path.display()))
}

/// The loop's state.
struct Launcher {
    settings: LauncherConfig,
    reader: Reader,
    /// What the directory's version was when all awake accounts were last compared with it.
    compared_with: Option<i64>,
    table: Table,
    sender: mpsc::Sender<Mail>,
    starting: Arc<Semaphore>,
    cell: Arc<Cell>,
}

impl Launcher {
    fn new(settings: LauncherConfig, reader: Reader, sender: mpsc::Sender<Mail>) -> anyhow::Result<Self> {
        let starting = Arc::new(Semaphore::new(settings.starting_max));
        let cell = Arc::new(Cell::new(settings.starting_max)?);
        Ok(Self { settings, reader, compared_with: None, table: Table::default(), sender, starting, cell })
    }

    /// An account that was awake before the launcher started.
    fn adopt(&mut self, uid: Uid) {
        let row = self.row(uid);
        match row {
            Ok((account, share)) => {
                let device = wake::device_of(&share).unwrap_or_default();
                let (cell, adopted) = (self.cell.clone(), account.clone());
                tokio::spawn(async move { cell.adopt(&adopted).await });
                let woken = Woken { account, share, device };
                self.table.adopted(uid, woken, facts::boottime_ms());
            }
            Err(refusal) => {
                tracing::warn!("account {uid} is awake and should not be: {}", refusal.why);
                self.put_to_sleep(vec![uid]);
            }
        }
    }

    fn take(&mut self, mail: Mail) {
        let now_ms = facts::boottime_ms();
        match mail {
            Mail::Used(uids) => self.table.used(&uids, now_ms),
            Mail::Wake(uid, waiter) => {
                if self.table.waiting() >= self.settings.waiting_max {
                    let why = "too many accounts wait for their start on this node".to_owned();
                    waiter.answer(uid, Err(Refusal { why, retry: true }));
                } else if self.table.wanted(uid, waiter, now_ms) {
                    self.start(uid);
                }
            }
            Mail::Woken(uid, result) => {
                if let Err(refusal) = &result {
                    tracing::warn!("account {uid} was not woken: {}", refusal.why);
                }
                self.table.woken(uid, result, now_ms);
            }
            Mail::Asleep(uids) => {
                for uid in uids {
                    if self.table.asleep(uid, now_ms) {
                        self.start(uid);
                    }
                }
            }
        }
    }

    /// Begins a wake that the table has noted.
    fn start(&self, uid: Uid) {
        let row = self.row(uid);
        let (starting, cell, sender) = (self.starting.clone(), self.cell.clone(), self.sender.clone());
        let timeout = Duration::from_millis(self.settings.start_timeout_ms);
        tokio::spawn(async move {
            let result = match (row, starting.acquire().await) {
                (Ok((account, share)), Ok(_permit)) => wake::wake(&cell, account, share, timeout).await,
                (Err(refusal), _) => Err(refusal),
                (_, Err(_closed)) => Err(Refusal { why: "the launcher ends".into(), retry: true }),
            };
            report(&sender, Mail::Woken(uid, result)).await;
        });
    }

    /// What the directory has for this uid, if it may run.
    fn row(&self, uid: Uid) -> Result<(Account, Name), Refusal> {
        match self.reader.account(uid) {
            Ok(Some((account, share))) if account.state == AccountState::Active => Ok((account, share)),
            Ok(Some(_)) => Err(Refusal { why: "the account is suspended".into(), retry: false }),
            Ok(None) => Err(Refusal { why: "no account has this uid".into(), retry: false }),
            Err(error) => Err(Refusal { why: phrase(&error), retry: true }),
        }
    }

    /// Several times a second: who has changed. Most times nobody has, which is known at once.
    fn follow(&mut self) {
        let ended = self.compare_with_directory();
        self.put_to_sleep(ended);
    }

    /// Every few seconds: who has to sleep.
    fn tick(&mut self) {
        let now_ms = facts::boottime_ms();
        let is_short = match memory::available_percent() {
            Ok(percent) => percent < self.settings.memory_available_percent_min,
            Err(error) => {
                tracing::error!("{error:#}");
                false
            }
        };
        let mut sleepy = self.table.sleepy(&self.settings, is_short, now_ms);
        sleepy.extend(self.on_another_share());
        sleepy.sort_unstable();
        sleepy.dedup();
        self.put_to_sleep(sleepy);
        let awake: Vec<Uid> = self.table.awake().map(|(uid, _)| uid).collect();
        if !awake.is_empty() {
            let cell = self.cell.clone();
            tokio::spawn(async move { cell.mend(&awake).await });
        }
    }

    /// Applies what changed of accounts that are awake; returns those that may no longer run.
    fn compare_with_directory(&mut self) -> Vec<Uid> {
        let version = match self.reader.data_version() {
            Ok(version) if self.compared_with == Some(version) => return Vec::new(),
            Ok(version) => version,
            Err(error) => {
                tracing::error!("{}", phrase(&error));
                return Vec::new();
            }
        };
        self.compared_with = Some(version);
        let mut ended = Vec::new();
        for (uid, was) in self.table.awake() {
            match self.row(uid) {
                Ok((is, share)) if share == was.share && is.name == was.account.name => {
                    if is.limits != was.account.limits || is.php != was.account.php {
                        let (cell, was) = (self.cell.clone(), was.account.clone());
                        tokio::spawn(async move { cell.adjust(&was, &is).await });
                    }
                }
                Ok(_) => ended.push(uid),
                Err(refusal) if !refusal.retry => ended.push(uid),
                Err(refusal) => tracing::error!("account {uid}: {}", refusal.why),
            }
        }
        self.table.refresh(|uid| self.reader.account(uid).ok().flatten().map(|(account, _)| account));
        ended
    }

    /// Accounts whose share was replaced under them: they still hold the old one.
    fn on_another_share(&self) -> Vec<Uid> {
        let is_on_another = |woken: &Woken| wake::device_of(&woken.share).is_some_and(|device| device != woken.device);
        self.table.awake().filter(|(_, woken)| is_on_another(woken)).map(|(uid, _)| uid).collect()
    }

    fn put_to_sleep(&mut self, uids: Vec<Uid>) {
        for batch in uids.chunks(SLEEP_BATCH_MAX) {
            let batch: Vec<Uid> = batch.iter().copied().filter(|uid| self.table.falls_asleep(*uid)).collect();
            if batch.is_empty() {
                continue;
            }
            let sender = self.sender.clone();
            tokio::spawn(async move {
                if let Err(error) = systemd::stop(&batch).await {
                    tracing::error!("putting accounts to sleep: {}", phrase(&error));
                }
                report(&sender, Mail::Asleep(batch)).await;
            });
        }
    }
}

async fn report(sender: &mpsc::Sender<Mail>, mail: Mail) {
    if sender.send(mail).await.is_err() {
        tracing::debug!("the launcher ends");
    }
}

/// An error with its causes in one line.
fn phrase(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
