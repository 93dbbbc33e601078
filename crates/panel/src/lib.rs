//! Floor 5: the control panel. Store, REST API, first web page, certificate authority and the links to masters.
//!
//! A change goes through [`api`] into one transaction of the [`store`] (the change-log with its revision, the audit record), then
//! [`link`] pushes it to the masters that it concerns. [`live`] holds what the nodes report; it is lost when the panel stops and
//! comes again with the next reports.
//!
//! Invariants: the panel accepts connections and never dials; it talks to masters (and to servers that belong to no cluster) only;
//! an answer of 201 means that the change is committed; all writes stand in one queue, so that rules see the state they change.
//!
//! Deliberately absent: touching a host, rendering a file, choosing what a node should be (that is `plan`).

pub mod api;
pub mod ca;
pub mod clock;
mod dkim;
pub mod fencing;
pub mod http;
pub mod leaving;
pub mod link;
pub mod live;
pub mod moving;
pub mod page;
mod password;
mod run;
pub mod secret;
pub mod store;

pub use run::{InitOptions, RunOptions, adopt_backup, init, run, serve};

use std::sync::Arc;
use tokio::sync::watch;

/// What all parts of a running panel share.
#[derive(Clone)]
pub struct Panel {
    /// What lasts.
    pub store: store::Store,
    /// What the nodes report.
    pub live: Arc<live::Live>,
    /// Who signs the nodes' certificates.
    pub ca: Arc<ca::Ca>,
    /// Who is being fenced.
    pub fencing: Arc<fencing::Fencing>,
    /// Who follows the events.
    pub streams: Arc<api::Streams>,
    /// Where masters reach the panel's link; part of the join commands.
    pub link_address: Arc<link::LinkAddress>,
    /// Becomes true when the panel shall stop.
    pub stopping: watch::Receiver<bool>,
}
