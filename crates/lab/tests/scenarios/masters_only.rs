//! The panel exchanges packets with masters alone: counters in the hosts' kernels prove it. They are there before anything of the product
//! runs, so that they see a slave's whole life.

use std::time::Duration;

use anyhow::{Result, ensure};
use phalanx_lab::figure::{Figure, NODES};

/// Both slaves; web3 joins later.
const SLAVES: [&str; 2] = ["web2", "web3"];

/// Counts what `host` exchanges with any address of `peer`, before anything else in its kernel could drop it. Neighbours' calls to
/// everybody, by which IPv6 finds who is there, are not counted.
fn count(figure: &Figure, host: &str, peer: &str) -> Result<()> {
    let addresses = figure.host(peer).text("ip -o address show up | awk '$2 != \"lo\" { print $4 }' | cut -d/ -f1")?;
    let (mut from, mut to) = (String::new(), String::new());
    for address in addresses.lines() {
        let family = if address.contains(':') { "ip6" } else { "ip" };
        let alone = if family == "ip6" { "ip6 daddr != ff00::/8 " } else { "" };
        from += &format!("  {family} saddr {address} {alone}counter\n");
        to += &format!("  {family} daddr {address} counter\n");
    }
    let rules = format!(
        "table inet lab_count_{peer} {{\n chain in {{ type filter hook prerouting priority -400;\n{from} }}\n \
         chain out {{ type filter hook output priority -400;\n{to} }}\n}}"
    );
    figure.host(host).exec(&["nft", "-f", "-"], rules.as_bytes())?.text().map(drop)
}

/// The packets of [`count`].
fn counted(figure: &Figure, host: &str, peer: &str) -> Result<u64> {
    let list = format!("nft list table inet lab_count_{peer} | grep -o 'packets [0-9]*' | cut -d' ' -f2");
    let text = figure.host(host).text(&list)?;
    ensure!(text.lines().count() >= 2, "{host} has no counters of {peer}: {text:?}");
    text.lines().map(|line| Ok(line.parse::<u64>()?)).sum()
}

#[test]
fn masters_only() -> Result<()> {
    Figure::scenario_from_nothing(|figure| {
        for host in ["web1", "nas", "lb"].into_iter().chain(SLAVES) {
            count(figure, host, "cp")?;
        }
        for slave in SLAVES {
            count(figure, "cp", slave)?;
        }
        figure.set_up()?;
        a_days_work(figure)?;
        commands_for_the_slave(figure)?;
        another_slave_comes_and_goes(figure)?;

        for master in ["web1", "nas", "lb"] {
            let packets = counted(figure, master, "cp")?;
            ensure!(packets > 20, "{master}, a master, and the panel talk: {packets} packets");
        }
        for slave in SLAVES {
            let packets = (counted(figure, slave, "cp")?, counted(figure, "cp", slave)?);
            ensure!(
                packets == (0, 0),
                "{slave} and the panel, each by its own counters, exchanged {packets:?} packets"
            );
        }
        // The counters do count: one call from the panel's host is seen on both sides.
        figure.host("cp").text("ping -c 1 -W 2 10.9.0.12")?;
        let packets = (counted(figure, "web2", "cp")?, counted(figure, "cp", "web2")?);
        ensure!(packets == (2, 2), "a call and its answer are two packets: {packets:?}");
        Ok(())
    })
}

/// Accounts, sites, a node's settings, a look at everything.
fn a_days_work(figure: &Figure) -> Result<()> {
    figure.site("work", "work.example.org", &[("index.html", "work")])?;
    figure.phalanx("cluster weight web web2 20")?;
    figure.phalanx("cluster drain web web2")?;
    figure.phalanx("cluster undrain web web2")?;
    figure.phalanx("account change work --cpu-percent 50")?;
    figure.phalanx("site change work.example.org --add-alias also.example.org")?;
    figure.phalanx("status")?;
    figure.phalanx("events")?;
    figure.settled(&NODES)?;
    figure.node_answers("web2", "also.example.org", "/", "work")?;
    figure.phalanx("site remove work.example.org")?;
    figure.phalanx("account remove work").map(drop)
}

/// Each command that is aimed at one node, aimed at the slave; each answers that it was done there.
fn commands_for_the_slave(figure: &Figure) -> Result<()> {
    let web2 = figure.host("web2");
    let directives = |text: &str| -> Result<()> {
        figure.host("cp").write_file("/run/directives.conf", text.as_bytes())?;
        figure.phalanx("cluster change web --httpd-directives-file /run/directives.conf")?;
        figure.settled(&NODES)
    };
    directives("Header set X-Work done\n")?;
    let live = || web2.text("readlink /var/lib/phalanx/live");
    let (now, first) = (live()?, "generations/1");
    ensure!(now != first, "the directives made another generation");
    figure.phalanx("server rollback web2 1")?;
    ensure!(live()? == first, "the slave went back");
    directives("")?;
    figure.phalanx("server reconcile web2")?;
    web2.text("systemctl restart phalanx-agent")?;
    figure.settled(&NODES)
}

fn another_slave_comes_and_goes(figure: &Figure) -> Result<()> {
    figure.phalanx("server add web3 --kind web --address 10.9.0.13/24")?;
    figure.phalanx("cluster add-slave web web3")?;
    figure.join("web3", "web1")?;
    figure.settled(&["web1", "web2", "web3"])?;
    figure.phalanx("cluster remove-slave web web3 --deadline 5s")?;
    phalanx_lab::eventually(Duration::from_secs(30), "the slave's leave", || {
        let shown = figure.json("cluster show web")?;
        ensure!(shown["slaves"].get("web3").is_none(), "{shown}");
        figure.host("web3").text("! systemctl is-active --quiet phalanx-proxy")
    })?;
    figure.phalanx("server remove web3").map(drop)
}
