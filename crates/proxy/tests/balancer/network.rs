//! Network namespaces, the cables between them, and web nodes in them. All of it vanishes with the test's process.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub struct Network {
    pub client: Namespace,
    pub balancer: Namespace,
    pub web1: Namespace,
    pub web2: Namespace,
}

/// A network namespace, held by a process that sleeps in it.
pub struct Namespace(Child);

impl Network {
    pub fn make() -> Self {
        let [client, balancer, web1, web2] = [(); 4].map(|()| Namespace::make());
        let network = Self { client, balancer, web1, web2 };
        network.balancer.shell("sysctl -qw net.ipv4.ip_forward=1 && ip link add lan type bridge && ip link set lan up");
        network.balancer.shell("ip address add 10.9.0.1/24 dev lan && ip address add 192.0.2.1/32 dev lo");
        network.cable(&network.client, "wan", "198.51.100.7/24");
        network.balancer.shell("ip address add 198.51.100.1/24 dev wan");
        network.client.shell("ip route add default via 198.51.100.1");
        for (node, cable, address) in [(&network.web1, "w1", "10.9.0.11/24"), (&network.web2, "w2", "10.9.0.12/24")] {
            network.cable(node, cable, address);
            network.balancer.shell(&format!("ip link set {cable} master lan"));
            node.shell("ip route add default via 10.9.0.1");
        }
        network
    }

    fn cable(&self, to: &Namespace, name: &str, address: &str) {
        let pid = to.pid();
        self.balancer
            .shell(&format!("ip link add {name} type veth peer name eth0 netns {pid} && ip link set {name} up"));
        to.shell(&format!("ip address add {address} dev eth0 && ip link set eth0 up"));
    }

    /// Pulls the node's cable.
    pub fn cut(&self, node: &Namespace) {
        node.shell("ip link set eth0 down");
    }
}

impl Namespace {
    fn make() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "600"]).stdin(Stdio::null()).spawn().expect("unshare");
        let namespace = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net").expect("this namespace");
        let path = format!("/proc/{}/ns/net", namespace.pid());
        while std::fs::read_link(&path).is_ok_and(|theirs| theirs == own) {
            thread::sleep(Duration::from_millis(1));
        }
        namespace.shell("ip link set lo up");
        namespace
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Runs a command line in it and gives what it wrote.
    pub fn shell(&self, line: &str) -> String {
        let output =
            Command::new("nsenter").args(["-t", &self.pid(), "-n", "sh", "-c", line]).output().expect("nsenter");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `work` in it, on a thread of its own.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().expect("the work ends")
    }

    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("the namespace");
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("moved");
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A web node: says its name and the client's address, or echoes; can freeze, refuse its checks, and serve a load score.
pub struct WebNode(Arc<State>);

struct State {
    name: &'static str,
    frozen: AtomicBool,
    refuses: AtomicBool,
    score: Mutex<Option<&'static str>>,
}

impl WebNode {
    pub fn start(namespace: &Namespace, name: &'static str, ip: &'static str) -> Self {
        let state =
            State { name, frozen: AtomicBool::new(false), refuses: AtomicBool::new(false), score: Mutex::new(None) };
        let state = Arc::new(state);
        let (web, score) = (state.clone(), state.clone());
        // Both listen before anything else goes on.
        let (listener, scores) = namespace.run(move || {
            (TcpListener::bind((ip, 80)).expect("port 80"), TcpListener::bind((ip, 342)).expect("port 342"))
        });
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.expect("a connection"), web.clone());
                thread::spawn(move || state.serve(stream));
            }
        });
        thread::spawn(move || {
            for stream in scores.incoming() {
                let line = *score.score.lock().expect("whole");
                let written = writeln!(stream.expect("a connection"), "{}", line.unwrap_or_default());
                drop(written);
            }
        });
        Self(state)
    }

    pub fn freeze(&self, frozen: bool) {
        self.0.frozen.store(frozen, Ordering::SeqCst);
    }

    pub fn refuse(&self, refuses: bool) {
        self.0.refuses.store(refuses, Ordering::SeqCst);
    }

    pub fn score(&self, line: Option<&'static str>) {
        *self.0.score.lock().expect("whole") = line;
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        let peer = stream.peer_addr().expect("the other end").ip();
        let mut room = [0; 1_024];
        while let Ok(count @ 1..) = stream.read(&mut room) {
            while self.frozen.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            let text = String::from_utf8_lossy(&room[..count]).into_owned();
            let check = text.starts_with("GET /.well-known/phalanx/health ");
            let answer = match (text.starts_with("GET "), check && self.refuses.load(Ordering::SeqCst)) {
                (false, _) => format!("{} {text}", self.name),
                (true, true) => "HTTP/1.1 503 No\r\n\r\nthe guard says: the share hangs\n".to_owned(),
                (true, false) => format!("HTTP/1.1 200 OK\r\n\r\n{} {peer}", self.name),
            };
            if stream.write_all(answer.as_bytes()).is_err() || text.starts_with("GET ") {
                return;
            }
        }
    }
}

/// A mail node: greets as it is told to and answers what a check asks.
pub struct MailNode(Arc<Mutex<&'static str>>);

impl MailNode {
    pub fn start(namespace: &Namespace, ip: &'static str) -> Self {
        let greeting = Arc::new(Mutex::new("220 ready"));
        let greetings = greeting.clone();
        let listener = namespace.run(move || TcpListener::bind((ip, 25)).expect("port 25"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, greeting) = (stream.expect("a connection"), *greetings.lock().expect("whole"));
                // A check may leave in the middle.
                thread::spawn(move || drop(answer_smtp(stream, greeting)));
            }
        });
        Self(greeting)
    }

    pub fn greet(&self, greeting: &'static str) {
        *self.0.lock().expect("whole") = greeting;
    }
}

fn answer_smtp(mut stream: TcpStream, greeting: &str) -> io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    stream.write_all(format!("{greeting} for {peer}\r\n").as_bytes())?;
    let mut room = [0; 1_024];
    while let count @ 1.. = stream.read(&mut room)? {
        let answer =
            if room[..count].starts_with(b"EHLO [10.9.0.1]\r\n") { "250-mail\r\n250 DSN\r\n" } else { "250 ok\r\n" };
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Says something on an open flow; gives the node's name from its echo.
pub fn echo(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes())?;
    let mut room = [0; 1_024];
    let count = stream.read(&mut room)?;
    let answer = String::from_utf8_lossy(&room[..count]);
    match answer.strip_suffix(text) {
        Some(name) => Ok(name.trim().to_owned()),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, answer.into_owned())),
    }
}
