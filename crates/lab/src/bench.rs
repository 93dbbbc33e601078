//! The benchmarks: how quick the product is and what it costs, as ratios within one run on one machine.
//!
//! Each benchmark but that of logs brings up a Figure 1 of its own (of mail, where mail is measured), measures, prints a table and writes `target/bench/NAME.json`. Nothing is asserted: a goal
//! that is missed is shown as missed, and is no failure. Every figure is measured in the run that prints it; what could not be measured
//! has no row.
//!
//! Deliberately absent: tuning of the machine, and judging noise. The spread of the runs and the machine's load are shown beside the figures.

mod balancer;
pub mod client;
mod directory;
mod logs;
mod mail;
mod probe;
mod report;
mod router;
mod tenants;
mod wake;
mod wrk;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::figure::Figure;
use crate::{Lab, Options, paths, tools};
use report::Report;

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Bench {
    /// Which benchmarks; all where nothing is said
    names: Vec<Name>,
    /// Small sizes and short runs: shows that the benchmarks work, not what the product can do
    #[arg(long)]
    quick: bool,
    /// The product's package; the newest that was built if left out
    #[arg(long)]
    deb: Option<PathBuf>,
    /// Logs: so many million bytes of lines; they are on the disk twice, below target/lab
    #[arg(long, value_name = "MB")]
    logs_mb: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// A change of the directory, from the API's answer to live on all nodes
    Directory,
    /// The kernel balancer against none, and against another
    Balancer,
    /// Cold answers, memory of awake accounts, and neighbours that misbehave
    Wake,
    /// CPU time per request of the node's router against others in its place
    Router,
    /// Mail with a million mailboxes: files, look-ups, changes, an empty node
    Mail,
    /// Access logs of several nodes merged into one for each site, against sort and AWStats
    Logs,
}

impl Name {
    const ALL: [Self; 6] = [Self::Directory, Self::Balancer, Self::Wake, Self::Router, Self::Mail, Self::Logs];

    fn text(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Balancer => "balancer",
            Self::Wake => "wake",
            Self::Router => "router",
            Self::Mail => "mail",
            Self::Logs => "logs",
        }
    }

    fn topology(self) -> &'static str {
        if self == Self::Mail { "mail" } else { "figure-1" }
    }
}

/// How much of everything is done.
#[derive(Debug, Clone, Copy)]
struct Scale {
    quick: bool,
}

impl Scale {
    /// One of two sizes.
    fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Runs of whatever is measured more than once.
    fn rounds(self) -> usize {
        self.pick(3, 1)
    }
}

/// A benchmark in a Figure 1.
type Measure = fn(&Figure, Scale, &mut Report) -> Result<()>;

impl Bench {
    /// Runs the benchmarks one after the other.
    ///
    /// # Errors
    /// A benchmark could not be made. The results of those before it are written.
    pub fn run(&self) -> Result<()> {
        let names = if self.names.is_empty() { Name::ALL.to_vec() } else { self.names.clone() };
        let scale = Scale { quick: self.quick };
        for name in names {
            let load = load_average()?;
            let in_figure = |measure| self.in_figure(name, &load, scale, measure);
            let measured = match name {
                Name::Directory => in_figure(directory::measure),
                Name::Balancer => in_figure(balancer::measure),
                Name::Wake => in_figure(wake::measure),
                Name::Router => in_figure(router::measure),
                Name::Mail => in_figure(mail::measure),
                Name::Logs => self.without_hosts(name, &load, scale),
            };
            measured.with_context(|| format!("the benchmark {}", name.text()))?;
        }
        Ok(())
    }

    fn in_figure(&self, name: Name, load: &str, scale: Scale, measure: Measure) -> Result<()> {
        let options = Options { deb: self.deb.clone(), ..Options::new(name.topology()) };
        let figure = Figure { lab: Lab::up(&options)? };
        let _world = match name {
            Name::Mail => Some(figure.set_up_mail()?),
            _ => figure.set_up().map(|()| None)?,
        };
        let mut report = Report::new(name.text(), machine(is_optimised(&figure)?, scale, load)?);
        let measured = measure(&figure, scale, &mut report);
        show(&report, measured)
    }

    /// What needs no data centre: the product's optimised program on this machine.
    fn without_hosts(&self, name: Name, load: &str, scale: Scale) -> Result<()> {
        let mut report = Report::new(name.text(), machine(true, scale, load)?);
        let measured = logs::measure(scale, self.logs_mb, &mut report);
        show(&report, measured)
    }
}

/// Prints and writes what there is: what was measured before something went wrong is worth keeping.
fn show(report: &Report, measured: Result<()>) -> Result<()> {
    println!("\n{report}");
    println!("written to {}", report.write()?.display());
    measured
}

/// Says what is being done; the tables alone go to standard output.
fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// The machine, how busy it was before the lab came up, and what was measured on it, in words.
fn machine(is_optimised: bool, scale: Scale, load: &str) -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let models: Vec<&str> = cpus
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name)
        .collect();
    let memory = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total_kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let total_kib: f64 = total_kib.context("/proc/meminfo has no MemTotal")?.parse()?;
    let kernel = tools::run("uname", ["-r"])?;
    Ok(format!(
        "{} × {}, {:.1} GiB, Linux {}; load average {load} before; {} binaries{}",
        models.len(),
        models.first().unwrap_or(&"?"),
        total_kib / f64::from(1 << 20),
        kernel.trim(),
        if is_optimised { "optimised" } else { "unoptimised" },
        if scale.quick { "; quick: too short to mean much" } else { "" },
    ))
}

fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or("?").to_owned())
}

/// Whether the hosts run the binary that the last optimised build made.
fn is_optimised(figure: &Figure) -> Result<bool> {
    let built = paths::target().join("release/phalanx-proxy");
    if !built.exists() {
        return Ok(false);
    }
    let sum = tools::run("sha256sum", [&built])?;
    let hash = sum.split(' ').next().unwrap_or_default();
    Ok(figure.host("lb").text("sha256sum /usr/bin/phalanx-proxy")?.starts_with(hash))
}
