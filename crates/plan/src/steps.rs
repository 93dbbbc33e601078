//! (desired, observed) → ordered steps.
//!
//! [`plan`] compares what a node should be with what was seen on it and answers with the steps that lead from one to the other, in
//! the order of [`Phase`], which is data: mounts → addresses → stage → validate → switch → reload → verify → remove. What is as it
//! should be gives no step, so planning on the state that a plan leads to gives an empty plan. Nothing is remembered from one plan
//! to the next but [`Marks`], small facts that the host can't be asked for (which files a daemon has read, which generation a
//! checker refused); they are written after each step, so a crash between any two steps converges.
//!
//! A [`Plan`] also says why nothing happens: what it waits for, and what somebody changed behind our back ([`Drift`]).
//!
//! Deliberately absent: doing anything, and knowing how a step is done.

pub mod desired;
pub mod diff;
pub mod generations;
pub mod marks;
pub mod network;
pub mod observed;
pub mod shares;
#[cfg(test)]
mod tests;
pub mod units;

pub use desired::Desired;
pub use marks::Marks;
pub use observed::Observed;

use crate::render::Files;
use crate::rights::KeptRight;
use crate::spec::{KeptShare, MountSpec};
use network::{Route, RouteRule};
use phalanx_model::Name;
use phalanx_model::server::InternalNet;
use phalanx_model::share::SharePath;
use serde::{Deserialize, Serialize};
use std::net::SocketAddrV4;
use units::Unit;

/// When a step's turn is. Steps of a plan stand in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Shares are made and mounted.
    Mounts,
    /// Addresses, routes and kernel settings.
    Addresses,
    /// Files are written where no daemon reads them.
    Stage,
    /// The daemons' own checkers read them.
    Validate,
    /// They become the live ones.
    Switch,
    /// Daemons read them.
    Reload,
    /// A real request shows that it works.
    Verify,
    /// What is no longer wanted goes.
    Remove,
}

/// One thing to do on the host. It holds all it needs: whoever does it chooses nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Make a share that this machine keeps: its directory, the homes' directory and the marker file.
    KeepShare(KeptShare),
    /// Have a share tell its nodes who has which right, with the directories that these are about.
    TellRights {
        /// Where the share lies.
        path: SharePath,
        /// What it shall tell.
        rights: Vec<KeptRight>,
    },
    /// Mount a queue's directory onto itself where the share is kept: the kernel's NFS server takes a directory within an export for an
    /// export of its own only where a mount begins.
    BindQueue {
        /// The directory.
        directory: String,
    },
    /// Take away the upper mount of a mount point, because another belongs there.
    Unmount {
        /// The mount point.
        mount_point: String,
    },
    /// Mount an empty, read-only file system on the mount point, so that nothing can be written beneath the share.
    SealMountPoint {
        /// The mount point.
        mount_point: String,
    },
    /// Mount a share.
    Mount(MountSpec),
    /// Set a kernel setting.
    SetSysctl {
        /// Its name with dots, such as `net.ipv4.ip_forward`.
        key: String,
        /// Its value.
        value: String,
    },
    /// Give an interface one more address.
    AddAddress {
        /// The address.
        address: InternalNet,
        /// The interface.
        device: String,
    },
    /// Set the default route of one of our tables.
    SetRoute(Route),
    /// Add a rule that chooses a routing table.
    AddRule(RouteRule),
    /// Write a generation's files, complete, under its number.
    Stage {
        /// The number.
        generation: u64,
        /// The files.
        files: Files,
    },
    /// Have the daemons' own checkers read a generation.
    Validate {
        /// The number.
        generation: u64,
    },
    /// Make a generation the live one, atomically.
    Switch {
        /// The number.
        generation: u64,
    },
    /// Make a symbolic link from a place where a daemon looks to a live file.
    Link {
        /// Where.
        at: String,
        /// Its target.
        to: String,
    },
    /// Load the accounts' nftables table from the live file.
    LoadTable {
        /// What tells the file's content from others.
        digest: String,
    },
    /// Make the kernel's NFS server take over the exports.
    Export {
        /// What tells the file's content from others.
        digest: String,
    },
    /// Start a unit and have it started at boot.
    Start {
        /// The unit.
        unit: Unit,
        /// What tells the files that it reads from others.
        digest: String,
    },
    /// Have a running unit read its files again.
    Reload {
        /// The unit.
        unit: Unit,
        /// What tells the files from others.
        digest: String,
    },
    /// Have the httpds of all accounts that are awake read the common part again.
    ReloadAccounts {
        /// What tells the file from others.
        digest: String,
    },
    /// See that the live generation works.
    Verify {
        /// The number.
        generation: u64,
        /// How.
        by: Proof,
        /// The last good generation, which takes its place again if it does not work. Without one there is nothing to go back to, and
        /// the proof is asked for again.
        back_to: Option<u64>,
    },
    /// Stop a unit and have it no longer started at boot.
    Stop {
        /// The unit.
        unit: Unit,
    },
    /// End all accounts' daemons.
    EndAccounts,
    /// Remove a link of ours.
    Unlink {
        /// Where.
        at: String,
    },
    /// Withdraw our exports.
    Unexport,
    /// Remove the accounts' nftables table.
    RemoveTable,
    /// Remove the balancer's nftables table.
    RemoveTranslation,
    /// Remove a rule.
    RemoveRule(RouteRule),
    /// Remove the default route of one of our tables.
    RemoveRoute(Route),
    /// Take an address of ours away.
    RemoveAddress {
        /// The address.
        address: InternalNet,
        /// The interface.
        device: String,
    },
    /// Take away all mounts of a mount point of ours.
    RemoveMount {
        /// The mount point.
        mount_point: String,
    },
    /// Remove an old generation.
    RemoveGeneration {
        /// The number.
        generation: u64,
    },
}

/// What shows that a generation works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// phalanx-proxy answers the health page with 200, which it does only if it can read the share.
    Health {
        /// Where it listens.
        at: SocketAddrV4,
        /// The share, whose guard says whether a 503 is the share's fault.
        share: Name,
    },
    /// phalanx-proxy answers the health page at all: there is no share to read from.
    Answer {
        /// Where it listens.
        at: SocketAddrV4,
    },
    /// These units stay active.
    Active {
        /// The units.
        units: Vec<Unit>,
    },
}

impl Step {
    /// When its turn is.
    pub fn phase(&self) -> Phase {
        match self {
            Self::KeepShare(_)
            | Self::TellRights { .. }
            | Self::BindQueue { .. }
            | Self::Unmount { .. }
            | Self::SealMountPoint { .. }
            | Self::Mount(_) => Phase::Mounts,
            Self::SetSysctl { .. } | Self::AddAddress { .. } | Self::SetRoute(_) | Self::AddRule(_) => Phase::Addresses,
            Self::Stage { .. } => Phase::Stage,
            Self::Validate { .. } => Phase::Validate,
            Self::Switch { .. } | Self::Link { .. } => Phase::Switch,
            Self::LoadTable { .. }
            | Self::Export { .. }
            | Self::Start { .. }
            | Self::Reload { .. }
            | Self::ReloadAccounts { .. } => Phase::Reload,
            Self::Verify { .. } => Phase::Verify,
            Self::Stop { .. }
            | Self::EndAccounts
            | Self::Unlink { .. }
            | Self::Unexport
            | Self::RemoveTable
            | Self::RemoveTranslation
            | Self::RemoveRule(_)
            | Self::RemoveRoute(_)
            | Self::RemoveAddress { .. }
            | Self::RemoveMount { .. }
            | Self::RemoveGeneration { .. } => Phase::Remove,
        }
    }

    /// Its turn: the phase, and within the removal from the daemons down to what they stand on. Otherwise steps of a phase stand as
    /// they were planned.
    fn turn(&self) -> (Phase, u8) {
        let rank = match self {
            Self::Stop { .. } => 1,
            Self::EndAccounts => 2,
            Self::Unlink { .. } => 3,
            Self::Unexport => 4,
            Self::RemoveTable | Self::RemoveTranslation => 5,
            Self::RemoveMount { .. } => 6,
            Self::RemoveRule(_) => 7,
            Self::RemoveRoute(_) => 8,
            Self::RemoveAddress { .. } => 9,
            Self::RemoveGeneration { .. } => 10,
            _ => 0,
        };
        (self.phase(), rank)
    }

    /// The step's name, as the journal and events show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::KeepShare(_) => "keep-share",
            Self::TellRights { .. } => "tell-rights",
            Self::BindQueue { .. } => "bind-queue",
            Self::Unmount { .. } => "unmount",
            Self::SealMountPoint { .. } => "seal-mount-point",
            Self::Mount(_) => "mount",
            Self::SetSysctl { .. } => "set-sysctl",
            Self::AddAddress { .. } => "add-address",
            Self::SetRoute(_) => "set-route",
            Self::AddRule(_) => "add-rule",
            Self::Stage { .. } => "stage",
            Self::Validate { .. } => "validate",
            Self::Switch { .. } => "switch",
            Self::Link { .. } => "link",
            Self::LoadTable { .. } => "load-table",
            Self::Export { .. } => "export",
            Self::Start { .. } => "start",
            Self::Reload { .. } => "reload",
            Self::ReloadAccounts { .. } => "reload-accounts",
            Self::Verify { .. } => "verify",
            Self::Stop { .. } => "stop",
            Self::EndAccounts => "end-accounts",
            Self::Unlink { .. } => "unlink",
            Self::Unexport => "unexport",
            Self::RemoveTable => "remove-table",
            Self::RemoveTranslation => "remove-translation",
            Self::RemoveRule(_) => "remove-rule",
            Self::RemoveRoute(_) => "remove-route",
            Self::RemoveAddress { .. } => "remove-address",
            Self::RemoveMount { .. } => "remove-mount",
            Self::RemoveGeneration { .. } => "remove-generation",
        }
    }

    /// Whether steps of later phases make no sense once this one failed: a generation that could not be staged is not switched
    /// to, and nothing is removed before what replaces it works. A mount that fails stops nothing: the guard keeps the node out
    /// of service, and the rest of it shall be ready when the share comes.
    pub fn failure_ends(&self, later: &Step) -> bool {
        let phase = later.phase();
        match self.phase() {
            Phase::Stage | Phase::Validate | Phase::Switch => phase > Phase::Validate || phase > self.phase(),
            Phase::Remove => false,
            _ => phase == Phase::Remove,
        }
    }
}

/// Something that was as it should be and no longer is, though nothing was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// One sentence.
    pub what: String,
    /// Lines that begin with `-` are what should be and is not, with `+` what is and should not be.
    pub diff: String,
}

/// What to do, what it waits for, and what was found changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In the order of [`Phase`].
    pub steps: Vec<Step>,
    /// Why something that is wanted does not happen: what, where, how to mend it.
    pub waiting: Vec<String>,
    /// What somebody changed behind our back.
    pub drift: Vec<Drift>,
}

impl Plan {
    /// Whether the node is as it should be.
    pub fn converged(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_empty()
    }

    fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn drifted(&mut self, what: impl Into<String>, diff: impl Into<String>) {
        self.drift.push(Drift { what: what.into(), diff: diff.into() });
    }
}

/// What leads from `observed` to `desired`.
pub fn plan(desired: &Desired, observed: &Observed, marks: &Marks) -> Plan {
    let mut plan = Plan::default();
    shares::plan_shares(desired, observed, marks, &mut plan);
    network::plan_network(desired, observed, &mut plan);
    let target = generations::plan_generation(desired, observed, marks, &mut plan);
    units::plan_units(desired, observed, marks, target.as_ref(), &mut plan);
    plan.steps.sort_by_key(Step::turn);
    if !marks.is_settled(desired, &observed.boot_id) {
        plan.drift.clear();
    }
    plan
}
