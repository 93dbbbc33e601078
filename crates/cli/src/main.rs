//! Floor 6: the binary `phalanx`. The commands that a person types, and the start of the panel's and the agent's daemons.
//!
//! A command makes requests to the panel's API and prints; it holds no state and decides nothing. Text is for people, `--json` is
//! what the API answered, errors go to standard error, and the exit code tells scripts what kind of failure it was
//! ([`failure::Failure::exit_code`]).
//!
//! Deliberately absent: rules of the model (the panel keeps them), and secrets in arguments (every user of the machine can read
//! those).

mod args;
mod client;
mod commands;
mod failure;
mod password;
mod render;
mod session;
mod sse;
mod token;

use crate::args::{Cli, Command, Global};
use crate::failure::Failure;
use crate::render::style::Style;
use crate::render::text::printable;
use crate::session::Session;
use clap::{CommandFactory as _, Parser as _};
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = parse();
    let json = cli.global.json;
    match run(cli) {
        Ok(code) => code,
        Err(failure) => {
            let text = if json { format!("{:#}\n", failure.json()) } else { failure.text() };
            // Where standard error is closed, the exit code alone has to do.
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Reads the command line. What clap says of a wrong one quotes its words, so that it is told of them without what could steer the
/// terminal.
fn parse() -> Cli {
    let wrong = match Cli::try_parse() {
        Ok(cli) => return cli,
        Err(wrong) => wrong,
    };
    let harmless = std::env::args_os().map(|word| printable(&word.to_string_lossy()));
    match Cli::try_parse_from(harmless) {
        Err(told) if told.use_stderr() && std::env::args_os().any(|word| word == "--json") => {
            let _ = writeln!(std::io::stderr(), "{:#}", misuse(&told.render().to_string()).json());
            std::process::exit(told.exit_code())
        }
        Err(told) => told.exit(),
        // Only what made it wrong has gone from it.
        Ok(_) => {
            let lines: Vec<String> = wrong.render().to_string().lines().map(printable).collect();
            let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
            std::process::exit(wrong.exit_code())
        }
    }
}

/// What clap says of a wrong command line, as a failure of ours: for programs.
fn misuse(said: &str) -> Failure {
    let what: Vec<&str> = said.lines().take_while(|line| !line.starts_with("Usage:")).collect();
    let what = what.join("\n");
    let what = what.trim();
    Failure::usage(what.strip_prefix("error: ").unwrap_or(what), "see `--help`")
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { command, global } = cli;
    let session = || connect(&global);
    let done = match command {
        Command::Status(args) => commands::status::run(&args, &session()?),
        Command::Events(args) => commands::journal::events(args, &session()?),
        Command::Server(command) => commands::server::run(command, &session()?),
        Command::Cluster(command) => commands::cluster::run(command, &session()?),
        Command::Share(command) => commands::share::run(command, &session()?),
        Command::Address(command) => commands::address::run(command, &session()?),
        Command::LogicalServer(command) => commands::logical_server::run(command, &session()?),
        Command::Account(command) => commands::account::run(command, &session()?),
        Command::Site(command) => commands::site::run(command, &session()?),
        Command::MailDomain(command) => commands::mail_domain::run(command, &session()?),
        Command::Mailbox(command) => commands::mailbox::run(command, &session()?),
        Command::Alias(command) => commands::alias::run(command, &session()?),
        Command::Queue(command) => commands::queue::run(command, &session()?),
        Command::Token(command) => commands::token::run(command, &session()?),
        Command::Audit(args) => commands::journal::audit(args, &session()?),
        Command::Mail(command) => commands::mail::run(command, &session()?),
        Command::Traffic(args) => commands::traffic::run(&args, &session()?),
        Command::Completions { shell } => completions(shell),
        Command::Panel(command) => commands::daemons::panel(command, global.json),
        Command::Agent(command) => commands::daemons::agent(command, global.json),
        Command::Launcher(args) => commands::daemons::launcher(args),
        Command::Logs(args) => commands::daemons::logs(args),
        Command::Guard(args) => return commands::daemons::guard(args),
        Command::Holds(args) => commands::daemons::holds(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// A session with the panel that the options and the environment name.
fn connect(global: &Global) -> Result<Session, Failure> {
    let token = token::find(global.token_file.as_deref(), std::env::var("PHALANX_TOKEN").ok())?;
    let client = client::Client::new(&global.panel, token)?;
    if let Some(warning) = client.warning() {
        // Also with --json: standard output stays what programs read. Where standard error is closed, nobody can be warned.
        let _ = writeln!(std::io::stderr(), "{}", printable(&warning));
    }
    let (no_color, term) = (std::env::var("NO_COLOR").ok(), std::env::var("TERM").ok());
    let style = Style::choose(std::io::stdout().is_terminal(), no_color.as_deref(), term.as_deref());
    Ok(Session { client, json: global.json, style })
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "phalanx", &mut script);
    session::print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests;
