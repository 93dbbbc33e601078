//! Who this machine is in the fleet: its certificate and key from the panel's CA, and where its upstream is.

use crate::keep;
use crate::paths::Paths;
use anyhow::{Context, anyhow, bail};
use phalanx_host::atomic;
use phalanx_model::Name;
use phalanx_plan::session::Place;
use phalanx_plan::session::route::{NODE_SUFFIX, PANEL_NAME};
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The machine's membership, read from disk.
#[derive(Debug)]
pub struct Identity {
    /// Its name.
    pub server: Name,
    /// Where it joined, or was sent last: its upstream unless its spec names a master.
    pub home: Place,
    /// For connections to the upstream.
    pub client: Arc<ClientConfig>,
    /// For connections of slaves, and of machines that join, which have no certificate yet.
    pub acceptor: Arc<ServerConfig>,
}

impl Identity {
    /// Reads the identity; none on a machine that has not joined.
    pub fn load(paths: &Paths) -> anyhow::Result<Option<Self>> {
        let Some(home) = keep::load::<Place>(&paths.agent("upstream.json"))? else { return Ok(None) };
        let ca = certificate(&paths.agent("ca.pem"))?;
        let own = certificate(&paths.agent("cert.pem"))?;
        let key = paths.agent("key.pem");
        let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("{} holds no key", key.display()))?;
        let server = server_of(&own).context("the machine's own certificate names no server")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let roots = Arc::new(roots);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(vec![own.clone()], key.clone_key())?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).allow_unauthenticated().build()?;
        let acceptor = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![own, ca], key)?;
        Ok(Some(Self { server, home, client: Arc::new(client), acceptor: Arc::new(acceptor) }))
    }
}

fn certificate(path: &Path) -> anyhow::Result<CertificateDer<'static>> {
    let bytes = atomic::read(path)?.ok_or_else(|| anyhow!("{} is missing; join the fleet anew", path.display()))?;
    CertificateDer::from_pem_slice(&bytes).with_context(|| format!("{} holds no certificate", path.display()))
}

/// The first DNS name in a certificate that is one of ours.
pub fn name_of(certificate: &CertificateDer<'_>) -> anyhow::Result<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("a certificate that can't be read")?;
    let names = parsed.subject_alternative_name().context("a subjectAltName that can't be read")?;
    let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
    for name in names {
        if let GeneralName::DNSName(name) = name
            && (*name == PANEL_NAME || name.ends_with(NODE_SUFFIX))
        {
            return Ok((*name).to_owned());
        }
    }
    bail!("the certificate has neither the name {PANEL_NAME} nor one that ends with {NODE_SUFFIX}")
}

/// The server that a node's certificate is of.
pub fn server_of(certificate: &CertificateDer<'_>) -> anyhow::Result<Name> {
    let name = name_of(certificate)?;
    let server = name.strip_suffix(NODE_SUFFIX).ok_or_else(|| anyhow!("{name} is no node's name"))?;
    Ok(server.parse()?)
}
