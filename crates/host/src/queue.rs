//! Postfix' queues, through its own programs.

use crate::command::{self, CommandError};
use phalanx_model::Name;
use phalanx_model::queue::{Messages, QueueContent, QueueId, QueuedMessage, QueuedRecipient};
use serde::Deserialize;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;

/// A long queue takes a while to be read; one on a hung share for ever.
const LIMIT: Duration = Duration::from_secs(30);
/// Recipients of one message that a list shows.
const RECIPIENTS_MAX: usize = 20;
const POSTQUEUE: &str = "postqueue";
const POSTSUPER: &str = "postsuper";

/// A queue's running Postfix: the configuration directory of it.
#[derive(Debug, Clone)]
pub struct Queue {
    directory: String,
}

impl Queue {
    /// The queue that `of` filled, on the server `here`.
    pub fn new(of: &Name, here: &Name) -> Self {
        use phalanx_plan::mail::postfix::{ADOPTED, DIRECTORY};
        use phalanx_plan::steps::desired::LIVE;
        let directory = if of == here { format!("{LIVE}/{DIRECTORY}") } else { format!("{LIVE}/{ADOPTED}/{of}") };
        Self { directory }
    }

    /// Counts all its messages, and lists the oldest `limit` of them.
    ///
    /// # Errors
    /// Postfix' words, or it hangs.
    pub async fn list(&self, limit: usize) -> Result<QueueContent, CommandError> {
        let line = || format!("{POSTQUEUE} -c {} -j", self.directory);
        let mut command = Command::new(POSTQUEUE);
        command.args(["-c", &self.directory, "-j"]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let failed = |source| CommandError::Start { program: POSTQUEUE.to_owned(), source };
        let mut child = command.spawn().map_err(failed)?;
        let answer = |why: String| CommandError::Answer { line: line(), why };
        let Some(stdout) = child.stdout.take() else { return Err(answer("nothing".into())) };
        let all = async {
            let content = read(stdout, limit).await.map_err(answer)?;
            let status = child.wait().await.map_err(failed)?;
            if status.success() { Ok(content) } else { Err(answer(format!("it ended with {status}"))) }
        };
        tokio::time::timeout(LIMIT, all)
            .await
            .unwrap_or_else(|_| Err(CommandError::Hung { line: line(), limit: LIMIT }))
    }

    /// Has these delivered now, if that is possible.
    ///
    /// # Errors
    /// Postfix' words.
    pub async fn flush(&self, messages: &Messages) -> Result<(), CommandError> {
        let directory = self.directory.as_str();
        match messages {
            Messages::All => command::succeed(POSTQUEUE, &["-c", directory, "-f"], LIMIT).await.map(drop),
            Messages::One(id) => {
                command::succeed(POSTQUEUE, &["-c", directory, "-i", id.as_str()], LIMIT).await.map(drop)
            }
        }
    }

    /// Lets these wait until they are released. Returns what Postfix said of it.
    ///
    /// # Errors
    /// Postfix' words.
    pub async fn hold(&self, messages: &Messages) -> Result<String, CommandError> {
        self.alter("-h", messages).await
    }

    /// Ends that. What is released is tried at once.
    ///
    /// # Errors
    /// Postfix' words.
    pub async fn release(&self, messages: &Messages) -> Result<String, CommandError> {
        self.alter("-H", messages).await
    }

    /// Removes these; nobody is told.
    ///
    /// # Errors
    /// Postfix' words.
    pub async fn delete(&self, messages: &Messages) -> Result<String, CommandError> {
        self.alter("-d", messages).await
    }

    async fn alter(&self, how: &str, messages: &Messages) -> Result<String, CommandError> {
        let which = match messages {
            Messages::All => "ALL",
            Messages::One(id) => id.as_str(),
        };
        let ended = command::run(POSTSUPER, &["-c", &self.directory, how, which], LIMIT).await?;
        let words = ended.stderr.trim().replace("postsuper: ", "");
        match ended.status.success() {
            true => Ok(words),
            false => {
                Err(CommandError::Failed { line: format!("{POSTSUPER} {how} {which}"), status: ended.status, words })
            }
        }
    }
}

/// A line of `postqueue -j` (postqueue(1)).
#[derive(Debug, Deserialize)]
struct Line {
    queue_name: String,
    queue_id: QueueId,
    arrival_time: u64,
    message_size: u64,
    sender: String,
    #[serde(default)]
    recipients: Vec<LineRecipient>,
}

#[derive(Debug, Deserialize)]
struct LineRecipient {
    address: String,
    #[serde(default)]
    delay_reason: String,
}

async fn read(from: impl AsyncRead + Unpin, limit: usize) -> Result<QueueContent, String> {
    let mut content = QueueContent::default();
    let mut lines = BufReader::new(from).lines();
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        let line: Line = serde_json::from_str(&line).map_err(|error| format!("{error} in {line:.200}"))?;
        content.messages += 1;
        content.held += u64::from(line.queue_name == "hold");
        content.bytes += line.message_size;
        keep_oldest(&mut content.items, message(line), limit);
    }
    Ok(content)
}

/// Puts `new` into its place among the oldest, of which there are at most `limit`.
fn keep_oldest(oldest: &mut Vec<QueuedMessage>, new: QueuedMessage, limit: usize) {
    let place = oldest.partition_point(|kept| kept.arrived_unix_s <= new.arrived_unix_s);
    if place < limit {
        oldest.insert(place, new);
        oldest.truncate(limit);
    }
}

fn message(line: Line) -> QueuedMessage {
    let Line { queue_name, queue_id, arrival_time, message_size, sender, recipients } = line;
    let recipient =
        |LineRecipient { address, delay_reason }: LineRecipient| QueuedRecipient { address, why: delay_reason };
    QueuedMessage {
        id: queue_id,
        state: queue_name,
        arrived_unix_s: arrival_time,
        bytes: message_size,
        sender,
        recipients: recipients.into_iter().take(RECIPIENTS_MAX).map(recipient).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_postqueue_lists_is_counted_and_the_oldest_are_shown() {
        let line = |n: u64, queue: &str| {
            format!(
                r#"{{"queue_name": "{queue}", "queue_id": "4bJx2v0Zk9z{n:04}", "arrival_time": {}, "message_size": 10, "forced_expire": false, "sender": "", "recipients": [{{"address": "a@far.example", "delay_reason": "\u0022no\u0022 way"}}]}}"#,
                1_000 - n
            )
        };
        let text: String = (0..30).map(|n| line(n, if n < 2 { "hold" } else { "deferred" }) + "\n").collect();
        let content = read(text.as_bytes(), 3).await.expect("understood");
        assert_eq!((content.messages, content.held, content.bytes), (30, 2, 300));
        let times: Vec<u64> = content.items.iter().map(|item| item.arrived_unix_s).collect();
        assert_eq!(times, [971, 972, 973]);
        assert_eq!(content.items[0].recipients[0].why, "\"no\" way");
        assert!(read(&b"postqueue: fatal\n"[..], 3).await.is_err());
    }
}
