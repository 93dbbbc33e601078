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

/// A mail cluster comes to a share and leaves it, while the NAS's agent dies at each step: the share tells who has the queue, and the queue is an
/// export of its own. No mail server is needed for that.
pub fn a_queue_is_told(figure: &Figure) -> Result<()> {
    const NODES_ALONE: [&str; 2] = ["10.9.0.11", "10.9.0.12"];
    const LATER: &str = "10.9.0.90";
    figure.phalanx(&format!("server add later --kind mail --address {LATER}/24"))?;
    figure.phalanx("cluster add mail --kind mail --master later --mail-name mail.example.net")?;
    let queue = |round: u64| format!("/srv/nas/letters{round}/.phalanx/queues/later");
    // Another share each time: what was told stays told.
    let come = |round: u64| {
        let add = format!("share add letters{round} --kind nfs-managed --nas storage --path /srv/nas/letters{round}");
        figure.phalanx(&add)?;
        Ok(format!("cluster change mail --share letters{round}"))
    };
    let leave = |_: u64| Ok("cluster change mail --no-share".to_owned());
    let has_come = |round| {
        may_mount(figure, &[NODES_ALONE[0], NODES_ALONE[1], LATER, LATER])?;
        let told = figure.host("nas").text(&format!("cat {}/holder", queue(round)))?;
        let words = r#"{"cluster":"mail","right":"queue-later","holder":"later","number":1,"is_void":false}"#;
        ensure!(told.trim_end() == words, "{told:?}");
        let options = figure.host("nas").text(&format!("exportfs -s | grep '^{} '", queue(round)))?;
        ensure!(options.contains("no_root_squash") && options.contains("sync"), "{options}");
        Ok(())
    };
    let has_left = |round| {
        may_mount(figure, &NODES_ALONE)?;
        figure.host("nas").text(&format!("! findmnt {}", queue(round)))?;
        figure.phalanx(&format!("share remove letters{round}")).map(drop)
    };
    let planned = at_each_step(figure, &["nas"], [&come, &leave], [&has_come, &has_left])?;
    let [there, _] = &planned[..] else { bail!("{planned:?}") };
    change::QUEUE_IS_TOLD.planned(there)?;
    for line in ["cluster remove mail", "server remove later"] {
        figure.phalanx(line)?;
    }
    Ok(())
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
