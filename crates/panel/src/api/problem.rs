//! Errors as RFC 9457 writes them, each with a hint how to mend it.

use crate::store::StoreError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use phalanx_model::{Refusal, Rule};
use serde::Serialize;
use std::error::Error;
use utoipa::ToSchema;

/// What every problem's type begins with. The domain exists nowhere (RFC 2606): types are names, not addresses.
const TYPES: &str = "https://phalanx.invalid/problems/";

/// The result of a handler.
pub type Reply<T = Response> = Result<T, Problem>;

/// An error as the API tells it.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Problem(Box<Content>);

/// What a problem says.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Content {
    /// What kind of problem this is: a name in the form of an address.
    #[serde(rename = "type")]
    kind: String,
    /// The kind in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What is wrong, with the names and values at hand.
    detail: String,
    /// How to mend it.
    hint: String,
    /// The rule that stands against a change, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    rule: Option<Rule>,
    /// The fields that are not valid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

/// What is wrong with one field.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// The field, with dots between its parts.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(
        status: StatusCode,
        kind: &str,
        title: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self(Box::new(Content {
            kind: format!("{TYPES}{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            hint: hint.into(),
            rule: None,
            errors: vec![],
        }))
    }

    /// A value of the request is not valid.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let (field, detail) = (field.into(), detail.into());
        let hint = if field.is_empty() { "mend the request".to_owned() } else { format!("mend {field}") };
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-value", "A value is not valid", detail.clone(), hint);
        problem.0.errors = vec![FieldError { field, detail }];
        problem
    }

    /// What the request is about does not exist.
    pub fn unknown(what: &str, name: &str) -> Self {
        let name: String = name.chars().take(300).collect();
        let hint = format!("list what exists: GET /api/v1/{}", path_of(what));
        Self::new(
            StatusCode::NOT_FOUND,
            "unknown",
            "There is no such thing",
            format!("there is no {what} {name}"),
            hint,
        )
    }

    /// Something of ours failed: the log has the cause, the asker gets none of it.
    pub fn internal(error: &(dyn Error + 'static)) -> Self {
        let mut chain = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            chain.push_str(": ");
            chain.push_str(&next.to_string());
            cause = next.source();
        }
        tracing::error!("a request failed: {chain}");
        let hint = "try again; if it stays so, see the panel's log: journalctl -u phalanx-panel";
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The panel failed",
            "the panel could not do this",
            hint,
        )
    }

    /// Adds the fields that are not valid.
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }
}

/// Where things of a kind are listed.
fn path_of(what: &str) -> &str {
    match what {
        "server" => "servers",
        "cluster" | "node" | "grant" => "clusters",
        "share" => "shares",
        "address" => "addresses",
        "logical server" => "logical-servers",
        "account" => "accounts",
        "site" => "sites",
        "mail domain" => "mail-domains",
        "mailbox" => "mailboxes",
        "alias" => "aliases",
        "token" => "tokens",
        _ => "openapi.json",
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let kind = serde_json::to_value(refusal.rule)
            .ok()
            .and_then(|rule| rule.as_str().map(str::to_owned))
            .unwrap_or_default();
        let mut problem = Self::new(StatusCode::CONFLICT, &kind, refusal.rule.sentence(), refusal.detail, refusal.hint);
        problem.0.rule = Some(refusal.rule);
        problem
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(refusal) => refusal.into(),
            StoreError::Invalid { field, why } => Self::invalid(field, why),
            StoreError::Unknown { kind, name } => Self::unknown(kind.as_str(), &name),
            StoreError::Stale { .. } => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "stale",
                "It was changed meanwhile",
                error.to_string(),
                "get it again, look at what has changed, and send the change with the new ETag in If-Match",
            ),
            StoreError::Busy(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "The panel is busy",
                error.to_string(),
                "try again in a moment",
            ),
            StoreError::Database(_) | StoreError::Migrate(_) | StoreError::Corrupt { .. } => Self::internal(&error),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
