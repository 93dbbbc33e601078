//! The panel gone, the agents gone, or both: everything serves on; back again, they catch up and do nothing twice.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use phalanx_lab::figure::{Figure, NODES, WHO, WHO_PAGE};
use phalanx_lab::{Host, eventually};

const SERVERS: [&str; 4] = ["lb", "nas", "web1", "web2"];

/// The agent looks at its host every five seconds: after this time it has looked a second time since it said that all is well.
const SECOND_LOOK: Duration = Duration::from_secs(7);

/// What of a host would be another if something was done to it again, a line each: the start of each daemon but the agent and of each
/// account's server, the node number and times of each file that the agent makes, the packet filter's rules with their handles, the
/// mounts with their numbers, addresses and routing.
const FOOTPRINT: &str = r#"
    for unit in $(systemctl list-units --all --plain --no-legend 'phalanx-*' | cut -d' ' -f1 | grep -v '^phalanx-agent'); do
        echo "unit $unit $(systemctl show -p ActiveState,InvocationID,MainPID,NRestarts,ActiveEnterTimestampMonotonic,StateChangeTimestampMonotonic --value $unit | tr '\n' ' ')"
    done
    find /var/lib/phalanx/generations /var/lib/phalanx/live /var/lib/phalanx/accounts /etc/systemd/system /etc/exports* /etc/sysctl.d \
        /srv/nas/web/home -name logs -prune -o -printf 'file %p %i %T@ %C@ %l\n' 2> /dev/null | sort
    nft -a list ruleset | awk '/elements = / { in_set = 1 } { last = /}/ } in_set { gsub(/elements = |[{},]/, "\n") } last { in_set = 0 } { print }' |
        sed 's/^[[:space:]]*//; /^$/d; s/^/nft /'
    grep ' /srv/' /proc/self/mountinfo | cut -d' ' -f1-5 | sed 's/^/mount /'
    ip -o address show | sed 's/valid_lft.*//; s/^/address /'
    for family in -4 -6; do ip $family rule show; ip $family route show table all; done | sed 's/^/route /'
"#;

/// The [`FOOTPRINT`] of all servers.
fn footprint(figure: &Figure) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for host in SERVERS {
        let text = figure.host(host).text(FOOTPRINT)?;
        all.extend(text.lines().map(|line| format!("{host}: {line}")));
    }
    for (part, hosts) in [
        ("unit phalanx-httpd@", &NODES[..]),
        ("nft table inet phalanx_accounts", &NODES),
        ("nft table ip phalanx_balancer", &["lb"]),
    ] {
        for host in hosts {
            ensure!(
                all.iter().any(|line| line.starts_with(&format!("{host}: {part}"))),
                "{part} of {host} is not looked at"
            );
        }
    }
    Ok(all)
}

/// Nothing that was there is another now.
fn is_as_before(before: &[String], after: &[String]) -> Result<()> {
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).cloned().collect()
    };
    let (gone, new) = (only(before, after), only(after, before));
    ensure!(gone.is_empty() && new.is_empty(), "something was done again; gone: {gone:#?}, new: {new:#?}");
    Ok(())
}

/// Figure 1 with a site that is awake and one that is asleep on every node; `test` gets its footprint.
fn scenario(test: impl FnOnce(&Figure, Vec<String>) -> Result<()>) -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[])?;
        figure.site("asleep", "asleep.example.org", &[("index.html", "good morning")])?;
        figure.settled(&SERVERS)?;
        std::thread::sleep(SECOND_LOOK);
        let before = footprint(figure)?;
        test(figure, before)
    })
}

fn agents(figure: &Figure, what: &str) -> Result<()> {
    SERVERS.iter().try_for_each(|host| figure.host(host).text(&format!("systemctl {what} phalanx-agent")).map(drop))
}

fn panel(figure: &Figure, what: &str) -> Result<()> {
    figure.host("cp").text(&format!("systemctl {what} phalanx-panel")).map(drop)
}

/// Each of 800 requests is answered.
fn serves_on(figure: &Figure) -> Result<()> {
    let records = figure.load(WHO, WHO_PAGE, 8).start(&figure.host("client"))?.finish()?;
    let bad = records.iter().find(|record| !record.ok());
    ensure!(records.len() > 500 && bad.is_none(), "{} requests; {bad:?}", records.len());
    for node in NODES {
        let count = records.iter().filter(|record| record.text == node).count();
        ensure!(count > 100, "{node} answered {count} of {} requests", records.len());
    }
    Ok(())
}

/// An account that is asleep wakes on every node; a node that is dead is passed by, and is back in service when it lives again.
fn wakes_and_passes_by(figure: &Figure) -> Result<()> {
    NODES.iter().try_for_each(|node| figure.node_answers(node, "asleep.example.org", "/", "good morning"))?;
    let web2 = figure.host("web2");
    web2.freeze()?;
    // The promise of the scenarios of death.
    std::thread::sleep(Duration::from_secs(3));
    let outcome = (0..10).try_for_each(|_| {
        let answer = figure.get(WHO, WHO_PAGE)?;
        ensure!(answer.body == "web1", "a frozen node is passed by after 3 s: {answer:?}");
        Ok(())
    });
    web2.thaw().and(outcome)?;
    figure.serves_through("web2", Duration::from_secs(20))
}

/// Waits until all is as it should be and the agents have looked once more.
fn looked_twice(figure: &Figure) -> Result<()> {
    figure.settled(&SERVERS)?;
    std::thread::sleep(SECOND_LOOK);
    figure.settled(&SERVERS)
}

/// Those who are started again do nothing twice, and then carry out a change.
fn come_back(figure: &Figure, start: impl FnOnce() -> Result<()>) -> Result<()> {
    let during = footprint(figure)?;
    start()?;
    looked_twice(figure)?;
    is_as_before(&during, &footprint(figure)?)?;
    figure.phalanx("site add late.example.org --account who").context("a change after the return")?;
    NODES.iter().try_for_each(|node| serves(figure, node, "late.example.org", 403))
}

#[test]
fn without_panel_and_agents() -> Result<()> {
    scenario(|figure, _| {
        panel(figure, "stop")?;
        agents(figure, "stop")?;
        serves_on(figure)?;
        wakes_and_passes_by(figure)?;
        come_back(figure, || panel(figure, "start").and_then(|()| agents(figure, "start")))
    })
}

#[test]
fn without_panel() -> Result<()> {
    scenario(|figure, before| {
        panel(figure, "stop")?;
        serves_on(figure)?;
        is_as_before(&before, &footprint(figure)?).context("while the panel was gone")?;
        wakes_and_passes_by(figure)?;

        // The agents mend what somebody broke, without a panel.
        let web2 = figure.host("web2");
        web2.text("ip rule del priority 7400 from 10.9.0.12")?;
        eventually(Duration::from_secs(30), "the mending of a rule", || {
            web2.text("ip rule show priority 7400 from 10.9.0.12 | grep -q lookup")
        })?;

        come_back(figure, || panel(figure, "start"))
    })
}

#[test]
fn without_agents() -> Result<()> {
    scenario(|figure, before| {
        for line in [
            "account add moving --logical-server www",
            "site add changed.example.org --account moving",
            "site add removed.example.org --account moving",
        ] {
            figure.phalanx(line)?;
        }
        for node in NODES {
            serves(figure, node, "changed.example.org", 403)?;
            serves(figure, node, "removed.example.org", 403)?;
        }
        agents(figure, "stop")?;
        // An agent that is stopped may not be missed at once; the panel takes the orders all the same.
        for line in [
            "account add late --logical-server www",
            "site add late.example.org --account late",
            "site add added.example.org --account moving",
            "site change changed.example.org --add-alias alias.example.org",
            "site remove removed.example.org",
        ] {
            figure.phalanx(line)?;
        }
        serves_on(figure)?;
        for node in NODES {
            serves(figure, node, "added.example.org", 404)?;
            serves(figure, node, "removed.example.org", 403)?;
        }

        agents(figure, "start")?;
        looked_twice(figure)?;
        for node in NODES {
            for (site, status) in [("added", 403), ("alias", 403), ("changed", 403), ("removed", 404), ("late", 403)] {
                serves(figure, node, &format!("{site}.example.org"), status)?;
            }
        }
        let caught_up = footprint(figure)?;
        others_are_as_before(figure, &before, &caught_up, ["moving", "late"])?;

        // Once more, with nothing to catch up with.
        agents(figure, "restart")?;
        looked_twice(figure)?;
        is_as_before(&caught_up, &footprint(figure)?)
    })
}

/// Waits for a status of a node's own answer.
fn serves(figure: &Figure, node: &str, site: &str, status: u16) -> Result<()> {
    eventually(Duration::from_secs(10), &format!("status {status} of {site} on {node}"), || {
        let answer = figure.get_from(node, site, "/")?;
        ensure!(answer.status == status, "{answer:?}");
        Ok(())
    })
}

/// What belongs to the accounts that were changed may be another; nothing else is: no file, no server's start, no rule of the packet filter.
fn others_are_as_before(figure: &Figure, before: &[String], after: &[String], changed: [&str; 2]) -> Result<()> {
    let mut theirs = Vec::new();
    for account in changed {
        let uid = figure.host("nas").text(&format!("stat -c %u /srv/nas/web/home/{account}"))?;
        theirs.extend([address_of(&figure.host("web1"), &uid)?, uid, format!("/home/{account}")]);
    }
    // Folders that got entries have another time; what is in them tells the rest.
    let folders = ["/var/lib/phalanx/accounts ", "/srv/nas/web/home "];
    let is_free = |line: &String| {
        theirs.iter().any(|part| line.contains(part)) || folders.iter().any(|folder| line.contains(folder))
    };
    let rest = |lines: &[String]| -> Vec<String> { lines.iter().filter(|line| !is_free(line)).cloned().collect() };
    is_as_before(&rest(before), &rest(after)).context("of accounts that nobody changed")
}

/// The loopback address that an account has on every node, as the packet filter knows it.
fn address_of(host: &Host<'_>, uid: &str) -> Result<String> {
    let set = host.text("nft list set inet phalanx_accounts owners")?;
    match set.split([',', '{', '}']).find_map(|element| element.trim().strip_suffix(&format!(" . {uid}"))) {
        Some(address) => Ok(address.to_owned()),
        None => bail!("{} has no element of {uid}: {set}", host.name()),
    }
}
