//! `phalanx mail-domain`: domains that mail is taken for, and what belongs into the DNS for them.

use super::resource::{ListArgs, Resource, query_escape};
use crate::failure::Failure;
use crate::render::detail::detail;
use crate::render::table::Column;
use crate::render::zone::zone;
use crate::session::Session;
use clap::{Args, Subcommand};
use phalanx_model::{HostName, Name};
use serde_json::{Value, json};

const MAIL_DOMAIN: Resource = Resource {
    noun: "mail domain",
    path: "/mail-domains",
    key: "/name",
    columns: &[
        Column::new("NAME", "/name"),
        Column::new("ACCOUNT", "/account"),
        Column::new("LOGICAL SERVER", "/logical_server"),
        Column::new("STATE", "/state"),
    ],
    first: "`phalanx mail-domain add example.org --account alice --logical-server post` makes the first.",
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum MailDomainCommand {
    /// Let mail be taken for a domain; the key that signs its mail is made with it
    #[command(after_help = "\
Examples:
  phalanx mail-domain add example.org --account alice --logical-server post
  phalanx mail-domain show example.org         what its owner has to put into the DNS")]
    Add {
        /// The domain
        name: HostName,
        /// The account it belongs to
        #[arg(long)]
        account: Name,
        /// The logical server, of kind mail, that it is placed on
        #[arg(long)]
        logical_server: Name,
    },
    /// List the mail domains
    List {
        /// Only those of this account
        #[arg(long)]
        account: Option<Name>,
        /// Only those on this logical server
        #[arg(long)]
        logical_server: Option<Name>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one in full, and as a piece of a zone file what belongs into the DNS
    Show {
        /// The domain
        name: HostName,
    },
    /// Suspend or resume a domain
    #[command(
        after_help = "Example:\n  phalanx mail-domain change example.org --suspend      its mail waits where it comes from, nobody logs in"
    )]
    Change(ChangeArgs),
    /// Remove a domain; the mail in its mailboxes stays on the share
    Remove {
        /// The domain
        name: HostName,
        /// Also remove its mailboxes and aliases
        #[arg(long)]
        with_mailboxes: bool,
    },
}

/// What can be changed of a domain.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The domain
    name: HostName,
    /// Take no mail and let nobody log in: mail waits where it comes from
    #[arg(long, conflicts_with = "resume")]
    suspend: bool,
    /// Take mail and logins again
    #[arg(long)]
    resume: bool,
}

/// Runs one.
pub fn run(command: MailDomainCommand, session: &Session) -> Result<(), Failure> {
    match command {
        MailDomainCommand::Add { name, account, logical_server } => {
            let body = json!({"name": name, "account": account, "logical_server": logical_server});
            let next = format!("`phalanx mail-domain show {name}` has the records for the DNS");
            MAIL_DOMAIN.add(session, &body, &next).map(drop)
        }
        MailDomainCommand::List { account, logical_server, list } => {
            let filter = |key: &str, name: Option<Name>| {
                name.map(|name| format!("&{key}={}", query_escape(name.as_str()))).unwrap_or_default()
            };
            let query = filter("account", account) + &filter("logical_server", logical_server);
            MAIL_DOMAIN.list(session, &list, &query)
        }
        MailDomainCommand::Show { name } => {
            let answer = session.client.get(&MAIL_DOMAIN.at(name.as_str()))?;
            session.show(&answer.body, in_full)
        }
        MailDomainCommand::Change(args) => {
            MAIL_DOMAIN.change(session, args.name.as_str(), |_| Ok(state_patch(args.suspend, args.resume)))
        }
        MailDomainCommand::Remove { name, with_mailboxes } => {
            MAIL_DOMAIN.remove(session, name.as_str(), if with_mailboxes { "?mailboxes=true" } else { "" })
        }
    }
}

/// The change of a state, as domains and mailboxes have it; empty where none was asked for.
pub fn state_patch(suspend: bool, resume: bool) -> Value {
    match (suspend, resume) {
        (true, _) => json!({"state": "suspended"}),
        (false, true) => json!({"state": "active"}),
        (false, false) => json!({}),
    }
}

/// A domain, then its records. Its key is in them.
fn in_full(domain: &Value) -> String {
    let mut plain = domain.clone();
    let records = plain["dns"].take();
    if let Some(fields) = plain.as_object_mut() {
        fields.shift_remove("dns");
        fields.shift_remove("dkim");
    }
    let name = domain["name"].as_str().unwrap_or_default();
    format!("{}\n{}", detail(&plain), zone(name, records.as_array().map_or(&[], Vec::as_slice)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_domain_is_shown_with_its_zone() {
        let domain = json!({
            "name": "example.org", "account": "alice", "state": "active", "dkim": {"selector": "phalanx", "public_base64": "MIIB"},
            "etag": "\"1\"", "dns": [{"name": "example.org", "type": "MX", "value": "10 mail.example.net.", "why": "where mail is taken"}],
        });
        expect![[r#"
            name:    example.org
            account: alice
            state:   active

            ; For the DNS of example.org:
            ; where mail is taken
            example.org. IN MX 10 mail.example.net.
        "#]]
        .assert_eq(&in_full(&domain));
    }
}
