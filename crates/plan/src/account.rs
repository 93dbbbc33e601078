//! What one account runs on a node: its httpd, its PHP, and the rules that keep accounts apart on the loopback interface.
//!
//! An account's processes live in a file system of their own (`packaging/libexec/account-root`), so that the paths here are those
//! that they see: the home at `/home/NAME`, the configuration at [`CONFIG`], PHP's socket at [`PHP_SOCKET`]. Two accounts' files
//! differ in names and numbers alone, and a change to one account changes its own two files and nothing else.
//!
//! Deliberately absent: writing the files, starting the daemons, and the checks of what customers write themselves (`.htaccess`
//! reaches their own account only).

mod httpd;
mod network;
mod php;

pub use httpd::{httpd_common, httpd_conf};
pub use network::accounts_nft;
pub use php::php_fpm_conf;

use phalanx_model::{Limits, Name};

/// Where an account's processes see their configuration: `/var/lib/phalanx/accounts/UID` on the node.
pub const CONFIG: &str = "/run/phalanx/config";
/// Where an account's processes see the socket of their PHP: `/run/phalanx/account/UID/php.sock` on the node.
pub const PHP_SOCKET: &str = "/run/phalanx/account/php.sock";
/// The file in an account's directory that its httpd reads.
pub const HTTPD_CONF: &str = "httpd.conf";
/// The file in an account's directory that its PHP-FPM reads.
pub const PHP_FPM_CONF: &str = "php-fpm.conf";
/// What all accounts' httpds include, in the live generation. Accounts see it at this path too.
pub const HTTPD_COMMON: &str = "/var/lib/phalanx/live/httpd-common.conf";

/// The home as the account's processes see it.
pub fn home(account: &Name) -> String {
    format!("/home/{account}")
}

/// Threads of each of an httpd's children, where the limit allows it.
const HTTPD_THREADS_MOST: u32 = 16;
/// A child's other threads, and the parent's.
const HTTPD_THREADS_BESIDE: u32 = 4;

/// How many children httpd and PHP may have, so that together they fit an account's limit of processes and leave it some. A change
/// starts a second httpd beside the first: one child of it has room, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Workers {
    httpd_children: u32,
    httpd_threads: u32,
    php_children: u32,
}

impl Workers {
    fn within(limits: &Limits) -> Self {
        // Two httpds of one child each, and PHP with its parent.
        let httpd_threads = ((limits.processes - 8) / 2 - HTTPD_THREADS_BESIDE - 1).clamp(4, HTTPD_THREADS_MOST);
        let per_child = httpd_threads + HTTPD_THREADS_BESIDE;
        let httpd_children = (limits.processes / 2 / per_child).clamp(1, 8);
        let left = limits.processes.saturating_sub(httpd_children * per_child + 4);
        let beside_two_httpds = limits.processes - 2 * (1 + per_child) - 1;
        Self { httpd_children, httpd_threads, php_children: (left / 3).min(beside_two_httpds).clamp(2, 32) }
    }
}

#[cfg(test)]
mod tests;
