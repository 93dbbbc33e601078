//! Small values kept on disk as JSON, for root alone.

use anyhow::Context;
use phalanx_host::atomic::{self, Access};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads a value; none where there is no file.
pub fn load<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let Some(bytes) = atomic::read(path)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not what this version wrote; remove it to begin anew", path.display()))?;
    Ok(Some(value))
}

/// Writes a value so that it lasts.
pub fn store<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("a value that can't be written as JSON")?;
    text.push(b'\n');
    Ok(atomic::write(path, &text, Access::SECRET)?)
}
