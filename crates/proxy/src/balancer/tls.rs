//! TLS as a check needs it: whoever completes the handshake passes, with whatever certificate.
//!
//! A check asks for life, not for trust: nothing secret is sent and nothing that is received is believed beyond "it answers". So names, dates
//! and issuers are not looked at, and certificates that are about to be renewed take no node out of service.
//!
//! A login sends a password: it is made with who has the very certificate that is expected ([`handshake_as`]).

use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::{Arc, LazyLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// One for all checks, so that sessions are resumed and a handshake costs a node little.
static CONNECTOR: LazyLock<TlsConnector> = LazyLock::new(|| {
    let provider = Arc::new(ring::default_provider());
    let any = Arc::new(Believed { expected: None, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring's algorithms serve both versions of TLS");
    TlsConnector::from(Arc::new(config.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()))
});

/// Makes the handshake with `target`, to which `stream` leads.
///
/// # Errors
/// The connection ends, or the other end does not speak TLS ([`io::ErrorKind::InvalidData`]).
pub async fn handshake(stream: TcpStream, target: SocketAddrV4) -> io::Result<TlsStream<TcpStream>> {
    CONNECTOR.connect(ServerName::IpAddress(IpAddr::V4(*target.ip()).into()), stream).await
}

/// Makes the handshake with `target`, and goes on only if it shows the certificate `expected_pem` and has its key.
///
/// # Errors
/// As [`handshake`]; also when it shows another certificate.
pub async fn handshake_as(
    stream: TcpStream,
    target: SocketAddrV4,
    expected_pem: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let expected = CertificateDer::from_pem_slice(expected_pem.as_bytes())
        .map_err(|error| bad(format!("the certificate to expect can't be read: {error:?}")))?;
    let provider = Arc::new(ring::default_provider());
    let only = Arc::new(Believed { expected: Some(expected), provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?;
    let config = config.dangerous().with_custom_certificate_verifier(only).with_no_client_auth();
    let name = ServerName::IpAddress(IpAddr::V4(*target.ip()).into());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Believes who has one certificate, whatever it says of itself; where none is expected, anybody.
#[derive(Debug)]
struct Believed {
    expected: Option<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Believed {
    /// Whether it has the key: of anybody that is not asked.
    fn has_key(
        &self,
        verify: impl FnOnce(&WebPkiSupportedAlgorithms) -> Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.expected {
            Some(_) => verify(&self.provider.signature_verification_algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }
}

impl ServerCertVerifier for Believed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.expected {
            Some(expected) if expected != end_entity => {
                Err(Error::General("it shows another certificate than its cluster's".to_owned()))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.has_key(|algorithms| verify_tls12_signature(message, certificate, signature, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.has_key(|algorithms| verify_tls13_signature(message, certificate, signature, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
