//! Who holds an account's address: the account itself, or somebody who hopes to be taken for it.
//!
//! An account's port is below 1,024, where an account's httpd may bind and nothing that a customer runs; and nftables lets nobody but the
//! owner answer from an account's address. So a squatter needs a hole in httpd or in this node, and gains only that the account
//! can't start. It is ended all the same, and that is logged; what belongs to the system is not ours to end.
//!
//! Who listens is in the kernel's tables. Who has only bound the address is in none and is not looked for.

use anyhow::Context;
use phalanx_model::Uid;
use phalanx_model::account::ACCOUNT_PORT;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A listening socket that holds an account's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Whose it is.
    pub uid: u32,
    /// The socket's inode, by which its process is found.
    pub inode: u64,
    /// Whether it is bound to the very address, not to all addresses.
    pub is_exact: bool,
}

/// The sockets that listen on `address`'s port, at that address or at all addresses.
///
/// # Errors
/// `/proc/net` can't be read.
pub fn of(address: Ipv4Addr) -> anyhow::Result<Vec<Listener>> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let mut found = parse(&read("/proc/net/tcp")?, address);
    // A machine without IPv6 has no such file.
    found.extend(read("/proc/net/tcp6").map(|text| parse(&text, address)).unwrap_or_default());
    Ok(found)
}

/// Reads the kernel's table (proc_net_tcp(5)): the second field is the local address in hexadecimal, in host byte order per 32
/// bits; the fourth the state, where 0A is LISTEN; the eighth the uid; the tenth the inode.
fn parse(table: &str, address: Ipv4Addr) -> Vec<Listener> {
    const LISTEN: &str = "0A";
    let exact = format!("{:08X}", u32::from_ne_bytes(address.octets()));
    // A socket for IPv6 that takes IPv4 as well, bound to the mapped address.
    let mapped = format!("0000000000000000FFFF0000{exact}");
    let parse_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (host, port) = fields.get(1)?.split_once(':')?;
        let is_ours = u16::from_str_radix(port, 16) == Ok(ACCOUNT_PORT) && *fields.get(3)? == LISTEN;
        let is_exact = host == exact || host == mapped;
        let is_any = host.bytes().all(|digit| digit == b'0');
        let (uid, inode) = (fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?);
        (is_ours && (is_exact || is_any)).then_some(Listener { uid, inode, is_exact })
    };
    table.lines().filter_map(parse_line).collect()
}

/// A process that was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Squatter {
    /// Whose it was.
    pub uid: Uid,
    /// Its number.
    pub pid: i32,
}

/// Ends every process of another account than `owner` that listens on `owner`'s address and port.
///
/// # Errors
/// `/proc` can't be listed.
pub fn end_squatters(owner: Uid) -> anyhow::Result<Vec<Squatter>> {
    let others = of(owner.loopback())?.into_iter().filter(|listener| listener.uid != owner.get());
    let sockets: BTreeMap<u64, Uid> =
        others.filter_map(|other| Some((other.inode, Uid::try_from(other.uid).ok()?))).collect();
    let mut ended = Vec::new();
    if sockets.is_empty() {
        return Ok(ended);
    }
    for entry in std::fs::read_dir("/proc").context("listing /proc")?.filter_map(Result::ok) {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(pid) = Pid::from_raw(number) else { continue };
        // Held before it is looked at: the number can't pass to another process in between.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let Some(uid) = holder(number, &sockets) else { continue };
        if pidfd_send_signal(&process, Signal::KILL).is_ok() {
            ended.push(Squatter { uid, pid: number });
        }
    }
    Ok(ended)
}

/// Whose socket a process has open, of these.
fn holder(pid: i32, sockets: &BTreeMap<u64, Uid>) -> Option<Uid> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    descriptors.filter_map(Result::ok).find_map(|entry| {
        let inode = std::fs::read_link(entry.path()).ok().and_then(|to| socket_inode(to.to_str()?))?;
        sockets.get(&inode).copied()
    })
}

/// `socket:[12345]`
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found_at_the_address_and_at_all_addresses() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100407F:0328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1900000001        0 11 1 0 100 0 0 10 0
   1: 0200407F:0328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1900000002        0 12 1 0 100 0 0 10 0
   2: 00000000:0328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1900000003        0 13 1 0 100 0 0 10 0
   3: 0100407F:0329 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1900000004        0 14 1 0 100 0 0 10 0
   4: 0100407F:0328 0100007F:C350 01 00000000:00000000 00:00000000 00000000 1900000005        0 15 1 0 100 0 0 10 0
   5: 0000000000000000FFFF00000100407F:0328 00000000000000000000000000000000:0000 0A 0:0 00:0 0 1900000006 0 16 1 0 0 0
";
        let found = parse(table, Ipv4Addr::new(127, 64, 0, 1));
        let seen: Vec<_> = found.iter().map(|l| (l.uid, l.inode, l.is_exact)).collect();
        assert_eq!(seen, [(1_900_000_001, 11, true), (1_900_000_003, 13, false), (1_900_000_006, 16, true)]);
    }
}
