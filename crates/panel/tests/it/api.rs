//! The API: each refusal by its name, preconditions, repetition, pages, audit.

use crate::support::TestPanel;
use serde_json::{Value, json};

#[tokio::test]
async fn every_rule_is_refused_by_name() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.post("/servers", json!({ "name": "mail1", "kind": "mail", "address": "10.9.0.31/24" })).await.is(201);
    panel.post("/servers", json!({ "name": "web3", "kind": "web", "address": "10.9.0.13/24" })).await.is(201);
    let audit = panel.get("/audit?limit=1000").await.is(200);
    for (path, body, rule) in [
        ("/logical-servers", json!({ "name": "w2", "server": "web2" }), "slave-holds-no-logical-server"),
        ("/clusters/web/slaves", json!({ "server": "mail1" }), "slave-shares-masters-kind"),
        ("/clusters/web/slaves", json!({ "server": "nas1" }), "server-belongs-to-one-cluster"),
        ("/clusters/web/slaves", json!({ "server": "web9" }), "reference-exists"),
        ("/clusters/web/slaves", json!({ "server": "web3", "weight": 0 }), "value-in-range"),
        ("/clusters", json!({ "name": "w", "kind": "mail", "master": "web3" }), "kinds-fit"),
        (
            "/addresses",
            json!({ "external": "198.51.100.10:80", "balancer": "lb", "cluster": "web" }),
            "external-address-has-one-user",
        ),
        ("/servers", json!({ "name": "web1", "kind": "web", "address": "10.9.0.99/24" }), "name-is-unique"),
        (
            "/servers",
            json!({ "name": "web9", "kind": "web", "address": "10.9.0.11/24" }),
            "internal-address-has-one-server",
        ),
        ("/accounts", json!({ "name": "alice", "logical_server": "www" }), "name-is-unique"),
        ("/accounts", json!({ "name": "bob", "logical_server": "w9" }), "reference-exists"),
        ("/sites", json!({ "name": "b.example.org", "account": "bob" }), "reference-exists"),
        ("/sites", json!({ "name": "EXAMPLE.org", "account": "alice" }), "name-is-unique"),
        (
            "/sites",
            json!({ "name": "c.example.org", "account": "alice", "aliases": ["www.example.org"] }),
            "name-is-unique",
        ),
    ] {
        let refusal = panel.post(path, body).await.refused(409, rule);
        assert_eq!(refusal["rule"], rule);
    }
    for (path, rule) in [
        ("/servers/web1", "master-with-slaves-stays"),
        ("/clusters/web", "master-with-slaves-stays"),
        ("/clusters/web/slaves/web1?force=true", "master-with-slaves-stays"),
        ("/servers/web2", "in-use-is-not-removed"),
        ("/shares/content", "in-use-is-not-removed"),
        ("/clusters/nas", "in-use-is-not-removed"),
        ("/logical-servers/www", "in-use-is-not-removed"),
        ("/accounts/alice", "in-use-is-not-removed"),
        ("/tokens/admin", "in-use-is-not-removed"),
    ] {
        panel.delete(path).await.refused(409, rule);
    }
    assert_eq!(panel.get("/audit?limit=1000").await.is(200), audit, "what is refused leaves nothing behind");
    assert_eq!(
        panel.get("/clusters/web").await.is(200)["slaves"],
        json!({ "web2": { "weight": 10, "drained": false } })
    );
}

#[tokio::test]
async fn who_has_no_token_gets_nothing_but_the_document() {
    let panel = TestPanel::start().await;
    for token in ["", "Bearer ", "Bearer phxapi_wrong", "Basic YTpi"] {
        let answer = panel.call("GET", "/servers", &[("Authorization", token)], None).await;
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        answer.refused(401, "unauthorized");
    }
    let made = panel.post("/tokens", json!({ "name": "ci", "role": "admin" })).await.is(201);
    let header = format!("Bearer {}", made["token"].as_str().expect("a secret"));
    panel.call("GET", "/servers", &[("Authorization", &header)], None).await.is(200);
    assert!(!panel.get("/tokens").await.is(200).to_string().contains("phxapi_"), "secrets are shown once");
    panel.delete("/tokens/ci").await.is(204);
    panel.call("GET", "/servers", &[("Authorization", &header)], None).await.refused(401, "unauthorized");
    let document = panel.call("GET", "/openapi.json", &[("Authorization", "")], None).await.is(200);
    assert!(document["paths"]["/api/v1/servers/{name}"]["patch"].is_object(), "{document:#}");
    assert!(document["components"]["schemas"]["NewServer"]["properties"]["address"].is_object(), "{document:#}");
}

#[tokio::test]
async fn a_reader_looks_at_everything_and_changes_nothing() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let made = panel.post("/tokens", json!({ "name": "monitor", "role": "reader" })).await.is(201);
    assert_eq!(made["role"], "reader");
    let header = format!("Bearer {}", made["token"].as_str().expect("a secret"));
    let auth = [("Authorization", header.as_str())];
    let before = panel.get("/audit?limit=1000").await.is(200);
    for path in ["/servers", "/status", "/events", "/audit", "/tokens", "/sites/www.example.org"] {
        panel.call("GET", path, &auth, None).await.is(200);
    }
    // Every operation of the document that is no GET.
    let document = panel.get("/openapi.json").await.is(200);
    let mut refused = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        let path = path.trim_start_matches("/api/v1").replace("{name}", "web1").replace("{server}", "web2");
        for method in item.as_object().expect("operations").keys().filter(|method| *method != "get") {
            let body = (method != "delete").then_some(&b"{}"[..]);
            let answer = panel.call(&method.to_uppercase(), &path.replace("{host}", "x"), &auth, body).await;
            answer.refused(403, "forbidden");
            refused += 1;
        }
    }
    assert!(refused > 20, "{refused}");
    assert_eq!(panel.get("/audit?limit=1000").await.is(200), before);
    // A reader's token does not make the last administrator's superfluous.
    panel.delete("/tokens/admin").await.refused(409, "in-use-is-not-removed");
    panel.delete("/tokens/monitor").await.is(204);
}

#[tokio::test]
async fn an_etag_guards_against_lost_changes() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let change = json!({ "httpd_directives": ["Timeout 30"] });
    let before = panel.get("/clusters/web").await;
    let etag = before.header("etag").expect("an ETag").to_owned();
    assert_eq!(before.body["etag"], etag);
    let with = |etag: String| {
        let (panel, body) = (&panel, change.to_string());
        async move { panel.call("PATCH", "/clusters/web", &[("If-Match", &etag)], Some(body.as_bytes())).await }
    };
    let changed = with(etag.clone()).await;
    assert_ne!(changed.header("etag"), Some(etag.as_str()));
    changed.is(200);
    with(etag.clone()).await.refused(412, "stale");
    with("nonsense".into()).await.refused(400, "bad-if-match");
    with("*".into()).await.is(200);
    panel.call("DELETE", "/accounts/alice?sites=true", &[("If-Match", "\"9\"")], None).await.refused(412, "stale");
    let account = panel.patch("/accounts/alice", json!({ "limits": { "cpu_percent": 50 } })).await;
    assert_eq!(account.header("etag"), Some("\"2\""));
    let account = account.is(200);
    assert_eq!(
        (account["limits"]["cpu_percent"].as_u64(), account["limits"]["memory_mib"].as_u64()),
        (Some(50), Some(512))
    );
    let site =
        panel.patch("/sites/www.example.org", json!({ "aliases": ["a.example.org", "b.example.org"] })).await.is(200);
    assert_eq!(site["aliases"], json!(["a.example.org", "b.example.org"]));
    // The alias that was given up is free again, and one may become another's name.
    panel.post("/sites", json!({ "name": "example.org", "account": "alice" })).await.is(201);
    panel.call("DELETE", "/accounts/alice?sites=true", &[("If-Match", "\"2\"")], None).await.is(204);
    assert_eq!(panel.get("/sites").await.is(200)["items"], json!([]));
}

#[tokio::test]
async fn the_same_request_twice_is_done_once() {
    let mut panel = TestPanel::start().await;
    let body = json!({ "name": "web1", "kind": "web", "address": "10.9.0.11/24" }).to_string();
    let key = [("Idempotency-Key", "a-1")];
    let first = panel.call("POST", "/servers", &key, Some(body.as_bytes())).await;
    assert_eq!(first.header("location"), Some("/api/v1/servers/web1"));
    let first = first.is(201);
    panel.restart().await;
    let again = panel.call("POST", "/servers", &key, Some(body.as_bytes())).await;
    assert_eq!((again.header("idempotency-replayed"), again.header("etag")), (Some("true"), Some("\"1\"")));
    assert_eq!(again.is(201), first);
    panel.call("POST", "/servers", &key, Some(b"{}")).await.refused(422, "idempotency-key-reused");
    let token = [("Idempotency-Key", "a-2")];
    panel.call("POST", "/servers/web1/join-token", &token, Some(b"{}")).await.is(201);
    panel.call("POST", "/servers/web1/join-token", &token, Some(b"{}")).await.refused(409, "idempotency-key-running");
}

#[tokio::test]
async fn lists_come_in_pages() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    for n in 0..25 {
        panel.post("/sites", json!({ "name": format!("s{n:02}.example.org"), "account": "alice" })).await.is(201);
    }
    for (path, count) in [("/sites", 26), ("/servers", 4), ("/audit", 39)] {
        let (mut seen, mut cursor) = (Vec::<String>::new(), String::new());
        loop {
            let page = panel.get(&format!("{path}?limit=3{cursor}")).await.is(200);
            let items = page["items"].as_array().expect("a list");
            assert!(items.len() <= 3);
            seen.extend(items.iter().map(|item| item.get("id").unwrap_or(&item["name"]).to_string()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let mut unique = seen.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), seen.len(), "{path}");
        assert!(seen.len() >= count, "{path}: {}", seen.len());
    }
    panel.get("/sites?limit=0").await.refused(422, "invalid-value");
    panel.get("/sites?limit=1001").await.refused(422, "invalid-value");
    panel.get("/sites?cursor=!!").await.refused(422, "invalid-value");
    panel.get("/servers?colour=red").await.refused(422, "invalid-value");
    assert_eq!(panel.get("/sites?account=nobody").await.is(200)["items"], json!([]));
}

#[tokio::test]
async fn what_is_not_understood_is_refused_with_the_place() {
    let panel = TestPanel::start().await;
    let refusal =
        panel.post("/servers", json!({ "name": "w", "kind": "web", "address": "10.9.0.1/24", "colour": 1 })).await;
    assert_eq!(refusal.refused(422, "invalid-value")["errors"][0]["field"], "colour");
    let refusal = panel.post("/servers", json!({ "name": "w", "kind": "web", "address": "10.9.0.1" })).await;
    assert_eq!(refusal.refused(422, "invalid-value")["errors"][0]["field"], "address");
    let refusal = panel.call("POST", "/servers", &[], Some(b"{\"name\": \"w\",}")).await.refused(400, "bad-json");
    assert!(refusal["detail"].as_str().is_some_and(|detail| detail.contains("line 1 column")), "{refusal:#}");
    panel.call("POST", "/servers", &[], Some(&vec![b' '; (1 << 20) + 1])).await.refused(413, "too-large");
    panel.get("/nothing").await.refused(404, "unknown");
    panel.get("/servers/web9").await.refused(404, "unknown");
    panel.get("/servers/%ff").await.refused(404, "unknown");
    panel.delete("/status").await.refused(405, "method-not-allowed");
    panel.patch("/addresses/198.51.100.10:80", json!({})).await.refused(404, "unknown");
}

#[tokio::test]
async fn everything_survives_a_restart_and_is_on_the_record() {
    let mut panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.patch("/clusters/web/nodes/web2", json!({ "weight": 30 })).await.is(200);
    let lists = ["/servers", "/clusters", "/shares", "/addresses", "/logical-servers", "/accounts", "/sites", "/audit"];
    let mut before = Vec::new();
    for list in lists {
        before.push(panel.get(list).await.is(200));
    }
    panel.restart().await;
    for (list, before) in lists.iter().zip(before) {
        assert_eq!(panel.get(list).await.is(200), before, "{list}");
    }
    let audit = panel.get("/audit?limit=2").await.is(200);
    let newest = &audit["items"][0];
    let weight = |state: &Value| state["slaves"]["web2"]["weight"].clone();
    assert_eq!((newest["actor"].as_str(), newest["kind"].as_str()), (Some("admin"), Some("cluster")));
    assert_eq!((weight(&newest["before"]), weight(&newest["after"])), (json!(10), json!(30)));
    let status = panel.get("/status").await.is(200);
    assert_eq!((status["counts"]["sites"].as_u64(), status["counts"]["servers"].as_u64()), (Some(1), Some(4)));
    assert_eq!(status["clusters"][2]["nodes"][1]["state"], "unknown");
    // A uid is never given twice.
    let first = panel.get("/accounts/alice").await.is(200)["uid"].as_u64().expect("a number");
    panel.delete("/accounts/alice?sites=true").await.is(204);
    let next = panel.post("/accounts", json!({ "name": "alice", "logical_server": "www" })).await.is(201);
    assert_eq!(next["uid"].as_u64(), Some(first + 1));
}

#[tokio::test]
async fn a_slave_is_removed_by_force_with_what_belongs_to_it() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.post("/servers", json!({ "name": "web3", "kind": "web", "address": "10.9.0.13/24" })).await.is(201);
    panel.post("/clusters/web/slaves", json!({ "server": "web3", "weight": 5 })).await.is(201);
    panel.patch("/addresses/198.51.100.10:80", json!({ "internal": { "web3": "10.9.0.113" } })).await.is(200);
    panel.delete("/clusters/web/slaves/web3?force=true").await.is(204);
    assert_eq!(panel.get("/addresses/198.51.100.10:80").await.is(200)["internal"], json!({}));
    panel.delete("/clusters/web/slaves/web2?deadline_s=99999").await.refused(422, "invalid-value");
}

/// Opens a stream of events and reads the head of its answer.
async fn open_stream(panel: &TestPanel, token: &str) -> (tokio::net::TcpStream, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(panel.api).await.expect("it listens");
    let request = format!(
        "GET /api/v1/events?follow=true&after=0 HTTP/1.1\r\nHost: panel\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut head = vec![0; 12];
    stream.read_exact(&mut head).await.expect("an answer");
    (stream, String::from_utf8(head).expect("UTF-8"))
}

#[tokio::test]
async fn streams_of_events_are_few_for_each_token() {
    let panel = TestPanel::start().await;
    let made = panel.post("/tokens", json!({ "name": "monitor", "role": "reader" })).await.is(201);
    let other = made["token"].as_str().expect("a secret").to_owned();
    let mut open = Vec::new();
    loop {
        let (stream, head) = open_stream(&panel, &panel.token).await;
        if head != "HTTP/1.1 200" {
            assert_eq!((head.as_str(), open.len()), ("HTTP/1.1 429", 16));
            break;
        }
        open.push(stream);
    }
    panel.get("/events?follow=true").await.refused(429, "too-many-streams");
    assert_eq!(open_stream(&panel, &other).await.1, "HTTP/1.1 200", "another token has its own");
    // A place is free again when its stream has ended.
    open.truncate(3);
    let began = std::time::Instant::now();
    while open_stream(&panel, &panel.token).await.1 != "HTTP/1.1 200" {
        assert!(began.elapsed() < crate::support::PATIENCE, "the places stay taken");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let panel = TestPanel::start().await;
    let long = format!("{{\"name\":\"{}\"}}", "a".repeat(1 << 20));
    for headers in [&[][..], &[("Idempotency-Key", "k")]] {
        panel.call("POST", "/servers", headers, Some(long.as_bytes())).await.refused(413, "too-large");
    }
    let wide = ("X-Wide", "y".repeat(600 << 10));
    let answer = panel.call("GET", "/servers", &[(wide.0, &wide.1)], None).await;
    assert_eq!(answer.status, 431, "{answer:?}");
}
