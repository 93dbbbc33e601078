//! A panel in a temporary directory, and a small HTTP client for it.

use phalanx_panel::{InitOptions, RunOptions, init, serve};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Nothing in these tests takes this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running panel.
pub struct TestPanel {
    pub api: SocketAddr,
    pub links: SocketAddr,
    pub token: String,
    pub dir: tempfile::TempDir,
    running: Option<(oneshot::Sender<()>, tokio::task::JoinHandle<anyhow::Result<()>>)>,
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{:#}", self.body);
        self.body
    }

    /// A refusal: its status, form, hint, and the rule it names.
    #[track_caller]
    pub fn refused(self, status: u16, rule: &str) -> Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{:#}", self.body);
        let body = self.is(status);
        assert_eq!(body["status"], status, "{body:#}");
        assert_eq!(body["type"], format!("https://phalanx.invalid/problems/{rule}"), "{body:#}");
        for field in ["title", "detail", "hint"] {
            assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {body:#}");
        }
        body
    }
}

impl TestPanel {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let token = init(&InitOptions { data_dir: dir.path().to_owned() }).await.expect("a new panel");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut panel = Self { api: nowhere, links: nowhere, token, dir, running: None };
        panel.begin().await;
        panel
    }

    /// Starts the panel from what is on disk.
    pub async fn begin(&mut self) {
        let api = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let links = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        (self.api, self.links) = (api.local_addr().expect("bound"), links.local_addr().expect("bound"));
        let (data_dir, listen, link_listen) = (self.dir.path().to_owned(), self.api, self.links);
        let options = RunOptions { data_dir, listen, link_listen, public: None };
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let stopped = async move {
                // Dropping the panel stops it as well.
                let _sent_or_dropped = stopped.await;
            };
            serve(&options, api, links, stopped).await
        });
        self.running = Some((stop, running));
    }

    /// Stops the panel and starts it anew from what is on disk, on other ports.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.begin().await;
    }

    pub async fn stop(&mut self) {
        let (stop, running) = self.running.take().expect("it runs");
        stop.send(()).expect("it waits for this");
        tokio::time::timeout(PATIENCE, running).await.expect("it stops in time").expect("no panic").expect("no error");
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Answer {
        let mut request = format!("{method} /api/v1{path} HTTP/1.1\r\nHost: panel\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            request.push_str(&format!("Authorization: Bearer {}\r\n", self.token));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let mut stream = TcpStream::connect(self.api).await.expect("the API listens");
        stream.write_all(&[request.as_bytes(), body.unwrap_or_default()].concat()).await.expect("it reads");
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.expect("it answers in time").expect("it answers");
        let answer = parse(&String::from_utf8(answer).expect("UTF-8"));
        crate::document::check(method, path, &answer);
        answer
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[], Some(body.to_string().as_bytes())).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call("PATCH", path, &[], Some(body.to_string().as_bytes())).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, &[], None).await
    }

    /// Figure 1: a balancer, two web nodes and a NAS, with one account and one site.
    pub async fn figure_1(&self) {
        for (name, kind, address) in [
            ("lb1", "balancer", "10.9.0.1/24"),
            ("web1", "web", "10.9.0.11/24"),
            ("web2", "web", "10.9.0.12/24"),
            ("nas1", "nas", "10.9.0.20/24"),
        ] {
            self.post("/servers", json!({ "name": name, "kind": kind, "address": address })).await.is(201);
        }
        self.post("/clusters", json!({ "name": "lb", "kind": "balancer", "master": "lb1" })).await.is(201);
        self.post("/clusters", json!({ "name": "nas", "kind": "nas", "master": "nas1" })).await.is(201);
        self.post("/shares", json!({ "name": "content", "kind": "local", "nas": "nas", "path": "/srv/nas/web" }))
            .await
            .is(201);
        self.post("/clusters", json!({ "name": "web", "kind": "web", "master": "web1", "share": "content" }))
            .await
            .is(201);
        self.post("/clusters/web/slaves", json!({ "server": "web2" })).await.is(201);
        self.post("/addresses", json!({ "external": "198.51.100.10:80", "balancer": "lb", "cluster": "web" }))
            .await
            .is(201);
        self.post("/logical-servers", json!({ "name": "www", "server": "web1" })).await.is(201);
        self.post("/accounts", json!({ "name": "alice", "logical_server": "www" })).await.is(201);
        self.post("/sites", json!({ "name": "www.example.org", "account": "alice", "aliases": ["example.org"] }))
            .await
            .is(201);
    }

    /// Beside Figure 1: two mail nodes with a share of their own on the same NAS, a logical server, and a domain of alice's.
    pub async fn with_mail(&self) {
        for (name, address) in [("mail1", "10.9.0.31/24"), ("mail2", "10.9.0.32/24")] {
            self.post("/servers", json!({ "name": name, "kind": "mail", "address": address })).await.is(201);
        }
        self.post("/shares", json!({ "name": "letters", "kind": "local", "nas": "nas", "path": "/srv/nas/mail" }))
            .await
            .is(201);
        let cluster = json!({ "name": "mail", "kind": "mail", "master": "mail1", "share": "letters", "mail_name": "mail.example.net" });
        self.post("/clusters", cluster).await.is(201);
        self.post("/clusters/mail/slaves", json!({ "server": "mail2" })).await.is(201);
        self.post("/logical-servers", json!({ "name": "post", "server": "mail1" })).await.is(201);
        let domain = json!({ "name": "example.org", "account": "alice", "logical_server": "post" });
        self.post("/mail-domains", domain).await.is(201);
    }
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let mut lines = head.lines();
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok()).expect("a status");
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())).collect();
    let body = match serde_json::from_str(body) {
        Ok(json) => json,
        Err(_) => Value::String(body.to_owned()),
    };
    Answer { status, headers, body }
}
