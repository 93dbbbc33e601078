//! Addresses, routes and rules, through ip(8), and kernel settings.

use crate::atomic::{FileError, failed};
use crate::command::{self, CommandError, LIMIT};
use phalanx_model::server::InternalNet;
use phalanx_plan::steps::network::{LABEL_SUFFIX, Route, RouteRule, Routing, SeenAddress};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// What the kernel knows of addresses and of our routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// IPv4 addresses of all interfaces.
    pub addresses: Vec<SeenAddress>,
    /// Rules with our priorities.
    pub rules: BTreeSet<RouteRule>,
    /// Default routes of our tables.
    pub tables: BTreeMap<u32, Ipv4Addr>,
}

#[derive(Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    local: Ipv4Addr,
    prefixlen: u8,
    #[serde(default)]
    label: String,
}

#[derive(Deserialize)]
struct Rule {
    priority: u32,
    src: String,
    dst: Option<Ipv4Addr>,
    dstlen: Option<u8>,
    table: Option<String>,
}

#[derive(Deserialize)]
struct RouteLine {
    dst: String,
    gateway: Option<Ipv4Addr>,
    table: Option<String>,
}

/// Asks the kernel.
///
/// # Errors
/// ip(8) does not answer.
pub async fn observe() -> Result<Seen, CommandError> {
    let links: Vec<Link> = command::json("ip", &["-j", "-4", "address", "show"]).await?;
    let rules: Vec<Rule> = command::json("ip", &["-j", "-4", "rule", "show"]).await?;
    // All tables at once: asking for one that was never used is an error.
    let routes: Vec<RouteLine> = command::json("ip", &["-j", "-4", "route", "show", "table", "all", "default"]).await?;
    let addresses = links.into_iter().flat_map(|Link { ifname, addr_info }| {
        addr_info.into_iter().map(move |Address { local, prefixlen, label }| SeenAddress {
            device: ifname.clone(),
            ip: local,
            prefix_len: prefixlen,
            ours: label.ends_with(LABEL_SUFFIX),
        })
    });
    let tables = routes.into_iter().filter_map(|RouteLine { dst, gateway, table }| {
        let table = table?.parse().ok().filter(|t| (Routing::TABLE_FIRST..=Routing::TABLE_LAST).contains(t))?;
        Some((table, gateway?)).filter(|_| dst == "default")
    });
    Ok(Seen {
        addresses: addresses.collect(),
        rules: rules.into_iter().filter_map(our_rule).collect(),
        tables: tables.collect(),
    })
}

fn our_rule(rule: Rule) -> Option<RouteRule> {
    let Rule { priority, src, dst, dstlen, table } = rule;
    let from = src.parse().ok().filter(|_| [RouteRule::DIRECT, RouteRule::THROUGH].contains(&priority))?;
    let table = match table.as_deref()? {
        "main" => RouteRule::MAIN,
        number => number.parse().ok()?,
    };
    Some(RouteRule { priority, from, to: dst.map(|dst| (dst, dstlen.unwrap_or(32))), table })
}

/// Adds an address, marked as ours by its label.
///
/// # Errors
/// ip(8)'s words.
pub async fn add(address: InternalNet, device: &str) -> Result<(), CommandError> {
    let (address, label) = (address.to_string(), format!("{device}{LABEL_SUFFIX}"));
    ip(&["address", "add", &address, "dev", device, "label", &label]).await
}

/// Takes an address away.
///
/// # Errors
/// ip(8)'s words.
pub async fn remove(address: InternalNet, device: &str) -> Result<(), CommandError> {
    ip(&["address", "del", &address.to_string(), "dev", device]).await
}

/// Sets a table's default route.
///
/// # Errors
/// ip(8)'s words.
pub async fn set_route(route: Route) -> Result<(), CommandError> {
    ip(&["route", "replace", "default", "via", &route.via.to_string(), "table", &route.table.to_string()]).await
}

/// Removes a table's default route.
///
/// # Errors
/// ip(8)'s words.
pub async fn remove_route(route: Route) -> Result<(), CommandError> {
    ip(&["route", "del", "default", "via", &route.via.to_string(), "table", &route.table.to_string()]).await
}

/// Adds a rule.
///
/// # Errors
/// ip(8)'s words.
pub async fn add_rule(rule: RouteRule) -> Result<(), CommandError> {
    change_rule("add", rule).await
}

/// Removes a rule.
///
/// # Errors
/// ip(8)'s words.
pub async fn remove_rule(rule: RouteRule) -> Result<(), CommandError> {
    change_rule("del", rule).await
}

async fn change_rule(verb: &str, RouteRule { priority, from, to, table }: RouteRule) -> Result<(), CommandError> {
    let (priority, from, table) = (priority.to_string(), from.to_string(), table.to_string());
    let to = to.map_or("0.0.0.0/0".to_owned(), |(network, prefix_len)| format!("{network}/{prefix_len}"));
    ip(&["rule", verb, "priority", &priority, "from", &from, "to", &to, "lookup", &table]).await
}

async fn ip(args: &[&str]) -> Result<(), CommandError> {
    command::succeed("ip", args, LIMIT).await.map(drop)
}

/// Reads kernel settings; one that does not exist is left out.
pub fn sysctls<'k>(keys: impl Iterator<Item = &'k String>) -> BTreeMap<String, String> {
    let value = |key: &String| Some((key.clone(), std::fs::read_to_string(sysctl_path(key)).ok()?.trim().to_owned()));
    keys.filter_map(value).collect()
}

/// Sets a kernel setting.
///
/// # Errors
/// There is no such setting, or it refuses the value.
pub fn set_sysctl(key: &str, value: &str) -> Result<(), FileError> {
    let path = sysctl_path(key);
    std::fs::write(&path, value).map_err(failed(&path, "writing"))
}

fn sysctl_path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key.replace('.', "/"))
}
