//! The look-up files of mail, kept open.

use phalanx_host::mail_lookup::{self, KeptOpen};
use std::path::Path;

/// Files that are open for as long as their names lead to them.
#[derive(Default)]
pub(super) struct KeptLookups {
    open: Vec<KeptOpen>,
    /// What was wrong the last time, so that it is told once.
    problem: Option<String>,
}

impl KeptLookups {
    /// Opens what is new, and lets go of what was replaced.
    pub(super) fn round(&mut self) {
        let kept = mail_lookup::keep_open(Path::new("/"), std::mem::take(&mut self.open));
        let problem = match kept {
            Ok(open) => {
                self.open = open;
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = problem.as_ref().filter(|why| self.problem.as_ref() != Some(why)) {
            tracing::error!(%why, "a look-up file can't be kept open; its readers may fail");
        }
        self.problem = problem;
    }
}
