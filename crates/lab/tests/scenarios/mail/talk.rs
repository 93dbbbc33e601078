//! SMTP said byte by byte from the world, through the balancer: what no well-behaved client would say.

use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;
use phalanx_lab::figure::mail::{FAR, MAIL_EXTERNAL, PASSWORD};
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("talk.py");

/// One connection: what is said, and the answers that it must get.
pub struct Dialogue {
    what: String,
    port: u16,
    login: Option<String>,
    steps: Vec<Value>,
    /// For each step the beginning of its answer, and words in it.
    answers: Vec<(String, String)>,
}

impl Dialogue {
    /// At port 25, after EHLO. `what` it shows stands in its failure.
    pub fn from_world(what: impl Into<String>) -> Self {
        Self::at(25, None, what).say(&format!("EHLO world.{FAR}"), "250", "")
    }

    /// Nothing is said yet.
    pub fn silent(what: impl Into<String>) -> Self {
        Self::at(25, None, what)
    }

    /// At the submission port, with EHLO said and nothing proven.
    pub fn at_submission(what: impl Into<String>) -> Self {
        Self::at(587, None, what).say(&format!("EHLO world.{FAR}"), "250", "")
    }

    /// At the submission port, logged in.
    pub fn of(address: &str, what: impl Into<String>) -> Self {
        Self::at(587, Some(address.to_owned()), what)
    }

    fn at(port: u16, login: Option<String>, what: impl Into<String>) -> Self {
        Self { what: what.into(), port, login, steps: Vec::new(), answers: Vec::new() }
    }

    fn step(mut self, kind: &str, parts: Value, code: &str, words: &str) -> Self {
        self.steps.push(json!([kind, parts]));
        self.answers.push((code.to_owned(), words.to_owned()));
        self
    }

    /// Says a line; its answer begins with `code` and has `words` in it.
    pub fn say(self, line: &str, code: &str, words: &str) -> Self {
        self.step("say", json!([line]), code, words)
    }

    /// Sends bytes, each character one of Latin-1, a part as often as it says.
    pub fn raw(self, parts: &[(&str, usize)], code: &str, words: &str) -> Self {
        self.step("raw", json!(parts), code, words)
    }

    /// One more answer, or none: `silent`.
    pub fn more(self, code: &str, words: &str) -> Self {
        self.step("more", json!([]), code, words)
    }

    /// An envelope that is taken, and DATA.
    pub fn envelope(self, from: &str, to: &str) -> Self {
        self.say(&format!("MAIL FROM:<{from}>"), "250 2.1.0", "")
            .say(&format!("RCPT TO:<{to}>"), "250 2.1.5", "")
            .say("DATA", "354", "")
    }
}

/// The header of a letter, as nobody has anything to say against, without the empty line at its end.
pub fn header(from: &str, subject: &str) -> String {
    format!(
        "From: {from}\r\nTo: info@example.org\r\nDate: Sat, 28 Nov 2026 12:00:00 +0000\r\nMessage-Id: <{subject}@far.example>\r\nSubject: {subject}\r\n"
    )
}

/// Has all of them said, one after the other; each answer must be the expected one.
pub fn talk(figure: &Figure, dialogues: &[Dialogue]) -> Result<()> {
    let world = figure.host("world");
    world.write_file("/run/talk.py", SCRIPT.as_bytes())?;
    let order = |d: &Dialogue| json!({"port": d.port, "login": d.login, "password": PASSWORD, "steps": d.steps});
    let orders = Value::from_iter(dialogues.iter().map(order)).to_string();
    world.write_file("/run/talk.json", orders.as_bytes())?;
    let run = world.spawn(&format!("exec python3 /run/talk.py {MAIL_EXTERNAL} < /run/talk.json"))?;
    let said = run.wait(std::time::Duration::from_secs(180))?.text()?;
    let said: Vec<Vec<String>> =
        said.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(said.clone())?;
    ensure!(said.len() == dialogues.len(), "{} dialogues of {} ended", said.len(), dialogues.len());
    let mut wrong = Vec::new();
    for (dialogue, said) in dialogues.iter().zip(&said) {
        let is_right =
            |(said, (code, words)): &(&String, &(String, String))| said.starts_with(code) && said.contains(words);
        if let Some((said, expected)) = said.iter().zip(&dialogue.answers).find(|pair| !is_right(pair)) {
            wrong.push(format!("{}: it said {said:?} where {expected:?} was expected", dialogue.what));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} dialogues went wrong:\n{}", wrong.len(), dialogues.len(), wrong.join("\n"));
    Ok(())
}
