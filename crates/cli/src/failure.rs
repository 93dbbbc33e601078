//! How a command ends when it does not succeed, and what the person reads then.
//!
//! Every failure says what is wrong and, where that is known, how to mend it. The exit code tells scripts the three cases apart:
//! refused or failed (1), used wrongly (2, which clap also uses), panel out of reach (3).

use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write as _;

use crate::render::text::printable;

/// A command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The panel answered with a problem document.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// No panel answered.
    #[error("cannot reach the panel at {panel}: {why}")]
    Unreachable {
        /// The panel's base address as given.
        panel: String,
        /// What happened, in words.
        why: String,
        /// How to mend it.
        hint: String,
    },
    /// The command line can't be carried out as given.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// How to mend it.
        hint: String,
    },
    /// The reader of our output has gone; nothing is left to say and nobody to say it to.
    #[error("the output was closed")]
    OutputClosed,
    /// Anything else, with its chain of causes.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// An error as the panel states it (RFC 9457).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// A short name for the kind of problem.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request.
    pub detail: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// The rule of the model that the change would break.
    pub rule: Option<String>,
    /// What is wrong with each field.
    pub errors: Vec<FieldError>,
    /// The document as it came, for `--json`.
    #[serde(skip)]
    pub document: Value,
}

/// One field that the panel refused.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct FieldError {
    /// The field's name in the request.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Problem {
    /// Reads the body of an answer with an error status; what is no problem document becomes one.
    pub fn from_answer(status: u16, body: &str) -> Self {
        let document: Option<Value> = serde_json::from_str(body).ok().filter(Value::is_object);
        let parsed = document.as_ref().and_then(|document| Problem::deserialize(document).ok());
        let mut problem = parsed.unwrap_or_default();
        problem.status = status;
        if problem.detail.is_empty() {
            let first_line: String = body.lines().next().unwrap_or_default().chars().take(200).collect();
            problem.detail = match (problem.title.is_empty(), first_line.is_empty() || document.is_some()) {
                (false, _) => problem.title.clone(),
                (true, false) => format!("the panel answered {status}: {first_line}"),
                (true, true) => format!("the panel answered {status} and gave no reason"),
            };
        }
        problem.detail = without_place(&problem.detail).to_owned();
        problem.document = document.unwrap_or_else(
            || serde_json::json!({"title": "failed", "status": status, "detail": problem.detail.clone()}),
        );
        problem
    }

    /// The panel's advice, put into this command's words where it speaks of the API's.
    fn hint(&self) -> Option<String> {
        let theirs = self.hint.as_deref().filter(|hint| !hint.is_empty());
        let ours = match (self.status, self.rule.as_deref()) {
            (_, Some("last-node-stays")) => "bring another node into service first, or repeat it with --anyway",
            (401, _) => {
                "give a token by --token-file or PHALANX_TOKEN; root on the panel's machine has one in \
                 /var/lib/phalanx/panel/admin.token, which is used by itself"
            }
            (403, _) => {
                "this token may look and change nothing; use one of role admin (`phalanx token add NAME --role admin`)"
            }
            (404, _) => return theirs.and_then(list_command).or_else(|| theirs.map(str::to_owned)),
            (412, _) => "somebody else changed it in the meantime: look at it with `show`, then try again",
            // The field is named already; that it is to be mended goes without saying.
            (422, _) if theirs.is_some_and(|hint| hint.starts_with("mend ")) => return None,
            _ if theirs.is_some_and(|hint| hint.contains("?sites=true")) => {
                "remove its sites first, or repeat it with --with-sites"
            }
            _ if theirs.is_some_and(|hint| hint.contains("?mailboxes=true")) => {
                "remove these first, or repeat it with --with-mailboxes"
            }
            _ => return theirs.map(str::to_owned),
        };
        Some(ours.to_owned())
    }
}

/// Cuts off where in the request's JSON a value stood: whoever typed a command has not seen that.
fn without_place(detail: &str) -> &str {
    let Some((words, place)) = detail.rsplit_once(" at line ") else { return detail };
    let is_place = place.split_once(" column ").is_some_and(|(line, column)| {
        [line, column].iter().all(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    });
    if is_place { words } else { detail }
}

/// The command that lists what the panel's hint names by its path: `… GET /api/v1/servers`.
fn list_command(hint: &str) -> Option<String> {
    let (_, plural) = hint.split_once("GET /api/v1/")?;
    let noun = match plural {
        "addresses" => "address",
        "mailboxes" => "mailbox",
        "aliases" => "alias",
        "servers" | "clusters" | "shares" | "logical-servers" | "accounts" | "sites" | "tokens" | "mail-domains" => {
            plural.trim_end_matches('s')
        }
        _ => return None,
    };
    Some(format!("`phalanx {noun} list` shows what there is"))
}

impl Failure {
    /// A command line that can't be carried out, and what to do instead.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(_) | Self::Other(_) => 1,
            Self::Usage { .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::OutputClosed => 0,
        }
    }

    /// What the person reads: `error: …`, then `rule: …` and `hint: …` where there are any.
    pub fn text(&self) -> String {
        let mut text = match self {
            Self::OutputClosed => return String::new(),
            Self::Other(error) => format!("error: {error:#}\n"),
            known => format!("error: {}\n", printable(&known.to_string())),
        };
        let mut line = |key: &str, value: &str| {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{key}: {}", printable(value));
        };
        match self {
            Self::Problem(problem) => {
                for FieldError { field, detail } in &problem.errors {
                    let detail = without_place(detail);
                    if detail != problem.detail {
                        line(&format!("  {}", printable(field)), detail);
                    }
                }
                if let Some(rule) = &problem.rule {
                    line("rule", rule);
                }
                if let Some(hint) = problem.hint() {
                    line("hint", &hint);
                }
            }
            Self::Unreachable { hint, .. } | Self::Usage { hint, .. } => line("hint", hint),
            Self::Other(_) | Self::OutputClosed => {}
        }
        text
    }

    /// The same for programs: the panel's problem document, or one in its shape.
    pub fn json(&self) -> Value {
        match self {
            Self::Problem(problem) => problem.document.clone(),
            Self::Unreachable { hint, .. } => {
                serde_json::json!({"title": "panel out of reach", "detail": self.to_string(), "hint": hint})
            }
            Self::Usage { hint, .. } => {
                serde_json::json!({"title": "wrong usage", "detail": self.to_string(), "hint": hint})
            }
            Self::OutputClosed => Value::Null,
            Self::Other(error) => serde_json::json!({"title": "failed", "detail": format!("{error:#}")}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_refusal_names_the_rule_and_the_way_out() {
        let body = r#"{"type":"x","title":"Refused","status":409,"detail":"web2 is a slave of cluster web",
            "hint":"create it on the master, web1","rule":"slave-holds-no-logical-server"}"#;
        let failure = Failure::Problem(Box::new(Problem::from_answer(409, body)));
        expect![[r#"
            error: web2 is a slave of cluster web
            rule: slave-holds-no-logical-server
            hint: create it on the master, web1
        "#]]
        .assert_eq(&failure.text());
        assert_eq!(failure.exit_code(), 1);
        assert_eq!(failure.json()["rule"], "slave-holds-no-logical-server");
    }

    #[test]
    fn hints_speak_of_commands() {
        let hint = |status, body| Problem::from_answer(status, body).hint();
        let unknown = r#"{"detail":"there is no address x","hint":"list what exists: GET /api/v1/addresses"}"#;
        assert_eq!(hint(404, unknown).as_deref(), Some("`phalanx address list` shows what there is"));
        for (path, noun) in [("mail-domains", "mail-domain"), ("mailboxes", "mailbox"), ("aliases", "alias")] {
            let unknown = unknown.replace("addresses", path);
            assert_eq!(
                Problem::from_answer(404, &unknown).hint(),
                Some(format!("`phalanx {noun} list` shows what there is"))
            );
        }
        let last = r#"{"detail":"x","rule":"last-node-stays","hint":"say it twice: anyway"}"#;
        assert!(hint(409, last).is_some_and(|hint| hint.contains("--anyway")));
        let sites =
            r#"{"detail":"x","rule":"in-use-is-not-removed","hint":"remove them first, or with it: ?sites=true"}"#;
        assert!(hint(409, sites).is_some_and(|hint| hint.contains("--with-sites")));
        let mail =
            r#"{"detail":"x","rule":"in-use-is-not-removed","hint":"remove these first, or with it: ?mailboxes=true"}"#;
        assert!(hint(409, mail).is_some_and(|hint| hint.contains("--with-mailboxes")));
        assert_eq!(hint(409, r#"{"hint":"as it is"}"#).as_deref(), Some("as it is"));
    }

    #[test]
    fn each_refused_field_is_named() {
        let body = r#"{"title":"Invalid","status":422,"detail":"2 fields are not valid",
            "hint":"mend the request","errors":[{"field":"name","detail":"it is empty at line 1 column 9"},{"field":"address","detail":"no prefix \u001b[31m"}]}"#;
        let failure = Failure::Problem(Box::new(Problem::from_answer(422, body)));
        expect![[r#"
            error: 2 fields are not valid
              name: it is empty
              address: no prefix �[31m
        "#]]
        .assert_eq(&failure.text());
    }

    #[test]
    fn an_answer_that_is_no_problem_document_still_says_something() {
        let text = |status, body| Failure::Problem(Box::new(Problem::from_answer(status, body))).text();
        assert_eq!(text(502, "bad gateway\n"), "error: the panel answered 502: bad gateway\n");
        assert_eq!(text(500, ""), "error: the panel answered 500 and gave no reason\n");
        assert_eq!(text(418, "{}"), "error: the panel answered 418 and gave no reason\n");
        assert!(text(401, "").contains("hint: give a token by --token-file"));
    }
}
