//! The threads that serve connections: one for each core, each with a reactor and kept upstream connections of its own.
//!
//! A client's connection stays with one worker, and so do the upstream connections of its requests: both sockets wake the thread that
//! is going to use them, and no thread wakes another one for a request.
//!
//! Deliberately absent: moving connections from a busy worker to an idle one. New ones go where there are fewest.

use super::upstream::Pool;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tokio::runtime::{Builder, Handle};

/// All workers. They run until the process ends.
#[derive(Debug)]
pub struct Workers(Vec<Arc<Worker>>);

/// A thread, and what the connections that it serves share.
#[derive(Debug)]
pub struct Worker {
    /// To spawn tasks on the thread.
    pub thread: Handle,
    /// Kept connections to accounts.
    pub pool: Pool,
    connections: AtomicUsize,
}

/// A client's connection at its worker, counted as long as this is kept.
#[derive(Debug)]
pub struct Seat {
    /// Who serves the connection.
    pub worker: Arc<Worker>,
}

impl Workers {
    /// Starts one for each core.
    ///
    /// # Errors
    /// A thread can't be started.
    pub fn start() -> io::Result<Self> {
        // Where the number of cores can't be told, one thread serves all the same.
        let count = thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        (0..count.get()).map(|number| Worker::start(number, count).map(Arc::new)).collect::<io::Result<_>>().map(Self)
    }

    /// A place at the worker that has the fewest connections, unless all together have `max`. To be called by one thread alone, so
    /// that this is never exceeded.
    pub fn seat(&self, max: usize) -> Option<Seat> {
        if self.connections() >= max {
            return None;
        }
        let worker = self.0.iter().min_by_key(|worker| worker.connections.load(Ordering::Relaxed))?;
        worker.connections.fetch_add(1, Ordering::Relaxed);
        Some(Seat { worker: worker.clone() })
    }

    /// Clients that are connected now.
    pub fn connections(&self) -> usize {
        self.0.iter().map(|worker| worker.connections.load(Ordering::Relaxed)).sum()
    }

    /// All pools.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter().map(|worker| &worker.pool)
    }
}

impl Worker {
    fn start(number: usize, count: NonZero<usize>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let serve = move || runtime.block_on(std::future::pending::<()>());
        thread::Builder::new().name(format!("worker-{number}")).spawn(serve)?;
        Ok(Self { thread: handle, pool: Pool::one_of(count), connections: AtomicUsize::new(0) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.worker.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_and_bounded() {
        let two = NonZero::new(2).expect("not zero");
        let workers = (0..2).map(|number| Worker::start(number, two).map(Arc::new).expect("started")).collect();
        let workers = Workers(workers);
        let counts = || workers.0.iter().map(|worker| worker.connections.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut seats: Vec<_> = (0..5).filter_map(|_| workers.seat(4)).collect();
        assert_eq!((seats.len(), workers.connections(), counts()), (4, 4, vec![2, 2]));
        seats.retain(|seat| Arc::ptr_eq(&seat.worker, &workers.0[0]));
        assert_eq!(counts(), [2, 0]);
        seats.extend(workers.seat(4));
        assert_eq!(counts(), [2, 1], "a new one goes where there are fewest");
    }
}
