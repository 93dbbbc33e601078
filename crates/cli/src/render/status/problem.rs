//! What is wrong, collected from all over the status and put into words.

use super::shape::{ClusterStatus, FreeServer, NodeStatus, State, Status};
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
    found.extend(status.free_servers.iter().filter_map(free_server_problem));
    found.sort_by_key(|problem| problem.severity != Tone::Bad);
    found
}

/// A machine that was made known and of which nothing is heard.
fn free_server_problem(server: &FreeServer) -> Option<Problem> {
    let FreeServer { server, kind: _, joined, connected } = server;
    let text = match (joined, connected) {
        (true, true) => return None,
        (true, false) => {
            format!("{server}: its agent is out of reach: look on {server}, `journalctl -u phalanx-agent`")
        }
        (false, _) => format!("{server}: it has not joined yet: `phalanx server token {server}` gives the command"),
    };
    Some(Problem { severity: Tone::Warning, text })
}

/// The command that usually comes next on the way to a first site; none where there is one.
pub fn next_step(status: &Status) -> Option<String> {
    let counts = status.counts;
    let of_kind = |kind: &str| status.clusters.iter().find(|cluster| cluster.kind == kind);
    let free = |kind: &str| status.free_servers.iter().find(|server| server.kind == kind).map(|s| s.server.as_str());
    for (kind, cluster) in [("balancer", "front"), ("nas", "storage")] {
        if let (None, Some(server)) = (of_kind(kind), free(kind)) {
            return Some(format!("phalanx cluster add {cluster} --kind {kind} --master {server}"));
        }
    }
    let Some(web) = of_kind("web") else {
        return Some(match (free("web"), status.shares.first()) {
            (Some(server), Some(share)) => {
                format!("phalanx cluster add web --kind web --master {server} --share {}", share.name)
            }
            (Some(_), None) => "phalanx share add --help".to_owned(),
            (None, _) => "phalanx server add --help".to_owned(),
        });
    };
    match (web.logical_servers.first(), counts.accounts, counts.sites) {
        (None, _, _) => Some(format!("phalanx logical-server add www --server {}", web.master)),
        (Some(logical), 0, _) => Some(format!("phalanx account add NAME --logical-server {logical}")),
        (Some(_), _, 0) => Some("phalanx site add HOST --account NAME".to_owned()),
        _ => None,
    }
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
        // The balancer finds nobody there, naturally.
        State::Down if !node.joined => {}
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
        let look = format!("look on {}, `journalctl -u phalanx-agent`", node.server);
        tell(Tone::Warning, &format!("its agent is out of reach, {seen}: {look}"));
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
