//! `phalanx token`: the API's tokens.

use super::resource::{ListArgs, Resource};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::render::text::printable;
use crate::session::Session;
use clap::Subcommand;
use phalanx_model::Name;
use serde_json::json;

const TOKEN: Resource = Resource {
    noun: "token",
    path: "/tokens",
    key: "/name",
    columns: &[
        Column::new("NAME", "/name"),
        Column::new("ROLE", "/role"),
        Column::new("OWNER", "/owner"),
        Column::new("CREATED", "/created_at"),
    ],
    first: "",
};

/// What a token may do.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Role {
    /// Everything
    Admin,
    /// Look, and change nothing
    Reader,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Reader => "reader",
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it: this is the only time it is shown
    #[command(
        after_help = "Example:\n  (umask 077; phalanx token add monitor --role reader >monitor.token)\n  phalanx --token-file monitor.token status"
    )]
    Add {
        /// A name to tell it by
        name: Name,
        /// What it may do
        #[arg(long, value_enum, default_value = "admin")]
        role: Role,
    },
    /// List the tokens, without their secrets
    List(ListArgs),
    /// Show one, without its secret
    Show {
        /// The token's name
        name: Name,
    },
    /// Make a token void
    Remove {
        /// The token's name
        name: Name,
    },
}

/// Runs one.
pub fn run(command: TokenCommand, session: &Session) -> Result<(), Failure> {
    match command {
        TokenCommand::Add { name, role } => {
            let created = session.client.post(TOKEN.path, &json!({"name": name, "role": role.as_str()}))?.body;
            session
                .show(&created, |created| format!("{}\n", printable(created["token"].as_str().unwrap_or_default())))?;
            session.note(
                "Keep it in a file that only you can read, and name that with --token-file. It is not shown again.",
            );
            Ok(())
        }
        TokenCommand::List(args) => TOKEN.list(session, &args, ""),
        TokenCommand::Show { name } => TOKEN.show(session, name.as_str()),
        TokenCommand::Remove { name } => TOKEN.remove(session, name.as_str(), ""),
    }
}
