//! Hostile input: each text of `hostile/texts.txt`, in every field, through the API and the command line, is refused with a reason or kept and
//! read back unchanged, by the API and by the daemon that it is for. Raw bytes at the external address get an error of the client's, in time.
//!
//! Nothing that the texts would run has run, nothing failed, and nobody else noticed.

use anyhow::{Context, Result, ensure};
use phalanx_lab::Host;
use phalanx_lab::figure::{EXTERNAL, Figure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

mod api;
mod commands;
mod daemons;
mod fields;

use api::Api;

const TEXTS: &str = include_str!("hostile/texts.txt");
const KNOCK: &str = include_str!("hostile/knock.py");
const HOSTS: [&str; 6] = ["cp", "lb", "web1", "web2", "nas", "client"];
/// The longest that any answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A text as JSON writes it, which may be no text at all: half of a character.
fn texts() -> Vec<String> {
    let written = TEXTS.lines().filter(|line| line.starts_with('"')).map(str::to_owned);
    let long = [33, 64, 254, 301, 1_001, 70_000, 600_000].map(|length| format!("\"{}\"", "a".repeat(length)));
    let labels = format!("\"{}example.org\"", "a.".repeat(120));
    let parts = format!("\"{}x\"", "a/".repeat(140));
    written.chain(long).chain([labels, parts]).collect()
}

/// JSON that is none, or not what anybody expects, as whole bodies.
fn bodies() -> Vec<String> {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(50_000), close.repeat(50_000));
    let fixed = [
        "",
        " ",
        "null",
        "[]",
        "0",
        "\"\"",
        "{",
        "}",
        "{\"name\":",
        "{\"name\":}",
        "{\"name\":\"a\",}",
        "{'name':'a'}",
        "{name:\"a\"}",
        "{} {}",
        "{}x",
        "\u{feff}{}",
        "[{}]",
        "{\"name\":\"a\",\"name\":\"b\"}",
        "{\"name\":null}",
        "{\"name\":[]}",
        "{\"name\":{}}",
        "{\"name\":true}",
        "{\"name\":1e999}",
        "{\"__proto__\":{\"admin\":true}}",
        "{\"name\":\"a\",\"uid\":0}",
        "{\"name\":\"a\",\"owner\":\"admin\",\"role\":\"admin\"}",
        "NaN",
        "// x\n{}",
        "<a/>",
        "a=b&c=d",
    ];
    fixed.map(str::to_owned).into_iter().chain([deep("[", "]"), deep("{\"a\":", "}"), deep("[", "")]).collect()
}

/// Numbers out of their range or no numbers, as JSON.
const NUMBERS: [&str; 16] = [
    "-1",
    "0",
    "1.5",
    "1e3",
    "1e999",
    "-0",
    "00",
    "0x10",
    "255",
    "256",
    "65536",
    "4294967296",
    "99999999999999999999999",
    "\"1\"",
    "null",
    "[1]",
];

/// Each text in paths, queries and headers; whole bodies; numbers.
fn everywhere_else(api: &mut Api, texts: &[String]) -> Result<()> {
    const LISTS: [&str; 8] =
        ["servers", "clusters", "shares", "addresses", "logical-servers", "accounts", "sites", "tokens"];
    for text in texts.iter().filter(|text| text.len() < 2_000) {
        let Ok(text) = serde_json::from_str::<String>(text) else { continue };
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        // Names without a character in them name the list itself, or its parent.
        if !encoded.is_empty() && !["fine.example.org", "true", "null"].contains(&text.as_str()) {
            for list in LISTS {
                ensure!(
                    api.refusal_or("GET", &format!("/{list}/{encoded}"), "", b"")?.is_none(),
                    "{list} has {text:?}"
                );
            }
            for path in [format!("/servers/{encoded}/join-token"), format!("/clusters/{encoded}/slaves")] {
                ensure!(api.refusal_or("POST", &path, "", b"{\"server\":\"spare\"}")?.is_none(), "{path}");
            }
            ensure!(api.refusal_or("DELETE", &format!("/clusters/web/slaves/{encoded}"), "", b"")?.is_none());
        }
        for query in [
            "sites?account=",
            "sites?cursor=",
            "sites?limit=",
            "accounts?logical_server=",
            "events?after=",
            "audit?cursor=",
            "servers?",
        ] {
            api.refusal_or("GET", &format!("/{query}{encoded}"), "", b"")?;
        }
        if text.bytes().all(|byte| byte >= b' ' && byte != 0x7f) {
            api.refusal_or("PATCH", "/sites/ada.example.org", &format!("If-Match: {text}\r\n"), b"{}")?;
            api.refusal_or(
                "PATCH",
                "/sites/ada.example.org",
                &format!("Idempotency-Key: {text}\r\nX-Forwarded-For: {text}\r\n"),
                b"{}",
            )?;
        }
    }
    for path in
        ["/servers", "/clusters", "/shares", "/addresses", "/accounts", "/sites", "/tokens", "/clusters/web/slaves"]
    {
        for body in bodies() {
            ensure!(api.refusal_or("POST", path, "", body.as_bytes())?.is_none(), "{path} accepted {body:.300}");
        }
        for bytes in [
            &b"\xff\xfe"[..],
            b"{\"name\":\"\xc0\xaf\"}",
            b"{\"name\":\"\xed\xa0\x80\"}",
            b"\x00\x00\x00{",
            b"\x1f\x8b\x08",
        ] {
            ensure!(api.refusal_or("POST", path, "", bytes)?.is_none());
        }
    }
    for number in NUMBERS {
        for (method, path, body) in [
            ("POST", "/servers/web1/rollback", "{\"generation\":@}"),
            (
                "POST",
                "/addresses",
                "{\"external\":\"127.0.0.1:80\",\"balancer\":\"front\",\"cluster\":\"web\",\"port\":@}",
            ),
            ("POST", "/clusters/web/slaves", "{\"server\":\"spare\",\"weight\":@}"),
            (
                "POST",
                "/accounts",
                "{\"name\":\"ada\",\"logical_server\":\"www\",\"limits\":{\"memory_mib\":@,\"processes\":@}}",
            ),
        ] {
            ensure!(
                api.refusal_or(method, path, "", body.replace('@', number).as_bytes())?.is_none(),
                "{path} accepted {number}"
            );
        }
    }
    Ok(())
}

/// Raw bytes at the external address. The client's own script sends each and tells the first line of the answer and how long it took.
fn knocks(figure: &Figure) -> Result<usize> {
    let client = figure.host("client");
    let order = json!({"address": EXTERNAL, "port": 80, "site": "ada.example.org", "patience_s": PATIENCE.as_secs()})
        .to_string();
    client.write_file("/run/knock.py", KNOCK.as_bytes())?;
    let begin = Instant::now();
    let output = client.exec(&["python3", "/run/knock.py"], order.as_bytes())?.text()?;
    let answers: Vec<Value> = output.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(answers.len() >= 50, "{} answers in {:?}", answers.len(), begin.elapsed());
    let mut wrong = Vec::new();
    for answer in &answers {
        let judged = judge(answer);
        wrong.extend(judged.err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{} of {} raw requests went wrong:\n{}", wrong.len(), answers.len(), wrong.join("\n"));
    Ok(answers.len())
}

fn judge(answer: &Value) -> Result<()> {
    let status = answer["status"].as_u64().context("a status, 0 where the connection was closed")?;
    let may = answer["may"].as_array().context("what may come of it")?;
    let is_refused = status == 0 || (400..500).contains(&status);
    ensure!(may.contains(&json!(status)) || (is_refused && may[..] != [json!(200)]), "{answer}");
    ensure!(answer["timed_out"] == false, "it hangs: {answer}");
    ensure!(answer["answers"].as_u64() <= answer["requests"].as_u64(), "more answers than requests: {answer}");
    ensure!(answer["smuggled"] == false, "a hidden request was answered: {answer}");
    Ok(())
}

/// Nothing ran, nothing failed, and the daemons' own checkers are content.
fn nothing_happened(figure: &Figure) -> Result<()> {
    for name in HOSTS {
        let host = figure.host(name);
        let found =
            host.text("find / -xdev -name '*pwned*' -not -path '/proc/*' 2>/dev/null; find /run /tmp -name '*pwned*' 2>/dev/null; true")?;
        ensure!(found.is_empty(), "on {name} something ran: {found}");
        calm(&host)?;
    }
    let web1 = figure.host("web1");
    web1.text(
        "for config in /var/lib/phalanx/accounts/*/httpd.conf; do apache2 -t -f $config 2>&1 | grep -q 'Syntax OK' || { apache2 -t -f $config; exit 1; }; done; \
         for config in /var/lib/phalanx/accounts/*/php-fpm.conf; do php-fpm8.2 -t -y $config || exit 1; done",
    )?;
    let database = web1.text("sqlite3 /var/lib/phalanx/directory/directory.sqlite 'PRAGMA integrity_check'")?;
    ensure!(database == "ok", "{database}");
    for (host, table) in [("web1", "inet phalanx_accounts"), ("lb", "ip phalanx")] {
        let rules = figure.host(host).text("nft list ruleset")?;
        ensure!(rules.contains(&format!("table {table}")) && !rules.contains("pwned"), "on {host}: {rules}");
    }
    Ok(())
}

/// No unit of the product failed, was restarted or panicked.
fn calm(host: &Host<'_>) -> Result<()> {
    let failed = host
        .text("systemctl list-units --plain --no-legend --state=failed 'phalanx-*' | grep -v phalanx-php@ || true")?;
    ensure!(failed.is_empty(), "failed on {}: {failed}", host.name());
    let restarted =
        host.text("systemctl show -p Id,NRestarts 'phalanx-*.service' | grep -B1 'NRestarts=[1-9]' || true")?;
    ensure!(restarted.is_empty(), "restarted on {}: {restarted}", host.name());
    let panicked = host.text("journalctl -q --no-pager -g 'panicked at' || true")?;
    ensure!(panicked.is_empty(), "panicked on {}: {panicked}", host.name());
    Ok(())
}

#[test]
fn hostile() -> Result<()> {
    Figure::scenario(|figure| {
        figure.phalanx("server add spare --kind mail --address 10.9.0.40/24")?;
        figure.phalanx("server add pillar --kind mail --address 10.9.0.42/24")?;
        figure.phalanx("share add letters --kind local --nas storage --path /srv/nas/letters")?;
        figure.phalanx("cluster add mail --kind mail --master pillar --share letters --mail-name mail.example.net")?;
        figure.phalanx("logical-server add post --server pillar")?;
        figure.phalanx("share add other --kind local --nas storage --path /srv/nas/other")?;
        figure.site("ada", "ada.example.org", &[("index.html", "page of ada"), ("smuggled.html", "SMUGGLED")])?;
        figure.phalanx("mail-domain add example.org --account ada --logical-server post")?;
        figure.mailbox("box@example.org")?;
        figure.phalanx("alias add alias@example.org --to box@example.org")?;
        let texts = texts();
        ensure!(texts.len() >= 200, "{} texts", texts.len());
        let mut api = Api::of(figure)?;
        fields::all_are_known(&mut api)?;
        let accepted = fields::every_field(&mut api, &texts)?;
        everywhere_else(&mut api, &texts)?;
        let plain = json!({"aliases": [], "document_root": "sites/ada.example.org"});
        for (path, body) in [
            ("/sites/ada.example.org", plain),
            ("/servers/spare", json!({"address": "10.9.0.40/24"})),
            ("/accounts/ada", json!({"php": "8.2", "state": "active"})),
            ("/addresses/198.51.100.10:80", json!({"port": 80, "internal": {}})),
        ] {
            let (status, answer) = figure.api("PATCH", path, Some(&body))?;
            ensure!(status == 200, "{path}: {status} {answer}");
        }
        for (field, values) in &accepted {
            println!("{field} took {} of {} texts", values.len(), texts.len());
        }
        daemons::have_it(figure, &accepted, &texts)?;
        let (told, commands) = commands::every_command(figure, &texts)?;
        ensure!(told >= 200, "{told} texts through the command line");
        println!("{} texts through the API, {told} through the command line, in {commands} commands", texts.len());
        println!("{} raw requests", knocks(figure)?);
        nothing_happened(figure)?;
        daemons::serves(figure, "ada.example.org", "/", "page of ada")?;
        figure.settled(&["web1", "web2", "nas", "lb"])
    })
}
