//! Lists in pages, and single things with what every stored thing has beside its value.

use super::problem::{Problem, Reply};
use crate::clock::rfc3339;
use crate::store::Meta;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Bound;
use std::str::FromStr;

/// Things on a page where the asker names no limit.
pub const LIMIT_DEFAULT: u32 = 100;
/// The most things on a page.
pub const LIMIT_MAX: u32 = 1_000;

/// The part of a list that is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// At most so many: 1 to 1,000.
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl PageQuery {
    /// The limit, checked.
    pub fn limit(&self) -> Reply<u32> {
        limit_of(self.limit)
    }

    /// The key after which the page begins; empty for the first page.
    pub fn after(&self) -> Reply<String> {
        cursor_of(self.cursor.as_deref())
    }
}

/// A page's limit, checked.
pub fn limit_of(limit: Option<u32>) -> Reply<u32> {
    match limit.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        other => Err(Problem::invalid("limit", format!("limit {other} is not between 1 and {LIMIT_MAX}"))),
    }
}

/// What a cursor says: a key.
pub fn cursor_of(cursor: Option<&str>) -> Reply<String> {
    let Some(cursor) = cursor else { return Ok(String::new()) };
    let key = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    key.ok_or_else(|| Problem::invalid("cursor", "this is no cursor of this API; use next_cursor of the page before"))
}

/// A page out of rows that were read with one more than the limit.
pub fn page<T>(mut rows: Vec<T>, limit: u32, key: impl Fn(&T) -> String, view: impl Fn(T) -> Value) -> Response {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(key(last)));
    let items: Vec<Value> = rows.into_iter().map(view).collect();
    Json(json!({ "items": items, "next_cursor": next })).into_response()
}

/// A page out of a map in memory.
pub fn page_of_map<K: Ord + Clone + Display + FromStr, V>(
    map: &BTreeMap<K, V>,
    query: &PageQuery,
    view: impl Fn(&K, &V) -> Value,
) -> Reply {
    let (limit, after) = (query.limit()?, query.after()?);
    let from = match after.as_str() {
        "" => Bound::Unbounded,
        after => Bound::Excluded(
            after.parse::<K>().map_err(|_| Problem::invalid("cursor", "this is a cursor of another list"))?,
        ),
    };
    let rows: Vec<(&K, &V)> = map.range((from, Bound::Unbounded)).take(limit as usize + 1).collect();
    Ok(page(rows, limit, |(key, _)| key.to_string(), |(key, value)| view(key, value)))
}

/// A thing as JSON: its value, owner, ETag and birthday.
pub fn view<T: Serialize>(value: &T, meta: &Meta) -> Value {
    let mut json = serde_json::to_value(value).unwrap_or_default();
    json["owner"] = json!(meta.owner);
    json["etag"] = json!(etag(meta.version));
    json["created_at"] = json!(rfc3339(meta.created_at));
    json
}

/// A version as an ETag: `"3"`.
pub fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

/// Answers with one thing.
pub fn one(status: StatusCode, version: u64, body: Value) -> Response {
    let mut response = (status, Json(body)).into_response();
    let etag = HeaderValue::from_str(&etag(version)).expect("quotes and digits are allowed in a header");
    response.headers_mut().insert(header::ETAG, etag);
    response
}

/// Answers that a thing was made, with where it is.
pub fn created(path: &str, name: &dyn Display, version: u64, body: Value) -> Response {
    let mut response = one(StatusCode::CREATED, version, body);
    // Names of things are ASCII; where one were not, the answer goes without the header.
    if let Ok(location) = HeaderValue::from_str(&format!("/api/v1{path}/{name}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
