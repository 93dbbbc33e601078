//! Mail: domains, mailboxes and aliases.
//!
//! Addresses are those of RFC 5321 as far as they are in use: a local part of plain characters without quoting, a domain of the DNS.
//! Internationalised domains are kept in their ASCII form ([`HostName`]); local parts outside ASCII (RFC 6531) are not offered. So an address
//! holds no character that a query, a configuration file, a header or a path treats specially.

use crate::name::text_value;
use crate::{HostName, Invalid, Name};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What mail nodes speak with the world, each on its port (IANA's).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailProtocol {
    /// From other mail servers (RFC 5321).
    Smtp,
    /// From those who log in, with STARTTLS (RFC 6409).
    Submission,
    /// The same in TLS from the first byte (RFC 8314).
    Submissions,
    /// To read mail (RFC 9051), with STARTTLS.
    Imap,
    /// The same in TLS from the first byte.
    Imaps,
    /// To fetch mail (RFC 1939), with STLS.
    Pop3,
    /// The same in TLS from the first byte.
    Pop3s,
    /// To keep Sieve scripts (ManageSieve, RFC 5804).
    Sieve,
}

impl MailProtocol {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Smtp,
        Self::Submission,
        Self::Submissions,
        Self::Imap,
        Self::Imaps,
        Self::Pop3,
        Self::Pop3s,
        Self::Sieve,
    ];

    /// Its port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Smtp => 25,
            Self::Submission => 587,
            Self::Submissions => 465,
            Self::Imap => 143,
            Self::Imaps => 993,
            Self::Pop3 => 110,
            Self::Pop3s => 995,
            Self::Sieve => 4190,
        }
    }

    /// The protocol of a port.
    pub fn of_port(port: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.port() == port)
    }

    /// Whether it opens mailboxes, which one node at a time may do. The others take mail in, which every node may.
    pub fn opens_mailboxes(self) -> bool {
        matches!(self, Self::Imap | Self::Imaps | Self::Pop3 | Self::Pop3s | Self::Sieve)
    }
}

/// A domain that mail is taken for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailDomain {
    /// The domain, which is also its name here.
    pub name: HostName,
    /// The account that it belongs to, whose uid owns its mailboxes' files.
    pub account: Name,
    /// The mail server that it is placed on.
    pub logical_server: Name,
    /// Whether its mail is taken and its mailboxes can be opened.
    #[serde(default)]
    pub state: MailState,
}

/// Whether a domain or a mailbox is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailState {
    /// In use.
    #[default]
    Active,
    /// Kept: mail for it waits at the sender (4xx), nobody can log in.
    Suspended,
}

/// A place where mail is kept for somebody who logs in with its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mailbox {
    /// Its address.
    pub address: LocalAddress,
    /// What tells it from every other mailbox there ever was, also from an earlier one of the same address: part of the name of its
    /// directory, so that nobody inherits somebody else's mail.
    pub id: MailboxId,
    /// What proves that a password is its own.
    pub password: PasswordHash,
    /// The most that it may hold, in MiB: 1 to 1,048,576.
    pub quota_mib: QuotaMib,
    /// Whether it is in use.
    #[serde(default)]
    pub state: MailState,
}

impl Mailbox {
    /// Its directory, relative to the directory of mail on the share: `DOMAIN/LOCAL.ID`.
    pub fn directory(&self) -> String {
        format!("{}/{}.{}", self.address.domain(), self.address.local(), self.id.0)
    }
}

/// The key pair that a domain's outgoing mail is signed with (DKIM, RFC 6376).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DkimKey {
    /// Which of the domain's keys it is: the public half lies in the DNS at `SELECTOR._domainkey.DOMAIN`.
    pub selector: Name,
    /// The private half: PKCS #8 in PEM, a secret.
    pub private_pem: String,
    /// The public half as DNS shows it: the base64 text after `p=`.
    pub public_base64: String,
}

/// The private half is not shown.
impl fmt::Debug for DkimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DkimKey")
            .field("selector", &self.selector)
            .field("public_base64", &self.public_base64)
            .finish_non_exhaustive()
    }
}

/// The directory below a share's root that holds mailboxes, by domain.
pub const MAIL: &str = "mail";

/// A mailbox's number; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MailboxId(pub u64);

/// An address whose mail goes elsewhere: to mailboxes here, to addresses elsewhere, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailAlias {
    /// Whose mail.
    pub source: AliasSource,
    /// Where it goes; a mailbox that shall keep a copy of its own is named too.
    pub targets: Vec<MailAddress>,
}

impl MailAlias {
    /// The most targets that an alias may have.
    pub const TARGETS_MAX: usize = 100;
}

/// An address of a domain of ours: `LOCAL@DOMAIN` in lower case. The local part has 1 to 64 of `a-z`, `0-9`, `.`, `_` and `-`; it begins
/// and ends with a letter or digit. What follows a `+` at delivery belongs to the mailbox before it (RFC 5233), so no address has one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LocalAddress(String);

impl LocalAddress {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the `@`.
    pub fn local(&self) -> &str {
        self.parts().0
    }

    /// The part after it.
    pub fn domain(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('@').expect("an address that exists has an @")
    }
}

impl FromStr for LocalAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| Err(Invalid::new("mail address", text, why));
        let (local, domain) = split(text)?;
        let local = local.to_ascii_lowercase();
        if let Some(c) = local.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
            return refuse(&format!("it holds {c:?} before the @; use a-z, 0-9, dots, - and _"));
        }
        let edge = |c: char| c.is_ascii_alphanumeric();
        if !local.starts_with(edge) || !local.ends_with(edge) || local.contains("..") {
            return refuse(
                "what is before the @ must begin and end with a letter or digit and have no two dots in a row",
            );
        }
        Ok(Self(format!("{local}@{domain}")))
    }
}

/// Whose mail an alias redirects: an address, or `@DOMAIN` for every address of a domain that is nothing else (a catch-all).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AliasSource(String);

impl AliasSource {
    /// The source as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        self.0.split_once('@').map_or("", |(_, domain)| domain)
    }

    /// Whether it stands for a whole domain.
    pub fn is_catch_all(&self) -> bool {
        self.0.starts_with('@')
    }
}

impl FromStr for AliasSource {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.strip_prefix('@') {
            Some(domain) => Ok(Self(format!("@{}", domain.parse::<HostName>()?))),
            None => Ok(Self(text.parse::<LocalAddress>()?.0)),
        }
    }
}

/// Any address that mail can be sent to: an RFC 5321 dot-string of letters, digits and `.!#$%&'*+/=?^_{}~-` less what mail servers have
/// read as commands or routes in the past (`!`, `%`, `|`, `/` and quotes), at a domain of the DNS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MailAddress(String);

impl MailAddress {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MailAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| Err(Invalid::new("mail address", text, why));
        let (local, domain) = split(text)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".#$&*+=?^_{}~-".contains(c);
        if let Some(c) = local.chars().find(|c| !is_plain(*c)) {
            return refuse(&format!("it holds {c:?} before the @; mail can't be redirected to such an address"));
        }
        if local.starts_with(['.', '-']) || local.ends_with('.') || local.contains("..") {
            return refuse(
                "what is before the @ must not begin with a dot or hyphen, end with a dot, nor have two dots in a row",
            );
        }
        Ok(Self(format!("{local}@{domain}")))
    }
}

/// Local part and domain; RFC 5321, 4.5.3.1: at most 64 and 255 bytes, 254 in all.
fn split(text: &str) -> Result<(&str, HostName), Invalid> {
    let refuse = |why: &str| Err(Invalid::new("mail address", text, why));
    let Some((local, domain)) = text.rsplit_once('@') else { return refuse("it has no @; give LOCAL@DOMAIN") };
    if let Some(c) = local.chars().find(|c| !c.is_ascii()) {
        return refuse(&format!(
            "it holds {c:?} before the @: letters outside ASCII are taken in the domain alone, since many mail servers refuse them before the @ (SMTPUTF8, RFC 6531); use a-z, 0-9, dots, - and _ there"
        ));
    }
    let domain = domain.parse::<HostName>().map_err(|invalid| Invalid::new("mail address", text, invalid.why))?;
    if local.is_empty() || local.len() > 64 || local.len() + 1 + domain.as_str().len() > 254 {
        return refuse("it must have 1 to 64 characters before the @, and 254 in all");
    }
    Ok((local, domain))
}

/// A password's hash in the form `{SCHEME}TEXT` that Dovecot reads: `{ARGON2ID}` or `{BLF-CRYPT}` or `{SHA512-CRYPT}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PasswordHash(String);

impl PasswordHash {
    /// The schemes that are taken.
    pub const SCHEMES: [&str; 3] = ["{ARGON2ID}", "{BLF-CRYPT}", "{SHA512-CRYPT}"];

    /// The hash as text, a secret.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Not shown: whoever has the hash can try passwords.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

impl FromStr for PasswordHash {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // The text is a secret, so the refusal does not hold it.
        let refuse = |why: &str| Err(Invalid::new("password hash", "(not shown)", why));
        let Some(rest) = Self::SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)) else {
            return refuse("it must begin with {ARGON2ID}, {BLF-CRYPT} or {SHA512-CRYPT}");
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "$./,=+-_".contains(c);
        if !rest.starts_with('$') || rest.len() < 20 || rest.len() > 300 || !rest.chars().all(is_plain) {
            return refuse("what follows the scheme must be a hash such as $argon2id$…, of 20 to 300 characters");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for PasswordHash {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<PasswordHash> for String {
    fn from(hash: PasswordHash) -> String {
        hash.0
    }
}

/// The most that a mailbox may hold, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct QuotaMib(u32);

impl QuotaMib {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl Default for QuotaMib {
    fn default() -> Self {
        Self(1_024)
    }
}

impl TryFrom<u32> for QuotaMib {
    type Error = Invalid;
    fn try_from(mib: u32) -> Result<Self, Invalid> {
        if (1..=1_048_576).contains(&mib) {
            Ok(Self(mib))
        } else {
            Err(Invalid::new("quota", &mib.to_string(), "it must be 1 to 1048576 MiB"))
        }
    }
}

impl From<QuotaMib> for u32 {
    fn from(quota: QuotaMib) -> u32 {
        quota.0
    }
}

text_value!(LocalAddress);
text_value!(AliasSource);
text_value!(MailAddress);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn our_addresses_are_lower_case_and_plain() {
        assert_eq!("Info@Example.ORG".parse::<LocalAddress>().unwrap().as_str(), "info@example.org");
        assert_eq!("a.b-c_9@example.org".parse::<LocalAddress>().unwrap().local(), "a.b-c_9");
        for bad in [
            "",
            "@",
            "info",
            "info@",
            "@example.org",
            "info@localhost",
            "in fo@example.org",
            "info+x@example.org",
            ".a@example.org",
            "a.@example.org",
            "a..b@example.org",
            "-a@example.org",
            "a\n@example.org",
            "a@b@example.org",
            "\"a\"@example.org",
            "a'@example.org",
            "a@example.org\r\nRCPT TO:<x@y.org>",
            "jürgen@example.org",
            "a@ｅxample.org",
            "a/../b@example.org",
            "a%b@example.org",
        ] {
            assert!(bad.parse::<LocalAddress>().is_err(), "{bad:?}");
        }
        assert!(format!("{}@example.org", "a".repeat(65)).parse::<LocalAddress>().is_err());
        // The longest domain that is left for the longest local part, and one more.
        let domain = |last: usize| format!("{0}.{0}.{1}.example", "d".repeat(63), "d".repeat(last));
        assert!(format!("{}@{}", "a".repeat(64), domain(53)).parse::<LocalAddress>().is_ok());
        assert!(format!("{}@{}", "a".repeat(64), domain(54)).parse::<LocalAddress>().is_err());
    }

    #[test]
    fn letters_outside_ascii_are_for_domains() {
        let address = "info@Bücher.example".parse::<LocalAddress>().unwrap();
        assert_eq!(address.as_str(), "info@xn--bcher-kva.example");
        assert_eq!("@bücher.example".parse::<AliasSource>().unwrap().as_str(), "@xn--bcher-kva.example");
        assert_eq!("A@bücher.example".parse::<MailAddress>().unwrap().as_str(), "A@xn--bcher-kva.example");
        let refusal = "jürgen@example.org".parse::<LocalAddress>().unwrap_err().to_string();
        assert!(refusal.contains("'ü' before the @") && refusal.contains("RFC 6531"), "{refusal}");
    }

    #[test]
    fn a_catch_all_is_a_domain() {
        let all = "@Example.org".parse::<AliasSource>().unwrap();
        assert!(all.is_catch_all() && all.domain() == "example.org");
        assert!("@".parse::<AliasSource>().is_err() && "@a@b.org".parse::<AliasSource>().is_err());
        assert_eq!("sales@example.org".parse::<AliasSource>().unwrap().domain(), "example.org");
    }

    #[test]
    fn foreign_addresses_carry_no_commands() {
        for good in ["Some.One+tag@example.com", "o_o=1@sub.example.com", "x{y}~z@example.com"] {
            assert!(good.parse::<MailAddress>().is_ok(), "{good}");
        }
        for bad in [
            "|/bin/sh@example.com",
            "/var/mail/x@example.com",
            "a!b@example.com",
            "a%b@example.com",
            "a,b@example.com",
            "-f@example.com",
            "a b@example.com",
            "\"x\"@example.com",
            "a@example.com,b@example.com",
            "a@[10.0.0.1]",
            ":include:/etc/passwd@example.com",
        ] {
            assert!(bad.parse::<MailAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_is_never_kept_plain_nor_shown() {
        let text = "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$8AsAtSEMStGGcnlgt75B7w$pPWZcotYpJE3PL";
        let hash = text.parse::<PasswordHash>().unwrap();
        assert!(!format!("{hash:?}").contains("argon2id$"));
        for bad in ["secret", "{PLAIN}secret", "{ARGON2ID}secret", "{SHA512-CRYPT}$6$a' OR 1=1 --aaaaaaaaaaaaaaaaa"] {
            let refusal = bad.parse::<PasswordHash>().unwrap_err().to_string();
            assert!(!refusal.contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn a_new_mailbox_of_an_old_address_has_another_directory() {
        let mailbox = |id| Mailbox {
            address: "info@example.org".parse().unwrap(),
            id: MailboxId(id),
            password: "{SHA512-CRYPT}$6$saltsaltsaltsaltsalt".parse().unwrap(),
            quota_mib: QuotaMib::default(),
            state: MailState::default(),
        };
        assert_eq!(mailbox(7).directory(), "example.org/info.7");
        assert_ne!(mailbox(7).directory(), mailbox(8).directory());
    }

    proptest! {
        #[test]
        fn an_address_that_exists_has_only_safe_characters(text in "\\PC{0,20}@\\PC{0,12}\\.org") {
            if let Ok(address) = text.parse::<LocalAddress>() {
                prop_assert!(address.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-@".contains(&b)));
                prop_assert!(!address.local().contains("..") && !address.local().starts_with('.'));
            }
            if let Ok(address) = text.parse::<MailAddress>() {
                prop_assert!(!address.as_str().contains([' ', ',', '|', '/', '"', '\'', '\\', ';', '`', '<', '>', '(', ')', '!', '%']));
            }
        }
    }
}
