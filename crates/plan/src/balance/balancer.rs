//! The state of one balancer: every service, every node behind it, and the choice that was made last.

use super::health::{CheckResult, Health, Verdict};
use super::load::Load;
use super::slots;
use crate::mail::probe::Probe;
use crate::proxy_config::{BalancerConfig, CheckSettings};
use crate::report::{BackendReport, BackendState};
use crate::spec::{BackendSpec, CheckKind, ServiceSpec};
use phalanx_model::Name;
use phalanx_model::mail::MailProtocol;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

/// What the kernel should do with new connections: for each external address, the targets in the order of their turns. A service
/// without a target is refused at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// External address → turns.
    pub services: BTreeMap<SocketAddrV4, Vec<SocketAddrV4>>,
    /// Internal address → the external one that its own connections to the world come from, however its health is.
    pub outgoing: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

/// A node's verdict changed, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The node.
    pub server: Name,
    /// Whether it is up now.
    pub up: bool,
    /// One sentence.
    pub text: String,
}

/// Flows that can't go on: their node has been unreachable for long. Ending them makes clients try again sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowsToEnd {
    /// What the clients connected to.
    pub external: SocketAddrV4,
    /// The node's address that they reach no more.
    pub target: SocketAddrV4,
}

/// All that a balancer knows and has decided.
#[derive(Debug, Default)]
pub struct Balancer {
    services: BTreeMap<SocketAddrV4, ServiceSpec>,
    /// What mail clusters are logged in to with.
    probes: BTreeMap<Name, Probe>,
    check: CheckSettings,
    /// By the address that is checked: one that serves several external addresses is checked once.
    targets: BTreeMap<SocketAddrV4, TargetState>,
    /// Who sends mail: internal address → the external one that the world knows it by.
    outgoing: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// By the address that serves the score.
    loads: BTreeMap<SocketAddrV4, Load>,
    /// The turns of each service as they were chosen last.
    chosen: BTreeMap<SocketAddrV4, Vec<SocketAddrV4>>,
}

/// A node that has not let the probe in yet is given so long, from the first try on.
const LOGIN_GRACE_MS: u64 = 60_000;

#[derive(Debug)]
struct TargetState {
    check: CheckKind,
    /// By its checks.
    health: Health,
    /// By logins with the probe mailbox. They are rare and need the whole of a node's daemons, so it is taken to be well until they say
    /// otherwise.
    login: Health,
    /// Whether one of them was let in, and when the first was tried.
    has_let_in: bool,
    first_login_ms: Option<u64>,
    /// When it became unreachable, until its flows have been ended.
    lost_ms: Option<u64>,
}

impl TargetState {
    fn new(check: CheckKind) -> Self {
        Self {
            check,
            health: Health::default(),
            login: Health::presumed_up(),
            has_let_in: false,
            first_login_ms: None,
            lost_ms: None,
        }
    }

    /// Forgets what logins have shown: it is tried with others from now on, or not at all.
    fn begin_logins_anew(&mut self) {
        let Self { check, health, lost_ms, .. } = std::mem::replace(self, Self::new(self.check));
        *self = Self { health, lost_ms, ..Self::new(check) };
    }

    /// What is believed of it. One that lets nobody in, and answers otherwise, refuses: flows that it has may go on.
    fn verdict(&self) -> Verdict {
        match (self.health.verdict(), self.login.verdict()) {
            (Verdict::Up, Verdict::Refusing | Verdict::Unreachable) => Verdict::Refusing,
            (verdict, _) => verdict,
        }
    }

    fn why(&self) -> &str {
        if self.health.verdict() == Verdict::Up { self.login.why() } else { self.health.why() }
    }
}

impl Balancer {
    /// Takes a configuration, the first or a changed one. What is known of nodes that stay is kept.
    pub fn configure(&mut self, config: &BalancerConfig) {
        let BalancerConfig { services, internal_networks: _, probes, check, status: _ } = config;
        self.check = *check;
        let before: BTreeMap<SocketAddrV4, Probe> = self.logins().map(|(target, _, probe)| (target, probe)).collect();
        self.probes.clone_from(probes);
        self.services = services.iter().map(|service| (service.external, service.clone())).collect();
        let backends: Vec<&BackendSpec> = self.services.values().flat_map(|service| &service.backends).collect();
        let targets = self.services.values().flat_map(|s| s.backends.iter().map(|backend| (backend.target, s.check)));
        let targets: BTreeMap<SocketAddrV4, CheckKind> = targets.collect();
        let scores: BTreeSet<SocketAddrV4> = backends.iter().map(|backend| backend.score).collect();
        // What was found by another kind of check says nothing.
        self.targets.retain(|target, state| targets.get(target) == Some(&state.check));
        self.loads.retain(|score, _| scores.contains(score));
        self.chosen.retain(|external, _| self.services.contains_key(external));
        for (target, check) in targets {
            self.targets.entry(target).or_insert(TargetState::new(check));
        }
        let tried: BTreeMap<SocketAddrV4, Probe> = self.logins().map(|(target, _, probe)| (target, probe)).collect();
        for (target, state) in &mut self.targets {
            if tried.get(target) != before.get(target) {
                state.begin_logins_anew();
            }
        }
        for score in scores {
            self.loads.entry(score).or_default();
        }
        self.outgoing = outgoing(&self.services);
    }

    /// The addresses to check, and how.
    pub fn targets(&self) -> impl Iterator<Item = (SocketAddrV4, CheckKind)> {
        self.targets.iter().map(|(target, state)| (*target, state.check))
    }

    /// The addresses to log in to, and with what: IMAP and POP3, in TLS and not, of clusters that have a probe mailbox.
    pub fn logins(&self) -> impl Iterator<Item = (SocketAddrV4, MailProtocol, Probe)> {
        use MailProtocol::{Imap, Imaps, Pop3, Pop3s, Sieve, Smtp, Submission, Submissions};
        let mut logins = BTreeMap::new();
        for service in self.services.values() {
            let (CheckKind::Mail(protocol), Some(probe)) = (service.check, self.probes.get(&service.cluster)) else {
                continue;
            };
            match protocol {
                Imap | Imaps | Pop3 | Pop3s => {
                    logins.extend(service.backends.iter().map(|backend| (backend.target, (protocol, probe.clone()))));
                }
                Smtp | Submission | Submissions | Sieve => {}
            }
        }
        logins.into_iter().map(|(target, (protocol, probe))| (target, protocol, probe))
    }

    /// The addresses to read load scores from.
    pub fn scores(&self) -> impl Iterator<Item = SocketAddrV4> {
        self.loads.keys().copied()
    }

    /// Takes the result of a check. An event tells that the node's verdict changed.
    pub fn checked(&mut self, target: SocketAddrV4, result: CheckResult, now_ms: u64) -> Option<Event> {
        let CheckSettings { rise, fall, .. } = self.check;
        self.observe(target, now_ms, |state| state.health.observe(result, rise, fall))
    }

    /// Takes what came of a login with the probe mailbox. An event tells that the node's verdict changed.
    pub fn logged_in(&mut self, target: SocketAddrV4, result: CheckResult, now_ms: u64) -> Option<Event> {
        let CheckSettings { rise, fall, .. } = self.check;
        self.observe(target, now_ms, |state| {
            state.has_let_in |= result == CheckResult::Passed;
            // The mailbox is being made, or has gone to another node with another password.
            let first_ms = *state.first_login_ms.get_or_insert(now_ms);
            let is_beginning = !state.has_let_in && now_ms.saturating_sub(first_ms) < LOGIN_GRACE_MS;
            !is_beginning && state.login.observe(result, rise, fall)
        })
    }

    fn observe(
        &mut self,
        target: SocketAddrV4,
        now_ms: u64,
        take: impl FnOnce(&mut TargetState) -> bool,
    ) -> Option<Event> {
        let server = self.backends().find(|backend| backend.target == target)?.server.clone();
        let state = self.targets.get_mut(&target)?;
        let before = state.verdict();
        take(state);
        let now = state.verdict();
        if now == before {
            return None;
        }
        state.lost_ms = (now == Verdict::Unreachable).then_some(now_ms);
        let text = match now {
            Verdict::Up if before == Verdict::Unknown => format!("{server} ({target}) is up"),
            Verdict::Up => format!("{server} ({target}) is up again"),
            Verdict::Unknown | Verdict::Refusing | Verdict::Unreachable => {
                format!("{server} ({target}) is down: {}", state.why())
            }
        };
        Some(Event { server, up: now == Verdict::Up, text })
    }

    /// Takes a load score.
    pub fn scored(&mut self, score: SocketAddrV4, percent: u8, now_ms: u64) {
        if let Some(load) = self.loads.get_mut(&score) {
            load.observe(percent, now_ms);
        }
    }

    /// The turns of every service, by all that is known now. Nothing until each service has a first verdict on all its nodes, so
    /// that a start or restart does not send everything to whoever answers first.
    pub fn decide(&mut self, now_ms: u64) -> Option<Decision> {
        for load in self.loads.values_mut() {
            load.expire(now_ms, self.check.score_lifetime_ms);
        }
        let mut services = BTreeMap::new();
        for (external, service) in &self.services {
            let last = self.chosen.get(external);
            let turns = self.turns(service, last)?;
            services.insert(*external, turns);
        }
        self.chosen.clone_from(&services);
        Some(Decision { services, outgoing: self.outgoing.clone() })
    }

    /// Flows to nodes that have been unreachable for long and that get nothing new either. Each is told once.
    pub fn flows_to_end(&mut self, now_ms: u64) -> Vec<FlowsToEnd> {
        let mut ended = Vec::new();
        for (target, state) in &mut self.targets {
            let long_lost =
                state.lost_ms.is_some_and(|lost| now_ms.saturating_sub(lost) >= self.check.end_flows_after_ms);
            let still_chosen = self.chosen.values().flatten().any(|chosen| chosen == target);
            if !long_lost || still_chosen {
                continue;
            }
            state.lost_ms = None;
            let services = self.services.values().filter(|s| s.backends.iter().any(|b| b.target == *target));
            ended.extend(services.map(|service| FlowsToEnd { external: service.external, target: *target }));
        }
        ended
    }

    /// The flows of nodes that are unreachable and get nothing new, from the moment they are: attempts to connect that a dead node will
    /// never answer. The kernel would send each repetition of such an attempt, and whoever uses the same port again, to the dead node.
    pub fn attempts_to_end(&self) -> Vec<FlowsToEnd> {
        let lost = self.targets.iter().filter(|(_, state)| state.lost_ms.is_some()).map(|(target, _)| *target);
        let given_up = lost.filter(|target| !self.chosen.values().flatten().any(|chosen| chosen == target));
        let of_target = |target: SocketAddrV4| {
            let services = self.services.values().filter(move |s| s.backends.iter().any(|b| b.target == target));
            services.map(move |service| FlowsToEnd { external: service.external, target })
        };
        given_up.flat_map(of_target).collect()
    }

    /// Every node behind every service as this balancer sees it. `flows` counts the established ones by (external, target).
    pub fn reports(&self, flows: Option<&BTreeMap<(SocketAddrV4, SocketAddrV4), u32>>) -> Vec<BackendReport> {
        let mut reports = Vec::new();
        for (external, service) in &self.services {
            let turns = self.chosen.get(external).map_or(&[][..], Vec::as_slice);
            for backend in &service.backends {
                let (state, why) = self.state(backend);
                let got = turns.iter().filter(|turn| **turn == backend.target).count();
                let flows = flows.map(|flows| flows.get(&(*external, backend.target)).copied().unwrap_or(0));
                reports.push(BackendReport {
                    service: *external,
                    server: backend.server.clone(),
                    state,
                    why,
                    share_percent: if turns.is_empty() { 0.0 } else { 100.0 * got as f32 / turns.len() as f32 },
                    flows,
                });
            }
        }
        reports
    }

    /// The turns of one service; nothing while it waits for first verdicts.
    fn turns(&self, service: &ServiceSpec, last: Option<&Vec<SocketAddrV4>>) -> Option<Vec<SocketAddrV4>> {
        let offered: Vec<&BackendSpec> = service.backends.iter().filter(|backend| !backend.drained).collect();
        let unknown = offered.iter().any(|backend| self.verdict(backend) == Verdict::Unknown);
        if unknown && last.is_none() {
            return None;
        }
        let up: Vec<&BackendSpec> =
            offered.iter().copied().filter(|backend| self.verdict(backend) == Verdict::Up).collect();
        if up.is_empty() {
            // All checks fail. The last choice stays, as far as its nodes are still offered.
            let kept: Vec<SocketAddrV4> = last
                .into_iter()
                .flatten()
                .copied()
                .filter(|turn| offered.iter().any(|backend| backend.target == *turn))
                .collect();
            let all = || spread(&offered, |backend| u32::from(backend.weight));
            return Some(if kept.is_empty() { all() } else { kept });
        }
        let by_load = spread(&up, |backend| u32::from(backend.weight) * u32::from(self.level_percent(backend)));
        let ignoring_load = || spread(&up, |backend| u32::from(backend.weight));
        Some(if by_load.is_empty() { ignoring_load() } else { by_load })
    }

    fn state(&self, backend: &BackendSpec) -> (BackendState, String) {
        let target = &self.targets[&backend.target];
        match (backend.drained, target.verdict(), self.level_percent(backend)) {
            (true, _, _) => (BackendState::Drained, "drained by an administrator".to_owned()),
            (_, Verdict::Unknown, _) => (BackendState::Down, "not checked yet".to_owned()),
            (_, Verdict::Refusing | Verdict::Unreachable, _) => (BackendState::Down, target.why().to_owned()),
            (_, Verdict::Up, 0) => (BackendState::Overloaded, "its load score is 0".to_owned()),
            (_, Verdict::Up, 100) => (BackendState::Up, String::new()),
            (_, Verdict::Up, level) => (BackendState::Up, format!("gets {level} % of its weight, by its load score")),
        }
    }

    fn backends(&self) -> impl Iterator<Item = &BackendSpec> {
        self.services.values().flat_map(|service| &service.backends)
    }

    fn verdict(&self, backend: &BackendSpec) -> Verdict {
        self.targets.get(&backend.target).map_or(Verdict::Unknown, TargetState::verdict)
    }

    fn level_percent(&self, backend: &BackendSpec) -> u8 {
        self.loads.get(&backend.score).copied().unwrap_or_default().level_percent()
    }
}

/// Who takes mail from the world sends mail to it, too, and other servers want to find the same address in the DNS (SPF, RFC 7208). One that
/// serves several external addresses sends from the lowest.
fn outgoing(services: &BTreeMap<SocketAddrV4, ServiceSpec>) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let smtp = services.values().filter(|service| service.check == CheckKind::Mail(MailProtocol::Smtp));
    let pairs = smtp.flat_map(|s| s.backends.iter().map(|backend| (*backend.target.ip(), *s.external.ip())));
    let mut outgoing = BTreeMap::new();
    for (internal, external) in pairs {
        outgoing.entry(internal).or_insert(external);
    }
    outgoing
}

fn spread(backends: &[&BackendSpec], weight: impl Fn(&BackendSpec) -> u32) -> Vec<SocketAddrV4> {
    let weights: Vec<u32> = backends.iter().map(|backend| weight(backend)).collect();
    slots::interleave(&weights).into_iter().map(|index| backends[index].target).collect()
}

#[cfg(test)]
mod tests;
