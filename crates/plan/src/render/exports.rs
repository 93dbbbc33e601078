//! A NAS's exports (exports(5)) and the settings of its NFS server (nfs.conf(5)).

use crate::rights::{KeptRight, queue_directory};
use crate::spec::KeptShare;
use crate::steps::generations::sha256_hex;
use phalanx_model::Right;
use std::fmt::Write;

/// After a restart the server lets clients reclaim their locks for the grace time, and everybody who writes waits for its end; a client that
/// is gone keeps its locks for the lease time. The kernel's 90 s for both are an outage, and clients that live reclaim within a
/// second or two. Version 3 is off: its locks do not survive a restart of the server.
pub const SERVER_SETTINGS: &str = "# Made by Phalanx. Changes by hand are taken back.\n\
    [nfsd]\ngrace-time=10\nlease-time=10\nvers3=n\nvers4=y\nvers4.2=y\n";

/// Each share for exactly the nodes that may mount it. An unexpected client finds nothing.
///
/// `sync`: what the server acknowledged is on disk. `no_root_squash` is not given: only the NAS's own agent acts as root on homes. A mail
/// queue is another thing: Postfix' master is root, so a queue is an export of its own, for the one node that runs it.
/// A path and an address hold no character that exports(5) treats specially, by their types.
pub fn render(shares: &[KeptShare]) -> String {
    let mut text =
        String::from("# Made by Phalanx from the shares of this nas cluster. Changes by hand are taken back.\n");
    for share in shares.iter().filter(|share| !share.nfs_clients.is_empty()) {
        let KeptShare { share: name, marker, path, nfs_clients, rights } = share;
        let (number, root) = (fsid(marker.as_str()), path.as_str());
        let _ = write!(text, "# share {name}\n\"{root}\"");
        for client in nfs_clients {
            let _ = write!(text, " {client}(rw,sync,no_subtree_check,root_squash,sec=sys,fsid={number})");
        }
        text.push('\n');
        for KeptRight { held, address } in rights {
            let (Right::Queue(server), Some(address)) = (&held.right, address) else { continue };
            let below = queue_directory(server);
            let number = fsid(&sha256_hex(format!("{}\n{below}", marker.as_str()).as_bytes()));
            let _ = writeln!(text, "# the queue of {server}, run by {}", held.holder);
            let _ = write!(
                text,
                "\"{root}/{below}\" {address}(rw,sync,no_subtree_check,no_root_squash,sec=sys,fsid={number})"
            );
            text.push('\n');
        }
    }
    text
}

/// The file system's identity for clients, from the share's marker: it stays when the device's number changes at a reboot.
fn fsid(hex: &str) -> String {
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| &hex[from..to]);
    parts.join("-")
}
