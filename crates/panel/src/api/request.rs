//! What comes with a request: path, query, body, preconditions; each refused as a problem that names the field.

use super::problem::{FieldError, Problem};
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use phalanx_model::Invalid;
use serde::de::DeserializeOwned;
use std::str::FromStr;

/// The longest body of a request, in bytes.
pub const BODY_LEN_MAX: usize = 1 << 20;

/// The parts of the path that name things, as text.
pub struct At<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::new(
                StatusCode::NOT_FOUND,
                "unknown",
                "There is no such thing",
                rejection.body_text(),
                "names are written in UTF-8, percent-encoded where a URL needs it",
            )),
        }
    }
}

/// A name out of the path. A text that can't be a name is the name of nothing: 404.
pub fn named<T: FromStr<Err = Invalid>>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::unknown(what, text))
}

/// The query, with unknown parameters refused where the type says so.
pub struct Ask<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Ask<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let field = quoted(&text).unwrap_or("").to_owned();
                Err(Problem::invalid(field, text))
            }
        }
    }
}

/// The version that the asker believes a thing is at: `If-Match: "3"`. None without the header, or with `*`.
pub struct IfMatch(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or("").trim();
        if text == "*" {
            return Ok(Self(None));
        }
        let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        match bare.parse() {
            Ok(version) => Ok(Self(Some(version))),
            Err(_) => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "bad-if-match",
                "If-Match can't be read",
                format!("{text:?} is no ETag of this API"),
                "send one ETag as you got it, such as If-Match: \"3\"",
            )),
        }
    }
}

/// A body of JSON. An empty body reads as `{}`, for requests in which nothing is required.
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let json = parts.headers.get(header::CONTENT_TYPE).is_none_or(|value| {
            let kind = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
            kind == "application/json" || kind.ends_with("+json")
        });
        if !json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "The body is not JSON",
                "the request's Content-Type is not application/json",
                "send JSON with Content-Type: application/json",
            ));
        }
        let bytes = read_body(body).await?;
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

/// Reads a whole body within the bound.
pub async fn read_body(body: Body) -> Result<axum::body::Bytes, Problem> {
    to_bytes(body, BODY_LEN_MAX).await.map_err(|_| {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The body is too large",
            format!("the body is longer than {BODY_LEN_MAX} bytes, or broke off"),
            "split the request",
        )
    })
}

/// Reads JSON, saying where it is not what it should be: line, column and field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let detail = format!("the body is not UTF-8 from byte {} on", e.valid_up_to());
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-json",
            "The body is not JSON",
            detail,
            "send JSON in UTF-8 (RFC 8259)",
        )
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let parsed = T::deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    parsed.map_err(|error| {
        if error.is_data() {
            let detail = error.to_string();
            let end = offset(text, error.line(), error.column());
            let Some(missing) = detail.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) else {
                // What a value's own check refuses is noticed when the object or array around it has been closed.
                let closed = end > 0 && matches!(text.as_bytes()[end - 1], b'}' | b']');
                return Problem::invalid(field_at(&text.as_bytes()[..end - usize::from(closed)]), detail);
            };
            let around = field_at(&text.as_bytes()[..end]);
            return Problem::invalid(
                if around.is_empty() { missing.to_owned() } else { format!("{around}.{missing}") },
                detail,
            );
        }
        let hint = "send one JSON object (RFC 8259)";
        Problem::new(StatusCode::BAD_REQUEST, "bad-json", "The body is not JSON", error.to_string(), hint)
            .with_errors(vec![FieldError { field: String::new(), detail: error.to_string() }])
    })
}

/// How many bytes of the text stand before a line and column, both counted from 1, the column in bytes.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let line_start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (line_start + column).min(text.len())
}

/// The field at which a JSON text breaks off, with dots between its parts: `limits.cpu_percent`, `aliases.0`.
/// The text is well-formed so far, since the reader came there.
fn field_at(bytes: &[u8]) -> String {
    // One entry for each object or array around the place: the key or index that it is at.
    let mut path: Vec<Place> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => path.push(Place::Key(String::new(), false)),
            b'[' => path.push(Place::Index(0)),
            b'}' | b']' => {
                path.pop();
            }
            b',' => match path.last_mut() {
                Some(Place::Key(_, expects_value)) => *expects_value = false,
                Some(Place::Index(index)) => *index += 1,
                None => {}
            },
            b':' => {
                if let Some(Place::Key(_, expects_value)) = path.last_mut() {
                    *expects_value = true;
                }
            }
            b'"' => {
                let start = at + 1;
                at = string_end(bytes, start);
                if let Some(Place::Key(key, false)) = path.last_mut() {
                    *key = String::from_utf8_lossy(&bytes[start..at.min(bytes.len())]).into_owned();
                }
            }
            _ => {}
        }
        at += 1;
    }
    let parts = path.into_iter().map(|place| match place {
        Place::Key(key, _) => key,
        Place::Index(index) => index.to_string(),
    });
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

enum Place {
    /// In an object: the last key, and whether its value has begun.
    Key(String, bool),
    /// In an array.
    Index(usize),
}

/// Where the string that begins at `start` has its closing quote, or the end of the bytes.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
}

/// The first text between backquotes.
fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only what is refused counts")]
    struct Example {
        name: phalanx_model::Name,
        #[serde(default)]
        limits: Option<phalanx_model::Limits>,
        #[serde(default)]
        aliases: Vec<phalanx_model::HostName>,
    }

    #[track_caller]
    fn refused(body: &str, field: &str) {
        let problem =
            serde_json::to_value(parse::<Example>(body.as_bytes()).expect_err("it is not valid")).expect("JSON");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("line")), "{problem}");
    }

    #[test]
    fn a_refused_body_names_the_field() {
        refused(r#"{}"#, "name");
        refused(r#"{"name":"Web"}"#, "name");
        refused("{\"name\":\"web\",\n \"colour\": 1}", "colour");
        refused(r#"{"name":"a","limits":{"cpu_percent":1}}"#, "limits");
        refused(r#"{"name":"a","limits":{"cpus":1}}"#, "limits.cpus");
        refused(r#"{"name":"a","aliases":["a.b","c\"{,d"]}"#, "aliases.1");
        refused(r#"{"name":"a","name":"b"}"#, "name");
        refused(r#"{"name":7}"#, "name");
    }

    #[test]
    fn what_is_no_json_is_told_from_what_is_not_valid() {
        for body in ["", "{", "{\"name\":\"a\"} x", "\u{0}", "{\"name\":\"a\",}"] {
            let problem = parse::<Example>(body.as_bytes()).expect_err("no JSON");
            assert_eq!(serde_json::to_value(problem).expect("JSON")["status"], 400, "{body:?}");
        }
        assert!(parse::<Example>(b"\xff").is_err());
    }
}
