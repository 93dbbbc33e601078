//! A mail program that we did not write keeps a copy of a mailbox in step (isync's mbsync), through the balancer, also when the mailboxes move.

use super::flow::{Flow, TAKEN, send};
use anyhow::{Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_NAME, MAIL_NODES, PASSWORD};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const INFO: &str = "info@example.org";
const COPY: &str = "/run/copy";
const SIDES: &str = include_str!("sides.py");

/// A folder's letters: subject and flags.
type Side = BTreeMap<String, Vec<Value>>;

struct Copy<'f>(&'f Figure);

impl Copy<'_> {
    /// The program's configuration; it believes the cluster's certificate, and checks its name.
    fn prepare(&self) -> Result<()> {
        let config = format!(
            "IMAPStore far\nHost {MAIL_NAME}\nUser {INFO}\nPass {PASSWORD}\nSSLType IMAPS\nCertificateFile /run/mail.pem\n\n\
             MaildirStore near\nPath {COPY}/\nInbox {COPY}/INBOX\nSubFolders Verbatim\n\n\
             Channel all\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nRemove Both\nExpunge Both\nSyncState *\n"
        );
        let world = self.0.host("world");
        world.write_file("/run/mbsyncrc", config.as_bytes())?;
        world.write_file("/run/sides.py", SIDES.as_bytes())?;
        world.text(&format!(
            "mkdir -p {COPY} && openssl s_client -connect {MAIL_EXTERNAL}:993 < /dev/null 2> /dev/null | openssl x509 > /run/mail.pem"
        ))?;
        Ok(())
    }

    fn sync(&self) -> Result<String> {
        self.0.host("world").text("mbsync -c /run/mbsyncrc -a 2>&1")
    }

    /// Changes the copy by hand, as a mail program does: lines of shell, with the file that has this subject in `$f`.
    fn change(&self, subject: &str, line: &str) -> Result<()> {
        let find = format!(
            "cd {COPY} && f=$(grep -rl 'Subject: {subject}$' INBOX Archive 2> /dev/null | head -n 1) && test -n \"$f\" && {line}"
        );
        self.0.host("world").text(&find).map(drop)
    }

    /// Both sides, after a run, are this.
    fn is(&self, expected: &Value) -> Result<()> {
        self.sync()?;
        let line = format!("python3 /run/sides.py {MAIL_EXTERNAL} {INFO} {PASSWORD} {COPY}");
        let sides: BTreeMap<String, Side> = serde_json::from_str(&self.0.host("world").text(&line)?)?;
        for (side, mut folders) in sides {
            folders.values_mut().for_each(|letters| letters.sort_by_key(Value::to_string));
            ensure!(json!(folders) == *expected, "{side}: {}, not {expected}", json!(folders));
        }
        Ok(())
    }
}

#[test]
fn mail_clients() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        let copy = Copy(figure);
        copy.prepare()?;
        for subject in ["one", "two", "three"] {
            letter(figure, subject)?;
        }
        copy.is(&json!({"INBOX": [["one", []], ["three", []], ["two", []]]}))?;
        // Here: one is read and marked, two is filed, three is thrown away, and four was written here.
        copy.change("one", "mv $f INBOX/cur/$(basename $f | sed 's/:2,.*//'):2,FS")?;
        copy.change(
            "two",
            "mkdir -p Archive/cur Archive/new Archive/tmp && mv $f Archive/cur/$(basename $f | sed 's/,U=.*//'):2,S",
        )?;
        copy.change("three", "mv $f INBOX/cur/$(basename $f | sed 's/:2,.*//'):2,ST")?;
        figure.host("world").text(&format!(
            "printf 'From: {INFO}\\nTo: ann@{FAR}\\nSubject: four\\n\\nwritten here\\n' > {COPY}/Archive/new/4.by-hand"
        ))?;
        copy.is(&json!({"Archive": [["four", []], ["two", ["Seen"]]], "INBOX": [["one", ["Flagged", "Seen"]]]}))?;
        // There: one is answered, two goes back, four goes away, and five comes.
        let curl = |folder: &str, command: &str| {
            figure.mail_curl(INFO, &format!("imaps://{MAIL_EXTERNAL}/{folder}"), &format!("-X '{command}'"))
        };
        curl("INBOX", "STORE 1 +FLAGS (\\Answered)")?;
        let two = found(&curl("Archive", "SEARCH SUBJECT two")?)?;
        curl("Archive", &format!("MOVE {two} INBOX"))?;
        curl("Archive", "STORE 1 +FLAGS.SILENT (\\Deleted)")?;
        curl("Archive", "EXPUNGE")?;
        letter(figure, "five")?;
        let before = json!({"INBOX": [["five", []], ["one", ["Answered", "Flagged", "Seen"]], ["two", ["Seen"]]]});
        copy.is(&before)?;

        // The mailboxes move: the program sees the same mailbox, whose letters have the numbers that they had, and nothing comes twice.
        figure.phalanx("cluster move-grant mail mailboxes --to mail2")?;
        eventually(Duration::from_secs(60), "that mail2 holds the mailboxes", || {
            let grant = figure.json("cluster show mail")?["grants"]["mailboxes"].clone();
            ensure!(grant["holder"] == "mail2" && grant["moving_to"].is_null(), "{grant}");
            copy.sync().map(drop)
        })?;
        copy.is(&before)?;
        copy.change("five", "mv $f Archive/cur/$(basename $f | sed 's/,U=.*//'):2,F")?;
        copy.change("one", "rm $f")?;
        curl("INBOX", &format!("STORE {} -FLAGS (\\Seen)", found(&curl("INBOX", "SEARCH SUBJECT two")?)?))?;
        letter(figure, "six")?;
        copy.is(&json!({"Archive": [["five", ["Flagged"]]], "INBOX": [["six", []], ["two", []]]}))?;
        figure.settled(&MAIL_NODES)
    })
}

/// A letter from the world that is in the inbox, and that nobody has read.
fn letter(figure: &Figure, subject: &str) -> Result<()> {
    let said = send(figure, &format!("ann@{FAR}"), INFO, subject)?;
    ensure!(said.contains(TAKEN), "{said}");
    eventually(Duration::from_secs(20), &format!("the letter {subject}"), || {
        let ask = format!("-X 'SEARCH SUBJECT {subject}'");
        found(&figure.mail_curl(INFO, &format!("imaps://{MAIL_EXTERNAL}/INBOX"), &ask)?).map(drop)
    })
}

/// The number that a search found.
fn found(said: &str) -> Result<u32> {
    Ok(said.trim().trim_start_matches("* SEARCH ").parse()?)
}
