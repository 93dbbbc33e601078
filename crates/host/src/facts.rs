//! What a machine is: its boot, its clocks, the versions of what runs on it.

use crate::atomic::{FileError, failed};
use crate::command::{self, CommandError, LIMIT};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The packages whose versions are reported.
const PACKAGES: [&str; 8] =
    ["phalanx", "apache2-bin", "php8.2-fpm", "php8.4-fpm", "nftables", "nfs-kernel-server", "nfs-common", "systemd"];

/// The kernel's boot id: it changes when the machine is started anew. A container has one of its own.
///
/// # Errors
/// `/proc` can't be read.
pub fn boot_id() -> Result<String, FileError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(failed(path, "reading"))?;
    Ok(text.trim().to_owned())
}

/// Versions of the packages that matter, as dpkg knows them; those that are not installed are left out.
///
/// # Errors
/// dpkg-query can't be run.
pub async fn versions() -> Result<BTreeMap<String, String>, CommandError> {
    let mut args = vec!["--show", "--showformat=${Package} ${Version} ${db:Status-Status}\\n"];
    args.extend(PACKAGES);
    // It fails when one is unknown, and still tells the others.
    let text = command::run("dpkg-query", &args, LIMIT).await?.stdout;
    let version = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [package, version, "installed"] => Some((package.to_owned(), version.to_owned())),
        _ => None,
    };
    Ok(text.lines().filter_map(version).collect())
}

/// Milliseconds of CLOCK_BOOTTIME, which no one sets and which goes on while the machine sleeps.
pub fn boottime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Seconds since 1970, for people alone.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
