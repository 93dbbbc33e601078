//! `phalanx status`: the whole at a glance.

use crate::failure::Failure;
use crate::render::status::{Status, picture};
use crate::session::{Session, print};
use anyhow::Context as _;
use serde::Deserialize as _;
use serde_json::Value;
use std::time::Duration;

const WATCH_PERIOD: Duration = Duration::from_secs(2);
/// ECMA-48: cursor home, then erase to the end of the screen after drawing, so that nothing flickers.
const HOME: &str = "\u{1b}[H";
const ERASE_BELOW: &str = "\u{1b}[J";
const CLEAR: &str = "\u{1b}[2J";

/// How to look.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Draw it anew every two seconds, until interrupted
    #[arg(long, short)]
    watch: bool,
}

/// Prints the picture: once, or again and again.
pub fn run(args: &StatusArgs, session: &Session) -> Result<(), Failure> {
    let fetch = || session.client.get("/status").map(|answer| answer.body);
    if !args.watch {
        let status = fetch()?;
        return if session.json { print(&format!("{status:#}\n")) } else { print(&draw(&status, session)?) };
    }
    if !session.json {
        print(CLEAR)?;
    }
    loop {
        match fetch() {
            Ok(status) if session.json => print(&format!("{status}\n"))?,
            Ok(status) => {
                let lines = draw(&status, session)?.replace('\n', "\u{1b}[K\n");
                print(&format!("{HOME}{lines}{ERASE_BELOW}"))?;
            }
            // Whoever watches wants to see it come back.
            Err(Failure::Unreachable { why, .. }) => session.note(&format!("The panel is out of reach: {why}.")),
            Err(failure) => return Err(failure),
        }
        std::thread::sleep(WATCH_PERIOD);
    }
}

fn draw(status: &Value, session: &Session) -> Result<String, Failure> {
    let status = Status::deserialize(status)
        .context("the panel's status is not in the form that this command knows (another version?); --json shows it")?;
    Ok(picture(&status, session.style))
}
