//! `phalanx address`: external addresses, the balancers that take them and the clusters that serve them.

use super::resource::{ListArgs, Resource};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::Name;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

const ADDRESS: Resource = Resource {
    noun: "address",
    path: "/addresses",
    key: "/external",
    columns: &[
        Column::new("EXTERNAL", "/external"),
        Column::new("BALANCER", "/balancer"),
        Column::new("CLUSTER", "/cluster"),
        Column::new("PORT", "/port"),
        Column::new("INTERNAL", "/internal"),
    ],
    first: "`phalanx address add 198.51.100.10:80 --balancer lb --cluster web` makes the first.",
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum AddressCommand {
    /// Let a balancer take an external address for a cluster
    #[command(after_help = "\
Examples:
  phalanx address add 198.51.100.10:80 --balancer lb --cluster web
  phalanx address add 198.51.100.11:80 --balancer lb --cluster web --internal web1=10.9.0.51 --internal web2=10.9.0.52")]
    Add {
        /// What the world connects to: address and port
        #[arg(value_name = "IP:PORT", value_parser = parse_external)]
        external: SocketAddrV4,
        /// The balancer cluster that takes it
        #[arg(long, value_name = "CLUSTER")]
        balancer: Name,
        /// The web or mail cluster that serves it
        #[arg(long)]
        cluster: Name,
        /// The port that the nodes listen on (the external one if not given)
        #[arg(long)]
        port: Option<u16>,
        /// A node's own internal address for it; a node that is not named serves on its main address
        #[arg(long, value_name = "SERVER=IP", value_parser = parse_internal)]
        internal: Vec<(Name, Ipv4Addr)>,
    },
    /// List the external addresses
    List(ListArgs),
    /// Show one in full
    Show {
        /// The external address and port
        #[arg(value_name = "IP:PORT", value_parser = parse_external)]
        external: SocketAddrV4,
    },
    /// Change where an external address leads to
    #[command(
        after_help = "Example:\n  phalanx address change 198.51.100.10:80 --internal web2=10.9.0.62 --no-internal web1"
    )]
    Change(ChangeArgs),
    /// Give an external address back
    Remove {
        /// The external address and port
        #[arg(value_name = "IP:PORT", value_parser = parse_external)]
        external: SocketAddrV4,
    },
}

/// What can be changed of an external address.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The external address and port
    #[arg(value_name = "IP:PORT", value_parser = parse_external)]
    external: SocketAddrV4,
    /// The port that the nodes listen on
    #[arg(long)]
    port: Option<u16>,
    /// Give a node an internal address of its own for it; other nodes keep theirs
    #[arg(long, value_name = "SERVER=IP", value_parser = parse_internal)]
    internal: Vec<(Name, Ipv4Addr)>,
    /// Let a node serve it on its main address
    #[arg(long, value_name = "SERVER")]
    no_internal: Vec<Name>,
}

/// Runs one.
pub fn run(command: AddressCommand, session: &Session) -> Result<(), Failure> {
    match command {
        AddressCommand::Add { external, balancer, cluster, port, internal } => {
            let internal: BTreeMap<Name, Ipv4Addr> = internal.into_iter().collect();
            let port = port.unwrap_or(external.port());
            let body = json!({
                "external": external, "balancer": balancer, "cluster": cluster, "port": port, "internal": internal,
            });
            ADDRESS.add(session, &body, "").map(drop)
        }
        AddressCommand::List(args) => ADDRESS.list(session, &args, ""),
        AddressCommand::Show { external } => ADDRESS.show(session, &external.to_string()),
        AddressCommand::Change(args) => {
            ADDRESS.change(session, &args.external.to_string(), |current| Ok(patch(&args, current)))
        }
        AddressCommand::Remove { external } => ADDRESS.remove(session, &external.to_string(), ""),
    }
}

fn patch(args: &ChangeArgs, current: &Value) -> Value {
    let ChangeArgs { external: _, port, internal, no_internal } = args;
    let mut patch = Map::new();
    if let Some(port) = port {
        patch.insert("port".into(), json!(port));
    }
    if !internal.is_empty() || !no_internal.is_empty() {
        let mut map = current["internal"].as_object().cloned().unwrap_or_default();
        map.retain(|server, _| !no_internal.iter().any(|name| name.as_str() == server));
        map.extend(internal.iter().map(|(server, ip)| (server.to_string(), json!(ip))));
        patch.insert("internal".into(), Value::Object(map));
    }
    Value::Object(patch)
}

/// `web1=10.9.0.51`.
/// One way to write each, as for the API: what is given is what is shown.
fn parse_external(text: &str) -> Result<SocketAddrV4, String> {
    let spelled = text.parse().ok().filter(|address: &SocketAddrV4| address.to_string() == text);
    spelled
        .ok_or_else(|| "write an IPv4 address and a port, such as 198.51.100.10:80, without leading zeros".to_owned())
}

fn parse_internal(text: &str) -> Result<(Name, Ipv4Addr), String> {
    let (server, ip) = text.split_once('=').ok_or("write it as SERVER=IP, such as web1=10.9.0.51")?;
    let server = server.parse::<Name>().map_err(|error| error.to_string())?;
    let ip = ip.parse().map_err(|_| format!("{ip:?} is not an IPv4 address"))?;
    Ok((server, ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_address_is_written_in_one_way() {
        assert!(parse_external("198.51.100.10:80").is_ok());
        for bad in ["198.51.100.10:080", "198.51.100.10", "198.51.100.10:+80", "[::1]:80", " 198.51.100.10:80"] {
            assert!(parse_external(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn internal_addresses_name_their_server() {
        assert!(parse_internal("web1=10.9.0.51").is_ok());
        for bad in ["web1", "=10.9.0.51", "web1=", "web1=10.9.0", "Web=10.9.0.51"] {
            assert!(parse_internal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_leaves_the_other_nodes_alone() {
        let args = ChangeArgs {
            external: SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 80),
            port: None,
            internal: vec![parse_internal("web2=10.9.0.62").expect("valid")],
            no_internal: vec!["web1".parse().expect("valid")],
        };
        let current = json!({"internal": {"web1": "10.9.0.51", "web2": "10.9.0.52", "web3": "10.9.0.53"}});
        let expected = json!({"internal": {"web2": "10.9.0.62", "web3": "10.9.0.53"}});
        assert_eq!(patch(&args, &current), expected);
    }
}
