//! Writers of configuration files that others' programs read: httpd's directives and PHP's ini syntax.
//!
//! Each value is written once, quoted, by one function, so that nothing foreign is ever pasted into a file. Invariant: whatever a
//! value holds, it stays inside its quotes, on its line. What neither syntax can write at all (control characters, and `${`,
//! which both would replace by a variable's value) becomes `_`; no value of [`phalanx_model`] holds any of it, so that this is a
//! second line of defence.
//!
//! Deliberately absent: what directives mean. The daemons' own checkers know that.

use std::fmt::{Display, Write as _};

/// Writes the configuration of Apache httpd (its manual, "Syntax of the Configuration Files").
#[derive(Debug, Default)]
pub struct HttpdWriter {
    text: String,
    open: Vec<&'static str>,
}

impl HttpdWriter {
    /// A file that begins with this comment.
    pub fn new(comment: &str) -> Self {
        let mut writer = Self::default();
        writer.comment(comment);
        writer
    }

    /// A comment line.
    pub fn comment(&mut self, text: &str) {
        let indent = self.indent();
        writeln!(self.text, "{indent}# {}", without_unwritable(text)).expect("a String takes everything");
    }

    /// `Name "argument" …`. The name is ours, the arguments may come from anywhere.
    pub fn directive(&mut self, name: &'static str, arguments: &[&dyn Display]) {
        let line = format!("{}{name}{}", self.indent(), quoted_all(arguments));
        self.text.push_str(&line);
        self.text.push('\n');
    }

    /// `<Name "argument" …>`, what `inside` writes, `</Name>`.
    pub fn section(&mut self, name: &'static str, arguments: &[&dyn Display], inside: impl FnOnce(&mut Self)) {
        let line = format!("{}<{name}{}>\n", self.indent(), quoted_all(arguments));
        self.text.push_str(&line);
        self.open.push(name);
        inside(self);
        self.open.pop();
        let line = format!("{}</{name}>\n", self.indent());
        self.text.push_str(&line);
    }

    /// Lines that an administrator wrote, who may write whatever httpd understands. Put them last: a backslash at the end of a
    /// line swallows the next one.
    pub fn verbatim(&mut self, lines: &[String]) {
        for line in lines.iter().flat_map(|text| text.lines()) {
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    /// The file.
    pub fn finish(self) -> String {
        self.text
    }

    fn indent(&self) -> String {
        "    ".repeat(self.open.len())
    }
}

/// Writes ini files as PHP and PHP-FPM read them.
#[derive(Debug, Default)]
pub struct IniWriter {
    text: String,
}

impl IniWriter {
    /// A file that begins with this comment.
    pub fn new(comment: &str) -> Self {
        Self { text: format!("; {}\n", without_unwritable(comment)) }
    }

    /// `[name]`.
    pub fn section(&mut self, name: &'static str) {
        writeln!(self.text, "\n[{name}]").expect("a String takes everything");
    }

    /// `key = "value"`. The key is ours, the value may come from anywhere.
    pub fn value(&mut self, key: &'static str, value: &dyn Display) {
        writeln!(self.text, "{key} = {}", quoted(value)).expect("a String takes everything");
    }

    /// As [`Self::value`] for a word that is somebody's name: INI has words of its own, such as `null`, `no` and `on`.
    pub fn word(&mut self, key: &'static str, value: &dyn Display) {
        let written = quoted(value);
        let written = if written.starts_with('"') { written } else { format!("\"{written}\"") };
        writeln!(self.text, "{key} = {written}").expect("a String takes everything");
    }

    /// The file.
    pub fn finish(self) -> String {
        self.text
    }
}

fn quoted_all(arguments: &[&dyn Display]) -> String {
    arguments.iter().map(|argument| format!(" {}", quoted(*argument))).collect()
}

/// In quotes, unless it is a plain word, which reads better without. Both syntaxes take `\"` and `\\` inside double quotes.
fn quoted(value: &dyn Display) -> String {
    let text = without_unwritable(&value.to_string());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ':' | '*');
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

fn without_unwritable(text: &str) -> String {
    text.replace("${", "_{").replace(|c: char| c.is_control(), "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn directives_are_quoted_and_indented() {
        let mut writer = HttpdWriter::new("top");
        writer.section("Directory", &[&"/home/x y"], |inside| {
            inside.directive("Header", &[&"set", &"a\"b\\", &"${HOME}\n"])
        });
        writer.verbatim(&["Raw \"as it is\"".to_owned()]);
        expect![[r#"
            # top
            <Directory "/home/x y">
                Header set "a\"b\\" "_{HOME}_"
            </Directory>
            Raw "as it is"
        "#]]
        .assert_eq(&writer.finish());
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_quotes_or_its_line(value in any::<String>()) {
            let written = quoted(&value);
            prop_assert!(!written.chars().any(char::is_control));
            prop_assert_eq!(written.find("${"), None);
            if let Some(inside) = written.strip_prefix('"') {
                let inside = inside.strip_suffix('"').expect("quotes come in pairs");
                // Whoever unescapes meets no bare quote, and no backslash that would eat the closing one.
                let mut characters = inside.chars();
                while let Some(c) = characters.next() {
                    prop_assert_ne!(c, '"');
                    if c == '\\' {
                        prop_assert!(matches!(characters.next(), Some('\\' | '"')));
                    }
                }
            } else {
                prop_assert!(!written.is_empty() && !written.contains([' ', '\\', '>', '#', ';', '=']));
            }
        }
    }
}
