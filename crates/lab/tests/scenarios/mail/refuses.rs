//! What is not taken, each attempt with its code and its words, and beside it what is taken, so that an attempt is refused for its own sake.
//!
//! Everything comes from a host of the world, through the balancer. docs/mail.md promises the answers.

use super::flow::Flow;
use super::talk::{Dialogue, header, talk};
use anyhow::{Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_NODES};
use std::collections::BTreeMap;
use std::time::Duration;

const ANN: &str = "ann@far.example";
const INFO: &str = "info@example.org";
const BOSS: &str = "boss@example.org";
const NOBODY: (&str, &str) = ("550 5.1.1", "User unknown");
const RELAY: (&str, &str) = ("554 5.7.1", "Relay access denied");
const SYNTAX: (&str, &str) = ("501 5.1.3", "Bad recipient address syntax");
const TAKEN: (&str, &str) = ("250 2.1.5", "Ok");

/// What RCPT TO: says, and the answer.
const RECIPIENTS: [(&str, (&str, &str)); 44] = [
    ("<nobody@example.org>", NOBODY),
    ("<+info@example.org>", NOBODY),
    ("<_nfo@example.org>", NOBODY),
    ("<inf_@example.org>", NOBODY),
    ("<in'fo@example.org>", NOBODY),
    ("<\"' OR '1'='1\"@example.org>", NOBODY),
    ("<${user}@example.org>", NOBODY),
    ("<|/bin/sh@example.org>", NOBODY),
    ("<:include:/etc/passwd@example.org>", NOBODY),
    ("<inf\u{f6}@example.org>", NOBODY),
    ("<postmaster>", NOBODY),
    ("<\"postmaster\">", NOBODY),
    ("< postmaster >", NOBODY),
    ("\t<Postmaster>", NOBODY),
    ("<@a.example:postmaster>", NOBODY),
    ("<bob@[127.0.0.1]>", ("550 5.1.1", "there are no mailboxes of the machine")),
    ("<bob@[10.9.0.41]>", ("5", "<bob@[10.9.0.41]>")),
    ("<SRS0=AAAA=ZZ=far.example=ann@mail.example.net>", NOBODY),
    ("<bob@far.example>", RELAY),
    ("<bob@far.example.>", RELAY),
    ("<bob%far.example@example.org>", RELAY),
    ("<%d@example.org>", RELAY),
    ("<far.example!bob@example.org>", RELAY),
    ("<far.example!bob@[127.0.0.1]>", RELAY),
    ("<\"bob@far.example\"@example.org>", RELAY),
    ("<\"bob@far.example\">", RELAY),
    ("<@example.org:bob@far.example>", RELAY),
    ("<@mail.example.net,@example.org:bob@far.example>", RELAY),
    ("<bob@far.example@example.org>", RELAY),
    ("<bob@example.org@far.example>", RELAY),
    ("<bob@[198.51.100.100]>", RELAY),
    ("<info@[198.51.100.25]>", RELAY),
    ("<root@localhost>", RELAY),
    ("info@example.org", SYNTAX),
    ("<info@example.org", SYNTAX),
    ("<>", SYNTAX),
    ("<\"\"@example.org>", SYNTAX),
    ("<info\0@example.org>", SYNTAX),
    ("<info@example.org\0.far.example>", SYNTAX),
    ("<info@ex\u{e4}mple.org>", SYNTAX),
    ("<info@example.org> X=1", ("555 5.5.4", "Unsupported option")),
    // Quoted or not, in whatever case, with a route that nobody follows any more: it is the same mailbox (RFC 5321, 4.1.2 and C).
    ("<\"info\"@EXAMPLE.org>", TAKEN),
    ("<\"in\\fo\"@example.org>", TAKEN),
    ("<@far.example:info@example.org>", TAKEN),
];

/// What MAIL FROM: says, and what is answered to it or to the first recipient after it.
const SENDERS: [(&str, &str, &str); 12] = [
    ("<>", "250 2.1.5", ""),
    ("<ann@far.example> SIZE=52428800", "250 2.1.5", ""),
    ("<ann@far.example> SIZE=52428801", "552 5.3.4", "Message size exceeds fixed limit"),
    ("<ann@far.example> SIZE=99999999999999999999", "552 5.3.4", ""),
    ("<ann@far.example> SIZE=-1", "501 5.5.4", "Bad message size syntax"),
    ("<ann@far.example> SMTPUTF8", "555 5.5.4", "Unsupported option"),
    ("<ann@far.example> BODY=BINARYMIME", "555 5.5.4", "Unsupported option"),
    ("ann@far.example", "501 5.1.7", "Bad sender address syntax"),
    ("<ann@far.example", "501 5.1.7", "Bad sender address syntax"),
    ("<nobody@example.org>", "550 5.1.0", "User unknown"),
    ("<ann>", "550 5.1.7", "User unknown"),
    ("<ann@localhost>", "504 5.5.2", "need fully-qualified address"),
];

/// What may stand for the end of a message and is none, with the answer where it stands in one (RFC 5321, 2.3.8 and 4.1.1.4).
const NO_ENDS: [(&str, &str); 9] = [
    ("\n.\n", "550 5.5.2"),
    ("\n.\r\n", "550 5.5.2"),
    ("\r\n.\n", "550 5.5.2"),
    ("\r.\r", "250 2.0.0"),
    ("\r.\r\n", "250 2.0.0"),
    ("\r\n.\r", "250 2.0.0"),
    ("\r\n.\r\r\n", "250 2.0.0"),
    ("\r\n\0.\r\n", "250 2.0.0"),
    ("\r\n..\r\n", "250 2.0.0"),
];

#[test]
fn mail_refuses() -> Result<()> {
    Figure::scenario_mail(|figure| {
        Flow::prepare(figure, &[])?;
        // Many recipients are many deliveries: they go on while the rest is said.
        many_recipients(figure)?;
        envelopes(figure)?;
        commands(figure)?;
        authors(figure)?;
        let held = smuggled(figure)?;
        long_lines(figure)?;
        nothing_was_smuggled(figure, held)?;
        each_once(figure)?;
        figure.settled(&MAIL_NODES)
    })
}

fn envelopes(figure: &Figure) -> Result<()> {
    let local = |length: usize| format!("<{}@example.org>", "a".repeat(length));
    let label = |length: usize| format!("<info@{}.example.org>", "a".repeat(length));
    let long = [
        (local(64), NOBODY),
        (local(65), NOBODY),
        (local(3_000), SYNTAX),
        (label(63), RELAY),
        (label(64), SYNTAX),
        (format!("<info+{}@example.org>", "x".repeat(59)), TAKEN),
    ];
    let fixed = RECIPIENTS.iter().map(|(text, answer)| ((*text).to_owned(), *answer));
    let recipient = |(text, (code, words)): (String, (&str, &str))| {
        Dialogue::from_world(format!("RCPT TO:{text:.80}"))
            .say(&format!("MAIL FROM:<{ANN}>"), "250", "")
            .say(&format!("RCPT TO:{text}"), code, words)
            .say(&format!("RCPT TO:<{INFO}>"), TAKEN.0, TAKEN.1)
    };
    let sender = |(text, code, words): &(&str, &str, &str)| {
        let dialogue = Dialogue::from_world(format!("MAIL FROM:{text}"));
        // Who a sender is, is judged with the first recipient.
        match code.starts_with("250") || words.contains("unknown") || words.contains("qualified") {
            true => dialogue.say(&format!("MAIL FROM:{text}"), "250 2.1.0", "").say(
                &format!("RCPT TO:<{INFO}>"),
                code,
                words,
            ),
            false => dialogue.say(&format!("MAIL FROM:{text}"), code, words),
        }
    };
    let dialogues: Vec<_> = fixed.chain(long).map(recipient).chain(SENDERS.iter().map(sender)).collect();
    talk(figure, &dialogues)
}

/// Commands out of turn, ahead of their turn, unknown, and longer than they may be.
fn commands(figure: &Figure) -> Result<()> {
    let out_of_step = ("554 5.5.0", "SMTP protocol synchronization");
    let ahead = |hello: &str| {
        let all = format!("{hello} world.{FAR}\r\nMAIL FROM:<{ANN}>\r\n");
        Dialogue::silent(format!("talking ahead of {hello}"))
            .raw(&[(&all, 1)], out_of_step.0, out_of_step.1)
            .more("closed", "")
    };
    let envelope = format!("MAIL FROM:<{ANN}>\r\nRCPT TO:<{INFO}>\r\nDATA\r\n");
    let body = format!("{}\r\nahead\r\n.\r\n", header(ANN, "ahead"));
    let in_time = format!("{}\r\nin time\r\n.\r\n", header(ANN, "in-time"));
    talk(
        figure,
        &[
            Dialogue::silent("no greeting").say(&format!("MAIL FROM:<{ANN}>"), "503 5.5.1", "send HELO/EHLO first"),
            Dialogue::silent("a greeting of nobody").say("HELO", "501", "Syntax: HELO hostname"),
            Dialogue::from_world("others' commands")
                .say(&format!("VRFY {INFO}"), "502 5.5.1", "disabled")
                .say(&format!("EXPN {INFO}"), "500 5.5.2", "")
                .say("AUTH PLAIN AGEAYg==", "503 5.5.1", "authentication not enabled")
                .say("NOOP", "250 2.0.0", ""),
            Dialogue::from_world("BDAT").say("BDAT 10 LAST", "5", ""),
            Dialogue::from_world("HTTP").say("GET / HTTP/1.1", "221 2.7.0", "").more("closed", ""),
            ahead("HELO"),
            ahead("EHLO"),
            Dialogue::from_world("a message ahead of DATA's answer")
                .raw(&[(&envelope, 1), (&body, 1)], "250 2.1.0", "")
                .more("250 2.1.5", "")
                .more(out_of_step.0, out_of_step.1),
            Dialogue::from_world("pipelining as RFC 2920 has it")
                .raw(&[(&envelope.replace(INFO, BOSS), 1)], "250 2.1.0", "")
                .more("250 2.1.5", "")
                .more("354", "")
                .raw(&[(&in_time, 1)], "250 2.0.0", ""),
            Dialogue::silent("a bare LF after a command")
                .raw(&[("EHLO world\n", 1)], "550 5.5.2", "bare <LF> received")
                .more("closed", ""),
            Dialogue::from_world("commands beyond 2,048 bytes")
                .raw(&[("NOOP ", 1), ("a", 3_000), ("\r\n", 1)], "250 2.0.0", "")
                .raw(&[("NOOP ", 1), ("a", 1 << 20), ("\r\n", 1)], "250 2.0.0", "")
                .say(&format!("MAIL FROM:<{ANN}>"), "250 2.1.0", "")
                .raw(&[("RCPT TO:<info@example.org", 1), ("x", 3_000), (">\r\n", 1)], "501 5.1.3", "")
                .say(&format!("RCPT TO:<{INFO}>"), "250 2.1.5", ""),
            Dialogue::from_world("more than 50 MiB, unannounced").envelope(ANN, INFO).raw(
                &[
                    (&header(ANN, "too-big"), 1),
                    ("\r\n", 1),
                    (&format!("{}\r\n", "x".repeat(998)), 53_000),
                    (".\r\n", 1),
                ],
                "552 5.3.4",
                "message file too big",
            ),
        ],
    )?;
    figure.has_mail(BOSS, &["Subject: in-time"]).map(drop)
}

/// Who logs in sends as what he owns: the envelope, and the header that people see.
fn authors(figure: &Figure) -> Result<()> {
    let refused = ("554 5.7.1", "The From header must hold one address, that of the sender");
    let taken = ("250 2.0.0", "");
    // The envelope's sender, the header's lines, and the answer.
    let letters = [
        (INFO, "From: info@example.org", taken),
        (INFO, "From: boss@example.org <info@example.org>", taken),
        (INFO, "From: info@example.org (boss@example.org)", taken),
        ("INFO@example.org", "From: Info@Example.ORG", taken),
        ("info+tag@example.org", "From: info+tag@example.org", taken),
        ("sales@example.org", "From: sales@example.org", taken),
        ("", "From: info@example.org", taken),
        ("", "From: boss@example.org", refused),
        (INFO, "From: boss@example.org", refused),
        (INFO, "From: sales@example.org", refused),
        (INFO, "From: ceo@example.com", refused),
        (INFO, "From: ceo@far.example", refused),
        (INFO, "From: info@example.org, boss@example.org", refused),
        (INFO, "From: \"info@example.org\" <boss@example.org>", refused),
        (INFO, "From: Team: boss@example.org;", refused),
        (INFO, "From: boss@example.org\r\nFrom: info@example.org", refused),
        (INFO, "From: info@example.org\r\nFrom: boss@example.org", refused),
        (INFO, "From: info@example.org\r\nFrom : boss@example.org", refused),
        (INFO, "FROM:boss@example.org\r\nFrom: info@example.org", refused),
        (INFO, "X-No: From", refused),
    ];
    let letter = |(number, (sender, header, (code, words))): (usize, &(&str, &str, (&str, &str)))| {
        Dialogue::of(INFO, format!("submission from <{sender}> with {header:?}")).envelope(sender, &format!("bob@{FAR}")).raw(
            &[(&format!("{header}\r\nTo: bob@{FAR}\r\nDate: Sat, 28 Nov 2026 12:00:00 +0000\r\nMessage-Id: <{number}@example.org>\r\nSubject: author {number}.\r\n\r\nx\r\n.\r\n"), 1)],
            code,
            words,
        )
    };
    let not_owned = ["boss@example.org", "away@example.org", "whoever@example.com", ANN, "nobody@example.org"];
    let stranger = |sender: &&str| {
        let words = if sender.starts_with("nobody") { "" } else { "not owned by user info@example.org" };
        Dialogue::of(INFO, format!("submission from <{sender}>"))
            .say(&format!("MAIL FROM:<{sender}>"), "250 2.1.0", "")
            .say(&format!("RCPT TO:<bob@{FAR}>"), "55", words)
    };
    let unproven = Dialogue::at_submission("submission without a login").say(
        &format!("MAIL FROM:<{INFO}>"),
        "530 5.7.0",
        "Must issue a STARTTLS command first",
    );
    let dialogues = letters.iter().enumerate().map(letter).chain(not_owned.iter().map(stranger)).chain([unproven]);
    talk(figure, &dialogues.collect::<Vec<_>>())?;
    // What was taken is out, what was not is nowhere.
    for (number, (_, _, answer)) in letters.iter().enumerate() {
        let subject = format!("Subject: author {number}.");
        let is_it = |message: &serde_json::Value| message["data"].as_str().is_some_and(|data| data.contains(&subject));
        if *answer == taken {
            figure.world_got(&subject, is_it)?;
        } else {
            let kept = figure.host("world").text(&format!("grep -c '{subject}' /var/spool/world.jsonl || true"))?;
            ensure!(kept == "0", "{subject} got out");
        }
    }
    Ok(())
}

/// Messages within messages; returns the subjects of those that were taken, with how often "smuggled" is part of each.
fn smuggled(figure: &Figure) -> Result<BTreeMap<String, usize>> {
    let mut held = BTreeMap::new();
    let mut dialogues = Vec::new();
    for (path, from) in [("world", ANN), ("submission", INFO)] {
        for (number, (no_end, code)) in NO_ENDS.iter().enumerate() {
            let subject = format!("outer-{path}-{number}");
            let inner = format!(
                "MAIL FROM:<{from}>\r\nRCPT TO:<{INFO}>\r\nDATA\r\n{}\r\nsmuggled\r\n.\r\n",
                header(from, &format!("smuggled-{path}-{number}"))
            );
            let text = format!("{}\r\nbody{no_end}{inner}", header(from, &subject));
            let what = format!("{no_end:?} within a message from the {path}");
            let dialogue = if path == "world" { Dialogue::from_world(what) } else { Dialogue::of(from, what) };
            // One answer, and no other: there was one message.
            dialogues.push(
                dialogue.envelope(from, INFO).raw(&[(&text, 1)], code, "").more("silent", "").say("NOOP", "250", ""),
            );
            if code.starts_with("250") {
                held.insert(subject, 1);
            }
        }
    }
    // The control: with a real end there are two messages, which a client may send.
    let two = format!("{}\r\nx\r\n.\r\nMAIL FROM:<{ANN}>\r\nRCPT TO:<{INFO}>\r\n", header(ANN, "outer-real"));
    dialogues.push(
        Dialogue::from_world("a real end of a message")
            .envelope(ANN, INFO)
            .raw(&[(&two, 1)], "250 2.0.0", "")
            .more("250 2.1.0", "")
            .more("250 2.1.5", ""),
    );
    let lines = format!("{}\r\nx\r\n.\r\n", header(ANN, "lf-header").replace("\r\n", "\n"));
    dialogues.push(Dialogue::from_world("bare LFs in the header").envelope(ANN, INFO).raw(
        &[(&lines, 1)],
        "550 5.5.2",
        "bare <LF> received",
    ));
    talk(figure, &dialogues)?;
    Ok(held)
}

/// In the mailbox there is one letter for each that was taken, and none of those that were hidden in them.
fn nothing_was_smuggled(figure: &Figure, held: BTreeMap<String, usize>) -> Result<()> {
    eventually(Duration::from_secs(40), "the letters that were taken, and they alone", || {
        let letters = figure.host("nas").text("grep -raE --no-filename '^Subject: (outer|smuggled|lf)' /srv/nas/mail/mail/example.org/info.*/Maildir | tr -d '\\r' | sort | uniq -c")?;
        // Each outer letter holds the header of the hidden one as a part of its text.
        let count = |subject: &str| {
            letters.lines().filter(|line| line.trim().ends_with(&format!(" Subject: {subject}"))).count()
        };
        for subject in held.keys() {
            ensure!(count(subject) == 1, "{subject}: {letters}");
        }
        let outer = letters
            .lines()
            .filter(|line| line.contains("Subject: outer") && line.trim_start().starts_with("1 "))
            .count();
        ensure!(outer == held.len() + 1, "{outer} letters for {held:?}: {letters}");
        ensure!(!letters.contains("lf-header"), "{letters}");
        Ok(())
    })?;
    // A hidden message that was one would begin a file.
    let own = figure.host("nas").text("for f in $(find /srv/nas/mail/mail/example.org/info.* -type f -path '*Maildir/*/*'); do sed '/^\\r*$/q' $f | grep -a 'Subject: smuggled' || true; done")?;
    ensure!(own.is_empty(), "smuggled: {own}");
    Ok(())
}

/// A line goes through as it is, however long; a field of a header that would be cut is refused.
fn long_lines(figure: &Figure) -> Result<()> {
    const LENGTHS: [usize; 5] = [998, 999, 2_048, 2_049, 1 << 20];
    let mut dialogues = Vec::new();
    for length in LENGTHS {
        let field = length.min(50_000);
        for (from, to) in [(ANN, BOSS), (INFO, "bob@far.example")] {
            let what = format!("lines of {length} bytes to {to}");
            let dialogue = if from == ANN { Dialogue::from_world(what) } else { Dialogue::of(from, what) };
            let parts = [
                (&*header(from, &format!("long-{length}")), 1),
                ("X-Long: ", 1),
                ("h", field),
                ("!\r\n\r\n", 1),
                ("b", length),
                ("!\r\nend\r\n.\r\n", 1),
            ];
            dialogues.push(dialogue.envelope(from, to).raw(&parts, "250 2.0.0", ""));
        }
    }
    let too_long = [(&*header(ANN, "long-field"), 1), ("X-Long: ", 1), ("h", 60_000), ("\r\n\r\nx\r\n.\r\n", 1)];
    let folded = [
        (&*header(ANN, "long-fold"), 1),
        ("X-Long: x", 1),
        ("\r\n yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", 1_500),
        ("\r\n\r\nx\r\n.\r\n", 1),
    ];
    for parts in [too_long, folded] {
        let dialogue = Dialogue::from_world("a field of more than 59,000 bytes").envelope(ANN, INFO);
        dialogues.push(dialogue.raw(&parts, "554 5.7.1", "A field of the header is longer than 59000 bytes"));
    }
    talk(figure, &dialogues)?;
    let is_whole = |text: &str, length: usize| {
        let run = |letter: u8, begin: &str| {
            let at = text.find(begin)? + begin.len();
            let rest = text[at..].bytes().take_while(|byte| *byte == letter).count();
            (text.as_bytes().get(at + rest) == Some(&b'!')).then_some(rest)
        };
        run(b'h', "X-Long: ") == Some(length.min(50_000)) && run(b'b', "\r\n\r\n") == Some(length)
    };
    for length in LENGTHS {
        let subject = format!("Subject: long-{length}\r\n");
        let inside = figure.has_mail(BOSS, &[&subject, "\nend"])?;
        ensure!(is_whole(&inside, length), "a line of {length} is another one in the mailbox");
        let outside = figure
            .world_got(&subject, |message| message["data"].as_str().is_some_and(|data| data.contains(&subject)))?;
        ensure!(
            is_whole(outside["data"].as_str().unwrap_or_default(), length),
            "a line of {length} is another one outside"
        );
    }
    Ok(())
}

const MANY: usize = 1_000;

fn many_recipients(figure: &Figure) -> Result<()> {
    let mut dialogue = Dialogue::from_world("1,010 recipients").say(&format!("MAIL FROM:<{ANN}>"), "250", "");
    for number in 0..MANY + 10 {
        let (code, words) = if number < MANY { TAKEN } else { ("452 4.5.3", "too many recipients") };
        dialogue = dialogue.say(&format!("RCPT TO:<info+n{number}@example.org>"), code, words);
    }
    talk(
        figure,
        &[dialogue.say("DATA", "354", "").raw(
            &[(&format!("{}\r\nx\r\n.\r\n", header(ANN, "many")), 1)],
            "250 2.0.0",
            "",
        )],
    )
}

/// Those 1,000 have it, each once.
fn each_once(figure: &Figure) -> Result<()> {
    eventually(Duration::from_secs(60), "a letter for each of the recipients that were taken", || {
        let told = figure.host("nas").text(
            "cd /srv/nas/mail/mail/example.org && grep -ral 'Subject: many' info.*/Maildir | xargs grep -ah '^Delivered-To: <*info+n' | tr -d '<>\\r' | sort | uniq -c | awk '{ print $1 }' | sort | uniq -c",
        )?;
        ensure!(told.split_whitespace().eq([MANY.to_string().as_str(), "1"]), "how many got it how often: {told}");
        Ok(())
    })
}
