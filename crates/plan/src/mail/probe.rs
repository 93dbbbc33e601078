//! The probe mailbox: one for each mail cluster, which a balancer logs in to, to see that a login works and that a mailbox opens.
//!
//! It is the product's own. Its name has no domain, so no customer's mailbox has it and no letter reaches it; it stands in no list and no count. It
//! gets in by IMAP and POP3 alone, and from the cluster's balancers alone. Its files lie on the share as all mailboxes' do, and only the holder's
//! look-up file knows it.
//!
//! Its password is made from the cluster's seed and the number of the grant of mailboxes: it is another one after each move. It is 256 random bits,
//! so what proves it need not be slow: it is tried all day.

use super::lookup::PROBE_USER;
use crate::spec::NodeSpec;
use crate::spec::mail::{MailSecrets, MailSpec};
use crate::steps::generations::sha256_hex;
use phalanx_model::share::mount_point;
use phalanx_model::{Name, Uid};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A file of a balancer: cluster → [`Probe`]. Its name makes it one that phalanx-proxy and root alone can read.
pub const FILE: &str = "proxy-secret-probes.json";

/// What a balancer needs for logging in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The password, in hexadecimal digits.
    pub password: String,
    /// The certificate that the cluster shows, in PEM, itself first: the password goes to nobody else.
    pub certificate_pem: String,
}

impl Probe {
    /// For a cluster with these secrets, under this grant of its mailboxes.
    pub fn new(secrets: &MailSecrets, number: u64) -> Self {
        Self { password: password(secrets, number), certificate_pem: secrets.tls_chain_pem.clone() }
    }

    /// The mailbox' name, at login.
    pub fn user(&self) -> &'static str {
        PROBE_USER
    }
}

/// The password is not shown.
impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password, certificate_pem } = self;
        // What tells one from another, since desired states are compared by what they show.
        f.debug_tuple("Probe")
            .field(&sha256_hex(password.as_bytes()))
            .field(&sha256_hex(certificate_pem.as_bytes()))
            .finish()
    }
}

/// The probe mailbox in the holder's look-up file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeLogin {
    /// What proves the password, as Dovecot reads it.
    pub password: String,
    /// Whose its files are.
    pub uid: Uid,
    /// Where they lie.
    pub home: String,
    /// From where one may log in, separated by commas (Dovecot's `allow_nets`).
    pub networks: String,
}

impl ProbeLogin {
    /// As it should be on this node: on the holder, where there is a share and a balancer.
    pub fn of(spec: &NodeSpec, mail: &MailSpec) -> Option<Self> {
        let share = mail.share.as_ref()?;
        let is_holder = mail.mailboxes.holder.as_ref().is_some_and(|holder| holder.server == spec.server);
        if !is_holder || mail.balancers.is_empty() {
            return None;
        }
        let networks: Vec<String> = mail.balancers.iter().map(|address| format!("{address}/32")).collect();
        Some(Self {
            password: format!(
                "{{SHA256.HEX}}{}",
                sha256_hex(password(&mail.secrets, mail.mailboxes.number).as_bytes())
            ),
            uid: Uid::PROBE,
            home: format!("{}/{}/{}", mount_point(&share.share), phalanx_model::mail::MAIL, directory(&mail.cluster)),
            networks: networks.join(","),
        })
    }
}

/// Its directory beside those of domains; no domain has an underscore.
pub fn directory(cluster: &Name) -> String {
    format!("probe_{cluster}")
}

fn password(secrets: &MailSecrets, number: u64) -> String {
    secrets.for_use(&format!("probe {number}"))
}
