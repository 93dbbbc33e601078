//! Addresses, routes, rules and kernel settings.
//!
//! Ours are: addresses whose label ends with [`LABEL_SUFFIX`], rules with the priorities of [`RouteRule`], the tables from
//! [`Routing::TABLE_FIRST`] on. All others are left alone.

use super::{Desired, Observed, Plan, Step};
use phalanx_model::server::InternalNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What marks an address as ours: its label is the interface's name and this.
pub const LABEL_SUFFIX: &str = ":phx";

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenAddress {
    /// The interface.
    pub device: String,
    /// The address.
    pub ip: Ipv4Addr,
    /// Its network's prefix length.
    pub prefix_len: u8,
    /// Whether its label says that it is ours.
    pub ours: bool,
}

/// A rule that chooses a routing table by the source address (ip-rule(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteRule {
    /// Its priority: a lower one is looked at first.
    pub priority: u32,
    /// The packets' source.
    pub from: Ipv4Addr,
    /// The packets' destination: a network and its prefix length; none stands for any.
    pub to: Option<(Ipv4Addr, u8)>,
    /// The table.
    pub table: u32,
}

impl RouteRule {
    /// The priority of rules that keep traffic inside the machine's own network.
    pub const DIRECT: u32 = 7399;
    /// The priority of rules that send replies to a balancer.
    pub const THROUGH: u32 = 7400;
    /// The kernel's main table.
    pub const MAIN: u32 = 254;

    /// From `from` to the machine's own network: the main table, so that storage and management take no detour.
    pub fn direct(from: Ipv4Addr, network: InternalNet) -> Self {
        Self { priority: Self::DIRECT, from, to: Some((network.ip, network.prefix_len)), table: Self::MAIN }
    }

    /// From `from` to anywhere: `table`.
    pub fn through(from: Ipv4Addr, table: u32) -> Self {
        Self { priority: Self::THROUGH, from, to: None, table }
    }
}

/// A table's default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The table.
    pub table: u32,
    /// The gateway.
    pub via: Ipv4Addr,
}

/// Policy routing of replies: one table for each gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// The rules.
    pub rules: BTreeSet<RouteRule>,
    /// The gateway of each table.
    pub tables: BTreeMap<u32, Ipv4Addr>,
}

impl Routing {
    /// The first of our tables.
    pub const TABLE_FIRST: u32 = 7400;
    /// The last: more balancers than that have none of their own.
    pub const TABLE_LAST: u32 = 7415;
}

/// Plans what brings the host's network to what is desired.
pub(super) fn plan_network(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    plan_sysctls(desired, observed, plan);
    plan_addresses(desired, observed, plan);
    plan_routing(desired, observed, plan);
}

fn plan_sysctls(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    for (key, value) in &desired.sysctls {
        let seen = observed.sysctls.get(key);
        if seen != Some(value) {
            plan.step(Step::SetSysctl { key: key.clone(), value: value.clone() });
            let seen = seen.map_or("(none)", String::as_str);
            plan.drifted(
                format!("the kernel setting {key} was changed"),
                format!("-{key} = {value}\n+{key} = {seen}\n"),
            );
        }
    }
}

fn plan_addresses(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    if let Some(main) = desired.main_address {
        let device = observed.addresses.iter().find(|seen| seen.ip == main.ip).map(|seen| seen.device.clone());
        for address in &desired.extra_addresses {
            if observed.addresses.iter().any(|seen| seen.ip == address.ip) {
                continue;
            }
            let Some(device) = device.clone() else { continue };
            plan.drifted(format!("the address {address} was taken off {device}"), format!("-{address} dev {device}\n"));
            plan.step(Step::AddAddress { address: *address, device });
        }
        if device.is_none() {
            plan.waiting.push(format!(
                "no interface of this machine has its internal address {main}; give it to one, or change the server's address in the panel"
            ));
        }
    }
    for ip in &desired.external_addresses {
        if observed.addresses.iter().any(|seen| seen.ip == *ip) {
            continue;
        }
        let Some(device) = device_for(*ip, desired, observed) else { continue };
        plan.drifted(format!("the address {ip} was taken off {device}"), format!("-{ip} dev {device}\n"));
        plan.step(Step::AddAddress { address: InternalNet { ip: *ip, prefix_len: 32 }, device });
    }
    for seen in observed.addresses.iter().filter(|seen| seen.ours) {
        let is_wanted = desired.extra_addresses.iter().any(|wanted| wanted.ip == seen.ip)
            || desired.external_addresses.contains(&seen.ip);
        if !is_wanted {
            let address = InternalNet { ip: seen.ip, prefix_len: seen.prefix_len };
            plan.step(Step::RemoveAddress { address, device: seen.device.clone() });
        }
    }
}

/// The interface in whose network an external address lies. One that lies in none is routed to this machine, and any interface does.
fn device_for(ip: Ipv4Addr, desired: &Desired, observed: &Observed) -> Option<String> {
    let others = || observed.addresses.iter().filter(|seen| !seen.ours);
    let is_neighbour = |seen: &&SeenAddress| {
        let network = |ip| InternalNet { ip, prefix_len: seen.prefix_len }.network();
        seen.prefix_len < 32 && network(seen.ip) == network(ip)
    };
    let near = others().filter(is_neighbour).max_by_key(|seen| seen.prefix_len);
    let main = || others().find(|seen| desired.main_address.is_some_and(|main| main.ip == seen.ip));
    near.or_else(main).map(|seen| seen.device.clone())
}

fn plan_routing(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let Routing { rules, tables } = &desired.routing;
    for (&table, &via) in tables {
        if observed.tables.get(&table) != Some(&via) {
            plan.step(Step::SetRoute(Route { table, via }));
            plan.drifted(format!("the default route of table {table} was changed"), format!("-default via {via}\n"));
        }
    }
    for rule in rules.difference(&observed.rules) {
        plan.step(Step::AddRule(*rule));
        plan.drifted("a routing rule was taken away", format!("-{rule}\n"));
    }
    for rule in observed.rules.difference(rules) {
        plan.step(Step::RemoveRule(*rule));
        plan.drifted("a routing rule was added by hand", format!("+{rule}\n"));
    }
    for (&table, &via) in observed.tables.iter().filter(|(table, _)| !tables.contains_key(table)) {
        plan.step(Step::RemoveRoute(Route { table, via }));
    }
}

impl std::fmt::Display for RouteRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: from {}", self.priority, self.from)?;
        if let Some((network, prefix_len)) = self.to {
            write!(f, " to {network}/{prefix_len}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}
