//! Established flows: counting them per node, so that a drain can be watched, and ending those of lost nodes.
//!
//! A flow that is ended makes the kernel treat the client's next packet as a new connection: it goes to another node, which
//! answers with a reset, and the client tries again at once instead of waiting for a dead machine.

use super::command;
use anyhow::Context as _;
use phalanx_plan::balance::FlowsToEnd;
use phalanx_plan::proxy_config::BalancerConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::watch;

/// Flows by (external address, node's address).
pub type Counts = BTreeMap<(SocketAddrV4, SocketAddrV4), u32>;

/// The newest count, made by a task of its own, since listing many flows takes a while.
///
/// Who drains a node waits for "no flows": so what was counted before the table was changed is forgotten ([`Flows::forget`]), also
/// by a count that is under way then.
#[derive(Debug)]
pub struct Flows {
    newest: watch::Sender<Newest>,
    counting: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Newest {
    /// How often counts were forgotten.
    age: u64,
    counts: Option<Arc<Counts>>,
}

impl Newest {
    /// Takes a count that was begun at this age.
    fn take(&mut self, age: u64, counts: Option<Arc<Counts>>) {
        if self.age == age {
            self.counts = counts;
        }
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self { newest: watch::Sender::new(Newest::default()), counting: Arc::default() }
    }
}

impl Flows {
    /// Starts a count, unless one is under way.
    pub fn count_soon(&self, config: &BalancerConfig) {
        if self.counting.swap(true, Ordering::AcqRel) {
            return;
        }
        let externals = config.services.iter().map(|service| service.external).collect();
        let (newest, counting) = (self.newest.clone(), self.counting.clone());
        let age = newest.borrow().age;
        tokio::spawn(async move {
            let counted = match tokio::time::timeout(command::TIMEOUT, count(externals)).await {
                Ok(Ok(counts)) => Some(Arc::new(counts)),
                Ok(Err(error)) => {
                    tracing::debug!("flows are not counted: {error:#}");
                    None
                }
                Err(_) => None,
            };
            newest.send_modify(|newest| newest.take(age, counted));
            counting.store(false, Ordering::Release);
        });
    }

    /// The newest count; none where flows can't be counted, or were not since the last was forgotten.
    pub fn counted(&self) -> Option<Arc<Counts>> {
        self.newest.borrow().counts.clone()
    }

    /// Makes every count void that has begun before.
    pub fn forget(&self) {
        self.newest.send_modify(|newest| *newest = Newest { age: newest.age + 1, counts: None });
    }
}

async fn count(externals: BTreeSet<SocketAddrV4>) -> anyhow::Result<Counts> {
    let mut child = Command::new("conntrack")
        .args(["-L", "-f", "ipv4", "-p", "tcp", "--state", "ESTABLISHED"])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("starting conntrack (is it installed?)")?;
    let output = child.stdout.take().context("conntrack's output")?;
    let mut lines = BufReader::new(output).lines();
    let mut counts = Counts::new();
    while let Some(line) = lines.next_line().await.context("reading what conntrack lists")? {
        if let Some((external, target)) = parse_flow(&line).filter(|(external, _)| externals.contains(external)) {
            *counts.entry((external, target)).or_default() += 1;
        }
    }
    let status = child.wait().await.context("waiting for conntrack")?;
    anyhow::ensure!(status.success(), "conntrack failed ({status})");
    Ok(counts)
}

/// What a client connected to and who answers it, from a line such as
/// `tcp 6 431999 ESTABLISHED src=A dst=B sport=1 dport=2 src=C dst=A sport=3 dport=1 [ASSURED] …`.
fn parse_flow(line: &str) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let values = |key: &'static str| line.split_ascii_whitespace().filter_map(move |word| word.strip_prefix(key));
    let external = SocketAddrV4::new(values("dst=").next()?.parse().ok()?, values("dport=").next()?.parse().ok()?);
    let target = SocketAddrV4::new(values("src=").nth(1)?.parse().ok()?, values("sport=").nth(1)?.parse().ok()?);
    Some((external, target))
}

/// Which flows are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// Attempts to connect that were not answered.
    Unanswered,
}

/// Ends flows of one service to one node; says how many.
///
/// # Errors
/// `conntrack` is missing, hangs or refuses.
pub async fn end(flows: FlowsToEnd, which: Which) -> anyhow::Result<u32> {
    let FlowsToEnd { external, target } = flows;
    let (to, port) = (external.ip().to_string(), external.port().to_string());
    let (from, from_port) = (target.ip().to_string(), target.port().to_string());
    let arguments = ["-D", "-f", "ipv4", "-p", "tcp", "--orig-dst", &to, "--orig-port-dst", &port];
    let arguments = [&arguments[..], &["--reply-src", &from, "--reply-port-src", &from_port]].concat();
    let state: &[&str] = match which {
        Which::All => &[],
        Which::Unanswered => &["--state", "SYN_SENT"],
    };
    let output = command::run("conntrack", &[&arguments[..], state].concat(), "").await?;
    // It fails when there was nothing to delete; its last words say how many there were.
    let words = String::from_utf8_lossy(&output.stderr);
    let number = words.split("): ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok());
    match number {
        Some(number) if words.contains("flow entries have been deleted") => Ok(number),
        _ => anyhow::bail!("conntrack failed ({}): {}", output.status, words.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_was_under_way_is_forgotten_too() {
        let flows = Flows::default();
        let take = |age| flows.newest.send_modify(|newest| newest.take(age, Some(Arc::default())));
        take(0);
        assert!(flows.counted().is_some());
        flows.forget();
        assert!(flows.counted().is_none());
        take(0);
        assert!(flows.counted().is_none(), "it was begun before");
        take(1);
        assert!(flows.counted().is_some());
    }

    #[test]
    fn a_flow_is_read_from_its_line() {
        let line = "tcp      6 431999 ESTABLISHED src=198.51.100.7 dst=192.0.2.1 sport=51824 dport=80 \
                    src=10.9.0.11 dst=198.51.100.7 sport=8080 dport=51824 [ASSURED] mark=0 use=1";
        let expected = ("192.0.2.1:80".parse().expect("an address"), "10.9.0.11:8080".parse().expect("an address"));
        assert_eq!(parse_flow(line), Some(expected));
        assert_eq!(parse_flow("conntrack v1.4.7 (conntrack-tools): 0 flow entries have been shown."), None);
    }
}
