//! Whom a follower dials: its master by its spec, else where it joined; and for a while whoever its upstream named instead.
//!
//! A server that joins a cluster or leaves it is handed over ([`DownMessage::Elsewhere`](super::DownMessage::Elsewhere)): the panel names
//! the master to a new slave, a master names the panel to a slave of former days. So a person never has to tell a machine where to
//! go, and no packet passes between the panel and a slave once its master has it.
//!
//! Invariants, asserted by the simulation below: whoever can be reached in the end serves the follower; a place that can't be
//! reached is given up after [`TOLD_TIME_MAX_MS`]; only the panel's place becomes the home that is kept on disk.

use phalanx_model::Name;
use serde::{Deserialize, Serialize};

/// The DNS name in the panel's certificate.
pub const PANEL_NAME: &str = "panel.phalanx";
/// What a node's name ends with in its certificate.
pub const NODE_SUFFIX: &str = ".node.phalanx";

/// How long a place that was named is tried before the follower goes back to where it came from, in milliseconds.
pub const TOLD_TIME_MAX_MS: u64 = 20_000;

/// The longest address of a place, in bytes: a DNS name and a port.
const ADDRESS_LEN_MAX: usize = 253 + 6;

/// The DNS name in a node's certificate.
pub fn node_name(server: &Name) -> String {
    format!("{server}{NODE_SUFFIX}")
}

/// Where an upstream listens, and who it must prove to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Host and port.
    pub address: String,
    /// The DNS name that its certificate must have.
    pub name: String,
}

impl Place {
    /// Whether it is the panel's.
    pub fn is_panel(&self) -> bool {
        self.name == PANEL_NAME
    }

    /// Whether a follower may go there when it is told to: to members of the fleet alone, by an address that can be one.
    pub fn is_acceptable(&self) -> bool {
        let (host, port) = self.address.rsplit_once(':').unwrap_or_default();
        let is_host = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
        let is_member =
            self.is_panel() || self.name.strip_suffix(NODE_SUFFIX).is_some_and(|server| server.parse::<Name>().is_ok());
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        !host.is_empty() && is_host && is_port && self.address.len() <= ADDRESS_LEN_MAX && is_member
    }
}

/// A follower's way to its upstream. Times are milliseconds of any clock that only goes forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    home: Place,
    told: Option<Told>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    place: Place,
    until_ms: u64,
}

impl Route {
    /// A follower that joined at `home`, or was sent there last.
    pub fn new(home: Place) -> Self {
        Self { home, told: None }
    }

    /// Whom to dial. `master` is the follower's master by its spec, where it is a slave.
    pub fn place(&self, master: Option<Place>) -> Place {
        match &self.told {
            Some(told) => told.place.clone(),
            None => master.unwrap_or_else(|| self.home.clone()),
        }
    }

    /// The upstream named another place. False where that can be none of the fleet's.
    pub fn on_told(&mut self, place: Place, now_ms: u64) -> bool {
        let acceptable = place.is_acceptable();
        if acceptable {
            self.told = Some(Told { place, until_ms: now_ms + TOLD_TIME_MAX_MS });
        }
        acceptable
    }

    /// The upstream at `place` serves this follower. Returns the new home where it is to be kept on disk.
    pub fn on_served(&mut self, place: &Place, master: Option<&Place>, now_ms: u64) -> Option<Place> {
        let told = self.told.as_mut().filter(|told| told.place == *place)?;
        if place.is_panel() {
            self.told = None;
            let is_new = self.home != *place;
            self.home = place.clone();
            return is_new.then(|| place.clone());
        }
        // A master that has not heard yet that it has a new slave: until it has, its word is not in the spec.
        told.until_ms = now_ms + TOLD_TIME_MAX_MS;
        if master == Some(place) {
            self.told = None;
        }
        None
    }

    /// The upstream at `place` could not be reached, or the link to it has ended.
    pub fn on_failed(&mut self, place: &Place, now_ms: u64) {
        if self.told.as_ref().is_some_and(|told| told.place == *place && now_ms >= told.until_ms) {
            self.told = None;
        }
    }
}

#[cfg(test)]
mod tests;
