//! Every answer that a test gets is held against the OpenAPI document: status, headers, and each field of the body, none missing and
//! none that the document does not know.

use crate::support::Answer;
use serde_json::Value;
use std::sync::LazyLock;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::to_value(phalanx_panel::api::document()).expect("plain data"));

/// Holds an answer against the document.
#[track_caller]
pub fn check(method: &str, path: &str, answer: &Answer) {
    if answer.status == 431 {
        // The head was too long: hyper's own answer, before anything of ours.
        return;
    }
    let Some(operation) = operation(method, path) else {
        assert!(matches!(answer.status, 401 | 403 | 404 | 405), "{method} {path} is not in the document: {answer:?}");
        return;
    };
    let responses = &operation["responses"];
    let response = responses.get(answer.status.to_string()).unwrap_or(&responses["default"]);
    assert!(
        answer.status >= 400 || response["content"].get("application/problem+json").is_none(),
        "{method} {path}: {answer:?}"
    );
    if answer.status < 400 {
        for name in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name.to_ascii_lowercase()) {
            assert!(answer.header(&name).is_some(), "{method} {path} has no {name}");
        }
    }
    let kind = answer.header("content-type").unwrap_or("").split(';').next().unwrap_or("");
    let Some(content) = response["content"].get(kind) else {
        assert!(
            response["content"].is_null() && answer.body == "",
            "{method} {path} answers with {kind:?}: {answer:?}"
        );
        return;
    };
    if kind.ends_with("json")
        && let Err(why) = fits(&answer.body, &content["schema"], "")
    {
        panic!("{method} {path} is not as documented: {why}: {:#}", answer.body);
    }
}

/// The operation of this path, whose parts in braces stand for anything.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let found = paths.iter().find(|(template, item)| {
        let template: Vec<&str> = template.trim_start_matches("/api/v1").split('/').skip(1).collect();
        template.len() == parts.len()
            && template.iter().zip(&parts).all(|(wanted, part)| wanted.starts_with('{') || wanted == part)
            && item.get(method.to_ascii_lowercase()).is_some()
    });
    found.map(|(_, item)| &item[method.to_ascii_lowercase()])
}

/// Whether a value is of this schema (JSON Schema 2020-12, as far as the document uses it).
fn fits(value: &Value, schema: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/components/schemas/")) {
        let named = DOCUMENT["components"]["schemas"].get(name).ok_or_else(|| format!("there is no schema {name}"))?;
        return fits(value, named, at);
    }
    for choice in ["oneOf", "anyOf"] {
        if let Some(schemas) = schema[choice].as_array() {
            let tried: Vec<Result<(), String>> = schemas.iter().map(|schema| fits(value, schema, at)).collect();
            return match tried.iter().any(Result::is_ok) {
                true => Ok(()),
                false => Err(tried.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; or ")),
            };
        }
    }
    is_of_type(value, schema, at)?;
    if let Some(words) = schema["enum"].as_array().filter(|words| !words.contains(value)) {
        return Err(format!("{at} is {value}, none of {words:?}"));
    }
    match value {
        Value::Object(fields) if schema["properties"].is_object() || schema["additionalProperties"].is_object() => {
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(name) {
                    return Err(format!("{at} has no {name}"));
                }
            }
            for (name, value) in fields {
                let at = format!("{at}.{name}");
                match (schema["properties"].get(name), schema.get("additionalProperties")) {
                    (Some(schema), _) | (None, Some(schema)) => fits(value, schema, &at)?,
                    (None, None) => return Err(format!("{at} is not documented")),
                }
            }
            Ok(())
        }
        Value::Array(items) if schema["items"].is_object() => {
            items.iter().enumerate().try_for_each(|(n, item)| fits(item, &schema["items"], &format!("{at}[{n}]")))
        }
        _ => Ok(()),
    }
}

fn is_of_type(value: &Value, schema: &Value, at: &str) -> Result<(), String> {
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let is = |kind: &&str| match *kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        _ => false,
    };
    if kinds.iter().any(is) { Ok(()) } else { Err(format!("{at} is {value}, not {kinds:?}")) }
}

#[test]
fn every_operation_is_described_in_full() {
    let mut operations = 0;
    for (path, item) in DOCUMENT["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            operations += 1;
            let place = format!("{method} {path}");
            let responses = operation["responses"].as_object().expect("responses");
            assert!(responses["default"]["content"]["application/problem+json"].is_object(), "{place}");
            let success: Vec<&Value> =
                responses.iter().filter(|(status, _)| status.starts_with('2')).map(|(_, response)| response).collect();
            assert!(!success.is_empty(), "{place}");
            if method != "delete" {
                assert!(success.iter().all(|response| response["content"].is_object()), "{place} says nothing");
            }
            let headers: Vec<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "header")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            match method.as_str() {
                "post" => assert_eq!(headers, ["Idempotency-Key"], "{place}"),
                "patch" => assert_eq!(headers, ["If-Match"], "{place}"),
                _ => {}
            }
            if method == "patch"
                || (method == "post" && !path.ends_with("/join-token") && !path.ends_with("/reconcile"))
            {
                assert!(operation["requestBody"].is_object(), "{place} takes a body");
            }
        }
    }
    assert!(operations > 40, "{operations}");
    // No reference leads nowhere.
    let text = DOCUMENT.to_string();
    for name in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(DOCUMENT["components"]["schemas"][name].is_object(), "{name} is not described");
    }
}

#[test]
fn the_check_can_fail() {
    let name = |name: &str| serde_json::json!({ "$ref": format!("#/components/schemas/{name}") });
    let good = serde_json::json!({ "result": "done" });
    assert_eq!(fits(&good, &name("OrderDone"), ""), Ok(()));
    for bad in [
        serde_json::json!({}),
        serde_json::json!({ "result": 7 }),
        serde_json::json!({ "result": "done", "more": 1 }),
        serde_json::json!([]),
    ] {
        assert!(fits(&bad, &name("OrderDone"), "").is_err(), "{bad}");
    }
    assert!(fits(&serde_json::json!("purple"), &name("NodeState"), "").is_err());
}
