//! Everything that mail is for, once around: in from the world and out by both protocols, out to the world, aliases, Sieve, quota, refusals.
//! It asks nothing of the panel, so it can be played while there is none.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, MAIL_LOGICAL, MAIL_NAME, PASSWORD};
use serde_json::Value;
use std::time::Duration;

const SIEVE: &str = include_str!("sieve.py");

/// What swaks and curl show of mail that was taken.
pub const TAKEN: &str = "250 2.0.0 Ok: queued";

/// What a round needs to know.
pub struct Flow<'f> {
    figure: &'f Figure,
    /// Where the world finds the key that signs: the name and the value of the DNS record that the customer is told to set.
    key: (String, String),
}

/// What the world answers an SMTP client that was refused: a line with the code that also says the words.
pub fn refused(said: &str, code: &str, words: &str) -> Result<()> {
    let line = said.lines().find(|line| line.contains(code)).with_context(|| format!("no {code} in: {said}"))?;
    ensure!(line.contains(words), "{line:?} does not say {words:?}");
    Ok(())
}

/// Sends a letter from the world, through the balancer.
pub fn send(figure: &Figure, from: &str, to: &str, subject: &str) -> Result<String> {
    figure.swaks(MAIL_EXTERNAL, &format!("--from '{from}' --to '{to}' --h-To '{to}' --header 'Subject: {subject}'"))
}

fn login(address: &str) -> String {
    format!("--port 587 --tls --auth PLAIN --auth-user {address} --auth-password {PASSWORD}")
}

fn text<'m>(message: &'m Value, key: &str) -> &'m str {
    message[key].as_str().unwrap_or_default()
}

impl<'f> Flow<'f> {
    /// Domains, mailboxes and aliases for as many rounds as there are `tags`, and the first letter that is taken.
    pub fn prepare(figure: &'f Figure, tags: &[&str]) -> Result<Self> {
        figure.mail_domain("alice", "example.org", &["info", "boss"])?;
        figure.phalanx(&format!("mail-domain add example.com --account alice --logical-server {MAIL_LOGICAL}"))?;
        figure.phalanx("alias add sales@example.org --to info@example.org --to boss@example.org")?;
        figure.phalanx(&format!("alias add away@example.org --to carl@{FAR}"))?;
        figure.phalanx("alias add gone@example.org --to nobody@example.org")?;
        figure.phalanx("alias add @example.com --to boss@example.org")?;
        for tag in tags {
            figure.host("cp").text(&format!(
                "echo {PASSWORD} | phalanx mailbox add small-{tag}@example.org --quota-mib 1 --password-file -"
            ))?;
        }
        let shown = figure.json("mail-domain show example.org")?;
        let records = shown["dns"].as_array().context("there are records")?;
        let key = records.iter().find(|r| text(r, "name").contains("_domainkey")).context("there is a key")?;
        let key = (text(key, "name").to_owned(), text(key, "value").to_owned());
        figure.host("world").write_file("/run/sieve.py", SIEVE.as_bytes())?;
        eventually(Duration::from_secs(30), "that the balancer sends mail to the nodes", || {
            let said = send(figure, &format!("ann@{FAR}"), "boss@example.org", "first")?;
            ensure!(said.contains(TAKEN), "{said}");
            Ok(())
        })?;
        Ok(Self { figure, key })
    }

    /// One round; its letters have `tag` in their subjects.
    pub fn play(&self, tag: &str) -> Result<()> {
        self.in_and_out(tag)?;
        self.submission(tag)?;
        self.aliases(tag)?;
        self.sieve(tag)?;
        self.quota(tag)?;
        self.refusals()
    }

    /// From the world into a mailbox, and out of it by both protocols, with and without TLS from the first byte.
    fn in_and_out(&self, tag: &str) -> Result<()> {
        let figure = self.figure;
        let said = send(figure, &format!("ann@{FAR}"), "info@example.org", &format!("letter {tag}"))?;
        ensure!(said.contains(TAKEN), "{said}");
        let subject = format!("Subject: letter {tag}");
        let letter = figure.has_mail("info@example.org", &[&subject])?;
        ensure!(letter.contains("[198.51.100.100]"), "the client's address did not arrive: {letter}");
        ensure!(letter.contains("Return-Path: <ann@far.example>"), "{letter}");
        for (url, tls) in
            [(format!("pop3s://{MAIL_EXTERNAL}/"), ""), (format!("pop3://{MAIL_EXTERNAL}/"), "--ssl-reqd")]
        {
            let listed = figure.mail_curl("info@example.org", &url, tls)?;
            let last = listed.lines().last().and_then(|line| line.split(' ').next()).context("a list of letters")?;
            let fetched = figure.mail_curl("info@example.org", &format!("{url}{last}"), tls)?;
            ensure!(fetched.contains(&subject), "{url}: {listed}{fetched}");
        }
        let plain = format!("curl -sS -m 20 -u 'info@example.org:{PASSWORD}' imap://{MAIL_EXTERNAL}/INBOX 2>&1");
        ensure!(!figure.host("world").run(&plain)?.success(), "a password was taken in clear");
        Ok(())
    }

    /// Out to the world by those who log in, signed, from the cluster's own address.
    fn submission(&self, tag: &str) -> Result<()> {
        let subject = format!("Subject: answer {tag}");
        let words = format!(
            "{} --from info@example.org --to bob@{FAR} --h-From info@example.org --header '{subject}'",
            login("info@example.org")
        );
        let said = self.figure.swaks(MAIL_EXTERNAL, &words)?;
        ensure!(said.contains(TAKEN), "{said}");
        let got = self.figure.world_got("an answer", |message| text(message, "data").contains(&subject))?;
        ensure!(text(&got, "client") == MAIL_EXTERNAL && text(&got, "helo") == MAIL_NAME, "{got}");
        ensure!(text(&got, "from") == "info@example.org", "{got}");
        self.verify_signature(text(&got, "data"), &subject)?;
        let tls = format!("--port 465 --tlsc --auth LOGIN --auth-user info@example.org --auth-password {PASSWORD}");
        let said = self.figure.swaks(MAIL_EXTERNAL, &format!("{tls} --from info@example.org --to bob@{FAR}"))?;
        ensure!(said.contains(TAKEN), "{said}");
        Ok(())
    }

    /// Has a verifier that is not ours judge the signature, with the DNS record that the customer is told to set.
    fn verify_signature(&self, message: &str, subject: &str) -> Result<()> {
        const CHECK: &str = "import sys, dkim; message = sys.stdin.buffer.read(); name, value = sys.argv[1:]; \
            found = lambda asked, timeout=5: value.encode() if asked.rstrip(b'.') == name.encode() else None; \
            print(dkim.verify(message, dnsfunc=found))";
        let words = ["python3", "-c", CHECK, &self.key.0, &self.key.1];
        let world = self.figure.host("world");
        let said = world.exec(&words, message.as_bytes())?.text()?;
        ensure!(said == "True", "the signature does not hold: {said}\n{message}");
        let spoiled = message.replace(subject, "Subject: something else");
        ensure!(world.exec(&words, spoiled.as_bytes())?.text()? == "False", "the verifier takes anything");
        Ok(())
    }

    /// Aliases lead to mailboxes here, forwarders to the world under an address of ours, a catch-all takes what is nobody's.
    fn aliases(&self, tag: &str) -> Result<()> {
        let figure = self.figure;
        let ann = format!("ann@{FAR}");
        let letters = [
            ("sales@example.org", format!("to sales {tag}")),
            ("whoever@example.com", format!("to whoever {tag}")),
            ("boss+lists@example.org", format!("to a part {tag}")),
        ];
        for (to, subject) in &letters {
            let said = send(figure, &ann, to, subject)?;
            ensure!(said.contains(TAKEN), "{to}: {said}");
        }
        figure.has_mail("info@example.org", &[&format!("Subject: to sales {tag}")])?;
        for (_, subject) in &letters {
            figure.has_mail("boss@example.org", &[&format!("Subject: {subject}")])?;
        }
        send(figure, &ann, "away@example.org", &format!("sent on {tag}"))?;
        let got = figure.world_got("what was sent on", |message| {
            text(message, "data").contains(&format!("Subject: sent on {tag}"))
        })?;
        let sender = text(&got, "from").to_owned();
        ensure!(sender.starts_with("SRS0=") && sender.ends_with(&format!("@{MAIL_NAME}")), "not ours: {got}");
        ensure!(text(&got, "data").contains(&ann), "the header keeps its author: {got}");
        // What comes back to that address goes to the author; one that somebody made up goes nowhere.
        let back = format!("Subject: came back {tag}");
        let said = figure.swaks(MAIL_EXTERNAL, &format!("--from '<>' --to '{sender}' --header '{back}'"))?;
        ensure!(said.contains(TAKEN), "{said}");
        figure.world_got("what came back", |message| {
            text(message, "data").contains(&back) && message["to"][0] == ann.as_str()
        })?;
        let made_up = format!("SRS0=AAAA=ZZ={FAR}=ann@{MAIL_NAME}");
        refused(&figure.swaks(MAIL_EXTERNAL, &format!("--from '<>' --to '{made_up}'"))?, "550", "5.1.1")?;
        // An alias to nobody would bounce what was taken.
        refused(&send(figure, &ann, "gone@example.org", "x")?, "550", "User unknown")
    }

    /// What a customer's own rules do: file, and answer while away.
    fn sieve(&self, tag: &str) -> Result<()> {
        let (figure, world) = (self.figure, self.figure.host("world"));
        let script = "require [\"fileinto\", \"mailbox\", \"vacation\"];\n\
            if header :contains \"subject\" \"invoice\" { fileinto :create \"Invoices\"; }\n\
            vacation :days 1 :subject \"I am away\" \"Back on Monday.\";\n";
        let words = ["python3", "/run/sieve.py", MAIL_EXTERNAL, "boss@example.org", PASSWORD];
        ensure!(world.exec(&words, script.as_bytes())?.text()? == "active");
        let dora = format!("dora-{tag}@{FAR}");
        send(figure, &dora, "boss@example.org", &format!("invoice {tag}"))?;
        let answer = figure.world_got("the vacation's answer", |message| {
            text(message, "data").contains("I am away") && message["to"][0] == dora.as_str()
        })?;
        ensure!(text(&answer, "data").contains("Back on Monday"), "{answer}");
        eventually(Duration::from_secs(20), "the invoice in its folder", || {
            let url = format!("imaps://{MAIL_EXTERNAL}/Invoices");
            let ask = format!("-X 'UID SEARCH SUBJECT \"invoice {tag}\"'");
            let found = figure.mail_curl("boss@example.org", &url, &ask)?;
            ensure!(found.trim().starts_with("* SEARCH "), "{found}");
            Ok(())
        })
    }

    /// A mailbox that fills up is told so, also when there is no room for it; a full one refuses before the mail is sent, and keeps what it has.
    fn quota(&self, tag: &str) -> Result<()> {
        let (small, world) = (format!("small-{tag}@example.org"), self.figure.host("world"));
        // curl says how big its letter is (RFC 1870), as mail servers do.
        let send = |subject: &str, bytes: usize| -> Result<String> {
            world.text(&format!(
                "(printf 'Subject: {subject}\\nFrom: ann@{FAR}\\nTo: {small}\\nMessage-Id: <{subject}-{tag}@{FAR}>\\nDate: %s\\n\\n' \"$(date -R)\"; \
                 head -c {bytes} /dev/zero | tr '\\0' x | fold -w 70) | sed 's/$/\\r/' > /run/big.txt"
            ))?;
            let sent = format!(
                "curl -sv -m 20 smtp://{MAIL_EXTERNAL}/world.{FAR} --mail-from ann@{FAR} --mail-rcpt {small} -T /run/big.txt 2>&1"
            );
            Ok(world.run(&sent)?.stdout)
        };
        // 88 % of its MiB, and then 2 % more than all of it.
        for (subject, bytes, warning) in [("big", 900_000, 80), ("last", 140_000, 95)] {
            let said = send(subject, bytes)?;
            ensure!(said.contains(TAKEN), "{subject}: {said}");
            self.figure.has_mail(&small, &[&format!("Subject: {subject}"), "xxxx"])?;
            let told =
                [&*format!("more than {warning} % full"), "Auto-Submitted: auto-generated", &*format!("To: <{small}>")];
            self.figure.has_mail(&small, &told)?;
        }
        refused(&send("more", 140_000)?, "552", "full")?;
        let letters = self.figure.inbox(&small)?.len();
        ensure!(letters == 4, "{letters} letters, not two and two warnings");
        Ok(())
    }

    /// What is not taken: for nobody, for others, under others' names; and the answers that say why.
    fn refusals(&self) -> Result<()> {
        let figure = self.figure;
        let ann = format!("ann@{FAR}");
        refused(&send(figure, &ann, "nobody@example.org", "x")?, "550", "User unknown")?;
        refused(&send(figure, &ann, &format!("bob@{FAR}"), "x")?, "554", "Relay access denied")?;
        refused(&send(figure, "nobody@example.org", "info@example.org", "x")?, "550", "User unknown")?;
        let spoofed = format!("{} --from boss@example.org --to bob@{FAR}", login("info@example.org"));
        refused(&figure.swaks(MAIL_EXTERNAL, &spoofed)?, "553", "not owned by user")?;
        let owned = format!("{} --from sales@example.org --to bob@{FAR}", login("info@example.org"));
        let said = figure.swaks(MAIL_EXTERNAL, &owned)?;
        ensure!(said.contains(TAKEN), "an alias of one's own is one's own: {said}");
        let wrong = login("info@example.org").replace(PASSWORD, "wrong");
        let letter = format!("--from info@example.org --to bob@{FAR}");
        refused(&figure.swaks(MAIL_EXTERNAL, &format!("{wrong} {letter}"))?, "535", "5.7.8")?;
        let clear = login("info@example.org").replace("--tls", "");
        let said = figure.swaks(MAIL_EXTERNAL, &format!("{clear} {letter}"))?;
        ensure!(!said.contains("235 "), "a password was taken in clear: {said}");
        Ok(())
    }
}
