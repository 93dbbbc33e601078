//! A web node: takes clients' connections, finds the account of each request, wakes it, and forwards.
//!
//! It needs the directory file and the launcher; neither panel nor agent. On SIGHUP it reads its configuration again: new addresses
//! are bound, gone ones closed, connections go on. On SIGTERM it accepts nothing new and lets
//! requests under way come to their end, for a while.
//!
//! The thread that runs [`run`] keeps signals, listeners and the status; [`worker`]s serve the connections.
//!
//! Deliberately absent: TLS, and any content of its own beyond the pages that say why a site can't answer.

pub mod access_log;
mod accounts;
mod connection;
mod directory;
pub mod health;
pub mod launcher;
mod listener;
pub mod pages;
mod pump;
mod route;
mod upstream;
mod worker;

use crate::{config, socket, status};
use access_log::AccessLog;
use accounts::Accounts;
use anyhow::Context as _;
use directory::Directory;
use health::Health;
use launcher::Launcher;
use listener::Listeners;
use phalanx_plan::proxy_config::ProxyConfig;
use serde::Serialize;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use worker::Workers;

/// Open files that are not connections: the directory, logs, sockets.
const OTHER_FILES: usize = 256;
/// How long the end waits for the access log's last lines, if the disk hangs.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// What all connections share.
#[derive(Debug)]
pub struct Node {
    config: RwLock<Arc<ProxyConfig>>,
    directory: Directory,
    launcher: Launcher,
    workers: Workers,
    accounts: Accounts,
    health: Health,
    log: AccessLog,
    files_max: usize,
    requests_total: AtomicU64,
    errors_total: AtomicU64,
}

#[derive(Debug, Serialize)]
struct Status {
    started_unix_ms: u64,
    requests_total: u64,
    errors_total: u64,
    connections: usize,
    in_service: bool,
    /// Why it is not in service, in words for a person.
    why: String,
    access_log_lines_lost: u64,
    unbound: Vec<SocketAddrV4>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration can't be used at the start, or threads can't be started. Later errors are reported and retried.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    // Before anything else, so that an early SIGHUP does not end the process.
    let mut hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let config = config::load_node(config_path)?;
    let node = Arc::new(Node::start(config)?);
    let (stop, stopping) = watch::channel(false);
    let mut listeners = Listeners::default();
    listeners.follow(&node.config(), &node, &stopping);
    let mut each_second = interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut writer = status::Writer::default();
    let started_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    loop {
        tokio::select! {
            _ = each_second.tick() => {
                let status = node.status(started_unix_ms, listeners.unbound()).await;
                writer.write(&node.config().paths.status, &status);
                node.workers.pools().for_each(|pool| pool.sweep(&node.config().limits));
            }
            _ = hangup.recv() => {
                node.reload(config_path);
                listeners.follow(&node.config(), &node, &stopping);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    listeners.close();
    stop.send_replace(true);
    node.wait_for_connections().await;
    if !node.log.close(LOG_PATIENCE) {
        tracing::warn!("ending before the last lines of the access log were written");
    }
    Ok(())
}

impl Node {
    fn start(config: ProxyConfig) -> anyhow::Result<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
        let log = AccessLog::start(&config.paths.access_logs, config.server.as_str(), boot_id.trim());
        let accounts = Accounts::default();
        Ok(Self {
            directory: Directory::start(&config.paths.directory).context("starting the thread for the directory")?,
            launcher: Launcher::start(&config.paths.launcher, accounts.clone()),
            workers: Workers::start().context("starting threads for connections")?,
            accounts,
            health: Health::start().context("starting the thread for the share's marker")?,
            log: log.context("starting the thread for the access log")?,
            files_max: socket::raise_files_max(),
            requests_total: AtomicU64::new(0),
            errors_total: AtomicU64::new(0),
            config: RwLock::new(Arc::new(config)),
        })
    }

    /// The configuration in use.
    pub fn config(&self) -> Arc<ProxyConfig> {
        // A configuration is replaced whole, so that it is whole also after a panic elsewhere.
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reload(&self, path: &Path) {
        match config::load_node(path) {
            Ok(new) => {
                if new.paths != self.config().paths {
                    tracing::warn!("the configured paths have changed: they count after a restart");
                }
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!("read {} again", path.display());
            }
            Err(error) => tracing::error!("the configuration in use is kept: {error}"),
        }
    }

    /// How many clients may be connected: as configured, and so that each can have an upstream connection too.
    fn connections_max(&self, config: &ProxyConfig) -> usize {
        let possible = self.files_max.saturating_sub(OTHER_FILES) / 2;
        config.limits.connections_max.min(possible.max(1))
    }

    fn count(&self, status: u16) {
        self.requests_total.fetch_add(1, Ordering::Relaxed);
        if status >= 500 {
            self.errors_total.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn status(&self, started_unix_ms: u64, unbound: Vec<SocketAddrV4>) -> Status {
        let why = match self.health.ask(self.config().share.as_ref()).await {
            Ok(_) if unbound.is_empty() => String::new(),
            Ok(_) => "not all addresses could be bound".to_owned(),
            Err(why) => why,
        };
        Status {
            started_unix_ms,
            requests_total: self.requests_total.load(Ordering::Relaxed),
            errors_total: self.errors_total.load(Ordering::Relaxed),
            connections: self.workers.connections(),
            in_service: why.is_empty(),
            why,
            access_log_lines_lost: self.log.lost(),
            unbound,
        }
    }

    async fn wait_for_connections(&self) {
        let deadline = Instant::now() + Duration::from_millis(self.config().limits.shutdown_timeout_ms);
        while self.workers.connections() > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        let cut = self.workers.connections();
        if cut > 0 {
            tracing::warn!("ending with {cut} connections still open");
        }
    }
}
