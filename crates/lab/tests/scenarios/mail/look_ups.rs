//! Look-up files that are missing, damaged or held: the very letter that was told to come back later arrives when it does, who logs in is told the same,
//! and a person is told what is wrong, where, and what becomes of it.
//!
//! Each time it is the file of recipients on mail2 and that of logins on mail1, the holder of the mailboxes. The agents, which make files anew, are stopped for
//! so long as somebody shall see what is without them.

use super::flow::{Flow, TAKEN, send};
use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NODES, PASSWORD};
use phalanx_lab::{Background, eventually};
use std::time::Duration;

const INFO: &str = "info@example.org";
const FILES: &str = "/var/lib/phalanx/mail";
/// A node, its file, and who reads it there.
const SPOILED: [(&str, &str, &str); 2] = [
    ("mail2", "recipients/recipients.sqlite", "phalanx-postfix"),
    ("mail1", "logins/logins.sqlite", "phalanx-mailboxes phalanx-logins"),
];
/// What the holder of a file's lock is.
const HOLD: &str = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); \
    c.execute('PRAGMA locking_mode = EXCLUSIVE'); c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); time.sleep(300)";
const LIMIT: Duration = Duration::from_secs(60);

/// Something that is wrong with the files of [`SPOILED`].
struct Wrong {
    what: &'static str,
    /// How it comes about, in shell, with the file in `$f`; and words that a person is told.
    damages: [(&'static str, &'static str); 2],
}

const REMOVE: &str = "rm $f $f-wal $f-shm";
const EMPTY: &str = "rm -f $f-wal $f-shm; : > $f";
/// Its first page, which says that it is a database, stays whole.
const SPOIL: &str = "sqlite3 $f 'PRAGMA wal_checkpoint(TRUNCATE)' > /dev/null; rm -f $f-wal $f-shm; \
    head -c $(($(stat -c %s $f) - 4096)) /dev/urandom | dd of=$f bs=4096 seek=1 conv=notrunc status=none";

/// The agents make these anew. Dovecot, asked for a login, makes an empty file where there is none.
const WRONG: [Wrong; 2] = [
    Wrong { what: "removed", damages: [(REMOVE, "is gone"), (REMOVE, "no such table")] },
    Wrong { what: "spoiled", damages: [(EMPTY, "no such table"), (SPOIL, "malformed")] },
];

#[test]
fn mail_waits_for_look_ups() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        for Wrong { what, damages } in WRONG {
            let since = spoil(figure, damages.map(|(damage, _)| damage))?;
            let waiting = Waiting::begin(figure, what)?;
            start(figure, "phalanx-agent")?;
            waiting.arrive()?;
            told(figure, &since, damages.map(|(_, words)| words))?;
        }
        held(figure)?;
        by_themselves(figure)?;
        let keys = Keys::lose(figure)?;
        a_change_waits(figure)?;
        keys.are_back()?;
        each_has_its_own(figure)?;
        figure.settled(&MAIL_NODES)
    })
}

/// Who is taken mail for, what proves a login, and keys are each read by one daemon's user and nobody else's, also after files were made anew.
fn each_has_its_own(figure: &Figure) -> Result<()> {
    const READERS: [(&str, &str); 3] = [
        ("postfix", "recipients/recipients.sqlite"),
        ("dovecot", "logins/logins.sqlite"),
        ("_rspamd", "keys/example.org.*.key"),
    ];
    for node in MAIL_NODES {
        for (reader, file) in READERS {
            let read = format!(
                "set -- {FILES}/{file}; test -s \"$1\" || exit 1; for user in postfix dovecot dovenull _rspamd nobody www-data; do \
                 runuser -u $user -- cat \"$1\" > /dev/null 2>&1 && echo $user || true; done"
            );
            let readers = figure.host(node).text(&read)?;
            ensure!(readers == reader, "{file} on {node} is read by {readers:?}, not by {reader} alone");
        }
    }
    Ok(())
}

fn now(figure: &Figure) -> Result<String> {
    Ok(figure.json("status")?["at"].as_str().context("the status has no time")?.to_owned())
}

fn start(figure: &Figure, units: &str) -> Result<()> {
    SPOILED.iter().try_for_each(|(node, ..)| figure.host(node).text(&format!("systemctl start {units}")).map(drop))
}

/// Stops the agents, spoils the files, and has their readers open what is there; returns when that was.
fn spoil(figure: &Figure, damages: [&str; 2]) -> Result<String> {
    let since = now(figure)?;
    for ((node, file, readers), damage) in SPOILED.into_iter().zip(damages) {
        let line = format!("systemctl stop phalanx-agent; f={FILES}/{file}; {damage}; systemctl restart {readers}");
        figure.host(node).text(&line)?;
    }
    Ok(since)
}

/// Letters and logins that can't be served for now.
struct Waiting<'f> {
    figure: &'f Figure,
    what: &'f str,
    sender: Background,
}

impl<'f> Waiting<'f> {
    /// Tries until it is seen that all of them are put off.
    fn begin(figure: &'f Figure, what: &'f str) -> Result<Self> {
        let waiting = Self { figure, what, sender: sender(figure, what)? };
        // mail1 knows that there is such a mailbox. That its letter is taken all the same, the way to who would ask it to wait is closed.
        let (mail1, address) = (figure.host("mail1"), figure.address("mail1")?);
        let letter = format!("--from ann@{FAR} --to {INFO} --header 'Subject: logins were {what}.'");
        let said = figure.swaks(&address, &letter)?;
        ensure!(said.contains("450 4.7.1"), "{said}");
        mail1.text("systemctl stop phalanx-mail-router")?;
        let said = figure.swaks(&address, &letter)?;
        ensure!(said.contains(TAKEN), "{said}");
        mail1.text("systemctl start phalanx-mail-router && postqueue -c /var/lib/phalanx/live/postfix -f")?;
        eventually(LIMIT, &format!("that all wait, the files being {what}"), || waiting.all_wait())?;
        Ok(waiting)
    }

    fn all_wait(&self) -> Result<()> {
        let said = self.sender.stdout();
        ensure!(!said.contains("BOUNCED"), "{said}");
        // 4xx, or no answer in time, which to a sender is the same.
        ensure!(said.matches("LATER").count() >= 2, "{said}");
        let login = login(self.figure)?;
        ensure!(login.contains("[UNAVAILABLE]"), "{login}");
        let queue = self.figure.host("mail1").text("postqueue -c /var/lib/phalanx/live/postfix -p")?;
        ensure!(queue.contains(INFO) && queue.contains("said: 451 4.3.0"), "the letter for the holder: {queue}");
        Ok(())
    }

    /// Who was put off comes back, and each letter is there once.
    fn arrive(mut self) -> Result<()> {
        let (figure, what) = (self.figure, self.what);
        eventually(LIMIT, &format!("that nothing waits any more, the files having been {what}"), || {
            let said = self.sender.stdout();
            ensure!(!said.contains("BOUNCED") && !self.sender.is_running()? && said.ends_with("TAKEN\n"), "{said}");
            let login = login(figure)?;
            ensure!(login.contains("OK NOOP") || login.contains("OK Logged in"), "{login}");
            Ok(())
        })?;
        // Postfix tries by and by; a test is impatient.
        for node in MAIL_NODES {
            figure.host(node).text("postqueue -c /var/lib/phalanx/live/postfix -f")?;
        }
        for subject in [format!("Subject: recipients were {what}."), format!("Subject: logins were {what}.")] {
            figure.has_mail(INFO, &[&subject])?;
            let count = figure.inbox(INFO)?.iter().filter(|letter| letter.contains(&subject)).count();
            ensure!(count == 1, "{subject}: {count} letters");
        }
        Ok(())
    }
}

/// A mail server of the world with one letter for mail2, which it tries until there is an answer that is final.
fn sender(figure: &Figure, what: &str) -> Result<Background> {
    let address = figure.address("mail2")?;
    figure.host("world").spawn(&format!(
        "for n in $(seq 120); do swaks --server {address} --timeout 2 --helo world.{FAR} --from ann@{FAR} --to {INFO} \
         --header 'Subject: recipients were {what}.' > /run/said 2>&1; \
         if grep -q '{TAKEN}' /run/said; then echo TAKEN; exit; fi; \
         if grep -q '^<\\*\\* *5' /run/said && ! grep -q Timeout /run/said; then echo BOUNCED; cat /run/said; exit; fi; \
         echo LATER; grep '^<\\*\\*' /run/said; sleep 1; done"
    ))
}

fn login(figure: &Figure) -> Result<String> {
    let line = format!("curl -sSk -v -m 10 -u '{INFO}:{PASSWORD}' 'imaps://{MAIL_EXTERNAL}/INBOX' -X NOOP 2>&1");
    Ok(figure.host("world").run(&line)?.stdout)
}

/// Each node told, since then, of its own file in these words, and what becomes of it.
fn told(figure: &Figure, since: &str, words: [&str; 2]) -> Result<()> {
    for ((node, file, _), words) in SPOILED.iter().zip(words) {
        has_event(figure, node, since, &[&format!("{FILES}/{file}"), words, "it is made anew from the directory"])?;
    }
    figure.settled(&MAIL_NODES)
}

fn has_event(figure: &Figure, node: &str, since: &str, words: &[&str]) -> Result<()> {
    eventually(Duration::from_secs(40), &format!("that {node} tells {words:?}"), || {
        let events = figure.json("events --limit 200")?;
        let events = events["items"].as_array().context("a list of events")?;
        let is_it = |event: &serde_json::Value| {
            let text = event.to_string();
            event["topic"] == "mail"
                && event["severity"] == "error"
                && event["at"].as_str().is_some_and(|at| *at >= *since)
                && text.contains(node)
                && words.iter().all(|word| text.contains(word))
        };
        let mail: Vec<_> = events.iter().filter(|event| event["topic"] == "mail").collect();
        ensure!(events.iter().any(is_it), "nobody was told: {mail:?}");
        Ok(())
    })
}

/// Another process holds the files for itself alone: the agents say so, and all goes on when it lets go.
fn held(figure: &Figure) -> Result<()> {
    let since = now(figure)?;
    let mut holders = Vec::new();
    for (node, file, readers) in SPOILED {
        let host = figure.host(node);
        // Nobody else may have it open.
        host.text(&format!("systemctl stop phalanx-agent {readers} phalanx-guard"))?;
        let holder = host.spawn(&format!("exec python3 -c \"{HOLD}\" {FILES}/{file}"))?;
        eventually(Duration::from_secs(10), &format!("a lock on {node}"), || {
            ensure!(holder.stdout().contains("held"), "{}", holder.stdout());
            Ok(())
        })?;
        host.text(&format!("systemctl start phalanx-guard {readers}"))?;
        holders.push(holder);
    }
    let waiting = Waiting::begin(figure, "held")?;
    start(figure, "phalanx-agent")?;
    for (node, file, _) in SPOILED {
        has_event(figure, node, &since, &["database is locked", &format!("`fuser -v {FILES}/{file}`")])?;
    }
    waiting.all_wait()?;
    drop(holders);
    waiting.arrive()?;
    figure.settled(&MAIL_NODES)
}

/// All daemons run, and nobody does anything about it.
fn by_themselves(figure: &Figure) -> Result<()> {
    let since = now(figure)?;
    for (node, file, _) in SPOILED {
        let path = format!("{FILES}/{file}");
        figure.host(node).text(&format!(
            "sqlite3 {path} 'PRAGMA wal_checkpoint(TRUNCATE)' > /dev/null && head -c 8192 /dev/urandom > {path}"
        ))?;
    }
    told(figure, &since, ["not a database"; 2])?;
    let said = send(figure, &format!("ann@{FAR}"), INFO, "by themselves.")?;
    ensure!(said.contains(TAKEN), "{said}");
    figure.has_mail(INFO, &["Subject: by themselves."]).map(drop)
}

/// Somebody writes for a while: what is new waits, and what is there goes on.
fn a_change_waits(figure: &Figure) -> Result<()> {
    let hold = format!(
        "import sqlite3, time; c = sqlite3.connect('{FILES}/recipients/recipients.sqlite'); \
         c.execute('BEGIN IMMEDIATE'); print('held', flush=True); time.sleep(12)"
    );
    let holding = figure.host("mail2").spawn(&format!("python3 -c \"{hold}\""))?;
    eventually(Duration::from_secs(5), "a held file", || {
        ensure!(holding.stdout().contains("held"), "{}", holding.stdout());
        Ok(())
    })?;
    figure.mailbox("late@example.org")?;
    let address = figure.address("mail2")?;
    let ask = |to: &str| figure.swaks(&address, &format!("--from ann@{FAR} --to {to} --quit-after RCPT"));
    let said = ask(INFO)?;
    ensure!(said.contains("250 2.1.5"), "what was known is known while the file is held: {said}");
    eventually(Duration::from_secs(40), "the new mailbox", || {
        let said = ask("late@example.org")?;
        ensure!(said.contains("250 2.1.5"), "{said}");
        Ok(())
    })
}

/// Keys that sign.
struct Keys<'f> {
    figure: &'f Figure,
    since: String,
    sums: String,
}

impl<'f> Keys<'f> {
    fn sums(figure: &Figure) -> Result<String> {
        figure.host("mail2").text(&format!("cd {FILES}/keys && sha256sum *"))
    }

    /// One is removed, one emptied.
    fn lose(figure: &'f Figure) -> Result<Self> {
        let (since, sums) = (now(figure)?, Self::sums(figure)?);
        ensure!(sums.lines().count() == 2, "{sums}");
        let lose = format!("cd {FILES}/keys && rm example.org.phalanx.key && : > example.com.phalanx.key");
        figure.host("mail2").text(&lose)?;
        Ok(Self { figure, since, sums })
    }

    /// They were made anew, and a person was told that mail may have left unsigned.
    fn are_back(self) -> Result<()> {
        let figure = self.figure;
        eventually(LIMIT, "the keys", || {
            let after = Self::sums(figure)?;
            ensure!(after == self.sums, "{after}");
            Ok(())
        })?;
        has_event(figure, "mail2", &self.since, &["the key that signs mail of example.com, example.org", "unsigned"])?;
        let words = format!("--auth PLAIN --auth-user {INFO} --auth-password {PASSWORD} --from {INFO} --to bob@{FAR}");
        let letter = format!("--port 587 --tls {words} --h-From {INFO} --header 'Subject: signed again.'");
        let said = figure.swaks(&figure.address("mail2")?, &letter)?;
        ensure!(said.contains(TAKEN), "{said}");
        let text = |got: &serde_json::Value| got["data"].as_str().unwrap_or_default().to_owned();
        let got = figure.world_got("a signed letter", |message| text(message).contains("signed again."))?;
        ensure!(text(&got).contains("DKIM-Signature"), "{got}");
        Ok(())
    }
}
