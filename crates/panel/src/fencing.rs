//! Fences: making sure that a server can do no more harm, and having seen it, before what it alone had goes to others.
//!
//! A server's driver says how. `manual`: a person has switched it off, and says so in words that nobody types by mistake. `command`: a
//! program of the administrator's, in [`PROGRAMS`] beside the panel, switches it off and then has to see that it is off; what it does
//! (a power switch, a hypervisor) is its own. That the program beside the panel is asked, and no agent, is because the panel is what is
//! left when a cluster's master and its NAS are not.
//!
//! First the share is made to tell that nobody may use what the server has; then it is switched off and seen off. The other way round, its machine
//! could be started again in between, and begin what it believes to be its own. A fence that fails is taken back.
//!
//! A fence holds for one boot of the machine. When another boot is heard of, the server takes part again ([`run`]).
//!
//! Deliberately absent: deciding to fence. A person does.

mod program;

use crate::Panel;
use crate::live::Seen;
use crate::store::{Actor, Store, StoreError, World};
use phalanx_model::server::{BootId, FenceDriver, Fenced, confirmation};
use phalanx_model::{FleetChange, Name, Server};
use phalanx_plan::report::Severity;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where the administrator's programs that fence lie.
pub const PROGRAMS: &str = "/etc/phalanx/fence";
/// How long who keeps the share may take to tell.
const TELL_LIMIT: Duration = Duration::from_secs(20);
/// The wait after the store failed.
const RETRY: Duration = Duration::from_secs(2);

/// Which servers are being fenced now, and with what.
#[derive(Debug)]
pub struct Fencing {
    programs: PathBuf,
    busy: Mutex<BTreeSet<Name>>,
}

impl Default for Fencing {
    fn default() -> Self {
        Self::with_programs(Path::new(PROGRAMS))
    }
}

impl Fencing {
    /// With the programs of this directory.
    pub fn with_programs(programs: &Path) -> Self {
        Self { programs: programs.to_owned(), busy: Mutex::default() }
    }
}

/// What a person says with the wish to fence a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// That its machine is off, spelled out ([`confirmation`]).
    pub confirmation: Option<String>,
    /// Also if it reports, and so can let go by itself.
    pub anyway: bool,
}

/// Why a server was not fenced.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// There is no such server.
    #[error("there is no server {0}")]
    Unknown(Name),
    /// It reports: what it has can move without a fence.
    #[error("server {server} reported {age_s} s ago: it lives, and can let go of what it has by itself")]
    Lives {
        /// The server.
        server: Name,
        /// The age of its last report, in seconds.
        age_s: u64,
    },
    /// A person has to say that it is off.
    #[error("server {0} is fenced by a person's word, and nobody has said that it is off")]
    NotConfirmed(Name),
    /// Somebody else is at it.
    #[error("server {0} is being fenced at this moment")]
    Busy(Name),
    /// The share may still say that it has what it had.
    #[error("{0}, who keeps the share, has not told there that {1} is being fenced")]
    Untold(Name, Name),
    /// The program did not see it off.
    #[error("{0}")]
    Program(#[from] program::ProgramError),
    /// The store failed.
    #[error("the fence could not be noted")]
    Store(#[from] StoreError),
}

/// Fences a server, notes it, and returns the world in which it is fenced. One that is fenced stays so.
///
/// # Errors
/// See [`FenceError`]; the server is not fenced then, though its machine may be off.
pub async fn fence(panel: &Panel, actor: &Actor, name: &Name, asked: &Asked) -> Result<(), FenceError> {
    let world = panel.store.world();
    let server = world.fleet.servers.get(name).ok_or_else(|| FenceError::Unknown(name.clone()))?;
    if server.is_fenced() {
        return Ok(());
    }
    let seen = panel.live.seen(name);
    if let Some(seen) = seen.as_ref().filter(|seen| seen.is_fresh() && !asked.anyway) {
        return Err(FenceError::Lives { server: name.clone(), age_s: seen.at.elapsed().as_secs() });
    }
    // What can be known beforehand is not begun.
    if server.fence == FenceDriver::Manual && asked.confirmation.as_ref() != Some(&confirmation(name)) {
        return Err(FenceError::NotConfirmed(name.clone()));
    }
    if let FenceDriver::Command(program) = &server.fence {
        program::is_fit(&panel.fencing.programs.join(program.as_str()))?;
    }
    let _turn = Turn::take(panel, name)?;
    // Before it is switched off: what comes later is another boot.
    let boot = seen.and_then(|seen| seen.report.boot_id.parse::<BootId>().ok());
    let mut write = panel.store.write(actor).await?;
    write.apply(FleetChange::BeginFence { server: name.clone(), boot: boot.clone() })?;
    write.commit().await?;
    match see_off(panel, server).await {
        Ok(how) => note(panel, actor, name, &how, boot.as_ref()).await.map_err(FenceError::from),
        Err(error) => {
            unfence(&panel.store, actor, name, "its fence failed, and was taken back").await?;
            Err(error)
        }
    }
}

/// Has the share tell, then has the machine switched off and seen off; says how.
async fn see_off(panel: &Panel, server: &Server) -> Result<String, FenceError> {
    told(panel, server).await?;
    match &server.fence {
        FenceDriver::Manual => Ok("a person has said that it is switched off".to_owned()),
        FenceDriver::Command(name) => {
            let program = panel.fencing.programs.join(name.as_str());
            program::switch_off(&program, &server.name, server.address.ip, program::OFF_LIMIT).await?;
            Ok(format!("the program {name} has switched it off and seen that it is off"))
        }
    }
}

/// Waits until the share tells that nobody may use what the server has.
async fn told(panel: &Panel, server: &Server) -> Result<(), FenceError> {
    let mut reports = panel.live.watch_reports();
    let waits = async {
        loop {
            let world = panel.store.world();
            let Some((keeper, cluster)) = keeper(&world, &server.name) else { return };
            let wanted = world.streams.get(cluster).map(|stream| world.position(stream.spec_revision));
            let seen = panel.live.seen(keeper).filter(Seen::is_fresh);
            if seen.is_some_and(|seen| seen.report.converged && Some(seen.report.spec) >= wanted) {
                return;
            }
            if reports.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let told = tokio::time::timeout(TELL_LIMIT, waits).await;
    told.map_err(|_| {
        let world = panel.store.world();
        let keeper = keeper(&world, &server.name).map_or(&server.name, |(keeper, _)| keeper);
        FenceError::Untold(keeper.clone(), server.name.clone())
    })
}

/// Who tells what a server has, with its cluster: the master of the nas that keeps the share, or the master of the server's own cluster. None
/// where it has nothing.
fn keeper<'w>(world: &'w World, server: &Name) -> Option<(&'w Name, &'w Name)> {
    let fleet = &world.fleet;
    let mut clusters = fleet.clusters.values();
    let cluster = clusters.find(|cluster| cluster.grants.values().any(|grant| grant.holder == *server))?;
    let nas = fleet.shares.get(cluster.share.as_ref()?)?.nas.as_ref().and_then(|nas| fleet.clusters.get(nas));
    let keeper = nas.unwrap_or(cluster);
    Some((&keeper.master, &keeper.name))
}

/// Notes that the server is fenced.
async fn note(panel: &Panel, actor: &Actor, name: &Name, how: &str, boot: Option<&BootId>) -> Result<(), StoreError> {
    let mut write = panel.store.write(actor).await?;
    write.apply(FleetChange::Fence { server: name.clone() })?;
    let back = match boot {
        Some(_) => "it takes part again when its machine was started anew",
        None => "its boot was never heard of, so that a person must let it take part again: phalanx server unfence",
    };
    write.note(name, Severity::Warning, "fence", format!("{name} is fenced: {how}; {back}")).await?;
    write.commit().await?;
    Ok(())
}

/// Only one at a time fences a server.
struct Turn<'p> {
    fencing: &'p Fencing,
    server: Name,
}

impl<'p> Turn<'p> {
    fn take(panel: &'p Panel, server: &Name) -> Result<Self, FenceError> {
        let fencing = &panel.fencing;
        match fencing.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(server.clone()) {
            true => Ok(Self { fencing, server: server.clone() }),
            false => Err(FenceError::Busy(server.clone())),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.fencing.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.server);
    }
}

/// Lets a server take part again that was fenced or was being fenced.
///
/// # Errors
/// There is no such server, or the store failed.
pub async fn unfence(store: &Store, actor: &Actor, server: &Name, why: &str) -> Result<(), StoreError> {
    let mut write = store.write(actor).await?;
    write.apply(FleetChange::Unfence { server: server.clone() })?;
    write.note(server, Severity::Info, "fence", format!("{server} takes part again: {why}")).await?;
    write.commit().await?;
    Ok(())
}

/// Lets servers take part again that were started anew, and takes back fences that a panel had begun which was stopped, until the panel stops.
pub async fn run(panel: Panel) {
    let (mut world, mut reports) = (panel.store.watch(), panel.live.watch_reports());
    let mut stopping = panel.stopping.clone();
    loop {
        let now = world.borrow_and_update().clone();
        reports.mark_unchanged();
        let waits = now.fleet.servers.values().any(|server| server.fenced.is_some());
        let back = back(&now, |server| panel.live.seen(server)).into_iter();
        let left = left_half_done(&now, &panel.fencing).into_iter();
        let ends = back.map(|server| (server, "its machine was started anew"));
        for (server, why) in ends.chain(left.map(|server| (server, "its fence was broken off, and was taken back"))) {
            let done = unfence(&panel.store, &Actor::panel(), &server, why).await;
            if let Err(error) = done {
                tracing::error!(%server, "ending a fence failed: {error}; it is tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
        tokio::select! {
            changed = world.changed() => if changed.is_err() { return },
            changed = reports.changed(), if waits => if changed.is_err() { return },
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}

/// The fenced servers that report from another boot than the one they were fenced in.
fn back(world: &World, seen: impl Fn(&Name) -> Option<Seen>) -> Vec<Name> {
    let is_back = |server: &&Server| {
        let Some(Fenced { boot: Some(boot), is_seen: true }) = &server.fenced else { return false };
        let seen = seen(&server.name).filter(Seen::is_fresh);
        seen.and_then(|seen| seen.report.boot_id.parse::<BootId>().ok()).is_some_and(|now| now != *boot)
    };
    world.fleet.servers.values().filter(is_back).map(|server| server.name.clone()).collect()
}

/// The servers whose fence was begun, and is nobody's any more.
fn left_half_done(world: &World, fencing: &Fencing) -> Vec<Name> {
    let busy = fencing.busy.lock().unwrap_or_else(PoisonError::into_inner);
    let is_left = |server: &&Server| server.fenced.is_some() && !server.is_fenced() && !busy.contains(&server.name);
    world.fleet.servers.values().filter(is_left).map(|server| server.name.clone()).collect()
}
