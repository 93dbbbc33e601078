//! `phalanx-proxy`: the data plane on balancers and nodes. This file reads the command line; all else is in the library.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};

/// The data plane of Phalanx.
#[derive(Debug, Parser)]
#[command(name = "phalanx-proxy", version, arg_required_else_help = true)]
struct Arguments {
    /// Say whether FILE (a proxy.json, balancer.json or mail.json) can be used, and end.
    #[arg(long, value_name = "FILE", exclusive = true)]
    check: Option<PathBuf>,
    #[command(subcommand)]
    work: Option<Work>,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Serve a web node: find the account of each request, wake it, forward.
    Node {
        /// The configuration; it is read again on SIGHUP.
        #[arg(long, default_value = "/var/lib/phalanx/live/proxy.json")]
        config: PathBuf,
    },
    /// Spread connections over nodes by the kernel: check them and keep the nftables table.
    Balancer {
        /// The configuration; it is read again on SIGHUP.
        #[arg(long, default_value = "/var/lib/phalanx/live/balancer.json")]
        config: PathBuf,
    },
    /// Lead clients of a mail node to the mailboxes' holder, and on the holder from the nodes to Dovecot.
    Mail {
        /// The configuration; it is read again on SIGHUP.
        #[arg(long, default_value = "/var/lib/phalanx/live/mail.json")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("phalanx-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(file) = arguments.check {
        let kind = phalanx_proxy::config::check(&file)?;
        println!("{}: a valid configuration of {kind}", file.display());
        return Ok(());
    }
    match arguments.work {
        // A node starts threads of its own for the connections.
        Some(Work::Node { config }) => {
            runtime(Builder::new_current_thread())?.block_on(phalanx_proxy::node::run(&config))
        }
        Some(Work::Balancer { config }) => {
            runtime(Builder::new_multi_thread())?.block_on(phalanx_proxy::balancer::run(&config))
        }
        Some(Work::Mail { config }) => {
            runtime(Builder::new_multi_thread())?.block_on(phalanx_proxy::mail::run(&config))
        }
        None => anyhow::bail!("say what to do: node, balancer, mail or --check FILE"),
    }
}

fn runtime(mut builder: Builder) -> anyhow::Result<Runtime> {
    builder.enable_all().build().context("starting the runtime")
}
