//! Attack strings in every field: refused as a problem, or kept and read back unchanged. Never a failure of the panel.

use crate::support::TestPanel;
use serde_json::{Value, json};

const ATTACKS: [&str; 30] = [
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\r\nX: y",
    "'; DROP TABLE site; --",
    "\" OR \"\"=\"",
    "`id`",
    "$(id)",
    "${jndi:x}",
    "%00",
    "%2e%2e%2f",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "a b",
    "-rf",
    "--",
    "*",
    "é",
    "\u{202e}evil",
    "\u{feff}x",
    "😀",
    "NULL",
    "a'b",
];

#[tokio::test]
async fn attack_strings_are_refused_or_read_back_unchanged() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let long = "a".repeat(100_000);
    for attack in ATTACKS.into_iter().chain([long.as_str()]) {
        for (path, template) in [
            ("/servers", json!({ "name": "@", "kind": "web", "address": "10.9.0.50/24" })),
            ("/servers", json!({ "name": "webx", "kind": "@", "address": "10.9.0.50/24" })),
            ("/servers", json!({ "name": "webx", "kind": "web", "address": "@" })),
            ("/clusters", json!({ "name": "@", "kind": "web", "master": "web1" })),
            ("/shares", json!({ "name": "sharex", "kind": "local", "path": "@" })),
            ("/addresses", json!({ "external": "@", "balancer": "lb", "cluster": "web" })),
            ("/accounts", json!({ "name": "@", "logical_server": "www" })),
            ("/accounts", json!({ "name": "accountx", "logical_server": "www", "php": "@" })),
            ("/sites", json!({ "name": "@", "account": "alice" })),
            ("/sites", json!({ "name": "x.example.org", "account": "alice", "aliases": ["@"] })),
            ("/sites", json!({ "name": "x.example.org", "account": "alice", "document_root": "@" })),
            ("/tokens", json!({ "name": "@", "role": "admin" })),
            ("/clusters", json!({ "name": "m", "kind": "mail", "master": "mail2", "mail_name": "@" })),
            ("/clusters/mail/grants/mailboxes/move", json!({ "to": "@" })),
            ("/mail-domains", json!({ "name": "@", "account": "alice", "logical_server": "post" })),
            ("/mailboxes", json!({ "address": "@", "password": "correct horse" })),
            ("/mailboxes", json!({ "address": format!("{attack}@example.org"), "password_hash": attack })),
            ("/mailboxes", json!({ "address": "m@example.org", "password_hash": "@" })),
            ("/mailboxes", json!({ "address": "m@example.org", "password": "correct horse", "quota_mib": "@" })),
            ("/aliases", json!({ "source": "@", "targets": ["a@example.org"] })),
            ("/aliases", json!({ "source": "m@example.org", "targets": ["@"] })),
            ("/aliases", json!({ "source": "m@example.org", "targets": [format!("a@example.org{attack}.")] })),
            ("/aliases", json!({ "source": "m@example.org", "targets": ["a@example.org\r\nBcc: x@y.org"] })),
            ("/servers/web1/rollback", json!({ "generation": "@" })),
        ] {
            let body = replaced(template, attack);
            let answer = panel.post(path, body.clone()).await;
            if answer.status == 201 && body["document_root"] == attack {
                // Harmless below a home; it must come back as it went in.
                assert_eq!(panel.get("/sites/x.example.org").await.is(200)["document_root"], attack);
                panel.delete("/sites/x.example.org").await.is(204);
                continue;
            }
            assert!((400..500).contains(&answer.status), "{path} {body}: {} {:#}", answer.status, answer.body);
            assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path} {body}");
        }
        // A directive is kept as it is, or refused for its line break; what it may say is httpd's own check.
        let answer = panel.patch("/clusters/web", json!({ "httpd_directives": [attack] })).await;
        match answer.status {
            200 => assert_eq!(panel.get("/clusters/web").await.is(200)["httpd_directives"], json!([attack])),
            409 => assert!(attack.contains(['\n', '\r', '\0']) || attack.len() > 1_000),
            other => panic!("{attack:?}: {other} {:#}", answer.body),
        }
        let encoded: String = attack.bytes().take(2_000).map(|byte| format!("%{byte:02x}")).collect();
        for list in [
            "servers",
            "clusters",
            "shares",
            "addresses",
            "logical-servers",
            "accounts",
            "sites",
            "mail-domains",
            "mailboxes",
            "aliases",
        ] {
            let answer = panel.get(&format!("/{list}/{encoded}")).await;
            assert!((400..500).contains(&answer.status), "{list} {attack:?}: {}", answer.status);
        }
        panel.get(&format!("/sites?cursor={encoded}&account={encoded}")).await;
    }
    assert_eq!(panel.get("/status").await.is(200)["counts"]["sites"], 1);
    assert_eq!(panel.get("/servers").await.is(200)["items"].as_array().map(Vec::len), Some(6));
    for list in ["mailboxes", "aliases"] {
        assert_eq!(panel.get(&format!("/{list}")).await.is(200)["items"], json!([]));
    }
}

/// The template with the attack in the place of `@`.
fn replaced(template: Value, attack: &str) -> Value {
    match template {
        Value::String(text) if text == "@" => Value::String(attack.to_owned()),
        Value::Array(items) => items.into_iter().map(|item| replaced(item, attack)).collect(),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(key, value)| (key, replaced(value, attack))).collect())
        }
        other => other,
    }
}
