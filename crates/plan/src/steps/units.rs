//! Units, and everything else that reads live files: who starts, who reads again, who stops.

use super::desired::{EXPORTS_FILE, HTTPD_COMMON_FILE, TABLE_FILE};
use super::generations::{Target, digest_of, edited_by_hand, is_of};
use super::marks::Reader;
use super::{Desired, Marks, Observed, Plan, Step, diff};
use crate::mail::{dovecot, filter, probe, router};
use serde::{Deserialize, Serialize};

/// A unit that a node may need, in the order in which they start; they stop in the opposite order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// The kernel's NFS server, Debian's own unit: never stopped, since others may use it too.
    NfsServer,
    /// Wakes accounts and ends idle ones.
    Launcher,
    /// Looks after the share.
    Guard,
    /// Ships and merges logs.
    Logs,
    /// The node's proxy.
    Proxy,
    /// The balancer's proxy.
    Balancer,
    /// Redis: what the mail filters of a cluster share.
    FilterMemory,
    /// Rspamd: signs, judges and delays mail.
    Filter,
    /// postsrsd: makes senders of forwarded mail ours.
    Senders,
    /// The Dovecot that knows who may log in.
    Logins,
    /// The Dovecot that opens mailboxes, on their holder alone.
    Mailboxes,
    /// The ways to the holder, and its hop.
    MailRouter,
    /// Postfix, on this node's own queue.
    Postfix,
    /// A Postfix for each queue of another server that this node has adopted.
    AdoptedQueues,
}

impl Unit {
    /// All units.
    pub const ALL: [Unit; 14] = [
        Self::NfsServer,
        Self::Launcher,
        Self::Guard,
        Self::Logs,
        Self::Proxy,
        Self::Balancer,
        Self::FilterMemory,
        Self::Filter,
        Self::Senders,
        Self::Logins,
        Self::Mailboxes,
        Self::MailRouter,
        Self::Postfix,
        Self::AdoptedQueues,
    ];

    /// The unit's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::NfsServer => "nfs-server.service",
            Self::Launcher => "phalanx-launcher.service",
            Self::Guard => "phalanx-guard.service",
            Self::Logs => "phalanx-logs.service",
            Self::Proxy => "phalanx-proxy.service",
            Self::Balancer => "phalanx-balancer.service",
            Self::FilterMemory => "phalanx-filter-memory.service",
            Self::Filter => "phalanx-filter.service",
            Self::Senders => "phalanx-senders.service",
            Self::Logins => "phalanx-logins.service",
            Self::Mailboxes => "phalanx-mailboxes.service",
            Self::MailRouter => "phalanx-mail-router.service",
            Self::Postfix => "phalanx-postfix.service",
            Self::AdoptedQueues => "phalanx-adopted-queues.service",
        }
    }

    /// The live files that it reads; one that ends with a slash is a directory of them.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            Self::NfsServer => &[EXPORTS_FILE],
            Self::Launcher => &["launcher.json"],
            Self::Guard => &["guard.json"],
            Self::Logs => &["logs.json"],
            Self::Proxy => &["proxy.json"],
            Self::Balancer => &["balancer.json", probe::FILE],
            Self::FilterMemory => &[filter::MEMORY_FILE],
            Self::Filter => &["rspamd/"],
            Self::Senders => &[filter::SRS_FILE, filter::SENDERS_FILE],
            Self::Logins => &[dovecot::LOGINS_FILE, dovecot::SQL_FILE],
            Self::Mailboxes => &[dovecot::MAILBOXES_FILE, dovecot::SQL_FILE, router::TLS_FILE],
            Self::MailRouter => &[router::FILE],
            Self::Postfix => &["postfix/", router::TLS_FILE],
            Self::AdoptedQueues => &["adopted/", "postfix/"],
        }
    }

    /// The unit of Debian's own package that keeps this one from running: both want the same port of the loopback. Others get on with
    /// each other, or say themselves what they can't listen on.
    pub fn rival(self) -> Option<&'static str> {
        match self {
            Self::Filter => Some("rspamd.service"),
            Self::Senders => Some("postsrsd.service"),
            Self::NfsServer
            | Self::Launcher
            | Self::Guard
            | Self::Logs
            | Self::Proxy
            | Self::Balancer
            | Self::FilterMemory
            | Self::Logins
            | Self::Mailboxes
            | Self::MailRouter
            | Self::Postfix
            | Self::AdoptedQueues => None,
        }
    }

    /// Whether it is ours to stop.
    fn is_ours(self) -> bool {
        self != Self::NfsServer
    }
}

/// Plans starts, reloads and stops, given what will be live.
pub(super) fn plan_units(
    desired: &Desired,
    observed: &Observed,
    marks: &Marks,
    target: Option<&Target>,
    plan: &mut Plan,
) {
    if let Some(target) = target {
        plan_links(desired, observed, plan);
        plan_table(target, observed, marks, plan);
        plan_reload_accounts(target, observed, marks, plan);
        for unit in &desired.units {
            plan_unit(*unit, target, observed, marks, plan);
        }
        plan_exports(target, observed, marks, plan);
    }
    plan_stops(desired, observed, marks, plan);
}

fn plan_links(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    for (at, to) in &desired.links {
        if observed.links.get(at) != Some(to) {
            plan.step(Step::Link { at: at.clone(), to: to.clone() });
            plan.drifted(format!("the link {at} was changed"), format!("-{at} -> {to}\n"));
        }
    }
}

fn plan_table(target: &Target, observed: &Observed, marks: &Marks, plan: &mut Plan) {
    if !target.files.contains_key(TABLE_FILE) {
        return;
    }
    let digest = digest_of(&target.files, &[TABLE_FILE]);
    let is_as_loaded = observed.table.is_some() && observed.table == marks.table;
    if marks.has_read(Reader::Table, &digest) && is_as_loaded && !is_edited(observed, &[TABLE_FILE]) {
        return;
    }
    plan.step(Step::LoadTable { digest });
    if is_as_loaded {
        return;
    }
    let (was, is) = (marks.table.as_deref().unwrap_or(""), observed.table.as_deref().unwrap_or(""));
    plan.drifted("the accounts' nftables table was changed by hand", diff::lines(was, is));
}

fn plan_reload_accounts(target: &Target, observed: &Observed, marks: &Marks, plan: &mut Plan) {
    if !target.files.contains_key(HTTPD_COMMON_FILE) {
        return;
    }
    let digest = digest_of(&target.files, &[HTTPD_COMMON_FILE]);
    if !marks.has_read(Reader::Accounts, &digest) || is_edited(observed, &[HTTPD_COMMON_FILE]) {
        plan.step(Step::ReloadAccounts { digest });
    }
}

fn plan_unit(unit: Unit, target: &Target, observed: &Observed, marks: &Marks, plan: &mut Plan) {
    let seen = observed.units.get(&unit).copied().unwrap_or_default();
    let digest = digest_of(&target.files, unit.files());
    if !(seen.active && seen.enabled) {
        plan.step(Step::Start { unit, digest });
        let (active, enabled) = (seen.active, seen.enabled);
        plan.drifted(
            format!("the unit {} was stopped or disabled", unit.name()),
            format!("-active: true, enabled: true\n+active: {active}, enabled: {enabled}\n"),
        );
    } else if unit != Unit::NfsServer && (!marks.has_read(unit.reader(), &digest) || is_edited(observed, unit.files()))
    {
        plan.step(Step::Reload { unit, digest });
    }
    if seen.unsteady {
        plan.waiting.push(ends_by_itself(unit, observed));
    }
}

/// Says of a unit that ends by itself what may be in its way. Who set the other one up may still need it: it is not stopped.
fn ends_by_itself(unit: Unit, observed: &Observed) -> String {
    let name = unit.name();
    match unit.rival().filter(|rival| observed.rivals.contains(*rival)) {
        Some(rival) => {
            format!("{name} ends by itself: {rival} holds its ports, end that with `systemctl disable --now {rival}`")
        }
        None => format!("{name} ends by itself, again and again if this stays: `journalctl -u {name}` has its words"),
    }
}

/// Whether one of these live files was changed by hand: whoever reads it may have read that.
fn is_edited(observed: &Observed, files: &[&str]) -> bool {
    edited_by_hand(observed).iter().any(|(name, _)| files.iter().any(|file| is_of(name, file)))
}

fn plan_exports(target: &Target, observed: &Observed, marks: &Marks, plan: &mut Plan) {
    if !observed.units.get(&Unit::NfsServer).is_some_and(|seen| seen.active) || !target.files.contains_key(EXPORTS_FILE)
    {
        return;
    }
    let digest = digest_of(&target.files, &[EXPORTS_FILE]);
    if !marks.has_read(Reader::Exports, &digest) || is_edited(observed, &[EXPORTS_FILE]) {
        plan.step(Step::Export { digest });
    }
}

fn plan_stops(desired: &Desired, observed: &Observed, marks: &Marks, plan: &mut Plan) {
    for unit in Unit::ALL.into_iter().rev().filter(|unit| unit.is_ours() && !desired.units.contains(unit)) {
        let leaves_some = unit == Unit::Mailboxes && observed.mailbox_openers > 0;
        if leaves_some || observed.units.get(&unit).is_some_and(|seen| seen.active || seen.enabled) {
            plan.step(Step::Stop { unit });
        }
    }
    if !desired.units.contains(&Unit::Launcher) && observed.accounts_awake > 0 {
        plan.step(Step::EndAccounts);
    }
    for at in observed.links.keys().filter(|at| !desired.links.contains_key(*at)) {
        plan.step(Step::Unlink { at: at.clone() });
    }
    if !desired.files.contains_key(EXPORTS_FILE) && marks.loaded.contains_key(&Reader::Exports) {
        plan.step(Step::Unexport);
    }
    if !desired.files.contains_key(TABLE_FILE) && observed.table.is_some() {
        plan.step(Step::RemoveTable);
    }
    // phalanx-proxy leaves its table when it ends, so that a restart costs no connection.
    if !desired.units.contains(&Unit::Balancer) && observed.translates {
        plan.step(Step::RemoveTranslation);
    }
}
