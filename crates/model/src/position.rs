//! Where a follower stands in the stream of states: (incarnation, term, revision).

use serde::{Deserialize, Serialize};

/// A point in the history of a cluster's desired state. Ordered by incarnation, then term, then revision.
///
/// An older position is refused; so is the same position with other content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// Which life of the panel's store this is; it grows when a panel is restored from a backup.
    pub incarnation: u64,
    /// The number of the mastership grant.
    pub term: u64,
    /// The number of the change within the incarnation.
    pub revision: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.incarnation, self.term, self.revision)
    }
}
