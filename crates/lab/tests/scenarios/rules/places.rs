//! Where the code refuses a change by a rule: every place of it, read from the sources, so that a new one can't go untried.
//!
//! A place is known by its rule and by the words of its refusal, with a gap wherever a value is put in. It knows nothing of Rust beyond strings,
//! brackets and `let`; a place that it can't read is an error.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// A refusal in the code.
#[derive(Debug)]
pub struct Place {
    /// The file and the line.
    at: String,
    /// The rule's name in kebab-case.
    pub rule: String,
    /// The words of the detail, where it has words of its own.
    detail: Option<String>,
    /// The words of the hint.
    hint: String,
}

impl Place {
    /// Whether a refusal may have come from here.
    pub fn said(&self, rule: &str, detail: &str, hint: &str) -> bool {
        let says = |pattern: &str, text: &str| matches(&gaps(pattern), text);
        self.rule == rule && self.detail.as_ref().is_none_or(|words| says(words, detail)) && says(&self.hint, hint)
    }

    /// What it is, for a person.
    pub fn described(&self) -> String {
        format!("{}: {}, {:?}", self.at, self.rule, self.detail.as_ref().unwrap_or(&self.hint))
    }

    /// Whether the words of its detail begin with these.
    pub fn begins(&self, words: &str) -> bool {
        self.detail.as_ref().is_some_and(|detail| detail.starts_with(words))
    }
}

/// The rules by name, from the enumeration that the API writes.
pub fn rules() -> Result<Vec<String>> {
    let text = read(&crates().join("model/src/rule.rs"))?;
    let (_, body) = text.split_once("pub enum Rule {").context("the rules are in another place")?;
    let (body, _) = body.split_once("\n}").context("the enumeration does not end")?;
    let names = body.lines().filter_map(|line| line.trim().strip_suffix(','));
    Ok(names.map(kebab).collect())
}

/// All places of the model and the panel.
pub fn places() -> Result<Vec<Place>> {
    let mut found = Vec::new();
    for folder in ["model/src", "panel/src"] {
        for file in sources(&crates().join(folder))? {
            let text = read(&file)?;
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let name = file.strip_prefix(crates()).unwrap_or(&file).display().to_string();
            for call in ["Refusal::new(", "refuse(Rule::", "refuse(\n"] {
                for (start, _) in text.match_indices(call) {
                    let line = text[..start].lines().count();
                    let place = place(text, start + call.find('(').unwrap_or_default(), format!("{name}:{line}"));
                    found.extend(place.with_context(|| format!("{name}:{line}"))?);
                }
            }
        }
    }
    ensure!(found.len() > 30, "only {} places were found", found.len());
    Ok(found)
}

/// The place whose arguments begin at `open`; none where it only hands on what it is given.
fn place(text: &str, open: usize, at: String) -> Result<Option<Place>> {
    let arguments = bracketed(&text[open..])?;
    let Some((_, rule)) = arguments.split_once("Rule::") else { return Ok(None) };
    let rule = kebab(rule.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default());
    // What is shorter is no words, but a part that is put in or replaced.
    let mut words: Vec<String> = strings(arguments).into_iter().filter(|text| text.len() > 3).collect();
    // What a variable holds was said right before.
    for variable in ["detail", "hint"] {
        let uses = arguments.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == variable);
        if uses && let Some(start) = text[..open].rfind(&format!("let {variable} =")) {
            let said = strings(text[start..open].split_once(";\n").map_or("", |(said, _)| said));
            let said = said.into_iter().next().context("a variable without words")?;
            words.insert(if variable == "detail" { 0 } else { words.len() }, said);
        }
    }
    let hint = words.pop().context("no hint")?;
    Ok(Some(Place { at, rule, detail: words.into_iter().next(), hint }))
}

/// From the bracket at the beginning to the one that closes it.
fn bracketed(text: &str) -> Result<&str> {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices() {
        match (in_string, c) {
            (true, _) if escaped => escaped = false,
            (true, '\\') => escaped = true,
            (_, '"') => in_string = !in_string,
            (false, '(') => depth += 1,
            (false, ')') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(&text[..=at]);
        }
    }
    anyhow::bail!("a bracket is not closed")
}

/// The string literals in a piece of code.
fn strings(code: &str) -> Vec<String> {
    let (mut found, mut now, mut escaped) = (Vec::new(), None::<String>, false);
    for c in code.chars() {
        match (&mut now, c) {
            (Some(text), _) if escaped => {
                text.push(c);
                escaped = false;
            }
            (Some(_), '\\') => escaped = true,
            (Some(_), '"') => found.extend(now.take()),
            (Some(text), _) => text.push(c),
            (None, '"') => now = Some(String::new()),
            (None, _) => {}
        }
    }
    found
}

/// The words between the values of a format.
fn gaps(pattern: &str) -> Vec<String> {
    let (mut parts, mut now, mut depth) = (Vec::new(), String::new(), 0);
    for c in pattern.chars() {
        match c {
            '{' => {
                depth += 1;
                parts.push(std::mem::take(&mut now));
            }
            '}' => depth -= 1,
            _ if depth == 0 => now.push(c),
            _ => {}
        }
    }
    parts.push(now);
    parts
}

fn matches(parts: &[String], text: &str) -> bool {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return false };
    if parts.len() == 1 {
        return first == text;
    }
    let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
    for part in &parts[1..parts.len() - 1] {
        let Some((_, after)) = rest.split_once(part.as_str()) else { return false };
        rest = after;
    }
    rest.ends_with(last.as_str())
}

fn kebab(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The Rust files below a folder, but tests.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        match path.file_name().and_then(|name| name.to_str()) {
            _ if path.is_dir() => found.extend(sources(&path)?),
            Some(name) if name.ends_with(".rs") && name != "tests.rs" => found.push(path),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn places_are_read_from_code() -> Result<()> {
    let code = r#"
        let detail = format!("{a} is no \"{}\" ({b})", c());
        if x { return refuse(Rule::KindsFit, detail, "take (another)"); }
        Err(Refusal::new(
            Rule::ValueInRange,
            format!("port {} is bad", f(1)),
            "use others",
        ))"#;
    let at = |call: &str| code.find(call).map(|at| at + call.find('(').unwrap_or_default()).context("the call");
    let first = place(code, at("refuse(")?, "x".into())?.context("a place")?;
    ensure!(first.said("kinds-fit", "web is no \"nas\" (7)", "take (another)"), "{first:?}");
    ensure!(!first.said("kinds-fit", "web is a \"nas\" (7)", "take (another)"), "{first:?}");
    let second = place(code, at("Refusal::new(")?, "x".into())?.context("a place")?;
    ensure!(second.said("value-in-range", "port 0 is bad", "use others"), "{second:?}");
    ensure!(!second.said("value-in-range", "port 0 is bad", "use another"), "{second:?}");
    ensure!(!second.said("kinds-fit", "port 0 is bad", "use others"), "{second:?}");
    Ok(())
}
