//! A site's access log, read on the master of its cluster, which merges it.

use super::list::{cursor_of, limit_of};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, named};
use super::servers::not_done;
use crate::Panel;
use crate::live::CommandError;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use phalanx_model::HostName;
use phalanx_plan::session::{Command, LogPart, LogText};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// How long the master may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// A part has so many bytes at most.
const LEN_MAX: u32 = 512 << 10;

/// Which part of a log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn read(State(panel): State<Panel>, At(name): At<String>, Ask(query): Ask<LogQuery>) -> Reply {
    let site: HostName = named("site", &name)?;
    let limit = limit_of(query.limit)?;
    let after = match cursor_of(query.cursor.as_deref())?.as_str() {
        "" => None,
        place => Some(parsed(place)?),
    };
    let account = panel.store.site(site.as_str()).await?.site.account;
    let logical_server = panel.store.account(account.as_str()).await?.account.logical_server;
    let fleet = panel.store.world().fleet.clone();
    let found = fleet.logical_servers.get(&logical_server);
    let cluster = found.and_then(|found| fleet.clusters.get(&found.cluster));
    let cluster = cluster.ok_or_else(|| Problem::unknown("logical server", logical_server.as_str()))?;
    let command = Command::ReadLog(LogPart { site, after, len_max: LEN_MAX });
    let answer = panel.live.ask(&cluster.master, command, TIME_MAX).await.map_err(not_done)?;
    let unread =
        |error: serde_json::Error| not_done(CommandError::Failed(format!("the node's answer can't be read: {error}")));
    let LogText { at: (file, offset), text } = serde_json::from_str(&answer).map_err(unread)?;
    let lines: Vec<&str> = text.lines().collect();
    // A part that goes on is given whole: what is left out of it would never be asked for.
    let first = if after.is_some() { 0 } else { lines.len().saturating_sub(limit as usize) };
    let next = URL_SAFE_NO_PAD.encode(format!("{file} {offset}"));
    Ok(Json(json!({ "lines": lines[first..], "next_cursor": next })).into_response())
}

fn parsed(place: &str) -> Reply<(u64, u64)> {
    let parts = place.split_once(' ').and_then(|(file, offset)| Some((file.parse().ok()?, offset.parse().ok()?)));
    parts.ok_or_else(|| Problem::invalid("cursor", "this is a cursor of another list"))
}
