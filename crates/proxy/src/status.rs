//! `status.json`: what the daemon tells the agent, rewritten each second.

use serde::Serialize;
use std::io;
use std::path::Path;

/// Replaces the file at `path` with `value` as JSON: a reader sees the old whole or the new whole.
///
/// # Errors
/// The directory can't be written.
pub fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    let temporary = path.with_extension("json.new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// Writes by [`write`], and says it once in the log when that begins to fail or works again.
#[derive(Debug, Default)]
pub struct Writer {
    failing: bool,
}

impl Writer {
    /// Writes `value`; a failure is logged, since statistics are no reason to stop serving.
    pub fn write(&mut self, path: &Path, value: &impl Serialize) {
        let written = write(path, value);
        match &written {
            Ok(()) if self.failing => tracing::info!("{} is written again", path.display()),
            Err(error) if !self.failing => tracing::warn!("{} can't be written: {error}", path.display()),
            Ok(()) | Err(_) => {}
        }
        self.failing = written.is_err();
    }
}
