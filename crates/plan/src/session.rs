//! The protocol between a follower (an agent) and its upstream (a master's agent, or the panel), as two state machines without I/O.
//!
//! The follower dials; both ends speak frames of JSON ([`UpMessage`], [`DownMessage`]). The upstream pushes specs and directory changes;
//! the follower acknowledges what it has *committed*. A master is a follower of the panel and an upstream for its slaves: the same two
//! machines serve both links, so that a slave gets everything through its master.
//!
//! Invariants, asserted by the simulation in the tests: a follower's position never goes back within an incarnation; a batch is
//! applied only onto the position that it names; the same spec position with other content is refused; at most
//! [`upstream::IN_FLIGHT_MAX`] batches are unacknowledged.

pub mod follower;
pub mod message;
pub mod route;
pub mod upstream;

pub use follower::{Follower, FollowerEffect};
pub use message::{
    Batch, Command, DownMessage, FRAME_LEN_MAX, JoinReply, JoinRequest, LogPart, LogText, MergedLog, Snapshot,
    TraceAsk, UpMessage,
};
pub use route::{Place, Route};
pub use upstream::{Upstream, UpstreamEffect};

#[cfg(test)]
pub(crate) mod dice;
#[cfg(test)]
mod simulation;
