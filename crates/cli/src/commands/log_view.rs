//! The end of a merged log, and what comes after it.

use super::resource::query_escape;
use crate::failure::Failure;
use crate::render::text::printable;
use crate::session::{Session, print};
use clap::Args;
use serde_json::Value;
use std::time::Duration;

/// Between two looks at a log that is followed.
const FOLLOW_WAIT: Duration = Duration::from_secs(1);

/// How much of it.
#[derive(Debug, Args)]
pub struct LogView {
    /// Begin with so many of the last lines
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    lines: u32,
    /// Go on printing lines as they are merged
    #[arg(long, short)]
    follow: bool,
}

impl LogView {
    /// Prints lines, with `--json` as the API gives them; on and on if told to.
    pub fn show(&self, session: &Session, path: &str, query: &str) -> Result<(), Failure> {
        let mut place = format!("limit={}", self.lines);
        loop {
            let part = session.client.get(&format!("{path}?{place}{query}"))?.body;
            let found: Vec<&str> = part["lines"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            match session.json {
                true => print(&format!("{part}\n"))?,
                // Clients and customers write into these files what they like.
                false => print(&found.iter().map(|line| format!("{}\n", printable(line))).collect::<String>())?,
            }
            if !self.follow {
                return Ok(());
            }
            place = format!("cursor={}", query_escape(part["next_cursor"].as_str().unwrap_or_default()));
            if found.is_empty() {
                std::thread::sleep(FOLLOW_WAIT);
            }
        }
    }
}
