//! Floor 1: the values of Phalanx and the rules between them.
//!
//! Everything here is a plain value. A value that exists is valid: names, addresses and numbers are checked when they are made,
//! also when they arrive through serde. [`fleet::Fleet`] holds the small part of the world (servers, clusters, shares, addresses,
//! logical servers) and refuses every change that would break a rule of the original; [`directory`] holds the large part
//! (accounts and sites) as rows.
//!
//! Deliberately absent: I/O, clocks, randomness, rendering, and any knowledge of how a rule's refusal reaches a person.

pub mod account;
pub mod address;
pub mod cluster;
pub mod directory;
pub mod fleet;
pub mod grant;
pub mod mail;
pub mod name;
pub mod php;
pub mod position;
pub mod queue;
pub mod rule;
pub mod server;
pub mod share;
pub mod site;

pub use account::{Account, AccountState, Limits, Uid};
pub use address::{ExternalAddress, LogicalServer};
pub use cluster::{Cluster, ClusterKind, Role};
pub use directory::{DirectoryChange, Row, RowKey};
pub use fleet::{Fleet, FleetChange};
pub use grant::{Grant, Right};
pub use mail::{AliasSource, LocalAddress, MailAddress, MailAlias, MailDomain, MailProtocol, Mailbox};
pub use name::{HostName, Invalid, Name};
pub use php::PhpVersion;
pub use position::Position;
pub use rule::{Refusal, Rule};
pub use server::Server;
pub use share::{Share, ShareKind};
pub use site::{RelativePath, Site};
