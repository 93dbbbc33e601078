//! `phalanx server`: physical servers, the machines that run the agent.

use super::resource::{ListArgs, Resource};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::render::text::{cell, printable};
use crate::session::Session;
use clap::Subcommand;
use phalanx_model::server::{FenceDriver, InternalNet};
use phalanx_model::{ClusterKind, Name};
use serde_json::{Value, json};

pub(super) const SERVER: Resource = Resource {
    noun: "server",
    path: "/servers",
    key: "/name",
    columns: &[
        Column::new("NAME", "/name"),
        Column::new("KIND", "/kind"),
        Column::new("ADDRESS", "/address"),
        Column::new("CLUSTER", "/cluster"),
        Column::new("ROLE", "/role"),
        Column::new("STATE", "/state/state"),
        Column::new("CONNECTED", "/state/connected"),
        Column::new("JOINED", "/state/joined_at"),
    ],
    first: "`phalanx server add web1 --kind web --address 10.9.0.11/24` makes the first.",
};

/// What a server or cluster does for a living.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    /// Serves web sites
    Web,
    /// Serves mail
    Mail,
    /// Keeps the shares
    Nas,
    /// Takes the external addresses
    Balancer,
}

impl From<Kind> for ClusterKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Web => Self::Web,
            Kind::Mail => Self::Mail,
            Kind::Nas => Self::Nas,
            Kind::Balancer => Self::Balancer,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Make a physical server known
    #[command(after_help = "Example:\n  phalanx server add web1 --kind web --address 10.9.0.11/24")]
    Add {
        /// Its name: 1 to 32 of a-z, 0-9 and -
        name: Name,
        /// What clusters it may belong to
        #[arg(long)]
        kind: Kind,
        /// The internal address under which the other machines reach it, with its prefix length
        #[arg(long, value_name = "IP/LEN")]
        address: InternalNet,
    },
    /// List the servers
    List(ListArgs),
    /// Show one in full, with what its agent reports
    Show {
        /// The server
        name: Name,
    },
    /// Change a server's internal address, or how it is fenced
    #[command(after_help = "\
A fence makes sure that a server which can't be asked any more does no harm. `command:PROGRAM` names a program in
/etc/phalanx/fence on the panel's machine; it is called as `PROGRAM off SERVER ADDRESS`, then as `PROGRAM status SERVER
ADDRESS`, which must print `off`.

Examples:
  phalanx server change web1 --address 10.9.0.41/24
  phalanx server change mail2 --fence command:power-switch
  phalanx server change mail2 --fence manual")]
    Change {
        /// The server
        name: Name,
        /// The new internal address, with its prefix length
        #[arg(long, value_name = "IP/LEN")]
        address: Option<InternalNet>,
        /// How it is fenced: manual (a person's word), or command:PROGRAM
        #[arg(long, value_name = "DRIVER")]
        fence: Option<FenceDriver>,
    },
    /// Make sure that a server which can't be asked any more does no harm, so that what it alone had can move
    #[command(after_help = "\
Its driver says how: a program switches it off and sees that it is off, or you have done so, and say it in these words.
The server takes part again when its machine was started anew.

Examples:
  phalanx server fence mail2
  phalanx server fence mail2 --confirm 'mail2 is switched off'")]
    Fence {
        /// The server
        name: Name,
        /// Where a person's word fences it: "SERVER is switched off"
        #[arg(long, value_name = "WORDS")]
        confirm: Option<String>,
        /// Also if it reports, and so could let go of what it has by itself
        #[arg(long)]
        anyway: bool,
    },
    /// Let a fenced server take part again, where the panel can't tell by itself that its machine was started anew
    #[command(after_help = "Example:\n  phalanx server unfence mail2 --confirm 'mail2 was started anew'")]
    Unfence {
        /// The server
        name: Name,
        /// "SERVER was started anew"
        #[arg(long, value_name = "WORDS")]
        confirm: String,
    },
    /// Remove a server that is in no cluster
    Remove {
        /// The server
        name: Name,
    },
    /// Make a one-time token and print the command with which the machine joins
    #[command(after_help = "\
The command is all that goes to standard output, so that it can be passed on:
  phalanx server token web1 | ssh root@web1 sh

A slave joins through its master, so that it is best to put the server into its cluster first. One that has joined
already is handed over to its master when it becomes a slave, and back to the panel when it leaves.")]
    Token {
        /// The server
        name: Name,
    },
    /// Go back to an earlier generation of a server's configuration
    #[command(
        after_help = "Example:\n  phalanx server rollback web1 41\n\nThe live generation is in `phalanx server show web1`."
    )]
    Rollback {
        /// The server
        name: Name,
        /// The generation's number
        generation: u64,
    },
    /// Let a server's agent look at everything anew and mend what is not as it should be
    Reconcile {
        /// The server
        name: Name,
    },
}

/// Runs one.
pub fn run(command: ServerCommand, session: &Session) -> Result<(), Failure> {
    match command {
        ServerCommand::Add { name, kind, address } => {
            let kind = ClusterKind::from(kind);
            let more = if kind == ClusterKind::Mail { " --mail-name HOST" } else { "" };
            let next = format!(
                "put it into a cluster (`phalanx cluster add NAME --kind {kind} --master {name}{more}`, or \
                 `phalanx cluster add-slave CLUSTER {name}`); `phalanx server token {name}` gives the command with which it joins"
            );
            SERVER.add(session, &json!({"name": name, "kind": kind, "address": address}), &next).map(drop)
        }
        ServerCommand::List(args) => SERVER.list(session, &args, ""),
        ServerCommand::Show { name } => SERVER.show(session, name.as_str()),
        ServerCommand::Change { name, address, fence } => SERVER.change(session, name.as_str(), |_| {
            Ok(super::resource::without_nulls(&json!({"address": address, "fence": fence})))
        }),
        ServerCommand::Fence { name, confirm, anyway } => {
            let body = json!({"confirmation": confirm, "anyway": anyway});
            let body = super::resource::without_nulls(&body);
            let fenced = session.client.post_slowly(&format!("/servers/{name}/fence"), &body)?.body;
            session.show(&fenced, |_| format!("{name} is fenced.\n"))
        }
        ServerCommand::Unfence { name, confirm } => {
            let body = json!({"confirmation": confirm});
            let server = session.client.post(&format!("/servers/{name}/unfence"), &body)?.body;
            session.show(&server, |_| format!("{name} takes part again.\n"))
        }
        ServerCommand::Remove { name } => SERVER.remove(session, name.as_str(), ""),
        ServerCommand::Token { name } => token(session, &name),
        ServerCommand::Rollback { name, generation } => {
            order(session, &name, "rollback", &json!({"generation": generation}))
        }
        ServerCommand::Reconcile { name } => order(session, &name, "reconcile", &json!({})),
    }
}

fn token(session: &Session, name: &Name) -> Result<(), Failure> {
    let answer = session.client.post(&format!("/servers/{name}/join-token"), &json!({}))?.body;
    session.show(&answer, |answer| format!("{}\n", printable(answer["command"].as_str().unwrap_or_default())))?;
    session.note(&format!(
        "Run this as root on {name}. It works once, until {}.",
        crate::render::event::moment(&answer["expires_at"])
    ));
    Ok(())
}

/// Orders something from a server's agent and prints its answer, which the panel waits for.
fn order(session: &Session, name: &Name, what: &str, body: &Value) -> Result<(), Failure> {
    let answer = session.client.post(&format!("/servers/{name}/{what}"), body)?.body;
    session.show(&answer, |answer| format!("{name}: {}\n", cell(&answer["result"])))
}
