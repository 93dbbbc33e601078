//! What lines of Postfix and Dovecot say: when, of which domain, and what counts.
//!
//! Postfix writes as postlogd(8) does (`Nov 28 16:00:53 host name/daemon[pid]: text`), in UTC since its unit says so; Dovecot writes as its
//! `log_timestamp` says. What counts is
//! - a message that a mailbox hands in: smtpd(8) names the login, qmgr(8) the size when the message enters its queue;
//! - a message that is stored in a mailbox: Dovecot says so, with its size;
//! - the bytes between a mailbox and who reads it, when a session of IMAP or POP3 ends.
//!
//! Lines of balancers' checks, those of the mailbox that they log in to among them, are passed over: there are several each second, and nobody's
//! mail is in them.

use super::collect::{Memory, Reader, Take};
use crate::mail::lookup::PROBE_USER;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The sources, below the directory of logs: `NAME.log` each.
pub const SOURCES: [&str; 3] = ["postfix", "mailboxes", "logins"];

/// Between Dovecot's note of a message and its size, as `deliver_log_format` has them.
pub const SIZE: &str = " size=";

/// No letter and no session has more bytes.
const SIZE_MAX: u64 = 1 << 40;

/// Reads lines of a mail node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MailReader {
    /// The addresses of balancers.
    pub balancers: BTreeSet<Ipv4Addr>,
}

impl Reader for MailReader {
    fn take(&self, source: &str, line: &str, now_us: u64, memory: &mut Memory) -> Option<Take> {
        match source {
            "postfix" => self.of_postfix(line, now_us, memory),
            _ => self.of_dovecot(line),
        }
    }
}

impl MailReader {
    fn of_postfix(&self, line: &str, now_us: u64, memory: &mut Memory) -> Option<Take> {
        let at_us = syslog_time(line, now_us);
        // After the time there is the host's name.
        let text = match at_us {
            Some(_) => line[TIME_LEN..].split_once(' ').map_or("", |(_, text)| text),
            None => line,
        };
        let text = text.strip_prefix("phalanx-").unwrap_or(text);
        let (tag, said) = text.split_once(": ").unwrap_or(("", text));
        if self.is_of_check(said) {
            return None;
        }
        let mut take = Take { at_us, text: text.to_owned(), ..Take::default() };
        if let Some((queue_id, said)) = said.split_once(": ") {
            let daemon = tag.split('[').next().and_then(|name| name.rsplit('/').next());
            match daemon {
                // Other lines of its name what a client said: a HELO may look like a login.
                Some("smtpd") if said.starts_with("client=") => {
                    if let Some(domain) = after(said, "sasl_username=").and_then(domain_of) {
                        memory.begin(queue_id, &domain);
                    }
                }
                Some("qmgr") => {
                    // After the last one: a sender's address may have one of its own.
                    let size = last_after(said, ", size=").and_then(number).filter(|size| *size <= SIZE_MAX);
                    if let (Some(size), true) = (size, said.starts_with("from=<"))
                        && let Some(domain) = memory.end(queue_id)
                    {
                        (take.subject, take.sent) = (format!("@{domain}"), size);
                    }
                }
                _ => {}
            }
        }
        Some(take)
    }

    /// Connections of balancers, which hand nothing in.
    fn is_of_check(&self, said: &str) -> bool {
        const OF_CONNECTIONS: [&str; 4] = [
            "connect from ",
            "disconnect from ",
            "lost connection after ",
            "Anonymous TLS connection established from ",
        ];
        let is_of_one = OF_CONNECTIONS.iter().any(|begin| said.starts_with(begin));
        let address = said.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(address, _)| address);
        is_of_one && self.is_balancer(address)
    }

    fn is_balancer(&self, address: Option<&str>) -> bool {
        address.and_then(|address| address.parse().ok()).is_some_and(|address| self.balancers.contains(&address))
    }

    fn of_dovecot(&self, line: &str) -> Option<Take> {
        let at_us = iso_time(line);
        let text = at_us.map_or(line, |_| line[ISO_LEN..].trim_start());
        let peer = after(text, "rip=").map(|rest| rest.split([',', ' ']).next().unwrap_or_default());
        if text.contains("-login: ") && self.is_balancer(peer) {
            return None;
        }
        let mut take = Take { at_us, text: format!("dovecot: {text}"), ..Take::default() };
        // `lmtp(USER)<pid><session>: Info: …`; what stands after the colon is told by clients in part.
        let (head, said) = text.split_once(": Info: ").unwrap_or((text, ""));
        let Some((daemon, rest)) = head.split_once('(') else { return Some(take) };
        if rest.split(')').next() == Some(PROBE_USER) {
            return None;
        }
        let domain = rest.split_once(')').and_then(|(user, _)| domain_of(user));
        let Some(domain) = domain else { return Some(take) };
        let is_stored =
            [": saved mail to ", ": stored mail into mailbox ", ": fileinto action: stored mail into mailbox "];
        match daemon {
            "lmtp" if is_stored.iter().any(|how| said.contains(how)) => {
                // Right before what Dovecot says: a Message-ID may have one of its own.
                let at = is_stored.iter().filter_map(|how| said.rfind(how)).max().unwrap_or(0);
                take.received =
                    last_after(&said[..at], SIZE).and_then(number).filter(|size| *size <= SIZE_MAX).unwrap_or(0);
                take.subject = format!("@{domain}");
            }
            "imap" if said.starts_with("Disconnected: ") => {
                let bytes = |what: &str| last_after(said, what).and_then(number).unwrap_or(0).min(SIZE_MAX);
                (take.received, take.sent) = (bytes(" in="), bytes(" out="));
                take.subject = format!("={domain}");
            }
            "pop3" if said.starts_with("Disconnected: ") => {
                // `top=1/200, retr=2/1400`: how many, and their bytes.
                let bytes = |what: &str| last_after(said, what)?.split_once('/').and_then(|(_, bytes)| number(bytes));
                let bytes = |what| bytes(what).unwrap_or(0).min(SIZE_MAX);
                take.sent = bytes(" top=") + bytes(" retr=");
                take.subject = format!("={domain}");
            }
            _ => {}
        }
        Some(take)
    }
}

/// `Nov 28 16:00:53 `.
const TIME_LEN: usize = 16;
/// `2026-11-28T16:00:53`.
const ISO_LEN: usize = 19;

/// A time without a year: the latest that is not more than a day ahead of now.
fn syslog_time(line: &str, now_us: u64) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let bytes = line.as_bytes();
    if bytes.len() < TIME_LEN || !bytes[..TIME_LEN].is_ascii() || bytes[3] != b' ' || bytes[TIME_LEN - 1] != b' ' {
        return None;
    }
    let month = MONTHS.iter().position(|month| *month == &line[..3])? as u64 + 1;
    let day = line[4..6].trim_start().parse().ok().filter(|day| (1..=31).contains(day))?;
    let second = clock(&line[7..15])?;
    let (year, _, _) = super::date::Day::of_us(now_us).civil();
    let at = |year: u64| (days_to(year, month, day) * 86_400 + second) * 1_000_000;
    let this = at(u64::from(year) + 1);
    let ahead = now_us.saturating_add(86_400_000_000);
    [this, at(u64::from(year))]
        .into_iter()
        .find(|at| *at <= ahead)
        .or_else(|| Some(at(u64::from(year).saturating_sub(1))))
}

fn iso_time(line: &str) -> Option<u64> {
    let text = line.get(..ISO_LEN)?;
    let (date, time) = text.split_once('T')?;
    let mut parts = date.split('-');
    let mut part = || parts.next()?.parse::<u64>().ok();
    let (year, month, day) = (part()?, part()?, part()?);
    if !((1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day)) {
        return None;
    }
    Some((days_to(year, month, day) * 86_400 + clock(time)?) * 1_000_000)
}

/// `16:00:53` in seconds.
fn clock(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, ':').map(|part| part.parse::<u64>().ok().filter(|_| part.len() == 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    (hour < 24 && minute < 60 && second < 61).then_some(hour * 3_600 + minute * 60 + second)
}

/// Days since 1970-01-01; years from 1970. After Howard Hinnant, as [`super::date`].
fn days_to(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year;
    days.saturating_sub(719_468)
}

fn after<'t>(text: &'t str, what: &str) -> Option<&'t str> {
    text.split_once(what).map(|(_, rest)| rest)
}

/// After the last one: what stands at a line's end was not told by a client.
fn last_after<'t>(text: &'t str, what: &str) -> Option<&'t str> {
    text.rsplit_once(what).map(|(_, rest)| rest)
}

fn number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// The domain of an address, if it can be one.
fn domain_of(address: &str) -> Option<String> {
    let address = address.split([',', ' ', ')', '>']).next()?;
    let domain = address.rsplit_once('@')?.1.to_ascii_lowercase();
    let is_plain = !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    (is_plain && domain.len() <= 253).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-11-28T16:00:53Z
    const NOW_US: u64 = 1_795_881_653_000_000;

    fn reader() -> MailReader {
        MailReader { balancers: ["10.9.0.1".parse().unwrap()].into() }
    }

    fn take(source: &str, line: &str, memory: &mut Memory) -> Option<Take> {
        reader().take(source, line, NOW_US, memory)
    }

    fn counted(source: &str, line: &str) -> (String, u64, u64) {
        let take = take(source, line, &mut Memory::default()).unwrap();
        assert_eq!(take.at_us, Some(NOW_US), "{line}");
        (take.subject, take.sent, take.received)
    }

    #[test]
    fn a_message_that_is_handed_in_is_counted_once_with_its_size() {
        let mut memory = Memory::default();
        let mut say = |line: &str| take("postfix", line, &mut memory).unwrap();
        let handed = "Nov 28 16:00:53 mail phalanx-postfix/submission/smtpd[9]: 4jc8: client=w[192.0.2.1], sasl_method=PLAIN, \
                      sasl_username=Info@Example.org";
        assert_eq!(say(handed).subject, "");
        let queued = "Nov 28 16:00:53 mail phalanx-postfix/qmgr[9]: 4jc8: from=<info@example.org>, size=301, nrcpt=2 (queue active)";
        let counted = say(queued);
        assert_eq!((counted.subject.as_str(), counted.sent, counted.received), ("@example.org", 301, 0));
        assert!(counted.text.starts_with("postfix/qmgr[9]: 4jc8: from="));
        // It is deferred, and active again.
        assert_eq!(say(queued).subject, "");
        assert_eq!(
            say("Nov 28 16:00:53 mail phalanx-postfix/qmgr[9]: 4jc9: from=<a@b.org>, size=1, nrcpt=1 (q)").subject,
            ""
        );
    }

    #[test]
    fn what_clients_say_counts_for_nobody() {
        let mut memory = Memory::default();
        let mut say =
            |said: &str| take("postfix", &format!("Nov 28 16:00:53 mail phalanx-postfix/{said}"), &mut memory).unwrap();
        say("smtpd[9]: Q9: reject: RCPT from w[192.0.2.1]: 550; helo=<sasl_username=a@victim.org>");
        assert_eq!(say("qmgr[9]: Q9: from=<x@y.org>, size=7, nrcpt=1 (queue active)").subject, "");
        say("submission/smtpd[9]: Q8: client=w[192.0.2.1], sasl_method=PLAIN, sasl_username=a@example.org");
        let counted = say("qmgr[9]: Q8: from=<\"a, size=99\"@example.org>, size=7, nrcpt=1 (queue active)");
        assert_eq!((counted.subject.as_str(), counted.sent), ("@example.org", 7));
        let stored = "2026-11-28T16:00:53 lmtp(a@example.org)<7><s>: Info: msgid=<\"a size=9223372036854775807\"@x>, size=70: saved mail to INBOX";
        assert_eq!(take("mailboxes", stored, &mut Memory::default()).unwrap().received, 70);
    }

    #[test]
    fn what_dovecot_stores_and_hands_out_is_counted() {
        let begin = "2026-11-28T16:00:53 ";
        for (line, expected) in [
            (
                "lmtp(info@example.org)<7><s>: Info: msgid=<x@y>, size=703: saved mail to INBOX",
                ("@example.org", 0, 703),
            ),
            (
                "lmtp(a@example.org)<7><s>: Info: sieve: msgid=<x>, size=9: fileinto action: stored mail into mailbox 'In'",
                ("@example.org", 0, 9),
            ),
            ("lmtp(7): Info: Connect from 127.0.0.1", ("", 0, 0)),
            (
                "imap(info@example.org)<7><s>: Info: Disconnected: Logged out in=55 out=1620 deleted=0 expunged=0",
                ("=example.org", 1620, 55),
            ),
            (
                "pop3(info@example.org)<7><s>: Info: Disconnected: Logged out top=1/20, retr=1/703, del=0/1, size=687",
                ("=example.org", 723, 0),
            ),
            ("imap(x)<7><s>: Info: Disconnected: Logged out in=55 out=1620", ("", 0, 0)),
            (
                "imap-login: Info: Login: user=<a@example.org>, method=PLAIN, rip=198.51.100.100, lip=10.9.0.41",
                ("", 0, 0),
            ),
        ] {
            let (subject, sent, received) = counted("mailboxes", &format!("{begin}{line}"));
            assert_eq!((subject.as_str(), sent, received), expected, "{line}");
        }
    }

    #[test]
    fn checks_are_passed_over_and_nothing_else() {
        let mut memory = Memory::default();
        let begin = "Nov 28 16:00:53 mail phalanx-postfix/smtpd[9]: ";
        for said in ["connect from lb[10.9.0.1]", "disconnect from lb[10.9.0.1] ehlo=1 noop=1 quit=1 commands=3"] {
            assert_eq!(take("postfix", &format!("{begin}{said}"), &mut memory), None);
            let other = format!("{begin}{}", said.replace("10.9.0.1", "10.9.0.2"));
            assert!(take("postfix", &other, &mut memory).is_some());
        }
        assert!(take("postfix", &format!("{begin}4jc8: client=lb[10.9.0.1]"), &mut memory).is_some());
        let login =
            "2026-11-28T16:00:53 imap-login: Info: Disconnected: Aborted login: user=<>, rip=10.9.0.1, lip=10.9.0.41";
        assert_eq!(take("mailboxes", login, &mut memory), None);
        let probe = "2026-11-28T16:00:53 imap(phalanx-probe)<7><s>: Info: Disconnected: Logged out in=5 out=16";
        assert_eq!(take("mailboxes", probe, &mut memory), None);
    }

    #[test]
    fn a_time_without_a_year_is_not_ahead_of_now() {
        let at = |line: &str, now_us| syslog_time(line, now_us).map(super::super::date::rfc3339);
        let new_year_us = 1_798_761_610_000_000; // 2027-01-01T00:00:10Z
        assert_eq!(at("Dec 31 23:59:59 x", new_year_us).as_deref(), Some("2026-12-31T23:59:59.000000Z"));
        assert_eq!(at("Jan  1 00:00:09 x", new_year_us).as_deref(), Some("2027-01-01T00:00:09.000000Z"));
        // A clock that is a little ahead, on the last day of a year.
        assert_eq!(at("Jan  1 00:00:01 x", new_year_us - 12_000_000).as_deref(), Some("2027-01-01T00:00:01.000000Z"));
        assert_eq!(at("Feb 29 00:00:00 x", 1_709_164_800_000_000).as_deref(), Some("2024-02-29T00:00:00.000000Z"));
        for bad in
            ["", "Nov 28", "Now 28 16:00:53 x", "Nov 28 16:00 :53x", "Nov 28 1\u{e9}:00:53 x", "Nov 28 25:00:53 x"]
        {
            assert_eq!(syslog_time(bad, NOW_US), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_taken(line in ".{0,80}", source in 0..3_usize) {
            take(SOURCES[source], &line, &mut Memory::default());
        }

        #[test]
        fn days_are_those_of_the_calendar(day in 0..40_000_u32) {
            let (year, month, of_month) = super::super::date::Day(day).civil();
            prop_assert_eq!(days_to(year.into(), month.into(), of_month.into()), u64::from(day));
        }
    }
}
