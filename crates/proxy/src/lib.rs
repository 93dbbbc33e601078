//! The data plane of Phalanx: what handles clients' connections on balancers, web nodes and mail nodes.
//!
//! [`http`] is a sans-I/O core: bytes in, decisions and bytes out. [`node`] drives it on sockets, finds the account of each request
//! and wakes it. [`balancer`] checks nodes and keeps the kernel's nftables table as [`phalanx_plan::balance`] decides. [`mail`] leads
//! clients of a mail node to the one that holds the mailboxes, and there to Dovecot.
//!
//! Invariants: nothing here needs the panel or the agent; every buffer, queue and wait is bounded; bytes of one client or account
//! never reach another.
//!
//! Deliberately absent: the panel's store, TLS (a later issue), and any choice that `plan` makes.

pub mod balancer;
pub mod config;
pub mod http;
pub mod mail;
pub mod node;
mod notify;
mod patience;
mod socket;
pub mod status;
