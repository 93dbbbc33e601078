//! The forms of answers about mail queues.

use utoipa::ToSchema;

/// The mail queue that a server filled.
#[derive(ToSchema)]
pub struct Queue {
    /// The server that filled it.
    server: String,
    cluster: String,
    /// Who runs it; while it is moving, who has not been seen to be at an end with it.
    holder: String,
    /// The grant's number: it grows with each move.
    number: u64,
    moving_to: Option<String>,
}

/// A mail queue with what it holds, as the node said that runs it.
#[derive(ToSchema)]
pub struct QueueInFull {
    server: String,
    cluster: String,
    holder: String,
    number: u64,
    moving_to: Option<String>,
    content: QueueContent,
}

/// What a queue holds.
#[derive(ToSchema)]
pub struct QueueContent {
    /// How many messages there are.
    messages: u64,
    /// Of these, how many are held.
    held: u64,
    /// Their sizes together.
    bytes: u64,
    /// The oldest ones.
    items: Vec<QueuedMessage>,
}

/// A message in a queue.
#[derive(ToSchema)]
pub struct QueuedMessage {
    /// Its name there.
    id: String,
    /// incoming, active, deferred or hold.
    state: String,
    /// When it came, in seconds since 1970.
    arrived_unix_s: u64,
    bytes: u64,
    /// The envelope's sender; empty for what nobody shall answer.
    sender: String,
    /// Who has not got it yet: the first ones.
    recipients: Vec<QueuedRecipient>,
}

/// Who has not got a message yet.
#[derive(ToSchema)]
pub struct QueuedRecipient {
    address: String,
    /// Why the last try failed; empty where there was none.
    why: String,
}
