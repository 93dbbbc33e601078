//! What an account's httpd says went wrong at a site.
//!
//! httpd writes to the machine's journal, each message with the name of the site before it ([`FORMAT`]). What customers run can't: their
//! programs make no unix sockets, and httpd has a capability more than they, so that they can't look into it. What PHP says comes by httpd.

use super::collect::{Memory, Reader, Take};
use serde::Deserialize;
use serde_json::Value;

/// How entries are marked in the journal.
pub const IDENTIFIER: &str = "phalanx-site";

/// httpd's `ErrorLogFormat`: the site first.
pub const FORMAT: &str = "%v [%-m:%l] [pid %P] %E: [client\\ %a] %M";

/// An entry of the journal, as journalctl(1) prints it with `--output=json`.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    at_us: String,
    /// Text; a list of bytes where it is none.
    #[serde(rename = "MESSAGE", default)]
    message: Value,
    #[serde(rename = "_SYSTEMD_UNIT", default)]
    unit: String,
}

/// Reads entries of accounts' httpds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SiteErrors;

impl Reader for SiteErrors {
    fn take(&self, _: &str, line: &str, _: u64, _: &mut Memory) -> Option<Take> {
        let Entry { at_us, message, unit } = serde_json::from_str(line).ok()?;
        // `phalanx-httpd@UID.service`, and its successors `phalanx-httpd-b@…`.
        let uid =
            unit.strip_prefix("phalanx-httpd").and_then(|rest| rest.split_once('@')?.1.strip_suffix(".service"))?;
        let message = match message {
            Value::String(text) => text,
            Value::Array(bytes) => {
                let bytes: Vec<u8> =
                    bytes.iter().filter_map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => String::new(),
        };
        let (site, text) = match message.split_once(' ') {
            // Names of one label are the account's httpd itself.
            Some((site, text)) if is_site(site) => (format!("!{site}"), text.to_owned()),
            _ => (String::new(), format!("uid {uid}: {message}")),
        };
        Some(Take { at_us: at_us.parse().ok(), subject: site, text, ..Take::default() })
    }
}

fn is_site(name: &str) -> bool {
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    is_plain && name.contains('.') && name.len() <= 253
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(message: &str, unit: &str) -> Option<Take> {
        let entry = format!(
            "{{\"__CURSOR\":\"c\",\"__REALTIME_TIMESTAMP\":\"1795881653000042\",\"MESSAGE\":{message},\"_SYSTEMD_UNIT\":\"{unit}\"}}"
        );
        SiteErrors.take("journal", &entry, 0, &mut Memory::default())
    }

    #[test]
    fn an_entry_is_its_sites() {
        let found =
            take("\"www.example.org [core:error] [pid 7] AH1: no\"", "phalanx-httpd-b@2000001.service").unwrap();
        assert_eq!(found.at_us, Some(1_795_881_653_000_042));
        assert_eq!((found.subject.as_str(), found.text.as_str()), ("!www.example.org", "[core:error] [pid 7] AH1: no"));
        let found = take("[119, 119, 46, 97, 32, 255]", "phalanx-httpd@2000001.service").unwrap();
        assert_eq!((found.subject.as_str(), found.text.as_str()), ("!ww.a", "\u{fffd}"));
        let found = take("\"account [mpm:notice] resuming\"", "phalanx-httpd@2000001.service").unwrap();
        assert_eq!((found.subject.as_str(), found.text.as_str()), ("", "uid 2000001: account [mpm:notice] resuming"));
        assert!(take("null", "phalanx-httpd@2000001.service").is_some());
    }

    #[test]
    fn nobody_else_speaks_for_a_site() {
        for unit in
            ["phalanx-php@2000001.service", "phalanx-httpd@2000001.socket", "phalanx-httpd.service", "", "x.service"]
        {
            assert_eq!(take("\"www.example.org it is broken\"", unit), None, "{unit}");
        }
        assert_eq!(SiteErrors.take("journal", "{}", 0, &mut Memory::default()), None);
    }
}
