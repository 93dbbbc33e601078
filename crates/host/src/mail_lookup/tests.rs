//! The look-up files, asked as the daemons ask them.

use super::*;
use phalanx_model::mail::{MailboxId, QuotaMib};
use phalanx_model::{MailAlias, Mailbox, Uid};

fn domain(state: MailState) -> Row {
    domain_named("example.org", state)
}

fn domain_named(name: &str, state: MailState) -> Row {
    Row::MailDomain {
        domain: MailDomain {
            name: name.parse().expect("a domain"),
            account: "alice".parse().expect("a name"),
            logical_server: "post".parse().expect("a name"),
            state,
        },
        uid: Uid::FIRST,
        share: "content".parse().expect("a name"),
        dkim: Some(DkimKey {
            selector: "phalanx".parse().expect("a name"),
            private_pem: "a key\n".into(),
            public_base64: "MII".into(),
        }),
    }
}

fn mailbox(address: &str) -> Row {
    Row::Mailbox(Mailbox {
        address: address.parse().expect("an address"),
        id: MailboxId(7),
        password: "{SHA512-CRYPT}$6$saltsaltsaltsaltsalt".parse().expect("a hash"),
        quota_mib: QuotaMib::default(),
        state: MailState::Active,
    })
}

fn alias(source: &str, targets: &[&str]) -> Row {
    Row::MailAlias(MailAlias {
        source: source.parse().expect("a source"),
        targets: targets.iter().map(|target| target.parse().expect("an address")).collect(),
    })
}

fn at(revision: u64) -> Position {
    Position { incarnation: 1, term: 1, revision }
}

/// Asks as a daemon does: read-only, by the query that its configuration holds.
fn ask(root: &Path, file: &str, query: &str, key: &str) -> Vec<String> {
    // Postfix' `%s` is the key, Dovecot's the protocol.
    ask_for(root, file, query, key, if file == LOGINS { "imap" } else { key })
}

fn ask_for(root: &Path, file: &str, query: &str, key: &str, percent_s: &str) -> Vec<String> {
    let path = root.join(file.trim_start_matches('/'));
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opened");
    let domain = key.split_once('@').map_or(key, |(_, domain)| domain);
    let text = query.replace("%s", percent_s).replace("%u", key).replace("%d", domain);
    let mut find = connection.prepare(&text).expect("a query");
    let columns = find.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        let values = (0..columns).map(|column| match row.get_ref(column)? {
            rusqlite::types::ValueRef::Integer(number) => Ok(number.to_string()),
            rusqlite::types::ValueRef::Null => Ok("-".to_owned()),
            other => Ok(other.as_str()?.to_owned()),
        });
        values.collect::<rusqlite::Result<Vec<_>>>().map(|values| values.join(" "))
    };
    find.query_map([], row).expect("asked").collect::<rusqlite::Result<_>>().expect("rows")
}

/// Files that have all rows of nobody.
fn made(root: &Path) -> Lookups {
    let mut lookups = Lookups::open(root, false).expect("opened");
    lookups.replace::<LookupError>(at(0), |_| Ok(())).expect("filled");
    lookups
}

fn put(lookups: &mut Lookups, rows: &[Row], revision: u64) -> Vec<String> {
    let rows: Vec<_> = rows.iter().map(|row| (row.key(), Some(row.clone()))).collect();
    lookups.put(&rows, at(revision)).expect("put")
}

#[test]
fn a_login_is_void_when_its_proof_is_another_or_gone() {
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = made(root.path());
    let with = |change: fn(&mut Mailbox)| match mailbox("info@example.org") {
        Row::Mailbox(mut mailbox) => {
            change(&mut mailbox);
            Row::Mailbox(mailbox)
        }
        other => other,
    };
    let none = [""; 0];
    assert_eq!(put(&mut lookups, &[domain(MailState::Active), mailbox("info@example.org")], 1), none, "it is new");
    let more = with(|mailbox| mailbox.quota_mib = QuotaMib::try_from(7).expect("a quota"));
    assert_eq!(put(&mut lookups, &[more], 2), none, "more room ends no session");
    let other = with(|mailbox| mailbox.password = "{SHA512-CRYPT}$6$othersaltothersalt".parse().expect("a hash"));
    assert_eq!(put(&mut lookups, std::slice::from_ref(&other), 3), ["info@example.org"], "another password");
    assert_eq!(put(&mut lookups, &[with(|mailbox| mailbox.state = MailState::Suspended)], 4), ["info@example.org"]);
    assert_eq!(put(&mut lookups, std::slice::from_ref(&other), 5), none, "nobody was in");
    assert_eq!(put(&mut lookups, &[domain(MailState::Suspended)], 6), ["*@example.org"]);
    assert_eq!(lookups.put(&[(other.key(), None)], at(7)).expect("removed"), ["info@example.org"]);
    assert_eq!(lookups.put(&[(domain(MailState::Active).key(), None)], at(8)).expect("removed"), none);
}

#[test]
fn daemons_find_what_the_directory_has() {
    use phalanx_plan::mail::lookup as query;
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = made(root.path());
    let rows = [
        domain(MailState::Active),
        mailbox("info@example.org"),
        alias("sales@example.org", &["info@example.org", "far@elsewhere.net"]),
        alias("@example.org", &["info@example.org"]),
        domain_named("example.com", MailState::Active),
        alias("old@example.com", &["gone@example.com"]),
        alias("part@example.com", &["gone@example.com", "Info+x@example.org", "old@example.com", "any@example.org"]),
    ];
    put(&mut lookups, &rows, 3);
    assert_eq!(lookups.position().expect("readable"), Some(at(3)));
    let recipients = |query, key: &str| ask(root.path(), RECIPIENTS, query, key);
    assert_eq!(recipients(query::DOMAINS, "example.org"), ["example.org"]);
    assert_eq!(recipients(query::MAILBOXES, "info@example.org"), ["info@example.org"]);
    assert_eq!(
        recipients(query::ALIASES, "info@example.org"),
        ["info@example.org"],
        "a catch-all takes no mailbox's mail"
    );
    assert_eq!(recipients(query::ALIASES, "sales@example.org"), ["far@elsewhere.net", "info@example.org"]);
    assert_eq!(recipients(query::ALIASES, "@example.org"), ["info@example.org"]);
    assert_eq!(recipients(query::ALIASES, "nobody@example.org"), [""; 0]);
    // A target that is nobody's would bounce what was taken.
    let part = ["Info+x@example.org", "any@example.org", "old@example.com"];
    assert_eq!(recipients(query::ALIASES, "part@example.com"), part);
    assert_eq!(recipients(query::ALIASES, "old@example.com"), [""; 0]);
    assert_eq!(recipients(query::SENDERS, "sales@example.org"), ["far@elsewhere.net", "info@example.org"]);
    assert_eq!(recipients(query::STRAIGHT, "info@example.org"), ["smtp:"]);
    assert_eq!(recipients(query::STRAIGHT, "x@elsewhere.net"), [""; 0]);
    assert_eq!(recipients(query::SUSPENDED, "info@example.org"), [""; 0]);
    let logins = |query, key: &str| ask(root.path(), LOGINS, query, key);
    assert_eq!(
        logins(query::PASSWORD, "info@example.org"),
        ["info@example.org {SHA512-CRYPT}$6$saltsaltsaltsaltsalt -"]
    );
    let uid = Uid::FIRST;
    let place = format!("{uid} {uid} /srv/phalanx/content/mail/example.org/info.7 *:bytes=1073741824");
    assert_eq!(logins(query::USER, "info@example.org"), [place.as_str()]);
    assert!(root.path().join("var/lib/phalanx/mail/keys/example.org.phalanx.key").exists());

    put(&mut lookups, &[domain(MailState::Suspended)], 4);
    assert_eq!(recipients(query::SUSPENDED, "info@example.org").len(), 1);
    assert_eq!(logins(query::PASSWORD, "info@example.org"), [""; 0], "nobody logs in");
    assert_eq!(logins(query::USER, "info@example.org"), [place.as_str()], "what was taken is delivered");
}

#[test]
fn what_is_removed_is_gone_and_a_replacement_leaves_nothing_behind() {
    use phalanx_plan::mail::lookup as query;
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = made(root.path());
    put(&mut lookups, &[domain(MailState::Active), mailbox("info@example.org"), mailbox("old@example.org")], 1);
    lookups.put(&[(mailbox("info@example.org").key(), None)], at(2)).expect("removed");
    let found = |address: &str| {
        (
            ask(root.path(), RECIPIENTS, query::MAILBOXES, address).len(),
            ask(root.path(), LOGINS, query::USER, address).len(),
        )
    };
    assert_eq!((found("info@example.org"), found("old@example.org")), ((0, 0), (1, 1)));
    lookups.replace::<LookupError>(at(9), |put| put(mailbox("new@example.org"))).expect("replaced");
    assert_eq!(ask(root.path(), RECIPIENTS, query::MAILBOXES, "new@example.org").len(), 1);
    assert_eq!(found("old@example.org"), (0, 0));
    assert!(!root.path().join("var/lib/phalanx/mail/keys/example.org.phalanx.key").exists(), "its key is gone, too");
    assert_eq!(lookups.position().expect("readable"), Some(at(9)));
    let failing = lookups.replace::<LookupError>(at(10), |put| {
        put(mailbox("half@example.org"))?;
        Err(LookupError::NoReader { group: "x", package: "y" })
    });
    assert!(failing.is_err() && found("half@example.org") == (0, 0), "half a replacement is none");
    assert_eq!(lookups.position().expect("readable"), Some(at(9)));
}

#[test]
fn only_what_a_new_file_mends_is_damage() {
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = made(root.path());
    put(&mut lookups, &[mailbox("info@example.org")], 1);
    let file = root.path().join(RECIPIENTS.trim_start_matches('/'));
    // Somebody holds it: the writer waits in vain, readers go on.
    let holder = Connection::open(&file).expect("opened");
    holder.execute_batch("BEGIN IMMEDIATE").expect("held");
    let held = lookups.put(&[(mailbox("late@example.org").key(), None)], at(2)).expect_err("it is held");
    assert!(!held.is_damage(), "{held}");
    holder.execute_batch("ROLLBACK; PRAGMA wal_checkpoint(TRUNCATE)").expect("let go");
    drop(holder);
    assert_eq!(lookups.position().expect("readable"), Some(at(1)), "nothing was changed");
    std::fs::write(&file, [7; 8_192]).expect("overwritten");
    assert!(lookups.position().expect_err("no database").is_damage());
    std::fs::remove_file(&file).expect("removed");
    assert!(lookups.position().expect_err("gone").is_damage());
    drop(lookups);
    let gone = Lookups::open(root.path(), false).expect_err("it was there");
    assert!(matches!(&gone, LookupError::Gone { path } if *path == file) && gone.is_damage(), "{gone}");
    let mut lookups = Lookups::renew(root.path(), false).expect("made anew");
    assert!(lookups.is_new() && lookups.position().expect("readable").is_none());
    lookups.replace::<LookupError>(at(3), |_| Ok(())).expect("filled");
    assert!(!lookups.is_new() && lookups.position().expect("readable") == Some(at(3)));
}

#[test]
fn daemons_that_ask_before_a_file_has_all_rows_fail() {
    use phalanx_plan::mail::lookup as query;
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = Lookups::open(root.path(), false).expect("opened");
    let fails = |file: &str, query: &str| {
        let path = root.path().join(file.trim_start_matches('/'));
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opened");
        connection.prepare(query).is_err()
    };
    assert!(lookups.is_new() && fails(RECIPIENTS, query::MAILBOXES) && fails(LOGINS, query::PASSWORD));
    lookups
        .replace::<LookupError>(at(1), |put| {
            put(mailbox("info@example.org"))?;
            assert!(fails(RECIPIENTS, query::MAILBOXES), "one row is not all");
            Ok(())
        })
        .expect("filled");
    assert!(!fails(RECIPIENTS, query::MAILBOXES) && !fails(LOGINS, query::PASSWORD));
    // One that somebody emptied is no new one, also while others have it open.
    let others = keep_open(root.path(), vec![]).expect("kept open");
    drop(lookups);
    std::fs::write(root.path().join(LOGINS.trim_start_matches('/')), "").expect("emptied");
    assert!(Lookups::open(root.path(), false).expect_err("no tables").is_damage());
    drop(others);
}

#[test]
fn damage_is_found_behind_a_whole_first_page() {
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = made(root.path());
    let rows: Vec<Row> = (0..500).map(|number| mailbox(&format!("m{number}@example.org"))).collect();
    put(&mut lookups, &rows, 1);
    check(root.path()).expect("whole");
    drop(lookups);
    let file = root.path().join(LOGINS.trim_start_matches('/'));
    let mut content = std::fs::read(&file).expect("read");
    content[32_768..40_960].fill(7);
    std::fs::write(&file, content).expect("damaged");
    let found = check(root.path()).expect_err("damaged");
    assert!(found.is_damage() && found.to_string().contains("logins.sqlite"), "{found}");
    assert_eq!(Lookups::open(root.path(), false).expect("opens").position().expect("readable"), Some(at(1)));
}

#[test]
fn a_key_that_is_gone_is_missed() {
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = made(root.path());
    let (one, two) = (domain_named("one.example", MailState::Active), domain_named("two.example", MailState::Active));
    lookups.put(&[(one.key(), Some(one)), (two.key(), Some(two.clone()))], at(1)).expect("put");
    assert_eq!(lookups.domains_without_key().expect("read"), []);
    let key = root.path().join(KEYS.trim_start_matches('/')).join("two.example.phalanx.key");
    for damage in [|path: &Path| std::fs::remove_file(path), |path: &Path| std::fs::write(path, "")] {
        damage(&key).expect("damaged");
        assert_eq!(lookups.domains_without_key().expect("read"), ["two.example".parse().expect("a domain")]);
        lookups.put(&[(two.key(), Some(two.clone()))], at(1)).expect("put");
        assert_eq!(lookups.domains_without_key().expect("read"), []);
    }
}

#[test]
fn a_key_of_another_domain_is_not_taken_for_ones_own() {
    let name: HostName = "example.org".parse().expect("a domain");
    assert!(is_key_of("example.org.phalanx.key", &name));
    assert!(!is_key_of("example.org.uk.phalanx.key", &name) && !is_key_of("a.example.org.phalanx.key", &name));
}

#[test]
fn the_probe_mailbox_gets_in_by_imap_and_pop3_alone_and_is_on_no_list() {
    use phalanx_plan::mail::lookup as query;
    let root = tempfile::tempdir().expect("a directory");
    let mut lookups = Lookups::open(root.path(), false).expect("opened");
    let probe = |password: &str| ProbeLogin {
        password: password.to_owned(),
        uid: Uid::PROBE,
        home: "/srv/phalanx/letters/mail/probe_mail".to_owned(),
        networks: "10.9.0.1/32".to_owned(),
    };
    lookups.replace::<LookupError>(at(1), |put| put(mailbox("info@example.org"))).expect("filled");
    lookups.put_probe(Some(&probe("{SHA256.HEX}00"))).expect("put");
    lookups.put_probe(Some(&probe("{SHA256.HEX}ff"))).expect("another password");
    lookups.put_probe(Some(&probe("{SHA256.HEX}ff"))).expect("nothing to do");
    lookups.replace::<LookupError>(at(2), |put| put(mailbox("info@example.org"))).expect("replaced");
    let logins = |query, protocol| ask_for(root.path(), LOGINS, query, PROBE_USER, protocol);
    for protocol in ["imap", "pop3"] {
        assert_eq!(logins(query::PASSWORD, protocol), ["phalanx-probe {SHA256.HEX}ff 10.9.0.1/32"]);
        let uid = Uid::PROBE;
        let place = format!("{uid} {uid} /srv/phalanx/letters/mail/probe_mail *:bytes=1048576");
        assert_eq!(logins(query::USER, protocol), [place]);
    }
    for protocol in ["smtp", "sieve", "lmtp", "submission", "doveadm", ""] {
        assert_eq!(logins(query::PASSWORD, protocol), [""; 0], "{protocol}");
        assert_eq!(logins(query::USER, protocol), [""; 0], "{protocol}");
    }
    assert_eq!(logins(query::USERS, ""), ["info@example.org"]);
    let recipients = |query| ask(root.path(), RECIPIENTS, query, PROBE_USER);
    assert_eq!(recipients(query::MAILBOXES), [""; 0]);
    lookups.put_probe(None).expect("gone");
    assert_eq!(logins(query::PASSWORD, "imap"), [""; 0]);
}
