//! The mail queues of this node: what people do with them, and how much waits there. Aside from the loop: a queue on a share that hangs
//! must not hold it up.

use crate::node::Node;
use phalanx_host::command::CommandError;
use phalanx_host::queue::Queue;
use phalanx_host::service;
use phalanx_model::Name;
use phalanx_model::queue::{QueueAct, QueueContent, QueueCount};
use phalanx_plan::report::QueueState;
use phalanx_plan::spec::{NodeSpec, Work};
use phalanx_plan::steps::units::Unit;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Queues are counted so often, at most.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Postfix reads each message's file for it: a long count is followed by a pause of so many times its own length.
const PAUSE_FACTOR: u32 = 20;
/// But a share that hung shall not leave people without counts for long.
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// Counts what waits in this node's queues until the process ends.
pub async fn count(node: Arc<Node>) {
    loop {
        let begin = Instant::now();
        let counts = match node.spec() {
            Some(NodeSpec { server, work: Work::Mail(Some(mail)), .. }) => counts(&server, mail.queues.keys()).await,
            _ => Vec::new(),
        };
        node.queues.send_replace(counts);
        tokio::time::sleep((begin.elapsed() * PAUSE_FACTOR).clamp(COUNT_EVERY, PAUSE_MAX)).await;
    }
}

/// A queue whose Postfix does not run, or whose share hangs, can't be counted; why is told as a problem elsewhere.
async fn counts(here: &Name, queues: impl Iterator<Item = &Name>) -> Vec<QueueState> {
    let mut counts = Vec::new();
    for of in queues {
        let counted = count_one(of, here).await;
        let count = counted.inspect_err(|error| tracing::debug!(%of, %error, "a queue can't be counted")).ok();
        counts.push(QueueState { of: of.clone(), count: count.flatten() });
    }
    counts
}

/// postqueue(1) looks into a queue by itself where no Postfix answers, and logs that it died of it when one is just starting.
async fn count_one(of: &Name, here: &Name) -> Result<Option<QueueCount>, CommandError> {
    let unit = if of == here { Unit::Postfix } else { Unit::AdoptedQueues };
    if !service::is_active(unit.name()).await? {
        return Ok(None);
    }
    let QueueContent { messages, held, .. } = Queue::new(of, here).list(0).await?;
    Ok(Some(QueueCount { messages, held }))
}

/// Does it, and says what came of it: for a list, its content as JSON.
pub async fn act(spec: Option<&NodeSpec>, of: &Name, act: &QueueAct) -> Result<String, String> {
    let here = runs_it(spec, of)?;
    let queue = Queue::new(of, here);
    let done = match act {
        QueueAct::List { limit } => {
            let content = queue.list(*limit as usize).await;
            return match content.map(|content| serde_json::to_string(&content)) {
                Ok(json) => json.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
        }
        QueueAct::Flush(messages) => queue.flush(messages).await.map(|()| "delivery is tried now".to_owned()),
        QueueAct::Hold(messages) => queue.hold(messages).await,
        QueueAct::Release(messages) => queue.release(messages).await,
        QueueAct::Delete(messages) => queue.delete(messages).await,
    };
    done.map_err(|error| error.to_string())
}

/// This node's name, if it runs the queue.
fn runs_it<'s>(spec: Option<&'s NodeSpec>, of: &Name) -> Result<&'s Name, String> {
    match spec {
        Some(NodeSpec { server, work: Work::Mail(Some(mail)), .. }) if mail.queues.contains_key(of) => Ok(server),
        _ => Err(format!("the queue of {of} is not run here; `phalanx queue list` says where it is")),
    }
}
