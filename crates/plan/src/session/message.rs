//! What goes over the wire. A frame is a length (four bytes, big endian, at most [`FRAME_LEN_MAX`]) and that many bytes of JSON.

use super::route::Place;
use crate::logs::batch::CountedPart;
use crate::logs::stream::Stream;
use crate::report::{NodeEvent, Report};
use crate::spec::ClusterSpec;
use phalanx_model::queue::QueueAct;
use phalanx_model::share::Marker;
use phalanx_model::{DirectoryChange, HostName, Name, Position, Row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The longest frame, in bytes. A longer one ends the connection, so whatever the rules allow must fit: a batch of the longest rows,
/// and the spec of a cluster of hundreds of nodes with the longest directives.
pub const FRAME_LEN_MAX: usize = 16 << 20;

/// From a follower to its upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpMessage {
    /// First on every connection: who is here and what it has.
    Hello {
        /// The follower's own name; it must be the one in its certificate.
        server: Name,
        /// The spec that it adopted last.
        spec: Position,
        /// The directory that it has committed.
        directory: Position,
    },
    /// The directory is committed up to here.
    Committed {
        /// The position.
        directory: Position,
    },
    /// The states of the sender and of the nodes below it.
    Reports {
        /// By server.
        reports: BTreeMap<Name, Report>,
    },
    /// Things that happened, oldest first; each server's numbers are in order.
    Events {
        /// The server that they happened on.
        server: Name,
        /// At most 100.
        events: Vec<NodeEvent>,
    },
    /// What was counted of sites and mail domains, in logs of one stream on the share with this marker.
    Traffic {
        /// The share.
        source: Marker,
        /// The stream.
        stream: Stream,
        /// What was counted since the last part that was added upstream.
        part: CountedPart,
    },
    /// The answer to a command.
    CommandDone {
        /// The command's number.
        number: u64,
        /// The server that did it.
        server: Name,
        /// What came of it, for a person; an error where it failed.
        result: Result<String, String>,
    },
    /// A machine wants to join through the sender.
    Join(JoinRequest),
}

/// From an upstream to its follower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DownMessage {
    /// The desired state of the cluster; a slave gets its own node alone.
    Spec {
        /// Which state it is.
        position: Position,
        /// The state. None where the follower belongs to no cluster (any more).
        spec: Option<Box<ClusterSpec>>,
    },
    /// Directory changes.
    Batch(Batch),
    /// A piece of the whole directory.
    Snapshot(Snapshot),
    /// The events up to this number are kept upstream; the follower may forget them.
    EventsKept {
        /// The server whose events they are.
        server: Name,
        /// The last number.
        number: u64,
    },
    /// Traffic of a stream of the share with this marker is added up to this number; the next part goes on from there.
    TrafficKept {
        /// The share.
        source: Marker,
        /// The stream.
        stream: Stream,
        /// The number of the last batch.
        upto: u64,
    },
    /// Something to do once, by the node that is named.
    Command {
        /// A number chosen by the panel; done at most once.
        number: u64,
        /// Who shall do it.
        server: Name,
        /// What.
        command: Command,
    },
    /// The answer to a join.
    Joined(JoinReply),
    /// Somebody else is the follower's upstream; the connection closes after this.
    Elsewhere {
        /// Who.
        place: Place,
        /// Why, for a person.
        why: String,
    },
    /// The connection can't be served; it closes after this.
    Refused {
        /// Why, for a person.
        why: String,
    },
}

/// Directory changes that lead from one position to a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The position that the changes apply onto.
    pub after: Position,
    /// The position that they lead to.
    pub upto: Position,
    /// The changes, in order; at most [`BATCH_LEN_MAX`](super::upstream::BATCH_LEN_MAX), and those of the last revision to the end.
    pub changes: Vec<DirectoryChange>,
}

/// A piece of the whole directory as it was at one position. The follower collects the pieces beside its present
/// directory and switches when the last has come, so that no daemon ever sees a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The position that the whole is of.
    pub at: Position,
    /// The piece's number, from 0.
    pub piece: u64,
    /// Rows; at most [`BATCH_LEN_MAX`](super::upstream::BATCH_LEN_MAX).
    pub rows: Vec<Row>,
    /// Whether this is the last piece.
    pub last: bool,
}

/// Things that a person may order from one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Go back to an earlier generation of configuration files and stay there until the spec changes.
    Rollback {
        /// The generation.
        generation: u64,
    },
    /// Observe and plan now.
    Reconcile,
    /// Do something with a mail queue that the node runs. A list is answered with a [`QueueContent`](phalanx_model::queue::QueueContent)
    /// as JSON.
    Queue {
        /// The server that filled it.
        of: Name,
        /// What.
        act: QueueAct,
    },
    /// Read a part of a merged log; answered with a [`LogText`] as JSON. It changes nothing, so it is done as often as it is asked for.
    ReadLog(LogPart),
    /// Follow a message through the log of mail; answered with a [`Trace`](crate::logs::trace::Trace) as JSON.
    TraceMail(TraceAsk),
}

/// A merged log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergedLog {
    /// What a site was asked for.
    Access(HostName),
    /// What went wrong at a site.
    Errors(HostName),
    /// What the daemons of the mail cluster say.
    Mail,
}

impl MergedLog {
    /// The stream that it is of.
    pub fn stream(&self) -> Stream {
        match self {
            Self::Access(_) => Stream::Access,
            Self::Errors(_) => Stream::Errors,
            Self::Mail => Stream::Mail,
        }
    }
}

/// Which message, in which days' logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceAsk {
    /// Its Message-ID.
    pub message_id: String,
    /// Today's log and those of so many days before.
    pub days: u32,
}

/// Which part of a merged log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// Which.
    pub log: MergedLog,
    /// The file and the offset where the part before ended; without them the log's end.
    pub after: Option<(u64, u64)>,
    /// At most so many bytes.
    pub len_max: u32,
}

/// A part of a merged log, as JSON the answer to [`Command::ReadLog`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogText {
    /// The file, and where the part ends.
    pub at: (u64, u64),
    /// Whole lines.
    pub text: String,
}

/// A machine's wish to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// A number that the asking side chose, repeated in the reply.
    pub number: u64,
    /// The one-time token's secret part.
    pub token: String,
    /// A certificate signing request (RFC 2986), PEM.
    pub csr_pem: String,
}

/// The answer to a join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// The request's number.
    pub number: u64,
    /// The identity, or why not.
    pub result: Result<Identity, String>,
}

/// What makes a machine a member of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The server's name, as the token was made for it.
    pub server: Name,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
}
