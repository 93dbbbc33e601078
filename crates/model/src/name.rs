//! Names: of things in the fleet ([`Name`]) and of hosts on the net ([`HostName`]).
//!
//! Both are safe to put into a file name, a unit name, a rendered file or a query: their alphabets hold no character that any
//! of these treats specially. That is a second line of defence; quoting is still the writer's duty.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not a valid value, and what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct Invalid {
    /// What the text was meant to be: "name", "host name", …
    pub what: &'static str,
    /// The text as given, shortened to 80 characters.
    pub text: String,
    /// What is wrong and what is allowed.
    pub why: String,
}

impl Invalid {
    /// A refusal of `text` as a `what`.
    pub fn new(what: &'static str, text: &str, why: impl Into<String>) -> Self {
        Self { what, text: text.chars().take(80).collect(), why: why.into() }
    }
}

/// The name of a server, cluster, share, logical server or account: 1 to 32 of `a-z`, `0-9` and `-`, beginning with a letter,
/// not ending with `-`. It is a valid DNS label (RFC 1035) and a valid POSIX user name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The longest name, in bytes: Linux' limit for user names.
    pub const LEN_MAX: usize = 32;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| Err(Invalid::new("name", text, why));
        if text.is_empty() {
            return refuse("it is empty; use 1 to 32 of a-z, 0-9 and -");
        }
        if text.len() > Self::LEN_MAX {
            return refuse("it is longer than 32 characters");
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return refuse("it must begin with a letter a-z");
        }
        if text.ends_with('-') {
            return refuse("it must not end with a hyphen");
        }
        if let Some(c) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return refuse(&format!("it holds {c:?}; use a-z, 0-9 and -"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A host name of the DNS (RFC 1123) in lower case: at least two labels, each 1 to 63 of `a-z`, `0-9` and `-`, 253 bytes in all.
/// Internationalised names are given in their ASCII form (`xn--…`, RFC 5890).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// The host name as text, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: String| Err(Invalid::new("host name", text, why));
        if text.len() > 253 {
            return refuse("it is longer than 253 characters".into());
        }
        if !text.is_ascii() {
            return refuse("it holds characters outside ASCII; give the xn-- form (RFC 5890)".into());
        }
        let lower = text.to_ascii_lowercase();
        let labels: Vec<&str> = lower.split('.').collect();
        if labels.len() < 2 {
            return refuse("it has a single label; give a full name such as www.example.org".into());
        }
        for label in &labels {
            if label.is_empty() || label.len() > 63 {
                return refuse(format!("its label {label:?} must have 1 to 63 characters"));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return refuse(format!("its label {label:?} must not begin or end with a hyphen"));
            }
            if let Some(c) = label.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
                return refuse(format!("it holds {c:?}; use a-z, 0-9, - and dots"));
            }
        }
        if labels.last().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit())) {
            return refuse("its last label is a number, as in an IP address".into());
        }
        Ok(Self(lower))
    }
}

macro_rules! text_value {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use text_value;

text_value!(Name);
text_value!(HostName);

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_are_refused_say_why() {
        for (text, why) in [
            ("", "empty"),
            ("1web", "begin with a letter"),
            ("web-", "end with a hyphen"),
            ("web_1", "'_'"),
            ("Web", "begin with a letter"),
            ("w\n", r"'\n'"),
            ("web/../../etc", "'/'"),
        ] {
            let refusal = text.parse::<Name>().expect_err(text).to_string();
            assert!(refusal.contains(why), "{text:?}: {refusal}");
        }
        assert!("a".repeat(33).parse::<Name>().is_err());
        assert!("a".repeat(32).parse::<Name>().is_ok());
    }

    #[test]
    fn host_names_are_lower_cased_and_checked() {
        assert_eq!("WWW.Example.ORG".parse::<HostName>().unwrap().as_str(), "www.example.org");
        for text in
            ["localhost", "a..b", "-a.b", "a.b-", "10.0.0.1", "exa mple.org", "é.org", "a.b\"", "a.b\n", ".a.b", "a.b."]
        {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_exists_has_only_safe_characters(text in ".{0,40}") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert_eq!(serde_json_round_trip(&name), name);
            }
        }
    }

    fn serde_json_round_trip(name: &Name) -> Name {
        let text: String = name.clone().into();
        Name::try_from(text).expect("a name that exists is valid")
    }
}
