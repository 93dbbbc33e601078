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

/// A server comes to a mail cluster, while the NAS's agent dies at the steps that make its queue: the share tells whose it is, and it is an export of its own.
/// What is exported is changed as ever: see [`who_may_mount_changes`]. No machine is needed for that, and the server stays.
pub fn a_queue_comes(figure: &Figure) -> Result<()> {
    const LATER: &str = "10.9.0.90";
    const QUEUE: &str = "/srv/nas/mail/.phalanx/queues/later";
    const COME: &str = "cluster add-slave mail later";
    const LIMIT: Duration = Duration::from_secs(60);
    let nas = figure.host("nas");
    // Nothing of this is the NAS's yet: it hears of one change, and what is seen is that change's.
    figure.phalanx(&format!("server add later --kind mail --address {LATER}/24"))?;
    let has_come = || {
        let told = nas.text(&format!("cat {QUEUE}/holder"))?;
        ensure!(told.contains(r#""right":"queue-later","holder":"later","number":1"#), "{told:?}");
        nas.text(&format!("findmnt {QUEUE}"))?;
        let seen = nas.text("exportfs -s")?;
        let own: Vec<_> = seen.lines().filter(|line| line.starts_with(&format!("{QUEUE} "))).collect();
        ensure!(own.len() == 1 && own[0].contains(LATER) && own[0].contains("no_root_squash"), "{seen}");
        let share = |line: &&str| line.starts_with("/srv/nas/mail ") && line.contains(LATER);
        ensure!(seen.lines().filter(share).count() == 1, "it may not mount the share: {seen}");
        Ok(())
    };
    let command = || figure.phalanx(COME).map(drop);
    let come = step_by_step_of(figure, "nas", COME, change::QUEUE_COMES.steps.len() as u64, command, |agent| {
        eventually(LIMIT, "a queue that is exported", has_come)?;
        agent.converged(COME)
    })?;
    change::QUEUE_COMES.planned(&come)
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
