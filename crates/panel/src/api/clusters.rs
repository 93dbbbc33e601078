//! Clusters and their nodes.

use super::fleet::{change_existing, get, listed, present, seen};
use super::list::{PageQuery, created, one, page_of_map};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, IfMatch, JsonBody, named};
use crate::Panel;
use crate::leaving::{self, Leaving};
use crate::live::{NodeState, node_state};
use crate::store::{Actor, Kind, Removal, RemovalRecord, RemovalState, World};
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use phalanx_model::cluster::{MailService, NodeSettings};
use phalanx_model::{Cluster, ClusterKind, Fleet, FleetChange, HostName, Name, Refusal, Right, Rule};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How long the removal of a slave waits for its connections where the asker says nothing.
const DRAIN_TIME_DEFAULT_S: u64 = 30;
/// The longest wait that can be asked for.
const DRAIN_TIME_MAX_S: u64 = 3_600;

/// A new cluster of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCluster {
    /// Its name.
    #[schema(value_type = String)]
    name: Name,
    /// web, mail, nas or balancer; the master's kind.
    #[schema(value_type = String)]
    kind: ClusterKind,
    /// The server that becomes its master.
    #[schema(value_type = String)]
    master: Name,
    /// The share that its nodes mount.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    share: Option<Name>,
    /// The name under which the servers of a mail cluster greet the world and are found.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    mail_name: Option<HostName>,
}

/// A change of a cluster. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterPatch {
    /// The share; null takes it away.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    share: Option<Option<Name>>,
    /// Directives at the end of every account's httpd configuration.
    #[serde(default)]
    httpd_directives: Option<Vec<String>>,
    /// The name under which the servers of a mail cluster greet the world and are found.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    mail_name: Option<HostName>,
}

/// Where a grant goes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantMove {
    /// The node; the holder itself, to take back a move that has not come to pass.
    #[schema(value_type = String)]
    to: Name,
}

pub(super) async fn list(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let world = panel.store.world();
    page_of_map(&world.fleet.clusters, &query, |name, cluster| {
        with_leaving(&panel, &world, name, listed(&world, Kind::Cluster, name, cluster))
    })
}

pub(super) async fn add(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(new): JsonBody<NewCluster>,
) -> Reply {
    let NewCluster { name, kind, master, share, mail_name } = new;
    let mut write = panel.store.write(&actor).await?;
    if let Some(mail_name) = &mail_name {
        write.mail_name_is_free(mail_name).await?;
    }
    let mail = mail_name.map(|host_name| MailService { host_name });
    let cluster = Cluster { share, mail, ..Cluster::new(name.clone(), kind, master) };
    write.apply(FleetChange::AddCluster { cluster })?;
    let world = write.commit().await?;
    let (version, body) = view(&panel, &world, &name)?;
    Ok(created("/clusters", &name, version, body))
}

pub(super) async fn show(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    answer(&panel, &panel.store.world(), &named("cluster", &name)?)
}

fn view(panel: &Panel, world: &World, name: &Name) -> Reply<(u64, Value)> {
    let (version, body) = seen(world, Kind::Cluster, name, get(&world.fleet.clusters, Kind::Cluster, name)?)?;
    Ok((version, with_leaving(panel, world, name, body)))
}

fn answer(panel: &Panel, world: &World, name: &Name) -> Reply {
    let (version, body) = view(panel, world, name)?;
    Ok(one(StatusCode::OK, version, body))
}

/// A cluster as JSON, with how far its slaves are that leave.
fn with_leaving(panel: &Panel, world: &World, name: &Name, mut body: Value) -> Value {
    let leaving = world.removals.values().filter(|removal| removal.cluster == *name);
    let reports = panel.live.all_seen();
    let leaving: BTreeMap<&Name, Leaving> =
        leaving.map(|removal| (&removal.server, leaving::progress(world, &reports, removal))).collect();
    body["leaving"] = json!(leaving);
    body
}

pub(super) async fn patch(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(patch): JsonBody<ClusterPatch>,
) -> Reply {
    let name: Name = named("cluster", &name)?;
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::Cluster, &name, version)?;
    let mut cluster = get(&write.fleet().clusters, Kind::Cluster, &name)?.clone();
    let ClusterPatch { share, httpd_directives, mail_name } = patch;
    cluster.share = share.unwrap_or(cluster.share);
    cluster.httpd_directives = httpd_directives.unwrap_or(cluster.httpd_directives);
    if let Some(host_name) = mail_name {
        write.mail_name_is_free(&host_name).await?;
        cluster.mail = Some(MailService { host_name });
    }
    write.apply(FleetChange::ChangeCluster { cluster })?;
    let world = write.commit().await?;
    answer(&panel, &world, &name)
}

pub(super) async fn remove(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let name: Name = named("cluster", &name)?;
    let make = |_: &Fleet| Ok(FleetChange::RemoveCluster { name: name.clone() });
    change_existing(&panel, &actor, (Kind::Cluster, &name, version), make).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn move_grant(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At((cluster, right)): At<(String, String)>,
    IfMatch(version): IfMatch,
    JsonBody(GrantMove { to }): JsonBody<GrantMove>,
) -> Reply {
    let (cluster, right): (Name, Right) = (named("cluster", &cluster)?, named("grant", &right)?);
    let make = |_: &Fleet| Ok(FleetChange::AskGrant { cluster: cluster.clone(), right, to });
    let world = change_existing(&panel, &actor, (Kind::Cluster, &cluster, version), make).await?;
    answer(&panel, &world, &cluster)
}

/// A server that becomes a slave.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSlave {
    /// The server.
    #[schema(value_type = String)]
    server: Name,
    /// Its part of the traffic relative to the other nodes, 1 to 100; 10 where nothing is said.
    #[serde(default)]
    weight: Option<u8>,
}

/// A change of one node's part in its cluster. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodePatch {
    /// Its part of the traffic relative to the other nodes, 1 to 100.
    #[serde(default)]
    weight: Option<u8>,
    /// Whether it takes no new connections.
    #[serde(default)]
    drained: Option<bool>,
    /// Drain it also where it is the last node in service.
    #[serde(default)]
    anyway: bool,
}

/// How a slave is removed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveSlaveQuery {
    deadline_s: Option<u64>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    anyway: bool,
}

pub(super) async fn add_slave(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(cluster): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(NewSlave { server, weight }): JsonBody<NewSlave>,
) -> Reply {
    let cluster: Name = named("cluster", &cluster)?;
    let mut settings = NodeSettings::default();
    settings.weight = weight.unwrap_or(settings.weight);
    let make = |_: &Fleet| Ok(FleetChange::AddSlave { cluster: cluster.clone(), server, settings });
    let world = change_existing(&panel, &actor, (Kind::Cluster, &cluster, version), make).await?;
    let (version, body) = view(&panel, &world, &cluster)?;
    Ok(created("/clusters", &cluster, version, body))
}

pub(super) async fn change_node(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At((cluster, server)): At<(String, String)>,
    IfMatch(version): IfMatch,
    JsonBody(NodePatch { weight, drained, anyway }): JsonBody<NodePatch>,
) -> Reply {
    let (cluster, server): (Name, Name) = (named("cluster", &cluster)?, named("node", &server)?);
    let joined = panel.store.joined().await?;
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::Cluster, &cluster, version)?;
    let mut settings = node_of(write.fleet(), &cluster, &server)?;
    if drained == Some(true) && !anyway {
        last_node_stays(&panel, &joined, write.fleet(), &cluster, &server)?;
    }
    settings.weight = weight.unwrap_or(settings.weight);
    settings.drained = drained.unwrap_or(settings.drained);
    write.apply(FleetChange::SetNode { cluster: cluster.clone(), server: server.clone(), settings })?;
    if drained == Some(false) {
        let detail = format!("{server} stays in cluster {cluster}: its removal was taken back");
        write.end_removal(&server, RemovalState::Cancelled, &detail).await?;
    }
    let world = write.commit().await?;
    answer(&panel, &world, &cluster)
}

fn node_of(fleet: &Fleet, cluster: &Name, server: &Name) -> Reply<NodeSettings> {
    let found = get(&fleet.clusters, Kind::Cluster, cluster)?;
    let node = found.nodes().find(|(name, _, _)| *name == server).map(|(_, _, settings)| settings);
    node.ok_or_else(|| Problem::unknown("node", &format!("{server} in cluster {cluster}")))
}

/// No step takes the last node out of service, unless a person said so twice (promise 6).
///
/// A node that has joined and that nobody hears of may be serving all the same: the panel may have been started this moment.
fn last_node_stays(
    panel: &Panel,
    joined: &BTreeMap<String, i64>,
    fleet: &Fleet,
    cluster: &Name,
    server: &Name,
) -> Reply<()> {
    let found = get(&fleet.clusters, Kind::Cluster, cluster)?;
    if !found.kind.holds_logical_servers() {
        return Ok(());
    }
    let seen = panel.live.all_seen();
    let state = |node: &Name, settings: NodeSettings| node_state(found.kind, settings, node, &seen).0;
    let may_serve = match state(server, node_of(fleet, cluster, server)?) {
        NodeState::Up | NodeState::Overloaded => true,
        NodeState::Down | NodeState::Drained => false,
        NodeState::Unknown => joined.contains_key(server.as_str()),
    };
    let mut others = found.nodes().filter(|(node, _, _)| *node != server);
    if !may_serve
        || others.any(|(node, _, settings)| matches!(state(node, settings), NodeState::Up | NodeState::Overloaded))
    {
        return Ok(());
    }
    Err(Refusal::new(
        Rule::LastNodeStays,
        format!("{server} is the last node of cluster {cluster} that is known to serve"),
        "bring another node into service first, or say it twice: anyway",
    )
    .into())
}

pub(super) async fn remove_slave(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At((cluster, server)): At<(String, String)>,
    IfMatch(version): IfMatch,
    Ask(RemoveSlaveQuery { deadline_s, force, anyway }): Ask<RemoveSlaveQuery>,
) -> Reply {
    let (cluster, server): (Name, Name) = (named("cluster", &cluster)?, named("node", &server)?);
    let deadline_s = deadline_s.unwrap_or(DRAIN_TIME_DEFAULT_S);
    if deadline_s > DRAIN_TIME_MAX_S {
        return Err(Problem::invalid(
            "deadline_s",
            format!("deadline_s {deadline_s} is not between 0 and {DRAIN_TIME_MAX_S}"),
        ));
    }
    let joined = panel.store.joined().await?;
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::Cluster, &cluster, version)?;
    node_of(write.fleet(), &cluster, &server)?;
    if let Some(running) = write.removal(&server).filter(|running| running.cluster == cluster && !force).cloned() {
        return Ok(accepted(&panel, &running));
    }
    if !anyway && !force {
        last_node_stays(&panel, &joined, write.fleet(), &cluster, &server)?;
    }
    // A machine that never joined serves nobody: there is nothing to wait for.
    if force || deadline_s == 0 || !joined.contains_key(server.as_str()) {
        write.apply(FleetChange::RemoveSlave { cluster: cluster.clone(), server: server.clone() })?;
        let detail = format!("{server} has left cluster {cluster} at once");
        write.end_removal(&server, RemovalState::Done, &detail).await?;
        write.commit().await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let removal = write.begin_removal(&cluster, &server, deadline_s).await?;
    write.commit().await?;
    Ok(accepted(&panel, &removal))
}

/// A task that runs in the background: the removal of a slave.
#[derive(Debug, Serialize, ToSchema)]
pub struct Task {
    /// Its number.
    id: u64,
    /// What it does.
    what: String,
    /// Where it stands.
    state: RemovalState,
    /// More for a person: what it waits for, or what came of it.
    detail: String,
    /// While it runs: how far it is.
    progress: Option<Leaving>,
}

fn running(panel: &Panel, removal: &Removal) -> Task {
    let progress = leaving::progress(&panel.store.world(), &panel.live.all_seen(), removal);
    let flows = match progress.flows {
        None => "its connections are not counted yet".to_owned(),
        Some(1) => "1 connection is open".to_owned(),
        Some(flows) => format!("{flows} connections are open"),
    };
    Task {
        id: removal.id,
        what: what(removal.server.as_str(), removal.cluster.as_str()),
        state: RemovalState::Running,
        detail: format!("drained; {flows}, it leaves in {} s at the latest", progress.left_s),
        progress: Some(progress),
    }
}

fn what(server: &str, cluster: &str) -> String {
    format!("remove {server} from cluster {cluster}")
}

fn accepted(panel: &Panel, removal: &Removal) -> Response {
    let location = [(axum::http::header::LOCATION, format!("/api/v1/tasks/{}", removal.id))];
    (StatusCode::ACCEPTED, location, Json(running(panel, removal))).into_response()
}

pub(super) async fn get_task(State(panel): State<Panel>, At(id): At<String>) -> Reply {
    let unknown = || Problem::unknown("task", &id);
    let record = panel.store.removal(id.parse().map_err(|_| unknown())?).await?.ok_or_else(unknown)?;
    let world = panel.store.world();
    let task = match world.removals.values().find(|removal| removal.id == record.id) {
        Some(removal) => running(&panel, removal),
        None => {
            let RemovalRecord { id, cluster, server, state, detail } = record;
            Task { id, what: what(&server, &cluster), state, detail, progress: None }
        }
    };
    Ok(Json(task).into_response())
}
