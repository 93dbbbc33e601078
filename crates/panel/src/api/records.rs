//! API tokens, audit records and events.

use super::list::{LIMIT_MAX, PageQuery, created, cursor_of, etag, limit_of, page};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, JsonBody};
use crate::Panel;
use crate::clock::rfc3339;
use crate::store::{Actor, Event, Role, Token};
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use phalanx_model::Name;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

/// A new API token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name.
    #[schema(value_type = String)]
    name: Name,
    /// What it may do: admin.
    #[schema(value_type = String)]
    role: Role,
}

fn token_view(token: Token) -> Value {
    let Token { name, role, owner, version, created_at } = token;
    json!({ "name": name, "role": role, "owner": owner, "etag": etag(version.unsigned_abs()), "created_at": rfc3339(created_at) })
}

pub(super) async fn list_tokens(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let limit = query.limit()?;
    let rows = panel.store.tokens(&query.after()?, limit + 1).await?;
    Ok(page(rows, limit, |token| token.name.clone(), token_view))
}

pub(super) async fn add_token(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    JsonBody(NewToken { name, role }): JsonBody<NewToken>,
) -> Reply {
    let mut write = panel.store.write(&actor).await?;
    let secret = write.add_token(&name, role).await?;
    write.commit().await?;
    let body = json!({ "name": name, "role": role, "owner": actor.owner, "token": secret });
    let mut response = created("/tokens", &name, 1, body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

pub(super) async fn remove_token(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
) -> Reply<StatusCode> {
    let mut write = panel.store.write(&actor).await?;
    write.remove_token(&name).await?;
    write.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn list_audit(State(panel): State<Panel>, Ask(query): Ask<PageQuery>) -> Reply {
    let limit = query.limit()?;
    let before = match query.after()?.as_str() {
        "" => i64::MAX,
        number => number.parse().map_err(|_| Problem::invalid("cursor", "this is a cursor of another list"))?,
    };
    let rows = panel.store.audit_before(before, limit + 1).await?;
    let parsed = |text: Option<String>| {
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(Value::String(text)))
    };
    Ok(page(
        rows,
        limit,
        |row| row.id.to_string(),
        |row| {
            json!({
                "id": row.id, "at": rfc3339(row.at), "actor": row.actor, "action": row.action, "kind": row.kind, "name": row.name,
                "revision": row.revision, "before": parsed(row.before), "after": parsed(row.after),
            })
        },
    ))
}

/// Which events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Those after this number, oldest first; without it the newest.
    after: Option<i64>,
    /// The same, out of next_cursor.
    cursor: Option<String>,
    limit: Option<u32>,
    /// Go on sending events as they come.
    #[serde(default)]
    follow: bool,
}

pub(super) async fn list_events(
    State(panel): State<Panel>,
    Ask(EventsQuery { after, cursor, limit, follow: follows }): Ask<EventsQuery>,
) -> Reply {
    let limit = limit_of(limit)?;
    let after = match cursor_of(cursor.as_deref())?.as_str() {
        "" => after,
        number => Some(number.parse().map_err(|_| Problem::invalid("cursor", "this is a cursor of another list"))?),
    };
    if follows {
        return Ok(follow(panel, after, limit));
    }
    let Some(after) = after else {
        let rows = panel.store.events_newest(limit).await?;
        return Ok(page(rows, limit, |event| event.id.to_string(), |event| json!(event)));
    };
    let rows = panel.store.events_after(after, limit + 1).await?;
    Ok(page(rows, limit, |event| event.id.to_string(), |event| json!(event)))
}

/// Server-sent events: those after `after` (the newest `limit` where nothing is said), then each as it comes.
/// A reader that is too slow is served from the database again; none is passed over.
fn follow(panel: Panel, after: Option<i64>, limit: u32) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<sse::Event, Infallible>>(16);
    tokio::spawn(async move {
        let mut stopping = panel.stopping.clone();
        tokio::select! {
            ended = send_events(&panel, &sender, after, limit) => if let Err(error) = ended {
                tracing::warn!("a stream of events ended: {error}");
            },
            () = sender.closed() => {}
            _ = stopping.wait_for(|stop| *stop) => {}
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}

async fn send_events(
    panel: &Panel,
    sender: &mpsc::Sender<Result<sse::Event, Infallible>>,
    after: Option<i64>,
    limit: u32,
) -> crate::store::Result<()> {
    let mut live = panel.store.follow_events();
    let mut last = after.unwrap_or(0);
    let mut rows = match after {
        Some(after) => panel.store.events_after(after, LIMIT_MAX).await?,
        None => panel.store.events_newest(limit).await?,
    };
    loop {
        // Up to now from the database …
        while !rows.is_empty() {
            for event in rows {
                last = event.id;
                if sender.send(Ok(frame(&event))).await.is_err() {
                    return Ok(());
                }
            }
            rows = panel.store.events_after(last, LIMIT_MAX).await?;
        }
        // … then as they come.
        loop {
            match live.recv().await {
                Ok(event) if event.id <= last => {}
                Ok(event) => {
                    last = event.id;
                    if sender.send(Ok(frame(&event))).await.is_err() {
                        return Ok(());
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            }
        }
        rows = panel.store.events_after(last, LIMIT_MAX).await?;
    }
}

fn frame(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).expect("an event is plain data");
    sse::Event::default().id(event.id.to_string()).data(data)
}
