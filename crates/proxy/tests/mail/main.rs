//! phalanx-proxy on a mail node, as clients and Dovecot see it.

mod support;

use serde_json::{Value, json};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use support::{PATIENCE, Router, Server, connect_from, end, eventually, free, hear, hear_out, own, say};

fn way(listen: SocketAddrV4, protocol: &str, to: Option<SocketAddrV4>) -> Value {
    json!({"listen": listen, "protocol": protocol, "to": to, "names_client": false})
}

fn hop(listen: SocketAddrV4, to: SocketAddrV4) -> Value {
    json!({"listen": listen, "protocol": "imap", "to": to})
}

fn config(ways: &[Value], hops: &[Value], limits: &Value) -> Value {
    json!({"server": "mail1", "ways": ways, "hops": hops, "nodes": [], "limits": limits})
}

/// A way and a hop on one node, as on the holder.
struct Holder {
    router: Router,
    way: SocketAddrV4,
    hop: SocketAddrV4,
    dovecot: Server,
}

impl Holder {
    fn start() -> Self {
        let (way_at, hop_at, dovecot) = (free(own(1)), free(own(2)), Server::start());
        let mut way = way(way_at, "imap", Some(hop_at));
        way["names_client"] = json!(true);
        let mut config = config(&[way], &[hop(hop_at, dovecot.address)], &json!({}));
        // A connection to a loopback address comes from 127.0.0.1 unless it is bound.
        config["nodes"] = json!([Ipv4Addr::LOCALHOST]);
        Self { router: Router::start(config), way: way_at, hop: hop_at, dovecot }
    }

    /// A client that is served, and Dovecot's end of its connection.
    fn client(&self) -> (TcpStream, TcpStream) {
        let mut client = connect_from(own(9), self.way);
        let mut server = self.dovecot.accept();
        let mut header = [0; 28];
        server.read_exact(&mut header).expect("a header");
        say(&mut server, "* OK ready\r\n");
        hear(&mut client, "* OK ready\r\n");
        (client, server)
    }

    fn without_holder(&self) -> Value {
        config(&[way(self.way, "imap", None)], &[], &json!({}))
    }
}

#[test]
fn bytes_arrive_behind_a_header_that_names_the_client() {
    let holder = Holder::start();
    let mut client = connect_from(own(9), holder.way);
    say(&mut client, "early");
    let mut server = holder.dovecot.accept();
    let mut header = [0; 28];
    server.read_exact(&mut header).expect("a header");
    let port = client.local_addr().expect("its address").port();
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    expected.extend(own(9).octets());
    expected.extend(holder.way.ip().octets());
    expected.extend(port.to_be_bytes());
    expected.extend(holder.way.port().to_be_bytes());
    assert_eq!(header[..], expected, "once, although it went through two hops");
    hear(&mut server, "early");
    say(&mut server, "* OK ready\r\n");
    hear(&mut client, "* OK ready\r\n");
    eventually("it is counted", || {
        let count = |side: &str, what: &str| holder.router.count(side, "imap", what);
        count("through_ways", "open") == 1
            && count("through_hops", "total") == 1
            && count("through_ways", "bytes_from_clients") == 5
            && count("through_hops", "bytes_from_clients") == 33
            && count("through_ways", "bytes_to_clients") == 12
    });
    drop((client, server));
    eventually("it is gone", || holder.router.count("through_ways", "imap", "open") == 0);
}

#[test]
fn an_end_is_handed_on_and_the_other_side_may_go_on() {
    let holder = Holder::start();
    let (mut client, mut server) = holder.client();
    say(&mut client, "the last words");
    end(&client);
    assert_eq!(hear_out(&mut server), "the last words");
    let long = "x".repeat(3_000_000);
    say(&mut server, &long);
    drop(server);
    assert_eq!(hear_out(&mut client), long, "all of it, and then an end in order");
    // The other way round.
    let (mut client, mut server) = holder.client();
    say(&mut server, "* BYE\r\n");
    end(&server);
    assert_eq!(hear_out(&mut client), "* BYE\r\n");
    say(&mut client, "a thought");
    drop(client);
    assert_eq!(hear_out(&mut server), "a thought");
    eventually("nothing is left", || holder.router.status()["connections"] == 0);
}

#[test]
fn a_reset_is_handed_on_as_a_reset() {
    let holder = Holder::start();
    let (mut client, server) = holder.client();
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).expect("set");
    drop(server);
    assert_eq!(hear_out(&mut client), "!");
}

#[test]
fn when_mailboxes_move_away_flows_are_cut_and_the_hop_is_closed_before_the_reload_is_done() {
    let holder = Holder::start();
    let (mut client, mut server) = holder.client();
    // A connection of another node, straight to the hop.
    let mut neighbour = connect_from(Ipv4Addr::LOCALHOST, holder.hop);
    let mut neighbours_server = holder.dovecot.accept();
    say(&mut neighbour, "hello");
    hear(&mut neighbours_server, "hello");
    holder.router.reload(holder.without_holder());
    let status = holder.router.status();
    assert_eq!((&status["hops"], status["through_hops"]["imap"]["open"].as_u64()), (&json!({}), Some(0)), "{status}");
    assert_eq!(TcpStream::connect(holder.hop).expect_err("closed").kind(), ErrorKind::ConnectionRefused);
    for cut in [&mut client, &mut server, &mut neighbour, &mut neighbours_server] {
        assert_eq!(hear_out(cut), "!");
    }
    assert!(holder.router.count("through_hops", "imap", "cut") == 2);
}

#[test]
fn a_delivery_under_way_ends_before_mailboxes_move_and_one_that_hangs_is_cut() {
    let (way_at, hop_at, dovecot) = (free(own(1)), free(own(2)), Server::start());
    let lmtp = |mut door: Value| {
        door["protocol"] = json!("lmtp");
        door
    };
    let limits = json!({"finish_timeout_ms": 2_000});
    let mut held = config(&[lmtp(way(way_at, "lmtp", Some(hop_at)))], &[lmtp(hop(hop_at, dovecot.address))], &limits);
    held["nodes"] = json!([Ipv4Addr::LOCALHOST]);
    let router = Router::start(held);
    let deliver = || {
        let mut postfix = connect_from(own(9), way_at);
        let mut server = dovecot.accept();
        say(&mut postfix, ".\r\n");
        hear(&mut server, ".\r\n");
        (postfix, server)
    };
    let (mut postfix, mut server) = deliver();
    let (mut silent, mut hangs) = deliver();
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| router.reload(config(&[lmtp(way(way_at, "lmtp", None))], &[], &limits)));
        eventually("no new delivery begins", || TcpStream::connect(hop_at).is_err());
        say(&mut server, "250 2.0.0 saved\r\n");
        hear(&mut postfix, "250 2.0.0 saved\r\n");
        end(&postfix);
        assert_eq!(hear_out(&mut server), "");
        drop(server);
        assert_eq!(hear_out(&mut postfix), "", "an end in order");
    });
    assert!(begin.elapsed() >= Duration::from_millis(1_900), "the other one had its time: {:?}", begin.elapsed());
    assert_eq!((hear_out(&mut silent), hear_out(&mut hangs)), ("!".to_owned(), "!".to_owned()));
    assert_eq!(router.count("through_hops", "lmtp", "open"), 0);
}

#[test]
fn clients_wait_while_mailboxes_move_and_are_served_by_the_next_holder() {
    let holder = Holder::start();
    let (mut old, _server) = holder.client();
    holder.router.reload(holder.without_holder());
    assert_eq!(hear_out(&mut old), "!");
    let mut waiting = connect_from(own(9), holder.way);
    let gone = connect_from(own(9), holder.way);
    eventually("both wait", || holder.router.count("through_ways", "imap", "waiting") == 2);
    drop(gone);
    eventually("who leaves is noticed", || holder.router.count("through_ways", "imap", "waiting") == 1);
    // The next holder's hop does not listen yet.
    let next = free(own(3));
    holder.router.reload(config(&[way(holder.way, "imap", Some(next))], &[], &json!({})));
    assert_eq!(holder.router.status()["ways"][holder.way.to_string()], json!(next));
    let next = Server::at(next);
    let mut server = next.accept();
    say(&mut server, "* OK moved\r\n");
    hear(&mut waiting, "* OK moved\r\n");
    // From one holder to another at once: cut, and the same door leads to the new one.
    let other = Server::start();
    holder.router.reload(config(&[way(holder.way, "imap", Some(other.address))], &[], &json!({})));
    assert_eq!(hear_out(&mut waiting), "!");
    let _again = connect_from(own(9), holder.way);
    drop(other.accept());
    assert!(holder.dovecot.has_none());
}

#[test]
fn a_reload_that_changes_nothing_for_a_connection_leaves_it_alone() {
    let holder = Holder::start();
    let (mut client, mut server) = holder.client();
    let more = way(free(own(4)), "pop3", None);
    let ways = [json!({"listen": holder.way, "protocol": "imap", "to": holder.hop, "names_client": true}), more];
    let mut config = config(&ways, &[hop(holder.hop, holder.dovecot.address)], &json!({"connections_max": 7}));
    config["nodes"] = json!([Ipv4Addr::LOCALHOST, "10.9.0.42"]);
    holder.router.reload(config.clone());
    say(&mut client, "still here");
    hear(&mut server, "still here");
    // One that is not valid is told and changes nothing.
    config["ways"] = json!([]);
    std::fs::write(holder.router.path("mail.json"), config.to_string()).expect("written");
    holder.router.signal("HUP");
    eventually("it is told", || {
        let problem = holder.router.status()["problem"].to_string();
        problem.contains("in use is kept") && problem.contains("is empty: name at least one")
    });
    say(&mut client, "even now");
    hear(&mut server, "even now");
    // A node that leaves the cluster is cut from the hop.
    config["ways"] = json!(ways);
    config["nodes"] = json!(["10.9.0.42"]);
    holder.router.reload(config);
    assert_eq!((hear_out(&mut client), hear_out(&mut server)), ("!".into(), "!".into()));
    assert_eq!(holder.router.status()["problem"], "");
}

#[test]
fn who_waits_in_vain_is_told_in_its_own_protocol() {
    let dead = free(own(3));
    let cases = [
        ("imap", "* BYE [UNAVAILABLE] Mailboxes can't be reached now, try again later\r\n"),
        ("pop3", "-ERR [SYS/TEMP] Mailboxes can't be reached now, try again later\r\n"),
        ("sieve", "BYE (TRYLATER) \"Mailboxes can't be reached now, try again later\"\r\n"),
        ("lmtp", "421 4.3.2 Mailboxes can't be reached now, try again later\r\n"),
        ("imaps", ""),
        ("quota", "action=DUNNO\n\n"),
    ];
    for to in [None, Some(dead)] {
        let ways: Vec<_> = cases.iter().map(|(protocol, _)| (free(own(1)), *protocol)).collect();
        let ways_json: Vec<Value> = ways.iter().map(|(listen, protocol)| way(*listen, protocol, to)).collect();
        let _router = Router::start(config(&ways_json, &[], &json!({"wait_timeout_ms": 300})));
        for ((listen, protocol), (_, words)) in ways.iter().zip(cases) {
            let begin = Instant::now();
            let mut client = connect_from(own(9), *listen);
            assert_eq!(hear_out(&mut client), words, "{protocol}");
            let waited = begin.elapsed() >= Duration::from_millis(290);
            assert_eq!(waited, *protocol != "quota", "{protocol}: {:?}", begin.elapsed());
        }
    }
}

#[test]
fn a_stranger_gets_nowhere_at_a_hop() {
    let holder = Holder::start();
    let mut stranger = connect_from(own(8), holder.hop);
    // It may be told before it says something: the error is then told to who writes, and once.
    match stranger.write_all(b"a LOGIN x y\r\n") {
        Ok(()) => assert_eq!(hear_out(&mut stranger), "!"),
        Err(error) => assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}"),
    }
    eventually("it is counted", || holder.router.count("through_hops", "imap", "refused") == 1);
    assert!(holder.dovecot.has_none());
    // The machine itself comes from the hop's own address.
    let _own = connect_from(*holder.hop.ip(), holder.hop);
    drop(holder.dovecot.accept());
}

#[test]
fn one_address_can_not_take_all_places() {
    let (at, server) = (free(own(1)), Server::start());
    let limits = json!({"connections_per_client_max": 2, "connections_max": 3});
    let router = Router::start(config(&[way(at, "imap", Some(server.address))], &[], &limits));
    let mut kept: Vec<TcpStream> = Vec::new();
    let served = |kept: &mut Vec<TcpStream>, from: u8| {
        kept.push(connect_from(own(from), at));
        kept.push(server.accept());
    };
    served(&mut kept, 9);
    served(&mut kept, 9);
    let refusal = "* BYE [UNAVAILABLE] Too many connections, try again later\r\n";
    assert_eq!(hear_out(&mut connect_from(own(9), at)), refusal);
    served(&mut kept, 10);
    assert_eq!(hear_out(&mut connect_from(own(11), at)), refusal, "three for all");
    kept.truncate(2);
    // A report from when the first was alone would say one as well.
    let count = |what| router.count("through_ways", "imap", what);
    eventually("places are given back", || count("refused") == 2 && count("open") == 1);
    served(&mut kept, 9);
}

#[test]
fn a_slow_reader_slows_its_writer() {
    let (at, server) = (free(own(1)), Server::start());
    let router = Router::start(config(&[way(at, "imap", Some(server.address))], &[], &json!({})));
    let mut reader = connect_from(own(9), at);
    let mut writer = server.accept();
    let before = router.resident_bytes();
    writer.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let chunk = vec![b'x'; 64 * 1_024];
    let mut sent = 0;
    let max = 256 * 1_024 * 1_024;
    while let Ok(count) = writer.write(&chunk) {
        sent += count;
        assert!(sent < max, "nobody reads, and all is taken");
    }
    // What the kernel keeps is the kernel's.
    let grown = router.resident_bytes().saturating_sub(before);
    assert!(grown < 1_024 * 1_024, "{grown} bytes more for a reader that does not read {sent}");
    drop(writer);
    let mut got = 0;
    let mut room = vec![0; 64 * 1_024];
    while let Ok(count @ 1..) = reader.read(&mut room) {
        assert!(room[..count].iter().all(|byte| *byte == b'x'));
        got += count;
    }
    assert_eq!(got, sent);
}

#[test]
fn silence_ends_after_its_time() {
    let (at, server) = (free(own(1)), Server::start());
    let limits = json!({"idle_timeout_ms": 400});
    let _router = Router::start(config(&[way(at, "imap", Some(server.address))], &[], &limits));
    let mut client = connect_from(own(9), at);
    let mut server = server.accept();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(900) {
        say(&mut server, "* OK Still here\r\n");
        hear(&mut client, "* OK Still here\r\n");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(hear_out(&mut client), "!");
}

#[test]
fn a_stop_takes_nothing_new_and_cuts_what_is_left_in_its_time() {
    let (at, server) = (free(own(1)), Server::start());
    let limits = json!({"shutdown_timeout_ms": 1_500});
    let mut router = Router::start(config(&[way(at, "imap", Some(server.address))], &[], &limits));
    let mut client = connect_from(own(9), at);
    let mut server = server.accept();
    let begin = Instant::now();
    router.signal("TERM");
    eventually("it takes nothing new", || TcpStream::connect(at).is_err());
    say(&mut client, "still served");
    hear(&mut server, "still served");
    assert_eq!(hear_out(&mut client), "!");
    assert!(begin.elapsed() >= Duration::from_millis(1_400), "not before its time: {:?}", begin.elapsed());
    assert!(router.wait_for_end().success());
}

#[test]
fn systemd_is_told_of_each_state() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let file = directory.path().join("mail.json");
    let mut config = config(&[way(free(own(1)), "imap", None)], &[], &json!({}));
    config["status"] = json!(directory.path().join("status.json"));
    std::fs::write(&file, config.to_string()).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_phalanx-proxy"))
        .args(["mail", "--config"])
        .arg(&file)
        .env("NOTIFY_SOCKET", directory.path().join("notify"))
        .spawn()
        .expect("the proxy starts");
    let told = || {
        let mut room = [0; 256];
        let count = socket.recv(&mut room).expect("told");
        String::from_utf8_lossy(&room[..count]).into_owned()
    };
    let signal = |name: &str| {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill runs").success());
    };
    assert_eq!(told(), "READY=1");
    signal("-HUP");
    let reloading = told();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told(), "READY=1");
    signal("-TERM");
    assert_eq!(told(), "STOPPING=1");
    assert!(child.wait().expect("ended").success());
}

/// Most connections of IMAP are silent most of the time.
#[test]
fn a_silent_connection_costs_little() {
    const CONNECTIONS: usize = 2_000;
    let (at, server) = (free(own(1)), Server::start());
    let router = Router::start(config(
        &[way(at, "imap", Some(server.address))],
        &[],
        &json!({"connections_per_client_max": CONNECTIONS}),
    ));
    let mut kept = Vec::new();
    let mut connect = |count: usize| {
        for _ in 0..count {
            let mut pair = (connect_from(own(9), at), server.accept());
            // Each has had a life before it fell silent.
            let long = "x".repeat(20_000);
            say(&mut pair.1, &long);
            hear(&mut pair.0, &long);
            kept.push(pair);
        }
    };
    connect(200);
    let before = router.resident_bytes();
    connect(CONNECTIONS - 200);
    let each = (router.resident_bytes() - before) / (CONNECTIONS as u64 - 200);
    eprintln!("a silent connection costs {each} bytes");
    assert!(each < 6 * 1_024, "{each} bytes for a connection that is silent");
}
