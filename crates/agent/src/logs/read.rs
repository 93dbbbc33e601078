//! Reading a merged log for a person. It touches the share, so the agent has a child do it, which may hang for a while and is ended then.

use super::work::open;
use anyhow::Context;
use phalanx_host::command;
use phalanx_host::directory::{self, Reader};
use phalanx_host::logs::{MergeStorage, SiteLog};
use phalanx_plan::logs::batch::Log;
use phalanx_plan::logs::round::Storage;
use phalanx_plan::session::{LogPart, LogText, MergedLog};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);
/// At most so many bytes at once.
const LEN_MAX: u32 = 1 << 20;

/// Has a child read it; the answer is [`LogText`] as JSON.
pub async fn read_aside(part: &LogPart) -> Result<String, String> {
    let part = serde_json::to_string(part).map_err(|error| error.to_string())?;
    let args = ["logs".to_owned(), "--read".to_owned(), part];
    command::succeed("/proc/self/exe", &args, LIMIT).await.map_err(|error| format!("the log can't be read: {error}"))
}

/// Reads it, here.
///
/// # Errors
/// There is no such site, its log is no log, or the share does not do its work.
pub fn read(config: &Path, part: &LogPart) -> anyhow::Result<String> {
    let config = super::load(config)?;
    let LogPart { log, after, len_max } = part;
    let share = open(&config, log.stream())?;
    let log = match log {
        MergedLog::Mail => Log::Cluster,
        MergedLog::Access(site) | MergedLog::Errors(site) => {
            let share_name = &config.share.as_ref().context("the cluster has no share")?.share;
            let directory = Reader::open(Path::new(directory::PATH))?;
            let site = site.to_string();
            let owner = MergeStorage::new(&share, share_name, &directory)?.owner(&site)?;
            let (account, uid) = owner.with_context(|| format!("{site} has no home here"))?;
            Log::Site { site, account, uid }
        }
    };
    let len_max = usize::try_from(*len_max.min(&LEN_MAX))?;
    let found = SiteLog::new(&share, &log).read(*after, len_max)?;
    let found = found.map_err(|why| anyhow::anyhow!("{why}"))?;
    let text = String::from_utf8_lossy(&found.text).into_owned();
    Ok(serde_json::to_string(&LogText { at: (found.file, found.offset), text })?)
}
