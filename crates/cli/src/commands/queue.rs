//! `phalanx queue`: the mail queues of mail clusters.

use super::resource::{ListArgs, Resource, items};
use crate::failure::Failure;
use crate::render::table::{Column, table};
use crate::render::text::cell;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::Name;
use phalanx_model::queue::QueueId;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const QUEUE: Resource = Resource {
    noun: "queue",
    path: "/queues",
    key: "/server",
    columns: &[
        Column::new("QUEUE OF", "/server"),
        Column::new("CLUSTER", "/cluster"),
        Column::new("RUN BY", "/holder"),
        Column::new("NUMBER", "/number"),
        Column::new("MOVING TO", "/moving_to"),
    ],
    first: "Each node of a mail cluster has one: `phalanx cluster add --help`.",
};

const MESSAGES: &[Column] = &[
    Column::new("ID", "/id"),
    Column::new("STATE", "/state"),
    Column::new("AGE", "/age"),
    Column::new("BYTES", "/bytes"),
    Column::new("FROM", "/sender"),
    Column::new("TO", "/to"),
    Column::new("WHY", "/why"),
];

/// How long an adoption is watched. A machine that is switched off takes some seconds, and a report is believed for a few.
const ADOPTION_WATCHED: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);
/// How often the panel is asked again: it fences a holder that has fallen silent meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The commands.
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// List the queues, and who runs each
    List(ListArgs),
    /// Show what a queue holds, the oldest messages first
    Show {
        /// The server that filled it
        server: Name,
        /// Show at most so many messages; all are counted
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
        limit: u32,
    },
    /// Try to deliver now what waits for its next try
    Flush {
        /// The server that filled it
        server: Name,
        /// One message; all where none is named
        id: Option<QueueId>,
    },
    /// Let messages wait until they are released
    #[command(after_help = "Examples:\n  phalanx queue hold mail1 4bJx2v0Zk9z1qWd\n  phalanx queue hold mail1 --all")]
    Hold(Which),
    /// Let messages go on that are held
    Release(Which),
    /// Remove messages; nobody is told
    Delete(Which),
    /// Let another node run a queue, also that of a node that is lost
    #[command(after_help = "\
The queue lies on the share: nothing is copied, and no message that was answered with 250 is lost. A message that was being
delivered when its node died may arrive twice.

A node that lives lets go of its queue by itself. One that is lost is fenced first, by its driver (`phalanx server change --fence`):
by a program, or by a person, who says that the machine is off. When its machine is started anew, its queue comes home by itself.

Examples:
  phalanx queue adopt mail2 --to mail1
  phalanx queue adopt mail2 --to mail1 --confirm 'mail2 is switched off'
  phalanx queue adopt mail2 --to mail2                      back home")]
    Adopt {
        /// The server that filled it
        server: Name,
        /// The node that shall run it
        #[arg(long, value_name = "NODE")]
        to: Name,
        /// Where a person's word fences the node that runs it: "NODE is switched off"
        #[arg(long, value_name = "WORDS")]
        confirm: Option<String>,
    },
}

/// Which messages are meant.
#[derive(Debug, Args)]
pub struct Which {
    /// The server that filled the queue
    server: Name,
    /// One message
    #[arg(required_unless_present = "all")]
    id: Option<QueueId>,
    /// All messages of the queue
    #[arg(long, conflicts_with = "id")]
    all: bool,
}

/// Runs one.
pub fn run(command: QueueCommand, session: &Session) -> Result<(), Failure> {
    match command {
        QueueCommand::List(args) => QUEUE.list(session, &args, ""),
        QueueCommand::Show { server, limit } => show(session, &server, limit),
        QueueCommand::Flush { server, id } => order(session, "flush", Which { server, all: id.is_none(), id }),
        QueueCommand::Hold(which) => order(session, "hold", which),
        QueueCommand::Release(which) => order(session, "release", which),
        QueueCommand::Delete(which) => order(session, "delete", which),
        QueueCommand::Adopt { server, to, confirm } => adopt(session, &server, &to, confirm.as_deref()),
    }
}

fn show(session: &Session, server: &Name, limit: u32) -> Result<(), Failure> {
    let answer = session.client.get(&format!("/queues/{server}?limit={limit}"))?.body;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    session.show(&answer, |queue| {
        let rows: Vec<Value> = items(&queue["content"]).iter().map(|message| row(message, now)).collect();
        table(MESSAGES, &rows, session.style)
    })?;
    let content = &answer["content"];
    let (messages, held) = (content["messages"].as_u64().unwrap_or(0), content["held"].as_u64().unwrap_or(0));
    let held = if held == 0 { String::new() } else { format!(", {held} of them held") };
    session.note(&format!(
        "The queue of {server}, run by {}, holds {messages} message{}{held}, {} bytes.",
        cell(&answer["holder"]),
        if messages == 1 { "" } else { "s" },
        cell(&content["bytes"]),
    ));
    Ok(())
}

/// One message as a line of the table.
fn row(message: &Value, now_unix_s: u64) -> Value {
    let recipients = message["recipients"].as_array().cloned().unwrap_or_default();
    let first = recipients.first().cloned().unwrap_or_default();
    let more = match recipients.len() {
        0 | 1 => String::new(),
        many => format!(" and {} more", many - 1),
    };
    let sender = message["sender"].as_str().filter(|sender| !sender.is_empty()).unwrap_or("<>");
    let age_s = now_unix_s.saturating_sub(message["arrived_unix_s"].as_u64().unwrap_or(now_unix_s));
    json!({
        "id": message["id"],
        "state": message["state"],
        "age": age(age_s),
        "bytes": message["bytes"],
        "sender": sender,
        "to": format!("{}{more}", first["address"].as_str().unwrap_or_default()),
        "why": first["why"].as_str().filter(|why| !why.is_empty()),
    })
}

fn age(s: u64) -> String {
    match s {
        0..=119 => format!("{s} s"),
        120..=7_199 => format!("{} min", s / 60),
        7_200..=172_799 => format!("{} h", s / 3_600),
        _ => format!("{} days", s / 86_400),
    }
}

fn order(session: &Session, what: &str, Which { server, id, all }: Which) -> Result<(), Failure> {
    let body = super::resource::without_nulls(&json!({ "id": id, "all": all }));
    let answer = session.client.post(&format!("/queues/{server}/{what}"), &body)?.body;
    session.show(&answer, |answer| format!("{}\n", cell(&answer["result"])))
}

/// Asks for the adoption, and again until it has come to pass.
fn adopt(session: &Session, server: &Name, to: &Name, confirm: Option<&str>) -> Result<(), Failure> {
    let body = super::resource::without_nulls(&json!({ "to": to, "confirmation": confirm }));
    let (path, since) = (format!("/queues/{server}/adopt"), Instant::now());
    let mut said = String::new();
    let mut asked: Option<Instant> = None;
    while since.elapsed() < ADOPTION_WATCHED {
        let queue = if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            asked = Some(Instant::now());
            session.client.post_slowly(&path, &body)?.body
        } else {
            let all = session.client.get(QUEUE.path)?.body;
            items(&all).iter().find(|queue| queue["server"] == *server.as_str()).cloned().unwrap_or_default()
        };
        if queue["holder"] == *to.as_str() && queue["moving_to"].is_null() {
            return adopted(session, server, to, &queue);
        }
        let now = format!("{} has the queue of {server} and has not let go of it yet.", cell(&queue["holder"]));
        if now != said {
            session.note(&now);
            said = now;
        }
        std::thread::sleep(POLL);
    }
    Err(Failure::Other(anyhow::anyhow!(
        "the queue of {server} has not moved to {to} after {} s; the panel goes on with it: `phalanx status` says what it waits for",
        ADOPTION_WATCHED.as_secs()
    )))
}

fn adopted(session: &Session, server: &Name, to: &Name, queue: &Value) -> Result<(), Failure> {
    session.show(queue, |_| format!("{to} runs the queue of {server}.\n"))?;
    session.note(&format!("`phalanx queue show {server}` lists what it still holds."));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::style::Style;
    use expect_test::expect;

    #[test]
    fn a_queue_is_a_table() {
        let message = |sender: &str, to: &[&str], why: &str, at: u64| {
            let recipients: Vec<Value> = to.iter().map(|to| json!({"address": to, "why": why})).collect();
            json!({"id": "4bJx2v0Zk9z1qWd", "state": "deferred", "arrived_unix_s": at, "bytes": 512, "sender": sender, "recipients": recipients})
        };
        let messages = [
            message("ann@far.example", &["info@example.org", "b@example.org"], "", 999_990),
            message("", &["c@far.example"], "Connection timed out\u{1b}[2J", 400_000),
        ];
        let rows: Vec<Value> = messages.iter().map(|message| row(message, 1_000_000)).collect();
        expect![[r#"
            ID               STATE     AGE     BYTES  FROM             TO                           WHY
            4bJx2v0Zk9z1qWd  deferred  10 s    512    ann@far.example  info@example.org and 1 more  -
            4bJx2v0Zk9z1qWd  deferred  6 days  512    <>               c@far.example                Connection timed out�[2J
        "#]]
        .assert_eq(&table(MESSAGES, &rows, Style::Plain));
    }
}
