//! `mail.json`: the hops between the world and mailboxes, as phalanx-proxy makes them on a mail node.
//!
//! A [`Way`] leads from this node to the node that holds the mailboxes; a [`Hop`] on the holder leads from the nodes of the cluster to Dovecot, and
//! is the only way there. While mailboxes move nobody holds them: ways keep their clients waiting for a while.

use super::port;
use crate::proxy_config::in_range;
use crate::render::Files;
use crate::spec::NodeSpec;
use crate::spec::mail::MailSpec;
use phalanx_model::Name;
use phalanx_model::mail::MailProtocol;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

/// The configuration's file.
pub const FILE: &str = "mail.json";
/// Certificate and key for clients in one file, the key first (postconf(5), `smtpd_tls_chain_files`). Its name makes it a secret.
pub const TLS_FILE: &str = "secret-tls.pem";

/// `mail.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    /// The node's name.
    pub server: Name,
    /// From here to the holder.
    pub ways: Vec<Way>,
    /// On the holder: from the nodes to Dovecot.
    #[serde(default)]
    pub hops: Vec<Hop>,
    /// Who may come through the hops.
    #[serde(default)]
    pub nodes: BTreeSet<Ipv4Addr>,
    /// The balancers' addresses: their checks come from there, and whoever reaches an external address from an internal network does too.
    /// So one of these stands for many clients.
    #[serde(default)]
    pub balancers: BTreeSet<Ipv4Addr>,
    /// Bounds.
    #[serde(default)]
    pub limits: MailLimits,
    /// Statistics, rewritten each second.
    #[serde(default = "MailConfig::status_default")]
    pub status: PathBuf,
}

/// From this node to the holder of the mailboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// Where clients come.
    pub listen: SocketAddrV4,
    /// What they speak, in a word for logs and statistics.
    pub protocol: String,
    /// The holder's hop; none while mailboxes move.
    pub to: Option<SocketAddrV4>,
    /// Whether a PROXY header, version 2, names the client to the other end.
    pub names_client: bool,
}

/// On the holder, the way to Dovecot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hop {
    /// Where the ways of the nodes lead.
    pub listen: SocketAddrV4,
    /// What is spoken.
    pub protocol: String,
    /// Dovecot's listener.
    pub to: SocketAddrV4,
}

/// Bounds of the ways and hops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MailLimits {
    /// Connections at a time, over all ways; the same again over all hops. The process's limit of open files lowers it where it is too
    /// small: a connection needs two.
    pub connections_max: usize,
    /// Connections at a time over all ways from one address of the world; a balancer's may have a quarter of all.
    pub connections_per_client_max: usize,
    /// How long a client is kept waiting for a holder.
    pub wait_timeout_ms: u64,
    /// For connecting to the next hop.
    pub connect_timeout_ms: u64,
    /// Without a byte either way; above the 30 minutes that IMAP's IDLE may be silent (RFC 2177).
    pub idle_timeout_ms: u64,
    /// How long a delivery may take to its end when its way leads nowhere any more. Mailboxes move no sooner.
    pub finish_timeout_ms: u64,
    /// How long connections may go on when the service is stopped.
    pub shutdown_timeout_ms: u64,
}

impl Default for MailLimits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_client_max: 200,
            wait_timeout_ms: 20_000,
            connect_timeout_ms: 5_000,
            idle_timeout_ms: 1_860_000,
            finish_timeout_ms: 5_000,
            shutdown_timeout_ms: 2_000,
        }
    }
}

impl MailLimits {
    fn problems(&self) -> Vec<String> {
        let Self {
            connections_max,
            connections_per_client_max,
            wait_timeout_ms,
            connect_timeout_ms,
            idle_timeout_ms,
            finish_timeout_ms,
            shutdown_timeout_ms,
        } = *self;
        let day_ms = 86_400_000;
        let mut problems = Vec::new();
        for (what, value, range) in [
            ("connections_max", connections_max as u64, 1..=1_000_000),
            ("connections_per_client_max", connections_per_client_max as u64, 1..=1_000_000),
            ("wait_timeout_ms", wait_timeout_ms, 0..=300_000),
            ("connect_timeout_ms", connect_timeout_ms, 50..=60_000),
            ("idle_timeout_ms", idle_timeout_ms, 100..=day_ms),
            ("finish_timeout_ms", finish_timeout_ms, 0..=15_000),
            ("shutdown_timeout_ms", shutdown_timeout_ms, 0..=day_ms),
        ] {
            in_range(&mut problems, "limits", what, value, range);
        }
        problems
    }
}

impl MailConfig {
    fn status_default() -> PathBuf {
        "/run/phalanx/mail-router/status.json".into()
    }

    /// The configuration of a mail node.
    pub fn new(spec: &NodeSpec, mail: &MailSpec) -> Self {
        let holder = mail.mailboxes.holder.as_ref();
        let hop_of = |dovecot: u16| holder.map(|h| SocketAddrV4::new(h.address, dovecot + port::HOP_OFFSET));
        let to_world = mail.listen.iter().filter_map(|(listen, protocol)| {
            let (word, dovecot) = dovecot_port(*protocol)?;
            Some(Way { listen: *listen, protocol: word.to_owned(), to: hop_of(dovecot), names_client: true })
        });
        let own = OWN.map(|(word, at, dovecot)| Way {
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, at),
            protocol: word.to_owned(),
            to: hop_of(dovecot),
            names_client: false,
        });
        let is_holder = holder.is_some_and(|holder| holder.server == spec.server);
        let hops = HOPS.iter().filter(|_| is_holder).map(|(word, dovecot)| Hop {
            listen: SocketAddrV4::new(spec.address.ip, dovecot + port::HOP_OFFSET),
            protocol: (*word).to_owned(),
            to: SocketAddrV4::new(Ipv4Addr::LOCALHOST, *dovecot),
        });
        Self {
            server: spec.server.clone(),
            ways: to_world.chain(own).collect(),
            hops: hops.collect(),
            nodes: mail.nodes.clone(),
            balancers: mail.balancers.clone(),
            limits: MailLimits::default(),
            status: Self::status_default(),
        }
    }

    /// All that is wrong with it; empty when it can be used.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.limits.problems();
        if self.ways.is_empty() {
            problems.push("\"ways\" is empty: name at least one".to_owned());
        }
        let ways = self.ways.iter().map(|way| (way.listen, &way.protocol, way.to));
        let hops = self.hops.iter().map(|hop| (hop.listen, &hop.protocol, Some(hop.to)));
        let way_listens: BTreeSet<SocketAddrV4> = self.ways.iter().map(|way| way.listen).collect();
        let mut listens = BTreeSet::new();
        for (listen, protocol, to) in ways.chain(hops) {
            if !listens.insert(listen) {
                problems.push(format!("{listen} is listened on twice: an address:port has one user"));
            }
            if !HOPS.iter().any(|(word, _)| word == protocol) {
                let words = HOPS.map(|(word, _)| word).join(", ");
                problems.push(format!("{listen}: the protocol {protocol:?} is not known; it must be one of {words}"));
            }
            if let Some(to) = to.filter(|to| *to == listen || way_listens.contains(to)) {
                problems.push(format!("{listen} leads to {to}, which leads on itself: that is a circle"));
            }
        }
        problems
    }
}

/// For Postfix on the same node.
const OWN: [(&str, u16, u16); 2] =
    [("lmtp", port::LOCAL_LMTP, port::DOVECOT_LMTP), ("quota", port::LOCAL_QUOTA, port::DOVECOT_QUOTA)];

/// All that Dovecot listens on.
const HOPS: [(&str, u16); 7] = [
    ("imap", port::DOVECOT_IMAP),
    ("imaps", port::DOVECOT_IMAPS),
    ("pop3", port::DOVECOT_POP3),
    ("pop3s", port::DOVECOT_POP3S),
    ("sieve", port::DOVECOT_SIEVE),
    ("lmtp", port::DOVECOT_LMTP),
    ("quota", port::DOVECOT_QUOTA),
];

fn dovecot_port(protocol: MailProtocol) -> Option<(&'static str, u16)> {
    match protocol {
        MailProtocol::Imap => Some(HOPS[0]),
        MailProtocol::Imaps => Some(HOPS[1]),
        MailProtocol::Pop3 => Some(HOPS[2]),
        MailProtocol::Pop3s => Some(HOPS[3]),
        MailProtocol::Sieve => Some(HOPS[4]),
        MailProtocol::Smtp | MailProtocol::Submission | MailProtocol::Submissions => None,
    }
}

/// The files.
pub fn files(spec: &NodeSpec, mail: &MailSpec) -> Files {
    let tls = format!("{}{}", mail.secrets.tls_key_pem, mail.secrets.tls_chain_pem);
    Files::from([(FILE.to_owned(), crate::render::json(&MailConfig::new(spec, mail))), (TLS_FILE.to_owned(), tls)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> MailConfig {
        serde_json::from_str(text).expect(text)
    }

    #[test]
    fn what_is_not_said_has_a_default_that_is_valid() {
        let way = r#"{"listen":"10.9.0.41:143","protocol":"imap","to":null,"names_client":true}"#;
        let config = config(&format!(r#"{{"server":"mail1","ways":[{way}]}}"#));
        assert_eq!(config.problems(), Vec::<String>::new());
        assert!(config.limits.idle_timeout_ms > 1_800_000, "RFC 2177 lets a client be silent for half an hour");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let way = |listen: &str, protocol: &str, to: &str| {
            format!(r#"{{"listen":"{listen}","protocol":"{protocol}","to":"{to}","names_client":true}}"#)
        };
        let ways = [
            way("10.9.0.41:143", "imap", "10.9.0.41:20143"),
            way("10.9.0.41:143", "gopher", "10.9.0.41:20143"),
            way("10.9.0.41:110", "pop3", "10.9.0.41:143"),
        ];
        let hop = r#"{"listen":"10.9.0.41:20143","protocol":"imap","to":"10.9.0.41:20143"}"#;
        let limits = r#"{"idle_timeout_ms":1}"#;
        let text = format!(r#"{{"server":"mail1","ways":[{}],"hops":[{hop}],"limits":{limits}}}"#, ways.join(","));
        assert_eq!(
            config(&text).problems(),
            [
                "\"limits.idle_timeout_ms\" is 1; it must be 100 to 86400000",
                "10.9.0.41:143 is listened on twice: an address:port has one user",
                "10.9.0.41:143: the protocol \"gopher\" is not known; it must be one of imap, imaps, pop3, pop3s, sieve, lmtp, quota",
                "10.9.0.41:110 leads to 10.9.0.41:143, which leads on itself: that is a circle",
                "10.9.0.41:20143 leads to 10.9.0.41:20143, which leads on itself: that is a circle",
            ]
        );
        assert_eq!(config(r#"{"server":"mail1","ways":[]}"#).problems(), ["\"ways\" is empty: name at least one"]);
    }
}
