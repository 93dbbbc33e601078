//! Look-ups against a real file that is changed, replaced and broken meanwhile.

use super::*;
use phalanx_host::directory::Writer;
use phalanx_model::{Account, AccountState, DirectoryChange, Limits, PhpVersion, Position, Row, RowKey, Site, Uid};
use phalanx_plan::session::{Batch, Snapshot};

const HOST: &str = "www.site.example";

/// A directory file, and whoever changes it.
struct Changing {
    writer: Writer,
    revision: u64,
}

impl Changing {
    /// A directory with one account that has one site.
    fn new(path: &Path, state: AccountState) -> Self {
        let mut writer = Writer::open(path).expect("a directory");
        let empty = Snapshot { at: position(1), piece: 0, rows: Vec::new(), last: true };
        writer.collect(&empty).expect("filled");
        let mut changing = Self { writer, revision: 1 };
        changing.account(state);
        changing.put(Row::Site(Site {
            name: HOST.parse().expect("a host name"),
            aliases: Vec::new(),
            account: "a0".parse().expect("a name"),
            document_root: "sites/x".parse().expect("a path"),
        }));
        changing
    }

    fn account(&mut self, state: AccountState) {
        let account = Account {
            name: "a0".parse().expect("a name"),
            uid: Uid::FIRST,
            logical_server: "www".parse().expect("a name"),
            owner: "admin".parse().expect("a name"),
            limits: Limits::default(),
            php: PhpVersion::default(),
            state,
        };
        self.put(Row::Account { account, share: "web".parse().expect("a name") });
    }

    fn put(&mut self, row: Row) {
        self.change(DirectoryChange::Put(Box::new(row)));
    }

    fn change(&mut self, change: DirectoryChange) {
        let (after, upto) = (position(self.revision), position(self.revision + 1));
        self.writer.apply(&Batch { after, upto, changes: vec![change] }).expect("applied");
        self.revision += 1;
    }
}

fn position(revision: u64) -> Position {
    Position { incarnation: 1, term: 1, revision }
}

/// The state that the host's account has, `None` where nobody has the host.
async fn state(directory: &Directory) -> Option<AccountState> {
    directory.host(HOST).await.expect("an answer").map(|entry| entry.state)
}

/// Asks often, so that answers are kept and confirmed in advance, until the answer is as `wanted`.
async fn becomes(directory: &Directory, wanted: Option<AccountState>) {
    let begin = Instant::now();
    while state(directory).await != wanted {
        // Much more than the lifetime, since this machine may be busy: an answer that is kept for ever is what must not be.
        assert!(begin.elapsed() < Duration::from_secs(5), "it did not become {wanted:?}");
    }
}

#[tokio::test]
async fn what_is_committed_is_seen_also_by_those_who_ask_all_the_time() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("directory.sqlite");
    let mut changing = Changing::new(&path, AccountState::Active);
    let directory = Directory::start(&path).expect("started");
    for _ in 0..20 {
        becomes(&directory, Some(AccountState::Active)).await;
        changing.account(AccountState::Suspended);
        becomes(&directory, Some(AccountState::Suspended)).await;
        changing.account(AccountState::Active);
    }
    changing.change(DirectoryChange::Remove(RowKey::Site(HOST.parse().expect("a host name"))));
    becomes(&directory, None).await;
}

#[tokio::test]
async fn after_the_lifetime_nothing_old_is_answered() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("directory.sqlite");
    let mut changing = Changing::new(&path, AccountState::Active);
    let directory = Directory::start(&path).expect("started");
    for _ in 0..20 {
        assert_eq!(state(&directory).await, Some(AccountState::Active));
        changing.account(AccountState::Suspended);
        tokio::time::sleep(cache::LIFETIME + Duration::from_millis(1)).await;
        assert_eq!(state(&directory).await, Some(AccountState::Suspended));
        changing.account(AccountState::Active);
        tokio::time::sleep(cache::LIFETIME + Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_file_that_takes_the_others_place_is_read() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("directory.sqlite");
    let _old = Changing::new(&path, AccountState::Active);
    let directory = Directory::start(&path).expect("started");
    becomes(&directory, Some(AccountState::Active)).await;
    for end in ["", "-wal", "-shm"] {
        let name = |stem: &str| place.path().join(format!("{stem}{end}"));
        std::fs::rename(name("directory.sqlite"), name("old.sqlite")).expect("moved");
    }
    assert_eq!(state(&directory).await, Some(AccountState::Active), "a file that was moved away is read on");
    let _new = Changing::new(&path, AccountState::Suspended);
    becomes(&directory, Some(AccountState::Suspended)).await;
}

#[tokio::test]
async fn a_directory_that_can_not_be_read_is_no_answer_and_is_read_when_it_can() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("directory.sqlite");
    let directory = Directory::start(&path).expect("started");
    assert!(matches!(directory.host(HOST).await, Err(LookupError::Unreadable)));
    let mut writer = Writer::open(&path).expect("a directory");
    assert!(matches!(directory.host(HOST).await, Err(LookupError::NotFilled)));
    let empty = Snapshot { at: position(1), piece: 0, rows: Vec::new(), last: true };
    writer.collect(&empty).expect("filled");
    assert_eq!(state(&directory).await, None, "that it was not filled is not kept");
}
