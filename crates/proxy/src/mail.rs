//! The hops between the world and mailboxes, on a mail node.
//!
//! A *way* leads clients from this node to the node that holds the mailboxes, and names them there by a PROXY header. While mailboxes move it
//! leads nowhere: new clients are kept waiting for a while. A *hop*, on the holder, leads from the ways of the cluster's nodes to Dovecot and
//! is the only way there: once a configuration without it has been read, it listens no more and no byte goes through it
//! ([`door::Door::close`]). A delivery under way may end first, within a bound; everything else is cut. [`splice`] moves the bytes; [`tally`] bounds and counts connections.
//!
//! SIGHUP reads the configuration again. An invalid one is told and changes nothing. On SIGTERM nothing new is taken, and connections may go on
//! for a moment; what is left then is cut.
//!
//! Deliberately absent: reading a byte of any mail protocol, TLS, and any choice of who holds the mailboxes.

mod connection;
mod door;
pub mod proxy_header;
mod refusal;
mod splice;
mod tally;

use crate::{config, notify, socket, status};
use anyhow::Context as _;
use door::{Door, Frame, Passage};
use phalanx_plan::mail::router::{Hop, MailConfig, MailLimits, Way};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tally::{Side, Tallies, Tally};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Open files that are not connections.
const OTHER_FILES: usize = 256;
/// A connection has two sockets, and there may be as many at ways as at hops.
const FILES_PER_CONNECTION: usize = 4;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration can't be used at the start. Later errors are reported and retried.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    // Before anything else, so that an early SIGHUP does not end the process.
    let mut hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut router = Router::start(config::load_mail(config_path)?).await;
    let mut each_second = interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    router.report();
    notify::send("READY=1");
    loop {
        tokio::select! {
            _ = each_second.tick() => router.report(),
            _ = hangup.recv() => router.reload(config_path).await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify::send("STOPPING=1");
    router.end().await;
    Ok(())
}

/// All that the daemon's main task owns.
struct Router {
    config: MailConfig,
    doors: BTreeMap<SocketAddrV4, Door>,
    tallies: Tallies,
    files_max: usize,
    stop: watch::Sender<bool>,
    started_unix_ms: u64,
    read_unix_ms: u64,
    /// Why the file that was read last is not in use; empty when it is.
    problem: String,
    writer: status::Writer,
}

#[derive(Debug, Serialize)]
struct Status<'a> {
    started_unix_ms: u64,
    /// When the configuration in use was read; all that it says was done by then.
    read_unix_ms: u64,
    /// Why a later one is not in use; empty when there is none.
    problem: &'a str,
    connections: usize,
    /// Open doors and where they lead: none while mailboxes move.
    ways: BTreeMap<SocketAddrV4, Option<SocketAddrV4>>,
    hops: BTreeMap<SocketAddrV4, Option<SocketAddrV4>>,
    unbound: Vec<SocketAddrV4>,
    /// By protocol.
    through_ways: BTreeMap<&'a str, &'a Tally>,
    through_hops: BTreeMap<&'a str, &'a Tally>,
}

impl Router {
    async fn start(config: MailConfig) -> Self {
        let mut router = Self {
            config,
            doors: BTreeMap::new(),
            tallies: Tallies::default(),
            files_max: socket::raise_files_max(),
            stop: watch::channel(false).0,
            started_unix_ms: unix_ms(),
            read_unix_ms: 0,
            problem: String::new(),
            writer: status::Writer::default(),
        };
        router.follow().await;
        router
    }

    async fn reload(&mut self, path: &Path) {
        let now = clock_gettime(ClockId::Monotonic);
        let now_us = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        notify::send(&format!("RELOADING=1\nMONOTONIC_USEC={now_us}"));
        match config::load_mail(path) {
            Ok(config) => {
                self.config = config;
                self.problem.clear();
                self.follow().await;
                tracing::info!("read {} again", path.display());
            }
            Err(error) => {
                self.problem = format!("the configuration in use is kept: {error}");
                tracing::error!("{}", self.problem);
            }
        }
        self.report();
        notify::send("READY=1");
    }

    /// Makes the doors those of the configuration. What has to be closed is closed before anything is opened or led elsewhere.
    async fn follow(&mut self) {
        let mut wanted = doors(&self.config, self.limits());
        let closed: Vec<SocketAddrV4> = self
            .doors
            .values()
            .filter(|door| !wanted.get(&door.frame.listen).is_some_and(|(frame, passage)| stays(door, frame, passage)))
            .map(|door| door.frame.listen)
            .collect();
        for door in closed.iter().filter_map(|listen| self.doors.remove(listen)).collect::<Vec<_>>() {
            door.close().await;
        }
        for (listen, door) in &self.doors {
            if let Some((_, passage)) = wanted.remove(listen) {
                door.lead(passage);
            }
        }
        let stop = self.stop.subscribe();
        let opened = wanted
            .into_iter()
            .map(|(listen, (frame, passage))| (listen, Door::open(frame, passage, &self.tallies, &stop)));
        self.doors.extend(opened);
        self.read_unix_ms = unix_ms();
    }

    /// As configured, and so that each connection can have its sockets.
    fn limits(&self) -> MailLimits {
        let possible = self.files_max.saturating_sub(OTHER_FILES) / FILES_PER_CONNECTION;
        let configured = self.config.limits;
        MailLimits { connections_max: configured.connections_max.min(possible.max(1)), ..configured }
    }

    fn report(&mut self) {
        let leads = |side| {
            let of_side = self.doors.values().filter(move |door| door.frame.side == side);
            of_side.map(|door| (door.frame.listen, door.to())).collect()
        };
        let unbound = self.doors.values().filter(|door| !door.is_bound()).map(|door| door.frame.listen);
        let (through_ways, through_hops) = (self.tallies.by_protocol(Side::Way), self.tallies.by_protocol(Side::Hop));
        let status = Status {
            started_unix_ms: self.started_unix_ms,
            read_unix_ms: self.read_unix_ms,
            problem: &self.problem,
            connections: self.tallies.open(),
            ways: leads(Side::Way),
            hops: leads(Side::Hop),
            unbound: unbound.collect(),
            through_ways: by_name(&through_ways),
            through_hops: by_name(&through_hops),
        };
        self.writer.write(&self.config.status, &status);
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        let deadline = Instant::now() + Duration::from_millis(self.config.limits.shutdown_timeout_ms);
        while self.tallies.open() > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        let cut = self.tallies.open();
        if cut > 0 {
            tracing::info!("cutting {cut} connections that are still open");
        }
        for door in std::mem::take(&mut self.doors).into_values() {
            door.close().await;
        }
        self.report();
    }
}

/// Whether an open door can go on as what is wanted at its address. A hop that leads to another place is another door, so that nothing goes to
/// the old place any more when this has been followed.
fn stays(door: &Door, frame: &Frame, passage: &Passage) -> bool {
    door.frame == *frame && (frame.side == Side::Way || door.to() == passage.to)
}

/// The doors that `config` wants, within `limits`.
fn doors(config: &MailConfig, limits: MailLimits) -> BTreeMap<SocketAddrV4, (Frame, Passage)> {
    let MailConfig { server: _, ways, hops, nodes, balancers, limits: _, status: _ } = config;
    let ways = ways.iter().map(|Way { listen, protocol, to, names_client }| {
        let frame = Frame { side: Side::Way, listen: *listen, protocol: protocol.as_str().into() };
        let (names_client, balancers) = (*names_client, balancers.clone());
        (*listen, (frame, Passage { to: *to, names_client, only: None, balancers, limits }))
    });
    let hops = hops.iter().map(|Hop { listen, protocol, to }| {
        let frame = Frame { side: Side::Hop, listen: *listen, protocol: protocol.as_str().into() };
        // This machine comes to its own hop from the hop's address.
        let only = nodes.iter().copied().chain([*listen.ip()]).collect();
        let passage =
            Passage { to: Some(*to), names_client: false, only: Some(only), balancers: BTreeSet::new(), limits };
        (*listen, (frame, passage))
    });
    ways.chain(hops).collect()
}

fn by_name(tallies: &BTreeMap<String, Arc<Tally>>) -> BTreeMap<&str, &Tally> {
    tallies.iter().map(|(protocol, tally)| (protocol.as_str(), &**tally)).collect()
}

fn unix_ms() -> u64 {
    // A clock before 1970 shows as 1970: the number is for display alone.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
