//! A node under test: the real binary, a directory file, a fake launcher, and a small web server in the place of each account's
//! httpd. Every test has accounts and addresses of its own, so that tests can run side by side.

use phalanx_host::directory::Writer;
use phalanx_model::account::ACCOUNT_PORT;
use phalanx_model::{Account, AccountState, DirectoryChange, Limits, PhpVersion, Position, Row, Site, Uid};
use phalanx_plan::session::{Batch, Snapshot};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const MARKER: &str = "0123456789abcdef0123456789abcdef";

pub struct Lab {
    pub directory: TempDir,
    pub address: SocketAddr,
    pub config: Value,
    pub launcher: FakeLauncher,
    child: Child,
    writer: Writer,
    revision: u64,
}

impl Lab {
    pub fn start() -> Self {
        Self::start_with(json!({}))
    }

    /// With these limits instead of the defaults.
    pub fn start_with(limits: Value) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let mut writer = Writer::open(&path("directory.sqlite")).expect("a directory");
        let whole = Snapshot { at: position(1), piece: 0, rows: Vec::new(), last: true };
        writer.collect(&whole).expect("an empty directory");
        let launcher = FakeLauncher::start(&path("launcher.sock"));
        let address = free_address();
        let config = json!({
            "server": "web1",
            "listen": [address],
            "share": {"share": "web", "marker": MARKER, "marker_file": path("marker"), "verdict_file": path("verdict.json")},
            "limits": limits,
            "paths": {
                "directory": path("directory.sqlite"),
                "launcher": path("launcher.sock"),
                "access_logs": path("access"),
                "status": path("status.json"),
            },
        });
        std::fs::write(path("proxy.json"), config.to_string()).expect("written");
        let child = Command::new(env!("CARGO_BIN_EXE_phalanx-proxy"))
            .args(["node", "--config"])
            .arg(path("proxy.json"))
            .stdin(Stdio::null())
            .spawn()
            .expect("the proxy starts");
        let lab = Self { directory, address, config, launcher, child, writer, revision: 1 };
        eventually("the proxy listens", || TcpStream::connect(lab.address).is_ok());
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Adds an account with one site.
    pub fn site(&mut self, host: &str, uid: Uid) {
        self.put_account(uid, AccountState::Active);
        self.put(Row::Site(Site {
            name: host.parse().expect("a host name"),
            aliases: Vec::new(),
            account: format!("a{uid}").parse().expect("a name"),
            document_root: "sites/x".parse().expect("a path"),
        }));
    }

    pub fn put_account(&mut self, uid: Uid, state: AccountState) {
        let account = Account {
            name: format!("a{uid}").parse().expect("a name"),
            uid,
            logical_server: "www".parse().expect("a name"),
            owner: "admin".parse().expect("a name"),
            limits: Limits::default(),
            php: PhpVersion::default(),
            state,
        };
        self.put(Row::Account { account, share: "web".parse().expect("a name") });
    }

    fn put(&mut self, row: Row) {
        let (after, upto) = (position(self.revision), position(self.revision + 1));
        let changes = vec![DirectoryChange::Put(Box::new(row))];
        self.writer.apply(&Batch { after, upto, changes }).expect("applied");
        self.revision += 1;
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs");
        assert!(status.success());
    }

    pub fn wait_for_end(&mut self) {
        let child = &mut self.child;
        eventually("the proxy ends", || child.try_wait().expect("its state").is_some());
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream
    }

    /// Sends `bytes` on a connection of its own and reads until the proxy closes it.
    pub fn ask(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("sent");
        read_all(&mut stream)
    }

    pub fn get(&self, host: &str, target: &str) -> String {
        self.ask(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
    }

    /// All segments.
    pub fn log(&self) -> String {
        let entries = std::fs::read_dir(self.path("access")).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect()
    }

    pub fn log_holds(&self, needle: &str) -> String {
        let mut found = String::new();
        eventually(&format!("the log holds {needle:?}"), || {
            let text = self.log();
            found = text.lines().find(|line| line.contains(needle)).unwrap_or_default().to_owned();
            !found.is_empty()
        });
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn position(revision: u64) -> Position {
    Position { incarnation: 1, term: 1, revision }
}

/// The `n`th account of this test: no other test process has it.
pub fn uid(n: u32) -> Uid {
    let range = Uid::LAST.get() - Uid::FIRST.get();
    Uid::try_from(Uid::FIRST.get() + (std::process::id() * 16 + n) % range).expect("within the range")
}

/// A free port on a loopback address that no other test process uses.
pub fn free_address() -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 32, high, low);
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset counts as an end here; tests look at what came before it.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one response with a Content-Length: head and body.
pub fn read_response(stream: &mut TcpStream) -> (String, String) {
    let head = read_head(stream).expect("a response");
    let length = value(&head, "content-length").map_or(0, |value| value.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("the body");
    (head, String::from_utf8(body).expect("text"))
}

/// Reads one head, with its empty line; none at the connection's end.
pub fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

pub fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)))
        .map(|f| f.1)
}

/// Listens on the launcher's socket; what waking an account does is up to the test.
#[derive(Clone)]
pub struct FakeLauncher(Arc<LauncherState>);

type Wake = Box<dyn Fn() -> Result<(), String> + Send>;

#[derive(Default)]
struct LauncherState {
    wakes: Mutex<BTreeMap<u64, Wake>>,
    woken: AtomicUsize,
    used: Mutex<Vec<u64>>,
}

impl FakeLauncher {
    fn start(path: &std::path::Path) -> Self {
        let listener = UnixListener::bind(path).expect("the launcher's socket");
        let launcher = Self(Arc::default());
        let shared = launcher.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.expect("a connection"), shared.clone());
                thread::spawn(move || shared.serve(&stream));
            }
        });
        launcher
    }

    pub fn on_wake(&self, uid: Uid, wake: impl Fn() -> Result<(), String> + Send + 'static) {
        self.0.wakes.lock().expect("whole").insert(uid.get().into(), Box::new(wake));
    }

    pub fn woken(&self) -> usize {
        self.0.woken.load(Ordering::SeqCst)
    }

    pub fn was_used(&self, uid: Uid) -> bool {
        self.0.used.lock().expect("whole").contains(&u64::from(uid.get()))
    }

    fn serve(&self, stream: &UnixStream) {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let message: Value = serde_json::from_str(&line).expect("JSON");
            if let Some(uids) = message["used"].as_array() {
                self.0.used.lock().expect("whole").extend(uids.iter().filter_map(Value::as_u64));
                continue;
            }
            let uid = message["wake"].as_u64().expect("a uid to wake");
            self.0.woken.fetch_add(1, Ordering::SeqCst);
            let wakes = self.0.wakes.lock().expect("whole");
            let result = wakes.get(&uid).map_or(Err("no such account".to_owned()), |wake| wake());
            let answer = match result {
                Ok(()) => json!({ "ready": uid }),
                Err(why) => json!({"error": {"uid": uid, "why": why, "retry": false}}),
            };
            writeln!(&*stream, "{answer}").expect("answered");
        }
    }
}

/// In the place of an account's httpd. What it does depends on the path that is asked for.
#[derive(Clone)]
pub struct Backend(Arc<BackendState>);

#[derive(Default)]
struct BackendState {
    connections: AtomicUsize,
    requests: Mutex<Vec<String>>,
    released: AtomicBool,
    /// Connections close after so many requests, without saying so; 0 for never.
    requests_per_connection: AtomicUsize,
}

impl Backend {
    pub fn start(uid: Uid) -> Self {
        let listener = TcpListener::bind((uid.loopback(), ACCOUNT_PORT)).expect("the account's own address");
        let backend = Self(Arc::default());
        let shared = backend.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, shared) = (stream.expect("a connection"), shared.clone());
                shared.0.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || shared.serve(&mut stream));
            }
        });
        backend
    }

    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::SeqCst)
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.0.requests.lock().expect("whole").clone()
    }

    pub fn close_after(&self, requests: usize) {
        self.0.requests_per_connection.store(requests, Ordering::SeqCst);
    }

    /// Lets requests for `/held` go on.
    pub fn release(&self) {
        self.0.released.store(true, Ordering::SeqCst);
    }

    fn serve(&self, stream: &mut TcpStream) {
        let mut served = 0;
        while let Some(head) = read_head(stream) {
            self.0.requests.lock().expect("whole").push(head.clone());
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            if self.answer(stream, &head, &path).is_none() {
                return;
            }
            served += 1;
            if served == self.0.requests_per_connection.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// None when the connection should be closed.
    fn answer(&self, stream: &mut TcpStream, head: &str, path: &str) -> Option<()> {
        let reply = |stream: &mut TcpStream, text: &str| stream.write_all(text.as_bytes()).ok();
        let length = || value(head, "content-length").and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        match path {
            "/head" => {
                let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
                reply(stream, &text)
            }
            "/echo" => {
                if head.contains("Expect: 100-continue") {
                    reply(stream, "HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                reply(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", length()))?;
                copy(stream, length())
            }
            "/chunked" => {
                reply(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                copy_until(stream, b"0\r\n\r\n")
            }
            "/ws" => {
                reply(stream, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")?;
                copy(stream, u64::MAX)?;
                None
            }
            "/held" => {
                eventually("the test releases the request", || self.0.released.load(Ordering::SeqCst));
                reply(stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld")
            }
            "/silent" => copy(stream, u64::MAX).and(None),
            "/close" => None,
            "/truncated" => reply(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc").and(None),
            "/garbage" => reply(stream, "220 mail.example ESMTP\r\n").and(None),
            "/until-close" => reply(stream, "HTTP/1.1 200 OK\r\n\r\nto the end").and(None),
            "/204" => reply(stream, "HTTP/1.1 204 No Content\r\n\r\n"),
            "/304" => reply(stream, "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
            "/early" => reply(
                stream,
                "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            ),
            _ if head.starts_with("HEAD ") => reply(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
            _ => {
                let mut body = vec![0; length() as usize];
                stream.read_exact(&mut body).ok()?;
                let text = format!("{path} {}", String::from_utf8_lossy(&body));
                reply(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))
            }
        }
    }
}

fn copy(stream: &mut TcpStream, mut left: u64) -> Option<()> {
    let mut room = [0; 16 * 1024];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
        let count = stream.read(&mut room[..most]).ok().filter(|count| *count > 0)?;
        stream.write_all(&room[..count]).ok()?;
        left -= count as u64;
    }
    Some(())
}

fn copy_until(stream: &mut TcpStream, end: &[u8]) -> Option<()> {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(end) {
        stream.read_exact(&mut byte).ok()?;
        stream.write_all(&byte).ok()?;
        seen.push(byte[0]);
    }
    Some(())
}
