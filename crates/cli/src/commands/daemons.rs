//! The daemons' commands. What they do is in the panel's and the agent's crates; here are their arguments, the runtime and the
//! log, which goes to standard error, where systemd's journal takes it.

use crate::failure::Failure;
use crate::session::print;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use phalanx_agent::guard::Probe;
use phalanx_agent::{Found, JoinOptions};
use phalanx_panel::{InitOptions, RunOptions};
use serde_json::{Value, json};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// A daemon mostly waits; two threads keep it answering while one of them is busy.
const WORKER_THREADS: usize = 2;

/// More than any join token has.
const TOKEN_BYTES_MAX: u64 = 1024;

const LOG_HELP: &str = "The log goes to standard error; PHALANX_LOG sets its level (error, warn, info, debug, trace) or a \
                        filter such as phalanx_panel=debug,info.";

/// The control panel.
#[derive(Debug, Subcommand)]
pub enum PanelCommand {
    /// Make a panel: its store, its certificate authority and the first administrator's token
    #[command(after_help = "\
The token is also written to admin.token in the data directory, where root's commands find it.

Example:
  install -d -m 0700 -o phalanx-panel -g phalanx-panel /var/lib/phalanx/panel
  phalanx panel init && systemctl enable --now phalanx-panel")]
    Init {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Make a store that was put back from a backup the present one; the panel must be stopped
    #[command(after_help = "\
Nodes take everything anew from it, and 10,000 uids are passed over: accounts made since the backup had some of them.

Example:
  systemctl stop phalanx-panel
  cp BACKUP/panel.sqlite BACKUP/ca.pem BACKUP/ca.key /var/lib/phalanx/panel/ && rm -f /var/lib/phalanx/panel/panel.sqlite-*
  phalanx panel adopt-backup && systemctl start phalanx-panel")]
    AdoptBackup {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Run the panel until it is told to stop (SIGTERM)
    #[command(after_help = LOG_HELP)]
    Run {
        #[command(flatten)]
        data: DataArgs,
        /// Where the API and the pages are served, as plain HTTP
        #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], 8080)))]
        listen: SocketAddr,
        /// Where masters are accepted, with mutual TLS
        #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([0, 0, 0, 0], 7400)))]
        link_listen: SocketAddr,
        /// The address under which masters reach this panel, for the join commands (found out if not given)
        #[arg(long, value_name = "ADDRESS[:PORT]")]
        public: Option<String>,
    },
}

/// Where a panel's store lies.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Where the panel's store lies
    #[arg(long, value_name = "DIR", default_value = "/var/lib/phalanx/panel")]
    data_dir: PathBuf,
}

/// The agent.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Make this machine a member of the fleet, with a one-time token
    #[command(after_help = "\
`phalanx server token SERVER` prints this command with its values. A running agent takes the identity up by itself.

Examples:
  phalanx agent join --upstream 10.9.0.1:7400 --token phx1.web1.…
  phalanx agent join --upstream 10.9.0.1:7400 --token - <token-file")]
    Join {
        /// The panel's address, or for a slave its master's
        #[arg(long, value_name = "ADDRESS[:PORT]")]
        upstream: String,
        /// The one-time token; - reads it from standard input
        #[arg(long)]
        token: String,
        #[command(flatten)]
        root: RootArgs,
    },
    /// Have the daemons' own checkers judge a generation of configuration; nothing is changed
    #[command(after_help = "\
The agent does this itself before a generation goes live. It runs where the daemons are installed.

Example:
  phalanx agent check /var/lib/phalanx/live")]
    Check {
        /// The generation's directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Run the agent until it is told to stop (SIGTERM); what it set up serves on
    #[command(after_help = LOG_HELP)]
    Run {
        #[command(flatten)]
        root: RootArgs,
        /// For tests of crashes: the agent kills itself at this point, counted from its start; each step has two, before and after it
        #[arg(long, hide = true, value_name = "N", env = "PHALANX_AGENT_STOP_BEFORE")]
        stop_before: Option<u64>,
    },
}

/// Where an agent keeps its state.
#[derive(Debug, Args)]
pub struct RootArgs {
    /// Where the agent keeps its state
    #[arg(long, value_name = "DIR", default_value = phalanx_agent::ROOT)]
    root: PathBuf,
}

/// The launcher.
#[derive(Debug, Args)]
#[command(after_help = LOG_HELP)]
pub struct LauncherArgs {
    /// Its configuration; read again at SIGHUP
    #[arg(long, value_name = "FILE", default_value = phalanx_agent::launcher::CONFIG)]
    config: PathBuf,
}

/// The guard.
#[derive(Debug, Args)]
#[command(after_help = LOG_HELP)]
pub struct GuardArgs {
    /// Its configuration; read again at SIGHUP
    #[arg(long, value_name = "FILE", default_value = phalanx_agent::guard::CONFIG)]
    config: PathBuf,
    /// Probe the share mounted here, once: how the guard starts itself as a child that may hang
    #[arg(long, hide = true, value_name = "DIR", requires_all = ["marker", "number"])]
    probe: Option<PathBuf>,
    /// What the share's marker file must hold
    #[arg(long, hide = true, requires = "probe")]
    marker: Option<String>,
    /// The probe's number
    #[arg(long, hide = true, value_name = "N", requires = "probe")]
    number: Option<u64>,
}

/// The question for a right.
#[derive(Debug, Args)]
pub struct HoldsArgs {
    /// mailboxes, queue-SERVER, or own-queue
    right: phalanx_agent::holds::Question,
}

/// The shipper and merger of logs.
#[derive(Debug, Args)]
#[command(after_help = LOG_HELP)]
pub struct LogsArgs {
    /// Its configuration; read again at SIGHUP
    #[arg(long, value_name = "FILE", default_value = phalanx_agent::logs::CONFIG)]
    config: PathBuf,
    /// Read a part of a merged log, once: how the agent starts it as a child that may hang
    #[arg(long, hide = true, value_name = "JSON")]
    read: Option<String>,
    /// Follow a message through the log of mail, once, in the same way
    #[arg(long, hide = true, value_name = "JSON", conflicts_with = "read")]
    trace: Option<String>,
}

/// Makes or runs the panel.
pub fn panel(command: PanelCommand, json: bool) -> Result<(), Failure> {
    match command {
        PanelCommand::Init { data } => {
            let token_file = data.data_dir.join("admin.token");
            let token = block_on(phalanx_panel::init(&InitOptions { data_dir: data.data_dir }))?;
            let made = json!({"token": token, "token_file": token_file});
            show(json, &made, || {
                format!(
                    "The panel is made. The first administrator's token, also in {}:\n{token}\n",
                    token_file.display()
                )
            })
        }
        PanelCommand::AdoptBackup { data } => {
            let adopted = block_on(phalanx_panel::adopt_backup(&data.data_dir))?;
            show(json, &json!(adopted), || {
                format!(
                    "The backup is the present store. Its incarnation is {} (it was {}); the next account's uid is {} (it would have been {}); \
                     {} join tokens are void.\n",
                    adopted.incarnation,
                    adopted.incarnation_before,
                    adopted.uid_next,
                    adopted.uid_next_before,
                    adopted.join_tokens_voided
                )
            })
        }
        PanelCommand::Run { data, listen, link_listen, public } => {
            log()?;
            block_on(phalanx_panel::run(&RunOptions { data_dir: data.data_dir, listen, link_listen, public }))
        }
    }
}

/// Joins, or runs the agent.
pub fn agent(command: AgentCommand, json: bool) -> Result<(), Failure> {
    match command {
        AgentCommand::Join { upstream, token, root } => {
            let token = if token == "-" { token_from_stdin()? } else { token };
            let name =
                block_on(async { phalanx_agent::join(&JoinOptions { upstream, token, root: root.root }).await })?;
            show(json, &json!({"server": name}), || format!("This machine has joined as {name}.\n"))
        }
        AgentCommand::Check { directory } => {
            let directory =
                directory.canonicalize().with_context(|| format!("{} can't be read", directory.display()))?;
            match block_on(phalanx_agent::validate(&directory))? {
                Found::Good => {
                    show(json, &json!({"found": "good"}), || "The daemons' checkers find nothing wrong.\n".to_owned())
                }
                Found::Bad(words) => Err(anyhow::anyhow!("{words}").into()),
                Found::Unknown(words) => Err(anyhow::anyhow!("nothing can be said of it: {words}").into()),
            }
        }
        AgentCommand::Run { root, stop_before } => {
            log()?;
            block_on(phalanx_agent::run(phalanx_agent::RunOptions { root: root.root, stop_before }))
        }
    }
}

/// Prints what was done: for programs as JSON, else in words.
fn show(json: bool, value: &Value, words: impl FnOnce() -> String) -> Result<(), Failure> {
    print(&if json { format!("{value:#}\n") } else { words() })
}

fn token_from_stdin() -> Result<String, Failure> {
    let mut token = String::new();
    std::io::stdin()
        .take(TOKEN_BYTES_MAX)
        .read_to_string(&mut token)
        .context("reading the token from standard input")?;
    Ok(token.trim().to_owned())
}

/// Runs the launcher.
pub fn launcher(args: LauncherArgs) -> Result<(), Failure> {
    let LauncherArgs { config } = args;
    log()?;
    block_on(phalanx_agent::launcher::run(&config))
}

/// Ships and merges logs.
pub fn logs(args: LogsArgs) -> Result<(), Failure> {
    let LogsArgs { config, read, trace } = args;
    log()?;
    match (read, trace) {
        (Some(part), _) => print(&phalanx_agent::logs::read(&config, &from_agent(&part)?)?),
        (None, Some(ask)) => print(&phalanx_agent::logs::trace(&config, &from_agent(&ask)?)?),
        (None, None) => block_on(phalanx_agent::logs::run(&config)),
    }
}

fn from_agent<T: serde::de::DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the agent starts this with a question as JSON")
}

/// Runs the guard; or one probe, which tells what it found by its exit code.
pub fn guard(args: GuardArgs) -> Result<ExitCode, Failure> {
    let GuardArgs { config, probe, marker, number } = args;
    log()?;
    match (probe, marker, number) {
        (Some(mount_point), Some(marker), Some(number)) => {
            Ok(phalanx_agent::guard::probe(&Probe { mount_point, marker, number }).into())
        }
        _ => block_on(phalanx_agent::guard::run(&config)).map(|()| ExitCode::SUCCESS),
    }
}

/// Asks the share whether this node may use a right.
pub fn holds(HoldsArgs { right }: HoldsArgs) -> Result<(), Failure> {
    Ok(phalanx_agent::holds::holds(&phalanx_agent::holds::config(), &right)?)
}

/// Runs a future to its end on a runtime of its own.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build();
    Ok(runtime.context("starting the runtime")?.block_on(future)?)
}

/// Sends the log to standard error. The journal has its own clock; a time of ours would be said twice.
fn log() -> Result<(), Failure> {
    let wanted = std::env::var("PHALANX_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        Failure::usage(
            format!("PHALANX_LOG={wanted:?} is no filter for the log: {error}"),
            "use error, warn, info, debug or trace",
        )
    })?;
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if in_journal {
        subscriber.without_time().init()
    } else {
        subscriber.init()
    }
    Ok(())
}
