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

const DAMAGES: [Damage; 11] = [
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
        mended: "test $(nft list chain inet phalanx_accounts output | grep -c 'reject with tcp reset') = 2",
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
];

#[test]
fn drift() -> Result<()> {
    let figure = Figure::up()?;
    figure.site("site", "site.example.org", &[("index.html", "here")])?;
    figure.phalanx(
        "address add 198.51.100.10:81 --balancer front --cluster web --port 8081 --internal web2=10.9.0.112",
    )?;
    eventually(Duration::from_secs(30), "a second address of web2", || {
        figure.host("web2").text("ip -4 address show dev eth0 | grep -q 10.9.0.112/24")
    })?;
    for node in ["web1", "web2"] {
        eventually(Duration::from_secs(10), "the site", || {
            let answer = figure.get_from(node, "site.example.org", "/")?;
            ensure!(answer.body == "here", "{answer:?}");
            Ok(())
        })?;
    }
    for server in ["web1", "web2", "lb"] {
        figure.phalanx(&format!("server reconcile {server}"))?;
    }
    let drifts = |figure: &Figure| -> Result<Vec<(String, String, String)>> {
        let events = figure.json("events --limit 200")?;
        let events = events["items"].as_array().context("a list of events")?.clone();
        let word = |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let drifts = events.iter().filter(|event| event["topic"] == "drift");
        Ok(drifts.map(|event| (word(event, "server"), word(event, "text"), word(event, "detail"))).collect())
    };
    let before = drifts(&figure)?;
    ensure!(before.is_empty(), "there was drift before anybody did anything: {before:?}");

    // Waiting for one after the other mends would take minutes; at once they also meet each other.
    for Damage { host, done, .. } in &DAMAGES {
        figure.host(host).text(done)?;
    }
    let begin = Instant::now();
    for Damage { host, done, mended, .. } in &DAMAGES {
        let left = LIMIT.saturating_sub(begin.elapsed());
        eventually(left, &format!("the mending of `{done}` on {host}"), || figure.host(host).text(mended))?;
    }
    println!("{} damages were mended within {:?}", DAMAGES.len(), begin.elapsed());
    for Damage { host, done, told, diff, .. } in &DAMAGES {
        let left = LIMIT.saturating_sub(begin.elapsed());
        eventually(left, &format!("the event of `{done}` on {host}"), || {
            let drifts = drifts(&figure)?;
            let found = drifts.iter().find(|(server, text, _)| server == host && text.contains(told));
            let (_, _, detail) = found.with_context(|| format!("only {drifts:#?}"))?;
            for part in *diff {
                ensure!(detail.contains(part), "{part:?} is missing in {detail:?}");
            }
            Ok(())
        })?;
    }
    figure.settled(&["lb", "web1", "web2"])?;
    for port in [80, 81] {
        let line = format!("curl -sS -m 5 -H 'Host: site.example.org' http://198.51.100.10:{port}/");
        for _ in 0..4 {
            let body = figure.host("client").text(&line)?;
            ensure!(body == "here", "{body}");
        }
    }
    // Each is told once, and nothing is told that nobody did.
    let drifts = drifts(&figure)?;
    let told = |(server, text, _): &&(String, String, String)| {
        DAMAGES.iter().any(|damage| damage.host == server && text.contains(damage.told))
    };
    let foreign: Vec<_> = drifts.iter().filter(|drift| !told(drift)).collect();
    ensure!(foreign.is_empty(), "nobody did this: {foreign:#?}");
    ensure!(drifts.len() == DAMAGES.len(), "{} events of {} damages: {drifts:#?}", drifts.len(), DAMAGES.len());
    Ok(())
}
