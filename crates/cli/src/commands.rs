//! The commands, a module for each noun. A command reads its arguments, makes one request or a few, and prints; it decides
//! nothing: what is allowed is the panel's to say.

pub mod account;
pub mod address;
pub mod alias;
pub mod cluster;
pub mod daemons;
pub mod journal;
pub mod log_view;
pub mod logical_server;
pub mod mail;
pub mod mail_domain;
pub mod mailbox;
pub mod queue;
pub mod resource;
pub mod server;
pub mod share;
pub mod site;
pub mod status;
pub mod token;
pub mod traffic;
