//! `phalanx mail`: what the daemons of a mail cluster say, and the way of a message through them.

use super::log_view::LogView;
use super::resource::{items, query_escape};
use crate::failure::Failure;
use crate::render::style::Style;
use crate::render::table::{Column, table};
use crate::render::text::printable;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::Name;
use serde_json::Value;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum MailCommand {
    /// Follow a message from where it was taken to the mailboxes that have it
    #[command(after_help = "\
The Message-ID is in the message's head; both `<id@host>` and `id@host` will do. Lines are searched as they were merged, about
two seconds after they were written.

Examples:
  phalanx mail trace '<20261128141259.000178@example.org>'
  phalanx mail trace 20261128141259.000178@example.org --days 14")]
    Trace {
        /// The message's Message-ID
        message_id: String,
        /// Search today's log and those of so many days before
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=31))]
        days: u32,
        #[command(flatten)]
        of: OfCluster,
    },
    /// Show the end of a mail cluster's log, in which the lines of all nodes are
    #[command(after_help = "Example:\n  phalanx mail log --follow")]
    Log {
        #[command(flatten)]
        of: OfCluster,
        #[command(flatten)]
        view: LogView,
    },
}

/// Which cluster.
#[derive(Debug, Args)]
pub struct OfCluster {
    /// The mail cluster; not needed where there is one
    #[arg(long, value_name = "NAME")]
    cluster: Option<Name>,
}

const FATES: &[Column] = &[
    Column::new("RECIPIENT", "/to"),
    Column::new("STATE", "/state"),
    Column::new("SINCE", "/at"),
    Column::new("NODE", "/node"),
    Column::new("ANSWER", "/answer"),
];

impl OfCluster {
    fn name(&self, session: &Session) -> Result<String, Failure> {
        if let Some(name) = &self.cluster {
            return Ok(name.to_string());
        }
        let all = session.client.get("/clusters?limit=1000")?.body;
        let names: Vec<&str> = items(&all)
            .iter()
            .filter(|cluster| cluster["kind"] == "mail")
            .filter_map(|cluster| cluster["name"].as_str())
            .collect();
        match names[..] {
            [name] => Ok(name.to_owned()),
            [] => Err(Failure::usage("there is no mail cluster", "`phalanx cluster add --help` tells how one is made")),
            _ => Err(Failure::usage(
                format!("there are several mail clusters: {}", names.join(", ")),
                "say which: --cluster NAME",
            )),
        }
    }
}

/// Does a command.
pub fn run(command: MailCommand, session: &Session) -> Result<(), Failure> {
    match command {
        MailCommand::Trace { message_id, days, of } => {
            let path = format!("/clusters/{}/mail-trace", of.name(session)?);
            let query = format!("message_id={}&days={days}", query_escape(&message_id));
            let trace = session.client.get(&format!("{path}?{query}"))?.body;
            session.show(&trace, |trace| shown(trace, session.style))?;
            match items_of(&trace, "lines").is_empty() {
                true => Err(anyhow::anyhow!(
                    "no line of the logs that were searched names this message; try more days (--days 31), and wait some seconds for \
                     one that was sent just now"
                )
                .into()),
                false => Ok(()),
            }
        }
        MailCommand::Log { of, view } => view.show(session, &format!("/clusters/{}/mail-log", of.name(session)?), ""),
    }
}

fn items_of<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn shown(trace: &Value, style: Style) -> String {
    let lines = items_of(trace, "lines");
    let node_len = lines.iter().filter_map(|line| line["node"].as_str()).map(str::len).max().unwrap_or_default();
    let mut text: String = lines
        .iter()
        .map(|line| {
            let word = |name: &str| printable(line[name].as_str().unwrap_or_default());
            let id = line["queue_id"].as_str().map(|id| format!("{}: ", printable(id))).unwrap_or_default();
            // The queue id stands before what was said, as Postfix writes it.
            let said = word("text");
            let said = match said.split_once(": ") {
                Some((tag, said)) => format!("{tag}: {id}{said}"),
                None => said,
            };
            format!("{}  {:node_len$}  {said}\n", word("at"), word("node"))
        })
        .collect();
    if trace["is_cut"] == true {
        text += "# there are more lines than these\n";
    }
    let fates = items_of(trace, "recipients");
    if !fates.is_empty() {
        text += "\n";
        text += &table(FATES, fates, style);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn a_trace_is_lines_and_what_became_of_it() {
        let trace = json!({
            "lines": [
                {"at": "2026-11-28T16:00:50.000000Z", "node": "mail2", "queue_id": "4jcF", "text": "postfix/smtpd[1]: client=w[192.0.2.1]"},
                {"at": "2026-11-28T16:00:51.000000Z", "node": "m1", "queue_id": null, "text": "dovecot: lmtp(a@example.org)<7>: saved"},
            ],
            "recipients": [{
                "to": "a@example.org", "state": "stored", "at": "2026-11-28T16:00:51.000000Z", "node": "m1", "answer": "saved mail to INBOX"
            }],
            "is_cut": true,
        });
        expect![[r#"
            2026-11-28T16:00:50.000000Z  mail2  postfix/smtpd[1]: 4jcF: client=w[192.0.2.1]
            2026-11-28T16:00:51.000000Z  m1     dovecot: lmtp(a@example.org)<7>: saved
            # there are more lines than these

            RECIPIENT      STATE   SINCE                        NODE  ANSWER
            a@example.org  stored  2026-11-28T16:00:51.000000Z  m1    saved mail to INBOX
        "#]]
        .assert_eq(&shown(&trace, Style::Plain));
    }
}
