//! A new configuration for an account that is awake, without a moment in which nobody answers.
//!
//! httpd's own graceful restart starts its new child only at its parent's next look, once a second; with one child, as accounts have,
//! requests wait that long. So a second httpd is started at the same address (SO_REUSEPORT, which the kernel grants to the same
//! uid only), and the first one ends, gracefully, when the second listens. One that does not come up is taken back: the account goes on
//! with what it has.

use crate::launcher::listeners;
use anyhow::{Context, ensure};
use phalanx_host::service;
use phalanx_model::Uid;
use std::time::{Duration, Instant};

/// An httpd that does not listen within this time will not.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Has an account's httpd and PHP take their files anew. The other accounts are not touched.
///
/// # Errors
/// The new httpd did not come up; the old one serves on.
pub async fn renew(uid: Uid) -> anyhow::Result<()> {
    let [main, other] = service::httpd_units(uid);
    let (old, new) = if service::is_active(&main).await? { (main, other) } else { (other, main) };
    if let Err(error) = come_up(uid, &new).await {
        service::stop_unit(&new).await?;
        return Err(error.context("the httpd with the new configuration did not come up; the former one serves on"));
    }
    service::stop_unit(&old).await?;
    Ok(service::reload_php(uid).await?)
}

async fn come_up(uid: Uid, unit: &str) -> anyhow::Result<()> {
    let before = listening(uid).await?;
    service::start_unit(unit).await?;
    let begin = Instant::now();
    while listening(uid).await? <= before {
        ensure!(
            begin.elapsed() < LISTEN_LIMIT,
            "{unit} does not listen; see its journal and logs/error.log in the home"
        );
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// How many sockets of the account listen at its address.
async fn listening(uid: Uid) -> anyhow::Result<usize> {
    let found = tokio::task::spawn_blocking(move || listeners::of(uid.loopback())).await;
    let found = found.context("the look at listening sockets ended")??;
    Ok(found.iter().filter(|listener| listener.is_exact && listener.uid == uid.get()).count())
}
