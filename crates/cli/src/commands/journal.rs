//! `phalanx events` and `phalanx audit`: what happened, and who changed what.

use super::resource::items;
use crate::failure::Failure;
use crate::render::event;
use crate::session::{Session, print};
use crate::sse::Events;
use clap::Args;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::Duration;

/// Between two attempts to follow again after the stream broke off.
const RECONNECT_WAIT: Duration = Duration::from_secs(2);

/// Which events.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on printing events as they happen
    #[arg(long, short)]
    follow: bool,
    /// Begin after the event of this id
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// Show so many of the events that there are
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// Which audit records.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Show so many of the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// Prints what there is, then follows if told to.
pub fn events(args: EventsArgs, session: &Session) -> Result<(), Failure> {
    let EventsArgs { follow, after, limit } = args;
    let after_query = after.map(|after| format!("&after={after}")).unwrap_or_default();
    let list = session.client.get(&format!("/events?limit={limit}{after_query}"))?.body;
    if !follow {
        session.show(&list, |list| items(list).iter().map(|item| event::event(item, session.style)).collect())?;
        if items(&list).is_empty() {
            session.note("No events.");
        }
        return Ok(());
    }
    let mut last = after.unwrap_or_default();
    for item in items(&list) {
        print_event(item, session)?;
        last = last.max(item["id"].as_u64().unwrap_or_default());
    }
    loop {
        follow_stream(&mut last, session)?;
        session.note("The stream broke off; connecting again.");
        std::thread::sleep(RECONNECT_WAIT);
    }
}

/// Prints events until the stream ends. Connection loss is an end; a refusal and a closed output are errors.
fn follow_stream(last: &mut u64, session: &Session) -> Result<(), Failure> {
    let stream = match session.client.stream(&format!("/events?follow=true&after={last}")) {
        Ok(stream) => stream,
        // It answered a moment ago: most likely it is being restarted.
        Err(Failure::Unreachable { why, .. }) => {
            session.note(&format!("The panel is out of reach: {why}."));
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    let mut events = Events::default();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return Ok(()) };
        let Some(data) = events.line(&line) else { continue };
        let Ok(item) = serde_json::from_str::<Value>(&data) else { continue };
        print_event(&item, session)?;
        *last = (*last).max(item["id"].as_u64().unwrap_or_default());
    }
    Ok(())
}

/// A line (or a few) for a person, one line of JSON for programs.
fn print_event(item: &Value, session: &Session) -> Result<(), Failure> {
    if session.json { print(&format!("{item}\n")) } else { print(&event::event(item, session.style)) }
}

/// Prints the newest audit records.
pub fn audit(args: AuditArgs, session: &Session) -> Result<(), Failure> {
    let list = session.client.get(&format!("/audit?limit={}", args.limit))?.body;
    session.show(&list, |list| {
        // The newest at the bottom, where the eye is when the command ends.
        items(list).iter().rev().map(|record| event::audit(record, session.style)).collect()
    })
}
