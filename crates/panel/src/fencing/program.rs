//! A program that fences: `PROGRAM off SERVER ADDRESS` switches the machine off, `PROGRAM status SERVER ADDRESS` prints `on` or `off`.
//!
//! Success of the first is not believed: only the second's `off` is. Both are bounded in time, and what they say is kept up to a bound.

use phalanx_model::Name;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long after its switching off a machine may still be on, mostly.
pub const OFF_LIMIT: Duration = Duration::from_secs(30);
/// The wait between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most of what a program said that an error repeats, in characters.
const WORDS_LEN_MAX: usize = 500;

/// Why a machine was not seen to be off.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there, or others than root could change it.
    #[error("{path} {why}", path = path.display())]
    Unfit {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It failed, or took too long.
    #[error("{line} {why}")]
    Failed {
        /// The command line.
        line: String,
        /// What happened.
        why: String,
    },
    /// The machine is on.
    #[error("{line} says {said:?} {waited_s} s after the machine was switched off; it must say off")]
    StillOn {
        /// The command line.
        line: String,
        /// Its last word.
        said: String,
        /// How long it was waited for, in seconds.
        waited_s: u64,
    },
}

/// Switches the machine off and sees that it is off, within `limit` of that.
///
/// # Errors
/// It was not seen to be off.
pub async fn switch_off(program: &Path, server: &Name, address: Ipv4Addr, limit: Duration) -> Result<(), ProgramError> {
    is_fit(program)?;
    call(program, "off", server, address).await?;
    let since = Instant::now();
    loop {
        let said = call(program, "status", server, address).await?;
        if said == "off" {
            return Ok(());
        }
        if since.elapsed() >= limit {
            let line = line(program, "status", server, address);
            return Err(ProgramError::StillOn { line, said, waited_s: limit.as_secs() });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Only what root put there, and nobody else can change, has the power to switch machines off.
///
/// # Errors
/// It is not there, or others than root could change it.
pub fn is_fit(program: &Path) -> Result<(), ProgramError> {
    let unfit = |why: String| ProgramError::Unfit { path: program.to_owned(), why };
    let seen = std::fs::metadata(program).map_err(|error| unfit(format!("can't be looked at: {error}")))?;
    match (seen.is_file(), seen.uid() == 0, seen.mode() & 0o022, seen.mode() & 0o111) {
        (false, ..) => Err(unfit("is no file".into())),
        (_, false, ..) => Err(unfit("does not belong to root: chown root it".into())),
        (_, _, 1.., _) => Err(unfit("can be written by others than root: chmod go-w it".into())),
        (.., 0) => Err(unfit("is not executable: chmod 755 it".into())),
        _ => Ok(()),
    }
}

fn line(program: &Path, what: &str, server: &Name, address: Ipv4Addr) -> String {
    format!("{} {what} {server} {address}", program.display())
}

/// Calls it; returns the first line that it printed.
async fn call(program: &Path, what: &str, server: &Name, address: Ipv4Addr) -> Result<String, ProgramError> {
    let failed = |why: String| ProgramError::Failed { line: line(program, what, server, address), why };
    let mut command = Command::new(program);
    command.args([what, server.as_str(), &address.to_string()]).stdin(Stdio::null()).kill_on_drop(true);
    command.env_remove("NOTIFY_SOCKET");
    let ended = tokio::time::timeout(CALL_LIMIT, command.output()).await;
    let ended = ended.map_err(|_| failed(format!("did not end within {} s and was killed", CALL_LIMIT.as_secs())))?;
    let ended = ended.map_err(|error| failed(format!("can't be started: {error}")))?;
    if !ended.status.success() {
        let words = String::from_utf8_lossy(&ended.stderr);
        let words: String = words.trim().chars().take(WORDS_LEN_MAX).collect();
        return Err(failed(format!("failed ({}): {words}", ended.status)));
    }
    let said = String::from_utf8_lossy(&ended.stdout);
    Ok(said.lines().next().unwrap_or_default().trim().chars().take(WORDS_LEN_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    async fn with(script: &str, mode: u32) -> Result<(), String> {
        let directory = tempfile::tempdir().expect("a directory");
        let program = directory.path().join("switch");
        std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", directory.path().display())).expect("written");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(mode)).expect("set");
        let server: Name = "mail2".parse().expect("a name");
        let off = switch_off(&program, &server, Ipv4Addr::new(10, 9, 0, 42), Duration::from_millis(10)).await;
        off.map_err(|error| error.to_string().replace(&*program.to_string_lossy(), "switch"))
    }

    #[tokio::test]
    async fn only_what_was_seen_off_is_off() {
        let switch = "case $1 in off) echo $2 $3 > off;; status) if [ -e off ]; then cat off >&2; echo off; else echo on; fi;; esac";
        assert_eq!(with(switch, 0o755).await, Ok(()));
        let fails = with("echo no such outlet >&2; exit 3", 0o755).await.expect_err("it fails");
        assert_eq!(fails, "switch off mail2 10.9.0.42 failed (exit status: 3): no such outlet");
        let blind = with("[ $1 = off ] || exit 1", 0o755).await.expect_err("it can't see");
        assert!(blind.starts_with("switch status mail2"), "{blind}");
    }

    #[tokio::test]
    async fn a_machine_that_stays_on_is_not_fenced() {
        let on = with("echo on", 0o755).await.expect_err("it is on");
        assert!(on.contains("says \"on\"") && on.contains("must say off"), "{on}");
        let silent = with("true", 0o755).await.expect_err("nobody knows");
        assert!(silent.contains("says \"\""), "{silent}");
    }

    #[tokio::test]
    async fn a_program_that_others_can_change_is_not_run() {
        for (mode, why) in
            [(0o775, "can be written by others"), (0o757, "can be written by others"), (0o644, "not executable")]
        {
            let error = with("echo off", mode).await.expect_err("it is unfit");
            assert!(error.contains(why), "{error}");
        }
        let error =
            switch_off(Path::new("/no/such"), &"a".parse().expect("a name"), Ipv4Addr::LOCALHOST, OFF_LIMIT).await;
        assert!(error.expect_err("it is not there").to_string().contains("/no/such can't be looked at"));
    }
}
