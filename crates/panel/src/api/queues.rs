//! Mail queues: where they are, what they hold, and what a person does with their messages.
//!
//! What a queue holds is asked from the node that runs it, each time.

use super::problem::{Problem, Reply};
use super::request::{Ask, At, JsonBody, named};
use super::servers::{self, order};
use crate::Panel;
use crate::fencing::Asked;
use crate::store::{Actor, World};
use axum::Json;
use axum::extract::{Extension, State};
use axum::response::IntoResponse;
use phalanx_model::queue::{Messages, QueueAct, QueueContent, QueueId};
use phalanx_model::{Cluster, FleetChange, Grant, Name, Right};
use phalanx_plan::session::Command;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Messages that a list shows where nobody says how many.
const LIMIT_DEFAULT: u32 = 100;
/// The most that can be asked for.
const LIMIT_MAX: u32 = 1_000;

/// How many messages are listed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentQuery {
    limit: Option<u32>,
}

/// Which messages are meant: one, or all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The message's id in the queue.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    id: Option<QueueId>,
    /// All messages of the queue.
    #[serde(default)]
    all: bool,
}

/// Who shall run a queue.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// The node; the server that filled it, to bring it home.
    #[schema(value_type = String)]
    to: Name,
    /// Where a person's word fences the node that has it: "NODE is switched off".
    #[serde(default)]
    confirmation: Option<String>,
}

impl Which {
    fn messages(self) -> Reply<Messages> {
        match (self.id, self.all) {
            (Some(id), false) => Ok(Messages::One(id)),
            (None, true) => Ok(Messages::All),
            _ => Err(Problem::invalid("id", "name one message by id, or set all to true")),
        }
    }
}

/// The queue that a server filled: its cluster, and the grant that says who runs it.
fn find<'w>(world: &'w World, of: &Name) -> Reply<(&'w Cluster, &'w Grant)> {
    let right = Right::Queue(of.clone());
    let found = world.fleet.clusters.values().find_map(|cluster| Some((cluster, cluster.grants.get(&right)?)));
    found.ok_or_else(|| Problem::unknown("queue", of.as_str()))
}

fn view(of: &Name, cluster: &Cluster, grant: &Grant) -> Value {
    let Grant { number, holder, moving_to } = grant;
    json!({ "server": of, "cluster": cluster.name, "holder": holder, "number": number, "moving_to": moving_to })
}

/// All queues. There are as many as mail servers.
pub(super) async fn list(State(panel): State<Panel>) -> Reply {
    let world = panel.store.world();
    let queue = |cluster: &Cluster, right: &Right, grant: &Grant| match right {
        Right::Queue(of) => Some(view(of, cluster, grant)),
        Right::Mailboxes | Right::Logs => None,
    };
    let clusters = world.fleet.clusters.values();
    let all = clusters.flat_map(|c| c.grants.iter().filter_map(move |(right, grant)| queue(c, right, grant)));
    Ok(Json(json!({ "items": all.collect::<Vec<_>>(), "next_cursor": null })).into_response())
}

pub(super) async fn show(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(of): At<String>,
    Ask(ContentQuery { limit }): Ask<ContentQuery>,
) -> Reply {
    let of: Name = named("queue", &of)?;
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if limit > LIMIT_MAX {
        return Err(Problem::invalid("limit", format!("limit {limit} is not between 0 and {LIMIT_MAX}")));
    }
    let (answer, mut body) = ask(&panel, &actor, &of, QueueAct::List { limit }).await?;
    let content: QueueContent = serde_json::from_str(&answer).map_err(|error| Problem::internal(&error))?;
    body["content"] = json!(content);
    Ok(Json(body).into_response())
}

/// A holder that is heard of lets go by itself; one that is silent is fenced first. Asked again, it goes on where it was.
pub(super) async fn adopt(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(of): At<String>,
    JsonBody(Adopt { to, confirmation }): JsonBody<Adopt>,
) -> Reply {
    let of: Name = named("queue", &of)?;
    let world = panel.store.world();
    let (cluster, grant) = find(&world, &of)?;
    let (cluster, holder) = (cluster.name.clone(), grant.holder.clone());
    let ask = FleetChange::AskGrant { cluster, right: Right::Queue(of.clone()), to: to.clone() };
    // Rules first, on a copy: nothing is switched off for what can't be.
    (*world.fleet).clone().apply(ask.clone())?;
    let is_asked = grant.moving_to.as_ref() == Some(&to) || (grant.moving_to.is_none() && holder == to);
    let is_silent = panel.live.seen(&holder).is_none_or(|seen| !seen.is_fresh());
    if holder != to && is_silent {
        servers::have_fenced(&panel, &actor, &holder, Asked { confirmation, anyway: false }).await?;
    }
    if !is_asked {
        let mut write = panel.store.write(&actor).await?;
        write.apply(ask)?;
        write.commit().await?;
    }
    let world = panel.store.world();
    let (cluster, grant) = find(&world, &of)?;
    Ok(Json(view(&of, cluster, grant)).into_response())
}

/// Has the queue's holder do it; returns what it said, and the queue.
async fn ask(panel: &Panel, actor: &Actor, of: &Name, act: QueueAct) -> Reply<(String, Value)> {
    let world = panel.store.world();
    let (cluster, grant) = find(&world, of)?;
    let command = Command::Queue { of: of.clone(), act };
    Ok((order(panel, actor, &grant.holder, command).await?, view(of, cluster, grant)))
}

async fn act(panel: &Panel, actor: &Actor, of: &str, act: QueueAct) -> Reply {
    let (result, _) = ask(panel, actor, &named("queue", of)?, act).await?;
    Ok(Json(json!({ "result": result })).into_response())
}

pub(super) async fn flush(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(of): At<String>,
    JsonBody(which): JsonBody<Which>,
) -> Reply {
    act(&panel, &actor, &of, QueueAct::Flush(which.messages()?)).await
}

pub(super) async fn hold(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(of): At<String>,
    JsonBody(which): JsonBody<Which>,
) -> Reply {
    act(&panel, &actor, &of, QueueAct::Hold(which.messages()?)).await
}

pub(super) async fn release(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(of): At<String>,
    JsonBody(which): JsonBody<Which>,
) -> Reply {
    act(&panel, &actor, &of, QueueAct::Release(which.messages()?)).await
}

pub(super) async fn delete(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(of): At<String>,
    JsonBody(which): JsonBody<Which>,
) -> Reply {
    act(&panel, &actor, &of, QueueAct::Delete(which.messages()?)).await
}
