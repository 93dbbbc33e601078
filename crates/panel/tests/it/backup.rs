//! A store that is put back from a backup, and one that is made anew: nodes follow it, and nothing is given twice.

use crate::follower::{TestFollower, join, token};
use crate::support::TestPanel;
use phalanx_model::RowKey;
use serde_json::json;

const STORE: &str = "panel.sqlite";

#[tokio::test]
async fn nodes_follow_a_store_that_was_put_back() {
    let mut panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let mailbox = |name: &str| json!({ "address": format!("{name}@example.org"), "password": "correct horse" });
    let web1 = join(&panel, &token(&panel, "web1").await).await.expect("it joins");
    let unused = token(&panel, "nas1").await;
    panel.stop().await;
    let (store, backup) = (panel.dir.path().join(STORE), panel.dir.path().join("backup"));
    std::fs::copy(&store, &backup).expect("copied");

    panel.begin().await;
    let bob = panel.post("/accounts", json!({ "name": "bob", "logical_server": "www" })).await.is(201);
    let lost = panel.post("/mailboxes", mailbox("lost")).await.is(201);
    for weight in 1..5 {
        panel.patch("/clusters/web/nodes/web2", json!({ "weight": weight })).await.is(200);
    }
    let mut web1 = TestFollower::connect(&panel, web1).await;
    let account = |name: &str| RowKey::Account(crate::follower::name(name));
    web1.until(|f| f.spec.is_some() && f.rows.contains_key(&account("bob"))).await;
    let (spec_at, was_at) = (web1.spec_at, web1.directory);

    let busy = phalanx_panel::adopt_backup(panel.dir.path()).await.expect_err("the panel runs");
    assert!(format!("{busy:#}").contains("stop it first"), "{busy:#}");
    panel.stop().await;
    std::fs::copy(&backup, &store).expect("put back");
    let adopted = phalanx_panel::adopt_backup(panel.dir.path()).await.expect("adopted");
    assert!(adopted.incarnation > adopted.incarnation_before, "{adopted:?}");
    assert_eq!((adopted.uid_next - adopted.uid_next_before, adopted.join_tokens_voided), (10_000, 1));
    panel.begin().await;

    // The node was ahead of the backup: it takes the backup all the same.
    web1.reconnect(&panel).await;
    web1.until(|f| f.spec_at > spec_at && !f.rows.contains_key(&account("bob"))).await;
    assert!(web1.directory > was_at && web1.directory.revision < was_at.revision, "{} {was_at}", web1.directory);
    assert!(web1.rows.contains_key(&account("alice")));
    // bob's uid may own files that the backup does not know of.
    let carol = panel.post("/accounts", json!({ "name": "carol", "logical_server": "www" })).await.is(201);
    assert!(carol["uid"].as_u64() >= bob["uid"].as_u64().map(|uid| uid + 10_000), "{carol} {bob}");
    // Nor may anybody get the mail of a mailbox that the backup does not know of.
    let new = panel.post("/mailboxes", mailbox("new")).await.is(201);
    assert!(new["id"].as_u64() >= lost["id"].as_u64().map(|id| id + 10_000), "{new} {lost}");
    web1.until(|f| f.rows.contains_key(&account("carol"))).await;
    assert!(join(&panel, &unused).await.is_err_and(|why| why.contains("not valid")), "it may have been used since");
    let audit = panel.get("/audit?limit=1000").await.is(200);
    let records = audit["items"].as_array().expect("a list");
    assert!(
        records.iter().any(|r| r["kind"] == "store" && r["after"]["incarnation"] == adopted.incarnation),
        "{audit:#}"
    );
}

#[tokio::test]
async fn a_store_that_is_made_anew_is_later_than_the_one_before() {
    let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let panel = TestPanel::start().await;
    let status = panel.get("/status").await.is(200);
    assert!(status["panel"]["incarnation"].as_u64().is_some_and(|incarnation| incarnation >= began), "{status:#}");
}

#[tokio::test]
async fn half_a_backup_is_not_adopted() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = phalanx_panel::adopt_backup(dir.path()).await.expect_err("nothing is there");
    assert!(missing.to_string().contains("panel.sqlite is missing"), "{missing}");
}
