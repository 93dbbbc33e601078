//! The binary against a panel of this test's own: what it sends, what it prints, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

/// A request as the panel sees it.
#[derive(Debug)]
struct Seen {
    line: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What the panel does with one connection.
enum Act {
    Answer(u16, &'static str),
    HangUp,
}

/// Listens on a port of the kernel's choice and acts on one connection after the other; the requests come out of the channel.
fn panel(acts: Vec<Act>) -> (String, mpsc::Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, seen) = mpsc::channel();
    thread::spawn(move || {
        for act in acts {
            let (mut stream, _) = listener.accept().expect("a connection");
            sender.send(read(&stream)).expect("the test still runs");
            if let Act::Answer(status, body) = act {
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nETag: \"7\"\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("a reader");
            }
        }
    });
    (address, seen)
}

fn read(stream: &TcpStream) -> Seen {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request line");
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).expect("a header");
        let Some((key, value)) = header.trim_end().split_once(':') else { break };
        headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length =
        headers.iter().find(|(key, _)| key == "content-length").map_or(0, |(_, n)| n.parse().expect("a number"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    Seen { line: line.trim_end().to_owned(), headers, body: String::from_utf8(body).expect("UTF-8") }
}

fn phalanx(panel: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(args)
        .env("PHALANX_PANEL", panel)
        .env("PHALANX_TOKEN", "phxapi_test")
        .env("http_proxy", "http://127.0.0.1:1")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn adding_sends_a_key_and_the_token() {
    let (address, seen) = panel(vec![Act::Answer(201, r#"{"name":"web1","kind":"web"}"#)]);
    let output = phalanx(&address, &["server", "add", "web1", "--kind", "web", "--address", "10.9.0.11/24"]);
    assert_eq!(text(&output.stdout), "Server web1 added.\n");
    assert!(text(&output.stderr).starts_with("Next: "), "{}", text(&output.stderr));
    let request = seen.recv().expect("a request");
    assert_eq!(request.line, "POST /api/v1/servers HTTP/1.1");
    assert_eq!(request.header("authorization"), Some("Bearer phxapi_test"));
    assert_eq!(request.header("idempotency-key").map(str::len), Some(32));
    assert_eq!(request.body, r#"{"name":"web1","kind":"web","address":"10.9.0.11/24"}"#);
}

#[test]
fn adding_again_after_a_lost_connection_uses_the_same_key() {
    let (address, seen) = panel(vec![Act::HangUp, Act::Answer(201, r#"{"name":"www"}"#)]);
    let output = phalanx(&address, &["logical-server", "add", "www", "--server", "web1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (first, second) = (seen.recv().expect("a request"), seen.recv().expect("another"));
    assert_eq!(first.header("idempotency-key"), second.header("idempotency-key"));
    assert_eq!(first.body, second.body);
}

#[test]
fn removing_names_the_version_that_was_seen_and_is_not_repeated() {
    let (address, seen) = panel(vec![Act::Answer(200, r#"{"name":"web1"}"#), Act::HangUp]);
    let output = phalanx(&address, &["server", "remove", "web1"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("hint: the request may have been carried out"), "{}", text(&output.stderr));
    assert_eq!(seen.recv().expect("a request").line, "GET /api/v1/servers/web1 HTTP/1.1");
    let delete = seen.recv().expect("another");
    assert_eq!(delete.line, "DELETE /api/v1/servers/web1 HTTP/1.1");
    assert_eq!(delete.header("if-match"), Some("\"7\""));
}

#[test]
fn a_refusal_is_explained_and_ends_with_1() {
    let problem = r#"{"type":"x","title":"Refused","status":409,"detail":"web2 is a slave of web",
        "rule":"slave-holds-no-logical-server","hint":"create it on web1"}"#;
    let (address, _seen) = panel(vec![Act::Answer(409, problem)]);
    let output = phalanx(&address, &["logical-server", "add", "www", "--server", "web2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let expected = "error: web2 is a slave of web\nrule: slave-holds-no-logical-server\nhint: create it on web1\n";
    assert_eq!(text(&output.stderr), expected);
}

#[test]
fn with_json_a_refusal_is_the_problem_document() {
    let (address, _seen) =
        panel(vec![Act::Answer(404, r#"{"title":"Not found","status":404,"detail":"no server x"}"#)]);
    let output = phalanx(&address, &["server", "show", "x", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let problem: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(problem["detail"], "no server x");
}

#[test]
fn a_panel_out_of_reach_ends_with_3() {
    let closed =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port now closed");
    let output = phalanx(&format!("http://{closed}"), &["status"]);
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(
        said.starts_with(&format!("error: cannot reach the panel at http://{closed}: nothing listens there\n")),
        "{said}"
    );
    assert!(said.contains("hint: is it running"), "{said}");
}

#[test]
fn an_address_that_is_none_ends_with_2() {
    for panel in ["https://panel.example.org", "panel", "http://", "http://user@host"] {
        let output = phalanx(panel, &["status"]);
        assert_eq!(output.status.code(), Some(2), "{panel}");
    }
}

#[test]
fn a_token_that_goes_over_a_network_is_warned_of() {
    // Nothing answers there: 192.0.2.0/24 is for documentation (RFC 5737); the warning comes before the request.
    let warned = |panel: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_phalanx"))
            .args(["--panel", panel, "status"])
            .env("PHALANX_TOKEN", "phxapi_test")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("a pipe")).read_line(&mut line).expect("UTF-8");
        child.kill().and_then(|()| child.wait()).expect("it was running");
        line
    };
    for panel in ["http://192.0.2.1:8080", "http://[2001:db8::1]:8080"] {
        let line = warned(panel);
        assert!(line.starts_with("warning: the API token goes to ") && !line.contains("phxapi_test"), "{line}");
    }
    for panel in ["http://127.0.0.1:1", "http://127.9.9.9:1/", "http://[::1]:1", "http://localhost:1"] {
        let line = warned(panel);
        assert!(line.starts_with("error: cannot reach the panel"), "{panel}: {line}");
    }
}

#[test]
fn lists_are_fetched_page_by_page() {
    let (address, seen) = panel(vec![
        Act::Answer(200, r#"{"items":[{"name":"a"}],"next_cursor":"x/1"}"#),
        Act::Answer(200, r#"{"items":[{"name":"b"}],"next_cursor":null}"#),
    ]);
    let output = phalanx(&address, &["site", "list", "--account", "alice", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list, serde_json::json!({"items": [{"name": "a"}, {"name": "b"}], "next_cursor": null}));
    assert_eq!(seen.recv().expect("a request").line, "GET /api/v1/sites?limit=1000&account=alice HTTP/1.1");
    assert_eq!(seen.recv().expect("another").line, "GET /api/v1/sites?limit=999&account=alice&cursor=x%2F1 HTTP/1.1");
}

#[test]
fn changing_an_account_keeps_what_was_not_named() {
    let account = r#"{"name":"alice","limits":{"cpu_percent":50,"memory_mib":512,"processes":64,"io_weight":100}}"#;
    let (address, seen) = panel(vec![Act::Answer(200, account), Act::Answer(200, account)]);
    let output = phalanx(&address, &["account", "change", "alice", "--memory-mib", "1024"]);
    assert_eq!(text(&output.stdout), "Account alice changed.\n");
    seen.recv().expect("the look before");
    let patch = seen.recv().expect("the change");
    assert_eq!(patch.line, "PATCH /api/v1/accounts/alice HTTP/1.1");
    assert_eq!(patch.header("if-match"), Some("\"7\""));
    assert_eq!(patch.body, r#"{"limits":{"cpu_percent":50,"memory_mib":1024,"processes":64,"io_weight":100}}"#);
}

#[test]
fn a_slave_that_drains_is_waited_for() {
    let (address, seen) = panel(vec![
        Act::Answer(202, r#"{"id":4,"state":"running","detail":"drained; waiting"}"#),
        Act::Answer(
            200,
            r#"{"id":4,"state":"running","detail":"drained; 2 connections are open","progress":{"flows":2}}"#,
        ),
        Act::Answer(200, r#"{"id":4,"state":"done","detail":"no connection was cut"}"#),
    ]);
    let output = phalanx(&address, &["cluster", "remove-slave", "web", "web2", "--deadline", "1m"]);
    assert!(text(&output.stderr).contains("2 connections are open\n"), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "web2 has left web.\n");
    assert_eq!(seen.recv().expect("a request").line, "DELETE /api/v1/clusters/web/slaves/web2?deadline_s=60 HTTP/1.1");
    assert_eq!(seen.recv().expect("another").line, "GET /api/v1/tasks/4 HTTP/1.1");
    assert!(text(&output.stderr).ends_with("no connection was cut\n"), "{}", text(&output.stderr));
}

#[test]
fn a_removal_that_failed_after_the_drain_says_why() {
    let (address, _seen) = panel(vec![
        Act::Answer(202, r#"{"id":4,"state":"running","detail":"drained; waiting"}"#),
        Act::Answer(200, r#"{"id":4,"state":"failed","detail":"web2 is in use"}"#),
    ]);
    let output = phalanx(&address, &["cluster", "remove-slave", "web", "web2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).ends_with("error: web2 is in use\n"), "{}", text(&output.stderr));
}

#[test]
fn the_join_command_alone_goes_to_standard_output() {
    let command = "phalanx agent join --upstream 10.9.0.1:7400 --token phx1.web1.s.f";
    let answer = r#"{"token":"phx1.web1.s.f","expires_at":"2026-11-22T23:11:04Z",
        "command":"phalanx agent join --upstream 10.9.0.1:7400 --token phx1.web1.s.f"}"#;
    let (address, _seen) = panel(vec![Act::Answer(200, answer)]);
    let output = phalanx(&address, &["server", "token", "web1"]);
    assert_eq!(text(&output.stdout), format!("{command}\n"));
    assert!(text(&output.stderr).contains("until 2026-11-22 23:11:04"), "{}", text(&output.stderr));
}

#[test]
fn following_goes_on_after_what_there_is() {
    let (address, seen) = panel(vec![
        Act::Answer(200, r#"{"items":[{"id":3,"at":"2026-11-22T22:11:04Z","text":"one"}],"next_cursor":null}"#),
        Act::Answer(200, ": hello\n\nid: 4\ndata: {\"id\":4,\"text\":\"two\"}\n\n"),
    ]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(["events", "--follow", "--json"])
        .env("PHALANX_PANEL", address)
        .env("PHALANX_TOKEN", "phxapi_test")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("UTF-8");
    assert_eq!(
        (next(), next()),
        (r#"{"id":3,"at":"2026-11-22T22:11:04Z","text":"one"}"#.to_owned(), r#"{"id":4,"text":"two"}"#.to_owned(),)
    );
    child.kill().and_then(|()| child.wait()).expect("it was running");
    seen.recv().expect("the list");
    let stream = seen.recv().expect("the stream");
    assert_eq!(stream.line, "GET /api/v1/events?follow=true&after=3 HTTP/1.1");
    assert_eq!(stream.header("accept"), Some("text/event-stream"));
}

#[test]
fn answers_that_are_no_json_are_failures() {
    let (address, _seen) = panel(vec![Act::Answer(200, "<html>")]);
    let output = phalanx(&address, &["server", "list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("not JSON"), "{}", text(&output.stderr));
}

#[test]
fn with_json_a_removal_and_wrong_usage_are_said_as_json() {
    let (address, _seen) = panel(vec![Act::Answer(200, r#"{"name":"content"}"#), Act::Answer(204, "")]);
    let output = phalanx(&address, &["share", "remove", "content", "--json"]);
    let removed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(removed, serde_json::json!({"removed": "content", "kind": "share"}));
    let (address, _seen) = panel(vec![Act::Answer(204, "")]);
    let output = phalanx(&address, &["cluster", "remove-slave", "web", "web2", "--force", "--json"]);
    let removed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(removed, serde_json::json!({"removed": "web2", "kind": "slave", "cluster": "web"}));
    let output = phalanx(&address, &["cluster", "weight", "web", "web1", "300", "--json"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    let wrong: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(wrong["title"], "wrong usage");
    assert!(wrong["detail"].as_str().is_some_and(|detail| detail.contains("1..=100")), "{wrong:#}");
}

#[test]
fn a_panel_is_made_and_its_backup_adopted_also_for_programs() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("panel");
    let run = |verb: &str, json: &[&str]| {
        let output = phalanx("", &[&["panel", verb, "--data-dir", data.to_str().expect("UTF-8")], json].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    let made: serde_json::Value = serde_json::from_str(&run("init", &["--json"])).expect("JSON");
    let file = made["token_file"].as_str().expect("a path");
    assert_eq!(std::fs::read_to_string(file).expect("the token").trim(), made["token"]);
    let adopted: serde_json::Value = serde_json::from_str(&run("adopt-backup", &["--json"])).expect("JSON");
    let number = |key: &str| adopted[key].as_i64().expect("a number");
    assert!(number("incarnation") > number("incarnation_before"), "{adopted:#}");
    assert_eq!(number("uid_next") - number("uid_next_before"), 10_000);
    assert!(run("adopt-backup", &[]).starts_with("The backup is the present store. Its incarnation is "));
}

#[test]
fn a_share_is_changed_as_it_was_seen() {
    let (address, seen) =
        panel(vec![Act::Answer(200, r#"{"name":"content"}"#), Act::Answer(200, r#"{"name":"content"}"#)]);
    let output = phalanx(&address, &["share", "change", "content", "--no-nas", "--path", "/srv/x"]);
    assert_eq!(text(&output.stdout), "Share content changed.\n");
    seen.recv().expect("the look before");
    let patch = seen.recv().expect("the change");
    assert_eq!(patch.line, "PATCH /api/v1/shares/content HTTP/1.1");
    assert_eq!(patch.header("if-match"), Some("\"7\""));
    assert_eq!(patch.body, r#"{"nas":null,"path":"/srv/x"}"#);
}
