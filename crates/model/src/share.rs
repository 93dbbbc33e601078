//! Shares: the storage that all nodes of a cluster mount.

use crate::{Invalid, Name};
use serde::{Deserialize, Serialize};

/// How a share reaches the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShareKind {
    /// The directory exists on each node already (one machine, a SAN file system); it is bind-mounted to its place.
    Local,
    /// Exported over NFS 4.2 by the master of a nas cluster that Phalanx manages.
    NfsManaged,
}

/// Storage for the content of web or mail clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The share's name; nodes mount it at `/srv/phalanx/NAME`.
    pub name: Name,
    /// How it reaches the nodes.
    pub kind: ShareKind,
    /// The nas cluster whose master keeps the directory and makes homes in it. Without one, the using cluster's master does.
    #[serde(default)]
    pub nas: Option<Name>,
    /// Where the content lies on the machine that keeps it.
    pub path: SharePath,
    /// What tells this share from any other: written into a marker file at its root.
    pub marker: Marker,
}

impl Share {
    /// Where nodes mount it.
    pub fn mount_point(&self) -> String {
        mount_point(&self.name)
    }
}

/// Where nodes mount the share of this name.
pub fn mount_point(share: &Name) -> String {
    format!("/srv/phalanx/{share}")
}

/// The marker file's name at the root of a share.
pub const MARKER_FILE: &str = ".phalanx-share";

/// The directory below a share's root that holds the homes of accounts.
pub const HOMES: &str = "home";

/// 32 hexadecimal digits that name a share for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Marker(String);

impl Marker {
    /// A marker from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }

    /// The marker as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Marker {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() != 32 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Invalid::new("share marker", text, "it must be 32 hexadecimal digits"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// An absolute, normal path outside the directories that belong to the system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SharePath(String);

impl SharePath {
    /// The most characters of one.
    pub const LEN_MAX: usize = 256;
    /// What it may need below a share's own path, in characters.
    pub const ROOM: usize = 56;

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A place below it that Phalanx itself names.
    #[must_use]
    pub fn join(&self, below: &str) -> Self {
        debug_assert!(!below.starts_with('/') && !below.split('/').any(|part| part == ".."), "{below} is a path below");
        Self(format!("{}/{below}", self.0))
    }
}

impl std::str::FromStr for SharePath {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: String| Err(Invalid::new("share path", text, why));
        if !text.starts_with('/') || text.len() > Self::LEN_MAX {
            return refuse(format!("it must be an absolute path of at most {} characters", Self::LEN_MAX));
        }
        let parts: Vec<&str> = text[1..].split('/').collect();
        if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
            return refuse("it must have no empty, . or .. part and no / at its end".into());
        }
        if let Some(c) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.'))) {
            return refuse(format!("it holds {c:?}; use letters, digits, - _ . and /"));
        }
        const SYSTEM: [&str; 15] = [
            "bin", "boot", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var",
            "home",
        ];
        if SYSTEM.contains(&parts[0]) || text.starts_with("/srv/phalanx") {
            return refuse(format!(
                "/{} belongs to the system or to Phalanx; use a path such as /srv/nas/web",
                parts[0]
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

use std::fmt;
crate::name::text_value!(Marker);
crate::name::text_value!(SharePath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_paths_stay_out_of_the_system() {
        assert!("/srv/nas/web".parse::<SharePath>().is_ok());
        for bad in [
            "srv",
            "/",
            "/etc/x",
            "/srv/../etc",
            "/srv//x",
            "/srv/x/",
            "/srv/x y",
            "/srv/x\n",
            "/srv/phalanx/x",
            "/srv/\"x",
        ] {
            assert!(bad.parse::<SharePath>().is_err(), "{bad:?}");
        }
    }
}
