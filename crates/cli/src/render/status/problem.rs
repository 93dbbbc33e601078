//! What is wrong, collected from all over the status and put into words.

use super::shape::{ClusterStatus, NodeStatus, State, Status};
use crate::render::event::moment;
use crate::render::style::Tone;

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// [`Tone::Bad`] where something does not work, [`Tone::Warning`] where it does nevertheless.
    pub severity: Tone,
    /// What and where, in words.
    pub text: String,
}

/// All problems, the bad ones first.
pub fn problems(status: &Status) -> Vec<Problem> {
    let mut found: Vec<Problem> = Vec::new();
    for cluster in &status.clusters {
        found.extend(cluster.nodes.iter().flat_map(|node| node_problems(&cluster.name, node)));
        if cluster.serves() {
            found.extend(missing_parts(status, cluster));
        }
    }
    found.sort_by_key(|problem| problem.severity != Tone::Bad);
    found
}

/// What a web or mail cluster lacks to serve anybody, with the command that gives it.
fn missing_parts(status: &Status, cluster: &ClusterStatus) -> Vec<Problem> {
    let name = &cluster.name;
    let led_to = status.balancers.iter().flat_map(|b| &b.services).any(|service| service.cluster == *name);
    let address = (!led_to).then(|| {
        format!(
            "{name}: no external address leads to it: `phalanx address add IP:PORT --balancer CLUSTER --cluster {name}`"
        )
    });
    let share = cluster.share.is_none().then(|| {
        format!("{name}: it has no share, so its nodes serve nothing: `phalanx cluster change {name} --share SHARE`")
    });
    let mut found: Vec<Problem> =
        address.into_iter().chain(share).map(|text| Problem { severity: Tone::Warning, text }).collect();
    if led_to && cluster.nodes.iter().all(|node| matches!(node.state, State::Down | State::Drained)) {
        found.push(Problem {
            severity: Tone::Bad,
            text: format!("{name}: no node is in service, so clients get no answer"),
        });
    }
    found
}

fn node_problems(cluster: &str, node: &NodeStatus) -> Vec<Problem> {
    let place = format!("{} ({cluster})", node.server);
    let mut found = Vec::new();
    let mut tell = |severity: Tone, text: &str| found.push(Problem { severity, text: format!("{place}: {text}") });
    let why = node.why.as_deref().filter(|why| !why.is_empty()).map(|why| format!(": {why}")).unwrap_or_default();
    match node.state {
        State::Down => tell(Tone::Bad, &format!("down{why}")),
        State::Overloaded => tell(Tone::Warning, &format!("overloaded, gets nothing new{why}")),
        State::Up | State::Drained | State::Unknown => {}
    }
    if !node.joined {
        tell(
            Tone::Warning,
            &format!("it has not joined yet: `phalanx server token {}` gives the command", node.server),
        );
    } else if !node.connected {
        let seen = node.last_seen.as_ref().map(|at| moment(&serde_json::Value::String(at.clone())));
        let seen =
            seen.map_or_else(|| "not seen since the panel started".to_owned(), |at| format!("last seen {at} UTC"));
        tell(Tone::Warning, &format!("its agent is out of reach, {seen}"));
    } else {
        let problems = node.problems.as_deref().unwrap_or_default();
        // A node that is down for the first of its problems has said it already.
        for problem in problems.iter().filter(|problem| node.why.as_ref() != Some(problem)) {
            tell(Tone::Warning, problem);
        }
        if !node.converged && problems.is_empty() {
            tell(Tone::Warning, "it is not yet as it should be");
        }
    }
    found
}
