//! What every command works with: the panel's client, and where and how to print.

use crate::client::Client;
use crate::failure::Failure;
use crate::render::style::Style;
use serde_json::Value;
use std::io::{ErrorKind, Write};

/// One run of a command.
pub struct Session {
    /// The panel.
    pub client: Client,
    /// Whether programs read the output: the API's JSON instead of text.
    pub json: bool,
    /// Whether the text is coloured.
    pub style: Style,
}

impl Session {
    /// Prints the API's JSON with `--json`, else the text that `render` makes of it.
    pub fn show(&self, value: &Value, render: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        match (self.json, value) {
            (false, value) => print(&render(value)),
            // The API answered without a body: there is no JSON.
            (true, Value::Null) => Ok(()),
            (true, value) => print(&format!("{value:#}\n")),
        }
    }

    /// Tells the person something beside the result, on standard error. Programs do not get it.
    pub fn note(&self, text: &str) {
        if !self.json {
            // A note that nobody can read is not worth failing for.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

/// Writes to standard output; a reader that has gone (`| head`) ends the command quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        Err(error) => Err(anyhow::Error::new(error).context("writing to standard output").into()),
    }
}
