//! Other programs, each with a time limit.
//!
//! A program that hangs is killed and left to the kernel: one that waits for a dead file server can't even die, and nobody shall wait
//! for it. What it says is kept up to a bound. Arguments go as they are, never through a shell.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Enough for what ip, nft and systemctl do.
pub const LIMIT: Duration = Duration::from_secs(10);

/// The most of a program's output that is kept, in bytes.
const OUTPUT_LEN_MAX: u64 = 4 << 20;
/// The most of what a program said that an error repeats, in bytes.
const WORDS_LEN_MAX: usize = 2_000;

/// Why a program did not do what it was called for.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("{program} can't be started; is its package installed?")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("{line} did not end within {} s and was killed", limit.as_secs())]
    Hung {
        /// The command line.
        line: String,
        /// The limit.
        limit: Duration,
    },
    /// It ended with an error.
    #[error("{line} failed ({status}): {words}")]
    Failed {
        /// The command line.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
    /// It said something that can't be understood.
    #[error("{line} answered something unexpected: {why}")]
    Answer {
        /// The command line.
        line: String,
        /// What is wrong with it.
        why: String,
    },
}

impl CommandError {
    /// The program's own words, where it ran to its end and refused.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Failed { words, .. } => Some(words),
            _ => None,
        }
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Errors
/// It can't be started or hangs; a failure of its own is in [`Ended::status`].
pub async fn run<S: AsRef<OsStr>>(program: &str, args: &[S], limit: Duration) -> Result<Ended, CommandError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // What a program tells systemd in our name would be taken for ours.
    command.env("LC_ALL", "C.UTF-8").env_remove("NOTIFY_SOCKET");
    let mut child = command.spawn().map_err(|source| CommandError::Start { program: program.to_owned(), source })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::join!(read(stdout), read(stderr), child.wait()) };
    let failed = |source| CommandError::Start { program: program.to_owned(), source };
    match tokio::time::timeout(limit, all).await {
        Ok((stdout, stderr, status)) => Ok(Ended { status: status.map_err(failed)?, stdout, stderr }),
        Err(_) => Err(CommandError::Hung { line: line(program, args), limit }),
    }
}

/// Runs a program that shall succeed and returns what it wrote to its standard output.
///
/// # Errors
/// It can't be started, hangs or fails.
pub async fn succeed<S: AsRef<OsStr>>(program: &str, args: &[S], limit: Duration) -> Result<String, CommandError> {
    let ended = run(program, args, limit).await?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let words = if ended.stderr.trim().is_empty() { ended.stdout } else { ended.stderr };
    let words = words.trim().chars().take(WORDS_LEN_MAX).collect();
    Err(CommandError::Failed { line: line(program, args), status: ended.status, words })
}

/// Runs a program that shall answer with JSON.
///
/// # Errors
/// As [`succeed`], or what it wrote is not what was expected.
pub async fn json<T: serde::de::DeserializeOwned>(program: &str, args: &[&str]) -> Result<T, CommandError> {
    let text = succeed(program, args, LIMIT).await?;
    let text = if text.trim().is_empty() { "[]" } else { text.as_str() };
    serde_json::from_str(text).map_err(|e| CommandError::Answer { line: line(program, args), why: e.to_string() })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe
        && let Err(error) = pipe.take(OUTPUT_LEN_MAX).read_to_end(&mut bytes).await
    {
        tracing::debug!(%error, "a program's output ended early");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn line<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    args.iter().fold(program.to_owned(), |line, arg| format!("{line} {}", arg.as_ref().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_hangs_is_left() {
        let error = succeed("sleep", &["60"], Duration::from_millis(50)).await.expect_err("it hangs");
        assert!(matches!(error, CommandError::Hung { .. }), "{error}");
        assert!(error.to_string().starts_with("sleep 60 did not end within"), "{error}");
    }

    #[tokio::test]
    async fn a_failure_repeats_the_programs_words() {
        let error = succeed("ls", &["/no/such/place"], LIMIT).await.expect_err("it fails");
        assert!(error.refusal().is_some_and(|words| words.contains("No such file")), "{error}");
        let error = succeed("/no/such/program", &["x"], LIMIT).await.expect_err("it is not there");
        assert!(matches!(error, CommandError::Start { .. }), "{error}");
    }
}
