//! What a machine is: its boot, its clocks, the versions of what runs on it.

use crate::atomic::{FileError, failed};
use crate::command::{self, CommandError, LIMIT};
use phalanx_model::PhpVersion;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The packages whose versions are reported.
const PACKAGES: [&str; 7] =
    ["phalanx", "apache2-bin", "php[0-9]*-fpm", "nftables", "nfs-kernel-server", "nfs-common", "systemd"];

/// Where PHP's daemons are, one for each version: `php-fpm8.2`. `phalanx-php@.service` starts them from here.
const PHP_DAEMONS: &str = "/usr/sbin";
const PHP_DAEMON: &str = "php-fpm";

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

/// The versions of PHP that are installed, by the daemons that run them.
///
/// # Errors
/// The directory with the daemons can't be read.
pub fn php_versions() -> Result<BTreeSet<PhpVersion>, FileError> {
    let directory = Path::new(PHP_DAEMONS);
    let entries = std::fs::read_dir(directory).map_err(failed(directory, "listing"))?;
    Ok(entries.filter_map(|entry| php_of(entry.ok()?.file_name().to_str()?)).collect())
}

/// The version that a daemon's file name tells.
fn php_of(program: &str) -> Option<PhpVersion> {
    program.strip_prefix(PHP_DAEMON)?.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_name_tells_its_version() {
        assert_eq!(php_of("php-fpm8.2").as_ref().map(PhpVersion::as_str), Some("8.2"));
        for other in ["php-fpm", "php-fpm8", "php-fpm8.2.old", "php8.2", "php-fpmphp-fpm8.2"] {
            assert_eq!(php_of(other), None, "{other}");
        }
    }
}
