//! Sites: what an account serves under its host names.

use crate::{HostName, Invalid, Name};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A web site of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Its main host name, which is also its name.
    pub name: HostName,
    /// Other host names that it answers under.
    #[serde(default)]
    pub aliases: Vec<HostName>,
    /// The account it belongs to.
    pub account: Name,
    /// The document root, relative to the account's home.
    pub document_root: RelativePath,
}

impl Site {
    /// The most aliases a site may have.
    pub const ALIASES_MAX: usize = 100;

    /// All host names it answers under, the main one first.
    pub fn host_names(&self) -> impl Iterator<Item = &HostName> {
        std::iter::once(&self.name).chain(&self.aliases)
    }

    /// The document root that a site gets when none is given: `sites/NAME`.
    pub fn document_root_default(name: &HostName) -> RelativePath {
        RelativePath(format!("sites/{name}"))
    }
}

/// A path below an account's home: 1 to 10 parts of letters, digits, `-`, `_` and `.`; none begins with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelativePath(String);

impl RelativePath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for RelativePath {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| Err(Invalid::new("path", text, why));
        if text.is_empty() || text.len() > 300 {
            return refuse("it must have 1 to 300 characters");
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 10 {
            return refuse("it must have at most 10 parts");
        }
        if parts.iter().any(|part| part.is_empty() || part.starts_with('.') || part.len() > 255) {
            return refuse("it must be relative to the home, with no empty part and none that begins with a dot");
        }
        if let Some(c) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.'))) {
            return refuse(&format!("it holds {c:?}; use letters, digits, - _ . and /"));
        }
        Ok(Self(text.to_owned()))
    }
}

crate::name::text_value!(RelativePath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_never_leave_the_home() {
        assert!("sites/www.example.org/public".parse::<RelativePath>().is_ok());
        for bad in ["", "/etc", "a//b", "../x", "a/../b", ".ssh", "a/.b", "a b", "a\"b", "a\nb", "a/"] {
            assert!(bad.parse::<RelativePath>().is_err(), "{bad:?}");
        }
    }
}
