//! The configuration of phalanx-proxy, as plain values: what the renderer writes into `proxy.json` and `balancer.json`, and what
//! phalanx-proxy reads.
//!
//! Both are complete when they are read: every field that a person need not think about has a default here, so that one place
//! says what it is. `problems()` lists everything that is wrong at once, in words for a person.
//!
//! Deliberately absent: reading files and binding sockets, which phalanx-proxy does.

use crate::mail::probe::Probe;
use crate::spec::{BalancerSpec, MountSpec, ServiceSpec, WebSpec};
use phalanx_model::Name;
use phalanx_model::server::InternalNet;
use phalanx_model::share::{MARKER_FILE, Marker, mount_point};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

/// The path of the health page on the node's own addresses.
pub const HEALTH_PATH: &str = "/.well-known/phalanx/health";

/// `proxy.json`: phalanx-proxy on a web node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// The node's name, for the access log.
    pub server: Name,
    /// Where it listens, for HTTP.
    pub listen: BTreeSet<SocketAddrV4>,
    /// The balancers' addresses: who may ask for health.
    #[serde(default)]
    pub balancers: BTreeSet<Ipv4Addr>,
    /// Proxies in front, whose X-Forwarded fields are believed. A balancer that translates addresses is none: what comes from its address may
    /// be anybody's of the internal networks, and it writes no such fields.
    #[serde(default)]
    pub forwarders: BTreeSet<Ipv4Addr>,
    /// The share whose presence is the node's health. Without one, the node is never healthy.
    #[serde(default)]
    pub share: Option<ShareCheck>,
    /// Bounds.
    #[serde(default)]
    pub limits: ProxyLimits,
    /// Files and sockets.
    #[serde(default)]
    pub paths: ProxyPaths,
}

/// What the health page looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareCheck {
    /// The share's name.
    pub share: Name,
    /// What its marker file must hold.
    pub marker: Marker,
    /// The marker file, at the root of the mounted share.
    pub marker_file: PathBuf,
    /// The guard's verdict.
    pub verdict_file: PathBuf,
}

impl ShareCheck {
    /// The check for a share in the places that every node has.
    pub fn new(share: Name, marker: Marker) -> Self {
        let marker_file = PathBuf::from(mount_point(&share)).join(MARKER_FILE);
        let verdict_file = PathBuf::from(format!("/run/phalanx/guard/{share}.json"));
        Self { share, marker, marker_file, verdict_file }
    }
}

/// Bounds of phalanx-proxy on a web node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyLimits {
    /// Client connections at a time. The process's limit of open files lowers it where it is too small.
    pub connections_max: usize,
    /// Requests under way at a time for one account; beyond it, 503.
    pub requests_per_account_max: usize,
    /// Bytes of a request's or response's head.
    pub head_bytes_max: usize,
    /// Header fields of a head.
    pub headers_max: usize,
    /// From a head's first byte to its last, and from the connection's start to the first head.
    pub head_timeout_ms: u64,
    /// Without a byte from the client, between requests and within one.
    pub idle_timeout_ms: u64,
    /// From the request's last byte to the response's head, and without a byte within the response.
    pub response_timeout_ms: u64,
    /// Without a byte either way in an upgraded (WebSocket) connection.
    pub tunnel_idle_timeout_ms: u64,
    /// For waking an account and connecting to it.
    pub wake_timeout_ms: u64,
    /// Kept idle connections to one account's httpd.
    pub idle_upstreams_per_account_max: usize,
    /// How long one is kept; below httpd's own KeepAliveTimeout.
    pub idle_upstream_ms: u64,
    /// How long requests under way may go on when the service is stopped.
    pub shutdown_timeout_ms: u64,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            requests_per_account_max: 256,
            head_bytes_max: 32 * 1024,
            headers_max: 100,
            head_timeout_ms: 15_000,
            idle_timeout_ms: 60_000,
            response_timeout_ms: 300_000,
            tunnel_idle_timeout_ms: 3_600_000,
            wake_timeout_ms: 10_000,
            idle_upstreams_per_account_max: 8,
            idle_upstream_ms: 3_000,
            shutdown_timeout_ms: 10_000,
        }
    }
}

/// Files and sockets of phalanx-proxy on a web node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyPaths {
    /// The directory: host → account.
    pub directory: PathBuf,
    /// The launcher's socket.
    pub launcher: PathBuf,
    /// The directory of the access log's segments.
    pub access_logs: PathBuf,
    /// Statistics, rewritten each second.
    pub status: PathBuf,
}

impl Default for ProxyPaths {
    fn default() -> Self {
        Self {
            directory: "/var/lib/phalanx/directory/directory.sqlite".into(),
            launcher: "/run/phalanx/launcher/launcher.sock".into(),
            access_logs: crate::logs::LOCAL.into(),
            status: "/run/phalanx/proxy/status.json".into(),
        }
    }
}

impl ProxyConfig {
    /// The configuration of a web node.
    pub fn new(server: Name, web: &WebSpec) -> Self {
        let WebSpec { share, listen, extra_addresses: _, reply_routes: _, balancers, httpd_directives: _, logs: _ } =
            web;
        let share = share.as_ref().map(|MountSpec { share, queue_of: _, marker, source: _, keeps_homes: _ }| {
            ShareCheck::new(share.clone(), marker.clone())
        });
        Self {
            server,
            listen: listen.clone(),
            balancers: balancers.clone(),
            forwarders: BTreeSet::new(),
            share,
            limits: ProxyLimits::default(),
            paths: ProxyPaths::default(),
        }
    }

    /// All that is wrong with it; empty when it can be used.
    pub fn problems(&self) -> Vec<String> {
        let ProxyLimits {
            connections_max,
            requests_per_account_max,
            head_bytes_max,
            headers_max,
            head_timeout_ms,
            idle_timeout_ms,
            response_timeout_ms,
            tunnel_idle_timeout_ms,
            wake_timeout_ms,
            idle_upstreams_per_account_max,
            idle_upstream_ms,
            shutdown_timeout_ms,
        } = self.limits;
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push("\"listen\" is empty: name at least one address and port".to_owned());
        }
        let day_ms = 86_400_000;
        for (what, value, range) in [
            ("connections_max", connections_max as u64, 1..=1_000_000),
            ("requests_per_account_max", requests_per_account_max as u64, 1..=100_000),
            ("head_bytes_max", head_bytes_max as u64, 1_024..=1_048_576),
            ("headers_max", headers_max as u64, 10..=1_000),
            ("head_timeout_ms", head_timeout_ms, 100..=day_ms),
            ("idle_timeout_ms", idle_timeout_ms, 100..=day_ms),
            ("response_timeout_ms", response_timeout_ms, 100..=day_ms),
            ("tunnel_idle_timeout_ms", tunnel_idle_timeout_ms, 100..=day_ms),
            ("wake_timeout_ms", wake_timeout_ms, 100..=300_000),
            ("idle_upstreams_per_account_max", idle_upstreams_per_account_max as u64, 0..=1_000),
            ("idle_upstream_ms", idle_upstream_ms, 1..=day_ms),
            ("shutdown_timeout_ms", shutdown_timeout_ms, 0..=day_ms),
        ] {
            in_range(&mut problems, "limits", what, value, range);
        }
        problems
    }
}

/// `balancer.json`: phalanx-proxy on a balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalancerConfig {
    /// What it balances, by external address.
    pub services: Vec<ServiceSpec>,
    /// The internal networks: from there to an external address, the source is masqueraded (hairpin).
    #[serde(default)]
    pub internal_networks: BTreeSet<InternalNet>,
    /// What it logs in with, by cluster; kept in a file of its own beside this one ([`crate::mail::probe::FILE`]).
    #[serde(skip)]
    pub probes: BTreeMap<Name, Probe>,
    /// How nodes are checked.
    #[serde(default)]
    pub check: CheckSettings,
    /// Statistics, rewritten each second.
    #[serde(default = "BalancerConfig::status_default")]
    pub status: PathBuf,
}

/// How a balancer checks its nodes.
///
/// Checks start `interval_ms` (± 10 %) apart whether or not the one before has an answer, so that a slow answer is waited for
/// without noticing a death later. A node that stops answering right after a check began is found after at most
/// 1.1 × `fall` × `interval_ms` + `timeout_ms`: 2.74 s by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckSettings {
    /// From one check's start to the next one's.
    pub interval_ms: u64,
    /// For connecting and the whole answer.
    pub timeout_ms: u64,
    /// Answers in a row that bring a node up again.
    pub rise: u32,
    /// Failures in a row that take a node down.
    pub fall: u32,
    /// For one read of a node's load score.
    pub score_timeout_ms: u64,
    /// How long a load score counts after it was read; then the node is taken as idle.
    pub score_lifetime_ms: u64,
    /// Flows to a node that has been unreachable for so long are ended, so that their clients try again.
    pub end_flows_after_ms: u64,
    /// From one login with the probe mailbox to the next one; each costs a mail node several processes.
    pub login_interval_ms: u64,
    /// The same while logins fail.
    pub login_again_ms: u64,
    /// For one login, from connecting to the mailbox' content. Dovecot lets a login that it refuses wait for two seconds.
    pub login_timeout_ms: u64,
}

impl Default for CheckSettings {
    fn default() -> Self {
        Self {
            interval_ms: 700,
            timeout_ms: 1_200,
            rise: 2,
            fall: 2,
            score_timeout_ms: 500,
            score_lifetime_ms: 5_000,
            end_flows_after_ms: 5_000,
            login_interval_ms: 20_000,
            login_again_ms: 3_000,
            login_timeout_ms: 5_000,
        }
    }
}

impl BalancerConfig {
    fn status_default() -> PathBuf {
        "/run/phalanx/proxy/status.json".into()
    }

    /// The configuration of a balancer.
    pub fn new(spec: &BalancerSpec) -> Self {
        let BalancerSpec { services, internal_networks, probes } = spec.clone();
        Self { services, internal_networks, probes, check: CheckSettings::default(), status: Self::status_default() }
    }

    /// All that is wrong with it; empty when it can be used.
    pub fn problems(&self) -> Vec<String> {
        let CheckSettings {
            interval_ms,
            timeout_ms,
            rise,
            fall,
            score_timeout_ms,
            score_lifetime_ms,
            end_flows_after_ms,
            login_interval_ms,
            login_again_ms,
            login_timeout_ms,
        } = self.check;
        let mut problems = Vec::new();
        for (what, value, range) in [
            ("interval_ms", interval_ms, 50..=60_000),
            ("timeout_ms", timeout_ms, 50..=60_000),
            ("rise", u64::from(rise), 1..=100),
            ("fall", u64::from(fall), 1..=100),
            ("score_timeout_ms", score_timeout_ms, 50..=60_000),
            ("score_lifetime_ms", score_lifetime_ms, 50..=600_000),
            ("end_flows_after_ms", end_flows_after_ms, 0..=86_400_000),
            ("login_interval_ms", login_interval_ms, 100..=3_600_000),
            ("login_again_ms", login_again_ms, 100..=3_600_000),
            ("login_timeout_ms", login_timeout_ms, 50..=60_000),
        ] {
            in_range(&mut problems, "check", what, value, range);
        }
        let mut externals = BTreeSet::new();
        let mut checks = BTreeMap::new();
        for service in &self.services {
            if !externals.insert(service.external) {
                problems.push(format!("{} is served twice: an external address:port has one user", service.external));
            }
            let mut servers = BTreeSet::new();
            for backend in &service.backends {
                if !servers.insert(&backend.server) {
                    problems.push(format!("{} names the node {} twice", service.external, backend.server));
                }
                if *checks.entry(backend.target).or_insert(service.check) != service.check {
                    problems.push(format!("{} is checked in two ways: it can serve but one protocol", backend.target));
                }
                if !(1..=100).contains(&backend.weight) {
                    let (server, weight) = (&backend.server, backend.weight);
                    problems
                        .push(format!("{}: the weight of {server} is {weight}; it must be 1 to 100", service.external));
                }
            }
        }
        problems
    }
}

/// Tells of a number that is out of its range.
pub(crate) fn in_range(
    problems: &mut Vec<String>,
    section: &str,
    what: &str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
) {
    if !range.contains(&value) {
        problems.push(format!("\"{section}.{what}\" is {value}; it must be {} to {}", range.start(), range.end()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CheckKind;
    use phalanx_model::cluster::ClusterKind;
    use phalanx_model::mail::MailProtocol;

    #[test]
    fn what_is_not_said_has_a_default_that_is_valid() {
        let config: ProxyConfig =
            serde_json::from_str(r#"{"server":"web1","listen":["10.9.0.11:80"]}"#).expect("a small config");
        assert_eq!(config.limits.head_bytes_max, 32 * 1024);
        assert_eq!(config.problems(), Vec::<String>::new());
        let balancer: BalancerConfig = serde_json::from_str(r#"{"services":[]}"#).expect("a small config");
        assert_eq!(balancer.problems(), Vec::<String>::new());
    }

    #[test]
    fn a_service_says_how_it_is_checked() {
        let service = |port: u16, check: &str| {
            let backend =
                r#"{"server":"mail1","target":"10.9.0.41:25","score":"10.9.0.41:342","weight":10,"drained":false}"#;
            format!(r#"{{"external":"192.0.2.1:{port}","cluster":"mail"{check},"backends":[{backend}]}}"#)
        };
        let config = |services: [String; 2]| -> BalancerConfig {
            serde_json::from_str(&format!(r#"{{"services":[{}]}}"#, services.join(","))).expect("well-formed")
        };
        let same = config([service(25, r#","check":"smtp""#), service(26, r#","check":"smtp""#)]);
        assert_eq!(same.services[0].check, CheckKind::Mail(MailProtocol::Smtp));
        assert_eq!(same.problems(), Vec::<String>::new());
        let text = serde_json::to_string(&same).expect("JSON");
        assert_eq!(serde_json::from_str::<BalancerConfig>(&text).expect("the same"), same);
        let differ = config([service(25, r#","check":"smtp""#), service(26, "")]);
        assert_eq!(differ.services[1].check, CheckKind::Http, "what an older panel wrote");
        assert_eq!(CheckKind::of(ClusterKind::Mail, 993), CheckKind::Mail(MailProtocol::Imaps));
        assert_eq!(CheckKind::of(ClusterKind::Web, 993), CheckKind::Http);
        assert_eq!(differ.problems(), ["10.9.0.41:25 is checked in two ways: it can serve but one protocol"]);
    }

    #[test]
    fn the_default_check_notices_a_death_within_three_seconds() {
        let check = CheckSettings::default();
        assert!(check.interval_ms * u64::from(check.fall) * 11 / 10 + check.timeout_ms < 2_900);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = r#"{"server":"web1","listen":[],"limits":{"connections_max":0,"headers_max":1}}"#;
        let config: ProxyConfig = serde_json::from_str(text).expect("well-formed");
        assert_eq!(config.problems().len(), 3, "{:?}", config.problems());
        assert!(serde_json::from_str::<ProxyConfig>(r#"{"server":"web1","listen":[],"lisden":1}"#).is_err());
    }
}
