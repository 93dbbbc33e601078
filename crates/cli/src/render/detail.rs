//! One resource in full: a line for each value, nested ones indented beneath their name.

use super::text::{cell, printable, width};
use serde_json::{Map, Value};

/// Nesting beyond this is shown on one line; the API has no deeper values worth a picture.
const DEPTH_MAX: usize = 4;

/// The resource as `name: value` lines. Bookkeeping of the API (`etag`) is left out: `--json` has it.
pub fn detail(resource: &Value) -> String {
    let mut text = String::new();
    match resource {
        Value::Object(fields) => block(&mut text, fields, 0),
        other => text = cell(other) + "\n",
    }
    text
}

fn block(text: &mut String, fields: &Map<String, Value>, depth: usize) {
    // Who leaves is worth a line only while somebody does.
    let is_idle = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
    let shown = || fields.iter().filter(move |(key, value)| *key != "etag" && (*key != "leaving" || !is_idle(value)));
    let key_width = shown().map(|(key, _)| width(key)).max().unwrap_or_default() + 1;
    for (key, value) in shown() {
        let indent = "  ".repeat(depth);
        let label = format!("{}:", printable(&key.replace('_', " ")));
        match value {
            Value::Object(inner) if !inner.is_empty() && depth < DEPTH_MAX => {
                *text += &format!("{indent}{label}\n");
                block(text, inner, depth + 1);
            }
            Value::Array(items) if items.iter().any(is_long) && depth < DEPTH_MAX => {
                *text += &format!("{indent}{label}\n");
                for item in items {
                    *text += &format!("{indent}  - {}\n", cell(item));
                }
            }
            value => *text += &format!("{indent}{label:<key_width$} {}\n", cell(value)),
        }
    }
}

/// Whether an item of a list needs a line of its own.
fn is_long(item: &Value) -> bool {
    item.is_object() || item.as_str().is_some_and(|text| text.contains(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn nested_values_are_indented() {
        let cluster = json!({
            "name": "web", "kind": "web", "slaves": {"web2": {"weight": 10, "drained": false}},
            "share": null, "leaving": {}, "httpd_directives": ["LimitRequestBody 1000"], "aliases": ["a", "b"], "etag": "\"3\"",
        });
        expect![[r#"
            name:             web
            kind:             web
            slaves:
              web2:
                weight:  10
                drained: no
            share:            -
            httpd directives:
              - LimitRequestBody 1000
            aliases:          a, b
        "#]]
        .assert_eq(&detail(&cluster));
    }
}
