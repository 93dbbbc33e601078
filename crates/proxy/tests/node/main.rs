//! phalanx-proxy on a web node, as clients, accounts and the launcher see it.

mod support;

use phalanx_model::AccountState;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};
use support::{Backend, Lab, MARKER, eventually, free_address, read_all, read_head, read_response, uid, value};

const HOST: &str = "www.site.example";

/// A node with one awake account.
fn awake() -> (Lab, Backend) {
    awake_with(json!({}))
}

fn awake_with(limits: Value) -> (Lab, Backend) {
    let mut lab = Lab::start_with(limits);
    lab.site(HOST, uid(0));
    (lab, Backend::start(uid(0)))
}

fn status(response: &str) -> u16 {
    response.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[test]
fn a_request_reaches_its_account_and_the_log() {
    let (lab, _backend) = awake();
    let request = format!(
        "GET /head HTTP/1.1\r\nHost: {HOST}:8080\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
         User-Agent: say \"hi\"\r\nReferer: http://x/\r\n\r\n"
    );
    let response = lab.ask(request.as_bytes());
    let seen = response.split_once("\r\n\r\n").expect("a head").1;
    assert_eq!(
        seen,
        format!(
            "GET /head HTTP/1.1\r\nHost: {HOST}:8080\r\nUser-Agent: say \"hi\"\r\nReferer: http://x/\r\n\
             X-Forwarded-For: {0}\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: {HOST}:8080\r\n\r\n",
            "127.0.0.1"
        )
    );
    let line = lab.log_holds("GET /head");
    let fields: Vec<&str> = line.split(' ').collect();
    let (sent, received) = (response.len().to_string(), request.len().to_string());
    assert_eq!(fields[1..5], [HOST, &sent, &received, "127.0.0.1"], "{line}");
    let quoted = format!("] \"GET /head HTTP/1.1\" 200 {sent} \"http://x/\" \"say \\x22hi\\x22\" {received} ");
    assert!(line.contains(&quoted), "{line} should hold {quoted}");
    assert!(line.ends_with(&format!(" {} web1", fields[0])), "{line}");
    eventually("the launcher is told", || lab.launcher.was_used(uid(0)));
    assert_eq!(lab.launcher.woken(), 0, "an account that is awake needs no waking");
}

#[test]
fn hosts_without_a_site_and_suspended_accounts_get_a_page() {
    let mut lab = Lab::start();
    let response = lab.get("nobody.example", "/<script>");
    assert_eq!(status(&response), 404);
    assert!(response.contains("No site lives here") && !response.contains("<script>"));
    let _backend = Backend::start(uid(0));
    lab.site("new.example", uid(0));
    assert_eq!(status(&lab.get("NEW.example.", "/")), 200, "a new row is seen by the next look-up");
    // What was answered before holds a little longer than its row.
    lab.put_account(uid(0), AccountState::Suspended);
    eventually("the account is suspended", || status(&lab.get("new.example", "/")) == 503);
    lab.put_account(uid(0), AccountState::Active);
    eventually("the account is served again", || status(&lab.get("new.example", "/")) == 200);
}

#[test]
fn bodies_stream_both_ways() {
    let (lab, _backend) = awake();
    let mut stream = lab.connect();
    let half = vec![b'x'; 100_000];
    let head = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", 2 * half.len());
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(&half).expect("sent");
    let head = read_head(&mut stream).expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut got = vec![0; half.len()];
    stream.read_exact(&mut got).expect("the first half comes back before the second is sent");
    assert!(got == half);
    stream.write_all(&half).expect("sent");
    stream.read_exact(&mut got).expect("the second half");
    assert!(got == half);
    // An answer that began before its request had ended is the connection's last.
    assert!(head.contains("Connection: close"), "{head}");
    // Chunks as well.
    let mut stream = lab.connect();
    let request = format!("POST /chunked HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut seen = String::new();
    while !seen.ends_with("\r\n\r\n5\r\nhello\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the first chunk comes back before the last is sent");
        seen.push(char::from(byte[0]));
    }
    stream.write_all(b"0\r\n\r\n").expect("sent");
    let mut end = [0; 5];
    stream.read_exact(&mut end).expect("the end");
    assert_eq!(&end, b"0\r\n\r\n");
    // And much more than any buffer holds.
    let mut stream = lab.connect();
    let size = 30_000_000;
    let head = format!("PUT /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut writer = stream.try_clone().expect("a second handle");
    let sender = thread::spawn(move || {
        for _ in 0..size / 100_000 {
            writer.write_all(&vec![b'y'; 100_000]).expect("sent");
        }
    });
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("all of it");
    sender.join().expect("all sent");
    assert!(all.len() > size && all.ends_with(&vec![b'y'; size]));
}

#[test]
fn a_websocket_becomes_a_tunnel() {
    let (lab, _backend) = awake();
    let mut stream = lab.connect();
    // The first bytes follow the request at once, before the protocol was switched.
    let request = format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly");
    stream.write_all(request.as_bytes()).expect("sent");
    let (head, _) = read_response(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 ") && value(&head, "upgrade") == Some("websocket"), "{head}");
    let mut echoed = |text: &str| {
        let mut got = vec![0; text.len()];
        stream.read_exact(&mut got).expect("the echo");
        assert_eq!(got, text.as_bytes());
        stream.write_all(b"ping").expect("sent");
    };
    echoed("early");
    echoed("ping");
    echoed("ping");
    echoed("ping");
    stream.shutdown(Shutdown::Write).expect("ended");
    assert_eq!(read_all(&mut stream), "ping", "what is under way arrives before the end");
    lab.log_holds("\"GET /ws HTTP/1.1\" 101");
}

#[test]
fn connections_are_kept_on_both_sides_and_pipelines_stay_in_order() {
    let (lab, backend) = awake();
    let mut stream = lab.connect();
    let one = |n: u8| format!("GET /{n} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    stream.write_all((one(1) + &one(2) + &one(3)).as_bytes()).expect("sent");
    for n in 1..=3 {
        assert_eq!(read_response(&mut stream).1, format!("/{n} "));
    }
    stream.write_all(one(4).as_bytes()).expect("sent");
    assert_eq!(read_response(&mut stream).1, "/4 ");
    assert_eq!(backend.connections(), 1);
    // Other clients use the kept connection of their worker, of which there is one for each core.
    let workers = thread::available_parallelism().expect("a number of cores").get();
    for _ in 0..4 * workers {
        assert_eq!(status(&lab.get(HOST, "/5")), 200);
    }
    let connections = backend.connections();
    assert!(connections <= workers, "{connections} connections to the account");
    // What can't be sent twice gets a new one.
    let post = format!("POST /6 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab");
    assert!(lab.ask(post.as_bytes()).ends_with("/6 ab"));
    assert_eq!(backend.connections(), connections + 1);
}

#[test]
fn a_kept_connection_that_dies_is_no_failure() {
    let (lab, backend) = awake();
    backend.close_after(1);
    for n in 0..20 {
        assert_eq!(status(&lab.get(HOST, &format!("/{n}"))), 200, "request {n}");
    }
    assert_eq!(backend.requests().len(), 20, "none was sent twice");
}

#[test]
fn smuggling_is_refused_and_nothing_follows_it() {
    let (lab, backend) = awake();
    let evil = "GET /evil HTTP/1.1\r\nHost: www.site.example\r\n\r\n";
    let corpus: Vec<(String, &[u16])> = [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400][..]),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", &[400]),
        ("Content-Length: 0\r\nContent-Length: 44\r\n\r\n", &[400]),
        ("Content-Length: 44\r\nContent-Length: 44\r\n\r\n", &[400]),
        ("Content-Length: 0, 44\r\n\r\n", &[400]),
        ("Content-Length: +0\r\n\r\n", &[400]),
        ("Content-Length: -1\r\n\r\n", &[400]),
        ("Content-Length: 0x0\r\n\r\n", &[400]),
        ("Content-Length: 99999999999999999999\r\n\r\n", &[400]),
        ("Content-Length:\r\n\r\n", &[400]),
        ("Content-Length : 44\r\n\r\n", &[400]),
        ("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", &[400]),
        ("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[501]),
        ("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", &[501]),
        ("Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", &[501]),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", &[501]),
        ("Transfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n", &[400]),
        ("X: a\r\n Content-Length: 44\r\n\r\n", &[400]),
        ("X: a\r\n\tTransfer-Encoding: chunked\r\n\r\n", &[400]),
        ("X: a\nContent-Length: 44\r\n\r\n", &[400]),
        ("X: a\rContent-Length: 44\r\n\r\n", &[400]),
        ("X: a\0b\r\n\r\n", &[400]),
        ("X\r\n\r\n", &[400]),
        ("Host: other.example\r\n\r\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\n\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\n0\n\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\n-0\r\n\r\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\na\r\n0\r\n\r\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\n0;a\nb\r\n\r\n", &[400]),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\nY: b\r\n\r\n", &[400]),
    ]
    .into_iter()
    .map(|(rest, statuses)| (format!("POST /a HTTP/1.1\r\nHost: {HOST}\r\n{rest}{evil}"), statuses))
    .chain([
        (format!("GET /a HTTP/1.1\nHost: {HOST}\n\n{evil}"), &[400][..]),
        (format!("POST /a HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"), &[400]),
        (format!("GET /a HTTP/1.1 \r\nHost: {HOST}\r\n\r\n{evil}"), &[400]),
        (format!("GET  /a HTTP/1.1\r\nHost: {HOST}\r\n\r\n{evil}"), &[400]),
        (format!("GET /a HTTP/1.1\r\n\r\n{evil}"), &[400]),
        (format!("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n{evil}"), &[405]),
        (format!("GET /a HTTP/3.0\r\nHost: {HOST}\r\n\r\n{evil}"), &[505]),
        (format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{evil}"), &[505]),
        (format!("\x16\x03\x01\x02\x00{evil}"), &[400]),
    ])
    .collect();
    for (bytes, statuses) in &corpus {
        let response = lab.ask(bytes.as_bytes());
        assert!(statuses.contains(&status(&response)), "{bytes:?} gave {response:?}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{bytes:?} gave more than one answer: {response}");
    }
    assert!(backend.requests().iter().all(|head| !head.contains("/evil")), "{:?}", backend.requests());
}

#[test]
fn long_heads_and_slow_clients_are_bounded() {
    let (lab, _backend) = awake_with(json!({"head_timeout_ms": 400, "idle_timeout_ms": 500}));
    let long = format!("GET /{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "a".repeat(33_000));
    assert_eq!(status(&lab.ask(long.as_bytes())), 414);
    let long = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "a".repeat(33_000));
    assert_eq!(status(&lab.ask(long.as_bytes())), 431);
    let begin = Instant::now();
    let mut slow = lab.connect();
    // Bytes that trickle in do not buy more time for a head.
    let response = loop {
        if begin.elapsed() > Duration::from_secs(10) || slow.write_all(b"G").is_err() {
            break read_all(&mut slow);
        }
        thread::sleep(Duration::from_millis(50));
        slow.set_nonblocking(true).expect("set");
        let there = slow.peek(&mut [0; 1]).is_ok();
        slow.set_nonblocking(false).expect("set");
        if there {
            break read_all(&mut slow);
        }
    };
    assert_eq!(status(&response), 408);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(lab.ask(b""), "", "who says nothing is closed without a word");
    let body = format!("POST /a HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nab");
    assert_eq!(status(&lab.ask(body.as_bytes())), 408);
    assert_eq!(status(&lab.get(HOST, "/")), 200);
}

#[test]
fn a_sleeping_account_is_woken_once() {
    let mut lab = Lab::start();
    lab.site(HOST, uid(0));
    lab.launcher.on_wake(uid(0), || {
        // Several requests arrive while it wakes.
        thread::sleep(Duration::from_millis(300));
        Backend::start(uid(0));
        Ok(())
    });
    let mut streams: Vec<_> = (0..10).map(|_| lab.connect()).collect();
    for stream in &mut streams {
        stream.write_all(format!("GET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).expect("sent");
    }
    for stream in &mut streams {
        assert_eq!(read_response(stream).1, "/x ");
    }
    assert_eq!(lab.launcher.woken(), 1);
}

#[test]
fn an_account_that_can_not_be_woken_gets_a_page() {
    let mut lab = Lab::start_with(json!({"wake_timeout_ms": 500}));
    lab.site(HOST, uid(0));
    lab.launcher.on_wake(uid(0), || Err("no memory".to_owned()));
    let response = lab.get(HOST, "/");
    assert!(status(&response) == 503 && response.contains("not awake"), "{response}");
    lab.launcher.on_wake(uid(0), || Ok(()));
    let begin = Instant::now();
    assert_eq!(status(&lab.get(HOST, "/")), 503, "it was said to be awake and is not");
    assert!(begin.elapsed() < Duration::from_secs(5));
    lab.log_holds("\" 503 ");
}

#[test]
fn bad_upstreams_are_told_apart() {
    let (lab, _backend) = awake_with(json!({"response_timeout_ms": 300}));
    assert_eq!(status(&lab.get(HOST, "/close")), 502);
    assert_eq!(status(&lab.get(HOST, "/garbage")), 502);
    assert_eq!(status(&lab.get(HOST, "/silent")), 504);
    let mut stream = lab.connect();
    stream.write_all(format!("GET /truncated HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).expect("sent");
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    assert!(end.is_err() || !bytes.ends_with(b"0\r\n\r\n"), "a truncated response must not look whole");
    assert!(bytes.len() < 200);
}

#[test]
fn responses_without_a_body_and_interim_ones() {
    let (lab, _backend) = awake();
    let mut stream = lab.connect();
    let mut ask = |method: &str, path: &str| {
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).expect("sent");
        read_head(&mut stream).expect("a head")
    };
    assert!(ask("HEAD", "/x").contains("Content-Length: 1234\r\n"));
    assert_eq!(ask("GET", "/204"), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(ask("GET", "/304"), "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n");
    assert_eq!(ask("GET", "/early"), "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    assert_eq!(read_response(&mut stream).1, "ok");
    let expect = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(expect.as_bytes()).expect("sent");
    assert!(read_response(&mut stream).0.starts_with("HTTP/1.1 100 "));
    stream.write_all(b"abc").expect("sent");
    assert_eq!(read_response(&mut stream).1, "abc");
    assert!(lab.get(HOST, "/until-close").ends_with("\r\n\r\nto the end"));
    let old = lab.ask(format!("GET /x HTTP/1.0\r\nHost: {HOST}\r\n\r\n").as_bytes());
    assert!(old.ends_with("\r\n\r\n/x "), "{old}");
}

#[test]
fn one_busy_account_does_not_take_the_places_of_others() {
    let (mut lab, backend) = awake_with(json!({"requests_per_account_max": 2}));
    lab.site("other.example", uid(1));
    let _other = Backend::start(uid(1));
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = lab.connect();
            stream.write_all(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).expect("sent");
            stream
        })
        .collect();
    eventually("both are under way", || backend.requests().len() == 2);
    let response = lab.get(HOST, "/x");
    assert!(status(&response) == 503 && response.contains("very busy"));
    assert_eq!(status(&lab.get("other.example", "/x")), 200);
    backend.release();
    for mut stream in held {
        assert_eq!(read_response(&mut stream).1, "held");
    }
    assert_eq!(status(&lab.get(HOST, "/x")), 200);
}

#[test]
fn health_follows_guard_and_marker_and_so_does_the_status() {
    let lab = Lab::start();
    let health = || lab.get("any.example", "/.well-known/phalanx/health");
    assert_eq!(status(&health()), 503);
    std::fs::write(lab.path("marker"), format!("{MARKER}\n")).expect("written");
    let verdict = |ok: bool| {
        let at = phalanx_proxy::node::health::boottime_ms();
        std::fs::write(lab.path("verdict.json"), json!({"ok": ok, "why": "gone", "at_boottime_ms": at}).to_string())
            .expect("written");
    };
    let in_service = |wanted: bool| {
        eventually("the status follows", || {
            verdict(wanted);
            let text = std::fs::read_to_string(lab.path("status.json")).unwrap_or_default();
            serde_json::from_str::<Value>(&text).is_ok_and(|status| status["in_service"] == wanted)
        });
    };
    in_service(true);
    assert!(health().ends_with(&format!("\r\n\r\nok {MARKER}\n")));
    in_service(false);
    let response = health();
    assert!(status(&response) == 503 && response.ends_with("the guard says: gone\n"), "{response}");
}

#[test]
fn a_reload_moves_listeners_and_keeps_connections() {
    let (mut lab, _backend) = awake();
    let mut old = lab.connect();
    let request = format!("GET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    old.write_all(request.as_bytes()).expect("sent");
    assert_eq!(read_response(&mut old).1, "/x ");
    std::fs::write(lab.path("proxy.json"), "{").expect("written");
    lab.signal("HUP");
    let (before, after) = (lab.address, free_address());
    lab.config["listen"] = json!([after]);
    assert_eq!(status(&lab.get(HOST, "/")), 200, "a configuration that can't be used changes nothing");
    std::fs::write(lab.path("proxy.json"), lab.config.to_string()).expect("written");
    lab.signal("HUP");
    eventually("the new address is listened on", || std::net::TcpStream::connect(after).is_ok());
    eventually("the old address is closed", || std::net::TcpStream::connect(before).is_err());
    lab.address = after;
    assert_eq!(status(&lab.get(HOST, "/")), 200);
    old.write_all(request.as_bytes()).expect("sent");
    assert_eq!(read_response(&mut old).1, "/x ", "a connection outlives its listener");
}

#[test]
fn a_stop_lets_requests_under_way_end() {
    let (mut lab, backend) = awake();
    let mut stream = lab.connect();
    stream.write_all(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).expect("sent");
    eventually("it is under way", || backend.requests().len() == 1);
    lab.signal("TERM");
    eventually("nothing new is accepted", || std::net::TcpStream::connect(lab.address).is_err());
    backend.release();
    assert_eq!(read_response(&mut stream).1, "held");
    lab.wait_for_end();
    let log = lab.log();
    assert!(log.ends_with("\n# end\n"), "{log}");
    assert!(log.contains("\"GET /held HTTP/1.1\" 200"), "its line is written before the end: {log}");
}
