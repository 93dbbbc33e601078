//! Where daemons write to.
//!
//! Files may be moved aside to `NAME.1` and made anew at any time, as logrotate(8) does; they must not be truncated. The journal is read by
//! journalctl(1).

use anyhow::{Context, ensure};
use phalanx_plan::logs::collect::{At, PART_LEN_MAX, Part};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

/// So many entries of the journal are taken at once.
const ENTRIES_MAX: usize = 5_000;

/// A file that was moved aside is read on for so long.
const ASIDE_WAIT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });

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
    /// Whole lines, and where they end.
    pub part: Part,
    /// Whether there is more right now.
    pub is_cut: bool,
}

impl Source {
    /// What came after `from`.
    pub fn news(&self, from: &At) -> anyhow::Result<News> {
        match self {
            Self::File(path) => in_file(path, from),
            Self::Journal(identifier) => {
                let (text, last, is_cut) = entries(identifier, from)?;
                let to = last.map_or_else(|| from.clone(), |cursor| At::Entry { cursor });
                Ok(News { part: Part { to, text, is_after_loss: false }, is_cut })
            }
        }
    }
}

/// What is new in a file, or in the one that has its place by now.
fn in_file(path: &Path, from: &At) -> anyhow::Result<News> {
    let Some((file, id)) = open(path)? else {
        return Ok(News { part: Part { to: from.clone(), ..Part::default() }, is_cut: false });
    };
    let before = match from {
        At::File { id, offset } => Some((*id, *offset)),
        _ => None,
    };
    match before {
        Some((same, offset)) if same == id => {
            let len = file.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
            if offset <= len {
                return whole_lines(&file, path, (id, offset), false);
            }
            // It was cut: by somebody, or by a machine that was switched off.
            return after_loss(&file, path, id);
        }
        None => return whole_lines(&file, path, (id, 0), false),
        Some(_) => {}
    }
    let (old, offset) = before.unwrap_or_default();
    // Another file has its place: the rest of the one before comes first.
    if let Some((aside, _)) = open(&aside(path))?.filter(|(_, id)| *id == old) {
        // Who was not told of the new one yet goes on in the old one for a moment.
        let age = file.metadata().and_then(|seen| seen.created()).ok().and_then(|at| at.elapsed().ok());
        let is_over = age.is_none_or(|age| age > ASIDE_WAIT);
        let rest = whole_lines(&aside, path, (old, offset), is_over)?;
        if !rest.part.text.is_empty() || !is_over {
            return Ok(rest);
        }
        return whole_lines(&file, path, (id, 0), false);
    }
    after_loss(&file, path, id)
}

fn after_loss(file: &File, path: &Path, id: u64) -> anyhow::Result<News> {
    let mut news = whole_lines(file, path, (id, 0), false)?;
    news.part.is_after_loss = true;
    Ok(news)
}

/// From an offset on; `is_over`: nothing is written to it any more, so that its last line may be without an end.
fn whole_lines(file: &File, path: &Path, (id, offset): (u64, u64), is_over: bool) -> anyhow::Result<News> {
    let looking = || format!("reading {}", path.display());
    let len = file.metadata().with_context(looking)?.len();
    let wanted = len.saturating_sub(offset).min(PART_LEN_MAX);
    let mut text = vec![0; usize::try_from(wanted)?];
    if wanted > 0 {
        // What is collected has to be here after a power failure, too, or other lines would have its place.
        file.sync_data().with_context(looking)?;
        file.read_exact_at(&mut text, offset).with_context(looking)?;
    }
    let is_all = offset + wanted >= len;
    let whole = match memchr::memrchr(b'\n', &text) {
        _ if is_over && is_all => text.len(),
        Some(end) => end + 1,
        // Nobody writes such a line; it is taken in pieces.
        None if !is_all => text.len(),
        None => 0,
    };
    text.truncate(whole);
    let to = At::File { id, offset: offset + whole as u64 };
    Ok(News { part: Part { to, text, is_after_loss: false }, is_cut: !is_all })
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

/// Entries after a place: the lines, the last one's cursor, and whether there may be more.
fn entries(identifier: &str, from: &At) -> anyhow::Result<(Vec<u8>, Option<String>, bool)> {
    let mut command = Command::new("journalctl");
    // All of a message: it leaves out long ones otherwise.
    command.args(["--quiet", "--no-pager", "--all", "--output=json", "--output-fields=MESSAGE,_SYSTEMD_UNIT"]);
    command.arg(format!("--identifier={identifier}"));
    if let At::Entry { cursor } = from {
        command.arg(format!("--after-cursor={cursor}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("starting journalctl")?;
    let read = child.stdout.take().context("what journalctl prints").and_then(read_entries);
    if !matches!(read, Ok((_, _, false))) {
        // It has more to print than is wanted; one that has ended already is as well.
        let _ended = child.kill();
        child.wait().context("waiting for journalctl")?;
        return read;
    }
    let status = child.wait().context("waiting for journalctl")?;
    ensure!(status.success(), "journalctl ended with {status}");
    read
}

fn read_entries(out: impl io::Read) -> anyhow::Result<(Vec<u8>, Option<String>, bool)> {
    let (mut text, mut last) = (Vec::new(), None);
    let mut out = BufReader::new(out);
    for _ in 0..ENTRIES_MAX {
        let begin = text.len();
        if out.read_until(b'\n', &mut text).context("reading what journalctl prints")? == 0 {
            return Ok((text, last, false));
        }
        let Cursor { cursor } = serde_json::from_slice(&text[begin..]).context("journalctl printed half a line")?;
        last = Some(cursor);
        if text.len() as u64 >= PART_LEN_MAX {
            break;
        }
    }
    Ok((text, last, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_to_the_end_or_not_at_all() {
        let line = |cursor: &str| format!("{{\"__CURSOR\":\"{cursor}\",\"MESSAGE\":\"x\"}}\n");
        let all = format!("{}{}", line("a"), line("b"));
        let (text, last, is_cut) = read_entries(all.as_bytes()).expect("read");
        assert_eq!((text.len(), last.as_deref(), is_cut), (all.len(), Some("b"), false));
        assert!(read_entries(&all.as_bytes()[..all.len() - 5]).is_err(), "it was ended while it printed");
        let (text, last, _) = read_entries(&b""[..]).expect("read");
        assert!(text.is_empty() && last.is_none());
    }
}
