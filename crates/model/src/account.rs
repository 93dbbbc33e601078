//! Accounts: a customer's space on a logical server.

use crate::{Invalid, Name};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A customer's space: one uid, one owner, limits, any number of sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// The account's name; its home is `home/NAME` on the share.
    pub name: Name,
    /// The uid and gid of all it owns and runs, the same on every node.
    pub uid: Uid,
    /// The logical server it is placed on.
    pub logical_server: Name,
    /// Who may manage it.
    pub owner: Name,
    /// What it may use on each node.
    #[serde(default)]
    pub limits: Limits,
    /// Which PHP runs its scripts.
    #[serde(default)]
    pub php: crate::PhpVersion,
    /// Whether its sites are served.
    #[serde(default)]
    pub state: AccountState,
}

/// Whether an account is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountState {
    /// Served.
    #[default]
    Active,
    /// Kept, but answered with 503 by the nodes.
    Suspended,
}

/// What an account may use on each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "LimitsInput")]
pub struct Limits {
    /// CPU time, in percent of one core: 5 to 6,400.
    pub cpu_percent: u32,
    /// Memory in MiB: 64 to 1,048,576. What goes beyond it is ended by the kernel.
    pub memory_mib: u32,
    /// Processes and threads: 32 to 32,768.
    pub processes: u32,
    /// Its part of disk I/O relative to other accounts, 1 to 1,000.
    pub io_weight: u32,
}

/// [`Limits`] as they arrive, each with its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsInput {
    cpu_percent: u32,
    memory_mib: u32,
    processes: u32,
    io_weight: u32,
}

impl Default for LimitsInput {
    fn default() -> Self {
        let Limits { cpu_percent, memory_mib, processes, io_weight } = Limits::default();
        Self { cpu_percent, memory_mib, processes, io_weight }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { cpu_percent: 100, memory_mib: 512, processes: 128, io_weight: 100 }
    }
}

impl TryFrom<LimitsInput> for Limits {
    type Error = Invalid;

    fn try_from(input: LimitsInput) -> Result<Self, Invalid> {
        let LimitsInput { cpu_percent, memory_mib, processes, io_weight } = input;
        for (what, value, range) in [
            ("CPU limit", cpu_percent, 5..=6_400),
            ("memory limit", memory_mib, 64..=1_048_576),
            ("limit of processes", processes, 32..=32_768),
            ("I/O weight", io_weight, 1..=1_000),
        ] {
            if !range.contains(&value) {
                let why = format!("it must be {} to {}", range.start(), range.end());
                return Err(Invalid::new(what, &value.to_string(), why));
            }
        }
        Ok(Self { cpu_percent, memory_mib, processes, io_weight })
    }
}

/// An account's uid: [`Uid::FIRST`] to [`Uid::LAST`], a range that systemd's UIDS-GIDS document lists as free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Uid(u32);

impl Uid {
    const BASE: u32 = 1_900_000_000;
    /// The first uid that accounts get.
    pub const FIRST: Uid = Uid(Self::BASE + 1);
    /// The last one: as many as there are loopback addresses for them, less the network's first and last.
    pub const LAST: Uid = Uid(Self::BASE + LOOPBACK_COUNT - 2);
    /// No account's: who owns the mailboxes that a cluster's health is tried with.
    pub const PROBE: Uid = Uid(Self::BASE + LOOPBACK_COUNT - 1);

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The account's own loopback address, on which its httpd listens.
    pub fn loopback(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(LOOPBACK_NETWORK.to_bits() + (self.0 - Self::BASE))
    }
}

/// The loopback range that accounts' addresses come from.
pub const LOOPBACK_NETWORK: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);
/// The prefix length of [`LOOPBACK_NETWORK`].
pub const LOOPBACK_PREFIX_LEN: u8 = 10;
const LOOPBACK_COUNT: u32 = 1 << (32 - LOOPBACK_PREFIX_LEN);
/// The port that an account's httpd listens on at its loopback address. Below 1,024, where the kernel lets bind only who has
/// CAP_NET_BIND_SERVICE, which httpd gets and what customers run does not: nobody can take it away while its account sleeps.
pub const ACCOUNT_PORT: u16 = 808;

impl TryFrom<u32> for Uid {
    type Error = Invalid;
    fn try_from(number: u32) -> Result<Self, Invalid> {
        if (Self::FIRST.0..=Self::LAST.0).contains(&number) {
            Ok(Self(number))
        } else {
            let why = format!("accounts have {} to {}", Self::FIRST.0, Self::LAST.0);
            Err(Invalid::new("uid", &number.to_string(), why))
        }
    }
}

impl From<Uid> for u32 {
    fn from(uid: Uid) -> u32 {
        uid.0
    }
}

impl std::fmt::Display for Uid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_uid_has_a_loopback_address_of_its_own() {
        assert_eq!(Uid::FIRST.loopback(), Ipv4Addr::new(127, 64, 0, 1));
        assert_eq!(Uid::LAST.loopback(), Ipv4Addr::new(127, 127, 255, 254));
        assert!(Uid::try_from(0).is_err() && Uid::try_from(1000).is_err());
    }
}
