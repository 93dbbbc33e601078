//! What all nouns have in common: list, show, add, change and remove against one path of the API.

use crate::client::Answer;
use crate::failure::Failure;
use crate::render::detail::detail;
use crate::render::table::{Column, table};
use crate::render::text::cell;
use crate::session::Session;
use serde_json::{Value, json};

/// The most that the API gives at once.
const PAGE: usize = 1000;

/// A noun of the API.
pub struct Resource {
    /// The noun for messages: "server".
    pub noun: &'static str,
    /// Its path below `/api/v1`: "/servers".
    pub path: &'static str,
    /// What names one (a JSON pointer).
    pub key: &'static str,
    /// What a list shows.
    pub columns: &'static [Column],
    /// How to make the first one, for an empty list.
    pub first: &'static str,
}

/// How much of a list is wanted.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

impl Resource {
    /// The path of one resource. Keys are values of the model, whose alphabets need no escaping in a path.
    pub fn at(&self, key: &str) -> String {
        format!("{}/{key}", self.path)
    }

    /// Prints a list. `query` is empty or `&name=value`.
    pub fn list(&self, session: &Session, args: &ListArgs, query: &str) -> Result<(), Failure> {
        let list = self.fetch(session, args.limit as usize, query)?;
        session.show(&list, |list| table(self.columns, items(list), session.style))?;
        if items(&list).is_empty() && !query.is_empty() {
            session.note("There is none.");
        } else if items(&list).is_empty() {
            session.note(&format!("There is no {} yet. {}", self.noun, self.first));
        } else if !list["next_cursor"].is_null() {
            session.note(&format!("There are more than {}: see --limit.", args.limit));
        }
        Ok(())
    }

    /// Pages through the list up to `limit` items, as one answer of the API's shape.
    fn fetch(&self, session: &Session, limit: usize, query: &str) -> Result<Value, Failure> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let count = PAGE.min(limit - all.len());
            let mut page = session.client.get(&format!("{}?limit={count}{query}{cursor}", self.path))?.body;
            let got = page["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
            let (none, next) = (got.is_empty(), page["next_cursor"].take());
            all.extend(got);
            match next.as_str() {
                Some(next) if !none && all.len() < limit => cursor = format!("&cursor={}", query_escape(next)),
                _ => return Ok(json!({"items": all, "next_cursor": next})),
            }
        }
    }

    /// Prints one in full.
    pub fn show(&self, session: &Session, key: &str) -> Result<(), Failure> {
        let answer = session.client.get(&self.at(key))?;
        session.show(&answer.body, detail)
    }

    /// Creates one, says so, and tells what usually comes next.
    pub fn add(&self, session: &Session, body: &Value, next: &str) -> Result<Value, Failure> {
        let created = session.client.post(self.path, &without_nulls(body))?.body;
        let name = created.pointer(self.key).map(cell).unwrap_or_default();
        session.show(&created, |_| format!("{} {name} added.\n", capital(self.noun)))?;
        if !next.is_empty() {
            session.note(&format!("Next: {next}"));
        }
        Ok(created)
    }

    /// Changes one: `patch` makes the change from the current state, and only that state is changed (If-Match).
    pub fn change(
        &self,
        session: &Session,
        key: &str,
        patch: impl FnOnce(&Value) -> Result<Value, Failure>,
    ) -> Result<(), Failure> {
        let current = session.client.get(&self.at(key))?;
        let patch = patch(&current.body)?;
        if patch.as_object().is_none_or(serde_json::Map::is_empty) {
            return Err(Failure::usage("nothing to change was given", "see `--help` for what can be changed"));
        }
        let changed = session.client.patch(&self.at(key), etag(&current), &patch)?.body;
        session.show(&changed, |_| format!("{} {key} changed.\n", capital(self.noun)))
    }

    /// Removes one, provided that nobody changes it in the meantime. `query` is empty or `?name=value`.
    pub fn remove(&self, session: &Session, key: &str, query: &str) -> Result<(), Failure> {
        let current = session.client.get(&self.at(key))?;
        let path = format!("{}{query}", self.at(key));
        let removed = session.client.delete(&path, etag(&current))?;
        let done = done_without_answer(removed.body, json!({"removed": key, "kind": self.noun}));
        session.show(&done, |_| format!("{} {key} removed.\n", capital(self.noun)))
    }
}

/// The version that an answer has, from its header or its body.
pub fn etag(answer: &Answer) -> Option<&str> {
    answer.etag.as_deref().or_else(|| answer.body["etag"].as_str())
}

/// What programs read: the API's answer, or where it has none (204), what was done.
pub fn done_without_answer(answer: Value, done: Value) -> Value {
    if answer.is_null() { done } else { answer }
}

/// The items of a list, none where there is no list.
pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Leaves out what was not given, so that the panel's defaults hold.
pub fn without_nulls(body: &Value) -> Value {
    match body {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        other => other.clone(),
    }
}

/// Percent-encodes a value for a query (RFC 3986, section 2.3: all but the unreserved characters).
pub fn query_escape(value: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    value.bytes().map(escape).collect()
}

fn capital(noun: &str) -> String {
    let mut letters = noun.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(query_escape("a b&c=d/é~"), "a%20b%26c%3Dd%2F%C3%A9~");
    }

    #[test]
    fn what_was_not_given_is_left_to_the_panel() {
        assert_eq!(without_nulls(&json!({"a": 1, "b": null})), json!({"a": 1}));
    }
}
