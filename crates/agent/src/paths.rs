//! Where the agent keeps what on a host.

use std::path::{Path, PathBuf};

/// All of Phalanx' state on a host lies below one directory.
pub const ROOT: &str = "/var/lib/phalanx";

/// The places below a root.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The root, `/var/lib/phalanx` on a host.
    pub root: PathBuf,
}

impl Paths {
    /// The places below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The agent's own, for root alone: identity, adopted spec, marks, events, journal.
    pub fn agent(&self, file: &str) -> PathBuf {
        self.root.join("agent").join(file)
    }

    /// The directory's database.
    pub fn directory(&self) -> PathBuf {
        self.root.join("directory/directory.sqlite")
    }

    /// The configuration of accounts, a directory for each.
    pub fn accounts(&self) -> PathBuf {
        self.root.join("accounts")
    }
}
