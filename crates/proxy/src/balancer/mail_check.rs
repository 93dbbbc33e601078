//! Checking a mail node: a [`Dialogue`] on a socket, in TLS where the protocol begins with it.

use super::tls;
use phalanx_model::mail::MailProtocol;
use phalanx_plan::balance::CheckResult;
use phalanx_plan::balance::dialogue::{Dialogue, Progress};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What is read at once; the dialogue bounds the whole.
const ROOM_BYTES: usize = 2_048;

/// Speaks `protocol` with `target`, as far as one can without logging in.
pub async fn check(target: SocketAddrV4, protocol: MailProtocol, limit: Duration) -> CheckResult {
    // What was waited for when time was over.
    let mut awaited = "connection";
    let result = timeout(limit, ask(target, protocol, &mut awaited)).await;
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
    match protocol {
        MailProtocol::Submissions | MailProtocol::Imaps | MailProtocol::Pop3s => {
            *awaited = "TLS handshake";
            match tls::handshake(stream, target).await {
                Ok(stream) => speak(stream, dialogue, awaited).await,
                // It answers, but not as it should: its flows may go on.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    Ok(CheckResult::Refused(format!("TLS handshake failed: {error}")))
                }
                Err(error) => Ok(CheckResult::Unreachable(format!("TLS handshake failed: {error}"))),
            }
        }
        MailProtocol::Smtp
        | MailProtocol::Submission
        | MailProtocol::Imap
        | MailProtocol::Pop3
        | MailProtocol::Sieve => speak(stream, dialogue, awaited).await,
    }
}

async fn speak(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut dialogue: Dialogue,
    awaited: &mut &'static str,
) -> io::Result<CheckResult> {
    let mut room = [0; ROOM_BYTES];
    loop {
        *awaited = dialogue.awaited();
        let count = stream.read(&mut room).await?;
        if count == 0 {
            return Ok(dialogue.ended());
        }
        match dialogue.received(&room[..count]) {
            Progress::More => {}
            Progress::Say(text) => {
                stream.write_all(text.as_bytes()).await?;
                stream.flush().await?;
            }
            Progress::Over(result, farewell) => {
                // The verdict is there: whether the other end hears the farewell changes nothing.
                if let Err(error) = stream.write_all(farewell.as_bytes()).await {
                    tracing::debug!("a check ended without a farewell: {error}");
                }
                if let Err(error) = stream.shutdown().await {
                    tracing::debug!("a check ended in disorder: {error}");
                }
                return Ok(result);
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
        // For a name that nobody asked for, signed by itself.
        let made = rcgen::generate_simple_self_signed(vec!["other.example".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a pair");
        TlsAcceptor::from(Arc::new(config))
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
}
