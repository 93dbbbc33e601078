//! Answers that were given before, and until when they hold.
//!
//! Invariant: an answer is handed out only within [`LIFETIME`] of a moment at which the directory was seen to be unchanged since the
//! answer was read. So it is at most that much older than the directory.
//!
//! What fails is never kept. Names that nobody has are kept apart from those that somebody has, so that asking for many of them, which
//! every client can, crowds out no site.

use phalanx_host::directory::HostEntry;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long answers hold after the directory was seen to be unchanged.
pub const LIFETIME: Duration = Duration::from_millis(10);
/// Names that are kept of each kind: those that somebody has, and those that nobody has.
const NAMES_MAX: usize = 16_384;

/// An answer: who has a name; none where nobody has it.
pub type Answer = Option<Arc<HostEntry>>;

/// Answers from one state of the directory.
#[derive(Debug, Default)]
pub struct Cache {
    /// When the directory was last seen to be unchanged since all that is kept was read.
    confirmed: Option<Instant>,
    /// Somebody was answered since.
    used: bool,
    known: Recent<Arc<HostEntry>>,
    unknown: Recent<()>,
}

impl Cache {
    /// The answer for `host`, if there is one that holds at `now`.
    pub fn find(&mut self, host: &str, now: Instant) -> Option<Answer> {
        if now.saturating_duration_since(self.confirmed?) > LIFETIME {
            return None;
        }
        let answer = match self.known.get(host) {
            Some(entry) => Some(entry),
            None => self.unknown.get(host).map(|()| None)?,
        };
        self.used = true;
        Some(answer)
    }

    /// The directory was unchanged at `at` or later, since it was last confirmed or cleared.
    pub fn confirm(&mut self, at: Instant) {
        self.confirmed = Some(at);
        self.used = false;
    }

    /// Whether anybody was answered since the last confirmation, so that another one is worth its while.
    pub fn is_used(&self) -> bool {
        self.used
    }

    /// Keeps an answer that was read after the last confirmation.
    pub fn keep(&mut self, host: &str, answer: &Answer) {
        match answer {
            Some(entry) => self.known.insert(host, entry.clone()),
            None => self.unknown.insert(host, ()),
        }
    }

    /// Drops all: the directory has changed, or can't be read.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Names that were asked for of late: when the young ones fill half of the room, they become the old ones, and those are dropped.
#[derive(Debug)]
struct Recent<T> {
    young: HashMap<Box<str>, T>,
    old: HashMap<Box<str>, T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<T: Clone> Recent<T> {
    fn get(&mut self, name: &str) -> Option<T> {
        if let Some(value) = self.young.get(name) {
            return Some(value.clone());
        }
        let value = self.old.remove(name)?;
        self.insert(name, value.clone());
        Some(value)
    }

    fn insert(&mut self, name: &str, value: T) {
        if self.young.len() >= NAMES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name.into(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_model::{AccountState, Uid};

    fn entry() -> Answer {
        Some(Arc::new(HostEntry {
            site: "www.site.example".parse().expect("a host name"),
            account: "a0".parse().expect("a name"),
            uid: Uid::FIRST,
            state: AccountState::Active,
        }))
    }

    fn after(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    #[test]
    fn an_answer_holds_for_its_lifetime_after_each_confirmation() {
        let (mut cache, begin) = (Cache::default(), Instant::now());
        let answer = |cache: &mut Cache, ms| cache.find("a", after(begin, ms));
        cache.keep("a", &entry());
        assert_eq!(answer(&mut cache, 0), None, "nothing was confirmed");
        cache.confirm(begin);
        assert_eq!(answer(&mut cache, 10), Some(entry()));
        assert_eq!(answer(&mut cache, 11), None);
        cache.confirm(after(begin, 11));
        assert_eq!(answer(&mut cache, 21), Some(entry()));
        cache.clear();
        cache.confirm(after(begin, 21));
        assert_eq!(answer(&mut cache, 21), None);
    }

    #[test]
    fn only_what_is_used_needs_to_be_confirmed() {
        let (mut cache, begin) = (Cache::default(), Instant::now());
        cache.keep("nobody", &None);
        cache.confirm(begin);
        assert!(cache.find("another", begin).is_none() && !cache.is_used());
        assert!(cache.find("nobody", begin) == Some(None) && cache.is_used());
        cache.confirm(after(begin, 8));
        assert!(!cache.is_used());
    }

    #[test]
    fn it_is_bounded_and_names_that_nobody_has_crowd_out_no_site() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.confirm(now);
        cache.keep("a", &entry());
        for number in 0..3 * NAMES_MAX {
            cache.keep(&format!("nobody-{number}"), &None);
        }
        let Cache { known, unknown, .. } = &cache;
        assert!(known.young.len() == 1 && unknown.young.len() + unknown.old.len() <= NAMES_MAX);
        assert!(cache.find("a", now).is_some() && cache.find("nobody-0", now).is_none());
        // A name that is asked for stays; one that is not goes.
        cache.keep("b", &entry());
        for number in 0..3 * NAMES_MAX {
            cache.keep(&format!("c{number}"), &entry());
            assert!(cache.find("a", now).is_some());
        }
        assert!(cache.find("b", now).is_none());
        assert!(cache.known.young.len() + cache.known.old.len() <= NAMES_MAX);
    }
}
