//! Spec → the files of a generation.
//!
//! Values reach a file through serde or through the typed writers of [`crate::account`]; nothing foreign is pasted into a text. What
//! a file is for and who reads it is written in [`crate::steps`].

pub mod exports;
#[cfg(test)]
mod tests;

use crate::account;
use crate::guard_config::GuardConfig;
use crate::launcher_config::LauncherConfig;
use crate::logs::LogsConfig;
use crate::mail;
use crate::proxy_config::{BalancerConfig, ProxyConfig};
use crate::rights::{self, RightsConfig};
use crate::spec::mail::MailSpec;
use crate::spec::{NodeSpec, WebSpec, Work};
use crate::steps::desired::{EXPORTS_FILE, HTTPD_COMMON_FILE, NFS_FILE, SYSCTL_FILE, TABLE_FILE};
use serde::Serialize;
use std::collections::BTreeMap;

/// The files of a generation: name → content.
pub type Files = BTreeMap<String, String>;

/// Who may read a file of a generation, which its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Everybody on the machine.
    All,
    /// Root, and phalanx-proxy's group.
    Proxy,
    /// Root.
    Root,
}

impl Readers {
    /// Of the file of this name, which may lie in a directory.
    pub fn of(name: &str) -> Self {
        match name.rsplit('/').next().unwrap_or(name) {
            last if last.starts_with("secret-") => Self::Root,
            last if last.starts_with("proxy-secret-") => Self::Proxy,
            _ => Self::All,
        }
    }
}

/// The files that `spec` asks for.
pub fn files(spec: &NodeSpec) -> Files {
    match &spec.work {
        Work::Web(web) => web_files(spec, web),
        Work::Nas(nas) => Files::from([
            (EXPORTS_FILE.to_owned(), exports::render(&nas.shares)),
            (NFS_FILE.to_owned(), exports::SERVER_SETTINGS.to_owned()),
        ]),
        Work::Balancer(balancer) => Files::from([
            ("balancer.json".to_owned(), json(&BalancerConfig::new(balancer))),
            (mail::probe::FILE.to_owned(), json(&balancer.probes)),
            (SYSCTL_FILE.to_owned(), sysctl_file(&balancer_sysctls())),
        ]),
        Work::Mail(mail) => mail.as_ref().map(|mail| mail_files(spec, mail)).unwrap_or_default(),
    }
}

/// The kernel settings of a balancer: it forwards.
pub fn balancer_sysctls() -> BTreeMap<String, String> {
    BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())])
}

/// The kernel settings of a web node: what customers run can't bind ports below 1,024. That is the kernel's own default; where it is
/// another, an account could take the port of an agent or of a sleeping neighbour.
pub fn web_sysctls() -> BTreeMap<String, String> {
    BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".to_owned(), "1024".to_owned())])
}

fn sysctl_file(settings: &BTreeMap<String, String>) -> String {
    settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
}

fn mail_files(spec: &NodeSpec, mail: &MailSpec) -> Files {
    let mut files = mail::files(spec, mail);
    let guard = GuardConfig { keeps_mail_lookups: true, ..GuardConfig::new(mail.share.as_ref()) };
    files.insert("guard.json".to_owned(), json(&guard));
    files.insert(rights::FILE.to_owned(), json(&RightsConfig::of(spec, mail)));
    files.insert("logs.json".to_owned(), json(&LogsConfig::of_mail(spec.server.clone(), mail)));
    files
}

fn web_files(spec: &NodeSpec, web: &WebSpec) -> Files {
    Files::from([
        ("proxy.json".to_owned(), json(&ProxyConfig::new(spec.server.clone(), web))),
        ("guard.json".to_owned(), json(&GuardConfig::new(web.share.as_ref()))),
        ("launcher.json".to_owned(), json(&LauncherConfig::default())),
        ("logs.json".to_owned(), json(&LogsConfig::of_web(spec.server.clone(), web))),
        (TABLE_FILE.to_owned(), account::accounts_nft()),
        (HTTPD_COMMON_FILE.to_owned(), account::httpd_common(web)),
        (SYSCTL_FILE.to_owned(), sysctl_file(&web_sysctls())),
    ])
}

pub(crate) fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a configuration is plain data with text keys");
    text.push('\n');
    text
}
