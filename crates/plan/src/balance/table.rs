//! The decision as an nftables table of its own, for `nft -f -`.
//!
//! Each service is one rule in each of two chains (for packets that arrive and for the balancer's own): the first packet of a
//! connection takes the next slot, and the kernel remembers the rest. So replacing the table leaves established flows alone. The
//! source address is kept, except for connections that come from the internal networks (the node would answer its neighbour
//! directly, and the neighbour would not know the answer) and from the balancer itself.
//!
//! What a mail node begins with the world by itself gets the external address of its SMTP service as source, as SPF and reverse DNS want it.

use super::balancer::Decision;
use phalanx_model::server::InternalNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The table's name, in the family `ip`.
pub const TABLE: &str = "phalanx_balancer";

/// One atomic transaction that makes the kernel's table match `decision`, whatever was there before.
pub fn render(decision: &Decision, internal_networks: &BTreeSet<InternalNet>) -> String {
    let Decision { services, outgoing } = decision;
    let mut rules = String::new();
    let mut refusals = String::new();
    for (external, slots) in services {
        let service = format!("ip daddr {} tcp dport {}", external.ip(), external.port());
        if slots.is_empty() {
            line(&mut refusals, &format!("{service} reject with tcp reset"));
        } else {
            line(&mut rules, &format!("{service} dnat ip to {}", target(slots)));
        }
    }
    let mut text = format!("table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n");
    chain(&mut text, "prerouting", "type nat hook prerouting priority dstnat; policy accept;", &rules);
    chain(&mut text, "output", "type nat hook output priority -100; policy accept;", &rules);
    chain(&mut text, "input", "type filter hook input priority filter; policy accept;", &refusals);
    let sources = hairpin(services.keys(), internal_networks) + &to_world(outgoing, internal_networks);
    chain(&mut text, "postrouting", "type nat hook postrouting priority srcnat; policy accept;", &sources);
    text.push_str("}\n");
    text
}

fn target(slots: &[SocketAddrV4]) -> String {
    if let [only] = slots {
        return format!("{}:{}", only.ip(), only.port());
    }
    let elements: Vec<String> =
        slots.iter().enumerate().map(|(turn, to)| format!("{turn} : {} . {}", to.ip(), to.port())).collect();
    // nft 1.0.6 wants a newline before the closing brace.
    format!("numgen inc mod {} map {{ {}\n\t\t}}", slots.len(), elements.join(", "))
}

fn hairpin<'a>(externals: impl Iterator<Item = &'a SocketAddrV4>, networks: &BTreeSet<InternalNet>) -> String {
    let externals: BTreeSet<String> = externals.map(|external| external.ip().to_string()).collect();
    if externals.is_empty() {
        return String::new();
    }
    let ours = format!("ct status dnat ct original ip daddr {}", set(externals));
    let mut rules = String::new();
    line(&mut rules, &format!("{ours} fib saddr type local masquerade"));
    // One rule each: networks may hold one another, which a set refuses.
    for network in prefixes(networks) {
        line(&mut rules, &format!("{ours} ip saddr {network} masquerade"));
    }
    rules
}

/// The kernel asks here for the first packet of a connection alone: established ones, and answers to the world, stay as they are.
fn to_world(outgoing: &BTreeMap<Ipv4Addr, Ipv4Addr>, networks: &BTreeSet<InternalNet>) -> String {
    let elsewhere: String = prefixes(networks).iter().map(|network| format!(" ip daddr != {network}")).collect();
    let mut rules = String::new();
    for (internal, external) in outgoing {
        line(&mut rules, &format!("ip saddr {internal}{elsewhere} snat ip to {external}"));
    }
    rules
}

fn prefixes(networks: &BTreeSet<InternalNet>) -> BTreeSet<String> {
    networks.iter().map(|net| format!("{}/{}", net.network(), net.prefix_len)).collect()
}

fn set(elements: impl IntoIterator<Item = String>) -> String {
    let elements: Vec<String> = elements.into_iter().collect();
    format!("{{ {}\n\t\t}}", elements.join(", "))
}

fn chain(text: &mut String, name: &str, kind: &str, rules: &str) {
    write!(text, "\tchain {name} {{\n\t\t{kind}\n{rules}\t}}\n").expect("a String takes all that is written");
}

fn line(text: &mut String, rule: &str) {
    writeln!(text, "\t\t{rule}").expect("a String takes all that is written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn address(text: &str) -> SocketAddrV4 {
        text.parse().expect("an address in a test")
    }

    #[test]
    fn a_table_for_three_services() {
        let slots = |targets: &[&str]| targets.iter().map(|target| address(target)).collect::<Vec<_>>();
        let services = BTreeMap::from([
            (address("192.0.2.1:80"), slots(&["10.9.0.11:80", "10.9.0.12:80"])),
            (address("192.0.2.1:443"), slots(&["10.9.0.11:443"])),
            (address("192.0.2.2:80"), slots(&[])),
        ]);
        let networks = BTreeSet::from(["10.9.0.0/24".parse().expect("a network in a test")]);
        expect![[r#"
            table ip phalanx_balancer
            delete table ip phalanx_balancer
            table ip phalanx_balancer {
            	chain prerouting {
            		type nat hook prerouting priority dstnat; policy accept;
            		ip daddr 192.0.2.1 tcp dport 80 dnat ip to numgen inc mod 2 map { 0 : 10.9.0.11 . 80, 1 : 10.9.0.12 . 80
            		}
            		ip daddr 192.0.2.1 tcp dport 443 dnat ip to 10.9.0.11:443
            	}
            	chain output {
            		type nat hook output priority -100; policy accept;
            		ip daddr 192.0.2.1 tcp dport 80 dnat ip to numgen inc mod 2 map { 0 : 10.9.0.11 . 80, 1 : 10.9.0.12 . 80
            		}
            		ip daddr 192.0.2.1 tcp dport 443 dnat ip to 10.9.0.11:443
            	}
            	chain input {
            		type filter hook input priority filter; policy accept;
            		ip daddr 192.0.2.2 tcp dport 80 reject with tcp reset
            	}
            	chain postrouting {
            		type nat hook postrouting priority srcnat; policy accept;
            		ct status dnat ct original ip daddr { 192.0.2.1, 192.0.2.2
            		} fib saddr type local masquerade
            		ct status dnat ct original ip daddr { 192.0.2.1, 192.0.2.2
            		} ip saddr 10.9.0.0/24 masquerade
            	}
            }
        "#]]
        .assert_eq(&render(&Decision { services, outgoing: BTreeMap::new() }, &networks));
    }

    #[test]
    fn mail_nodes_send_as_the_address_that_the_world_knows() {
        let services = BTreeMap::from([(address("192.0.2.25:25"), vec![address("10.9.0.41:25")])]);
        let ip = |text: &str| text.parse().expect("an address in a test");
        let outgoing = BTreeMap::from([(ip("10.9.0.41"), ip("192.0.2.25")), (ip("10.9.0.42"), ip("192.0.2.25"))]);
        // One network within the other, as machines with different prefixes have it.
        let networks = ["10.9.0.0/24", "10.9.0.0/16"].map(|net| net.parse().expect("a network in a test"));
        expect![[r#"
            table ip phalanx_balancer
            delete table ip phalanx_balancer
            table ip phalanx_balancer {
            	chain prerouting {
            		type nat hook prerouting priority dstnat; policy accept;
            		ip daddr 192.0.2.25 tcp dport 25 dnat ip to 10.9.0.41:25
            	}
            	chain output {
            		type nat hook output priority -100; policy accept;
            		ip daddr 192.0.2.25 tcp dport 25 dnat ip to 10.9.0.41:25
            	}
            	chain input {
            		type filter hook input priority filter; policy accept;
            	}
            	chain postrouting {
            		type nat hook postrouting priority srcnat; policy accept;
            		ct status dnat ct original ip daddr { 192.0.2.25
            		} fib saddr type local masquerade
            		ct status dnat ct original ip daddr { 192.0.2.25
            		} ip saddr 10.9.0.0/16 masquerade
            		ct status dnat ct original ip daddr { 192.0.2.25
            		} ip saddr 10.9.0.0/24 masquerade
            		ip saddr 10.9.0.41 ip daddr != 10.9.0.0/16 ip daddr != 10.9.0.0/24 snat ip to 192.0.2.25
            		ip saddr 10.9.0.42 ip daddr != 10.9.0.0/16 ip daddr != 10.9.0.0/24 snat ip to 192.0.2.25
            	}
            }
        "#]]
        .assert_eq(&render(&Decision { services, outgoing }, &BTreeSet::from(networks)));
    }

    #[test]
    fn with_nothing_to_balance_the_chains_are_there_and_empty() {
        let text = render(&Decision::default(), &BTreeSet::new());
        assert!(!text.contains("masquerade") && text.contains("chain postrouting"));
    }
}
