//! The kernel's NFS exports, through exportfs(8).

use crate::command::{self, CommandError, LIMIT};

/// Makes the kernel's exports what `/etc/exports` and `/etc/exports.d` say, withdrawing what they no longer name.
///
/// # Errors
/// exportfs's words.
pub async fn apply() -> Result<(), CommandError> {
    command::succeed("exportfs", &["-ra"], LIMIT).await.map(drop)
}
