//! Mail at scale: how big the look-up files are, how long daemons look up, how soon one change counts on every node, and how long a node that has
//! nothing takes to be in service, as the number of mailboxes grows.
//!
//! Mailboxes are put into the panel's store as rows, since a million passwords hashed through the API would measure the hash; the nodes get them as
//! they get any directory that is far ahead of theirs. All mailboxes have the same password, in the cheapest hash that is taken, so that a login's
//! time is not the hash's. Fifty mailboxes to a domain, all domains of one account.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::report::{Figures, Report, quantile};
use super::{Scale, say};
use crate::eventually;
use crate::figure::Figure;
use crate::figure::mail::{MAIL_LOGICAL, MAIL_NODES};

/// The measuring inside hosts.
const PROGRAM: &str = include_str!("mail.py");
const PER_DOMAIN: u32 = 50;
/// SHA512-CRYPT of [`PASSWORDS`], of the fewest rounds.
const HASHES: [&str; 2] = [
    "{SHA512-CRYPT}$6$rounds=1000$saltsaltsaltsalt$fUCJM4lRie8X9cmZ2I/1CIvZ9n.E5jRrVqsjfSbkLMuKMn7PVfUUa0qy3hPvkSkCuTQviOaffoMgdrm.VO2n.0",
    "{SHA512-CRYPT}$6$rounds=1000$saltsaltsaltsalt$U3FiWShV7EWH7Qxp/LGXXGyp68QnKuPH6VgF.FofnttxG0AUhtSj37x9iEVGQjCFdJBlm8BAUsOU8pIE0y1N/0",
];
const PASSWORDS: [&str; 2] = ["correct-horse-battery", "another-password"];
const LOGINS_SOCKET: &str = "/run/phalanx/logins/postfix";
const USERS_SOCKET: &str = "/run/phalanx/mailboxes/auth-userdb";
/// How long the nodes may take for a whole directory.
const CATCH_UP: Duration = Duration::from_secs(900);
/// Which files lie where: the words for tables, the host, what of it.
const FILES: [(&str, &str, &str); 5] = [
    ("panel: store", "cp", "/var/lib/phalanx/panel/panel.sqlite*"),
    ("node: directory", "mail2", "/var/lib/phalanx/directory"),
    ("node: look-up file of recipients", "mail2", "/var/lib/phalanx/mail/recipients"),
    ("node: look-up file of logins", "mail2", "/var/lib/phalanx/mail/logins"),
    ("node: keys that sign", "mail2", "/var/lib/phalanx/mail/keys"),
];
/// Promise of the design, and how much slower look-ups may be at the largest number than at the smallest.
const LIVE_GOAL_MS: f64 = 1_000.0;
const SLOWER_GOAL: f64 = 4.0 / 3.0;
const P50: &str = "p50";
const P99: &str = "p99";
const ON_DISK: &str = "on disk";

/// Measures.
pub fn measure(figure: &Figure, scale: Scale, report: &mut Report) -> Result<()> {
    for host in ["cp", "world", "mail1", "mail2"] {
        figure.host(host).write_file("/run/mail.py", PROGRAM.as_bytes())?;
    }
    first(figure)?;
    let sizes = scale.pick([1_000, 1_000_000], [100, 1_000]);
    let smallest = &case(sizes[0]);
    let mut present = 1;
    for size in sizes {
        let case = &case(size);
        say(&format!("mail: {size} mailboxes into the panel's store"));
        fill(figure, present, size)?;
        present = size;
        let begin = Instant::now();
        figure.host("cp").text("systemctl start phalanx-panel")?;
        for node in MAIL_NODES {
            takes_mail_for(figure, node, size - 1)?;
        }
        let everywhere = begin.elapsed().as_secs_f64();
        report.row(
            case,
            "both nodes, from the panel's start",
            ("whole directory, live", "s"),
            Figures::one(everywhere),
        );
        figure.settled(&["mail1", "mail2", "nas", "lb"])?;
        sizes_on_disk(figure, report, case, smallest)?;
        look_ups(figure, scale, report, case, smallest, size)?;
        changes(figure, scale, report, case)?;
        empty_node(figure, report, case, size)?;
        memory(figure, report, case, smallest)?;
    }
    Ok(())
}

fn case(size: u32) -> String {
    format!("{size} mailboxes")
}

/// The first domain and mailbox, which all others are copies of.
fn first(figure: &Figure) -> Result<()> {
    figure.phalanx(&format!("account add bench --logical-server {MAIL_LOGICAL}"))?;
    figure.phalanx(&format!("mail-domain add d0.example --account bench --logical-server {MAIL_LOGICAL}"))?;
    let mailbox = json!({ "address": "b0@d0.example", "password_hash": HASHES[0] });
    let (status, answer) = figure.api("POST", "/mailboxes", Some(&mailbox))?;
    ensure!(status == 201, "{answer}");
    Ok(())
}

/// Copies the first domain and mailbox until there are `upto`, while the panel is stopped. No follower's position reaches the log then, so each
/// gets a snapshot.
fn fill(figure: &Figure, from: u32, upto: u32) -> Result<()> {
    let (domain_from, domain_upto) = (from.div_ceil(PER_DOMAIN), upto.div_ceil(PER_DOMAIN));
    let sql = format!(
        "PRAGMA cache_size = -1000000; BEGIN;
         WITH RECURSIVE n (i) AS (SELECT {domain_from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {domain_upto})
           INSERT INTO mail_domain SELECT 'd' || i || '.example', account, logical_server, owner, state, dkim, version, created_at
           FROM n, mail_domain WHERE name = 'd0.example' AND i < {domain_upto};
         WITH RECURSIVE n (i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {upto})
           INSERT INTO mailbox SELECT 'b' || i || '@d' || (i / {PER_DOMAIN}) || '.example', 'd' || (i / {PER_DOMAIN}) || '.example',
           (SELECT mailbox_next FROM meta) + i, password, quota_mib, state, owner, version, created_at FROM n, mailbox WHERE address = 'b0@d0.example';
         UPDATE meta SET mailbox_next = mailbox_next + {upto} + 1, revision = revision + 1;
         UPDATE stream SET head = (SELECT revision FROM meta), floor = (SELECT revision FROM meta) WHERE cluster IN ('mail', 'storage');
         COMMIT;"
    );
    let cp = figure.host("cp");
    cp.write_file("/run/fill.sql", sql.as_bytes())?;
    cp.text("systemctl stop phalanx-panel")?;
    cp.run_for(CATCH_UP, "sqlite3 -bail /var/lib/phalanx/panel/panel.sqlite < /run/fill.sql")?.text()?;
    Ok(())
}

/// Lets the program measure in a host, and returns what it wrote.
fn measured(figure: &Figure, host: &str, words: &str) -> Result<Value> {
    let output = figure.host(host).run_for(Duration::from_secs(300), &format!("exec python3 /run/mail.py {words}"))?;
    let text = output.text().with_context(|| format!("{words} on {host}"))?;
    serde_json::from_str(&text).with_context(|| format!("{words} on {host} wrote {text:?}"))
}

/// Waits until a node takes mail for a mailbox.
fn takes_mail_for(figure: &Figure, node: &str, number: u32) -> Result<()> {
    let address = figure.address(node)?;
    let to = format!("b{number}@d{}.example", number / PER_DOMAIN);
    eventually(CATCH_UP, &format!("mail for {to} at {node}"), || {
        let line = format!(
            "swaks --server {address} --timeout 20 --helo bench.far.example --from ann@far.example --to {to} --quit-after RCPT 2>&1"
        );
        let said = figure.host("world").run(&line)?.stdout;
        ensure!(said.contains("250 2.1.5"), "{said}");
        Ok(())
    })
}

fn sizes_on_disk(figure: &Figure, report: &mut Report, case: &str, smallest: &str) -> Result<()> {
    for (subject, host, path) in FILES {
        let line = format!("du -sk --total {path} | tail -n 1 | cut -f 1");
        let kib: f64 = figure.host(host).text(&line)?.parse().with_context(|| format!("the size of {path}"))?;
        report.row(case, subject, (ON_DISK, "MiB"), Figures::one(kib / 1024.0));
        report.compare_cases(subject, ON_DISK, smallest);
    }
    Ok(())
}

/// How long the daemons take to look random mailboxes up, once their files have been read.
fn look_ups(figure: &Figure, scale: Scale, report: &mut Report, case: &str, smallest: &str, total: u32) -> Result<()> {
    let count = scale.pick(10_000, 400);
    let slave = figure.address("mail2")?;
    let kinds = [
        ("Postfix, RCPT TO of a mailbox", "mail2", format!("rcpt {slave} {} {total}", count / 20), ""),
        ("Postfix, RCPT TO of an unknown address", "mail2", format!("unknown {slave} {} {total}", count / 4), ""),
        ("Dovecot, user looked up (auth socket, holder)", "mail1", format!("user {USERS_SOCKET} {count} {total}"), ""),
        (
            "Dovecot, login proven (auth socket)",
            "mail2",
            format!("login {LOGINS_SOCKET} {} {total}", count / 4),
            PASSWORDS[0],
        ),
    ];
    for (subject, host, words, more) in kinds {
        say(&format!("mail: {subject}, {count} times at most, {case}"));
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        // The first round reads the files from the disk and is not counted.
        for round in 0..=scale.rounds() {
            let seen = measured(figure, host, &format!("{words} {round} {more}"))?;
            let times: Vec<f64> = serde_json::from_value(seen)?;
            if round > 0 {
                p50.push(quantile(&times, 50)?);
                p99.push(quantile(&times, 99)?);
            }
        }
        for (metric, runs) in [(P50, &p50), (P99, &p99)] {
            report.row(case, subject, (metric, "ms"), Figures::of(runs)?);
            report.compare_cases(subject, metric, smallest);
        }
        if case != smallest
            && let Some(ratio) = report.ratio(case, subject, P50)
        {
            report.goal(&format!("{subject}, p50, {case}, as a ratio to {smallest}"), SLOWER_GOAL, ratio);
        }
    }
    Ok(())
}

/// Adds a mailbox, gives it another password, removes it; each node watches when that counts for mail and for logins.
fn changes(figure: &Figure, scale: Scale, report: &mut Report, case: &str) -> Result<()> {
    let count = scale.pick(20, 2);
    say(&format!("mail: {count} changes of each kind, {case}"));
    let kinds = ["add", "password", "remove"];
    let mut live: [Vec<f64>; 3] = Default::default();
    for number in 0..count {
        let who = format!("new{number}@d{number}.example");
        let who = if scale.quick { format!("new{number}@d0.example") } else { who };
        for (kind, live) in kinds.into_iter().zip(&mut live) {
            live.push(change(figure, kind, &who)?);
        }
    }
    let words = ["mailbox added", "password changed", "mailbox removed"];
    for (words, live) in words.into_iter().zip(&live) {
        let last = quantile(live, 100)?;
        report.row(case, words, ("answer to live on all nodes, median", "ms"), Figures::of(live)?);
        report.row(case, words, ("answer to live on all nodes, longest", "ms"), Figures::one(last));
        report.goal(
            &format!("answer to live on all nodes, longest of {count}, {case}, {words}, ms"),
            LIVE_GOAL_MS,
            last,
        );
    }
    Ok(())
}

/// One change; returns how long after the panel's answer it counted on the last node, in milliseconds.
fn change(figure: &Figure, kind: &str, who: &str) -> Result<f64> {
    let (method, path, body, password) = match kind {
        "add" => ("POST", "/mailboxes".to_owned(), json!({ "address": who, "password_hash": HASHES[0] }), PASSWORDS[0]),
        "password" => ("PATCH", format!("/mailboxes/{who}"), json!({ "password_hash": HASHES[1] }), PASSWORDS[1]),
        _ => ("DELETE", format!("/mailboxes/{who}"), Value::Null, PASSWORDS[1]),
    };
    let mut watching = Vec::new();
    for node in MAIL_NODES {
        let address = figure.address(node)?;
        let line = format!("exec python3 /run/mail.py watch {address} {LOGINS_SOCKET} {kind} {who} {password}");
        watching.push((node, figure.host(node).spawn(&line)?));
    }
    for (node, watch) in &watching {
        eventually(Duration::from_secs(20), &format!("that {node} is watched"), || {
            ensure!(watch.stdout().contains("ready"), "{}", watch.stderr());
            Ok(())
        })?;
    }
    let body = if body.is_null() { String::new() } else { format!("'{body}'") };
    let answered = measured(figure, "cp", &format!("change {method} {path} {body}"))?["answered"].as_f64();
    let answered = answered.context("no time of the answer")?;
    let mut last = 0.0_f64;
    for (node, watch) in watching {
        let text = watch.wait(Duration::from_secs(90))?.text()?;
        let line = text.lines().last().unwrap_or_default();
        let seen: Value = serde_json::from_str(line).with_context(|| format!("{kind} on {node}: {text:?}"))?;
        for what in ["mail", "login"] {
            last = last.max(seen[what].as_f64().with_context(|| format!("{seen}"))?);
        }
    }
    // It may count before the answer is on its way.
    Ok(((last - answered) * 1e3).max(0.0))
}

/// The slave loses all that it had of the directory, and joins in again.
fn empty_node(figure: &Figure, report: &mut Report, case: &str, size: u32) -> Result<()> {
    say(&format!("mail: mail2 loses its directory and its look-up files, {case}"));
    let node = figure.host("mail2");
    node.text("systemctl stop 'phalanx-*' && rm -r /var/lib/phalanx/directory /var/lib/phalanx/mail")?;
    let begin = Instant::now();
    node.text("systemctl start multi-user.target && systemctl start phalanx-agent")?;
    takes_mail_for(figure, "mail2", size - 1)?;
    let took = begin.elapsed().as_secs_f64();
    report.row(case, "empty node", ("start of the agent to the last mailbox taken mail for", "s"), Figures::one(took));
    figure.settled(&["mail2"])?;
    let took = begin.elapsed().as_secs_f64();
    report.row(case, "empty node", ("start of the agent to in service, as the panel sees it", "s"), Figures::one(took));
    Ok(())
}

/// The most memory that the processes ever had, which for the agent of mail2 is that of the catching up.
fn memory(figure: &Figure, report: &mut Report, case: &str, smallest: &str) -> Result<()> {
    const PEAK: &str = "memory, RSS, at most";
    for (subject, host, unit) in [
        ("panel", "cp", "phalanx-panel"),
        ("agent, master", "mail1", "phalanx-agent"),
        ("agent, empty node", "mail2", "phalanx-agent"),
        ("agent, NAS", "nas", "phalanx-agent"),
    ] {
        let line =
            format!("awk '/^VmHWM/ {{ print $2 }}' /proc/$(systemctl show --property MainPID --value {unit})/status");
        let kib: f64 = figure.host(host).text(&line)?.parse().with_context(|| format!("the memory of {unit}"))?;
        report.row(case, subject, (PEAK, "MiB"), Figures::one(kib / 1024.0));
        report.compare_cases(subject, PEAK, smallest);
    }
    Ok(())
}
