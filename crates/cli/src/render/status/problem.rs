//! What is wrong, collected from all over the status and put into words.

use super::shape::{ClusterStatus, FreeServer, Grant, NodeStatus, State, Status};
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
        found.extend(cluster.grants.iter().filter_map(|(right, grant)| moving(cluster, right, grant)));
    }
    found.extend(status.free_servers.iter().filter_map(free_server_problem));
    found.sort_by_key(|problem| problem.severity != Tone::Bad);
    found
}

/// Something that only one node may do and that nobody does while it moves.
fn moving(cluster: &ClusterStatus, right: &str, Grant { number: _, holder, moving_to }: &Grant) -> Option<Problem> {
    let (name, to) = (&cluster.name, moving_to.as_ref()?);
    let is_heard = cluster.nodes.iter().any(|node| node.server == *holder && node.connected);
    Some(match is_heard {
        true => {
            let text = format!("{name}: {right} move from {holder} to {to}; clients wait until {holder} has let go");
            Problem { severity: Tone::Warning, text }
        }
        false => {
            let text = format!(
                "{name}: {right} can't move to {to}: {holder} is out of reach, and nobody can tell whether it still writes; make sure that \
                 it does not: `phalanx server fence {holder}`; or take the move back: `phalanx cluster move-grant {name} {right} --to {holder}`"
            );
            Problem { severity: Tone::Bad, text }
        }
    })
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
        return match (of_kind("mail"), free("web"), status.shares.first()) {
            (Some(mail), None, _) => placing(mail, "post", counts.accounts),
            (_, Some(server), Some(share)) => {
                Some(format!("phalanx cluster add web --kind web --master {server} --share {}", share.name))
            }
            (_, Some(_), None) => Some("phalanx share add --help".to_owned()),
            (None, None, _) => Some("phalanx server add --help".to_owned()),
        };
    };
    let site = || (counts.sites == 0).then(|| "phalanx site add HOST --account NAME".to_owned());
    placing(web, "www", counts.accounts).or_else(site)
}

/// What is to be done before customers can have something on a cluster.
fn placing(cluster: &ClusterStatus, logical_default: &str, accounts: u64) -> Option<String> {
    match (cluster.logical_servers.first(), accounts) {
        (None, _) => Some(format!("phalanx logical-server add {logical_default} --server {}", cluster.master)),
        (Some(logical), 0) => Some(format!("phalanx account add NAME --logical-server {logical}")),
        (Some(_), _) => None,
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
