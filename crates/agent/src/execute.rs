//! Carrying out a plan, step by step, with no choices left.
//!
//! Before each step the journal says what is about to be done; after it the marks are on disk. So a crash at any point leaves a state
//! that the next plan understands, and a person can read where it was.

use crate::check::{self, Found};
use crate::keep;
use crate::paths::Paths;
use crate::renew::Renewals;
use anyhow::Context;
use phalanx_host::{address, atomic, exports, facts, generation, homes, mount, nft, openers, rights, service};
use phalanx_model::Uid;
use phalanx_plan::steps::generations::{digest, file_digests};
use phalanx_plan::steps::units::Unit;
use phalanx_plan::steps::{Marks, Plan, Step};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;

/// Accounts whose httpd is reloaded at the same time.
const RELOADS_AT_ONCE: usize = 8;
const SHARE_LIMIT: Duration = Duration::from_secs(20);

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many steps were done.
    pub done: usize,
    /// What stands in the way, in words for a person.
    pub problems: Vec<String>,
    /// A generation was refused just now.
    pub refused: bool,
}

#[derive(Serialize)]
struct Journal<'p> {
    at_unix_s: u64,
    /// The number of the step that is being done, from 0; the number of steps when all are done.
    now: usize,
    steps: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doing: Option<&'p Step>,
}

/// Does steps.
#[derive(Debug)]
pub struct Executor {
    paths: Paths,
    renewals: Renewals,
}

impl Executor {
    /// Nothing is done yet.
    pub fn new(paths: Paths, renewals: Renewals) -> Self {
        Self { paths, renewals }
    }

    /// Carries out `plan`. What fails ends what makes no sense without it; the rest is done.
    ///
    /// # Errors
    /// The agent's own files can't be written.
    pub async fn carry_out(&mut self, plan: &Plan, marks: &mut Marks) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut failed: Vec<&Step> = Vec::new();
        for (number, step) in plan.steps.iter().enumerate() {
            if failed.iter().any(|failed| failed.failure_ends(step)) {
                continue;
            }
            self.journal(plan, number)?;
            self.renewals.crash.step(&format!("before step {}", step.name()));
            tracing::info!(step = step.name(), phase = ?step.phase(), "begins");
            match self.carry_out_step(step, marks).await {
                Ok(Found::Good) => {
                    marks.record(step);
                    outcome.done += 1;
                }
                Ok(Found::Bad(why)) => {
                    outcome.refused |= self.refuse(step, marks, &why)?;
                    outcome.problems.push(format!("{}: {why}", step.name()));
                    failed.push(step);
                }
                Ok(Found::Unknown(why)) => {
                    outcome.problems.push(why);
                    failed.push(step);
                }
                Err(error) => {
                    tracing::warn!(step = step.name(), error = format!("{error:#}"), "failed");
                    outcome.problems.push(format!("{}: {error:#}", step.name()));
                    failed.push(step);
                }
            }
            self.renewals.crash.step(&format!("after step {}", step.name()));
            keep::store(&self.paths.agent("marks.json"), marks)?;
        }
        self.journal(plan, plan.steps.len())?;
        Ok(outcome)
    }

    /// Remembers that the generation of `step` does not do. One that nothing can take the place of is not refused for not working:
    /// it is tried again.
    fn refuse(&self, step: &Step, marks: &mut Marks, why: &str) -> anyhow::Result<bool> {
        let (Step::Validate { generation } | Step::Verify { generation, back_to: Some(_), .. }) = step else {
            return Ok(false);
        };
        let seen = generation::Store::new(&self.paths.root).observe()?;
        if let Some(files) = seen.generations.get(generation).map(|seen| &seen.files) {
            marks.refuse(digest(files), why.to_owned());
        }
        Ok(true)
    }

    async fn carry_out_step(&self, step: &Step, marks: &mut Marks) -> anyhow::Result<Found> {
        let store = generation::Store::new(&self.paths.root);
        match step {
            Step::KeepShare(share) => {
                let share = share.clone();
                let made = tokio::task::spawn_blocking(move || homes::keep_share(&share));
                tokio::time::timeout(SHARE_LIMIT, made).await.context("the share's disk does not answer")???;
            }
            Step::TellRights { path, rights } => {
                let (path, told) = (path.clone(), rights.clone());
                let told = tokio::task::spawn_blocking(move || rights::tell(Path::new(path.as_str()), &told));
                tokio::time::timeout(SHARE_LIMIT, told).await.context("the share's disk does not answer")???;
            }
            Step::BindQueue { directory } => mount::bind_onto_itself(directory).await?,
            Step::Unmount { mount_point } => mount::unmount(mount_point).await?,
            Step::SealMountPoint { mount_point } => mount::seal(mount_point).await?,
            Step::Mount(spec) => mount::mount(spec).await?,
            Step::SetSysctl { key, value } => address::set_sysctl(key, value)?,
            Step::AddAddress { address, device } => address::add(*address, device).await?,
            Step::SetRoute(route) => address::set_route(*route).await?,
            Step::AddRule(rule) => address::add_rule(*rule).await?,
            Step::Stage { generation, files } => store.stage(*generation, files)?,
            Step::Validate { generation } => return check::validate(&store.directory(*generation)).await,
            Step::Switch { generation } => store.switch(*generation)?,
            Step::Link { at, to } => link(at, to)?,
            Step::LoadTable { .. } => self.load_table(marks).await?,
            Step::Export { .. } => exports::apply().await?,
            Step::Start { unit, .. } => service::start(*unit).await?,
            Step::Reload { unit, .. } => service::reload(*unit).await?,
            Step::ReloadAccounts { .. } => self.reload_accounts().await?,
            Step::Verify { by, .. } => return check::prove(by).await,
            Step::Stop { unit } => {
                service::stop(*unit).await?;
                if *unit == Unit::Mailboxes {
                    openers::end_all()?;
                }
            }
            Step::EndAccounts => service::end_all_accounts().await?,
            Step::Unlink { at } => atomic::remove(Path::new(at))?,
            Step::Unexport => exports::apply().await?,
            Step::RemoveTable => nft::remove().await?,
            Step::RemoveTranslation => nft::remove_balancer_table().await?,
            Step::RemoveRule(rule) => address::remove_rule(*rule).await?,
            Step::RemoveRoute(route) => address::remove_route(*route).await?,
            Step::RemoveAddress { address, device } => address::remove(*address, device).await?,
            Step::RemoveMount { mount_point } => mount::unmount_all(mount_point).await?,
            Step::RemoveGeneration { generation } => store.remove(*generation)?,
        }
        Ok(Found::Good)
    }

    async fn load_table(&self, marks: &mut Marks) -> anyhow::Result<()> {
        nft::load(&self.paths.root.join("live").join(phalanx_plan::steps::desired::TABLE_FILE)).await?;
        nft::add_owners(&accounts_since_boot()?).await?;
        marks.table = nft::observe().await?;
        Ok(())
    }

    fn journal(&self, plan: &Plan, now: usize) -> anyhow::Result<()> {
        let steps = plan.steps.iter().map(|step| step.name().to_owned()).collect();
        let journal = Journal { at_unix_s: facts::unix_s(), now, steps, doing: plan.steps.get(now) };
        keep::store(&self.paths.agent("journal.json"), &journal)
    }

    /// Has every account that is awake read the files that all have in common. One that can't is tried again by whoever looks at the
    /// accounts in turns, who also reports it: the others do not wait for it.
    async fn reload_accounts(&self) -> anyhow::Result<()> {
        let mut waiting = service::accounts_awake().await?.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < RELOADS_AT_ONCE
                && let Some(uid) = waiting.next()
            {
                let renewals = self.renewals.clone();
                running.spawn(async move {
                    renewals.want(uid)?.begin().ended().await;
                    anyhow::Ok(())
                });
            }
            match running.join_next().await {
                Some(done) => done.context("a reload was cut off")??,
                None => return Ok(()),
            }
        }
    }
}

/// Accounts that were awake since the machine started: the launcher has made a directory for each.
fn accounts_since_boot() -> anyhow::Result<Vec<Uid>> {
    let place = Path::new("/run/phalanx/account");
    let entries = match std::fs::read_dir(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.with_context(|| format!("{} can't be listed", place.display()))?,
    };
    let uid = |name: std::ffi::OsString| Uid::try_from(name.to_str()?.parse::<u32>().ok()?).ok();
    Ok(entries.filter_map(|entry| uid(entry.ok()?.file_name())).collect())
}

fn link(at: &str, to: &str) -> anyhow::Result<()> {
    let at = Path::new(at);
    if let Some(directory) = at.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("{} can't be made", directory.display()))?;
    }
    Ok(atomic::link(at, to)?)
}

/// The digest of a generation's files, for a pin.
pub fn digest_of_files(files: &phalanx_plan::render::Files) -> String {
    digest(&file_digests(files))
}
