//! The rules of the fleet, by name, and the refusal that names one.

use serde::{Deserialize, Serialize};

/// A rule that a change of the fleet must keep. The first five are the original's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A slave holds no logical server.
    SlaveHoldsNoLogicalServer,
    /// A slave shares its master's kind.
    SlaveSharesMastersKind,
    /// A master that has slaves is neither unmarked nor deleted.
    MasterWithSlavesStays,
    /// What is in use is not removed.
    InUseIsNotRemoved,
    /// An external address and port has one user.
    ExternalAddressHasOneUser,
    /// A name is used once among things of its kind.
    NameIsUnique,
    /// An internal address belongs to one server.
    InternalAddressHasOneServer,
    /// A server belongs to one cluster at most.
    ServerBelongsToOneCluster,
    /// What a thing refers to exists.
    ReferenceExists,
    /// Things that work together are of fitting kinds.
    KindsFit,
    /// A value lies in its range.
    ValueInRange,
    /// No step takes the last healthy node out of service.
    LastNodeStays,
    /// An account's PHP is installed on its nodes.
    PhpIsInstalled,
    /// A grant moves when its holder released it or is fenced.
    GrantMovesByProof,
}

impl Rule {
    /// The rule in one sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::SlaveHoldsNoLogicalServer => "a slave holds no logical server",
            Self::SlaveSharesMastersKind => "a slave shares its master's kind",
            Self::MasterWithSlavesStays => "a master that has slaves is neither unmarked nor deleted",
            Self::InUseIsNotRemoved => "what is in use is not removed",
            Self::ExternalAddressHasOneUser => "an external address and port has one user",
            Self::NameIsUnique => "a name is used once among things of its kind",
            Self::InternalAddressHasOneServer => "an internal address belongs to one server",
            Self::ServerBelongsToOneCluster => "a server belongs to one cluster at most",
            Self::ReferenceExists => "what a thing refers to exists",
            Self::KindsFit => "things that work together are of fitting kinds",
            Self::ValueInRange => "a value lies in its range",
            Self::LastNodeStays => "no step takes the last healthy node out of service",
            Self::PhpIsInstalled => "an account's PHP is installed on its nodes",
            Self::GrantMovesByProof => "a grant moves when its holder released it or is fenced, never otherwise",
        }
    }
}

/// Why a change was refused: the rule, the facts, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} (rule: {})", rule.sentence())]
pub struct Refusal {
    /// The rule that the change would break.
    pub rule: Rule,
    /// The facts: which things stand in the way.
    pub detail: String,
    /// What to do instead.
    pub hint: String,
}

impl Refusal {
    /// A refusal under `rule`.
    pub fn new(rule: Rule, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { rule, detail: detail.into(), hint: hint.into() }
    }
}
