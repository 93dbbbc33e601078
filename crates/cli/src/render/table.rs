//! Lists as aligned columns.

use super::style::{Style, Tone};
use super::text::{cell, width};
use serde_json::Value;

/// A column: its heading and where its value lies in each item (a JSON pointer, RFC 6901).
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// The heading, in capitals.
    pub heading: &'static str,
    /// Where the value lies. Several, separated by a blank, are tried in order; the first that exists is shown.
    pub pointers: &'static str,
    /// Whether an object is shown by its keys alone.
    pub keys_only: bool,
}

impl Column {
    /// A column.
    pub const fn new(heading: &'static str, pointers: &'static str) -> Self {
        Self { heading, pointers, keys_only: false }
    }

    /// A column for the keys of an object.
    pub const fn keys(heading: &'static str, pointers: &'static str) -> Self {
        Self { heading, pointers, keys_only: true }
    }

    fn value(&self, item: &Value) -> String {
        let found = self.pointers.split(' ').filter_map(|pointer| item.pointer(pointer)).find(|value| !value.is_null());
        match found {
            None => "-".to_owned(),
            Some(Value::Object(fields)) if self.keys_only => cell(&fields.keys().cloned().collect()),
            Some(value) => cell(value),
        }
    }
}

/// The items under their headings. An empty list gives an empty text.
pub fn table(columns: &[Column], items: &[Value], style: Style) -> String {
    if items.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> =
        items.iter().map(|item| columns.iter().map(|column| column.value(item)).collect()).collect();
    let headings: Vec<String> = columns.iter().map(|column| column.heading.to_owned()).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|i| rows.iter().chain([&headings]).map(|row| width(&row[i])).max().unwrap_or_default())
        .collect();
    let mut text = style.paint(Tone::Quiet, &line(&headings, &widths)) + "\n";
    for row in &rows {
        text += &line(row, &widths);
        text.push('\n');
    }
    text
}

/// One line, its cells two blanks apart, without blanks at its end.
fn line(row: &[String], widths: &[usize]) -> String {
    let padded: Vec<String> = row.iter().zip(widths).map(|(text, width)| format!("{text:<width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn columns_are_aligned() {
        let columns =
            [Column::new("NAME", "/name"), Column::new("STATE", "/state/word /state"), Column::keys("X", "/x")];
        let items = [
            json!({"name": "web1", "state": {"word": "joined"}}),
            json!({"name": "a-long-name", "x": {"p": 1, "q": {}}}),
        ];
        expect![[r#"
            NAME         STATE   X
            web1         joined  -
            a-long-name  -       p, q
        "#]]
        .assert_eq(&table(&columns, &items, Style::Plain));
        assert_eq!(table(&columns, &[], Style::Plain), "");
    }
}
