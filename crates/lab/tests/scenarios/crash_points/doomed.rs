//! Machines whose agent dies at a chosen place, is started again by systemd, and has to go on from there.
//!
//! Which places there are is the agent's own word: it counts them as it passes them, and its journal on disk has the steps of its plan. The places
//! are tried by number until a run passes none with that number any more. At a place before a step the agent's next life is
//! doomed as well: it dies after that same step, where its plan then begins with it.

use anyhow::{Context, Result, bail, ensure};
use phalanx_lab::figure::Figure;
use phalanx_lab::{Host, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// The number of the agent's first place that is not beside a step.
pub const BESIDE_STEPS: u64 = 1_000;
/// The first place in renewals of accounts.
pub const RENEWALS: u64 = 2_000;
/// More places than any change here passes.
const PLACES_MAX: u64 = 80;
/// What the agent writes when nothing is left to do.
const CONVERGED: &str = "the node is as it should be";
const AGENT_STATE: &str = "/var/lib/phalanx/agent/journal.json";

/// At each start the agent takes the next line of the list as the place where it ends. Who was killed leaves its journal.
const DROP_IN: &str = r#"[Service]
EnvironmentFile=-/run/crash.env
ExecStartPre=/bin/sh -c 'head -n 1 /run/crash.list > /run/crash.env; sed -i 1d /run/crash.list'
ExecStopPost=/bin/sh -c 'test "$EXIT_STATUS" != KILL || cat /var/lib/phalanx/agent/journal.json >> /run/crash.journals'
RestartSec=50ms
"#;

/// One machine.
pub struct Doomed<'f> {
    host: Host<'f>,
    cursor: String,
    deaths_wanted: usize,
}

/// One end of an agent.
#[derive(Debug, Clone)]
pub struct Death {
    /// The agent's words for the place.
    pub place: String,
    /// The steps of the plan then under way.
    steps: Vec<String>,
    now: usize,
}

impl Death {
    /// The step that it was at, where the place is beside one: its name, and how many of that name came before it in the plan.
    fn step(&self) -> Option<(String, usize)> {
        let (_, name) = self.place.split_once(" step ")?;
        Some((name.to_owned(), self.steps[..self.now].iter().filter(|step| *step == name).count()))
    }
}

impl<'f> Doomed<'f> {
    /// Prepares a machine.
    pub fn new(figure: &'f Figure, host: &str) -> Result<Self> {
        let host = figure.host(host);
        host.write_file("/etc/systemd/system/phalanx-agent.service.d/crash.conf", DROP_IN.as_bytes())?;
        host.text("touch /run/crash.list && systemctl daemon-reload")?;
        Ok(Self { host, cursor: String::new(), deaths_wanted: 0 })
    }

    /// Starts the agent anew, to die at these places one life after the other, and waits until it is linked.
    pub fn doom(&mut self, places: &[u64]) -> Result<()> {
        let list: String = places.iter().map(|place| format!("PHALANX_AGENT_STOP_BEFORE={place}\n")).collect();
        self.host.write_file("/run/crash.list", list.as_bytes())?;
        self.cursor = self.host.text(
            "rm -f /run/crash.journals; journalctl --quiet --lines 0 --show-cursor | sed -n 's/^-- cursor: //p'; systemctl restart phalanx-agent",
        )?;
        self.deaths_wanted = places.len();
        eventually(LIMIT, &format!("the link of {}'s agent", self.host.name()), || {
            let said = self.said()?;
            ensure!(said.contains("connected"), "{said}");
            Ok(())
        })
    }

    fn said(&self) -> Result<String> {
        self.host.text(&format!("journalctl -u phalanx-agent --output cat --after-cursor '{}'", self.cursor))
    }

    /// Waits until the agent has converged, after all the deaths that it was to die or without some of them.
    pub fn converged(&self, change: &str) -> Result<()> {
        eventually(LIMIT, &format!("convergence of {} after `{change}`", self.host.name()), || {
            let said = self.said()?;
            let life = said.rsplit("ends here").next().unwrap_or_default();
            ensure!(life.contains(CONVERGED), "{said}");
            Ok(())
        })
    }

    /// The deaths since [`Doomed::doom`].
    pub fn deaths(&self) -> Result<Vec<Death>> {
        let said = self.said()?;
        let place = |line: &str| Some(line.split_once("place=\"")?.1.split('"').next()?.to_owned());
        let places: Vec<String> = said.lines().filter(|line| line.contains("ends here")).filter_map(place).collect();
        let journals = self.host.text("cat /run/crash.journals 2> /dev/null || true")?;
        let journals = serde_json::Deserializer::from_str(&journals).into_iter::<serde_json::Value>();
        let journals: Vec<_> = journals.collect::<Result<_, _>>().context("the journals of who died")?;
        ensure!(places.len() <= self.deaths_wanted, "it died too often: {said}");
        ensure!(places.len() == journals.len(), "{places:?} and {} journals: {said}", journals.len());
        places.into_iter().zip(journals).map(|(place, journal)| death(place, &journal)).collect()
    }

    /// The steps of the last plan.
    fn last_plan(&self) -> Result<Vec<String>> {
        steps(&serde_json::from_str(&self.host.text(&format!("cat {AGENT_STATE}"))?)?)
    }
}

fn steps(journal: &serde_json::Value) -> Result<Vec<String>> {
    let steps = journal["steps"].as_array().context("the journal has steps")?;
    Ok(steps.iter().filter_map(|step| step.as_str().map(str::to_owned)).collect())
}

fn death(place: String, journal: &serde_json::Value) -> Result<Death> {
    let now = journal["now"].as_u64().context("the journal's step")? as usize;
    let death = Death { place, steps: steps(journal)?, now };
    if let Some((name, _)) = death.step() {
        ensure!(death.steps.get(death.now) == Some(&name), "the journal tells of another step: {death:?}");
    }
    Ok(death)
}

/// How far one machine is with one change.
#[derive(Default)]
struct Progress {
    next: u64,
    is_over: bool,
    /// The next place is the one after a step that it died before.
    owes_after: bool,
    /// Before and after which steps it died.
    before: BTreeSet<(String, usize)>,
    after: BTreeSet<(String, usize)>,
    planned: BTreeSet<(String, usize)>,
}

impl Progress {
    /// Where the agent is to die next.
    fn places(&self) -> Vec<u64> {
        match (self.is_over, self.owes_after) {
            (true, _) => vec![],
            (false, true) => vec![self.next],
            (false, false) => vec![self.next, 1],
        }
    }

    fn plan(&mut self, steps: &[String]) {
        let mut seen = BTreeMap::<&str, usize>::new();
        for step in steps {
            let count = seen.entry(step).or_default();
            self.planned.insert((step.clone(), *count));
            *count += 1;
        }
    }

    /// Takes down the deaths of one apply.
    fn note(&mut self, deaths: &[Death], last_plan: &[String]) {
        self.next += 1;
        self.owes_after = false;
        let Some(first) = deaths.first() else {
            self.plan(last_plan);
            self.is_over = true;
            return;
        };
        let Some(step) = first.step() else { return };
        self.plan(&first.steps);
        if first.place.starts_with("after ") {
            self.after.insert(step);
            return;
        }
        let then = deaths.get(1).is_some_and(|then| then.now == 0 && then.place == format!("after step {}", step.0));
        if then {
            self.after.insert(step.clone());
            self.next += 1;
        }
        self.owes_after = !then;
        self.before.insert(step);
    }

    fn check(&self, what: &str) -> Result<()> {
        let missing = |died: &BTreeSet<_>| self.planned.difference(died).cloned().collect::<Vec<_>>();
        let (before, after) = (missing(&self.before), missing(&self.after));
        ensure!(
            before.is_empty() && after.is_empty() && !self.planned.is_empty(),
            "{what}: of {:?} it did not die before {before:?} and after {after:?}",
            self.planned
        );
        Ok(())
    }
}

/// Makes one change while the agent of `host` dies before and after every step: one life dies before it begins its first step, the next after it did
/// that step and before it noted it, and so on until nothing is left to do. Returns what the first of them had planned.
pub fn step_by_step(figure: &Figure, host: &str, change: &str) -> Result<BTreeSet<String>> {
    let command = || figure.phalanx(change).map(drop);
    step_by_step_of(figure, host, change, PLACES_MAX, command, |machine| machine.converged(change))
}

/// As [`step_by_step`], for a change that may be no command, until the agent died at the first `steps` of them, which are returned: where a step can't be seen
/// on the machine, its mark alone keeps it from being done again, and a check is made anew by each life. `is_over` waits until nothing is left to do.
pub fn step_by_step_of(
    figure: &Figure,
    host: &str,
    what: &str,
    steps: u64,
    change: impl FnOnce() -> Result<()>,
    is_over: impl FnOnce(&Doomed) -> Result<()>,
) -> Result<BTreeSet<String>> {
    let mut machine = Doomed::new(figure, host)?;
    let lives: Vec<u64> = (0..2 * steps).map(|life| life % 2).collect();
    machine.doom(&lives)?;
    change()?;
    is_over(&machine)?;
    let deaths = machine.deaths()?;
    machine.doom(&[])?;
    let first = deaths.iter().find(|death| death.step().is_some());
    let first = first.with_context(|| format!("{what}: {host} died at no step"))?;
    let died =
        |side: &str, name: &str| deaths.iter().filter(|death| death.place == format!("{side} step {name}")).count();
    let steps: Vec<_> = first.steps.iter().take(usize::try_from(steps)?).collect();
    for name in &steps {
        let planned = steps.iter().filter(|step| *step == name).count();
        let (before, after) = (died("before", name), died("after", name));
        ensure!(
            before >= planned && after >= planned,
            "{what}, {name}: {planned} planned, died {before} times before and {after} after: {deaths:?}"
        );
    }
    Ok(steps.into_iter().cloned().collect())
}

/// Makes two changes that undo each other, again and again, until the agents of all `hosts` died before and after each step that they planned for
/// either. `change` gives the command for a round, `check` looks at what came of it. Returns what was planned, by host and change.
pub fn at_each_step(
    figure: &Figure,
    hosts: &[&str],
    change: [&dyn Fn(u64) -> Result<String>; 2],
    check: [&dyn Fn(u64) -> Result<()>; 2],
) -> Result<Vec<BTreeSet<String>>> {
    let mut machines: Vec<_> = hosts.iter().map(|host| Doomed::new(figure, host)).collect::<Result<_>>()?;
    let mut progress: Vec<[Progress; 2]> = machines.iter().map(|_| Default::default()).collect();
    for round in 0..PLACES_MAX {
        if progress.iter().flatten().all(|progress| progress.is_over) {
            for ([there, back], host) in progress.iter().zip(hosts) {
                there.check(&format!("{host}, {}", change[0](0)?))?;
                back.check(&format!("{host}, {}", change[1](0)?))?;
            }
            let names = |progress: &Progress| progress.planned.iter().map(|(name, _)| name.clone()).collect();
            return Ok(progress.iter().flatten().map(names).collect());
        }
        for way in 0..2 {
            for (machine, progress) in machines.iter_mut().zip(&progress) {
                machine.doom(&progress[way].places())?;
            }
            let command = change[way](round)?;
            figure.phalanx(&command)?;
            for (machine, progress) in machines.iter().zip(&mut progress) {
                machine.converged(&command)?;
                let progress = &mut progress[way];
                if !progress.is_over {
                    progress.note(&machine.deaths()?, &machine.last_plan()?);
                }
            }
            check[way](round).with_context(|| format!("after `{command}`, round {round}"))?;
        }
    }
    bail!("the plans never end")
}
