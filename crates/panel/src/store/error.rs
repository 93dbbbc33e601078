//! Why the store did not do what it was asked.

use super::Kind;
use phalanx_model::{Invalid, Refusal};

/// The result of an operation of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A rule stands against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A value is not valid.
    #[error("{field}: {why}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with its value and what would be right.
        why: String,
    },
    /// The thing that the request is about does not exist.
    #[error("there is no {} {name}", kind.as_str())]
    Unknown {
        /// What it would be.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The thing is not what the asker believes.
    #[error("{} {name} was changed meanwhile: its ETag is \"{version}\" now", kind.as_str())]
    Stale {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its version now.
        version: u64,
    },
    /// The database failed.
    #[error("the panel's database failed")]
    Database(#[from] sqlx::Error),
    /// The tables could not be brought up to date.
    #[error("the panel's database could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// What is stored is not a valid value: the file was changed by hand, or by a later version.
    #[error("the panel's database holds {what} that is not valid")]
    Corrupt {
        /// What and where.
        what: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// All readers of snapshots are busy, or a transaction was lost.
    #[error("the panel is busy: {0}")]
    Busy(&'static str),
}

impl StoreError {
    /// A value of a request that is not valid.
    pub fn invalid(field: &'static str, invalid: &Invalid) -> Self {
        Self::Invalid { field, why: invalid.to_string() }
    }

    pub(super) fn corrupt(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Corrupt { what: what.into(), source: source.into() }
    }
}
