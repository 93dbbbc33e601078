//! What somebody changes behind the product's back is seen and mended within a minute, and told with a diff.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// One thing that somebody does, how it is seen to be mended, and what the events say of it.
struct Damage {
    host: &'static str,
    /// What is done.
    done: &'static str,
    /// Succeeds where it is not (any more) so.
    mended: &'static str,
    /// Parts of the event's text and of its diff.
    told: &'static str,
    diff: &'static [&'static str],
}

const AT_ONCE: &[Damage] = &[
    Damage {
        host: "web1",
        done: "sed -i 's/^    \"10.9.0.11:80\"/    \"10.9.0.11:9999\"/' /var/lib/phalanx/live/proxy.json && grep -q 9999 /var/lib/phalanx/live/proxy.json",
        mended: "! grep -q 9999 /var/lib/phalanx/live/proxy.json",
        told: "the live file proxy.json of generation",
        diff: &["-    \"10.9.0.11:80\"", "+    \"10.9.0.11:9999\""],
    },
    Damage {
        host: "web2",
        done: "rm /var/lib/phalanx/live/guard.json",
        mended: "test -s /var/lib/phalanx/live/guard.json",
        told: "the live file guard.json of generation",
        diff: &["-  \"shares\""],
    },
    Damage {
        host: "web1",
        done: "h=$(nft -a list chain inet phalanx_accounts output | sed -n 's/.*reject with tcp reset # handle //p' | head -n 1) && \
               nft delete rule inet phalanx_accounts output handle $h",
        mended: "test $(nft list chain inet phalanx_accounts output | grep -c 'reject with tcp reset') = 3",
        told: "the accounts' nftables table was changed by hand",
        diff: &["-\t\tip daddr 127.64.0.0/10 meta l4proto tcp reject with tcp reset"],
    },
    Damage {
        host: "web2",
        done: "nft delete table inet phalanx_accounts",
        // With the accounts that are awake in it.
        mended: "nft list set inet phalanx_accounts owners | grep -q 127.64.0",
        told: "the accounts' nftables table was changed by hand",
        diff: &["-table inet phalanx_accounts", "-\tset owners"],
    },
    Damage {
        host: "lb",
        done: "h=$(nft -a list chain ip phalanx_balancer prerouting | sed -n 's/.*dport 80 dnat.*# handle //p') && \
               nft delete rule ip phalanx_balancer prerouting handle $h",
        mended: "nft list chain ip phalanx_balancer prerouting | grep -q 'dport 80 dnat'",
        told: "somebody changed the table phalanx_balancer",
        diff: &["tcp dport 80 dnat ip to numgen inc mod 2 map"],
    },
    Damage {
        host: "lb",
        done: "sysctl -qw net.ipv4.ip_forward=0",
        mended: "test $(sysctl -n net.ipv4.ip_forward) = 1",
        told: "the kernel setting net.ipv4.ip_forward was changed",
        diff: &["-net.ipv4.ip_forward = 1", "+net.ipv4.ip_forward = 0"],
    },
    Damage {
        host: "web2",
        done: "sysctl -qw net.ipv4.ip_unprivileged_port_start=0",
        mended: "test $(sysctl -n net.ipv4.ip_unprivileged_port_start) = 1024",
        told: "the kernel setting net.ipv4.ip_unprivileged_port_start was changed",
        diff: &["-net.ipv4.ip_unprivileged_port_start = 1024", "+net.ipv4.ip_unprivileged_port_start = 0"],
    },
    Damage {
        host: "web1",
        done: "umount --lazy /srv/phalanx/content",
        mended: "test -s /srv/phalanx/content/.phalanx-share",
        told: "the mount of share content was taken away",
        diff: &["-/srv/nas/web on /srv/phalanx/content"],
    },
    Damage {
        host: "web2",
        done: "ip address del 10.9.0.112/24 dev eth0",
        mended: "ip -4 address show dev eth0 | grep -q 10.9.0.112/24",
        told: "the address 10.9.0.112/24 was taken off eth0",
        diff: &["-10.9.0.112/24 dev eth0"],
    },
    Damage {
        host: "web2",
        done: "ip rule del priority 7400 from 10.9.0.12",
        mended: "ip rule show priority 7400 from 10.9.0.12 | grep -q lookup",
        told: "a routing rule was taken away",
        diff: &["-7400: from 10.9.0.12 lookup 7400"],
    },
    Damage {
        host: "web1",
        done: "ip route del default table 7400",
        mended: "ip route show table 7400 | grep -q 'default via 10.9.0.1'",
        told: "the default route of table 7400 was changed",
        diff: &["-default via 10.9.0.1"],
    },
    Damage {
        host: "web2",
        done: "systemctl disable --now --quiet phalanx-proxy",
        mended: "systemctl is-active --quiet phalanx-proxy && systemctl is-enabled --quiet phalanx-proxy",
        told: "the unit phalanx-proxy.service was stopped or disabled",
        diff: &["-active: true, enabled: true", "+active: false, enabled: false"],
    },
    Damage {
        host: "web1",
        done: "echo '# by hand' >> $(ls /var/lib/phalanx/accounts/*/httpd.conf)",
        mended: "! grep -q 'by hand' /var/lib/phalanx/accounts/*/httpd.conf",
        told: "httpd.conf of account site was changed by hand",
        diff: &["+# by hand"],
    },
    Damage {
        host: "web1",
        done: "echo '; by hand' >> $(ls /var/lib/phalanx/accounts/*/php-fpm.conf)",
        mended: "! grep -q 'by hand' /var/lib/phalanx/accounts/*/php-fpm.conf",
        told: "php-fpm.conf of account site was changed by hand",
        diff: &["+; by hand"],
    },
    Damage {
        host: "web2",
        done: "rm $(ls /var/lib/phalanx/accounts/*/httpd.conf)",
        mended: "test -s $(ls -d /var/lib/phalanx/accounts/*)/httpd.conf",
        told: "httpd.conf of account site was removed by hand",
        diff: &["-Listen 127.64.0.1:808"],
    },
    Damage {
        host: "lb",
        done: "sed -i 's/\"10.9.0.11\"/\"10.9.0.99\"/; s/10.9.0.11:/10.9.0.99:/' /var/lib/phalanx/live/balancer.json && \
               grep -q 10.9.0.99 /var/lib/phalanx/live/balancer.json",
        mended: "! grep -q 10.9.0.99 /var/lib/phalanx/live/balancer.json && grep -q 10.9.0.11 /var/lib/phalanx/live/balancer.json",
        told: "the live file balancer.json of generation",
        diff: &["10.9.0.99"],
    },
    Damage {
        host: "nas",
        done: "chown root:root /srv/nas/web/home/site",
        mended: "test $(stat -c %u:%g /srv/nas/web/home/site) = $(stat -c %u:%g /srv/nas/web/home/site/sites)",
        told: "the home of account site was taken from it",
        diff: &["-owner 19000", "+owner 0"],
    },
];

/// What is done once the others are mended, since it would take their traces with it.
const AFTERWARDS: &[Damage] = &[Damage {
    host: "lb",
    done: "nft delete table ip phalanx_balancer",
    mended: "nft list chain ip phalanx_balancer prerouting | grep -q 'dport 80 dnat'",
    told: "somebody changed the table phalanx_balancer",
    diff: &["table ip phalanx_balancer {"],
}];

/// A drift as the events tell it: the server, the text, the difference.
type Told = (String, String, String);

fn drifts(figure: &Figure) -> Result<Vec<Told>> {
    let events = figure.json("events --limit 200")?;
    let events = events["items"].as_array().context("a list of events")?.clone();
    let word = |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let drifts = events.iter().filter(|event| event["topic"] == "drift");
    Ok(drifts.map(|event| (word(event, "server"), word(event, "text"), word(event, "detail"))).collect())
}

impl Damage {
    fn is(&self, (server, text, detail): &Told) -> bool {
        server == self.host && text.contains(self.told) && self.diff.iter().all(|part| detail.contains(part))
    }
}

/// Does all of this at once, since waiting for one after the other would take minutes, and so that they meet each other; waits until all is mended
/// and told.
fn damage(figure: &Figure, damages: &[Damage]) -> Result<()> {
    for Damage { host, done, .. } in damages {
        figure.host(host).text(done)?;
    }
    let begin = Instant::now();
    let left = || LIMIT.saturating_sub(begin.elapsed());
    for Damage { host, done, mended, .. } in damages {
        eventually(left(), &format!("the mending of `{done}` on {host}"), || figure.host(host).text(mended))?;
    }
    println!("{} damages were mended within {:?}", damages.len(), begin.elapsed());
    for damage @ Damage { host, done, .. } in damages {
        eventually(left(), &format!("the event of `{done}` on {host}"), || {
            let drifts = drifts(figure)?;
            ensure!(drifts.iter().any(|told| damage.is(told)), "only {drifts:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn drift() -> Result<()> {
    Figure::scenario(|figure| {
        figure.site("site", "site.example.org", &[("index.html", "here")])?;
        figure.phalanx(
            "address add 198.51.100.10:81 --balancer front --cluster web --port 8081 --internal web2=10.9.0.112",
        )?;
        eventually(Duration::from_secs(30), "a second address of web2", || {
            figure.host("web2").text("ip -4 address show dev eth0 | grep -q 10.9.0.112/24")
        })?;
        for node in ["web1", "web2"] {
            figure.node_answers(node, "site.example.org", "/", "here")?;
        }
        for server in ["web1", "web2", "lb"] {
            figure.phalanx(&format!("server reconcile {server}"))?;
        }
        // What is looked at in turns counts as changed by hand only after a first round.
        figure.settled(&["lb", "web1", "web2", "nas"])?;
        std::thread::sleep(Duration::from_secs(3));
        let before = drifts(figure)?;
        ensure!(before.is_empty(), "there was drift before anybody did anything: {before:?}");
        damage(figure, AT_ONCE)?;
        figure.settled(&["lb"])?;
        damage(figure, AFTERWARDS)?;
        figure.settled(&["lb", "web1", "web2", "nas"])?;
        for port in [80, 81] {
            let line = format!("curl -sS -m 5 -H 'Host: site.example.org' http://198.51.100.10:{port}/");
            for _ in 0..4 {
                let body = figure.host("client").text(&line)?;
                ensure!(body == "here", "{body}");
            }
        }
        // Each is told once, and nothing is told that nobody did.
        let (drifts, damages) = (drifts(figure)?, || AT_ONCE.iter().chain(AFTERWARDS));
        let foreign: Vec<_> = drifts.iter().filter(|told| !damages().any(|damage| damage.is(told))).collect();
        ensure!(foreign.is_empty(), "nobody did this: {foreign:#?}");
        ensure!(drifts.len() == damages().count(), "{} events of {}: {drifts:#?}", drifts.len(), damages().count());
        Ok(())
    })
}
