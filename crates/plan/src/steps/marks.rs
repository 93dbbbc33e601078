//! What the agent remembers beside what it can see: which files a daemon has read, what a checker refused, what a person pinned.
//!
//! Kept on disk after each step. Losing them is harmless: daemons are reloaded once more, a refused file is checked once more.

use super::desired::Desired;
use super::units::Unit;
use super::{Observed, Step};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What is remembered from one plan to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Marks {
    /// What each reader of live files has read: the digest of its files.
    pub loaded: BTreeMap<Reader, String>,
    /// The accounts' table as it was listed right after it was loaded.
    pub table: Option<String>,
    /// The last generation that was seen to work.
    pub verified: Option<u64>,
    /// Files that a checker refused, or that did not work once live.
    pub refused: Option<Refused>,
    /// A person went back to this generation.
    pub pinned: Option<Pin>,
    /// Markers of the shares that were made here. A share is made once: an absent marker means an absent disk later on.
    pub shares_made: BTreeSet<String>,
    /// The desired state and boot in which all was as it should be: what differs later in it is drift.
    pub settled: Option<Settled>,
}

/// Who reads live files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reader {
    /// phalanx-launcher.
    Launcher,
    /// phalanx-guard.
    Guard,
    /// `phalanx logs`.
    Logs,
    /// phalanx-proxy of a node.
    Proxy,
    /// phalanx-proxy of a balancer.
    Balancer,
    /// Redis of a mail cluster.
    FilterMemory,
    /// Rspamd.
    Filter,
    /// postsrsd.
    Senders,
    /// The Dovecot that knows who may log in.
    Logins,
    /// The Dovecot that opens mailboxes.
    Mailboxes,
    /// phalanx-proxy of a mail node.
    MailRouter,
    /// Postfix.
    Postfix,
    /// The Postfixes on adopted queues.
    AdoptedQueues,
    /// The kernel's NFS server.
    Exports,
    /// The kernel's nftables.
    Table,
    /// The httpds of accounts that are awake.
    Accounts,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The digest of the generation's files.
    pub digest: String,
    /// File, line and the daemon's own words.
    pub why: String,
}

/// A person's wish to stay at an earlier generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The generation.
    pub generation: u64,
    /// The digest of the files that the spec asked for then: other ones end the pin.
    pub instead_of: String,
}

/// A desired state that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// [`Desired::digest`].
    pub desired: String,
    /// The boot it was reached in.
    pub boot_id: String,
}

impl Marks {
    /// Remembers that `step` was done. `observed` is what was seen before.
    pub fn record(&mut self, step: &Step) {
        match step {
            Step::KeepShare(share) => {
                self.shares_made.insert(share.marker.as_str().to_owned());
            }
            Step::LoadTable { digest } => self.read(Reader::Table, digest),
            Step::Export { digest } => self.read(Reader::Exports, digest),
            Step::ReloadAccounts { digest } => self.read(Reader::Accounts, digest),
            Step::Start { unit, digest } | Step::Reload { unit, digest } => self.read(unit.reader(), digest),
            Step::Verify { generation, .. } => self.verified = Some(*generation),
            Step::Stop { unit } => self.forget(unit.reader()),
            Step::EndAccounts => self.forget(Reader::Accounts),
            Step::Unexport => self.forget(Reader::Exports),
            Step::RemoveTable => {
                self.forget(Reader::Table);
                self.table = None;
            }
            Step::TellRights { .. }
            | Step::BindQueue { .. }
            | Step::Unmount { .. }
            | Step::SealMountPoint { .. }
            | Step::Mount(_)
            | Step::SetSysctl { .. }
            | Step::AddAddress { .. }
            | Step::SetRoute(_)
            | Step::AddRule(_)
            | Step::Stage { .. }
            | Step::Validate { .. }
            | Step::Switch { .. }
            | Step::Link { .. }
            | Step::Unlink { .. }
            | Step::RemoveTranslation
            | Step::RemoveRule(_)
            | Step::RemoveRoute(_)
            | Step::RemoveAddress { .. }
            | Step::RemoveMount { .. }
            | Step::RemoveGeneration { .. } => {}
        }
    }

    /// Remembers that the files with this digest don't do, and why.
    pub fn refuse(&mut self, digest: String, why: String) {
        self.refused = Some(Refused { digest, why });
    }

    /// Remembers that all is as `desired` wants it.
    pub fn settle(&mut self, desired: &Desired, observed: &Observed) {
        if !self.is_settled(desired, &observed.boot_id) {
            self.settled = Some(Settled { desired: desired.digest(), boot_id: observed.boot_id.clone() });
        }
    }

    /// Whether `desired` was reached in this boot.
    pub fn is_settled(&self, desired: &Desired, boot_id: &str) -> bool {
        (self.settled.as_ref()).is_some_and(|s| s.boot_id == boot_id && s.desired == desired.digest())
    }

    /// Whether files with this digest were refused, and why.
    pub fn refusal(&self, digest: &str) -> Option<&str> {
        self.refused.as_ref().filter(|refused| refused.digest == digest).map(|refused| refused.why.as_str())
    }

    /// Whether `reader` has read the files with this digest.
    pub fn has_read(&self, reader: Reader, digest: &str) -> bool {
        self.loaded.get(&reader).is_some_and(|read| read == digest)
    }

    fn read(&mut self, reader: Reader, digest: &str) {
        self.loaded.insert(reader, digest.to_owned());
    }

    fn forget(&mut self, reader: Reader) {
        self.loaded.remove(&reader);
    }
}

impl Unit {
    /// Which reader of files it is.
    pub fn reader(self) -> Reader {
        match self {
            Unit::Launcher => Reader::Launcher,
            Unit::Guard => Reader::Guard,
            Unit::Logs => Reader::Logs,
            Unit::Proxy => Reader::Proxy,
            Unit::Balancer => Reader::Balancer,
            Unit::NfsServer => Reader::Exports,
            Unit::FilterMemory => Reader::FilterMemory,
            Unit::Filter => Reader::Filter,
            Unit::Senders => Reader::Senders,
            Unit::Logins => Reader::Logins,
            Unit::Mailboxes => Reader::Mailboxes,
            Unit::MailRouter => Reader::MailRouter,
            Unit::Postfix => Reader::Postfix,
            Unit::AdoptedQueues => Reader::AdoptedQueues,
        }
    }
}
