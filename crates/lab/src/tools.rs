//! The programs of the machine that the lab calls. A missing one is a failure that names the Debian package, never a
//! reason to do less; [`install`] fetches them all.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The programs and the Debian packages that have them.
const TOOLS: [(&str, &str); 26] = [
    ("bc", "bc"),
    ("bindfs", "bindfs"),
    ("bison", "bison"),
    ("dpkg-deb", "dpkg"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("ip", "iproute2"),
    ("journalctl", "systemd"),
    ("make", "make"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("patchelf", "patchelf"),
    ("perl", "perl"),
    ("setsid", "util-linux"),
    ("sha256sum", "coreutils"),
    ("sqlite3", "sqlite3"),
    ("sysctl", "procps"),
    ("systemd-nspawn", "systemd-container"),
    ("taskset", "util-linux"),
    ("time", "time"),
    ("umount", "mount"),
    ("unshare", "util-linux"),
    ("xz", "xz-utils"),
];

/// Where apt keeps the lists of what there is.
const APT_LISTS: &str = "/var/lib/apt/lists";

/// Fails if a program that the lab needs is missing, or if it is not run by root.
pub fn check() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the lab makes namespaces and mounts: run it as root");
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    bail!(
        "the lab needs {}: run `phalanx-lab setup`, or apt-get install {}",
        programs.join(", "),
        packages(&missing).join(" ")
    );
}

/// Installs what [`check`] misses, with apt-get, and fetches apt's lists if there are none: the base image and the guests'
/// kernel come through apt too. Does nothing if all is there.
pub fn install() -> Result<()> {
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| find(program).is_none()).collect();
    if !missing.is_empty() || !apt_has_lists()? {
        apt_get(&["update", "-qq"])?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages(&missing));
    apt_get(&arguments)
}

/// A command for `program`, or an error that names its package.
pub fn command(program: &str) -> Result<Command> {
    let Some(path) = find(program) else {
        let package = TOOLS.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
        bail!("the program {program} is missing: apt-get install {package}");
    };
    Ok(Command::new(path))
}

/// Runs `program` to its end without input and returns what it wrote to its standard output; a failure has its words.
pub fn run<I>(program: &str, arguments: I) -> Result<String>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = command(program)?;
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed with {}: {}", shown(&command), output.status, words.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} wrote something that is not UTF-8"))
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Whether apt has been told what its archives hold. A fresh machine's image often has no lists.
fn apt_has_lists() -> Result<bool> {
    let entries = std::fs::read_dir(APT_LISTS).with_context(|| format!("cannot list {APT_LISTS}"))?;
    for entry in entries {
        let name = entry.with_context(|| format!("cannot list {APT_LISTS}"))?.file_name();
        if name.to_string_lossy().contains("_Packages") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = command("apt-get")?;
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let status = command.status().context("cannot start apt-get")?;
    ensure!(status.success(), "`{}` failed with {status}", shown(&command));
    Ok(())
}

fn packages(tools: &[&(&str, &'static str)]) -> Vec<&'static str> {
    let mut packages: Vec<_> = tools.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Where `program` is: in the search path, or where Debian puts root's programs (which a search path may lack).
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}
