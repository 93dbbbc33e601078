//! The picture of `phalanx status`: clients, balancer, nodes and share, from top to bottom as in Figure 1, and below it what is
//! wrong, in words.
//!
//! States are marks and words; colour only repeats them.

use super::style::{Style, Tone};
use super::text::{printable, width};
use std::collections::BTreeMap;

mod problem;
mod shape;

use problem::{Problem, next_step, problems};
pub use shape::Status;
use shape::{BalancerStatus, ClusterStatus, Grant, NodeStatus, QueueCount, ServiceStatus, State};

/// Cells of a load bar.
const BAR_CELLS: u8 = 10;

/// The picture of everything.
pub fn picture(status: &Status, style: Style) -> String {
    let problems = problems(status);
    let mut text = summary(status, &problems, style);
    for cluster in status.clusters.iter().filter(|cluster| cluster.serves()) {
        text += &serving_cluster(status, cluster, style);
    }
    text += &unused_clusters(status, style);
    if !problems.is_empty() {
        text += &format!("\n{}\n", style.paint(Tone::Strong, "Problems"));
    }
    for Problem { severity, text: words } in &problems {
        text += &format!("  {} {}\n", mark(*severity, style), printable(words));
    }
    if let Some(command) = next_step(status).filter(|_| status.counts.servers > 0) {
        text += &format!("\nNext: {}\n", printable(&command));
    }
    text
}

/// The first line: is all well, and how much there is.
fn summary(status: &Status, problems: &[Problem], style: Style) -> String {
    let counts = status.counts;
    if status.clusters.is_empty() && counts.servers == 0 {
        return "Nothing is set up yet. Begin with `phalanx server add --help`.\n".to_owned();
    }
    let (tone, verdict) = match problems {
        [] => (Tone::Good, "● all is well".to_owned()),
        [one] if one.severity == Tone::Warning => (Tone::Warning, "▲ 1 problem".to_owned()),
        _ if problems.iter().all(|p| p.severity == Tone::Warning) => {
            (Tone::Warning, format!("▲ {} problems", problems.len()))
        }
        [_] => (Tone::Bad, "✖ 1 problem".to_owned()),
        _ => (Tone::Bad, format!("✖ {} problems", problems.len())),
    };
    let many = |n: u64, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let amounts = [
        many(counts.servers, "server"),
        many(counts.clusters, "cluster"),
        many(counts.accounts, "account"),
        many(counts.sites, "site"),
    ];
    format!("{}   {}\n", style.paint(tone, &verdict), style.paint(Tone::Quiet, &amounts.join(", ")))
}

/// One web or mail cluster with the balancers before it and the share below it.
fn serving_cluster(status: &Status, cluster: &ClusterStatus, style: Style) -> String {
    let mut text =
        format!("\n{} cluster {}\n\n", capital(&cluster.kind), style.paint(Tone::Strong, &printable(&cluster.name)));
    let services: Vec<(&BalancerStatus, &ServiceStatus)> = status
        .balancers
        .iter()
        .flat_map(|balancer| balancer.services.iter().map(move |service| (balancer, service)))
        .filter(|(_, service)| service.cluster == cluster.name)
        .collect();
    if services.is_empty() {
        text += &format!("  {}\n", style.paint(Tone::Warning, "no external address"));
    } else {
        text += "  clients\n     │\n     ▼\n";
    }
    let places = places(&services);
    let place_width = places.keys().map(|(place, _)| width(place)).max().unwrap_or_default();
    for ((place, balancer), ports) in &places {
        let keepers = nodes_of(status, balancer, style);
        text += &format!(
            "  {}   balancer {}  {keepers}\n",
            style.paint(Tone::Strong, &format!("{place:<place_width$}")),
            printable(balancer)
        );
        if ports.len() > 1 {
            text += &format!("  {}\n", style.paint(Tone::Quiet, &format!("ports {}", ports.join(", "))));
        }
    }
    text += "     │\n";
    text += &nodes(cluster, &services, style);
    text += &mailboxes(cluster);
    match cluster.share.as_ref().and_then(|name| status.shares.iter().find(|share| share.name == *name)) {
        Some(share) => {
            let nas =
                share.nas.as_ref().map(|nas| format!("   on {}  {}", printable(nas), nodes_of(status, nas, style)));
            let place = format!("{} {}", printable(&share.kind), printable(&share.path));
            text += &format!(
                "     │\n     ▼\n  share {}{}   {}\n",
                style.paint(Tone::Strong, &printable(&share.name)),
                nas.unwrap_or_default(),
                style.paint(Tone::Quiet, &place)
            );
        }
        None => text += &format!("\n  {}\n", style.paint(Tone::Warning, "no share")),
    }
    text
}

/// The right to open a mail cluster's mailboxes, as the API names it.
const MAILBOXES: &str = "mailboxes";

/// External addresses with their balancers: one port stands behind its address, several are listed.
fn places<'a>(services: &[(&'a BalancerStatus, &'a ServiceStatus)]) -> BTreeMap<(String, &'a str), Vec<String>> {
    let mut places: BTreeMap<(&'a str, &'a str), Vec<&'a str>> = BTreeMap::new();
    for (balancer, service) in services {
        let (address, port) = service.external.rsplit_once(':').unwrap_or((&service.external, ""));
        places.entry((address, &balancer.name)).or_default().push(port);
    }
    let name = |((address, balancer), mut ports): ((&'a str, &'a str), Vec<&'a str>)| {
        ports.sort_by_key(|port| port.parse::<u16>().unwrap_or_default());
        let place = if let [port] = ports[..] { format!("{address}:{port}") } else { address.to_owned() };
        ((printable(&place), balancer), ports.into_iter().map(printable).collect())
    };
    places.into_iter().map(name).collect()
}

/// Who opens a mail cluster's mailboxes, and by which number of the grant.
fn mailboxes(cluster: &ClusterStatus) -> String {
    let Some(Grant { number, holder, moving_to }) = cluster.grants.get(MAILBOXES) else { return String::new() };
    let moving = moving_to.as_ref().map(|to| format!(", moving to {}", printable(to))).unwrap_or_default();
    format!("     │  mailboxes: {}, grant number {number}{moving}\n", printable(holder))
}

/// What a balancer's checks of a node fail at, where others of its checks go well: in words, with the protocol of each port.
fn fails_at(node: &NodeStatus, services: &[(&BalancerStatus, &ServiceStatus)]) -> Option<String> {
    let of_node = |service: &ServiceStatus| service.backends.iter().find(|b| b.server == node.server).map(|b| b.state);
    let checked: Vec<(u16, State)> = services.iter().filter_map(|(_, s)| Some((s.port, of_node(s)?))).collect();
    let mut failed: Vec<u16> =
        checked.iter().filter(|(_, state)| *state == State::Down).map(|(port, _)| *port).collect();
    failed.sort_unstable();
    failed.dedup();
    (!failed.is_empty() && failed.len() < checked.len())
        .then(|| failed.into_iter().map(protocol).collect::<Vec<_>>().join(", "))
}

/// What waits in the queues that a node runs: in its column, and what of it is held.
fn queued(node: &NodeStatus) -> (String, String) {
    let queues = node.queues.as_ref().filter(|queues| !queues.is_empty() && node.connected);
    let counted = queues.and_then(|queues| queues.iter().map(|queue| queue.count).collect::<Option<Vec<QueueCount>>>());
    // A part of the sum would be taken for the whole.
    let Some(queues) = counted else { return (format!("{:>7} queued", "?"), String::new()) };
    let (messages, held) =
        queues.iter().fold((0, 0), |(messages, held), queue| (messages + queue.messages, held + queue.held));
    (format!("{messages:>7} queued"), if held > 0 { format!("  {held} held") } else { String::new() })
}

/// What is spoken at a port, as services(5) names it.
fn protocol(port: u16) -> String {
    let name = match port {
        25 => "smtp",
        80 => "http",
        110 => "pop3",
        143 => "imap",
        443 => "https",
        465 => "submissions",
        587 => "submission",
        993 => "imaps",
        995 => "pop3s",
        4190 => "sieve",
        _ => return format!("port {port}"),
    };
    name.to_owned()
}

/// The lines of a cluster's nodes.
fn nodes(cluster: &ClusterStatus, services: &[(&BalancerStatus, &ServiceStatus)], style: Style) -> String {
    let name_width = cluster.nodes.iter().map(|node| width(&node.server)).max().unwrap_or_default();
    let mut text = String::new();
    for (i, node) in cluster.nodes.iter().enumerate() {
        let branch = if i + 1 == cluster.nodes.len() { "└─▶" } else { "├─▶" };
        let (tone, word) = tone_and_word(node);
        let (work, held) = match cluster.kind.as_str() {
            "mail" => queued(node),
            _ => (rate(node.load.filter(|_| node.connected).map(|load| load.requests_per_second)), String::new()),
        };
        let line = format!(
            "     {branch} {} {:<name_width$}  {:<6}  {}  {}  {}  {}{}",
            mark(tone, style),
            printable(&node.server),
            node.role,
            style.paint(tone, &format!("{word:<10}")),
            load(node, style),
            work,
            percent(node.share_percent),
            node.flows.map(|n| format!("  {n} open")).unwrap_or_default(),
        );
        text += line.trim_end();
        text += &held;
        if let Some(leaving) = node.leaving {
            text += &format!("  {} s left", leaving.left_s);
        }
        if cluster.grants.get(MAILBOXES).is_some_and(|grant| grant.holder == node.server && grant.moving_to.is_none()) {
            text += "  opens mailboxes";
        }
        if let Some(protocols) = fails_at(node, services) {
            text += &style.paint(Tone::Bad, &format!("  no {protocols}"));
        }
        text.push('\n');
    }
    text
}

/// Clusters that the pictures above do not show: nas and balancer clusters that nothing uses, and servers in no cluster.
fn unused_clusters(status: &Status, style: Style) -> String {
    let serving: Vec<&ClusterStatus> = status.clusters.iter().filter(|cluster| cluster.serves()).collect();
    let used = |name: &str| {
        serving.iter().any(|cluster| {
            let services = status.balancers.iter().filter(|b| b.name == name).flat_map(|b| &b.services);
            let share = status.shares.iter().find(|share| Some(&share.name) == cluster.share.as_ref());
            services.into_iter().any(|service| service.cluster == cluster.name)
                || share.is_some_and(|share| share.nas.as_deref() == Some(name))
        })
    };
    let mut text = String::new();
    for cluster in status.clusters.iter().filter(|cluster| !cluster.serves() && !used(&cluster.name)) {
        let nodes = nodes_of(status, &cluster.name, style);
        let name = style.paint(Tone::Strong, &printable(&cluster.name));
        text += &format!(
            "\n{} cluster {name}  {nodes}  {}\n",
            capital(&cluster.kind),
            style.paint(Tone::Quiet, "not used yet")
        );
    }
    if !status.free_servers.is_empty() {
        let servers: Vec<String> = status
            .free_servers
            .iter()
            .map(|server| {
                let heard = match (server.joined, server.connected) {
                    (true, true) => "connected",
                    (true, false) => "out of reach",
                    (false, _) => "not joined",
                };
                format!("{} ({}, {heard})", printable(&server.server), printable(&server.kind))
            })
            .collect();
        text += &format!("\nIn no cluster: {}\n", servers.join(", "));
    }
    text
}

/// The nodes of the cluster of this name on one line: `● lb1 up`.
fn nodes_of(status: &Status, cluster: &str, style: Style) -> String {
    let nodes = status.clusters.iter().filter(|c| c.name == cluster).flat_map(|c| &c.nodes);
    let one = |node: &NodeStatus| {
        let (tone, word) = tone_and_word(node);
        format!("{} {} {}", mark(tone, style), printable(&node.server), style.paint(tone, word))
    };
    nodes.map(one).collect::<Vec<_>>().join("  ")
}

/// A node's state as a word, and how much a person should care.
fn tone_and_word(node: &NodeStatus) -> (Tone, &'static str) {
    match node.state {
        State::Up if !node.connected => (Tone::Warning, "up, silent"),
        State::Up => (Tone::Good, "up"),
        State::Down | State::Unknown if !node.joined => (Tone::Warning, "not joined"),
        State::Down => (Tone::Bad, "down"),
        State::Drained if node.leaving.is_some() => (Tone::Quiet, "leaving"),
        State::Drained => (Tone::Quiet, "drained"),
        State::Overloaded => (Tone::Warning, "overloaded"),
        State::Unknown => (Tone::Warning, "unknown"),
    }
}

fn mark(tone: Tone, style: Style) -> String {
    let mark = match tone {
        Tone::Good => "●",
        Tone::Bad => "✖",
        Tone::Warning => "▲",
        Tone::Quiet | Tone::Strong | Tone::Normal => "○",
    };
    style.paint(tone, mark)
}

/// `███░░░░░░░  27 %`: how far from idle the node is.
fn load(node: &NodeStatus, style: Style) -> String {
    let Some(load) = node.load.filter(|_| node.connected) else {
        return style.paint(Tone::Quiet, &format!("{}    ?  ", "·".repeat(BAR_CELLS.into())));
    };
    let busy = 100 - load.score_percent.min(100);
    let tone = match busy {
        0..=59 => Tone::Good,
        60..=89 => Tone::Warning,
        _ => Tone::Bad,
    };
    let full = usize::from(busy.div_ceil(100 / BAR_CELLS));
    let (full, empty) = ("█".repeat(full), "░".repeat(usize::from(BAR_CELLS) - full));
    format!("{}{} {busy:>3} %", style.paint(tone, &full), style.paint(Tone::Quiet, &empty))
}

fn rate(requests_per_second: Option<f64>) -> String {
    match requests_per_second {
        Some(rate) if rate >= 100.0 => format!("{rate:>7.0} req/s"),
        Some(rate) => format!("{rate:>7.1} req/s"),
        None => format!("{:>7} req/s", "?"),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| " ".repeat(17), |share| format!("{share:>3.0} % of traffic"))
}

fn capital(kind: &str) -> String {
    let mut letters = kind.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
