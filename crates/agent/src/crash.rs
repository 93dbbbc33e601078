//! For tests of crashes: the places at which the agent ends itself, as a crash would, when it was started to do so.
//!
//! Whoever counts up from 0 until nothing ends any more has been before and after each step of a plan; from [`BESIDE_STEPS`], at places
//! in changes of the directory and in what is derived from it; from [`RENEWALS`], in renewals of accounts, which run beside that. Without an order to end, a place costs an addition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of the first place that is not beside a step.
const BESIDE_STEPS: u64 = 1_000;
/// The number of the first place in renewals.
const RENEWALS: u64 = 2_000;

/// The counts of the places passed, shared by all parts of the agent.
#[derive(Debug, Clone, Default)]
pub struct CrashPoints(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    stop_before: Option<u64>,
    steps: AtomicU64,
    others: AtomicU64,
    renewals: AtomicU64,
}

impl CrashPoints {
    /// The process ends at the place with this number, counted from its start.
    pub fn new(stop_before: Option<u64>) -> Self {
        let (others, renewals) = (AtomicU64::new(BESIDE_STEPS), AtomicU64::new(RENEWALS));
        Self(Arc::new(Inner { stop_before, others, renewals, ..Inner::default() }))
    }

    /// A place beside a step, in words. Ends this process if it is the one.
    pub fn step(&self, place: &str) {
        self.end_at(self.0.steps.fetch_add(1, Ordering::Relaxed), place);
    }

    /// A place in a renewal, in words. Ends this process if it is the one.
    pub fn renewal(&self, place: &str) {
        self.end_at(self.0.renewals.fetch_add(1, Ordering::Relaxed), place);
    }

    /// Any other place, in words. Ends this process if it is the one.
    pub fn pass(&self, place: &str) {
        self.end_at(self.0.others.fetch_add(1, Ordering::Relaxed), place);
    }

    fn end_at(&self, number: u64, place: &str) {
        if self.0.stop_before != Some(number) {
            return;
        }
        tracing::warn!(number, place, "ends here, as asked by --stop-before");
        let own = rustix::process::getpid();
        if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::KILL) {
            tracing::error!(%error, "could not end");
        }
        std::process::abort();
    }
}
