//! A POST with an `Idempotency-Key` is done once: the same request again gets the same answer.
//!
//! Answers that hold a secret are not kept: repeating such a request is refused, since the secret is shown once. What is kept of a request
//! is a fast hash, by which a password could be guessed: so it is made without the password.

use super::problem::{Problem, Reply};
use super::request::read_body;
use crate::Panel;
use crate::secret::sha256;
use crate::store::{Actor, Earlier};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::collections::BTreeMap;

/// The longest key, in bytes.
const KEY_LEN_MAX: usize = 200;
/// Headers of an answer that are kept with it.
const KEPT: [HeaderName; 3] = [header::CONTENT_TYPE, header::ETAG, header::LOCATION];

pub(super) async fn layer(State(panel): State<Panel>, request: Request, next: Next) -> Reply<Response> {
    let key = request.headers().get("idempotency-key").filter(|_| request.method() == Method::POST).cloned();
    let actor = request.extensions().get::<Actor>().cloned();
    let (Some(key), Some(actor)) = (key, actor) else { return Ok(next.run(request).await) };
    let key = key.to_str().ok().filter(|key| !key.is_empty() && key.len() <= KEY_LEN_MAX).map(str::to_owned);
    let key = key.ok_or_else(|| {
        let detail = format!("an Idempotency-Key has 1 to {KEY_LEN_MAX} ASCII characters");
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-idempotency-key",
            "Idempotency-Key can't be read",
            detail,
            "send a UUID",
        )
    })?;
    let (parts, body) = request.into_parts();
    let body = read_body(body).await?;
    let what = [parts.uri.to_string().as_bytes(), b"\n", &without_password(&body)].concat();
    match panel.store.claim(&actor.token, &key, &sha256(what)).await? {
        Earlier::Answered(status, headers, body) => return Ok(replay(status, &headers, body)),
        Earlier::OtherRequest => {
            return Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The Idempotency-Key belongs to another request",
                format!("{key} came with another path or body before"),
                "use a new key for a new request",
            ));
        }
        Earlier::Running => {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "idempotency-key-running",
                "The request is being answered",
                format!(
                    "the first request with {key} has no answer yet, or its answer held a secret that is shown once"
                ),
                "wait and repeat it; where it was about a secret, make a new one",
            ));
        }
        Earlier::New => {}
    }
    // In a task of its own: a client that hangs up must not leave a claim without an answer.
    let answered = tokio::spawn(async move {
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        keep(&panel, &actor.token, &key, response).await
    });
    answered.await.unwrap_or_else(|error| Err(Problem::internal(&error)))
}

/// The body less the password in it. A body that can't be read, and so is refused, may have one anywhere: nothing of it remains.
fn without_password(body: &Bytes) -> Bytes {
    const KEY: &[u8] = b"password";
    if !body.windows(KEY.len()).any(|window| window == KEY) && !body.contains(&b'\\') {
        return body.clone();
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(body) else { return Bytes::new() };
    fields.shift_remove("password");
    Bytes::from(Value::Object(fields).to_string())
}

async fn keep(panel: &Panel, token: &str, key: &str, response: Response) -> Reply<Response> {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.map_err(|error| Problem::internal(&error))?;
    let headers: BTreeMap<&str, &str> =
        KEPT.iter().filter_map(|name| Some((name.as_str(), parts.headers.get(name)?.to_str().ok()?))).collect();
    let secret = parts.headers.get(header::CACHE_CONTROL).is_some_and(|value| value == "no-store");
    if parts.status.is_server_error() {
        panel.store.answered(token, key, None).await?;
    } else if !secret {
        let headers = serde_json::to_string(&headers).expect("a map of texts");
        panel.store.answered(token, key, Some((parts.status.as_u16(), &headers, &body))).await?;
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn replay(status: u16, headers: &str, body: Vec<u8>) -> Response {
    let headers: BTreeMap<String, String> = serde_json::from_str(headers).unwrap_or_default();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = (status, Bytes::from(body)).into_response();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_request_does_not_depend_on_its_password() {
        let kept = |body: &str| without_password(&Bytes::copy_from_slice(body.as_bytes()));
        assert_eq!(kept(r#"{"a": 1,"password":"one"}"#), kept(r#"{"a": 1,"password":"two"}"#));
        assert_eq!(kept(r#"{"a": 1,"passw\u006frd":"one"}"#), kept(r#"{"a": 1,"password":"two"}"#));
        assert_ne!(kept(r#"{"a": 1,"password":"one"}"#), kept(r#"{"a": 2,"password":"one"}"#));
        assert_eq!(kept(r#"{"a": 1, "b": [2]}"#), r#"{"a": 1, "b": [2]}"#, "what has none is kept as it came");
        for broken in [r#"{"password":"one""#, r#"["password", "one"]"#, "password"] {
            assert_eq!(kept(broken), "", "{broken}");
        }
    }
}
