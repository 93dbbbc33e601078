//! The lab's networks: one bridge per network in the supervisor's own network namespace (the switch), one namespace per
//! host, and a veth pair for each of a host's interfaces. The machine's own network is never touched.
//!
//! A host's namespace exists while the host has power. It is made at boot and removed when the host is killed, so that a
//! dead host answers nothing at all: no ping, no reset, as a machine without power does.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::tools;
use crate::topology::{Host, Interface, Topology};

/// Makes the bridges, in the caller's network namespace.
pub fn make_bridges(topology: &Topology) -> Result<()> {
    let mut batch = String::from("link set lo up\n");
    for network in &topology.networks {
        let name = &network.name;
        batch += &format!("link add {name} type bridge mcast_snooping 0\nlink set {name} up\n");
    }
    ip_batch(None, &batch)
}

/// Gives `host` a network namespace with its interfaces, addresses and routes.
pub fn plug(host: &Host) -> Result<()> {
    let name = &host.name;
    tools::run("ip", ["netns", "add", name])?;
    let mut outside = String::new();
    let mut inside = String::from("link set lo up\n");
    for (number, interface) in host.interfaces.iter().enumerate() {
        let port = port(host, number);
        let network = &interface.network;
        outside += &format!("link add {port} type veth peer name eth{number} netns {name}\n");
        inside += &format!("link set eth{number} address {}\n", hardware_address(interface.address.ip));
        outside += &format!("link set {port} master {network} up\n");
        inside += &format!("addr add {} dev eth{number}\nlink set eth{number} up\n", interface.address);
    }
    if let Some(gateway) = host.gateway {
        inside += &format!("route add default via {gateway}\n");
    }
    ip_batch(None, &outside)?;
    ip_batch(Some(name), &inside)?;
    if host.forward {
        let namespace = format!("--net={}", namespace(name).display());
        tools::run("nsenter", [&namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    }
    Ok(())
}

/// Takes the network from `host`, which had one: its links go down at once, then its namespace is removed.
pub fn unplug(host: &Host) -> Result<()> {
    let mut batch = String::new();
    for number in 0..host.interfaces.len() {
        // With its end at the bridge, the other end in the host is removed too.
        batch += &format!("link del {}\n", port(host, number));
    }
    ip_batch(None, &batch)?;
    tools::run("ip", ["netns", "del", &host.name]).map(drop)
}

/// Connects (`true`) or disconnects all of the host's cables, at the side of the switch.
pub fn set_links(host: &Host, connected: bool) -> Result<()> {
    let state = if connected { "up" } else { "down" };
    let batch: String =
        (0..host.interfaces.len()).map(|number| format!("link set {} {state}\n", port(host, number))).collect();
    ip_batch(None, &batch)
}

/// As [`set_links`], for a guest's tap devices: they leave and join their bridges. The guest still sees a carrier; one that is
/// taken down would cost it the device for good.
pub fn set_taps(host: &Host, connected: bool) -> Result<()> {
    let line = |(number, interface): (usize, &Interface)| {
        let master = if connected { format!("master {}", interface.network) } else { "nomaster".to_owned() };
        format!("link set {} {master}\n", port(host, number))
    };
    ip_batch(None, &host.interfaces.iter().enumerate().map(line).collect::<String>())
}

/// The file that stands for the host's network namespace, in the supervisor's mount namespace.
pub fn namespace(host: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(host)
}

/// The hardware address of the card that has this IP address. A card keeps its address over a reboot, or neighbours that
/// remember the old one would not find the host.
pub fn hardware_address(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The name of the switch's end of an interface's cable.
pub fn port(host: &Host, number: usize) -> String {
    format!("{}-eth{number}", host.name)
}

/// Gives `ip` several commands at once, since starting it costs more than what it does.
fn ip_batch(namespace: Option<&str>, batch: &str) -> Result<()> {
    let mut command = tools::command("ip")?;
    if let Some(namespace) = namespace {
        command.args(["-netns", namespace]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes()).context("cannot write to ip")?;
    }
    let output = child.wait_with_output().context("cannot wait for ip")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip refused {:?}: {}", batch.trim(), words.trim());
    Ok(())
}
