//! This node's load and report: pressure sampled each second, the score served to balancers, the report kept up to date.

use crate::check::guard_refusal;
use crate::node::Node;
use crate::reconcile::Standing;
use phalanx_host::{atomic, facts, pressure};
use phalanx_plan::report::{BackendReport, Load, NodeEvent, Report, Severity};
use phalanx_plan::score::{Score, Stalls};
use phalanx_plan::spec::{Work, port};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::watch;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Rates are counted over so many samples.
const RATE_SAMPLES: usize = 2;
/// A daemon whose statistics are older says nothing.
const STATUS_AGE_MAX: Duration = Duration::from_secs(5);
/// Versions of packages are asked for again after so many samples.
const VERSIONS_EVERY: u64 = 300;
const PROXY_STATUS: &str = "/run/phalanx/proxy/status.json";
const ROUTER_STATUS: &str = "/run/phalanx/mail-router/status.json";

/// What phalanx-proxy tells; a node's and a balancer's differ.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProxyStatus {
    requests_total: u64,
    errors_total: u64,
    connections: u32,
    backends: Vec<BackendReport>,
    /// Tells one run of the balancer from another.
    started_unix_ms: u64,
    events: Vec<NodeEvent>,
    problems: Vec<String>,
    /// A node's proxy: whether it would answer its health page with 200.
    in_service: bool,
    /// Why not.
    why: String,
    /// Addresses that it can't listen on.
    unbound: Vec<SocketAddrV4>,
    access_log_lines_lost: u64,
}

impl ProxyStatus {
    /// What a node's proxy can't do, in words for a person.
    fn shortcomings(&self) -> Vec<String> {
        let unbound = self.unbound.iter().map(|at| unbound("phalanx-proxy", *at));
        let lost = (self.access_log_lines_lost > 0).then(|| {
            let lines = self.access_log_lines_lost;
            format!("{lines} lines of the access log were lost since phalanx-proxy started: is /var/log/phalanx writable and fast?")
        });
        unbound.chain(lost).collect()
    }
}

/// What the way to the mailboxes tells on a mail node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RouterStatus {
    /// Why its configuration is not in use; empty when it is.
    problem: String,
    /// Addresses that it can't listen on.
    unbound: Vec<SocketAddrV4>,
}

impl RouterStatus {
    /// What it can't do, in words for a person.
    fn shortcomings(self) -> Vec<String> {
        let problem = (!self.problem.is_empty()).then_some(self.problem);
        problem.into_iter().chain(self.unbound.iter().map(|at| unbound("phalanx-mail-router", *at))).collect()
    }
}

fn unbound(daemon: &str, at: SocketAddrV4) -> String {
    let port = at.port();
    format!("{daemon} can't listen on {at}: is another server on this port? (ss -ltnp 'sport = :{port}')")
}

/// Samples and reports until the process ends.
pub async fn run(node: Arc<Node>, standing: watch::Receiver<Standing>, score_percent: Arc<AtomicU8>) {
    let mut reporter =
        Reporter { node, standing, score: Score::default(), rate: Vec::new(), versions: BTreeMap::new() };
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut was_in_service = None;
    for tick in 0_u64.. {
        ticks.tick().await;
        if tick % VERSIONS_EVERY == 0 {
            reporter.read_versions().await;
        }
        let report = reporter.report();
        score_percent.store(report.load.score_percent, Ordering::Relaxed);
        reporter.tell_service(&mut was_in_service, &report);
        reporter.node.report.send_if_modified(|last| {
            let is_news = !is_same_but_load(last, &report);
            *last = report;
            is_news
        });
    }
}

/// Load alone is no news: it travels with the next report.
fn is_same_but_load(a: &Report, b: &Report) -> bool {
    let states = |r: &Report| r.backends.iter().map(|b| (b.service, b.server.clone(), b.state)).collect::<Vec<_>>();
    (a.spec, a.directory, a.generation, a.converged, a.in_service, &a.problems, &a.php, &a.released)
        == (b.spec, b.directory, b.generation, b.converged, b.in_service, &b.problems, &b.php, &b.released)
        && states(a) == states(b)
}

struct Reporter {
    node: Arc<Node>,
    standing: watch::Receiver<Standing>,
    score: Score,
    /// Time in milliseconds and requests in all, the latest last.
    rate: Vec<(u64, u64)>,
    versions: BTreeMap<String, String>,
}

impl Reporter {
    fn report(&mut self) -> Report {
        let standing = self.standing.borrow().clone();
        let status = read_status::<ProxyStatus>(PROXY_STATUS);
        let (in_service, mut problems) = self.service(status.as_ref());
        let mut status = status.unwrap_or_default();
        problems.append(&mut status.shortcomings());
        self.node.events.take_over(status.started_unix_ms, std::mem::take(&mut status.events));
        problems.append(&mut status.problems);
        problems.extend(standing.problems.iter().cloned());
        problems.extend(self.node.directory.problems());
        let work = self.node.spec().map(|spec| spec.work);
        if matches!(work, Some(Work::Web(_) | Work::Mail(Some(_)))) {
            problems.extend(crate::logs::problems());
        }
        if matches!(work, Some(Work::Mail(Some(_)))) {
            // One that says nothing does not run, which is seen elsewhere.
            let router = read_status::<RouterStatus>(ROUTER_STATUS).unwrap_or_default();
            problems.append(&mut router.shortcomings());
        }
        problems.dedup();
        problems.truncate(20);
        let mut load = self.load(&status);
        load.accounts_awake = standing.accounts_awake;
        let spec = self.node.adopted.borrow().position;
        Report {
            boot_id: facts::boot_id().unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            spec,
            directory: *self.node.directory.head.borrow(),
            generation: standing.generation,
            // What was seen under an earlier spec says nothing of this one.
            converged: standing.converged && standing.spec == spec,
            problems,
            in_service,
            load,
            backends: status.backends,
            versions: self.versions.clone(),
            released: standing.released,
            queues: self.node.queues.borrow().clone(),
            php: facts::php_versions()
                .inspect_err(|error| tracing::warn!(%error, "versions of PHP can't be told"))
                .ok(),
        }
    }

    /// Whether the node offers itself to balancers, and why not.
    fn service(&self, status: Option<&ProxyStatus>) -> (bool, Vec<String>) {
        match self.node.spec().map(|spec| spec.work) {
            Some(Work::Web(web)) => match &web.share {
                Some(mount) => match guard_refusal(&mount.share) {
                    Some(why) => (false, vec![format!("out of service: share {}: {why}", mount.share)]),
                    None => proxy_serves(status),
                },
                None => (false, vec!["out of service: the cluster has no share".to_owned()]),
            },
            Some(Work::Balancer(_)) => (status.is_some(), vec![]),
            Some(Work::Nas(_) | Work::Mail(_)) => (self.standing.borrow().converged, vec![]),
            None => (false, vec![]),
        }
    }

    fn load(&mut self, status: &ProxyStatus) -> Load {
        let now_ms = facts::boottime_ms();
        let [cpu, memory, io] = ["cpu", "memory", "io"].map(|resource| pressure::read(resource).unwrap_or_default());
        let stalls = Stalls {
            cpu_some_us: cpu.some_total_us,
            memory_full_us: memory.full_total_us,
            io_full_us: io.full_total_us,
        };
        let score_percent = self.score.sample(now_ms, stalls);
        self.rate.push((now_ms, status.requests_total));
        if self.rate.len() > RATE_SAMPLES + 1 {
            self.rate.remove(0);
        }
        let (since_ms, before) = self.rate[0];
        let passed_s = now_ms.saturating_sub(since_ms) as f32 / 1_000.0;
        let requests = status.requests_total.saturating_sub(before) as f32;
        Load {
            score_percent,
            cpu_pressure_percent: cpu.avg10_percent,
            memory_pressure_percent: memory.avg10_percent,
            io_pressure_percent: io.avg10_percent,
            requests_total: status.requests_total,
            requests_per_second: if passed_s > 0.0 { requests / passed_s } else { 0.0 },
            errors_total: status.errors_total,
            accounts_awake: 0,
            connections: status.connections,
        }
    }

    async fn read_versions(&mut self) {
        match facts::versions().await {
            Ok(versions) => self.versions = versions,
            Err(error) => tracing::warn!(%error, "versions of packages can't be told"),
        }
    }

    /// Tells when the node leaves service and when it is back.
    fn tell_service(&self, was: &mut Option<bool>, report: &Report) {
        let events = &self.node.events;
        match was.replace(report.in_service) {
            Some(true) if !report.in_service => {
                events.add(Severity::Warning, "guard", "the node has left service", report.problems.join("\n"));
            }
            Some(false) if report.in_service => events.add(Severity::Info, "guard", "the node is in service", ""),
            _ => {}
        }
    }
}

fn proxy_serves(status: Option<&ProxyStatus>) -> (bool, Vec<String>) {
    match status {
        None => {
            (false, vec!["out of service: phalanx-proxy says nothing; see `journalctl -u phalanx-proxy`".to_owned()])
        }
        Some(status) if !status.in_service => (false, vec![format!("out of service: {}", status.why)]),
        Some(_) => (true, vec![]),
    }
}

fn read_status<S: DeserializeOwned>(path: &str) -> Option<S> {
    let path = Path::new(path);
    let age = std::fs::metadata(path).ok()?.modified().ok()?.elapsed().unwrap_or(Duration::ZERO);
    let bytes = atomic::read(path).ok().flatten().filter(|_| age <= STATUS_AGE_MAX)?;
    serde_json::from_slice(&bytes).ok()
}

/// Serves the score as HAProxy's agent-check line, on the node's main address.
pub async fn serve_score(node: Arc<Node>, score_percent: Arc<AtomicU8>) {
    let mut adopted = node.adopted.subscribe();
    loop {
        adopted.mark_unchanged();
        let Some(address) = node.spec().map(|spec| spec.address.ip) else {
            if adopted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let listener = match TcpListener::bind((address, port::SCORE)).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%address, %error, "the load score can't be served");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        tokio::select! {
            () = answer(&listener, &score_percent) => {}
            () = until_moved(&node, &mut adopted, address) => {}
        }
    }
}

async fn answer(listener: &TcpListener, score_percent: &AtomicU8) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let line = format!("up {}%\n", score_percent.load(Ordering::Relaxed));
                let send = async {
                    stream.write_all(line.as_bytes()).await?;
                    stream.shutdown().await
                };
                if !matches!(tokio::time::timeout(ANSWER_LIMIT, send).await, Ok(Ok(()))) {
                    tracing::debug!("a balancer did not take the load score");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn until_moved(node: &Node, adopted: &mut watch::Receiver<crate::node::Adopted>, address: std::net::Ipv4Addr) {
    while adopted.changed().await.is_ok() {
        if node.spec().map(|spec| spec.address.ip) != Some(address) {
            return;
        }
    }
}
