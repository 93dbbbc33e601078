//! Versions of PHP: an account names one, and its nodes have those that were installed.

use crate::{Invalid, Name, Refusal, Rule};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A version of PHP as Debian names its packages: `8.2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PhpVersion(String);

impl PhpVersion {
    /// The version as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for PhpVersion {
    /// Debian 12's.
    fn default() -> Self {
        Self("8.2".to_owned())
    }
}

impl std::str::FromStr for PhpVersion {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let is_number = |part: &str| {
            let has_leading_zero = part.len() > 1 && part.starts_with('0');
            (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()) && !has_leading_zero
        };
        match text.split_once('.') {
            Some((major, minor)) if is_number(major) && is_number(minor) => Ok(Self(text.to_owned())),
            _ => Err(Invalid::new("PHP version", text, "write it as Debian does, such as 8.2")),
        }
    }
}

crate::name::text_value!(PhpVersion);

impl PhpVersion {
    /// The Debian package with the daemon that runs it.
    pub fn package(&self) -> String {
        format!("php{self}-fpm")
    }

    /// Whether an account may have this version where the nodes have those that `installed` says. Nothing is known of a node that is not
    /// in there.
    ///
    /// # Errors
    /// [`Rule::PhpIsInstalled`]: which nodes lack it, and what all of them have.
    pub fn is_on_all(&self, installed: &BTreeMap<Name, BTreeSet<PhpVersion>>) -> Result<(), Refusal> {
        let lacking: Vec<&str> =
            installed.iter().filter(|(_, has)| !has.contains(self)).map(|(node, _)| node.as_str()).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let mut sets = installed.values().cloned();
        let common = sets.next().map(|first| sets.fold(first, |all, has| &all & &has)).unwrap_or_default();
        let common = if common.is_empty() { "there is none".to_owned() } else { listed(&common) };
        let detail = format!("PHP {self} is not installed on {}", lacking.join(", "));
        let hint = format!("apt install {} there, or take what all nodes have: {common}", self.package());
        Err(Refusal::new(Rule::PhpIsInstalled, detail, hint))
    }
}

/// Versions in one line, for a person.
pub fn listed(versions: &BTreeSet<PhpVersion>) -> String {
    versions.iter().map(PhpVersion::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> PhpVersion {
        text.parse().expect("a version")
    }

    #[test]
    fn versions_are_written_as_debian_does() {
        assert_eq!(version("8.4").package(), "php8.4-fpm");
        for bad in ["", "8", "8.", "8.2.1", "8.2;", "eight.two", "08.02", "../.."] {
            assert!(bad.parse::<PhpVersion>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_version_that_a_node_lacks_is_refused_with_what_there_is() {
        let node = |name: &str, versions: &[&str]| {
            let versions = versions.iter().map(|text| version(text)).collect();
            (name.parse::<Name>().expect("a name"), versions)
        };
        let installed = BTreeMap::from([node("web1", &["8.2", "8.4"]), node("web2", &["8.2"])]);
        assert_eq!(version("8.2").is_on_all(&installed), Ok(()));
        assert_eq!(version("7.4").is_on_all(&BTreeMap::new()), Ok(()), "nothing is known");
        let refusal = version("8.4").is_on_all(&installed).expect_err("web2 lacks it");
        assert_eq!(
            refusal.to_string(),
            "PHP 8.4 is not installed on web2 (rule: an account's PHP is installed on its nodes)"
        );
        assert_eq!(refusal.hint, "apt install php8.4-fpm there, or take what all nodes have: 8.2");
        let apart = BTreeMap::from([node("web1", &["8.2"]), node("web2", &["8.4"])]);
        let refusal = version("7.4").is_on_all(&apart).expect_err("nobody has it");
        assert_eq!(refusal.detail, "PHP 7.4 is not installed on web1, web2");
        assert_eq!(refusal.hint, "apt install php7.4-fpm there, or take what all nodes have: there is none");
    }
}
