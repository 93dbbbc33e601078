//! What the balancer tells the agent through `status.json`: its nodes, and the events of late.

use crate::status;
use phalanx_plan::report::{BackendReport, NodeEvent, Severity};
use serde::Serialize;
use std::collections::VecDeque;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Events that are kept for the agent to pick up.
const EVENTS_MAX: usize = 100;

#[derive(Debug, Serialize)]
struct Status<'a> {
    /// Tells one run from another: events are numbered anew in each.
    started_unix_ms: u64,
    backends: Vec<BackendReport>,
    /// What can't be done now, in words for a person.
    problems: Vec<&'a str>,
    events: &'a VecDeque<NodeEvent>,
}

/// Collects events and problems, and writes them.
#[derive(Debug)]
pub struct Reporter {
    started_unix_ms: u64,
    next_number: u64,
    events: VecDeque<NodeEvent>,
    problem: Option<String>,
    writer: status::Writer,
}

impl Reporter {
    /// With no events.
    pub fn new() -> Self {
        let started_unix_ms = unix_ms();
        Self {
            started_unix_ms,
            next_number: 1,
            events: VecDeque::new(),
            problem: None,
            writer: status::Writer::default(),
        }
    }

    /// Records that something happened.
    pub fn event(&mut self, severity: Severity, topic: &str, text: &str, detail: &str) {
        match severity {
            Severity::Info => tracing::info!("{text}"),
            Severity::Warning => tracing::warn!("{text}"),
            Severity::Error => tracing::error!("{text}"),
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(NodeEvent {
            number: self.next_number,
            at_unix_s: unix_ms() / 1_000,
            severity,
            topic: topic.to_owned(),
            text: text.to_owned(),
            detail: detail.to_owned(),
        });
        self.next_number += 1;
    }

    /// Records that something can't be done now; said once while it stays the same.
    pub fn problem(&mut self, text: &str) {
        if self.problem.as_deref() != Some(text) {
            self.event(Severity::Error, "backend", text, "");
            self.problem = Some(text.to_owned());
        }
    }

    /// Records that what could not be done works again.
    pub fn mended(&mut self) {
        self.problem = None;
    }

    /// Writes `status.json`.
    pub fn write(&mut self, path: &Path, backends: Vec<BackendReport>) {
        let problems = self.problem.as_deref().into_iter().collect();
        let status = Status { started_unix_ms: self.started_unix_ms, backends, problems, events: &self.events };
        self.writer.write(path, &status);
    }
}

fn unix_ms() -> u64 {
    // A clock before 1970 shows as 1970: the number is for display alone.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
