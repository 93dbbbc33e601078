//! What was seen on a host.
//!
//! Everything here can be asked from the kernel, systemd or the local disk without touching a share, whose server may hang.

use super::network::{RouteRule, SeenAddress};
use super::units::Unit;
use crate::render::Files;
use crate::rights::Held;
use phalanx_model::Name;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The state of a host as far as [`super::plan`] cares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The kernel's boot id.
    pub boot_id: String,
    /// All mounts, in the order of `/proc/self/mountinfo`: a later one covers an earlier one at the same place.
    pub mounts: Vec<SeenMount>,
    /// The shares that this machine keeps, by name.
    pub kept_shares: BTreeMap<Name, SeenShare>,
    /// The IPv4 addresses of all interfaces.
    pub addresses: Vec<SeenAddress>,
    /// Routing rules with our priorities.
    pub rules: BTreeSet<RouteRule>,
    /// The default routes of our tables.
    pub tables: BTreeMap<u32, Ipv4Addr>,
    /// The kernel settings that are desired, as they are.
    pub sysctls: BTreeMap<String, String>,
    /// Symbolic links at places where we make them, with their targets; where something else or nothing is, none.
    pub links: BTreeMap<String, String>,
    /// The number of the live generation.
    pub live: Option<u64>,
    /// All generations that are complete.
    pub generations: BTreeMap<u64, SeenGeneration>,
    /// The live generation's files as they are now.
    pub live_files: Files,
    /// Our units.
    pub units: BTreeMap<Unit, SeenUnit>,
    /// Those of [`Unit::rival`] that run, of units that end by themselves.
    pub rivals: BTreeSet<String>,
    /// How many accounts' httpds run.
    pub accounts_awake: u32,
    /// The accounts' nftables table as `nft` lists it, without counters and without what sets hold; none where there is no table.
    pub table: Option<String>,
    /// Processes that have mailboxes open or may open them.
    pub mailbox_openers: u32,
    /// Servers whose queue's mount is some process's working directory here: what runs Postfix on it.
    pub queue_users: BTreeSet<Name>,
    /// What the shares that this machine keeps tell of rights, by share.
    pub rights: BTreeMap<Name, Vec<Held>>,
    /// Whether the kernel has a balancer's table.
    pub translates: bool,
}

/// One mount (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenMount {
    /// The device number, `major:minor`.
    pub device: String,
    /// What part of the file system is mounted.
    pub root: String,
    /// Where.
    pub mount_point: String,
    /// The type, such as `ext4`, `nfs4`, `tmpfs`.
    pub fs_type: String,
    /// The source, such as `/dev/vda1` or `10.9.0.31:/srv/nas/web`.
    pub source: String,
    /// Whether this mount is read-only.
    pub read_only: bool,
}

/// A share as the machine that keeps it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenShare {
    /// There is no marker file.
    Unmarked,
    /// There is one, and it holds this.
    Marked(String),
    /// It can't be told: the reason.
    Unknown(String),
}

/// A complete generation on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenGeneration {
    /// The SHA-256 of each file when it was written, in hexadecimal digits.
    pub files: BTreeMap<String, String>,
    /// Whether the files still are what they were.
    pub intact: bool,
}

/// A unit as systemd sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenUnit {
    /// It runs.
    pub active: bool,
    /// It starts at boot.
    pub enabled: bool,
    /// It has ended by itself a moment ago: systemd has started it anew, which says little of whether it works.
    pub unsteady: bool,
}
