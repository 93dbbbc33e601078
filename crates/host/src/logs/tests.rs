//! On real files, as root: what a home's owner may do to his log, and whose things are whose.

use super::*;
use phalanx_model::Uid;
use phalanx_model::share::{HOMES, Marker};
use phalanx_plan::logs::DIRECTORY;
use phalanx_plan::logs::batch::Log;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};

struct Place {
    root: tempfile::TempDir,
    share: LogsShare,
}

fn place() -> Place {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open to all");
    let marker = Marker::from_bits(7);
    std::fs::write(root.path().join(MARKER_FILE), format!("{}\n", marker.as_str())).expect("written");
    std::fs::create_dir(root.path().join(DIRECTORY)).expect("made");
    chown(root.path().join(DIRECTORY), Some(OWNER), Some(OWNER)).expect("given");
    for part in [HOMES, "home/alice", "home/alice/logs"] {
        std::fs::create_dir(root.path().join(part)).expect("made");
    }
    for part in ["home/alice", "home/alice/logs"] {
        chown(root.path().join(part), Some(Uid::FIRST.get()), Some(Uid::FIRST.get())).expect("given");
    }
    let share = LogsShare {
        share: "web".parse().expect("a name"),
        marker,
        mount_point: root.path().to_str().expect("UTF-8").to_owned(),
    };
    Place { root, share }
}

fn log() -> Log {
    Log::Site { site: "www.example.org".to_owned(), account: "alice".parse().expect("a name"), uid: Uid::FIRST }
}

#[test]
fn only_the_right_share_is_opened() {
    let Place { root, share } = place();
    assert!(LogShare::open(&share, Stream::Access).is_ok());
    let other = LogsShare { marker: Marker::from_bits(8), ..share.clone() };
    assert!(LogShare::open(&other, Stream::Access).expect_err("another's").to_string().contains("marker"));
    std::fs::remove_file(root.path().join(MARKER_FILE)).expect("removed");
    assert!(LogShare::open(&share, Stream::Access).is_err(), "nothing is mounted");
}

#[test]
fn small_files_are_the_owners_and_replaced_whole() {
    let Place { root, share } = place();
    let opened = LogShare::open(&share, Stream::Access).expect("opened");
    assert_eq!(opened.get("web1/x.json").expect("looked"), None);
    for content in ["one", "two"] {
        opened.set("web1/x.json", content.as_bytes()).expect("written");
        assert_eq!(opened.get("web1/x.json").expect("read").expect("there"), content.as_bytes());
    }
    let metadata = root.path().join(DIRECTORY).join("web1/x.json").metadata().expect("there");
    assert_eq!((metadata.uid(), metadata.gid()), (OWNER, OWNER));
    assert_eq!(opened.names("web1").expect("listed"), ["x.json"]);
    opened.remove("web1/x.json").expect("removed");
    opened.remove("web1/x.json").expect("twice is as once");
    assert!(rustix::process::geteuid().is_root(), "root again");
}

fn put(log: &SiteLog<'_>, base: u64, bytes: &[u8], what: &str) {
    let mut open = log.open().expect("opened").expect(what);
    log.write(&mut open, base, bytes).expect("written").expect(what);
    open.begin();
    log.settle(open).expect("settled").expect(what);
}

#[test]
fn a_log_is_written_as_its_account_at_its_place() {
    let Place { root, share } = place();
    let opened = LogShare::open(&share, Stream::Access).expect("opened");
    let log = log();
    let log = SiteLog::new(&opened, &log);
    assert_eq!(log.look().expect("looked").expect("free").len, 0);
    put(&log, 0, b"one\n", "taken");
    put(&log, 4, b"two\n", "taken");
    put(&log, 4, b"two\n", "once more is no more");
    put(&log, 400, b"three\n", "the customer cut it");
    let path = root.path().join("home/alice/logs/www.example.org/access.log");
    assert_eq!(std::fs::read_to_string(&path).expect("there"), "one\ntwo\nthree\n");
    assert_eq!(path.metadata().expect("there").uid(), Uid::FIRST.get());
    let reading = log.read(None, 9).expect("read").expect("taken");
    assert_eq!(reading.text, b"three\n");
    let on = |from| log.read(from, 100).expect("read").expect("taken");
    assert_eq!(on(Some((reading.file, reading.offset))).text, b"");
    assert_eq!(on(Some((reading.file, 4))).text, b"two\nthree\n");
    log.move_aside("access.log-20260101").expect("moved").expect("taken");
    put(&log, 0, b"four\n", "taken");
    log.move_aside("access.log-20260101").expect("moved").expect("it was before the crash");
    let next = on(Some((reading.file, reading.offset)));
    assert_eq!(next.text, b"four\n", "another file is read from its beginning");
}

#[test]
fn whatever_a_customer_does_to_his_log_harms_him_alone() {
    let Place { root, share } = place();
    let opened = LogShare::open(&share, Stream::Access).expect("opened");
    let log = log();
    let log = SiteLog::new(&opened, &log);
    let logs = root.path().join("home/alice/logs");
    let (site, file) = (logs.join("www.example.org"), logs.join("www.example.org/access.log"));
    let outside = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(outside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("open");
    let as_alice = |work: &dyn Fn()| act_as(Uid::FIRST.get(), work);
    let refused = |what: &str| {
        assert!(log.look().expect(what).is_err(), "{what}: looked at");
        assert!(log.open().expect(what).is_err(), "{what}: opened");
        assert!(log.read(None, 10).expect(what).is_err(), "{what}: read");
    };
    as_alice(&|| symlink(outside.path(), &site).expect("linked"));
    refused("a link for the directory");
    as_alice(&|| {
        std::fs::remove_file(&site).expect("removed");
        std::fs::create_dir(&site).expect("made");
        symlink(outside.path().join("x"), &file).expect("linked");
    });
    refused("a link for the file");
    as_alice(&|| {
        std::fs::remove_file(&file).expect("removed");
        std::fs::create_dir(&file).expect("made");
    });
    refused("a directory for the file");
    as_alice(&|| std::fs::remove_dir(&file).expect("removed"));
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo runs").success());
    chown(&file, Some(Uid::FIRST.get()), None).expect("given");
    refused("a FIFO for the file");
    std::fs::remove_file(&file).expect("removed");
    // A link to a file of root's, by another name.
    let secret = root.path().join("secret");
    std::fs::write(&secret, "root's").expect("written");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("closed");
    std::fs::hard_link(&secret, &file).expect("linked");
    assert!(log.open().expect("a hard link").is_err());
    assert_eq!(std::fs::read_to_string(&secret).expect("there"), "root's");
    assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 0);
    std::fs::remove_dir_all(&logs).expect("removed");
    put(&log, 0, b"line\n", "made anew");
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "line\n");
}
