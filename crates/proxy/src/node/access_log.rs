//! The access log: one line per request, written by the proxy so that a customer can alter neither log nor traffic counts.
//!
//! Lines go into segments ([`phalanx_plan::logs::segment`]) and look as [`phalanx_plan::logs::line`] says. Within quotes, `"`, `\` and all
//! that is not visible ASCII is written as `\xHH`. A line gets its time when it is handed over, so that those of a segment are in order as
//! long as the clock goes forward.
//!
//! Lines gather for [`GATHER`] and are then written at once by a thread of their own, so that a busy node wakes it ten times a
//! second, and an idle one never. What gathers is bounded: if the disk hangs for long, lines are lost rather than requests; how many
//! is written as a line of its own, which begins with `#`.

mod segments;

use phalanx_plan::logs::date::write_clf;
use segments::Segments;
use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a line waits for others.
const GATHER: Duration = Duration::from_millis(100);
/// So much is written without waiting for more.
const BYTES_ENOUGH: usize = 256 * 1024;
/// So much may wait for the disk.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// A request that is over.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The site's main name.
    pub site: Option<&'a str>,
    /// The client's address.
    pub client: Ipv4Addr,
    /// Method, target and version; none where the head could not be read.
    pub request: Option<(&'a str, &'a str, &'a str)>,
    /// The status; 0 when the client left before there was one.
    pub status: u16,
    /// Bytes that the client was sent, heads included.
    pub sent_bytes: u64,
    /// Bytes that the client sent, heads included.
    pub received_bytes: u64,
    /// From the head's arrival to completion.
    pub duration: Duration,
    /// The Referer field.
    pub referer: &'a [u8],
    /// The User-Agent field.
    pub user_agent: &'a [u8],
}

/// Hands lines to the writing thread, which writes what is left and ends when this is dropped.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    node: String,
}

#[derive(Debug, Default)]
struct Shared {
    gathered: Mutex<Gathered>,
    /// There is something to do for the thread.
    wanted: Condvar,
    ended: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Gathered {
    /// Whole lines.
    lines: String,
    /// The second of the last line, and how the Common Log Format writes it.
    second: (u64, String),
    /// The thread sleeps until it is woken. Otherwise it looks within [`GATHER`].
    idle: bool,
    closing: bool,
    ended: bool,
}

impl AccessLog {
    /// Begins a segment in `directory`, which is made where it is missing, and starts the thread that writes.
    ///
    /// # Errors
    /// The thread can't be started. A segment that can't be begun is reported in the log of the service and tried again.
    pub fn start(directory: &Path, node: &str, boot_id: &str) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let segments = Segments::new(directory, node, boot_id)?;
        let mut writer = Writer { segments, shared: shared.clone(), lost_told: 0, failing: false };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run())?;
        Ok(Self { shared, node: node.to_owned() })
    }

    /// Writes a line, soon.
    pub fn write(&self, entry: &Entry<'_>) {
        let body = Body::of(entry);
        let mut gathered = self.shared.lock();
        let before = gathered.lines.len();
        if gathered.closing || before + body.len_max() + self.node.len() > BYTES_MAX {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        body.finish(&mut gathered, SystemTime::now(), &self.node);
        let is_enough = before < BYTES_ENOUGH && gathered.lines.len() >= BYTES_ENOUGH;
        if gathered.idle || is_enough {
            self.shared.wanted.notify_one();
        }
    }

    /// Lines lost since the start. A write that failed counts whole, though a part of it may have reached the disk.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Takes no more lines and waits until the last one is written, or `patience` is over. Says whether all is done.
    pub fn close(&self, patience: Duration) -> bool {
        let closing = self.shared.close();
        let ended = self.shared.ended.wait_timeout_while(closing, patience, |gathered| !gathered.ended);
        ended.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        drop(self.shared.close());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // It is whole after every operation, also one that panicked in another thread.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> MutexGuard<'_, Gathered> {
        let mut gathered = self.lock();
        gathered.closing = true;
        self.wanted.notify_one();
        gathered
    }

    /// What has gathered; none when the log is closed and all was taken.
    fn next(&self) -> Option<String> {
        let mut gathered = self.lock();
        loop {
            let gathers = |gathered: &mut Gathered| gathered.lines.len() < BYTES_ENOUGH && !gathered.closing;
            let waited = self.wanted.wait_timeout_while(gathered, GATHER, gathers);
            gathered = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !gathered.lines.is_empty() {
                return Some(std::mem::take(&mut gathered.lines));
            }
            if gathered.closing {
                return None;
            }
            gathered.idle = true;
            let has_nothing = |gathered: &mut Gathered| gathered.lines.is_empty() && !gathered.closing;
            gathered = self.wanted.wait_while(gathered, has_nothing).unwrap_or_else(PoisonError::into_inner);
            gathered.idle = false;
        }
    }
}

struct Writer {
    segments: Segments,
    shared: Arc<Shared>,
    lost_told: u64,
    failing: bool,
}

impl Writer {
    fn run(&mut self) {
        // Begun before there is a line, so that an end without a word is seen even if it takes the first one.
        let begun = self.segments.begin();
        self.note(begun);
        while let Some(lines) = self.shared.next() {
            self.put(&lines);
            self.tell_lost();
        }
        if let Err(error) = self.segments.end() {
            tracing::error!("the last segment can't be closed: {error}");
        }
        self.shared.lock().ended = true;
        self.shared.ended.notify_all();
    }

    fn put(&mut self, lines: &str) {
        let written = self.segments.write(lines);
        if written.is_err() {
            self.shared.lost.fetch_add(lines.lines().count() as u64, Ordering::Relaxed);
        }
        self.note(written);
    }

    fn tell_lost(&mut self) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > self.lost_told && !self.failing {
            let written = self.segments.write(&format!("# {} lines lost\n", lost - self.lost_told));
            if written.is_ok() {
                self.lost_told = lost;
            }
            self.note(written);
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = &result
            && !self.failing
        {
            let directory = self.segments.directory().display();
            tracing::error!("{directory}: no segment can be written: {error}; lines are lost until one can");
        }
        self.failing = result.is_err();
    }
}

/// A line but for what depends on its time.
struct Body {
    /// Site, bytes, client.
    before: String,
    /// From the request on.
    after: String,
}

impl Body {
    fn of(entry: &Entry<'_>) -> Self {
        let Entry { site, client, request, status, sent_bytes, received_bytes, duration, referer, user_agent } = entry;
        let before = format!(" {} {sent_bytes} {received_bytes} {client} - - [", site.unwrap_or("-"));
        let mut after = String::with_capacity(256);
        after.push_str("] \"");
        match request {
            Some((method, target, version)) => {
                escape(&mut after, method.as_bytes());
                after.push(' ');
                escape(&mut after, target.as_bytes());
                after.push(' ');
                after.push_str(version);
            }
            None => after.push('-'),
        }
        // 499: the client left before there was an answer; no reader of logs knows 0.
        let status = if *status == 0 { 499 } else { *status };
        write!(after, "\" {status} {sent_bytes} \"").expect("a String takes all that is written");
        escape(&mut after, referer);
        after.push_str("\" \"");
        escape(&mut after, user_agent);
        write!(after, "\" {received_bytes} {} ", duration.as_micros()).expect("a String takes all that is written");
        Self { before, after }
    }

    /// No line of it is longer, but for the node's name.
    fn len_max(&self) -> usize {
        self.before.len() + self.after.len() + 100
    }

    /// Appends the line.
    fn finish(&self, gathered: &mut Gathered, completed: SystemTime, node: &str) {
        let at = completed.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, micros) = (at.as_secs(), at.subsec_micros());
        let Gathered { lines, second: (second, date), .. } = gathered;
        if *second != seconds || date.is_empty() {
            date.clear();
            write_clf(date, seconds);
            *second = seconds;
        }
        let Self { before, after } = self;
        writeln!(lines, "{seconds}.{micros:06}{before}{date}{after}{seconds}.{micros:06} {node}")
            .expect("a String takes all that is written");
    }
}

fn escape(line: &mut String, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                write!(line, "\\x{byte:02x}").expect("a String takes all that is written");
            }
            _ => line.push(char::from(*byte)),
        }
    }
}

#[cfg(test)]
mod tests;
