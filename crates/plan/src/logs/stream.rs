//! Kinds of logs that go to a share, each with segments, a merger's state and merged logs of its own.

use serde::{Deserialize, Serialize};

/// A kind of log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// What sites were asked for: one merged log for each site.
    Access,
    /// What went wrong at sites, as their accounts' httpd says it: one merged log for each site.
    Errors,
    /// What the daemons of a mail cluster say: one merged log for the cluster.
    Mail,
}

impl Stream {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Access, Self::Errors, Self::Mail];

    /// Where its logs on their way lie, below the share's root. Those of one stream lie within [`super::DIRECTORY`]; no node's name begins with a
    /// full stop.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Access => super::DIRECTORY,
            Self::Errors => ".phalanx-logs/.errors",
            Self::Mail => ".phalanx-logs/.mail",
        }
    }

    /// Where a node writes its segments.
    pub fn local(self) -> &'static str {
        match self {
            Self::Access => super::LOCAL,
            Self::Errors => "/var/log/phalanx/errors",
            Self::Mail => "/var/log/phalanx/mail",
        }
    }

    /// Whether each site has a log of its own; otherwise all lines are in the cluster's.
    pub fn is_by_site(self) -> bool {
        self != Self::Mail
    }

    /// What a merged log is called.
    pub fn file(self) -> &'static str {
        match self {
            Self::Access => "access.log",
            Self::Errors => "error.log",
            Self::Mail => "mail.log",
        }
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Access => "access",
            Self::Errors => "errors",
            Self::Mail => "mail",
        })
    }
}
