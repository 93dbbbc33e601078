//! Mail domains, mailboxes and aliases: what can be done with them, what is refused, what their nodes get, and that passwords stay inside.

use crate::follower::{TestFollower, join, name, token};
use crate::support::TestPanel;
use phalanx_model::{Row, RowKey};
use phalanx_panel::store::Store;
use phalanx_plan::report::Report;
use phalanx_plan::session::UpMessage;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A hash of the form that imports bring; of which password does not matter.
const HASH: &str = "{SHA512-CRYPT}$6$saltsaltsalt$abcdefghijklmnopqrstuvwxyz0123456789./ABCDEF";

fn mailbox(address: &str) -> Value {
    json!({ "address": address, "password_hash": HASH })
}

fn keys<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list["items"].as_array().expect("a list").iter().map(|item| item[key].as_str().expect("a text")).collect()
}

#[tokio::test]
async fn a_domain_is_made_with_its_key_and_says_what_the_dns_needs() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let made = json!({ "name": "Example.COM", "account": "alice", "logical_server": "post" });
    let made = panel.post("/mail-domains", made).await;
    assert_eq!(made.header("location"), Some("/api/v1/mail-domains/example.com"));
    let made = made.is(201);
    assert_eq!((&made["state"], &made["owner"], &made["etag"]), (&json!("active"), &json!("admin"), &json!("\"1\"")));
    let key = made["dkim"]["public_base64"].as_str().expect("a key");
    let records: Vec<(&str, &str, &str)> = (made["dns"].as_array().expect("records").iter())
        .map(|record| {
            assert!(record["why"].as_str().is_some_and(|why| why.len() > 10), "{record}");
            let text = |key: &str| record[key].as_str().expect("a text");
            (text("name"), text("type"), text("value"))
        })
        .collect();
    let dkim = format!("v=DKIM1; k=rsa; p={key}");
    assert_eq!(
        records,
        [
            ("example.com", "MX", "10 mail.example.net."),
            ("example.com", "TXT", "v=spf1 mx a:mail.example.net -all"),
            ("phalanx._domainkey.example.com", "TXT", dkim.as_str()),
            ("_dmarc.example.com", "TXT", "v=DMARC1; p=quarantine"),
            ("_imaps._tcp.example.com", "SRV", "0 1 993 mail.example.net."),
            ("_pop3s._tcp.example.com", "SRV", "10 1 995 mail.example.net."),
            ("_submissions._tcp.example.com", "SRV", "0 1 465 mail.example.net."),
            ("_submission._tcp.example.com", "SRV", "10 1 587 mail.example.net."),
        ]
    );
    assert_eq!(panel.get("/mail-domains/example.com").await.is(200), made);
    let other = panel.get("/mail-domains/example.org").await.is(200);
    assert_ne!(other["dkim"], made["dkim"], "each domain has a key of its own");

    // Another name of the cluster, another MX; the key stays, also when the state changes.
    panel.patch("/clusters/mail", json!({ "mail_name": "mx.example.net" })).await.is(200);
    let shown = panel.patch("/mail-domains/example.com", json!({ "state": "suspended" })).await.is(200);
    assert_eq!((&shown["dns"][0]["value"], &shown["state"]), (&json!("10 mx.example.net."), &json!("suspended")));
    assert_eq!((&shown["dkim"], &shown["etag"]), (&made["dkim"], &json!("\"2\"")));

    let listed = |query: &str| format!("/mail-domains?{query}");
    for (query, expected) in [
        ("", vec!["example.com", "example.org"]),
        ("account=alice", vec!["example.com", "example.org"]),
        ("account=bob", vec![]),
        ("logical_server=post&account=alice&limit=1", vec!["example.com"]),
        ("logical_server=www", vec![]),
    ] {
        assert_eq!(keys(&panel.get(&listed(query)).await.is(200), "name"), expected, "{query}");
    }
    let first = panel.get(&listed("logical_server=post&limit=1")).await.is(200);
    let cursor = first["next_cursor"].as_str().expect("there is more");
    let second = panel.get(&listed(&format!("logical_server=post&limit=1&cursor={cursor}"))).await.is(200);
    assert_eq!((keys(&second, "name"), &second["next_cursor"]), (vec!["example.org"], &Value::Null));
}

#[tokio::test]
async fn mailboxes_and_aliases_are_made_changed_and_removed_as_they_were_seen() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let made = panel.post("/mailboxes", json!({ "address": "Info@Example.org", "password": "correct horse" })).await;
    assert_eq!(made.header("location"), Some("/api/v1/mailboxes/info@example.org"));
    let (etag, made) = (made.header("etag").expect("a version").to_owned(), made.is(201));
    assert_eq!((&made["quota_mib"], &made["state"]), (&json!(1_024), &json!("active")));
    let path = "/mailboxes/info@example.org";
    let bigger = json!({ "quota_mib": 4_096, "state": "suspended" }).to_string();
    panel.call("PATCH", path, &[("If-Match", "\"9\"")], Some(bigger.as_bytes())).await.refused(412, "stale");
    let changed = panel.call("PATCH", path, &[("If-Match", &etag)], Some(bigger.as_bytes())).await.is(200);
    assert_eq!((&changed["quota_mib"], &changed["etag"]), (&json!(4_096), &json!("\"2\"")));
    assert_eq!(panel.patch(path, json!({ "quota_mib": 4_096 })).await.is(200), changed, "nothing changes");
    let password = panel.patch(path, json!({ "password": "another horse" })).await.is(200);
    assert_eq!(password["etag"], "\"3\"", "a new password is a change");

    let alias = json!({ "source": "@example.org", "targets": ["info@example.org", "Some.One+x@elsewhere.net"] });
    let made = panel.post("/aliases", alias.clone()).await;
    assert_eq!(made.header("location"), Some("/api/v1/aliases/@example.org"));
    assert_eq!(made.is(201)["targets"], alias["targets"]);
    let path_of_alias = "/aliases/%40example.org";
    let fewer = panel.patch(path_of_alias, json!({ "targets": ["info@example.org"] })).await.is(200);
    assert_eq!(panel.get(path_of_alias).await.is(200), fewer);
    // A mailbox that forwards and keeps a copy.
    panel.post("/aliases", json!({ "source": "info@example.org", "targets": ["info@example.org"] })).await.is(201);

    panel.post("/mail-domains", json!({ "name": "example.net", "account": "alice", "logical_server": "post" })).await;
    panel.post("/mailboxes", mailbox("a@example.net")).await.is(201);
    for (path, key, expected) in [
        ("/mailboxes", "address", vec!["a@example.net", "info@example.org"]),
        ("/mailboxes?domain=example.org", "address", vec!["info@example.org"]),
        ("/mailboxes?domain=nowhere.org", "address", vec![]),
        ("/aliases", "source", vec!["@example.org", "info@example.org"]),
        ("/aliases?domain=example.net", "source", vec![]),
    ] {
        assert_eq!(keys(&panel.get(path).await.is(200), key), expected, "{path}");
    }

    panel.call("DELETE", path, &[("If-Match", &etag)], None).await.refused(412, "stale");
    panel.call("DELETE", path, &[("If-Match", "\"3\"")], None).await.is(204);
    panel.get(path).await.refused(404, "unknown");
    let again = panel.post("/mailboxes", mailbox("info@example.org")).await.is(201);
    assert_ne!(again["id"], password["id"], "nobody inherits the mail of who had the address before");
    panel.delete(path).await.is(204);
    let once_more = panel.post("/mailboxes", mailbox("info@example.org")).await.is(201);
    assert_ne!(once_more["id"], again["id"], "nor of the newest one");
    panel.delete(path_of_alias).await.is(204);
    panel.delete(path_of_alias).await.refused(404, "unknown");
}

#[tokio::test]
async fn what_stands_against_mail_is_refused_by_name() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    panel.post("/mailboxes", mailbox("info@example.org")).await.is(201);
    panel.post("/aliases", json!({ "source": "x@example.org", "targets": ["a@b.org"] })).await.is(201);
    let audit = panel.get("/audit?limit=1000").await.is(200);
    let domain = |name: &str, account: &str, logical: &str| json!({ "name": name, "account": account, "logical_server": logical });
    let targets = |count: usize| (0..count).map(|n| format!("t{n}@example.org")).collect::<Vec<_>>();
    let alias = |source: &str, targets: Vec<String>| json!({ "source": source, "targets": targets });
    let valued = |key: &str, value: Value| {
        let mut body = mailbox("new@example.org");
        body[key] = value;
        body
    };
    for (path, body, status, rule) in [
        ("/mail-domains", domain("EXAMPLE.org", "alice", "post"), 409, "name-is-unique"),
        ("/mail-domains", domain("mail.example.net", "alice", "post"), 409, "name-is-unique"),
        ("/mail-domains", domain("new.org", "bob", "post"), 409, "reference-exists"),
        ("/mail-domains", domain("new.org", "alice", "nowhere"), 409, "reference-exists"),
        ("/mail-domains", domain("new.org", "alice", "www"), 409, "kinds-fit"),
        ("/mailboxes", mailbox("INFO@example.org"), 409, "name-is-unique"),
        ("/mailboxes", mailbox("info@new.org"), 409, "reference-exists"),
        ("/mailboxes", json!({ "address": "new@example.org" }), 422, "invalid-value"),
        ("/mailboxes", valued("password", json!("correct horse")), 422, "invalid-value"),
        ("/mailboxes", valued("password_hash", json!("{PLAIN}secret")), 422, "invalid-value"),
        ("/mailboxes", valued("quota_mib", json!(0)), 422, "invalid-value"),
        ("/mailboxes", valued("id", json!(7)), 422, "invalid-value"),
        ("/mailboxes", json!({ "address": "new@example.org", "password": "short77" }), 422, "invalid-value"),
        ("/aliases", alias("x@example.org", targets(1)), 409, "name-is-unique"),
        ("/aliases", alias("@new.org", targets(1)), 409, "reference-exists"),
        ("/aliases", alias("new@example.org", vec![]), 422, "invalid-value"),
        ("/aliases", alias("new@example.org", targets(101)), 422, "invalid-value"),
        ("/aliases", alias("new@example.org", [targets(2), targets(1)].concat()), 422, "invalid-value"),
        (
            "/clusters",
            json!({ "name": "m", "kind": "mail", "master": "mail2", "mail_name": "example.org" }),
            409,
            "name-is-unique",
        ),
        ("/clusters", json!({ "name": "m", "kind": "mail", "master": "mail2" }), 409, "server-belongs-to-one-cluster"),
        ("/clusters/mail/grants/mailboxes/move", json!({ "to": "web1" }), 409, "reference-exists"),
        ("/clusters/mail/grants/queue-web1/move", json!({ "to": "mail1" }), 409, "reference-exists"),
        ("/clusters/web/grants/mailboxes/move", json!({ "to": "web1" }), 409, "reference-exists"),
        ("/clusters/mail/grants/anything/move", json!({ "to": "mail1" }), 404, "unknown"),
    ] {
        panel.post(path, body).await.refused(status, rule);
    }
    panel.patch("/clusters/web", json!({ "mail_name": "x.example.net" })).await.refused(409, "kinds-fit");
    panel.patch("/clusters/mail", json!({ "mail_name": "example.org" })).await.refused(409, "name-is-unique");
    for path in ["/accounts/alice", "/accounts/alice?sites=true", "/logical-servers/post", "/mail-domains/example.org"]
    {
        panel.delete(path).await.refused(409, "in-use-is-not-removed");
    }
    assert_eq!(panel.get("/audit?limit=1000").await.is(200), audit, "what is refused leaves nothing behind");
    // As many targets as may be, and the way out of each refusal.
    panel.post("/aliases", alias("new@example.org", targets(100))).await.is(201);
    panel.delete("/mail-domains/example.org?mailboxes=true").await.is(204);
    for list in ["mail-domains", "mailboxes", "aliases"] {
        assert_eq!(panel.get(&format!("/{list}")).await.is(200)["items"], json!([]), "{list}");
    }
    panel.delete("/logical-servers/post").await.is(204);
    panel.delete("/accounts/alice?sites=true").await.is(204);
}

#[tokio::test]
async fn a_grant_is_asked_for_and_taken_back() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let path = "/clusters/mail/grants/mailboxes/move";
    let asked = panel.post(path, json!({ "to": "mail2" })).await.is(200);
    assert_eq!(asked["grants"]["mailboxes"], json!({ "number": 1, "holder": "mail1", "moving_to": "mail2" }));
    assert_eq!(asked["grants"]["queue-mail2"], json!({ "number": 1, "holder": "mail2" }));
    assert_eq!(asked["mail"], json!({ "host_name": "mail.example.net" }));
    let back = panel.post(path, json!({ "to": "mail1" })).await.is(200);
    assert_eq!(back["grants"]["mailboxes"], json!({ "number": 1, "holder": "mail1" }));
    let logs = &panel.get("/clusters/web").await.is(200)["grants"]["logs"];
    assert_eq!(*logs, json!({ "number": 1, "holder": "web1" }));
    panel.post("/clusters/web/grants/logs/move", json!({ "to": "web1" })).await.refused(409, "grant-moves-by-proof");
}

/// The holder's agent says, under the spec at `under`, that no process of its may open a mailbox.
async fn lets_go(holder: &mut TestFollower, under: phalanx_model::Position) {
    let released = BTreeMap::from([(phalanx_model::Right::Mailboxes, under)]);
    let report = Report { converged: true, spec: holder.spec_at, released, ..Report::default() };
    holder.wire.send(&UpMessage::Reports { reports: BTreeMap::from([(name("mail1"), report)]) }).await;
}

#[tokio::test]
async fn a_grant_moves_by_the_holders_word_under_the_spec_that_ends_it() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let mut mail1 = follow(&panel, "mail1").await;
    let grant = async || panel.get("/clusters/mail").await.is(200)["grants"]["mailboxes"].clone();
    let path = "/clusters/mail/grants/mailboxes/move";
    let before = mail1.spec_at;
    panel.post(path, json!({ "to": "mail2" })).await.is(200);
    mail1.until(|f| f.spec_at > before).await;
    // What was seen under the spec before says nothing: Dovecot may have been started since. Nor does a report without a word of it.
    lets_go(&mut mail1, before).await;
    let silent = Report { converged: true, spec: mail1.spec_at, ..Report::default() };
    mail1.wire.send(&UpMessage::Reports { reports: BTreeMap::from([(name("mail1"), silent)]) }).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(grant().await, json!({ "number": 1, "holder": "mail1", "moving_to": "mail2" }));
    let asked = mail1.spec_at;
    lets_go(&mut mail1, asked).await;
    mail1.until(|f| f.spec_at > asked).await;
    assert_eq!(grant().await, json!({ "number": 2, "holder": "mail2" }));
    let status = panel.get("/status").await.is(200);
    let mail =
        status["clusters"].as_array().expect("clusters").iter().find(|c| c["name"] == "mail").expect("mail").clone();
    assert_eq!(mail["grants"]["mailboxes"]["holder"], "mail2");
}

/// All rows that a cluster gets which knows nothing, and how many pieces they came in.
async fn snapshot(store: &Store, cluster: &str) -> (BTreeMap<RowKey, Row>, usize) {
    let mut reader = store.snapshot(&name(cluster)).await.expect("a snapshot");
    let (mut rows, mut pieces) = (BTreeMap::new(), 0);
    loop {
        let piece = reader.next_piece().await.expect("a piece");
        pieces += 1;
        for row in piece.rows {
            if let Some(twice) = rows.insert(row.key(), row) {
                panic!("{:?} came twice", twice.key());
            }
        }
        if piece.last {
            return (rows, pieces);
        }
    }
}

async fn follow(panel: &TestPanel, server: &str) -> TestFollower {
    let member = join(panel, &token(panel, server).await).await.expect("it joins");
    let mut follower = TestFollower::connect(panel, member).await;
    follower.until(|f| f.spec.is_some() && f.snapshots == 1).await;
    follower
}

/// One change at random; what is refused is a change of nothing.
async fn change_at_random(panel: &TestPanel, dice: &mut StdRng) {
    let domain = *["example.org", "a.example.org", "b.example.org"].choose(dice).expect("some");
    let address = format!("box{}@{domain}", dice.random_range(0..4));
    let quota = dice.random_range(1..9);
    let is_in_range = |status: u16| status < 300 || matches!(status, 404 | 409);
    let answer = match dice.random_range(0..12) {
        0 | 1 => {
            let logical = *["post", "post2"].choose(dice).expect("some");
            let account = *["alice", "bob"].choose(dice).expect("some");
            panel.post("/mail-domains", json!({ "name": domain, "account": account, "logical_server": logical })).await
        }
        2 => {
            let how = *["", "?mailboxes=true"].choose(dice).expect("some");
            panel.delete(&format!("/mail-domains/{domain}{how}")).await
        }
        3 => panel.patch(&format!("/mail-domains/{domain}"), json!({ "state": "suspended" })).await,
        4..=6 => panel.post("/mailboxes", mailbox(&address)).await,
        7 => panel.patch(&format!("/mailboxes/{address}"), json!({ "quota_mib": quota })).await,
        8 => panel.delete(&format!("/mailboxes/{address}")).await,
        9 => panel.post("/aliases", json!({ "source": format!("@{domain}"), "targets": [address] })).await,
        10 => panel.patch(&format!("/aliases/@{domain}"), json!({ "targets": [address, "x@y.org"] })).await,
        _ => panel.delete(&format!("/aliases/@{domain}")).await,
    };
    assert!(is_in_range(answer.status), "{answer:?}");
}

#[tokio::test]
async fn who_follows_has_what_a_snapshot_has() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    // A second mail cluster, whose share is its own and on no nas, and an account that is placed on it.
    panel.post("/servers", json!({ "name": "mail3", "kind": "mail", "address": "10.9.0.33/24" })).await.is(201);
    panel.post("/shares", json!({ "name": "own", "kind": "local", "path": "/srv/mail" })).await.is(201);
    let second =
        json!({ "name": "mail2", "kind": "mail", "master": "mail3", "share": "own", "mail_name": "m2.example.net" });
    panel.post("/clusters", second).await.is(201);
    panel.post("/logical-servers", json!({ "name": "post2", "server": "mail3" })).await.is(201);
    panel.post("/accounts", json!({ "name": "bob", "logical_server": "post2" })).await.is(201);
    let clusters = [("web1", "web"), ("mail1", "mail"), ("mail3", "mail2"), ("nas1", "nas")];
    let mut followers = Vec::new();
    for (server, cluster) in clusters {
        followers.push((follow(&panel, server).await, cluster));
    }
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    for _ in 0..150 {
        change_at_random(&panel, &mut dice).await;
    }
    // What ends the changes, so that each follower knows when it has seen all.
    panel.delete("/mail-domains/example.org?mailboxes=true").await;
    panel.post("/mail-domains", json!({ "name": "example.org", "account": "alice", "logical_server": "post" })).await;
    panel.post("/aliases", json!({ "source": "@example.org", "targets": ["last@example.org"] })).await.is(201);
    panel.post("/mailboxes", mailbox("last@example.org")).await.is(201);
    panel
        .post("/mail-domains", json!({ "name": "last.org", "account": "bob", "logical_server": "post2" }))
        .await
        .is(201);
    panel.post("/sites", json!({ "name": "last.example.org", "account": "alice" })).await.is(201);
    let last = |cluster: &str| match cluster {
        "mail" => RowKey::Mailbox("last@example.org".parse().expect("an address")),
        "mail2" => RowKey::MailDomain("last.org".parse().expect("a domain")),
        _ => RowKey::Site("last.example.org".parse().expect("a host name")),
    };
    let store = Store::open(&panel.dir.path().join("panel.sqlite"), false).await.expect("it opens");
    for (mut follower, cluster) in followers {
        follower.until(|f| f.rows.contains_key(&last(cluster))).await;
        assert_eq!(follower.snapshots, 1, "it followed");
        assert_eq!(follower.rows, snapshot(&store, cluster).await.0, "{cluster}, seed {seed}");
        let has = |what: fn(&Row) -> bool| follower.rows.values().any(what);
        let is_mail = |row: &Row| !matches!(row, Row::Account { .. } | Row::Site(_));
        assert_eq!(has(is_mail), cluster != "web", "{cluster}");
        let row = follower.rows.get(&RowKey::MailDomain("example.org".parse().expect("a domain")));
        let uid = panel.get("/accounts/alice").await.is(200)["uid"].clone();
        match row {
            Some(Row::MailDomain { uid: owner, share, dkim, .. }) => {
                assert!(json!(owner) == uid && share.as_str() == "letters", "{row:?}");
                // Who keeps the share signs nothing and lets nobody in.
                let pem = dkim.as_ref().map_or("", |dkim| dkim.private_pem.as_str());
                assert_eq!(pem.starts_with("-----BEGIN PRIVATE KEY-----"), cluster != "nas");
                assert_eq!(has(|row| matches!(row, Row::Mailbox(_) | Row::MailAlias(_))), cluster != "nas");
            }
            _ => assert!(matches!(cluster, "web" | "mail2"), "{cluster}: {row:?}"),
        }
    }
}

#[tokio::test]
async fn a_snapshot_of_many_mailboxes_has_each_once() {
    let panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let store = Store::open(&panel.dir.path().join("panel.sqlite"), false).await.expect("it opens");
    let mut write = store.write(&phalanx_panel::store::Actor::panel()).await.expect("its turn");
    for n in 0..750 {
        let address = format!("a{n}@example.org").parse().expect("an address");
        write.add_mailbox(address, HASH.parse().expect("a hash"), Default::default()).await.expect("a new mailbox");
        if n < 500 {
            let source = format!("b{n}@example.org").parse().expect("an address");
            let targets = vec!["x@y.org".parse().expect("an address")];
            let alias = phalanx_model::MailAlias { source, targets };
            write.add_mail_alias(alias).await.expect("a new alias");
        }
    }
    write.commit().await.expect("committed");
    let (rows, pieces) = snapshot(&store, "mail").await;
    assert_eq!(rows.len(), 1 + 750 + 500);
    // Parts that end with a whole piece: none is left out, and the last says so.
    assert_eq!(pieces, 1 + 3 + 2 + 1);
    assert_eq!(snapshot(&store, "web").await.0.len(), 2);
    assert_eq!(snapshot(&store, "nas").await.0.len(), 2 + 1, "who keeps the share makes domains' directories alone");
}

/// All that a store's tables hold, as (table.column, text).
async fn columns(panel: &TestPanel) -> Vec<(String, String)> {
    let path = panel.dir.path().join("panel.sqlite");
    let url = format!("sqlite://{}?mode=ro", path.display());
    let pool = sqlx::SqlitePool::connect(&url).await.expect("it opens");
    let sql = "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'";
    let all: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&pool).await.expect("tables");
    let mut found = Vec::new();
    for (table, column) in all {
        let sql = format!("SELECT CAST(\"{column}\" AS TEXT) FROM \"{table}\" WHERE \"{column}\" IS NOT NULL");
        let values: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await.unwrap_or_default();
        found.extend(values.into_iter().map(|value| (format!("{table}.{column}"), value)));
    }
    found
}

#[tokio::test]
async fn passwords_and_keys_stay_inside() {
    let mut panel = TestPanel::start().await;
    panel.figure_1().await;
    panel.with_mail().await;
    let (first, second, third) = ("correct-horse-1", "battery-staple-2", "wrong\u{7}staple-3");
    let mut told = Vec::new();
    let key = [("Idempotency-Key", "a-mailbox")];
    for password in [first, second] {
        let body = json!({ "address": "a@example.org", "password": password }).to_string();
        told.push(panel.call("POST", "/mailboxes", &key, Some(body.as_bytes())).await);
    }
    // A fast hash of the request would let its password be guessed: what is kept does not tell the two apart.
    assert_eq!(told[1].header("idempotency-replayed"), Some("true"), "known by its key, without its password");
    told.push(panel.post("/mailboxes", mailbox("b@example.org")).await);
    told.push(panel.patch("/mailboxes/a@example.org", json!({ "password": second })).await);
    assert!(told.iter().all(|answer| answer.status < 300), "{told:?}");
    // Refused in every way, also what is no JSON or of another type.
    for body in [
        json!({ "address": "c@example.org", "password": third }).to_string(),
        json!({ "address": "c@example.org", "password": [first] }).to_string(),
        json!({ "address": "c@example.org", "password": first, "password_hash": HASH }).to_string(),
        json!({ "address": "c@nowhere.org", "password": first }).to_string(),
        json!({ "address": "a@example.org", "password": first }).to_string(),
        json!({ "address": "c@example.org", "password_hash": format!("{HASH}'") }).to_string(),
        format!("{{\"address\": \"c@example.org\", \"password\": \"{first}\""),
        format!("{{\"address\": \"c@example.org\", \"password\": {first}}}"),
    ] {
        let key = body.len().to_string();
        let answer = panel.call("POST", "/mailboxes", &[("Idempotency-Key", &key)], Some(body.as_bytes())).await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
        told.push(answer);
    }
    for path in [
        "/mail-domains",
        "/mail-domains/example.org",
        "/mailboxes",
        "/mailboxes/a@example.org",
        "/aliases",
        "/clusters",
        "/clusters/mail",
        "/servers",
        "/status",
        "/audit?limit=1000",
        "/events",
    ] {
        told.push(panel.get(path).await);
    }
    panel.stop().await;
    let columns = columns(&panel).await;
    let hashes: Vec<&str> =
        columns.iter().filter(|(at, _)| at == "mailbox.password").map(|(_, hash)| hash.as_str()).collect();
    assert!(hashes.len() == 2 && hashes[0].starts_with("{ARGON2ID}$argon2id$") && hashes[1] == HASH, "{hashes:?}");
    let outside: String = told.iter().map(|answer| format!("{:?}{}", answer.headers, answer.body)).collect();
    let digits_of = |hash: &'static str| hash.rsplit('$').next().expect("it has parts");
    let secrets =
        [first, second, "wrong", "staple-3", "$v=19$m=", digits_of(HASH), "PRIVATE KEY", "private_pem", "seed"];
    for secret in secrets {
        assert!(!outside.contains(secret), "{secret} is told");
    }
    let inside = ["mailbox.password", "mail_domain.dkim", "mail_secret.body", "change.body"];
    for (at, value) in columns.iter().filter(|(at, _)| !inside.contains(&at.as_str())) {
        assert!(!secrets.iter().any(|secret| *secret != "seed" && value.contains(secret)), "{at}: {value}");
    }
    for (at, value) in &columns {
        assert!(![first, second].iter().any(|password| value.contains(password)), "{at}: {value}");
    }
    for file in ["panel.sqlite", "panel.sqlite-wal"] {
        let bytes = std::fs::read(panel.dir.path().join(file)).unwrap_or_default();
        let holds = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        assert!(!holds(first) && !holds(second), "{file}");
    }
}
