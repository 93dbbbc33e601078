//! The protocol with phalanx-proxy: a stream socket, one JSON object a line.
//!
//! `{"wake":UID}` is answered by `{"ready":UID}` or `{"error":{"uid":UID,"why":"…","retry":true}}`, in any order; `{"used":[UID,…]}` has no
//! answer. The socket is for root and the group of phalanx-proxy.

use super::Mail;
use super::table::Waiter;
use anyhow::Context;
use phalanx_model::Uid;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

/// The group that may connect.
const GROUP: &str = "phalanx-proxy";
const CONNECTIONS_MAX: usize = 64;
/// Room for a `used` line with all accounts that can be awake.
const LINE_LEN_MAX: u64 = 1 << 20;
/// Answers that may wait for a connection to read them.
const ANSWERS_MAX: usize = 2_048;

/// A line of the proxy's.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Make sure that this account answers.
    Wake(Uid),
    /// These had requests since the last such line.
    Used(Vec<Uid>),
}

/// A line of the launcher's.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It answers.
    Ready(Uid),
    /// It does not.
    Error {
        /// The account.
        uid: Uid,
        /// Why, for a log.
        why: String,
        /// Whether it may be different in a moment.
        retry: bool,
    },
}

/// Why an account was not woken.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// For a log.
    pub why: String,
    /// Whether it may be different in a moment.
    pub retry: bool,
}

/// Makes the socket, in place of one from before.
///
/// # Errors
/// The directory or the socket can't be made, or there is no group phalanx-proxy.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let at = || format!("making {}", path.display());
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).with_context(at)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(at),
        _ => {}
    }
    let groups = std::fs::read_to_string("/etc/group").context("reading /etc/group")?;
    let group =
        gid_of(&groups, GROUP).with_context(|| format!("there is no group {GROUP}; install the package again"))?;
    let listener = UnixListener::bind(path).with_context(at)?;
    std::os::unix::fs::chown(path, None, Some(group)).with_context(at)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).with_context(at)?;
    Ok(listener)
}

/// A group's number in the text of /etc/group (group(5)).
fn gid_of(groups: &str, name: &str) -> Option<u32> {
    let fields = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.filter(|fields| fields.first() == Some(&name)).find_map(|fields| fields.get(2)?.parse().ok())
}

/// Takes connections for ever.
pub(super) async fn serve(listener: UnixListener, mail: mpsc::Sender<Mail>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let mail = mail.clone();
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(async move {
                if let Err(error) = converse(stream, mail).await {
                    tracing::warn!("a connection ended: {error:#}");
                }
                drop(permit);
            })),
            Err(error) => {
                tracing::error!(%error, "accepting a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, mail: mpsc::Sender<Mail>) -> anyhow::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let (sender, mut answers) = mpsc::channel(ANSWERS_MAX);
    let answering = tokio::spawn(async move {
        while let Some((uid, result)) = answers.recv().await {
            writing.write_all(line(uid, result).as_bytes()).await?;
        }
        anyhow::Ok(())
    });
    let mut reading = BufReader::new(reading);
    let mut text = Vec::new();
    loop {
        text.clear();
        let mut bounded = (&mut reading).take(LINE_LEN_MAX);
        if bounded.read_until(b'\n', &mut text).await? == 0 {
            break;
        }
        anyhow::ensure!(text.ends_with(b"\n"), "a line of more than {LINE_LEN_MAX} bytes, or cut short");
        let mail_of = match serde_json::from_slice(&text).context("a line that is no request")? {
            Request::Wake(uid) => Mail::Wake(uid, Waiter(sender.clone())),
            Request::Used(uids) => Mail::Used(uids),
        };
        mail.send(mail_of).await.context("the launcher ends")?;
    }
    drop(sender);
    answering.await?
}

fn line(uid: Uid, result: Result<(), Refusal>) -> String {
    let answer = match result {
        Ok(()) => Answer::Ready(uid),
        Err(Refusal { why, retry }) => Answer::Error { uid, why, retry },
    };
    let mut text = serde_json::to_string(&answer).expect("plain data with text keys");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_the_proxy_writes_and_reads_them() {
        let request = |text| serde_json::from_str::<Request>(text);
        assert_eq!(request(r#"{"wake":1900000001}"#).expect("a wake"), Request::Wake(Uid::FIRST));
        assert_eq!(request(r#"{"used":[1900000001]}"#).expect("used"), Request::Used(vec![Uid::FIRST]));
        assert!(request(r#"{"wake":0}"#).is_err() && request(r#"{"sleep":1900000001}"#).is_err());
        assert_eq!(line(Uid::FIRST, Ok(())), "{\"ready\":1900000001}\n");
        let refusal = Refusal { why: "no".into(), retry: true };
        assert_eq!(line(Uid::FIRST, Err(refusal)), "{\"error\":{\"uid\":1900000001,\"why\":\"no\",\"retry\":true}}\n");
    }

    #[test]
    fn a_groups_number_is_found() {
        let groups = "root:x:0:\nphalanx-proxy-x:x:7:\nphalanx-proxy:x:998:someone\n";
        assert_eq!(gid_of(groups, "phalanx-proxy"), Some(998));
        assert_eq!(gid_of(groups, "phalanx"), None);
    }
}
