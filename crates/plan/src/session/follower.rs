//! The lower end of a link.

use super::Place;
use super::message::{Command, DownMessage, JoinReply, UpMessage};
use super::{Batch, Snapshot};
use crate::logs::stream::Stream;
use crate::spec::ClusterSpec;
use phalanx_model::share::Marker;
use phalanx_model::{Name, Position};
use sha2::{Digest, Sha256};

/// A follower's side of one connection. Made anew for each connection from what is committed on disk.
///
/// The driver carries out effects in order and drops the connection at the first that fails; so an acknowledgement that
/// stands behind an [`FollowerEffect::Apply`] is sent only when the batch is committed.
#[derive(Debug, Clone)]
pub struct Follower {
    server: Name,
    spec: Position,
    spec_digest: Option<SpecDigest>,
    directory: Position,
    snapshot: Option<Collecting>,
}

/// What tells one spec's content from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecDigest([u8; 32]);

impl SpecDigest {
    /// The digest of a spec; `None` stands for "belongs to no cluster".
    pub fn of(spec: Option<&ClusterSpec>) -> Self {
        let json = serde_json::to_vec(&spec).expect("a spec is plain data with text keys");
        Self(Sha256::digest(json).into())
    }
}

#[derive(Debug, Clone)]
struct Collecting {
    at: Position,
    piece_next: u64,
}

/// What the follower's driver shall do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum FollowerEffect {
    /// Send this to the upstream.
    Send(UpMessage),
    /// Keep this spec on disk and reconcile to it.
    AdoptSpec {
        /// Its position.
        position: Position,
        /// The spec.
        spec: Option<Box<ClusterSpec>>,
    },
    /// Commit the batch, with the position it leads to, in one transaction.
    Apply(Batch),
    /// Add the piece to the directory that is being collected (piece 0 begins a new one); commit and switch to it when it is the last.
    Collect(Snapshot),
    /// Events of `server` up to `number` are safe upstream.
    EventsKept {
        /// The server.
        server: Name,
        /// The last number that is kept.
        number: u64,
    },
    /// Traffic of a share is added upstream.
    TrafficKept {
        /// The share.
        source: Marker,
        /// The stream.
        stream: Stream,
        /// Up to this batch.
        upto: u64,
    },
    /// Do this, once per number, and answer with [`UpMessage::CommandDone`].
    Do {
        /// The command's number.
        number: u64,
        /// The command.
        command: Command,
    },
    /// Hand this on to the slave that it names.
    Relay {
        /// The slave.
        server: Name,
        /// The message.
        message: DownMessage,
    },
    /// Hand the answer to whoever asked to join through this node.
    Joined(JoinReply),
    /// End the connection and dial this place ([`Route::on_told`](super::Route::on_told)).
    GoTo {
        /// The place.
        place: Place,
        /// Why, for a person.
        why: String,
    },
    /// End the connection.
    Close {
        /// Why, for a person.
        why: String,
    },
}

impl Follower {
    /// A follower that holds what is committed: its spec's position and digest, and its directory's position.
    pub fn new(server: Name, spec: Position, spec_digest: Option<SpecDigest>, directory: Position) -> Self {
        Self { server, spec, spec_digest, directory, snapshot: None }
    }

    /// The first message of the connection.
    pub fn hello(&self) -> UpMessage {
        UpMessage::Hello { server: self.server.clone(), spec: self.spec, directory: self.directory }
    }

    /// Takes a message from the upstream.
    pub fn on_message(&mut self, message: DownMessage) -> Vec<FollowerEffect> {
        match message {
            DownMessage::Spec { position, spec } => self.on_spec(position, spec),
            DownMessage::Batch(batch) => self.on_batch(batch),
            DownMessage::Snapshot(piece) => self.on_snapshot(piece),
            DownMessage::EventsKept { server, number } if server == self.server => {
                vec![FollowerEffect::EventsKept { server, number }]
            }
            DownMessage::Command { number, server, command } if server == self.server => {
                vec![FollowerEffect::Do { number, command }]
            }
            DownMessage::EventsKept { ref server, .. } | DownMessage::Command { ref server, .. } => {
                vec![FollowerEffect::Relay { server: server.clone(), message }]
            }
            DownMessage::TrafficKept { source, stream, upto } => {
                vec![FollowerEffect::TrafficKept { source, stream, upto }]
            }
            DownMessage::Joined(reply) => vec![FollowerEffect::Joined(reply)],
            DownMessage::Elsewhere { place, why } => vec![FollowerEffect::GoTo { place, why }],
            DownMessage::Refused { why } => close(format!("the upstream refuses: {why}")),
        }
    }

    fn on_spec(&mut self, position: Position, spec: Option<Box<ClusterSpec>>) -> Vec<FollowerEffect> {
        let digest = SpecDigest::of(spec.as_deref());
        if position < self.spec {
            // A master that was away longer than we were: it will learn the newer state and send it.
            return vec![];
        }
        if position == self.spec && self.spec_digest.is_some() {
            if self.spec_digest == Some(digest) {
                return vec![];
            }
            return close(format!("spec {position} has other content than the one adopted under this number"));
        }
        if let Some(spec) = spec.as_deref().filter(|spec| !spec.nodes.contains_key(&self.server)) {
            return close(format!("spec {position} of cluster {} does not name {}", spec.cluster, self.server));
        }
        (self.spec, self.spec_digest) = (position, Some(digest));
        vec![FollowerEffect::AdoptSpec { position, spec }]
    }

    fn on_batch(&mut self, batch: Batch) -> Vec<FollowerEffect> {
        if !same_point(batch.after, self.directory) {
            return close(format!("a batch onto {} came while the directory is at {}", batch.after, self.directory));
        }
        if batch.upto.incarnation != batch.after.incarnation || batch.upto.revision < batch.after.revision {
            return close(format!("a batch leads back, from {} to {}", batch.after, batch.upto));
        }
        self.directory = batch.upto;
        let committed = UpMessage::Committed { directory: batch.upto };
        vec![FollowerEffect::Apply(batch), FollowerEffect::Send(committed)]
    }

    fn on_snapshot(&mut self, piece: Snapshot) -> Vec<FollowerEffect> {
        if piece.at.incarnation < self.directory.incarnation {
            return close(format!("a snapshot of {} came while the directory is at {}", piece.at, self.directory));
        }
        let expected = match &self.snapshot {
            Some(collecting) if piece.piece > 0 && collecting.at == piece.at => collecting.piece_next,
            _ => 0,
        };
        if piece.piece != expected {
            return close(format!(
                "piece {} of the snapshot at {} came instead of piece {expected}",
                piece.piece, piece.at
            ));
        }
        if !piece.last {
            self.snapshot = Some(Collecting { at: piece.at, piece_next: expected + 1 });
            return vec![FollowerEffect::Collect(piece)];
        }
        self.snapshot = None;
        self.directory = piece.at;
        let committed = UpMessage::Committed { directory: piece.at };
        vec![FollowerEffect::Collect(piece), FollowerEffect::Send(committed)]
    }
}

/// Whether two positions name the same content: the term says who leads, not what is stored.
pub(super) fn same_point(a: Position, b: Position) -> bool {
    (a.incarnation, a.revision) == (b.incarnation, b.revision)
}

fn close(why: String) -> Vec<FollowerEffect> {
    vec![FollowerEffect::Close { why }]
}
