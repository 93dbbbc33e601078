//! The share is absent, replaced by another, or hangs: the node leaves service in time, nothing is written beneath the mount point, and
//! it returns by itself.

use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::{EXTERNAL, Figure};
use phalanx_lab::load::Load;
use phalanx_lab::{Host, eventually};
use std::time::{Duration, Instant};

/// The longest time from the loss until no request fails any more, in milliseconds: the guard waits two seconds for an answer.
const NOTICE_MS: u64 = 5_000;
const LOAD_S: u64 = 14;

const MOUNT: &str = "/srv/phalanx/content";

fn up() -> Result<Figure> {
    let figure = Figure::up()?;
    figure.site(
        "who",
        "who.example.org",
        &[("who.php", "<?php echo gethostname();"), ("page.html", "from the share")],
    )?;
    for node in ["web1", "web2"] {
        eventually(Duration::from_secs(5), "an answer from each node", || {
            let answer = figure.get_from(node, "who.example.org", "/who.php")?;
            ensure!(answer.body == node, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(figure)
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
    let daemons = "systemctl show -p InvocationID --value phalanx-agent phalanx-guard phalanx-proxy phalanx-launcher";
    let before = web2.text(daemons)?;
    let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, "who.example.org", "/page.html", LOAD_S as u32);
    // Requests on the node that lost its share end by their own patience; they must not delay those that follow.
    (load.rate, load.threads, load.patience_ms) = (50, 64, 2_000);
    let begin = Instant::now();
    let load = load.start(&figure.host("client"))?;
    std::thread::sleep(Duration::from_secs(3));
    let lost_ms = begin.elapsed().as_millis() as u64;
    lose(&web2)?;

    eventually(Duration::from_secs(10), "web2's leave in `phalanx server show`", || {
        let shown = figure.json("server show web2")?;
        let report = &shown["state"]["report"];
        ensure!(report["in_service"] == false, "{shown}");
        let problems = report["problems"].to_string();
        ensure!(why.iter().any(|part| problems.contains(part)), "{problems} says none of {why:?}");
        Ok(())
    })?;
    let told_ms = begin.elapsed().as_millis() as u64 - lost_ms;
    during(figure)?;
    // The daemons answer while the share is gone: the proxy says what is wrong, the agent and the guard go on.
    let answer = figure.get_from("web2", "who.example.org", "/.well-known/phalanx/health")?;
    ensure!(answer.status == 503, "{answer:?}");
    eventually(Duration::from_secs(5), "a fresh verdict", || {
        let verdict: serde_json::Value = serde_json::from_str(&web2.text("cat /run/phalanx/guard/content.json")?)?;
        let now_ms: f64 = web2.text("cut -d' ' -f1 /proc/uptime")?.parse()?;
        let age_ms = now_ms * 1_000.0 - verdict["at_boottime_ms"].as_f64().context("a time")?;
        ensure!(verdict["ok"] == false && age_ms < 5_000.0, "{verdict} is {age_ms} ms old");
        Ok(())
    })?;
    ensure!(web2.text(daemons)? == before, "a daemon was restarted");
    let records = load.finish()?;
    let failed: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
    let late: Vec<_> = failed.iter().filter(|record| record.at_ms > lost_ms + NOTICE_MS).collect();
    ensure!(late.is_empty(), "{} failed later than {NOTICE_MS} ms after the loss: {:?}", late.len(), late.first());
    let after = records.iter().filter(|record| record.at_ms > lost_ms + NOTICE_MS).count();
    ensure!(after > 200, "only {after} requests were made after the loss was to be noticed");
    let last = failed.iter().map(|record| record.at_ms).max().map_or(0, |at| at.saturating_sub(lost_ms));
    println!(
        "{} requests, {} failed, the last {last} ms after the loss; told after {told_ms} ms",
        records.len(),
        failed.len()
    );
    let early = failed.iter().find(|record| record.at_ms + 2_500 < lost_ms);
    ensure!(early.is_none(), "a request failed before the loss: {early:?}");

    give_back(&web2)?;
    eventually(Duration::from_secs(30), "web2's return to service", || {
        let body = figure.get("who.example.org", "/who.php")?.body;
        ensure!(body == "web2", "{body}");
        Ok(())
    })?;
    figure.settled(&["web1", "web2"])?;
    let answer = figure.get_from("web2", "who.example.org", "/page.html")?;
    ensure!(answer.body == "from the share", "{answer:?}");
    ensure!(web2.text(daemons)? == before, "a daemon was restarted");
    Ok(())
}

/// Root tries to write beneath the share, where only its mount point is.
fn cannot_write_beneath(figure: &Figure) -> Result<()> {
    let web2 = figure.host("web2");
    for line in ["touch M/x", "mkdir M/home", "sh -c 'echo x > M/.phalanx-share'"] {
        let line = line.replace('M', MOUNT);
        let output = web2.run(&line)?;
        ensure!(output.status != 0 && output.stderr.contains("Read-only file system"), "`{line}` gave {output:?}");
    }
    let found = web2.text(&format!("ls -A {MOUNT}"))?;
    ensure!(found.is_empty(), "beneath the share lies {found:?}");
    Ok(())
}

#[test]
fn share_absent() -> Result<()> {
    let figure = up()?;
    // Its source is gone for good, and somebody takes away what is left of the mount: nothing can be put there.
    loses(
        &figure,
        |host| {
            host.lose_storage()?;
            host.text(&format!("umount --lazy {MOUNT}")).map(drop)
        },
        cannot_write_beneath,
        |host| host.return_storage(),
        &["the share is not mounted at /srv/phalanx/content"],
    )
}

#[test]
fn share_server_gone() -> Result<()> {
    let figure = up()?;
    loses(
        &figure,
        |host| host.lose_storage(),
        |_| Ok(()),
        |host| host.return_storage(),
        &["the share's marker file can't be read", "the share is not mounted at /srv/phalanx/content"],
    )
}

#[test]
fn share_replaced_by_another() -> Result<()> {
    let figure = up()?;
    loses(
        &figure,
        // Another disk at the place that is mounted: the agent follows the place, the guard sees the marker.
        |host| {
            host.text(&format!(
                "mount -t tmpfs another /srv/nas/web && mkdir /srv/nas/web/home && \
                 echo 00000000000000000000000000000000 > /srv/nas/web/.phalanx-share && mount --bind /srv/nas/web {MOUNT}"
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
}

#[test]
fn share_hangs() -> Result<()> {
    let figure = up()?;
    loses(
        &figure,
        |host| host.hang_storage(),
        |figure| {
            // The agent is not hung: it takes a command, and a change of its node goes through.
            let said = figure.phalanx("cluster weight web web2 20")?;
            eventually(Duration::from_secs(10), "a new account on the node whose share hangs", || {
                figure.host("web2").text("timeout 5 ip -4 address show > /dev/null")?;
                let shown = figure.json("server show web2")?;
                ensure!(shown["state"]["connected"] == true, "{shown} after {said}");
                Ok(())
            })?;
            figure.phalanx("cluster weight web web2 10").map(drop)
        },
        |host| host.release_storage(),
        &["has not answered for", "hung"],
    )
}
