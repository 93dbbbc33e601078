//! A whole panel over loopback: its API over HTTP, its link over TLS with a follower of the real protocol.

mod api;
mod follower;
mod hostile;
mod link;
mod support;
