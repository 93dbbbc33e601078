//! What `phalanx logs` says of itself, for the agent's report.

use super::RUN;
use phalanx_host::{atomic, facts};
use phalanx_plan::logs::stream::Stream;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A refusal is told for so long after it was seen last.
const REFUSAL_MS: u64 = 600_000;
/// So many refusals are told.
const REFUSALS_MAX: usize = 20;
/// Who has not finished a round for so long is stuck.
const AGE_MS_MAX: u64 = 60_000;

/// Written after each round.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// When, in milliseconds of CLOCK_BOOTTIME.
    pub at_boottime_ms: u64,
    /// What did not work in it; empty when all did.
    pub failing: String,
    /// Since when that is so.
    pub failing_since_ms: u64,
    /// The logs of sites that took nothing: why, and when it was seen last.
    pub refused: BTreeMap<String, (String, u64)>,
}

impl Status {
    /// Notes that a round is over.
    pub fn finish(&mut self, failing: Option<String>) {
        let now_ms = facts::boottime_ms();
        let failing = failing.unwrap_or_default();
        if self.failing.is_empty() != failing.is_empty() {
            self.failing_since_ms = now_ms;
            match failing.is_empty() {
                true => tracing::info!("logs are shipped again"),
                false => tracing::warn!("logs wait: {failing}"),
            }
        }
        self.failing = failing;
        self.at_boottime_ms = now_ms;
        self.refused.retain(|_, (_, at_ms)| now_ms.saturating_sub(*at_ms) < REFUSAL_MS);
        if let Err(error) = self.write() {
            tracing::error!("{RUN}/status.json can't be written: {error}");
        }
    }

    /// Notes a log that took nothing.
    pub fn refuse(&mut self, stream: Stream, site: &str, why: String) {
        let site = format!("{} log of {site}", stream.file().trim_end_matches(".log"));
        if !self.refused.contains_key(&site) {
            tracing::warn!("the {site} took no lines: {why}");
        }
        if self.refused.len() < 10_000 || self.refused.contains_key(&site) {
            self.refused.insert(site, (why, facts::boottime_ms()));
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let path = Path::new(RUN).join("status.json");
        let beside = path.with_extension("json.new");
        std::fs::write(&beside, serde_json::to_vec(self)?)?;
        std::fs::rename(&beside, &path)
    }

    fn problems(&self, now_ms: u64) -> Vec<String> {
        let age_ms = now_ms.saturating_sub(self.at_boottime_ms);
        let mut problems = Vec::new();
        if age_ms > AGE_MS_MAX {
            problems.push(format!("logs have not been shipped for {} s", age_ms / 1_000));
        } else if !self.failing.is_empty() && now_ms.saturating_sub(self.failing_since_ms) > AGE_MS_MAX {
            problems.push(format!("logs wait: {}", self.failing));
        }
        let refused = self.refused.iter().take(REFUSALS_MAX);
        problems.extend(refused.map(|(site, (why, _))| format!("the {site} takes no lines: {why}")));
        if self.refused.len() > REFUSALS_MAX {
            problems.push(format!("{} more logs take no lines", self.refused.len() - REFUSALS_MAX));
        }
        problems
    }
}

/// What is wrong with logs on this node, in words for a person.
pub fn problems() -> Vec<String> {
    let bytes = atomic::read(&Path::new(RUN).join("status.json")).ok().flatten();
    let status = bytes.and_then(|bytes| serde_json::from_slice::<Status>(&bytes).ok());
    status.map(|status| status.problems(facts::boottime_ms())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_a_problem() {
        let mut status = Status { at_boottime_ms: 100_000, failing: "the share hangs".into(), ..Status::default() };
        status.failing_since_ms = 90_000;
        assert!(status.problems(101_000).is_empty());
        assert_eq!(status.problems(155_000), ["logs wait: the share hangs"]);
        assert_eq!(status.problems(200_000), ["logs have not been shipped for 100 s"]);
        status.refused =
            (0..22).map(|n| (format!("access log of s{n}.org"), ("it is a directory".into(), 0))).collect();
        let problems = status.problems(101_000);
        assert_eq!(problems.len(), 21);
        assert_eq!(problems[0], "the access log of s0.org takes no lines: it is a directory");
        assert_eq!(problems[20], "2 more logs take no lines");
    }
}
