//! The way of a message through the merged log of a mail cluster, by its Message-ID.
//!
//! The log is read twice: first for the queue ids under which the message went ([`Tracer::look`]), then for all lines of those and of the
//! mailboxes that stored it ([`Tracer::follow`]). A message that is sent on by an alias, or rewritten on its way out, has several queue ids.

use memchr::memmem;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// A trace has so many lines at most.
pub const LINES_MAX: usize = 2_000;
/// And so many bytes of them.
const BYTES_MAX: usize = 1 << 20;
/// And so many queue ids.
const IDS_MAX: usize = 1_000;

/// What is known of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Its lines, by time.
    pub lines: Vec<TracedLine>,
    /// What became of it, for each recipient.
    pub recipients: Vec<Fate>,
    /// Whether there are more lines than these.
    pub is_cut: bool,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedLine {
    /// When, in UTC.
    pub at: String,
    /// The node.
    pub node: String,
    /// The queue id; none for a line of a mailbox.
    pub queue_id: Option<String>,
    /// What was said.
    pub text: String,
}

/// What became of a message for a recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// The recipient, as it was delivered to.
    pub to: String,
    /// `sent`, `deferred`, `bounced` and so on, as Postfix says it; `stored` where a mailbox has it.
    pub state: String,
    /// When that was said last.
    pub at: String,
    /// By which node.
    pub node: String,
    /// The answer of whoever it was handed to.
    pub answer: String,
}

/// Looks for one message.
#[derive(Debug)]
pub struct Tracer {
    message_id: Vec<u8>,
    ids: HashSet<Vec<u8>>,
    trace: Trace,
    bytes: usize,
    fates: BTreeMap<String, Fate>,
}

/// A merged line, taken apart.
struct Parts<'l> {
    at: &'l str,
    node: &'l str,
    tag: &'l str,
    said: &'l str,
}

impl Tracer {
    /// Looks for the message with this id, with or without its angle brackets.
    pub fn new(message_id: &str) -> Self {
        let bare = message_id.trim().trim_start_matches('<').trim_end_matches('>');
        let message_id = format!("<{bare}>").into_bytes();
        Self { message_id, ids: HashSet::new(), trace: Trace::default(), bytes: 0, fates: BTreeMap::new() }
    }

    /// The first reading: whole lines.
    pub fn look(&mut self, text: &[u8]) {
        let finder = memmem::Finder::new(&self.message_id);
        let mut found = Vec::new();
        for at in finder.find_iter(text) {
            let from = memchr::memrchr(b'\n', &text[..at]).map_or(0, |end| end + 1);
            let to = memchr::memchr(b'\n', &text[at..]).map_or(text.len(), |end| at + end);
            let Ok(line) = std::str::from_utf8(&text[from..to]) else { continue };
            let Some(Parts { tag, said, .. }) = parts(line) else { continue };
            // Not what a client made look like it: only cleanup(8) says so, after a queue id.
            if let Some((id, said)) = said.split_once(": ")
                && daemon(tag) == "cleanup"
                && said.strip_prefix("message-id=").is_some_and(|id| id.as_bytes() == self.message_id)
            {
                found.push(id.as_bytes().to_vec());
            }
        }
        let room = IDS_MAX.saturating_sub(self.ids.len());
        self.ids.extend(found.into_iter().take(room));
    }

    /// The second reading: whole lines, those of an earlier time first.
    pub fn follow(&mut self, text: &[u8]) {
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let Some(parts) = parts(line) else { continue };
            if parts.tag.starts_with("postfix") {
                if let Some((id, said)) = parts.said.split_once(": ")
                    && self.ids.contains(id.as_bytes())
                {
                    self.add(&parts, Some(id), said);
                }
            } else if memmem::find(parts.said.as_bytes(), &self.message_id).is_some()
                && is_of(parts.said, &self.message_id)
            {
                self.add(&parts, None, parts.said);
            }
        }
    }

    /// What was found.
    pub fn finish(self) -> Trace {
        let mut trace = self.trace;
        trace.lines.sort_by(|a, b| a.at.cmp(&b.at));
        trace.lines.chunk_by_mut(|a, b| a.at == b.at).for_each(in_order_of_a_second);
        trace.recipients = self.fates.into_values().collect();
        trace
    }

    fn add(&mut self, parts: &Parts<'_>, id: Option<&str>, said: &str) {
        let fate = match id {
            Some(_) => fate_in_queue(parts, said),
            None => fate_in_mailbox(parts, said),
        };
        if let Some(fate) = fate {
            // That a mailbox has it is the last word; Postfix' line about it is later and says less.
            let is_stored = |before: &Fate| before.state == "stored" && fate.state == "sent";
            let has_room = self.fates.len() < LINES_MAX || self.fates.contains_key(&fate.to);
            if has_room && !self.fates.get(&fate.to).is_some_and(is_stored) {
                self.fates.insert(fate.to.clone(), fate);
            }
        }
        self.bytes += said.len();
        if self.trace.lines.len() >= LINES_MAX || self.bytes > BYTES_MAX {
            self.trace.is_cut = true;
            return;
        }
        let text = format!("{}: {said}", parts.tag);
        let queue_id = id.map(str::to_owned);
        self.trace.lines.push(TracedLine { at: parts.at.to_owned(), node: parts.node.to_owned(), queue_id, text });
    }
}

/// Daemons write whole seconds. Within one a mailbox stores before Postfix says that it has.
fn in_order_of_a_second(lines: &mut [TracedLine]) {
    let has_answer = |line: &TracedLine| line.queue_id.is_some() && line.text.contains(", status=");
    let answered = lines.iter().filter(|line| line.queue_id.is_some()).position(has_answer);
    let answered = answered.unwrap_or(usize::MAX);
    let mut queued = 0;
    lines.sort_by_cached_key(|line| {
        if line.queue_id.is_none() {
            return (answered, 0, 0);
        }
        queued += 1;
        (queued - 1, 1, queued)
    });
}

/// `TIME NODE TAG: SAID SEGMENT OFFSET`.
fn parts(line: &str) -> Option<Parts<'_>> {
    let (line, _offset) = line.rsplit_once(' ')?;
    let (line, _segment) = line.rsplit_once(' ')?;
    let (at, rest) = line.split_once(' ')?;
    let (node, rest) = rest.split_once(' ')?;
    let (tag, said) = rest.split_once(": ")?;
    (!line.starts_with('#')).then_some(Parts { at, node, tag, said })
}

fn daemon(tag: &str) -> &str {
    tag.split('[').next().and_then(|name| name.rsplit('/').next()).unwrap_or_default()
}

/// Whether Dovecot says that of this message: `…: Info: msgid=<x>…` or `…: Info: sieve: msgid=<x>…`.
fn is_of(said: &str, message_id: &[u8]) -> bool {
    let said = said.split_once(": Info: ").map_or("", |(_, said)| said);
    let said = said.strip_prefix("sieve: ").unwrap_or(said);
    said.strip_prefix("msgid=").is_some_and(|rest| rest.as_bytes().starts_with(message_id))
}

/// `to=<a@b.org>, orig_to=<…>, relay=…, dsn=2.0.0, status=sent (answer)`.
fn fate_in_queue(parts: &Parts<'_>, said: &str) -> Option<Fate> {
    let (to, rest) = said.strip_prefix("to=<")?.split_once(">, ")?;
    // The way to itself, in which the sender is rewritten, is not where it goes.
    if daemon(parts.tag) == "smtp" && rest.contains("relay=127.0.0.1[127.0.0.1]:") {
        return None;
    }
    let (_, status) = rest.split_once(", status=")?;
    let (state, answer) = status.split_once(' ').unwrap_or((status, ""));
    let answer = answer.strip_prefix('(').and_then(|answer| answer.strip_suffix(')')).unwrap_or(answer);
    Some(parts.fate(to, state, answer))
}

/// `lmtp(a@b.org)<…>: Info: msgid=<…>…: saved mail to INBOX`.
fn fate_in_mailbox(parts: &Parts<'_>, said: &str) -> Option<Fate> {
    let to = said.strip_prefix("lmtp(")?.split_once(')')?.0;
    let at = ["saved mail to ", "stored mail into mailbox "].iter().find_map(|how| said.rfind(how))?;
    Some(parts.fate(to, "stored", &said[at..]))
}

impl Parts<'_> {
    fn fate(&self, to: &str, state: &str, answer: &str) -> Fate {
        Fate {
            to: to.to_owned(),
            state: state.to_owned(),
            at: self.at.to_owned(),
            node: self.node.to_owned(),
            answer: answer.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = "\
2026-11-28T16:00:50.000000Z mail2 postfix/smtpd[1]: Q1: client=w[192.0.2.1] s 0
2026-11-28T16:00:50.000000Z mail2 postfix/cleanup[1]: Q1: message-id=<m@far.example> s 10
2026-11-28T16:00:50.000000Z mail2 postfix/cleanup[1]: Q2: message-id=<other@far.example> s 20
2026-11-28T16:00:52.000000Z mail1 dovecot: lmtp(info@example.org)<7><s>: Info: msgid=<m@far.example>, size=301: saved mail to INBOX s 40
2026-11-28T16:00:52.000000Z mail2 postfix/qmgr[1]: Q1: from=<ann@far.example>, size=301, nrcpt=2 (queue active) s 30
2026-11-28T16:00:51.000000Z mail1 dovecot: imap(a)<7><s>: Info: said msgid=<m@far.example>: saved mail to x s 50
2026-11-28T16:00:52.000000Z mail2 postfix/lmtp[1]: Q1: to=<info@example.org>, relay=127.0.0.1[127.0.0.1]:10025, status=sent (250 Saved) s 60
2026-11-28T16:00:52.000000Z mail2 postfix/smtp[1]: Q1: to=<bob@far.example>, orig_to=<fwd@example.org>, relay=127.0.0.1[127.0.0.1]:10026, status=sent (250 queued as Q3) s 70
2026-11-28T16:00:52.000000Z mail2 postfix/cleanup[1]: Q3: message-id=<m@far.example> s 80
2026-11-28T16:00:52.000000Z mail2 postfix/smtp[1]: Q2: to=<c@far.example>, relay=x, status=sent (ok) s 90
2026-11-28T16:00:53.000000Z mail2 postfix/smtp[1]: Q3: to=<bob@far.example>, relay=far.example[192.0.2.9]:25, dsn=4.0.0, status=deferred (try later) s 100
# gap: mail2 stopped uncleanly
";

    fn trace(id: &str, log: &str) -> Trace {
        let mut tracer = Tracer::new(id);
        tracer.look(log.as_bytes());
        tracer.follow(log.as_bytes());
        tracer.finish()
    }

    #[test]
    fn a_message_is_followed_over_nodes_and_queue_ids() {
        let found = trace("m@far.example", LOG);
        let ids: Vec<&str> = found.lines.iter().map(|line| line.queue_id.as_deref().unwrap_or("-")).collect();
        assert_eq!(ids, ["Q1", "Q1", "Q1", "-", "Q1", "Q1", "Q3", "Q3"]);
        let fates: Vec<String> = found
            .recipients
            .iter()
            .map(|fate| format!("{} {} {}: {}", fate.to, fate.state, fate.node, fate.answer))
            .collect();
        assert_eq!(
            fates,
            ["bob@far.example deferred mail2: try later", "info@example.org stored mail1: saved mail to INBOX"]
        );
        assert!(!found.is_cut);
        assert_eq!(trace("<m@far.example>", LOG), found);
        assert_eq!(trace("nobody@far.example", LOG), Trace::default());
        assert_eq!(trace("", LOG), Trace::default());
    }

    #[test]
    fn what_a_client_says_is_not_believed() {
        let forged = "2026-11-28T16:00:50.000000Z mail2 postfix/smtpd[1]: Q9: reject: RCPT from x: helo=<message-id=<m@far.example>> s 0\n\
                      2026-11-28T16:00:50.000000Z mail2 postfix/cleanup[1]: Q9: message-id=<a> message-id=<m@far.example> s 10\n";
        assert_eq!(trace("m@far.example", forged), Trace::default());
    }

    #[test]
    fn a_long_trace_is_cut() {
        let mut log = "2026-11-28T16:00:50.000000Z m postfix/cleanup[1]: Q1: message-id=<m> s 0\n".to_owned();
        for number in 0..LINES_MAX {
            log.push_str(&format!("2026-11-28T16:00:50.000000Z m postfix/qmgr[1]: Q1: line {number} s 0\n"));
        }
        let found = trace("m", &log);
        assert_eq!((found.lines.len(), found.is_cut), (LINES_MAX, true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_searched(bytes in prop::collection::vec(any::<u8>(), 0..200), id in ".{0,10}") {
            let mut tracer = Tracer::new(&id);
            tracer.look(&bytes);
            tracer.follow(&bytes);
            tracer.finish();
        }
    }
}
