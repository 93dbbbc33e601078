//! A slave joins and leaves under load, and no request fails, nor does a download that takes longer than the leave was asked before.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use phalanx_lab::figure::{EXTERNAL, Figure, WHO, WHO_PAGE};
use phalanx_lab::load::clock_ms;
use phalanx_lab::{Background, eventually};

/// How long the download takes. The leave has to wait for it.
const DOWNLOAD_S: u32 = 20;
/// Its lines, one a second, larger than what a server keeps back.
const LINE_BYTES: usize = 16 << 10;
/// Connections to try until one goes to the new slave; a third of them do.
const TRIES_MAX: u32 = 40;
/// The most seconds that the load goes on, if nothing stops it.
const LOAD_S: u32 = 300;

/// A page whose first line is the node's name, and whose last comes [`DOWNLOAD_S`] later.
pub fn slow_page() -> String {
    let letters = LINE_BYTES - 1;
    format!(
        "<?php while (ob_get_level()) ob_end_flush(); echo gethostname(), \"\\n\"; for ($i = 0; $i < {DOWNLOAD_S}; $i++) {{ \
         echo str_repeat('x', {letters}), \"\\n\"; flush(); sleep(1); }} echo \"whole\\n\";"
    )
}

/// Begins the download of [`slow_page`] over a new connection that the balancer gave to `node`.
pub fn download_from(figure: &Figure, node: &str) -> Result<Background> {
    let client = figure.host("client");
    for _ in 0..TRIES_MAX {
        let line = format!("exec curl -sS -N -m 90 -H 'Host: {WHO}' http://{EXTERNAL}/slow.php");
        let mut download = client.spawn(&line)?;
        let from = eventually(Duration::from_secs(10), "the beginning of a slow download", || {
            ensure!(download.is_running()?, "it ended: {}", download.stderr());
            match download.stdout().split_once('\n') {
                Some((node, _)) => Ok(node.to_owned()),
                None => bail!("nothing has come"),
            }
        })?;
        if from == node {
            return Ok(download);
        }
        // Its curl ends by itself when nobody reads it any more.
    }
    bail!("none of {TRIES_MAX} connections went to {node}")
}

/// A download that has ended has all lines of [`slow_page`].
pub fn is_whole(download: Background) -> Result<()> {
    let got = download.wait(Duration::from_secs(5))?.text()?;
    let lines: Vec<_> = got.lines().collect();
    ensure!(
        lines.len() == DOWNLOAD_S as usize + 2 && got.len() > DOWNLOAD_S as usize * LINE_BYTES,
        "{} lines, {} bytes came",
        lines.len(),
        got.len()
    );
    ensure!(lines.last() == Some(&"whole"), "the download was cut short");
    Ok(())
}

#[test]
fn join_and_leave() -> Result<()> {
    Figure::scenario(|figure| {
        figure.who(&[("slow.php", &slow_page())])?;
        let client = figure.host("client");
        let mut load = figure.load(WHO, WHO_PAGE, LOAD_S);
        load.rate = 50;
        let running = load.start(&client)?;

        figure.phalanx("server add web3 --kind web --address 10.9.0.13/24")?;
        figure.phalanx("cluster add-slave web web3")?;
        figure.join("web3", "web1")?;
        figure.settled(&["web1", "web2", "web3"])?;
        figure.serves_through("web3", Duration::from_secs(20))?;

        let mut download = download_from(figure, "web3")?;
        let asked_ms = clock_ms();
        figure.phalanx("cluster remove-slave web web3 --deadline 60s")?;
        eventually(Duration::from_secs(60), "the slave's leave", || {
            let shown = figure.json("cluster show web")?;
            ensure!(shown["slaves"].get("web3").is_none(), "{shown}");
            Ok(())
        })?;
        ensure!(!download.is_running()?, "the slave has left before its last flow ended");
        is_whole(download)?;
        // What it was is taken back: it mounts nothing and serves nothing.
        eventually(Duration::from_secs(20), "an idle web3", || {
            let idle = "! systemctl is-active --quiet phalanx-proxy && ! grep -q ' /srv/phalanx/content ' /proc/self/mountinfo";
            figure.host("web3").text(idle)
        })?;
        let left_ms = clock_ms();
        std::thread::sleep(Duration::from_secs(2));

        // Fails where the load had ended before.
        let records = running.stop(&client)?;
        let bad: Vec<_> = records.iter().filter(|record| !record.ok()).collect();
        ensure!(bad.is_empty(), "{} of {} requests failed, the first: {:?}", bad.len(), records.len(), bad.first());
        let last = records.iter().map(|record| record.clock_ms).max().unwrap_or(0);
        ensure!(last > left_ms, "the load ended {} ms before the slave had left", left_ms - last);
        let on_web3 = || records.iter().filter(|record| record.text == "web3");
        let (served, drained) = (on_web3().count(), on_web3().filter(|r| r.clock_ms > asked_ms + 3_000).count());
        ensure!(served > 20, "web3 took its part: {served} of {} requests", records.len());
        ensure!(drained == 0, "{drained} new connections went to web3 later than 3 s after it was to leave");
        println!(
            "{} requests, none failed; web3 had {served} of them; it left after {} ms",
            records.len(),
            left_ms - asked_ms
        );
        Ok(())
    })
}
