//! The forms of answers, for the OpenAPI document alone: what handlers put together from values of the model and of nodes' reports,
//! which are on floors that know nothing of the document.
//!
//! Invariant, kept by the tests: every answer that an integration test gets is held against these, and a field that is missing here, or
//! there, fails it.
#![expect(dead_code, reason = "these types are described, never made")]

use crate::leaving::Leaving;
use crate::live::NodeState;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

mod mail;
mod queue;

pub use mail::{MailAlias, MailDomain, MailDomainInFull, Mailbox};
pub use queue::{Queue, QueueInFull};

/// What a server or cluster does for a living.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum ClusterKind {
    Web,
    Mail,
    Nas,
    Balancer,
}

/// A server's part in its cluster.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum NodeRole {
    Master,
    Slave,
}

/// What a share is and how it is mounted.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub enum ShareKind {
    Local,
    NfsManaged,
}

/// A physical server.
#[derive(ToSchema)]
pub struct Server {
    name: String,
    kind: ClusterKind,
    /// Its internal address with the prefix length.
    address: String,
    /// How it is fenced: manual, or command:PROGRAM.
    fence: String,
    /// Set from when it was fenced until its machine was started anew.
    fenced: Option<Fenced>,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
    /// The cluster that it belongs to.
    cluster: Option<String>,
    role: Option<NodeRole>,
    /// Set while it leaves its cluster.
    leaving: Option<Leaving>,
    state: ServerState,
}

/// That a server was fenced.
#[derive(ToSchema)]
pub struct Fenced {
    /// The boot that it was fenced in; null where none was heard of.
    boot: Option<String>,
    /// Whether it was seen off; until then its fence has only begun.
    is_seen: bool,
}

/// What is known of a server now.
#[derive(ToSchema)]
pub struct ServerState {
    state: NodeState,
    /// Why it is in this state; empty where there is nothing to say.
    why: String,
    /// When it joined; null where it never has.
    joined_at: Option<String>,
    /// Whether its reports arrive.
    connected: bool,
    /// When the last one came.
    last_seen: Option<String>,
    /// The server through whose link it came: itself, or its master.
    via: Option<String>,
    report: Option<Report>,
}

/// What an agent says of its node.
#[derive(ToSchema)]
pub struct Report {
    /// The kernel's boot id.
    boot_id: String,
    /// The agent's version.
    version: String,
    spec: Position,
    directory: Position,
    /// The generation of configuration files that is live.
    generation: u64,
    /// Whether the node is as it should be.
    converged: bool,
    /// What stands in the way, in words.
    problems: Vec<String>,
    /// Whether the node offers itself to balancers.
    in_service: bool,
    load: Load,
    backends: Vec<Backend>,
    /// Package to version.
    versions: BTreeMap<String, String>,
    /// What only one node may do, and this one was seen not to be doing: right to the spec under which it shall not.
    released: BTreeMap<String, Position>,
    /// What waits in the mail queues that it runs.
    queues: Vec<QueueState>,
    /// Versions of PHP that accounts can have here; null where the node has not said.
    php: Option<Vec<String>>,
}

/// A mail queue that a node runs.
#[derive(ToSchema)]
pub struct QueueState {
    /// The server that filled it.
    of: String,
    /// How much it holds; null where that can't be told now.
    count: Option<QueueCount>,
}

/// How many messages a queue holds.
#[derive(ToSchema)]
pub struct QueueCount {
    messages: u64,
    /// Of these, how many are held.
    held: u64,
}

/// A point in a stream of states.
#[derive(ToSchema)]
pub struct Position {
    /// Which life of the panel's store.
    incarnation: u64,
    /// The number of the mastership grant.
    term: u64,
    revision: u64,
}

/// A node's load.
#[derive(ToSchema)]
pub struct Load {
    /// How much of its weight the node should get: 100 is idle, 0 is "nothing new".
    score_percent: u8,
    cpu_pressure_percent: f32,
    memory_pressure_percent: f32,
    io_pressure_percent: f32,
    /// Since the proxy started.
    requests_total: u64,
    requests_per_second: f32,
    /// Answers with status 5xx since the proxy started.
    errors_total: u64,
    accounts_awake: u32,
    /// Open client connections.
    connections: u32,
}

/// How a balancer sees one node behind one service.
#[derive(ToSchema)]
pub struct Backend {
    /// The external address and port.
    service: String,
    server: String,
    state: NodeState,
    why: String,
    /// Its part of new connections now.
    share_percent: f32,
    /// Established flows; null where they are not counted.
    flows: Option<u32>,
}

/// What an administrator set for a node.
#[derive(ToSchema)]
pub struct NodeSettings {
    weight: u8,
    drained: bool,
}

/// A master and its slaves.
#[derive(ToSchema)]
pub struct Cluster {
    name: String,
    kind: ClusterKind,
    master: String,
    /// By server.
    slaves: BTreeMap<String, NodeSettings>,
    master_settings: NodeSettings,
    share: Option<String>,
    httpd_directives: Vec<String>,
    /// What mail clusters have, and only they.
    mail: Option<MailService>,
    /// Which of its nodes alone may do what: by right, such as mailboxes, or queue-SERVER.
    grants: Option<BTreeMap<String, Grant>>,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
    /// Slaves that leave, by server.
    leaving: BTreeMap<String, Leaving>,
}

/// What a mail cluster is to the world.
#[derive(ToSchema)]
pub struct MailService {
    /// The name under which its servers greet and are found.
    host_name: String,
}

/// The right of one node to be the only one.
#[derive(ToSchema)]
pub struct Grant {
    /// Grows by one with each move.
    number: u64,
    /// Who has it; while it is moving, who has not been seen to be at an end with it.
    holder: String,
    /// Who gets it as soon as the holder is at an end with it.
    moving_to: Option<String>,
}

/// Storage that all nodes of a cluster mount.
#[derive(ToSchema)]
pub struct Share {
    name: String,
    kind: ShareKind,
    nas: Option<String>,
    path: String,
    /// What tells this share from every other: 32 hex digits.
    marker: String,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// An external address and port.
#[derive(ToSchema)]
pub struct Address {
    external: String,
    balancer: String,
    cluster: String,
    port: u16,
    /// The internal address of a node, where it is not its main one.
    internal: BTreeMap<String, String>,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// A service that customers are placed on.
#[derive(ToSchema)]
pub struct LogicalServer {
    name: String,
    kind: ClusterKind,
    cluster: String,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// A customer's space.
#[derive(ToSchema)]
pub struct Account {
    name: String,
    uid: u32,
    logical_server: String,
    limits: Limits,
    php: String,
    state: AccountState,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// Whether its sites are served.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum AccountState {
    Active,
    Suspended,
}

/// What an account may use on each node.
#[derive(ToSchema)]
pub struct Limits {
    cpu_percent: u32,
    memory_mib: u32,
    processes: u32,
    io_weight: u32,
}

/// A web site.
#[derive(ToSchema)]
pub struct Site {
    name: String,
    aliases: Vec<String>,
    account: String,
    document_root: String,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// A join token; shown once.
#[derive(ToSchema)]
pub struct JoinToken {
    token: String,
    server: String,
    /// Whom the machine dials.
    upstream: String,
    expires_at: String,
    /// The command to run on the machine.
    command: String,
}

/// What came of an order to a node, in its own words.
#[derive(ToSchema)]
pub struct OrderDone {
    result: String,
}

/// An API token without its secret.
#[derive(ToSchema)]
pub struct Token {
    name: String,
    role: TokenRole,
    /// Who may manage it.
    owner: String,
    /// Its version, as in the ETag header: send it back in If-Match.
    etag: String,
    /// RFC 3339.
    created_at: String,
}

/// An API token; its secret is shown once.
#[derive(ToSchema)]
pub struct TokenMade {
    name: String,
    role: TokenRole,
    owner: String,
    /// The secret.
    token: String,
}

/// What a token may do: everything, or look.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum TokenRole {
    Admin,
    Reader,
}

/// Lines of a merged log.
#[derive(ToSchema)]
pub struct LogLines {
    lines: Vec<String>,
    /// What comes after them is got by this.
    next_cursor: String,
}

/// The way of a message.
#[derive(ToSchema)]
pub struct MailTrace {
    /// By time; at most 2,000.
    lines: Vec<TracedLine>,
    recipients: Vec<MailFate>,
    /// Whether there are more lines.
    is_cut: bool,
}

/// What a daemon said of a message.
#[derive(ToSchema)]
pub struct TracedLine {
    /// RFC 3339.
    at: String,
    node: String,
    /// null where a mailbox has it.
    #[schema(required)]
    queue_id: Option<String>,
    text: String,
}

/// What became of a message for a recipient.
#[derive(ToSchema)]
pub struct MailFate {
    to: String,
    /// `stored`, or as Postfix says it: `sent`, `deferred`, `bounced`.
    state: String,
    /// RFC 3339.
    at: String,
    node: String,
    answer: String,
}

/// What was counted of a site or a mail domain on a day.
#[derive(ToSchema)]
pub struct Traffic {
    /// The site's main host name, or the mail domain; it may be gone by now.
    site: String,
    /// The day in UTC: 2026-11-28.
    day: String,
    requests: i64,
    /// What mailboxes got or handed in.
    messages: i64,
    /// Heads included; of mail, what was handed in or read.
    sent_bytes: i64,
    /// Heads included.
    received_bytes: i64,
}

/// Something that happened.
#[derive(ToSchema)]
pub struct Event {
    id: i64,
    /// On the clock of where it happened.
    at: String,
    server: String,
    severity: Severity,
    topic: String,
    text: String,
    detail: String,
}

/// How much a person should care.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// Who changed what.
#[derive(ToSchema)]
pub struct AuditRecord {
    id: i64,
    at: String,
    /// The API token's name; "panel", or "server NAME" for a machine that joined.
    actor: String,
    action: AuditAction,
    kind: String,
    name: String,
    revision: i64,
    /// The thing as it was; null where it was not there.
    #[schema(value_type = Option<Value>)]
    before: Option<Value>,
    /// The thing as it is; null where it is gone.
    #[schema(value_type = Option<Value>)]
    after: Option<Value>,
}

/// What was done.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum AuditAction {
    Add,
    Change,
    Remove,
    /// A command to a node.
    Order,
}

/// Everything at a glance.
#[derive(ToSchema)]
pub struct Status {
    at: String,
    panel: PanelStatus,
    counts: Counts,
    clusters: Vec<ClusterStatus>,
    balancers: Vec<BalancerStatus>,
    shares: Vec<ShareStatus>,
    free_servers: Vec<FreeServer>,
}

/// The panel itself.
#[derive(ToSchema)]
pub struct PanelStatus {
    version: String,
    incarnation: u64,
    revision: u64,
}

/// How much there is.
#[derive(ToSchema)]
pub struct Counts {
    servers: u64,
    clusters: u64,
    shares: u64,
    addresses: u64,
    logical_servers: u64,
    accounts: u64,
    sites: u64,
}

/// A cluster and its nodes, the master first.
#[derive(ToSchema)]
pub struct ClusterStatus {
    name: String,
    kind: ClusterKind,
    master: String,
    share: Option<String>,
    logical_servers: Vec<String>,
    /// Which of its nodes alone may do what: by right, such as mailboxes, or queue-SERVER.
    grants: BTreeMap<String, Grant>,
    spec: Option<Position>,
    directory: Option<Position>,
    nodes: Vec<NodeStatus>,
}

/// A node.
#[derive(ToSchema)]
pub struct NodeStatus {
    server: String,
    role: NodeRole,
    address: Option<String>,
    weight: u8,
    drained: bool,
    leaving: Option<Leaving>,
    state: NodeState,
    why: String,
    joined: bool,
    connected: bool,
    last_seen: Option<String>,
    /// How long ago that was, in seconds.
    last_seen_s: Option<u64>,
    converged: bool,
    in_service: bool,
    spec_behind: bool,
    directory_behind: bool,
    problems: Option<Vec<String>>,
    generation: Option<u64>,
    version: Option<String>,
    versions: Option<BTreeMap<String, String>>,
    load: Option<Load>,
    /// What waits in the mail queues that it runs; null without a report of now.
    queues: Option<Vec<QueueState>>,
    share_percent: Option<f32>,
    flows: Option<u32>,
}

/// A balancer cluster and what it balances.
#[derive(ToSchema)]
pub struct BalancerStatus {
    name: String,
    services: Vec<ServiceStatus>,
}

/// An external address and the nodes behind it.
#[derive(ToSchema)]
pub struct ServiceStatus {
    external: String,
    cluster: String,
    port: u16,
    backends: Vec<Backend>,
}

/// A share and who mounts it.
#[derive(ToSchema)]
pub struct ShareStatus {
    name: String,
    kind: ShareKind,
    nas: Option<String>,
    path: String,
    clusters: Vec<String>,
}

/// A server that is in no cluster.
#[derive(ToSchema)]
pub struct FreeServer {
    server: String,
    kind: ClusterKind,
    address: String,
    joined: bool,
    connected: bool,
}
