//! The agent is killed at each step of an apply, and at each point of a change of the directory, and converges all the same; services never stop.
//!
//! The points come from the agent: see [`doomed`]. All runs are under load, which must be there still when the last of them has converged.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure, SHARE, WHO, WHO_PAGE};
use phalanx_lab::load::{Record, Running, clock_ms};
use std::time::Duration;

mod change;
mod doomed;
mod exports;

use doomed::{BESIDE_STEPS, Death, Doomed, RENEWALS, at_each_step, step_by_step, step_by_step_of};
pub use exports::{a_queue_comes, the_nas_leaves, who_may_mount_changes};

const LIMIT: Duration = Duration::from_secs(30);

/// A load of PHP through the external address, for longer than any of these tests takes.
fn load(figure: &Figure) -> Result<Running> {
    let mut load = figure.load(WHO, WHO_PAGE, 500);
    (load.rate, load.threads) = (25, 8);
    load.start(&figure.host("client"))
}

/// Ends the load; it must have gone on after the last convergence, and no request may have failed.
pub fn unharmed(figure: &Figure, load: Running) -> Result<Vec<Record>> {
    let converged_ms = clock_ms();
    std::thread::sleep(Duration::from_millis(500));
    let records = load.stop(&figure.host("client"))?;
    ensure!(records.last().is_some_and(|last| last.clock_ms > converged_ms), "the load had ended before: {records:?}");
    let bad: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
    ensure!(bad.is_empty(), "{} of {} requests failed: {bad:?}", bad.len(), records.len());
    println!("{} requests, none failed", records.len());
    Ok(records)
}

/// What web2 shows of a second address: in its interface, its rules, its proxy's configuration, and by an answer.
fn second_address(figure: &Figure, port: Option<u64>) -> Result<()> {
    let web2 = figure.host("web2");
    let seen = web2.text(
        "ip -4 -o address show dev eth0 | grep -o '10.9.0.112/24 .*eth0:phx' | head -n 1; ip rule show from 10.9.0.112; \
         grep -o '10.9.0.112:[0-9]*' /var/lib/phalanx/live/proxy.json; grep -c /srv/phalanx/content /proc/self/mountinfo",
    )?;
    match port {
        Some(port) => {
            for part in ["eth0:phx", "7399:", "7400:", &format!("10.9.0.112:{port}")] {
                ensure!(seen.contains(part), "{part:?} is missing in {seen}");
            }
            let ask = format!("curl -sS -m 5 -H 'Host: {WHO}' http://10.9.0.112:{port}{WHO_PAGE}");
            let body = figure.host("lb").text(&ask)?;
            ensure!(body == "web2", "{body}");
            ensure!(seen.lines().count() == 5, "too much is there: {seen}");
        }
        None => ensure!(seen == "2", "something is left, or there is more than the seal and the share: {seen}"),
    }
    Ok(())
}

/// The address on web2 and on the balancer, at the same time.
fn address(figure: &Figure) -> Result<()> {
    // Other files each time, so that they are staged and checked anew.
    let port = |round: u64| 8_100 + round;
    let add = |round: u64| {
        let port = port(round);
        Ok(format!("address add {EXTERNAL}:81 --balancer front --cluster web --port {port} --internal web2=10.9.0.112"))
    };
    let remove = |_| Ok(format!("address remove {EXTERNAL}:81"));
    let (is_there, is_gone) = (|round| second_address(figure, Some(port(round))), |_| second_address(figure, None));
    let planned = at_each_step(figure, &["web2", "lb"], [&add, &remove], [&is_there, &is_gone])?;
    let [there, back, lb, lb_back] = &planned[..] else { anyhow::bail!("{planned:?}") };
    change::NODE_GETS_AN_ADDRESS.planned(there)?;
    change::NODE_LOSES_AN_ADDRESS.planned(back)?;
    change::BALANCER_GETS_AN_ADDRESS.planned(lb)?;
    change::BALANCER_LOSES_AN_ADDRESS.planned(lb_back)
}

/// The administrator's directives, which every awake account reads.
fn directives(figure: &Figure) -> Result<()> {
    let cp = figure.host("cp");
    let set = |round: u64| {
        cp.write_file("/run/directives.conf", format!("Header always set X-Round {round}\n").as_bytes())?;
        Ok("cluster change web --httpd-directives-file /run/directives.conf".to_owned())
    };
    let unset = |_: u64| -> Result<String> { Ok("cluster change web --no-httpd-directives".to_owned()) };
    let header = |expected: Option<u64>| {
        let ask = format!("curl -sS -m 5 -o /dev/null -D - -H 'Host: {WHO}' http://10.9.0.12{WHO_PAGE} | tr -d '\\r'");
        let expected = expected.map(|round| format!("X-Round: {round}"));
        // An account that could not be renewed at once is tried again at the next look.
        eventually(LIMIT, &format!("{expected:?}"), || {
            for _ in 0..4 {
                let head = figure.host("lb").text(&ask)?;
                let found = head.lines().find(|line| line.starts_with("X-Round")).map(str::to_owned);
                ensure!(found == expected, "{head}");
            }
            Ok(())
        })
    };
    let planned = at_each_step(figure, &["web2"], [&set, &unset], [&|round| header(Some(round)), &|_| header(None)])?;
    let [there, back] = &planned[..] else { anyhow::bail!("{planned:?}") };
    change::DIRECTIVES_COME.planned(there)?;
    change::DIRECTIVES_GO.planned(back)?;
    // The places within a reload of the accounts.
    let renewed = || figure.host("web2").text("test -z \"$(ls /run/phalanx/renew)\"").map(drop);
    let done: [&dyn Fn() -> Result<()>; 2] =
        [&|| header(Some(500)).and_then(|()| renewed()), &|| header(None).and_then(|()| renewed())];
    let died = at_each_point(figure, "web2", &set(500)?, &unset(0)?, done)?;
    ensure!(died.len() == 3 && died.iter().all(|place| place.starts_with("account-renew: ")), "{died:?}");
    Ok(())
}

/// A share on the NAS.
fn share(figure: &Figure) -> Result<()> {
    let mut nas = Doomed::new(figure, "nas")?;
    let mut died = Vec::new();
    for place in 0..20 {
        nas.doom(&[place])?;
        let path = format!("/srv/nas/other{place}");
        let add = format!("share add other --kind local --nas storage --path {path}");
        figure.phalanx(&add)?;
        nas.converged(&add)?;
        figure.host("nas").text(&format!("grep -Eqx '[0-9a-f]{{32}}' {path}/.phalanx-share && test -d {path}/home"))?;
        let deaths = nas.deaths()?;
        nas.doom(&[])?;
        figure.phalanx("share remove other")?;
        nas.converged("share remove other")?;
        if deaths.is_empty() {
            let sides = |step: &&str| [format!("before step {step}"), format!("after step {step}")];
            let expected: Vec<_> = change::SHARE_COMES.steps.iter().flat_map(sides).collect();
            ensure!(died == expected, "{died:?}");
            println!("nas, a share: killed at each of {died:?}");
            return Ok(());
        }
        died.extend(deaths.into_iter().map(|death| death.place));
    }
    anyhow::bail!("it never ends: {died:?}")
}

#[test]
fn crash_points_of_a_change() -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[])?;
        let load = load(figure)?;
        address(figure)?;
        directives(figure)?;
        share(figure)?;
        unharmed(figure, load)?;
        figure.settled(&["web1", "web2", "lb", "nas"])
    })
}

/// Nothing of ours is left on a machine that belongs to no cluster.
const IDLE: &str = "! systemctl is-active --quiet phalanx-proxy phalanx-guard phalanx-logs phalanx-launcher && \
    ! grep -q ' /srv/phalanx/content ' /proc/self/mountinfo && ! nft list table inet phalanx_accounts 2> /dev/null && \
    ! ip rule show | grep -q '^7[34]' && ! ip route show table 7400 2> /dev/null | grep -q default && \
    test -z \"$(pgrep -f /usr/sbin/apach[e]2)\"";

/// A server of an account is left running on a machine that has left its cluster: of none of the cluster's accounts, which have ended by then.
fn left_running(figure: &Figure) -> Result<()> {
    const UNIT: &str = "phalanx-httpd@1900000099.service";
    let web3 = figure.host("web3");
    web3.write_file(&format!("/run/systemd/system/{UNIT}"), b"[Service]\nExecStart=/bin/sleep infinity\n")?;
    let start = || web3.text(&format!("systemctl daemon-reload && systemctl start {UNIT}")).map(drop);
    let planned = step_by_step_of(figure, "web3", "a server left running", 1, start, |agent| {
        eventually(LIMIT, "the end of the server, and two deaths", || {
            web3.text(&format!("! systemctl is-active {UNIT}"))?;
            let deaths = agent.deaths()?;
            ensure!(deaths.len() == 2, "{deaths:?}");
            Ok(())
        })
    })?;
    change::ACCOUNT_IS_LEFT.planned(&planned)
}

/// Somebody mounts another directory in the place of the share of a node, which has no traffic at the time.
fn replaced(figure: &Figure) -> Result<()> {
    let web3 = figure.host("web3");
    figure.phalanx("cluster drain web web3")?;
    figure.settled(&["lb", "web3"])?;
    let replace = || web3.text(&format!("umount -l {SHARE} && mount --bind /var/tmp {SHARE}")).map(drop);
    let planned = step_by_step_of(figure, "web3", "another mount for the share", 2, replace, |_| {
        eventually(LIMIT, "the share's own mount", || {
            let layers = web3.text(&format!("grep -c ' {SHARE} ' /proc/self/mountinfo; cat {SHARE}/.phalanx-share"))?;
            ensure!(layers.starts_with("2\n"), "{layers}");
            Ok(())
        })?;
        figure.settled(&["web3"])
    })?;
    change::SHARE_IS_REPLACED.planned(&planned)?;
    figure.phalanx("cluster undrain web web3")?;
    figure.serves_through("web3", LIMIT)
}

#[test]
fn crash_points_of_a_join() -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[])?;
        figure.phalanx("server add web3 --kind web --address 10.9.0.13/24")?;
        figure.phalanx("cluster add-slave web web3")?;
        figure.join("web3", "web1")?;
        figure.settled(&["web3"])?;
        let load = load(figure)?;
        let left = step_by_step(figure, "web3", "cluster remove-slave web web3 --deadline 10s")?;
        figure.host("web3").text(IDLE)?;
        change::NODE_LEAVES.planned(&left)?;
        left_running(figure)?;
        let joined = step_by_step(figure, "web3", "cluster add-slave web web3")?;
        figure.node_answers("web3", WHO, WHO_PAGE, "web3")?;
        change::NODE_JOINS.planned(&joined)?;
        replaced(figure)?;
        unharmed(figure, load)?;
        figure.settled(&["web1", "web2", "web3", "lb"])
    })
}

/// The balancer's machine, taken out of its cluster and put into it again; nobody is served through it meanwhile.
#[test]
fn crash_points_of_a_balancer() -> Result<()> {
    Figure::scenario(|figure| {
        figure.phalanx(&format!("address remove {EXTERNAL}:80"))?;
        figure.settled(&["lb"])?;
        let lb = figure.host("lb");
        let left = step_by_step(figure, "lb", "cluster remove front")?;
        // As a machine is that has just been installed.
        lb.text("! systemctl is-active --quiet phalanx-balancer && ! nft list table ip phalanx_balancer 2> /dev/null")?;
        lb.text("sysctl -qw net.ipv4.ip_forward=0")?;
        change::BALANCER_LEAVES.planned(&left)?;
        let joined = step_by_step(figure, "lb", "cluster add front --kind balancer --master lb")?;
        lb.text("systemctl is-active --quiet phalanx-balancer && test $(sysctl -n net.ipv4.ip_forward) = 1")?;
        change::BALANCER_JOINS.planned(&joined)?;
        figure.phalanx(&format!("address add {EXTERNAL}:80 --balancer front --cluster web --port 80"))?;
        figure.settled(&["lb"])?;
        figure.who(&[])?;
        figure.serves_through("web1", LIMIT)
    })
}

const NEW: &str = "new.example.org";
const ALIAS: &str = "alias.example.org";

/// The change's effect on web2: who answers for the names, by one httpd that has read what is live, and nothing is left to do.
fn derived(figure: &Figure, uid: u64, new: bool, alias: bool) -> Result<()> {
    let web2 = figure.host("web2");
    for (name, is_there) in [(NEW, new), (ALIAS, alias)] {
        // More often than there are sockets that the kernel could choose from.
        for _ in 0..6 {
            let answer = figure.get_from("web2", name, "/")?;
            let expected = if is_there { (200, "new") } else { (404, "") };
            ensure!(answer.status == expected.0 && (!is_there || answer.body == expected.1), "{name}: {answer:?}");
        }
    }
    let left = web2.text(&format!(
        "sqlite3 /var/lib/phalanx/directory/directory.sqlite 'SELECT count(*) FROM dirty'; ls /run/phalanx/renew 2> /dev/null | wc -l; \
         ss -Hltn 'sport = :808' | wc -l; systemctl list-units --plain --no-legend --state=active,activating 'phalanx-httpd*@{uid}.service' | wc -l"
    ))?;
    ensure!(left == "0\n0\n1\n1", "rows to derive, notes, sockets, httpds: {left:?}");
    Ok(())
}

/// Makes one change again and again, with `undo` in between, the agent of `host` dying at the next point each time; returns the points.
fn at_each_point(
    figure: &Figure,
    host: &str,
    change: &str,
    undo: &str,
    is_done: [&dyn Fn() -> Result<()>; 2],
) -> Result<Vec<String>> {
    let mut machine = Doomed::new(figure, host)?;
    let mut died = Vec::new();
    // Nothing of what was done before is under way.
    eventually(LIMIT, &format!("rest before `{change}`"), || is_done[1]())?;
    let mut lanes = [BESIDE_STEPS, RENEWALS].into_iter();
    let mut next = lanes.next();
    for _ in 0..40 {
        let Some(point) = next else {
            println!("{host}, `{change}`: killed at each of {died:?}");
            return Ok(died);
        };
        machine.doom(&[point])?;
        figure.phalanx(change)?;
        eventually(
            LIMIT,
            &format!("what `{change}` is for, after a death on {host} at {point}; before: {died:?}"),
            || is_done[0](),
        )?;
        let deaths = machine.deaths()?;
        next = if deaths.is_empty() { lanes.next() } else { Some(point + 1) };
        died.extend(deaths.into_iter().map(|Death { place, .. }| place));
        figure.phalanx(undo)?;
        eventually(LIMIT, &format!("what `{undo}` is for"), || is_done[1]())?;
    }
    anyhow::bail!("the points never end: {died:?}")
}

#[test]
fn crash_points_of_accounts() -> Result<()> {
    const RENEWED: [&str; 9] = [
        "before a change of the directory",
        "after a change of the directory",
        "before changed accounts are derived",
        "account-configuration: it is noted that it changes",
        "account-configuration: it has changed",
        "after changed accounts were derived",
        "account-renew: both httpds run",
        "account-renew: the former httpd was told to end",
        "account-renew: all was done, but that is not noted",
    ];
    Figure::scenario(|figure| {
        figure.who(&[])?;
        figure.put("who", &format!("sites/{NEW}/index.html"), "new")?;
        let uid = figure.json("account show who")?["uid"].as_u64().context("the account has a uid")?;
        let load = load(figure)?;
        let state = |new, alias| move || derived(figure, uid, new, alias);
        let (nothing, site, both) = (state(false, false), state(true, false), state(true, true));
        let (add, remove) = (format!("site add {NEW} --account who"), format!("site remove {NEW}"));
        let died = at_each_point(figure, "web2", &add, &remove, [&site, &nothing])?;
        ensure!(died == RENEWED, "{died:?}");
        figure.phalanx(&add)?;
        let (alias, unalias) =
            (format!("site change {NEW} --add-alias {ALIAS}"), format!("site change {NEW} --remove-alias {ALIAS}"));
        let died = at_each_point(figure, "web2", &alias, &unalias, [&both, &site])?;
        ensure!(died == RENEWED, "{died:?}");
        let died = at_each_point(figure, "web2", &remove, &add, [&nothing, &site])?;
        ensure!(died == RENEWED, "{died:?}");
        homes(figure)?;
        removal(figure)?;
        unharmed(figure, load)?;
        figure.settled(&["web1", "web2", "nas"])
    })
}

/// The home of a new account, on the machine that keeps the share.
fn homes(figure: &Figure) -> Result<()> {
    let nas = figure.host("nas");
    let made = || {
        nas.text("test -d /srv/nas/web/home/bob/sessions && test $(stat -c %a /srv/nas/web/home/bob) = 750").map(drop)
    };
    let derived = || {
        let rows = nas.text("sqlite3 /var/lib/phalanx/directory/directory.sqlite 'SELECT count(*) FROM dirty'")?;
        ensure!(rows == "0", "{rows}");
        Ok(())
    };
    let moved = || nas.text("test ! -e /srv/nas/web/home/bob").map(drop);
    let done: [&dyn Fn() -> Result<()>; 2] =
        [&|| made().and_then(|()| derived()), &|| moved().and_then(|()| derived())];
    let died = at_each_point(figure, "nas", "account add bob --logical-server www", "account remove bob", done)?;
    ensure!(died.len() == 4 && died[3] == "after changed accounts were derived", "{died:?}");
    Ok(())
}

/// An account that is awake is removed.
fn removal(figure: &Figure) -> Result<()> {
    let web2 = figure.host("web2");
    let add = "account add carol --logical-server www";
    let mut machine = Doomed::new(figure, "web2")?;
    let mut died = Vec::new();
    for point in 0..10 {
        figure.phalanx(add)?;
        figure.phalanx("site add carol.example.org --account carol")?;
        figure.put("carol", "sites/carol.example.org/index.html", "carol")?;
        figure.node_answers("web2", "carol.example.org", "/", "carol")?;
        let uid = figure.json("account show carol")?["uid"].to_string();
        machine.doom(&[BESIDE_STEPS + point])?;
        figure.phalanx("account remove carol --with-sites")?;
        eventually(LIMIT, &format!("the end of carol, after a death at {point}; before: {died:?}"), || {
            let answer = figure.get_from("web2", "carol.example.org", "/")?;
            ensure!(answer.status == 404, "{answer:?}");
            let left = web2.text(&format!(
                "ls -d /var/lib/phalanx/accounts/{uid} /run/phalanx/renew/{uid} 2> /dev/null; pgrep -U {uid}; \
                 sqlite3 /var/lib/phalanx/directory/directory.sqlite 'SELECT account FROM dirty'"
            ))?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })?;
        let deaths = machine.deaths()?;
        if deaths.is_empty() {
            ensure!(died.contains(&"account-remove: nothing of it runs".to_owned()), "{died:?}");
            println!("web2, an account removed: killed at each of {died:?}");
            return Ok(());
        }
        died.extend(deaths.into_iter().map(|Death { place, .. }| place));
    }
    anyhow::bail!("the points never end: {died:?}")
}
