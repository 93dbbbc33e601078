//! The guard's verdicts over a share that is there, gone, another, and hanging.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

const MARKER: &str = "0123456789abcdef0123456789abcdef";

fn share() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::write(root.path().join(".phalanx-share"), format!("{MARKER}\n")).expect("written");
    root
}

fn outcome(root: &Path, marker: &str) -> Option<String> {
    let code = probe(&Probe { mount_point: root.to_owned(), marker: marker.to_owned(), number: 7 });
    probe::meaning(ExitStatus::from_raw(i32::from(code) << 8))
}

#[test]
fn a_good_share_passes_and_nothing_is_left_on_it() {
    let root = share();
    for _ in 0..2 {
        assert_eq!(outcome(root.path(), MARKER), None);
    }
    assert_eq!(std::fs::read_dir(root.path().join(".phalanx-guard")).expect("made").count(), 0);
}

#[test]
fn another_share_and_none_are_told_apart() {
    let root = share();
    let other = outcome(root.path(), "ffffffffffffffffffffffffffffffff").expect("wrong");
    assert!(other.contains("another share"), "{other}");
    let empty = tempfile::tempdir().expect("a directory");
    let none = outcome(empty.path(), MARKER).expect("wrong");
    assert!(none.contains("marker file can't be read"), "{none}");
}

#[test]
fn what_can_not_be_written_is_refused() {
    let root = share();
    // A file where the directory should be: root may write into anything else.
    std::fs::write(root.path().join(".phalanx-guard"), "").expect("written");
    let why = outcome(root.path(), MARKER).expect("wrong");
    assert!(why.contains("can't be written"), "{why}");
}

#[test]
fn leftovers_of_this_node_go_away() {
    let root = share();
    let directory = root.path().join(".phalanx-guard");
    std::fs::create_dir(&directory).expect("made");
    let node = probe::node_name().expect("a name");
    for name in [format!("{node}-1"), format!("{node}-7"), "other-1".to_owned()] {
        std::fs::write(directory.join(name), "").expect("written");
    }
    assert_eq!(outcome(root.path(), MARKER), None);
    let left: Vec<_> =
        std::fs::read_dir(&directory).expect("listed").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(left, ["other-1"]);
}

#[test]
fn a_place_where_nothing_is_mounted_has_no_device() {
    assert!(device_of("/no/such/mount").is_err());
    assert!(device_of("/proc").is_ok());
}
