//! What happened on this node, kept until the upstream has it.
//!
//! At most [`KEPT_MAX`] events wait on disk. When more happen while nobody fetches them, the oldest are dropped and the next one says
//! how many. What another daemon tells of itself is taken over once, also when the agent was away in between.

use crate::keep;
use phalanx_host::facts;
use phalanx_plan::report::{NodeEvent, Severity};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The most events that wait.
const KEPT_MAX: usize = 500;
/// The most that are sent at once.
const SENT_MAX: usize = 100;
/// The longest detail, in characters.
const DETAIL_LEN_MAX: usize = 4_000;

/// The events of this node.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    kept: Mutex<Kept>,
    /// Something was added.
    pub added: Notify,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    last_number: u64,
    dropped: u64,
    waiting: VecDeque<NodeEvent>,
    #[serde(default)]
    taken_over: TakenOver,
}

/// How far another daemon's events were taken over.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct TakenOver {
    /// The daemon's run, in which events are numbered from 1.
    run: u64,
    number: u64,
}

impl Events {
    /// Reads what waits in `path`.
    pub fn load(path: PathBuf) -> anyhow::Result<Self> {
        let kept = keep::load(&path)?.unwrap_or_default();
        Ok(Self { path, kept: Mutex::new(kept), added: Notify::new() })
    }

    /// Adds one, and writes it to the log as well.
    pub fn add(&self, severity: Severity, topic: &str, text: impl Into<String>, detail: impl Into<String>) {
        let (text, detail): (String, String) = (text.into(), detail.into());
        match severity {
            Severity::Info => tracing::info!(topic, detail, "{text}"),
            Severity::Warning => tracing::warn!(topic, detail, "{text}"),
            Severity::Error => tracing::error!(topic, detail, "{text}"),
        }
        let topic = topic.to_owned();
        let event = NodeEvent { number: 0, at_unix_s: facts::unix_s(), severity, topic, text, detail };
        let mut kept = self.lock();
        kept.push(event);
        self.store(&kept);
        drop(kept);
        self.added.notify_one();
    }

    /// Takes over what another daemon of this machine told of itself in its run `run`, each event once. It has logged them itself.
    pub fn take_over(&self, run: u64, events: Vec<NodeEvent>) {
        let mut kept = self.lock();
        let before = if kept.taken_over.run == run { kept.taken_over.number } else { 0 };
        let mut news = events.into_iter().filter(|event| event.number > before).peekable();
        if news.peek().is_none() {
            return;
        }
        for event in news {
            kept.taken_over = TakenOver { run, number: event.number };
            kept.push(event);
        }
        self.store(&kept);
        drop(kept);
        self.added.notify_one();
    }

    /// Up to a message full of events with numbers above `after`.
    pub fn after(&self, after: u64) -> Vec<NodeEvent> {
        self.lock().waiting.iter().filter(|event| event.number > after).take(SENT_MAX).cloned().collect()
    }

    /// Forgets what the upstream has.
    pub fn kept_upstream(&self, number: u64) {
        let mut kept = self.lock();
        let before = kept.waiting.len();
        kept.waiting.retain(|event| event.number > number);
        if kept.waiting.len() != before {
            self.store(&kept);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, kept: &Kept) {
        if let Err(error) = keep::store(&self.path, kept) {
            tracing::error!(error = format!("{error:#}"), "events can't be kept on disk; they stay in memory");
        }
    }
}

impl Kept {
    /// Adds an event under the next number.
    fn push(&mut self, mut event: NodeEvent) {
        if self.waiting.len() >= KEPT_MAX {
            self.waiting.pop_front();
            self.dropped += 1;
        } else if self.dropped > 0 {
            let note = format!(" ({} earlier events were dropped while nobody fetched them)", self.dropped);
            event.text.push_str(&note);
            self.dropped = 0;
        }
        self.last_number += 1;
        event.number = self.last_number;
        if let Some((end, _)) = event.detail.char_indices().nth(DETAIL_LEN_MAX) {
            event.detail.truncate(end);
        }
        self.waiting.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_restart_until_they_are_kept_upstream() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        let events = Events::load(path.clone()).expect("new");
        for text in ["one", "two"] {
            events.add(Severity::Info, "agent", text, "");
        }
        drop(events);
        let events = Events::load(path).expect("read");
        assert_eq!(events.after(0).iter().map(|e| e.number).collect::<Vec<_>>(), [1, 2]);
        events.kept_upstream(1);
        events.add(Severity::Info, "agent", "three", "");
        assert_eq!(events.after(2).iter().map(|e| e.number).collect::<Vec<_>>(), [3]);
        assert_eq!(events.after(0).len(), 2);
    }

    #[test]
    fn what_another_daemon_tells_is_taken_over_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        let told = |number: u64, text: &str| NodeEvent {
            number,
            at_unix_s: 7,
            severity: Severity::Warning,
            topic: "drift".to_owned(),
            text: text.to_owned(),
            detail: "-a rule".to_owned(),
        };
        let events = Events::load(path.clone()).expect("new");
        events.add(Severity::Info, "agent", "own", "");
        events.take_over(100, vec![told(1, "a"), told(2, "b")]);
        drop(events);
        let events = Events::load(path).expect("read");
        events.take_over(100, vec![told(2, "b"), told(3, "c")]);
        events.take_over(200, vec![told(1, "d")]);
        let all: Vec<_> = events.after(0).into_iter().map(|event| (event.number, event.text)).collect();
        let all: Vec<_> = all.iter().map(|(number, text)| (*number, text.as_str())).collect();
        assert_eq!(all, [(1, "own"), (2, "a"), (3, "b"), (4, "c"), (5, "d")]);
    }

    #[test]
    fn the_oldest_are_dropped_and_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let events = Events::load(directory.path().join("events.json")).expect("new");
        for number in 0..KEPT_MAX + 3 {
            events.add(Severity::Info, "agent", number.to_string(), "");
        }
        assert_eq!(events.after(0)[0].number, 4);
        events.kept_upstream(10);
        events.add(Severity::Info, "agent", "next", "");
        let last = events.after(KEPT_MAX as u64 + 3);
        assert!(last[0].text.contains("3 earlier events were dropped"), "{last:?}");
    }
}
