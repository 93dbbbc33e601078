//! Our nftables tables, through nft(8): the accounts', and the balancer's as far as it is removed here.

use crate::command::{self, CommandError, LIMIT};
use phalanx_model::Uid;
use phalanx_plan::balance::table::TABLE as BALANCER;
use std::path::Path;

/// The accounts' table: its family and name.
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

/// Whether there is a balancer's table.
///
/// # Errors
/// nft can't be run.
pub async fn has_balancer_table() -> Result<bool, CommandError> {
    let tables = command::succeed("nft", &["list", "tables", "ip"], LIMIT).await?;
    Ok(tables.lines().any(|line| line == format!("table ip {BALANCER}")))
}

/// Removes the balancer's table: connections from outside are translated no more.
///
/// # Errors
/// nft's words.
pub async fn remove_balancer_table() -> Result<(), CommandError> {
    command::succeed("nft", &["delete", "table", "ip", BALANCER], LIMIT).await.map(drop)
}

/// Removes the accounts' table.
///
/// # Errors
/// nft's words.
pub async fn remove() -> Result<(), CommandError> {
    let [family, name] = TABLE;
    command::succeed("nft", &["delete", "table", family, name], LIMIT).await.map(drop)
}
