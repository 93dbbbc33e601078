//! The kernel that guests boot: User Mode Linux from Debian's packages, fetched or built once and cached.
//!
//! Debian's prebuilt package (unstable) is taken if it can be had: about a minute. Otherwise Debian 12's own kernel source is
//! built: about six minutes on two cores. Both give NFS 4.2 (client and server), quotas, cgroup v2 and nftables with the
//! families `ip` and `inet`. They differ: only the built one has pressure figures (`/proc/pressure`), and it boots in
//! twice the time.
//!
//! The recipes are the shell scripts beside this file; what they need and where it comes from is said there. They name no
//! mirror: packages come from where the machine's apt gets its own.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::disk::lock;
use crate::tools;

const PINS: &str = include_str!("kernel.pin");
const FROM_PACKAGE: &str = include_str!("kernel-package.sh");
const CONFIG: &str = include_str!("kernel.config");
const FROM_SOURCE: &str = include_str!("kernel-source.sh");

/// What the recipes call beyond what any Debian has.
const TOOLS: [&str; 8] = ["bc", "bison", "flex", "gcc", "make", "mkfs.ext4", "patchelf", "xz"];

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    arguments: Vec<String>,
}

impl Kernel {
    /// Takes the kernel from the cache directory (an absolute path), making it first if it is not there. Only one process makes it at a
    /// time, others wait. Tells on standard error what takes long.
    ///
    /// # Errors
    /// If neither way works; the tools' own words are on standard error.
    pub fn obtain(cache: &Path) -> Result<Kernel> {
        ensure!(cache.is_absolute(), "the cache's path {} must be absolute", cache.display());
        fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
        let _lock = lock(&cache.join("guest-kernel.lock"))?;
        let mut key = DefaultHasher::new();
        [PINS, FROM_PACKAGE, CONFIG, FROM_SOURCE].hash(&mut key);
        let dir = cache.join(format!("guest-kernel-{:016x}", key.finish()));
        if let Ok(kernel) = Kernel::open(&dir) {
            return Ok(kernel);
        }
        for tool in TOOLS {
            tools::command(tool)?;
        }
        eprintln!(
            "lab: fetching Debian's user-mode-linux and building its nf_tables for guests, once (about a minute) ..."
        );
        if let Err(error) = make(&dir, FROM_PACKAGE, PINS) {
            eprintln!(
                "lab: the package cannot be used ({error:#}); building a kernel for guests, once (about six minutes) ..."
            );
            make(&dir, FROM_SOURCE, CONFIG).context("making the guests' kernel")?;
        }
        Kernel::open(&dir)
    }

    /// Opens a finished kernel and sees that it starts here: it is bound to the path that it was made for.
    pub(crate) fn open(dir: &Path) -> Result<Kernel> {
        let arguments = fs::read_to_string(dir.join("arguments"))
            .with_context(|| format!("reading {}", dir.join("arguments").display()))?;
        let kernel =
            Kernel { dir: dir.to_owned(), arguments: arguments.split_whitespace().map(str::to_owned).collect() };
        let status =
            Command::new(kernel.binary()).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let starts = status.with_context(|| format!("starting {}", kernel.binary().display()))?.success();
        ensure!(starts, "{} does not start", kernel.binary().display());
        Ok(kernel)
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel, an ordinary program.
    pub fn binary(&self) -> PathBuf {
        self.dir.join("linux")
    }

    /// The tree to be laid over `/usr/lib/modules`; empty if all is built in.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// The arguments that this kernel wants in any guest.
    pub(super) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Where it came from, in words.
    ///
    /// # Errors
    /// If the cache was damaged meanwhile.
    pub fn about(&self) -> Result<String> {
        let path = self.dir.join("about");
        Ok(fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?.trim().to_owned())
    }
}

/// Follows a recipe in a work directory of its own; the result appears at `dir` whole or not at all.
fn make(dir: &Path, recipe: &str, input: &str) -> Result<()> {
    let (work, partial) = (dir.with_extension("work"), dir.with_extension("partial"));
    for path in [dir, &work, &partial] {
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for path in [&work, &partial] {
        fs::create_dir(path).with_context(|| format!("creating {}", path.display()))?;
    }
    let mut child = Command::new("sh")
        .args(["-c", recipe, "sh"])
        .args([&work, &partial, dir])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting sh")?;
    // The input is far smaller than a pipe's buffer; dropping the pipe ends it.
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes()).context("handing the recipe its input")?;
    }
    let status = child.wait().context("waiting for the recipe")?;
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    ensure!(status.success(), "the recipe ended with {status}");
    fs::rename(&partial, dir).with_context(|| format!("moving the kernel to {}", dir.display()))
}
