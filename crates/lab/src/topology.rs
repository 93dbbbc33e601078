//! Topologies: which networks and hosts a lab has, read from a small TOML file and checked as a whole before anything
//! is made. A topology that exists is consistent: every interface is on a network that exists, every address is used
//! once, and there is at most one owner of the storage. It says nothing about the product; a host is only a machine.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::paths;

/// The networks and hosts of one lab.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// The networks, each a bridge.
    #[serde(rename = "network")]
    pub networks: Vec<Network>,
    /// The hosts, in the order in which they are shown.
    #[serde(rename = "host")]
    pub hosts: Vec<Host>,
}

/// One network: a bridge that hosts are plugged into.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name, also the bridge's.
    pub name: String,
}

/// One machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its host name.
    pub name: String,
    /// What kind of machine it is.
    #[serde(default)]
    pub kind: Kind,
    /// Its network cards, `eth0` first.
    pub interfaces: Vec<Interface>,
    /// Where its default route points, if it has one.
    pub gateway: Option<Ipv4Addr>,
    /// Whether its kernel forwards packets between its interfaces.
    #[serde(default)]
    pub forward: bool,
    /// Its part in the shared directory [`STORAGE_PATH`].
    #[serde(default)]
    pub storage: Storage,
}

/// Where hosts find the shared directory.
pub const STORAGE_PATH: &str = "/srv/nas";

/// How a host is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Namespaces on the machine's own kernel, started by systemd-nspawn.
    #[default]
    Container,
    /// A kernel of its own (User Mode Linux), for what the machine's kernel lacks. It has one network card, forwards nothing,
    /// and where it owns the storage, that is a disk of its own.
    Guest,
}

/// A host's part in the shared directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// It does not see it.
    #[default]
    None,
    /// It is where the directory is: it sees the files themselves.
    Owned,
    /// It sees them through a file server of its own, which the lab can hang or take away. Locks of flock(2) hold between hosts; those of
    /// fcntl(2) hold nowhere, not even between two processes of one host: the file server asks for all of them in its own name.
    Mounted,
    /// The same, but locks of both kinds hold between the processes of one host, and not between hosts.
    MountedOwnLocks,
}

impl Storage {
    /// Whether a file server stands between.
    pub fn is_mounted(self) -> bool {
        matches!(self, Self::Mounted | Self::MountedOwnLocks)
    }
}

/// A network card.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// The network it is plugged into.
    pub network: String,
    /// Its address with the length of the network's prefix.
    pub address: Address,
}

/// An IPv4 address with a prefix length, such as `10.9.0.11/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// The length of the network's prefix in bits, at most 32.
    pub prefix: u8,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(ip, prefix)| Some((ip.parse().ok()?, prefix.parse().ok()?)));
        match parsed {
            Some((ip, prefix @ 0..=32)) => Ok(Self { ip, prefix }),
            _ => Err(anyhow!("{text:?} is not an address with a prefix length such as 10.9.0.11/24")),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Topology {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the topology {}", path.display()))?;
        text.parse().with_context(|| format!("the topology {} is not usable", path.display()))
    }

    /// The host called `name`, or an error that lists those that exist.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| {
            let names: Vec<_> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            format!("the lab has no host {name:?}; it has {}", names.join(", "))
        })
    }

    fn check(&self) -> Result<()> {
        let networks: BTreeSet<_> = self.networks.iter().map(|network| &network.name).collect();
        ensure!(networks.len() == self.networks.len(), "two networks have the same name");
        for network in &networks {
            check_name(network, 15)?;
        }
        let mut names = BTreeSet::new();
        let mut addresses = BTreeSet::<IpAddr>::new();
        for host in &self.hosts {
            // With "-eth0" behind it, the name must fit into the kernel's 15 bytes for an interface.
            check_name(&host.name, 10)?;
            ensure!(names.insert(&host.name), "two hosts are called {:?}", host.name);
            for interface in &host.interfaces {
                let Interface { network, address } = interface;
                ensure!(networks.contains(network), "host {:?} is on {network:?}, which is no network", host.name);
                ensure!(addresses.insert(address.ip.into()), "the address {} is used twice", address.ip);
            }
        }
        for host in self.hosts.iter().filter(|host| host.kind == Kind::Guest) {
            let Host { name, interfaces, forward, storage, .. } = host;
            ensure!(interfaces.len() == 1 && !forward, "the guest {name:?} must have one interface, and can't forward");
            ensure!(
                !storage.is_mounted(),
                "the guest {name:?} can't have its storage mounted by the lab; it has a kernel to mount it over the network"
            );
        }
        let owners = self.hosts.iter().filter(|host| host.storage == Storage::Owned).count();
        ensure!(owners <= 1, "{owners} hosts own the storage; at most one can");
        Ok(())
    }
}

impl FromStr for Topology {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let topology: Self = toml::from_str(text)?;
        topology.check()?;
        Ok(topology)
    }
}

/// Finds the file of a topology that is given by name (in the source tree's `lab/topologies`) or by path.
pub fn find(name: &str) -> Result<PathBuf> {
    let folder = paths::sources().join("topologies");
    let path = if name.contains('/') || name.ends_with(".toml") {
        PathBuf::from(name)
    } else {
        folder.join(name).with_extension("toml")
    };
    if path.is_file() {
        return Ok(path.canonicalize()?);
    }
    let mut known: Vec<String> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(String::from))
        .collect();
    known.sort();
    bail!("there is no topology {name:?}; there are {}, or give the path of a file", known.join(", "));
}

/// Checks a name that becomes part of file names, interface names and control groups.
pub(crate) fn check_name(name: &str, length_max: usize) -> Result<()> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(
        plain && !name.is_empty() && !name.starts_with('-') && name.len() <= length_max,
        "{name:?} is not usable as a name: 1 to {length_max} of a-z, 0-9 and '-', not beginning with '-'"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topologies_of_the_project_are_consistent() {
        let folder = paths::sources().join("topologies");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            Topology::read(&entry.unwrap().path()).unwrap();
            count += 1;
        }
        assert!(count >= 2, "only {count} topologies were found");
    }

    fn error(text: &str) -> String {
        format!("{:#}", text.parse::<Topology>().unwrap_err())
    }

    #[test]
    fn mistakes_are_named() {
        let network = "[[network]]\nname = \"net\"\n";
        let host = |name: &str, network: &str, address: &str| {
            format!("[[host]]\nname = {name:?}\ninterfaces = [{{ network = {network:?}, address = {address:?} }}]\n")
        };
        let a = host("a", "net", "10.0.0.1/24");
        assert!(error(&format!("{network}{a}{a}")).contains("two hosts are called \"a\""));
        let twice = format!("{network}{a}{}", host("b", "net", "10.0.0.1/24"));
        assert!(error(&twice).contains("10.0.0.1 is used twice"));
        assert!(
            error(&format!("{network}{}", host("a", "nut", "10.0.0.1/24"))).contains("\"nut\", which is no network")
        );
        assert!(error(&format!("{network}{}", host("a", "net", "10.0.0.1/33"))).contains("10.0.0.1/33"));
        assert!(error(&format!("{network}{}", host("../a", "net", "10.0.0.1/24"))).contains("not usable as a name"));
        let owners =
            format!("{network}{a}storage = \"owned\"\n{}storage = \"owned\"\n", host("b", "net", "10.0.0.2/24"));
        assert!(error(&owners).contains("2 hosts own the storage"));
        let guest = format!("{network}{a}kind = \"guest\"\nstorage = \"mounted\"\n");
        assert!(error(&guest).contains("can't have its storage mounted by the lab"));
        assert!(error(&format!("{network}{a}kind = \"guest\"\nforward = true\n")).contains("can't forward"));
    }
}
