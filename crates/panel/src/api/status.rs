//! Everything that the first page and `phalanx status` show, in one answer.

use super::problem::Reply;
use crate::Panel;
use crate::clock::{rfc3339, unix_s};
use crate::leaving;
use crate::live::{Seen, backends_of, node_state};
use crate::store::World;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use phalanx_model::cluster::{NodeSettings, Role};
use phalanx_model::{Cluster, ClusterKind, Name, Position};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the nodes report, and when they joined.
struct Known {
    reports: BTreeMap<Name, Seen>,
    joined: BTreeMap<String, i64>,
}

pub(super) async fn status(State(panel): State<Panel>) -> Reply {
    let world = panel.store.world();
    let (accounts, sites) = panel.store.counts().await?;
    let known = Known { reports: panel.live.all_seen(), joined: panel.store.joined().await? };
    let fleet = &world.fleet;
    let of_kind = |kind: ClusterKind| fleet.clusters.values().filter(move |cluster| cluster.kind == kind);
    let free = fleet.servers.values().filter(|server| fleet.membership(&server.name).is_none());
    let body = json!({
        "at": rfc3339(unix_s()),
        "panel": {
            "version": env!("CARGO_PKG_VERSION"),
            "incarnation": world.incarnation,
            "revision": world.revision,
        },
        "counts": {
            "servers": fleet.servers.len(),
            "clusters": fleet.clusters.len(),
            "shares": fleet.shares.len(),
            "addresses": fleet.addresses.len(),
            "logical_servers": fleet.logical_servers.len(),
            "accounts": accounts,
            "sites": sites,
        },
        "clusters": fleet.clusters.values().map(|cluster| cluster_status(&panel, &world, &known, cluster)).collect::<Vec<_>>(),
        "balancers": of_kind(ClusterKind::Balancer).map(|cluster| balancer_status(&world, &known, cluster)).collect::<Vec<_>>(),
        "shares": fleet.shares.values().map(|share| json!({
            "name": share.name,
            "kind": share.kind,
            "nas": share.nas,
            "path": share.path,
            "clusters": fleet.clusters.values().filter(|c| c.share.as_ref() == Some(&share.name)).map(|c| &c.name).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "free_servers": free.map(|server| json!({
            "server": server.name,
            "kind": server.kind,
            "address": server.address,
            "joined": known.joined.contains_key(server.name.as_str()),
            "connected": panel.live.is_connected(&server.name),
        })).collect::<Vec<_>>(),
    });
    Ok(Json(body).into_response())
}

fn cluster_status(panel: &Panel, world: &World, known: &Known, cluster: &Cluster) -> Value {
    let stream = world.streams.get(&cluster.name);
    let logical = world.fleet.logical_servers.values().filter(|logical| logical.cluster == cluster.name);
    json!({
        "name": cluster.name,
        "kind": cluster.kind,
        "master": cluster.master,
        "share": cluster.share,
        "logical_servers": logical.map(|logical| &logical.name).collect::<Vec<_>>(),
        "grants": cluster.grants,
        "spec": stream.map(|stream| world.position(stream.spec_revision)),
        "directory": stream.map(|stream| world.position(stream.head)),
        "nodes": cluster.nodes().map(|node| node_status(panel, world, known, cluster, node)).collect::<Vec<_>>(),
    })
}

fn node_status(
    panel: &Panel,
    world: &World,
    known: &Known,
    cluster: &Cluster,
    node: (&Name, Role, NodeSettings),
) -> Value {
    let (server, role, settings) = node;
    let (state, why) = node_state(cluster.kind, settings, server, &known.reports);
    let backends = backends_of(&known.reports, server);
    // Its part of all its cluster's services together, where each counts the same.
    let services = backends.len().max(1) as f32;
    let share_percent =
        (!backends.is_empty()).then(|| backends.iter().map(|b| b.share_percent).sum::<f32>() / services);
    let flows = backends.iter().filter_map(|backend| backend.flows).reduce(u32::saturating_add);
    let seen = known.reports.get(server);
    let fresh = seen.is_some_and(Seen::is_fresh);
    let report = seen.map(|seen| &seen.report);
    let current = world.streams.get(&cluster.name);
    let behind = |at: Option<Position>, want: Option<u64>| fresh && at < want.map(|want| world.position(want));
    json!({
        "server": server,
        "role": role,
        "address": world.fleet.servers.get(server).map(|server| server.address),
        "weight": settings.weight,
        "drained": settings.drained,
        "leaving": world.removals.get(server).map(|removal| leaving::progress(world, &known.reports, removal)),
        "state": state,
        "why": why,
        "joined": known.joined.contains_key(server.as_str()),
        "connected": fresh && (role == Role::Slave || panel.live.is_connected(server)),
        "last_seen": seen.map(|seen| rfc3339(seen.at_unix_s)),
        "last_seen_s": seen.map(|seen| seen.at.elapsed().as_secs()),
        "converged": fresh && report.is_some_and(|report| report.converged),
        "in_service": fresh && report.is_some_and(|report| report.in_service),
        "spec_behind": behind(report.map(|report| report.spec), current.map(|stream| stream.spec_revision)),
        "directory_behind": behind(report.map(|report| report.directory), current.map(|stream| stream.head)),
        "problems": report.map(|report| &report.problems),
        "generation": report.map(|report| report.generation),
        "version": report.map(|report| &report.version),
        "versions": report.map(|report| &report.versions),
        "load": report.filter(|_| fresh).map(|report| report.load),
        "queues": report.filter(|_| fresh).map(|report| &report.queues),
        "share_percent": share_percent,
        "flows": flows,
    })
}

fn balancer_status(world: &World, known: &Known, cluster: &Cluster) -> Value {
    let services = world.fleet.addresses.values().filter(|address| address.balancer == cluster.name).map(|address| {
        let backends =
            cluster.nodes().filter_map(|(server, _, _)| known.reports.get(server)).filter(|seen| seen.is_fresh());
        let backends =
            backends.flat_map(|seen| &seen.report.backends).filter(|backend| backend.service == address.external);
        json!({
            "external": address.external,
            "cluster": address.cluster,
            "port": address.port,
            "backends": backends.collect::<Vec<_>>(),
        })
    });
    json!({ "name": cluster.name, "services": services.collect::<Vec<_>>() })
}
