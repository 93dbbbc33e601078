//! What a benchmark does inside a host, where a clock sees both ends of what it measures: filling the panel through its API, waiting for a
//! change to be live, asking many sites once. It runs there from a copy of the lab's binary, and writes lines of JSON.
//!
//! Bounded: each piece of work ends by itself, after a number of requests or a time.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::load::{self, Record};

/// Where the panel's API listens on its own host, and the token of its first administrator.
const API: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);
const TOKEN: &str = "/var/lib/phalanx/panel/admin.token";
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A piece of work.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Work {
    /// Add accounts and sites through the API of this host's panel.
    Fill(Fill),
    /// Add, change and remove sites one by one and see when each node has taken it up.
    Live(Live),
    /// Ask many sites for a page, each once.
    Sweep(Sweep),
}

/// Sites `from` to `to`: site n is called `sN.example.org` and belongs to the account `aM`, where M is n / `per_account`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Fill {
    /// The first site
    #[arg(long)]
    pub from: u32,
    /// The site after the last
    #[arg(long)]
    pub to: u32,
    /// Sites of one account
    #[arg(long)]
    pub per_account: u32,
    /// Requests at a time
    #[arg(long)]
    pub threads: u32,
    /// When to stop although not all are added, in seconds
    #[arg(long)]
    pub seconds: u32,
}

/// What was added.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Filled {
    /// Accounts.
    pub accounts: u32,
    /// Sites.
    pub sites: u32,
    /// How long it took.
    pub seconds: f64,
}

/// Adds a site to each account, gives it an alias, removes it; after each change it polls the nodes until they answer by it: 403, as an
/// account's httpd does for an empty document root, or 404 for a name that nobody has.
#[derive(Debug, Clone, clap::Args)]
pub struct Live {
    /// The nodes
    #[arg(long, required = true)]
    pub node: Vec<SocketAddr>,
    /// The accounts, one site each
    #[arg(long, required = true)]
    pub account: Vec<String>,
}

/// What is done to a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It is new.
    Add,
    /// It gets an alias.
    Alias,
    /// It is removed, with its alias.
    Remove,
}

/// When a change was live.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Seen {
    /// Which.
    pub change: Change,
    /// From sending the request to the API to its answer, in milliseconds.
    pub accepted_ms: f64,
    /// From that answer until the last node answered by it, in milliseconds.
    pub live_ms: f64,
}

/// Asks sites `from` to `to` for one page, over new connections.
#[derive(Debug, Clone, clap::Args)]
pub struct Sweep {
    /// Where to connect to
    #[arg(long)]
    pub target: SocketAddr,
    /// The first site
    #[arg(long)]
    pub from: u32,
    /// The site after the last
    #[arg(long)]
    pub to: u32,
    /// The path
    #[arg(long)]
    pub path: String,
    /// Connections at a time
    #[arg(long)]
    pub threads: u32,
}

impl Work {
    /// Does it, here.
    ///
    /// # Errors
    /// Something was refused, or did not answer in time.
    pub fn run(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match self {
            Self::Fill(fill) => writeln!(out, "{}", serde_json::to_string(&fill.run()?)?)?,
            Self::Live(live) => {
                for account in &live.account {
                    live.run(account, |seen| Ok(writeln!(out, "{}", serde_json::to_string(&seen)?)?))?;
                }
            }
            Self::Sweep(sweep) => {
                for record in sweep.run() {
                    writeln!(out, "{}", serde_json::to_string(&record)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The name of site `number`.
pub fn site(number: u32) -> String {
    format!("s{number}.example.org")
}

/// The name of account `number`.
pub fn account(number: u32) -> String {
    format!("a{number}")
}

impl Fill {
    fn run(&self) -> Result<Filled> {
        let begin = Instant::now();
        let deadline = begin + Duration::from_secs(u64::from(self.seconds));
        let Self { from, to, per_account, .. } = *self;
        let accounts = self.each(deadline, from.div_ceil(per_account)..to.div_ceil(per_account), |number| {
            ("/accounts", json!({ "name": account(number), "logical_server": crate::figure::LOGICAL }))
        })?;
        // Only sites whose accounts were made in time.
        let until = to.min((from.div_ceil(per_account) + accounts) * per_account);
        let sites = self.each(deadline, from..until.max(from), |number| {
            ("/sites", json!({ "name": site(number), "account": account(number / per_account) }))
        })?;
        Ok(Filled { accounts, sites, seconds: begin.elapsed().as_secs_f64() })
    }

    /// Posts something for each number, several at a time, until the deadline; returns for how many, counted from the first.
    fn each(
        &self,
        deadline: Instant,
        numbers: std::ops::Range<u32>,
        make: impl Fn(u32) -> (&'static str, Value) + Sync,
    ) -> Result<u32> {
        let next = AtomicU32::new(numbers.start);
        let post = || -> Result<()> {
            let mut api = Api::open()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= numbers.end || Instant::now() >= deadline {
                    // Whoever stops early gives its number back by keeping all later ones from being counted.
                    next.fetch_min(number, Ordering::Relaxed);
                    return Ok(());
                }
                let (path, body) = make(number);
                api.post(path, &body)?;
            }
        };
        thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..self.threads).map(|_| scope.spawn(post)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a thread panicked")))
        })?;
        Ok(next.load(Ordering::Relaxed).min(numbers.end) - numbers.start)
    }
}

impl Live {
    /// Makes each change of one site of an account and tells when it was live.
    fn run(&self, account: &str, mut tell: impl FnMut(Seen) -> Result<()>) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let [name, alias] = ["live", "alias"].map(|word| format!("{word}{number}-{stamp}.example.org"));
        let mut api = Api::open()?;
        for change in [Change::Add, Change::Alias, Change::Remove] {
            let place = format!("/sites/{name}");
            let sent = Instant::now();
            let (host, expected) = match change {
                Change::Add => {
                    api.post("/sites", &json!({ "name": name, "account": account }))?;
                    (&name, 403)
                }
                Change::Alias => {
                    api.ask("PATCH", &place, &json!({ "aliases": [alias] }).to_string(), 200)?;
                    (&alias, 403)
                }
                Change::Remove => {
                    api.ask("DELETE", &place, "", 204)?;
                    (&alias, 404)
                }
            };
            let accepted = Instant::now();
            let live = self.until_live(host, expected, accepted)?;
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            tell(Seen { change, accepted_ms: milliseconds(accepted - sent), live_ms: milliseconds(live) })?;
            // So that a change does not meet the work that the one before it caused.
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// How long it takes from `since` until all nodes answer for a host with this status.
    fn until_live(&self, host: &str, expected: u16, since: Instant) -> Result<Duration> {
        const LIMIT: Duration = Duration::from_secs(60);
        /// The resolution of what is measured. More would be a load that slows what is measured.
        const PAUSE: Duration = Duration::from_millis(2);
        let wait = |node: SocketAddr| -> Result<Duration> {
            let mut connection = Connection::new(node);
            loop {
                // A node may end a connection with its answer; the next look opens another.
                match connection.ask("GET", "/", host, "", "").map(|(status, _)| status) {
                    Ok(status) if status == expected => return Ok(since.elapsed()),
                    status if since.elapsed() >= LIMIT => bail!("{host} on {node}: {status:?}, not {expected}"),
                    _ => thread::sleep(PAUSE),
                }
            }
        };
        thread::scope(|scope| -> Result<Duration> {
            let wait = &wait;
            let nodes: Vec<_> = self.node.iter().map(|node| scope.spawn(move || wait(*node))).collect();
            nodes.into_iter().try_fold(Duration::ZERO, |last, node| {
                Ok(last.max(node.join().unwrap_or_else(|_| bail!("a thread panicked"))?))
            })
        })
    }
}

impl Sweep {
    fn run(&self) -> Vec<Record> {
        let begin = Instant::now();
        let next = AtomicU32::new(self.from);
        let records = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.to {
                            return;
                        }
                        let record = self.ask(begin, number);
                        records.lock().expect("no thread panics while it holds the lock").push(record);
                    }
                });
            }
        });
        records.into_inner().expect("no thread panics while it holds the lock")
    }

    fn ask(&self, begin: Instant, number: u32) -> Record {
        let (at, clock_ms) = (begin.elapsed(), load::clock_ms());
        let answer = Connection::new(self.target).ask("GET", &self.path, &site(number), "Connection: close\r\n", "");
        let took = begin.elapsed() - at;
        let (status, text) = answer.unwrap_or_else(|error| (0, format!("{error:#}")));
        let text = text.chars().take(200).collect();
        Record { at_ms: at.as_millis() as u64, clock_ms, took_us: took.as_micros() as u64, status, text }
    }
}

/// The panel's API, over a connection that is kept.
struct Api {
    connection: Connection,
    head: String,
}

impl Api {
    fn open() -> Result<Self> {
        let token = std::fs::read_to_string(TOKEN).with_context(|| format!("cannot read {TOKEN}"))?;
        let head = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", token.trim());
        Ok(Self { connection: Connection::new(SocketAddr::from(API)), head })
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<()> {
        self.ask("POST", path, &body.to_string(), 201)
    }

    fn ask(&mut self, method: &str, path: &str, body: &str, expected: u16) -> Result<()> {
        let (status, answer) = self.connection.ask(method, &format!("/api/v1{path}"), "127.0.0.1", &self.head, body)?;
        ensure!(status == expected, "{method} {path} {body} gave {status}: {answer}");
        Ok(())
    }
}

/// A connection for HTTP that is opened when it is needed.
struct Connection {
    target: SocketAddr,
    stream: Option<TcpStream>,
}

impl Connection {
    fn new(target: SocketAddr) -> Self {
        Self { target, stream: None }
    }

    /// One request and its whole answer. After an error, the next one has a new connection.
    fn ask(&mut self, method: &str, path: &str, host: &str, head: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect_timeout(&self.target, PATIENCE).context("connect")?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{head}{length}\r\n{body}");
        stream.write_all(request.as_bytes()).context("send")?;
        let (status, body) = load::read_answer(&mut stream)?;
        self.stream = Some(stream);
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
