//! `phalanx-lab`: brings up labs, and looks into and breaks those that run. What it does is in the library; here is how it
//! is said on the command line.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use phalanx_lab::bench::{Bench, client};
use phalanx_lab::demo::Demo;
use phalanx_lab::figure::Figure;
use phalanx_lab::load::Load;
use phalanx_lab::protocol::Action;
use phalanx_lab::supervisor::{self, Setting};
use phalanx_lab::{Host, Lab, Options, Output, Pace, enter, guest, image, names, storage, tools};

/// A whole data centre on one machine.
#[derive(Debug, Parser)]
#[command(name = "phalanx-lab", version, max_term_width = 100)]
struct Cli {
    /// Which running lab is meant; may be left out if there is only one.
    #[arg(long, global = true, value_name = "NAME", env = "PHALANX_LAB")]
    lab: Option<String>,
    #[command(subcommand)]
    command: Do,
}

#[derive(Debug, Subcommand)]
enum Do {
    /// Install the Debian packages that the lab needs on this machine.
    Setup,
    /// Make the base image if it does not exist, and print where it is.
    Base,
    /// Install the product's package over the base image if that was not done, and print where the layer is.
    Product {
        /// The package; the newest that was built if left out.
        #[arg(long)]
        deb: Option<PathBuf>,
    },
    /// Make the kernel and the disk image of guests (hosts with a kernel of their own) if they do not exist, and print where they are.
    /// Fetching and building the kernel takes about a minute, once.
    Guests {
        /// Plain Debian, without the product.
        #[arg(long)]
        bare: bool,
        /// The product's package; the newest that was built if left out.
        #[arg(long, conflicts_with = "bare")]
        deb: Option<PathBuf>,
    },
    /// Bring a lab up and keep it until Ctrl-C.
    Up(Up),
    /// Show Figure 1 alive, web and mail: a slave added, nodes killed and the mailboxes moved under load.
    Demo(Demo),
    /// Measure how quick the product is and what it costs; writes tables, and target/bench/NAME.json.
    Bench(Bench),
    /// Set Figure 1 up in a running lab, as an administrator would by the product's own commands.
    Provision,
    /// End a lab.
    Down,
    /// List the labs that are up.
    List,
    /// Show the hosts of a lab.
    Status,
    /// Collect the journals of all hosts.
    Journals,
    /// Run a command, or a shell, as root in a host.
    Sh {
        /// The host.
        host: String,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Take a host's power.
    Kill(Target),
    /// Give a killed host power again.
    Boot(Target),
    /// Stop all processes of a host; its kernel still answers ping.
    Freeze(Target),
    /// Let the processes of a frozen host go on.
    Thaw(Target),
    /// Pull a host's network cables.
    Cut(Target),
    /// Plug a host's network cables in again.
    Heal(Target),
    /// Limit a host's CPU time.
    Pace {
        /// The host.
        host: String,
        /// A part of one CPU, such as 10%, or max.
        pace: Pace,
    },
    /// Let everybody on a host who touches the shared storage wait.
    HangStorage(Target),
    /// End that.
    ReleaseStorage(Target),
    /// Unmount the shared storage of a host under its feet.
    LoseStorage(Target),
    /// Mount it again.
    ReturnStorage(Target),
    /// Make a port of a host's loopback reachable at a port of this machine's loopback, until the lab ends.
    Forward {
        /// The host.
        host: String,
        /// The port in the host.
        port: u16,
        /// The port on this machine; 0 takes a free one.
        local: u16,
        /// Go to the background once it listens.
        #[arg(long)]
        detach: bool,
    },
    /// Ask for one page again and again, here; writes a line of JSON for each request.
    #[command(hide = true)]
    Load(Load),
    /// What a benchmark does inside a host.
    #[command(hide = true, subcommand)]
    BenchClient(client::Work),
    /// The process that a lab lives in; started by `up`.
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        name: String,
        #[arg(long)]
        run: PathBuf,
        #[arg(long)]
        image: Vec<PathBuf>,
        #[arg(long, requires = "guest_image")]
        guest_kernel: Option<PathBuf>,
        #[arg(long, requires = "guest_kernel")]
        guest_image: Option<PathBuf>,
        #[arg(long)]
        detached: bool,
    },
    /// Clean up after a lab that is killed; started by `up`, with the lab's lock as standard input.
    #[command(hide = true)]
    Watch,
    /// Run a command in the guest that lives in a directory; started for commands in guests.
    #[command(hide = true)]
    EnterGuest {
        directory: PathBuf,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Mount something in another mount namespace; started by the supervisor.
    #[command(hide = true)]
    Graft { pid: u32, source: PathBuf, target: PathBuf },
}

#[derive(Debug, Args)]
struct Up {
    /// The topology: a name from lab/topologies, or a file.
    topology: String,
    /// Plain Debian hosts, without the product.
    #[arg(long)]
    bare: bool,
    /// The product's package; the newest that was built if left out.
    #[arg(long)]
    deb: Option<PathBuf>,
    /// The lab's name; the topology's name if left out.
    #[arg(long)]
    name: Option<String>,
    /// Leave the lab in the background.
    #[arg(long)]
    detach: bool,
    /// Run this line of shell on this machine when the lab is up, end the lab with it, and pass its exit status on.
    #[arg(long, value_name = "LINE", conflicts_with = "detach")]
    exec: Option<String>,
}

#[derive(Debug, Args)]
struct Target {
    /// The host.
    host: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("phalanx-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let lab = || cli.lab.as_deref().map_or_else(Lab::only, Lab::find);
    let act = |host: &str, action| lab()?.host(host)?.act(action);
    match &cli.command {
        Do::Load(load) => load.run()?,
        Do::Setup => tools::install()?,
        Do::Base => {
            tools::check()?;
            println!("{}", image::base()?.display());
        }
        Do::Product { deb } => {
            tools::check()?;
            let deb = deb.clone().map_or_else(image::newest_deb, Ok)?;
            println!("{}", image::product(&image::base()?, &deb)?.display());
        }
        Do::Guests { bare, deb } => {
            tools::check()?;
            let (kernel, image) = guest::provide(&image::layers(*bare, deb.as_deref())?)?;
            println!("{}\n{}\n{}", kernel.about()?, kernel.binary().display(), image.display());
        }
        Do::Up(options) => return up(options),
        Do::Demo(demo) => demo.run()?,
        Do::Bench(bench) => bench.run()?,
        Do::BenchClient(work) => work.run()?,
        Do::Provision => drop(Figure::in_lab(lab()?)?),
        Do::Down => lab()?.down()?,
        Do::List => names()?.iter().for_each(|name| println!("{name}")),
        Do::Status => status(&lab()?)?,
        Do::Journals => println!("{}", lab()?.journals()?.display()),
        Do::Sh { host, command } => return enter(&lab()?.host(host)?, command),
        Do::Kill(Target { host }) => act(host, Action::Kill)?,
        Do::Boot(Target { host }) => act(host, Action::Boot)?,
        Do::Freeze(Target { host }) => act(host, Action::Freeze)?,
        Do::Thaw(Target { host }) => act(host, Action::Thaw)?,
        Do::Cut(Target { host }) => act(host, Action::Cut)?,
        Do::Heal(Target { host }) => act(host, Action::Heal)?,
        Do::Pace { host, pace } => act(host, Action::Pace(*pace))?,
        Do::HangStorage(Target { host }) => act(host, Action::HangStorage)?,
        Do::ReleaseStorage(Target { host }) => act(host, Action::ReleaseStorage)?,
        Do::LoseStorage(Target { host }) => act(host, Action::LoseStorage)?,
        Do::ReturnStorage(Target { host }) => act(host, Action::ReturnStorage)?,
        Do::Forward { host, port, local, detach } => forward(&lab()?, host, *port, *local, *detach)?,
        Do::Supervise { name, run, image, guest_kernel, guest_image, detached } => supervisor::run(Setting {
            name: name.clone(),
            run: run.clone(),
            images: image.clone(),
            guests: guest_kernel.clone().zip(guest_image.clone()),
            lifeline: !detached,
        })?,
        Do::Watch => phalanx_lab::watch()?,
        Do::EnterGuest { directory, command } => return enter_guest(directory, command),
        Do::Graft { pid, source, target } => storage::graft(*pid, source, target)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(arguments: &Up) -> Result<ExitCode> {
    let Up { topology, bare, deb, name, detach, exec } = arguments;
    let stem = std::path::Path::new(topology).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let options = Options {
        topology: topology.clone(),
        bare: *bare,
        deb: deb.clone(),
        name: name.clone().or(stem),
        detached: *detach,
    };
    let lab = Lab::up(&options)?;
    if let Some(line) = exec {
        let status = Command::new("sh").args(["-c", line]).env("PHALANX_LAB", lab.name()).status();
        lab.down()?;
        let code = status.context("cannot start sh")?.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    status(&lab)?;
    println!("\nLook around with `phalanx-lab --lab {} sh HOST`.", lab.name());
    if *detach {
        println!("`phalanx-lab --lab {} down` ends it.", lab.name());
        return Ok(ExitCode::SUCCESS);
    }
    println!("Ctrl-C ends it.");
    // A signal ends this process, and with its lifeline the lab; `down` from elsewhere ends the lab, and with it this.
    lab.wait()?;
    Ok(ExitCode::SUCCESS)
}

fn status(lab: &Lab) -> Result<()> {
    println!("{:<12}{:<36}STATE", "HOST", "ADDRESSES");
    for host in lab.status()? {
        println!("{:<12}{:<36}{}", host.name, host.addresses.join(" "), host.state);
    }
    Ok(())
}

fn enter(host: &Host<'_>, command: &[String]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let words: Vec<_> = match command {
        [] if host.is_guest() => vec![],
        [] => vec!["bash", "--login"],
        words => words.iter().map(String::as_str).collect(),
    };
    // Replaces this process, so that terminal, signals and exit status are the command's.
    let error = host.command(&words)?.exec();
    Err(error).context("cannot start a command in the host")
}

/// How long a command in a guest may take that is entered here.
const GUEST_LIMIT: Duration = Duration::from_secs(3600);

/// Runs a command in a guest. It has no terminal there: input goes in as a whole before, and output comes out at the end.
/// Without a command, each line of the input is one.
fn enter_guest(directory: &Path, command: &[String]) -> Result<ExitCode> {
    const INPUT_BYTES_MAX: u64 = 64 << 20;
    let shell = guest::Shell::of(directory);
    if command.is_empty() {
        return converse(&shell);
    }
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().take(INPUT_BYTES_MAX).read_to_end(&mut input).context("cannot read the input")?;
    }
    let words: Vec<_> = command.iter().map(String::as_str).collect();
    let output = shell.run(&enter::quoted(&words), &input, GUEST_LIMIT)?;
    show(&output)?;
    Ok(u8::try_from(output.status).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs line after line, each in a shell of its own, until the input ends or says `exit`.
fn converse(shell: &guest::Shell) -> Result<ExitCode> {
    eprintln!("A guest has no terminal: each line is run by itself and shown at its end. Ctrl-D leaves.");
    let mut line = String::new();
    loop {
        eprint!("# ");
        line.clear();
        let length = std::io::stdin().read_line(&mut line).context("cannot read the input")?;
        if length == 0 || line.trim() == "exit" {
            return Ok(ExitCode::SUCCESS);
        }
        match shell.run(&line, b"", GUEST_LIMIT) {
            Ok(output) => show(&output)?,
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

fn show(output: &Output) -> Result<()> {
    std::io::stdout().write_all(output.stdout.as_bytes()).context("cannot write the output")?;
    std::io::stderr().write_all(output.stderr.as_bytes()).context("cannot write the error output")
}

fn forward(lab: &Lab, host: &str, port: u16, local: u16, detach: bool) -> Result<()> {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::Stdio;
    if !detach {
        println!("{}", lab.host(host)?.forward(port, local)?);
        return lab.wait();
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--lab", lab.name(), "forward", host, &port.to_string(), &local.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start the forwarder")?;
    let mut address = String::new();
    let stdout = child.stdout.take().context("the forwarder has no output")?;
    BufReader::new(stdout).read_line(&mut address)?;
    anyhow::ensure!(!address.is_empty(), "the forwarder ended; its words are above");
    print!("{address}");
    Ok(())
}
