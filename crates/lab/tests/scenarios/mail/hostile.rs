//! Names and folders of people who mean no good: each is refused with words that say why, or kept and asked back from the daemons, unchanged, on
//! every node; and nothing of them reaches somebody else's mail or somebody else's name.

use super::flow::{Flow, TAKEN, send};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NODES, PASSWORD};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

mod folders;
mod rules;

const TELL: &str = include_str!("tell.py");
const INFO: &str = "info@example.org";

/// What a server of mailboxes answers to each of these lines.
fn tell(figure: &Figure, protocol: &str, address: &str, lines: &[String]) -> Result<Vec<String>> {
    let world = figure.host("world");
    world.write_file("/run/tell.py", TELL.as_bytes())?;
    let order = json!({"protocol": protocol, "address": address, "password": PASSWORD, "lines": lines});
    let said = world.exec(&["python3", "/run/tell.py", MAIL_EXTERNAL], order.to_string().as_bytes())?.text()?;
    serde_json::from_str(&said).context(said)
}

/// The folders on the share that are not of `INFO`. Logs and queues, which grow and shrink by themselves, are left out.
fn outside(figure: &Figure) -> Result<BTreeSet<String>> {
    let find = "cd /srv/nas && find . -type d -not -path '*/.phalanx-logs/*' -not -path '*/.phalanx/queues/*' -not -path './mail/mail/example.org/info.*'";
    Ok(figure.host("nas").text(find)?.lines().map(str::to_owned).collect())
}

/// Domains as they are given and as they are kept: in letters, in ASCII, and one that looks like another's.
const DOMAINS: [(&str, &str); 4] = [
    ("Bücher.Example", "xn--bcher-kva.example"),
    ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
    // Cyrillic, but for the last letter.
    ("раураl.example", "xn--l-7sba6dbr.example"),
    ("xn--fa-hia.example", "xn--fa-hia.example"),
];

/// Addresses that are refused, with a part of the reason.
const REFUSED: [(&str, &str); 29] = [
    ("jürgen@example.org", "'ü' before the @"),
    ("\"info\"@example.org", "it holds '\"' before the @"),
    ("in fo@example.org", "it holds ' ' before the @"),
    ("info+x@example.org", "it holds '+' before the @"),
    ("a'b@example.org", "it holds '\\'' before the @"),
    ("a%b@example.org", "it holds '%' before the @"),
    ("%d@example.org", "it holds '%' before the @"),
    ("${x}@example.org", "it holds '$' before the @"),
    ("a\\b@example.org", "it holds '\\\\' before the @"),
    ("a!b@example.org", "it holds '!' before the @"),
    ("a#b@example.org", "it holds '#' before the @"),
    ("a&b@example.org", "before the @"),
    ("a*b@example.org", "before the @"),
    ("a/b@example.org", "before the @"),
    ("../a@example.org", "before the @"),
    ("a=b@example.org", "before the @"),
    ("a?b@example.org", "before the @"),
    ("a^b@example.org", "before the @"),
    ("a`b@example.org", "before the @"),
    ("a{b}@example.org", "before the @"),
    ("a|b@example.org", "before the @"),
    ("a~b@example.org", "before the @"),
    ("a\r\nRCPT TO:<x@far.example>@example.org", "before the @"),
    ("a%0d%0ab@example.org", "before the @"),
    ("a\0b@example.org", "it holds '\\0' before the @"),
    ("a..b@example.org", "two dots in a row"),
    ("a@ｅxample.org", "stand for others"),
    ("a@example.org\r\nBcc: x@far.example", "it holds '@' before the @"),
    ("a@[198.51.100.25]", "it holds"),
];

#[test]
fn mail_hostile_names() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        names(figure)?;
        refused(figure)?;
        folders::all(figure)?;
        calm(figure)?;
        figure.settled(&MAIL_NODES)
    })
}

#[test]
fn mail_hostile_rules() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        rules::all(figure)?;
        calm(figure)?;
        figure.settled(&MAIL_NODES)
    })
}

/// What may be a name is one, on each node, as it was stored; and no pattern finds another.
fn names(figure: &Figure) -> Result<()> {
    let mut addresses = Vec::new();
    for (given, kept) in DOMAINS {
        figure.phalanx(&format!("mail-domain add '{given}' --account alice --logical-server post"))?;
        for name in [given, kept] {
            let shown = figure.phalanx(&format!("mail-domain show '{name}'"))?;
            ensure!(shown.contains(kept) && (given == kept || !shown.contains(given)), "{name}: {shown}");
        }
        figure.mailbox(&format!("'info@{given}'"))?;
        addresses.push(format!("info@{kept}"));
    }
    // The longest that there may be; each character that there may be; and what SQL and shells take for patterns.
    let domain = format!("{0}.{0}.{1}.example", "d".repeat(63), "d".repeat(53));
    figure.phalanx(&format!("mail-domain add {domain} --account alice --logical-server post"))?;
    addresses.push(format!("{}@{domain}", "l".repeat(64)));
    let plain =
        ["a_b", "0", "a.b-c_d", "abcdefghijklmnopqrstuvwxyz.0123456789-_z", "x.y.z", "null", "root", "postmaster"];
    addresses.extend(plain.map(|local| format!("{local}@example.org")));
    for address in &addresses[DOMAINS.len()..] {
        figure.mailbox(address)?;
    }
    figure.phalanx("alias add 'sales@Bücher.Example' --to 'info@bücher.example'")?;
    let strangers = [
        "axb@example.org",
        "%@example.org",
        "_@example.org",
        "info@%",
        "' OR '1'='1",
        "*@example.org",
        "a_b@example_org",
        "\\@example.org",
    ];
    for node in MAIL_NODES {
        let host = figure.host(node);
        let look_up = |map: &str, key: &str| -> Result<String> {
            let map = format!("sqlite:/var/lib/phalanx/live/postfix/{map}.cf");
            let found = host.exec(
                &[
                    "setpriv",
                    "--reuid=postfix",
                    "--regid=postfix",
                    "--clear-groups",
                    "postmap",
                    "-c",
                    "/var/lib/phalanx/live/postfix",
                    "-q",
                    key,
                    &map,
                ],
                b"",
            )?;
            Ok(found.stdout.trim().to_owned())
        };
        let knows = |address: &str, password: &str| -> Result<bool> {
            let words = ["doveadm", "-c", "/var/lib/phalanx/live/logins.conf", "auth", "test", address, password];
            let said = host.exec(&words, b"")?;
            Ok(said.success()
                && said.stdout.contains("auth succeeded")
                && said.stdout.contains(&format!("user={address}")))
        };
        for address in &addresses {
            eventually(Duration::from_secs(10), &format!("{address} on {node}"), || {
                let found = look_up("mailboxes", address)?;
                ensure!(found == *address, "Postfix finds {found:?}");
                ensure!(knows(address, PASSWORD)?, "Dovecot knows of no such login");
                Ok(())
            })?;
        }
        // Each wrong guess is slowed down by two seconds, so there are few.
        ensure!(!knows(&addresses[0], "another password")?, "{node}: any password is right");
        for stranger in strangers {
            for map in ["mailboxes", "domains", "aliases", "senders", "suspended"] {
                let found = look_up(map, stranger)?;
                ensure!(found.is_empty(), "{node}: {map} has {found:?} for {stranger:?}");
            }
        }
        for stranger in &strangers[..4] {
            ensure!(!knows(stranger, PASSWORD)?, "{stranger} logs in on {node}");
        }
        ensure!(look_up("aliases", "sales@xn--bcher-kva.example")? == "info@xn--bcher-kva.example", "{node}");
    }
    let holder = figure.host("mail1");
    for address in &addresses {
        let home = holder.text(&format!("doveadm -c /var/lib/phalanx/live/mailboxes.conf user -f home {address}"))?;
        let (local, domain) = address.split_once('@').context("an address")?;
        ensure!(home.starts_with(&format!("/srv/phalanx/letters/mail/{domain}/{local}.")), "{address} lies at {home}");
        let said = send(figure, &format!("ann@{FAR}"), address, "to a name")?;
        ensure!(said.contains(TAKEN), "{address}: {said}");
        let letter = figure.has_mail(address, &["Subject: to a name"])?;
        ensure!(letter.contains(&format!("Delivered-To: {address}")), "{letter}");
    }
    Ok(())
}

/// What may not be a name is refused where it is given, with words that help, by each way that leads in.
fn refused(figure: &Figure) -> Result<()> {
    for (address, why) in REFUSED {
        let bodies = [
            ("/mailboxes", json!({"address": address, "password": "long enough"})),
            ("/aliases", json!({"source": address, "targets": [INFO]})),
        ];
        for (path, body) in bodies {
            let (status, answer) = figure.api("POST", path, Some(&body))?;
            let text = answer.to_string();
            ensure!(status == 422 || status == 400, "{path} {body}: {status} {answer}");
            let has_reason = strings(&answer).iter().any(|text| text.contains(why));
            ensure!(has_reason, "{path} {body} is refused without {why:?}: {text}");
        }
    }
    for target in [
        "x@far.example\r\nBcc: y@far.example",
        "x@far.example, y@far.example",
        "|/bin/sh@far.example",
        "\"x\"@far.example",
        "x%0ay@far.example",
        "x\0@far.example",
        "jürgen@far.example",
    ] {
        let body = json!({"source": "fresh@example.org", "targets": [target]});
        let (status, answer) = figure.api("POST", "/aliases", Some(&body))?;
        ensure!(status == 422 || status == 400, "{body}: {status} {answer}");
    }
    // The control: beside them is what is taken.
    let (status, answer) = figure.api(
        "POST",
        "/aliases",
        Some(&json!({"source": "fresh@example.org", "targets": ["x{y}~z+a=b@Bücher.example"]})),
    )?;
    ensure!(status == 201 && answer["targets"][0] == "x{y}~z+a=b@xn--bcher-kva.example", "{status} {answer}");
    Ok(())
}

/// All texts of an answer.
fn strings(answer: &Value) -> Vec<&str> {
    match answer {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(fields) => fields.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

/// No daemon failed or had to be started anew, and the queues are empty: nothing goes round.
fn calm(figure: &Figure) -> Result<()> {
    for node in MAIL_NODES {
        let host = figure.host(node);
        let failed = host.text("systemctl list-units --plain --no-legend --state=failed 'phalanx-*'; systemctl show -p Id,NRestarts 'phalanx-*.service' | grep -B1 'NRestarts=[1-9]' || true")?;
        ensure!(failed.is_empty(), "on {node}: {failed}");
        let said = host.text("grep -hE 'panic|fatal|Fatal|Panic|killed with signal' /var/log/phalanx/postfix.log /var/log/phalanx/mailboxes.log /var/log/phalanx/logins.log || true")?;
        ensure!(said.is_empty(), "on {node}: {said}");
        eventually(Duration::from_secs(30), &format!("an empty queue on {node}"), || {
            let queue = host.text("postqueue -c /var/lib/phalanx/live/postfix -p")?;
            ensure!(queue.contains("Mail queue is empty"), "{queue}");
            Ok(())
        })?;
    }
    Ok(())
}
