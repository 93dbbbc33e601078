//! A mail node under test: the real binary, with addresses of its own, and a small server in the place of Dovecot.

use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Router {
    pub directory: TempDir,
    child: Child,
}

impl Router {
    pub fn start(mut config: Value) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("mail.json");
        config["status"] = json!(directory.path().join("status.json"));
        std::fs::write(&file, config.to_string()).expect("written");
        let child = Command::new(env!("CARGO_BIN_EXE_phalanx-proxy"))
            .args(["mail", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("the proxy starts");
        let router = Self { directory, child };
        eventually("it has its first status", || router.status()["read_unix_ms"].is_u64());
        router
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn status(&self) -> Value {
        let text = std::fs::read_to_string(self.path("status.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// A count of one protocol, such as `through_ways.imap.open`.
    pub fn count(&self, side: &str, protocol: &str, what: &str) -> u64 {
        self.status()[side][protocol][what].as_u64().unwrap_or(0)
    }

    /// Replaces the configuration and waits until it is followed.
    pub fn reload(&self, mut config: Value) {
        config["status"] = json!(self.path("status.json"));
        let before = self.status()["read_unix_ms"].as_u64();
        // So that the next one is read in another millisecond.
        thread::sleep(Duration::from_millis(2));
        std::fs::write(self.path("mail.json"), config.to_string()).expect("written");
        self.signal("HUP");
        eventually("the new configuration is followed", || self.status()["read_unix_ms"].as_u64() > before);
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs").success());
    }

    pub fn wait_for_end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let mut status = None;
        eventually("the proxy ends", || {
            status = child.try_wait().expect("its state");
            status.is_some()
        });
        status.expect("ended")
    }

    /// Bytes of memory that are its own now.
    pub fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1_024
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address that no other test process uses; `last` tells those of one test apart.
pub fn own(last: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + last, high, low)
}

/// An address with a port that is free.
pub fn free(ip: Ipv4Addr) -> SocketAddrV4 {
    v4(TcpListener::bind((ip, 0)).expect("a free port").local_addr().expect("its address"))
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("IPv4") };
    address
}

/// In Dovecot's place: hands every connection to the test.
pub struct Server {
    pub address: SocketAddrV4,
    connections: Receiver<TcpStream>,
}

impl Server {
    pub fn start() -> Self {
        Self::at(SocketAddrV4::new(own(0), 0))
    }

    pub fn at(address: SocketAddrV4) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = v4(listener.local_addr().expect("its address"));
        let (sender, connections) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if sender.send(stream.expect("a connection")).is_err() {
                    return;
                }
            }
        });
        Self { address, connections }
    }

    /// The next connection.
    pub fn accept(&self) -> TcpStream {
        let stream = self.connections.recv_timeout(PATIENCE).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    pub fn has_none(&self) -> bool {
        self.connections.try_recv().is_err()
    }
}

/// Connects from an address of one's choice.
pub fn connect_from(from: Ipv4Addr, to: SocketAddrV4) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddr::new(IpAddr::V4(from), 0)).expect("bound");
    connect(&socket, &to).expect("connected");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

pub fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("sent");
}

/// Reads exactly what is expected.
pub fn hear(stream: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).expect(text);
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

/// All until the end; a reset is an end, too, and shows as `!`.
pub fn hear_out(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    match ended {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => text.push('!'),
        Err(error) => panic!("neither an end nor a reset after {text:?}: {error}"),
    }
    text
}

pub fn end(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("told");
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(5));
    }
}
