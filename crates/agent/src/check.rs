//! The daemons' own checkers on a staged generation, and real requests on the live one.

mod mail;

use anyhow::Context;
use phalanx_host::command::{self, CommandError};
use phalanx_host::{atomic, facts, nft, service};
use phalanx_model::{Account, Limits, Name, Uid};
use phalanx_plan::account::httpd_conf;
use phalanx_plan::guard_config::Verdict;
use phalanx_plan::mail::router;
use phalanx_plan::proxy_config::HEALTH_PATH;
use phalanx_plan::steps::Proof;
use phalanx_plan::steps::desired::{HTTPD_COMMON_FILE, TABLE_FILE};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

const CHECK_LIMIT: Duration = Duration::from_secs(20);
const HEALTH_LIMIT: Duration = Duration::from_secs(3);
/// A proxy that was started or reloaded has so long to answer, and the guard to find the share.
const PROOF_LIMIT: Duration = Duration::from_secs(8);
const PROOF_INTERVAL: Duration = Duration::from_millis(200);
/// The most of an answer that is read, in bytes.
const ANSWER_LEN_MAX: u64 = 8 << 10;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is good.
    Good,
    /// The files are to blame: file, line and the daemon's words.
    Bad(String),
    /// Something else is missing, so that nothing can be said of the files.
    Unknown(String),
}

/// Has the daemons' checkers read the generation in `directory`.
///
/// # Errors
/// A checker could not be run, which says nothing about the files.
pub async fn validate(directory: &Path) -> anyhow::Result<Found> {
    for file in ["proxy.json", "balancer.json", router::FILE] {
        let path = directory.join(file);
        if path.exists() {
            let args = ["--check", &path.to_string_lossy()];
            if let Some(words) = refusal(command::succeed("phalanx-proxy", &args, CHECK_LIMIT).await)? {
                return Ok(Found::Bad(words));
            }
        }
    }
    let table = directory.join(TABLE_FILE);
    if table.exists()
        && let Some(words) = refusal(nft::check(&table).await.map(|()| String::new()))?
    {
        return Ok(Found::Bad(words));
    }
    let common = directory.join(HTTPD_COMMON_FILE);
    if common.exists()
        && let Some(words) = check_httpd(&common).await?
    {
        return Ok(Found::Bad(words));
    }
    if directory.join(router::FILE).exists()
        && let Some(words) = mail::check(directory).await?
    {
        return Ok(Found::Bad(words));
    }
    Ok(Found::Good)
}

fn refusal(checked: Result<String, CommandError>) -> anyhow::Result<Option<String>> {
    match checked {
        Ok(_) => Ok(None),
        Err(error) => match error.refusal() {
            Some(words) => Ok(Some(words.to_owned())),
            None => Err(error.into()),
        },
    }
}

/// httpd reads the common part as an account of no one's would include it.
async fn check_httpd(common: &Path) -> anyhow::Result<Option<String>> {
    let name: Name = "check".parse().context("a fixed name")?;
    let account = Account {
        name: name.clone(),
        uid: Uid::LAST,
        logical_server: name.clone(),
        owner: name,
        limits: Limits::default(),
        php: Default::default(),
        state: Default::default(),
    };
    let wrapper = Path::new("/run/phalanx/check-httpd.conf");
    std::fs::create_dir_all("/run/phalanx").context("/run/phalanx can't be made")?;
    atomic::write(wrapper, httpd_conf(&account, &[], &common.to_string_lossy()).as_bytes(), atomic::Access::SECRET)?;
    refusal(command::succeed("/usr/sbin/apache2", &["-t", "-f", &wrapper.to_string_lossy()], CHECK_LIMIT).await)
}

/// Waits until `proof` is given, or it is clear that it won't be.
///
/// # Errors
/// systemd does not answer.
pub async fn prove(proof: &Proof) -> anyhow::Result<Found> {
    let deadline = tokio::time::Instant::now() + PROOF_LIMIT;
    loop {
        let found = attempt(proof).await?;
        if found == Found::Good || tokio::time::Instant::now() >= deadline {
            return Ok(found);
        }
        tokio::time::sleep(PROOF_INTERVAL).await;
    }
}

async fn attempt(proof: &Proof) -> anyhow::Result<Found> {
    Ok(match proof {
        Proof::Active { units } => {
            for unit in units {
                if !service::is_active(unit.name()).await? {
                    return Ok(Found::Bad(format!("{} does not stay active; see `journalctl -u {0}`", unit.name())));
                }
            }
            Found::Good
        }
        Proof::Answer { at } => match health(*at).await {
            Ok(_) => Found::Good,
            Err(why) => Found::Bad(why),
        },
        Proof::Health { at, share } => match health(*at).await {
            Ok((200, _)) => Found::Good,
            Ok((status, line)) => match guard_refusal(share) {
                Some(why) => Found::Unknown(format!("share {share}: {why}")),
                None => Found::Bad(format!("http://{at}{HEALTH_PATH} answers {status}: {line}")),
            },
            Err(why) => Found::Bad(why),
        },
    })
}

/// Why the guard keeps the node out of service, if it does.
pub fn guard_refusal(share: &Name) -> Option<String> {
    let path = format!("/run/phalanx/guard/{share}.json");
    let verdict =
        atomic::read(Path::new(&path)).ok().flatten().and_then(|bytes| serde_json::from_slice::<Verdict>(&bytes).ok());
    match verdict {
        Some(verdict) => verdict.refusal(facts::boottime_ms()),
        None => Some("the guard has given no verdict".to_owned()),
    }
}

/// Asks for the health page: the status and the body's first line.
///
/// # Errors
/// No answer came, in words for a person.
pub async fn health(at: SocketAddrV4) -> Result<(u16, String), String> {
    let ask = async {
        // The proxy answers balancers and this machine alone, which it knows by this address.
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let mut stream = socket.connect(at.into()).await?;
        let request = format!("GET {HEALTH_PATH} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(HEALTH_LIMIT, ask)
        .await
        .map_err(|_| format!("http://{at}{HEALTH_PATH} does not answer within {} s", HEALTH_LIMIT.as_secs()))?
        .map_err(|error| format!("http://{at}{HEALTH_PATH} can't be asked: {error}"))?;
    parse_answer(&answer).ok_or_else(|| format!("http://{at}{HEALTH_PATH} answers no HTTP"))
}

fn parse_answer(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.lines().next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_line() {
        assert_eq!(parse_answer("HTTP/1.1 200 OK\r\nA: b\r\n\r\nok 00ff\n"), Some((200, "ok 00ff".to_owned())));
        assert_eq!(parse_answer("HTTP/1.1 503 Service Unavailable\r\n\r\n"), Some((503, String::new())));
        assert_eq!(parse_answer("SSH-2.0"), None);
    }
}
