//! Physical servers: what they are, their join tokens, orders to them.

use super::fleet::{listed, seen};
use super::list::{PageQuery, created, one, page_of_map};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, IfMatch, JsonBody, named};
use crate::Panel;
use crate::clock::rfc3339;
use crate::fencing::{self, Asked, FenceError};
use crate::leaving;
use crate::live::{CommandError, Seen, node_state};
use crate::store::{Actor, Kind, World};
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use phalanx_model::server::{FenceDriver, InternalNet, confirmation};
use phalanx_model::{ClusterKind, FleetChange, Name, Refusal, Role, Rule, Server};
use phalanx_plan::session::Command;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use utoipa::ToSchema;

/// How long the answer to a command is waited for.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(10);

/// A new physical server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewServer {
    /// Its name.
    #[schema(value_type = String)]
    name: Name,
    /// What clusters it may belong to: web, mail, nas or balancer.
    #[schema(value_type = String)]
    kind: ClusterKind,
    /// Its internal address with the prefix length, such as 10.9.0.11/24.
    #[schema(value_type = String)]
    address: InternalNet,
}

/// A change of a server. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerPatch {
    /// Its new internal address.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    address: Option<InternalNet>,
    /// How it is fenced: manual, or command:PROGRAM.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    fence: Option<FenceDriver>,
}

/// That a server shall be fenced.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// Where a person's word is what fences it: "SERVER is switched off".
    #[serde(default)]
    confirmation: Option<String>,
    /// Also if it reports, and so could let go by itself.
    #[serde(default)]
    anyway: bool,
}

/// That a fenced server may take part again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unfence {
    /// "SERVER was started anew".
    confirmation: String,
}

/// Back to an earlier generation of configuration files.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The generation.
    generation: u64,
}

/// What is known of the servers beside what they should be.
struct Known {
    joined: BTreeMap<String, i64>,
    reports: BTreeMap<Name, Seen>,
}

async fn known(panel: &Panel) -> Reply<Known> {
    Ok(Known { joined: panel.store.joined().await?, reports: panel.live.all_seen() })
}

/// A server as JSON, with its part in its cluster and what it last reported.
fn with_state(panel: &Panel, world: &World, known: &Known, server: &Server, mut body: Value) -> Value {
    let name = &server.name;
    let membership = world.fleet.membership(name);
    let settings = membership
        .and_then(|(cluster, _)| cluster.nodes().find(|(node, _, _)| *node == name))
        .map(|(_, _, settings)| settings);
    body["cluster"] = json!(membership.map(|(cluster, _)| &cluster.name));
    body["role"] = json!(membership.map(|(_, role)| role));
    let leaving = world.removals.get(name).map(|removal| leaving::progress(world, &known.reports, removal));
    body["leaving"] = json!(leaving);
    let (state, why) = node_state(server.kind, settings.unwrap_or_default(), name, &known.reports);
    let report = known.reports.get(name);
    let fresh = report.is_some_and(Seen::is_fresh);
    body["state"] = json!({
        "state": state,
        "why": why,
        "joined_at": known.joined.get(name.as_str()).map(|at| rfc3339(*at)),
        "connected": panel.live.is_connected(name) || fresh,
        "last_seen": report.map(|seen| rfc3339(seen.at_unix_s)),
        "via": report.map(|seen| &seen.via),
        "report": report.map(|seen| &seen.report),
    });
    body
}

async fn show(panel: &Panel, world: &World, name: &Name) -> Reply<(u64, Value)> {
    let server = world.fleet.servers.get(name).ok_or_else(|| Problem::unknown("server", name.as_str()))?;
    let (version, body) = seen(world, Kind::Server, name, server)?;
    Ok((version, with_state(panel, world, &known(panel).await?, server, body)))
}

pub(super) async fn list(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let (world, known) = (panel.store.world(), known(&panel).await?);
    page_of_map(&world.fleet.servers, &query, |name, server| {
        with_state(&panel, &world, &known, server, listed(&world, Kind::Server, name, server))
    })
}

pub(super) async fn add(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(new): JsonBody<NewServer>,
) -> Reply {
    let NewServer { name, kind, address } = new;
    let mut write = panel.store.write(&actor).await?;
    write.apply(FleetChange::AddServer { server: Server::new(name.clone(), kind, address) })?;
    let world = write.commit().await?;
    let (version, body) = show(&panel, &world, &name).await?;
    Ok(created("/servers", &name, version, body))
}

pub(super) async fn get(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let (version, body) = show(&panel, &panel.store.world(), &named("server", &name)?).await?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn change(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(ServerPatch { address, fence }): JsonBody<ServerPatch>,
) -> Reply {
    let name: Name = named("server", &name)?;
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::Server, &name, version)?;
    let mut server = write.fleet().servers.get(&name).ok_or_else(|| Problem::unknown("server", name.as_str()))?.clone();
    server.address = address.unwrap_or(server.address);
    server.fence = fence.unwrap_or(server.fence);
    write.apply(FleetChange::ChangeServer { server })?;
    let world = write.commit().await?;
    let (version, body) = show(&panel, &world, &name).await?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn remove(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let name: Name = named("server", &name)?;
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::Server, &name, version)?;
    write.apply(FleetChange::RemoveServer { name: name.clone() })?;
    let world = write.commit().await?;
    panel.live.end(&name, &format!("server {name} was removed from the fleet"));
    panel.live.retain(|server| world.fleet.servers.contains_key(server));
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn fence(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    JsonBody(Fence { confirmation, anyway }): JsonBody<Fence>,
) -> Reply {
    let name: Name = named("server", &name)?;
    have_fenced(&panel, &actor, &name, Asked { confirmation, anyway }).await?;
    let (version, body) = show(&panel, &panel.store.world(), &name).await?;
    Ok(one(StatusCode::OK, version, body))
}

/// Fences a server. It goes on when the asker has left: a machine that is half off helps nobody.
pub(super) async fn have_fenced(panel: &Panel, actor: &Actor, name: &Name, asked: Asked) -> Reply<()> {
    let (panel, actor, server) = (panel.clone(), actor.clone(), name.clone());
    match tokio::spawn(async move { fencing::fence(&panel, &actor, &server, &asked).await }).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(not_fenced(name, error)),
        Err(error) => Err(Problem::internal(&error)),
    }
}

fn not_fenced(name: &Name, error: FenceError) -> Problem {
    let detail = error.to_string();
    let refused =
        |kind: &str, hint: String| Problem::new(StatusCode::CONFLICT, kind, "The server was not fenced", detail, hint);
    match error {
        FenceError::Unknown(name) => Problem::unknown("server", name.as_str()),
        FenceError::Store(error) => error.into(),
        FenceError::Lives { .. } => refused(
            "still-alive",
            format!(
                "move what it has, without a fence: phalanx cluster move-grant, phalanx queue adopt; to fence it all the same: phalanx server \
                 fence {name} --anyway"
            ),
        ),
        FenceError::NotConfirmed(_) => refused(
            "not-confirmed",
            format!(
                "switch its machine off, or cut it off from power, see with your own eyes that it is off, then say so: --confirm '{}'. While it \
                 runs, two servers would write to the same mail",
                confirmation(name)
            ),
        ),
        FenceError::Untold(..) => refused(
            "untold",
            "bring that server back first: without its word, the machine that is fenced could begin again what it had"
                .to_owned(),
        ),
        FenceError::Busy(_) => refused("busy", "wait for it: phalanx server show".to_owned()),
        FenceError::Program(_) => refused(
            "fence-failed",
            format!(
                "mend the program or what it speaks to; or fence by hand: phalanx server change {name} --fence manual"
            ),
        ),
    }
}

pub(super) async fn unfence(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    JsonBody(Unfence { confirmation }): JsonBody<Unfence>,
) -> Reply {
    let name: Name = named("server", &name)?;
    let wanted = format!("{name} was started anew");
    if confirmation != wanted {
        return Err(Problem::invalid("confirmation", format!("it must be {wanted:?}, once its machine was")));
    }
    if !panel.store.world().fleet.servers.contains_key(&name) {
        return Err(Problem::unknown("server", name.as_str()));
    }
    fencing::unfence(&panel.store, &actor, &name, "a person has said that its machine was started anew").await?;
    let (version, body) = show(&panel, &panel.store.world(), &name).await?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn join_token(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
) -> Reply {
    let (world, name): (_, Name) = (panel.store.world(), named("server", &name)?);
    let server = world.fleet.servers.get(&name).ok_or_else(|| Problem::unknown("server", name.as_str()))?;
    let upstream = match world.fleet.membership(&name) {
        Some((cluster, Role::Slave)) => {
            let master = world.fleet.servers.get(&cluster.master);
            let master = master.ok_or_else(|| Problem::unknown("server", cluster.master.as_str()))?;
            format!("{}:{}", master.address.ip, phalanx_plan::spec::port::AGENT)
        }
        Some((_, Role::Master)) | None => panel.link_address.towards(server.address.ip),
    };
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::Server, &name, None)?;
    let made = write.new_join_token(&name).await?;
    write.commit().await?;
    let token = format!("phx1.{name}.{}.{}", made.secret, panel.ca.fingerprint_hex());
    let body = json!({
        "token": token,
        "server": name,
        "upstream": upstream,
        "expires_at": rfc3339(made.expires_at),
        "command": format!("phalanx agent join --upstream {upstream} --token {token}"),
    });
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

pub(super) async fn rollback(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    JsonBody(Rollback { generation }): JsonBody<Rollback>,
) -> Reply {
    let result = order(&panel, &actor, &named("server", &name)?, Command::Rollback { generation }).await?;
    Ok(Json(json!({ "result": result })).into_response())
}

pub(super) async fn reconcile(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
) -> Reply {
    let result = order(&panel, &actor, &named("server", &name)?, Command::Reconcile).await?;
    Ok(Json(json!({ "result": result })).into_response())
}

/// Orders something from a node, through its master, and waits for what comes of it.
pub(super) async fn order(panel: &Panel, actor: &Actor, name: &Name, command: Command) -> Reply<String> {
    let world = panel.store.world();
    if !world.fleet.servers.contains_key(name) {
        return Err(Problem::unknown("server", name.as_str()));
    }
    let Some((cluster, _)) = world.fleet.membership(name) else {
        let detail = format!("server {name} belongs to no cluster, so it has no configuration");
        return Err(Refusal::new(Rule::ReferenceExists, detail, "make it part of a cluster first").into());
    };
    let mut write = panel.store.write(actor).await?;
    let number = write.order(name, &command).await?;
    write.commit().await?;
    let answer = panel.live.command(&cluster.master, number, name, command, COMMAND_TIME_MAX).await;
    answer.map_err(not_done)
}

/// A command that did not succeed, as a problem.
pub(super) fn not_done(error: CommandError) -> Problem {
    let detail = error.to_string();
    let (status, kind, title, hint) = match error {
        CommandError::NotConnected(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not-connected",
            "The node can't be reached",
            "see phalanx status, and the agent's log",
        ),
        CommandError::NoAnswer { .. } => (
            StatusCode::GATEWAY_TIMEOUT,
            "no-answer",
            "The node did not answer",
            "look at phalanx events whether it was done",
        ),
        CommandError::Failed(_) => {
            (StatusCode::CONFLICT, "command-failed", "The node could not do it", "the detail has the node's own words")
        }
    };
    Problem::new(status, kind, title, detail, hint)
}
