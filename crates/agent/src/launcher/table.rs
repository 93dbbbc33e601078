//! What the launcher knows of each account, and who should sleep. No I/O; time is an argument.

use super::protocol::Refusal;
use super::wake::Woken;
use phalanx_model::{Account, Uid};
use phalanx_plan::launcher_config::LauncherConfig;
use std::collections::HashMap;
use tokio::sync::mpsc;

/// After a wake failed, further ones get the same answer for so long.
const REFUSED_MS: u64 = 2_000;
/// Accounts used within this time are not put to sleep for others' sake.
const BUSY_MS: u64 = 10_000;
/// How many are put to sleep at once for want of memory: this part of those awake.
const SHORT_OF_MEMORY_PART: usize = 8;
/// Failed wakes that are remembered.
const REFUSED_MAX: usize = 10_000;

/// Who waits for an account: the connection that the answer goes to.
#[derive(Debug, Clone)]
pub struct Waiter(pub mpsc::Sender<(Uid, Result<(), Refusal>)>);

impl Waiter {
    /// Answers. A connection that is gone, or whose answers pile up because it does not read them, gets none.
    pub fn answer(&self, uid: Uid, result: Result<(), Refusal>) {
        if let Err(error) = self.0.try_send((uid, result)) {
            tracing::debug!(%error, "an answer nobody takes");
        }
    }
}

/// One account.
enum Entry {
    Starting { waiters: Vec<Waiter> },
    Awake { woken: Box<Woken>, used_ms: u64 },
    FallingAsleep { waiters: Vec<Waiter> },
    Refused { refusal: Refusal, until_ms: u64 },
}

/// All accounts that are not simply asleep.
#[derive(Default)]
pub struct Table {
    entries: HashMap<Uid, Entry>,
}

impl Table {
    /// Somebody wants `uid` awake. Says whether a wake has to begin; otherwise the waiter is answered, or will be.
    ///
    /// An account that is awake is looked at again: who asks has found its httpd not answering.
    pub fn wanted(&mut self, uid: Uid, waiter: Waiter, now_ms: u64) -> bool {
        match self.entries.get_mut(&uid) {
            Some(Entry::Starting { waiters } | Entry::FallingAsleep { waiters }) => {
                waiters.push(waiter);
                false
            }
            Some(Entry::Refused { refusal, until_ms }) if now_ms < *until_ms => {
                waiter.answer(uid, Err(refusal.clone()));
                false
            }
            Some(Entry::Awake { .. } | Entry::Refused { .. }) | None => {
                self.entries.insert(uid, Entry::Starting { waiters: vec![waiter] });
                true
            }
        }
    }

    /// A wake has ended.
    pub fn woken(&mut self, uid: Uid, result: Result<Woken, Refusal>, now_ms: u64) {
        let Some(Entry::Starting { waiters }) = self.entries.remove(&uid) else { return };
        let answer = result.as_ref().map(|_| ()).map_err(Refusal::clone);
        match result {
            Ok(woken) => drop(self.entries.insert(uid, Entry::Awake { woken: Box::new(woken), used_ms: now_ms })),
            Err(refusal) => self.refuse(uid, refusal, now_ms),
        }
        for waiter in waiters {
            waiter.answer(uid, answer.clone());
        }
    }

    fn refuse(&mut self, uid: Uid, refusal: Refusal, now_ms: u64) {
        let is_over = |entry: &Entry| matches!(entry, Entry::Refused { until_ms, .. } if *until_ms <= now_ms);
        if self.entries.len() >= REFUSED_MAX {
            self.entries.retain(|_, entry| !is_over(entry));
        }
        self.entries.insert(uid, Entry::Refused { refusal, until_ms: now_ms + REFUSED_MS });
    }

    /// An account that was found awake.
    pub fn adopted(&mut self, uid: Uid, woken: Woken, now_ms: u64) {
        self.entries.insert(uid, Entry::Awake { woken: Box::new(woken), used_ms: now_ms });
    }

    /// These had requests.
    pub fn used(&mut self, uids: &[Uid], now_ms: u64) {
        for uid in uids {
            if let Some(Entry::Awake { used_ms, .. }) = self.entries.get_mut(uid) {
                *used_ms = now_ms;
            }
        }
    }

    /// Notes that `uid` is being put to sleep; says whether it may be (nobody waits for it).
    pub fn falls_asleep(&mut self, uid: Uid) -> bool {
        match self.entries.get(&uid) {
            Some(Entry::Starting { .. } | Entry::FallingAsleep { .. }) => false,
            Some(Entry::Awake { .. } | Entry::Refused { .. }) | None => {
                self.entries.insert(uid, Entry::FallingAsleep { waiters: Vec::new() });
                true
            }
        }
    }

    /// `uid` sleeps. Says whether a wake has to begin, because somebody asked for it meanwhile.
    pub fn asleep(&mut self, uid: Uid, _now_ms: u64) -> bool {
        match self.entries.remove(&uid) {
            Some(Entry::FallingAsleep { waiters }) if !waiters.is_empty() => {
                self.entries.insert(uid, Entry::Starting { waiters });
                true
            }
            Some(Entry::FallingAsleep { .. }) | None => false,
            Some(other) => {
                self.entries.insert(uid, other);
                false
            }
        }
    }

    /// How many wait for an answer.
    pub fn waiting(&self) -> usize {
        let waiting = |entry: &Entry| match entry {
            Entry::Starting { waiters } | Entry::FallingAsleep { waiters } => waiters.len(),
            Entry::Awake { .. } | Entry::Refused { .. } => 0,
        };
        self.entries.values().map(waiting).sum()
    }

    /// The accounts that are awake, as they were woken.
    pub fn awake(&self) -> impl Iterator<Item = (Uid, &Woken)> {
        self.entries.iter().filter_map(|(uid, entry)| match entry {
            Entry::Awake { woken, .. } => Some((*uid, &**woken)),
            _ => None,
        })
    }

    /// Takes over what the directory has for accounts that are awake.
    pub fn refresh(&mut self, row: impl Fn(Uid) -> Option<Account>) {
        for (uid, entry) in &mut self.entries {
            if let Entry::Awake { woken, .. } = entry
                && let Some(account) = row(*uid)
            {
                woken.account = account;
            }
        }
    }

    /// Who should sleep: those idle for too long; beyond the bound, or when memory is short, also those used least recently.
    pub fn sleepy(&self, settings: &LauncherConfig, memory_is_short: bool, now_ms: u64) -> Vec<Uid> {
        let mut awake: Vec<(u64, Uid)> = (self.entries.iter())
            .filter_map(|(uid, entry)| match entry {
                Entry::Awake { used_ms, .. } => Some((*used_ms, *uid)),
                _ => None,
            })
            .collect();
        awake.sort_unstable();
        let idle = |used_ms: u64| now_ms.saturating_sub(used_ms);
        let too_idle = awake.iter().take_while(|(used_ms, _)| idle(*used_ms) > settings.idle_s * 1_000).count();
        let too_many = awake.len().saturating_sub(settings.awake_max);
        let for_memory = if memory_is_short { awake.len().div_ceil(SHORT_OF_MEMORY_PART) } else { 0 };
        let for_others = too_many.max(for_memory);
        let is_chosen = |(place, (used_ms, _)): &(usize, &(u64, Uid))| {
            *place < too_idle || (*place < for_others && idle(*used_ms) > BUSY_MS)
        };
        awake.iter().enumerate().filter(is_chosen).map(|(_, (_, uid))| *uid).collect()
    }
}
