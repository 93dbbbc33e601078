//! The router of a web node: CPU time that one request costs in phalanx-proxy, and in nginx and HAProxy in its place.
//!
//! All forward to the same account's httpd over kept connections, set X-Forwarded-For, have two workers (as the machine has two cores), and run
//! as the user that may connect to accounts. phalanx-proxy also finds the account in the directory; phalanx-proxy and nginx write an access
//! log, HAProxy does not. The time is that of the proxy's processes alone, so that neither client nor httpd count.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::probe::{self, Cost};
use super::report::{Figures, Report, quantile};
use super::wrk::{Outcome, Wrk};
use super::{Scale, say, tenants};
use crate::figure::Figure;
use crate::{Host, eventually};

const SITE: &str = "s0.example.org";
const CONNECTIONS: u32 = 16;
const NGINX_PORT: u16 = 8081;
const HAPROXY_PORT: u16 = 8082;
const OURS: &str = "phalanx-proxy";
const CPU: &str = "CPU per request";
/// The part of the better peer's CPU time that is aimed at (DESIGN: small requests over kept connections).
const GOAL: f64 = 0.6;

/// One of those that are compared.
struct Router {
    subject: &'static str,
    port: u16,
    /// Shell that lists its processes.
    processes: &'static str,
}

const ROUTERS: [Router; 3] = [
    Router {
        subject: OURS,
        port: 80,
        processes: "systemctl show --property MainPID --value phalanx-proxy | grep -vx 0",
    },
    Router { subject: "nginx", port: NGINX_PORT, processes: "pgrep -x nginx" },
    Router { subject: "HAProxy", port: HAPROXY_PORT, processes: "pgrep -x haproxy" },
];

/// What one router did in one run.
#[derive(Debug, Default, Clone)]
struct Runs {
    cpu_us: Vec<f64>,
    rate: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    failed: f64,
}

/// Measures.
pub fn measure(figure: &Figure, scale: Scale, report: &mut Report) -> Result<()> {
    say("router: one account; nginx and HAProxy beside phalanx-proxy");
    tenants::accounts(figure, 0..1)?;
    tenants::publish(figure, 0..1, tenants::STATIC)?;
    tenants::publish(figure, 0..1, ("large.bin", &"x".repeat(64 << 10)))?;
    figure.phalanx("account change a0 --cpu-percent 200 --processes 512")?;
    tenants::answers(figure, "web1", SITE, "")?;
    let (web1, client, address) = (figure.host("web1"), figure.host("client"), figure.address("web1")?);
    let httpd = web1.text("ss -Hltn 'sport = :808' | awk '{print $4}'")?;
    ensure!(httpd.lines().count() == 1, "one account's httpd is awake: {httpd:?}");
    web1.write_file("/run/bench-nginx.conf", nginx(&address, &httpd).as_bytes())?;
    web1.write_file("/run/bench-haproxy.cfg", haproxy(&address, &httpd).as_bytes())?;
    let _nginx = web1.spawn("exec nginx -c /run/bench-nginx.conf")?;
    let _haproxy = web1.spawn("exec haproxy -db -f /run/bench-haproxy.cfg")?;
    for Router { subject, port, .. } in &ROUTERS {
        eventually(Duration::from_secs(20), &format!("an answer of {subject}"), || {
            let line =
                format!("curl -sS -m 5 -o /dev/null -w '%{{http_code}}' -H 'Host: {SITE}' http://{address}:{port}/");
            let status = client.text(&line)?;
            ensure!(status == "200", "{status}");
            Ok(())
        })?;
    }
    for (case, path) in [("512 bytes, kept connections", "/"), ("64 KiB, kept connections", "/large.bin")] {
        say(&format!("router: {case}"));
        let mut runs = vec![Runs::default(); ROUTERS.len()];
        for _ in 0..scale.rounds() {
            for (router, runs) in ROUTERS.iter().zip(&mut runs) {
                let target = &format!("{address}:{}", router.port);
                let seconds = scale.pick(5, 1);
                let wrk = Wrk { target, host_name: SITE, path, connections: CONNECTIONS, close: false, seconds };
                let (outcome, cpu_s) = with_cost(&web1, router.processes, || wrk.run(&client))?;
                runs.cpu_us.push(cpu_s / outcome.requests * 1e6);
                runs.rate.push(outcome.requests_per_s);
                runs.p50_ms.push(outcome.p50_ms);
                runs.p99_ms.push(outcome.p99_ms);
                runs.failed += outcome.failed;
            }
        }
        note(report, case, &runs)?;
    }
    for Router { subject, processes, .. } in &ROUTERS {
        let cost = probe::cost(&web1, processes)?;
        report.row("after all runs", subject, ("memory, PSS", "MiB"), Figures::one(cost.pss_mib));
    }
    report.compare_to("after all runs", "memory, PSS", "nginx");
    Ok(())
}

/// Does something and returns the CPU time that these processes took meanwhile.
fn with_cost(host: &Host<'_>, processes: &str, act: impl FnOnce() -> Result<Outcome>) -> Result<(Outcome, f64)> {
    let Cost { cpu_s: before, .. } = probe::cost(host, processes)?;
    let outcome = act()?;
    let Cost { cpu_s: after, .. } = probe::cost(host, processes)?;
    Ok((outcome, after - before))
}

/// Rows for all routers, each compared to the better of the others.
fn note(report: &mut Report, case: &str, runs: &[Runs]) -> Result<()> {
    let mut peers = Vec::new();
    let mut ours = None;
    for (Router { subject, .. }, Runs { cpu_us, rate, p50_ms, p99_ms, failed }) in ROUTERS.iter().zip(runs) {
        let cpu = quantile(cpu_us, 50)?;
        if *subject == OURS {
            ours = Some(cpu);
        } else {
            peers.push((cpu, *subject));
        }
        report.row(case, subject, (CPU, "µs"), Figures::of(cpu_us)?);
        report.row(case, subject, ("rate", "req/s"), Figures::of(rate)?);
        report.row(case, subject, ("p50", "ms"), Figures::of(p50_ms)?);
        report.row(case, subject, ("p99", "ms"), Figures::of(p99_ms)?);
        report.row(case, subject, ("failed", "requests"), Figures::one(*failed));
    }
    let better = peers.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
    let ((better_cpu, better), ours) = better.zip(ours).context("ours and others were measured")?;
    for metric in [CPU, "rate", "p50", "p99"] {
        report.compare_to(case, metric, better);
    }
    if case.starts_with("512 bytes") {
        report.goal("CPU per small request, as a ratio to the better of nginx and HAProxy", GOAL, ours / better_cpu);
    }
    Ok(())
}

fn nginx(address: &str, httpd: &str) -> String {
    format!(
        "user phalanx-proxy;
worker_processes 2;
daemon off;
pid /run/bench-nginx.pid;
error_log /run/bench-nginx.error warn;
events {{ worker_connections 4096; }}
http {{
    access_log /run/bench-nginx.log combined buffer=64k flush=1s;
    keepalive_requests 1000000000;
    upstream account {{ server {httpd}; keepalive 64; }}
    server {{
        listen {address}:{NGINX_PORT};
        location / {{
            proxy_pass http://account;
            proxy_http_version 1.1;
            proxy_set_header Connection '';
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"
    )
}

fn haproxy(address: &str, httpd: &str) -> String {
    format!(
        "global
    user phalanx-proxy
    nbthread 2
    maxconn 4000
defaults
    mode http
    option forwardfor
    retry-on all-retryable-errors
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen router
    bind {address}:{HAPROXY_PORT}
    server account {httpd}
"
    )
}
