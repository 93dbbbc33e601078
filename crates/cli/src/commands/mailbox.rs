//! `phalanx mailbox`: places where mail is kept for who logs in with its address.

use super::mail_domain::state_patch;
use super::resource::{ListArgs, Resource, query_escape};
use crate::failure::Failure;
use crate::password;
use crate::render::table::Column;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::{HostName, LocalAddress};
use serde_json::{Value, json};
use std::path::PathBuf;

const MAILBOX: Resource = Resource {
    noun: "mailbox",
    path: "/mailboxes",
    key: "/address",
    columns: &[
        Column::new("ADDRESS", "/address"),
        Column::new("QUOTA MiB", "/quota_mib"),
        Column::new("STATE", "/state"),
    ],
    first: "`phalanx mailbox add info@example.org` makes the first.",
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum MailboxCommand {
    /// Create a mailbox; it can be used within a second
    #[command(after_help = "\
Examples:
  phalanx mailbox add info@example.org                            asks for the password
  phalanx mailbox add info@example.org --password-file - <secret --quota-mib 4096")]
    Add {
        /// Its address, in a domain that exists
        address: LocalAddress,
        /// Read its password from this file (- is standard input) instead of asking for it
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// The most that it may hold, in MiB (1024 if not given)
        #[arg(long, value_name = "N")]
        quota_mib: Option<u32>,
    },
    /// List the mailboxes
    List {
        /// Only those of this domain
        #[arg(long)]
        domain: Option<HostName>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one, without its password
    Show {
        /// The mailbox's address
        address: LocalAddress,
    },
    /// Change a mailbox's password, quota or state
    #[command(after_help = "\
Examples:
  phalanx mailbox change info@example.org --ask-password
  phalanx mailbox change info@example.org --quota-mib 4096
  phalanx mailbox change info@example.org --suspend       its mail waits where it comes from, nobody logs in")]
    Change(ChangeArgs),
    /// Remove a mailbox; the mail in it stays on the share
    Remove {
        /// The mailbox's address
        address: LocalAddress,
    },
}

/// What can be changed of a mailbox.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The mailbox's address
    address: LocalAddress,
    /// Ask for a new password
    #[arg(long, conflicts_with = "password_file")]
    ask_password: bool,
    /// Read a new password from this file (- is standard input)
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The most that it may hold, in MiB
    #[arg(long, value_name = "N")]
    quota_mib: Option<u32>,
    /// Take no mail and let nobody log in: mail waits where it comes from
    #[arg(long, conflicts_with = "resume")]
    suspend: bool,
    /// Take mail and logins again
    #[arg(long)]
    resume: bool,
}

/// Runs one.
pub fn run(command: MailboxCommand, session: &Session) -> Result<(), Failure> {
    match command {
        MailboxCommand::Add { address, password_file, quota_mib } => {
            let password = password::get(password_file.as_deref(), address.as_str())?;
            let body = json!({"address": address, "password": password, "quota_mib": quota_mib});
            MAILBOX.add(session, &body, "").map(drop)
        }
        MailboxCommand::List { domain, list } => {
            let query = domain.map(|domain| format!("&domain={}", query_escape(domain.as_str()))).unwrap_or_default();
            MAILBOX.list(session, &list, &query)
        }
        MailboxCommand::Show { address } => MAILBOX.show(session, address.as_str()),
        MailboxCommand::Change(args) => MAILBOX.change(session, args.address.as_str(), |_| patch(&args)),
        MailboxCommand::Remove { address } => MAILBOX.remove(session, address.as_str(), ""),
    }
}

fn patch(args: &ChangeArgs) -> Result<Value, Failure> {
    let ChangeArgs { address, ask_password, password_file, quota_mib, suspend, resume } = args;
    let mut patch = state_patch(*suspend, *resume);
    if *ask_password || password_file.is_some() {
        patch["password"] = json!(password::get(password_file.as_deref(), address.as_str())?);
    }
    if let Some(quota_mib) = quota_mib {
        patch["quota_mib"] = json!(quota_mib);
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_changed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("password");
        std::fs::write(&file, "correct horse\n").expect("a file");
        let address = "info@example.org".parse().expect("an address");
        let mut args = ChangeArgs {
            address,
            ask_password: false,
            password_file: None,
            quota_mib: Some(7),
            suspend: true,
            resume: false,
        };
        assert_eq!(patch(&args).expect("a change"), json!({"state": "suspended", "quota_mib": 7}));
        args = ChangeArgs { password_file: Some(file), quota_mib: None, suspend: false, ..args };
        assert_eq!(patch(&args).expect("a change"), json!({"password": "correct horse"}));
        args.password_file = None;
        assert_eq!(patch(&args).expect("no change"), json!({}));
    }
}
