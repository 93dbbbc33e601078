//! Checking a mail server through its own protocol, as a state machine without a socket: lines come in, commands and a verdict come out.
//!
//! A dialogue goes as far as one can go without logging in; one that logs in ([`Dialogue::login`]) opens the probe mailbox' inbox, so that its
//! storage is touched. It says the password in TLS alone. Whatever the other end says, it is bounded: a line has at most
//! [`LINE_BYTES_MAX`] bytes and the whole dialogue at most [`LINES_MAX`] lines.
//!
//! Who answers in the protocol, but with a refusal, lives and should get nothing ([`CheckResult::Refused`]); who answers anything else is no
//! server of this protocol ([`CheckResult::Unreachable`]).
//!
//! Deliberately absent: TLS itself, which lies below; waiting.

use super::health::CheckResult;
use crate::mail::probe::Probe;
use phalanx_model::mail::MailProtocol;
use std::net::Ipv4Addr;

/// The longest line that is read; SMTP's are at most 512 bytes (RFC 5321, 4.5.3.1.5), capabilities may be longer.
pub const LINE_BYTES_MAX: usize = 2_048;
/// The most lines that are read.
pub const LINES_MAX: usize = 100;
/// How much of an answer is told.
const TOLD_CHARS_MAX: usize = 200;

/// A conversation with one server.
#[derive(Debug)]
pub struct Dialogue {
    turns: Vec<Turn>,
    /// The turn that is waited for.
    now: usize,
    /// Lines of it that have come.
    lines_of_turn: usize,
    lines: usize,
    /// The beginning of a line.
    partial: Vec<u8>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Wait for more.
    More,
    /// Send this, then wait for more.
    Say(String),
    /// Begin TLS, then send this. What came before is all in the clear.
    Secure(String),
    /// It is over; this may be sent as a farewell, and no answer to it be waited for.
    Over(CheckResult, String),
}

/// Something that the server should say, and our answer to it.
#[derive(Debug)]
struct Turn {
    what: &'static str,
    expected: Expected,
    answer: String,
    /// Whether TLS begins before the answer.
    then_tls: bool,
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    /// A reply of SMTP with this code (RFC 5321, 4.2).
    Reply(&'static str),
    /// IMAP's first line (RFC 9051, 7.1).
    ImapGreeting,
    /// The end of a command of IMAP with this tag.
    Tagged(&'static str),
    /// A line of POP3 (RFC 1939, 3).
    Pop3Line,
    /// Several, up to a dot.
    Pop3List,
    /// Capabilities up to `OK` (RFC 5804, 1.7).
    SieveCapabilities,
}

/// What a line means for the turn.
enum Meaning {
    /// More lines belong to it.
    GoesOn,
    /// It is as expected, and complete.
    Met,
    /// The server refuses.
    Refused,
    /// This is another protocol.
    Foreign,
}

impl Dialogue {
    /// With a server of `protocol`. Whoever asks has the address `own`, by which it greets (RFC 5321, 4.1.3).
    pub fn new(protocol: MailProtocol, own: Ipv4Addr) -> Self {
        let turns = match protocol {
            MailProtocol::Smtp | MailProtocol::Submission | MailProtocol::Submissions => vec![
                turn("SMTP greeting", Expected::Reply("220"), &format!("EHLO [{own}]\r\n")),
                turn("SMTP answer to EHLO", Expected::Reply("250"), "NOOP\r\n"),
                turn("SMTP answer to NOOP", Expected::Reply("250"), "QUIT\r\n"),
            ],
            MailProtocol::Imap | MailProtocol::Imaps => vec![
                turn("IMAP greeting", Expected::ImapGreeting, "a CAPABILITY\r\n"),
                turn("IMAP answer to CAPABILITY", Expected::Tagged("a"), "b LOGOUT\r\n"),
            ],
            MailProtocol::Pop3 | MailProtocol::Pop3s => vec![
                turn("POP3 greeting", Expected::Pop3Line, "CAPA\r\n"),
                turn("POP3 answer to CAPA", Expected::Pop3List, "QUIT\r\n"),
            ],
            MailProtocol::Sieve => vec![turn("ManageSieve greeting", Expected::SieveCapabilities, "LOGOUT\r\n")],
        };
        Self::of(turns)
    }

    /// With a server of `protocol` that people log in to for their mail, as the probe mailbox. Nothing where nobody does so.
    pub fn login(protocol: MailProtocol, probe: &Probe) -> Option<Self> {
        let (user, password) = (probe.user(), &probe.password);
        let log_in = format!("b LOGIN {user} {password}\r\n");
        let imap = [
            turn("IMAP answer to the probe's LOGIN", Expected::Tagged("b"), "c SELECT INBOX\r\n"),
            turn("IMAP answer to SELECT of the probe mailbox", Expected::Tagged("c"), "d LOGOUT\r\n"),
        ];
        let pop3 = [
            turn("POP3 answer to the probe's USER", Expected::Pop3Line, &format!("PASS {password}\r\n")),
            turn("POP3 answer to the probe's PASS", Expected::Pop3Line, "STAT\r\n"),
            turn("POP3 answer to STAT of the probe mailbox", Expected::Pop3Line, "QUIT\r\n"),
        ];
        let say_user = format!("USER {user}\r\n");
        let turns: Vec<Turn> = match protocol {
            MailProtocol::Imaps => {
                [turn("IMAP greeting", Expected::ImapGreeting, &log_in)].into_iter().chain(imap).collect()
            }
            MailProtocol::Imap => {
                let begin = [
                    turn("IMAP greeting", Expected::ImapGreeting, "a STARTTLS\r\n"),
                    Turn { then_tls: true, ..turn("IMAP answer to STARTTLS", Expected::Tagged("a"), &log_in) },
                ];
                begin.into_iter().chain(imap).collect()
            }
            MailProtocol::Pop3s => {
                [turn("POP3 greeting", Expected::Pop3Line, &say_user)].into_iter().chain(pop3).collect()
            }
            MailProtocol::Pop3 => {
                let begin = [
                    turn("POP3 greeting", Expected::Pop3Line, "STLS\r\n"),
                    Turn { then_tls: true, ..turn("POP3 answer to STLS", Expected::Pop3Line, &say_user) },
                ];
                begin.into_iter().chain(pop3).collect()
            }
            MailProtocol::Smtp | MailProtocol::Submission | MailProtocol::Submissions | MailProtocol::Sieve => {
                return None;
            }
        };
        Some(Self::of(turns))
    }

    fn of(turns: Vec<Turn>) -> Self {
        Self { turns, now: 0, lines_of_turn: 0, lines: 0, partial: Vec::new() }
    }

    /// What is waited for, in words for a person.
    pub fn awaited(&self) -> &'static str {
        self.turns[self.now].what
    }

    /// Takes what came.
    pub fn received(&mut self, bytes: &[u8]) -> Progress {
        let mut say = String::new();
        for (at, byte) in bytes.iter().enumerate() {
            if *byte != b'\n' {
                if self.partial.len() == LINE_BYTES_MAX {
                    let why = format!("{} has a line of more than {LINE_BYTES_MAX} bytes", self.awaited());
                    return Progress::Over(CheckResult::Unreachable(why), String::new());
                }
                self.partial.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.partial);
            match self.line(&String::from_utf8_lossy(&line)) {
                Progress::More => {}
                Progress::Say(more) => say.push_str(&more),
                // What is said in the clear behind it could be anybody's, and would be taken for what was said in TLS.
                Progress::Secure(_) if at + 1 < bytes.len() || !say.is_empty() => {
                    let why = "it said more in the clear after it had agreed to TLS".to_owned();
                    return Progress::Over(CheckResult::Refused(why), String::new());
                }
                Progress::Secure(more) => return Progress::Secure(more),
                Progress::Over(result, farewell) => return Progress::Over(result, say + &farewell),
            }
        }
        if say.is_empty() { Progress::More } else { Progress::Say(say) }
    }

    /// The server has closed the connection: what that means.
    pub fn ended(&self) -> CheckResult {
        CheckResult::Unreachable(format!("it closed the connection before the {} was complete", self.awaited()))
    }

    fn line(&mut self, line: &str) -> Progress {
        let line = line.trim_end_matches('\r');
        let Turn { what, expected, answer, then_tls } = &self.turns[self.now];
        let is_first = self.lines_of_turn == 0;
        self.lines_of_turn += 1;
        self.lines += 1;
        let over = |result| Progress::Over(result, String::new());
        match expected.meaning(line, is_first) {
            Meaning::GoesOn if self.lines >= LINES_MAX => {
                over(CheckResult::Unreachable(format!("{what} has no end after {LINES_MAX} lines")))
            }
            Meaning::GoesOn => Progress::More,
            Meaning::Met if self.now + 1 == self.turns.len() => Progress::Over(CheckResult::Passed, answer.clone()),
            Meaning::Met => {
                self.now += 1;
                self.lines_of_turn = 0;
                if *then_tls { Progress::Secure(answer.clone()) } else { Progress::Say(answer.clone()) }
            }
            Meaning::Refused => over(CheckResult::Refused(format!("{what} was {}", told(line)))),
            Meaning::Foreign => {
                over(CheckResult::Unreachable(format!("{what} was {:?}, which is another protocol", told(line))))
            }
        }
    }
}

fn turn(what: &'static str, expected: Expected, answer: &str) -> Turn {
    Turn { what, expected, answer: answer.to_owned(), then_tls: false }
}

impl Expected {
    fn meaning(self, line: &str, is_first: bool) -> Meaning {
        match self {
            Self::Reply(code) => reply(line, code),
            Self::ImapGreeting => word_after(line, "* ", &["OK"], &["BYE", "PREAUTH"]),
            Self::Tagged(tag) => match line.strip_prefix("* ") {
                Some(untagged) if is_word(untagged, "BYE") => Meaning::Refused,
                Some(_) => Meaning::GoesOn,
                None => word_after(line, &format!("{tag} "), &["OK"], &["NO", "BAD"]),
            },
            Self::Pop3List if !is_first => {
                if line == "." {
                    Meaning::Met
                } else {
                    Meaning::GoesOn
                }
            }
            Self::Pop3List => match word_after(line, "", &["+OK"], &["-ERR"]) {
                Meaning::Met => Meaning::GoesOn,
                other => other,
            },
            Self::Pop3Line => word_after(line, "", &["+OK"], &["-ERR"]),
            Self::SieveCapabilities if line.starts_with('"') => Meaning::GoesOn,
            Self::SieveCapabilities => word_after(line, "", &["OK"], &["NO", "BYE"]),
        }
    }
}

fn reply(line: &str, code: &str) -> Meaning {
    let (found, rest) = line.split_at_checked(3).unwrap_or((line, ""));
    let is_code = found.len() == 3 && found.bytes().all(|byte| byte.is_ascii_digit());
    match rest.bytes().next() {
        _ if !is_code => Meaning::Foreign,
        Some(b'-' | b' ') | None if found != code => Meaning::Refused,
        Some(b'-') => Meaning::GoesOn,
        Some(b' ') | None => Meaning::Met,
        Some(_) => Meaning::Foreign,
    }
}

fn word_after(line: &str, prefix: &str, met: &[&str], refused: &[&str]) -> Meaning {
    let Some(rest) = line.strip_prefix(prefix) else { return Meaning::Foreign };
    if met.iter().any(|word| is_word(rest, word)) {
        Meaning::Met
    } else if refused.iter().any(|word| is_word(rest, word)) {
        Meaning::Refused
    } else {
        Meaning::Foreign
    }
}

/// Whether `text` begins with `word`, in any case, and the word ends there.
fn is_word(text: &str, word: &str) -> bool {
    let (begin, rest) = text.split_at_checked(word.len()).unwrap_or((text, ""));
    begin.eq_ignore_ascii_case(word) && (rest.is_empty() || rest.starts_with(' '))
}

fn told(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(TOLD_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

    /// What is said at each piece that comes, and how it ends.
    fn talk(protocol: MailProtocol, pieces: &[&str]) -> (Vec<String>, Option<CheckResult>) {
        converse(Dialogue::new(protocol, OWN), pieces)
    }

    fn converse(mut dialogue: Dialogue, pieces: &[&str]) -> (Vec<String>, Option<CheckResult>) {
        let mut said = Vec::new();
        for piece in pieces {
            match dialogue.received(piece.as_bytes()) {
                Progress::More => {}
                Progress::Say(text) => said.push(text),
                Progress::Secure(text) => said.push(format!("<TLS>{text}")),
                Progress::Over(result, farewell) => {
                    said.push(farewell);
                    return (said, Some(result));
                }
            }
        }
        (said, None)
    }

    const SMTP: [&str; 3] =
        ["220 mail.example ESMTP\r\n", "250-mail.example\r\n250-PIPELINING\r\n250 CHUNKING\r\n", "250 2.0.0 Ok\r\n"];
    const IMAP: [&str; 2] =
        ["* OK [CAPABILITY IMAP4rev1] ready\r\n", "* CAPABILITY IMAP4rev1 IDLE\r\na OK Pre-login done.\r\n"];
    const POP3: [&str; 2] = ["+OK ready\r\n", "+OK\r\nCAPA\r\nTOP\r\n.\r\n"];
    const SIEVE: [&str; 1] = ["\"IMPLEMENTATION\" \"Dovecot\"\r\n\"STARTTLS\"\r\nOK \"ready.\"\r\n"];

    #[test]
    fn servers_that_serve_pass() {
        use MailProtocol::{Imap, Imaps, Pop3, Pop3s, Sieve, Smtp, Submission, Submissions};
        let passed = |protocol, pieces: &[&str], said: &[&str]| {
            let expected = (said.iter().map(ToString::to_string).collect(), Some(CheckResult::Passed));
            assert_eq!(talk(protocol, pieces), expected, "{protocol:?}");
        };
        for protocol in [Smtp, Submission, Submissions] {
            passed(protocol, &SMTP, &["EHLO [10.9.0.1]\r\n", "NOOP\r\n", "QUIT\r\n"]);
        }
        for protocol in [Imap, Imaps] {
            passed(protocol, &IMAP, &["a CAPABILITY\r\n", "b LOGOUT\r\n"]);
        }
        for protocol in [Pop3, Pop3s] {
            passed(protocol, &POP3, &["CAPA\r\n", "QUIT\r\n"]);
        }
        passed(Sieve, &SIEVE, &["LOGOUT\r\n"]);
    }

    #[test]
    fn refusals_are_told_in_the_servers_words() {
        let refused = |protocol, pieces: &[&str], why: &str| {
            assert_eq!(talk(protocol, pieces).1, Some(CheckResult::Refused(why.into())), "{pieces:?}");
        };
        use MailProtocol::{Imap, Pop3, Sieve, Smtp};
        refused(Smtp, &["421 4.3.2 closing\x07\r\n"], "SMTP greeting was 421 4.3.2 closing");
        refused(Smtp, &["450-wait\r\n"], "SMTP greeting was 450-wait");
        refused(Smtp, &["554\r\n"], "SMTP greeting was 554");
        refused(Smtp, &["220 x\r\n", "502 5.5.1 what?\r\n"], "SMTP answer to EHLO was 502 5.5.1 what?");
        refused(Smtp, &[SMTP[0], SMTP[1], "421 4.4.2 timeout\r\n"], "SMTP answer to NOOP was 421 4.4.2 timeout");
        refused(Imap, &["* BYE [UNAVAILABLE] later\r\n"], "IMAP greeting was * BYE [UNAVAILABLE] later");
        refused(Imap, &[IMAP[0], "* bye\r\n"], "IMAP answer to CAPABILITY was * bye");
        refused(Imap, &[IMAP[0], "a BAD no\r\n"], "IMAP answer to CAPABILITY was a BAD no");
        refused(Pop3, &["-ERR [SYS/TEMP] later\r\n"], "POP3 greeting was -ERR [SYS/TEMP] later");
        refused(Pop3, &[POP3[0], "-ERR no\r\n"], "POP3 answer to CAPA was -ERR no");
        refused(Sieve, &["BYE (TRYLATER) \"x\"\r\n"], "ManageSieve greeting was BYE (TRYLATER) \"x\"");
    }

    fn logged_in(protocol: MailProtocol, pieces: &[&str]) -> (Vec<String>, Option<CheckResult>) {
        let probe = Probe { password: "00ff".into(), certificate_pem: String::new() };
        converse(Dialogue::login(protocol, &probe).expect("people log in"), pieces)
    }

    #[test]
    fn a_login_opens_the_mailbox_and_says_its_password_in_tls_alone() {
        use MailProtocol::{Imap, Imaps, Pop3, Pop3s};
        let imap = ["b OK [CAPABILITY IMAP4rev1] in\r\n", "* 0 EXISTS\r\nc OK [READ-WRITE] done\r\n"];
        let (said, result) = logged_in(Imaps, &[IMAP[0], imap[0], imap[1]]);
        assert_eq!(said, ["b LOGIN phalanx-probe 00ff\r\n", "c SELECT INBOX\r\n", "d LOGOUT\r\n"]);
        assert_eq!(result, Some(CheckResult::Passed));
        let (said, result) = logged_in(Imap, &[IMAP[0], "a OK begin\r\n", imap[0], imap[1]]);
        assert_eq!(said[..2], ["a STARTTLS\r\n", "<TLS>b LOGIN phalanx-probe 00ff\r\n"]);
        assert_eq!(result, Some(CheckResult::Passed));
        let pop3 = ["+OK\r\n", "+OK in\r\n", "+OK 0 0\r\n"];
        let (said, result) = logged_in(Pop3s, &[POP3[0], pop3[0], pop3[1], pop3[2]]);
        assert_eq!(said, ["USER phalanx-probe\r\n", "PASS 00ff\r\n", "STAT\r\n", "QUIT\r\n"]);
        assert_eq!(result, Some(CheckResult::Passed));
        let (said, _) = logged_in(Pop3, &[POP3[0], "+OK begin\r\n", pop3[0]]);
        assert_eq!(said, ["STLS\r\n", "<TLS>USER phalanx-probe\r\n", "PASS 00ff\r\n"]);
        let refused = |protocol, pieces: &[&str], why: &str| {
            let (said, result) = logged_in(protocol, pieces);
            assert_eq!(result, Some(CheckResult::Refused(why.into())), "{pieces:?}");
            said
        };
        let unavailable = "b NO [UNAVAILABLE] Temporary authentication failure.\r\n";
        let why = "IMAP answer to the probe's LOGIN was b NO [UNAVAILABLE] Temporary authentication failure.";
        refused(Imaps, &[IMAP[0], unavailable], why);
        let why = "IMAP answer to SELECT of the probe mailbox was c NO [SERVERBUG] Internal error";
        refused(Imaps, &[IMAP[0], imap[0], "c NO [SERVERBUG] Internal error\r\n"], why);
        let why = "POP3 answer to the probe's PASS was -ERR [SYS/TEMP] later";
        refused(Pop3s, &[POP3[0], pop3[0], "-ERR [SYS/TEMP] later\r\n"], why);
        // What somebody in between puts behind the agreement is not heard as if it had come in TLS.
        let more = "it said more in the clear after it had agreed to TLS";
        for pieces in [&[IMAP[0], "a OK begin\r\nb OK in\r\n"][..], &["* OK hi\r\na OK begin\r\n"]] {
            assert!(!refused(Imap, pieces, more).concat().contains("00ff"), "{pieces:?}");
        }
        assert!(
            !refused(Imap, &[IMAP[0], "a NO none\r\n"], "IMAP answer to STARTTLS was a NO none")
                .concat()
                .contains("00ff")
        );
        for protocol in [MailProtocol::Smtp, MailProtocol::Submission, MailProtocol::Submissions, MailProtocol::Sieve] {
            let probe = Probe { password: "00ff".into(), certificate_pem: String::new() };
            assert!(Dialogue::login(protocol, &probe).is_none(), "the probe mailbox gets in nowhere else");
        }
    }

    #[test]
    fn other_protocols_and_ends_are_no_life() {
        let why = |protocol, pieces: &[&str]| match talk(protocol, pieces).1 {
            Some(CheckResult::Unreachable(why)) => why,
            other => panic!("{pieces:?}: {other:?}"),
        };
        use MailProtocol::{Imap, Pop3, Sieve, Smtp};
        assert_eq!(why(Smtp, &["SSH-2.0-x\r\n"]), "SMTP greeting was \"SSH-2.0-x\", which is another protocol");
        assert_eq!(why(Smtp, &["2200 x\r\n"]), "SMTP greeting was \"2200 x\", which is another protocol");
        for protocol in [Smtp, Imap, Pop3, Sieve] {
            why(protocol, &["\r\n"]);
            why(protocol, &["é\r\n"]);
            why(protocol, &["HTTP/1.1 200 OK\r\n"]);
        }
        why(Imap, &["* OKAY\r\n"]);
        why(Imap, &[IMAP[0], "c OK done\r\n"]);
        let mut dialogue = Dialogue::new(Smtp, OWN);
        dialogue.received(b"220 x\r\n250-y\r\n");
        let ended = "it closed the connection before the SMTP answer to EHLO was complete";
        assert_eq!(dialogue.ended(), CheckResult::Unreachable(ended.into()));
    }

    #[test]
    fn endless_answers_have_an_end() {
        let result = |text: &str| talk(MailProtocol::Smtp, &[text]).1;
        let unreachable = |why: &str| Some(CheckResult::Unreachable(why.into()));
        assert_eq!(result(&"2".repeat(2_049)), unreachable("SMTP greeting has a line of more than 2048 bytes"));
        assert_eq!(result(&format!("220 {}\r\n", "x".repeat(2_043))), None, "a long line that is none too long");
        assert_eq!(result(&"220-x\r\n".repeat(100)), unreachable("SMTP greeting has no end after 100 lines"));
        assert_eq!(result(&"220-x\r\n".repeat(99)), None);
        let list = format!("{}+OK\r\n{}", POP3[0], "x\r\n".repeat(100));
        let over = talk(MailProtocol::Pop3, &[&list]).1;
        assert_eq!(over, unreachable("POP3 answer to CAPA has no end after 100 lines"));
    }

    proptest! {
        #[test]
        fn how_an_answer_is_split_does_not_matter(cuts in prop::collection::vec(1usize..12, 0..40)) {
            for (protocol, pieces) in [
                (MailProtocol::Smtp, &SMTP[..]), (MailProtocol::Imap, &IMAP), (MailProtocol::Pop3, &POP3), (MailProtocol::Sieve, &SIEVE),
            ] {
                let whole = pieces.concat();
                let mut split = Vec::new();
                let mut rest = whole.as_str();
                for cut in &cuts {
                    let (piece, more) = rest.split_at((*cut).min(rest.len()));
                    split.push(piece);
                    rest = more;
                }
                split.push(rest);
                let (said, result) = talk(protocol, &split);
                prop_assert_eq!(result, Some(CheckResult::Passed));
                prop_assert_eq!(said.concat(), talk(protocol, pieces).0.concat());
            }
        }

        #[test]
        fn nothing_that_is_said_breaks_it(protocol in 0usize..8, text in prop::collection::vec(any::<u8>(), 0..4_000)) {
            let mut dialogue = Dialogue::new(MailProtocol::ALL[protocol], OWN);
            dialogue.received(&text);
            prop_assert!(dialogue.partial.len() <= LINE_BYTES_MAX);
        }
    }
}
