//! Where the lab keeps its files: what it is told to build (topologies, package lists) in the source tree's `lab`
//! folder, and all that it makes in `target/lab`. Nothing is ever written elsewhere on the machine's disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folder with topologies and package lists.
pub fn sources() -> PathBuf {
    workspace().join("lab")
}

/// The folder for images and running labs: `lab` in Cargo's target directory.
pub fn built() -> PathBuf {
    target().join("lab")
}

/// Where the journals of labs are kept in which something failed: `lab-failures` in Cargo's target directory.
pub fn failures() -> PathBuf {
    target().join("lab-failures")
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Where labs keep their run directories, one each.
pub fn runs() -> PathBuf {
    built().join("run")
}

/// The `phalanx-lab` program: this process, or the one that Cargo built beside the running test.
pub fn program() -> Result<PathBuf> {
    const NAME: &str = "phalanx-lab";
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    if own.file_name().is_some_and(|name| name == NAME) {
        return Ok(own);
    }
    for variable in ["NEXTEST_BIN_EXE_phalanx-lab", "CARGO_BIN_EXE_phalanx-lab"] {
        if let Some(path) = std::env::var_os(variable) {
            return Ok(path.into());
        }
    }
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(NAME)).find(|path| path.exists());
    let Some(path) = beside else {
        bail!("the program {NAME} is not built beside {}: run `cargo build -p phalanx-lab`", own.display());
    };
    Ok(path)
}

/// The root of the source tree.
fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}
