//! `phalanx traffic`: requests, messages and bytes of sites and mail domains by day.

use super::resource::{ListArgs, Resource, query_escape};
use crate::failure::Failure;
use crate::render::table::Column;
use crate::session::Session;
use clap::Args;
use phalanx_model::HostName;

const TRAFFIC: Resource = Resource {
    noun: "traffic",
    path: "/traffic",
    key: "/site",
    columns: &[
        Column::new("SITE", "/site"),
        Column::new("DAY", "/day"),
        Column::new("REQUESTS", "/requests"),
        Column::new("MESSAGES", "/messages"),
        Column::new("BYTES SENT", "/sent_bytes"),
        Column::new("BYTES RECEIVED", "/received_bytes"),
    ],
    first: "It is counted when logs are merged.",
};

/// Which traffic.
#[derive(Debug, Args)]
pub struct TrafficArgs {
    /// Of this site or mail domain
    #[arg(long, value_name = "HOST")]
    site: Option<HostName>,
    /// From this day on (UTC)
    #[arg(long, value_name = "YYYY-MM-DD")]
    from: Option<String>,
    /// Up to this day, itself included
    #[arg(long, value_name = "YYYY-MM-DD")]
    to: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// Prints it.
pub fn run(args: &TrafficArgs, session: &Session) -> Result<(), Failure> {
    let TrafficArgs { site, from, to, list } = args;
    let named = [("site", site.as_ref().map(HostName::as_str)), ("from", from.as_deref()), ("to", to.as_deref())];
    let query: String = named
        .iter()
        .filter_map(|(name, value)| value.map(|value| format!("&{name}={}", query_escape(value))))
        .collect();
    TRAFFIC.list(session, list, &query)
}
