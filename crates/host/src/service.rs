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

/// A unit that systemd has started anew must run for so long before it counts as one that runs.
const STEADY_AFTER_US: u64 = 10_000_000;

/// Sees which of our units are active and enabled; a unit that systemd does not know is neither.
///
/// # Errors
/// systemd does not answer.
pub async fn observe() -> Result<BTreeMap<Unit, SeenUnit>, CommandError> {
    let mut args = vec!["show", "--property=Id,ActiveState,UnitFileState,NRestarts,ActiveEnterTimestampMonotonic"];
    args.extend(Unit::ALL.map(Unit::name));
    let text = command::succeed("systemctl", &args, LIMIT).await?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now_us = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000;
    Ok(text.split("\n\n").filter_map(|block| seen(block, now_us)).collect())
}

/// One unit, as `systemctl show` tells of it.
fn seen(block: &str, now_us: u64) -> Option<(Unit, SeenUnit)> {
    let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let number = |key: &str| value(key).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let unit = Unit::ALL.into_iter().find(|unit| Some(unit.name()) == value("Id"))?;
    let active = matches!(value("ActiveState"), Some("active" | "reloading"));
    // A unit without an [Install] section needs no enabling.
    let enabled = matches!(value("UnitFileState"), Some("enabled" | "static" | "enabled-runtime" | "alias"));
    let age_us = now_us.saturating_sub(number("ActiveEnterTimestampMonotonic"));
    let unsteady = number("NRestarts") > 0 && (!active || age_us < STEADY_AFTER_US);
    Some((unit, SeenUnit { active, enabled, unsteady }))
}

/// Those of these units that are active; one that systemd does not know is not.
///
/// # Errors
/// systemd does not answer.
pub async fn active(names: &[&str]) -> Result<BTreeSet<String>, CommandError> {
    if names.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut args = vec!["list-units", "--plain", "--no-legend", "--full", "--state=active"];
    args.extend(names);
    let text = command::succeed("systemctl", &args, LIMIT).await?;
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Starts a unit now and at each boot. One that failed too often before is given another chance.
///
/// # Errors
/// systemd's words.
pub async fn start(unit: Unit) -> Result<(), CommandError> {
    let reset = command::run("systemctl", &["reset-failed", unit.name()], LIMIT).await?;
    tracing::trace!(status = %reset.status, "reset-failed");
    let is_static = unit == Unit::NfsServer;
    // It has systemd read all units anew, which takes a slow machine many seconds.
    command::succeed("systemctl", &["enable", "--quiet", unit.name()], START_LIMIT)
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

/// Has a unit read its files again; one that can't is started anew.
///
/// # Errors
/// systemd's words.
pub async fn reload(unit: Unit) -> Result<(), CommandError> {
    command::succeed("systemctl", &["reload-or-restart", unit.name()], LIMIT).await.map(drop)
}

/// Stops a unit now and for good.
///
/// # Errors
/// systemd's words.
pub async fn stop(unit: Unit) -> Result<(), CommandError> {
    command::succeed("systemctl", &["disable", "--quiet", "--now", unit.name()], STOP_LIMIT).await.map(drop)
}

/// The units that an account's httpd can run as; the first one is what wakes it. A new configuration starts in one that is free, and the
/// httpd before it ends when the new one answers: httpd's own graceful restart leaves the account unanswered for up to a second. Of those
/// that still finish their last answers, there may be as many as there are units but two.
pub fn httpd_units(uid: Uid) -> [String; 4] {
    HTTPD_UNITS.map(|name| format!("{name}{uid}.service"))
}

/// A pattern for those of [`httpd_units`] that systemd has loaded. By their names it would load the others too, five milliseconds each.
pub fn httpd_pattern(uid: Uid) -> String {
    format!("phalanx-httpd*@{uid}.service")
}

/// What the names of httpd's units begin with, up to the account's uid.
const HTTPD_UNITS: [&str; 4] = ["phalanx-httpd@", "phalanx-httpd-b@", "phalanx-httpd-c@", "phalanx-httpd-d@"];

/// One of the units of [`httpd_units`], as systemd sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Httpd {
    /// Its name.
    pub unit: String,
    /// What it is at.
    pub state: HttpdState,
    /// Its main process, where it has one.
    pub pid: Option<i32>,
    /// Since when it is in that state, in microseconds of the monotonic clock.
    pub since_us: u64,
}

/// What a unit is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpdState {
    /// Nothing runs.
    Free,
    /// It serves, or is being started.
    Runs,
    /// It was told to end, and finishes what it has begun.
    Ends,
}

/// The accounts whose httpd runs.
///
/// # Errors
/// systemd does not answer.
pub async fn accounts_awake() -> Result<Vec<Uid>, CommandError> {
    let patterns = HTTPD_UNITS.map(|name| format!("{name}*.service"));
    // One that is being started may have read its files already.
    let states = "--state=active,activating,reloading";
    let mut args = vec!["list-units", "--plain", "--no-legend", "--full", states];
    args.extend(patterns.iter().map(String::as_str));
    let text = command::succeed("systemctl", &args, LIMIT).await?;
    let uid = |line: &str| {
        let unit = line.split_whitespace().next()?.strip_suffix(".service")?;
        let number = HTTPD_UNITS.iter().find_map(|name| unit.strip_prefix(name))?.parse::<u32>().ok()?;
        Uid::try_from(number).ok()
    };
    let awake: BTreeSet<Uid> = text.lines().filter_map(uid).collect();
    Ok(awake.into_iter().collect())
}

/// What the units of [`httpd_units`] are at, in their order.
///
/// # Errors
/// systemd does not answer.
pub async fn httpds(uid: Uid) -> Result<Vec<Httpd>, CommandError> {
    const PROPERTIES: &str = "--property=Id,ActiveState,MainPID,StateChangeTimestampMonotonic";
    let text = command::succeed("systemctl", &["show", PROPERTIES, &httpd_pattern(uid)], LIMIT).await?;
    let mut seen: Vec<Httpd> = text.split("\n\n").filter_map(httpd).collect();
    let mut take = |unit: String| match seen.iter().position(|httpd| httpd.unit == unit) {
        Some(place) => seen.swap_remove(place),
        None => Httpd { unit, state: HttpdState::Free, pid: None, since_us: 0 },
    };
    Ok(httpd_units(uid).into_iter().map(&mut take).collect())
}

/// Reads what systemctl shows of one unit.
fn httpd(block: &str) -> Option<Httpd> {
    let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let state = match value("ActiveState")? {
        "active" | "activating" | "reloading" | "refreshing" => HttpdState::Runs,
        "deactivating" => HttpdState::Ends,
        _ => HttpdState::Free,
    };
    let pid = value("MainPID")?.parse().ok().filter(|pid| *pid > 0);
    let since_us = value("StateChangeTimestampMonotonic")?.parse().ok()?;
    Some(Httpd { unit: value("Id")?.to_owned(), state, pid, since_us })
}

/// Whether the unit is active: one that starts or stops is not.
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

/// Ends units of one account, which may finish what they are at, and does not wait for it.
///
/// # Errors
/// systemd's words.
pub async fn stop_units(units: &[&str]) -> Result<(), CommandError> {
    command::succeed("systemctl", &[&["stop", "--no-block"], units].concat(), LIMIT).await.map(drop)
}

/// Ends a unit of one account and waits until nothing of it is left.
///
/// # Errors
/// systemd's words.
pub async fn stop_unit_wholly(unit: &str) -> Result<(), CommandError> {
    command::succeed("systemctl", &["stop", unit], STOP_LIMIT).await.map(drop)
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
    let (php, socket) = (format!("phalanx-php@{uid}.service"), format!("phalanx-php@{uid}.socket"));
    let slice = format!("phalanx-account-{uid}.slice");
    // What is not loaded yet ends with the slice that it is in.
    let units = [&*httpd_pattern(uid), &socket, &php, &slice];
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
    let httpds = HTTPD_UNITS.map(|name| format!("{name}*.service"));
    let mut args = vec!["stop"];
    args.extend(httpds.iter().map(String::as_str));
    args.extend(["phalanx-php@*.socket", "phalanx-php@*.service", "phalanx-account-*.slice"]);
    command::succeed("systemctl", &args, STOP_LIMIT).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_was_started_anew_a_moment_ago_is_unsteady() {
        let shown = |state: &str, restarts: u32| {
            format!(
                "Id=phalanx-filter.service\nActiveState={state}\nUnitFileState=enabled\nNRestarts={restarts}\nActiveEnterTimestampMonotonic=5000000\n"
            )
        };
        let unsteady = |state, restarts, now_us| seen(&shown(state, restarts), now_us).map(|(_, seen)| seen.unsteady);
        assert_eq!(unsteady("active", 0, 6_000_000), Some(false), "it was started by hand");
        assert_eq!(unsteady("active", 1, 6_000_000), Some(true));
        assert_eq!(unsteady("active", 1, 15_000_001), Some(false));
        assert_eq!(unsteady("activating", 4, 15_000_001), Some(true));
        assert_eq!(seen("Id=ssh.service\nActiveState=active\n", 1), None);
        let running = SeenUnit { active: true, enabled: true, unsteady: false };
        assert_eq!(seen(&shown("active", 0), 6_000_000), Some((Unit::Filter, running)));
    }

    #[test]
    fn what_systemctl_shows_of_an_httpd_is_read() {
        let shown = |state: &str, pid: u32| {
            let id = "Id=phalanx-httpd-b@1900000001.service";
            format!("MainPID={pid}\n{id}\nActiveState={state}\nStateChangeTimestampMonotonic=42\n")
        };
        let unit = "phalanx-httpd-b@1900000001.service";
        let seen = |state, pid| Some(Httpd { unit: unit.to_owned(), state, pid, since_us: 42 });
        for (word, state) in [
            ("active", HttpdState::Runs),
            ("activating", HttpdState::Runs),
            ("deactivating", HttpdState::Ends),
            ("inactive", HttpdState::Free),
            ("failed", HttpdState::Free),
        ] {
            assert_eq!(httpd(&shown(word, 7)), seen(state, Some(7)));
        }
        assert_eq!(httpd(&shown("inactive", 0)), seen(HttpdState::Free, None));
        assert_eq!(httpd("Id=phalanx-httpd@1.service\n"), None);
    }
}
