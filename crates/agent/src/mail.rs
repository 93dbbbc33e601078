//! What is derived from the directory for mail: the look-up files on a mail node, the domains' directories where the share is kept.
//!
//! A batch that is committed is put into the look-up files at once: daemons see it by their next question, nothing is reloaded. What is still
//! to be put is marked in the directory itself, so a crash in between loses nothing. The files are looked at in turns: one that is lost,
//! damaged or held by somebody is reported, and made anew from the directory as soon as it can be. Now and then they are read whole, beside all else:
//! damage may lie where nobody has looked yet.

use crate::events::Events;
use anyhow::Context;
use phalanx_host::command::{self, LIMIT};
use phalanx_host::directory::{MailDirty, Reader, Writer};
use phalanx_host::mail_lookup::{self, LookupError, Lookups};
use phalanx_host::{atomic, homes, service};
use phalanx_model::{Name, Position, Right, Row, RowKey, Uid};
use phalanx_plan::mail::lookup::DIRECTORY;
use phalanx_plan::mail::probe::{self, ProbeLogin};
use phalanx_plan::report::Severity;
use phalanx_plan::spec::{NodeSpec, Work};
use phalanx_plan::steps::Desired;
use phalanx_plan::steps::units::Unit;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::runtime::Handle;

/// The configuration of the Dovecot that has the sessions.
const MAILBOXES_CONFIG: &str = "/var/lib/phalanx/live/mailboxes.conf";
/// Domains that are named where their keys were gone.
const KEYS_TOLD: usize = 5;
/// The files are read whole once in so many looks, ten minutes.
const LOOKS_PER_CHECK: u32 = 30;
/// Rows that are put in one transaction.
const ROWS_AT_ONCE: usize = 1_000;

/// The reading of whole files, in a thread of its own: a million mailboxes take a while.
#[derive(Default)]
struct Check {
    looks: u32,
    running: Option<JoinHandle<Result<(), LookupError>>>,
}

impl Check {
    /// Begins one when it is time, and returns what the last one found.
    fn turn(&mut self, root: &Path) -> Result<(), LookupError> {
        if self.running.is_none() && self.looks.is_multiple_of(LOOKS_PER_CHECK) {
            let root = root.to_owned();
            self.running = Some(std::thread::spawn(move || mail_lookup::check(&root)));
        }
        self.looks = self.looks.wrapping_add(1);
        match self.running.take_if(|running| running.is_finished()) {
            Some(done) => done.join().unwrap_or(Ok(())),
            None => Ok(()),
        }
    }
}

/// The keeper of what is derived for mail.
pub struct Mail {
    /// `/` on a host.
    root: PathBuf,
    /// Where commands run.
    runtime: Handle,
    events: Arc<Events>,
    lookups: Option<Lookups>,
    check: Check,
    /// Why the look-up files do not show what the directory has.
    problem: Option<String>,
    /// What stands in the way of domains' directories.
    domains: BTreeMap<RowKey, String>,
    /// What stands in the way of the probe mailboxes' directories, by cluster.
    probes: BTreeMap<Name, String>,
}

impl Mail {
    /// Nothing is derived yet.
    pub fn new(root: &Path, runtime: Handle, events: Arc<Events>) -> Self {
        Self {
            root: root.to_owned(),
            runtime,
            events,
            lookups: None,
            check: Check::default(),
            problem: None,
            domains: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }

    /// What could not be derived, in words for a person.
    pub fn problems(&self, at_most: usize) -> Vec<String> {
        self.problem.iter().chain(self.domains.values()).chain(self.probes.values()).take(at_most).cloned().collect()
    }

    /// Derives what the last batches touched. Returns how many rows that were.
    ///
    /// # Errors
    /// The directory can't be read or written. What stands in the way of the files is kept as a problem and tried again.
    pub fn derive(&mut self, spec: Option<&NodeSpec>, writer: &mut Writer, reader: &Reader) -> anyhow::Result<usize> {
        let dirty = writer.mail_dirty(ROWS_AT_ONCE)?;
        if dirty == MailDirty::Rows(vec![]) {
            return Ok(0);
        }
        let at = writer.position()?;
        let count = match &dirty {
            MailDirty::All => self.put_all(spec, reader, at)?,
            MailDirty::Rows(keys) => self.put_rows(spec, reader, keys, at)?,
        };
        match self.problem {
            None => writer.clear_mail_dirty(&dirty, at).map(|()| count).map_err(Into::into),
            // It is tried again by and by, not in a circle.
            Some(_) => Ok(0),
        }
    }

    /// Looks whether the look-up files are there, whole and up to date. What is not is made anew.
    ///
    /// # Errors
    /// The directory can't be read or written.
    pub fn look(&mut self, spec: Option<&NodeSpec>, writer: &mut Writer, reader: &Reader) -> anyhow::Result<()> {
        self.keep_probes(spec);
        if !serves_mail(spec) {
            // A machine that has lost its spec, and not its directory, goes on as it was until it is told.
            if spec.is_none() && reader.is_filled()? {
                return Ok(());
            }
            self.lookups = None;
            return atomic::remove(&self.root.join(DIRECTORY.trim_start_matches('/'))).map_err(Into::into);
        }
        // A directory that was never filled knows nothing, and daemons shall not believe that there is nothing.
        if !reader.is_filled()? {
            return Ok(());
        }
        let at = writer.position()?;
        let probe = probe_login(spec);
        let seen = self.opened().and_then(|lookups| {
            let shown = lookups.position()?;
            // What was never filled has no tables, and shall have none until it is.
            if shown.is_some() {
                lookups.put_probe(probe.as_ref())?;
            }
            Ok(shown)
        });
        let seen = seen.and_then(|shown| self.check.turn(&self.root).map(|()| shown));
        match seen {
            Ok(shown) if shown == Some(at) => return self.look_at_keys(spec, reader, at),
            // Another incarnation, or a directory that went back: rows may be there that it does not know.
            Ok(None) => writer.mark_all_mail_dirty()?,
            Ok(Some(shown)) if shown.incarnation != at.incarnation || shown.revision > at.revision => {
                writer.mark_all_mail_dirty()?;
            }
            // It is behind by rows of others, which are none of mail's; the position follows.
            Ok(Some(_)) if writer.mail_dirty(1)? == MailDirty::Rows(vec![]) => {
                let put = self.opened().and_then(|lookups| lookups.put(&[], at));
                match put {
                    Ok(_) => self.mended(),
                    Err(error) => self.fail(&error),
                }
            }
            Ok(Some(_)) => {}
            Err(error) => {
                self.lookups = None;
                self.fail(&error);
                if error.is_damage() {
                    self.lookups = Some(Lookups::renew(&self.root, true)?);
                    self.check = Check::default();
                    writer.mark_all_mail_dirty()?;
                }
            }
        }
        Ok(())
    }

    /// Looks whether each domain's key is there, and puts those that are not.
    fn look_at_keys(&mut self, spec: Option<&NodeSpec>, reader: &Reader, at: Position) -> anyhow::Result<()> {
        match self.opened().and_then(|lookups| lookups.domains_without_key()) {
            Ok(without) if without.is_empty() => self.mended(),
            Ok(without) => {
                let names: Vec<&str> = without.iter().take(KEYS_TOLD).map(|name| name.as_str()).collect();
                let others = without.len().saturating_sub(KEYS_TOLD);
                let more = if others > 0 { format!(" and of {others} others") } else { String::new() };
                let why = format!(
                    "the key that signs mail of {}{more} was gone from this node, so mail may have left unsigned",
                    names.join(", ")
                );
                self.events.add(Severity::Error, "mail", why.clone(), String::new());
                self.problem = Some(why);
                let keys: Vec<RowKey> = without.into_iter().map(RowKey::MailDomain).collect();
                self.put_rows(spec, reader, &keys, at)?;
            }
            Err(error) => self.fail(&error),
        }
        Ok(())
    }

    fn put_rows(
        &mut self,
        spec: Option<&NodeSpec>,
        reader: &Reader,
        keys: &[RowKey],
        at: Position,
    ) -> anyhow::Result<usize> {
        let row = |key: &RowKey| Ok((key.clone(), reader.mail_row(key)?));
        let rows: Vec<(RowKey, Option<Row>)> = keys.iter().map(row).collect::<anyhow::Result<_>>()?;
        let roots = share_roots(spec);
        for (key, row) in &rows {
            self.keep_directory(&roots, key, row.as_ref());
        }
        if !serves_mail(spec) || !reader.is_filled()? {
            self.problem = None;
            return Ok(keys.len());
        }
        if self.opened().is_ok_and(|lookups| lookups.is_new()) {
            return self.put_all(spec, reader, at);
        }
        let put = self.opened().and_then(|lookups| lookups.put(&rows, at));
        match put {
            Ok(void) => {
                self.mended();
                self.end_sessions(spec, &void);
            }
            Err(error) => self.fail(&error),
        }
        Ok(rows.len())
    }

    fn put_all(&mut self, spec: Option<&NodeSpec>, reader: &Reader, at: Position) -> anyhow::Result<usize> {
        let roots = share_roots(spec);
        let mut count = 0;
        reader.each_mail_row::<anyhow::Error>(|row| {
            count += 1;
            self.keep_directory(&roots, &row.key(), Some(&row));
            Ok(())
        })?;
        if !serves_mail(spec) || !reader.is_filled()? {
            self.problem = None;
            return Ok(count + 1);
        }
        let lookups = match self.opened() {
            Ok(lookups) => lookups,
            Err(error) => {
                self.fail(&error);
                return Ok(count + 1);
            }
        };
        let are_new = lookups.is_new();
        let put = lookups.replace::<anyhow::Error>(at, |put| reader.each_mail_row(put));
        let put = put.and_then(|()| Ok(lookups.put_probe(probe_login(spec).as_ref())?));
        match put {
            Ok(()) => {
                self.mended();
                // Which logins are void is not known; who still may comes back at once.
                self.end_sessions(spec, &["*".to_owned()]);
                if are_new {
                    self.reopen(spec);
                }
            }
            Err(error) => self.failed(format!("{error:#}"), ""),
        }
        Ok(count + 1)
    }

    /// Makes the directories of probe mailboxes on the shares that this machine keeps.
    fn keep_probes(&mut self, spec: Option<&NodeSpec>) {
        let mut failed = BTreeMap::new();
        for kept in Desired::of(spec).kept_shares {
            let of_mailboxes = kept.rights.iter().filter(|right| right.held.right == Right::Mailboxes);
            for cluster in of_mailboxes.map(|right| &right.held.cluster) {
                let root = Path::new(kept.path.as_str());
                // A share that is still to be made.
                if !root.exists() {
                    continue;
                }
                if let Err(error) = homes::make_mail_directory(root, &probe::directory(cluster), Uid::PROBE) {
                    let error = anyhow::Error::new(error);
                    failed.insert(cluster.clone(), format!("the directory of {cluster}'s probe mailbox: {error:#}"));
                }
            }
        }
        for (cluster, why) in &failed {
            if self.probes.get(cluster) != Some(why) {
                self.events.add(Severity::Error, "mail", why.clone(), String::new());
            }
        }
        self.probes = failed;
    }

    fn keep_directory(&mut self, roots: &BTreeMap<Name, PathBuf>, key: &RowKey, row: Option<&Row>) {
        let made = match row {
            Some(Row::MailDomain { domain, uid, share, .. }) => match roots.get(share) {
                Some(root) => homes::make_mail_directory(root, domain.name.as_str(), *uid)
                    .with_context(|| format!("the directory for mail of {}", domain.name)),
                None => Ok(()),
            },
            _ => Ok(()),
        };
        match made {
            Ok(()) => drop(self.domains.remove(key)),
            Err(error) => {
                let why = format!("{error:#}");
                if self.domains.insert(key.clone(), why.clone()).as_ref() != Some(&why) {
                    self.events.add(Severity::Error, "mail", why, String::new());
                }
            }
        }
    }

    fn opened(&mut self) -> Result<&mut Lookups, LookupError> {
        match &mut self.lookups {
            Some(lookups) => Ok(lookups),
            none => Ok(none.insert(Lookups::open(&self.root, true)?)),
        }
    }

    /// Has the daemons that run open the new files.
    fn reopen(&self, spec: Option<&NodeSpec>) {
        let readers = [Unit::Postfix, Unit::AdoptedQueues, Unit::Logins, Unit::Mailboxes];
        let desired = Desired::of(spec).units;
        for unit in readers.into_iter().filter(|unit| desired.contains(unit)) {
            let reload = async {
                match service::is_active(unit.name()).await? {
                    true => service::reload(unit).await,
                    false => Ok(()),
                }
            };
            if let Err(error) = self.runtime.block_on(reload) {
                let what = format!("{} still reads the look-up file that was lost: {error}", unit.name());
                self.events.add(Severity::Error, "mail", what, String::new());
            }
        }
    }

    /// Ends the sessions of logins that are void, on the node that has them.
    fn end_sessions(&self, spec: Option<&NodeSpec>, void: &[String]) {
        let Some(NodeSpec { server, work: Work::Mail(Some(mail)), .. }) = spec else { return };
        if void.is_empty() || mail.mailboxes.holder.as_ref().is_none_or(|holder| holder.server != *server) {
            return;
        }
        for whose in void {
            let args = ["-c", MAILBOXES_CONFIG, "kick", whose];
            match self.runtime.block_on(command::run("doveadm", &args, LIMIT)) {
                // It fails where nobody is in, too.
                Ok(ended) => tracing::debug!(%whose, status = %ended.status, "sessions of a void login are ended"),
                Err(error) => {
                    let what = format!(
                        "sessions of {whose} could not be ended, though its login does not hold any more: {error}"
                    );
                    self.events.add(Severity::Warning, "mail", what, String::new());
                }
            }
        }
    }

    fn mended(&mut self) {
        if self.problem.take().is_some() {
            self.events.add(Severity::Info, "mail", "the look-up files of mail are right again", String::new());
        }
    }

    fn fail(&mut self, error: &LookupError) {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let remedy = error.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        self.failed(format!("{error}{source}"), &remedy);
    }

    fn failed(&mut self, why: String, remedy: &str) {
        let why = format!("{why}; mail for this node's look-ups waits at the senders until it is mended{remedy}");
        if self.problem.as_ref() != Some(&why) {
            self.events.add(Severity::Error, "mail", why.clone(), String::new());
        }
        self.problem = Some(why);
    }
}

fn serves_mail(spec: Option<&NodeSpec>) -> bool {
    matches!(spec.map(|spec| &spec.work), Some(Work::Mail(Some(_))))
}

/// The probe mailbox, as the look-up file of this node should have it.
fn probe_login(spec: Option<&NodeSpec>) -> Option<ProbeLogin> {
    match spec {
        Some(spec @ NodeSpec { work: Work::Mail(Some(mail)), .. }) => ProbeLogin::of(spec, mail),
        _ => None,
    }
}

fn share_roots(spec: Option<&NodeSpec>) -> BTreeMap<Name, PathBuf> {
    Desired::of(spec).kept_shares.into_iter().map(|kept| (kept.share, kept.path.as_str().into())).collect()
}
