//! The guard: is the share there, is it the right one, does it answer? A small daemon of its own (`phalanx guard`, as root), so that
//! what it says depends on neither agent nor proxy.
//!
//! Each second, for each share of `guard.json`, it looks at the mount table and starts a probe, which touches the share and may hang
//! for as long as a dead file server likes: so it is a child process, never more than one for a share, and what the guard itself
//! does never waits for it. Every verdict is a file ([`Verdict`]), replaced by rename; who reads it refuses one that is older than
//! five seconds, so that a dead guard means no service.
//!
//! On a mail node it also keeps the look-up files open, since their readers need somebody who may write to do so.
//!
//! Deliberately absent: mounting, unmounting, and any consequence. The proxy's health page and the launcher read the verdicts.

mod lookups;
mod probe;

use lookups::KeptLookups;
pub use probe::{Probe, run as probe};

use anyhow::Context;
use phalanx_host::{facts, mount};
use phalanx_plan::guard_config::{GuardConfig, GuardedShare, VERDICTS, Verdict};
use phalanx_plan::steps::shares::SEAL;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// Where the guard finds its configuration.
pub const CONFIG: &str = "/var/lib/phalanx/live/guard.json";

const PERIOD: Duration = Duration::from_secs(1);
/// Whom probes run as, the user of that name on Debian. A NAS squashes root to it, and what root then makes it may not even open.
const NOBODY: u32 = 65_534;
/// A share that does not answer for so long hangs.
const PROBE_MS_MAX: u64 = 2_000;

/// Runs until it is told to end. SIGHUP makes it read its configuration again; one that can't be read leaves the former in force.
///
/// # Errors
/// The configuration can't be read at the start, or the verdicts' directory can't be made.
pub async fn run(config: &Path) -> anyhow::Result<()> {
    let first = load(config)?;
    let mut lookups = first.keeps_mail_lookups.then(KeptLookups::default);
    let mut watched = watch(&first, BTreeMap::new());
    std::fs::create_dir_all(VERDICTS).with_context(|| format!("making {VERDICTS}"))?;
    let (mut hang_up, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whoever starts after the guard finds them readable.
    if let Some(lookups) = &mut lookups {
        lookups.round();
    }
    crate::notify::send("READY=1");
    loop {
        tokio::select! {
            _ = tick.tick() => {
                for share in watched.values_mut() {
                    share.round();
                }
                if let Some(lookups) = &mut lookups {
                    lookups.round();
                }
            },
            _ = hang_up.recv() => match load(config) {
                Ok(config) => {
                    watched = watch(&config, watched);
                    lookups = config.keeps_mail_lookups.then(|| lookups.take().unwrap_or_default());
                }
                Err(error) => tracing::error!("{error:#}; the former configuration stays in force"),
            },
            _ = terminate.recv() => return Ok(()),
        }
    }
}

fn load(path: &Path) -> anyhow::Result<GuardConfig> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a guard's configuration", path.display()))
}

/// The shares of a configuration; those that were watched before keep their probe. A share that is no longer watched has no verdict.
fn watch(config: &GuardConfig, mut former: BTreeMap<String, Watched>) -> BTreeMap<String, Watched> {
    let share = |share: &GuardedShare| {
        let name = share.share.to_string();
        let watched = match former.remove(&name) {
            Some(watched) if watched.share == *share => watched,
            _ => Watched::new(share.clone()),
        };
        (name, watched)
    };
    let watched = config.shares.iter().map(share).collect();
    for gone in former.into_values() {
        if let Err(error) = std::fs::remove_file(&gone.file) {
            tracing::debug!(%error, "no verdict of a former share to remove");
        }
    }
    watched
}

/// One share, and the probe that may be under way.
struct Watched {
    share: GuardedShare,
    file: PathBuf,
    probe: Option<(Child, u64)>,
    probes_started: u64,
    last: Verdict,
}

impl Watched {
    fn new(share: GuardedShare) -> Self {
        let file = Path::new(VERDICTS).join(format!("{}.json", share.share));
        let why = "the share has not been probed yet".to_owned();
        let last = Verdict { ok: false, why, at_boottime_ms: facts::boottime_ms(), device: String::new() };
        Self { share, file, probe: None, probes_started: 0, last }
    }

    /// One second's work: what the mount table says, what the last probe said, the next probe.
    fn round(&mut self) {
        let now_ms = facts::boottime_ms();
        let mounted = device_of(&self.share.mount_point);
        if let Some(why) = self.collect(now_ms) {
            self.judge(why, now_ms);
        }
        match mounted {
            Err(why) => self.judge(Some(why), now_ms),
            Ok(device) => {
                self.last.device = device;
                if self.probe.is_none() {
                    self.start(now_ms);
                }
            }
        }
        if let Err(error) = self.publish() {
            tracing::error!("writing {}: {error}", self.file.display());
        }
    }

    /// What is known of the probe under way: nothing yet (`None`), all is well (`Some(None)`), or what is wrong.
    fn collect(&mut self, now_ms: u64) -> Option<Option<String>> {
        let (child, started_ms) = self.probe.as_mut()?;
        let age_ms = now_ms.saturating_sub(*started_ms);
        match child.try_wait() {
            Ok(None) if age_ms <= PROBE_MS_MAX => None,
            Ok(None) => {
                // A process that waits for a dead file server may not even die; it stays the one probe until it does.
                if let Err(error) = child.start_kill() {
                    tracing::debug!(%error, "the probe can't be killed");
                }
                Some(Some(format!("the share has not answered for {} s", age_ms / 1_000)))
            }
            Ok(Some(status)) => {
                self.probe = None;
                Some(probe::meaning(status))
            }
            Err(error) => {
                self.probe = None;
                Some(Some(format!("the probe can't be waited for: {error}")))
            }
        }
    }

    fn start(&mut self, now_ms: u64) {
        self.probes_started += 1;
        let GuardedShare { share: _, marker, mount_point } = &self.share;
        let mut command = Command::new("/proc/self/exe");
        command.args(["guard", "--probe", mount_point, "--marker", marker.as_str()]);
        command.args(["--number", &self.probes_started.to_string()]);
        command.uid(NOBODY).gid(NOBODY);
        match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => self.probe = Some((child, now_ms)),
            Err(error) => self.judge(Some(format!("the probe can't be started: {error}")), now_ms),
        }
    }

    fn judge(&mut self, why: Option<String>, now_ms: u64) {
        let ok = why.is_none();
        let why = why.unwrap_or_default();
        if ok != self.last.ok {
            let GuardedShare { share, mount_point, .. } = &self.share;
            if ok {
                tracing::info!("share {share} is well at {mount_point}");
            } else {
                tracing::error!("share {share} at {mount_point} must not be served from: {why}");
            }
        }
        let device = std::mem::take(&mut self.last.device);
        self.last = Verdict { ok, why, at_boottime_ms: now_ms, device };
    }

    fn publish(&self) -> std::io::Result<()> {
        let beside = self.file.with_extension("new");
        let mut text = serde_json::to_vec(&self.last)?;
        text.push(b'\n');
        std::fs::write(&beside, text)?;
        std::fs::rename(&beside, &self.file)
    }
}

/// The device mounted at `mount_point`, uppermost; or why there is none. Only the mount table is read.
fn device_of(mount_point: &str) -> Result<String, String> {
    let mounts = mount::observe().map_err(|error| format!("the mount table can't be read: {error}"))?;
    match mounts.into_iter().rfind(|seen| seen.mount_point == mount_point) {
        None => Err(format!("nothing is mounted at {mount_point}")),
        Some(seen) if seen.source == SEAL => Err(format!("the share is not mounted at {mount_point}")),
        Some(seen) if seen.read_only => Err(format!("{mount_point} is mounted read-only")),
        Some(seen) => Ok(seen.device),
    }
}

#[cfg(test)]
mod tests;
