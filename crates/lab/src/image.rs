//! The images that hosts are layers over, each made once and kept under a name with a hash of what it is made of: the
//! base (Debian with the packages of `lab/packages/base.txt`, and a second version of PHP from a newer Debian) and above it the
//! product, installed from its package.
//!
//! Images are made under another name and renamed when complete, so one that exists is whole. Callers at the same time
//! wait for each other. Packages come from where the machine's own apt gets them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::{paths, tools};

/// How many images of each kind are kept, the newest.
const KEPT: usize = 2;

/// The release of Debian that the hosts' second version of PHP is of.
const SECOND_PHP_SUITE: &str = "trixie";

/// Installs a package (the fifth argument) into an overlay of the first over the second argument. The overlay exists in the
/// namespace of this shell alone, and is gone with it. The devices are its own, so that no script of the package can
/// change the machine's.
const INSTALL: &str = r#"set -e
    mount -t overlay lab -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4"
    mount -t proc proc "$4/proc"
    mount -t tmpfs lab "$4/dev"
    mknod -m 666 "$4/dev/null" c 1 3
    mknod -m 666 "$4/dev/zero" c 1 5
    mknod -m 666 "$4/dev/full" c 1 7
    mknod -m 666 "$4/dev/random" c 1 8
    mknod -m 666 "$4/dev/urandom" c 1 9
    mount -t tmpfs lab "$4/mnt"
    : > "$4/mnt/phalanx.deb"
    mount --bind "$5" "$4/mnt/phalanx.deb"
    export DEBIAN_FRONTEND=noninteractive
    exec chroot "$4" dpkg --install /mnt/phalanx.deb"#;

/// The base image's root directory; made if it does not exist, which takes about two minutes.
pub fn base() -> Result<PathBuf> {
    let [prepare, lay_php] = ["prepare.sh", "second-php.sh"].map(|name| paths::sources().join("packages").join(name));
    let packages = read_packages("base.txt")?;
    let php_packages = read_packages("second-php.txt")?;
    let suite = machine_suite()?;
    let mut made_of = format!("{suite}\n{}\n{SECOND_PHP_SUITE}\n{}", packages.join("\n"), php_packages.join("\n"));
    for script in [&prepare, &lay_php] {
        made_of += &fs::read_to_string(script).with_context(|| format!("cannot read {}", script.display()))?;
    }
    let hash = hash_text(&made_of);
    cached("base", &hash, |place| {
        eprintln!(
            "lab: making the base image, once (Debian {suite}, {} packages and what they need) ...",
            packages.len()
        );
        let begin = Instant::now();
        let php = place.with_extension("php");
        let unpacked = ["--variant=extract".to_owned()];
        bootstrap(SECOND_PHP_SUITE, &suite, &php_packages, &unpacked, &php)?;
        let installed = [
            "--variant=minbase".to_owned(),
            format!("--customize-hook=sh {} \"$1\"", prepare.display()),
            format!("--customize-hook=sh {} \"$1\" {}", lay_php.display(), php.display()),
        ];
        bootstrap(&suite, &suite, &packages, &installed, place)?;
        eprintln!("lab: the base image is ready after {:.0} s", begin.elapsed().as_secs_f64());
        Ok(())
    })
}

/// Has mmdebstrap put packages of Debian's release `suite`, and what they need, into `place`; from where the machine, whose own release is
/// `machine`, has its packages.
fn bootstrap(suite: &str, machine: &str, packages: &[String], options: &[String], place: &Path) -> Result<()> {
    let sources = place.with_extension(format!("{suite}-sources"));
    // In a mount namespace of its own, so that no mount is left in the image if this is interrupted.
    let mut command = tools::command("unshare")?;
    command.args(["--mount", "mmdebstrap", "--mode=root", "--aptopt=Apt::Install-Recommends \"false\""]);
    command.args(options).arg(format!("--include={}", packages.join(",")));
    command.arg(suite).arg(place).args(write_sources(suite, machine, &sources)?).stdin(Stdio::null());
    let status = command.status().context("cannot start mmdebstrap")?;
    ensure!(status.success(), "mmdebstrap ended with {status}; its words are above");
    Ok(())
}

/// The product's layer over `base`: what installing the package `deb` writes. Made if it does not exist.
pub fn product(base: &Path, deb: &Path) -> Result<PathBuf> {
    let base_name = base.file_name().unwrap_or_default().to_string_lossy();
    let hash = hash_text(&format!("{base_name}\n{}", hash_file(deb)?));
    cached("product", &hash, |place| {
        eprintln!("lab: installing {} ...", deb.display());
        let work = place.with_extension("work");
        let root = place.with_extension("root");
        for folder in [place, &work, &root] {
            fs::create_dir_all(folder)?;
        }
        let layers = [base, place, &work, &root, deb];
        let words = ["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSTALL, "install"].map(Path::new);
        let installed = tools::run("unshare", words.into_iter().chain(layers));
        installed.with_context(|| {
            format!(
                "cannot install {} (a dependency that is missing belongs into lab/packages/base.txt)",
                deb.display()
            )
        })?;
        fs::remove_dir_all(&work)?;
        fs::remove_dir(&root)?;
        Ok(())
    })
}

/// The root file systems that hosts are layers over, the uppermost first: the product's (from `deb`, or the newest package that was
/// built), unless they are to be bare, and the base. Made if they do not exist.
pub fn layers(bare: bool, deb: Option<&Path>) -> Result<Vec<PathBuf>> {
    let base = base()?;
    if bare {
        return Ok(vec![base]);
    }
    let deb = deb.map_or_else(newest_deb, |deb| Ok(deb.to_owned()))?;
    Ok(vec![product(&base, &deb)?, base])
}

/// The newest package of the product that was built.
pub fn newest_deb() -> Result<PathBuf> {
    let folder = paths::target().join("package");
    let mut debs = Vec::new();
    for entry in fs::read_dir(&folder).into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("phalanx_") && name.ends_with(".deb") {
            debs.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    debs.sort();
    debs.pop().map(|(_, path)| path).with_context(|| {
        format!(
            "there is no phalanx_*.deb in {}: build the package, or say --bare for hosts without it",
            folder.display()
        )
    })
}

/// Returns the image of this kind and hash, made by `make` at the path it is given if it does not exist.
fn cached(kind: &str, hash: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = paths::built();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let image = folder.join(format!("{kind}-{hash}"));
    let lock_path = folder.join(format!("{kind}.lock"));
    let lock = File::create(&lock_path).with_context(|| format!("cannot open {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if image.is_dir() {
        // The time of last use decides which images are kept.
        File::open(&image)?.set_modified(SystemTime::now())?;
        return Ok(image);
    }
    remove_unfinished(&folder, kind)?;
    let place = folder.join(format!("{kind}.making"));
    make(&place)?;
    fs::rename(&place, &image).with_context(|| format!("cannot rename {} to {}", place.display(), image.display()))?;
    remove_unfinished(&folder, kind)?;
    remove_old(&folder, kind)?;
    Ok(image)
}

/// Removes what an interrupted making left, and its helper files.
fn remove_unfinished(folder: &Path, kind: &str) -> Result<()> {
    let prefix = format!("{kind}.");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(&prefix) || name == format!("{kind}.lock") {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove the unfinished {}", path.display()))?;
    }
    Ok(())
}

/// Marks an image as in use, for as long as the file is held: it is then not removed.
pub fn hold(image: &Path) -> Result<File> {
    let held = File::open(image).with_context(|| format!("cannot open the image {}", image.display()))?;
    held.lock_shared().with_context(|| format!("cannot mark the image {} as in use", image.display()))?;
    Ok(held)
}

/// Removes all but the newest images of a kind, and those that running labs hold.
fn remove_old(folder: &Path, kind: &str) -> Result<()> {
    let prefix = format!("{kind}-");
    let mut images = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            images.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    images.sort();
    let old = images.len().saturating_sub(KEPT);
    for (_, path) in &images[..old] {
        let image = File::open(path)?;
        match image.try_lock() {
            Err(TryLockError::WouldBlock) => continue,
            tried => tried.with_context(|| format!("cannot test whether {} is in use", path.display()))?,
        }
        fs::remove_dir_all(path).with_context(|| format!("cannot remove the old image {}", path.display()))?;
    }
    Ok(())
}

/// The packages that a list of `lab/packages` names.
fn read_packages(list: &str) -> Result<Vec<String>> {
    let list = paths::sources().join("packages").join(list);
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let packages: Vec<_> = lines.filter(|line| !line.is_empty()).map(String::from).collect();
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if let Some(bad) = packages.iter().find(|name| !plain(name)) {
        bail!("{} has {bad:?}, which is no name of a package", list.display());
    }
    Ok(packages)
}

/// The machine's own release of Debian, by its code name.
fn machine_suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.context("/etc/os-release has no VERSION_CODENAME; the lab needs a Debian machine")?;
    Ok(name.trim_matches('"').to_owned())
}

/// Collects those of the machine's apt sources that are of its own release of Debian, `machine`, in both formats that apt knows, and
/// writes them for the release `suite`. Archives of others (whose keys would be missing in the image) are left out. Returns the files.
fn write_sources(suite: &str, machine: &str, path: &Path) -> Result<Vec<PathBuf>> {
    let of_machine = |word: &str| {
        let rest = word.strip_prefix(machine);
        rest.is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
    };
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten() {
        files.push(entry?.path());
    }
    files.sort();
    let (mut stanzas, mut lines) = (Vec::new(), Vec::new());
    for file in files.iter().filter(|file| file.is_file()) {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        if file.extension().is_some_and(|extension| extension == "sources") {
            let wanted = |stanza: &&str| {
                let suites = stanza.lines().find_map(|line| line.strip_prefix("Suites:"));
                suites.is_some_and(|suites| suites.split_whitespace().all(of_machine))
            };
            stanzas.extend(text.split("\n\n").filter(wanted).map(|stanza| stanza.trim().to_owned()));
        } else {
            let wanted = |line: &&str| line.starts_with("deb ") && line.split_whitespace().any(of_machine);
            lines.extend(text.lines().filter(wanted).map(String::from));
        }
    }
    ensure!(!stanzas.is_empty() || !lines.is_empty(), "apt on this machine has no sources for Debian {machine}");
    let mut written = Vec::new();
    for (entries, between, extension) in [(stanzas, "\n\n", "sources"), (lines, "\n", "list")] {
        if !entries.is_empty() {
            let file = path.with_extension(extension);
            let text = entries.join(between).replace(machine, suite) + "\n";
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            written.push(file);
        }
    }
    Ok(written)
}

fn hash_file(path: &Path) -> Result<String> {
    let text = tools::run("sha256sum", [Path::new("--"), path])?;
    Ok(text.trim_start_matches('\\').chars().take(16).collect())
}

/// A short hash of a text: FNV-1a with 64 bits. It names files of ours; nobody gains by a collision.
fn hash_text(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
