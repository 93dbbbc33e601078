//! The upper end of a link.

use super::follower::same_point;
use super::message::{DownMessage, UpMessage};
use super::{Batch, Command, FRAME_LEN_MAX, JoinReply, Place, Snapshot};
use crate::logs::stream::Stream;
use crate::spec::ClusterSpec;
use phalanx_model::share::Marker;
use phalanx_model::{Name, Position, Site};
use std::collections::VecDeque;

/// The most batches that are on their way and not acknowledged.
pub const IN_FLIGHT_MAX: usize = 4;

/// The most changes that a batch carries, and rows that a piece of a snapshot carries.
pub const BATCH_LEN_MAX: usize = 250;

/// The longest row, a site with all the aliases that it may have, as JSON.
const ROW_LEN_MAX: usize = (Site::ALIASES_MAX + 2) * 300;

// A node's log keeps what came together under one revision, so that its batches may be twice as long.
const _: () = assert!(2 * BATCH_LEN_MAX * ROW_LEN_MAX < FRAME_LEN_MAX);

/// An upstream's side of one connection to a follower.
///
/// The driver tells it of new specs ([`Upstream::on_spec`]) and of the directory's head ([`Upstream::on_head`]), answers its reads, and
/// sends what it says, waiting for the wire: that bounds a snapshot; batches are bounded by acknowledgements.
#[derive(Debug, Clone)]
pub struct Upstream {
    peer: Name,
    greeted: bool,
    spec: Option<(Position, Option<Box<ClusterSpec>>)>,
    head: Position,
    sent: Position,
    in_flight: VecDeque<Position>,
    reading: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Nothing,
    Changes,
    Snapshot,
}

/// What the upstream's driver shall do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamEffect {
    /// Send this to the follower.
    Send(DownMessage),
    /// Read up to [`BATCH_LEN_MAX`] changes after this position, then call [`Upstream::on_changes`] or, where the log does not reach
    /// back so far, [`Upstream::on_log_too_short`].
    ReadChanges {
        /// The position to read after.
        after: Position,
    },
    /// Read the next piece of a snapshot (the first one opens it: all pieces are of one position), then call
    /// [`Upstream::on_snapshot_piece`].
    ReadSnapshot {
        /// The piece's number.
        piece: u64,
    },
    /// The follower's message is for the owner of the link: reports, events, answers, joins.
    Deliver(UpMessage),
    /// The follower has been sent to another upstream: end the connection, once the follower has had time to.
    HandedOver {
        /// Why, for a person.
        why: String,
    },
    /// End the connection.
    Close {
        /// Why, for a person.
        why: String,
    },
}

impl Upstream {
    /// A link to the follower whose certificate names `peer`, with the state as it is now.
    pub fn new(peer: Name, spec: Option<(Position, Option<Box<ClusterSpec>>)>, head: Position) -> Self {
        let sent = Position::default();
        Self { peer, greeted: false, spec, head, sent, in_flight: VecDeque::new(), reading: Reading::Nothing }
    }

    /// Takes a message from the follower.
    pub fn on_message(&mut self, message: UpMessage) -> Vec<UpstreamEffect> {
        match message {
            UpMessage::Hello { server, .. } if self.greeted || server != self.peer => {
                close(format!("a second or foreign hello, for {server}, on the link of {}", self.peer))
            }
            UpMessage::Hello { spec, directory, .. } => {
                self.greeted = true;
                self.sent = directory;
                let newer = self.spec.as_ref().is_some_and(|(position, _)| *position >= spec);
                let mut effects = if newer { self.send_spec() } else { vec![] };
                effects.extend(self.advance());
                effects
            }
            _ if !self.greeted => close("the first message must be a hello".into()),
            UpMessage::Committed { directory } => {
                while self.in_flight.front().is_some_and(|batch| batch.revision <= directory.revision) {
                    self.in_flight.pop_front();
                }
                self.advance()
            }
            other => vec![UpstreamEffect::Deliver(other)],
        }
    }

    /// The follower's spec is now this one.
    pub fn on_spec(&mut self, position: Position, spec: Option<Box<ClusterSpec>>) -> Vec<UpstreamEffect> {
        self.spec = Some((position, spec));
        if self.greeted { self.send_spec() } else { vec![] }
    }

    /// The directory has come to `head`.
    pub fn on_head(&mut self, head: Position) -> Vec<UpstreamEffect> {
        self.head = head;
        self.advance()
    }

    /// The changes that [`UpstreamEffect::ReadChanges`] asked for; `upto` is the last one's position, or the head where they reach it.
    pub fn on_changes(&mut self, batch: Batch) -> Vec<UpstreamEffect> {
        self.reading = Reading::Nothing;
        if same_point(batch.upto, batch.after) {
            // Nothing there: the head was known before its rows were. The next call of on_head asks again.
            return vec![];
        }
        self.sent = batch.upto;
        self.in_flight.push_back(batch.upto);
        let mut effects = vec![UpstreamEffect::Send(DownMessage::Batch(batch))];
        effects.extend(self.advance());
        effects
    }

    /// The log does not reach back to where the follower is: it gets a snapshot.
    pub fn on_log_too_short(&mut self) -> Vec<UpstreamEffect> {
        self.reading = Reading::Snapshot;
        vec![UpstreamEffect::ReadSnapshot { piece: 0 }]
    }

    /// The piece that [`UpstreamEffect::ReadSnapshot`] asked for.
    pub fn on_snapshot_piece(&mut self, piece: Snapshot) -> Vec<UpstreamEffect> {
        let (number, last, at) = (piece.piece, piece.last, piece.at);
        let mut effects = vec![UpstreamEffect::Send(DownMessage::Snapshot(piece))];
        if last {
            self.reading = Reading::Nothing;
            self.sent = at;
            self.in_flight.push_back(at);
            effects.extend(self.advance());
        } else {
            effects.push(UpstreamEffect::ReadSnapshot { piece: number + 1 });
        }
        effects
    }

    /// Orders something from the follower, or from a slave behind it.
    pub fn on_command(&self, number: u64, server: Name, command: Command) -> Vec<UpstreamEffect> {
        vec![UpstreamEffect::Send(DownMessage::Command { number, server, command })]
    }

    /// Events of `server` are safe up to `number`.
    pub fn on_events_kept(&self, server: Name, number: u64) -> Vec<UpstreamEffect> {
        vec![UpstreamEffect::Send(DownMessage::EventsKept { server, number })]
    }

    /// Traffic of a share is added up to `upto`.
    pub fn on_traffic_kept(&self, source: Marker, stream: Stream, upto: u64) -> Vec<UpstreamEffect> {
        vec![UpstreamEffect::Send(DownMessage::TrafficKept { source, stream, upto })]
    }

    /// Another is the follower's upstream now: names it, and ends the connection when that is sent.
    pub fn on_elsewhere(&self, place: Place, why: String) -> Vec<UpstreamEffect> {
        vec![
            UpstreamEffect::Send(DownMessage::Elsewhere { place, why: why.clone() }),
            UpstreamEffect::HandedOver { why },
        ]
    }

    /// The answer to a join that came through this link.
    pub fn on_joined(&self, reply: JoinReply) -> Vec<UpstreamEffect> {
        vec![UpstreamEffect::Send(DownMessage::Joined(reply))]
    }

    fn send_spec(&self) -> Vec<UpstreamEffect> {
        let Some((position, spec)) = self.spec.clone() else { return vec![] };
        vec![UpstreamEffect::Send(DownMessage::Spec { position, spec })]
    }

    /// Asks for what comes next, if there is something and there is room for it.
    fn advance(&mut self) -> Vec<UpstreamEffect> {
        if !self.greeted || self.reading != Reading::Nothing || self.in_flight.len() >= IN_FLIGHT_MAX {
            return vec![];
        }
        if self.sent.incarnation > self.head.incarnation {
            // The follower has seen a later life of the panel than we have: nothing of ours is news to it.
            return vec![];
        }
        if self.sent.incarnation < self.head.incarnation {
            return self.on_log_too_short();
        }
        if self.sent.revision >= self.head.revision {
            return vec![];
        }
        self.reading = Reading::Changes;
        vec![UpstreamEffect::ReadChanges { after: self.sent }]
    }
}

fn close(why: String) -> Vec<UpstreamEffect> {
    vec![UpstreamEffect::Close { why }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_model::Row;

    #[test]
    fn the_longest_row_is_no_longer_than_batches_reckon_with() {
        let label = "a".repeat(63);
        let host = |number: usize| format!("{number:0>61}.{label}.{label}.{label}").parse().expect("253 characters");
        let site = Site {
            name: host(0),
            aliases: (1..=Site::ALIASES_MAX).map(host).collect(),
            account: "a".repeat(Name::LEN_MAX).parse().expect("a name"),
            document_root: ["b".repeat(150), "c".repeat(149)].join("/").parse().expect("300 characters"),
        };
        let len = serde_json::to_vec(&Row::Site(site)).expect("plain data").len();
        assert!((ROW_LEN_MAX / 2..ROW_LEN_MAX).contains(&len), "{len} bytes, {ROW_LEN_MAX} reckoned with");
    }
}
