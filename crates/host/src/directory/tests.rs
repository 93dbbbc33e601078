//! The directory against a real file: what is committed is seen, what is not is not.

use super::*;
use phalanx_model::{Account, AccountState, DirectoryChange, Limits, PhpVersion, Position, Row, RowKey, Site, Uid};
use phalanx_plan::session::upstream::BATCH_LEN_MAX;
use phalanx_plan::session::{Batch, Snapshot};
use std::path::PathBuf;
use tempfile::TempDir;

/// The file of a directory that was never filled, its writer, and the folder that holds it.
fn empty() -> (TempDir, PathBuf, Writer) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.sqlite");
    let writer = Writer::open(&path).unwrap();
    (folder, path, writer)
}

fn account(number: u32) -> Row {
    let account = Account {
        name: format!("acct{number}").parse().unwrap(),
        uid: Uid::try_from(Uid::FIRST.get() + number).unwrap(),
        logical_server: "www".parse().unwrap(),
        owner: "admin".parse().unwrap(),
        limits: Limits::default(),
        php: PhpVersion::default(),
        state: AccountState::Active,
    };
    Row::Account { account, share: "content".parse().unwrap() }
}

fn site(name: &str, aliases: &[&str], account: u32) -> Row {
    Row::Site(Site {
        name: name.parse().unwrap(),
        aliases: aliases.iter().map(|alias| alias.parse().unwrap()).collect(),
        account: format!("acct{account}").parse().unwrap(),
        document_root: "sites/x".parse().unwrap(),
    })
}

fn at(revision: u64) -> Position {
    Position { incarnation: 1, term: 1, revision }
}

fn put(row: Row) -> DirectoryChange {
    DirectoryChange::Put(Box::new(row))
}

fn batch(after: u64, upto: u64, change: DirectoryChange) -> Batch {
    Batch { after: at(after), upto: at(upto), changes: vec![change] }
}

fn whole(revision: u64, rows: Vec<Row>) -> Snapshot {
    Snapshot { at: at(revision), piece: 0, rows, last: true }
}

#[test]
fn a_row_is_seen_by_the_next_look_up_and_gone_when_removed() {
    let (_folder, path, mut writer) = empty();
    let reader = Reader::open(&path).unwrap();
    writer.collect(&whole(5, vec![account(1)])).unwrap();
    assert_eq!(reader.host("a.example").unwrap(), None);

    writer.apply(&batch(5, 7, put(site("a.example", &["b.example"], 1)))).unwrap();
    let entry = reader.host("b.example").unwrap().unwrap();
    assert_eq!((entry.site.as_str(), entry.account.as_str()), ("a.example", "acct1"));
    assert_eq!(writer.position().unwrap(), at(7));

    writer.apply(&batch(7, 8, DirectoryChange::Remove(RowKey::Site("a.example".parse().unwrap())))).unwrap();
    assert_eq!(reader.host("a.example").unwrap(), None);
    assert_eq!(reader.host("b.example").unwrap(), None);
}

#[test]
fn a_batch_that_does_not_fit_changes_nothing() {
    let (_folder, _, mut writer) = empty();
    writer.collect(&whole(5, vec![account(1)])).unwrap();
    assert!(matches!(writer.apply(&batch(4, 6, put(account(2)))), Err(DirectoryError::Gap { .. })));
    assert_eq!(writer.position().unwrap(), at(5));
}

#[test]
fn a_directory_that_was_never_filled_says_so() {
    let (_folder, path, mut writer) = empty();
    let reader = Reader::open(&path).unwrap();
    assert!(!reader.is_filled().unwrap());
    writer.collect(&Snapshot { at: at(5), piece: 0, rows: vec![account(1)], last: false }).unwrap();
    assert!(!reader.is_filled().unwrap());
    writer.collect(&Snapshot { at: at(5), piece: 1, rows: vec![], last: true }).unwrap();
    assert!(reader.is_filled().unwrap());
}

#[test]
fn half_a_snapshot_is_never_seen() {
    let (_folder, path, mut writer) = empty();
    let reader = Reader::open(&path).unwrap();
    writer.collect(&whole(5, vec![account(1), site("a.example", &[], 1)])).unwrap();
    let first = Snapshot { at: at(9), piece: 0, rows: vec![account(2)], last: false };
    writer.collect(&first).unwrap();
    assert!(reader.host("a.example").unwrap().is_some());
    writer.collect(&Snapshot { piece: 1, rows: vec![site("c.example", &[], 2)], last: true, ..first }).unwrap();
    assert!(reader.host("a.example").unwrap().is_none());
    assert!(reader.host("c.example").unwrap().is_some());
    assert_eq!(writer.position().unwrap(), at(9));
}

#[test]
fn what_changed_stays_dirty_until_it_is_derived() {
    let (_folder, path, mut writer) = empty();
    writer.collect(&whole(5, vec![account(1), account(2)])).unwrap();
    let dirty = writer.dirty(10).unwrap();
    assert_eq!(dirty.len(), 2);
    writer.apply(&batch(5, 6, put(site("a.example", &[], 2)))).unwrap();
    writer.clear_dirty(&dirty, at(5)).unwrap();
    assert_eq!(writer.dirty(10).unwrap().len(), 2, "the directory moved on in between");
    writer.clear_dirty(&dirty, at(6)).unwrap();
    assert!(writer.dirty(10).unwrap().is_empty());
    drop(writer);
    let mut writer = Writer::open(&path).unwrap();
    writer.apply(&batch(6, 7, DirectoryChange::Remove(RowKey::Account("acct1".parse().unwrap())))).unwrap();
    assert_eq!(writer.dirty(10).unwrap()[0].uid.get(), Uid::FIRST.get() + 1, "a removed account is known by its uid");
}

#[test]
fn a_slave_gets_the_log_or_a_snapshot_and_ends_up_the_same() {
    let (_masters, master_path, mut master) = empty();
    let (_slaves, slave_path, mut slave) = empty();
    let rows = (0..2_500).map(account).collect();
    master.collect(&whole(3_000, rows)).unwrap();
    assert_eq!(master.changes_after(slave.position().unwrap()).unwrap(), ChangesRead::TooShort);

    let mut snapshot = SnapshotReader::open(&master_path).unwrap();
    master.apply(&batch(3_000, 3_001, put(site("late.example", &[], 7)))).unwrap();
    let mut pieces = 0;
    loop {
        let piece = snapshot.next_piece().unwrap();
        slave.collect(&piece).unwrap();
        pieces += 1;
        if piece.last {
            break;
        }
    }
    assert_eq!(pieces, 2_500 / BATCH_LEN_MAX + 1);
    assert_eq!(slave.position().unwrap(), at(3_000), "the snapshot is of the moment it was opened");

    let ChangesRead::Batch(batch) = master.changes_after(at(3_000)).unwrap() else { panic!("the log reaches back") };
    slave.apply(&batch).unwrap();
    assert_eq!(slave.position().unwrap(), master.position().unwrap());
    let reader = Reader::open(&slave_path).unwrap();
    assert_eq!(reader.host("late.example").unwrap().unwrap().account.as_str(), "acct7");
    assert_eq!(reader.accounts(None, 10_000).unwrap().len(), 2_500);
}

#[test]
fn readers_go_on_when_the_writer_ends_while_the_file_is_kept_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.sqlite");
    let keeper = keep_open(&path).unwrap();
    let mut writer = Writer::open(&path).unwrap();
    writer.collect(&whole(5, vec![account(1), site("a.example", &[], 1)])).unwrap();
    drop(writer);
    assert!(path.with_extension("sqlite-wal").exists());
    assert!(Reader::open(&path).unwrap().host("a.example").unwrap().is_some());
    drop(keeper);
}
