//! The REST API under `/api/v1`. Handlers are thin: parse, one operation of the store, answer.
//!
//! Each resource has an ETag and takes `If-Match`; each POST takes an `Idempotency-Key`; lists have cursors; errors are RFC 9457 problems
//! with a hint. The router and the OpenAPI document are made from one table, [`routes`].

mod clusters;
mod directory;
mod fleet;
mod follow;
mod idempotency;
mod list;
mod logs;
mod mail;
mod openapi;
mod problem;
mod queues;
mod records;
mod request;
mod schema;
mod servers;
mod status;
mod traffic;

pub use follow::Streams;
pub use openapi::document;
pub use problem::Problem;

use crate::Panel;
use crate::store::Role;
use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use problem::Reply;
use utoipa::ToSchema;
use utoipa::openapi::path::HttpMethod;
use utoipa::openapi::{RefOr, Schema};

/// Where the API lives.
pub const ROOT: &str = "/api/v1";

/// One operation of the API: for the router and for the document.
struct Route {
    method: HttpMethod,
    path: &'static str,
    summary: &'static str,
    success: StatusCode,
    body: Option<Described>,
    answer: Answer,
    query: &'static [(&'static str, &'static str)],
    handler: MethodRouter<Panel>,
}

/// A type of the document: its name, and what it consists of.
struct Described {
    name: String,
    schemas: Vec<(String, RefOr<Schema>)>,
}

impl Described {
    fn of<T: ToSchema>() -> Self {
        let name = T::name().into_owned();
        let mut schemas = vec![(name.clone(), T::schema())];
        T::schemas(&mut schemas);
        Self { name, schemas }
    }
}

/// What a successful answer holds.
enum Answer {
    /// Nothing.
    Empty,
    /// One value.
    One(Described),
    /// A page of a list.
    Page(Described),
    /// The value of a task that goes on in the background; or nothing, where there was nothing to wait for.
    Task(Described),
    /// JSON that describes itself.
    Json,
}

const PAGE: &[(&str, &str)] =
    &[("limit", "At most so many: 1 to 1,000."), ("cursor", "next_cursor of the page before.")];

impl Route {
    fn new<H, T>(method: HttpMethod, path: &'static str, summary: &'static str, success: StatusCode, handler: H) -> Self
    where
        H: Handler<T, Panel>,
        T: 'static,
    {
        let filter = match method {
            HttpMethod::Post => MethodFilter::POST,
            HttpMethod::Patch => MethodFilter::PATCH,
            HttpMethod::Delete => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        Self {
            method,
            path,
            summary,
            success,
            body: None,
            answer: Answer::Empty,
            query: &[],
            handler: on(filter, handler),
        }
    }

    fn get<H: Handler<T, Panel>, T: 'static>(path: &'static str, summary: &'static str, handler: H) -> Self {
        Self::new(HttpMethod::Get, path, summary, StatusCode::OK, handler)
    }

    fn list<H: Handler<T, Panel>, T: 'static>(path: &'static str, summary: &'static str, handler: H) -> Self {
        Self::get(path, summary, handler).query(PAGE)
    }

    fn post<H: Handler<T, Panel>, T: 'static>(path: &'static str, summary: &'static str, handler: H) -> Self {
        Self::new(HttpMethod::Post, path, summary, StatusCode::CREATED, handler)
    }

    fn patch<H: Handler<T, Panel>, T: 'static>(path: &'static str, summary: &'static str, handler: H) -> Self {
        Self::new(HttpMethod::Patch, path, summary, StatusCode::OK, handler)
    }

    fn delete<H: Handler<T, Panel>, T: 'static>(path: &'static str, summary: &'static str, handler: H) -> Self {
        Self::new(HttpMethod::Delete, path, summary, StatusCode::NO_CONTENT, handler)
    }

    fn takes<B: ToSchema>(mut self) -> Self {
        self.body = Some(Described::of::<B>());
        self
    }

    fn gives<T: ToSchema>(mut self) -> Self {
        self.answer = Answer::One(Described::of::<T>());
        self
    }

    fn pages<T: ToSchema>(mut self) -> Self {
        self.answer = Answer::Page(Described::of::<T>());
        self
    }

    fn task<T: ToSchema>(mut self) -> Self {
        self.answer = Answer::Task(Described::of::<T>());
        self
    }

    fn json(mut self) -> Self {
        self.answer = Answer::Json;
        self
    }

    fn query(mut self, query: &'static [(&'static str, &'static str)]) -> Self {
        self.query = query;
        self
    }

    fn answers(mut self, success: StatusCode) -> Self {
        self.success = success;
        self
    }
}

/// All operations.
fn routes() -> Vec<Route> {
    let mut all = fleet_routes();
    all.extend(directory_routes());
    all.extend(mail_routes());
    all.extend(queue_routes());
    all.extend([
        Route::get("/status", "Everything at a glance", status::status).gives::<schema::Status>(),
        Route::get("/events", "What happened, oldest first", records::list_events).pages::<schema::Event>().query(&[
            ("after", "Those after this number; without it the newest."),
            ("cursor", "next_cursor of the page before."),
            ("limit", "At most so many: 1 to 1,000."),
            ("follow", "true: go on as text/event-stream."),
        ]),
        Route::get("/traffic", "Requests, messages and bytes of sites and mail domains by day (UTC)", traffic::list)
            .pages::<schema::Traffic>()
            .query(&[
                ("site", "Of this site or mail domain."),
                ("from", "From this day on: 2026-11-28."),
                ("to", "Up to this day, itself included."),
                ("limit", "At most so many: 1 to 1,000."),
                ("cursor", "next_cursor of the page before."),
            ]),
        Route::list("/audit", "Who changed what, newest first", records::list_audit).pages::<schema::AuditRecord>(),
        Route::list("/tokens", "List API tokens", records::list_tokens).pages::<schema::Token>(),
        Route::post("/tokens", "Make an API token; its secret is shown once", records::add_token)
            .gives::<schema::TokenMade>()
            .takes::<records::NewToken>(),
        Route::get("/tokens/{name}", "Show an API token, without its secret", records::get_token)
            .gives::<schema::Token>(),
        Route::delete("/tokens/{name}", "Remove an API token", records::remove_token),
        Route::get("/tasks/{id}", "A task that runs in the background", clusters::get_task).gives::<clusters::Task>(),
        Route::get("/openapi.json", "This document", openapi::serve).json(),
    ]);
    all
}

fn fleet_routes() -> Vec<Route> {
    vec![
        Route::list("/servers", "List physical servers", servers::list).pages::<schema::Server>(),
        Route::post("/servers", "Add a physical server", servers::add)
            .gives::<schema::Server>()
            .takes::<servers::NewServer>(),
        Route::get("/servers/{name}", "Show a server, its state and last report", servers::get)
            .gives::<schema::Server>(),
        Route::patch("/servers/{name}", "Change a server's internal address, or how it is fenced", servers::change)
            .gives::<schema::Server>()
            .takes::<servers::ServerPatch>(),
        Route::delete("/servers/{name}", "Remove a server", servers::remove),
        Route::post(
            "/servers/{name}/join-token",
            "Make a one-time join token, valid for 24 hours",
            servers::join_token,
        )
        .gives::<schema::JoinToken>(),
        Route::post("/servers/{name}/rollback", "Go back to an earlier generation", servers::rollback)
            .gives::<schema::OrderDone>()
            .takes::<servers::Rollback>()
            .answers(StatusCode::OK),
        Route::post("/servers/{name}/reconcile", "Observe and mend now", servers::reconcile)
            .gives::<schema::OrderDone>()
            .answers(StatusCode::OK),
        Route::post("/servers/{name}/fence", "Make sure that a server can do no more harm", servers::fence)
            .gives::<schema::Server>()
            .takes::<servers::Fence>()
            .answers(StatusCode::OK),
        Route::post("/servers/{name}/unfence", "Let a server that was fenced take part again", servers::unfence)
            .gives::<schema::Server>()
            .takes::<servers::Unfence>()
            .answers(StatusCode::OK),
        Route::list("/clusters", "List clusters", clusters::list).pages::<schema::Cluster>(),
        Route::post("/clusters", "Add a cluster of one: its master", clusters::add)
            .gives::<schema::Cluster>()
            .takes::<clusters::NewCluster>(),
        Route::get("/clusters/{name}", "Show a cluster", clusters::show).gives::<schema::Cluster>(),
        Route::patch("/clusters/{name}", "Change a cluster's share, directives or mail name", clusters::patch)
            .gives::<schema::Cluster>()
            .takes::<clusters::ClusterPatch>(),
        Route::delete("/clusters/{name}", "Remove a cluster that has no slaves", clusters::remove),
        Route::post("/clusters/{name}/slaves", "Add a slave", clusters::add_slave)
            .gives::<schema::Cluster>()
            .takes::<clusters::NewSlave>(),
        Route::delete("/clusters/{name}/slaves/{server}", "Drain a slave, then remove it", clusters::remove_slave)
            .task::<clusters::Task>()
            .query(&[
                ("deadline_s", "Wait at most so long for its connections: 0 to 3600, 30 where nothing is said."),
                ("force", "true: remove it at once."),
                ("anyway", "true: also where it is the last node in service."),
            ])
            .answers(StatusCode::ACCEPTED),
        Route::patch("/clusters/{name}/nodes/{server}", "Change a node's weight or drain it", clusters::change_node)
            .gives::<schema::Cluster>()
            .takes::<clusters::NodePatch>(),
        Route::post(
            "/clusters/{name}/grants/{right}/move",
            "Let a right of one node go to another, as soon as its holder is at an end with it",
            clusters::move_grant,
        )
        .gives::<schema::Cluster>()
        .takes::<clusters::GrantMove>()
        .answers(StatusCode::OK),
        Route::get(
            "/clusters/{name}/mail-log",
            "The end of a mail cluster's log, or what came after a part of it",
            logs::read_mail,
        )
        .gives::<schema::LogLines>()
        .query(&[
            ("cursor", "next_cursor of the part before: what came after it."),
            ("limit", "At most so many lines of the log's end: 1 to 1,000."),
        ]),
        Route::get("/clusters/{name}/mail-trace", "Follow a message through the log of a mail cluster", logs::trace)
            .gives::<schema::MailTrace>()
            .query(&[
                ("message_id", "The message's Message-ID."),
                ("days", "In today's log and in those of so many days before: 0 to 31, 2 where nothing is said."),
            ]),
        Route::list("/shares", "List shares", fleet::list_shares).pages::<schema::Share>(),
        Route::post("/shares", "Add a share", fleet::add_share).gives::<schema::Share>().takes::<fleet::NewShare>(),
        Route::get("/shares/{name}", "Show a share", fleet::get_share).gives::<schema::Share>(),
        Route::patch("/shares/{name}", "Move a share that no cluster mounts", fleet::change_share)
            .gives::<schema::Share>()
            .takes::<fleet::SharePatch>(),
        Route::delete("/shares/{name}", "Forget a share; its content stays", fleet::remove_share),
        Route::list("/addresses", "List external addresses", fleet::list_addresses).pages::<schema::Address>(),
        Route::post("/addresses", "Add an external address", fleet::add_address)
            .gives::<schema::Address>()
            .takes::<fleet::NewAddress>(),
        Route::get("/addresses/{external}", "Show an external address", fleet::get_address).gives::<schema::Address>(),
        Route::patch("/addresses/{external}", "Change an external address", fleet::change_address)
            .gives::<schema::Address>()
            .takes::<fleet::AddressPatch>(),
        Route::delete("/addresses/{external}", "Give an external address back", fleet::remove_address),
        Route::list("/logical-servers", "List logical servers", fleet::list_logical_servers)
            .pages::<schema::LogicalServer>(),
        Route::post("/logical-servers", "Add a logical server on a master", fleet::add_logical_server)
            .gives::<schema::LogicalServer>()
            .takes::<fleet::NewLogicalServer>(),
        Route::get("/logical-servers/{name}", "Show a logical server", fleet::get_logical_server)
            .gives::<schema::LogicalServer>(),
        Route::delete(
            "/logical-servers/{name}",
            "Remove a logical server without accounts and mail domains",
            fleet::remove_logical_server,
        ),
    ]
}

fn directory_routes() -> Vec<Route> {
    vec![
        Route::get("/accounts", "List accounts", directory::list_accounts).pages::<schema::Account>().query(&[
            ("limit", "At most so many: 1 to 1,000."),
            ("cursor", "next_cursor of the page before."),
            ("logical_server", "Those on this logical server."),
        ]),
        Route::post("/accounts", "Add an account", directory::add_account)
            .gives::<schema::Account>()
            .takes::<directory::NewAccount>(),
        Route::get("/accounts/{name}", "Show an account", directory::get_account).gives::<schema::Account>(),
        Route::patch("/accounts/{name}", "Change an account's limits, PHP or state", directory::change_account)
            .gives::<schema::Account>()
            .takes::<directory::AccountPatch>(),
        Route::delete("/accounts/{name}", "Remove an account; its files stay", directory::remove_account)
            .query(&[("sites", "true: its sites too.")]),
        Route::get("/sites", "List sites", directory::list_sites).pages::<schema::Site>().query(&[
            ("limit", "At most so many: 1 to 1,000."),
            ("cursor", "next_cursor of the page before."),
            ("account", "Those of this account."),
        ]),
        Route::post("/sites", "Add a site", directory::add_site).gives::<schema::Site>().takes::<directory::NewSite>(),
        Route::get("/sites/{host}", "Show a site", directory::get_site).gives::<schema::Site>(),
        Route::patch("/sites/{host}", "Change a site's aliases or document root", directory::change_site)
            .gives::<schema::Site>()
            .takes::<directory::SitePatch>(),
        Route::get(
            "/sites/{host}/log",
            "The end of a site's access or error log, or what came after a part of it",
            logs::read_site,
        )
        .gives::<schema::LogLines>()
        .query(&[
            ("errors", "true: of the error log."),
            ("cursor", "next_cursor of the part before: what came after it."),
            ("limit", "At most so many lines of the log's end: 1 to 1,000."),
        ]),
        Route::delete("/sites/{host}", "Remove a site; its files stay", directory::remove_site),
    ]
}

fn mail_routes() -> Vec<Route> {
    const OF_DOMAIN: &[(&str, &str)] = &[
        ("limit", "At most so many: 1 to 1,000."),
        ("cursor", "next_cursor of the page before."),
        ("domain", "Those of this mail domain."),
    ];
    vec![
        Route::get("/mail-domains", "List mail domains", mail::list_domains).pages::<schema::MailDomain>().query(&[
            ("limit", "At most so many: 1 to 1,000."),
            ("cursor", "next_cursor of the page before."),
            ("account", "Those of this account."),
            ("logical_server", "Those on this logical server."),
        ]),
        Route::post("/mail-domains", "Add a mail domain", mail::add_domain)
            .gives::<schema::MailDomainInFull>()
            .takes::<mail::NewMailDomain>(),
        Route::get("/mail-domains/{name}", "Show a mail domain, and what belongs into the DNS", mail::get_domain)
            .gives::<schema::MailDomainInFull>(),
        Route::patch("/mail-domains/{name}", "Change a mail domain's state", mail::change_domain)
            .gives::<schema::MailDomainInFull>()
            .takes::<mail::MailDomainPatch>(),
        Route::delete(
            "/mail-domains/{name}",
            "Remove a mail domain; what its mailboxes hold stays",
            mail::remove_domain,
        )
        .query(&[("mailboxes", "true: its mailboxes and aliases too.")]),
        Route::get("/mailboxes", "List mailboxes", mail::list_mailboxes).pages::<schema::Mailbox>().query(OF_DOMAIN),
        Route::post("/mailboxes", "Add a mailbox", mail::add_mailbox)
            .gives::<schema::Mailbox>()
            .takes::<mail::NewMailbox>(),
        Route::get("/mailboxes/{address}", "Show a mailbox", mail::get_mailbox).gives::<schema::Mailbox>(),
        Route::patch("/mailboxes/{address}", "Change a mailbox's password, quota or state", mail::change_mailbox)
            .gives::<schema::Mailbox>()
            .takes::<mail::MailboxPatch>(),
        Route::delete("/mailboxes/{address}", "Remove a mailbox; what it holds stays", mail::remove_mailbox),
        Route::get("/aliases", "List aliases", mail::list_aliases).pages::<schema::MailAlias>().query(OF_DOMAIN),
        Route::post("/aliases", "Add an alias", mail::add_alias)
            .gives::<schema::MailAlias>()
            .takes::<mail::NewMailAlias>(),
        Route::get("/aliases/{source}", "Show an alias", mail::get_alias).gives::<schema::MailAlias>(),
        Route::patch("/aliases/{source}", "Change an alias's targets", mail::change_alias)
            .gives::<schema::MailAlias>()
            .takes::<mail::MailAliasPatch>(),
        Route::delete("/aliases/{source}", "Remove an alias", mail::remove_alias),
    ]
}

fn queue_routes() -> Vec<Route> {
    vec![
        Route::get("/queues", "List mail queues, and who runs them", queues::list).pages::<schema::Queue>(),
        Route::get("/queues/{server}", "What the queue that a server filled holds", queues::show)
            .gives::<schema::QueueInFull>()
            .query(&[("limit", "List at most so many messages, the oldest: 0 to 1,000, 100 where nothing is said.")]),
        Route::post(
            "/queues/{server}/adopt",
            "Let another node run a queue, of a lost one after its fence",
            queues::adopt,
        )
        .gives::<schema::Queue>()
        .takes::<queues::Adopt>()
        .answers(StatusCode::OK),
        order_on_queue("/queues/{server}/flush", "Try to deliver now", queues::flush),
        order_on_queue("/queues/{server}/hold", "Let messages wait until they are released", queues::hold),
        order_on_queue("/queues/{server}/release", "Release messages that are held", queues::release),
        order_on_queue("/queues/{server}/delete", "Remove messages; nobody is told", queues::delete),
    ]
}

fn order_on_queue<H: Handler<T, Panel>, T: 'static>(path: &'static str, summary: &'static str, handler: H) -> Route {
    Route::post(path, summary, handler).gives::<schema::OrderDone>().takes::<queues::Which>().answers(StatusCode::OK)
}

/// The API and the pages.
pub fn router(panel: Panel) -> Router {
    let api = routes().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler));
    let api = api
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_such_path)
        .layer(middleware::from_fn_with_state(panel.clone(), idempotency::layer))
        .layer(middleware::from_fn_with_state(panel.clone(), authenticate));
    Router::new().nest(ROOT, api).merge(crate::page::router()).fallback(no_such_path).with_state(panel)
}

/// Lets only holders of an API token in; the document of the API is for everybody.
async fn authenticate(State(panel): State<Panel>, mut request: Request, next: Next) -> Reply<Response> {
    if request.uri().path().trim_end_matches('/').ends_with("/openapi.json") {
        return Ok(next.run(request).await);
    }
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token =
        header.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let actor = match token {
        Some((_, token)) => panel.store.actor(token.trim()).await?,
        None => None,
    };
    let Some(actor) = actor else {
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "No valid API token",
            if header.is_none() { "the request has no API token" } else { "this API token is not known" },
            "send Authorization: Bearer TOKEN; the first token is in /var/lib/phalanx/panel/admin.token",
        ));
    };
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    match actor.role {
        Role::Admin => {}
        Role::Reader if looks => {}
        Role::Reader => {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "This token may not do this",
                format!("the token {} is of role reader: it may look, and change nothing", actor.token),
                "use a token of role admin",
            ));
        }
    }
    request.extensions_mut().insert(actor);
    Ok(next.run(request).await)
}

async fn no_such_path(request: Request) -> Response {
    let detail = format!("there is nothing at {}", request.uri().path().chars().take(300).collect::<String>());
    let hint = "see what there is: GET /api/v1/openapi.json";
    Problem::new(StatusCode::NOT_FOUND, "unknown", "There is no such thing", detail, hint).into_response()
}

async fn method_not_allowed(request: Request) -> Response {
    let detail = format!("{} can't be done here", request.method().as_str().chars().take(20).collect::<String>());
    let hint = "see what can be done: GET /api/v1/openapi.json";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This can't be done here", detail, hint)
        .into_response()
}
