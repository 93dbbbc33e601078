//! The accounts' nftables table, through nft(8).

use crate::command::{self, CommandError, LIMIT};
use phalanx_model::Uid;
use std::path::Path;

/// The table's family and name.
pub const TABLE: [&str; 2] = ["inet", "phalanx_accounts"];

/// The most elements that one command line adds.
const ELEMENTS_MAX: usize = 1_000;

/// The table as nft lists it, without counters and without what its sets hold; none where there is no table.
///
/// # Errors
/// nft can't be run.
pub async fn observe() -> Result<Option<String>, CommandError> {
    let [family, name] = TABLE;
    let ended = command::run("nft", &["--stateless", "--terse", "list", "table", family, name], LIMIT).await?;
    Ok(ended.status.success().then_some(ended.stdout))
}

/// Loads a file in one transaction.
///
/// # Errors
/// nft's words, with file and line.
pub async fn load(file: &Path) -> Result<(), CommandError> {
    command::succeed("nft", &["--file", &file.to_string_lossy()], LIMIT).await.map(drop)
}

/// Adds accounts to the set of owners, which a table that was made anew has lost.
///
/// # Errors
/// nft's words.
pub async fn add_owners(accounts: &[Uid]) -> Result<(), CommandError> {
    let [family, name] = TABLE;
    for some in accounts.chunks(ELEMENTS_MAX) {
        let elements: Vec<String> = some.iter().map(|uid| format!("{} . {uid}", uid.loopback())).collect();
        let set = format!("{{ {} }}", elements.join(", "));
        command::succeed("nft", &["add", "element", family, name, "owners", &set], LIMIT).await?;
    }
    Ok(())
}

/// Has nft check a file without loading it.
///
/// # Errors
/// nft's words, with file and line.
pub async fn check(file: &Path) -> Result<(), CommandError> {
    command::succeed("nft", &["--check", "--file", &file.to_string_lossy()], LIMIT).await.map(drop)
}

/// Removes the table.
///
/// # Errors
/// nft's words.
pub async fn remove() -> Result<(), CommandError> {
    let [family, name] = TABLE;
    command::succeed("nft", &["delete", "table", family, name], LIMIT).await.map(drop)
}
