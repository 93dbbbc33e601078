//! Text that came from elsewhere, made safe and short for a terminal.

use serde_json::Value;

/// Replaces control characters, so that nothing a node, a daemon or a customer wrote can steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// Control characters, and those that turn the direction of writing around (Unicode's bidirectional controls).
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A JSON value as a cell of a table: lists joined by commas, objects as `key=value`, nothing as `-`.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| format!("{}={}", printable(key), cell(value)))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

/// How many columns a text takes, one for each character. Names in Phalanx are ASCII; only foreign words can be off.
pub fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c");
        assert_eq!(printable("Grüße → 100 %"), "Grüße → 100 %");
    }

    #[test]
    fn every_value_fits_a_cell() {
        for (value, text) in [
            (json!(null), "-"),
            (json!(true), "yes"),
            (json!([]), "-"),
            (json!(["a", "b"]), "a, b"),
            (json!({"web1": "10.0.0.1", "web2": 3}), "web1=10.0.0.1 web2=3"),
        ] {
            assert_eq!(cell(&value), text);
        }
    }
}
