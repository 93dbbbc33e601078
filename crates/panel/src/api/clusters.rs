//! Clusters and their nodes.

use super::fleet::{change, change_existing, get, listed, seen};
use super::list::{PageQuery, created, one, page_of_map};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, IfMatch, JsonBody, named};
use crate::Panel;
use crate::live::{NodeState, node_state};
use crate::store::{Actor, Kind, StoreError, World};
use crate::task;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use phalanx_model::cluster::NodeSettings;
use phalanx_model::{Cluster, ClusterKind, Fleet, FleetChange, Name, Refusal, Rule};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
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
}

/// Tells `null` from absent.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

pub(super) async fn list(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let world = panel.store.world();
    page_of_map(&world.fleet.clusters, &query, |name, cluster| listed(&world, Kind::Cluster, name, cluster))
}

pub(super) async fn add(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(new): JsonBody<NewCluster>,
) -> Reply {
    let NewCluster { name, kind, master, share } = new;
    let (slaves, master_settings) = (BTreeMap::new(), NodeSettings::default());
    let cluster =
        Cluster { name: name.clone(), kind, master, slaves, master_settings, share, httpd_directives: vec![] };
    let world = change(&panel, &actor, FleetChange::AddCluster { cluster }).await?;
    let (version, body) = seen(&world, Kind::Cluster, &name, get(&world.fleet.clusters, Kind::Cluster, &name)?)?;
    Ok(created("/clusters", &name, version, body))
}

pub(super) async fn show(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    answer(&panel.store.world(), &named("cluster", &name)?)
}

fn answer(world: &World, name: &Name) -> Reply {
    let (version, body) = seen(world, Kind::Cluster, name, get(&world.fleet.clusters, Kind::Cluster, name)?)?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn patch(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(patch): JsonBody<ClusterPatch>,
) -> Reply {
    let name: Name = named("cluster", &name)?;
    let make = |fleet: &Fleet| {
        let mut cluster = get(&fleet.clusters, Kind::Cluster, &name)?.clone();
        let ClusterPatch { share, httpd_directives } = patch;
        cluster.share = share.unwrap_or(cluster.share);
        cluster.httpd_directives = httpd_directives.unwrap_or(cluster.httpd_directives);
        Ok(FleetChange::ChangeCluster { cluster })
    };
    let world = change_existing(&panel, &actor, (Kind::Cluster, &name, version), make).await?;
    answer(&world, &name)
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
    let (version, body) = seen(&world, Kind::Cluster, &cluster, get(&world.fleet.clusters, Kind::Cluster, &cluster)?)?;
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
    let make = |fleet: &Fleet| {
        let mut settings = node_of(fleet, &cluster, &server)?;
        if drained == Some(true) && !anyway {
            last_node_stays(&panel, &joined, fleet, &cluster, &server)?;
        }
        settings.weight = weight.unwrap_or(settings.weight);
        settings.drained = drained.unwrap_or(settings.drained);
        Ok(FleetChange::SetNode { cluster: cluster.clone(), server: server.clone(), settings })
    };
    let world = change_existing(&panel, &actor, (Kind::Cluster, &cluster, version), make).await?;
    answer(&world, &cluster)
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
    if let Some(running) = panel.tasks.running(&task::removal(&cluster, &server)).filter(|_| !force) {
        return Ok(accepted(&running));
    }
    let joined = panel.store.joined().await?;
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::Cluster, &cluster, version)?;
    let mut settings = node_of(write.fleet(), &cluster, &server)?;
    let removal = FleetChange::RemoveSlave { cluster: cluster.clone(), server: server.clone() };
    // Rules first, on a copy: what can't be removed is not drained either.
    write.fleet().clone().apply(removal.clone())?;
    if !anyway && !force {
        last_node_stays(&panel, &joined, write.fleet(), &cluster, &server)?;
    }
    if force || deadline_s == 0 {
        write.apply(removal)?;
        write.commit().await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    settings.drained = true;
    write.apply(FleetChange::SetNode { cluster: cluster.clone(), server: server.clone(), settings })?;
    write.commit().await?;
    let busy = || {
        Problem::from(StoreError::Busy("too many removals are running; the slave is drained, remove it again later"))
    };
    let task =
        task::remove_when_drained(&panel, actor, cluster, server, Duration::from_secs(deadline_s)).ok_or_else(busy)?;
    Ok(accepted(&task))
}

fn accepted(task: &task::Task) -> Response {
    let location = [(axum::http::header::LOCATION, format!("/api/v1/tasks/{}", task.id))];
    (StatusCode::ACCEPTED, location, Json(task)).into_response()
}

pub(super) async fn get_task(State(panel): State<Panel>, At(id): At<String>) -> Reply {
    let task = id.parse().ok().and_then(|id| panel.tasks.get(id));
    Ok(Json(task.ok_or_else(|| Problem::unknown("task", &id))?).into_response())
}
