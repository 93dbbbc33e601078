//! The panel's own certificate authority: signs the certificates of nodes and of the panel itself.
//!
//! A certificate's only name is `SERVER.node.phalanx` (or `panel.phalanx`); what a signing request asks for is ignored, but its
//! public key. Certificates begin in the past, so that a machine whose clock is behind can join.

use anyhow::{Context, Result, anyhow};
use phalanx_model::Name;
use phalanx_plan::session::route::NODE_SUFFIX;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub use phalanx_plan::session::route::{PANEL_NAME, node_name};

/// A certificate authority in memory.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ca({})", self.fingerprint_hex())
    }
}

/// A new authority: its certificate and its private key, both PEM. The certificate is valid until 2060.
///
/// # Errors
/// When the machine's source of randomness fails.
pub fn generate() -> Result<(String, String)> {
    let key = KeyPair::generate().context("making the key of the certificate authority")?;
    let mut params = params("Phalanx CA", None)?;
    params.not_after = date_time_ymd(2060, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages.clear();
    let certificate = params.self_signed(&key).context("signing the authority's own certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

impl Ca {
    /// The authority that [`generate`] made.
    ///
    /// # Errors
    /// When one of the two is no valid PEM, or they do not fit.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("reading the key of the certificate authority")?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| anyhow!("reading the CA's certificate: {e}"))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).context("reading the CA's certificate")?;
        Ok(Self { issuer, certificate, certificate_pem: certificate_pem.to_owned() })
    }

    /// The authority's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the authority's certificate: what a join token carries.
    pub fn fingerprint_hex(&self) -> String {
        crate::secret::hex(&crate::secret::sha256(&self.certificate))
    }

    /// A certificate for `server` over the public key of its signing request: (PEM, DER).
    ///
    /// # Errors
    /// When the request is no PEM of RFC 2986 or its signature is wrong.
    pub fn sign_node(&self, server: &Name, csr_pem: &str) -> Result<(String, CertificateDer<'static>)> {
        let request =
            CertificateSigningRequestParams::from_pem(csr_pem).context("reading the certificate signing request")?;
        let params = params(server.as_str(), Some(node_name(server)))?;
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).context("signing the node's certificate")?;
        Ok((certificate.pem(), certificate.der().clone()))
    }

    /// A certificate and key for the panel's link. Made at each start; the key is never on disk.
    ///
    /// # Errors
    /// When the machine's source of randomness fails.
    pub fn sign_panel(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        let key = KeyPair::generate().context("making the panel's key")?;
        let certificate = params("panel", Some(PANEL_NAME.to_owned()))?.signed_by(&key, &self.issuer)?;
        Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

/// A certificate for a service's name that vouches for itself alone, until somebody gives a better one: both PEM.
///
/// # Errors
/// When the machine's source of randomness fails.
pub fn self_signed(host_name: &phalanx_model::HostName) -> Result<(String, String)> {
    let key = KeyPair::generate().context("making a key")?;
    let certificate = params(host_name.as_str(), Some(host_name.to_string()))?.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The one server that a node's certificate names.
///
/// # Errors
/// When the certificate can't be read or does not have exactly one name of the form `SERVER.node.phalanx`.
pub fn server_of(certificate: &CertificateDer<'_>) -> Result<Name> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| anyhow!("reading the peer's certificate: {e}"))?;
    let names = parsed.subject_alternative_name()?.context("the peer's certificate has no name")?;
    match names.value.general_names.as_slice() {
        [GeneralName::DNSName(name)] => {
            let server = name.strip_suffix(NODE_SUFFIX).with_context(|| format!("{name:?} is not a node's name"))?;
            Ok(server.parse()?)
        }
        _ => Err(anyhow!("the peer's certificate must have exactly one DNS name")),
    }
}

fn params(common_name: &str, dns_name: Option<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(dns_name.into_iter().collect::<Vec<_>>())?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(2020, 1, 1);
    // Renewal is not there yet; until it is, a node's certificate must outlive the node.
    params.not_after = date_time_ymd(2050, 1, 1);
    params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_the_tokens_name_whatever_it_asks_for() {
        let (certificate, key) = generate().expect("a CA");
        let ca = Ca::load(&certificate, &key).expect("it loads");
        let mut asked =
            CertificateParams::new(vec!["web9.node.phalanx".to_owned(), "panel.phalanx".to_owned()]).expect("names");
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = asked.serialize_request(&KeyPair::generate().expect("a key")).expect("a request").pem().expect("PEM");
        let (_, der) = ca.sign_node(&"web1".parse().expect("a name"), &csr).expect("signed");
        assert_eq!(server_of(&der).expect("one name").as_str(), "web1");
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("DER");
        assert!(!parsed.is_ca());
        assert!(ca.sign_node(&"web1".parse().expect("a name"), "-----BEGIN X-----").is_err());
    }
}
