//! `phalanx site`: web sites of accounts.

use super::log_view::LogView;
use super::resource::{ListArgs, Resource, query_escape};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::{HostName, Name, RelativePath};
use serde_json::{Map, Value, json};

const SITE: Resource = Resource {
    noun: "site",
    path: "/sites",
    key: "/name",
    columns: &[
        Column::new("NAME", "/name"),
        Column::new("ACCOUNT", "/account"),
        Column::new("DOCUMENT ROOT", "/document_root"),
        Column::new("ALIASES", "/aliases"),
    ],
    first: "`phalanx site add www.example.org --account alice` makes the first.",
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum SiteCommand {
    /// Create a site; it is live on every node within a second
    #[command(after_help = "\
Examples:
  phalanx site add www.example.org --account alice --alias example.org
  phalanx site add shop.example.org --account alice --document-root sites/shop/public")]
    Add {
        /// Its main host name
        name: HostName,
        /// The account it belongs to
        #[arg(long)]
        account: Name,
        /// Another host name that it answers under (may be repeated)
        #[arg(long = "alias", value_name = "HOST")]
        aliases: Vec<HostName>,
        /// Its document root, relative to the account's home (sites/NAME if not given)
        #[arg(long, value_name = "PATH")]
        document_root: Option<RelativePath>,
    },
    /// List the sites
    List {
        /// Only those of this account
        #[arg(long)]
        account: Option<Name>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one in full
    Show {
        /// The site's main host name
        name: HostName,
    },
    /// Change a site's aliases or document root
    #[command(
        after_help = "Example:\n  phalanx site change www.example.org --add-alias example.net --remove-alias example.org"
    )]
    Change(ChangeArgs),
    /// Show the end of its access log, in which the requests to all nodes are
    #[command(
        after_help = "Examples:\n  phalanx site log www.example.org --follow\n  phalanx site log www.example.org --errors"
    )]
    Log {
        /// The site's main host name
        name: HostName,
        /// What went wrong instead of what was asked for
        #[arg(long)]
        errors: bool,
        #[command(flatten)]
        view: LogView,
    },
    /// Remove a site; its files stay in the account's home
    Remove {
        /// The site's main host name
        name: HostName,
    },
}

/// What can be changed of a site.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The site's main host name
    name: HostName,
    /// Another host name that it answers under (may be repeated)
    #[arg(long, value_name = "HOST")]
    add_alias: Vec<HostName>,
    /// A host name that it no longer answers under (may be repeated)
    #[arg(long, value_name = "HOST")]
    remove_alias: Vec<HostName>,
    /// Its document root, relative to the account's home
    #[arg(long, value_name = "PATH")]
    document_root: Option<RelativePath>,
}

/// Runs one.
pub fn run(command: SiteCommand, session: &Session) -> Result<(), Failure> {
    match command {
        SiteCommand::Add { name, account, aliases, document_root } => {
            let body = json!({"name": name, "account": account, "aliases": aliases, "document_root": document_root});
            SITE.add(session, &body, "").map(drop)
        }
        SiteCommand::List { account, list } => {
            let query =
                account.map(|account| format!("&account={}", query_escape(account.as_str()))).unwrap_or_default();
            SITE.list(session, &list, &query)
        }
        SiteCommand::Show { name } => SITE.show(session, name.as_str()),
        SiteCommand::Change(args) => SITE.change(session, args.name.as_str(), |current| patch(&args, current)),
        SiteCommand::Log { name, errors, view } => {
            view.show(session, &format!("/sites/{name}/log"), if errors { "&errors=true" } else { "" })
        }
        SiteCommand::Remove { name } => SITE.remove(session, name.as_str(), ""),
    }
}

fn patch(args: &ChangeArgs, current: &Value) -> Result<Value, Failure> {
    let ChangeArgs { name, add_alias, remove_alias, document_root } = args;
    let mut patch = Map::new();
    if !add_alias.is_empty() || !remove_alias.is_empty() {
        let mut aliases: Vec<String> =
            current["aliases"].as_array().into_iter().flatten().filter_map(|a| a.as_str().map(str::to_owned)).collect();
        for alias in remove_alias {
            let before = aliases.len();
            aliases.retain(|known| known != alias.as_str());
            if aliases.len() == before {
                return Err(Failure::usage(
                    format!("{alias} is no alias of {name}"),
                    format!("its aliases are in `phalanx site show {name}`"),
                ));
            }
        }
        aliases.extend(add_alias.iter().map(HostName::to_string).filter(|new| !current_holds(current, new)));
        patch.insert("aliases".into(), json!(aliases));
    }
    if let Some(document_root) = document_root {
        patch.insert("document_root".into(), json!(document_root));
    }
    Ok(Value::Object(patch))
}

fn current_holds(current: &Value, alias: &str) -> bool {
    current["aliases"].as_array().into_iter().flatten().any(|known| known == alias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_added_and_removed_one_by_one() {
        let host = |text: &str| text.parse::<HostName>().expect("a host name");
        let mut args = ChangeArgs {
            name: host("www.example.org"),
            add_alias: vec![host("a.example.org"), host("c.example.org")],
            remove_alias: vec![host("b.example.org")],
            document_root: None,
        };
        let current = json!({"aliases": ["a.example.org", "b.example.org"]});
        let expected = json!({"aliases": ["a.example.org", "c.example.org"]});
        assert_eq!(patch(&args, &current).expect("a change"), expected);
        args.remove_alias = vec![host("z.example.org")];
        assert_eq!(patch(&args, &current).expect_err("no such alias").exit_code(), 2);
    }
}
