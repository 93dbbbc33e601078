//! What is derived from the directory for each account: its configuration on a web node, its home where the share is kept.
//!
//! A file is compared before it is written; an account whose files do not change is not touched, and neither is any process but the
//! changed account's own. The configuration of an account that is awake is checked by httpd itself before it takes the old one's
//! place; one that is refused stays aside, and the account goes on with what it has.

use crate::events::Events;
use crate::paths::Paths;
use crate::renew::Renewals;
use crate::successor;
use anyhow::{Context, anyhow, ensure};
use phalanx_host::atomic::{self, Access, failed};
use phalanx_host::command::{self, CommandError, LIMIT};
use phalanx_host::directory::Reader;
use phalanx_host::homes::{self, HomeError};
use phalanx_host::{facts, service};
use phalanx_model::{Account, Name, Site, Uid, php};
use phalanx_plan::account::{HTTPD_COMMON, HTTPD_CONF, PHP_FPM_CONF, httpd_conf, php_fpm_conf};
use phalanx_plan::report::Severity;
use phalanx_plan::spec::{NodeSpec, Work as NodeWork};
use phalanx_plan::steps::{Desired, diff};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;

/// The keeper of derived files.
pub struct Accounts {
    root: PathBuf,
    /// Where commands run.
    pub runtime: Handle,
    events: Arc<Events>,
    /// Who has to read files anew.
    pub renewals: Renewals,
    problems: BTreeMap<Name, String>,
}

impl Accounts {
    /// Nothing is derived yet.
    pub fn new(paths: &Paths, runtime: Handle, events: Arc<Events>, renewals: Renewals) -> Self {
        Self { root: paths.accounts(), runtime, events, renewals, problems: BTreeMap::new() }
    }

    /// What could not be derived, in words for a person.
    pub fn problems(&self, at_most: usize) -> Vec<String> {
        self.problems.iter().take(at_most).map(|(account, why)| format!("account {account}: {why}")).collect()
    }

    /// Keeps as problems what renewals failed for since they were begun.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn take_failures(&mut self, reader: &Reader) -> anyhow::Result<()> {
        for (uid, why) in self.renewals.failures() {
            if let Some((account, _)) = reader.account(uid)? {
                self.fail(&account.name, &anyhow!(why));
            }
        }
        Ok(())
    }

    /// Keeps a problem, and tells it if it is a new one.
    fn fail(&mut self, name: &Name, error: &anyhow::Error) {
        let why = format!("{error:#}");
        if self.problems.insert(name.clone(), why.clone()).as_ref() != Some(&why) {
            let detail = error.source().map(|_| why).unwrap_or_default();
            self.events.add(Severity::Error, "account", format!("account {name}: {error}"), detail);
        }
    }

    /// Begins a piece of work on a node that shall be as `spec` says.
    pub fn begin<'a>(&'a mut self, spec: Option<&'a NodeSpec>, reader: &'a Reader, why: Why) -> Work<'a> {
        let share_roots = Desired::of(spec).kept_shares.into_iter().map(|kept| (kept.share, kept.path.as_str().into()));
        Work { share_roots: share_roots.collect(), accounts: self, spec, reader, why, wrote: false }
    }
}

/// Why accounts are worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The directory changed, or the agent has just started and may render differently than the one before it.
    Ordered,
    /// They were looked at in turns: what is not as it should be was changed by hand.
    Looked,
}

/// A piece of work: a page of accounts.
pub struct Work<'a> {
    accounts: &'a mut Accounts,
    spec: Option<&'a NodeSpec>,
    reader: &'a Reader,
    why: Why,
    share_roots: BTreeMap<Name, PathBuf>,
    wrote: bool,
}

impl Work<'_> {
    /// Makes what is derived for one account as the directory wants it. `uid` is what the account has or had.
    ///
    /// # Errors
    /// The directory can't be read. What stands in one account's way is kept as its problem, so that others go on.
    pub fn derive(&mut self, name: &Name, uid: Uid) -> anyhow::Result<()> {
        let done = match self.reader.account_named(name)? {
            Some((account, share)) => {
                let sites = self.reader.sites(name)?;
                let stale = if account.uid == uid { Ok(()) } else { self.remove(name, uid) };
                stale.and_then(|()| self.keep(&account, &share, &sites))
            }
            None => self.remove(name, uid),
        };
        match done {
            Ok(()) => drop(self.accounts.problems.remove(name)),
            Err(error) => self.accounts.fail(name, &error),
        }
        Ok(())
    }

    /// Removes the configuration of accounts that the directory does not know.
    pub fn remove_strangers(&mut self) -> anyhow::Result<()> {
        let root = &self.accounts.root;
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed(root, "listing"))?,
        };
        let uids: Vec<Uid> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter_map(|number| Uid::try_from(number).ok())
            .collect();
        for uid in uids {
            if self.reader.account(uid)?.is_none() || !self.is_web() {
                self.remove_configuration(uid)?;
            }
        }
        Ok(())
    }

    /// Makes what was written last.
    pub fn finish(self) -> anyhow::Result<()> {
        if self.wrote {
            let root = fs::File::open(&self.accounts.root).map_err(failed(&self.accounts.root, "opening"))?;
            rustix::fs::syncfs(&root).context("accounts' files can't be synced")?;
        }
        Ok(())
    }

    fn is_web(&self) -> bool {
        matches!(self.spec.map(|spec| &spec.work), Some(NodeWork::Web(_)))
    }

    fn keep(&mut self, account: &Account, share: &Name, sites: &[Site]) -> anyhow::Result<()> {
        self.keep_home(account, share, sites)?;
        if let Some(spec @ NodeSpec { work: NodeWork::Web(web), .. }) = self.spec
            && web.share.as_ref().is_some_and(|mount| mount.share == *share)
        {
            self.keep_configuration(account, sites)?;
            see_php(account, &spec.server)?;
        }
        Ok(())
    }

    fn keep_home(&self, account: &Account, share: &Name, sites: &[Site]) -> anyhow::Result<()> {
        let Some(root) = self.share_roots.get(share) else { return Ok(()) };
        let roots = || sites.iter().map(|site| site.document_root.as_str());
        let was_taken = match homes::make_home(root, &account.name, account.uid, roots()) {
            Err(HomeError::Foreign { owner, .. }) if self.is_former(owner)? => {
                let former = Uid::try_from(owner)?;
                homes::retire_home(root, &account.name, former, facts::unix_s())?;
                homes::make_home(root, &account.name, account.uid, roots())?
            }
            made => made?,
        };
        if was_taken && self.why == Why::Looked {
            let what = format!("the home of account {} was taken from it by hand; it is given back", account.name);
            let diff = format!("-owner {}\n+owner 0\n", account.uid);
            self.accounts.events.add(Severity::Warning, "drift", what, diff);
        }
        Ok(())
    }

    /// Whether a uid was an account's and is no longer.
    fn is_former(&self, owner: u32) -> anyhow::Result<bool> {
        match Uid::try_from(owner) {
            Ok(uid) => Ok(self.reader.account(uid)?.is_none()),
            Err(_) => Ok(false),
        }
    }

    fn keep_configuration(&mut self, account: &Account, sites: &[Site]) -> anyhow::Result<()> {
        let uid = account.uid;
        let directory = self.accounts.root.join(uid.to_string());
        let files = files_of(account, sites);
        let mut changed = Vec::new();
        for (name, content) in &files {
            let before = atomic::read(&directory.join(name))?;
            if before.as_deref() != Some(content.as_bytes()) {
                changed.push((*name, content, before));
            }
        }
        let (runtime, renewals) = (&self.accounts.runtime, &self.accounts.renewals);
        if changed.is_empty() && !renewals.is_wanted(uid) {
            return Ok(());
        }
        if changed.is_empty() {
            return renewals.retry(uid)?.map_or(Ok(()), |why| Err(anyhow!(why)));
        }
        make_directory(&directory, uid)?;
        if runtime.block_on(successor::is_awake(uid))? {
            self.check(&directory, &files)?;
        }
        let wanted = renewals.want(uid)?;
        renewals.crash.pass("account-configuration: it is noted that it changes");
        for (name, content, _) in &changed {
            replace(&directory.join(name), content, uid)?;
        }
        self.wrote = true;
        self.accounts.renewals.crash.pass("account-configuration: it has changed");
        wanted.begin();
        for (name, content, before) in changed {
            self.tell(&account.name, name, before.as_deref(), content);
        }
        Ok(())
    }

    /// Tells that a file was rewritten; as drift where nothing was ordered.
    fn tell(&self, account: &Name, file: &str, before: Option<&[u8]>, content: &str) {
        let diff = || diff::lines(content, &String::from_utf8_lossy(before.unwrap_or_default()));
        match (self.why, before) {
            (Why::Looked, _) => {
                let done = if before.is_some() { "changed" } else { "removed" };
                let what = format!("{file} of account {account} was {done} by hand; it is mended");
                self.accounts.events.add(Severity::Warning, "drift", what, diff());
            }
            (Why::Ordered, Some(_)) => tracing::debug!(%account, file, "rewritten; it was\n{}", diff()),
            (Why::Ordered, None) => {}
        }
    }

    fn check(&self, directory: &Path, files: &BTreeMap<&'static str, String>) -> anyhow::Result<()> {
        let Some(content) = files.get(HTTPD_CONF) else { return Ok(()) };
        let aside = directory.join(".httpd.conf.check");
        fs::write(&aside, content).map_err(failed(&aside, "writing"))?;
        let args = ["-t", "-f", &aside.to_string_lossy()];
        let checked: Result<String, CommandError> =
            self.accounts.runtime.block_on(command::succeed("/usr/sbin/apache2", &args, LIMIT));
        atomic::remove(&aside)?;
        checked.map(drop).context("httpd refuses the account's configuration; it goes on with the former one")
    }

    fn remove(&mut self, name: &Name, uid: Uid) -> anyhow::Result<()> {
        if self.reader.account(uid)?.is_none() {
            self.remove_configuration(uid)?;
        }
        for root in self.share_roots.values() {
            match homes::retire_home(root, name, uid, facts::unix_s()) {
                // The name is in use again, and its home is another account's by now.
                Err(HomeError::Foreign { .. }) => {}
                retired => retired?,
            }
        }
        Ok(())
    }

    fn remove_configuration(&mut self, uid: Uid) -> anyhow::Result<()> {
        let directory = self.accounts.root.join(uid.to_string());
        if directory.exists() {
            let (runtime, renewals) = (&self.accounts.runtime, &self.accounts.renewals);
            let leaving = runtime.block_on(renewals.leave(uid));
            runtime.block_on(service::end_account(uid))?;
            renewals.crash.pass("account-remove: nothing of it runs");
            atomic::remove(&directory)?;
            leaving.gone()?;
        }
        Ok(())
    }
}

/// The files of one account.
fn files_of(account: &Account, sites: &[Site]) -> BTreeMap<&'static str, String> {
    BTreeMap::from([(HTTPD_CONF, httpd_conf(account, sites, HTTPD_COMMON)), (PHP_FPM_CONF, php_fpm_conf(account))])
}

/// The account's PHP is there. Without it its pages are served and its scripts answer 503.
fn see_php(account: &Account, server: &Name) -> anyhow::Result<()> {
    let (wanted, installed) = (&account.php, facts::php_versions()?);
    ensure!(
        installed.contains(wanted),
        "it wants PHP {wanted}, which is not installed on {server}: apt install {} (installed: {})",
        wanted.package(),
        php::listed(&installed)
    );
    Ok(())
}

fn make_directory(directory: &Path, uid: Uid) -> anyhow::Result<()> {
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(failed(directory, "making the directory"))?;
        let (root, group) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::from_raw(uid.get()));
        rustix::fs::chown(directory, Some(root), Some(group)).context("an account's directory can't be given to it")?;
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o750))?;
    }
    Ok(())
}

/// Replaces a file that its account may read. It is synced with all others of the page, by [`Work::finish`].
fn replace(path: &Path, content: &str, uid: Uid) -> anyhow::Result<()> {
    let access = Access { group: Some(uid.get()), mode: 0o640 };
    Ok(atomic::replace(path, content.as_bytes(), access)?)
}
