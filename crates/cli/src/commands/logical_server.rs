//! `phalanx logical-server`: the services that customers are placed on. They live on masters.

use super::resource::{ListArgs, Resource};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::session::Session;
use clap::Subcommand;
use phalanx_model::Name;
use serde_json::json;

const LOGICAL_SERVER: Resource = Resource {
    noun: "logical server",
    path: "/logical-servers",
    key: "/name",
    columns: &[Column::new("NAME", "/name"), Column::new("KIND", "/kind"), Column::new("CLUSTER", "/cluster")],
    first: "`phalanx logical-server add www --server web1` makes the first.",
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum LogicalServerCommand {
    /// Create a logical server on a master
    #[command(after_help = "Example:\n  phalanx logical-server add www --server web1")]
    Add {
        /// Its name: 1 to 32 of a-z, 0-9 and -
        name: Name,
        /// The master that it is created on; a slave holds no logical server
        #[arg(long)]
        server: Name,
    },
    /// List the logical servers
    List(ListArgs),
    /// Show one in full
    Show {
        /// The logical server
        name: Name,
    },
    /// Remove one that no account is placed on
    Remove {
        /// The logical server
        name: Name,
    },
}

/// Runs one.
pub fn run(command: LogicalServerCommand, session: &Session) -> Result<(), Failure> {
    match command {
        LogicalServerCommand::Add { name, server } => {
            let next = format!("`phalanx account add NAME --logical-server {name}`");
            LOGICAL_SERVER.add(session, &json!({"name": name, "server": server}), &next).map(drop)
        }
        LogicalServerCommand::List(args) => LOGICAL_SERVER.list(session, &args, ""),
        LogicalServerCommand::Show { name } => LOGICAL_SERVER.show(session, name.as_str()),
        LogicalServerCommand::Remove { name } => LOGICAL_SERVER.remove(session, name.as_str(), ""),
    }
}
