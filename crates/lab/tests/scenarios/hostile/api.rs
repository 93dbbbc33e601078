//! The panel's API as a script speaks it that has much to say, byte by byte.

use super::PATIENCE;
use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::Figure;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The panel's API over one connection that stays, since there is much to say.
pub struct Api {
    place: SocketAddr,
    token: String,
    stream: Option<BufReader<TcpStream>>,
}

/// An answer.
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Null where there is none.
    pub body: Value,
}

impl Api {
    /// With the administrator's token.
    pub fn of(figure: &Figure) -> Result<Self> {
        let cp = figure.host("cp");
        let token = cp.text("cat /var/lib/phalanx/panel/admin.token")?;
        Ok(Self { place: cp.forward(8080, 0)?, token, stream: None })
    }

    /// Asks, with `headers` in full lines beside the usual ones.
    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Reply> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.place)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let head = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: panel\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
            self.token,
            body.len()
        );
        stream.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let reply = read_reply(&mut stream).with_context(|| format!("{method} {path:.200} {headers:?}"))?;
        if reply.headers.get("connection").is_none_or(|value| value != "close") {
            self.stream = Some(stream);
        }
        Ok(reply)
    }

    /// Asks, and makes sure that a refusal is one: a problem with its reason.
    pub fn refusal_or(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Option<Reply>> {
        let reply = self.ask(method, path, headers, body)?;
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        if (200..300).contains(&reply.status) {
            return Ok(Some(reply));
        }
        let seen = format!("{method} {path:.300} {headers:.300?} {shown}: {} {}", reply.status, reply.body);
        ensure!((400..500).contains(&reply.status), "{seen}");
        let is_problem = reply.headers.get("content-type").is_some_and(|kind| kind == "application/problem+json");
        let has_reason = reply.body["detail"].as_str().is_some_and(|detail| !detail.is_empty());
        ensure!(is_problem && has_reason && reply.body["status"] == reply.status, "no problem document: {seen}");
        Ok(None)
    }
}

fn read_reply(stream: &mut BufReader<TcpStream>) -> Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).context("the panel closed the connection")?.parse()?;
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((key, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(Ok(0), |text| text.parse())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
    Ok(Reply { status, headers, body })
}
