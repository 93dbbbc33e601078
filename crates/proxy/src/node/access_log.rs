//! The access log: one line per request, written by the proxy so that a customer can alter neither log nor traffic counts.
//!
//! A line is, separated by single spaces: time of completion (seconds since 1970 with microseconds), site (`-` if none), node, boot
//! id, client, `"request line"`, status, bytes sent, bytes received, duration in microseconds, `"referer"`, `"user agent"`. Within
//! quotes, `"`, `\` and all that is not visible ASCII is written as `\xHH`.
//!
//! Lines gather for [`GATHER`] and are then written at once by a thread of their own, so that a busy node wakes it ten times a
//! second, and an idle one never. What gathers is bounded: if the disk hangs for long, lines are lost rather than requests; how many
//! is written as a line of its own, which begins with `#`.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
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
    /// When it was completed, by the machine's clock.
    pub completed: SystemTime,
    /// The site's main name.
    pub site: Option<&'a str>,
    /// The client's address.
    pub client: Ipv4Addr,
    /// Method and target; none where the head could not be read.
    pub request: Option<(&'a str, &'a str)>,
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
    /// Node and boot id, as they stand in each line.
    whence: String,
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
    /// In this order.
    work: Vec<Work>,
    /// Of the lines in `work`.
    bytes: usize,
    /// The thread sleeps until it is woken. Otherwise it looks within [`GATHER`].
    idle: bool,
    closing: bool,
    ended: bool,
}

#[derive(Debug)]
enum Work {
    /// Whole lines.
    Write(String),
    Reopen,
}

impl AccessLog {
    /// Opens the log at `path` and starts its thread.
    ///
    /// # Errors
    /// The thread can't be started. A file that can't be opened is reported in the log of the service and tried again.
    pub fn start(path: &Path, node: &str, boot_id: &str) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let mut writer =
            Writer { path: path.to_owned(), file: None, shared: shared.clone(), lost_told: 0, failing: false };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run())?;
        Ok(Self { shared, whence: format!("{node} {boot_id}") })
    }

    /// Writes a line, soon.
    pub fn write(&self, entry: &Entry<'_>) {
        let line = format_line(entry, &self.whence);
        let mut gathered = self.shared.lock();
        let before = gathered.bytes;
        if gathered.closing || before + line.len() > BYTES_MAX {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        gathered.bytes += line.len();
        let is_enough = before < BYTES_ENOUGH && gathered.bytes >= BYTES_ENOUGH;
        match gathered.work.last_mut() {
            Some(Work::Write(lines)) => lines.push_str(&line),
            Some(Work::Reopen) | None => gathered.work.push(Work::Write(line)),
        }
        if gathered.idle || is_enough {
            self.shared.wanted.notify_one();
        }
    }

    /// Opens the file anew, after it was moved away: lines so far go to the old one, later ones to the new one.
    pub fn reopen(&self) {
        let mut gathered = self.shared.lock();
        if !matches!(gathered.work.last(), Some(Work::Reopen)) {
            gathered.work.push(Work::Reopen);
        }
        self.shared.wanted.notify_one();
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
    fn next(&self) -> Option<Vec<Work>> {
        let mut gathered = self.lock();
        loop {
            let gathers = |gathered: &mut Gathered| gathered.bytes < BYTES_ENOUGH && !gathered.closing;
            let waited = self.wanted.wait_timeout_while(gathered, GATHER, gathers);
            gathered = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !gathered.work.is_empty() {
                gathered.bytes = 0;
                return Some(std::mem::take(&mut gathered.work));
            }
            if gathered.closing {
                return None;
            }
            gathered.idle = true;
            let has_nothing = |gathered: &mut Gathered| gathered.work.is_empty() && !gathered.closing;
            gathered = self.wanted.wait_while(gathered, has_nothing).unwrap_or_else(PoisonError::into_inner);
            gathered.idle = false;
        }
    }
}

struct Writer {
    path: PathBuf,
    file: Option<File>,
    shared: Arc<Shared>,
    lost_told: u64,
    failing: bool,
}

impl Writer {
    fn run(&mut self) {
        while let Some(work) = self.shared.next() {
            for work in work {
                match work {
                    Work::Write(lines) => self.put(&lines),
                    Work::Reopen => self.file = None,
                }
            }
            self.tell_lost();
        }
        self.shared.lock().ended = true;
        self.shared.ended.notify_all();
    }

    fn put(&mut self, lines: &str) {
        let written = self.write(lines);
        if written.is_err() {
            self.shared.lost.fetch_add(lines.lines().count() as u64, Ordering::Relaxed);
        }
        self.note(written);
    }

    fn tell_lost(&mut self) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > self.lost_told && self.file.is_some() {
            let written = self.write(&format!("# {} lines lost\n", lost - self.lost_told));
            if written.is_ok() {
                self.lost_told = lost;
            }
            self.note(written);
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).append(true).open(&self.path)?),
        };
        file.write_all(text.as_bytes())
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = &result {
            self.file = None;
            if !self.failing {
                tracing::error!("{} can't be written: {error}; lines are lost until it can", self.path.display());
            }
        }
        self.failing = result.is_err();
    }
}

fn format_line(entry: &Entry<'_>, whence: &str) -> String {
    let Entry { completed, site, client, request, status, sent_bytes, received_bytes, duration, referer, user_agent } =
        entry;
    let at = completed.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = String::with_capacity(256);
    let site = site.unwrap_or("-");
    write!(line, "{}.{:06} {site} {whence} {client} \"", at.as_secs(), at.subsec_micros())
        .expect("a String takes all that is written");
    match request {
        Some((method, target)) => {
            escape(&mut line, method.as_bytes());
            line.push(' ');
            escape(&mut line, target.as_bytes());
        }
        None => line.push('-'),
    }
    write!(line, "\" {status} {sent_bytes} {received_bytes} {} \"", duration.as_micros())
        .expect("a String takes all that is written");
    escape(&mut line, referer);
    line.push_str("\" \"");
    escape(&mut line, user_agent);
    line.push_str("\"\n");
    line
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
mod tests {
    use super::*;

    fn entry<'a>(target: &'a str, user_agent: &'a [u8]) -> Entry<'a> {
        Entry {
            completed: UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042),
            site: Some("www.example.org"),
            client: Ipv4Addr::new(198, 51, 100, 7),
            request: Some(("GET", target)),
            status: 200,
            sent_bytes: 512,
            received_bytes: 80,
            duration: Duration::from_millis(3),
            referer: b"",
            user_agent,
        }
    }

    #[test]
    fn a_line_has_no_way_out_of_its_quotes() {
        assert_eq!(
            format_line(&entry("/a?b", b"x\" 200 \\\n\xff\x7f"), "web1 0b00-1d"),
            "1700000000.000042 www.example.org web1 0b00-1d 198.51.100.7 \"GET /a?b\" 200 512 80 3000 \"\" \
             \"x\\x22 200 \\x5c\\x0a\\xff\\x7f\"\n"
        );
    }

    #[test]
    fn a_moved_file_is_opened_anew() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (path, moved) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
        let log = AccessLog::start(&path, "web1", "b").expect("started");
        let wait_for = |path: &Path, needle: &str| {
            for _ in 0..500 {
                if std::fs::read_to_string(path).is_ok_and(|text| text.contains(needle)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            panic!("{needle} did not get into {}", path.display());
        };
        log.write(&entry("/one", b""));
        wait_for(&path, "/one");
        std::fs::rename(&path, &moved).expect("moved");
        log.write(&entry("/two", b""));
        wait_for(&moved, "/two");
        log.reopen();
        log.write(&entry("/three", b""));
        wait_for(&path, "/three");
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn lines_gather_in_order_and_the_last_one_is_written_at_the_end() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("access.log");
        let log = AccessLog::start(&path, "web1", "b").expect("started");
        // More than is enough, so that some are written early.
        for number in 0..4_000 {
            log.write(&entry(&format!("/{number}/"), b"a browser"));
        }
        assert!(log.close(Duration::from_secs(10)));
        log.write(&entry("/late/", b""));
        let text = std::fs::read_to_string(&path).expect("written");
        assert!(text.len() > BYTES_ENOUGH);
        let in_order = |(number, line): (usize, &str)| line.contains(&format!("/{number}/"));
        assert!(text.lines().count() == 4_000 && text.lines().enumerate().all(in_order));
        assert_eq!(log.lost(), 1, "the late one");
    }

    #[test]
    fn what_gathers_is_bounded_and_what_is_lost_is_told() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("access.log");
        // Opening a FIFO that nobody reads hangs, like a disk that does not answer.
        assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
        let log = AccessLog::start(&path, "web1", "b").expect("started");
        let long = "x".repeat(BYTES_ENOUGH);
        let fit = BYTES_MAX / long.len();
        // The thread may hold one batch of its own.
        for _ in 0..3 * fit {
            log.write(&entry(&long, b""));
        }
        let lost = log.lost();
        assert!(lost >= fit as u64, "{lost} were lost");
        assert!(!log.close(Duration::ZERO), "it hangs");
        let text = std::fs::read_to_string(&path).expect("all that waited");
        assert!(text.contains(&format!("\n# {lost} lines lost\n")), "it should tell of {lost}");
    }
}
