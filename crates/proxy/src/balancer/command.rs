//! Running a tool to its end, within a time and with bounded output.

use anyhow::{Context as _, bail};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How long `nft` or `conntrack` may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs `program` with `input` on its standard input. A failed exit is not an error here: callers know what it means.
pub async fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let work = async {
        let mut child = command.spawn().with_context(|| format!("starting {program} (is it installed?)"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A tool that ends before it has read all says why on its standard error.
            let written = stdin.write_all(input.as_bytes()).await;
            if let Err(error) = written {
                tracing::debug!("{program} did not read its input: {error}");
            }
        }
        child.wait_with_output().await.with_context(|| format!("running {program}"))
    };
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(output) => output,
        Err(_) => bail!("{program} did not end within {} s and was killed", TIMEOUT.as_secs()),
    }
}

/// Like [`run`], where only success is good; gives the standard output.
pub async fn succeed(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let output = run(program, arguments, input).await?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("reading what {program} wrote"))
}
