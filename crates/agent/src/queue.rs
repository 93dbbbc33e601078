//! The mail queues of this node: what people do with them, and how much waits there. Aside from the loop: a queue on a share that hangs
//! must not hold it up.

use crate::node::Node;
use phalanx_host::queue::Queue;
use phalanx_model::Name;
use phalanx_model::queue::{QueueAct, QueueContent, QueueCount};
use phalanx_plan::spec::{NodeSpec, Work};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Queues are counted so often, at most.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Postfix reads each message's file for it: counting may take this part of the time.
const COUNT_SHARE: u32 = 20;

/// Counts what waits in this node's queues until the process ends.
pub async fn count(node: Arc<Node>) {
    loop {
        let begin = Instant::now();
        let counts = match node.spec() {
            Some(NodeSpec { server, work: Work::Mail(Some(mail)), .. }) => counts(&server, mail.queues.keys()).await,
            _ => BTreeMap::new(),
        };
        node.queues.send_replace(counts);
        tokio::time::sleep(COUNT_EVERY.max(begin.elapsed() * COUNT_SHARE)).await;
    }
}

/// A queue whose Postfix does not run, or whose share hangs, can't be counted; that is told as a problem elsewhere.
async fn counts(here: &Name, queues: impl Iterator<Item = &Name>) -> BTreeMap<Name, QueueCount> {
    let mut counts = BTreeMap::new();
    for of in queues {
        match Queue::new(of, here).list(0).await {
            Ok(QueueContent { messages, held, .. }) => drop(counts.insert(of.clone(), QueueCount { messages, held })),
            Err(error) => tracing::debug!(%of, %error, "a queue can't be counted"),
        }
    }
    counts
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
