//! The kernel's table: one atomic transaction per change, none without a change, and a look now and then at what is there.

use super::command;
use phalanx_model::server::InternalNet;
use phalanx_plan::balance::Decision;
use phalanx_plan::balance::table::{TABLE, render};
use phalanx_plan::steps::diff;
use std::collections::BTreeSet;

/// What is known of the kernel's table.
#[derive(Debug, Default)]
pub struct Kernel {
    /// The text that was applied last; none before the first time and after a drift was seen.
    applied: Option<String>,
    /// The table as `nft` listed it right after that.
    listed: String,
}

/// What [`Kernel::apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The table is already as wanted.
    Unchanged,
    /// The table was replaced.
    Changed,
}

impl Kernel {
    /// Whether [`Kernel::apply`] would replace a table of ours.
    pub fn would_replace(&self, decision: &Decision, internal_networks: &BTreeSet<InternalNet>) -> bool {
        self.applied.as_ref().is_some_and(|applied| *applied != render(decision, internal_networks))
    }

    /// Makes the kernel's table match `decision`.
    ///
    /// # Errors
    /// `nft` is missing, hangs or refuses; the table is then as it was.
    pub async fn apply(
        &mut self,
        decision: &Decision,
        internal_networks: &BTreeSet<InternalNet>,
    ) -> anyhow::Result<Applied> {
        let wanted = render(decision, internal_networks);
        if self.applied.as_ref() == Some(&wanted) {
            return Ok(Applied::Unchanged);
        }
        self.applied = None;
        command::succeed("nft", &["-f", "-"], &wanted).await?;
        self.listed = list().await?.unwrap_or_default();
        self.applied = Some(wanted);
        Ok(Applied::Changed)
    }

    /// Compares the table with what was put there. A difference is returned in words, and the next [`Kernel::apply`] mends it.
    ///
    /// # Errors
    /// `nft` is missing or hangs.
    pub async fn observe(&mut self) -> anyhow::Result<Option<String>> {
        if self.applied.is_none() {
            return Ok(None);
        }
        let found = list().await?;
        if found.as_ref() == Some(&self.listed) {
            return Ok(None);
        }
        let applied = self.applied.take().unwrap_or_default();
        // Who was quick has removed it before it could be listed.
        let was = if self.listed.is_empty() { &applied } else { &self.listed };
        Ok(Some(diff::lines(was, &found.unwrap_or_default())))
    }
}

/// The table as text; none when there is no such table.
async fn list() -> anyhow::Result<Option<String>> {
    let output = command::run("nft", &["-s", "list", "table", "ip", TABLE], "").await?;
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
    } else if words.contains("No such file or directory") {
        Ok(None)
    } else {
        anyhow::bail!("nft failed ({}): {}", output.status, words.trim())
    }
}
