//! A balancer: checks the nodes, lets [`phalanx_plan::balance`] decide, and keeps the kernel's table as decided.
//!
//! One task owns the state and the kernel; checks run in tasks of their own and report to it. When the daemon ends, the table
//! stays: serving needs no daemon, and the next one takes over without a gap.
//!
//! Deliberately absent: any choice of who gets what, and anything that touches a packet.

pub mod checks;
mod command;
pub mod flows;
pub mod kernel;
mod mail_check;
mod report;
mod tls;

use crate::config;
use anyhow::Context as _;
use checks::{Checks, Outcome};
use flows::{Flows, Which};
use kernel::{Applied, Kernel};
use phalanx_plan::balance::{Balancer, Event};
use phalanx_plan::proxy_config::BalancerConfig;
use phalanx_plan::report::Severity;
use report::Reporter;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often the table is compared with what was put there.
const OBSERVE_EVERY: Duration = Duration::from_secs(10);
/// How often established flows are counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How long those who were about to connect when the table changed may take.
const SETTLE: Duration = Duration::from_millis(500);
/// Results that may wait for the owner of the state.
const OUTCOMES_MAX: usize = 1_024;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration can't be used at the start. Later errors are reported and retried.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    // Before anything else, so that an early SIGHUP does not end the process.
    let mut hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let config = config::load_balancer(config_path)?;
    let (results, mut outcomes) = mpsc::channel(OUTCOMES_MAX);
    let mut owner = Owner::new(config, Checks::new(results));
    let mut each_second = ticker(Duration::from_secs(1));
    let mut observe = ticker(OBSERVE_EVERY);
    let mut count = ticker(COUNT_EVERY);
    tracing::info!("balancing {} services", owner.config.services.len());
    loop {
        tokio::select! {
            Some(outcome) = outcomes.recv() => {
                owner.take(outcome);
                while let Ok(more) = outcomes.try_recv() {
                    owner.take(more);
                }
                owner.apply().await;
                if std::mem::take(&mut owner.lost_anew) {
                    owner.end_attempts().await;
                }
            }
            _ = each_second.tick() => {
                owner.apply().await;
                owner.end_attempts().await;
                owner.end_lost_flows().await;
                owner.recount();
                owner.report();
            }
            _ = observe.tick() => owner.observe().await,
            _ = count.tick(), if owner.recount == Recount::Done => owner.flows.count_soon(&owner.config),
            _ = hangup.recv() => owner.reload(config_path),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("ending; the table stays as it is");
    Ok(())
}

fn ticker(period: Duration) -> tokio::time::Interval {
    let mut ticker = interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// After a change of the configuration, flows are counted anew, and not before the table is as it says and those who were about to
/// connect have done so: a drained node that has no flows then gets none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recount {
    /// The table is still to be made.
    AfterTable,
    /// The table is made since then.
    Since(Instant),
    /// The count has begun; from now on it is made at its times.
    Done,
}

/// All that the balancer's one task owns.
struct Owner {
    config: BalancerConfig,
    state: Balancer,
    checks: Checks,
    kernel: Kernel,
    flows: Flows,
    reporter: Reporter,
    /// How far the flows are counted since the configuration changed.
    recount: Recount,
    /// Whether a node was found lost since its flows were looked at.
    lost_anew: bool,
    started: Instant,
}

impl Owner {
    fn new(config: BalancerConfig, checks: Checks) -> Self {
        let mut owner = Self {
            config,
            state: Balancer::default(),
            checks,
            kernel: Kernel::default(),
            flows: Flows::default(),
            reporter: Reporter::new(),
            recount: Recount::AfterTable,
            lost_anew: false,
            started: Instant::now(),
        };
        owner.adopt();
        owner
    }

    fn adopt(&mut self) {
        self.state.configure(&self.config);
        let (targets, logins) = (self.state.targets(), self.state.logins());
        self.checks.follow(&self.config.check, targets, logins, self.state.scores());
    }

    fn reload(&mut self, path: &Path) {
        match config::load_balancer(path) {
            Ok(config) => {
                self.config = config;
                self.adopt();
                self.reporter.mended();
                self.recount = Recount::AfterTable;
                self.flows.forget();
                self.report();
                tracing::info!("read {} again: {} services", path.display(), self.config.services.len());
            }
            Err(error) => self.reporter.problem(&format!("the configuration in use is kept: {error}")),
        }
    }

    fn take(&mut self, outcome: Outcome) {
        let now_ms = self.now_ms();
        match outcome {
            Outcome::Checked(target, result) => {
                let event = self.state.checked(target, result, now_ms);
                self.tell(event);
            }
            Outcome::LoggedIn(target, result) => {
                let event = self.state.logged_in(target, result, now_ms);
                self.tell(event);
            }
            Outcome::Scored(score, percent) => self.state.scored(score, percent, now_ms),
        }
    }

    fn tell(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            self.lost_anew |= !event.up;
            let severity = if event.up { Severity::Info } else { Severity::Warning };
            self.reporter.event(severity, "backend", &event.text, "");
        }
    }

    async fn apply(&mut self) {
        let Some(decision) = self.state.decide(self.now_ms()) else { return };
        if self.kernel.would_replace(&decision, &self.config.internal_networks) {
            // What somebody did to the table would vanish with it untold.
            self.tell_drift().await;
        }
        let applied = self.kernel.apply(&decision, &self.config.internal_networks).await;
        if applied.is_ok() && self.recount == Recount::AfterTable {
            self.recount = Recount::Since(Instant::now());
        }
        match applied {
            Ok(Applied::Unchanged) => {}
            Ok(Applied::Changed) => {
                self.reporter.mended();
                for (external, turns) in &decision.services {
                    let turns: Vec<String> = turns.iter().map(ToString::to_string).collect();
                    tracing::info!(
                        "{external} → {}",
                        if turns.is_empty() { "refused".into() } else { turns.join(" ") }
                    );
                }
            }
            Err(error) => self.reporter.problem(&format!("the table can't be changed: {error:#}")),
        }
    }

    async fn observe(&mut self) {
        if self.tell_drift().await {
            self.apply().await;
        }
    }

    /// Whether somebody changed the table behind our back; if so, says how.
    async fn tell_drift(&mut self) -> bool {
        match self.kernel.observe().await {
            Ok(None) => false,
            Ok(Some(difference)) => {
                let text = "somebody changed the table phalanx_balancer; it is put back";
                self.reporter.event(Severity::Warning, "drift", text, &difference);
                true
            }
            Err(error) => {
                self.reporter.problem(&format!("the table can't be read: {error:#}"));
                false
            }
        }
    }

    /// Clients that wait for a dead node to answer get another one at their next attempt.
    async fn end_attempts(&mut self) {
        for lost in self.state.attempts_to_end() {
            if let Err(error) = flows::end(lost, Which::Unanswered).await {
                self.reporter.problem(&format!("attempts to reach {} can't be ended: {error:#}", lost.target));
            }
        }
    }

    async fn end_lost_flows(&mut self) {
        for lost in self.state.flows_to_end(self.now_ms()) {
            match flows::end(lost, Which::All).await {
                Ok(0) => {}
                Ok(ended) => {
                    let text = format!("ended {ended} flows of {} to {}, which is lost", lost.external, lost.target);
                    self.reporter.event(Severity::Info, "backend", &text, "");
                }
                Err(error) => self.reporter.problem(&format!("flows to {} can't be ended: {error:#}", lost.target)),
            }
        }
    }

    /// Counts anew, once it is time to.
    fn recount(&mut self) {
        if let Recount::Since(made) = self.recount
            && made.elapsed() >= SETTLE
        {
            self.recount = Recount::Done;
            self.flows.forget();
            self.flows.count_soon(&self.config);
        }
    }

    fn report(&mut self) {
        let flows = self.flows.counted();
        self.reporter.write(&self.config.status, self.state.reports(flows.as_deref()));
    }

    fn now_ms(&self) -> u64 {
        // A balancer that runs for half a billion years may start again.
        self.started.elapsed().as_millis() as u64
    }
}
