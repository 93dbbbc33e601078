//! A client that asks for one page again and again and remembers each answer. It runs on a client's host, from a copy of the lab's binary.
//!
//! Bounded: it stops by itself, after a time and after a number of requests, whichever is first; or earlier, when it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{Background, Host};

/// What to ask for, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    /// Where to connect to
    #[arg(long)]
    pub target: SocketAddr,
    /// The Host header
    #[arg(long)]
    pub host: String,
    /// The path
    #[arg(long, default_value = "/")]
    pub path: String,
    /// Requests a second, over all threads
    #[arg(long, default_value_t = 100)]
    pub rate: u32,
    /// Connections at a time
    #[arg(long, default_value_t = 8)]
    pub threads: u32,
    /// When to stop, in seconds
    #[arg(long, default_value_t = 10)]
    pub seconds: u32,
    /// The most requests
    #[arg(long, default_value_t = 1_000_000)]
    pub requests: u64,
    /// How long one request may take, in milliseconds
    #[arg(long, default_value_t = 5_000)]
    pub patience_ms: u64,
    /// Ask many times over one connection, instead of once
    #[arg(long)]
    pub keep: bool,
    /// Stop early when this file is there
    #[arg(long, value_name = "FILE")]
    pub stop_file: Option<PathBuf>,
}

/// One request and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it began, in milliseconds since the load began.
    pub at_ms: u64,
    /// When it began, in milliseconds since 1970 by the machine's clock, which is that of all hosts and of the test: see [`clock_ms`].
    pub clock_ms: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// The HTTP status; 0 where there was no whole answer.
    pub status: u16,
    /// The body's beginning, or the error.
    pub text: String,
}

impl Record {
    /// Whether the answer was whole and said 200.
    pub fn ok(&self) -> bool {
        self.status == 200
    }
}

/// A load that runs on a host.
#[derive(Debug)]
pub struct Running {
    background: Background,
    limit: Duration,
    stop_file: String,
}

/// The clock of [`Record::clock_ms`].
pub fn clock_ms() -> u64 {
    // A clock before 1970 is no clock.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl Load {
    /// Asks for `path` of `host` at `target`, 100 times a second over new connections, for `seconds`.
    pub fn new(target: SocketAddr, host: &str, path: &str, seconds: u32) -> Self {
        Self {
            target,
            host: host.to_owned(),
            path: path.to_owned(),
            rate: 100,
            threads: 8,
            seconds,
            requests: 1_000_000,
            patience_ms: 5_000,
            keep: false,
            stop_file: None,
        }
    }

    /// Starts the load on a host that is a client.
    ///
    /// # Errors
    /// The host can't be entered.
    pub fn start(&self, client: &Host<'_>) -> Result<Running> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let program = install(client)?;
        let Self { target, host, path, rate, threads, seconds, requests, patience_ms, keep, stop_file: _ } = self;
        let keep = if *keep { "--keep" } else { "" };
        let stop_file = format!("{program}.stop-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let line = format!(
            "exec {program} load --target {target} --host {host} --path '{path}' --rate {rate} --threads {threads} --seconds {seconds} \
             --requests {requests} --patience-ms {patience_ms} --stop-file {stop_file} {keep}"
        );
        let limit = Duration::from_secs(u64::from(*seconds) + 30);
        Ok(Running { background: client.spawn(&line)?, limit, stop_file })
    }

    /// Runs the load here and writes a line of JSON for each request.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub fn run(&self) -> Result<()> {
        ensure!(self.rate > 0 && self.threads > 0, "rate and threads must be at least 1");
        let (begin, begin_ms) = (Instant::now(), clock_ms());
        let next = AtomicU64::new(0);
        let records = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| self.work((begin, begin_ms), &next, &records));
            }
        });
        let mut records = records.into_inner().expect("no thread panics while it holds the lock");
        records.sort_by_key(|record: &Record| record.at_ms);
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for record in records {
            serde_json::to_writer(&mut out, &record)?;
            out.write_all(b"\n")?;
        }
        out.flush().context("cannot write the records")
    }

    fn work(&self, (begin, begin_ms): (Instant, u64), next: &AtomicU64, records: &Mutex<Vec<Record>>) {
        let mut connection = None;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_micros(number * 1_000_000 / u64::from(self.rate));
            if number >= self.requests || due >= Duration::from_secs(u64::from(self.seconds)) {
                return;
            }
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            if self.stop_file.as_ref().is_some_and(|file| file.exists()) {
                return;
            }
            let at = begin.elapsed();
            let (status, text) = match self.ask(&mut connection) {
                Ok((status, body)) => (status, body),
                Err(error) => {
                    connection = None;
                    (0, format!("{error:#}"))
                }
            };
            let took = begin.elapsed() - at;
            let at_ms = at.as_millis() as u64;
            let (clock_ms, took_us) = (begin_ms + at_ms, took.as_micros() as u64);
            let record = Record { at_ms, clock_ms, took_us, status, text };
            records.lock().expect("no thread panics while it holds the lock").push(record);
        }
    }

    fn ask(&self, kept: &mut Option<TcpStream>) -> Result<(u16, String)> {
        let patience = Duration::from_millis(self.patience_ms);
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => TcpStream::connect_timeout(&self.target, patience).context("connect")?,
        };
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let connection = if self.keep { "keep-alive" } else { "close" };
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n", self.path, self.host);
        stream.write_all(request.as_bytes()).context("send")?;
        let (status, body) = read_answer(&mut stream)?;
        if self.keep {
            *kept = Some(stream);
        }
        Ok((status, String::from_utf8_lossy(&body).chars().take(200).collect()))
    }
}

impl Running {
    /// Waits until the load has stopped by itself.
    ///
    /// # Errors
    /// It failed, or did not stop.
    pub fn finish(self) -> Result<Vec<Record>> {
        let text = self.background.wait(self.limit)?.text()?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not a record: {line:?}"))).collect()
    }

    /// Ends the load now and waits for the requests that are under way. `client` is the host that it was started on.
    ///
    /// # Errors
    /// It had ended by itself before, so what was done last was not done under load; or as [`Running::finish`].
    pub fn stop(mut self, client: &Host<'_>) -> Result<Vec<Record>> {
        ensure!(self.background.is_running()?, "the load has ended before it was told to: give it more seconds");
        client.write_file(&self.stop_file, b"")?;
        self.finish()
    }
}

/// Puts a copy of the lab's binary on a host, where that was not done, and returns its path there.
pub(crate) fn install(host: &Host<'_>) -> Result<&'static str> {
    const PLACE: &str = "/run/phalanx-lab-load";
    if host.run(&format!("test -x {PLACE}"))?.status != 0 {
        let program = std::fs::read(crate::paths::program()?).context("cannot read the lab's own program")?;
        host.write_file(PLACE, &program)?;
        host.text(&format!("chmod 755 {PLACE}"))?;
    }
    Ok(PLACE)
}

/// Reads one whole answer: to its length, to its last chunk, or to the end of the connection.
pub(crate) fn read_answer(stream: &mut TcpStream) -> Result<(u16, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(bytes.len() < 64 << 10, "the head is too long");
        more(stream, &mut bytes)?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let status: u16 = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    // No content, whatever its fields say (RFC 9110, 15.3.5).
    if status == 204 {
        return Ok((status, Vec::new()));
    }
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    if let Some(length) = field("content-length:") {
        let end = head + length.parse::<usize>().context("a bad length")?;
        while bytes.len() < end {
            more(stream, &mut bytes)?;
        }
        return Ok((status, bytes[head..end].to_vec()));
    }
    if field("transfer-encoding:").is_some() {
        return Ok((status, read_chunks(stream, &mut bytes, head)?));
    }
    let mut body = bytes[head..].to_vec();
    stream.read_to_end(&mut body).context("read")?;
    Ok((status, body))
}

fn read_chunks(stream: &mut TcpStream, bytes: &mut Vec<u8>, mut at: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = loop {
            if let Some(end) = find(&bytes[at..], b"\r\n") {
                break at + end;
            }
            more(stream, bytes)?;
        };
        let size = String::from_utf8_lossy(&bytes[at..line]);
        let size =
            usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).context("a bad chunk")?;
        let (begin, end) = (line + 2, line + 2 + size);
        while bytes.len() < end + 2 {
            more(stream, bytes)?;
        }
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&bytes[begin..end]);
        at = end + 2;
    }
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<()> {
    let mut some = [0; 16 << 10];
    let count = stream.read(&mut some).context("read")?;
    ensure!(count > 0, "the connection ended early");
    bytes.extend_from_slice(&some[..count]);
    Ok(())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
