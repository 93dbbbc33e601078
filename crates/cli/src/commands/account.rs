//! `phalanx account`: customers' spaces, each with a uid, limits and any number of sites.

use super::resource::{ListArgs, Resource};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::{Name, PhpVersion};
use serde_json::{Map, Value, json};

const ACCOUNT: Resource = Resource {
    noun: "account",
    path: "/accounts",
    key: "/name",
    columns: &[
        Column::new("NAME", "/name"),
        Column::new("UID", "/uid"),
        Column::new("LOGICAL SERVER", "/logical_server"),
        Column::new("OWNER", "/owner"),
        Column::new("PHP", "/php"),
        Column::new("CPU %", "/limits/cpu_percent"),
        Column::new("MEMORY MiB", "/limits/memory_mib"),
        Column::new("STATE", "/state"),
    ],
    first: "`phalanx account add alice --logical-server www` makes the first.",
};

/// What an account may use on each node.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits on each node")]
pub struct LimitArgs {
    /// CPU time in percent of one core, 5 to 6400
    #[arg(long, value_name = "N")]
    cpu_percent: Option<u32>,
    /// Memory in MiB, 64 to 1048576
    #[arg(long, value_name = "N")]
    memory_mib: Option<u32>,
    /// Processes and threads, 32 to 32768
    #[arg(long, value_name = "N")]
    processes: Option<u32>,
    /// Part of disk I/O relative to other accounts, 1 to 1000
    #[arg(long, value_name = "N")]
    io_weight: Option<u32>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Create an account
    #[command(after_help = "\
Examples:
  phalanx account add alice --logical-server www
  phalanx account add bob --logical-server www --cpu-percent 200 --memory-mib 1024 --php 8.2")]
    Add {
        /// Its name: 1 to 32 of a-z, 0-9 and -
        name: Name,
        /// The logical server it is placed on
        #[arg(long)]
        logical_server: Name,
        /// Who may manage it
        #[arg(long)]
        owner: Option<Name>,
        /// Which PHP runs its scripts, such as 8.2
        #[arg(long, value_name = "VERSION")]
        php: Option<PhpVersion>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List the accounts
    List(ListArgs),
    /// Show one in full
    Show {
        /// The account
        name: Name,
    },
    /// Change an account's limits, PHP or state
    #[command(after_help = "\
Examples:
  phalanx account change alice --memory-mib 1024
  phalanx account change alice --suspend          its sites are answered with 503")]
    Change(ChangeArgs),
    /// Remove an account
    Remove {
        /// The account
        name: Name,
        /// Also remove its sites
        #[arg(long)]
        with_sites: bool,
    },
}

/// What can be changed of an account.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The account
    name: Name,
    /// Which PHP runs its scripts, such as 8.2
    #[arg(long, value_name = "VERSION")]
    php: Option<PhpVersion>,
    /// Stop serving its sites
    #[arg(long, conflicts_with = "resume")]
    suspend: bool,
    /// Serve its sites again
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Runs one.
pub fn run(command: AccountCommand, session: &Session) -> Result<(), Failure> {
    match command {
        AccountCommand::Add { name, logical_server, owner, php, limits } => {
            let body = json!({
                "name": name, "logical_server": logical_server, "owner": owner, "php": php,
                "limits": limits.over(&Value::Null),
            });
            let next = format!("`phalanx site add www.example.org --account {name}`");
            ACCOUNT.add(session, &body, &next).map(drop)
        }
        AccountCommand::List(args) => ACCOUNT.list(session, &args, ""),
        AccountCommand::Show { name } => ACCOUNT.show(session, name.as_str()),
        AccountCommand::Change(args) => {
            ACCOUNT.change(session, args.name.as_str(), |current| Ok(patch(&args, current)))
        }
        AccountCommand::Remove { name, with_sites } => {
            ACCOUNT.remove(session, name.as_str(), if with_sites { "?sites=true" } else { "" })
        }
    }
}

impl LimitArgs {
    /// The current limits with those that were given in their place; null where none was given.
    fn over(&self, current: &Value) -> Value {
        let Self { cpu_percent, memory_mib, processes, io_weight } = *self;
        let given = [
            ("cpu_percent", cpu_percent),
            ("memory_mib", memory_mib),
            ("processes", processes),
            ("io_weight", io_weight),
        ];
        if given.iter().all(|(_, value)| value.is_none()) {
            return Value::Null;
        }
        let mut limits = current.as_object().cloned().unwrap_or_default();
        limits.extend(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))));
        Value::Object(limits)
    }
}

fn patch(args: &ChangeArgs, current: &Value) -> Value {
    let ChangeArgs { name: _, php, suspend, resume, limits } = args;
    let mut patch = Map::new();
    let limits = limits.over(&current["limits"]);
    if !limits.is_null() {
        patch.insert("limits".into(), limits);
    }
    if let Some(php) = php {
        patch.insert("php".into(), json!(php));
    }
    if *suspend || *resume {
        patch.insert("state".into(), json!(if *suspend { "suspended" } else { "active" }));
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_were_not_given_stay() {
        let limits = LimitArgs { cpu_percent: None, memory_mib: Some(1024), processes: None, io_weight: None };
        let current = json!({"cpu_percent": 50, "memory_mib": 512, "processes": 64, "io_weight": 100});
        let expected = json!({"cpu_percent": 50, "memory_mib": 1024, "processes": 64, "io_weight": 100});
        assert_eq!(limits.over(&current), expected);
        let none = LimitArgs { memory_mib: None, ..limits };
        assert!(none.over(&current).is_null());
    }
}
