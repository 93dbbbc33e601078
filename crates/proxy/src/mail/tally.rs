//! What is counted of connections, and how many there may be.
//!
//! Every connection has a [`Seat`]: as long as it is kept, the connection counts for its protocol and against the bounds.

use phalanx_plan::mail::router::MailLimits;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places that only balancers and this machine get when all others are taken: for checks and for deliveries.
const RESERVED: usize = 32;
/// A balancer's address may have one connection of so many: checks, and all who come from internal networks.
const BALANCER_DIVISOR: usize = 4;

/// Ways or hops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// From clients to the holder.
    Way,
    /// On the holder, from nodes to Dovecot.
    Hop,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comer {
    /// Somebody of the world.
    Client(Ipv4Addr),
    /// A balancer's address.
    Balancer(Ipv4Addr),
    /// A daemon of this machine that came from 127.0.0.1, or a node at a hop.
    Own,
}

/// Of one protocol, counted since the daemon's start.
#[derive(Debug, Default, Serialize)]
pub struct Tally {
    /// Connections now.
    pub open: AtomicU64,
    /// Those that wait for the next hop, among the open ones.
    pub waiting: AtomicU64,
    /// Connections that got a place.
    pub total: AtomicU64,
    /// Connections that got none, by a bound or because they are strangers at a hop.
    pub refused: AtomicU64,
    /// Connections that waited in vain.
    pub given_up: AtomicU64,
    /// Connections that were cut because mailboxes moved.
    pub cut: AtomicU64,
    /// Bytes from clients.
    pub bytes_from_clients: AtomicU64,
    /// Bytes to clients.
    pub bytes_to_clients: AtomicU64,
}

/// All counts of the daemon.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    protocols: BTreeMap<(Side, String), Arc<Tally>>,
    ways: usize,
    hops: usize,
    by_address: HashMap<Ipv4Addr, usize>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    /// What its bytes are counted by.
    pub tally: Arc<Tally>,
    side: Side,
    comer: Comer,
    tallies: Tallies,
}

impl Tallies {
    /// The counts of a protocol.
    pub fn of(&self, side: Side, protocol: &str) -> Arc<Tally> {
        self.counts().protocols.entry((side, protocol.to_owned())).or_default().clone()
    }

    /// By protocol.
    pub fn by_protocol(&self, side: Side) -> BTreeMap<String, Arc<Tally>> {
        let counts = self.counts();
        let of_side = counts.protocols.iter().filter(|((of, _), _)| *of == side);
        of_side.map(|((_, protocol), tally)| (protocol.clone(), tally.clone())).collect()
    }

    /// Connections now, over ways and hops.
    pub fn open(&self) -> usize {
        let counts = self.counts();
        counts.ways + counts.hops
    }

    /// A place for `comer`, unless a bound is reached.
    pub fn seat(&self, side: Side, comer: Comer, limits: &MailLimits, tally: &Arc<Tally>) -> Option<Seat> {
        let mut counts = self.counts();
        let max = limits.connections_max + if matches!(comer, Comer::Client(_)) { 0 } else { RESERVED };
        let room_for_all = *counts.of_side(side) < max;
        let room_for_one = match comer {
            Comer::Client(address) => counts.from(address) < limits.connections_per_client_max,
            Comer::Balancer(address) => {
                counts.from(address) < (limits.connections_max / BALANCER_DIVISOR).max(RESERVED)
            }
            Comer::Own => true,
        };
        if !(room_for_all && room_for_one) {
            tally.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *counts.of_side(side) += 1;
        if let Some(address) = comer.address() {
            *counts.by_address.entry(address).or_default() += 1;
        }
        tally.open.fetch_add(1, Ordering::Relaxed);
        tally.total.fetch_add(1, Ordering::Relaxed);
        Some(Seat { tally: tally.clone(), side, comer, tallies: self.clone() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Each change is complete before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn of_side(&mut self, side: Side) -> &mut usize {
        match side {
            Side::Way => &mut self.ways,
            Side::Hop => &mut self.hops,
        }
    }

    fn from(&self, address: Ipv4Addr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }
}

impl Comer {
    fn address(self) -> Option<Ipv4Addr> {
        match self {
            Self::Client(address) | Self::Balancer(address) => Some(address),
            Self::Own => None,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.tallies.counts();
        *counts.of_side(self.side) -= 1;
        if let Some(address) = self.comer.address()
            && let Some(count) = counts.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&address);
            }
        }
        self.tally.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MailLimits = MailLimits {
        connections_max: 3,
        connections_per_client_max: 2,
        wait_timeout_ms: 0,
        connect_timeout_ms: 0,
        idle_timeout_ms: 0,
        finish_timeout_ms: 0,
        shutdown_timeout_ms: 0,
    };

    fn client(last: u8) -> Comer {
        Comer::Client(Ipv4Addr::new(198, 51, 100, last))
    }

    #[test]
    fn places_are_bounded_for_each_and_for_all_and_are_given_back() {
        let tallies = Tallies::default();
        let tally = tallies.of(Side::Way, "imap");
        let seat = |comer| tallies.seat(Side::Way, comer, &LIMITS, &tally);
        let first = seat(client(1)).expect("a place");
        let _second = seat(client(1)).expect("a place");
        assert!(seat(client(1)).is_none(), "two for each");
        let _third = seat(client(2)).expect("a place");
        assert!(seat(client(3)).is_none(), "three for all");
        assert!(seat(Comer::Own).is_some() && seat(Comer::Balancer(Ipv4Addr::new(10, 9, 0, 1))).is_some());
        assert!(tallies.seat(Side::Hop, Comer::Own, &LIMITS, &tally).is_some(), "hops have places of their own");
        drop(first);
        assert!(seat(client(1)).is_some());
        assert_eq!((tallies.open(), tally.refused.load(Ordering::Relaxed)), (2, 2));
        assert_eq!(tallies.counts().by_address.len(), 2, "who is gone is forgotten");
    }
}
