//! Units of systemd, through systemctl(1).

use crate::command::{self, CommandError, LIMIT};
use phalanx_model::Uid;
use phalanx_plan::steps::observed::SeenUnit;
use phalanx_plan::steps::units::Unit;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Starting a daemon that waits for its share may take a while.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Ending one that finishes what it has begun may, too.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Sees which of our units are active and enabled; a unit that systemd does not know is neither.
///
/// # Errors
/// systemd does not answer.
pub async fn observe() -> Result<BTreeMap<Unit, SeenUnit>, CommandError> {
    let mut args = vec!["show", "--property=Id,ActiveState,UnitFileState"];
    args.extend(Unit::ALL.map(Unit::name));
    let text = command::succeed("systemctl", &args, LIMIT).await?;
    let mut seen = BTreeMap::new();
    for block in text.split("\n\n") {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let Some(unit) = Unit::ALL.into_iter().find(|unit| Some(unit.name()) == value("Id")) else { continue };
        let active = matches!(value("ActiveState"), Some("active" | "reloading"));
        // A unit without an [Install] section needs no enabling.
        let enabled = matches!(value("UnitFileState"), Some("enabled" | "static" | "enabled-runtime" | "alias"));
        seen.insert(unit, SeenUnit { active, enabled });
    }
    Ok(seen)
}

/// Starts a unit now and at each boot. One that failed too often before is given another chance.
///
/// # Errors
/// systemd's words.
pub async fn start(unit: Unit) -> Result<(), CommandError> {
    let reset = command::run("systemctl", &["reset-failed", unit.name()], LIMIT).await?;
    tracing::trace!(status = %reset.status, "reset-failed");
    let is_static = unit == Unit::NfsServer;
    command::succeed("systemctl", &["enable", "--quiet", unit.name()], LIMIT)
        .await
        .map(drop)
        .or_else(|error| if is_static { Ok(()) } else { Err(error) })?;
    command::succeed("systemctl", &["start", unit.name()], START_LIMIT).await.map(drop)
}

/// Starts the agent now and at each boot; a machine that systemd does not run is left alone.
///
/// # Errors
/// systemd's words.
pub async fn start_agent() -> Result<(), CommandError> {
    if !std::path::Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    command::succeed("systemctl", &["enable", "--quiet", "--now", "phalanx-agent.service"], START_LIMIT).await.map(drop)
}

/// Has systemd start the agent anew, also at the next boots.
///
/// # Errors
/// systemd's words.
pub async fn restart_agent() -> Result<(), CommandError> {
    start_agent().await?;
    if !std::path::Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    command::succeed("systemctl", &["restart", "phalanx-agent.service"], START_LIMIT).await.map(drop)
}

/// Has a unit read its files again.
///
/// # Errors
/// systemd's words.
pub async fn reload(unit: Unit) -> Result<(), CommandError> {
    command::succeed("systemctl", &["reload", unit.name()], LIMIT).await.map(drop)
}

/// Stops a unit now and for good.
///
/// # Errors
/// systemd's words.
pub async fn stop(unit: Unit) -> Result<(), CommandError> {
    command::succeed("systemctl", &["disable", "--quiet", "--now", unit.name()], STOP_LIMIT).await.map(drop)
}

/// The two units that an account's httpd can run as. A new configuration starts in the one that is free, and the other ends when
/// it answers: httpd's own graceful restart leaves the account unanswered for up to a second.
pub fn httpd_units(uid: Uid) -> [String; 2] {
    HTTPD_UNITS.map(|name| format!("{name}{uid}.service"))
}

/// What the names of httpd's units begin with, up to the account's uid.
const HTTPD_UNITS: [&str; 2] = ["phalanx-httpd@", "phalanx-httpd-alt@"];

/// The accounts whose httpd runs.
///
/// # Errors
/// systemd does not answer.
pub async fn accounts_awake() -> Result<Vec<Uid>, CommandError> {
    let patterns = HTTPD_UNITS.map(|name| format!("{name}*.service"));
    // One that is being started may have read its files already.
    let states = "--state=active,activating,reloading";
    let args = ["list-units", "--plain", "--no-legend", "--full", states, &patterns[0], &patterns[1]];
    let text = command::succeed("systemctl", &args, LIMIT).await?;
    let uid = |line: &str| {
        let unit = line.split_whitespace().next()?.strip_suffix(".service")?;
        let number = HTTPD_UNITS.iter().find_map(|name| unit.strip_prefix(name))?.parse::<u32>().ok()?;
        Uid::try_from(number).ok()
    };
    let awake: BTreeSet<Uid> = text.lines().filter_map(uid).collect();
    Ok(awake.into_iter().collect())
}

/// Which of the two units of [`httpd_units`] run for an account, or are being started.
///
/// # Errors
/// systemd does not answer.
pub async fn httpds_active(uid: Uid) -> Result<[bool; 2], CommandError> {
    let [main, other] = httpd_units(uid);
    let ended = command::run("systemctl", &["is-active", &main, &other], LIMIT).await?;
    let is_active = |word: &str| matches!(word, "active" | "activating" | "reloading");
    match ended.stdout.lines().collect::<Vec<_>>()[..] {
        [main, other] => Ok([is_active(main), is_active(other)]),
        _ => {
            let why = format!("{:?}, not two states; {}", ended.stdout, ended.stderr.trim());
            Err(CommandError::Answer { line: format!("systemctl is-active {main} {other}"), why })
        }
    }
}

/// Whether the unit is active; asked for one account's daemons.
///
/// # Errors
/// systemd does not answer.
pub async fn is_active(unit: &str) -> Result<bool, CommandError> {
    Ok(command::run("systemctl", &["is-active", "--quiet", unit], LIMIT).await?.status.success())
}

/// Starts one unit of one account.
///
/// # Errors
/// systemd's words.
pub async fn start_unit(unit: &str) -> Result<(), CommandError> {
    command::succeed("systemctl", &["start", unit], START_LIMIT).await.map(drop)
}

/// Ends one unit of one account, which may finish what it is at, and does not wait for it.
///
/// # Errors
/// systemd's words.
pub async fn stop_unit(unit: &str) -> Result<(), CommandError> {
    command::succeed("systemctl", &["stop", "--no-block", unit], LIMIT).await.map(drop)
}

/// The main process of a unit that is ending.
///
/// # Errors
/// systemd does not answer.
pub async fn ending(unit: &str) -> Result<Option<i32>, CommandError> {
    let text = command::succeed("systemctl", &["show", "--property=ActiveState,MainPID", unit], LIMIT).await?;
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let is_ending = value("ActiveState") == Some("deactivating");
    Ok(value("MainPID").filter(|_| is_ending).and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0))
}

/// Has the PHP of one account, if it runs, read its files again.
///
/// # Errors
/// systemd's words.
pub async fn reload_php(uid: Uid) -> Result<(), CommandError> {
    let php = format!("phalanx-php@{uid}.service");
    command::succeed("systemctl", &["try-reload-or-restart", &php], START_LIMIT).await.map(drop)
}

/// Ends all that runs for one account, at once: it is removed, and others' changes wait behind this.
///
/// # Errors
/// systemd's words.
pub async fn end_account(uid: Uid) -> Result<(), CommandError> {
    let [httpd, other] = httpd_units(uid);
    let (php, socket) = (format!("phalanx-php@{uid}.service"), format!("phalanx-php@{uid}.socket"));
    let slice = format!("phalanx-account-{uid}.slice");
    let units = [&*httpd, &other, &socket, &php, &slice];
    // Told to stop first, so that nothing starts it anew; then no request is waited for.
    command::succeed("systemctl", &[&["stop", "--no-block"][..], &units].concat(), LIMIT).await?;
    let killed = command::run("systemctl", &["kill", "--signal=SIGKILL", &slice], LIMIT).await?;
    if !killed.status.success() {
        tracing::debug!(%uid, why = killed.stderr.trim(), "nothing of the account ran");
    }
    command::succeed("systemctl", &[&["stop"][..], &units].concat(), STOP_LIMIT).await.map(drop)
}

/// Ends all that runs for all accounts.
///
/// # Errors
/// systemd's words.
pub async fn end_all_accounts() -> Result<(), CommandError> {
    let [httpd, other] = HTTPD_UNITS.map(|name| format!("{name}*.service"));
    let units = ["stop", &httpd, &other, "phalanx-php@*.socket", "phalanx-php@*.service", "phalanx-account-*.slice"];
    command::succeed("systemctl", &units, STOP_LIMIT).await.map(drop)
}
