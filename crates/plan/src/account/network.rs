//! nftables: accounts on one node can't reach each other through the loopback interface.
//!
//! Every account has one loopback address ([`Uid::loopback`]). The set `owners` holds (address, uid) of the accounts that were awake since
//! the machine started; the launcher adds an element before an account first starts. Loading this file again keeps the set.
//!
//! 1. From an account's address only its owner sends. Whoever else listens there never gets a handshake finished, since the SYN-ACK
//!    has the listener's uid. A packet without a socket has no uid and passes: the kernel's own RST from where nobody listens.
//! 2. To an account's address only phalanx-proxy, root and the owner send.
//! 3. An account accepts connections on its own address alone: no server of a customer's on other addresses or ports.
//! 4. An account connects on this machine only to itself and to ports below 1,024 (resolver, mail, the node's own proxy), on
//!    which no customer can listen. `oif lo` also holds for the machine's other own addresses.
//! 5. To agents ([`port`]) an account connects on no machine.
//!
//! Root's sockets and those of the system's own users are not restricted but by 1 and 2.

use crate::spec::port;
use phalanx_model::Uid;
use phalanx_model::account::{LOOPBACK_NETWORK, LOOPBACK_PREFIX_LEN};

/// The system user that phalanx-proxy runs as. nft resolves it when it loads the file.
const PROXY_USER: &str = "phalanx-proxy";

/// `accounts.nft`: the table `inet phalanx_accounts`.
pub fn accounts_nft() -> String {
    let range = format!("{LOOPBACK_NETWORK}/{LOOPBACK_PREFIX_LEN}");
    let accounts = format!("{}-{}", Uid::FIRST, Uid::LAST);
    let agents = format!("{{ {}, {} }}", port::AGENT, port::SCORE);
    format!(
        r#"# Written by Phalanx. Keeps accounts apart on the loopback interface. Loading it again keeps the set's elements.
table inet phalanx_accounts {{
    set owners {{
        type ipv4_addr . uid
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
    }}
}}
flush chain inet phalanx_accounts output
table inet phalanx_accounts {{
    chain output {{
        ip saddr {range} ip saddr . meta skuid != @owners drop
        meta skuid {accounts} tcp flags & (syn | ack) == syn | ack ip saddr . meta skuid != @owners drop
        meta skuid {accounts} tcp flags & (syn | ack) == syn | ack meta nfproto ipv6 drop
        tcp flags & (syn | ack) != syn accept
        ip daddr {range} meta skuid {{ 0, {PROXY_USER} }} accept
        ip daddr {range} ip daddr . meta skuid @owners accept
        ip daddr {range} meta l4proto tcp reject with tcp reset
        ip daddr {range} drop
        meta skuid {accounts} tcp dport {agents} reject with tcp reset
        oif lo meta skuid {accounts} th dport 0-1023 accept
        oif lo meta skuid {accounts} meta l4proto tcp reject with tcp reset
        oif lo meta skuid {accounts} drop
    }}
}}
"#
    )
}
