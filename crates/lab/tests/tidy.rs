//! The house rules, as tests: floors, sizes of files, and what must not stand in the tree.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each crate with the crates of ours that it may import: those on floors below its own.
const FLOORS: [(&str, &[&str]); 8] = [
    ("phalanx-model", &[]),
    ("phalanx-plan", &["phalanx-model"]),
    ("phalanx-host", &["phalanx-model", "phalanx-plan"]),
    ("phalanx-proxy", &["phalanx-model", "phalanx-plan", "phalanx-host"]),
    ("phalanx-agent", &["phalanx-model", "phalanx-plan", "phalanx-host"]),
    ("phalanx-panel", &["phalanx-model", "phalanx-plan"]),
    ("phalanx-cli", &["phalanx-model", "phalanx-plan", "phalanx-agent", "phalanx-panel"]),
    // The lab drives the product from outside, as a person would.
    ("phalanx-lab", &[]),
];

/// The libraries that the pure floors may use: none of them can do I/O, read a clock or roll dice.
const PURE: [&str; 6] = ["idna", "memchr", "serde", "serde_json", "sha2", "thiserror"];

/// The longest source file, in lines. Beyond it a file is rarely one thing.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies in crates/ of the workspace")
        .to_owned()
}

fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let normal = |package: &Value| {
        let all = package["dependencies"].as_array().expect("a list").iter();
        all.filter(|dependency| dependency["kind"].is_null()).map(|dependency| text(&dependency["name"])).collect()
    };
    (metadata["packages"].as_array().expect("a list").iter())
        .map(|package| (text(&package["name"]), normal(package)))
        .collect()
}

fn tracked_files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    names.lines().map(|name| root().join(name)).filter(|path| path.is_file()).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    let rust = tracked_files().into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs"));
    rust.map(|path| (path.clone(), std::fs::read_to_string(&path).expect("sources are readable UTF-8"))).collect()
}

#[test]
fn a_crate_imports_only_from_the_floors_below() {
    let packages = packages();
    let known: BTreeSet<&str> = FLOORS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    assert_eq!(found, known, "each crate has its floor in this test");
    for (name, below) in FLOORS {
        for dependency in packages[name].iter().filter(|dependency| known.contains(dependency.as_str())) {
            assert!(
                below.contains(&dependency.as_str()),
                "{name} must not import {dependency}: it is not on a floor below"
            );
        }
    }
}

#[test]
fn the_pure_floors_can_do_no_io() {
    let packages = packages();
    for name in ["phalanx-model", "phalanx-plan"] {
        for dependency in packages[name].iter().filter(|dependency| !dependency.starts_with("phalanx-")) {
            assert!(PURE.contains(&dependency.as_str()), "{name} must stay pure and may not use {dependency}");
        }
    }
    const DOORS: [&str; 7] =
        ["std::fs", "std::process", "std::thread", "std::env", "std::net::Tcp", "Instant::now", "SystemTime::now"];
    for (path, text) in sources() {
        let pure =
            path.starts_with(root().join("crates/model/src")) || path.starts_with(root().join("crates/plan/src"));
        let test = path.to_string_lossy().contains("test")
            || path.ends_with("simulation.rs")
            || path.to_string_lossy().contains("golden");
        if pure && !test {
            let code = text.split("#[cfg(test)]").next().expect("split gives at least one part");
            for door in DOORS {
                assert!(!code.contains(door), "{} uses {door}: give it as an argument", path.display());
            }
        }
    }
}

#[test]
fn files_are_of_a_size_and_say_what_they_are_for() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines; {LINES_MAX} is the most", path.display());
        assert!(text.starts_with("//!"), "{} does not begin with //!, saying what it is for", path.display());
        let name = path.file_name().and_then(|name| name.to_str()).expect("a UTF-8 name");
        assert!(
            !["mod.rs", "utils.rs", "util.rs", "helpers.rs", "misc.rs"].contains(&name),
            "{}: name the thing",
            path.display()
        );
    }
}

#[test]
fn nothing_unfinished_or_switched_off_stands_in_the_code() {
    // Spelled in halves, so that this file does not find itself.
    let marks =
        [["todo", "!("], ["unimplemented", "!("], ["dbg", "!("], ["#[ign", "ore]"], ["FIX", "ME"], ["#[all", "ow("]]
            .map(|half| half.concat());
    for (path, text) in sources() {
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{} holds {mark}", path.display());
        }
    }
}
