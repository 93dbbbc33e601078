//! Events and audit records as lines.

use super::style::{Style, Tone};
use super::text::{cell, printable};
use serde_json::Value;

/// Lines of an event's detail beyond this are left to `--json`.
const DETAIL_LINES_MAX: usize = 40;

/// One event: a line, and its detail indented beneath.
pub fn event(event: &Value, style: Style) -> String {
    let word = |key: &str| printable(event[key].as_str().unwrap_or("-"));
    let severity = word("severity");
    let (mark, tone) = match severity.as_str() {
        "error" => ("✖", Tone::Bad),
        "warning" => ("▲", Tone::Warning),
        _ => ("·", Tone::Quiet),
    };
    let mut text = format!(
        "{}  {} {:<10}  {:<10}  {}\n",
        style.paint(Tone::Quiet, &moment(&event["at"])),
        style.paint(tone, mark),
        word("server"),
        word("topic"),
        style.paint(if tone == Tone::Quiet { Tone::Normal } else { tone }, &word("text")),
    );
    let detail = event["detail"].as_str().unwrap_or_default().trim_end();
    let lines = detail.lines().count();
    for line in detail.lines().take(DETAIL_LINES_MAX) {
        let tone = match line.as_bytes().first() {
            Some(b'+') => Tone::Good,
            Some(b'-') => Tone::Bad,
            _ => Tone::Quiet,
        };
        text += &format!("    {}\n", style.paint(tone, &printable(&line.replace('\t', "    "))));
    }
    if lines > DETAIL_LINES_MAX {
        text += &format!("    … {} more lines: see --json\n", lines - DETAIL_LINES_MAX);
    }
    text
}

/// One audit record: who did what, when, and what it was before and after.
pub fn audit(record: &Value, style: Style) -> String {
    let mut text = format!(
        "{}  {:<12}  {}\n",
        style.paint(Tone::Quiet, &moment(&record["at"])),
        cell(&record["actor"]),
        ["action", "kind", "name"].map(|key| cell(&record[key])).join(" "),
    );
    let (before, after) = (&record["before"], &record["after"]);
    for (side, other, sign, tone) in [(before, after, '-', Tone::Bad), (after, before, '+', Tone::Good)] {
        let side = what_differs(side, other);
        if !side.is_null() {
            text += &format!("    {}\n", style.paint(tone, &format!("{sign} {}", cell(&side))));
        }
    }
    text
}

/// The fields of an object that the other one has not, or not so; the whole where there is no other one.
fn what_differs(side: &Value, other: &Value) -> Value {
    match (side, other) {
        (Value::Object(fields), Value::Object(others)) => fields
            .iter()
            .filter(|(key, value)| others.get(*key) != Some(value))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        _ => side.clone(),
    }
}

/// A moment of the API (RFC 3339 in UTC) as people read it, still in UTC.
pub fn moment(at: &Value) -> String {
    let text = cell(at);
    match text.strip_suffix('Z') {
        Some(utc) if utc.len() >= 19 => utc.replacen('T', " ", 1),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn an_event_has_its_detail_beneath() {
        let mended = json!({
            "id": 7, "at": "2026-11-22T22:11:04Z", "server": "web1", "severity": "warning", "topic": "drift",
            "text": "a rule was missing from nftables and is back", "detail": "-old\n+new\u{1b}[2J\n",
        });
        expect![[r#"
            2026-11-22 22:11:04  ▲ web1        drift       a rule was missing from nftables and is back
                -old
                +new�[2J
        "#]]
        .assert_eq(&event(&mended, Style::Plain));
    }

    #[test]
    fn an_audit_record_shows_both_sides() {
        let record = json!({
            "at": "2026-11-22T22:11:04Z", "actor": "admin", "action": "change", "kind": "account", "name": "alice",
            "before": {"name": "alice", "state": "active"}, "after": {"name": "alice", "state": "suspended"},
        });
        expect![[r#"
            2026-11-22 22:11:04  admin         change account alice
                - state=active
                + state=suspended
        "#]]
        .assert_eq(&audit(&record, Style::Plain));
    }
}
