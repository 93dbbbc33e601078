//! What people do with the mail queues of this node. Aside from the loop: a queue on a share that hangs must not hold it up.

use phalanx_host::queue::Queue;
use phalanx_model::Name;
use phalanx_model::queue::QueueAct;
use phalanx_plan::spec::{NodeSpec, Work};

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
