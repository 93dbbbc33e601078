//! Reading and checking configuration files. A file is read whole and checked whole before anything is bound or changed.

use phalanx_plan::mail::probe;
use phalanx_plan::mail::router::MailConfig;
use phalanx_plan::proxy_config::{BalancerConfig, ProxyConfig};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a configuration file can't be used. Each names the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: it can't be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is not JSON, or not of the right shape.
    #[error("{path}:{line}:{column}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1; 0 where it is not known.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// It says something that can't be.
    #[error("{path}: {}", .problems.join("; "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong.
        problems: Vec<String>,
    },
}

/// Reads `proxy.json`.
///
/// # Errors
/// See [`ConfigError`].
pub fn load_node(path: &Path) -> Result<ProxyConfig, ConfigError> {
    load(path, ProxyConfig::problems)
}

/// Reads `balancer.json`.
///
/// # Errors
/// See [`ConfigError`].
pub fn load_balancer(path: &Path) -> Result<BalancerConfig, ConfigError> {
    let mut config = load(path, BalancerConfig::problems)?;
    // Beside it lies what fewer may read; who has none logs in nowhere.
    let probes = path.with_file_name(probe::FILE);
    config.probes = match load(&probes, |_| Vec::new()) {
        Err(ConfigError::Unreadable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        probes => probes?,
    };
    Ok(config)
}

/// Reads `mail.json`.
///
/// # Errors
/// See [`ConfigError`].
pub fn load_mail(path: &Path) -> Result<MailConfig, ConfigError> {
    load(path, MailConfig::problems)
}

/// Checks a file of any kind and says which it is. A balancer's has `services` at its top, a mail node's has `ways`.
///
/// # Errors
/// See [`ConfigError`].
pub fn check(path: &Path) -> Result<&'static str, ConfigError> {
    let any: serde_json::Value = load(path, |_| Vec::new())?;
    if any.get("services").is_some() {
        load_balancer(path)?;
        Ok("a balancer")
    } else if any.get("ways").is_some() {
        load_mail(path)?;
        Ok("a mail node")
    } else {
        load_node(path)?;
        Ok("a web node")
    }
}

fn load<T: DeserializeOwned>(path: &Path, problems: impl Fn(&T) -> Vec<String>) -> Result<T, ConfigError> {
    let path = path.to_owned();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(ConfigError::Unreadable { path, source }),
    };
    let config = match serde_json::from_slice(&text) {
        Ok(config) => config,
        Err(error) => {
            let what = error.to_string();
            // serde_json puts the place behind its words; here it is in front.
            let what = what.split(" at line ").next().unwrap_or(&what).to_owned();
            return Err(ConfigError::Malformed { path, line: error.line(), column: error.column(), what });
        }
    };
    match problems(&config) {
        problems if problems.is_empty() => Ok(config),
        problems => Err(ConfigError::Invalid { path, problems }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("x.json");
        std::fs::write(&path, text).expect("written");
        let error = check(&path).expect_err(text).to_string();
        error.replace(&path.display().to_string(), "x.json")
    }

    #[test]
    fn a_refusal_names_file_line_and_reason() {
        assert_eq!(
            refusal("{\"server\": \"web1\",\n \"listen\": [\"10.9.0.11\"]}"),
            "x.json:2:23: invalid IPv4 socket address syntax"
        );
        assert!(refusal("{\n\n").starts_with("x.json:3:0: EOF while parsing"));
        assert!(refusal("{\"server\": \"web1\",\n \"lisden\": []}").starts_with("x.json:2:9: unknown field `lisden`"));
        assert_eq!(
            refusal(r#"{"server": "web1", "listen": []}"#),
            "x.json: \"listen\" is empty: name at least one address and port"
        );
        let weight = r#"{"services":[{"external":"192.0.2.1:80","cluster":"web","backends":[
            {"server":"web1","target":"10.9.0.11:80","score":"10.9.0.11:342","weight":0,"drained":false}]}]}"#;
        assert_eq!(refusal(weight), "x.json: 192.0.2.1:80: the weight of web1 is 0; it must be 1 to 100");
        assert_eq!(refusal(r#"{"server": "mail1", "ways": []}"#), "x.json: \"ways\" is empty: name at least one");
    }
}
