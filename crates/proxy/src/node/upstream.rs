//! Connections to accounts' httpds: kept ones, new ones, and waking an account that sleeps.

use super::launcher::{Launcher, WakeError};
use phalanx_model::Uid;
use phalanx_model::account::ACCOUNT_PORT;
use phalanx_plan::proxy_config::ProxyLimits;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// Kept connections of all accounts together, on the whole node.
const KEPT_MAX: usize = 2_048;
/// Over loopback a listener's kernel answers at once, unless its queue is full or nftables drops what a squatter answers.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);
/// The first pause between two attempts to connect; each next one is twice as long, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How often a launcher that says "later", or is not there, is asked again, and after what pause.
const WAKES_MAX: u32 = 3;
const WAKE_PAUSE: Duration = Duration::from_millis(300);

/// Why an account's httpd can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It sleeps and can't be woken.
    #[error(transparent)]
    Wake(#[from] WakeError),
    /// It did not accept a connection in time.
    #[error("no connection to it within {0} ms: {1}")]
    TimedOut(u64, String),
    /// The proxy itself can't make connections.
    #[error("no connection to it can be made")]
    Local(#[source] io::Error),
}

/// Keeps idle connections, a few per account and for a few seconds: a worker's part of those that the node may keep.
#[derive(Debug)]
pub struct Pool {
    kept: Mutex<Kept>,
    /// How many pools the node has, to share its bounds.
    pools: NonZero<usize>,
}

#[derive(Debug, Default)]
struct Kept {
    count: usize,
    by_account: HashMap<Uid, Vec<(Instant, TcpStream)>>,
}

impl Pool {
    /// One of so many pools of the node.
    pub fn one_of(pools: NonZero<usize>) -> Self {
        Self { kept: Mutex::default(), pools }
    }

    /// A kept connection that is still good. One that has something to read is not: nothing was asked on it.
    pub fn take(&self, uid: Uid, limits: &ProxyLimits) -> Option<TcpStream> {
        loop {
            let (kept_at, stream) = {
                let mut kept = self.lock();
                let newest = kept.by_account.get_mut(&uid)?.pop()?;
                kept.count -= 1;
                newest
            };
            let fresh = kept_at.elapsed() < Duration::from_millis(limits.idle_upstream_ms);
            if fresh && is_silent(&stream) {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection whose last response is complete, where there is room. An account may leave more than its part after a
    /// burst, since it will need them in the next one: the sweep closes what is too much.
    pub fn keep(&self, uid: Uid, stream: TcpStream, limits: &ProxyLimits) {
        let mut kept = self.lock();
        if kept.count < KEPT_MAX.div_ceil(self.pools.get()) && limits.idle_upstreams_per_account_max > 0 {
            kept.by_account.entry(uid).or_default().push((Instant::now(), stream));
            kept.count += 1;
        }
    }

    /// Closes what was kept for too long or was closed by the other side, which waits for it (an account's httpd that has a successor
    /// does, two seconds long); and of each account what is more than this pool's part. To be called each second.
    pub fn sweep(&self, limits: &ProxyLimits) {
        let lifetime = Duration::from_millis(limits.idle_upstream_ms);
        // Rounded up, so that with many workers each may keep one.
        let part = limits.idle_upstreams_per_account_max.div_ceil(self.pools.get());
        let mut kept = self.lock();
        kept.by_account.retain(|_, streams| {
            streams.retain(|(kept_at, stream)| kept_at.elapsed() < lifetime && is_silent(stream));
            // The oldest come first.
            streams.drain(..streams.len().saturating_sub(part));
            !streams.is_empty()
        });
        kept.count = kept.by_account.values().map(Vec::len).sum();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every operation leaves it whole but for the count, which the next sweep mends.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a connection has nothing to read, not even its end. That costs a call of the kernel only if something has come.
fn is_silent(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Connects to an account's httpd, waking the account once where it does not accept.
///
/// # Errors
/// See [`UpstreamError`].
pub async fn connect(uid: Uid, launcher: &Launcher, limits: &ProxyLimits) -> Result<TcpStream, UpstreamError> {
    let address = SocketAddr::from((uid.loopback(), ACCOUNT_PORT));
    let deadline = Instant::now() + Duration::from_millis(limits.wake_timeout_ms);
    let too_late = |why: &str| UpstreamError::TimedOut(limits.wake_timeout_ms, why.to_owned());
    let mut pause = PAUSE_MIN;
    let mut woken = false;
    loop {
        let patience = deadline.min(Instant::now() + ANSWER_TIME_MAX);
        let refusal = match timeout_at(patience, TcpStream::connect(address)).await {
            Err(_) if Instant::now() >= deadline => return Err(too_late("it does not answer")),
            // Somebody holds the address and may not answer from it: the launcher sees to that.
            Err(_) => io::ErrorKind::TimedOut.into(),
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(UpstreamError::Local)?;
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => error,
            Ok(Err(error)) => return Err(UpstreamError::Local(error)),
        };
        if !woken {
            timeout_at(deadline, wake(uid, launcher)).await.map_err(|_| too_late("the launcher does not answer"))??;
            woken = true;
            continue;
        }
        if Instant::now() + pause > deadline {
            return Err(too_late(&refusal.to_string()));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn wake(uid: Uid, launcher: &Launcher) -> Result<(), WakeError> {
    let mut tries = 1;
    loop {
        match launcher.wake(uid).await {
            Err(error) if error.is_passing() && tries < WAKES_MAX => sleep(WAKE_PAUSE).await,
            result => return result,
        }
        tries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_sweep_leaves_the_newest_of_what_a_burst_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let limits = ProxyLimits { idle_upstreams_per_account_max: 5, ..ProxyLimits::default() };
        let pool = Pool::one_of(NonZero::new(2).expect("not zero"));
        let (mut accepted, mut ports) = (Vec::new(), Vec::new());
        for _ in 0..8 {
            let stream = TcpStream::connect(address).await.expect("connected");
            accepted.push(listener.accept().await.expect("accepted"));
            ports.push(stream.local_addr().expect("its address").port());
            pool.keep(Uid::FIRST, stream, &limits);
        }
        assert_eq!(pool.lock().count, 8);
        pool.sweep(&limits);
        let left: Vec<_> = std::iter::from_fn(|| pool.take(Uid::FIRST, &limits)).collect();
        let left: Vec<_> = left.iter().map(|stream| stream.local_addr().expect("its address").port()).collect();
        assert!(left.iter().eq(ports[5..].iter().rev()), "{left:?} of {ports:?}: half of five, rounded up");
        assert_eq!(pool.lock().count, 0);
    }

    #[tokio::test]
    async fn a_sweep_closes_what_the_other_side_has_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (limits, pool) = (ProxyLimits::default(), Pool::one_of(NonZero::<usize>::MIN));
        let mut accepted = Vec::new();
        for _ in 0..2 {
            let stream = TcpStream::connect(address).await.expect("connected");
            accepted.push(listener.accept().await.expect("accepted").0);
            pool.keep(Uid::FIRST, stream, &limits);
        }
        pool.sweep(&limits);
        assert_eq!(pool.lock().count, 2);
        let mut ending = accepted.swap_remove(0);
        ending.shutdown().await.expect("its writing side is closed");
        // Whoever closed sees the end of the other side: without it, this waits for ever.
        let closed = async {
            while matches!(ending.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                pool.sweep(&limits);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed by the sweep");
        assert_eq!(pool.lock().count, 1, "the other one is still good");
    }
}
