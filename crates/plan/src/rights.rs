//! Who has a right, as a share tells it: what a node reads before it opens mailboxes or runs a queue.
//!
//! Whoever keeps a share writes there who has which right of the clusters that mount it, and under which number. Numbers there only grow.
//! A daemon that only one node may run starts when the share names this node with the number of its configuration ([`verdict`]). So a
//! node that was fenced, and comes back with the configuration that it had, does not start what another one runs by now, whether or
//! not anybody can tell it.
//!
//! The files are overwritten in place and have a fixed length, so that an NFS client that knows the file sees what is new by opening it.

#[cfg(test)]
mod simulation;

use crate::spec::NodeSpec;
use crate::spec::mail::MailSpec;
use phalanx_model::{Name, Right};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The directory below a share's root that is Phalanx' own.
pub const DIRECTORY: &str = ".phalanx";
/// The live file that says what this node may do, by its configuration.
pub const FILE: &str = "rights.json";
/// The file that tells who has a queue, in the queue's directory.
pub const HOLDER_FILE: &str = "holder";
/// The length of a file that tells who has a right, in bytes: one sector, which a disk writes whole.
pub const FILE_LEN: usize = 512;

/// Who has a right of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The cluster.
    pub cluster: Name,
    /// What it is about.
    pub right: Right,
    /// Who has it; while it moves: who had it.
    pub holder: Name,
    /// The grant's number.
    pub number: u64,
    /// Nobody may use it any more under this number: its holder is being fenced.
    pub is_void: bool,
}

impl Held {
    /// The file that tells it, below the share's root.
    pub fn file(&self) -> String {
        match &self.right {
            Right::Mailboxes | Right::Logs => format!("{DIRECTORY}/rights/{}/{}", self.cluster, self.right),
            Right::Queue(server) => format!("{}/{HOLDER_FILE}", queue_directory(server)),
        }
    }

    /// The file's content.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("plain data with text keys");
        bytes.resize(FILE_LEN - 1, b' ');
        bytes.push(b'\n');
        bytes
    }

    /// What a file tells; none where it was not written whole.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|_| bytes.len() == FILE_LEN)
    }
}

/// Where the queue that a server fills lies, below the share's root.
pub fn queue_directory(server: &Name) -> String {
    format!("{DIRECTORY}/queues/{server}")
}

/// A right as the keeper of a share tells it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRight {
    /// Who has it.
    pub held: Held,
    /// The address that may mount a queue's directory over NFS: the holder's, unless it is fenced.
    pub address: Option<Ipv4Addr>,
}

/// What a node may do by its configuration, and where it has to look whether it still may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RightsConfig {
    /// The right to the queue that this node fills.
    pub own_queue: Right,
    /// Whether that queue is this node's and lies on its own disk, where no other node can have it.
    pub own_queue_is_local: bool,
    /// By right. One that is not here is either not this node's, or of its own disk alone.
    pub rights: BTreeMap<Right, Expected>,
}

impl RightsConfig {
    /// What this node may do, and where the share says so. A queue on the node's own disk is nobody else's.
    pub fn of(spec: &NodeSpec, mail: &MailSpec) -> Self {
        let expected = |right: Right, file: String, number| {
            let (cluster, holder) = (mail.cluster.clone(), spec.server.clone());
            let held = Held { cluster, right: right.clone(), holder, number, is_void: false };
            (right, Expected { file, held })
        };
        let mut rights = BTreeMap::new();
        let holds = mail.mailboxes.holder.as_ref().is_some_and(|holder| holder.server == spec.server);
        if let Some(share) = mail.share.as_ref().filter(|_| holds) {
            let (right, mut expected) = expected(Right::Mailboxes, String::new(), mail.mailboxes.number);
            expected.file = format!("{}/{}", share.mount_point(), expected.held.file());
            rights.insert(right, expected);
        }
        for (of, queue) in mail.queues.iter().filter(|(_, queue)| queue.mount.is_some()) {
            let file = format!("{}/{}", queue.directory(), HOLDER_FILE);
            rights.extend([expected(Right::Queue(of.clone()), file, queue.number)]);
        }
        let own_queue_is_local = mail.queues.get(&spec.server).is_some_and(|queue| queue.mount.is_none());
        Self { own_queue: Right::Queue(spec.server.clone()), own_queue_is_local, rights }
    }
}

/// What the share must say before a right is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The file, by its whole path.
    pub file: String,
    /// What it must tell.
    pub held: Held,
}

/// Why a right must not be used now, where `seen` is what the share tells; none where it may.
pub fn verdict(expected: &Expected, seen: Option<&Held>) -> Option<String> {
    let Held { cluster, right, holder, number, is_void: _ } = &expected.held;
    match seen {
        Some(seen) if *seen == expected.held => None,
        Some(seen) if seen.is_void && seen.number == *number => Some(format!(
            "{right} of cluster {cluster} may not be used by {holder} any more: it is being fenced, or was"
        )),
        Some(seen) if seen.number > *number => Some(format!(
            "{right} of cluster {cluster} belongs to {} by now, under number {}; {holder} had it under number {number}",
            seen.holder, seen.number
        )),
        Some(seen) => Some(format!(
            "the share does not say yet that {right} of cluster {cluster} belongs to {holder} under number {number}; it says {} under number \
             {}. Who keeps the share writes it",
            seen.holder, seen.number
        )),
        None => {
            Some(format!("{} can't be understood, or is not there yet; who keeps the share writes it", expected.file))
        }
    }
}

/// How what a share tells compares with what it shall tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// It tells that.
    Same,
    /// It tells nothing, or what was before.
    Older,
    /// It tells what came later, or something else under the same number: why nothing is written.
    Other(String),
}

/// Compares; numbers on a share only grow.
pub fn compare(kept: &Held, seen: Option<&Held>) -> Comparison {
    match seen {
        Some(seen) if seen == kept => Comparison::Same,
        Some(seen) if (seen.number, seen.is_void) >= (kept.number, kept.is_void) => Comparison::Other(format!(
            "the share says that {} of cluster {} belongs to {} under number {}, the panel that it belongs to {} under number {}; was the panel \
             restored from a backup? See to it that {} does not use it, then remove {} on the share",
            kept.right,
            kept.cluster,
            seen.holder,
            seen.number,
            kept.holder,
            kept.number,
            seen.holder,
            kept.file()
        )),
        _ => Comparison::Older,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(holder: &str, number: u64) -> Held {
        let name = |text: &str| text.parse().expect("a name");
        let right = Right::Queue(name("mail2"));
        Held { cluster: name("mail"), right, holder: name(holder), number, is_void: false }
    }

    #[test]
    fn what_is_written_is_read_and_half_of_it_is_not() {
        let held = held("mail1", u64::MAX);
        let bytes = held.to_bytes();
        assert_eq!(bytes.len(), FILE_LEN);
        assert_eq!(Held::from_bytes(&bytes), Some(held));
        assert_eq!(Held::from_bytes(&bytes[..FILE_LEN - 1]), None);
        assert_eq!(Held::from_bytes(&[0; FILE_LEN]), None);
    }

    #[test]
    fn the_longest_names_fit() {
        let long = |letter: char| std::iter::repeat_n(letter, 32).collect::<String>().parse::<Name>().expect("a name");
        let (cluster, right, holder) = (long('a'), Right::Queue(long('b')), long('c'));
        let held = Held { cluster, right, holder, number: u64::MAX, is_void: false };
        assert_eq!(Held::from_bytes(&held.to_bytes()), Some(held));
    }

    #[test]
    fn a_right_is_used_when_the_share_says_so() {
        let expected = Expected { file: "/srv/phalanx/x".into(), held: held("mail1", 2) };
        assert_eq!(verdict(&expected, Some(&held("mail1", 2))), None);
        let why = |seen: Option<&Held>| verdict(&expected, seen).expect("it must not");
        assert!(why(Some(&held("mail2", 3))).contains("belongs to mail2 by now"));
        assert!(why(Some(&held("mail2", 1))).contains("does not say yet"));
        assert!(why(Some(&held("mail2", 2))).contains("does not say yet"));
        assert!(why(Some(&Held { is_void: true, ..held("mail1", 2) })).contains("fenced"));
        assert!(why(None).contains("/srv/phalanx/x"));
    }

    proptest! {
        /// Whatever order specs arrive in at who keeps the share, what is written there never goes back.
        #[test]
        fn numbers_on_a_share_only_grow(specs in prop::collection::vec((0..3_u8, 0..6_u64, any::<bool>()), 1..40)) {
            let mut share: Option<Held> = None;
            for (holder, number, is_void) in specs {
                let kept = Held { is_void, ..held(&format!("mail{holder}"), number) };
                let before = share.clone();
                if compare(&kept, share.as_ref()) == Comparison::Older {
                    share = Some(kept);
                }
                let tells = |told: &Option<Held>| told.as_ref().map(|told| (told.number, told.is_void));
                let (was, is) = (tells(&before), tells(&share));
                prop_assert!(is >= was && (is != was || share == before));
            }
        }
    }
}
