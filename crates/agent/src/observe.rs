//! What is seen on this host, put together from the drivers.
//!
//! Kept shares are looked at aside and one look at a time: a disk that hangs makes their state unknown and nothing else.

use crate::paths::Paths;
use anyhow::Context;
use phalanx_host::{address, command, facts, generation, homes, mount, nft, openers, service};
use phalanx_model::Name;
use phalanx_plan::rights;
use phalanx_plan::spec::KeptShare;
use phalanx_plan::steps::observed::{SeenShare, SeenUnit};
use phalanx_plan::steps::units::Unit;
use phalanx_plan::steps::{Desired, Observed};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Places where links of ours may be.
const LINKS: [&str; 3] =
    ["/etc/exports.d/phalanx.exports", "/etc/nfs.conf.d/phalanx.conf", "/etc/sysctl.d/60-phalanx.conf"];
const SHARE_LIMIT: Duration = Duration::from_secs(3);

/// Looks at hosts.
#[derive(Debug, Default)]
pub struct Observer {
    looking: Arc<Mutex<bool>>,
}

impl Observer {
    /// The state of this host as far as `desired` cares.
    ///
    /// # Errors
    /// A part of it can't be told; nothing is planned then.
    pub async fn observe(&self, desired: &Desired, paths: &Paths) -> anyhow::Result<Observed> {
        let seen = generation::Store::new(&paths.root).observe().context("generations can't be looked at")?;
        let network = address::observe().await.context("addresses can't be looked at")?;
        let (kept_shares, rights) = self.kept_shares(&desired.kept_shares).await;
        let units = service::observe().await.context("units can't be looked at")?;
        Ok(Observed {
            boot_id: facts::boot_id()?,
            mounts: mount::observe()?,
            kept_shares,
            rights,
            addresses: network.addresses,
            rules: network.rules,
            tables: network.tables,
            sysctls: address::sysctls(desired.sysctls.keys()),
            links: links(),
            live: seen.live,
            generations: seen.generations,
            live_files: seen.live_files,
            rivals: rivals(&units).await.context("other packages' units can't be looked at")?,
            units,
            accounts_awake: u32::try_from(service::accounts_awake().await?.len()).unwrap_or(u32::MAX),
            table: nft::observe().await.context("nftables can't be looked at")?,
            mailbox_openers: mailbox_openers(desired)?,
            queue_users: openers::queue_users()?,
            translates: nft::has_balancer_table().await.context("nftables can't be looked at")?,
        })
    }

    /// The shares that are kept here, and what they tell of rights.
    async fn kept_shares(
        &self,
        shares: &[KeptShare],
    ) -> (BTreeMap<Name, SeenShare>, BTreeMap<Name, Vec<rights::Held>>) {
        let unknown = |why: &str| {
            let seen = shares.iter().map(|s| (s.share.clone(), SeenShare::Unknown(why.to_owned()))).collect();
            (seen, BTreeMap::new())
        };
        if shares.is_empty() {
            return unknown("");
        }
        if std::mem::replace(&mut *self.looking.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return unknown("its disk has not answered yet");
        }
        let (looking, wanted) = (self.looking.clone(), shares.to_vec());
        let look = tokio::task::spawn_blocking(move || {
            let look = |share: &KeptShare| match phalanx_host::rights::observe(share) {
                Ok(told) => (homes::observe_share(share), told),
                Err(error) => (SeenShare::Unknown(format!("{error}: {}", error.source)), vec![]),
            };
            let seen = wanted.iter().map(|share| (share.share.clone(), look(share)));
            let (shares, told) = seen.map(|(name, (seen, told))| ((name.clone(), seen), (name, told))).unzip();
            *looking.lock().unwrap_or_else(PoisonError::into_inner) = false;
            (shares, told)
        });
        match tokio::time::timeout(SHARE_LIMIT, look).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) | Err(_) => unknown("its disk does not answer"),
        }
    }
}

/// Who may be in the way of what ends by itself. On a node that is as it should be nobody is asked for.
async fn rivals(units: &BTreeMap<Unit, SeenUnit>) -> Result<BTreeSet<String>, command::CommandError> {
    let unsteady = units.iter().filter(|(_, seen)| seen.unsteady);
    service::active(&unsteady.filter_map(|(unit, _)| unit.rival()).collect::<Vec<_>>()).await
}

/// Who has mailboxes open or may open them; looked at on mail nodes alone, each of which has the daemon for logins.
fn mailbox_openers(desired: &Desired) -> anyhow::Result<u32> {
    if !desired.units.contains(&Unit::Logins) {
        return Ok(0);
    }
    Ok(u32::try_from(openers::all()?.len()).unwrap_or(u32::MAX))
}

fn links() -> BTreeMap<String, String> {
    let target = |at: &str| std::fs::read_link(Path::new(at)).ok().map(|to| to.to_string_lossy().into_owned());
    LINKS.iter().filter_map(|at| Some(((*at).to_owned(), target(at)?))).collect()
}
