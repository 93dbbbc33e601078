//! `launcher.json`: bounds of `phalanx launcher`. The agent's renderer writes it, the launcher reads it.

use serde::{Deserialize, Serialize};

/// The launcher's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LauncherConfig {
    /// An account without a request for so long is put to sleep, in seconds.
    pub idle_s: u64,
    /// Accounts that may be starting at the same time. More wait.
    pub starting_max: usize,
    /// Wakes that may wait for their turn; beyond it they are refused and may be tried again.
    pub waiting_max: usize,
    /// Accounts that may be awake at the same time: beyond it, those used least recently are put to sleep.
    pub awake_max: usize,
    /// When less than this part of the memory is available, in percent, accounts used least recently are put to sleep.
    pub memory_available_percent_min: u64,
    /// How long an account's httpd may take from start to its first connection, in milliseconds.
    pub start_timeout_ms: u64,
}

impl Default for LauncherConfig {
    fn default() -> Self {
        Self {
            idle_s: 300,
            starting_max: 16,
            waiting_max: 1_024,
            awake_max: 4_000,
            memory_available_percent_min: 10,
            start_timeout_ms: 8_000,
        }
    }
}
