//! The loop on a host: observe, plan, apply.
//!
//! Level-triggered: a wake-up says only that it is time to look; the whole state decides. Rounds follow each other until nothing is
//! left to do or nothing moves, then wait. What fails is tried again, ever more slowly; what a checker refused is not tried again
//! until it is another.

use crate::execute::{Executor, Outcome, digest_of_files};
use crate::keep;
use crate::node::{Deed, Node, Order};
use crate::observe::Observer;
use crate::renew::Renewals;
use phalanx_model::{Position, Right};
use phalanx_plan::mail::released;
use phalanx_plan::report::Severity;
use phalanx_plan::steps::marks::Pin;
use phalanx_plan::steps::{Desired, Drift, Marks, Observed, Plan, Step, plan};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often the host is looked at when nothing happens.
const INTERVAL: Duration = Duration::from_secs(5);
/// The longest wait after failures.
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// Rounds in a row without a wait.
const ROUNDS_MAX: usize = 6;
/// The same drift is told once in this time.
const DRIFT_QUIET: Duration = Duration::from_secs(60);
/// Problems that a report holds.
const PROBLEMS_MAX: usize = 20;

/// Where the reconciler stands, for the report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The spec that all of this was seen under.
    pub spec: Position,
    /// The live generation.
    pub generation: u64,
    /// Whether the node is as it should be.
    pub converged: bool,
    /// What stands in the way.
    pub problems: Vec<String>,
    /// Accounts awake.
    pub accounts_awake: u32,
    /// What this node shall not do and was seen not to be doing: under which spec.
    pub released: BTreeMap<Right, Position>,
}

/// The loop's own state.
pub struct Reconciler {
    node: Arc<Node>,
    observer: Observer,
    executor: Executor,
    marks: Marks,
    standing: watch::Sender<Standing>,
    /// When a drift, with its difference, was told last.
    drift_told: BTreeMap<(String, String), Instant>,
    failures: u32,
}

impl Reconciler {
    /// A loop that begins with the marks on disk.
    ///
    /// # Errors
    /// The marks can't be read.
    pub fn new(node: Arc<Node>, renewals: Renewals, standing: watch::Sender<Standing>) -> anyhow::Result<Self> {
        let marks = keep::load(&node.paths.agent("marks.json"))?.unwrap_or_default();
        let executor = Executor::new(node.paths.clone(), renewals);
        Ok(Self {
            node,
            observer: Observer::default(),
            executor,
            marks,
            standing,
            drift_told: BTreeMap::new(),
            failures: 0,
        })
    }

    /// Runs until the process ends.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            self.rounds().await;
            let wait = match self.failures {
                0 => INTERVAL,
                failures => (INTERVAL / 2 * failures.min(16)).min(RETRY_LONGEST),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.node.wake.notified() => self.failures = 0,
                Some(Order { deed, answer }) = orders.recv() => {
                    let result = self.obey(deed).await;
                    if answer.send(result).is_err() {
                        tracing::debug!("nobody waited for the command's answer any more");
                    }
                }
            }
        }
    }

    /// Rounds until nothing is left to do, or nothing moves.
    async fn rounds(&mut self) {
        for _ in 0..ROUNDS_MAX {
            match self.round().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::error!(error = why, "a round failed");
                    self.failures += 1;
                    self.standing.send_if_modified(|standing| {
                        let now = Standing { converged: false, problems: vec![why], ..standing.clone() };
                        let is_new = *standing != now;
                        *standing = now;
                        is_new
                    });
                    return;
                }
            }
        }
    }

    /// One round. Returns whether another one should follow at once.
    async fn round(&mut self) -> anyhow::Result<bool> {
        let (position, is_known) = {
            let adopted = self.node.adopted.borrow();
            (adopted.position, adopted.known)
        };
        if !is_known {
            return Ok(false);
        }
        // A spec that comes between the two lines is newer than the position: what is seen under it then counts for the older one.
        let spec = self.node.spec();
        let desired = Desired::of(spec.as_ref());
        let observed = self.observer.observe(&desired, &self.node.paths).await?;
        let released = released(spec.as_ref(), &observed).into_iter().map(|right| (right, position)).collect();
        let plan = plan(&desired, &observed, &self.marks);
        self.tell_drift(&plan.drift);
        if plan.steps.is_empty() {
            self.failures = 0;
            self.stand(position, &observed, observed.live, plan.waiting.clone(), released);
            if plan.converged() && !self.marks.is_settled(&desired, &observed.boot_id) {
                self.marks.settle(&desired, &observed);
                self.store_marks()?;
                tracing::info!(generation = observed.live, "the node is as it should be");
            }
            return Ok(false);
        }
        let outcome = self.executor.carry_out(&plan, &mut self.marks).await?;
        self.tell(&plan, &outcome);
        let problems: Vec<String> = outcome.problems.iter().chain(&plan.waiting).cloned().collect();
        let is_whole = problems.is_empty();
        self.failures = if is_whole || outcome.refused { 0 } else { self.failures + 1 };
        self.stand(position, &observed, switched_to(&plan).or(observed.live), problems, released);
        Ok(is_whole || outcome.refused)
    }

    fn stand(
        &self,
        spec: Position,
        observed: &Observed,
        live: Option<u64>,
        mut problems: Vec<String>,
        released: BTreeMap<Right, Position>,
    ) {
        problems.truncate(PROBLEMS_MAX);
        let now = Standing {
            spec,
            generation: live.unwrap_or(0),
            converged: problems.is_empty(),
            problems,
            accounts_awake: observed.accounts_awake,
            released,
        };
        self.standing.send_if_modified(|standing| {
            let is_new = *standing != now;
            *standing = now;
            is_new
        });
    }

    fn tell_drift(&mut self, drift: &[Drift]) {
        self.drift_told.retain(|_, at| at.elapsed() < DRIFT_QUIET);
        for Drift { what, diff } in drift {
            // The time stays that of the telling: what happens again and again is told once a minute.
            if let Entry::Vacant(untold) = self.drift_told.entry((what.clone(), diff.clone())) {
                untold.insert(Instant::now());
                self.node.events.add(Severity::Warning, "drift", format!("{what}; it is being mended"), diff.clone());
            }
        }
    }

    fn tell(&self, plan: &Plan, outcome: &Outcome) {
        let number = plan.steps.iter().find_map(|step| match step {
            Step::Validate { generation } | Step::Verify { generation, .. } => Some(*generation),
            _ => None,
        });
        match (number, outcome.refused) {
            (Some(generation), true) => {
                let text = format!("generation {generation} was refused; what was live before stays");
                self.node.events.add(Severity::Error, "generation", text, outcome.problems.join("\n"));
            }
            (Some(generation), false) if outcome.problems.is_empty() && switched_to(plan).is_some() => {
                self.node.events.add(Severity::Info, "generation", format!("generation {generation} is live"), "");
            }
            _ => {}
        }
    }

    async fn obey(&mut self, deed: Deed) -> Result<String, String> {
        match deed {
            Deed::RollBack(generation) => self.roll_back(generation).await,
            Deed::Reconcile => {
                self.marks.refused = None;
                self.rounds().await;
                let standing = self.standing.borrow().clone();
                if standing.converged {
                    Ok("the node is as it should be".to_owned())
                } else {
                    Err(standing.problems.join("; "))
                }
            }
        }
    }

    async fn roll_back(&mut self, generation: u64) -> Result<String, String> {
        let failed = |error: anyhow::Error| format!("{error:#}");
        let desired = Desired::of(self.node.spec().as_ref());
        let observed = self.observer.observe(&desired, &self.node.paths).await.map_err(failed)?;
        let Some(seen) = observed.generations.get(&generation).filter(|seen| seen.intact) else {
            let kept: Vec<String> = observed.generations.keys().map(u64::to_string).collect();
            return Err(format!(
                "generation {generation} is not kept here or is damaged; there are {}",
                kept.join(", ")
            ));
        };
        let instead_of = digest_of_files(&desired.files);
        let asked_for = phalanx_plan::steps::generations::digest(&seen.files);
        if self.marks.refusal(&asked_for).is_some() {
            self.marks.refused = None;
        }
        self.marks.pinned = (asked_for != instead_of).then_some(Pin { generation, instead_of });
        self.store_marks().map_err(failed)?;
        self.rounds().await;
        let standing = self.standing.borrow().clone();
        match standing.generation == generation || self.marks.pinned.is_none() {
            true => Ok(format!("generation {} is live and stays until the spec changes", standing.generation)),
            false => Err(standing.problems.join("; ")),
        }
    }

    fn store_marks(&self) -> anyhow::Result<()> {
        keep::store(&self.node.paths.agent("marks.json"), &self.marks)
    }
}

fn switched_to(plan: &Plan) -> Option<u64> {
    plan.steps.iter().find_map(|step| match step {
        Step::Switch { generation } => Some(*generation),
        _ => None,
    })
}
