//! The share is absent, replaced by another, or hangs: the node leaves service in time, nothing is written beneath the mount point, and
//! it returns by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::{Figure, NODES, SHARE, WHO};
use phalanx_lab::load::clock_ms;
use phalanx_lab::{Host, eventually};

/// The longest time from the loss until no request fails any more, in milliseconds: the guard waits two seconds for an answer, the
/// balancer up to three for the guard's verdict. It is counted from the moment before the loss, by the one clock that test and client share.
const NOTICE_MS: u64 = 5_000;
/// How long the load goes on before the loss, and at least how long after it.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER_MS: u64 = 11_000;

/// Figure 1 with a page on the share.
fn scenario(test: impl FnOnce(&Figure) -> Result<()>) -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[("page.html", "from the share")])?;
        figure.serves_through("web2", Duration::from_secs(20))?;
        test(figure)
    })
}

/// Takes web2's share by `lose` under load, looks with `during` while it is gone, gives it back by `give_back`.
fn loses(
    figure: &Figure,
    lose: impl Fn(&Host<'_>) -> Result<()>,
    during: impl Fn(&Figure) -> Result<()>,
    give_back: impl Fn(&Host<'_>) -> Result<()>,
    why: &[&str],
) -> Result<()> {
    let web2 = figure.host("web2");
    let daemons = "systemctl show -p InvocationID --value phalanx-agent phalanx-guard phalanx-proxy phalanx-launcher phalanx-logs";
    let before = web2.text(daemons)?;
    let client = figure.host("client");
    let mut load = figure.load(WHO, "/page.html", 120);
    // Requests on the node that lost its share end by their own patience; they must not delay those that follow.
    (load.rate, load.threads, load.patience_ms) = (50, 64, 2_000);
    let load = load.start(&client)?;
    std::thread::sleep(BEFORE);
    let lost_ms = clock_ms();
    lose(&web2)?;

    eventually(Duration::from_secs(10), "web2's leave in `phalanx server show`", || {
        let report = figure.report("web2")?;
        ensure!(report["in_service"] == false, "{report}");
        let problems = report["problems"].to_string();
        ensure!(why.iter().any(|part| problems.contains(part)), "{problems} says none of {why:?}");
        Ok(())
    })?;
    let told_ms = clock_ms() - lost_ms;
    during(figure)?;
    figure.nothing_is_beneath("web2")?;
    // The daemons answer while the share is gone: the proxy says what is wrong, the agent and the guard go on.
    let answer = figure.get_from("web2", WHO, "/.well-known/phalanx/health")?;
    ensure!(answer.status == 503, "{answer:?}");
    eventually(Duration::from_secs(5), "a fresh verdict", || {
        let verdict: serde_json::Value = serde_json::from_str(&web2.text("cat /run/phalanx/guard/content.json")?)?;
        let now_ms: f64 = web2.text("cut -d' ' -f1 /proc/uptime")?.parse()?;
        let age_ms = now_ms * 1_000.0 - verdict["at_boottime_ms"].as_f64().context("a time")?;
        ensure!(verdict["ok"] == false && age_ms < 5_000.0, "{verdict} is {age_ms} ms old");
        Ok(())
    })?;
    ensure!(web2.text(daemons)? == before, "a daemon was restarted");
    std::thread::sleep(Duration::from_millis((lost_ms + AFTER_MS).saturating_sub(clock_ms())));
    let records = load.stop(&client)?;
    let failed: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
    let late: Vec<_> = failed.iter().filter(|record| record.clock_ms > lost_ms + NOTICE_MS).collect();
    ensure!(late.is_empty(), "{} failed later than {NOTICE_MS} ms after the loss: {:?}", late.len(), late.last());
    let after = records.iter().filter(|record| record.clock_ms > lost_ms + NOTICE_MS).count();
    ensure!(after > 200, "only {after} requests were made after the loss was to be noticed");
    let last = failed.iter().map(|record| record.clock_ms.saturating_sub(lost_ms)).max().unwrap_or(0);
    println!(
        "{} requests, {} failed, the last {last} ms after the loss; told after {told_ms} ms",
        records.len(),
        failed.len()
    );
    // One that began this long before the loss had its answer long ago.
    let early = failed.iter().find(|record| record.clock_ms + 1_000 < lost_ms);
    ensure!(early.is_none(), "a request failed before the loss: {early:?}");

    give_back(&web2)?;
    figure.serves_through("web2", Duration::from_secs(30))?;
    figure.settled(&NODES)?;
    figure.node_answers("web2", WHO, "/page.html", "from the share")?;
    ensure!(web2.text(daemons)? == before, "a daemon was restarted");
    figure.nothing_is_beneath("web2")
}

/// Root tries to write beneath the share, where only its mount point is.
fn cannot_write_beneath(figure: &Figure) -> Result<()> {
    let web2 = figure.host("web2");
    for line in ["touch M/x", "mkdir M/home", "sh -c 'echo x > M/.phalanx-share'"] {
        let line = line.replace('M', SHARE);
        let output = web2.run(&line)?;
        ensure!(output.status != 0 && output.stderr.contains("Read-only file system"), "`{line}` gave {output:?}");
    }
    let found = web2.text(&format!("ls -A {SHARE}"))?;
    ensure!(found.is_empty(), "beneath the share lies {found:?}");
    Ok(())
}

/// Gives web2 another address and a port on it, and takes them back; each is seen in its kernel and in what its proxy serves.
fn a_change_is_applied(figure: &Figure) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(15);
    let web2 = figure.host("web2");
    figure.phalanx(
        "address add 198.51.100.10:81 --balancer front --cluster web --port 8081 --internal web2=10.9.0.112",
    )?;
    eventually(LIMIT, "another address of the node whose share hangs", || {
        web2.text("ip -4 -o address show dev eth0 | grep -q ' 10.9.0.112/24 '")?;
        let ask = "curl -sS -m 5 -o /dev/null -w '%{http_code}' http://10.9.0.112:8081/.well-known/phalanx/health";
        let status = figure.host("lb").text(ask)?;
        ensure!(status == "503", "its proxy says {status}");
        Ok(())
    })?;
    figure.phalanx("address remove 198.51.100.10:81")?;
    eventually(LIMIT, "the end of that address", || {
        web2.text("! ip -4 -o address show dev eth0 | grep -q ' 10.9.0.112/24 ' && ! grep -q 10.9.0.112 /var/lib/phalanx/live/proxy.json")
    })
    .map(drop)
}

#[test]
fn share_absent() -> Result<()> {
    // Its source is gone for good, and somebody takes away what is left of the mount: nothing can be put there.
    scenario(|figure| {
        loses(
            figure,
            |host| {
                host.lose_storage()?;
                host.text(&format!("umount --lazy {SHARE}")).map(drop)
            },
            cannot_write_beneath,
            |host| host.return_storage(),
            &["the share is not mounted at /srv/phalanx/content"],
        )
    })
}

#[test]
fn share_server_gone() -> Result<()> {
    scenario(|figure| {
        loses(
            figure,
            |host| host.lose_storage(),
            |_| Ok(()),
            |host| host.return_storage(),
            &["the share's marker file can't be read", "the share is not mounted at /srv/phalanx/content"],
        )
    })
}

#[test]
fn share_replaced_by_another() -> Result<()> {
    scenario(|figure| {
        loses(
            figure,
            // Another disk at the place that is mounted: the agent follows the place, the guard sees the marker.
            |host| {
                host.text(&format!(
                "mount -t tmpfs another /srv/nas/web && mkdir /srv/nas/web/home && \
                 echo 00000000000000000000000000000000 > /srv/nas/web/.phalanx-share && mount --bind /srv/nas/web {SHARE}"
            ))
            .map(drop)
            },
            |figure| {
                // The probe writes nothing into a share that is not its own.
                let found = figure.host("web2").text("ls -A /srv/nas/web /srv/nas/web/home")?;
                let expected = "/srv/nas/web:\n.phalanx-share\nhome\n\n/srv/nas/web/home:";
                ensure!(found == expected, "somebody wrote into another's share: {found:?}");
                Ok(())
            },
            |host| host.text("umount /srv/nas/web || umount --lazy /srv/nas/web").map(drop),
            &["another share is mounted there"],
        )
    })
}

#[test]
fn share_hangs() -> Result<()> {
    scenario(|figure| {
        loses(
            figure,
            |host| host.hang_storage(),
            |figure| {
                // The agent is not hung: what it is told now, it does on its host.
                a_change_is_applied(figure)
            },
            |host| host.release_storage(),
            &["has not answered for", "hung"],
        )
    })
}
