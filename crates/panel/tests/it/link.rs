//! The link: joins, who may come, specs and rows, reports, commands, events.

use crate::follower::{TestFollower, Wire, ca_pem, join, name, token};
use crate::support::TestPanel;
use phalanx_model::share::Marker;
use phalanx_model::{Row, RowKey};
use phalanx_plan::logs::batch::CountedPart;
use phalanx_plan::logs::stream::Stream;
use phalanx_plan::report::{BackendReport, BackendState, NodeEvent, Report, Severity};
use phalanx_plan::session::{Command, DownMessage, LogPart, LogText, MergedLog, Place, UpMessage};
use serde_json::{Value, json};
use std::collections::BTreeMap;

async fn joined(panel: &TestPanel, server: &str) -> TestFollower {
    let member = join(panel, &token(panel, server).await).await.expect("it joins");
    TestFollower::connect(panel, member).await
}

fn has_site(follower: &TestFollower, host: &str) -> bool {
    follower.rows.contains_key(&RowKey::Site(host.parse().expect("a host name")))
}

#[tokio::test]
async fn a_master_gets_its_spec_and_rows_and_then_each_change() {
    let mut panel = TestPanel::start().await;
    panel.figure_1().await;
    let mut web1 = joined(&panel, "web1").await;
    web1.until(|f| f.spec.is_some() && has_site(f, "www.example.org")).await;
    assert_eq!(web1.spec.as_ref().map(|spec| spec.nodes.len()), Some(2));
    let account = web1.rows.get(&RowKey::Account(name("alice"))).expect("a row");
    assert!(matches!(account, Row::Account { share, .. } if share.as_str() == "content"), "{account:?}");
    assert_eq!(web1.snapshots, 1, "the first time it gets all");

    let mut nas1 = joined(&panel, "nas1").await;
    nas1.until(|f| f.spec.is_some() && has_site(f, "www.example.org")).await;

    panel.post("/sites", json!({ "name": "new.example.org", "account": "alice" })).await.is(201);
    web1.until(|f| has_site(f, "new.example.org")).await;
    nas1.until(|f| has_site(f, "new.example.org")).await;
    panel.delete("/sites/new.example.org").await.is(204);
    web1.until(|f| !has_site(f, "new.example.org")).await;
    let specs = web1.specs;
    panel.patch("/clusters/web", json!({ "httpd_directives": ["Timeout 30"] })).await.is(200);
    web1.until(|f| f.specs > specs).await;

    // Away for a while, also of the panel: only what is new comes.
    drop(web1.wire.receive());
    panel.post("/sites", json!({ "name": "later.example.org", "account": "alice" })).await.is(201);
    panel.restart().await;
    web1.reconnect(&panel).await;
    web1.until(|f| has_site(f, "later.example.org")).await;
    assert_eq!(web1.snapshots, 1);

    panel.delete("/accounts/alice?sites=true").await.is(204);
    web1.until(|f| f.rows.is_empty()).await;
}

#[tokio::test]
async fn a_directory_of_many_pieces_is_of_one_position() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let store =
        phalanx_panel::store::Store::open(&panel.dir.path().join("panel.sqlite"), false).await.expect("it opens");
    let mut write = store.write(&phalanx_panel::store::Actor::panel()).await.expect("its turn");
    for n in 0..1_500 {
        let limits = phalanx_model::Limits::default();
        let made = write.add_account(name(&format!("a{n}")), name("www"), None, limits, Default::default()).await;
        made.expect("a new account");
        let host: phalanx_model::HostName = format!("a{n}.example.net").parse().expect("a host name");
        let document_root = phalanx_model::Site::document_root_default(&host);
        let site = phalanx_model::Site { name: host, aliases: vec![], account: name(&format!("a{n}")), document_root };
        write.add_site(site).await.expect("a new site");
    }
    write.commit().await.expect("committed");
    let mut reader = store.snapshot(&name("web")).await.expect("a snapshot");
    let (mut rows, mut pieces) = (0, 0);
    let mut at = None;
    loop {
        let piece = reader.next_piece().await.expect("a piece");
        assert_eq!((piece.piece, *at.get_or_insert(piece.at)), (pieces, piece.at));
        assert!(piece.rows.len() <= 1_000);
        (rows, pieces) = (rows + piece.rows.len(), pieces + 1);
        if pieces == 1 {
            // What is written meanwhile belongs to a later position.
            let mut write = store.write(&phalanx_panel::store::Actor::panel()).await.expect("its turn");
            let row = write.site(&"a1499.example.net".parse().expect("a host name"), None).await.expect("there");
            write.remove_site(&row).await.expect("removed");
            write.commit().await.expect("committed");
        }
        if piece.last {
            break;
        }
    }
    assert_eq!(rows, 2 * 1_501);
    let late = store.changes(&name("web"), at.expect("a position").revision).await.expect("read");
    assert!(matches!(late, phalanx_panel::store::ChangesRead::Changes { changes, .. } if changes.len() == 1));
    let unknown = store.changes(&name("web"), 0).await.expect("read");
    assert!(
        matches!(unknown, phalanx_panel::store::ChangesRead::TooShort),
        "before the cluster was made there is nothing to follow"
    );
}

#[tokio::test]
async fn a_token_works_once_and_only_on_the_right_way() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let first = token(&panel, "web1").await;
    let second = token(&panel, "web1").await;
    assert!(join(&panel, &first).await.is_err_and(|why| why.contains("not valid")), "a later token replaces it");
    let web1 = join(&panel, &second).await.expect("it joins");
    assert!(join(&panel, &second).await.is_err_and(|why| why.contains("was used")));
    assert!(join(&panel, "phx1.web1.guess.00").await.is_err());

    let made = panel.post("/servers/web2/join-token", json!({})).await.is(201);
    assert_eq!(made["upstream"], "10.9.0.11:341", "a slave's upstream is its master");
    let of_slave = made["token"].as_str().expect("a token").to_owned();
    assert!(join(&panel, &of_slave).await.is_err_and(|why| why.contains("dial its master web1 at 10.9.0.11")));
    let mut master = TestFollower::connect(&panel, web1.clone()).await;
    let other = token(&panel, "nas1").await;
    assert!(master.relay_join(&other).await.is_err_and(|why| why.contains("no slave of web1")));
    let web2 = master.relay_join(&of_slave).await.expect("through its master");
    assert_eq!(web2.identity.server.as_str(), "web2");

    // The slave's certificate is good, but the panel talks to masters only.
    let mut slave = TestFollower::connect(&panel, web2).await;
    assert_eq!(slave.until_sent_on().await, at_web1());
    assert!(slave.wire.receive().await.is_none(), "that was all");
    // Who joins anew makes the earlier certificate void.
    let again = join(&panel, &token(&panel, "web1").await).await.expect("it joins anew");
    assert!(master.until_refused().await.contains("joined anew"));
    let mut old = TestFollower::connect(&panel, web1).await;
    assert!(old.until_refused().await.contains("not the newest"));
    let mut new = TestFollower::connect(&panel, again).await;
    new.until(|f| f.spec.is_some()).await;
}

#[tokio::test]
async fn strangers_get_nowhere() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let mut wire = Wire::open(&panel, &ca_pem(&panel), None).await.expect("TLS without a certificate");
    wire.send(&UpMessage::Hello { server: name("web1"), spec: Default::default(), directory: Default::default() })
        .await;
    assert!(matches!(wire.receive().await, Some(DownMessage::Refused { .. })));
    assert!(wire.receive().await.is_none());

    // A certificate of another CA does not pass the handshake.
    let other = TestPanel::start().await;
    other.figure_1().await;
    let mut foreign = join(&other, &token(&other, "web1").await).await.expect("joined elsewhere");
    foreign.identity.ca_pem = ca_pem(&panel);
    let kept_out = match Wire::open(&panel, &foreign.identity.ca_pem, Some(&foreign)).await {
        Err(_) => true,
        Ok(mut wire) => wire.receive().await.is_none(),
    };
    assert!(kept_out);

    // A member under another's name.
    let web1 = join(&panel, &token(&panel, "web1").await).await.expect("it joins");
    let mut wire = Wire::open(&panel, &ca_pem(&panel), Some(&web1)).await.expect("TLS");
    wire.send(&UpMessage::Hello { server: name("lb1"), spec: Default::default(), directory: Default::default() }).await;
    let refusal = loop {
        match wire.receive().await.expect("a reason") {
            DownMessage::Refused { why } => break why,
            _ => continue,
        }
    };
    assert!(refusal.contains("foreign hello"), "{refusal}");
}

#[tokio::test]
async fn a_free_server_becomes_a_master_and_a_removed_one_is_sent_away() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.post("/servers", json!({ "name": "web3", "kind": "web", "address": "10.9.0.13/24" })).await.is(201);
    let mut web3 = joined(&panel, "web3").await;
    web3.until(|f| f.specs == 1).await;
    assert_eq!(web3.spec, None);
    panel.post("/clusters", json!({ "name": "solo", "kind": "web", "master": "web3" })).await.is(201);
    web3.until(|f| f.spec.is_some() && f.directory.revision > 0).await;
    panel.delete("/clusters/solo").await.is(204);
    web3.until(|f| f.spec.is_none()).await;
    panel.post("/clusters/web/slaves", json!({ "server": "web3" })).await.is(201);
    assert_eq!(web3.until_sent_on().await, at_web1());
    let handed_over = panel.get("/events").await.is(200);
    let last = handed_over["items"].as_array().and_then(|events| events.last()).expect("an event");
    assert_eq!(last["severity"], "info", "{last:#}");
    panel.delete("/clusters/web/slaves/web3?force=true").await.is(204);
    web3.reconnect(&panel).await;
    web3.until(|f| f.specs > 3).await;
    panel.delete("/servers/web3").await.is(204);
    assert!(web3.until_refused().await.contains("web3"));
    let mut gone = TestFollower::connect(&panel, web3.member.clone()).await;
    assert!(gone.until_refused().await.contains("web3"));
}

/// Where web1 serves its slaves.
fn at_web1() -> Place {
    Place { address: format!("10.9.0.11:{}", phalanx_plan::spec::port::AGENT), name: "web1.node.phalanx".to_owned() }
}

fn report(in_service: bool) -> Report {
    Report { in_service, converged: true, boot_id: "b".into(), version: "0.1.0".into(), ..Report::default() }
}

async fn reports(follower: &mut TestFollower, all: Vec<(&str, Report)>) {
    let reports: BTreeMap<_, _> = all.into_iter().map(|(server, report)| (name(server), report)).collect();
    follower.wire.send(&UpMessage::Reports { reports }).await;
}

fn backend(server: &str, state: BackendState, flows: u32) -> BackendReport {
    let service = "198.51.100.10:80".parse().expect("an address");
    BackendReport {
        service,
        server: name(server),
        state,
        why: "as tested".into(),
        share_percent: 50.0,
        flows: Some(flows),
    }
}

#[tokio::test]
async fn an_account_gets_a_php_that_all_its_nodes_have() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    // Nobody has said anything yet: nothing can be refused.
    panel.patch("/accounts/alice", json!({ "php": "7.4" })).await.is(200);
    let with = |versions: &[&str]| {
        let php = versions.iter().map(|text| text.parse().expect("a version")).collect();
        Report { php: Some(php), ..report(true) }
    };
    let mut web1 = joined(&panel, "web1").await;
    reports(&mut web1, vec![("web1", with(&["8.2", "8.4"])), ("web2", with(&["8.2"]))]).await;
    until_node(&panel, "web2", |node| node["connected"] == true).await;
    let new = json!({ "name": "new", "logical_server": "www", "php": "8.4" });
    let refusal = panel.post("/accounts", new.clone()).await.refused(409, "php-is-installed");
    assert_eq!(refusal["detail"], "PHP 8.4 is not installed on web2");
    assert_eq!(refusal["hint"], "apt install php8.4-fpm there, or take what all nodes have: 8.2");
    panel.patch("/accounts/alice", json!({ "php": "8.4" })).await.refused(409, "php-is-installed");
    // What an account has already stands in the way of nothing else.
    panel.patch("/accounts/alice", json!({ "php": "7.4", "state": "suspended" })).await.is(200);
    panel.patch("/accounts/alice", json!({ "php": "8.2" })).await.is(200);

    reports(&mut web1, vec![("web2", with(&["8.2", "8.4"]))]).await;
    for _ in 0..200 {
        if panel.post("/accounts", new.clone()).await.status == 201 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("8.4 is on all nodes and still refused");
}

/// Waits until the status of a node of the web cluster is so.
async fn until_node(panel: &TestPanel, server: &str, so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    for _ in 0..200 {
        let status = panel.get("/status").await.is(200);
        let nodes =
            status["clusters"].as_array().expect("a list").iter().flat_map(|c| c["nodes"].as_array().expect("a list"));
        if let Some(node) = nodes.into_iter().find(|node| node["server"] == server && so(node)) {
            return node.clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{server} never came to be so: {:#}", panel.get("/status").await.is(200));
}

#[tokio::test]
async fn reports_make_the_status_and_the_last_node_stays() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    let (mut web1, mut lb1) = (joined(&panel, "web1").await, joined(&panel, "lb1").await);
    reports(&mut web1, vec![("web1", report(true)), ("web2", report(false)), ("nas1", report(true))]).await;
    until_node(&panel, "web1", |node| node["state"] == "up" && node["connected"] == true).await;
    until_node(&panel, "web2", |node| node["state"] == "down").await;
    until_node(&panel, "nas1", |node| node["state"] == "unknown" && node["last_seen"].is_null()).await;
    // web1 is the only one in service.
    panel.patch("/clusters/web/nodes/web1", json!({ "drained": true })).await.refused(409, "last-node-stays");
    panel.patch("/clusters/web/nodes/web2", json!({ "drained": true })).await.is(200);
    panel.patch("/clusters/web/nodes/web2", json!({ "drained": false })).await.is(200);
    panel.patch("/clusters/web/nodes/web1", json!({ "drained": true, "anyway": true })).await.is(200);
    panel.patch("/clusters/web/nodes/web1", json!({ "drained": false })).await.is(200);

    let balancer = Report {
        backends: vec![backend("web1", BackendState::Up, 3), backend("web2", BackendState::Overloaded, 1)],
        ..report(true)
    };
    reports(&mut lb1, vec![("lb1", balancer)]).await;
    let node = until_node(&panel, "web2", |node| node["state"] == "overloaded").await;
    assert_eq!((node["share_percent"].as_f64(), node["flows"].as_u64()), (Some(50.0), Some(1)));
}

#[tokio::test]
async fn a_command_goes_through_the_master_and_its_answer_comes_back() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.post("/servers/web2/rollback", json!({ "generation": 4 })).await.refused(503, "not-connected");
    let mut web1 = joined(&panel, "web1").await;
    web1.until(|f| f.spec.is_some()).await;
    let ordered = panel.post("/servers/web2/rollback", json!({ "generation": 4 }));
    let answered = async {
        web1.until(|f| !f.relayed.is_empty()).await;
        let Some(DownMessage::Command { number, server, command }) = web1.relayed.pop() else { panic!("no command") };
        assert_eq!((server.as_str(), command), ("web2", Command::Rollback { generation: 4 }));
        // An answer in another's name is passed over.
        for (server, result) in [("web1", Err("no".to_owned())), ("web2", Ok("generation 4 is live".to_owned()))] {
            web1.wire.send(&UpMessage::CommandDone { number, server: name(server), result }).await;
        }
    };
    let (answer, ()) = tokio::join!(ordered, answered);
    assert_eq!(answer.is(200)["result"], "generation 4 is live");
}

#[tokio::test]
async fn a_sites_log_is_read_on_its_clusters_master() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.get("/sites/www.example.org/log").await.refused(503, "not-connected");
    panel.get("/sites/nobody.example.org/log").await.refused(404, "unknown");
    panel.get("/sites/www.example.org/log?limit=0").await.refused(422, "invalid-value");
    let mut web1 = joined(&panel, "web1").await;
    web1.until(|f| f.spec.is_some()).await;
    let ask = async |web1: &mut TestFollower, query: &str, expected: Option<(u64, u64)>, text: &str| {
        let path = format!("/sites/www.example.org/log?{query}");
        let asked = panel.get(&path);
        let answered = async {
            web1.until(|f| !f.commands.is_empty()).await;
            let (number, command) = web1.commands.pop().expect("it has come");
            let Command::ReadLog(LogPart { log, after, .. }) = command else { panic!("{command:?}") };
            let site = "www.example.org".parse().expect("a host name");
            let wanted = if query.contains("errors=true") { MergedLog::Errors(site) } else { MergedLog::Access(site) };
            assert_eq!((log, after), (wanted, expected));
            let result = serde_json::to_string(&LogText { at: (7, 100), text: text.to_owned() }).expect("JSON");
            web1.wire.send(&UpMessage::CommandDone { number, server: name("web1"), result: Ok(result) }).await;
        };
        let (answer, ()) = tokio::join!(asked, answered);
        answer.is(200)
    };
    let end = ask(&mut web1, "limit=2", None, "one\ntwo\nthree\n").await;
    assert_eq!(end["lines"], json!(["two", "three"]));
    let next = end["next_cursor"].as_str().expect("a cursor");
    let more = ask(&mut web1, &format!("limit=1&cursor={next}"), Some((7, 100)), "four\nfive\n").await;
    assert_eq!(more["lines"], json!(["four", "five"]), "what goes on is given whole");
    let errors = ask(&mut web1, "limit=1&errors=true", None, "bad\n").await;
    assert_eq!(errors["lines"], json!(["bad"]));
    panel.get("/clusters/nobody/mail-log").await.refused(404, "unknown");
    panel.get("/clusters/web/mail-log").await.refused(404, "unknown");
    panel.get("/clusters/web/mail-trace?message_id=x").await.refused(404, "unknown");
}

#[tokio::test]
async fn traffic_is_added_once() {
    let mut panel = TestPanel::start().await;
    panel.figure_1().await;
    let mut web1 = joined(&panel, "web1").await;
    let share = panel.get("/shares/content").await.is(200);
    let source: Marker = share["marker"].as_str().expect("a marker").parse().expect("a marker");
    let part = |after, upto, sites: Value| CountedPart {
        after,
        upto,
        counted: serde_json::from_value(json!({ "sites": sites })).expect("a count"),
    };
    let one = json!({ "2026-11-28": { "requests": 1, "sent": 10, "received": 2 } });
    let two = json!({ "2026-11-28": { "requests": 2, "sent": 20, "received": 4 }, "2026-11-29": { "requests": 1, "sent": 5, "received": 1 } });
    let first = part(0, 3, json!({ "a.example.org": one, "b.example.org": one }));
    let parts = [
        first.clone(),
        // Its acknowledgement was lost.
        first.clone(),
        part(0, 9, json!({ "a.example.org": two })),
        part(3, 9, json!({ "a.example.org": two })),
        part(20, 21, json!({ "a.example.org": two })),
    ];
    for (number, part) in parts.into_iter().enumerate() {
        web1.wire.send(&UpMessage::Traffic { source: source.clone(), stream: Stream::Access, part }).await;
        web1.until(|f| f.traffic_kept.len() > number).await;
    }
    assert_eq!(web1.traffic_kept, [3, 3, 3, 9, 9]);
    // Of a share that is another's: acknowledged, so that it ends, and not added.
    web1.wire.send(&UpMessage::Traffic { source: Marker::from_bits(1), stream: Stream::Access, part: first }).await;
    web1.until(|f| f.traffic_kept.last() == Some(&3)).await;
    // Another stream of the same share counts for itself.
    let mail = json!({ "2026-11-28": { "requests": 0, "messages": 7, "sent": 1, "received": 1 } });
    let counted = part(0, 1, json!({ "b.example.org": mail }));
    web1.wire.send(&UpMessage::Traffic { source: source.clone(), stream: Stream::Mail, part: counted }).await;
    web1.until(|f| f.traffic_kept.last() == Some(&1)).await;
    // However much somebody makes a counter say, the next count is added.
    let much = json!({ "2026-11-28": { "requests": u64::MAX, "messages": 0, "sent": u64::MAX, "received": 0 } });
    for upto in [2, 3, 4] {
        let part = part(upto - 1, upto, json!({ "much.example.org": much }));
        web1.wire.send(&UpMessage::Traffic { source: source.clone(), stream: Stream::Mail, part }).await;
        web1.until(|f| f.traffic_kept.last() == Some(&upto)).await;
    }
    panel.restart().await;
    let row = |site: &str, day: &str, requests: u64, messages: u64, sent: u64, received: u64| json!({ "site": site, "day": day, "requests": requests, "messages": messages, "sent_bytes": sent, "received_bytes": received });
    let all = [
        row("a.example.org", "2026-11-28", 3, 0, 30, 6),
        row("a.example.org", "2026-11-29", 1, 0, 5, 1),
        row("b.example.org", "2026-11-28", 1, 7, 11, 3),
    ];
    let found = panel.get("/traffic").await.is(200)["items"].clone();
    assert_eq!(found.as_array().map(|items| &items[..3]), Some(&all[..]));
    assert_eq!(found[3]["site"], "much.example.org");
    let items = async |query: &str| panel.get(&format!("/traffic?{query}")).await.is(200)["items"].clone();
    assert_eq!(items("site=b.example.org").await, json!([all[2]]));
    assert_eq!(items("from=2026-11-29").await, json!([all[1]]));
    assert_eq!(items("to=2026-11-28&site=a.example.org").await, json!([all[0]]));
    let page = panel.get("/traffic?limit=1").await.is(200);
    let next = page["next_cursor"].as_str().expect("there is more");
    assert_eq!(items(&format!("limit=1&cursor={next}")).await, json!([all[1]]));
    for query in ["from=yesterday", "to=2026-11-2x", "site=-", "days=3"] {
        panel.get(&format!("/traffic?{query}")).await.refused(422, "invalid-value");
    }
}

#[tokio::test]
async fn events_are_kept_once_and_acknowledged() {
    let mut panel = TestPanel::start().await;
    panel.figure_1().await;
    let mut web1 = joined(&panel, "web1").await;
    let event = |number, text: &str| NodeEvent {
        number,
        at_unix_s: 1_800_000_000,
        severity: Severity::Warning,
        topic: "drift".into(),
        text: text.into(),
        detail: "é".repeat(100_000),
    };
    let events = vec![event(1, "one"), event(2, "two")];
    web1.wire.send(&UpMessage::Events { server: name("web1"), events: events.clone() }).await;
    web1.until(|f| f.events_kept == 2).await;
    panel.restart().await;
    web1.reconnect(&panel).await;
    web1.events_kept = 0;
    web1.wire.send(&UpMessage::Events { server: name("web1"), events: vec![event(2, "two"), event(3, "three")] }).await;
    web1.until(|f| f.events_kept == 3).await;
    // Of a stranger: acknowledged, so that it ends, and not kept.
    web1.wire.send(&UpMessage::Events { server: name("lb1"), events }).await;
    while web1.relayed.is_empty() {
        let message = web1.wire.receive().await.expect("an answer");
        web1.handle(message).await;
    }
    let listed = panel.get("/events?limit=1000").await.is(200);
    let texts: Vec<&str> = listed["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|e| e["topic"] == "drift")
        .filter_map(|e| e["text"].as_str())
        .collect();
    assert_eq!(texts, ["one", "two", "three"]);
    assert_eq!(
        listed["items"].as_array().expect("a list").iter().find(|e| e["text"] == "one").expect("kept")["at"],
        "2027-01-15T08:00:00Z"
    );
    let after = panel.get("/events?after=0&limit=1").await.is(200);
    let cursor = after["next_cursor"].as_str().expect("there is more");
    assert_ne!(panel.get(&format!("/events?limit=1&cursor={cursor}")).await.is(200)["items"], after["items"]);
}
