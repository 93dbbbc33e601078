//! API tokens, audit records and events.

use super::follow::follow;
use super::list::{PageQuery, created, cursor_of, etag, limit_of, one, page};
use super::problem::{Problem, Reply};
use super::request::{Ask, At, IfMatch, JsonBody};
use crate::Panel;
use crate::clock::rfc3339;
use crate::store::{Actor, Role, Token};
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use phalanx_model::Name;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// A new API token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name.
    #[schema(value_type = String)]
    name: Name,
    /// What it may do: admin (everything) or reader (look, and change nothing).
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

pub(super) async fn get_token(State(panel): State<Panel>, At(name): At<String>) -> Reply {
    let token = panel.store.token(&name).await?;
    Ok(one(StatusCode::OK, token.version.unsigned_abs(), token_view(token)))
}

pub(super) async fn remove_token(
    State(panel): State<Panel>,
    Extension(actor): Extension<Actor>,
    At(name): At<String>,
    IfMatch(version): IfMatch,
) -> Reply<StatusCode> {
    let mut write = panel.store.write(&actor).await?;
    write.remove_token(&name, version).await?;
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
    Extension(actor): Extension<Actor>,
    Ask(EventsQuery { after, cursor, limit, follow: follows }): Ask<EventsQuery>,
) -> Reply {
    let limit = limit_of(limit)?;
    let after = match cursor_of(cursor.as_deref())?.as_str() {
        "" => after,
        number => Some(number.parse().map_err(|_| Problem::invalid("cursor", "this is a cursor of another list"))?),
    };
    if follows {
        return follow(panel, &actor.token, after, limit);
    }
    let Some(after) = after else {
        let rows = panel.store.events_newest(limit).await?;
        return Ok(page(rows, limit, |event| event.id.to_string(), |event| json!(event)));
    };
    let rows = panel.store.events_after(after, limit + 1).await?;
    Ok(page(rows, limit, |event| event.id.to_string(), |event| json!(event)))
}
