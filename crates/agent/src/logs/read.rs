//! Reading a site's merged log for a person. It touches the share, so the agent has a child do it, which may hang for a while and is ended then.

use super::work::open;
use anyhow::Context;
use phalanx_host::command;
use phalanx_host::directory::{self, Reader};
use phalanx_host::logs::{MergeStorage, SiteLog};
use phalanx_model::HostName;
use phalanx_plan::logs::batch::Log;
use phalanx_plan::logs::round::Storage;
use phalanx_plan::session::{LogPart, LogText};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);
/// At most so many bytes at once.
const LEN_MAX: u32 = 1 << 20;

/// What is read, as the child's arguments say it.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The site.
    pub site: HostName,
    /// `FILE:OFFSET` where the part before ended.
    pub after: Option<String>,
    /// At most so many bytes.
    pub len_max: u32,
}

/// Has a child read it; the answer is [`LogText`] as JSON.
pub async fn read_aside(part: &LogPart) -> Result<String, String> {
    let LogPart { site, after, len_max } = part;
    let mut args =
        vec!["logs".to_owned(), "--read".to_owned(), site.to_string(), format!("--len={}", len_max.min(&LEN_MAX))];
    args.extend(after.map(|(file, offset)| format!("--after={file}:{offset}")));
    command::succeed("/proc/self/exe", &args, LIMIT).await.map_err(|error| format!("the log can't be read: {error}"))
}

/// Reads it, here.
///
/// # Errors
/// There is no such site, its log is no log, or the share does not do its work.
pub fn read(config: &Path, reading: &Reading) -> anyhow::Result<String> {
    let config = super::load(config)?;
    let share = open(&config)?;
    let share_name = &config.share.as_ref().context("the cluster has no share")?.share;
    let directory = Reader::open(Path::new(directory::PATH))?;
    let site = reading.site.to_string();
    let owner = MergeStorage::new(&share, share_name, &directory)?.owner(&site)?;
    let (account, uid) = owner.with_context(|| format!("{site} has no home here"))?;
    let log = Log::Site { site, account, uid };
    let after = reading.after.as_deref().map(place).transpose()?;
    let found = SiteLog::new(&share, &log).read(after, usize::try_from(reading.len_max)?)?;
    let found = found.map_err(|why| anyhow::anyhow!("{why}"))?;
    let text = String::from_utf8_lossy(&found.text).into_owned();
    Ok(serde_json::to_string(&LogText { at: (found.file, found.offset), text })?)
}

fn place(text: &str) -> anyhow::Result<(u64, u64)> {
    let (file, offset) = text.split_once(':').context("it must be FILE:OFFSET")?;
    Ok((file.parse()?, offset.parse()?))
}
