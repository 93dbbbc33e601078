//! Physical servers: the machines that run the agent.

use crate::{ClusterKind, Invalid, Name};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A machine that runs the agent; a "node" when seen inside its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its name, also its host name's first label by convention.
    pub name: Name,
    /// What clusters it may belong to: a slave shares its master's kind.
    pub kind: ClusterKind,
    /// The internal address under which the other machines of the fleet reach it.
    pub address: InternalNet,
    /// How it is made sure that it can do no more harm.
    #[serde(default)]
    pub fence: FenceDriver,
    /// Its fence, begun or done; none while it may take part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Fenced>,
}

impl Server {
    /// A server as it is when it is added: fenced by a person's word, where that must be, and not fenced.
    pub fn new(name: Name, kind: ClusterKind, address: InternalNet) -> Self {
        Self { name, kind, address, fence: FenceDriver::default(), fenced: None }
    }

    /// Whether it can do no more harm, and that was seen.
    pub fn is_fenced(&self) -> bool {
        self.fenced.as_ref().is_some_and(|fenced| fenced.is_seen)
    }
}

/// How a server that can't confirm is stopped for sure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FenceDriver {
    /// A person makes sure that it is off, and says so.
    #[default]
    Manual,
    /// A program of this name beside the panel switches it off and sees that it is off.
    Command(Name),
}

impl fmt::Display for FenceDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => f.write_str("manual"),
            Self::Command(program) => write!(f, "command:{program}"),
        }
    }
}

impl FromStr for FenceDriver {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.strip_prefix("command:") {
            Some(program) => Ok(Self::Command(program.parse()?)),
            None if text == "manual" => Ok(Self::Manual),
            None => Err(Invalid::new("fence", text, "it must be manual, or command:PROGRAM")),
        }
    }
}

impl TryFrom<String> for FenceDriver {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<FenceDriver> for String {
    fn from(value: FenceDriver) -> String {
        value.to_string()
    }
}

/// The words of a person who has switched a server off, spelled out so that nobody says them by mistake.
pub fn confirmation(server: &Name) -> String {
    format!("{server} is switched off")
}

/// A server's fence: in this boot of its machine it takes part in nothing any more.
///
/// It is begun first: nobody may use what this server had. Once the share tells so, its machine is switched off and seen off. The other way
/// round, a machine could be started again in between, and begin what it believes to be its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fenced {
    /// The last boot that was heard of: it takes part again in any other one. Where none was heard of, a person must let it.
    pub boot: Option<BootId>,
    /// Whether it was seen to be at an end. Until then the fence has only begun, and proves nothing.
    pub is_seen: bool,
}

/// What the kernel calls one boot of a machine: `/proc/sys/kernel/random/boot_id`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(String);

impl BootId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BootId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() != 36 || !text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Err(Invalid::new("boot id", text, "it must be a UUID as the kernel writes it"));
        }
        Ok(Self(text.to_owned()))
    }
}

crate::name::text_value!(BootId);

/// An internal address with the length of its network's prefix, written `10.9.0.11/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InternalNet {
    /// The machine's own address.
    pub ip: Ipv4Addr,
    /// The prefix length of the network it lies in: 8 to 30.
    pub prefix_len: u8,
}

impl InternalNet {
    /// The network's first address: the address with its host bits cleared.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.to_bits() & (u32::MAX << (32 - u32::from(self.prefix_len))))
    }

    /// Whether `other` lies in the same network.
    pub fn holds(self, other: Ipv4Addr) -> bool {
        InternalNet { ip: other, ..self }.network() == self.network()
    }
}

/// Refuses what can't be the address of a machine: loopback, multicast, unspecified, broadcast, link-local.
pub fn host_address(text: &str, ip: Ipv4Addr) -> Result<Ipv4Addr, Invalid> {
    if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast() || ip.is_link_local() {
        return Err(Invalid::new(
            "address",
            text,
            "a machine needs a unicast address, not loopback, link-local or multicast",
        ));
    }
    Ok(ip)
}

impl std::str::FromStr for InternalNet {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| Invalid::new("internal address", text, why);
        let (ip, len) =
            text.split_once('/').ok_or_else(|| refuse("give it with its prefix length, as in 10.9.0.11/24"))?;
        let ip = ip.parse().map_err(|_| refuse("the part before / is not an IPv4 address"))?;
        let prefix_len: u8 = len.parse().map_err(|_| refuse("the part after / is not a number"))?;
        if !(8..=30).contains(&prefix_len) {
            return Err(refuse("the prefix length must be 8 to 30"));
        }
        let net = Self { ip: host_address(text, ip)?, prefix_len };
        // One way to write each: what is given is what is shown.
        if net.to_string() == text {
            Ok(net)
        } else {
            Err(refuse("write the prefix length without sign or leading zeros"))
        }
    }
}

impl std::fmt::Display for InternalNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

impl TryFrom<String> for InternalNet {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<InternalNet> for String {
    fn from(value: InternalNet) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_a_word() {
        for fence in [FenceDriver::Manual, FenceDriver::Command("pdu".parse().unwrap())] {
            assert_eq!(fence.to_string().parse::<FenceDriver>().unwrap(), fence);
        }
        for bad in ["", "command", "command:", "command:../x", "command:a b", "ssh"] {
            assert!(bad.parse::<FenceDriver>().is_err(), "{bad}");
        }
        assert!("5c0e3ab1-8c5a-4f5c-9e0f-000000000001".parse::<BootId>().is_ok());
        assert!("5c0e3ab1".parse::<BootId>().is_err());
    }

    #[test]
    fn an_internal_address_knows_its_network() {
        let net: InternalNet = "10.9.0.11/24".parse().unwrap();
        assert_eq!(net.network(), Ipv4Addr::new(10, 9, 0, 0));
        assert!(net.holds(Ipv4Addr::new(10, 9, 0, 200)));
        assert!(!net.holds(Ipv4Addr::new(10, 9, 1, 1)));
        for bad in [
            "10.9.0.11",
            "10.9.0.11/7",
            "10.9.0.11/31",
            "127.0.0.1/8",
            "0.0.0.0/8",
            "x/24",
            "224.0.0.1/24",
            "10.9.0.11/24 ",
            "10.9.0.11/024",
            "10.9.0.11/+24",
        ] {
            assert!(bad.parse::<InternalNet>().is_err(), "{bad}");
        }
    }
}
