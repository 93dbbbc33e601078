//! Where a mailbox's password comes from: a file that was named, standard input, or a person at a terminal. Never the command line, which
//! every user of the machine can read, nor the environment.

use crate::failure::Failure;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;

/// More than any password that is taken has, in bytes.
const BYTES_MAX: u64 = 1024;

/// The password for `whom`.
///
/// # Errors
/// When the named file can't be read or holds no one line; when none is named and nobody sits at a terminal.
pub fn get(file: Option<&Path>, whom: &str) -> Result<String, Failure> {
    match file {
        Some(path) if path == Path::new("-") => read_line_of(&mut std::io::stdin().lock(), "standard input"),
        Some(path) => {
            let unreadable = |error: std::io::Error| {
                let what = format!("cannot read the password file {}: {error}", path.display());
                Failure::usage(what, "name a file that you may read")
            };
            let mut file = std::fs::File::open(path).map_err(unreadable)?;
            read_line_of(&mut file, &path.display().to_string())
        }
        None if std::io::stdin().is_terminal() => asked(whom),
        None => Err(Failure::usage(
            "there is no password: standard input is no terminal to ask at",
            "name a file with --password-file, or - for standard input",
        )),
    }
}

/// The one line that a file holds.
fn read_line_of(source: &mut dyn Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let unreadable = |error: std::io::Error| {
        Failure::usage(format!("cannot read a password from {name}: {error}"), "give one line of UTF-8")
    };
    source.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() || line.contains('\n') || text.len() as u64 > BYTES_MAX {
        return Err(Failure::usage(format!("{name} holds no password"), "give one line of UTF-8 and nothing else"));
    }
    Ok(line.to_owned())
}

/// Asks twice, since what is typed can't be seen.
fn asked(whom: &str) -> Result<String, Failure> {
    let first = ask(&format!("New password for {whom}: "))?;
    if ask("The same again: ")? != first {
        return Err(Failure::usage("these are two passwords", "type the same one twice"));
    }
    Ok(first)
}

fn ask(question: &str) -> Result<String, Failure> {
    let mut out = std::io::stderr().lock();
    let asking = out.write_all(question.as_bytes()).and_then(|()| out.flush());
    asking.map_err(anyhow::Error::from)?;
    let quiet = Quiet::begin()?;
    let mut line = String::new();
    let read = std::io::stdin().lock().take(BYTES_MAX).read_line(&mut line);
    drop(quiet);
    // The end of the line was not shown either; where that can't be written, it is not missed.
    let _ = out.write_all(b"\n");
    read.map_err(anyhow::Error::from)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// While it lives, the terminal does not show what is typed. A shell puts that right where the command is broken off.
struct Quiet(rustix::termios::Termios);

impl Quiet {
    fn begin() -> Result<Self, Failure> {
        let before = tcgetattr(std::io::stdin()).map_err(anyhow::Error::from)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &quiet).map_err(anyhow::Error::from)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that has gone has nothing to be restored.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, Failure> {
        read_line_of(&mut text.as_bytes(), "secret")
    }

    #[test]
    fn a_password_is_one_line() {
        for text in ["correct horse", "correct horse\n", "correct horse\r\n"] {
            assert_eq!(read(text).expect("a password"), "correct horse");
        }
        assert_eq!(read(" sp ace \n").expect("a password"), " sp ace ", "blanks belong to it");
        for bad in ["", "\n", "two\nlines\n", &"x".repeat(1025)] {
            assert_eq!(read(bad).expect_err("no password").exit_code(), 2, "{bad:?}");
        }
        let failure = read("two-secret\nlines\n").expect_err("two lines");
        assert!(!failure.text().contains("two-secret"), "{}", failure.text());
    }

    #[test]
    fn a_missing_file_is_told() {
        let failure = get(Some(Path::new("/nowhere/at/all")), "a@example.org").expect_err("it is missing");
        assert!(failure.exit_code() == 2 && failure.text().contains("/nowhere/at/all"), "{}", failure.text());
    }
}
