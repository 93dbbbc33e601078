//! What a client that can't be led on is told, in the words of its protocol, such that it comes again later.

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody holds the mailboxes, or the holder does not answer.
    Unavailable,
    /// A bound on connections is reached.
    TooMany,
}

/// The greeting that refuses; none where the client expects TLS first, and is answered by the end alone.
///
/// IMAP: RFC 9051, 7.1.5 with the code of RFC 5530; POP3: RFC 3206; ManageSieve: RFC 5804, 1.3; LMTP: RFC 5321, 4.2.3 with the code of RFC
/// 3463; the question for room: postfix' SMTPD_POLICY_README, "I have no opinion", since delivery asks again.
pub fn greeting(protocol: &str, reason: Reason) -> Option<&'static [u8]> {
    Some(match (protocol, reason) {
        ("imap", Reason::Unavailable) => b"* BYE [UNAVAILABLE] Mailboxes can't be reached now, try again later\r\n",
        ("imap", Reason::TooMany) => b"* BYE [UNAVAILABLE] Too many connections, try again later\r\n",
        ("pop3", Reason::Unavailable) => b"-ERR [SYS/TEMP] Mailboxes can't be reached now, try again later\r\n",
        ("pop3", Reason::TooMany) => b"-ERR [SYS/TEMP] Too many connections, try again later\r\n",
        ("sieve", Reason::Unavailable) => b"BYE (TRYLATER) \"Mailboxes can't be reached now, try again later\"\r\n",
        ("sieve", Reason::TooMany) => b"BYE (TRYLATER) \"Too many connections, try again later\"\r\n",
        ("lmtp", Reason::Unavailable) => b"421 4.3.2 Mailboxes can't be reached now, try again later\r\n",
        ("lmtp", Reason::TooMany) => b"421 4.3.2 Too many connections, try again later\r\n",
        ("quota", _) => b"action=DUNNO\n\n",
        _ => return None,
    })
}

/// Whether a client is kept waiting for a holder. Who asks for room is not: Postfix asks for each recipient and waits seconds, and delivery
/// waits by itself.
pub fn is_worth_waiting(protocol: &str) -> bool {
    protocol != "quota"
}

/// Whether a connection that leads nowhere any more may end what it is at. A delivery that is cut between its last byte and the answer is made
/// again, and the letter is there twice; people's sessions are opened again, and lose nothing.
pub fn may_finish(protocol: &str) -> bool {
    protocol == "lmtp"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_whole_line_of_its_protocol() {
        for reason in [Reason::Unavailable, Reason::TooMany] {
            for (protocol, begin) in [
                ("imap", "* BYE [UNAVAILABLE] "),
                ("pop3", "-ERR [SYS/TEMP] "),
                ("sieve", "BYE (TRYLATER) \""),
                ("lmtp", "421 4.3.2 "),
            ] {
                let line = greeting(protocol, reason).and_then(|line| std::str::from_utf8(line).ok()).expect("a line");
                assert!(line.starts_with(begin) && line.ends_with("\r\n") && line.lines().count() == 1, "{line}");
            }
            assert_eq!(greeting("quota", reason), Some(&b"action=DUNNO\n\n"[..]));
            assert_eq!((greeting("imaps", reason), greeting("pop3s", reason)), (None, None));
        }
    }
}
