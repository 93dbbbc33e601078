//! Grants: the right to be the only one.
//!
//! A grant says who alone may do a thing, and its number grows each time it moves. It moves when its holder released it or is fenced,
//! never otherwise: neither a clock nor a missing sign of life moves it. Asking for a move is one act ([`Grant::ask`]), the move
//! itself another ([`Grant::pass`]), which needs a proof that the holder is at an end.
//!
//! Deliberately absent: how a holder stops, and how it is fenced. That it did is what [`Proof`] stands for.

use crate::{Invalid, Name};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a grant is about, within one cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Right {
    /// To open the mailboxes of a mail cluster.
    Mailboxes,
    /// To run the mail queue that this server filled.
    Queue(Name),
    /// To merge the logs of a web cluster.
    Logs,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mailboxes => f.write_str("mailboxes"),
            Self::Queue(server) => write!(f, "queue-{server}"),
            Self::Logs => f.write_str("logs"),
        }
    }
}

impl FromStr for Right {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.strip_prefix("queue-") {
            Some(server) => Ok(Self::Queue(server.parse()?)),
            None if text == "mailboxes" => Ok(Self::Mailboxes),
            None if text == "logs" => Ok(Self::Logs),
            None => Err(Invalid::new("right", text, "it must be mailboxes, logs, or queue-SERVER")),
        }
    }
}

impl TryFrom<String> for Right {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Right> for String {
    fn from(right: Right) -> String {
        right.to_string()
    }
}

/// Who has a right, and who is to have it next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Grows by one with each move.
    pub number: u64,
    /// Who has it. While it is moving: who has not been seen to be at an end with it.
    pub holder: Name,
    /// Who gets it as soon as the holder is at an end with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<Name>,
}

/// Why a holder is at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// It was told to stop, has stopped, and said so.
    Released,
    /// It can do no more harm, and that was seen.
    Fenced,
}

impl Grant {
    /// The first holder's grant.
    pub fn first(holder: Name) -> Self {
        Self { number: 1, holder, moving_to: None }
    }

    /// Whether `server` may use the right now: it holds it and was not told to stop.
    pub fn is_usable_by(&self, server: &Name) -> bool {
        self.holder == *server && self.moving_to.is_none()
    }

    /// Asks for a move to `to`. Asked for its own holder, a move that has not come to pass is taken back.
    #[must_use]
    pub fn ask(&self, to: Name) -> Self {
        let moving_to = Some(to).filter(|to| *to != self.holder);
        Self { moving_to, ..self.clone() }
    }

    /// Lets its holder use it again after a time in which nobody might: what was told of that time is older than what is told from now on.
    #[must_use]
    pub fn renew(&self) -> Self {
        Self { number: self.number + 1, ..self.clone() }
    }

    /// Moves it, given a proof for the holder of `number`; nothing where no move was asked for, or the proof is for another number.
    pub fn pass(&self, number: u64, _: Proof) -> Option<Self> {
        let to = self.moving_to.clone().filter(|_| number == self.number)?;
        Some(Self { number: self.number + 1, holder: to, moving_to: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_right_is_a_word() {
        for right in [Right::Mailboxes, Right::Queue(name("mail1")), Right::Logs] {
            assert_eq!(right.to_string().parse::<Right>().unwrap(), right);
        }
        assert!("queue-".parse::<Right>().is_err() && "mailbox".parse::<Right>().is_err());
    }

    #[test]
    fn a_grant_moves_by_proof_alone() {
        let first = Grant::first(name("mail1"));
        assert!(first.is_usable_by(&name("mail1")) && first.pass(1, Proof::Fenced).is_none());
        let asked = first.ask(name("mail2"));
        assert!(!asked.is_usable_by(&name("mail1")) && !asked.is_usable_by(&name("mail2")));
        assert_eq!(asked.ask(name("mail1")), first);
        assert!(asked.pass(2, Proof::Released).is_none());
        let passed = asked.pass(1, Proof::Released).unwrap();
        assert!(passed.number == 2 && passed.is_usable_by(&name("mail2")));
    }

    proptest! {
        #[test]
        fn two_servers_never_use_it_and_the_number_tells_holders_apart(acts in prop::collection::vec((0..3_u8, 0..3_u8, 0..4_u64), 0..40)) {
            let servers = [name("a"), name("b"), name("c")];
            let mut grant = Grant::first(servers[0].clone());
            for (act, server, back) in acts {
                let before = grant.clone();
                match act {
                    0 => grant = grant.ask(servers[usize::from(server)].clone()),
                    2 => grant = grant.renew(),
                    _ => grant = grant.pass(grant.number.saturating_sub(back), Proof::Released).unwrap_or(grant),
                }
                prop_assert!(servers.iter().filter(|s| grant.is_usable_by(s)).count() <= 1);
                prop_assert!(before.holder == grant.holder || before.number < grant.number);
                prop_assert!(grant.number >= before.number && grant.moving_to.as_ref() != Some(&grant.holder));
            }
        }
    }
}
