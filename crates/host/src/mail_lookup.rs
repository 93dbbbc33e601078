//! The look-up files of a mail node: what its daemons read of the directory.
//!
//! Tables and queries stand in [`phalanx_plan::mail::lookup`]. The files follow the directory: rows that changed there are put here, in one
//! transaction for each file, so that a daemon sees the old whole or the new whole and never a part. The files are in WAL mode, whose
//! readers need `-wal` and `-shm` beside them: somebody who may write keeps them open ([`keep_open`]).
//!
//! A file has no tables until it has all rows, in one transaction: a daemon that asks before fails, and mail waits. Of an empty table it would
//! learn that nobody has a mailbox.
//!
//! Who proves logins hears of a new mailbox before who takes mail for it.

use crate::atomic::{self, Access, FileError, failed};
use phalanx_model::mail::{DkimKey, MailState};
use phalanx_model::{HostName, MailDomain, Position, Row, RowKey, Uid};
use phalanx_plan::mail::lookup::{DIRECTORY, KEYS, LOGINS, LOGINS_SCHEMA, PROBE_USER, RECIPIENTS, RECIPIENTS_SCHEMA};
use phalanx_plan::mail::probe::ProbeLogin;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a statement waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the name of a file that was moved aside ends with.
const DAMAGED: &str = "damaged";

/// Why look-up files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// SQLite's own words.
    #[error("the look-up file {path} can't be used")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// It was there.
    #[error("the look-up file {path} is gone")]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// SQLite's own check of a whole file found something.
    #[error("the look-up file {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found first.
        what: String,
    },
    /// A file or directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The daemon that shall read a file is not installed.
    #[error("there is no group {group} on this machine: install {package}")]
    NoReader {
        /// The daemon's group.
        group: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
}

impl LookupError {
    /// Whether only a new file helps: it is gone, or no database, or one that lacks tables, or one whose journal beside it was taken away: then
    /// nothing can be read any more, by whoever opens it (a process that still has a removed file open removes the next one's journal). One that somebody else holds will be free
    /// again, and what the machine lacks (memory, open files) says nothing of the file.
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SystemIoFailure, Unknown};
        match self {
            Self::Sqlite { source, path } => {
                matches!(source.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase | SystemIoFailure | Unknown))
                    || !path.exists()
            }
            Self::Gone { .. } | Self::Damaged { .. } => true,
            Self::File(_) | Self::NoReader { .. } => false,
        }
    }

    /// What becomes of it, or what a person may do, where the error does not say it itself.
    pub fn remedy(&self) -> Option<String> {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
        match self {
            error if error.is_damage() => {
                Some(format!("it is made anew from the directory, and what is left of it kept as .{DAMAGED}"))
            }
            Self::Sqlite { source, path } => matches!(source.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
                .then(|| format!("`fuser -v {}` on this machine tells which process holds it", path.display())),
            _ => None,
        }
    }
}

/// The places of the files; all below one directory, so that tests have their own.
#[derive(Debug, Clone)]
struct Places {
    recipients: PathBuf,
    logins: PathBuf,
    keys: PathBuf,
}

impl Places {
    fn below(root: &Path) -> Self {
        let at = |path: &str| root.join(path.strip_prefix('/').unwrap_or(path));
        Self { recipients: at(RECIPIENTS), logins: at(LOGINS), keys: at(KEYS) }
    }
}

/// The one writer of the look-up files.
#[derive(Debug)]
pub struct Lookups {
    places: Places,
    recipients: Connection,
    logins: Connection,
    keys_group: Option<u32>,
    /// They were made by this process, and have no tables yet.
    is_new: bool,
}

/// A look-up file that is kept open.
#[derive(Debug)]
pub struct KeptOpen {
    path: PathBuf,
    inode: u64,
    _connection: Connection,
}

/// Keeps the look-up files below `root` open, for nothing but to keep their `-wal` and `-shm` files alive; `before` is what was kept, and
/// stays as long as the name leads to the same file. Files that are missing are left so: a daemon shall not find an empty one.
///
/// # Errors
/// A file is there and can't be opened.
pub fn keep_open(root: &Path, before: Vec<KeptOpen>) -> Result<Vec<KeptOpen>, LookupError> {
    let places = Places::below(root);
    let mut before = before;
    let mut kept = Vec::new();
    for path in [places.recipients, places.logins] {
        let inode = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(failed(&path, "looking at it"))?.ino(),
        };
        let same = before.iter().position(|old| old.path == path && old.inode == inode);
        kept.push(match same {
            Some(place) => before.swap_remove(place),
            None => {
                let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
                KeptOpen { path, inode, _connection: connection }
            }
        });
    }
    Ok(kept)
}

/// Reads all of both files below `root`, as SQLite checks them: the first page of a damaged file may well be whole. It takes as long as reading them.
///
/// # Errors
/// A file is damaged, or can't be read.
pub fn check(root: &Path) -> Result<(), LookupError> {
    let places = Places::below(root);
    for path in [places.recipients, places.logins] {
        let sqlite = |source| LookupError::Sqlite { path: path.clone(), source };
        let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
        if found != "ok" {
            return Err(LookupError::Damaged { path, what: found });
        }
    }
    Ok(())
}

impl Lookups {
    /// Opens the files below `root`, which is `/` on a host. Where there is not even their directory they are made. `with_groups` gives each to its
    /// reader's group.
    ///
    /// # Errors
    /// A file is gone or can't be opened or made, or a daemon that shall read one is not installed.
    pub fn open(root: &Path, with_groups: bool) -> Result<Self, LookupError> {
        let is_new = !root.join(DIRECTORY.trim_start_matches('/')).exists();
        let places = Places::below(root);
        // Looked at before anything is changed: an emptied file that somebody has open can't be made a database again, and is as good as none.
        for path in [places.recipients, places.logins].iter().filter(|_| !is_new) {
            match path.exists() {
                true => shown(path).map(drop)?,
                false => return Err(LookupError::Gone { path: path.clone() }),
            }
        }
        Self::make(root, with_groups, is_new)
    }

    /// Moves aside what is there, over what was moved aside before, and makes new files.
    ///
    /// # Errors
    /// A file can't be moved or made.
    pub fn renew(root: &Path, with_groups: bool) -> Result<Self, LookupError> {
        let places = Places::below(root);
        for path in [places.recipients, places.logins] {
            for end in ["", "-wal", "-shm"] {
                let from = PathBuf::from(format!("{}{end}", path.display()));
                if from.exists() {
                    let to = PathBuf::from(format!("{}.{DAMAGED}{end}", path.display()));
                    std::fs::rename(&from, &to).map_err(failed(&from, "moving it aside"))?;
                }
            }
        }
        Self::make(root, with_groups, true)
    }

    fn make(root: &Path, with_groups: bool, is_new: bool) -> Result<Self, LookupError> {
        let places = Places::below(root);
        let group = |group, package| if with_groups { group_id(group, package).map(Some) } else { Ok(None) };
        let keys_group = group("_rspamd", "rspamd")?;
        make_directory(&root.join(DIRECTORY.trim_start_matches('/')), None, 0o711)?;
        make_directory(&places.keys, keys_group, 0o750)?;
        let recipients = file(&places.recipients, group("postfix", "postfix")?)?;
        let logins = file(&places.logins, group("dovecot", "dovecot-core")?)?;
        Ok(Self { places, recipients, logins, keys_group, is_new })
    }

    /// Whether nothing but [`Lookups::replace`] will do: there are no tables yet.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Puts rows that changed; a key without a row is removed. `at` is the directory's position that they show. Returns whose logins do
    /// not hold any more: addresses, and `*@DOMAIN` for a whole domain.
    ///
    /// # Errors
    /// A file can't be written. What was written shows the same or newer rows: putting them again does no harm.
    pub fn put(&mut self, rows: &[(RowKey, Option<Row>)], at: Position) -> Result<Vec<String>, LookupError> {
        let void = self.void_logins(rows)?;
        let is_gone = |row: &&(RowKey, Option<Row>)| row.1.is_none();
        // What is gone is first refused mail, then logins; what is new is first known to log in, then gets mail.
        self.keys(rows)?;
        self.change_recipients(rows.iter().filter(is_gone), None)?;
        self.change_logins(rows.iter(), Some(at))?;
        self.change_recipients(rows.iter().filter(|row| !is_gone(row)), Some(at))?;
        Ok(void)
    }

    /// Whose logins held until now and will not once these rows are put.
    fn void_logins(&self, rows: &[(RowKey, Option<Row>)]) -> Result<Vec<String>, LookupError> {
        let sqlite = |source| LookupError::Sqlite { path: self.places.logins.clone(), source };
        let held = |query: &str, key: &str| -> Result<Option<String>, LookupError> {
            let mut find = self.logins.prepare_cached(query).map_err(sqlite)?;
            find.query_row([key], |row| row.get(0)).optional().map_err(sqlite)
        };
        let mut void = Vec::new();
        for (key, row) in rows {
            match (key, row) {
                (RowKey::Mailbox(address), row) => {
                    let before =
                        held("SELECT password FROM mailbox WHERE address = ?1 AND active = 1", address.as_str())?;
                    let after = match row {
                        Some(Row::Mailbox(mailbox)) if is_active(mailbox.state) => Some(mailbox.password.as_str()),
                        _ => None,
                    };
                    if before.is_some() && before.as_deref() != after {
                        void.push(address.to_string());
                    }
                }
                (RowKey::MailDomain(name), row) => {
                    let before = held("SELECT name FROM domain WHERE name = ?1 AND active = 1", name.as_str())?;
                    let holds = matches!(row, Some(Row::MailDomain { domain, .. }) if is_active(domain.state));
                    if before.is_some() && !holds {
                        void.push(format!("*@{name}"));
                    }
                }
                (RowKey::MailAlias(_) | RowKey::Account(_) | RowKey::Site(_), _) => {}
            }
        }
        Ok(void)
    }

    /// Replaces everything by what `each` brings.
    ///
    /// # Errors
    /// A file can't be written; or `each` fails. The files are then as they were.
    pub fn replace<E: From<LookupError>>(
        &mut self,
        at: Position,
        each: impl Fn(&mut dyn FnMut(Row) -> Result<(), E>) -> Result<(), E>,
    ) -> Result<(), E> {
        let places = self.places.clone();
        let keys_group = self.keys_group;
        let mut kept = std::collections::BTreeSet::new();
        let bad = |path: &Path| {
            let path = path.to_owned();
            move |source| E::from(LookupError::Sqlite { path: path.clone(), source })
        };
        let failed = bad(&places.logins);
        let tx = self.logins.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let clear = "DELETE FROM domain; DELETE FROM mailbox;";
        tx.execute_batch(&format!("{LOGINS_SCHEMA} {POSITION_SCHEMA} {clear}")).map_err(&failed)?;
        each(&mut |row| {
            if let Row::MailDomain { domain, dkim: Some(dkim), .. } = &row {
                kept.insert(write_key(&places.keys, &domain.name, dkim, keys_group, atomic::replace)?);
            }
            put_login(&tx, &row.key(), Some(&row)).map_err(&failed)
        })?;
        // Tens of thousands of keys, made to last by one sync, before the position says that they are there.
        sync_all_of(&places.keys)?;
        set_position(&tx, at).and_then(|()| tx.commit()).map_err(&failed)?;
        let failed = bad(&places.recipients);
        let tx = self.recipients.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let clear = "DELETE FROM domain; DELETE FROM mailbox; DELETE FROM alias;";
        tx.execute_batch(&format!("{RECIPIENTS_SCHEMA} {POSITION_SCHEMA} {clear}")).map_err(&failed)?;
        each(&mut |row| put_recipient(&tx, &row.key(), Some(&row)).map_err(&failed))?;
        set_position(&tx, at).and_then(|()| tx.commit()).map_err(&failed)?;
        self.is_new = false;
        remove_other_keys(&places.keys, &kept)?;
        Ok(())
    }

    /// Has the probe mailbox as it should be, or not at all, in a file that was filled.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn put_probe(&mut self, probe: Option<&ProbeLogin>) -> Result<(), LookupError> {
        let sqlite = |source| LookupError::Sqlite { path: self.places.logins.clone(), source };
        // An earlier version's file has no table for it.
        self.logins.execute_batch(LOGINS_SCHEMA).map_err(sqlite)?;
        if probes(&self.logins).map_err(sqlite)?.iter().eq(probe) {
            return Ok(());
        }
        let tx = self.logins.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
        tx.execute("DELETE FROM probe", []).map_err(sqlite)?;
        if let Some(ProbeLogin { password, uid, home, networks }) = probe {
            let row = params![PROBE_USER, password, uid.get(), home, networks];
            tx.execute("INSERT INTO probe VALUES (?1, ?2, ?3, ?4, ?5)", row).map_err(sqlite)?;
        }
        tx.commit().map_err(sqlite)
    }

    /// The position of the directory that both files show; nothing where they show none or different ones.
    ///
    /// # Errors
    /// A file can't be read: it is damaged, or somebody holds it.
    pub fn position(&self) -> Result<Option<Position>, LookupError> {
        if self.is_new {
            return Ok(None);
        }
        // By connections of their own: these see what daemons see, also where a file was replaced.
        let (recipients, logins) = (shown(&self.places.recipients)?, shown(&self.places.logins)?);
        Ok(recipients.filter(|_| recipients == logins))
    }

    /// Domains whose key that signs is not where it is looked for, or is empty. Mail of theirs leaves unsigned.
    ///
    /// # Errors
    /// A file or the directory of keys can't be read.
    pub fn domains_without_key(&self) -> Result<Vec<HostName>, LookupError> {
        let sqlite = |source| LookupError::Sqlite { path: self.places.recipients.clone(), source };
        let sql = "SELECT name, selector FROM domain WHERE selector <> ''";
        let mut find = self.recipients.prepare_cached(sql).map_err(sqlite)?;
        let rows = find.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sqlite)?;
        let mut without = Vec::new();
        for row in rows {
            let (name, selector): (String, String) = row.map_err(sqlite)?;
            let path = self.places.keys.join(format!("{name}.{selector}.key"));
            let is_there = match std::fs::metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                metadata => metadata.map_err(failed(&path, "looking at it"))?.len() > 0,
            };
            // What is no name of a domain was not written here.
            without.extend((!is_there).then(|| name.parse().ok()).flatten());
        }
        Ok(without)
    }

    fn change_recipients<'r>(
        &mut self,
        rows: impl Iterator<Item = &'r (RowKey, Option<Row>)>,
        at: Option<Position>,
    ) -> Result<(), LookupError> {
        change(&mut self.recipients, rows, at, put_recipient)
            .map_err(|source| LookupError::Sqlite { path: self.places.recipients.clone(), source })
    }

    fn change_logins<'r>(
        &mut self,
        rows: impl Iterator<Item = &'r (RowKey, Option<Row>)>,
        at: Option<Position>,
    ) -> Result<(), LookupError> {
        change(&mut self.logins, rows, at, put_login)
            .map_err(|source| LookupError::Sqlite { path: self.places.logins.clone(), source })
    }

    /// Writes and removes the keys of domains that changed.
    fn keys(&self, rows: &[(RowKey, Option<Row>)]) -> Result<(), LookupError> {
        for (key, row) in rows {
            match (key, row) {
                (_, Some(Row::MailDomain { domain, dkim: Some(dkim), .. })) => {
                    write_key(&self.places.keys, &domain.name, dkim, self.keys_group, atomic::write).map(drop)?;
                }
                (RowKey::MailDomain(name), None) => {
                    // Without the row its selector is not known.
                    let file_names = list(&self.places.keys)?;
                    let is_its = |file: &&String| is_key_of(file, name);
                    for file in file_names.iter().filter(is_its) {
                        atomic::remove(&self.places.keys.join(file))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

type Put = fn(&Transaction<'_>, &RowKey, Option<&Row>) -> rusqlite::Result<()>;

fn change<'r>(
    connection: &mut Connection,
    rows: impl Iterator<Item = &'r (RowKey, Option<Row>)>,
    at: Option<Position>,
    put: Put,
) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (key, row) in rows {
        put(&tx, key, row.as_ref())?;
    }
    if let Some(at) = at {
        set_position(&tx, at)?;
    }
    tx.commit()
}

fn is_active(state: MailState) -> bool {
    state == MailState::Active
}

fn put_recipient(tx: &Transaction<'_>, key: &RowKey, row: Option<&Row>) -> rusqlite::Result<()> {
    match key {
        RowKey::MailDomain(name) => {
            tx.prepare_cached("DELETE FROM domain WHERE name = ?1")?.execute([name.as_str()])?
        }
        RowKey::Mailbox(address) => {
            tx.prepare_cached("DELETE FROM mailbox WHERE address = ?1")?.execute([address.as_str()])?
        }
        RowKey::MailAlias(source) => {
            tx.prepare_cached("DELETE FROM alias WHERE source = ?1")?.execute([source.as_str()])?
        }
        RowKey::Account(_) | RowKey::Site(_) => 0,
    };
    match row {
        Some(Row::MailDomain { domain: MailDomain { name, state, .. }, dkim, .. }) => {
            tx.prepare_cached("INSERT INTO domain VALUES (?1, ?2, ?3)")?.execute(params![
                name.as_str(),
                is_active(*state),
                dkim.as_ref().map_or("", |dkim| dkim.selector.as_str())
            ])?;
        }
        Some(Row::Mailbox(mailbox)) => {
            tx.prepare_cached("INSERT INTO mailbox VALUES (?1, ?2)")?
                .execute(params![mailbox.address.as_str(), is_active(mailbox.state)])?;
        }
        Some(Row::MailAlias(alias)) => {
            for target in &alias.targets {
                tx.prepare_cached("INSERT OR IGNORE INTO alias VALUES (?1, ?2)")?
                    .execute(params![alias.source.as_str(), target.as_str()])?;
            }
        }
        Some(Row::Account { .. } | Row::Site(_)) | None => {}
    }
    Ok(())
}

fn put_login(tx: &Transaction<'_>, key: &RowKey, row: Option<&Row>) -> rusqlite::Result<()> {
    match key {
        RowKey::MailDomain(name) => {
            tx.prepare_cached("DELETE FROM domain WHERE name = ?1")?.execute([name.as_str()])?
        }
        RowKey::Mailbox(address) => {
            tx.prepare_cached("DELETE FROM mailbox WHERE address = ?1")?.execute([address.as_str()])?
        }
        RowKey::MailAlias(_) | RowKey::Account(_) | RowKey::Site(_) => 0,
    };
    match row {
        Some(Row::MailDomain { domain, uid, share, .. }) => {
            let root = format!("{}/{}/", phalanx_model::share::mount_point(share), phalanx_model::mail::MAIL);
            tx.prepare_cached("INSERT INTO domain VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                domain.name.as_str(),
                uid.get(),
                root,
                is_active(domain.state)
            ])?;
        }
        Some(Row::Mailbox(mailbox)) => {
            tx.prepare_cached("INSERT INTO mailbox VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
                mailbox.address.as_str(),
                mailbox.address.domain(),
                mailbox.password.as_str(),
                mailbox.directory(),
                mailbox.quota_mib.bytes() as i64,
                is_active(mailbox.state)
            ])?;
        }
        Some(Row::MailAlias(_) | Row::Account { .. } | Row::Site(_)) | None => {}
    }
    Ok(())
}

fn probes(connection: &Connection) -> rusqlite::Result<Vec<ProbeLogin>> {
    let mut find = connection.prepare_cached("SELECT password, home, networks FROM probe WHERE uid = ?1")?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok(ProbeLogin { password: row.get(0)?, uid: Uid::PROBE, home: row.get(1)?, networks: row.get(2)? })
    };
    find.query_map([Uid::PROBE.get()], row)?.collect()
}

const POSITION_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS position (one INTEGER PRIMARY KEY CHECK (one = 1), incarnation INTEGER NOT NULL, term INTEGER NOT NULL,
  revision INTEGER NOT NULL) STRICT;
";

fn set_position(tx: &Transaction<'_>, at: Position) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO position VALUES (1, ?1, ?2, ?3)")?
        .execute(params![at.incarnation as i64, at.term as i64, at.revision as i64])
        .map(drop)
}

/// The position that a file shows.
fn shown(path: &Path) -> Result<Option<Position>, LookupError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    position(&connection).map_err(|source| LookupError::Sqlite { path: path.to_owned(), source })
}

fn position(connection: &Connection) -> rusqlite::Result<Option<Position>> {
    let mut find = connection.prepare("SELECT incarnation, term, revision FROM position")?;
    let mut rows = find.query([])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let number = |column| row.get::<_, i64>(column).map(|n| n as u64);
    Ok(Some(Position { incarnation: number(0)?, term: number(1)?, revision: number(2)? }))
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, LookupError> {
    let failed = |source| LookupError::Sqlite { path: path.to_owned(), source };
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).map_err(failed)?;
    Ok(connection)
}

/// Opens a file in a directory of its own, making both; only root writes, the group reads.
fn file(path: &Path, group: Option<u32>) -> Result<Connection, LookupError> {
    let sqlite = |source| LookupError::Sqlite { path: path.to_owned(), source };
    make_directory(path.parent().unwrap_or(path), group, 0o750)?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(sqlite)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(sqlite)?;
    // Who only reads can't make -wal and -shm; an empty transaction does.
    connection.execute_batch("BEGIN IMMEDIATE; COMMIT;").map_err(sqlite)?;
    // The directory keeps others out, so the files themselves may be readable: -wal and -shm take their mode from the file.
    let permissions = std::fs::Permissions::from_mode(0o644);
    for end in ["", "-wal", "-shm"] {
        let beside = PathBuf::from(format!("{}{end}", path.display()));
        std::fs::set_permissions(&beside, permissions.clone()).map_err(failed(&beside, "setting the mode"))?;
    }
    Ok(connection)
}

fn make_directory(path: &Path, group: Option<u32>, mode: u32) -> Result<(), FileError> {
    std::fs::create_dir_all(path).map_err(failed(path, "making the directory"))?;
    std::os::unix::fs::chown(path, None, group).map_err(failed(path, "giving it to its reader"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed(path, "setting the mode"))
}

/// The number of a group that a package makes.
fn group_id(group: &'static str, package: &'static str) -> Result<u32, LookupError> {
    atomic::group_id(group)?.ok_or(LookupError::NoReader { group, package })
}

fn key_file(domain: &HostName, dkim: &DkimKey) -> String {
    format!("{domain}.{}.key", dkim.selector)
}

fn is_key_of(file: &str, domain: &HostName) -> bool {
    let selector = file.strip_suffix(".key").and_then(|rest| rest.strip_prefix(domain.as_str())?.strip_prefix('.'));
    selector.is_some_and(|selector| !selector.contains('.'))
}

/// How a key is written: made to last at once, or by [`sync_all_of`] with others.
type WriteKey = fn(&Path, &[u8], Access) -> Result<(), FileError>;

/// Writes a key that is new or changed; returns its file's name.
fn write_key(
    keys: &Path,
    domain: &HostName,
    dkim: &DkimKey,
    group: Option<u32>,
    write: WriteKey,
) -> Result<String, LookupError> {
    let name = key_file(domain, dkim);
    let path = keys.join(&name);
    if atomic::read(&path)?.as_deref() != Some(dkim.private_pem.as_bytes()) {
        write(&path, dkim.private_pem.as_bytes(), Access { group, mode: 0o640 })?;
    }
    Ok(name)
}

/// Makes all that was written to a directory's file system last.
fn sync_all_of(directory: &Path) -> Result<(), LookupError> {
    let opened = std::fs::File::open(directory).map_err(failed(directory, "opening"))?;
    rustix::fs::syncfs(&opened).map_err(|error| failed(directory, "syncing")(error.into())).map_err(Into::into)
}

fn list(directory: &Path) -> Result<Vec<String>, FileError> {
    let entries = std::fs::read_dir(directory).map_err(failed(directory, "listing"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn remove_other_keys(keys: &Path, kept: &std::collections::BTreeSet<String>) -> Result<(), LookupError> {
    for name in list(keys)?.iter().filter(|name| !kept.contains(*name)) {
        atomic::remove(&keys.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
