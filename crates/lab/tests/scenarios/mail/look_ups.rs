//! Look-up files that are missing, damaged or held: the very letter that was told to come back later arrives when it does, who logs in is told the same,
//! and keys that sign are made anew.
//!
//! The node's agent, which makes files anew, is stopped for so long as somebody shall see what is without them.

use super::flow::{Flow, TAKEN, send};
use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NODES, PASSWORD};
use std::time::Duration;

const INFO: &str = "info@example.org";
const FILES: &str = "/var/lib/phalanx/mail";

/// How a file in `$f` is spoiled, in shell.
const DAMAGES: [(&str, &str); 3] = [
    ("removed", "rm $f $f-wal $f-shm"),
    ("overwritten", "rm -f $f-wal $f-shm; head -c 8192 /dev/urandom > $f"),
    ("emptied", "rm -f $f-wal $f-shm; : > $f"),
];

#[test]
fn mail_waits_for_look_ups() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        for (what, damage) in DAMAGES {
            recipients(figure, what, damage)?;
        }
        for (what, damage) in DAMAGES {
            logins(figure, what, damage)?;
        }
        keys(figure)?;
        figure.settled(&MAIL_NODES)
    })
}

/// Without the file the node can't say who has a mailbox. The sender's queue keeps the letter, and tries again until it is taken; then it is there once.
fn recipients(figure: &Figure, what: &str, damage: &str) -> Result<()> {
    let (node, address) = (figure.host("mail2"), figure.address("mail2")?);
    let since = spoil(figure, "mail2", "recipients/recipients.sqlite", damage, "phalanx-postfix")?;
    // A sender's queue: one letter, tried until there is an answer that is final.
    let queue = format!(
        "for n in $(seq 60); do swaks --server {address} --timeout 5 --helo world.{FAR} --from ann@{FAR} --to {INFO} --header 'Subject: {what} it was.' \
         --header 'Message-Id: <{what}@{FAR}>' 2>&1 | grep -E '^<(\\*\\*|- ).*[245][0-9][0-9] ' | tail -n 20 > /run/said; \
         if grep -q '{TAKEN}' /run/said; then echo TAKEN; exit; elif grep -qE '^<\\*\\* +5' /run/said; then echo BOUNCED; cat /run/said; exit; fi; echo LATER; grep '^<\\*\\*' /run/said; sleep 1; done"
    );
    let sender = figure.host("world").spawn(&queue)?;
    eventually(Duration::from_secs(30), &format!("that the sender waits, the file being {what}"), || {
        // 4xx, or no answer in time, which to a sender is the same.
        ensure!(sender.stdout().matches("LATER").count() >= 2, "{}", sender.stdout());
        ensure!(!sender.stdout().contains("BOUNCED"), "{}", sender.stdout());
        Ok(())
    })?;
    node.text("systemctl start phalanx-agent")?;
    eventually(
        Duration::from_secs(60),
        &format!("that the letter is taken in spite of a file that was {what}"),
        || {
            ensure!(!sender.stdout().contains("BOUNCED"), "{}", sender.stdout());
            ensure!(sender.stdout().ends_with("TAKEN\n"), "{}", sender.stdout());
            Ok(())
        },
    )?;
    once(figure, &format!("Subject: {what} it was."))?;
    told(figure, "mail2", &since, what)
}

/// Without the holder's file nobody logs in and nothing is delivered: both wait, and nobody hears that there is no such mailbox.
fn logins(figure: &Figure, what: &str, damage: &str) -> Result<()> {
    let holder = figure.host("mail1");
    let login = || {
        let line = format!("curl -sSk -v -m 10 -u '{INFO}:{PASSWORD}' 'imaps://{MAIL_EXTERNAL}/INBOX' -X NOOP 2>&1");
        figure.host("world").run(&line)
    };
    ensure!(login()?.success(), "it works before");
    let since = spoil(figure, "mail1", "logins/logins.sqlite", damage, "phalanx-mailboxes phalanx-logins")?;
    eventually(Duration::from_secs(20), "that logins are not answered", || {
        let said = login()?;
        ensure!(!said.success() && said.stdout.contains("[UNAVAILABLE]"), "{}", said.stdout);
        Ok(())
    })?;
    let submission = figure.swaks(
        &figure.address("mail1")?,
        &format!(
            "--port 587 --tls --auth PLAIN --auth-user {INFO} --auth-password {PASSWORD} --from {INFO} --to bob@{FAR}"
        ),
    )?;
    ensure!(submission.contains("454 4.7.0"), "{submission}");
    let subject = format!("Subject: logins were {what}.");
    let said = send(figure, &format!("ann@{FAR}"), INFO, subject.trim_start_matches("Subject: "))?;
    ensure!(said.contains(TAKEN), "mail is taken without them: {said}");
    std::thread::sleep(Duration::from_secs(3));
    holder.text("systemctl start phalanx-agent")?;
    eventually(Duration::from_secs(60), "a login", || {
        let said = login()?;
        ensure!(said.success(), "{}", said.stdout);
        Ok(())
    })?;
    for node in MAIL_NODES {
        figure.host(node).text("postqueue -c /var/lib/phalanx/live/postfix -f")?;
    }
    once(figure, &subject)?;
    told(figure, "mail1", &since, what)
}

/// A key that is lost is made anew, and a person is told that mail may have left unsigned.
fn keys(figure: &Figure) -> Result<()> {
    let node = figure.host("mail2");
    let key = format!("{FILES}/keys/example.org.phalanx.key");
    let name = node.text(&format!("ls {FILES}/keys/example.org.*.key"))?;
    ensure!(name == key, "{name}");
    for damage in [format!("rm {key}"), format!(": > {key}")] {
        let before = node.text(&format!("sha256sum {key}"))?;
        let since = now(figure)?;
        node.text(&damage)?;
        eventually(Duration::from_secs(60), "the key", || {
            let after = node.text(&format!("sha256sum {key}"))?;
            ensure!(before == after, "{after}");
            Ok(())
        })?;
        told(figure, "mail2", &since, "unsigned")?;
    }
    let said = figure.swaks(
        &figure.address("mail2")?,
        &format!("--port 587 --tls --auth PLAIN --auth-user {INFO} --auth-password {PASSWORD} --from {INFO} --to bob@{FAR} --header 'Subject: signed again.'"),
    )?;
    ensure!(said.contains(TAKEN), "{said}");
    let got = figure.world_got("a signed letter", |message| {
        message["data"].as_str().is_some_and(|data| data.contains("signed again."))
    })?;
    ensure!(got["data"].as_str().is_some_and(|data| data.contains("DKIM-Signature")), "{got}");
    Ok(())
}

fn now(figure: &Figure) -> Result<String> {
    Ok(figure.json("status")?["at"].as_str().context("the status has no time")?.to_owned())
}

/// Stops the agent, damages a file, and has its readers open what is there; returns when that was.
fn spoil(figure: &Figure, node: &str, file: &str, damage: &str, readers: &str) -> Result<String> {
    let since = now(figure)?;
    figure
        .host(node)
        .text(&format!("systemctl stop phalanx-agent; f={FILES}/{file}; {damage}; systemctl restart {readers}"))?;
    Ok(since)
}

/// The letter is in the mailbox, once.
fn once(figure: &Figure, subject: &str) -> Result<()> {
    figure.has_mail(INFO, &[subject])?;
    let count = figure.inbox(INFO)?.iter().filter(|letter| letter.contains(subject)).count();
    ensure!(count == 1, "{subject}: {count} letters");
    Ok(())
}

/// An event of this node says that something is wrong with its mail, and it is over.
fn told(figure: &Figure, node: &str, since: &str, what: &str) -> Result<()> {
    eventually(Duration::from_secs(30), &format!("that somebody is told ({what})"), || {
        let events = figure.json("events --limit 200")?;
        let events = events["items"].as_array().context("a list of events")?;
        let is_told = |event: &serde_json::Value| {
            event["topic"] == "mail"
                && event["severity"] == "error"
                && event.to_string().contains(node)
                && event["at"].as_str().is_some_and(|at| *at >= *since)
        };
        ensure!(events.iter().any(is_told), "{what}: nobody was told: {events:?}");
        Ok(())
    })?;
    figure.settled(&[node])
}
