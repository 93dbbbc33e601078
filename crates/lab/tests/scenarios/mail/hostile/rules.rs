//! Sieve scripts that mean no good.

use super::{INFO, TAKEN, outside, send, tell};
use crate::scenarios::mail::talk::header;
use anyhow::{Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL};
use serde_json::Value;
use std::time::Duration;

/// What is uploaded, and what is answered.
const SCRIPTS: [(&str, &str); 30] = [
    ("keep;", "OK"),
    ("keep", "line 1: error: expected end of command"),
    ("keep;\r\nif true {\r\n  stop\r\n}\r\n", "line 4: error"),
    ("keep;\r\nfly \"away\";\r\n", "line 2: error: unknown command 'fly'"),
    ("require \"fileinto\"; fileinto \"a\u{7}b\";", "OK"),
    ("require \"fileinto\"; fileinto \"a\u{c3}\";", "invalid utf-8"),
    ("require \"fileinto\"; fileinto \"&bad\";", "OK"),
    ("require \"nope\"; keep;", "unknown Sieve capability"),
    ("require \"vnd.dovecot.pipe\"; pipe \"sh\";", "unknown Sieve capability"),
    ("require \"vnd.dovecot.execute\"; execute \"sh\";", "unknown Sieve capability"),
    ("require \"vnd.dovecot.filter\"; filter \"sh\";", "unknown Sieve capability"),
    ("require \"reject\"; reject \"no\";", "unknown Sieve capability"),
    ("require \"ereject\"; ereject \"no\";", "unknown Sieve capability"),
    ("require \"enotify\"; notify \"mailto:a@far.example\";", "unknown Sieve capability"),
    ("require \"editheader\"; addheader \"X\" \"y\";", "unknown Sieve capability"),
    ("require \"vnd.dovecot.environment\"; keep;", "unknown Sieve capability"),
    ("require \"include\"; include :global \"x\";", "unavailable"),
    ("require \"include\"; include :personal \"../../boss.2/sieve/rules\";", "invalid script name"),
    ("require \"include\"; include :personal \"/etc/passwd\";", "invalid script name"),
    ("redirect \"a@far.example\r\nRCPT TO:<b@far.example>\";", "is invalid"),
    ("redirect \"a@far.example, b@far.example\";", "is invalid"),
    ("redirect \"|/bin/sh\";", "is invalid"),
    ("require \"vacation\"; vacation :from \"info@example.org\r\nBcc: victim@far.example\" \"x\";", "is invalid"),
    ("keep;\0", "0x00"),
    ("require \"fileinto\"; fileinto \"a\0b\";", "NUL"),
    ("require \"vacation\"; vacation :days 1 \"x\"; vacation :days 1 \"y\";", "OK"),
    ("require \"variables\"; set \"x\" \"${x}${x}\"; keep;", "OK"),
    ("# \u{ff}\u{fe}\nkeep;", "OK"),
    ("discard;", "OK"),
    ("keep;keep;keep;", "OK"),
];

/// Names of scripts, and what is answered.
const NAMES: [(&str, &str); 5] = [
    ("../evil", "Invalid Sieve script name"),
    ("a/b", "Invalid Sieve script name"),
    ("", "Invalid Sieve script name"),
    ("a\nb", "Invalid Sieve script name"),
    ("${x}", "OK"),
];

fn put(name: &str, script: &str) -> String {
    format!("PUTSCRIPT {{{}+}}\r\n{name} {{{}+}}\r\n{script}", name.chars().count(), script.chars().count())
}

/// Makes a script the mailbox' rules.
fn rules(figure: &Figure, address: &str, script: &str) -> Result<()> {
    let said = tell(figure, "sieve", address, &[put("rules", script), "SETACTIVE \"rules\"".into()])?;
    ensure!(said.iter().all(|said| said.starts_with("OK")), "{script}: {said:?}");
    Ok(())
}

/// Uploads, then what scripts do that were taken.
pub fn all(figure: &Figure) -> Result<()> {
    uploads(figure)?;
    letters(figure)?;
    folders(figure)?;
    silence(figure)?;
    circles(figure)?;
    borrowed_names(figure)
}

fn uploads(figure: &Figure) -> Result<()> {
    let fixed = SCRIPTS.iter().map(|(script, answer)| (put("try", script), *answer));
    let names = NAMES.iter().map(|(name, answer)| (put(name, "keep;"), *answer));
    let own = [
        (put("try", &format!("# {}\nkeep;", "x".repeat(300_000))), "QUOTA/MAXSIZE"),
        (put("try", &format!("{}keep;{}", "if true { ".repeat(200), " }".repeat(200))), "cannot nest"),
        (put(&"x".repeat(300), "keep;"), "Invalid Sieve script name"),
    ];
    // More of them than a mailbox may have.
    let many = (0..40)
        .map(|number| (put(&format!("many{number}"), "keep;"), if number < 30 { "OK" } else { "QUOTA/MAXSCRIPTS" }));
    let orders: Vec<(String, &str)> = fixed.chain(names).chain(own).chain(many).collect();
    let mut lines: Vec<String> = orders.iter().map(|(line, _)| line.clone()).collect();
    lines.extend((0..30).map(|number| format!("DELETESCRIPT \"many{number}\"")));
    lines.push("LISTSCRIPTS".into());
    let said = tell(figure, "sieve", INFO, &lines)?;
    let is_it = |answer: &str, said: &str| match answer {
        "OK" => said.starts_with("OK"),
        _ => said.starts_with("NO") && said.contains(answer),
    };
    let wrong: Vec<String> = orders
        .iter()
        .zip(&said)
        .filter(|((_, answer), said)| !is_it(answer, said))
        .map(|((line, answer), said)| format!("{line:.120?}: {said:?}, not {answer:?}"))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed = said.last().map(String::as_str).unwrap_or_default();
    ensure!(
        listed.lines().filter(|line| line.starts_with('"')).count() == 2,
        "\"try\" and \"${{x}}\" are left: {listed}"
    );
    Ok(())
}

/// A letter that a script would put where nobody may lies in the inbox: none is lost.
fn letters(figure: &Figure) -> Result<()> {
    let target = "boss.2/Maildir";
    let into = |folder: &str| format!("require [\"fileinto\", \"mailbox\"]; fileinto :create \"{folder}\";");
    let scripts = [
        into(&format!("../../{target}")),
        into("/etc/passwd"),
        into("a/../../b"),
        into("~root"),
        into(&"x".repeat(300)),
        format!("require \"fileinto\"; fileinto \"../../{target}\";"),
        "require \"fileinto\"; fileinto \"/etc/passwd\";".to_owned(),
        "require [\"fileinto\", \"mailbox\"]; fileinto :create \"..\";".to_owned(),
        "require \"include\"; include :personal \"rules\";".to_owned(),
        "require \"include\"; include :personal \"nope\";".to_owned(),
        (0..5).map(|n| format!("redirect \"many{n}@far.example\";\n")).collect(),
    ];
    for (number, script) in scripts.iter().enumerate() {
        rules(figure, INFO, script)?;
        let subject = format!("kept {number}.");
        let said = send(figure, &format!("ann@{FAR}"), INFO, &subject)?;
        ensure!(said.contains(TAKEN), "{said}");
        figure.has_mail(INFO, &[&format!("Subject: {subject}")])?;
    }
    let kept = figure.host("world").text("grep -c 'many[0-9]@far.example' /var/spool/world.jsonl || true")?;
    ensure!(kept == "0", "of five redirections none is made");
    Ok(())
}

/// Folders with odd names are made as IMAP has them, within the mailbox: UTF-8 becomes modified UTF-7, and what looks like that is text.
fn folders(figure: &Figure) -> Result<()> {
    let before = outside(figure)?;
    // As a script has it, in UTF-8 as Latin-1, and as IMAP lists it.
    let folders =
        [("\u{c3}\u{bc}ber", "&APw-ber"), ("&APw-x", "&-APw-x"), ("%d ${x}", "%d ${x}"), ("it's *", "it's *")];
    for (number, (folder, _)) in folders.iter().enumerate() {
        rules(figure, INFO, &format!("require [\"fileinto\", \"mailbox\"]; fileinto :create \"{folder}\";"))?;
        let said = send(figure, &format!("ann@{FAR}"), INFO, &format!("filed {number}."))?;
        ensure!(said.contains(TAKEN), "{said}");
    }
    eventually(Duration::from_secs(30), "the folders", || {
        let listed = tell(figure, "imap", INFO, &["LIST \"\" *".to_owned()])?.concat();
        for (_, folder) in folders {
            ensure!(
                listed.contains(&format!(" {folder}")) || listed.contains(&format!("\"{folder}\"")),
                "{folder}: {listed}"
            );
        }
        Ok(())
    })?;
    let after = outside(figure)?;
    ensure!(before == after, "something lies outside the mailbox: {after:#?} and not {before:#?}");
    Ok(())
}

/// Lists, machines, those who have no address and who write to somebody else get no answer; a person who is away answers persons (RFC 3834).
fn silence(figure: &Figure) -> Result<()> {
    rules(figure, INFO, "require \"vacation\"; vacation :days 1 :subject \"I am out\" \"x\";")?;
    let header = |more: &str| format!("{}{more}", header(&format!("quiet@{FAR}"), "asks"));
    // Who sends, and with which header.
    let letters = [
        ("<>", header("")),
        ("list-bounces@far.example", header("List-Id: <list.far.example>\r\n")),
        ("list1@far.example", header("List-Unsubscribe: <mailto:x@far.example>\r\n")),
        ("bulk@far.example", header("Precedence: bulk\r\n")),
        ("auto@far.example", header("Auto-Submitted: auto-replied\r\n")),
        ("owner-list@far.example", header("")),
        ("mailer-daemon@far.example", header("")),
        ("blind@far.example", header("").replace("To: info@example.org", "To: someone@else.example")),
        (INFO, header("")),
    ];
    for (number, (sender, header)) in letters.iter().enumerate() {
        let text = format!("{}\r\nx\r\n", header.replace("Subject: asks", &format!("Subject: asks {number}.")));
        figure.host("world").write_file("/run/asks.txt", text.as_bytes())?;
        let said = figure.swaks(MAIL_EXTERNAL, &format!("--from '{sender}' --to {INFO} --data @/run/asks.txt"))?;
        ensure!(said.contains(TAKEN), "{sender}: {said}");
        figure.has_mail(INFO, &[&format!("Subject: asks {number}.")])?;
    }
    // The control, which comes after all of them: a person, twice, gets one answer.
    for number in 0..2 {
        send(figure, &format!("person@{FAR}"), INFO, &format!("a person asks {number}."))?;
        figure.has_mail(INFO, &[&format!("Subject: a person asks {number}.")])?;
    }
    figure.world_got("an answer for a person", |message| message["to"][0] == "person@far.example")?;
    std::thread::sleep(Duration::from_secs(2));
    let answers = figure.host("world").text("grep 'I am out' /var/spool/world.jsonl")?;
    ensure!(answers.lines().count() == 1 && answers.contains("person@far.example"), "{answers}");
    let own = figure.inbox(INFO)?.iter().filter(|letter| letter.contains("I am out")).count();
    ensure!(own == 0, "it answered itself");
    Ok(())
}

/// Mailboxes that send to each other, and one that sends to itself: the letter ends in one of them, and its sender hears nothing.
fn circles(figure: &Figure) -> Result<()> {
    let lies_at = |subject: &str| {
        figure.host("nas").text(&format!(
            "cd /srv/nas/mail/mail/example.org && grep -ral --include='*:2,*' --include='*,S=*' 'Subject: {subject}' */Maildir"
        ))
    };
    for (subject, to) in [("circle of two.", "boss@example.org"), ("circle of one.", INFO)] {
        rules(figure, INFO, &format!("redirect \"{to}\";"))?;
        rules(figure, "boss@example.org", &format!("redirect \"{INFO}\";"))?;
        let said = send(figure, &format!("ann@{FAR}"), INFO, subject)?;
        ensure!(said.contains(TAKEN), "{said}");
        figure.has_mail(INFO, &[&format!("Subject: {subject}")])?;
        std::thread::sleep(Duration::from_secs(2));
        let found = lies_at(subject)?;
        ensure!(found.lines().count() == 1, "{subject} lies at {found}");
    }
    let back = figure.host("world").text("grep -c 'circle of' /var/spool/world.jsonl || true")?;
    ensure!(back == "0", "somebody heard of it: {back}");
    rules(figure, "boss@example.org", "keep;")
}

/// What leaves by a script leaves under a name of its owner's own domain, and only what its mailbox writes is signed.
fn borrowed_names(figure: &Figure) -> Result<()> {
    figure.mailbox("ceo@example.com")?;
    let vacation = |more: &str| format!("require [\"vacation\", \"variables\"];\n{more}");
    // Who asks, with which subject; the script; and the answer's author and whether it is signed, if there is an answer.
    let cases = [
        ("a1", "hi", vacation("vacation :days 1 \"x\";"), Some("info@example.org")),
        ("a2", "hi", vacation("vacation :days 1 :from \"boss@example.org\" \"x\";"), Some("boss@example.org")),
        ("a3", "hi", vacation("vacation :days 1 :from \"ceo@example.com\" \"x\";"), None),
        ("a4", "hi", vacation("vacation :days 1 :from \"ceo@far.example\" \"x\";"), None),
        (
            "a5",
            "hi",
            vacation("vacation :days 1 :subject \"s\r\nBcc: victim@far.example\" \"x\";"),
            Some("info@example.org"),
        ),
        (
            "a6",
            "=?utf-8?q?hi=0D=0ABcc=3A_victim=40far.example?=",
            vacation("if header :matches \"subject\" \"*\" { vacation :days 1 :subject \"${1}\" \"${1}\"; }"),
            Some("info@example.org"),
        ),
    ];
    for (asker, subject, script, author) in &cases {
        rules(figure, INFO, script)?;
        let asker = format!("{asker}@{FAR}");
        let said = send(figure, &asker, INFO, subject)?;
        ensure!(said.contains(TAKEN), "{said}");
        let is_it = |message: &Value| message["to"][0] == asker.as_str();
        let Some(author) = author else {
            std::thread::sleep(Duration::from_secs(3));
            let kept = figure
                .host("world")
                .text(&format!("grep -c '\"to\": \\[\"{asker}\"' /var/spool/world.jsonl || true"))?;
            ensure!(kept == "0", "{script}: an answer under another's name");
            continue;
        };
        let got = figure.world_got(&format!("an answer for {asker}"), is_it)?;
        let head = got["data"].as_str().unwrap_or_default().split("\r\n\r\n").next().unwrap_or_default().to_owned();
        ensure!(got["to"].as_array().is_some_and(|to| to.len() == 1), "{got}");
        ensure!(got["from"] == INFO && head.contains("\r\nDKIM-Signature:"), "{got}");
        let from: Vec<&str> = head.lines().filter(|line| line.to_ascii_lowercase().starts_with("from")).collect();
        ensure!(from.len() == 1 && from[0].contains(author), "{from:?}: {got}");
        ensure!(!head.lines().any(|line| line.starts_with("Bcc")), "a header was let in: {head}");
    }
    // A stranger writes under a customer's name to a mailbox that sends on: what goes out is not signed with that customer's key.
    rules(figure, INFO, "redirect \"on@far.example\";")?;
    let text = format!("{}\r\nx\r\n", header("ceo@example.com", "borrowed"));
    figure.host("world").write_file("/run/borrowed.txt", text.as_bytes())?;
    let said = figure.swaks(MAIL_EXTERNAL, &format!("--from ann@{FAR} --to {INFO} --data @/run/borrowed.txt"))?;
    ensure!(said.contains(TAKEN), "{said}");
    let got = figure.world_got("what was sent on", |message| message["to"][0] == "on@far.example")?;
    let data = got["data"].as_str().unwrap_or_default();
    ensure!(data.contains("From: ceo@example.com") && !data.contains("DKIM-Signature"), "{got}");
    // The control: that customer's own mail is signed with it.
    let own = format!(
        "--port 587 --tls --auth PLAIN --auth-user ceo@example.com --auth-password {} --from ceo@example.com --to own@{FAR}",
        super::PASSWORD
    );
    let said = figure.swaks(MAIL_EXTERNAL, &own)?;
    ensure!(said.contains(TAKEN), "{said}");
    let got = figure.world_got("the customer's own", |message| message["to"][0] == "own@far.example")?;
    ensure!(got["data"].as_str().is_some_and(|data| data.contains("d=example.com")), "{got}");
    Ok(())
}
