//! Traffic of sites.

use super::list::{cursor_of, limit_of, page};
use super::problem::{Problem, Reply};
use super::request::Ask;
use crate::Panel;
use crate::store::TrafficFilter;
use axum::extract::State;
use phalanx_model::HostName;
use serde::Deserialize;
use serde_json::json;

/// Which traffic.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficQuery {
    site: Option<HostName>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn list(State(panel): State<Panel>, Ask(query): Ask<TrafficQuery>) -> Reply {
    let TrafficQuery { site, from, to, limit, cursor } = query;
    let limit = limit_of(limit)?;
    let key = cursor_of(cursor.as_deref())?;
    let after = match key.split_once(' ') {
        Some((site, day)) => (site.to_owned(), day.to_owned()),
        None if key.is_empty() => (String::new(), String::new()),
        None => return Err(Problem::invalid("cursor", "this is a cursor of another list")),
    };
    let filter = TrafficFilter {
        site: site.map(|site| site.to_string()),
        from: day("from", from, "0000-00-00")?,
        to: day("to", to, "9999-99-99")?,
        after,
    };
    let rows = panel.store.traffic(&filter, limit + 1).await?;
    Ok(page(rows, limit, |row| format!("{} {}", row.site, row.day), |row| json!(row)))
}

/// A day as it is written, so that days are in the order of their texts.
fn day(field: &'static str, text: Option<String>, default: &str) -> Reply<String> {
    let text = text.unwrap_or_else(|| default.to_owned());
    let is_day = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() });
    if is_day { Ok(text) } else { Err(Problem::invalid(field, "it must be a day such as 2026-11-28")) }
}
