//! What the owner of a mail domain has to put into the DNS.
//!
//! Deliberately absent: looking whether it is there, and the records of the cluster's own name, which are the provider's.

use phalanx_model::mail::DkimKey;
use phalanx_model::{HostName, MailProtocol};
use serde::Serialize;
use utoipa::ToSchema;

/// A record of the DNS.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DnsRecord)]
pub struct Record {
    /// Its full name, without the dot at the end.
    name: String,
    /// MX, TXT or SRV.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Its data as zone files have it; a TXT record's text bare and whole, whatever its length.
    value: String,
    /// What it is for.
    why: &'static str,
}

/// Logins as clients find them by themselves: the service's name, its protocol, and which goes first (RFC 6186; with TLS from the first
/// byte before what begins in the clear, RFC 8314).
const SERVICES: [(&str, MailProtocol, u8); 4] = [
    ("_imaps", MailProtocol::Imaps, 0),
    ("_pop3s", MailProtocol::Pop3s, 10),
    ("_submissions", MailProtocol::Submissions, 0),
    ("_submission", MailProtocol::Submission, 10),
];

/// The records of `domain`, whose mail servers are found under `host`.
pub(super) fn records(domain: &HostName, host: &HostName, dkim: &DkimKey) -> Vec<Record> {
    let record = |name: String, kind, value, why| Record { name, kind, value, why };
    let DkimKey { selector, private_pem: _, public_base64 } = dkim;
    let mut all = vec![
        record(domain.to_string(), "MX", format!("10 {host}."), "where mail for the domain is taken"),
        record(
            domain.to_string(),
            "TXT",
            format!("v=spf1 mx a:{host} -all"),
            "which servers may send its mail (SPF, RFC 7208)",
        ),
        record(
            format!("{selector}._domainkey.{domain}"),
            "TXT",
            format!("v=DKIM1; k=rsa; p={public_base64}"),
            "the key that its mail is signed with (DKIM, RFC 6376)",
        ),
        record(
            format!("_dmarc.{domain}"),
            "TXT",
            "v=DMARC1; p=quarantine".to_owned(),
            "what receivers do with mail that is neither; add rua=mailto:ADDRESS to hear of it (DMARC, RFC 7489)",
        ),
    ];
    all.extend(SERVICES.into_iter().map(|(service, protocol, priority)| {
        let value = format!("{priority} 1 {} {host}.", protocol.port());
        record(format!("{service}._tcp.{domain}"), "SRV", value, "how mail clients set themselves up (RFC 6186)")
    }));
    all
}
