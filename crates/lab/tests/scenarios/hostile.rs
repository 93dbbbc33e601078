//! Hostile input: each text of `hostile/texts.txt`, in every field, through the API and the command line, is refused with a reason or kept and
//! read back unchanged, by the API and by the daemon that it is for. Raw bytes at the external address get an error of the client's, in time.
//!
//! Nothing that the texts would run has run, nothing failed, and nobody else noticed.

use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::{EXTERNAL, Figure, LOGICAL};
use phalanx_lab::{Host, eventually};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

mod api;

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

/// Where a text is put: the request, with `@` for the text as JSON; and, where a text may be accepted, what shows it and what takes it away.
struct Field {
    method: &'static str,
    path: &'static str,
    body: &'static str,
    /// The field that the text went to, in the answer.
    field: &'static str,
}

const fn field(method: &'static str, path: &'static str, body: &'static str, field: &'static str) -> Field {
    Field { method, path, body, field }
}

/// Every text field of the API. `POST` makes a thing, which is read back at the answer's `Location` and removed.
const FIELDS: [Field; 39] = [
    field("POST", "/servers", r#"{"name":@,"kind":"web","address":"10.9.0.50/24"}"#, "/name"),
    field("POST", "/servers", r#"{"name":"fresh","kind":@,"address":"10.9.0.50/24"}"#, "/kind"),
    field("POST", "/servers", r#"{"name":"fresh","kind":"web","address":@}"#, "/address"),
    field("PATCH", "/servers/spare", r#"{"address":@}"#, "/address"),
    field("POST", "/clusters", r#"{"name":@,"kind":"mail","master":"spare"}"#, "/name"),
    field("POST", "/clusters", r#"{"name":"fresh","kind":@,"master":"spare"}"#, "/kind"),
    field("POST", "/clusters", r#"{"name":"fresh","kind":"mail","master":@}"#, "/master"),
    field("POST", "/clusters", r#"{"name":"fresh","kind":"mail","master":"spare","share":@}"#, "/share"),
    field("POST", "/clusters/web/slaves", r#"{"server":@}"#, ""),
    field("PATCH", "/clusters/web/nodes/web1", r#"{"weight":@}"#, ""),
    field("PATCH", "/clusters/web/nodes/web1", r#"{"drained":@}"#, ""),
    field("POST", "/shares", r#"{"name":@,"kind":"local","nas":"storage","path":"/srv/nas/fresh"}"#, "/name"),
    field("POST", "/shares", r#"{"name":"fresh","kind":@,"nas":"storage","path":"/srv/nas/fresh"}"#, "/kind"),
    field("POST", "/shares", r#"{"name":"fresh","kind":"local","nas":@,"path":"/srv/nas/fresh"}"#, "/nas"),
    field("POST", "/shares", r#"{"name":"fresh","kind":"local","nas":"storage","path":@}"#, "/path"),
    field("POST", "/addresses", r#"{"external":@,"balancer":"front","cluster":"web"}"#, "/external"),
    field("POST", "/addresses", r#"{"external":"198.51.100.12:80","balancer":@,"cluster":"web"}"#, "/balancer"),
    field("POST", "/addresses", r#"{"external":"198.51.100.12:80","balancer":"front","cluster":@}"#, "/cluster"),
    field(
        "POST",
        "/addresses",
        r#"{"external":"198.51.100.12:80","balancer":"front","cluster":"web","port":@}"#,
        "/port",
    ),
    field(
        "POST",
        "/addresses",
        r#"{"external":"198.51.100.12:80","balancer":"front","cluster":"web","internal":{@:"10.9.0.51"}}"#,
        "/internal",
    ),
    field(
        "POST",
        "/addresses",
        r#"{"external":"198.51.100.12:80","balancer":"front","cluster":"web","internal":{"web1":@}}"#,
        "/internal/web1",
    ),
    field("POST", "/logical-servers", r#"{"name":@,"server":"web1"}"#, "/name"),
    field("POST", "/logical-servers", r#"{"name":"fresh","server":@}"#, "/server"),
    field("POST", "/accounts", r#"{"name":@,"logical_server":"www"}"#, "/name"),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":@}"#, "/logical_server"),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":"www","owner":@}"#, "/owner"),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":"www","php":@}"#, "/php"),
    field(
        "POST",
        "/accounts",
        r#"{"name":"fresh","logical_server":"www","limits":{"cpu_percent":@}}"#,
        "/limits/cpu_percent",
    ),
    field("PATCH", "/accounts/ada", r#"{"state":@}"#, "/state"),
    field("POST", "/sites", r#"{"name":@,"account":"ada"}"#, "/name"),
    field("POST", "/sites", r#"{"name":"fresh.example.org","account":@}"#, "/account"),
    field("POST", "/sites", r#"{"name":"fresh.example.org","account":"ada","aliases":[@]}"#, "/aliases/0"),
    field("POST", "/sites", r#"{"name":"fresh.example.org","account":"ada","document_root":@}"#, "/document_root"),
    field("PATCH", "/sites/ada.example.org", r#"{"aliases":["fine.example.org",@]}"#, "/aliases/1"),
    field("POST", "/tokens", r#"{"name":@,"role":"admin"}"#, "/name"),
    field("POST", "/tokens", r#"{"name":"fresh","role":@}"#, "/role"),
    field("POST", "/servers/web1/rollback", r#"{"generation":@}"#, ""),
    field("POST", "/servers", r#"{"name":"fresh","kind":"web","address":"10.9.0.50/24",@:1}"#, ""),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":"www","limits":{@:1}}"#, ""),
];

/// Each text in each field. Returns what was accepted, by field.
fn every_field(api: &mut Api, texts: &[String]) -> Result<BTreeMap<String, Vec<String>>> {
    let (mut accepted, mut wrong) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
    for field in &FIELDS {
        for text in texts {
            match put(api, field, text) {
                Ok(None) => {}
                Ok(Some(kept)) => accepted.entry(format!("{}{}", field.path, field.field)).or_default().push(kept),
                Err(error) => wrong.push(format!("{} {} with {text:.200}: {error:#}", field.path, field.body)),
            }
        }
    }
    let first: Vec<&str> = wrong.iter().take(30).map(String::as_str).collect();
    ensure!(wrong.is_empty(), "{} texts went wrong, among them\n{}", wrong.len(), first.join("\n"));
    Ok(accepted)
}

/// Puts a text into a field; returns it as it was read back, if it was taken.
fn put(api: &mut Api, Field { method, path, body, field }: &Field, text: &str) -> Result<Option<String>> {
    let Some(reply) = api.refusal_or(method, path, "", body.replace('@', text).as_bytes())? else { return Ok(None) };
    let sent: Value = serde_json::from_str(text).context("it was accepted, and is no text")?;
    let place = reply.headers.get("location").map_or(*path, |at| at.trim_start_matches("/api/v1")).to_owned();
    let kept = if *path == "/tokens" { reply } else { api.ask("GET", &place, "", b"")? };
    let back = kept.body.pointer(field).unwrap_or(&Value::Null);
    ensure!(kept.status < 300 && is_same(field, &sent, back), "sent {sent}, read back {back} of {}", kept.body);
    if *method == "POST" {
        let gone = api.ask("DELETE", &place, "", b"")?;
        ensure!(gone.status == 204, "{place}: {} {}", gone.status, gone.body);
    }
    Ok(Some(back.as_str().unwrap_or_default().to_owned()))
}

/// Unchanged; but a host name has no case (RFC 4343), and is kept in lower case.
fn is_same(field: &str, sent: &Value, back: &Value) -> bool {
    let lower = |value: &Value| value.as_str().map(str::to_ascii_lowercase);
    sent == back || ((field == "/name" || field.starts_with("/aliases")) && lower(sent) == lower(back))
}

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

/// What was accepted is what the daemons have: each document root and each host name serves a page of its own on a node.
fn daemons_have_it(figure: &Figure, accepted: &BTreeMap<String, Vec<String>>) -> Result<()> {
    let of = |field: &str| accepted.get(field).map(Vec::as_slice).unwrap_or_default();
    let names: BTreeSet<&String> = of("/sites/name").iter().chain(of("/sites/aliases/0")).collect();
    ensure!(names.len() >= 6, "{accepted:?}");
    let roots: BTreeSet<&String> = of("/sites/document_root").iter().collect();
    ensure!(roots.len() >= 4, "{accepted:?}");
    figure.put("ada", "sites/ada.example.org/index.html", "page of ada")?;
    let pages: Vec<(String, &String)> =
        roots.into_iter().enumerate().map(|(number, root)| (format!("root{number}.example.org"), root)).collect();
    let id = figure.json("account show ada")?["uid"].to_string();
    let mut script = String::from("cd /srv/nas/web/home/ada\n");
    for (host, root) in &pages {
        let body = json!({"name": host, "account": "ada", "document_root": root});
        let (status, answer) = figure.api("POST", "/sites", Some(&body))?;
        ensure!(status == 201, "{status} {answer}");
        // What is accepted has no quotes in it: the script's own quoting would fail loudly.
        script += &format!("mkdir -p './{root}' && printf %s '{host} below {root}' > './{root}/{host}.html'\n");
    }
    let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "sh", "-eu"];
    figure.host("nas").exec(&words, script.as_bytes())?.text()?;
    for (host, root) in &pages {
        serves(figure, host, &format!("/{host}.html"), &format!("{host} below {root}"))?;
    }
    let (status, answer) = figure.api("PATCH", "/sites/ada.example.org", Some(&json!({"aliases": names})))?;
    ensure!(status == 200, "{status} {answer}");
    for name in names {
        serves(figure, name, "/", "page of ada")?;
    }
    for account in of("/accounts/name") {
        let (status, answer) =
            figure.api("POST", "/accounts", Some(&json!({"name": account, "logical_server": LOGICAL})))?;
        ensure!(status == 201, "{status} {answer}");
        let uid = answer["uid"].to_string();
        eventually(PATIENCE, &format!("the home of {account}"), || {
            let owner = figure.host("nas").text(&format!("stat -c %u:%g:%a '/srv/nas/web/home/{account}'"))?;
            ensure!(owner == format!("{uid}:{uid}:750"), "{owner}");
            Ok(())
        })?;
    }
    for version in of("/accounts/php") {
        figure.api("PATCH", "/accounts/ada", Some(&json!({"php": version})))?;
        serves(figure, "ada.example.org", "/", "page of ada")?;
    }
    let (status, answer) = figure.api("PATCH", "/accounts/ada", Some(&json!({"php": "8.2"})))?;
    ensure!(status == 200, "{status} {answer}");
    Ok(())
}

fn serves(figure: &Figure, host: &str, path: &str, page: &str) -> Result<()> {
    eventually(PATIENCE, &format!("the page of {host}"), || {
        let answer = figure.get_from("web1", host, path)?;
        ensure!(answer.status == 200 && answer.body == page, "{answer:?}");
        Ok(())
    })
}

/// An administrator's directives may say anything that httpd takes; as comments, all texts do, and they arrive as they were sent.
fn directives_arrive(figure: &Figure, api: &mut Api, texts: &[String]) -> Result<()> {
    let parsed = texts.iter().filter_map(|text| serde_json::from_str::<String>(text).ok());
    let mut lines: Vec<String> = parsed
        .filter(|text| text.len() < 900 && !text.contains(['\n', '\r', '\0']) && !text.ends_with('\\'))
        .map(|text| format!("# {text}."))
        .collect();
    lines.push("Header always set X-Hostile \"it's \\\"fine\\\" & $(so) `on`\"".to_owned());
    ensure!(lines.len() > 200, "{} lines", lines.len());
    let body = json!({ "httpd_directives": lines }).to_string();
    let reply = api.ask("PATCH", "/clusters/web", "", body.as_bytes())?;
    ensure!(reply.status == 200 && reply.body["httpd_directives"] == json!(lines), "{} {}", reply.status, reply.body);
    let expected = lines.join("\n");
    eventually(Duration::from_secs(20), "the directives on the node", || {
        let live = figure.host("web1").text("cat /var/lib/phalanx/live/httpd-common.conf")?;
        ensure!(live.contains(&expected), "they differ or are not there:\n{live}");
        Ok(())
    })?;
    let address = figure.address("web1")?;
    eventually(Duration::from_secs(10), "the header that a directive sets", || {
        let line = format!("curl -sS -m 5 -D - -o /dev/null -H 'Host: ada.example.org' http://{address}/");
        let head = figure.host("lb").text(&line)?;
        ensure!(head.contains("it's \"fine\" & $(so) `on`"), "{head}");
        Ok(())
    })?;
    let reply = api.ask("PATCH", "/clusters/web", "", b"{\"httpd_directives\":[]}")?;
    ensure!(reply.status == 200);
    for broken in ["a\nb", "a\rb", "a\0b"] {
        let body = json!({ "httpd_directives": [broken] }).to_string();
        ensure!(api.refusal_or("PATCH", "/clusters/web", "", body.as_bytes())?.is_none(), "{broken:?}");
    }
    Ok(())
}

/// A part of the texts as arguments of commands: refused with words that a terminal can bear, or kept.
fn commands(figure: &Figure, texts: &[String]) -> Result<usize> {
    const COMMANDS: [&str; 7] = [
        "account add @ --logical-server www",
        "site add @ --account ada",
        "site add fresh.example.org --account ada --document-root @",
        "account add fresh --logical-server www --php @",
        "server add fresh --kind web --address @",
        "share add fresh --kind local --nas storage --path @",
        "cluster show @",
    ];
    let cp = figure.host("cp");
    let sample = texts
        .iter()
        .filter_map(|text| serde_json::from_str::<String>(text).ok())
        .filter(|text| text.len() < 10_000 && !text.contains('\0'));
    let mut count = 0;
    for (number, text) in sample.enumerate().filter(|(number, _)| number % 3 == 0) {
        let command = COMMANDS[(number / 3) % COMMANDS.len()];
        let mut words = vec!["phalanx"];
        words.extend(command.split(' ').map(|word| if word == "@" { text.as_str() } else { word }));
        let output = cp.exec(&words, b"")?;
        ensure!([0, 1, 2].contains(&output.status), "{words:?}: {output:?}");
        let is_bearable = |c: char| c == '\n' || c == '\t' || !c.is_control();
        ensure!(
            output.stderr.chars().chain(output.stdout.chars()).all(is_bearable),
            "a terminal would obey: {words:?}: {output:?}"
        );
        if output.status == 0 && !text.starts_with("--") {
            remove_what_was_made(figure, command, &text)?;
        } else if output.status != 0 {
            ensure!(output.stderr.starts_with("error: "), "{words:?}: {output:?}");
        }
        count += 1;
    }
    Ok(count)
}

fn remove_what_was_made(figure: &Figure, command: &str, text: &str) -> Result<()> {
    let mut words = command.split(' ');
    let (noun, _verb, name) = (words.next().unwrap_or_default(), words.next(), words.next().unwrap_or_default());
    let name = if name == "@" { text.to_lowercase() } else { name.to_owned() };
    figure.phalanx(&format!("{noun} show '{name}'"))?;
    figure.phalanx(&format!("{noun} remove '{name}'")).map(drop)
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
    let figure = Figure::up()?;
    figure.phalanx("server add spare --kind mail --address 10.9.0.40/24")?;
    figure.site("ada", "ada.example.org", &[("index.html", "page of ada"), ("smuggled.html", "SMUGGLED")])?;
    let texts = texts();
    ensure!(texts.len() >= 200, "{} texts", texts.len());
    let mut api = Api::of(&figure)?;
    let accepted = every_field(&mut api, &texts)?;
    everywhere_else(&mut api, &texts)?;
    api.ask("PATCH", "/sites/ada.example.org", "", b"{\"aliases\":[]}")?;
    api.ask("PATCH", "/servers/spare", "", b"{\"address\":\"10.9.0.40/24\"}")?;
    for (field, values) in &accepted {
        println!("{field} took {} of {} texts", values.len(), texts.len());
    }
    daemons_have_it(&figure, &accepted)?;
    directives_arrive(&figure, &mut api, &texts)?;
    println!("{} commands", commands(&figure, &texts)?);
    println!("{} raw requests", knocks(&figure)?);
    nothing_happened(&figure)?;
    serves(&figure, "ada.example.org", "/", "page of ada")?;
    figure.settled(&["web1", "web2", "nas", "lb"])
}
