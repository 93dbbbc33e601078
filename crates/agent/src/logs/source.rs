//! Where daemons write to.
//!
//! Files may be moved aside to `NAME.1` and made anew at any time, as logrotate(8) does; they must not be truncated. The journal is read by
//! journalctl(1).

use anyhow::Context;
use phalanx_plan::logs::collect::{At, PART_LEN_MAX, Part};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

/// So many entries of the journal are taken at once.
const ENTRIES_MAX: usize = 5_000;

/// A source of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The entries of the journal with this identifier, each a line of JSON.
    Journal(&'static str),
}

/// What is new.
#[derive(Debug)]
pub struct News {
    /// Where it stands.
    pub part: Part,
    /// Whole lines.
    pub text: Vec<u8>,
    /// Whether there is more right now.
    pub is_cut: bool,
}

impl Source {
    /// What came after `from`.
    pub fn news(&self, from: &At) -> anyhow::Result<News> {
        match self {
            Self::File(path) => in_file(path, from),
            Self::Journal(identifier) => {
                let (text, last, is_cut) = entries(identifier, from, |_| false)?;
                let to = last.map_or_else(|| from.clone(), |cursor| At::Entry { cursor });
                Ok(News { part: Part { from: from.clone(), to, is_after_loss: false }, text, is_cut })
            }
        }
    }

    /// What stands between two places. What was removed meanwhile is missing.
    pub fn read(&self, from: &At, to: &At) -> anyhow::Result<Vec<u8>> {
        match (self, from, to) {
            (_, from, to) if from == to => Ok(Vec::new()),
            (Self::File(path), _, At::File { id, offset }) => {
                let begin = match from {
                    At::File { id: before, offset } if before == id => *offset,
                    _ => 0,
                };
                between(path, *id, begin, *offset)
            }
            (Self::Journal(identifier), _, At::Entry { cursor }) => {
                entries(identifier, from, |seen| seen == cursor).map(|(text, ..)| text)
            }
            _ => anyhow::bail!("{self:?} has no place {to:?}"),
        }
    }
}

/// What is new in a file, or in the one that has its place by now.
fn in_file(path: &Path, from: &At) -> anyhow::Result<News> {
    let Some((file, id)) = open(path)? else {
        let part = Part { from: from.clone(), to: from.clone(), is_after_loss: false };
        return Ok(News { part, text: Vec::new(), is_cut: false });
    };
    let before = match from {
        At::File { id, offset } => Some((*id, *offset)),
        _ => None,
    };
    match before {
        Some((same, offset)) if same == id => return whole_lines(&file, path, (id, offset), false),
        None => return whole_lines(&file, path, (id, 0), false),
        Some(_) => {}
    }
    let (old, offset) = before.unwrap_or_default();
    // Another file has its place: the rest of the one before comes first.
    if let Some((aside, _)) = open(&aside(path))?.filter(|(_, id)| *id == old) {
        let rest = whole_lines(&aside, path, (old, offset), true)?;
        if !rest.text.is_empty() {
            return Ok(rest);
        }
        return whole_lines(&file, path, (id, 0), false);
    }
    let mut news = whole_lines(&file, path, (id, 0), false)?;
    news.part.is_after_loss = true;
    Ok(news)
}

/// From an offset on; `is_over`: nothing is written to it any more, so that its last line may be without an end.
fn whole_lines(file: &File, path: &Path, (id, offset): (u64, u64), is_over: bool) -> anyhow::Result<News> {
    let looking = || format!("reading {}", path.display());
    let len = file.metadata().with_context(looking)?.len();
    let wanted = len.saturating_sub(offset).min(PART_LEN_MAX);
    let mut text = vec![0; usize::try_from(wanted)?];
    file.read_exact_at(&mut text, offset).with_context(looking)?;
    let is_all = offset + wanted >= len;
    let whole = match memchr::memrchr(b'\n', &text) {
        _ if is_over && is_all => text.len(),
        Some(end) => end + 1,
        // Nobody writes such a line; it is taken in pieces.
        None if !is_all => text.len(),
        None => 0,
    };
    text.truncate(whole);
    let (from, to) = (At::File { id, offset }, At::File { id, offset: offset + whole as u64 });
    Ok(News { part: Part { from, to, is_after_loss: false }, text, is_cut: !is_all })
}

/// The bytes of a file, wherever it is by now.
fn between(path: &Path, wanted: u64, begin: u64, end: u64) -> anyhow::Result<Vec<u8>> {
    for path in [path.to_owned(), aside(path)] {
        if let Some((file, _)) = open(&path)?.filter(|(_, id)| *id == wanted) {
            let mut text = vec![0; usize::try_from(end - begin)?];
            file.read_exact_at(&mut text, begin).with_context(|| format!("reading {}", path.display()))?;
            return Ok(text);
        }
    }
    // What a crash left of it in the segment stays.
    tracing::warn!("{} was moved aside twice before it was read to its end", path.display());
    Ok(Vec::new())
}

fn open(path: &Path) -> anyhow::Result<Option<(File, u64)>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => {
            let file = opened.with_context(|| format!("opening {}", path.display()))?;
            let seen = file.metadata().with_context(|| format!("looking at {}", path.display()))?;
            // The number of a file that was removed is soon another's; when it was made tells them apart, where the file system knows.
            let made = seen.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            let made_ns = u64::try_from(made.as_nanos()).unwrap_or_default();
            Ok(Some((file, seen.ino().rotate_left(40) ^ made_ns)))
        }
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[derive(Deserialize)]
struct Cursor {
    #[serde(rename = "__CURSOR")]
    cursor: String,
}

/// Entries after a place, up to one that is the last: the lines, the last one's cursor, and whether there may be more.
fn entries(
    identifier: &str,
    from: &At,
    is_last: impl Fn(&str) -> bool,
) -> anyhow::Result<(Vec<u8>, Option<String>, bool)> {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,_SYSTEMD_UNIT"]);
    command.arg(format!("--identifier={identifier}"));
    if let At::Entry { cursor } = from {
        command.arg(format!("--after-cursor={cursor}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("starting journalctl")?;
    let read = child.stdout.take().context("what journalctl prints").and_then(|out| read_entries(out, is_last));
    // It may have more to print than is wanted; one that has ended already is as well.
    let _ended = child.kill();
    child.wait().context("waiting for journalctl")?;
    read
}

fn read_entries(out: impl io::Read, is_last: impl Fn(&str) -> bool) -> anyhow::Result<(Vec<u8>, Option<String>, bool)> {
    let (mut text, mut last) = (Vec::new(), None);
    let mut out = BufReader::new(out);
    for _ in 0..ENTRIES_MAX {
        let begin = text.len();
        if out.read_until(b'\n', &mut text).context("reading what journalctl prints")? == 0 {
            return Ok((text, last, false));
        }
        // Half a line: it was ended while it printed.
        let Ok(Cursor { cursor }) = serde_json::from_slice(&text[begin..]) else {
            text.truncate(begin);
            return Ok((text, last, false));
        };
        let is_over = is_last(&cursor);
        last = Some(cursor);
        if is_over || text.len() as u64 >= PART_LEN_MAX {
            return Ok((text, last, !is_over));
        }
    }
    Ok((text, last, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_up_to_the_one_that_is_the_last() {
        let line = |cursor: &str| format!("{{\"__CURSOR\":\"{cursor}\",\"MESSAGE\":\"x\"}}\n");
        let all = format!("{}{}{}{{\"__CUR", line("a"), line("b"), line("c"));
        let (text, last, is_cut) = read_entries(all.as_bytes(), |_| false).expect("read");
        assert_eq!((text.len(), last.as_deref(), is_cut), (3 * line("a").len(), Some("c"), false));
        let (text, last, is_cut) = read_entries(all.as_bytes(), |cursor| cursor == "b").expect("read");
        assert_eq!((text.len(), last.as_deref(), is_cut), (2 * line("a").len(), Some("b"), false));
        let (text, last, _) = read_entries(&b""[..], |_| false).expect("read");
        assert!(text.is_empty() && last.is_none());
    }
}
