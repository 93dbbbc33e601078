//! Merged logs, read on the master of their cluster, which merges them: those of sites, and that of a mail cluster.

use super::list::{cursor_of, limit_of};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, named};
use super::servers::not_done;
use crate::Panel;
use crate::live::CommandError;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use phalanx_model::cluster::ClusterKind;
use phalanx_model::{HostName, Name};
use phalanx_plan::logs::trace::Trace;
use phalanx_plan::session::{Command, LogPart, LogText, MergedLog, TraceAsk};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::time::Duration;

/// How long the master may take to read a part.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// How long it may take to search.
const TRACE_TIME_MAX: Duration = Duration::from_secs(65);
/// A part has so many bytes at most.
const LEN_MAX: u32 = 512 << 10;
/// The longest line of a letter's head (RFC 5322, 2.1.1).
const MESSAGE_ID_LEN_MAX: usize = 998;

/// Which part of a site's log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteLogQuery {
    errors: Option<bool>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Which part of a mail cluster's log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailLogQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Which message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    message_id: String,
    days: Option<u32>,
}

pub(super) async fn read_site(
    State(panel): State<Panel>,
    At(name): At<String>,
    Ask(query): Ask<SiteLogQuery>,
) -> Reply<Response> {
    let SiteLogQuery { errors, limit, cursor } = query;
    let site: HostName = named("site", &name)?;
    let account = panel.store.site(site.as_str()).await?.site.account;
    let logical_server = panel.store.account(account.as_str()).await?.account.logical_server;
    let fleet = panel.store.world().fleet.clone();
    let found = fleet.logical_servers.get(&logical_server);
    let cluster = found.and_then(|found| fleet.clusters.get(&found.cluster));
    let cluster = cluster.ok_or_else(|| Problem::unknown("logical server", logical_server.as_str()))?;
    let log = if errors.unwrap_or(false) { MergedLog::Errors(site) } else { MergedLog::Access(site) };
    read(&panel, &cluster.master, log, limit, cursor.as_deref()).await
}

pub(super) async fn read_mail(
    State(panel): State<Panel>,
    At(name): At<String>,
    Ask(query): Ask<MailLogQuery>,
) -> Reply<Response> {
    let MailLogQuery { limit, cursor } = query;
    let master = master_of_mail(&panel, &name)?;
    read(&panel, &master, MergedLog::Mail, limit, cursor.as_deref()).await
}

pub(super) async fn trace(
    State(panel): State<Panel>,
    At(name): At<String>,
    Ask(query): Ask<TraceQuery>,
) -> Reply<Response> {
    let TraceQuery { message_id, days } = query;
    let master = master_of_mail(&panel, &name)?;
    let bare = message_id.trim().trim_start_matches('<').trim_end_matches('>');
    if bare.is_empty() || bare.len() > MESSAGE_ID_LEN_MAX || !bare.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Problem::invalid("message_id", "it must be a Message-ID such as <abc@example.org>"));
    }
    let days = days.unwrap_or(2);
    if days > 31 {
        return Err(Problem::invalid("days", "logs are kept for 31 days: 0 to 31"));
    }
    let command = Command::TraceMail(TraceAsk { message_id: bare.to_owned(), days });
    let trace: Trace = ask(&panel, &master, command, TRACE_TIME_MAX).await?;
    Ok(Json(trace).into_response())
}

fn master_of_mail(panel: &Panel, name: &str) -> Reply<Name> {
    let name: Name = named("cluster", name)?;
    let fleet = panel.store.world().fleet.clone();
    let cluster = fleet.clusters.get(&name).ok_or_else(|| Problem::unknown("cluster", name.as_str()))?;
    match cluster.kind {
        ClusterKind::Mail => Ok(cluster.master.clone()),
        _ => Err(Problem::unknown("mail cluster", name.as_str())),
    }
}

async fn read(
    panel: &Panel,
    master: &Name,
    log: MergedLog,
    limit: Option<u32>,
    cursor: Option<&str>,
) -> Reply<Response> {
    let limit = limit_of(limit)?;
    let after = match cursor_of(cursor)?.as_str() {
        "" => None,
        place => Some(parsed(place)?),
    };
    let command = Command::ReadLog(LogPart { log, after, len_max: LEN_MAX });
    let LogText { at: (file, offset), text } = ask(panel, master, command, READ_TIME_MAX).await?;
    let lines: Vec<&str> = text.lines().collect();
    // A part that goes on is given whole: what is left out of it would never be asked for.
    let first = if after.is_some() { 0 } else { lines.len().saturating_sub(limit as usize) };
    let next = URL_SAFE_NO_PAD.encode(format!("{file} {offset}"));
    Ok(Json(json!({ "lines": lines[first..], "next_cursor": next })).into_response())
}

async fn ask<T: DeserializeOwned>(panel: &Panel, master: &Name, command: Command, time_max: Duration) -> Reply<T> {
    let answer = panel.live.ask(master, command, time_max).await.map_err(not_done)?;
    let unread =
        |error: serde_json::Error| not_done(CommandError::Failed(format!("the node's answer can't be read: {error}")));
    serde_json::from_str(&answer).map_err(unread)
}

fn parsed(place: &str) -> Reply<(u64, u64)> {
    let parts = place.split_once(' ').and_then(|(file, offset)| Some((file.parse().ok()?, offset.parse().ok()?)));
    parts.ok_or_else(|| Problem::invalid("cursor", "this is a cursor of another list"))
}
