//! The SQLite files that mail daemons look things up in: their tables, and the queries that daemons make.
//!
//! There are two, by who may read them: who is taken mail for (Postfix), and what proves a login (Dovecot). Keys that sign lie beside them as
//! files, one for each domain (Rspamd). A row of the directory becomes rows here; what a domain decides for all its mailboxes is joined
//! by the query, so that a change of a domain changes one row.

/// Where all of them lie, each in a directory of its own that its reader's group may enter.
pub const DIRECTORY: &str = "/var/lib/phalanx/mail";

/// Who is taken mail for: read by Postfix.
pub const RECIPIENTS: &str = "/var/lib/phalanx/mail/recipients/recipients.sqlite";

/// Who may log in, and where the mailbox lies: read by Dovecot.
pub const LOGINS: &str = "/var/lib/phalanx/mail/logins/logins.sqlite";

/// The directory of keys that sign mail, `DOMAIN.SELECTOR.key`: read by Rspamd.
pub const KEYS: &str = "/var/lib/phalanx/mail/keys";

/// The tables of [`RECIPIENTS`]. `active` is 1 or 0.
pub const RECIPIENTS_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS domain (name TEXT PRIMARY KEY, active INTEGER NOT NULL, selector TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mailbox (address TEXT PRIMARY KEY, active INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alias (source TEXT NOT NULL, target TEXT NOT NULL, PRIMARY KEY (source, target)) STRICT, WITHOUT ROWID;
";

/// The tables of [`LOGINS`]. `root` is the directory of mail on the mounted share, with a slash at its end; `directory` lies below it.
pub const LOGINS_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS domain (name TEXT PRIMARY KEY, uid INTEGER NOT NULL, root TEXT NOT NULL, active INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mailbox (address TEXT PRIMARY KEY, domain TEXT NOT NULL, password TEXT NOT NULL, directory TEXT NOT NULL,
  quota_bytes INTEGER NOT NULL, active INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS probe (name TEXT PRIMARY KEY, password TEXT NOT NULL, uid INTEGER NOT NULL, home TEXT NOT NULL, networks TEXT NOT NULL)
  STRICT, WITHOUT ROWID;
";

/// The mailbox that balancers try a login with ([`super::probe`]). Customers' have a domain.
pub const PROBE_USER: &str = "phalanx-probe";

/// Domains that mail is taken for.
pub const DOMAINS: &str = "SELECT name FROM domain WHERE name = '%s'";

/// Mailboxes.
pub const MAILBOXES: &str = "SELECT address FROM mailbox WHERE address = '%s'";

/// Where mail for an address goes. A mailbox is its own alias, so that a catch-all of its domain does not take its mail. A target of a domain
/// of ours that is neither mailbox nor alias is left out: what is taken for it could only bounce.
pub const ALIASES: &str = "SELECT a.target FROM alias a WHERE a.source = '%s' AND (\
    NOT EXISTS (SELECT 1 FROM domain WHERE name = substr(a.target, instr(a.target, '@') + 1)) \
    OR EXISTS (SELECT 1 FROM mailbox WHERE address = lower(a.target) OR address = lower(substr(a.target, 1, instr(a.target, '+') - 1) \
    || substr(a.target, instr(a.target, '@')))) \
    OR EXISTS (SELECT 1 FROM alias WHERE source = lower(a.target) OR source = substr(a.target, instr(a.target, '@')))) \
    UNION ALL SELECT address FROM mailbox WHERE address = '%s' AND NOT EXISTS (SELECT 1 FROM alias WHERE source = '%s')";

/// Recipients that have to wait, with the answer to the sender.
pub const SUSPENDED: &str = "SELECT '450 4.2.1 This mailbox is suspended, try again later' FROM domain WHERE name = '%d' AND (active = 0 \
    OR EXISTS (SELECT 1 FROM mailbox WHERE address = '%s' AND active = 0))";

/// Who may send as an address: the mailbox of that name, and each that an alias of that name leads to.
pub const SENDERS: &str =
    "SELECT address FROM mailbox WHERE address = '%s' UNION SELECT target FROM alias WHERE source = '%s'";

/// How mail of a sender reaches other servers: straight, if the sender is of a domain of ours.
pub const STRAIGHT: &str = "SELECT 'smtp:' FROM domain WHERE name = '%d'";

/// What proves a login. The probe's holds for IMAP and POP3 alone, and from its networks.
pub const PASSWORD: &str = "SELECT m.address AS user, m.password AS password, NULL AS allow_nets FROM mailbox m \
    JOIN domain d ON d.name = m.domain WHERE m.address = '%u' AND m.active = 1 AND d.active = 1 \
    UNION ALL SELECT name, password, networks FROM probe WHERE name = '%u' AND '%s' IN ('imap', 'pop3')";

/// Whose a mailbox is and where it lies. One that is suspended has a place, too: for what was taken before.
pub const USER: &str = "SELECT d.uid AS uid, d.uid AS gid, d.root || m.directory AS home, '*:bytes=' || m.quota_bytes AS quota_rule \
    FROM mailbox m JOIN domain d ON d.name = m.domain WHERE m.address = '%u' \
    UNION ALL SELECT uid, uid, home, '*:bytes=1048576' FROM probe WHERE name = '%u' AND '%s' IN ('imap', 'pop3')";

/// All mailboxes.
pub const USERS: &str = "SELECT address AS user FROM mailbox";
