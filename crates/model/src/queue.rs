//! Mail queues, as people look at them and act on them.

use crate::Invalid;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A message's name in a queue: what Postfix calls it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueId(String);

impl QueueId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for QueueId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Long ids hold a time and an inode's number, in digits and consonants. `ALL` is another thing to postsuper(1).
        if !(6..=32).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Invalid::new(
                "queue id",
                text,
                "it must be 6 to 32 letters and digits, as `queue show` lists it",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

crate::name::text_value!(QueueId);

/// The messages that something is done with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Messages {
    /// All of the queue.
    All,
    /// One.
    One(QueueId),
}

/// What is done with a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueAct {
    /// List its messages, oldest first.
    List {
        /// At most so many; all are counted.
        limit: u32,
    },
    /// Try to deliver now what waits for its next try.
    Flush(Messages),
    /// Let them wait until they are released.
    Hold(Messages),
    /// End what [`QueueAct::Hold`] began.
    Release(Messages),
    /// Remove them. Nobody is told.
    Delete(Messages),
}

/// How many messages a queue holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCount {
    /// All of them.
    pub messages: u64,
    /// Of these, how many are held.
    pub held: u64,
}

/// What a queue holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueContent {
    /// How many messages there are.
    pub messages: u64,
    /// Of these, how many are held.
    pub held: u64,
    /// Their sizes together, in bytes.
    pub bytes: u64,
    /// The oldest ones.
    pub items: Vec<QueuedMessage>,
}

/// A message in a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedMessage {
    /// Its name there.
    pub id: QueueId,
    /// `incoming`, `active`, `deferred` or `hold`.
    pub state: String,
    /// When it came, in seconds since 1970.
    pub arrived_unix_s: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The envelope's sender; empty for what nobody shall answer.
    pub sender: String,
    /// Who has not got it yet, and why not.
    pub recipients: Vec<QueuedRecipient>,
}

/// Who has not got a message yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedRecipient {
    /// The address.
    pub address: String,
    /// Why the last try failed; empty where there was none.
    #[serde(default)]
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_id_is_no_word_of_postsuper() {
        assert!("4bJx2v0Zk9z1qWd".parse::<QueueId>().is_ok());
        for bad in ["ALL", "", "-", "4bJx2v0Zk9/z1", "4bJx2v0Zk9 z1", "4bJx\n2v0", &"A".repeat(33)] {
            assert!(bad.parse::<QueueId>().is_err(), "{bad:?}");
        }
    }
}
