//! Checking nodes and reading their load scores, each address by a task of its own. A web node is asked for its health page, a mail node
//! through its protocol ([`mail_check`]); where people log in, also by a login with the probe mailbox, now and then.
//!
//! Checks of one node start at a steady pace whether or not the one before has its answer; each is bounded in time and bytes, so
//! their number is too. A node's score that can't be read is not an error.

use super::mail_check;
use phalanx_model::mail::MailProtocol;
use phalanx_plan::balance::CheckResult;
use phalanx_plan::balance::health::next_check_in_ms;
use phalanx_plan::balance::load::parse_agent_check;
use phalanx_plan::mail::probe::Probe;
use phalanx_plan::proxy_config::{CheckSettings, HEALTH_PATH};
use phalanx_plan::spec::CheckKind;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// How often a load score is read.
const SCORE_EVERY_MS: u64 = 1_000;
/// The longest answer that is read of a health page or a score.
const ANSWER_BYTES_MAX: usize = 2_048;

/// What a task found.
#[derive(Debug)]
pub enum Outcome {
    /// A node's health.
    Checked(SocketAddrV4, CheckResult),
    /// What came of a login with the probe mailbox.
    LoggedIn(SocketAddrV4, CheckResult),
    /// A node's load score in percent.
    Scored(SocketAddrV4, u8),
}

/// The tasks, one per address.
#[derive(Debug)]
pub struct Checks {
    results: mpsc::Sender<Outcome>,
    settings: CheckSettings,
    health: BTreeMap<(SocketAddrV4, CheckKind), AbortHandle>,
    logins: BTreeMap<(SocketAddrV4, MailProtocol, Arc<Probe>), AbortHandle>,
    scores: BTreeMap<SocketAddrV4, AbortHandle>,
}

impl Checks {
    /// No task yet; results will go to `results`.
    pub fn new(results: mpsc::Sender<Outcome>) -> Self {
        let settings = CheckSettings::default();
        Self { results, settings, health: BTreeMap::new(), logins: BTreeMap::new(), scores: BTreeMap::new() }
    }

    /// Starts tasks for new addresses and ends those of gone ones; changed settings start all anew.
    pub fn follow(
        &mut self,
        settings: &CheckSettings,
        targets: impl Iterator<Item = (SocketAddrV4, CheckKind)>,
        logins: impl Iterator<Item = (SocketAddrV4, MailProtocol, Probe)>,
        scores: impl Iterator<Item = SocketAddrV4>,
    ) {
        if self.settings != *settings {
            self.end_all();
            self.settings = *settings;
        }
        let (targets, scores): (Vec<_>, Vec<_>) = (targets.collect(), scores.collect());
        let logins: Vec<_> = logins.map(|(target, protocol, probe)| (target, protocol, Arc::new(probe))).collect();
        keep_only(&mut self.health, &targets);
        keep_only(&mut self.logins, &logins);
        keep_only(&mut self.scores, &scores);
        for (target, kind) in targets {
            let task = || tokio::spawn(check_forever(target, kind, *settings, self.results.clone())).abort_handle();
            self.health.entry((target, kind)).or_insert_with(task);
        }
        for login in logins {
            let task = || tokio::spawn(log_in_forever(login.clone(), *settings, self.results.clone())).abort_handle();
            self.logins.entry(login.clone()).or_insert_with(task);
        }
        for score in scores {
            let task = || tokio::spawn(score_forever(score, *settings, self.results.clone())).abort_handle();
            self.scores.entry(score).or_insert_with(task);
        }
    }

    fn end_all(&mut self) {
        keep_only(&mut self.health, &[]);
        keep_only(&mut self.logins, &[]);
        keep_only(&mut self.scores, &[]);
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.end_all();
    }
}

fn keep_only<K: Ord>(tasks: &mut BTreeMap<K, AbortHandle>, wanted: &[K]) {
    tasks.retain(|key, task| {
        let keeps = wanted.contains(key);
        if !keeps {
            task.abort();
        }
        keeps
    });
}

async fn check_forever(target: SocketAddrV4, kind: CheckKind, settings: CheckSettings, results: mpsc::Sender<Outcome>) {
    let limit = Duration::from_millis(settings.timeout_ms);
    let mut under_way = JoinSet::new();
    loop {
        under_way.spawn(check(target, kind, limit));
        let mut pause = std::pin::pin!(sleep(Duration::from_millis(next_check_in_ms(settings.interval_ms, random()))));
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(ended) = under_way.join_next() => {
                    let Ok(result) = ended else { continue };
                    if results.send(Outcome::Checked(target, result)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Logs in one time after the other, more often while it fails. The first time is some time after the start, so that the logins of many addresses
/// spread.
async fn log_in_forever(
    (target, protocol, probe): (SocketAddrV4, MailProtocol, Arc<Probe>),
    settings: CheckSettings,
    results: mpsc::Sender<Outcome>,
) {
    let limit = Duration::from_millis(settings.login_timeout_ms);
    let mut pause_ms = settings.login_again_ms;
    loop {
        sleep(Duration::from_millis(next_check_in_ms(pause_ms, random()))).await;
        let Some(result) = mail_check::log_in(target, protocol, &probe, limit).await else { return };
        let passed = result == CheckResult::Passed;
        pause_ms = if passed { settings.login_interval_ms } else { settings.login_again_ms };
        if results.send(Outcome::LoggedIn(target, result)).await.is_err() {
            return;
        }
    }
}

async fn score_forever(address: SocketAddrV4, settings: CheckSettings, results: mpsc::Sender<Outcome>) {
    let limit = Duration::from_millis(settings.score_timeout_ms);
    loop {
        match timeout(limit, read_score(address)).await {
            Ok(Ok(Some(percent))) => {
                if results.send(Outcome::Scored(address, percent)).await.is_err() {
                    return;
                }
            }
            Ok(Ok(None)) => tracing::debug!("{address} serves no score that can be read"),
            Ok(Err(error)) => tracing::debug!("{address} serves no score: {error}"),
            Err(_) => tracing::debug!("{address} serves no score within {} ms", settings.score_timeout_ms),
        }
        sleep(Duration::from_millis(next_check_in_ms(SCORE_EVERY_MS, random()))).await;
    }
}

/// 16 bits that differ between balancers and between calls; nothing secret depends on them.
fn random() -> u16 {
    RandomState::new().hash_one(0u8) as u16
}

/// Asks a node how it is.
pub async fn check(target: SocketAddrV4, kind: CheckKind, limit: Duration) -> CheckResult {
    match kind {
        CheckKind::Http => check_page(target, limit).await,
        CheckKind::Mail(protocol) => mail_check::check(target, protocol, limit).await,
    }
}

async fn check_page(target: SocketAddrV4, limit: Duration) -> CheckResult {
    match timeout(limit, ask(target)).await {
        Ok(Ok(answer)) => judge(&answer),
        Ok(Err(error)) => CheckResult::Unreachable(error.to_string()),
        Err(_) => CheckResult::Unreachable(format!("no answer within {} ms", limit.as_millis())),
    }
}

async fn ask(target: SocketAddrV4) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!(
        "GET {HEALTH_PATH} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: phalanx-balancer\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    read_to_end(&mut stream).await
}

async fn read_score(address: SocketAddrV4) -> io::Result<Option<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let line = read_to_end(&mut stream).await?;
    Ok(parse_agent_check(&String::from_utf8_lossy(&line)))
}

async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// 200 is health; any other answer is a refusal whose body's first line says why.
fn judge(answer: &[u8]) -> CheckResult {
    let text = String::from_utf8_lossy(answer);
    let status =
        text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 ")).and_then(|rest| rest.get(..3));
    match status {
        Some("200") => CheckResult::Passed,
        Some(status) if status.bytes().all(|b| b.is_ascii_digit()) => {
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let why: String = body.lines().next().unwrap_or("").chars().filter(|c| !c.is_control()).take(200).collect();
            CheckResult::Refused(if why.is_empty() { format!("its health page says {status}") } else { why })
        }
        _ if answer.is_empty() => CheckResult::Unreachable("it closed the connection without an answer".to_owned()),
        _ => CheckResult::Unreachable("it answered something that is not HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn answers_are_judged() {
        assert_eq!(judge(b"HTTP/1.1 200 OK\r\n\r\nok\n"), CheckResult::Passed);
        assert_eq!(
            judge(b"HTTP/1.1 503 Service Unavailable\r\n\r\nthe share web hangs\nmore"),
            CheckResult::Refused("the share web hangs".into())
        );
        assert_eq!(judge(b"HTTP/1.1 404 Not Found\r\n\r\n"), CheckResult::Refused("its health page says 404".into()));
        assert!(matches!(judge(b""), CheckResult::Unreachable(_)));
        assert!(matches!(judge(b"SSH-2.0\r\n"), CheckResult::Unreachable(_)));
    }

    #[tokio::test]
    async fn a_node_that_accepts_and_says_nothing_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let std::net::SocketAddr::V4(target) = listener.local_addr().expect("its address") else { panic!("IPv4") };
        let result = check(target, CheckKind::Http, Duration::from_millis(50)).await;
        assert_eq!(result, CheckResult::Unreachable("no answer within 50 ms".into()));
        drop(listener);
        assert!(matches!(check(target, CheckKind::Http, Duration::from_secs(1)).await, CheckResult::Unreachable(_)));
    }
}
