//! Who answers a request: the node's health page, a page of the proxy's own, or an account.

use super::Node;
use super::accounts::UnderWay;
use super::pages::Page;
use crate::http::request::Request;
use phalanx_model::{AccountState, Uid};
use phalanx_plan::proxy_config::HEALTH_PATH;
use std::net::Ipv4Addr;

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
        /// The site's main name.
        site: Option<String>,
        /// The answer.
        reply: Reply,
    },
    /// The account's httpd.
    Forward {
        /// The site's main name.
        site: String,
        /// The account.
        uid: Uid,
        /// Counts the request as long as it is kept.
        under_way: UnderWay,
    },
}

/// Finds who answers `request`, which came from `peer`.
pub async fn find(request: &Request, peer: Ipv4Addr, node: &Node) -> Route {
    let config = node.config();
    if request.target.split('?').next() == Some(HEALTH_PATH) {
        let trusted = peer.is_loopback() || config.balancers.contains(&peer);
        return if trusted { health(node).await } else { page(None, Page::UnknownHost) };
    }
    let found = match node.directory.host(&request.host).await {
        Ok(Some(found)) => found,
        Ok(None) => return page(None, Page::UnknownHost),
        Err(error) => {
            tracing::warn!("a host can't be looked up: {error}");
            return page(None, Page::NotReady);
        }
    };
    let site = String::from(found.site);
    match found.state {
        AccountState::Suspended => page(Some(site), Page::Suspended),
        AccountState::Active => match node.accounts.begin(found.uid, config.limits.requests_per_account_max) {
            Some(under_way) => Route::Forward { site, uid: found.uid, under_way },
            None => page(Some(site), Page::Busy),
        },
    }
}

async fn health(node: &Node) -> Route {
    let config = node.config();
    if let Err(why) = node.directory.ready().await {
        return Route::Health(Reply::Line(503, why.to_string()));
    }
    Route::Health(match node.health.ask(config.share.as_ref()).await {
        Ok(line) => Reply::Line(200, line),
        Err(why) => Reply::Line(503, why),
    })
}

fn page(site: Option<String>, page: Page) -> Route {
    Route::Reply { site, reply: Reply::Page(page) }
}
