//! `phalanx status` drawn from values: what a person sees at a glance.

use super::*;
use expect_test::{Expect, expect};
use serde::Deserialize as _;
use serde_json::{Value, json};

#[track_caller]
fn check(status: Value, expected: Expect) {
    let status = Status::deserialize(&status).expect("a status");
    expected.assert_eq(&picture(&status, Style::Plain));
}

fn node(server: &str, role: &str, state: &str, score_percent: u8, rate: f64, share: f64) -> Value {
    json!({
        "server": server, "role": role, "state": state, "why": "", "joined": true, "connected": true, "last_seen": "2026-11-22T22:11:04Z",
        "converged": true, "problems": [], "load": {"score_percent": score_percent, "requests_per_second": rate},
        "share_percent": share, "flows": 9,
    })
}

fn figure_1() -> Value {
    json!({
        "clusters": [
            {"name": "lb", "kind": "balancer", "nodes": [node("lb1", "master", "up", 100, 0.0, 0.0)]},
            {"name": "nas", "kind": "nas", "nodes": [node("nas1", "master", "up", 100, 0.0, 0.0)]},
            {"name": "web", "kind": "web", "master": "web1", "logical_servers": ["www"], "share": "content", "nodes": [
                node("web1", "master", "up", 73, 41.2, 50.3), node("web2", "slave", "up", 82, 140.9, 49.7),
            ]},
        ],
        "balancers": [{"name": "lb", "services": [{"external": "198.51.100.10:80", "cluster": "web"}]}],
        "shares": [{"name": "content", "kind": "nfs-managed", "nas": "nas", "path": "/srv/nas/web"}],
        "counts": {"servers": 4, "clusters": 3, "accounts": 1, "sites": 2},
    })
}

#[test]
fn figure_1_in_good_health() {
    check(
        figure_1(),
        expect![[r#"
            ● all is well   4 servers, 3 clusters, 1 account, 2 sites

            Web cluster web

              clients
                 │
                 ▼
              198.51.100.10:80   balancer lb  ● lb1 up
                 │
                 ├─▶ ● web1  master  up          ███░░░░░░░  27 %     41.2 req/s   50 % of traffic  9 open
                 └─▶ ● web2  slave   up          ██░░░░░░░░  18 %      141 req/s   50 % of traffic  9 open
                 │
                 ▼
              share content   on nas  ● nas1 up   nfs-managed /srv/nas/web
        "#]],
    );
}

#[test]
fn troubles_are_in_words() {
    let mut status = figure_1();
    let mut gone = node("web2", "slave", "down", 82, 0.0, 0.0);
    gone["connected"] = json!(false);
    let mut late = node("web3", "slave", "unknown", 0, 0.0, 0.0);
    late["connected"] = json!(false);
    late["state"] = json!("down");
    for (key, value) in
        [("joined", json!(false)), ("last_seen", Value::Null), ("problems", Value::Null), ("load", Value::Null)]
    {
        late[key] = value;
    }
    gone["why"] = json!("no answer to the health check within 1 s");
    let mut busy = node("web1", "master", "overloaded", 0, 512.0, 100.0);
    busy["problems"] =
        json!(["httpd refused extra.conf line 3: Invalid command 'Foo'\u{1b}[2J; the last good generation stays live"]);
    status["clusters"][2]["nodes"] = json!([busy, gone, late, node("web4", "slave", "drained", 100, 0.0, 0.0)]);
    check(
        status,
        expect![[r#"
            ✖ 5 problems   4 servers, 3 clusters, 1 account, 2 sites

            Web cluster web

              clients
                 │
                 ▼
              198.51.100.10:80   balancer lb  ● lb1 up
                 │
                 ├─▶ ▲ web1  master  overloaded  ██████████ 100 %      512 req/s  100 % of traffic  9 open
                 ├─▶ ✖ web2  slave   down        ··········    ?          ? req/s    0 % of traffic  9 open
                 ├─▶ ▲ web3  slave   not joined  ··········    ?          ? req/s    0 % of traffic  9 open
                 └─▶ ○ web4  slave   drained     ░░░░░░░░░░   0 %      0.0 req/s    0 % of traffic  9 open
                 │
                 ▼
              share content   on nas  ● nas1 up   nfs-managed /srv/nas/web

            Problems
              ✖ web2 (web): down: no answer to the health check within 1 s
              ▲ web1 (web): overloaded, gets nothing new
              ▲ web1 (web): httpd refused extra.conf line 3: Invalid command 'Foo'�[2J; the last good generation stays live
              ▲ web2 (web): its agent is out of reach, last seen 2026-11-22 22:11:04 UTC: look on web2, `journalctl -u phalanx-agent`
              ▲ web3 (web): it has not joined yet: `phalanx server token web3` gives the command
        "#]],
    );
}

#[test]
fn a_cluster_that_serves_nobody_is_the_worst() {
    let mut status = figure_1();
    status["clusters"][2]["nodes"] =
        json!([node("web1", "master", "drained", 100, 0.0, 0.0), node("web2", "slave", "drained", 100, 0.0, 0.0)]);
    let status = Status::deserialize(&status).expect("a status");
    let text = picture(&status, Style::Plain);
    assert!(text.starts_with("✖ 1 problem "), "{text}");
    assert!(text.ends_with("  ✖ web: no node is in service, so clients get no answer\n"), "{text}");
}

#[test]
fn what_is_not_used_yet_is_seen_too() {
    let web = json!({"name": "web", "kind": "web", "master": "web1", "nodes": [node("web1", "master", "unknown", 100, 0.0, 0.0)]});
    let nas = json!({"name": "nas", "kind": "nas", "nodes": [node("nas1", "master", "up", 100, 0.0, 0.0)]});
    check(
        json!({
            "clusters": [web, nas], "free_servers": [{"server": "web9", "kind": "web"}],
            "counts": {"servers": 3, "clusters": 2, "accounts": 0, "sites": 1},
        }),
        expect![[r#"
            ▲ 3 problems   3 servers, 2 clusters, 0 accounts, 1 site

            Web cluster web

              no external address
                 │
                 └─▶ ▲ web1  master  unknown     ░░░░░░░░░░   0 %      0.0 req/s    0 % of traffic  9 open

              no share

            Nas cluster nas  ● nas1 up  not used yet

            In no cluster: web9 (web, not joined)

            Problems
              ▲ web: no external address leads to it: `phalanx address add IP:PORT --balancer CLUSTER --cluster web`
              ▲ web: it has no share, so its nodes serve nothing: `phalanx cluster change web --share SHARE`
              ▲ web9: it has not joined yet: `phalanx server token web9` gives the command

            Next: phalanx logical-server add www --server web1
        "#]],
    );
    check(
        json!({}),
        expect![[r#"
        Nothing is set up yet. Begin with `phalanx server add --help`.
    "#]],
    );
}

#[test]
fn a_machine_that_was_only_named_is_not_well() {
    let free = |server: &str, kind: &str, joined: bool, connected: bool| {
        json!({
            "server": server, "kind": kind, "joined": joined, "connected": connected,
        })
    };
    check(
        json!({
            "free_servers": [
                free("lb1", "balancer", true, true), free("nas1", "nas", true, false), free("web1", "web", false, false),
            ],
            "counts": {"servers": 3, "clusters": 0, "accounts": 0, "sites": 0},
        }),
        expect![[r#"
            ▲ 2 problems   3 servers, 0 clusters, 0 accounts, 0 sites

            In no cluster: lb1 (balancer, connected), nas1 (nas, out of reach), web1 (web, not joined)

            Problems
              ▲ nas1: its agent is out of reach: look on nas1, `journalctl -u phalanx-agent`
              ▲ web1: it has not joined yet: `phalanx server token web1` gives the command

            Next: phalanx cluster add front --kind balancer --master lb1
        "#]],
    );
    check(
        json!({
            "free_servers": [free("web1", "web", true, true)], "shares": [{"name": "content"}],
            "counts": {"servers": 1, "clusters": 0, "accounts": 0, "sites": 0},
        }),
        expect![[r#"
            ● all is well   1 server, 0 clusters, 0 accounts, 0 sites

            In no cluster: web1 (web, connected)

            Next: phalanx cluster add web --kind web --master web1 --share content
        "#]],
    );
}

#[test]
fn a_node_that_leaves_says_how_long_it_may_take() {
    let mut status = figure_1();
    status["clusters"][2]["nodes"][1]["state"] = json!("drained");
    status["clusters"][2]["nodes"][1]["leaving"] = json!({"task": 4, "left_s": 25, "flows": 9});
    let text = picture(&Status::deserialize(&status).expect("a status"), Style::Plain);
    let line = text.lines().find(|line| line.contains("web2")).expect("its line");
    assert!(line.contains("○ web2  slave   leaving ") && line.ends_with("9 open  25 s left"), "{line}");
}

#[test]
fn colours_say_the_same_as_the_marks() {
    let status = Status::deserialize(&figure_1()).expect("a status");
    let coloured = picture(&status, Style::Coloured);
    assert!(coloured.contains("\u{1b}[32m●\u{1b}[0m web1"), "{coloured}");
    let mut plain = String::new();
    for (i, piece) in coloured.split('\u{1b}').enumerate() {
        plain += if i == 0 { piece } else { piece.split_once('m').map_or("", |(_, rest)| rest) };
    }
    assert_eq!(plain, picture(&status, Style::Plain));
}

/// A mail cluster whose mailboxes have this grant, and whose master is heard or not.
fn mail(grant: Value, heard: bool) -> Value {
    let mut holder = node("mail1", "master", "up", 100, 0.0, 50.0);
    holder["queues"] = json!([{"of": "mail1", "count": {"messages": 12, "held": 2}}, {"of": "mail3", "count": {"messages": 1204, "held": 0}}]);
    holder["connected"] = json!(heard);
    let mut slave = node("mail2", "slave", "up", 100, 0.0, 50.0);
    // One that can't be counted now: what is known is not the whole.
    slave["queues"] = json!([{"of": "mail2", "count": {"messages": 3, "held": 0}}, {"of": "mail4", "count": null}]);
    json!({
        "clusters": [{"name": "mail", "kind": "mail", "master": "mail1", "logical_servers": ["post"], "share": "letters",
            "grants": {"mailboxes": grant, "queue-mail1": {"number": 1, "holder": "mail1"}},
            "nodes": [holder, slave]}],
        "balancers": [{"name": "front", "services": [{"external": "198.51.100.25:25", "cluster": "mail"}]}],
        "shares": [{"name": "letters", "kind": "local", "path": "/srv/nas/mail"}],
        "counts": {"servers": 2, "clusters": 1, "accounts": 1, "sites": 0},
    })
}

#[test]
fn who_opens_mailboxes_is_seen() {
    check(
        mail(json!({"number": 3, "holder": "mail2"}), true),
        expect![[r#"
            ● all is well   2 servers, 1 cluster, 1 account, 0 sites

            Mail cluster mail

              clients
                 │
                 ▼
              198.51.100.25:25   balancer front  
                 │
                 ├─▶ ● mail1  master  up          ░░░░░░░░░░   0 %     1216 queued   50 % of traffic  9 open  2 held
                 └─▶ ● mail2  slave   up          ░░░░░░░░░░   0 %        ? queued   50 % of traffic  9 open  opens mailboxes
                 │  mailboxes: mail2, grant number 3
                 │
                 ▼
              share letters   local /srv/nas/mail
        "#]],
    );
}

#[test]
fn what_a_mail_node_fails_at_is_named_and_ports_of_one_address_are_one_line() {
    let mut status = mail(json!({"number": 3, "holder": "mail2", "moving_to": "mail1"}), true);
    let service = |port: u16, of_mail1: &str| {
        json!({"external": format!("198.51.100.25:{port}"), "cluster": "mail", "port": port, "backends": [
            {"server": "mail1", "state": of_mail1}, {"server": "mail2", "state": "up"}]})
    };
    status["balancers"][0]["services"] = json!([service(993, "down"), service(25, "up"), service(143, "down")]);
    let text = picture(&Status::deserialize(&status).expect("a status"), Style::Plain);
    let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap_or_default().to_owned();
    assert!(line("balancer front").starts_with("  198.51.100.25   balancer"), "{text}");
    assert_eq!(line("ports"), "  ports 25, 143, 993");
    assert!(line("● mail1").ends_with("  no imap, imaps"), "{text}");
    assert!(line("● mail2").ends_with(" open"), "it is moving away: {text}");
    assert_eq!(line("mailboxes: "), "     │  mailboxes: mail2, grant number 3, moving to mail1");
}

#[test]
fn mailboxes_that_move_are_a_problem_and_more_so_when_their_holder_is_silent() {
    let moving = || json!({"number": 3, "holder": "mail1", "moving_to": "mail2"});
    let words = |heard| {
        let status = Status::deserialize(&mail(moving(), heard)).expect("a status");
        problems(&status)
            .into_iter()
            .map(|problem| format!("{:?} {}\n", problem.severity, problem.text))
            .collect::<String>()
    };
    expect![[r#"
        Warning mail: mailboxes move from mail1 to mail2; clients wait until mail1 has let go
    "#]]
    .assert_eq(&words(true));
    expect![[r#"
        Bad mail: mailboxes can't move to mail2: mail1 is out of reach, and nobody can tell whether it still writes; make sure that it does not: `phalanx server fence mail1`; or take the move back: `phalanx cluster move-grant mail mailboxes --to mail1`
        Warning mail1 (mail): its agent is out of reach, last seen 2026-11-22 22:11:04 UTC: look on mail1, `journalctl -u phalanx-agent`
    "#]].assert_eq(&words(false));
}
