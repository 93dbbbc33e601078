//! What all things of the fleet have in common, and the smaller ones: shares, addresses and logical servers.

use super::list::{PageQuery, created, one, page_of_map, view};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, IfMatch, JsonBody, named};
use crate::Panel;
use crate::store::{Actor, Kind, StoreError, World};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use phalanx_model::share::{Marker, SharePath};
use phalanx_model::{ExternalAddress, Fleet, FleetChange, Name, Share, ShareKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddrV4};
use utoipa::ToSchema;

/// A thing of the fleet as JSON.
pub(super) fn seen<T: Serialize>(world: &World, kind: Kind, name: &dyn Display, value: &T) -> Reply<(u64, Value)> {
    let name = name.to_string();
    let unknown = || StoreError::Unknown { kind, name: name.clone() };
    let meta = world.meta.get(&(kind, name.clone())).ok_or_else(unknown)?;
    Ok((meta.version, view(value, meta)))
}

/// The same for lists, where the thing is known to be there.
pub(super) fn listed<T: Serialize>(world: &World, kind: Kind, name: &dyn Display, value: &T) -> Value {
    world.meta.get(&(kind, name.to_string())).map_or(Value::Null, |meta| view(value, meta))
}

/// Makes a change of the fleet; returns the world after it.
pub(super) async fn change(panel: &Panel, actor: &Actor, change: FleetChange) -> Reply<std::sync::Arc<World>> {
    let mut write = panel.store.write(actor).await?;
    write.apply(change)?;
    Ok(write.commit().await?)
}

/// Changes a thing that exists; `make` gets the fleet as it is then.
pub(super) async fn change_existing(
    panel: &Panel,
    actor: &Actor,
    (kind, name, version): (Kind, &(dyn Display + Sync), Option<u64>),
    make: impl FnOnce(&Fleet) -> Reply<FleetChange>,
) -> Reply<std::sync::Arc<World>> {
    let mut write = panel.store.write(actor).await?;
    write.expect(kind, name, version)?;
    let change = make(write.fleet())?;
    write.apply(change)?;
    Ok(write.commit().await?)
}

/// A thing out of the fleet.
pub(super) fn get<'a, T>(map: &'a BTreeMap<Name, T>, kind: Kind, name: &Name) -> Reply<&'a T> {
    map.get(name).ok_or_else(|| Problem::unknown(kind.as_str(), name.as_str()))
}

// ---- shares

/// A new share. Its marker is made by the panel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewShare {
    /// Its name; nodes mount it at /srv/phalanx/NAME.
    #[schema(value_type = String)]
    name: Name,
    /// local or nfs-managed.
    #[schema(value_type = String)]
    kind: ShareKind,
    /// The nas cluster whose master keeps it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    nas: Option<Name>,
    /// Where the content lies on the machine that keeps it.
    #[schema(value_type = String)]
    path: SharePath,
}

/// Where a share lies from now on. What is absent stays; its content is not moved.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SharePatch {
    /// The nas cluster whose master keeps it; null for none.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    nas: Option<Option<Name>>,
    /// Where the content lies on the machine that keeps it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    path: Option<SharePath>,
}

/// Tells `null` from absent.
pub(super) fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

fn show_share(world: &World, name: &Name) -> Reply<(u64, Value)> {
    seen(world, Kind::Share, name, get(&world.fleet.shares, Kind::Share, name)?)
}

pub(super) async fn list_shares(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let world = panel.store.world();
    page_of_map(&world.fleet.shares, &query, |name, share| listed(&world, Kind::Share, name, share))
}

pub(super) async fn add_share(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(new): JsonBody<NewShare>,
) -> Reply {
    let NewShare { name, kind, nas, path } = new;
    let share = Share { name: name.clone(), kind, nas, path, marker: Marker::from_bits(rand::random()) };
    let world = change(&panel, &actor, FleetChange::AddShare { share }).await?;
    let (version, body) = show_share(&world, &name)?;
    Ok(created("/shares", &name, version, body))
}

pub(super) async fn get_share(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let (version, body) = show_share(&panel.store.world(), &named("share", &name)?)?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn change_share(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(SharePatch { nas, path }): JsonBody<SharePatch>,
) -> Reply {
    let name: Name = named("share", &name)?;
    let make = |fleet: &Fleet| {
        let share = get(&fleet.shares, Kind::Share, &name)?.clone();
        let (nas, path) = (nas.unwrap_or(share.nas), path.unwrap_or(share.path));
        Ok(FleetChange::MoveShare { name: name.clone(), nas, path })
    };
    let world = change_existing(&panel, &actor, (Kind::Share, &name, version), make).await?;
    let (version, body) = show_share(&world, &name)?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn remove_share(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let name: Name = named("share", &name)?;
    let make = |_: &Fleet| Ok(FleetChange::RemoveShare { name: name.clone() });
    change_existing(&panel, &actor, (Kind::Share, &name, version), make).await?;
    Ok(StatusCode::NO_CONTENT)
}

// ---- addresses

/// A new external address.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAddress {
    /// What the world connects to, such as 198.51.100.10:80.
    #[serde(deserialize_with = "external_value")]
    #[schema(value_type = String)]
    external: SocketAddrV4,
    /// The balancer cluster that takes it.
    #[schema(value_type = String)]
    balancer: Name,
    /// The web or mail cluster that serves it.
    #[schema(value_type = String)]
    cluster: Name,
    /// The port that the nodes listen on; the external one where nothing is said.
    #[serde(default)]
    port: Option<u16>,
    /// The internal address of a node for this external one; who is not named serves on its own main address.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    internal: BTreeMap<Name, Ipv4Addr>,
}

/// A change of an external address. What is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressPatch {
    /// The port that the nodes listen on.
    #[serde(default)]
    port: Option<u16>,
    /// All internal addresses.
    #[serde(default)]
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    internal: Option<BTreeMap<Name, Ipv4Addr>>,
}

/// An external address in its one spelling: the standard reader takes ports with leading zeros.
fn spelled(text: &str) -> Option<SocketAddrV4> {
    text.parse().ok().filter(|address: &SocketAddrV4| address.to_string() == text)
}

fn external(text: &str) -> Reply<SocketAddrV4> {
    spelled(text).ok_or_else(|| Problem::unknown("address", text))
}

fn external_value<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddrV4, D::Error> {
    let text = String::deserialize(deserializer)?;
    let shown: String = text.chars().take(80).collect();
    spelled(&text).ok_or_else(|| {
        let why = "write an IPv4 address and a port, such as 198.51.100.10:80, without leading zeros";
        serde::de::Error::custom(format!("address {shown:?} is not valid: {why}"))
    })
}

fn show_address(world: &World, external: SocketAddrV4) -> Reply<(u64, Value)> {
    let address =
        world.fleet.addresses.get(&external).ok_or_else(|| Problem::unknown("address", &external.to_string()))?;
    seen(world, Kind::Address, &external, address)
}

pub(super) async fn list_addresses(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let world = panel.store.world();
    page_of_map(&world.fleet.addresses, &query, |external, address| listed(&world, Kind::Address, external, address))
}

pub(super) async fn add_address(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(new): JsonBody<NewAddress>,
) -> Reply {
    let NewAddress { external, balancer, cluster, port, internal } = new;
    let address = ExternalAddress { external, balancer, cluster, port: port.unwrap_or(external.port()), internal };
    let world = change(&panel, &actor, FleetChange::AddAddress { address }).await?;
    let (version, body) = show_address(&world, external)?;
    Ok(created("/addresses", &external, version, body))
}

pub(super) async fn get_address(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let (version, body) = show_address(&panel.store.world(), external(&name)?)?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn change_address(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
    JsonBody(AddressPatch { port, internal }): JsonBody<AddressPatch>,
) -> Reply {
    let external = external(&name)?;
    let make = |fleet: &Fleet| {
        let found = fleet.addresses.get(&external).ok_or_else(|| Problem::unknown("address", &name))?;
        let mut address = found.clone();
        address.port = port.unwrap_or(address.port);
        address.internal = internal.unwrap_or(address.internal);
        Ok(FleetChange::ChangeAddress { address })
    };
    let world = change_existing(&panel, &actor, (Kind::Address, &external, version), make).await?;
    let (version, body) = show_address(&world, external)?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn remove_address(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let external = external(&name)?;
    let make = |_: &Fleet| Ok(FleetChange::RemoveAddress { external });
    change_existing(&panel, &actor, (Kind::Address, &external, version), make).await?;
    Ok(StatusCode::NO_CONTENT)
}

// ---- logical servers

/// A new logical server.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLogicalServer {
    /// Its name.
    #[schema(value_type = String)]
    name: Name,
    /// The master that it is created on.
    #[schema(value_type = String)]
    server: Name,
}

fn show_logical_server(world: &World, name: &Name) -> Reply<(u64, Value)> {
    seen(world, Kind::LogicalServer, name, get(&world.fleet.logical_servers, Kind::LogicalServer, name)?)
}

pub(super) async fn list_logical_servers(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let world = panel.store.world();
    page_of_map(&world.fleet.logical_servers, &query, |name, logical| {
        listed(&world, Kind::LogicalServer, name, logical)
    })
}

pub(super) async fn add_logical_server(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(NewLogicalServer { name, server }): JsonBody<NewLogicalServer>,
) -> Reply {
    let world = change(&panel, &actor, FleetChange::AddLogicalServer { name: name.clone(), server }).await?;
    let (version, body) = show_logical_server(&world, &name)?;
    Ok(created("/logical-servers", &name, version, body))
}

pub(super) async fn get_logical_server(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let (version, body) = show_logical_server(&panel.store.world(), &named("logical server", &name)?)?;
    Ok(one(StatusCode::OK, version, body))
}

pub(super) async fn remove_logical_server(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let name: Name = named("logical server", &name)?;
    let mut write = panel.store.write(&actor).await?;
    write.expect(Kind::LogicalServer, &name, version)?;
    let accounts = write.accounts_on(&name).await?;
    write.places_no_mail(&name).await?;
    write.apply(FleetChange::RemoveLogicalServer { name, accounts })?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
