//! Joins: a one-time token and a signing request become a certificate.

use super::frame;
use crate::Panel;
use crate::store::Actor;
use anyhow::{Context, Result, bail};
use phalanx_model::{Name, Role};
use phalanx_plan::report::Severity;
use phalanx_plan::session::message::Identity;
use phalanx_plan::session::route::node_name;
use phalanx_plan::session::{DownMessage, JoinReply, JoinRequest, Place, UpMessage};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// How long a joining machine may take to say what it wants.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest join request, in bytes.
const REQUEST_LEN_MAX: usize = 32 << 10;

/// Serves a peer without a certificate: one join.
pub(super) async fn serve(panel: &Panel, mut tls: TlsStream<TcpStream>) -> Result<()> {
    let read = tokio::time::timeout(REQUEST_TIME_MAX, frame::read(&mut tls, REQUEST_LEN_MAX)).await;
    let reply = match read.context("it said nothing")?? {
        Some(UpMessage::Join(request)) => DownMessage::Joined(join(panel, request, None).await),
        Some(_) => DownMessage::Refused { why: "without a certificate a machine can only join".to_owned() },
        None => return Ok(()),
    };
    frame::write(&mut tls, &reply).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut tls).await.context("closing")
}

/// Answers a join; `via` is the master that it came through.
pub(super) async fn join(panel: &Panel, request: JoinRequest, via: Option<&Name>) -> JoinReply {
    let number = request.number;
    let result = identity(panel, &request, via).await.map_err(|error| {
        tracing::warn!(via = via.map(Name::as_str), "a join failed: {error:#}");
        format!("{error:#}")
    });
    JoinReply { number, result }
}

async fn identity(panel: &Panel, request: &JoinRequest, via: Option<&Name>) -> Result<Identity> {
    // The whole token and its secret part are both understood.
    let secret = match request.token.split('.').collect::<Vec<_>>().as_slice() {
        ["phx1", _, secret, _] => secret,
        _ => request.token.as_str(),
    };
    let server = panel.store.join_token_server(secret).await.context("looking the token up")?;
    let server = server
        .context("the token is not valid: it was used, has expired, or was replaced; make a new one on the panel")?;
    right_way(panel, &server, via)?;
    let (certificate_pem, der) = panel.ca.sign_node(&server, &request.csr_pem)?;
    let mut write = panel.store.write(&Actor::machine(&server)).await.context("using the token")?;
    if !write.use_join_token(secret, &server, &der, via).await.context("using the token")? {
        bail!("the token was used by another machine this moment");
    }
    let how = via.map_or_else(String::new, |master| format!(" through its master {master}"));
    let text = format!("{server} has joined{how}");
    write.note(&server, Severity::Info, "agent", text).await.context("noting the join")?;
    write.commit().await.context("using the token")?;
    panel.live.end(&server, "the server has joined anew");
    Ok(Identity { server, certificate_pem, ca_pem: panel.ca.certificate_pem().to_owned() })
}

/// A slave joins through its master; everybody else directly.
fn right_way(panel: &Panel, server: &Name, via: Option<&Name>) -> Result<()> {
    let world = panel.store.world();
    match (world.fleet.membership(server), via) {
        (Some((cluster, Role::Slave)), Some(master)) if cluster.master == *master => Ok(()),
        (Some((cluster, Role::Slave)), _) => bail!("{}", dial_your_master(&world, cluster, server)),
        (_, None) => Ok(()),
        (_, Some(master)) => bail!("{server} is no slave of {master}; it joins at the panel"),
    }
}

/// Where a cluster's master serves its slaves.
pub(super) fn master_place(world: &crate::store::World, cluster: &phalanx_model::Cluster) -> Place {
    let address = world.fleet.servers.get(&cluster.master).map(|master| master.address.ip.to_string());
    Place {
        address: format!("{}:{}", address.unwrap_or_default(), phalanx_plan::spec::port::AGENT),
        name: node_name(&cluster.master),
    }
}

/// What a slave is told that comes to the panel.
pub(super) fn dial_your_master(world: &crate::store::World, cluster: &phalanx_model::Cluster, server: &Name) -> String {
    let address = world
        .fleet
        .servers
        .get(&cluster.master)
        .map_or_else(String::new, |master| format!(" at {}", master.address.ip));
    format!(
        "{server} is a slave of cluster {}: dial its master {}{address}, port {}",
        cluster.name,
        cluster.master,
        phalanx_plan::spec::port::AGENT
    )
}
