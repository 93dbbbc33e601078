//! The crash points of a NAS that serves real NFS. The guests take long to boot, so these are acts of the scenario of NFS.

use super::change;
use super::doomed::{at_each_step, step_by_step_of};
use anyhow::{Result, bail, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{Figure, NODES, SHARE};
use std::time::Duration;

/// Who may mount the share, by the kernel's own list.
fn may_mount(figure: &Figure, wanted: &[&str]) -> Result<()> {
    let seen = figure.host("nas").text("exportfs -s | sed 's/^[^ ]* *//; s/(.*//' | sort")?;
    ensure!(seen.lines().eq(wanted.iter().copied()), "{wanted:?} are to be exported to, but it is {seen:?}");
    Ok(())
}

/// One more server may mount the share, and then may no longer, while the NAS's agent dies at each step. No machine is needed for that.
pub fn who_may_mount_changes(figure: &Figure) -> Result<()> {
    const NODES_ALONE: [&str; 2] = ["10.9.0.11", "10.9.0.12"];
    // Another one each time, so that the exports are staged anew.
    let address = |round: u64| format!("10.9.0.{}", 100 + round);
    let add = |round: u64| {
        figure.phalanx(&format!("server add more{round} --kind web --address {}/24", address(round)))?;
        Ok(format!("cluster add-slave web more{round}"))
    };
    let remove = |round: u64| Ok(format!("cluster remove-slave web more{round}"));
    let is_added = |round| may_mount(figure, &[&address(round), NODES_ALONE[0], NODES_ALONE[1]]);
    let is_removed = |round| {
        may_mount(figure, &NODES_ALONE)?;
        figure.phalanx(&format!("server remove more{round}")).map(drop)
    };
    let planned = at_each_step(figure, &["nas"], [&add, &remove], [&is_added, &is_removed])?;
    let [more, fewer] = &planned[..] else { bail!("{planned:?}") };
    change::MORE_MAY_MOUNT.planned(more)?;
    change::FEWER_MAY_MOUNT.planned(fewer)
}

/// The NAS leaves its cluster, after the web nodes have left its share; what it exported is withdrawn, and its disk is as it was.
pub fn the_nas_leaves(figure: &Figure) -> Result<()> {
    /// Both links, and the exports.
    const STEPS: u64 = 3;
    const LEAVE: &str = "cluster remove storage";
    for line in ["logical-server remove www", "cluster change web --no-share", "share remove content"] {
        figure.phalanx(line)?;
    }
    for node in NODES {
        eventually(Duration::from_secs(30), &format!("that {node} has left the share"), || {
            figure.host(node).text(&format!("! grep ' {SHARE} ' /proc/self/mountinfo"))
        })?;
    }
    let command = || figure.phalanx(LEAVE).map(drop);
    let left = step_by_step_of(figure, "nas", LEAVE, STEPS, command, |nas| nas.converged(LEAVE))?;
    may_mount(figure, &[])?;
    change::NAS_LEAVES.planned(&left)?;
    figure.host("nas").text("test -f /srv/nas/web/.phalanx-share").map(drop)
}
