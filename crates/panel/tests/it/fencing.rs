//! Fences by a person's word, queues that are adopted, and machines that come back.

use crate::follower::{TestFollower, join, name, token};
use crate::support::{PATIENCE, TestPanel};
use phalanx_plan::report::Report;
use phalanx_plan::session::UpMessage;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const FIRST_BOOT: &str = "5c0e3ab1-8c5a-4f5c-9e0f-000000000001";
const SECOND_BOOT: &str = "5c0e3ab1-8c5a-4f5c-9e0f-000000000002";

async fn fleet() -> TestPanel {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    panel
}

/// The agent of the NAS, which keeps the share: whatever it is told, the share tells at once.
struct Keeper(tokio::task::JoinHandle<()>);

impl Keeper {
    async fn start(panel: &TestPanel) -> Self {
        let mut nas = follow(panel, "nas1").await;
        Self(tokio::spawn(async move {
            loop {
                let told = nas.spec_at;
                let report = Report { converged: true, spec: told, ..Report::default() };
                nas.wire.send(&UpMessage::Reports { reports: BTreeMap::from([(name("nas1"), report)]) }).await;
                // Each second again, as agents do.
                let more = std::time::Duration::from_secs(1);
                let _same = tokio::time::timeout(more, nas.until(|f| f.spec_at > told)).await;
            }
        }))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// mail1 follows; through its link mail2 reports from `boot`.
async fn mail2_reports(panel: &TestPanel, mail1: &mut TestFollower, boot: &str) {
    let report = Report { boot_id: boot.to_owned(), spec: mail1.spec_at, ..Report::default() };
    mail1.wire.send(&UpMessage::Reports { reports: BTreeMap::from([(name("mail2"), report)]) }).await;
    until(async || panel.get("/servers/mail2").await.is(200)["state"]["report"]["boot_id"] == boot).await;
}

/// Waits until it is `so`.
async fn until(so: impl AsyncFn() -> bool) {
    let waits = async {
        while !so().await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("it comes to pass");
}

async fn follow(panel: &TestPanel, server: &str) -> TestFollower {
    let member = join(panel, &token(panel, server).await).await.expect("it joins");
    let mut follower = TestFollower::connect(panel, member).await;
    follower.until(|f| f.spec.is_some() && f.snapshots == 1).await;
    follower
}

async fn queue_of_mail2(panel: &TestPanel) -> Value {
    let all = panel.get("/queues").await.is(200);
    let found = all["items"].as_array().expect("a list").iter().find(|queue| queue["server"] == "mail2").cloned();
    found.expect("the queue of mail2")
}

#[tokio::test]
async fn a_queue_is_adopted_after_a_fence_and_not_before() {
    let panel = fleet().await;
    let _keeper = Keeper::start(&panel).await;
    assert_eq!(
        queue_of_mail2(&panel).await,
        json!({ "server": "mail2", "cluster": "mail", "holder": "mail2", "number": 1, "moving_to": null })
    );
    let before = panel.get("/audit?limit=1000").await.is(200);
    let adopt = |words: Option<&str>| json!({ "to": "mail1", "confirmation": words });
    for words in [None, Some(""), Some("yes"), Some("mail1 is switched off"), Some("mail2 is switched off ")] {
        let said = panel.post("/queues/mail2/adopt", adopt(words)).await.refused(409, "not-confirmed");
        assert!(said["hint"].as_str().expect("a hint").contains("--confirm 'mail2 is switched off'"), "{said}");
    }
    panel.post("/queues/mail2/adopt", json!({ "to": "web1" })).await.refused(409, "reference-exists");
    panel.post("/queues/web1/adopt", json!({ "to": "mail1" })).await.refused(404, "unknown");
    assert_eq!(panel.get("/audit?limit=1000").await.is(200), before, "what is refused leaves nothing behind");
    let words = Some("mail2 is switched off");
    panel.post("/queues/mail2/adopt", adopt(words)).await.is(200);
    until(async || {
        let queue = queue_of_mail2(&panel).await;
        queue["holder"] == "mail1" && queue["number"] == 2 && queue["moving_to"].is_null()
    })
    .await;
    // Asked again, it says how things stand.
    assert_eq!(panel.post("/queues/mail2/adopt", adopt(words)).await.is(200)["holder"], "mail1");
    assert_eq!(panel.get("/servers/mail2").await.is(200)["fenced"], json!({ "boot": null, "is_seen": true }));
    panel.post("/queues/mail2/adopt", json!({ "to": "mail2" })).await.refused(409, "grant-moves-by-proof");
    panel.delete("/clusters/mail/slaves/mail2?force=true").await.is(204);
}

#[tokio::test]
async fn a_server_that_reports_is_not_fenced_and_another_boot_ends_a_fence() {
    let panel = fleet().await;
    let _keeper = Keeper::start(&panel).await;
    let mut mail1 = follow(&panel, "mail1").await;
    mail2_reports(&panel, &mut mail1, FIRST_BOOT).await;
    let words = json!({ "confirmation": "mail2 is switched off" });
    let said = panel.post("/servers/mail2/fence", words).await.refused(409, "still-alive");
    assert!(said["detail"].as_str().expect("words").contains("it lives"), "{said}");
    let anyway = json!({ "confirmation": "mail2 is switched off", "anyway": true });
    let fenced = panel.post("/servers/mail2/fence", anyway).await.is(200);
    assert_eq!(fenced["fenced"], json!({ "boot": FIRST_BOOT, "is_seen": true }));
    panel.post("/queues/mail2/adopt", json!({ "to": "mail1" })).await.is(200);
    until(async || queue_of_mail2(&panel).await["holder"] == "mail1").await;
    // The same boot reports: whoever said that it was off was wrong. It stays fenced.
    mail2_reports(&panel, &mut mail1, FIRST_BOOT).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(panel.get("/servers/mail2").await.is(200)["fenced"], json!({ "boot": FIRST_BOOT, "is_seen": true }));
    mail2_reports(&panel, &mut mail1, SECOND_BOOT).await;
    until(async || panel.get("/servers/mail2").await.is(200)["fenced"].is_null()).await;
    assert_eq!(queue_of_mail2(&panel).await["moving_to"], "mail2", "its queue is asked home");
}

#[tokio::test]
async fn a_fence_without_a_known_boot_is_ended_by_a_persons_word() {
    let panel = fleet().await;
    let _keeper = Keeper::start(&panel).await;
    panel.post("/servers/mail2/fence", json!({ "confirmation": "mail2 is switched off" })).await.is(200);
    let mut mail1 = follow(&panel, "mail1").await;
    mail2_reports(&panel, &mut mail1, SECOND_BOOT).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(panel.get("/servers/mail2").await.is(200)["fenced"].is_object(), "nobody can tell which boot that is");
    panel.post("/servers/mail2/unfence", json!({ "confirmation": "yes" })).await.refused(422, "invalid-value");
    panel.post("/servers/mail2/unfence", json!({ "confirmation": "mail2 was started anew" })).await.is(200);
    assert!(panel.get("/servers/mail2").await.is(200)["fenced"].is_null());
    panel.post("/servers/none/fence", json!({})).await.refused(404, "unknown");
}

#[tokio::test]
async fn a_program_that_is_not_there_fences_nobody() {
    let panel = fleet().await;
    for bad in ["command:../../bin/sh", "command:", "ssh", "command:a b"] {
        panel.patch("/servers/mail2", json!({ "fence": bad })).await.refused(422, "invalid-value");
    }
    let changed = panel.patch("/servers/mail2", json!({ "fence": "command:no-such-switch" })).await.is(200);
    assert_eq!((&changed["fence"], &changed["address"]), (&json!("command:no-such-switch"), &json!("10.9.0.32/24")));
    let said = panel.post("/servers/mail2/fence", json!({ "confirmation": "mail2 is switched off" })).await;
    let said = said.refused(409, "fence-failed");
    assert!(said["detail"].as_str().expect("words").contains("no-such-switch can't be looked at"), "{said}");
    assert!(panel.get("/servers/mail2").await.is(200)["fenced"].is_null());
}

#[tokio::test]
async fn what_is_done_with_a_queue_is_asked_of_its_holder() {
    let panel = fleet().await;
    for path in ["/queues/mail2", "/queues/mail2?limit=0"] {
        panel.get(path).await.refused(503, "not-connected");
    }
    panel.get("/queues/mail2?limit=1001").await.refused(422, "invalid-value");
    for (body, status) in [
        (json!({}), 422),
        (json!({ "id": "4bJx2v0Zk9z1qWd", "all": true }), 422),
        (json!({ "id": "ALL" }), 422),
        (json!({ "id": "-d" }), 422),
        (json!({ "id": "4bJx2v0Zk9z1qWd" }), 503),
        (json!({ "all": true }), 503),
    ] {
        for what in ["flush", "hold", "release", "delete"] {
            assert_eq!(
                panel.post(&format!("/queues/mail2/{what}"), body.clone()).await.status,
                status,
                "{what} {body}"
            );
        }
    }
}

/// Without the word of who keeps the share, a machine that is started again could begin what it had: nothing is fenced then, and what it has
/// it may use again.
#[tokio::test]
async fn who_keeps_the_share_must_have_told() {
    let panel = fleet().await;
    let words = json!({ "confirmation": "mail2 is switched off" });
    let said = panel.post("/servers/mail2/fence", words).await.refused(409, "untold");
    assert!(said["detail"].as_str().expect("words").starts_with("nas1, who keeps the share"), "{said}");
    assert!(panel.get("/servers/mail2").await.is(200)["fenced"].is_null());
    let queue = queue_of_mail2(&panel).await;
    assert!(queue["holder"] == "mail2" && queue["number"] == 2, "a later number than was told to be void: {queue}");
}
