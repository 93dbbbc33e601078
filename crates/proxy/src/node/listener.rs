//! Listening on the configured addresses: new ones are bound, gone ones closed, and connections outlive both.

use super::Node;
use super::connection;
use crate::socket;
use phalanx_plan::proxy_config::ProxyConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// Places that only balancers and this machine get when all others are taken: for health checks.
const RESERVED_CONNECTIONS: usize = 32;
/// After an error that would come again at once, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two attempts to bind an address.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// The listening tasks, by address.
#[derive(Debug, Default)]
pub struct Listeners {
    tasks: BTreeMap<SocketAddrV4, Listening>,
}

#[derive(Debug)]
struct Listening {
    task: AbortHandle,
    bound: Arc<AtomicBool>,
}

impl Listeners {
    /// Listens on the addresses of `config` and on no others.
    pub fn follow(&mut self, config: &ProxyConfig, node: &Arc<Node>, stop: &watch::Receiver<bool>) {
        self.keep_only(&config.listen);
        for address in &config.listen {
            self.tasks.entry(*address).or_insert_with(|| {
                let bound = Arc::<AtomicBool>::default();
                let task = tokio::spawn(listen(*address, node.clone(), stop.clone(), bound.clone()));
                Listening { task: task.abort_handle(), bound }
            });
        }
    }

    /// Closes all.
    pub fn close(&mut self) {
        self.keep_only(&BTreeSet::new());
    }

    /// Addresses that could not be bound so far.
    pub fn unbound(&self) -> Vec<SocketAddrV4> {
        let unbound = self.tasks.iter().filter(|(_, listening)| !listening.bound.load(Ordering::Relaxed));
        unbound.map(|(address, _)| *address).collect()
    }

    fn keep_only(&mut self, addresses: &BTreeSet<SocketAddrV4>) {
        self.tasks.retain(|address, listening| {
            let keeps = addresses.contains(address);
            if !keeps {
                listening.task.abort();
                tracing::info!("listening on {address} no more");
            }
            keeps
        });
    }
}

async fn listen(address: SocketAddrV4, node: Arc<Node>, stop: watch::Receiver<bool>, bound: Arc<AtomicBool>) {
    let mut told = false;
    let listener = loop {
        match socket::bind(address) {
            Ok(listener) => break listener,
            Err(error) if !told => tracing::warn!("{address} can't be listened on: {error}; trying each second"),
            Err(_) => {}
        }
        told = true;
        sleep(BIND_AGAIN).await;
    };
    bound.store(true, Ordering::Relaxed);
    tracing::info!("listening on {address}");
    loop {
        match listener.accept().await {
            Ok((stream, SocketAddr::V4(peer))) => admit(stream, *peer.ip(), &node, &stop),
            Ok((_, SocketAddr::V6(_))) => {}
            Err(error) => {
                tracing::warn!("a connection to {address} can't be accepted: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

fn admit(stream: TcpStream, peer: Ipv4Addr, node: &Arc<Node>, stop: &watch::Receiver<bool>) {
    let config = node.config();
    let trusted = peer.is_loopback() || config.balancers.contains(&peer);
    let max = node.connections_max(&config) + if trusted { RESERVED_CONNECTIONS } else { 0 };
    let Some(seat) = node.workers.seat(max) else {
        let refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        if let Err(error) = stream.try_write(refusal) {
            tracing::debug!("{peer} was refused without a word: {error}");
        }
        return;
    };
    // The worker's reactor looks after it from now on.
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!("{peer} can't be served: {error}"),
    };
    let (worker, node, stop) = (seat.worker.clone(), node.clone(), stop.clone());
    worker.thread.spawn(async move {
        match TcpStream::from_std(stream) {
            Ok(stream) => connection::serve(stream, peer, &node, &seat.worker, stop).await,
            Err(error) => tracing::warn!("{peer} can't be served: {error}"),
        }
        drop(seat);
    });
}
