//! The access log: one line per request, written by the proxy so that a customer can alter neither log nor traffic counts.
//!
//! A line is, separated by single spaces: time of completion (seconds since 1970 with microseconds), site (`-` if none), node, boot
//! id, client, `"request line"`, status, bytes sent, bytes received, duration in microseconds, `"referer"`, `"user agent"`. Within
//! quotes, `"`, `\` and all that is not visible ASCII is written as `\xHH`.
//!
//! Lines wait in a bounded queue for one writing thread. If the disk hangs for long, lines are lost rather than requests; how many
//! is written as a line of its own, which begins with `#`.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Lines that may wait for the disk.
const LINES_MAX: usize = 16_384;

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

/// Hands lines to the writing thread.
#[derive(Debug, Clone)]
pub struct AccessLog {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
    /// Node and boot id, as they stand in each line.
    whence: Arc<str>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    Reopen,
}

impl AccessLog {
    /// Opens the log at `path` and starts its thread, which ends when the last handle is gone.
    ///
    /// # Errors
    /// The thread can't be started. A file that can't be opened is reported in the log of the service and tried again.
    pub fn start(path: &Path, node: &str, boot_id: &str) -> io::Result<Self> {
        let (queue, messages) = sync_channel(LINES_MAX);
        let lost = Arc::<AtomicU64>::default();
        let mut writer = Writer { path: path.to_owned(), file: None, lost: lost.clone(), lost_told: 0, failing: false };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&messages))?;
        Ok(Self { queue, lost, whence: format!("{node} {boot_id}").into() })
    }

    /// Writes a line, soon.
    pub fn write(&self, entry: &Entry<'_>) {
        self.send(Message::Line(format_line(entry, &self.whence)));
    }

    /// Opens the file anew, after it was moved away.
    pub fn reopen(&self) {
        self.send(Message::Reopen);
    }

    /// Lines lost since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn send(&self, message: Message) {
        match self.queue.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

struct Writer {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    lost: Arc<AtomicU64>,
    lost_told: u64,
    failing: bool,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let mut next = Some(first);
            // All that waits goes out in one write; then nothing stays in memory.
            while let Some(message) = next {
                match message {
                    Message::Line(line) => self.put(&line),
                    Message::Reopen => self.file = None,
                }
                next = messages.try_recv().ok();
            }
            self.tell_lost();
            let flushed = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
            self.note(flushed);
        }
    }

    fn put(&mut self, line: &str) {
        let written = self.file().and_then(|file| file.write_all(line.as_bytes()));
        if written.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.note(written);
    }

    fn tell_lost(&mut self) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > self.lost_told && self.file.is_some() {
            let line = format!("# {} lines lost\n", lost - self.lost_told);
            let written = self.file().and_then(|file| file.write_all(line.as_bytes()));
            if written.is_ok() {
                self.lost_told = lost;
            }
            self.note(written);
        }
    }

    fn file(&mut self) -> io::Result<&mut BufWriter<File>> {
        match &mut self.file {
            Some(file) => Ok(file),
            none => {
                let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                Ok(none.insert(BufWriter::with_capacity(64 * 1024, file)))
            }
        }
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
}
