//! What the daemons of a mail node read: Postfix, Dovecot, Rspamd and what serves them.
//!
//! Every node takes mail in (Postfix) and knows who may log in (a Dovecot that opens no mailbox); the holder of the cluster's mailboxes alone
//! runs the Dovecot that opens them. Whoever wants a mailbox goes through two hops of phalanx-proxy: on its own node to the holder, and
//! on the holder, where the second one is the only way to Dovecot.
//!
//! The files name domains, mailboxes and aliases nowhere: daemons look these up in SQLite files ([`lookup`]), so that a change of them
//! changes no file here.

pub mod dovecot;
pub mod filter;
pub mod lookup;
pub mod postfix;
pub mod probe;
pub mod router;
#[cfg(test)]
mod tests;

use crate::render::Files;
use crate::spec::mail::MailSpec;
use crate::spec::{NodeSpec, Work, queue_mount_point};
use crate::steps::Observed;
use crate::steps::units::Unit;
use phalanx_model::Right;
use std::collections::BTreeSet;

/// Ports on a mail node that the world does not see.
pub mod port {
    /// Dovecot's of the holder, on 127.0.0.1: what comes here was let in by the hop before it and begins with a PROXY header, but for
    /// LMTP and the question for a mailbox's room.
    pub const DOVECOT_IMAP: u16 = 10_143;
    /// IMAP in TLS.
    pub const DOVECOT_IMAPS: u16 = 10_993;
    /// POP3.
    pub const DOVECOT_POP3: u16 = 10_110;
    /// POP3 in TLS.
    pub const DOVECOT_POP3S: u16 = 10_995;
    /// ManageSieve.
    pub const DOVECOT_SIEVE: u16 = 14_190;
    /// Delivery.
    pub const DOVECOT_LMTP: u16 = 10_024;
    /// Whether a mailbox has room.
    pub const DOVECOT_QUOTA: u16 = 10_340;
    /// The holder's hop, on its main address, for the nodes of its cluster: each is the port of Dovecot's plus this.
    pub const HOP_OFFSET: u16 = 10_000;
    /// This node's way to deliver into a mailbox, on 127.0.0.1.
    pub const LOCAL_LMTP: u16 = 10_025;
    /// This node's way to ask whether a mailbox has room, on 127.0.0.1.
    pub const LOCAL_QUOTA: u16 = 10_341;
    /// Postfix' second entrance, on 127.0.0.1, for forwarded mail on its way out.
    pub const FORWARDED: u16 = 10_026;
    /// Postfix' entrance for what mailboxes send by themselves (answers while away, redirections), on 127.0.0.1.
    pub const FROM_MAILBOXES: u16 = 10_027;
    /// postsrsd: a sender's address made ours, and back.
    pub const SRS_FORWARD: u16 = 10_001;
    /// postsrsd, back.
    pub const SRS_REVERSE: u16 = 10_002;
    /// Rspamd's milter, on 127.0.0.1.
    pub const FILTER: u16 = 11_332;
    /// Rspamd's controller, on 127.0.0.1.
    pub const FILTER_CONTROL: u16 = 11_334;
    /// Redis, on the master's main address: what the filters of all nodes share.
    pub const FILTER_MEMORY: u16 = 6_390;
}

/// Where the node's daemons log, each in a file of its own.
pub const LOGS: &str = "/var/log/phalanx";

/// What only one node may do, and this one shall not and was seen not to: `observed` was seen after `spec` was adopted.
pub fn released(spec: Option<&NodeSpec>, observed: &Observed) -> BTreeSet<Right> {
    let Some(NodeSpec { server, work: Work::Mail(Some(mail)), .. }) = spec else { return BTreeSet::new() };
    let runs = |unit: Unit| observed.units.get(&unit).is_some_and(|seen| seen.active || seen.enabled);
    let holds = mail.mailboxes.holder.as_ref().is_some_and(|holder| holder.server == *server);
    let has_open = observed.mailbox_openers > 0 || runs(Unit::Mailboxes);
    let mailboxes = (!holds && !has_open).then_some(Right::Mailboxes);
    let queues = mail.all_queues.iter().filter(|of| !mail.queues.contains_key(*of)).filter(|of| {
        let at = queue_mount_point(of);
        let is_mounted = observed.mounts.iter().any(|seen| seen.mount_point == at);
        let is_run = *of == server && runs(Unit::Postfix);
        !is_mounted && !is_run && !observed.queue_users.contains(*of)
    });
    mailboxes.into_iter().chain(queues.cloned().map(Right::Queue)).collect()
}

/// The files of a mail node's generation.
pub fn files(spec: &NodeSpec, mail: &MailSpec) -> Files {
    [postfix::files(spec, mail), dovecot::files(spec, mail), filter::files(spec, mail), router::files(spec, mail)]
        .into_iter()
        .flatten()
        .collect()
}
