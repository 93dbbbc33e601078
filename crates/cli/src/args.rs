//! The command line.

use crate::client::PANEL_DEFAULT;
use crate::commands::account::AccountCommand;
use crate::commands::address::AddressCommand;
use crate::commands::alias::AliasCommand;
use crate::commands::cluster::ClusterCommand;
use crate::commands::daemons::{AgentCommand, GuardArgs, HoldsArgs, LauncherArgs, LogsArgs, PanelCommand};
use crate::commands::journal::{AuditArgs, EventsArgs};
use crate::commands::logical_server::LogicalServerCommand;
use crate::commands::mail::MailCommand;
use crate::commands::mail_domain::MailDomainCommand;
use crate::commands::mailbox::MailboxCommand;
use crate::commands::queue::QueueCommand;
use crate::commands::server::ServerCommand;
use crate::commands::share::ShareCommand;
use crate::commands::site::SiteCommand;
use crate::commands::status::StatusArgs;
use crate::commands::token::TokenCommand;
use crate::commands::traffic::TrafficArgs;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A group of Linux machines that behaves as one web or mail hosting server.
#[derive(Debug, Parser)]
#[command(name = "phalanx", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What all commands understand.
    #[command(flatten)]
    pub global: Global,
}

const AFTER_HELP: &str = "\
The way to a first site:
  phalanx server add web1 --kind web --address 10.9.0.11/24
  phalanx share add content --kind local --path /srv/content
  phalanx cluster add web --kind web --master web1 --share content
  phalanx server token web1                 prints the command to run on web1
  phalanx logical-server add www --server web1
  phalanx account add alice --logical-server www
  phalanx site add www.example.org --account alice
  phalanx status

Daemons, which systemd starts (each has --help):
  phalanx panel init | run                  the control panel
  phalanx agent join | run                  the agent on each machine
  phalanx launcher, guard, logs             an agent's helpers on web nodes

The API token is read from --token-file, else PHALANX_TOKEN, else /var/lib/phalanx/panel/admin.token.
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the panel is out of reach.";

/// Options of all commands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The panel's address
    #[arg(long, global = true, env = "PHALANX_PANEL", default_value = PANEL_DEFAULT, hide_env_values = true, value_name = "URL")]
    pub panel: String,
    /// Read the API token from this file
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print the API's JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// The nouns, and what needs no noun.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything at a glance: balancers, nodes, shares and what is wrong
    Status(StatusArgs),
    /// What happened on the nodes
    #[command(after_help = "Examples:\n  phalanx events --follow\n  phalanx events --limit 200 --json")]
    Events(EventsArgs),
    /// Physical servers: the machines that run the agent
    #[command(subcommand)]
    Server(ServerCommand),
    /// Clusters: a master and its slaves that behave as one server
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Shares: the storage that all nodes of a cluster mount
    #[command(subcommand)]
    Share(ShareCommand),
    /// External addresses, and who takes and serves them
    #[command(subcommand)]
    Address(AddressCommand),
    /// Logical servers: the services that customers are placed on
    #[command(subcommand)]
    LogicalServer(LogicalServerCommand),
    /// Accounts: customers' spaces with uid and limits
    #[command(subcommand)]
    Account(AccountCommand),
    /// Web sites of accounts
    #[command(subcommand)]
    Site(SiteCommand),
    /// Domains that mail is taken for, and what belongs into the DNS for them
    #[command(subcommand)]
    MailDomain(MailDomainCommand),
    /// Mailboxes of mail domains
    #[command(subcommand)]
    Mailbox(MailboxCommand),
    /// Addresses whose mail goes elsewhere
    #[command(subcommand)]
    Alias(AliasCommand),
    /// Mail queues: what waits, and which node delivers it
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Mail clusters' logs, and the way of a message through them
    #[command(subcommand)]
    Mail(MailCommand),
    /// Tokens for the API
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who changed what, and when
    Audit(AuditArgs),
    /// Requests, messages and bytes of sites and mail domains by day
    #[command(
        after_help = "Examples:\n  phalanx traffic --site www.example.org\n  phalanx traffic --from 2026-11-01 --to 2026-11-30 --json"
    )]
    Traffic(TrafficArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  phalanx completions bash >/etc/bash_completion.d/phalanx")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// The control panel
    #[command(subcommand, hide = true)]
    Panel(PanelCommand),
    /// The agent on this machine
    #[command(subcommand, hide = true)]
    Agent(AgentCommand),
    /// Wakes accounts on a web node
    #[command(hide = true)]
    Launcher(LauncherArgs),
    /// Watches a web node's share
    #[command(hide = true)]
    Guard(GuardArgs),
    /// Says by success whether this node may use a right now: what daemons ask before they start
    #[command(hide = true)]
    Holds(HoldsArgs),
    /// Ships and merges a web node's access logs
    #[command(hide = true)]
    Logs(LogsArgs),
}
