//! Floor 4: the root process on a physical server that makes the machine match what it should be.
//!
//! [`run`] follows the upstream ([`link`]), keeps the adopted spec and the directory on disk, and runs the loop that observes, plans
//! and applies ([`reconcile`]). A master serves its slaves what it has adopted itself. [`join`](fn@join) makes the machine a member.
//!
//! Nothing that hangs hangs the agent: other programs have a time limit, the directory has a thread of its own, paths on shares are
//! never touched but by the machine that keeps them, aside.
//!
//! Deliberately absent: choices about desired state, which `phalanx-plan` makes.

pub mod guard;
pub mod holds;
pub mod launcher;
pub mod logs;

mod accounts;
mod check;
mod crash;
mod directory;
mod ending;
mod events;
mod execute;
mod identity;
mod join;
mod keep;
mod link;
mod load;
mod mail;
mod node;
mod notify;
mod observe;
mod paths;
mod queue;
mod reconcile;
mod renew;
mod successor;
mod traffic;

pub use check::{Found, validate};
pub use join::{JoinOptions, join};
pub use paths::ROOT;

use anyhow::Context;
use events::Events;
use identity::Identity;
use node::{Adopted, Node};
use paths::Paths;
use phalanx_plan::report::Severity;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often a machine that has not joined looks whether it has.
const JOIN_POLL: Duration = Duration::from_secs(1);
const ORDERS_MAX: usize = 4;

/// What `phalanx agent run` was told.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where the agent keeps its state: [`ROOT`] on a host.
    pub root: PathBuf,
    /// For tests of crashes: the process kills itself at the place with this number, counted from its start. Each step has two: before
    /// it is begun, and after it was done but before that is noted. From 1,000 on: places in changes of the directory and in what is derived from it; from
    /// 2,000 on: places in renewals of accounts that are awake.
    pub stop_before: Option<u64>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { root: PathBuf::from(ROOT), stop_before: None }
    }
}

/// Runs the agent until it is ended. A machine that has not joined waits until it has.
///
/// # Errors
/// The agent's own files can't be read or written.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    let paths = Paths::new(&options.root);
    for directory in ["agent", "directory", "accounts", "generations"] {
        let directory = paths.root.join(directory);
        std::fs::create_dir_all(&directory).with_context(|| format!("{} can't be made", directory.display()))?;
    }
    std::fs::set_permissions(paths.root.join("agent"), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    notify::send("READY=1");
    let identity = member(&paths).await?;
    notify::send(&format!("STATUS=Server {}", identity.server));
    serve(identity, paths, options.stop_before).await
}

async fn member(paths: &Paths) -> anyhow::Result<Identity> {
    let mut is_told = false;
    loop {
        if let Some(identity) = Identity::load(paths)? {
            return Ok(identity);
        }
        if !is_told {
            notify::send("STATUS=Waiting for `phalanx agent join`");
            tracing::info!("this machine has not joined a fleet yet; waiting for `phalanx agent join`");
            is_told = true;
        }
        tokio::time::sleep(JOIN_POLL).await;
    }
}

async fn serve(identity: Identity, paths: Paths, stop_before: Option<u64>) -> anyhow::Result<()> {
    let events = Arc::new(Events::load(paths.agent("events.json"))?);
    let adopted: Adopted = keep::load(&paths.agent("spec.json"))?.unwrap_or_default();
    let spec = adopted.spec.and_then(|spec| spec.nodes.get(&identity.server).cloned());
    let renewals = renew::Renewals::new(crash::CrashPoints::new(stop_before));
    renewals.resume();
    let directory = directory::start(&paths, events.clone(), spec, renewals.clone())?;
    let (orders, order_queue) = mpsc::channel(ORDERS_MAX);
    let (upwards, upward_queue) = mpsc::channel(node::QUEUE_LEN);
    let node = Arc::new(Node::new(identity, paths, directory, events, orders, upwards)?);
    let (standing, standing_seen) = watch::channel(reconcile::Standing::default());
    let reconciler = reconcile::Reconciler::new(node.clone(), renewals, standing)?;
    let score_percent = Arc::new(AtomicU8::new(100));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reconciler.run(order_queue));
    tasks.spawn(link::up::run(node.clone(), upward_queue));
    tasks.spawn(link::down::run(node.clone()));
    tasks.spawn(load::run(node.clone(), standing_seen, score_percent.clone()));
    tasks.spawn(load::serve_score(node.clone(), score_percent));
    tasks.spawn(queue::count(node.clone()));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = tasks.join_next() => {
            node.events.add(Severity::Error, "agent", "a part of the agent ended by itself", format!("{ended:?}"));
            anyhow::bail!("a part of the agent ended: {ended:?}");
        }
    }
    tracing::info!("the agent ends; what it set up serves on");
    Ok(())
}
