//! A whole panel over loopback: its API over HTTP, its link over TLS with a follower of the real protocol.

mod api;
mod backup;
mod document;
mod fencing;
mod follower;
mod hostile;
mod leaving;
mod link;
mod mail;
mod records;
mod support;
