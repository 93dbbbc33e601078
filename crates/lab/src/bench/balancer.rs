//! The kernel balancer: requests a second and latency through it, straight to the node, and through HAProxy in TCP mode in its place.
//!
//! All three use the same node, account and page, and the same way through the balancer's host, which routes the straight one. The
//! other node is drained.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::report::{Figures, Report, quantile};
use super::wrk::Wrk;
use super::{Scale, say, tenants};
use crate::eventually;
use crate::figure::{EXTERNAL, Figure};
use crate::load::Load;

const SITE: &str = "s0.example.org";
const CONNECTIONS: u32 = 16;
/// Requests a second at which latency is measured: far from what any of them can do.
const LATENCY_RATE: u32 = 200;
const HAPROXY_PORT: u16 = 8088;

/// How each request gets to the node: the word for tables, and where a client connects to.
type Way = (&'static str, String);

/// Measures.
pub fn measure(figure: &Figure, scale: Scale, report: &mut Report) -> Result<()> {
    say("balancer: one account, one small page, the other node drained");
    tenants::accounts(figure, 0..1)?;
    tenants::publish(figure, 0..1, tenants::STATIC)?;
    figure.phalanx("account change a0 --cpu-percent 200 --processes 512")?;
    figure.phalanx("cluster drain web web2")?;
    let node = figure.address("web1")?;
    let lb = figure.host("lb");
    lb.write_file("/run/bench-haproxy.cfg", haproxy(&node).as_bytes())?;
    let _haproxy = lb.spawn("exec haproxy -db -f /run/bench-haproxy.cfg")?;
    let ways: [Way; 3] = [
        ("direct", format!("{node}:80")),
        ("kernel balancer", format!("{EXTERNAL}:80")),
        ("HAProxy, TCP mode", format!("{EXTERNAL}:{HAPROXY_PORT}")),
    ];
    let client = figure.host("client");
    for (subject, target) in &ways {
        eventually(Duration::from_secs(20), &format!("an answer, {subject}"), || {
            let line = format!("curl -sS -m 5 -o /dev/null -w '%{{http_code}}' -H 'Host: {SITE}' http://{target}/");
            let status = client.text(&line)?;
            ensure!(status == "200", "{status}");
            Ok(())
        })?;
    }
    let served_elsewhere =
        || figure.host("web2").text(&format!("cat /var/log/phalanx/access/*.log | grep -c ' {SITE} ' || true"));
    let before = served_elsewhere()?;
    rates(figure, scale, report, &ways)?;
    latencies(figure, scale, report, &ways)?;
    ensure!(served_elsewhere()? == before, "the drained node got requests, so that the ways differed");
    Ok(())
}

fn rates(figure: &Figure, scale: Scale, report: &mut Report, ways: &[Way]) -> Result<()> {
    let client = figure.host("client");
    for (case, close) in [("kept connections", false), ("a connection per request", true)] {
        say(&format!("balancer: requests a second, {case}"));
        let mut runs = vec![Vec::new(); ways.len()];
        for _ in 0..scale.rounds() {
            for ((_, target), runs) in ways.iter().zip(&mut runs) {
                let seconds = scale.pick(5, 1);
                let wrk = Wrk { target, host_name: SITE, path: "/", connections: CONNECTIONS, close, seconds };
                runs.push(wrk.run(&client)?.requests_per_s);
            }
        }
        for ((subject, _), runs) in ways.iter().zip(&runs) {
            report.row(case, subject, ("rate", "req/s"), Figures::of(runs)?);
        }
        report.compare_to(case, "rate", "direct");
    }
    Ok(())
}

fn latencies(figure: &Figure, scale: Scale, report: &mut Report, ways: &[Way]) -> Result<()> {
    let client = figure.host("client");
    for (kind, keep) in [("kept connections", true), ("a connection per request", false)] {
        let case = &format!("{kind}, {LATENCY_RATE} req/s");
        say(&format!("balancer: latency, {case}"));
        let mut runs = vec![(Vec::new(), Vec::new()); ways.len()];
        for _ in 0..scale.rounds() {
            for ((subject, target), (p50s, p99s)) in ways.iter().zip(&mut runs) {
                let mut load = Load::new(target.parse()?, SITE, "/", scale.pick(5, 1));
                (load.rate, load.threads, load.keep) = (LATENCY_RATE, 4, keep);
                let records = load.start(&client)?.finish()?;
                let failed = records.iter().find(|record| !record.ok());
                ensure!(failed.is_none(), "a request failed, {subject}: {failed:?}");
                let took: Vec<f64> = records.iter().map(|record| record.took_us as f64 / 1e3).collect();
                p50s.push(quantile(&took, 50)?);
                p99s.push(quantile(&took, 99)?);
            }
        }
        let direct = quantile(&runs.first().context("there are ways")?.0, 50)?;
        for ((subject, _), (p50s, p99s)) in ways.iter().zip(&runs) {
            report.row(case, subject, ("p50", "ms"), Figures::of(p50s)?);
            report.row(case, subject, ("p99", "ms"), Figures::of(p99s)?);
            let added: Vec<f64> = p50s.iter().map(|p50| p50 - direct).collect();
            if *subject != "direct" {
                report.row(case, subject, ("p50 added to direct", "ms"), Figures::of(&added)?);
            }
        }
        report.compare_to(case, "p50", "direct");
        report.compare_to(case, "p99", "direct");
    }
    Ok(())
}

fn haproxy(node: &str) -> String {
    format!(
        "global
    nbthread 2
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen web
    bind {EXTERNAL}:{HAPROXY_PORT}
    server web1 {node}:80
"
    )
}
