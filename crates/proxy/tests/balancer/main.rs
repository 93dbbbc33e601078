//! phalanx-proxy on a balancer, in network namespaces of its own: a client outside, a balancer, two web nodes behind it.
//!
//! ```text
//! client 198.51.100.7 ── 198.51.100.1 balancer 10.9.0.1 ─┬─ 10.9.0.11 web1
//!                        (192.0.2.1:80)                  └─ 10.9.0.12 web2
//! ```

mod network;

use network::{MailNode, Network, WebNode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const EXTERNAL: &str = "192.0.2.1:80";

struct Lab {
    directory: TempDir,
    network: Network,
    nodes: [WebNode; 2],
    child: Child,
}

impl Lab {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let network = Network::make();
        let nodes =
            [WebNode::start(&network.web1, "web1", "10.9.0.11"), WebNode::start(&network.web2, "web2", "10.9.0.12")];
        let file = directory.path().join("balancer.json");
        std::fs::write(&file, config(&directory, [10, 10]).to_string()).expect("written");
        // With no capability but the one that its unit grants.
        let child = Command::new("nsenter")
            .args(["-t", &network.balancer.pid(), "-n", "setpriv", "--bounding-set=-all,+net_admin"])
            .args(["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--"])
            .args([env!("CARGO_BIN_EXE_phalanx-proxy"), "balancer", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("nsenter starts");
        let lab = Self { directory, network, nodes, child };
        lab.eventually("both nodes are up", 5, |lab| lab.states() == ["up", "up"]);
        lab
    }

    fn reload(&self, weights: [u8; 2]) {
        let config = config(&self.directory, weights).to_string();
        std::fs::write(self.directory.path().join("balancer.json"), config).expect("written");
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().expect("kill runs").success());
    }

    fn status(&self) -> Value {
        let text = std::fs::read_to_string(self.directory.path().join("status.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn states(&self) -> Vec<String> {
        let status = self.status();
        let backends = status["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().map(|backend| backend["state"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn shares(&self) -> Vec<u64> {
        let status = self.status();
        let backends = status["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().map(|backend| backend["share_percent"].as_f64().unwrap_or_default().round() as u64).collect()
    }

    fn eventually(&self, what: &str, seconds: u64, holds: impl Fn(&Self) -> bool) -> Duration {
        let begin = Instant::now();
        while !holds(self) {
            assert!(
                begin.elapsed() < Duration::from_secs(seconds),
                "not within {seconds} s: {what}: {}",
                self.status()
            );
            thread::sleep(Duration::from_millis(20));
        }
        begin.elapsed()
    }

    /// Who answers `count` new connections, made by the client: "web1 198.51.100.7" → how many.
    fn ask(&self, count: usize) -> BTreeMap<String, usize> {
        self.network.client.run(move || {
            let mut answers = BTreeMap::new();
            for _ in 0..count {
                *answers.entry(ask_once(Duration::from_secs(2))).or_default() += 1;
            }
            answers
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(directory: &TempDir, weights: [u8; 2]) -> Value {
    let backend = |name: &str, ip: &str, weight: u8| json!({"server": name, "target": format!("{ip}:80"), "score": format!("{ip}:342"), "weight": weight, "drained": weight == 0});
    let [one, two] = weights;
    let mut backends = vec![backend("web1", "10.9.0.11", one.max(1)), backend("web2", "10.9.0.12", two.max(1))];
    backends[0]["drained"] = json!(one == 0);
    backends[1]["drained"] = json!(two == 0);
    json!({
        "services": [{"external": EXTERNAL, "cluster": "web", "backends": backends}],
        "internal_networks": ["10.9.0.1/24"],
        "check": {"end_flows_after_ms": 1_000},
        "status": directory.path().join("status.json"),
    })
}

/// One connection to the external address: what the node said, or the error.
fn ask_once(patience: Duration) -> String {
    let address: SocketAddr = EXTERNAL.parse().expect("an address");
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.split_once("\r\n\r\n").map_or(text.clone(), |(_, body)| body.to_owned()))
    };
    answer().unwrap_or_else(|error| format!("{:?}", error.kind()))
}

fn counts(pairs: [(&str, usize); 2]) -> BTreeMap<String, usize> {
    pairs.into_iter().map(|(who, count)| (format!("{who} 198.51.100.7"), count)).collect()
}

#[test]
fn connections_split_exactly_and_a_change_keeps_open_flows() {
    let lab = Lab::start();
    assert_eq!(lab.ask(1_000), counts([("web1", 500), ("web2", 500)]), "the node sees the client's own address");

    // A flow that stays open through all that follows.
    let (mut open, whose) = lab.network.client.run(|| {
        let mut stream = TcpStream::connect(EXTERNAL).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        let whose = network::echo(&mut stream, "hello").expect("an echo");
        (stream, whose)
    });
    lab.reload([30, 10]);
    lab.eventually("the weights count", 5, |lab| lab.shares() == [75, 25]);
    assert_eq!(lab.ask(1_000), counts([("web1", 750), ("web2", 250)]));
    assert_eq!(network::echo(&mut open, "still here").expect("an echo"), whose);

    // A drain: nothing new, and the flows are counted until they have ended.
    let drained = if whose == "web1" { [0, 10] } else { [10, 0] };
    let index = usize::from(whose == "web2");
    lab.reload(drained);
    lab.eventually("it is drained", 5, |lab| lab.states()[index] == "drained" && lab.shares()[index] == 0);
    assert!(!lab.ask(50).contains_key(&format!("{whose} 198.51.100.7")));
    assert_eq!(network::echo(&mut open, "on a drained node").expect("an echo"), whose);
    lab.eventually("its flow is counted", 15, |lab| lab.status()["backends"][index]["flows"] == 1);
    drop(open);
    lab.eventually("its flow is gone", 15, |lab| lab.status()["backends"][index]["flows"] == 0);

    // All drained: clients are refused at once instead of waiting.
    lab.reload([0, 0]);
    lab.eventually("all are drained", 5, |lab| lab.shares() == [0, 0]);
    let refused: Vec<String> = lab.ask(2).into_keys().collect();
    assert_eq!(refused, ["ConnectionRefused"]);
}

#[test]
fn a_node_that_freezes_gets_nothing_after_three_seconds_and_returns() {
    let lab = Lab::start();
    lab.nodes[0].freeze(true);
    let frozen = Instant::now();
    let noticed = lab.eventually("it is found", 4, |lab| lab.shares() == [0, 100]);
    assert!(frozen.elapsed() < Duration::from_millis(4_000), "the status is a second old at most: {noticed:?}");
    assert_eq!(lab.ask(100), BTreeMap::from([("web2 198.51.100.7".to_owned(), 100)]));
    assert_eq!(lab.states(), ["down", "up"]);
    lab.nodes[0].freeze(false);
    lab.eventually("it returns", 5, |lab| lab.shares() == [50, 50]);

    // One that answers that it can't serve is left as well, with its own words.
    lab.nodes[1].refuse(true);
    lab.eventually("it is left", 4, |lab| lab.shares() == [100, 0]);
    assert_eq!(lab.status()["backends"][1]["why"], "the guard says: the share hangs");
    // When all refuse, the last choice stays.
    lab.nodes[0].refuse(true);
    lab.eventually("both are down", 4, |lab| lab.states() == ["down", "down"]);
    assert_eq!(lab.ask(10), BTreeMap::from([("web1 198.51.100.7".to_owned(), 10)]));
}

#[test]
fn flows_to_a_lost_node_end_so_that_clients_try_again() {
    let lab = Lab::start();
    let mut open = lab.network.client.run(|| {
        let mut streams: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(EXTERNAL).expect("connected")).collect();
        for stream in &mut streams {
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        }
        streams.retain_mut(|stream| network::echo(stream, "hello").expect("an echo") == "web1");
        streams.pop().expect("one of two flows goes to web1")
    });
    lab.network.cut(&lab.network.web1);
    lab.eventually("it is found", 4, |lab| lab.shares() == [0, 100]);
    lab.eventually("its flows are ended", 10, |lab| {
        lab.status()["events"].to_string().contains("ended 1 flows of 192.0.2.1:80 to 10.9.0.11:80")
    });
    let begin = Instant::now();
    assert!(network::echo(&mut open, "anyone?").is_err());
    assert!(begin.elapsed() < Duration::from_secs(5), "a reset, not silence: {:?}", begin.elapsed());
}

#[test]
fn neighbours_and_the_balancer_itself_reach_the_external_address() {
    let lab = Lab::start();
    let from_web2: Vec<String> = lab.network.web2.run(|| (0..4).map(|_| ask_once(Duration::from_secs(2))).collect());
    let hairpin = ["web1 10.9.0.1", "web2 10.9.0.1"];
    assert!(from_web2.iter().all(|answer| hairpin.contains(&answer.as_str())), "{from_web2:?}");
    let own: Vec<String> = lab.network.balancer.run(|| (0..4).map(|_| ask_once(Duration::from_secs(2))).collect());
    assert!(own.iter().all(|answer| hairpin.contains(&answer.as_str())), "{own:?}");
}

#[test]
fn a_table_that_somebody_changes_is_put_back_and_it_outlives_the_daemon() {
    let mut lab = Lab::start();
    lab.network.balancer.shell("nft delete table ip phalanx_balancer");
    lab.eventually("it is put back", 15, |lab| {
        lab.network.balancer.shell("nft list table ip phalanx_balancer").contains("numgen inc mod 2")
    });
    assert_eq!(lab.ask(10), counts([("web1", 5), ("web2", 5)]));
    lab.network.balancer.shell("nft add rule ip phalanx_balancer input tcp dport 9 drop");
    lab.eventually("the foreign rule is gone", 15, |lab| {
        let list = lab.network.balancer.shell("nft list table ip phalanx_balancer");
        !list.contains("drop") && list.contains("numgen")
    });
    lab.eventually("both are told", 5, |lab| {
        let events = lab.status()["events"].as_array().cloned().unwrap_or_default();
        let drifts: Vec<&Value> = events.iter().filter(|event| event["topic"] == "drift").collect();
        let shows = |drift: &Value, line: &str| {
            drift["detail"].as_str().is_some_and(|detail| detail.lines().any(|other| other == line))
        };
        drifts.len() == 2
            && shows(drifts[0], "-table ip phalanx_balancer {")
            && shows(drifts[1], "+\t\ttcp dport 9 drop")
    });
    lab.child.kill().expect("killed");
    lab.child.wait().expect("ended");
    assert_eq!(lab.ask(10), counts([("web1", 5), ("web2", 5)]), "serving needs no daemon");
}

#[test]
fn load_scores_move_the_weights() {
    let lab = Lab::start();
    lab.nodes[0].score(Some("up 50%"));
    lab.eventually("it gets less", 5, |lab| lab.shares() == [33, 67]);
    lab.nodes[0].score(Some("up 0%"));
    lab.eventually("it gets nothing new", 5, |lab| lab.shares() == [0, 100] && lab.states()[0] == "overloaded");
    lab.nodes[1].score(Some("up 0%"));
    lab.eventually("all are overloaded: the flag is ignored", 5, |lab| lab.shares() == [50, 50]);
    lab.nodes[0].score(None);
    lab.nodes[1].score(None);
    lab.eventually("who serves no score is idle", 12, |lab| lab.states() == ["up", "up"]);
}

/// The web nodes' machines, serving mail as well.
fn with_mail(lab: &Lab) -> [MailNode; 2] {
    let nodes = [("mail1", "10.9.0.11"), ("mail2", "10.9.0.12")];
    let backends = nodes.map(|(name, ip)| {
        json!({"server": name, "target": format!("{ip}:25"), "score": format!("{ip}:342"), "weight": 10, "drained": false})
    });
    let mut config = config(&lab.directory, [10, 10]);
    config["internal_networks"] = json!(["10.9.0.1/24", "203.0.113.0/24"]);
    config["services"] =
        json!([{"external": "192.0.2.1:25", "cluster": "mail", "check": "smtp", "backends": backends}]);
    let mail = [MailNode::start(&lab.network.web1, "10.9.0.11"), MailNode::start(&lab.network.web2, "10.9.0.12")];
    std::fs::write(lab.directory.path().join("balancer.json"), config.to_string()).expect("written");
    let pid = lab.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().expect("kill runs").success());
    lab.eventually("both take mail", 5, |lab| {
        lab.status()["backends"][0]["service"] == "192.0.2.1:25" && lab.states() == ["up", "up"]
    });
    mail
}

#[test]
fn mail_nodes_are_checked_through_their_protocol() {
    let lab = Lab::start();
    let mail = with_mail(&lab);
    mail[0].greet("421 4.3.2 closing");
    lab.eventually("it is left", 4, |lab| lab.shares() == [0, 100]);
    let why = lab.status()["backends"][0]["why"].clone();
    assert_eq!(why, "SMTP greeting was 421 4.3.2 closing for 10.9.0.1");
    mail[0].greet("220 back");
    lab.eventually("it returns", 5, |lab| lab.shares() == [50, 50]);
}

#[test]
fn mail_to_the_world_comes_from_the_address_that_the_world_knows() {
    let lab = Lab::start();
    let _mail = with_mail(&lab);
    // A mail server in the world, which says where a connection comes from and echoes what follows.
    lab.network.client.shell("ip address add 203.0.113.7/32 dev lo");
    lab.network.balancer.shell("ip route add 203.0.113.7 via 198.51.100.7");
    let [listener, other] = ["198.51.100.7:25", "198.51.100.7:8080"].map(|at| listen_at(&lab.network.client, at));
    let from = |namespace: &network::Namespace, own: [u8; 4], to: &'static str| -> TcpStream {
        namespace.run(move || connect_from(Ipv4Addr::from(own), to.parse().expect("an address")))
    };
    let mut open = from(&lab.network.web1, [10, 9, 0, 11], "198.51.100.7:25");
    let (mut seen, peer) = listener.accept().expect("accepted");
    assert_eq!(peer.ip().to_string(), "192.0.2.1");
    // Whatever it connects to: its resolver's questions and its filter's look-ups as well.
    let _second = from(&lab.network.web2, [10, 9, 0, 12], "198.51.100.7:8080");
    assert_eq!(other.accept().expect("accepted").1.ip().to_string(), "192.0.2.1");
    // What takes no mail is not translated.
    lab.network.web1.shell("ip address add 10.9.0.61/24 dev eth0");
    let _third = from(&lab.network.web1, [10, 9, 0, 61], "198.51.100.7:25");
    assert_eq!(listener.accept().expect("accepted").1.ip().to_string(), "10.9.0.61");
    // Nor is what stays within the internal networks, also those behind a router.
    let third = listen_at(&lab.network.client, "203.0.113.7:25");
    let _fourth = from(&lab.network.web1, [10, 9, 0, 11], "203.0.113.7:25");
    assert_eq!(third.accept().expect("accepted").1.ip().to_string(), "10.9.0.11");
    // The flow outlives the table.
    lab.reload([10, 10]);
    lab.eventually("the table has no mail any more", 5, |lab| {
        !lab.network.balancer.shell("nft list table ip phalanx_balancer").contains("snat")
    });
    open.write_all(b"DATA").expect("sent");
    assert_eq!(read_some(&mut seen), "DATA");
    seen.write_all(b"250 ok").expect("sent");
    assert_eq!(read_some(&mut open), "250 ok");
}

fn listen_at(namespace: &network::Namespace, address: &'static str) -> TcpListener {
    namespace.run(move || TcpListener::bind(address).expect("a free port"))
}

fn connect_from(own: Ipv4Addr, to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddr::new(IpAddr::V4(own), 0)).expect("bound");
    connect(&socket, &to).expect("connected");
    TcpStream::from(socket)
}

fn read_some(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let mut room = [0; 256];
    let count = stream.read(&mut room).expect("read");
    String::from_utf8_lossy(&room[..count]).into_owned()
}
