//! Each text in each field of a request's body. Which fields there are is the API's own document's word.

use super::api::Api;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Where a text is put: the request, with `@` for the text as JSON; and, where a text may be accepted, what shows it and what takes it away.
pub struct Field {
    method: &'static str,
    path: &'static str,
    body: &'static str,
    /// The field that the text went to, in the answer.
    field: &'static str,
}

const fn field(method: &'static str, path: &'static str, body: &'static str, field: &'static str) -> Field {
    Field { method, path, body, field }
}

/// For a field whose value is never shown.
const NOT_SHOWN: &str = "-";

/// Every text field of the API. `POST` makes a thing, which is read back at the answer's `Location` and removed.
const FIELDS: [Field; 83] = [
    field("POST", "/servers", r#"{"name":@,"kind":"web","address":"10.9.0.50/24"}"#, "/name"),
    field("POST", "/servers", r#"{"name":"fresh","kind":@,"address":"10.9.0.50/24"}"#, "/kind"),
    field("POST", "/servers", r#"{"name":"fresh","kind":"web","address":@}"#, "/address"),
    field("PATCH", "/servers/spare", r#"{"address":@}"#, "/address"),
    field("PATCH", "/servers/spare", r#"{"fence":@}"#, "/fence"),
    field("POST", "/servers/pillar/fence", r#"{"confirmation":@}"#, ""),
    field("POST", "/servers/pillar/fence", r#"{"anyway":@}"#, ""),
    field("POST", "/servers/pillar/unfence", r#"{"confirmation":@}"#, ""),
    field("POST", "/queues/pillar/adopt", r#"{"to":@}"#, ""),
    field("POST", "/queues/pillar/adopt", r#"{"to":"nobody","confirmation":@}"#, ""),
    field("POST", "/queues/pillar/flush", r#"{"id":@,"all":true}"#, ""),
    field("POST", "/queues/pillar/flush", r#"{"id":"4bJx2v0Zk9z1qWd","all":@}"#, ""),
    field("POST", "/queues/pillar/hold", r#"{"id":@,"all":true}"#, ""),
    field("POST", "/queues/pillar/hold", r#"{"id":"4bJx2v0Zk9z1qWd","all":@}"#, ""),
    field("POST", "/queues/pillar/release", r#"{"id":@,"all":true}"#, ""),
    field("POST", "/queues/pillar/release", r#"{"id":"4bJx2v0Zk9z1qWd","all":@}"#, ""),
    field("POST", "/queues/pillar/delete", r#"{"id":@,"all":true}"#, ""),
    field("POST", "/queues/pillar/delete", r#"{"id":"4bJx2v0Zk9z1qWd","all":@}"#, ""),
    field("POST", "/clusters", r#"{"name":@,"kind":"mail","master":"spare","mail_name":"m.example.net"}"#, "/name"),
    field("POST", "/clusters", r#"{"name":"fresh","kind":@,"master":"spare","mail_name":"m.example.net"}"#, "/kind"),
    field("POST", "/clusters", r#"{"name":"fresh","kind":"mail","master":@,"mail_name":"m.example.net"}"#, "/master"),
    field(
        "POST",
        "/clusters",
        r#"{"name":"fresh","kind":"mail","master":"spare","mail_name":"m.example.net","share":@}"#,
        "/share",
    ),
    field("POST", "/clusters", r#"{"name":"fresh","kind":"mail","master":"spare","mail_name":@}"#, "/mail/host_name"),
    field("PATCH", "/clusters/mail", r#"{"mail_name":@}"#, "/mail/host_name"),
    field("POST", "/clusters/mail/grants/mailboxes/move", r#"{"to":@}"#, ""),
    field("PATCH", "/clusters/mail", r#"{"share":@}"#, "/share"),
    field("PATCH", "/clusters/web", r#"{"httpd_directives":@}"#, ""),
    field("POST", "/clusters/web/slaves", r#"{"server":@}"#, ""),
    field("POST", "/clusters/web/slaves", r#"{"server":"nobody","weight":@}"#, ""),
    field("PATCH", "/clusters/web/nodes/web1", r#"{"weight":@}"#, ""),
    field("PATCH", "/clusters/web/nodes/web1", r#"{"drained":@}"#, ""),
    field("PATCH", "/clusters/web/nodes/web1", r#"{"anyway":@}"#, ""),
    field("POST", "/shares", r#"{"name":@,"kind":"local","nas":"storage","path":"/srv/nas/fresh"}"#, "/name"),
    field("POST", "/shares", r#"{"name":"fresh","kind":@,"nas":"storage","path":"/srv/nas/fresh"}"#, "/kind"),
    field("POST", "/shares", r#"{"name":"fresh","kind":"local","nas":@,"path":"/srv/nas/fresh"}"#, "/nas"),
    field("POST", "/shares", r#"{"name":"fresh","kind":"local","nas":"storage","path":@}"#, "/path"),
    field("PATCH", "/shares/other", r#"{"nas":@}"#, "/nas"),
    field("PATCH", "/shares/other", r#"{"path":@}"#, "/path"),
    field("POST", "/addresses", r#"{"external":@,"balancer":"front","cluster":"web"}"#, "/external"),
    field("POST", "/addresses", r#"{"external":"198.51.100.12:80","balancer":@,"cluster":"web"}"#, "/balancer"),
    field("POST", "/addresses", r#"{"external":"198.51.100.12:80","balancer":"front","cluster":@}"#, "/cluster"),
    field(
        "POST",
        "/addresses",
        r#"{"external":"198.51.100.12:80","balancer":"front","cluster":"web","port":@}"#,
        "/port",
    ),
    field(
        "POST",
        "/addresses",
        r#"{"external":"198.51.100.12:80","balancer":"front","cluster":"web","internal":{@:"10.9.0.51"}}"#,
        "/internal",
    ),
    field(
        "POST",
        "/addresses",
        r#"{"external":"198.51.100.12:80","balancer":"front","cluster":"web","internal":{"web1":@}}"#,
        "/internal/web1",
    ),
    field("PATCH", "/addresses/198.51.100.10:80", r#"{"port":@}"#, "/port"),
    field("PATCH", "/addresses/198.51.100.10:80", r#"{"internal":{@:"10.9.0.51"}}"#, "/internal"),
    field("PATCH", "/addresses/198.51.100.10:80", r#"{"internal":{"web1":@}}"#, "/internal/web1"),
    field("POST", "/logical-servers", r#"{"name":@,"server":"web1"}"#, "/name"),
    field("POST", "/logical-servers", r#"{"name":"fresh","server":@}"#, "/server"),
    field("POST", "/accounts", r#"{"name":@,"logical_server":"www"}"#, "/name"),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":@}"#, "/logical_server"),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":"www","owner":@}"#, "/owner"),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":"www","php":@}"#, "/php"),
    field(
        "POST",
        "/accounts",
        r#"{"name":"fresh","logical_server":"www","limits":{"cpu_percent":@}}"#,
        "/limits/cpu_percent",
    ),
    field("PATCH", "/accounts/ada", r#"{"state":@}"#, "/state"),
    field("PATCH", "/accounts/ada", r#"{"php":@}"#, "/php"),
    field("PATCH", "/accounts/ada", r#"{"limits":{"memory_mib":@}}"#, "/limits/memory_mib"),
    field("PATCH", "/sites/ada.example.org", r#"{"document_root":@}"#, "/document_root"),
    field("POST", "/sites", r#"{"name":@,"account":"ada"}"#, "/name"),
    field("POST", "/sites", r#"{"name":"fresh.example.org","account":@}"#, "/account"),
    field("POST", "/sites", r#"{"name":"fresh.example.org","account":"ada","aliases":[@]}"#, "/aliases/0"),
    field("POST", "/sites", r#"{"name":"fresh.example.org","account":"ada","document_root":@}"#, "/document_root"),
    field("PATCH", "/sites/ada.example.org", r#"{"aliases":["fine.example.org",@]}"#, "/aliases/1"),
    field("POST", "/mail-domains", r#"{"name":@,"account":"ada","logical_server":"post"}"#, "/name"),
    field("POST", "/mail-domains", r#"{"name":"fresh.org","account":@,"logical_server":"post"}"#, "/account"),
    field("POST", "/mail-domains", r#"{"name":"fresh.org","account":"ada","logical_server":@}"#, "/logical_server"),
    field("PATCH", "/mail-domains/example.org", r#"{"state":@}"#, "/state"),
    field("POST", "/mailboxes", r#"{"address":@,"password":"long enough"}"#, "/address"),
    field("POST", "/mailboxes", r#"{"address":"fresh\u0040example.org","password":@}"#, NOT_SHOWN),
    field("POST", "/mailboxes", r#"{"address":"fresh\u0040example.org","password_hash":@}"#, NOT_SHOWN),
    field(
        "POST",
        "/mailboxes",
        r#"{"address":"fresh\u0040example.org","password":"long enough","quota_mib":@}"#,
        "/quota_mib",
    ),
    field("PATCH", "/mailboxes/box@example.org", r#"{"password":@}"#, NOT_SHOWN),
    field("PATCH", "/mailboxes/box@example.org", r#"{"password_hash":@}"#, NOT_SHOWN),
    field("PATCH", "/mailboxes/box@example.org", r#"{"quota_mib":@}"#, "/quota_mib"),
    field("PATCH", "/mailboxes/box@example.org", r#"{"state":@}"#, "/state"),
    field("POST", "/aliases", r#"{"source":@,"targets":["box\u0040example.org"]}"#, "/source"),
    field("POST", "/aliases", r#"{"source":"fresh\u0040example.org","targets":[@]}"#, "/targets/0"),
    field("PATCH", "/aliases/alias@example.org", r#"{"targets":["box\u0040example.org",@]}"#, "/targets/1"),
    field("POST", "/tokens", r#"{"name":@,"role":"admin"}"#, "/name"),
    field("POST", "/tokens", r#"{"name":"fresh","role":@}"#, "/role"),
    field("POST", "/servers/web1/rollback", r#"{"generation":@}"#, ""),
    field("POST", "/servers", r#"{"name":"fresh","kind":"web","address":"10.9.0.50/24",@:1}"#, ""),
    field("POST", "/accounts", r#"{"name":"fresh","logical_server":"www","limits":{@:1}}"#, ""),
];

/// Each text in each field. Returns what was accepted, by field.
pub fn every_field(api: &mut Api, texts: &[String]) -> Result<BTreeMap<String, Vec<String>>> {
    let (mut accepted, mut wrong) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
    for field in &FIELDS {
        for text in texts {
            match put(api, field, text) {
                Ok(None) => {}
                Ok(Some(kept)) => accepted.entry(format!("{}{}", field.path, field.field)).or_default().push(kept),
                Err(error) => wrong.push(format!("{} {} with {text:.200}: {error:#}", field.path, field.body)),
            }
        }
    }
    let first: Vec<&str> = wrong.iter().take(30).map(String::as_str).collect();
    ensure!(wrong.is_empty(), "{} texts went wrong, among them\n{}", wrong.len(), first.join("\n"));
    Ok(accepted)
}

/// Puts a text into a field; returns it as it was read back, if it was taken.
fn put(api: &mut Api, Field { method, path, body, field }: &Field, text: &str) -> Result<Option<String>> {
    let Some(reply) = api.refusal_or(method, path, "", body.replace('@', text).as_bytes())? else { return Ok(None) };
    let sent: Value = serde_json::from_str(text).context("it was accepted, and is no text")?;
    let place = reply.headers.get("location").map_or(*path, |at| at.trim_start_matches("/api/v1")).to_owned();
    let kept = if *path == "/tokens" { reply } else { api.ask("GET", &place, "", b"")? };
    let shown = kept.body.pointer(field).unwrap_or(&Value::Null);
    let is_secret = *field == NOT_SHOWN;
    // Not even under another name. A text of a few characters may well be part of something else.
    let is_shown = sent.as_str().is_some_and(|sent| sent.len() > 12 && kept.body.to_string().contains(sent));
    ensure!(!is_secret || !is_shown, "{sent} is shown in {}", kept.body);
    let back = if is_secret { &sent } else { shown };
    ensure!(kept.status < 300 && is_same(field, &sent, back), "sent {sent}, read back {back} of {}", kept.body);
    if *method == "POST" {
        let gone = api.ask("DELETE", &place, "", b"")?;
        ensure!(gone.status == 204, "{place}: {} {}", gone.status, gone.body);
    }
    Ok(Some(back.as_str().unwrap_or_default().to_owned()))
}

/// Host names of the texts that are in letters, and how they are kept (RFC 5890).
const IN_LETTERS: [(&str, &str); 3] = [
    ("na\u{ef}ve.example.org", "xn--nave-6pa.example.org"),
    ("\u{43f}\u{440}\u{438}\u{43c}\u{435}\u{440}.\u{440}\u{444}", "xn--e1afmkfd.xn--p1ai"),
    ("\u{4f8b}\u{3048}.jp", "xn--r8jz45g.jp"),
];

/// Unchanged; but a host name has no case (RFC 4343), and is kept in lower case and in ASCII, and so are addresses of ours.
fn is_same(field: &str, sent: &Value, back: &Value) -> bool {
    let lower = |value: &Value| value.as_str().map(str::to_ascii_lowercase);
    let is_name =
        ["/name", "/aliases", "/address", "/source", "/targets", "/mail"].iter().any(|name| field.starts_with(name));
    let ascii =
        |sent: &Value| IN_LETTERS.iter().find(|(letters, _)| sent == letters).map(|(_, ascii)| (*ascii).to_owned());
    sent == back || (is_name && ascii(sent).or(lower(sent)) == lower(back))
}

/// Every field that the API's document names has a place in [`FIELDS`].
pub fn all_are_known(api: &mut Api) -> Result<()> {
    let document = api.ask("GET", "/openapi.json", "", b"")?.body;
    let paths = document["paths"].as_object().context("the document has paths")?;
    let (mut missing, mut count) = (BTreeSet::new(), 0);
    for (path, operations) in paths {
        let path = path.trim_start_matches("/api/v1");
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            for property in properties(&document, schema) {
                count += 1;
                let is_tried = FIELDS.iter().any(|field| {
                    field.method.eq_ignore_ascii_case(method) && is_at(path, field.path) && field.top() == property
                });
                if !is_tried {
                    missing.insert(format!("{method} {path} {property}"));
                }
            }
        }
    }
    ensure!(count > 30, "only {count} fields are in the document");
    ensure!(missing.is_empty(), "no text goes into {missing:?}");
    Ok(())
}

/// The names of a schema's fields, through references.
fn properties(document: &Value, schema: &Value) -> Vec<String> {
    let schema = match schema["$ref"].as_str() {
        Some(place) => document.pointer(place.trim_start_matches('#')).unwrap_or(&Value::Null),
        None => schema,
    };
    let all = ["allOf", "anyOf", "oneOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
    let mut found: Vec<String> = all.flat_map(|part| properties(document, part)).collect();
    found.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    found
}

/// Whether a path is one of a template's.
fn is_at(template: &str, path: &str) -> bool {
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len() && template.iter().zip(&path).all(|(t, p)| t.starts_with('{') || t == p)
}

impl Field {
    /// The field of the body that the text goes into.
    fn top(&self) -> String {
        let body: Value = serde_json::from_str(&self.body.replace('@', "\"@\"")).unwrap_or_default();
        let has_text = |(_, value): &(&String, &Value)| value.to_string().contains("\"@\"");
        body.as_object().into_iter().flatten().find(has_text).map(|(name, _)| name.clone()).unwrap_or_default()
    }
}
