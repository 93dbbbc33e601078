//! A machine that joins and follows the panel with the real protocol, keeping its directory in memory.

use crate::support::{PATIENCE, TestPanel};
use phalanx_model::{DirectoryChange, Name, Position, Row, RowKey};
use phalanx_plan::session::message::Identity;
use phalanx_plan::session::{Command, DownMessage, Follower, FollowerEffect, JoinReply, JoinRequest, Place, UpMessage};
use phalanx_plan::spec::ClusterSpec;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What makes a machine a member: its certificate chain's CA and its key.
#[derive(Clone)]
pub struct Member {
    pub identity: Identity,
    key_pem: String,
}

/// A TLS connection to the panel, with frames.
pub struct Wire(TlsStream<TcpStream>);

impl Wire {
    pub async fn open(panel: &TestPanel, ca_pem: &str, member: Option<&Member>) -> std::io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("PEM")).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
        let config = config.with_root_certificates(roots);
        let config = match member {
            None => config.with_no_client_auth(),
            Some(member) => {
                let certificate =
                    CertificateDer::from_pem_slice(member.identity.certificate_pem.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(member.key_pem.as_bytes()).expect("PEM");
                config.with_client_auth_cert(vec![certificate], key).expect("they fit")
            }
        };
        let stream = TcpStream::connect(panel.links).await?;
        let name = ServerName::try_from(phalanx_panel::ca::PANEL_NAME).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(Self)
    }

    pub async fn send(&mut self, message: &UpMessage) {
        let body = serde_json::to_vec(message).expect("JSON");
        let frame = [&(body.len() as u32).to_be_bytes()[..], &body].concat();
        self.0.write_all(&frame).await.expect("the panel reads");
        self.0.flush().await.expect("the panel reads");
    }

    /// The next message; None where the panel closed.
    pub async fn receive(&mut self) -> Option<DownMessage> {
        let read = async {
            let len = self.0.read_u32().await.ok()?;
            let mut body = vec![0; len as usize];
            self.0.read_exact(&mut body).await.ok()?;
            Some(serde_json::from_slice(&body).expect("a message"))
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the panel says something")
    }
}

/// Makes a key and a signing request.
fn request(number: u64, token: &str) -> (JoinRequest, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::new(vec![]).expect("no names").serialize_request(&key).expect("a request");
    (JoinRequest { number, token: token.to_owned(), csr_pem: csr.pem().expect("PEM") }, key.serialize_pem())
}

pub fn ca_pem(panel: &TestPanel) -> String {
    std::fs::read_to_string(panel.dir.path().join("ca.pem")).expect("the CA's certificate")
}

pub async fn token(panel: &TestPanel, server: &str) -> String {
    let made = panel.post(&format!("/servers/{server}/join-token"), serde_json::json!({})).await.is(201);
    made["token"].as_str().expect("a token").to_owned()
}

/// Joins directly with a token; the reason where it is refused.
pub async fn join(panel: &TestPanel, token: &str) -> Result<Member, String> {
    let mut wire = Wire::open(panel, &ca_pem(panel), None).await.expect("TLS without a certificate");
    let (request, key_pem) = request(7, token);
    wire.send(&UpMessage::Join(request)).await;
    match wire.receive().await {
        Some(DownMessage::Joined(JoinReply { number: 7, result })) => {
            result.map(|identity| Member { identity, key_pem })
        }
        other => panic!("{other:?}"),
    }
}

/// A follower that keeps what it gets.
pub struct TestFollower {
    pub wire: Wire,
    follower: Follower,
    pub member: Member,
    pub spec: Option<Box<ClusterSpec>>,
    pub spec_at: Position,
    pub specs: usize,
    pub directory: Position,
    pub rows: BTreeMap<RowKey, Row>,
    pub snapshots: usize,
    collecting: BTreeMap<RowKey, Row>,
    pub commands: Vec<(u64, Command)>,
    pub relayed: Vec<DownMessage>,
    pub events_kept: u64,
    pub traffic_kept: Vec<u64>,
    pub joined: Option<JoinReply>,
}

impl TestFollower {
    /// Connects with what it has (nothing, the first time).
    pub async fn connect(panel: &TestPanel, member: Member) -> Self {
        let wire = Wire::open(panel, &member.identity.ca_pem, Some(&member)).await.expect("TLS");
        let (name, nowhere) = (member.identity.server.clone(), Position::default());
        let mut this = Self {
            wire,
            follower: Follower::new(name, nowhere, None, nowhere),
            member,
            spec: None,
            spec_at: nowhere,
            specs: 0,
            directory: nowhere,
            rows: BTreeMap::new(),
            snapshots: 0,
            collecting: BTreeMap::new(),
            commands: vec![],
            relayed: vec![],
            events_kept: 0,
            traffic_kept: Vec::new(),
            joined: None,
        };
        this.wire.send(&this.follower.hello()).await;
        this
    }

    /// Connects anew, keeping its directory but no spec.
    pub async fn reconnect(&mut self, panel: &TestPanel) {
        self.wire = Wire::open(panel, &self.member.identity.ca_pem, Some(&self.member)).await.expect("TLS");
        self.follower = Follower::new(self.member.identity.server.clone(), Position::default(), None, self.directory);
        self.wire.send(&self.follower.hello()).await;
    }

    /// Handles messages until something is so.
    pub async fn until(&mut self, mut so: impl FnMut(&Self) -> bool) {
        while !so(self) {
            let message = self.wire.receive().await.expect("the panel does not close");
            self.handle(message).await;
        }
    }

    /// Handles messages until the panel sends it away.
    pub async fn until_refused(&mut self) -> String {
        loop {
            match self.wire.receive().await.expect("a reason comes before the end") {
                DownMessage::Refused { why } => return why,
                message => self.handle(message).await,
            }
        }
    }

    /// Handles messages until the panel names another upstream.
    pub async fn until_sent_on(&mut self) -> Place {
        loop {
            match self.wire.receive().await.expect("a place comes before the end") {
                DownMessage::Elsewhere { place, .. } => return place,
                message => self.handle(message).await,
            }
        }
    }

    pub async fn handle(&mut self, message: DownMessage) {
        for effect in self.follower.on_message(message) {
            match effect {
                FollowerEffect::Send(message) => self.wire.send(&message).await,
                FollowerEffect::AdoptSpec { position, spec } => {
                    (self.spec_at, self.spec) = (position, spec);
                    self.specs += 1;
                }
                FollowerEffect::Apply(batch) => {
                    batch.changes.into_iter().for_each(|change| apply(&mut self.rows, change));
                    self.directory = batch.upto;
                }
                FollowerEffect::Collect(piece) => {
                    if piece.piece == 0 {
                        self.collecting.clear();
                    }
                    self.collecting.extend(piece.rows.into_iter().map(|row| (row.key(), row)));
                    if piece.last {
                        self.rows = std::mem::take(&mut self.collecting);
                        self.directory = piece.at;
                        self.snapshots += 1;
                    }
                }
                FollowerEffect::EventsKept { number, .. } => self.events_kept = number,
                FollowerEffect::TrafficKept { upto, .. } => self.traffic_kept.push(upto),
                FollowerEffect::Do { number, command } => self.commands.push((number, command)),
                FollowerEffect::Relay { message, .. } => self.relayed.push(message),
                FollowerEffect::Joined(reply) => self.joined = Some(reply),
                FollowerEffect::GoTo { place, why } => panic!("sent to {place:?}: {why}"),
                FollowerEffect::Close { why } => panic!("the follower closes: {why}"),
            }
        }
    }

    /// Hands a slave's join on, as a master's agent does.
    pub async fn relay_join(&mut self, token: &str) -> Result<Member, String> {
        let (request, key_pem) = request(21, token);
        self.joined = None;
        self.wire.send(&UpMessage::Join(request)).await;
        self.until(|this| this.joined.is_some()).await;
        let reply = self.joined.take().expect("it has come");
        assert_eq!(reply.number, 21);
        reply.result.map(|identity| Member { identity, key_pem })
    }
}

fn apply(rows: &mut BTreeMap<RowKey, Row>, change: DirectoryChange) {
    match change {
        DirectoryChange::Put(row) => {
            rows.insert(row.key(), *row);
        }
        DirectoryChange::Remove(key) => {
            rows.remove(&key);
        }
    }
}

pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}
