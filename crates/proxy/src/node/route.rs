//! Who answers a request: the node's health page, a page of the proxy's own, or an account.

use super::Node;
use super::accounts::UnderWay;
use super::pages::Page;
use crate::http::request::Request;
use phalanx_host::directory::HostEntry;
use phalanx_model::AccountState;
use phalanx_plan::proxy_config::{HEALTH_PATH, ProxyConfig};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What the proxy answers itself.
#[derive(Debug)]
pub enum Reply {
    /// A page for people.
    Page(Page),
    /// A status and a line for programs.
    Line(u16, String),
}

/// Who answers.
#[derive(Debug)]
pub enum Route {
    /// The proxy, with the state of the node.
    Health(Reply),
    /// The proxy, for a site or for none.
    Reply {
        /// Whose site it is.
        entry: Option<Arc<HostEntry>>,
        /// The answer.
        reply: Reply,
    },
    /// The account's httpd.
    Forward {
        /// Whose site it is.
        entry: Arc<HostEntry>,
        /// Counts the request as long as it is kept.
        under_way: UnderWay,
    },
}

/// Finds who answers `request`, which came from `peer`.
pub async fn find(request: &Request, peer: Ipv4Addr, node: &Node, config: &ProxyConfig) -> Route {
    if request.target.split('?').next() == Some(HEALTH_PATH) {
        let trusted = peer.is_loopback() || config.balancers.contains(&peer);
        return if trusted { health(node, config).await } else { page(None, Page::UnknownHost) };
    }
    let entry = match node.directory.host(&request.host).await {
        Ok(Some(entry)) => entry,
        Ok(None) => return page(None, Page::UnknownHost),
        Err(error) => {
            tracing::warn!("a host can't be looked up: {error}");
            return page(None, Page::NotReady);
        }
    };
    match entry.state {
        AccountState::Suspended => page(Some(entry), Page::Suspended),
        AccountState::Active => match node.accounts.begin(entry.uid, config.limits.requests_per_account_max) {
            Some(under_way) => Route::Forward { entry, under_way },
            None => page(Some(entry), Page::Busy),
        },
    }
}

async fn health(node: &Node, config: &ProxyConfig) -> Route {
    if let Err(why) = node.directory.ready().await {
        return Route::Health(Reply::Line(503, why.to_string()));
    }
    Route::Health(match node.health.ask(config.share.as_ref()).await {
        Ok(line) => Reply::Line(200, line),
        Err(why) => Reply::Line(503, why),
    })
}

fn page(entry: Option<Arc<HostEntry>>, page: Page) -> Route {
    Route::Reply { entry, reply: Reply::Page(page) }
}
