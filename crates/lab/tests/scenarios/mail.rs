//! Mail in from the world and out to it, through the balancer, on the real daemons.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NAME, MAIL_NODES, PASSWORD};
use serde_json::Value;
use std::time::Duration;

const SIEVE: &str = include_str!("mail/sieve.py");

/// What the world answers an SMTP client that was refused: the first line of three digits that is no success.
#[track_caller]
fn refused(said: &str, code: &str, words: &str) -> Result<()> {
    let line = said.lines().find(|line| line.contains(code)).with_context(|| format!("no {code} in: {said}"))?;
    ensure!(line.contains(words), "{line:?} does not say {words:?}");
    Ok(())
}

fn send(figure: &Figure, from: &str, to: &str, subject: &str) -> Result<String> {
    figure.swaks(MAIL_EXTERNAL, &format!("--from '{from}' --to '{to}' --header 'Subject: {subject}'"))
}

fn login(address: &str) -> String {
    format!("--port 587 --tls --auth PLAIN --auth-user {address} --auth-password {PASSWORD}")
}

/// From the world into a mailbox, and out of it by both protocols, with and without TLS from the first byte.
fn in_and_out(figure: &Figure) -> Result<()> {
    let said = send(figure, &format!("ann@{FAR}"), "info@example.org", "a letter")?;
    ensure!(said.contains("250 2.0.0 Ok: queued"), "{said}");
    let letter = figure.has_mail("info@example.org", &["Subject: a letter"])?;
    ensure!(letter.contains("[198.51.100.100]"), "the client's address did not arrive: {letter}");
    ensure!(letter.contains("Return-Path: <ann@far.example>"), "{letter}");
    for url in [format!("pop3s://{MAIL_EXTERNAL}/1"), format!("--ssl-reqd pop3://{MAIL_EXTERNAL}/1")] {
        let line = format!("curl -sSk -m 20 -u 'info@example.org:{PASSWORD}' {url}");
        let fetched = figure.host("world").text(&line)?;
        ensure!(fetched.contains("Subject: a letter"), "{url}: {fetched}");
    }
    let plain = format!("curl -sS -m 20 -u 'info@example.org:{PASSWORD}' imap://{MAIL_EXTERNAL}/INBOX 2>&1");
    ensure!(!figure.host("world").run(&plain)?.success(), "a password was taken in clear");
    Ok(())
}

/// Out to the world by those who log in, signed, from the cluster's own address.
fn submission(figure: &Figure) -> Result<()> {
    let words = format!(
        "{} --from info@example.org --to bob@{FAR} --h-From info@example.org --header 'Subject: an answer'",
        login("info@example.org")
    );
    let said = figure.swaks(MAIL_EXTERNAL, &words)?;
    ensure!(said.contains("250 2.0.0 Ok: queued"), "{said}");
    let got = figure.world_got("an answer", |message| text(message, "data").contains("Subject: an answer"))?;
    ensure!(text(&got, "client") == MAIL_EXTERNAL && text(&got, "helo") == MAIL_NAME, "{got}");
    ensure!(text(&got, "from") == "info@example.org", "{got}");
    verify_signature(figure, "example.org", text(&got, "data"))?;
    let tls = format!("--port 465 --tlsc --auth LOGIN --auth-user info@example.org --auth-password {PASSWORD}");
    let said = figure.swaks(MAIL_EXTERNAL, &format!("{tls} --from info@example.org --to bob@{FAR}"))?;
    ensure!(said.contains("250 2.0.0 Ok: queued"), "{said}");
    Ok(())
}

fn text<'m>(message: &'m Value, key: &str) -> &'m str {
    message[key].as_str().unwrap_or_default()
}

/// Gives the world's DNS what `mail-domain show` tells the customer to set, and has a verifier that is not ours judge the signature.
fn verify_signature(figure: &Figure, domain: &str, message: &str) -> Result<()> {
    let world = figure.host("world");
    let shown = figure.json(&format!("mail-domain show {domain}"))?;
    let records = shown["dns"].as_array().context("there are records")?;
    let key = records.iter().find(|record| text(record, "name").contains("_domainkey")).context("there is a key")?;
    const CHECK: &str = "import sys, dkim; message = sys.stdin.buffer.read(); name, value = sys.argv[1:]; \
        found = lambda asked, timeout=5: value.encode() if asked.rstrip(b'.') == name.encode() else None; \
        print(dkim.verify(message, dnsfunc=found))";
    let words = ["python3", "-c", CHECK, text(key, "name"), text(key, "value")];
    let said = world.exec(&words, message.as_bytes())?.text()?;
    ensure!(said == "True", "the signature does not hold: {said}\n{message}");
    let spoiled = message.replace("Subject: an answer", "Subject: another answer");
    ensure!(world.exec(&words, spoiled.as_bytes())?.text()? == "False", "the verifier takes anything");
    Ok(())
}

/// Aliases lead to mailboxes here, forwarders to the world under an address of ours, a catch-all takes what is nobody's.
fn aliases(figure: &Figure) -> Result<()> {
    figure.phalanx("alias add sales@example.org --to info@example.org --to boss@example.org")?;
    figure.phalanx(&format!("alias add away@example.org --to carl@{FAR}"))?;
    figure.phalanx("alias add @example.com --to boss@example.org")?;
    for (to, subject) in [
        ("sales@example.org", "to sales"),
        ("whoever@example.com", "to whoever"),
        ("boss+lists@example.org", "to a part"),
    ] {
        eventually(Duration::from_secs(5), &format!("that mail for {to} is taken"), || {
            let said = send(figure, &format!("ann@{FAR}"), to, subject)?;
            ensure!(said.contains("250 2.0.0 Ok: queued"), "{said}");
            Ok(())
        })?;
    }
    figure.has_mail("info@example.org", &["Subject: to sales"])?;
    for subject in ["to sales", "to whoever", "to a part"] {
        figure.has_mail("boss@example.org", &[&format!("Subject: {subject}")])?;
    }
    send(figure, &format!("ann@{FAR}"), "away@example.org", "sent on")?;
    let got = figure.world_got("what was sent on", |message| text(message, "data").contains("Subject: sent on"))?;
    let sender = text(&got, "from").to_owned();
    ensure!(sender.starts_with("SRS0=") && sender.ends_with(&format!("@{MAIL_NAME}")), "not ours: {got}");
    ensure!(text(&got, "data").contains("ann@far.example"), "the header keeps its author: {got}");
    // What comes back to that address goes to the author; one that somebody made up goes nowhere.
    let said = figure.swaks(MAIL_EXTERNAL, &format!("--from '<>' --to '{sender}' --header 'Subject: came back'"))?;
    ensure!(said.contains("250 2.0.0 Ok: queued"), "{said}");
    figure.world_got("what came back", |message| {
        text(message, "data").contains("Subject: came back") && message["to"][0] == format!("ann@{FAR}")
    })?;
    let made_up = format!("SRS0=AAAA=ZZ={FAR}=ann@{MAIL_NAME}");
    refused(&figure.swaks(MAIL_EXTERNAL, &format!("--from '<>' --to '{made_up}'"))?, "550", "5.1.1")
}

/// What a customer's own rules do: file, and answer while away.
fn sieve(figure: &Figure) -> Result<()> {
    let world = figure.host("world");
    let script = "require [\"fileinto\", \"mailbox\", \"vacation\"];\n\
        if header :contains \"subject\" \"invoice\" { fileinto :create \"Invoices\"; }\n\
        vacation :days 1 :subject \"I am away\" \"Back on Monday.\";\n";
    world.write_file("/run/sieve.py", SIEVE.as_bytes())?;
    let words = ["python3", "/run/sieve.py", MAIL_EXTERNAL, "boss@example.org", PASSWORD];
    ensure!(world.exec(&words, script.as_bytes())?.text()? == "active");
    let letter =
        format!("--from dora@{FAR} --to boss@example.org --h-To boss@example.org --header 'Subject: invoice 7'");
    figure.swaks(MAIL_EXTERNAL, &letter)?;
    let answer = figure.world_got("the vacation's answer", |message| text(message, "data").contains("I am away"))?;
    ensure!(answer["to"][0] == format!("dora@{FAR}") && text(&answer, "data").contains("Back on Monday"), "{answer}");
    eventually(Duration::from_secs(20), "the invoice in its folder", || {
        let found = figure.mail_curl(
            "boss@example.org",
            &format!("imaps://{MAIL_EXTERNAL}/Invoices"),
            "-X 'UID SEARCH ALL'",
        )?;
        ensure!(found.trim() == "* SEARCH 1", "{found}");
        Ok(())
    })
}

/// A full mailbox refuses before the mail is sent, and keeps what it has.
fn quota(figure: &Figure) -> Result<()> {
    figure
        .host("cp")
        .text(&format!("echo {PASSWORD} | phalanx mailbox add small@example.org --quota-mib 1 --password-file -"))?;
    let world = figure.host("world");
    world.text("(printf 'Subject: big\\nFrom: ann@far.example\\nTo: small@example.org\\nMessage-Id: <big@far.example>\\nDate: %s\\n\\n' \"$(date -R)\"; head -c 900000 /dev/zero | tr '\\0' x | fold -w 70) > /run/big.txt")?;
    // curl says how big its letter is (RFC 1870), as mail servers do.
    let send = format!(
        "curl -sv -m 20 smtp://{MAIL_EXTERNAL}/world.{FAR} --mail-from ann@{FAR} --mail-rcpt small@example.org -T /run/big.txt 2>&1"
    );
    let send = || world.run(&send).map(|sent| sent.stdout);
    eventually(Duration::from_secs(5), "a first big letter", || {
        let said = send()?;
        ensure!(said.contains("250 2.0.0 Ok: queued"), "{said}");
        Ok(())
    })?;
    figure.has_mail("small@example.org", &["xxxx"])?;
    refused(&send()?, "552", "full")?;
    ensure!(figure.inbox("small@example.org")?.len() == 1);
    Ok(())
}

/// What is not taken: for nobody, for others, under others' names; and the answers that say why.
fn refusals(figure: &Figure) -> Result<()> {
    let ann = format!("ann@{FAR}");
    refused(&send(figure, &ann, "nobody@example.org", "x")?, "550", "User unknown")?;
    refused(&send(figure, &ann, &format!("bob@{FAR}"), "x")?, "554", "Relay access denied")?;
    refused(&send(figure, "nobody@example.org", "info@example.org", "x")?, "550", "User unknown")?;
    let spoofed = format!("{} --from boss@example.org --to bob@{FAR}", login("info@example.org"));
    refused(&figure.swaks(MAIL_EXTERNAL, &spoofed)?, "553", "not owned by user")?;
    let owned = format!("{} --from sales@example.org --to bob@{FAR}", login("info@example.org"));
    let said = figure.swaks(MAIL_EXTERNAL, &owned)?;
    ensure!(said.contains("250 2.0.0 Ok: queued"), "an alias of one's own is one's own: {said}");
    let wrong = format!(
        "--port 587 --tls --auth PLAIN --auth-user info@example.org --auth-password wrong --from info@example.org --to bob@{FAR}"
    );
    refused(&figure.swaks(MAIL_EXTERNAL, &wrong)?, "535", "5.7.8")?;
    let clear = format!(
        "--port 587 --auth PLAIN --auth-user info@example.org --auth-password {PASSWORD} --from info@example.org --to bob@{FAR}"
    );
    ensure!(!figure.swaks(MAIL_EXTERNAL, &clear)?.contains("235 "), "a password was taken in clear");
    Ok(())
}

#[test]
fn mail() -> Result<()> {
    Figure::scenario_mail(|figure| {
        figure.mail_domain("alice", "example.org", &["info", "boss"])?;
        figure.phalanx("mail-domain add example.com --account alice --logical-server post")?;
        eventually(Duration::from_secs(30), "that the balancer sends mail to the nodes", || {
            let said = send(figure, &format!("ann@{FAR}"), "boss@example.org", "first")?;
            ensure!(said.contains("250 2.0.0 Ok: queued"), "{said}");
            Ok(())
        })?;
        in_and_out(figure)?;
        submission(figure)?;
        aliases(figure)?;
        sieve(figure)?;
        quota(figure)?;
        refusals(figure)?;
        figure.settled(&MAIL_NODES)
    })
}
