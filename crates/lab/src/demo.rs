//! The demonstration: Figure 1 for web and mail. A real application, a slave added and a node killed under load; letters from the world, a mail
//! node killed and the mailboxes moved under them; and tables of what happened.
//!
//! Every figure in the tables is counted in this run.

mod mail;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::figure::mail::{FAR, MAIL_EXTERNAL, PASSWORD};
use crate::figure::{EXTERNAL, Figure, LOGICAL};
use crate::load::{Load, Record};
use crate::{Host, Lab, Options, eventually};

/// The customer who has the wiki and the mailbox.
const ACCOUNT: &str = "demo";
/// The wiki's host names: one for the cluster's clients, one that this machine's browser takes for itself (RFC 6761).
const SITE: &str = "wiki.example.org";
const LOCAL_SITE: &str = "wiki.localhost";
const PAGE: &str = "/doku.php?id=start";
/// Requests a second: a wiki page is tens of milliseconds of PHP, and the whole data centre shares this machine.
const RATE: u32 = 12;
const LOAD_S: u32 = 60;
/// How long a browser would wait before it tries again.
const PATIENCE_MS: u64 = 3_000;

/// What is shown.
#[derive(Debug, Clone, clap::Args)]
pub struct Demo {
    /// End when the table is printed, instead of staying up to be looked at
    #[arg(long)]
    once: bool,
    /// The port of the panel's page on this machine; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// A part of the load: from the moment that something was done, in milliseconds of the load's clock.
struct Phase {
    what: &'static str,
    from_ms: u64,
    served_before: BTreeMap<String, u64>,
}

impl Demo {
    /// Shows it. Ends by itself with `--once`, else at Ctrl-C.
    ///
    /// # Errors
    /// Something did not work; the words say what.
    pub fn run(&self) -> Result<()> {
        let begin = Instant::now();
        let say = |text: &str| eprintln!("demo: {:5.1} s  {text}", begin.elapsed().as_secs_f32());
        say("bringing up ten hosts: client, world, lb, web1, web2, web3, mail1, mail2, nas, cp");
        let lab = Lab::up(&Options { name: Some("demo".into()), ..Options::new("figure-1-whole") })?;
        say("making the panel, declaring servers, clusters, shares and addresses; the machines join");
        let figure = Figure { lab };
        let _world = figure.set_up_whole()?;
        say("an account, a site, and Debian's DokuWiki in it");
        install(&figure)?;
        say("a mail domain and a mailbox of the same account");
        mail::install(&figure, ACCOUNT)?;
        say("asking for the wiki's page through the external address");
        let (phases, records) = act(&figure, &say)?;
        let done = served(&figure)?;
        println!("\n{}{}", table(&phases, &records, &done), failures(&records));
        println!("{}", notice(&phases, &records));
        say("letters from the world to the mailbox, which somebody reads over IMAP");
        println!("\n{}", mail::act(&figure, &say)?);
        if self.once {
            return Ok(());
        }
        self.stay(&figure)
    }

    fn stay(&self, figure: &Figure) -> Result<()> {
        let panel = figure.host("cp").forward(8080, self.port).or_else(|_| figure.host("cp").forward(8080, 0))?;
        let wiki = figure.host("client").forward_to(format!("{EXTERNAL}:80").parse()?, 0)?;
        let imaps = figure.host("world").forward_to(format!("{MAIL_EXTERNAL}:993").parse()?, 0)?;
        let token = figure.host("cp").text("cat /var/lib/phalanx/panel/admin.token")?;
        let lab = std::env::current_exe().context("cannot tell which program this is")?;
        let lab = lab.display();
        println!(
            "
It stays up until Ctrl-C.

  the panel's page   http://{panel}/#token={token}
  the wiki           http://{LOCAL_SITE}:{}{PAGE}
  the mailbox        imaps://{imaps}, user {mailbox}, password {PASSWORD} (the certificate vouches for itself alone)

  send a letter      {lab} --lab demo sh world swaks --server {MAIL_EXTERNAL} --helo world.{FAR} --from ann@{FAR} --to {mailbox} --header 'Subject: by hand'
  read the last one  curl -sk -u '{mailbox}:{PASSWORD}' 'imaps://{imaps}/INBOX;MAILINDEX=*'
  send as {mailbox}  {lab} --lab demo sh world swaks --server {MAIL_EXTERNAL}:587 --tls --auth PLAIN --auth-user {mailbox} --auth-password {PASSWORD} --from {mailbox} --to bob@{FAR}

  look around        {lab} --lab demo sh cp phalanx status
                     {lab} --lab demo sh cp phalanx events --follow
                     {lab} --lab demo sh cp phalanx cluster show mail
                     {lab} --lab demo sh cp phalanx mail-domain show example.org
                     {lab} --lab demo sh web1
  break something    {lab} --lab demo freeze web1      (thaw, kill, boot, cut, heal, pace web1 10%)
  move the mailboxes {lab} --lab demo sh cp phalanx cluster move-grant mail mailboxes --to mail1
  stop               Ctrl-C here, or {lab} --lab demo down
",
            wiki.port(),
            mailbox = mail::MAILBOX,
        );
        if !std::io::stdout().is_terminal() {
            println!("(no terminal here: it stays up all the same)");
        }
        figure.lab.wait()
    }
}

fn install(figure: &Figure) -> Result<()> {
    figure.phalanx(&format!("account add {ACCOUNT} --logical-server {LOGICAL} --cpu-percent 200"))?;
    figure.phalanx(&format!("site add {SITE} --account {ACCOUNT} --alias {LOCAL_SITE}"))?;
    let nas = figure.host("nas");
    let home = &format!("/srv/nas/web/home/{ACCOUNT}");
    eventually(Duration::from_secs(10), "the home of the account", || {
        nas.text(&format!("test -d {home}/sites/{SITE}"))
    })?;
    nas.exec(&["sh", "-c", include_str!("demo.sh"), "install", home, SITE], b"")?
        .text()
        .context("installing the wiki")?;
    for node in ["web1", "web2"] {
        let answer = figure.get_from(node, SITE, PAGE)?;
        ensure!(answer.status == 200 && answer.body.contains("Every node of the cluster"), "{node}: {}", answer.status);
    }
    Ok(())
}

/// Does things under load; returns when each was done, and what became of every request.
fn act(figure: &Figure, say: &dyn Fn(&str)) -> Result<(Vec<Phase>, Vec<Record>)> {
    let mut load = Load::new(format!("{EXTERNAL}:80").parse()?, SITE, PAGE, LOAD_S);
    (load.rate, load.threads, load.patience_ms) = (RATE, 48, PATIENCE_MS);
    let running = load.start(&figure.host("client"))?;
    let begin = Instant::now();
    let phase = |what| -> Result<Phase> {
        let served_before = served(figure)?;
        Ok(Phase { what, from_ms: begin.elapsed().as_millis() as u64, served_before })
    };
    let mut phases = vec![phase("two nodes")?];
    until(begin, 10);

    say("adding a second slave, web3, under the load");
    phases.push(phase("web3 joins")?);
    figure.phalanx("server add web3 --kind web --address 10.9.0.13/24")?;
    figure.phalanx("cluster add-slave web web3")?;
    figure.join("web3", "web1")?;
    figure.settled(&["web3"])?;
    say("web3 is in service");
    until(begin, 26);

    let web2 = figure.host("web2");
    say("taking the power of web2 under the load");
    phases.push(phase("web2 is killed")?);
    Host::kill(&web2)?;
    until(begin, 42);

    say("giving web2 its power back");
    phases.push(phase("web2 comes back")?);
    web2.boot()?;
    let records = running.finish()?;
    Ok((phases, records))
}

fn until(begin: Instant, second: u64) {
    thread::sleep(Duration::from_secs(second).saturating_sub(begin.elapsed()));
}

/// How many requests each node's proxy says it answered; a dead node's last word is the panel's memory of it.
fn served(figure: &Figure) -> Result<BTreeMap<String, u64>> {
    let status = figure.json("status")?;
    let clusters = status["clusters"].as_array().context("the status has clusters")?;
    let nodes =
        clusters.iter().filter(|c| c["kind"] == "web").flat_map(|c| c["nodes"].as_array().into_iter().flatten());
    Ok(nodes
        .filter_map(|node| Some((node["server"].as_str()?.to_owned(), node["load"]["requests_total"].as_u64()?)))
        .collect())
}

fn table(phases: &[Phase], records: &[Record], done: &BTreeMap<String, u64>) -> String {
    let nodes: Vec<&String> = done.keys().collect();
    let mut text = format!("{:<18}{:>9}{:>8}{:>9}{:>9}", "phase", "requests", "failed", "p50 ms", "p99 ms");
    nodes.iter().for_each(|node| text += &format!("{node:>8}"));
    for (number, phase) in phases.iter().enumerate() {
        let next = phases.get(number + 1);
        let until = next.map_or(u64::MAX, |next| next.from_ms);
        let part: Vec<&Record> = records.iter().filter(|r| (phase.from_ms..until).contains(&r.at_ms)).collect();
        let mut took: Vec<u64> = part.iter().filter(|r| r.ok()).map(|r| r.took_us).collect();
        took.sort_unstable();
        let quantile = |percent: usize| {
            took.get(took.len().saturating_sub(1) * percent / 100).map_or(f64::NAN, |us| *us as f64 / 1e3)
        };
        let failed = part.iter().filter(|r| !r.ok()).count();
        text += &format!("\n{:<18}{:>9}{failed:>8}{:>9.0}{:>9.0}", phase.what, part.len(), quantile(50), quantile(99));
        let after = next.map_or(done, |next| &next.served_before);
        for node in &nodes {
            let total = |counts: &BTreeMap<String, u64>| counts.get(*node).copied().unwrap_or(0);
            // A node that was started anew counts from nothing.
            let (before, after) = (total(&phase.served_before), total(after));
            text += &format!("{:>8}", if after >= before { after - before } else { after });
        }
    }
    text
}

/// The most failures that are told one by one.
const FAILURES_MAX: usize = 8;

/// What became of the requests that failed.
fn failures(records: &[Record]) -> String {
    let failed = records.iter().filter(|record| !record.ok()).take(FAILURES_MAX);
    let line = |record: &Record| {
        let what: String = record.text.lines().next().unwrap_or_default().chars().take(80).collect();
        let (at_s, took_ms) = (record.at_ms as f64 / 1e3, record.took_us / 1_000);
        format!("\nfailed at {at_s:.1} s: status {} after {took_ms} ms: {what}", record.status)
    };
    failed.map(line).collect()
}

/// How long the death was felt.
fn notice(phases: &[Phase], records: &[Record]) -> String {
    let Some(death) = phases.iter().find(|phase| phase.what == "web2 is killed") else { return String::new() };
    let felt = records.iter().filter(|r| r.at_ms >= death.from_ms && !r.ok()).map(|r| r.at_ms - death.from_ms);
    match felt.max() {
        None => "No request failed after the death of web2.".into(),
        Some(last) => format!("The last request that failed began {:.1} s after the death of web2.", last as f64 / 1e3),
    }
}
