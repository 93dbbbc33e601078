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
/// An internationalised name (RFC 5890) is given in letters (`bücher.example`) or in its ASCII form (`xn--bcher-kva.example`); it is kept, and
/// shown, in its ASCII form alone, so that two names that look alike differ wherever they are seen.
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
        // In letters a name may be longer than in ASCII: three bytes of UTF-8 may be less than one of Punycode.
        if text.len() > 1_024 {
            return refuse("it is longer than 253 characters".into());
        }
        let lower = ascii_form(text).map_err(|why| Invalid::new("host name", text, why))?;
        if lower.len() > 253 {
            return refuse("it is longer than 253 characters".into());
        }
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

/// A host name in ASCII and lower case. Of letters outside ASCII only those are taken that stand for themselves: UTS #46 would read `ｅ` as `e` and
/// `①` as `1`, and somebody would have another name than he sees.
fn ascii_form(text: &str) -> Result<String, String> {
    use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
    let lower: String = text.chars().map(lower_case).collect();
    // Names without such letters are what they are; their rules are those of [`HostName`].
    if text.is_ascii() && !lower.split('.').any(|label| label.starts_with("xn--")) {
        return Ok(lower);
    }
    let ascii = Uts46::new()
        .to_ascii(lower.as_bytes(), AsciiDenyList::STD3, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| "it is no internationalised host name (RFC 5890)".to_owned())?;
    let (letters, result) = Uts46::new().to_unicode(ascii.as_bytes(), AsciiDenyList::STD3, Hyphens::Allow);
    let is_itself = result.is_ok() && (letters == lower || text.is_ascii() && ascii == lower);
    if is_itself {
        Ok(ascii.into_owned())
    } else {
        Err(format!("it holds characters that stand for others; what it would mean is {ascii}"))
    }
}

/// The lower case of a letter; but where it has none of its own, as the sign of Kelvin whose lower case is a `k`, the letter as it is.
fn lower_case(letter: char) -> char {
    let mut lower = letter.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(one), None) if one.is_ascii() == letter.is_ascii() => one,
        _ => letter,
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
        for text in ["localhost", "a..b", "-a.b", "a.b-", "10.0.0.1", "exa mple.org", "a.b\"", "a.b\n", ".a.b", "a.b."]
        {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn internationalised_host_names_are_kept_in_ascii() {
        for (text, kept) in [
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.Example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("faß.example", "xn--fa-hia.example"),
            ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
            // Cyrillic letters that look like Latin ones: nobody takes it for paypal.example.
            ("раураl.example", "xn--l-7sba6dbr.example"),
        ] {
            assert_eq!(text.parse::<HostName>().expect(text).as_str(), kept, "{text}");
        }
        for text in [
            "ｅxample.org",
            "example。org",
            "bu\u{308}cher.example",
            "①.example",
            "a\u{200b}b.example",
            "a\u{202e}b.example",
            "\u{301}a.example",
            "xn--.example",
            "xn--a.example",
            "xn--ls8h\u{e9}.example",
            "ü ü.example",
            "ü@x.example",
            "ü/x.example",
            "ü",
            "a.ü\n",
            "ⅷ.example",
            "b\u{212a}.example",
            "\u{130}.example",
            "ü..example",
        ] {
            let refused = text.parse::<HostName>();
            assert!(refused.is_err(), "{text:?} is {refused:?}");
        }
        let long = format!("{}.example", "ü".repeat(60));
        assert!(long.parse::<HostName>().is_err());
        assert!(format!("{}example", "ü.".repeat(600)).parse::<HostName>().is_err());
    }

    proptest! {
        #[test]
        fn a_host_name_that_exists_is_ascii_and_itself(text in "\\PC{0,12}\\.\\PC{1,8}") {
            if let Ok(name) = text.parse::<HostName>() {
                let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
                prop_assert!(name.as_str().bytes().all(is_plain), "{name}");
                prop_assert_eq!(name.as_str().parse::<HostName>().expect("a name that exists is valid"), name);
            }
        }

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
