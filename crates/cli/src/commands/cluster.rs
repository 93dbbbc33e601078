//! `phalanx cluster`: clusters, their slaves, and what an administrator sets for each node.

use super::resource::{ListArgs, Resource, etag};
use super::server::Kind;
use crate::failure::Failure;
use crate::render::table::Column;
use crate::render::text::{cell, printable};
use crate::session::Session;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use phalanx_model::{ClusterKind, HostName, Name, Right};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CLUSTER: Resource = Resource {
    noun: "cluster",
    path: "/clusters",
    key: "/name",
    columns: &[
        Column::new("NAME", "/name"),
        Column::new("KIND", "/kind"),
        Column::new("MASTER", "/master"),
        Column::keys("SLAVES", "/slaves"),
        Column::new("SHARE", "/share"),
    ],
    first: "`phalanx cluster add web --kind web --master web1` makes the first.",
};

/// Beyond the deadline of a drain, before we stop watching.
const REMOVAL_SLACK: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(500);
/// A file of directives longer than this is no such file.
const DIRECTIVES_BYTES_MAX: u64 = 1 << 20;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a cluster of one: its master
    #[command(after_help = "\
Examples:
  phalanx cluster add lb --kind balancer --master lb1
  phalanx cluster add nas --kind nas --master nas1
  phalanx cluster add web --kind web --master web1 --share content
  phalanx cluster add mail --kind mail --master mail1 --share post --mail-name mail.example.org")]
    Add {
        /// Its name: 1 to 32 of a-z, 0-9 and -
        name: Name,
        /// What it serves
        #[arg(long)]
        kind: Kind,
        /// The server that becomes its master
        #[arg(long, value_name = "SERVER")]
        master: Name,
        /// The share that all its nodes mount
        #[arg(long)]
        share: Option<Name>,
        /// The name under which the servers of a mail cluster greet the world and are found
        #[arg(long, value_name = "HOST")]
        mail_name: Option<HostName>,
    },
    /// List the clusters
    List(ListArgs),
    /// Show one in full
    Show {
        /// The cluster
        name: Name,
    },
    /// Change a cluster's share, httpd directives or mail name
    #[command(after_help = "\
Examples:
  phalanx cluster change web --share content
  phalanx cluster change web --httpd-directives-file extra.conf

Each node checks new directives with httpd's own checker before they go live; what it refuses never does, and
`phalanx events` says why.")]
    Change(ChangeArgs),
    /// Dissolve a cluster that has no slaves
    Remove {
        /// The cluster
        name: Name,
    },
    /// Make a server a slave of a cluster
    #[command(after_help = "Example:\n  phalanx cluster add-slave web web2 --weight 20")]
    AddSlave {
        /// The cluster
        cluster: Name,
        /// The server; it must be of the cluster's kind
        server: Name,
        /// Its part of the traffic relative to the other nodes, 1 to 100 (10 if not given)
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
        weight: Option<u8>,
    },
    /// Take a slave out of its cluster, after it was drained
    #[command(after_help = "\
The panel goes on with it when this command is broken off, and after it was started anew.
Until the slave has left, `phalanx cluster undrain` takes it back.

Examples:
  phalanx cluster remove-slave web web2                  wait up to 30 s for its connections to end
  phalanx cluster remove-slave web web2 --deadline 5m
  phalanx cluster remove-slave web web2 --force          at once: its connections are cut")]
    RemoveSlave {
        /// The cluster
        cluster: Name,
        /// The slave
        server: Name,
        /// How long its connections may take to end, such as 30s or 5m
        #[arg(long, default_value = "30s", value_parser = parse_duration)]
        deadline: Duration,
        /// Do not drain: remove it at once
        #[arg(long, conflicts_with = "deadline")]
        force: bool,
        /// Also if it is the last node in service
        #[arg(long)]
        anyway: bool,
    },
    /// Give a node no new connections; those it has go on
    Drain {
        /// The cluster
        cluster: Name,
        /// The node
        server: Name,
        /// Also if it is the last node in service
        #[arg(long)]
        anyway: bool,
    },
    /// Give a drained node new connections again; one that is leaving stays
    Undrain {
        /// The cluster
        cluster: Name,
        /// The node
        server: Name,
    },
    /// Set a node's part of the traffic relative to the other nodes
    #[command(
        after_help = "Example:\n  phalanx cluster weight web web1 30     three times what a node of weight 10 gets"
    )]
    Weight {
        /// The cluster
        cluster: Name,
        /// The node
        server: Name,
        /// 1 to 100
        #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
        weight: u8,
    },
    /// Let a right that one node alone has go to another node, as soon as its holder is at an end with it
    #[command(after_help = "\
`phalanx cluster show` tells who has which right. A move that has not come to pass is taken back by naming the holder itself.

Example:
  phalanx cluster move-grant mail mailboxes --to mail2      mail2 opens the mailboxes after mail1 has stopped")]
    MoveGrant {
        /// The cluster
        cluster: Name,
        /// The right: mailboxes, or queue-SERVER
        right: Right,
        /// The node that gets it
        #[arg(long, value_name = "NODE")]
        to: Name,
    },
}

/// What can be changed of a cluster.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The cluster
    name: Name,
    /// The share that all its nodes mount
    #[arg(long, conflicts_with = "no_share")]
    share: Option<Name>,
    /// Mount no share
    #[arg(long)]
    no_share: bool,
    /// Replace the directives at the end of every account's httpd configuration by the lines of this file (- is standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "no_httpd_directives")]
    httpd_directives_file: Option<PathBuf>,
    /// Remove all such directives
    #[arg(long)]
    no_httpd_directives: bool,
    /// The name under which the servers of a mail cluster greet the world and are found
    #[arg(long, value_name = "HOST")]
    mail_name: Option<HostName>,
}

/// Runs one.
pub fn run(command: ClusterCommand, session: &Session) -> Result<(), Failure> {
    match command {
        ClusterCommand::Add { name, kind, master, share, mail_name } => {
            let kind = ClusterKind::from(kind);
            let next = format!("`phalanx server token {master}` gives the command with which {master} joins");
            let body = json!({"name": name, "kind": kind, "master": master, "share": share, "mail_name": mail_name});
            CLUSTER.add(session, &body, &next).map(drop)
        }
        ClusterCommand::List(args) => CLUSTER.list(session, &args, ""),
        ClusterCommand::Show { name } => CLUSTER.show(session, name.as_str()),
        ClusterCommand::Change(args) => {
            let patch = patch(&args)?;
            CLUSTER.change(session, args.name.as_str(), |_| Ok(patch))
        }
        ClusterCommand::Remove { name } => CLUSTER.remove(session, name.as_str(), ""),
        ClusterCommand::AddSlave { cluster, server, weight } => add_slave(session, &cluster, &server, weight),
        ClusterCommand::RemoveSlave { cluster, server, deadline, force, anyway } => {
            remove_slave(session, &cluster, &server, (!force).then_some(deadline), anyway)
        }
        ClusterCommand::Drain { cluster, server, anyway } => {
            let mut body = json!({"drained": true});
            if anyway {
                body["anyway"] = Value::Bool(true);
            }
            set_node(session, &cluster, &server, &body, "takes no new connections; `phalanx status` shows those it has")
        }
        ClusterCommand::Undrain { cluster, server } => {
            set_node(session, &cluster, &server, &json!({"drained": false}), "takes connections again")
        }
        ClusterCommand::Weight { cluster, server, weight } => {
            set_node(session, &cluster, &server, &json!({"weight": weight}), &format!("has weight {weight}"))
        }
        ClusterCommand::MoveGrant { cluster, right, to } => move_grant(session, &cluster, &right, &to),
    }
}

fn patch(args: &ChangeArgs) -> Result<Value, Failure> {
    let ChangeArgs { name: _, share, no_share, httpd_directives_file, no_httpd_directives, mail_name } = args;
    let mut patch = Map::new();
    if *no_share || share.is_some() {
        patch.insert("share".into(), json!(share));
    }
    if let Some(file) = httpd_directives_file {
        patch.insert("httpd_directives".into(), json!(read_directives(file)?));
    } else if *no_httpd_directives {
        patch.insert("httpd_directives".into(), json!([]));
    }
    if let Some(mail_name) = mail_name {
        patch.insert("mail_name".into(), json!(mail_name));
    }
    Ok(Value::Object(patch))
}

fn move_grant(session: &Session, cluster: &Name, right: &Right, to: &Name) -> Result<(), Failure> {
    let path = format!("/clusters/{cluster}/grants/{right}/move");
    let answer = session.client.post(&path, &json!({ "to": to }))?.body;
    session.show(&answer, |cluster| {
        let grant = &cluster["grants"][right.to_string()];
        match grant["moving_to"].as_str() {
            Some(to) => format!("{right} go from {} to {}.\n", cell(&grant["holder"]), printable(to)),
            None => format!("{right} stay with {}.\n", cell(&grant["holder"])),
        }
    })
}

/// The lines of a file, without the empty ones at its end.
fn read_directives(file: &Path) -> Result<Vec<String>, Failure> {
    use std::io::Read as _;
    let mut text = String::new();
    let read =
        |source: &mut dyn std::io::Read, text: &mut String| source.take(DIRECTIVES_BYTES_MAX).read_to_string(text);
    let outcome = if file == Path::new("-") {
        read(&mut std::io::stdin().lock(), &mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| read(&mut file, &mut text))
    };
    outcome.with_context(|| format!("cannot read the directives from {}", file.display()))?;
    Ok(text.trim_end().lines().map(str::to_owned).collect())
}

fn add_slave(session: &Session, cluster: &Name, server: &Name, weight: Option<u8>) -> Result<(), Failure> {
    let body = super::resource::without_nulls(&json!({"server": server, "weight": weight}));
    let answer = session.client.post(&format!("/clusters/{cluster}/slaves"), &body)?.body;
    session.show(&answer, |_| format!("{server} is a slave of {cluster}.\n"))?;
    if session.json {
        return Ok(());
    }
    let known = session.client.get(&format!("/servers/{server}"))?.body;
    session.note(&if known["state"]["joined_at"].is_null() {
        format!("Next: `phalanx server token {server}` gives the command with which {server} joins.")
    } else {
        format!("{server} goes to its master by itself; `phalanx status` shows it when it is there.")
    });
    Ok(())
}

/// Removes a slave: at once without a deadline, else drained first. Waits until it has left.
fn remove_slave(
    session: &Session,
    cluster: &Name,
    server: &Name,
    deadline: Option<Duration>,
    anyway: bool,
) -> Result<(), Failure> {
    let query = match deadline {
        Some(deadline) => format!("deadline_s={}", deadline.as_secs()),
        None => "force=true".to_owned(),
    };
    let path = format!("/clusters/{cluster}/slaves/{server}?{query}{}", if anyway { "&anyway=true" } else { "" });
    let mut answer = session.client.delete(&path, None)?;
    if answer.status == 202 {
        session.note(&format!("{server}: {}.", cell(&answer.body["detail"])));
        let patience = deadline.unwrap_or_default() + REMOVAL_SLACK;
        session.note(&format!(
            "The panel goes on with it also without this command; `phalanx cluster undrain {cluster} {server}` takes it back."
        ));
        answer.body = wait_for_task(session, &answer.body, patience)?;
    }
    let body = super::resource::done_without_answer(
        answer.body,
        json!({"removed": server, "kind": "slave", "cluster": cluster}),
    );
    session.show(&body, |_| format!("{server} has left {cluster}.\n"))?;
    if let Some(detail) = body["detail"].as_str() {
        session.note(&printable(detail));
    }
    Ok(())
}

/// Waits until a task of the panel has ended, telling how far it is; its failure is ours. A panel that is started anew goes on with
/// its tasks, so one that is away for a while is waited for.
fn wait_for_task(session: &Session, begun: &Value, patience: Duration) -> Result<Value, Failure> {
    let started = Instant::now();
    let (id, mut flows) = (&begun["id"], begun["progress"]["flows"].clone());
    while started.elapsed() < patience {
        let task = match session.client.get(&format!("/tasks/{id}")) {
            Ok(answer) => answer.body,
            Err(Failure::Unreachable { why, .. }) => {
                session.note(&format!("The panel is out of reach: {why}."));
                std::thread::sleep(POLL);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        match task["state"].as_str() {
            Some("running") => {
                if flows != task["progress"]["flows"] {
                    flows = task["progress"]["flows"].clone();
                    session.note(&printable(task["detail"].as_str().unwrap_or_default()));
                }
                std::thread::sleep(POLL);
            }
            Some("done") => return Ok(task),
            _ => return Err(Failure::Other(anyhow::anyhow!("{}", cell(&task["detail"])))),
        }
    }
    Err(Failure::Other(anyhow::anyhow!(
        "the panel still works on it after {} s; `phalanx status` shows how far it is",
        patience.as_secs()
    )))
}

fn set_node(session: &Session, cluster: &Name, server: &Name, body: &Value, done: &str) -> Result<(), Failure> {
    let current = session.client.get(&CLUSTER.at(cluster.as_str()))?;
    let path = format!("/clusters/{cluster}/nodes/{server}");
    let answer = session.client.patch(&path, etag(&current), body)?.body;
    session.show(&answer, |_| format!("{server} in {cluster} {done}.\n"))
}

/// A duration of whole seconds to hours: `30`, `30s`, `5m`, `1h`; at most an hour.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write it as 30s, 5m or 1h".into()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match seconds {
        Some(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds)),
        Some(_) => Err("it must be at most 1h".into()),
        None => Err("write it as 30s, 5m or 1h".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [("30", 30), ("30s", 30), ("5m", 300), ("1h", 3600), ("0", 0), ("60m", 3600)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "-1s", "1d", "2h", "99999999999999999999", "18446744073709551615h", "1.5s", "5 m"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn directives_are_the_lines_of_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("extra.conf");
        std::fs::write(&file, "LimitRequestBody 1000\n\n<Location /x>\n  Require all denied\n</Location>\n\n")
            .expect("a file");
        let lines = read_directives(&file).expect("lines");
        assert_eq!(lines, ["LimitRequestBody 1000", "", "<Location /x>", "  Require all denied", "</Location>"]);
        assert!(read_directives(&directory.path().join("absent")).is_err());
    }
}
