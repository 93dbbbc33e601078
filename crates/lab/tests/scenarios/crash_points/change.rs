//! The changes during which an agent is killed at each step, with the kinds of steps that each must have in its plan.
//!
//! Each scenario holds what its agents had planned, and died at, against its change here. Together the changes have every kind of step that
//! the plan knows: who adds a kind is told so by the test below, without a lab.

use anyhow::{Result, ensure};
use std::collections::BTreeSet;

/// One change on one machine.
#[derive(Debug)]
pub struct Change {
    what: &'static str,
    /// Kinds of steps that it has in any case, by their names.
    pub steps: &'static [&'static str],
}

impl Change {
    const fn new(what: &'static str, steps: &'static [&'static str]) -> Self {
        Self { what, steps }
    }

    /// Ensures that its steps were among those planned, at each of which the agent died.
    pub fn planned(&self, planned: &BTreeSet<String>) -> Result<()> {
        let missing: Vec<_> = self.steps.iter().filter(|step| !planned.contains(**step)).collect();
        ensure!(missing.is_empty(), "{}: {missing:?} was not planned: {planned:?}", self.what);
        println!("{}: killed before and after each of {planned:?}", self.what);
        Ok(())
    }
}

pub const NODE_GETS_AN_ADDRESS: Change = Change::new(
    "web2 gets an address",
    &["add-address", "add-rule", "stage", "validate", "switch", "reload", "verify"],
);
pub const NODE_LOSES_AN_ADDRESS: Change =
    Change::new("web2 loses an address", &["switch", "reload", "verify", "remove-rule", "remove-address"]);
pub const BALANCER_GETS_AN_ADDRESS: Change =
    Change::new("lb gets an address", &["stage", "validate", "switch", "reload"]);
pub const BALANCER_LOSES_AN_ADDRESS: Change = Change::new("lb loses an address", &["switch", "reload"]);
/// By then web2 has had as many generations as are kept.
pub const DIRECTIVES_COME: Change = Change::new(
    "directives on web2",
    &["stage", "validate", "switch", "reload-accounts", "verify", "remove-generation"],
);
pub const DIRECTIVES_GO: Change = Change::new("no directives on web2", &["switch", "reload-accounts", "verify"]);
pub const SHARE_COMES: Change = Change::new("a share on nas", &["keep-share"]);
pub const NODE_LEAVES: Change =
    Change::new("web3 leaves", &["stop", "remove-mount", "remove-table", "remove-rule", "remove-route"]);
pub const ACCOUNT_IS_LEFT: Change = Change::new("an account is left running on web3", &["end-accounts"]);
pub const NODE_JOINS: Change =
    Change::new("web3 joins", &["seal-mount-point", "mount", "set-route", "add-rule", "load-table", "start"]);
pub const SHARE_IS_REPLACED: Change = Change::new("web3's share is replaced by another mount", &["unmount", "mount"]);
pub const BALANCER_LEAVES: Change = Change::new("lb leaves", &["stop", "unlink", "remove-translation"]);
pub const BALANCER_JOINS: Change = Change::new("lb joins", &["set-sysctl", "link", "start"]);
pub const MORE_MAY_MOUNT: Change = Change::new("one more may mount", &["stage", "validate", "switch", "export"]);
pub const FEWER_MAY_MOUNT: Change = Change::new("one less may mount", &["switch", "export"]);
pub const NAS_LEAVES: Change = Change::new("nas leaves", &["unlink", "unexport"]);
pub const QUEUE_COMES: Change = Change::new("a queue comes", &["tell-rights", "bind-queue"]);

const ALL: [Change; 17] = [
    NODE_GETS_AN_ADDRESS,
    NODE_LOSES_AN_ADDRESS,
    BALANCER_GETS_AN_ADDRESS,
    BALANCER_LOSES_AN_ADDRESS,
    DIRECTIVES_COME,
    DIRECTIVES_GO,
    SHARE_COMES,
    NODE_LEAVES,
    ACCOUNT_IS_LEFT,
    NODE_JOINS,
    SHARE_IS_REPLACED,
    BALANCER_LEAVES,
    BALANCER_JOINS,
    MORE_MAY_MOUNT,
    FEWER_MAY_MOUNT,
    NAS_LEAVES,
    QUEUE_COMES,
];

/// The names of all kinds of steps, as the plan's own type lists them to whoever asks it for one that it does not know.
fn kinds_of_steps() -> BTreeSet<String> {
    let unknown = serde_json::from_str::<phalanx_plan::steps::Step>("\"?\"").expect_err("no step is called so");
    let words = unknown.to_string();
    // unknown variant `?`, expected one of `keep-share`, `unmount`, …
    words.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[test]
fn crash_points_are_at_every_kind_of_step() {
    let kinds = kinds_of_steps();
    assert!(kinds.contains("keep-share") && kinds.contains("remove-generation"), "not the list of kinds: {kinds:?}");
    let met: BTreeSet<String> = ALL.iter().flat_map(|change| change.steps).map(|step| (*step).to_owned()).collect();
    let unmet: Vec<_> = kinds.difference(&met).collect();
    assert!(unmet.is_empty(), "no change has {unmet:?}: add one, and a scenario that kills the agent at its steps");
    let unknown: Vec<_> = met.difference(&kinds).collect();
    assert!(unknown.is_empty(), "no plan has {unknown:?}");
}
