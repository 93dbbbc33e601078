//! `guard.json`: what `phalanx guard` looks after. The agent's renderer writes it, the guard reads it.

use crate::spec::MountSpec;
use phalanx_model::Name;
use phalanx_model::share::Marker;
use serde::{Deserialize, Serialize};

/// The directory at a share's root that guards write their probe files into. It is made with the share, open to all (mode 1777), since
/// root of a node is nobody on an NFS server that squashes it; accounts do not see a share's root.
pub const PROBE_DIRECTORY: &str = ".phalanx-guard";

/// Where verdicts are written, one file for each share.
pub const VERDICTS: &str = "/run/phalanx/guard";

/// The guard's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardConfig {
    /// The shares to probe.
    #[serde(default)]
    pub shares: Vec<GuardedShare>,
    /// Whether this is a mail node, whose look-up files the guard keeps open for their readers, also while there is no agent.
    #[serde(default)]
    pub keeps_mail_lookups: bool,
}

/// One share that shall be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardedShare {
    /// Its name, which is also the verdict's file name.
    pub share: Name,
    /// What its marker file must hold.
    pub marker: Marker,
    /// Where it shall be mounted.
    pub mount_point: String,
}

impl GuardConfig {
    /// What the guard of a node that mounts this looks after.
    pub fn new(mount: Option<&MountSpec>) -> Self {
        let shares = mount.into_iter().map(|mount| GuardedShare {
            share: mount.share.clone(),
            marker: mount.marker.clone(),
            mount_point: mount.mount_point(),
        });
        Self { shares: shares.collect(), keeps_mail_lookups: false }
    }
}

/// What the guard found, written to `/run/phalanx/guard/SHARE.json` each second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the share may be served from.
    pub ok: bool,
    /// What is wrong, in one line for a person; empty when nothing is.
    pub why: String,
    /// When it was found, in milliseconds of CLOCK_BOOTTIME.
    pub at_boottime_ms: u64,
    /// The device that the share is on, as in `/proc/self/mountinfo`. It changes when something else is mounted there.
    #[serde(default)]
    pub device: String,
}

impl Verdict {
    /// A verdict older than this is no longer one.
    pub const AGE_MS_MAX: u64 = 5_000;

    /// Why the share must not be served from now, if so.
    pub fn refusal(&self, now_boottime_ms: u64) -> Option<String> {
        let age_ms = now_boottime_ms.saturating_sub(self.at_boottime_ms);
        if !self.ok {
            Some(self.why.clone())
        } else if age_ms > Self::AGE_MS_MAX {
            Some(format!("the guard's last verdict is {} s old", age_ms / 1_000))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_verdict_is_none() {
        let verdict = Verdict { ok: true, why: String::new(), at_boottime_ms: 10_000, device: "0:44".into() };
        assert_eq!(verdict.refusal(15_000), None);
        assert_eq!(verdict.refusal(9_000), None);
        assert_eq!(verdict.refusal(16_500).as_deref(), Some("the guard's last verdict is 6 s old"));
        let bad = Verdict { ok: false, why: "not mounted".into(), ..verdict };
        assert_eq!(bad.refusal(10_000).as_deref(), Some("not mounted"));
    }
}
