//! Following a message through the merged log of mail, by a child as in [`super::read`].

use super::work::open;
use phalanx_host::command;
use phalanx_host::logs::{Whole, whole_files};
use phalanx_plan::logs::rotate;
use phalanx_plan::logs::stream::Stream;
use phalanx_plan::logs::trace::Tracer;
use phalanx_plan::session::TraceAsk;
use std::path::Path;
use std::time::Duration;

/// Days of logs are read twice.
const LIMIT: Duration = Duration::from_secs(60);
/// So much of a log is read at once.
const PIECE_LEN: usize = 4 << 20;

/// Has a child do it; the answer is a [`Trace`](phalanx_plan::logs::trace::Trace) as JSON.
pub async fn trace_aside(ask: &TraceAsk) -> Result<String, String> {
    let ask = serde_json::to_string(ask).map_err(|error| error.to_string())?;
    let args = ["logs".to_owned(), "--trace".to_owned(), ask];
    command::succeed("/proc/self/exe", &args, LIMIT)
        .await
        .map_err(|error| format!("the log of mail can't be read: {error}"))
}

/// Does it, here.
///
/// # Errors
/// The share does not do its work.
pub fn trace(config: &Path, ask: &TraceAsk) -> anyhow::Result<String> {
    let config = super::load(config)?;
    let share = open(&config, Stream::Mail)?;
    let mut tracer = Tracer::new(&ask.message_id);
    let files = whole_files(&share, |names| rotate::recent(Stream::Mail.file(), names, ask.days as usize))?;
    for file in &files {
        pieces(file, |text| tracer.look(text))?;
    }
    for file in &files {
        pieces(file, |text| tracer.follow(text))?;
    }
    Ok(serde_json::to_string(&tracer.finish())?)
}

/// Hands on a file's whole lines, piece by piece.
fn pieces(file: &Whole, mut take: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let (mut text, mut offset) = (Vec::new(), 0);
    loop {
        let before = text.len();
        text.resize(before + PIECE_LEN, 0);
        let read = file.read_at(&mut text[before..], offset)?;
        text.truncate(before + read);
        offset += read as u64;
        let end = memchr::memrchr(b'\n', &text).map_or(0, |end| end + 1);
        take(&text[..end]);
        text.drain(..end);
        if read == 0 {
            return Ok(());
        }
    }
}
