//! The port that masters dial: TLS 1.3 with certificates of the panel's own CA on both sides.
//!
//! A peer without a certificate may only ask to join. A peer with one must be a master, or a server that belongs to no cluster; a slave is
//! sent to its master. What is said on a link is decided by [`phalanx_plan::session::Upstream`]; this module moves bytes and rows.

mod address;
mod frame;
mod join;
mod peer;

pub use address::LinkAddress;

use crate::Panel;
use crate::ca::Ca;
use anyhow::{Context, Result};
use rustls::server::WebPkiClientVerifier;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// The most connections at once: more than any number of clusters that one panel is meant for.
const CONNECTIONS_MAX: usize = 4_096;
/// The most connections at once of machines that are about to join.
const JOINING_MAX: usize = 32;
/// How long a TLS handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// The link's TLS acceptor: a certificate made now, and the CA that peers' certificates must come from.
///
/// # Errors
/// When the CA's certificate is not usable.
pub fn acceptor(ca: &Ca) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate().clone()).context("using the CA's certificate as a root")?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .context("building the verifier of nodes' certificates")?;
    let (certificate, key) = ca.sign_panel()?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("choosing TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate, ca.certificate().clone()], key)
        .context("using the panel's certificate")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves masters until the panel stops.
///
/// # Errors
/// When the TLS configuration can't be made. A failing connection is logged and ends alone.
pub async fn serve(panel: Panel, listener: TcpListener) -> Result<()> {
    let acceptor = acceptor(&panel.ca)?;
    let (connections, joining) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Semaphore::new(JOINING_MAX)));
    let mut stopping = panel.stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: give others time to end.
                tracing::warn!(%error, "accepting a connection of a master failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            tracing::warn!(%address, "refusing a connection: {CONNECTIONS_MAX} are open");
            continue;
        };
        let (panel, acceptor, joining) = (panel.clone(), acceptor.clone(), Arc::clone(&joining));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = one(panel, acceptor, joining, stream, address).await {
                tracing::info!(%address, "link ended: {error:#}");
            }
        });
    }
}

async fn one(
    panel: Panel,
    acceptor: TlsAcceptor,
    joining: Arc<Semaphore>,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let handshake = tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await;
    let tls = handshake.context("the TLS handshake took too long")?.context("the TLS handshake failed")?;
    let certificate =
        tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|first| first.clone().into_owned());
    match certificate {
        Some(certificate) => peer::serve(&panel, tls, &certificate).await,
        None => {
            let _permit = joining.try_acquire().context("too many machines are joining at once")?;
            join::serve(&panel, tls).await.with_context(|| format!("a join from {address}"))
        }
    }
}
