//! The accounts' nftables table in a network namespace of its own: who reaches whom, tried by real sockets under real uids. Needs root.
//!
//! The test calls itself as another user inside the namespace ([`as_another`]), which is what its ignored test is for.

use phalanx_model::Uid;
use phalanx_plan::account::accounts_nft;
use phalanx_plan::spec::port;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Stands for phalanx-proxy, a user that need not exist here.
const PROXY: u32 = 60_001;
/// Stands for any user of the system that is neither root nor proxy nor account.
const NOBODY: u32 = 65_534;
const ORDER: &str = "PHALANX_TEST_ORDER";

/// A namespace that lives as long as this value.
struct Space(Child);

impl Space {
    fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().expect("unshare, as root");
        let space = Self(child);
        // The child enters its namespace a moment after it was started.
        let own = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
        while std::fs::read_link(format!("/proc/{}/ns/net", space.0.id())).expect("the child lives") == own {
            std::thread::yield_now();
        }
        space.succeed(&["ip", "link", "set", "lo", "up"], "");
        space
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.0.id().to_string()]).args(words);
        command
    }

    fn succeed(&self, words: &[&str], input: &str) {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().expect("nsenter");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
        assert!(child.wait().expect("it ends").success(), "{words:?}");
    }

    fn load_table(&self) {
        self.succeed(&["nft", "--file", "-"], &accounts_nft().replace("phalanx-proxy", &PROXY.to_string()));
    }

    fn own(&self, uid: Uid) {
        let element = format!("{{ {} . {uid} }}", uid.loopback());
        self.succeed(&["nft", "add", "element", "inet", "phalanx_accounts", "owners", &element], "");
    }

    /// Runs [`as_another`] as `uid` with an order.
    fn order(&self, uid: u32, order: &str) -> Child {
        let me = std::env::current_exe().expect("this test");
        let (me, id) = (me.to_string_lossy().into_owned(), uid.to_string());
        let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", &me, "--exact", "as_another"];
        let mut command = self.command(&words);
        command.args(["--ignored", "--nocapture"]).env(ORDER, order).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().expect("nsenter")
    }

    /// A server of `uid`'s, listening when this returns.
    fn listen(&self, uid: u32, at: &str) -> Server {
        let mut child = self.order(uid, &format!("listen {at}"));
        assert_eq!(answer(&mut child), "LISTENING", "at {at} as {uid}");
        Server(child)
    }

    fn reaches(&self, uid: u32, to: &str) -> bool {
        let mut child = self.order(uid, &format!("connect {to}"));
        let reached = answer(&mut child) == "CONNECTED";
        assert!(child.wait().expect("it ends").success());
        reached
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.0.kill().expect("it sleeps");
        self.0.wait().expect("it ends");
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().expect("it listens");
        self.0.wait().expect("it ends");
    }
}

/// The first line in capitals: the test harness writes lines of its own.
fn answer(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.as_mut().expect("piped")).lines().map_while(Result::ok);
    let words = lines.filter_map(|line| line.split_whitespace().last().map(str::to_owned));
    let mut answers = words.filter(|word| ["LISTENING", "CONNECTED", "REFUSED"].contains(&word.as_str()));
    answers.next().expect("an answer")
}

#[test]
#[ignore = "what the other test runs as another user"]
fn as_another() {
    let order = std::env::var(ORDER).expect("an order");
    let (what, at) = order.split_once(' ').expect("two words");
    let at: SocketAddr = at.parse().expect("an address");
    if what == "listen" {
        let listener = TcpListener::bind(at).expect("bound");
        println!("\nLISTENING");
        for stream in listener.incoming() {
            drop(stream.expect("a connection"));
        }
    } else {
        let reached = TcpStream::connect_timeout(&at, Duration::from_millis(500)).is_ok();
        println!("\n{}", if reached { "CONNECTED" } else { "REFUSED" });
    }
}

#[test]
fn accounts_are_kept_apart() {
    let space = Space::new();
    space.load_table();
    let (a, b) = (Uid::FIRST, Uid::try_from(Uid::FIRST.get() + 1).expect("in the range"));
    let (at_a, at_b) = (format!("{}:8080", a.loopback()), format!("{}:8080", b.loopback()));
    space.own(a);
    space.own(b);
    let server_a = space.listen(a.get(), &at_a);
    for (uid, expected) in [(0, true), (PROXY, true), (a.get(), true), (b.get(), false), (NOBODY, false)] {
        assert_eq!(space.reaches(uid, &at_a), expected, "uid {uid} to {a}");
    }
    space.load_table();
    assert!(space.reaches(PROXY, &at_a), "loading again keeps the owners");

    let squatter = space.listen(a.get(), &at_b);
    assert!(!space.reaches(PROXY, &at_b), "{a} answers on the address of {b}");
    drop((squatter, server_a));
    assert!(!space.reaches(PROXY, &at_a), "nobody listens");

    let private = space.listen(a.get(), "127.0.0.1:9000");
    for uid in [0, PROXY, NOBODY, b.get()] {
        assert!(!space.reaches(uid, "127.0.0.1:9000"), "a customer's own server is reached by {uid}");
    }
    let service = space.listen(NOBODY, "127.0.0.1:9001");
    assert!(space.reaches(NOBODY, "127.0.0.1:9001") && !space.reaches(a.get(), "127.0.0.1:9001"));
    let resolver = space.listen(0, "127.0.0.1:53");
    assert!(space.reaches(a.get(), "127.0.0.1:53"), "the resolver is for everybody");
    // What an account may not reach is an agent's port, on any address; others reach it.
    space.succeed(&["ip", "address", "add", "10.9.0.11/32", "dev", "lo"], "");
    for port in [port::AGENT, port::SCORE] {
        for ip in ["127.0.0.1", "10.9.0.11"] {
            let at = format!("{ip}:{port}");
            let agent = space.listen(0, &at);
            assert!(space.reaches(NOBODY, &at) && !space.reaches(a.get(), &at), "{at}");
            drop(agent);
        }
    }
    drop((private, service, resolver));
}
