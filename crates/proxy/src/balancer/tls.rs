//! TLS as a check needs it: whoever completes the handshake passes, with whatever certificate.
//!
//! A check asks for life, not for trust: nothing secret is sent and nothing that is received is believed beyond "it answers". So names, dates
//! and issuers are not looked at, and certificates that are about to be renewed take no node out of service.

use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::{Arc, LazyLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// One for all checks, so that sessions are resumed and a handshake costs a node little.
static CONNECTOR: LazyLock<TlsConnector> = LazyLock::new(|| {
    let provider = Arc::new(ring::default_provider());
    let any = Arc::new(AnyCertificate(provider.clone()));
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

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
