//! A whole data centre on one machine: hosts with Debian and systemd on networks of their own, for demonstrations and for
//! end-to-end tests. [`Lab`] brings one up from a topology, [`Host`] runs commands in its hosts and breaks them.
//!
//! Invariants:
//! - Nothing of the lab runs inside a host, so what works here works on real machines.
//! - A lab leaves nothing behind, also when it or its test is killed: all that it makes is in namespaces that end with it.
//! - Several labs run beside each other. The machine's own network, files and processes are never touched.
//! - Whatever is missing is an error that says what to install, never a test that is skipped.
//!
//! It knows nothing of the product but that it is a Debian package: tests talk to it as people do, by CLI and HTTP.

pub mod bench;
pub mod cgroup;
mod container;
pub mod demo;
pub mod enter;
mod faults;
pub mod figure;
mod forward;
pub mod guest;
mod host;
pub mod image;
mod lab;
pub mod load;
mod machine;
mod network;
pub mod paths;
pub mod protocol;
pub mod storage;
pub mod supervisor;
pub mod tools;
pub mod topology;
mod wait;

pub use cgroup::Pace;
pub use enter::{Background, Output};
pub use host::Host;
pub use lab::{Lab, Options, names, scenario, watch};
pub use wait::eventually;
