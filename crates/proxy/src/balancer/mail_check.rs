//! Checking a mail node: a [`Dialogue`] on a socket, in TLS where the protocol begins with it.

use super::tls;
use phalanx_model::mail::MailProtocol;
use phalanx_plan::balance::CheckResult;
use phalanx_plan::balance::dialogue::{Dialogue, Progress};
use phalanx_plan::mail::probe::Probe;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// What is read at once; the dialogue bounds the whole.
const ROOM_BYTES: usize = 2_048;

/// Speaks `protocol` with `target`, as far as one can without logging in.
pub async fn check(target: SocketAddrV4, protocol: MailProtocol, limit: Duration) -> CheckResult {
    let mut awaited = "connection";
    let result = timeout(limit, ask(target, protocol, &mut awaited)).await;
    judged(result, awaited, limit)
}

/// Logs in to `target` with the probe mailbox, and opens it. Nothing where nobody logs in by this protocol for mail.
pub async fn log_in(
    target: SocketAddrV4,
    protocol: MailProtocol,
    probe: &Probe,
    limit: Duration,
) -> Option<CheckResult> {
    let dialogue = Dialogue::login(protocol, probe)?;
    let mut awaited = "connection";
    let result = timeout(limit, ask_in(target, protocol, probe, dialogue, &mut awaited)).await;
    Some(judged(result, awaited, limit))
}

/// What asking within a time means; `awaited` is what was waited for last.
fn judged(result: Result<io::Result<CheckResult>, Elapsed>, awaited: &str, limit: Duration) -> CheckResult {
    match result {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => CheckResult::Unreachable(error.to_string()),
        Err(_) => CheckResult::Unreachable(format!("no {awaited} within {} ms", limit.as_millis())),
    }
}

async fn ask(target: SocketAddrV4, protocol: MailProtocol, awaited: &mut &'static str) -> io::Result<CheckResult> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let own = match stream.local_addr()? {
        SocketAddr::V4(own) => *own.ip(),
        SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let dialogue = Dialogue::new(protocol, own);
    if begins_in_tls(protocol) {
        *awaited = "TLS handshake";
        return match tls::handshake(stream, target).await {
            Ok(stream) => speak(stream, dialogue, awaited).await.map(Spoken::result),
            Err(error) => Ok(no_tls(&error)),
        };
    }
    speak(stream, dialogue, awaited).await.map(Spoken::result)
}

async fn ask_in(
    target: SocketAddrV4,
    protocol: MailProtocol,
    probe: &Probe,
    mut dialogue: Dialogue,
    awaited: &mut &'static str,
) -> io::Result<CheckResult> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let mut first = String::new();
    if !begins_in_tls(protocol) {
        match speak(stream, dialogue, awaited).await? {
            Spoken::Over(result) => return Ok(result),
            Spoken::ToTls(clear, then, text) => (stream, dialogue, first) = (clear, then, text),
        }
    }
    *awaited = "TLS handshake";
    match tls::handshake_as(stream, target, &probe.certificate_pem).await {
        Ok(mut stream) => {
            stream.write_all(first.as_bytes()).await?;
            stream.flush().await?;
            speak(stream, dialogue, awaited).await.map(Spoken::result)
        }
        Err(error) => Ok(no_tls(&error)),
    }
}

fn begins_in_tls(protocol: MailProtocol) -> bool {
    match protocol {
        MailProtocol::Submissions | MailProtocol::Imaps | MailProtocol::Pop3s => true,
        MailProtocol::Smtp
        | MailProtocol::Submission
        | MailProtocol::Imap
        | MailProtocol::Pop3
        | MailProtocol::Sieve => false,
    }
}

/// What a handshake that failed means.
fn no_tls(error: &io::Error) -> CheckResult {
    let why = format!("TLS handshake failed: {error}");
    // It answers, but not as it should: its flows may go on.
    if error.kind() == io::ErrorKind::InvalidData { CheckResult::Refused(why) } else { CheckResult::Unreachable(why) }
}

/// What came of speaking on a stream.
enum Spoken<S> {
    Over(CheckResult),
    /// TLS begins here; then this is to be said.
    ToTls(S, Dialogue, String),
}

impl<S> Spoken<S> {
    /// For those who speak in TLS already, or of what needs none.
    fn result(self) -> CheckResult {
        match self {
            Self::Over(result) => result,
            Self::ToTls(..) => CheckResult::Refused("it wants to begin TLS where there is no need to".to_owned()),
        }
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    mut dialogue: Dialogue,
    awaited: &mut &'static str,
) -> io::Result<Spoken<S>> {
    let mut room = [0; ROOM_BYTES];
    loop {
        *awaited = dialogue.awaited();
        let count = stream.read(&mut room).await?;
        if count == 0 {
            return Ok(Spoken::Over(dialogue.ended()));
        }
        match dialogue.received(&room[..count]) {
            Progress::More => {}
            Progress::Say(text) => {
                stream.write_all(text.as_bytes()).await?;
                stream.flush().await?;
            }
            Progress::Secure(text) => return Ok(Spoken::ToTls(stream, dialogue, text)),
            Progress::Over(result, farewell) => {
                // The verdict is there: whether the other end hears the farewell changes nothing.
                if let Err(error) = stream.write_all(farewell.as_bytes()).await {
                    tracing::debug!("a check ended without a farewell: {error}");
                }
                if let Err(error) = stream.shutdown().await {
                    tracing::debug!("a check ended in disorder: {error}");
                }
                return Ok(Spoken::Over(result));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A server that says one piece after the other, each after it was spoken to, and tells what it heard.
    async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, pieces: &'static [&'static str]) -> Vec<String> {
        let mut heard = Vec::new();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.expect("said");
            stream.flush().await.expect("said");
            let mut room = [0; 512];
            let count = stream.read(&mut room).await.expect("heard");
            heard.push(String::from_utf8_lossy(&room[..count]).into_owned());
        }
        heard
    }

    async fn listen() -> (TcpListener, SocketAddrV4) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let SocketAddr::V4(target) = listener.local_addr().expect("its address") else { panic!("IPv4") };
        (listener, target)
    }

    fn acceptor() -> TlsAcceptor {
        acceptor_and_certificate().0
    }

    fn acceptor_and_certificate() -> (TlsAcceptor, String) {
        // For a name that nobody asked for, signed by itself.
        let made = rcgen::generate_simple_self_signed(vec!["other.example".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a pair");
        (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
    }

    #[tokio::test]
    async fn a_server_is_asked_up_to_the_farewell() {
        let (listener, target) = listen().await;
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            converse(stream, &["220 mail.example\r\n", "250-mail.example\r\n250 DSN\r\n", "250 2.0.0 Ok\r\n"]).await
        });
        assert_eq!(check(target, MailProtocol::Smtp, LIMIT).await, CheckResult::Passed);
        assert_eq!(server.await.expect("ended"), ["EHLO [127.0.0.1]\r\n", "NOOP\r\n", "QUIT\r\n"]);
    }

    #[tokio::test]
    async fn a_server_in_tls_is_asked_whatever_its_certificate() {
        let (listener, target) = listen().await;
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let stream = acceptor().accept(stream).await.expect("a handshake");
            converse(stream, &["* OK ready\r\n", "* CAPABILITY IMAP4rev1\r\na OK done\r\n"]).await
        });
        assert_eq!(check(target, MailProtocol::Imaps, LIMIT).await, CheckResult::Passed);
        assert_eq!(server.await.expect("ended"), ["a CAPABILITY\r\n", "b LOGOUT\r\n"]);
    }

    #[tokio::test]
    async fn who_speaks_no_tls_is_told_apart_from_who_is_silent() {
        let (listener, target) = listen().await;
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            converse(stream, &["+OK this is no TLS\r\n"]).await;
            let (silent, _) = listener.accept().await.expect("a connection");
            let (also, _) = listener.accept().await.expect("a connection");
            (silent, also)
        });
        let result = check(target, MailProtocol::Pop3s, LIMIT).await;
        assert!(
            matches!(&result, CheckResult::Refused(why) if why.starts_with("TLS handshake failed: ")),
            "{result:?}"
        );
        let short = Duration::from_millis(100);
        let unreachable = |why: &str| CheckResult::Unreachable(why.into());
        let result = check(target, MailProtocol::Submissions, short).await;
        assert_eq!(result, unreachable("no TLS handshake within 100 ms"));
        let result = check(target, MailProtocol::Imap, short).await;
        assert_eq!(result, unreachable("no IMAP greeting within 100 ms"));
        drop(server.await.expect("ended"));
        assert!(matches!(check(target, MailProtocol::Imap, LIMIT).await, CheckResult::Unreachable(_)));
    }

    #[tokio::test]
    async fn a_login_says_its_password_in_tls_to_the_cluster_alone() {
        let (listener, target) = listen().await;
        let (acceptor, certificate_pem) = acceptor_and_certificate();
        let probe = Probe { password: "00ff".into(), certificate_pem };
        let server = tokio::spawn(async move {
            let mut heard = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                for piece in ["* OK ready\r\n", "a OK begin\r\n"] {
                    stream.write_all(piece.as_bytes()).await.expect("said");
                    let mut room = [0; 512];
                    if piece.starts_with('*') {
                        let count = stream.read(&mut room).await.expect("heard");
                        heard.push(String::from_utf8_lossy(&room[..count]).into_owned());
                    }
                }
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                for piece in ["", "b OK [CAPABILITY IMAP4rev1] in\r\n", "* 0 EXISTS\r\nc OK done\r\n"] {
                    stream.write_all(piece.as_bytes()).await.expect("said");
                    stream.flush().await.expect("said");
                    let mut room = [0; 512];
                    // Who does not believe the certificate leaves.
                    let Ok(count) = stream.read(&mut room).await else { break };
                    heard.push(String::from_utf8_lossy(&room[..count]).into_owned());
                }
            }
            heard
        });
        assert_eq!(log_in(target, MailProtocol::Imap, &probe, LIMIT).await, Some(CheckResult::Passed));
        let other = Probe { certificate_pem: acceptor_and_certificate().1, ..probe };
        let refused = log_in(target, MailProtocol::Imap, &other, LIMIT).await;
        assert!(
            matches!(&refused, Some(CheckResult::Refused(why)) if why.contains("another certificate")),
            "{refused:?}"
        );
        let heard = server.await.expect("ended");
        let said = [
            "a STARTTLS\r\n",
            "b LOGIN phalanx-probe 00ff\r\n",
            "c SELECT INBOX\r\n",
            "d LOGOUT\r\n",
            "a STARTTLS\r\n",
        ];
        assert_eq!(heard, said, "who shows another certificate hears no password");
    }
}
