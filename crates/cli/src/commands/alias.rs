//! `phalanx alias`: addresses whose mail goes elsewhere.

use super::resource::{ListArgs, Resource, query_escape};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::{AliasSource, HostName, MailAddress};
use serde_json::{Value, json};

const ALIAS: Resource = Resource {
    noun: "alias",
    path: "/aliases",
    key: "/source",
    columns: &[Column::new("SOURCE", "/source"), Column::new("TARGETS", "/targets")],
    first: "`phalanx alias add sales@example.org --to info@example.org` makes the first.",
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum AliasCommand {
    /// Send an address's mail elsewhere
    #[command(after_help = "\
Examples:
  phalanx alias add sales@example.org --to a@example.org --to b@elsewhere.net
  phalanx alias add info@example.org --to info@example.org --to b@elsewhere.net     a mailbox keeps its copy
  phalanx alias add @example.org --to info@example.org                              all that is nothing else")]
    Add {
        /// Whose mail: an address, or @DOMAIN for each that is nothing else
        source: AliasSource,
        /// Where it goes (may be repeated)
        #[arg(long = "to", value_name = "ADDRESS", required = true)]
        targets: Vec<MailAddress>,
    },
    /// List the aliases
    List {
        /// Only those of this domain
        #[arg(long)]
        domain: Option<HostName>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one in full
    Show {
        /// Whose mail
        source: AliasSource,
    },
    /// Change where an address's mail goes
    #[command(
        after_help = "Example:\n  phalanx alias change sales@example.org --add-to c@example.org --remove-to b@elsewhere.net"
    )]
    Change(ChangeArgs),
    /// Remove an alias
    Remove {
        /// Whose mail
        source: AliasSource,
    },
}

/// What can be changed of an alias.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// Whose mail
    source: AliasSource,
    /// One more address that it goes to (may be repeated)
    #[arg(long, value_name = "ADDRESS")]
    add_to: Vec<MailAddress>,
    /// An address that it no longer goes to (may be repeated)
    #[arg(long, value_name = "ADDRESS")]
    remove_to: Vec<MailAddress>,
}

/// Runs one.
pub fn run(command: AliasCommand, session: &Session) -> Result<(), Failure> {
    match command {
        AliasCommand::Add { source, targets } => {
            ALIAS.add(session, &json!({"source": source, "targets": targets}), "").map(drop)
        }
        AliasCommand::List { domain, list } => {
            let query = domain.map(|domain| format!("&domain={}", query_escape(domain.as_str()))).unwrap_or_default();
            ALIAS.list(session, &list, &query)
        }
        AliasCommand::Show { source } => ALIAS.show(session, source.as_str()),
        AliasCommand::Change(args) => ALIAS.change(session, args.source.as_str(), |current| patch(&args, current)),
        AliasCommand::Remove { source } => ALIAS.remove(session, source.as_str(), ""),
    }
}

fn patch(args: &ChangeArgs, current: &Value) -> Result<Value, Failure> {
    let ChangeArgs { source, add_to, remove_to } = args;
    if add_to.is_empty() && remove_to.is_empty() {
        return Ok(json!({}));
    }
    let known = current["targets"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut targets: Vec<&str> = known.collect();
    for gone in remove_to {
        let Some(at) = targets.iter().position(|target| *target == gone.as_str()) else {
            return Err(Failure::usage(
                format!("mail for {source} does not go to {gone}"),
                format!("where it goes is in `phalanx alias show {source}`"),
            ));
        };
        targets.remove(at);
    }
    for new in add_to.iter().map(MailAddress::as_str) {
        if !targets.contains(&new) {
            targets.push(new);
        }
    }
    Ok(json!({ "targets": targets }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_added_and_removed_one_by_one() {
        let address = |text: &str| text.parse::<MailAddress>().expect("an address");
        let mut args = ChangeArgs {
            source: "@example.org".parse().expect("a domain"),
            add_to: vec![address("a@example.org"), address("c@example.org")],
            remove_to: vec![address("b@example.org")],
        };
        let current = json!({"targets": ["a@example.org", "b@example.org"]});
        let expected = json!({"targets": ["a@example.org", "c@example.org"]});
        assert_eq!(patch(&args, &current).expect("a change"), expected);
        args.remove_to = vec![address("z@example.org")];
        assert_eq!(patch(&args, &current).expect_err("no such target").exit_code(), 2);
        let none = ChangeArgs { add_to: vec![], remove_to: vec![], ..args };
        assert_eq!(patch(&none, &current).expect("no change"), json!({}));
    }
}
