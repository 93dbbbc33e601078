//! Becoming a member of the fleet.
//!
//! The token says who the machine will be and which CA it may trust: the upstream must show a chain that ends in that CA before the
//! token's secret is sent to it. The machine's key never leaves it.

use crate::identity;
use crate::keep;
use crate::link::wire;
use crate::paths::Paths;
use anyhow::{Context, anyhow, bail, ensure};
use phalanx_host::atomic::{self, Access};
use phalanx_host::directory::Writer;
use phalanx_host::service;
use phalanx_model::{Name, Position};
use phalanx_plan::session::{DownMessage, JoinReply, JoinRequest, Place, Snapshot, UpMessage, route};
use phalanx_plan::spec::port;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A relayed join passes the master and the panel.
const LIMIT: Duration = Duration::from_secs(20);

/// What `phalanx agent join` was told.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The panel's address, or the master's for a slave; the port may be left out.
    pub upstream: String,
    /// The one-time token.
    pub token: String,
    /// Where the agent keeps its state.
    pub root: PathBuf,
}

/// A one-time token: `phx1.SERVER.SECRET.FINGERPRINT`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    server: Name,
    secret: String,
    ca_sha256: String,
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let shape = "a token is phx1.SERVER.SECRET.FINGERPRINT, as `phalanx server token SERVER` prints it";
        let parts: Vec<&str> = text.trim().split('.').collect();
        let ["phx1", server, secret, ca_sha256] = parts[..] else { bail!("{shape}") };
        let is_digest = ca_sha256.len() == 64 && ca_sha256.bytes().all(|b| b.is_ascii_hexdigit());
        ensure!(is_digest && !secret.is_empty(), "the token is damaged; {shape}");
        let server = server.parse().context(shape)?;
        Ok(Self { server, secret: secret.to_owned(), ca_sha256: ca_sha256.to_ascii_lowercase() })
    }
}

/// Joins the fleet, keeps the identity on disk and starts the agent; one that runs takes it up by itself. Returns the machine's name.
///
/// # Errors
/// The machine is a member already, the upstream can't be reached or is not of the token's fleet, or the token is refused.
pub async fn join(options: &JoinOptions) -> anyhow::Result<Name> {
    let paths = Paths::new(&options.root);
    let token: Token = options.token.parse()?;
    let mark = paths.agent("upstream.json");
    if mark.exists() {
        let known = identity::Identity::load(&paths)?.map_or("?".to_owned(), |identity| identity.server.to_string());
        bail!("this machine has joined as {known} already; remove {} to join anew", mark.display());
    }
    let (identity, key_pem, place) = tokio::time::timeout(LIMIT, ask(&options.upstream, &token))
        .await
        .map_err(|_| anyhow!("{} did not answer within {} s", options.upstream, LIMIT.as_secs()))??;
    ensure!(identity.server == token.server, "the upstream made {} of {}", identity.server, token.server);
    let directory = paths.root.join("agent");
    std::fs::create_dir_all(&directory).with_context(|| format!("{} can't be made", directory.display()))?;
    std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let was_member = forget_former(&paths).context("what is left of a former membership can't be removed")?;
    for (file, content) in
        [("ca.pem", &identity.ca_pem), ("cert.pem", &identity.certificate_pem), ("key.pem", &key_pem)]
    {
        atomic::write(&paths.agent(file), content.as_bytes(), Access::SECRET)?;
    }
    keep::store(&mark, &place)?;
    // An agent that waits takes the identity up by itself; one that runs as a member of former days has that one in mind.
    let started = if was_member { service::restart_agent().await } else { service::start_agent().await };
    started.context("the machine has joined, but its agent could not be started")?;
    Ok(identity.server)
}

/// Removes what another membership has left, whose revisions, accounts and numbers of commands mean nothing in this one. Says whether
/// there was any. The daemons see the directory become empty; its file stays, since they have it open.
fn forget_former(paths: &Paths) -> anyhow::Result<bool> {
    let mut was_member = false;
    for file in ["spec.json", "commands.json"] {
        match std::fs::remove_file(paths.agent(file)) {
            Ok(()) => was_member = true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{} stays", paths.agent(file).display())),
        }
    }
    let directory = paths.directory();
    if directory.exists() {
        let empty = Snapshot { at: Position::default(), piece: 0, rows: vec![], last: true };
        Writer::open(&directory)?.collect(&empty)?;
    }
    Ok(was_member)
}

async fn ask(
    upstream: &str,
    token: &Token,
) -> anyhow::Result<(phalanx_plan::session::message::Identity, String, Place)> {
    let (mut stream, place) = connect(upstream, token).await?;
    let key = KeyPair::generate().context("no key could be made")?;
    let params = CertificateParams::new(vec![route::node_name(&token.server)])?;
    let csr_pem = params.serialize_request(&key)?.pem()?;
    let request = JoinRequest { number: 1, token: token.secret.clone(), csr_pem };
    wire::write(&mut stream, &UpMessage::Join(request)).await?;
    match wire::read::<DownMessage>(&mut stream).await? {
        DownMessage::Joined(JoinReply { result: Ok(identity), .. }) => Ok((identity, key.serialize_pem(), place)),
        DownMessage::Joined(JoinReply { result: Err(why), .. }) | DownMessage::Refused { why } => {
            bail!("refused: {why}")
        }
        other => bail!("the upstream answered something else: {other:?}"),
    }
}

type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Connects to the panel's port, or where no port is given and nothing answers there, to an agent's.
async fn connect(upstream: &str, token: &Token) -> anyhow::Result<(TlsStream, Place)> {
    let addresses = match upstream.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => vec![upstream.to_owned()],
        _ => vec![format!("{upstream}:{}", port::PANEL), format!("{upstream}:{}", port::AGENT)],
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(ByFingerprint { ca_sha256: token.ca_sha256.clone(), provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let mut last = anyhow!("no address");
    for address in addresses {
        let tcp = match TcpStream::connect(&address).await {
            Ok(tcp) => tcp,
            Err(error) => {
                last = anyhow::Error::from(error).context(format!("{address} can't be reached"));
                continue;
            }
        };
        let any = ServerName::try_from(route::PANEL_NAME).context("a fixed name")?;
        let stream =
            connector.connect(any, tcp).await.with_context(|| format!("{address} is not of the token's fleet"))?;
        let shown =
            stream.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no certificate was shown")?;
        let name = identity::name_of(shown)?;
        return Ok((stream, Place { address, name }));
    }
    Err(last)
}

/// Trusts whoever shows a chain that ends in the CA with this fingerprint, under a name of ours.
#[derive(Debug)]
struct ByFingerprint {
    ca_sha256: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _asked_for: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let general = |why: String| rustls::Error::General(why);
        let digest =
            |der: &CertificateDer<'_>| Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect::<String>();
        let ca = intermediates
            .iter()
            .find(|certificate| digest(certificate) == self.ca_sha256)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| general(e.to_string()))?;
        let name = identity::name_of(end_entity).map_err(|e| general(e.to_string()))?;
        let name = ServerName::try_from(name).map_err(|e| general(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_and_a_damaged_one_says_so() {
        let digest = "0f".repeat(32);
        let token: Token = format!("phx1.web1.s3cret.{digest}\n").parse().expect("a token");
        assert_eq!((token.server.as_str(), token.secret.as_str()), ("web1", "s3cret"));
        for bad in
            ["", "phx1.web1.s", "phx2.web1.s.00", &format!("phx1.web1..{digest}"), &format!("phx1.WEB.s.{digest}")]
        {
            let error = bad.parse::<Token>().expect_err(bad).to_string();
            assert!(error.contains("phx1.SERVER.SECRET.FINGERPRINT"), "{error}");
        }
    }

    #[test]
    fn nothing_of_a_former_membership_is_left() {
        use phalanx_model::{Account, Row};
        let place = tempfile::tempdir().expect("a directory");
        let paths = Paths::new(place.path());
        assert!(!forget_former(&paths).expect("nothing is there"));
        for directory in ["agent", "directory"] {
            std::fs::create_dir(paths.root.join(directory)).expect("made");
        }
        std::fs::write(paths.agent("spec.json"), "{}").expect("written");
        std::fs::write(paths.agent("commands.json"), "{}").expect("written");
        let account = Account {
            name: "alice".parse().expect("a name"),
            owner: "admin".parse().expect("a name"),
            uid: phalanx_model::Uid::FIRST,
            logical_server: "www".parse().expect("a name"),
            limits: Default::default(),
            php: Default::default(),
            state: Default::default(),
        };
        let row = Row::Account { account, share: "content".parse().expect("a name") };
        let at = Position { incarnation: 7, term: 1, revision: 9 };
        let mut writer = Writer::open(&paths.directory()).expect("opened");
        writer.collect(&Snapshot { at, piece: 0, rows: vec![row], last: true }).expect("collected");
        assert!(forget_former(&paths).expect("forgotten"));
        assert!(!paths.agent("spec.json").exists() && !paths.agent("commands.json").exists());
        assert_eq!(writer.position().expect("read"), Position::default());
        let reader = phalanx_host::directory::Reader::open(&paths.directory()).expect("opened");
        assert_eq!(reader.accounts(None, 10).expect("read"), []);
        assert_eq!(writer.dirty(10).expect("read").len(), 1, "what was derived of it is to be removed");
    }
}
