//! An account's units, through systemctl(1).

use super::place::{properties, slice};
use phalanx_host::command::{self, CommandError, LIMIT};
use phalanx_host::service;
use phalanx_model::{Limits, Uid};
use std::time::Duration;

/// Daemons finish requests before they end; the units' own bound is ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Asks for an account's httpd, with the socket of its PHP, and does not wait.
///
/// # Errors
/// systemd's words.
pub async fn start(uid: Uid) -> Result<(), CommandError> {
    let httpd = format!("phalanx-httpd@{uid}.service");
    command::succeed("systemctl", &["start", "--no-block", &httpd], LIMIT).await.map(drop)
}

/// Whether an account's httpd can't be hoped for: systemd's word for its state, if so.
///
/// # Errors
/// systemd does not answer.
pub async fn failure(uid: Uid) -> Result<Option<String>, CommandError> {
    let httpd = format!("phalanx-httpd@{uid}.service");
    let args = ["show", "--property=ActiveState,SubState,Job", "--value", &httpd];
    let text = command::succeed("systemctl", &args, LIMIT).await?;
    let values: Vec<&str> = text.lines().collect();
    // Values come in the order of systemd's own choosing; a job is a number, empty or 0 without one.
    let has_job = values.iter().any(|value| value.parse::<u32>().is_ok_and(|job| job > 0));
    let is_over = values.iter().any(|value| matches!(*value, "failed" | "inactive"));
    Ok((is_over && !has_job).then(|| values.join(" ")))
}

/// Tells systemd what an account may use whose slice it knows already.
///
/// # Errors
/// systemd's words.
pub async fn limit(uid: Uid, limits: &Limits) -> Result<(), CommandError> {
    let properties = properties(limits);
    let slice = slice(uid);
    let mut args = vec!["set-property", "--runtime", &slice];
    args.extend(properties.iter().map(String::as_str));
    command::succeed("systemctl", &args, LIMIT).await.map(drop)
}

/// Ends all that these accounts run, and waits for it.
///
/// # Errors
/// systemd's words, or it takes too long.
pub async fn stop(uids: &[Uid]) -> Result<(), CommandError> {
    let mut args = vec!["stop".to_owned()];
    for uid in uids {
        args.extend([service::httpd_pattern(*uid), format!("phalanx-php@{uid}.socket"), slice(*uid)]);
    }
    command::succeed("systemctl", &args, STOP_LIMIT).await.map(drop)
}

/// Ends an account's PHP; the next request for PHP starts it anew.
///
/// # Errors
/// systemd's words.
pub async fn stop_php(uid: Uid) -> Result<(), CommandError> {
    command::succeed("systemctl", &["stop", &format!("phalanx-php@{uid}.service")], STOP_LIMIT).await.map(drop)
}

/// Opens the sockets of accounts' PHP again that systemd closed because PHP failed to start too often.
///
/// # Errors
/// systemd's words.
pub async fn revive_sockets() -> Result<(), CommandError> {
    let list = ["list-units", "--plain", "--no-legend", "--full", "--state=failed", "phalanx-php@*.socket"];
    let text = command::succeed("systemctl", &list, LIMIT).await?;
    let failed: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    tracing::warn!("PHP failed to start too often; its sockets are opened again: {}", failed.join(" "));
    let mut args = vec!["start", "--no-block"];
    args.extend(failed);
    command::succeed("systemctl", &args, LIMIT).await.map(drop)
}
