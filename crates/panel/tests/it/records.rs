//! What stands beside the desired state: audit records of what changes no thing of the fleet, API tokens, newest certificates.

use crate::follower::{Member, TestFollower, join, name, token};
use crate::support::TestPanel;
use phalanx_plan::spec::CertificateDigest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

/// The newest audit records as (actor, action, kind, name), oldest first.
async fn newest(panel: &TestPanel, count: usize) -> (Vec<[String; 4]>, Vec<Value>) {
    let audit = panel.get(&format!("/audit?limit={count}")).await.is(200);
    let mut records = audit["items"].as_array().expect("a list").clone();
    records.reverse();
    let word = |record: &Value, key: &str| record[key].as_str().expect("a text").to_owned();
    let heads = records.iter().map(|r| ["actor", "action", "kind", "name"].map(|key| word(r, key))).collect();
    (heads, records)
}

#[tokio::test]
async fn joins_and_orders_are_recorded_with_who_did_it() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let first = join(&panel, &token(&panel, "web1").await).await.expect("it joins");
    let mut web1 = TestFollower::connect(&panel, first).await;
    web1.until(|f| f.spec.is_some()).await;
    let of_slave = token(&panel, "web2").await;
    web1.relay_join(&of_slave).await.expect("through its master");
    join(&panel, &token(&panel, "web1").await).await.expect("a machine in its place");
    // Nobody is there to do it; that it was ordered is known all the same.
    panel.post("/servers/web2/rollback", json!({ "generation": 4 })).await;
    panel.post("/servers/web2/reconcile", json!({})).await;
    let (heads, records) = newest(&panel, 8).await;
    let expected = [
        ["admin", "add", "join token", "web1"],
        ["server web1", "add", "certificate", "web1"],
        ["admin", "add", "join token", "web2"],
        ["server web2", "add", "certificate", "web2"],
        ["admin", "add", "join token", "web1"],
        ["server web1", "change", "certificate", "web1"],
        ["admin", "order", "server", "web2"],
        ["admin", "order", "server", "web2"],
    ];
    assert_eq!(heads, expected.map(|head| head.map(str::to_owned)));
    assert_eq!(records[3]["after"]["via"], "web1");
    assert_eq!(records[5]["before"]["sha256"], records[1]["after"]["sha256"]);
    assert_ne!(records[5]["after"]["sha256"], records[1]["after"]["sha256"]);
    assert_eq!(records[6]["after"], json!({ "rollback": { "generation": 4 } }));
    assert_eq!(records[7]["after"], "reconcile");
}

fn certificate(member: &Member) -> CertificateDigest {
    CertificateDigest::of(&CertificateDer::from_pem_slice(member.identity.certificate_pem.as_bytes()).expect("PEM"))
}

#[tokio::test]
async fn a_master_learns_the_newest_certificate_of_each_slave() {
    let mut panel = TestPanel::start().await;
    panel.figure_1().await;
    let web1 = join(&panel, &token(&panel, "web1").await).await.expect("it joins");
    let mut web1 = TestFollower::connect(&panel, web1).await;
    web1.until(|f| f.spec.is_some()).await;
    let accepts = |f: &TestFollower, certificate: &CertificateDigest| {
        f.spec.as_ref().is_some_and(|spec| spec.is_current(&name("web2"), certificate))
    };
    let of_slave = token(&panel, "web2").await;
    let old = certificate(&web1.relay_join(&of_slave).await.expect("through its master"));
    web1.until(|f| accepts(f, &old)).await;
    let of_other = token(&panel, "web2").await;
    let new = certificate(&web1.relay_join(&of_other).await.expect("another machine in its place"));
    web1.until(|f| accepts(f, &new)).await;
    assert!(!accepts(&web1, &old), "the machine before it is no member any more");
    // It stays so over a restart, and ends with the server.
    panel.restart().await;
    web1.reconnect(&panel).await;
    web1.spec = None;
    web1.until(|f| accepts(f, &new)).await;
    panel.delete("/clusters/web/slaves/web2?force=true").await.is(204);
    panel.delete("/servers/web2").await.is(204);
    panel.post("/servers", json!({ "name": "web2", "kind": "web", "address": "10.9.0.12/24" })).await.is(201);
    panel.post("/clusters/web/slaves", json!({ "server": "web2" })).await.is(201);
    web1.until(|f| f.spec.as_ref().is_some_and(|spec| spec.nodes.contains_key(&name("web2")) && !accepts(f, &new)))
        .await;
}

#[tokio::test]
async fn a_token_is_shown_and_removed_as_it_was_seen() {
    let panel = TestPanel::start().await;
    panel.post("/tokens", json!({ "name": "monitor", "role": "reader" })).await.is(201);
    let shown = panel.get("/tokens/monitor").await;
    let etag = shown.header("etag").expect("a version").to_owned();
    let shown = shown.is(200);
    assert_eq!((shown["role"].as_str(), shown["etag"].as_str()), (Some("reader"), Some(etag.as_str())));
    assert!(shown.get("token").is_none(), "its secret is shown once");
    panel.get("/tokens/nobody").await.refused(404, "unknown");
    panel.call("DELETE", "/tokens/monitor", &[("If-Match", "\"9\"")], None).await.refused(412, "stale");
    panel.get("/tokens/monitor").await.is(200);
    panel.call("DELETE", "/tokens/monitor", &[("If-Match", &etag)], None).await.is(204);
    panel.get("/tokens/monitor").await.refused(404, "unknown");
}

#[tokio::test]
async fn a_share_is_moved_while_no_cluster_mounts_it() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let refused = panel.patch("/shares/content", json!({ "path": "/srv/nas/other" })).await;
    let refused = refused.refused(409, "in-use-is-not-removed");
    assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("cluster change web --no-share")), "{refused:#}");
    let made =
        panel.post("/shares", json!({ "name": "new", "kind": "local", "nas": "nas", "path": "/srv/nas/new" })).await;
    let etag = made.header("etag").expect("a version").to_owned();
    let made = made.is(201);
    let (path, stale) = ("/shares/new", [("If-Match", "\"9\"")]);
    let moved = json!({ "path": "/srv/other", "nas": null }).to_string();
    panel.call("PATCH", path, &stale, Some(moved.as_bytes())).await.refused(412, "stale");
    let changed = panel.call("PATCH", path, &[("If-Match", &etag)], Some(moved.as_bytes())).await.is(200);
    assert_eq!((&changed["path"], &changed["nas"]), (&json!("/srv/other"), &Value::Null));
    assert_eq!((&changed["marker"], &changed["kind"]), (&made["marker"], &made["kind"]), "it is the same share");
    let back = json!({ "nas": "nas", "path": "/srv/nas/web" });
    panel.patch(path, back).await.refused(409, "name-is-unique");
    panel.patch(path, json!({ "nas": "web" })).await.refused(409, "kinds-fit");
    panel.patch(path, json!({ "nas": "nowhere" })).await.refused(409, "reference-exists");
    panel.patch(path, json!({ "path": "/etc" })).await.refused(422, "invalid-value");
    panel.patch("/shares/nowhere", json!({ "path": "/srv/x" })).await.refused(404, "unknown");
    assert_eq!(panel.get(path).await.is(200), changed);
}
