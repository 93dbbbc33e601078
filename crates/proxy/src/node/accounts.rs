//! How many requests each account has under way.

use phalanx_model::Uid;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts requests under way by account.
#[derive(Debug, Clone, Default)]
pub struct Accounts(Arc<Mutex<HashMap<Uid, usize>>>);

/// A request under way; it is over when this is dropped.
#[derive(Debug)]
pub struct UnderWay {
    accounts: Accounts,
    uid: Uid,
}

impl Accounts {
    /// Begins a request, unless `max` are under way already.
    pub fn begin(&self, uid: Uid, max: usize) -> Option<UnderWay> {
        let mut counts = self.lock();
        let count = counts.entry(uid).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(UnderWay { accounts: self.clone(), uid })
    }

    /// The accounts that have requests under way.
    pub fn busy(&self) -> Vec<Uid> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uid, usize>> {
        // Counts are whole after every operation, also one that panicked in another thread.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut counts = self.accounts.lock();
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_can_not_take_another_ones_places() {
        let accounts = Accounts::default();
        let (a, b) = (Uid::FIRST, Uid::LAST);
        let held: Vec<_> = (0..3).filter_map(|_| accounts.begin(a, 2)).collect();
        assert_eq!(held.len(), 2);
        assert_eq!(accounts.busy(), [a]);
        assert!(accounts.begin(b, 2).is_some());
        drop(held);
        assert!(accounts.begin(a, 2).is_some());
        assert!(accounts.lock().is_empty(), "nothing is kept of accounts without requests");
    }
}
