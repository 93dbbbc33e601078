//! What the panel knows of its nodes right now: who is connected, their last reports, commands that wait for an answer.
//!
//! All in memory and bounded by the number of servers in the fleet; it comes again by itself after a restart.

use phalanx_model::cluster::NodeSettings;
use phalanx_model::{ClusterKind, Name};
use phalanx_plan::report::{BackendReport, BackendState, Report};
use phalanx_plan::session::Command;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// A report older than this says nothing about now: three were missed.
pub const REPORT_AGE_MAX: Duration = Duration::from_secs(7);

/// Commands that may wait to be sent to one master.
const COMMANDS_WAITING_MAX: usize = 64;

/// What the rest of the panel tells a link.
#[derive(Debug)]
pub enum ToLink {
    /// Send this command.
    Command {
        /// Its number.
        number: u64,
        /// Who shall do it.
        server: Name,
        /// What.
        command: Command,
    },
    /// Another link of the same server is there, or its certificate is void.
    End {
        /// Why, for a person.
        why: String,
    },
}

/// A node's last report.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it said.
    pub report: Report,
    /// When it came.
    pub at: Instant,
    /// When it came, in seconds since 1970.
    pub at_unix_s: i64,
    /// The server whose link it came through: itself, or its master.
    pub via: Name,
}

impl Seen {
    /// Whether the report tells of now.
    pub fn is_fresh(&self) -> bool {
        self.at.elapsed() <= REPORT_AGE_MAX
    }
}

/// A node's state: it does its work, does not, was drained, has too much to do, or nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It does its work.
    Up,
    /// It does not.
    Down,
    /// An administrator drained it.
    Drained,
    /// It works, but has more than enough to do.
    Overloaded,
    /// Nobody says.
    Unknown,
}

/// Numbers of questions are above all that commands get from the store.
const ASKED_FIRST: u64 = 1 << 62;

#[derive(Debug)]
struct Link {
    number: u64,
    to: mpsc::Sender<ToLink>,
}

#[derive(Debug, Default)]
struct Inner {
    links: BTreeMap<Name, Link>,
    link_last: u64,
    asked_last: u64,
    seen: BTreeMap<Name, Seen>,
    waiting: BTreeMap<u64, (Name, oneshot::Sender<Result<String, String>>)>,
}

/// What is known of the nodes right now.
#[derive(Debug)]
pub struct Live {
    inner: Mutex<Inner>,
    reports: watch::Sender<u64>,
}

impl Default for Live {
    fn default() -> Self {
        Self { inner: Mutex::default(), reports: watch::Sender::new(0) }
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds this lock can panic half-way through a change.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A new link of `server`; an earlier one is told to end. Returns the link's number and what it is told.
    pub fn connect(&self, server: &Name) -> (u64, mpsc::Receiver<ToLink>) {
        let (to, receiver) = mpsc::channel(COMMANDS_WAITING_MAX);
        let mut inner = self.lock();
        inner.link_last += 1;
        let number = inner.link_last;
        if let Some(earlier) = inner.links.insert(server.clone(), Link { number, to }) {
            // A full queue belongs to a link that is stuck; it ends by its own time-out, and its number is no longer known.
            let _stuck = earlier.to.try_send(ToLink::End { why: format!("{server} has connected anew") });
        }
        (number, receiver)
    }

    /// A link has ended. False where the server has a newer one.
    pub fn disconnect(&self, server: &Name, number: u64) -> bool {
        let mut inner = self.lock();
        let current = inner.links.get(server).is_some_and(|link| link.number == number);
        if current {
            inner.links.remove(server);
        }
        current
    }

    /// Ends the link of a server, if there is one.
    pub fn end(&self, server: &Name, why: &str) {
        if let Some(link) = self.lock().links.remove(server) {
            let _stuck = link.to.try_send(ToLink::End { why: why.to_owned() });
        }
    }

    /// Whether a server has a link of its own.
    pub fn is_connected(&self, server: &Name) -> bool {
        self.lock().links.contains_key(server)
    }

    /// Reports have come through the link of `via`.
    pub fn on_reports(&self, via: &Name, reports: impl IntoIterator<Item = (Name, Report)>) {
        let (at, at_unix_s) = (Instant::now(), crate::clock::unix_s());
        let mut inner = self.lock();
        for (server, report) in reports {
            inner.seen.insert(server, Seen { report, at, at_unix_s, via: via.clone() });
        }
        drop(inner);
        self.reports.send_modify(|count| *count += 1);
    }

    /// Wakes whoever waits for it at each report.
    pub fn watch_reports(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    /// A server's last report.
    pub fn seen(&self, server: &Name) -> Option<Seen> {
        self.lock().seen.get(server).cloned()
    }

    /// All last reports.
    pub fn all_seen(&self) -> BTreeMap<Name, Seen> {
        self.lock().seen.clone()
    }

    /// Forgets servers that have left the fleet.
    pub fn retain(&self, is_there: impl Fn(&Name) -> bool) {
        self.lock().seen.retain(|server, _| is_there(server));
    }

    /// Orders something from `server` through the link of `master` and waits for what comes of it.
    ///
    /// # Errors
    /// Why it could not be ordered, did not work, or was not answered in time; in words for a person.
    pub async fn command(
        &self,
        master: &Name,
        number: u64,
        server: &Name,
        command: Command,
        time_max: Duration,
    ) -> Result<String, CommandError> {
        let (answer, answered) = oneshot::channel();
        let to = {
            let mut inner = self.lock();
            let Some(link) = inner.links.get(master) else { return Err(CommandError::NotConnected(master.clone())) };
            let to = link.to.clone();
            inner.waiting.insert(number, (server.clone(), answer));
            to
        };
        let sent = to.try_send(ToLink::Command { number, server: server.clone(), command });
        let result = match sent {
            Err(_) => Err(CommandError::NotConnected(master.clone())),
            Ok(()) => match tokio::time::timeout(time_max, answered).await {
                Ok(Ok(result)) => result.map_err(CommandError::Failed),
                Ok(Err(_)) | Err(_) => Err(CommandError::NoAnswer { server: server.clone(), waited: time_max }),
            },
        };
        self.lock().waiting.remove(&number);
        result
    }

    /// As [`Live::command`], for what changes nothing: it is neither audited nor remembered, and has a number of its own kind.
    ///
    /// # Errors
    /// As there.
    pub async fn ask(&self, master: &Name, command: Command, time_max: Duration) -> Result<String, CommandError> {
        let number = {
            let mut inner = self.lock();
            inner.asked_last += 1;
            ASKED_FIRST + inner.asked_last
        };
        self.command(master, number, master, command, time_max).await
    }

    /// A command was answered. Late answers, and answers from another server than the one asked, are passed over.
    pub fn on_command_done(&self, number: u64, server: &Name, result: Result<String, String>) {
        let mut inner = self.lock();
        if inner.waiting.get(&number).is_some_and(|(asked, _)| asked == server)
            && let Some((_, answer)) = inner.waiting.remove(&number)
        {
            // Whoever waited may have given up this moment.
            let _gone = answer.send(result);
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The way to the node is closed.
    #[error("{0} is not connected to the panel")]
    NotConnected(Name),
    /// The node did not answer.
    #[error("{server} did not answer within {} s; it may still do it", waited.as_secs())]
    NoAnswer {
        /// Who was asked.
        server: Name,
        /// For how long.
        waited: Duration,
    },
    /// The node answered that it failed.
    #[error("{0}")]
    Failed(String),
}

/// How the balancers see one server, over all services, as far as their reports are fresh.
pub fn backends_of<'a>(seen: &'a BTreeMap<Name, Seen>, server: &Name) -> Vec<&'a BackendReport> {
    let fresh = seen.values().filter(|seen| seen.is_fresh());
    fresh.flat_map(|seen| &seen.report.backends).filter(|backend| backend.server == *server).collect()
}

/// A node's state and why it is so, from its own report and from what the balancers say of it.
pub fn node_state(
    kind: ClusterKind,
    settings: NodeSettings,
    server: &Name,
    seen: &BTreeMap<Name, Seen>,
) -> (NodeState, String) {
    if settings.drained {
        return (NodeState::Drained, "drained by an administrator".to_owned());
    }
    let backends = backends_of(seen, server);
    if let Some(down) = backends.iter().find(|backend| backend.state == BackendState::Down) {
        return (NodeState::Down, down.why.clone());
    }
    if let Some(busy) = backends.iter().find(|backend| backend.state == BackendState::Overloaded) {
        return (NodeState::Overloaded, busy.why.clone());
    }
    if !backends.is_empty() {
        return (NodeState::Up, String::new());
    }
    match seen.get(server) {
        None => (NodeState::Unknown, "it has never reported".to_owned()),
        Some(seen) if !seen.is_fresh() => {
            (NodeState::Unknown, format!("it has not reported for {} s", seen.at.elapsed().as_secs()))
        }
        Some(seen) if kind.holds_logical_servers() && !seen.report.in_service => (
            NodeState::Down,
            seen.report.problems.first().cloned().unwrap_or_else(|| "it does not offer itself".to_owned()),
        ),
        Some(_) => (NodeState::Up, String::new()),
    }
}
