//! Bounds on waiting, at no cost as long as things move.

use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep, sleep_until};

/// A bound on how long a connection waits, at no cost as long as things move: the timer is set anew only when it fires too early, or
/// when the bound became nearer.
#[derive(Debug)]
pub struct Patience(Pin<Box<Sleep>>);

impl Patience {
    /// Ends first at `deadline`.
    pub fn until(deadline: Instant) -> Self {
        Self(Box::pin(sleep_until(deadline)))
    }

    /// Ready when `deadline` is over.
    pub fn poll_end(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        let Self(timer) = self;
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
