//! Slaves that leave: drained first, also over a restart of the panel; taken back; at once where there is nothing to wait for.

use crate::follower::{TestFollower, join, name, token};
use crate::support::{PATIENCE, TestPanel};
use phalanx_plan::report::{BackendReport, BackendState, Report};
use phalanx_plan::session::UpMessage;
use serde_json::{Value, json};
use std::collections::BTreeMap;

async fn joined(panel: &TestPanel, server: &str) -> TestFollower {
    let member = join(panel, &token(panel, server).await).await.expect("it joins");
    TestFollower::connect(panel, member).await
}

/// web1 is up and web2 has joined through it; the balancer is connected.
async fn serving(panel: &TestPanel) -> (TestFollower, TestFollower) {
    panel.figure_1().await;
    let (mut web1, lb1) = (joined(panel, "web1").await, joined(panel, "lb1").await);
    let of_slave = token(panel, "web2").await;
    web1.relay_join(&of_slave).await.expect("through its master");
    (web1, lb1)
}

/// The balancer reports web2 so, from the spec that it has adopted.
async fn report(lb1: &mut TestFollower, state: BackendState, flows: Option<u32>) {
    let backend = |server: &str, state, flows| BackendReport {
        service: "198.51.100.10:80".parse().expect("an address"),
        server: name(server),
        state,
        why: String::new(),
        share_percent: 50.0,
        flows,
    };
    let backends = vec![backend("web1", BackendState::Up, Some(3)), backend("web2", state, flows)];
    let report = Report { converged: true, spec: lb1.spec_at, backends, ..Report::default() };
    lb1.wire.send(&UpMessage::Reports { reports: BTreeMap::from([(name("lb1"), report)]) }).await;
}

fn drains(follower: &TestFollower) -> bool {
    follower.spec.as_ref().is_some_and(|spec| format!("{:?}", spec.nodes[&name("lb1")]).contains("drained: true"))
}

async fn until(panel: &TestPanel, path: &str, so: impl Fn(&Value) -> bool) -> Value {
    let began = std::time::Instant::now();
    loop {
        let answer = panel.get(path).await.is(200);
        if so(&answer) {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "{path} never came to be so: {answer:#}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_removal_goes_on_after_the_panel_was_started_anew() {
    let mut panel = TestPanel::start().await;
    let (_web1, mut lb1) = serving(&panel).await;
    report(&mut lb1, BackendState::Up, Some(7)).await;
    let task = panel.delete("/clusters/web/slaves/web2?deadline_s=3600&anyway=true").await.is(202);
    lb1.until(drains).await;
    panel.restart().await;
    lb1.reconnect(&panel).await;
    lb1.until(drains).await;
    let path = format!("/tasks/{}", task["id"]);
    assert_eq!(panel.get(&path).await.is(200)["state"], "running");
    report(&mut lb1, BackendState::Drained, Some(0)).await;
    until(&panel, "/clusters/web", |web| web["slaves"] == json!({})).await;
    until(&panel, &path, |task| task["state"] == "done").await;
}

#[tokio::test]
async fn only_a_count_made_since_the_drain_lets_a_slave_go() {
    let panel = TestPanel::start().await;
    let (_web1, mut lb1) = serving(&panel).await;
    // Of a drain before this one: it says nothing about the connections that came in between.
    report(&mut lb1, BackendState::Drained, Some(0)).await;
    until(&panel, "/status", |status| status["clusters"][2]["nodes"][1]["flows"] == 0).await;
    panel.delete("/clusters/web/slaves/web2?deadline_s=3600&anyway=true").await.is(202);
    report(&mut lb1, BackendState::Drained, Some(0)).await;
    lb1.until(drains).await;
    report(&mut lb1, BackendState::Drained, None).await;
    let web = until(&panel, "/clusters/web", |web| web["leaving"]["web2"]["flows"].is_null()).await;
    assert_eq!(web["slaves"]["web2"]["drained"], true);
    report(&mut lb1, BackendState::Drained, Some(2)).await;
    let web = until(&panel, "/clusters/web", |web| web["leaving"]["web2"]["flows"] == 2).await;
    assert!(web["leaving"]["web2"]["left_s"].as_u64().is_some_and(|left| (3_500..=3_600).contains(&left)), "{web:#}");
    report(&mut lb1, BackendState::Drained, Some(0)).await;
    until(&panel, "/clusters/web", |web| web["slaves"] == json!({}) && web["leaving"] == json!({})).await;
    let events = panel.get("/events").await.is(200);
    let texts: Vec<&str> =
        events["items"].as_array().expect("a list").iter().filter_map(|event| event["text"].as_str()).collect();
    assert!(texts.iter().any(|text| text.starts_with("web2 is leaving cluster web")), "{texts:#?}");
    assert!(texts.contains(&"web2 has left cluster web; no connection was cut"), "{texts:#?}");
}

#[tokio::test]
async fn a_removal_can_be_taken_back_and_has_an_end() {
    let mut panel = TestPanel::start().await;
    let (_web1, mut lb1) = serving(&panel).await;
    let task = panel.delete("/clusters/web/slaves/web2?deadline_s=3600&anyway=true").await.is(202);
    let again = panel.delete("/clusters/web/slaves/web2?deadline_s=5&anyway=true").await.is(202);
    assert_eq!(again["id"], task["id"], "it is leaving already");
    lb1.until(drains).await;
    panel.patch("/clusters/web/nodes/web2", json!({ "drained": false })).await.is(200);
    assert_eq!(panel.get(&format!("/tasks/{}", task["id"])).await.is(200)["state"], "cancelled");
    report(&mut lb1, BackendState::Drained, Some(0)).await;
    panel.restart().await;
    assert!(panel.get("/clusters/web").await.is(200)["slaves"]["web2"].is_object(), "it stays");
    // Nobody counts: the deadline ends it.
    let task = panel.delete("/clusters/web/slaves/web2?deadline_s=1&anyway=true").await.is(202);
    let ended = until(&panel, &format!("/tasks/{}", task["id"]), |task| task["state"] == "done").await;
    assert!(ended["detail"].as_str().is_some_and(|detail| detail.contains("its time was up")), "{ended:#}");
    panel.get("/tasks/99").await.refused(404, "unknown");
    panel.get("/tasks/x").await.refused(404, "unknown");
}

#[tokio::test]
async fn a_machine_that_never_joined_leaves_at_once() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.delete("/clusters/web/slaves/web2?deadline_s=3600").await.is(204);
    assert_eq!(panel.get("/clusters/web").await.is(200)["slaves"], json!({}));
}
