//! The disks of guests: root images, cached by what went into them, and empty data disks.
//!
//! A root image is the layers that the lab's other hosts have too, with the kernel's modules laid over them. Guests never
//! write to it: each has a copy-on-write file of its own. An image's file is not touched once it is there, not even its
//! times, since those files remember them.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use crate::tools;

const RECIPE: &str = include_str!("disk.sh");

/// How many images the cache keeps, the newest. One takes about half a gigabyte.
const IMAGES_KEPT: usize = 3;

/// Takes the root image from the cache directory (an absolute path), making it first if it is not there: 5 s. `layers`
/// are root file systems, the uppermost first; the name of each changes with its content. Only one process makes an
/// image at a time.
///
/// # Errors
/// If a tool is missing, the layers are no root file system with kmod in it, or the disk is full.
pub fn root_image(cache: &Path, layers: &[PathBuf], kernel: &Kernel) -> Result<PathBuf> {
    ensure!(cache.is_absolute(), "the cache's path {} must be absolute", cache.display());
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let _lock = lock(&cache.join("guest-image.lock"))?;
    let mut key = DefaultHasher::new();
    (RECIPE, layers, kernel.modules()).hash(&mut key);
    let image = cache.join(format!("guest-image-{:016x}.ext4", key.finish()));
    if image.exists() {
        return Ok(image);
    }
    eprintln!("lab: making the disk image of guests ...");
    let (work, partial) = (image.with_extension("work"), image.with_extension("partial"));
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    fs::create_dir(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let lower = layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":");
    let (modules, lower) = (kernel.modules(), PathBuf::from(lower));
    let words = ["--mount", "--propagation", "private", "sh", "-c", RECIPE, "disk"].map(Path::new);
    let arguments = [&work, &lower, &modules, &partial].map(PathBuf::as_path);
    tools::run("unshare", words.into_iter().chain(arguments)).context("cannot make the disk image of guests")?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    fs::rename(&partial, &image).with_context(|| format!("cannot move the image to {}", image.display()))?;
    drop_old_images(cache)?;
    Ok(image)
}

/// Makes an empty ext4 disk labelled `data`, with quotas, replacing what was there. It is sparse.
///
/// # Errors
/// If `mkfs.ext4` (package e2fsprogs) is missing or fails.
pub fn data_disk(path: &Path, size_mib: u32) -> Result<()> {
    super::remove_if_there(path)?;
    let size = format!("{size_mib}M");
    let words = ["-q", "-F", "-L", "data", "-O", "quota,project"].map(Path::new);
    let made = tools::run("mkfs.ext4", words.into_iter().chain([path, Path::new(&size)]));
    made.map(drop).with_context(|| format!("cannot make the data disk {}", path.display()))
}

/// Waits for the exclusive lock on a file, and holds it as long as the result lives. The system drops it with the process.
pub(super) fn lock(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn drop_old_images(cache: &Path) -> Result<()> {
    let mut images = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("guest-image-") && name.ends_with(".ext4") {
            images.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    images.sort();
    let surplus = images.len().saturating_sub(IMAGES_KEPT);
    for (_, path) in &images[..surplus] {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
