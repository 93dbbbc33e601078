//! The sans-I/O core: HTTP/1.1 between a client and an upstream, as functions and state machines over bytes (RFC 9110, 9112).
//!
//! [`request`] and [`response`] read heads strictly; [`body`] follows a body's framing without holding it; [`forward`] writes the
//! heads that go on; [`relay`] ties them into one state machine per client connection, which says what it wants to read and write
//! and is told what happened.
//!
//! Invariants: whatever two parsers could read differently is refused, on both sides, so that no request or response can be
//! smuggled; memory per connection is bounded by two buffers of one head's size; no byte after a message's end is taken for part of it.
//!
//! Deliberately absent: sockets, clocks, names of accounts, and anything about who may ask for what.

pub mod body;
pub mod buffer;
pub mod forward;
pub mod head;
pub mod relay;
pub mod request;
pub mod response;

/// A head's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes, with the empty line at its end.
    pub bytes_max: usize,
    /// Fields.
    pub fields_max: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { bytes_max: 32 * 1024, fields_max: 100 }
    }
}
