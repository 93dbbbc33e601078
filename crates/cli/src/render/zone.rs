//! Records of the DNS as a piece of a zone file (RFC 1035, section 5), to be pasted as it is.

use super::text::printable;
use serde_json::Value;

/// The longest string of a TXT record, in bytes (RFC 1035, 3.3); a longer text is several strings, which receivers join.
const STRING_LEN_MAX: usize = 255;

/// The records of `domain`, each below a comment that says what it is for.
pub fn zone(domain: &str, records: &[Value]) -> String {
    let mut text = format!("; For the DNS of {}:\n", printable(domain));
    let mut told = "";
    for record in records {
        let field = |key: &str| record[key].as_str().unwrap_or_default();
        if field("why") != told {
            told = field("why");
            text += &format!("; {}\n", printable(told));
        }
        let (name, kind) = (printable(field("name")), printable(field("type")));
        let data = if kind == "TXT" { strings(field("value")) } else { printable(field("value")) };
        text += &format!("{name}. IN {kind} {data}\n");
    }
    text
}

/// A text as strings in quotes, none longer than may be. What is outside ASCII, and so in none of our records, is replaced: it may be cut.
fn strings(text: &str) -> String {
    let plain: Vec<char> = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    let quoted = plain.chunks(STRING_LEN_MAX).map(|part| {
        let escaped = part.iter().flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([*c]));
        format!("\"{}\"", escaped.collect::<String>())
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn long_texts_are_several_strings() {
        let record = |kind: &str, value: String, why: &str| json!({"name": "a.example.org", "type": kind, "value": value, "why": why});
        let records = [
            record("TXT", format!("p={}", "x".repeat(300)), "a key"),
            record("TXT", "say \"a\\b\"".into(), "quotes"),
            record("SRV", "0 1 993 mail.example.net.".into(), "service"),
            record("SRV", "10 1 995 mail\u{1b}[31m.".into(), "service"),
        ];
        let text = zone("example.org", &records);
        let strings: Vec<usize> =
            text.lines().nth(2).expect("a record").split('"').skip(1).step_by(2).map(str::len).collect();
        assert_eq!(strings, [255, 47]);
        let rest: Vec<&str> = text.lines().skip(3).collect();
        expect![[r#"
            ; quotes
            a.example.org. IN TXT "say \"a\\b\""
            ; service
            a.example.org. IN SRV 0 1 993 mail.example.net.
            a.example.org. IN SRV 10 1 995 mail�[31m."#]]
        .assert_eq(&rest.join("\n"));
    }
}
