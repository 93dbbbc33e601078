//! How a balancer spreads new connections: from checks and load scores to exact slots, and from those to an nftables table.
//!
//! [`dialogue`] asks a mail server through its own protocol; [`health`] tells from answers whether a node is up; [`load`] damps its load score; [`slots`] turns weights into an exact
//! interleaving; [`balancer`] holds all of it for every service and decides; [`table`] renders the decision for the kernel.
//!
//! Invariants: a node that is down, drained or overloaded gets nothing new while another can take it; if all are overloaded, the
//! flag is ignored; if all are down, the last choice is kept, since then it is likelier that the check fails than all nodes; if
//! all are drained, nobody gets anything and clients are refused at once.
//!
//! Deliberately absent: sockets, clocks and randomness. Times are milliseconds of any clock that never goes back.

pub mod balancer;
pub mod dialogue;
pub mod health;
pub mod load;
pub mod slots;
pub mod table;

pub use balancer::{Balancer, Decision, Event, FlowsToEnd};
pub use health::{CheckResult, Health};
pub use load::Load;
