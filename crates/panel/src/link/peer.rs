//! One link with a member of the fleet.

use super::{frame, join};
use crate::live::ToLink;
use crate::store::{ChangesRead, SnapshotReader, StoreError, World};
use crate::{Panel, ca};
use anyhow::{Context, Result, bail};
use phalanx_model::share::Marker;
use phalanx_model::{Name, Position, Role};
use phalanx_plan::report::Severity;
use phalanx_plan::session::{Batch, DownMessage, FRAME_LEN_MAX, Place, UpMessage, Upstream, UpstreamEffect};
use phalanx_plan::spec::{CertificateDigest, ClusterSpec};
use rustls_pki_types::CertificateDer;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;

/// A follower reports every two seconds; one that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Messages that are read ahead of what is handled.
const READ_AHEAD_MAX: usize = 8;
/// How long a peer that is sent away may take to close: closing first could cost it the reason (RFC 1122, 4.2.2.13).
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a snapshot waits where others are being read.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(500);

/// What a server is to the panel.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// The master of a cluster, with its spec and the head of its directory.
    Master { cluster: Name, spec_at: Position, head: Position },
    /// It belongs to no cluster.
    Free,
    /// A slave: its master serves it.
    Slave {
        /// Where that is.
        master: Place,
        /// In words for a person.
        why: String,
    },
    /// It has no business here.
    Refused(String),
}

fn standing(world: &World, server: &Name) -> Standing {
    if !world.fleet.servers.contains_key(server) {
        return Standing::Refused(format!("there is no server {server} in this fleet (any more)"));
    }
    match world.fleet.membership(server) {
        None => Standing::Free,
        Some((cluster, Role::Slave)) => Standing::Slave {
            master: join::master_place(world, cluster),
            why: join::dial_your_master(world, cluster, server),
        },
        Some((cluster, Role::Master)) => match world.streams.get(&cluster.name) {
            Some(stream) => Standing::Master {
                cluster: cluster.name.clone(),
                spec_at: world.position(stream.spec_revision),
                head: world.position(stream.head),
            },
            None => Standing::Refused(format!("cluster {} has no stream: the panel's store is damaged", cluster.name)),
        },
    }
}

/// The spec of a server and where its directory stands. A free server's directory stands nowhere: it gets none.
fn desired(world: &World, standing: &Standing) -> (Position, Option<Box<ClusterSpec>>, Position) {
    match standing {
        Standing::Master { cluster, spec_at, head } => {
            let spec = world.streams.get(cluster).map(|stream| Box::new((*stream.spec).clone()));
            (*spec_at, spec, *head)
        }
        Standing::Free | Standing::Slave { .. } | Standing::Refused(_) => {
            (world.position(world.fleet_revision), None, Position::default())
        }
    }
}

/// Serves a peer whose certificate comes from our CA.
pub(super) async fn serve(panel: &Panel, tls: TlsStream<TcpStream>, certificate: &CertificateDer<'_>) -> Result<()> {
    let server = ca::server_of(certificate)?;
    let world = panel.store.world();
    let (mut reading, mut writing) = tokio::io::split(tls);
    let mut standing = standing(&world, &server);
    if world.certificates.get(&server) != Some(&CertificateDigest::of(certificate)) {
        let why = format!("this certificate of {server} is not the newest: join again with a new token");
        standing = Standing::Refused(why);
    }
    let sent_away = match &standing {
        Standing::Master { .. } | Standing::Free => None,
        Standing::Slave { master, why } => {
            Some((DownMessage::Elsewhere { place: master.clone(), why: why.clone() }, why.clone()))
        }
        Standing::Refused(why) => Some((DownMessage::Refused { why: why.clone() }, why.clone())),
    };
    if let Some((message, why)) = sent_away {
        frame::write(&mut writing, &message).await?;
        writing.shutdown().await?;
        let rest = async { while matches!(frame::read(&mut reading, FRAME_LEN_MAX).await, Ok(Some(_))) {} };
        let _closed_or_not = tokio::time::timeout(FAREWELL_TIME_MAX, rest).await;
        bail!("sent {server} away: {why}");
    }
    let (number, told) = panel.live.connect(&server);
    note(panel, &server, Severity::Info, format!("{server} is connected")).await;
    let (spec_at, spec, head) = desired(&world, &standing);
    let upstream = Upstream::new(server.clone(), Some((spec_at, spec)), head);
    let link = Link { panel, server: server.clone(), standing, upstream, writing, snapshot: None };
    let ended = link.run(reading, told).await;
    if panel.live.disconnect(&server, number) && !*panel.stopping.borrow() {
        let (severity, text) = match &ended {
            Ok(Ended::HandedOver(why)) => (Severity::Info, format!("handed over to its master: {why}")),
            Ok(Ended::Stopping) => (Severity::Warning, format!("{server} is no longer connected")),
            Err(error) => (Severity::Warning, format!("{server} is no longer connected: {error:#}")),
        };
        note(panel, &server, severity, text).await;
    }
    ended.map(drop)
}

/// How a link ended well.
#[derive(Debug)]
enum Ended {
    /// The panel stops.
    Stopping,
    /// The server has another upstream now; in words for a person.
    HandedOver(String),
}

/// An event that can't be kept is only worth a line in the log: the link itself works.
async fn note(panel: &Panel, server: &Name, severity: Severity, text: String) {
    if let Err(error) = panel.store.note(server, severity, "agent", text).await {
        tracing::error!(%server, "keeping an event failed: {error}");
    }
}

struct Link<'a> {
    panel: &'a Panel,
    server: Name,
    standing: Standing,
    upstream: Upstream,
    writing: WriteHalf<TlsStream<TcpStream>>,
    snapshot: Option<SnapshotReader>,
}

impl Link<'_> {
    async fn run(
        mut self,
        mut reading: ReadHalf<TlsStream<TcpStream>>,
        mut told: mpsc::Receiver<ToLink>,
    ) -> Result<Ended> {
        let (sender, mut messages) = mpsc::channel(READ_AHEAD_MAX);
        let reader = tokio::spawn(async move {
            loop {
                let message = frame::read(&mut reading, FRAME_LEN_MAX).await;
                let ends = !matches!(message, Ok(Some(_)));
                if sender.send(message).await.is_err() || ends {
                    return;
                }
            }
        });
        let ended = self.exchange(&mut messages, &mut told).await;
        let farewell = async {
            self.writing.shutdown().await?;
            while matches!(messages.recv().await, Some(Ok(Some(_)))) {}
            Ok::<(), std::io::Error>(())
        };
        // However the farewell goes, the link has ended for the reason that is known already.
        let _closed_or_not = tokio::time::timeout(FAREWELL_TIME_MAX, farewell).await;
        reader.abort();
        ended
    }

    async fn exchange(
        &mut self,
        messages: &mut mpsc::Receiver<Result<Option<UpMessage>>>,
        told: &mut mpsc::Receiver<ToLink>,
    ) -> Result<Ended> {
        let mut world = self.panel.store.watch();
        let mut stopping = self.panel.stopping.clone();
        let mut silent_at = tokio::time::Instant::now() + SILENCE_MAX;
        loop {
            let effects = tokio::select! {
                message = messages.recv() => match message {
                    Some(Ok(Some(message))) => {
                        silent_at = tokio::time::Instant::now() + SILENCE_MAX;
                        self.upstream.on_message(message)
                    }
                    Some(Err(error)) => return Err(error),
                    Some(Ok(None)) | None => bail!("the peer closed the connection"),
                },
                changed = world.changed() => {
                    changed.context("the panel is stopping")?;
                    let now = world.borrow_and_update().clone();
                    self.on_world(&now)
                }
                told = told.recv() => match told {
                    Some(ToLink::Command { number, server, command }) => self.upstream.on_command(number, server, command),
                    Some(ToLink::End { why }) => vec![UpstreamEffect::Close { why }],
                    None => bail!("a newer connection took its place"),
                },
                () = tokio::time::sleep_until(silent_at) => bail!("it was silent for {} s", SILENCE_MAX.as_secs()),
                _ = stopping.wait_for(|stop| *stop) => return Ok(Ended::Stopping),
            };
            if let Some(why) = self.carry_out(effects).await? {
                return Ok(Ended::HandedOver(why));
            }
        }
    }

    fn on_world(&mut self, world: &World) -> Vec<UpstreamEffect> {
        let now = standing(world, &self.server);
        if now == self.standing {
            return vec![];
        }
        let mut effects = match &now {
            Standing::Refused(why) => return vec![UpstreamEffect::Close { why: why.clone() }],
            Standing::Slave { master, why } => return self.upstream.on_elsewhere(master.clone(), why.clone()),
            Standing::Free | Standing::Master { .. } => vec![],
        };
        let (spec_at, spec, head) = desired(world, &now);
        if spec_at_of(&now) != spec_at_of(&self.standing) {
            effects.extend(self.upstream.on_spec(spec_at, spec));
        }
        effects.extend(self.upstream.on_head(head));
        self.standing = now;
        effects
    }

    /// Carries out effects and those that follow from them, in order. Says why where the follower was handed over.
    async fn carry_out(&mut self, effects: Vec<UpstreamEffect>) -> Result<Option<String>> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let more = match effect {
                UpstreamEffect::Send(message) => {
                    frame::write(&mut self.writing, &message).await?;
                    vec![]
                }
                UpstreamEffect::ReadChanges { after } => self.read_changes(after).await?,
                UpstreamEffect::ReadSnapshot { piece } => self.read_snapshot(piece).await?,
                UpstreamEffect::Deliver(message) => self.deliver(message).await?,
                UpstreamEffect::HandedOver { why } => return Ok(Some(why)),
                UpstreamEffect::Close { why } => {
                    frame::write(&mut self.writing, &DownMessage::Refused { why: why.clone() }).await?;
                    bail!("{why}");
                }
            };
            effects.extend(more);
        }
        Ok(None)
    }

    fn cluster(&self) -> Result<&Name> {
        match &self.standing {
            Standing::Master { cluster, .. } => Ok(cluster),
            Standing::Free | Standing::Slave { .. } | Standing::Refused(_) => {
                bail!("{} is no master and has no directory", self.server)
            }
        }
    }

    async fn read_changes(&mut self, after: Position) -> Result<Vec<UpstreamEffect>> {
        match self.panel.store.changes(self.cluster()?, after.revision).await? {
            ChangesRead::TooShort => Ok(self.upstream.on_log_too_short()),
            ChangesRead::Changes { upto, changes } => {
                let upto = self.panel.store.world().position(upto);
                Ok(self.upstream.on_changes(Batch { after, upto, changes }))
            }
        }
    }

    async fn read_snapshot(&mut self, piece: u64) -> Result<Vec<UpstreamEffect>> {
        if piece == 0 {
            self.snapshot = Some(self.open_snapshot().await?);
        }
        let reader = self.snapshot.as_mut().context("a snapshot's later piece was asked for first")?;
        let next = reader.next_piece().await?;
        if next.last {
            self.snapshot = None;
        }
        Ok(self.upstream.on_snapshot_piece(next))
    }

    /// Snapshots are few at a time: waits for a place, as long as a silent follower is waited for.
    async fn open_snapshot(&self) -> Result<SnapshotReader> {
        let tries_max = SILENCE_MAX.as_millis() / SNAPSHOT_PAUSE.as_millis();
        for _ in 0..tries_max {
            match self.panel.store.snapshot(self.cluster()?).await {
                Err(StoreError::Busy(_)) => tokio::time::sleep(SNAPSHOT_PAUSE).await,
                other => return Ok(other?),
            }
        }
        bail!("no place to read a snapshot was free")
    }

    async fn deliver(&mut self, message: UpMessage) -> Result<Vec<UpstreamEffect>> {
        match message {
            UpMessage::Reports { reports } => {
                let world = self.panel.store.world();
                let mine = reports.into_iter().filter(|(server, _)| self.speaks_for(&world, server));
                self.panel.live.on_reports(&self.server, mine);
                Ok(vec![])
            }
            UpMessage::Events { server, events } => {
                let number = if self.speaks_for(&self.panel.store.world(), &server) {
                    self.panel.store.keep_events(&server, &events).await?
                } else {
                    // A slave that has left meanwhile: its master shall forget them, not offer them for ever.
                    tracing::warn!(%server, "{} sent events of a server that is no node of its cluster", self.server);
                    events.iter().map(|event| event.number).max().unwrap_or(0)
                };
                Ok(self.upstream.on_events_kept(server, number))
            }
            UpMessage::Traffic { source, stream, part } => {
                let world = self.panel.store.world();
                let upto = if self.counts_for(&world, &source) {
                    self.panel.store.add_traffic(&source, stream, &part).await?
                } else {
                    tracing::warn!("{} sent traffic of a share that its cluster does not have", self.server);
                    part.upto
                };
                Ok(self.upstream.on_traffic_kept(source, stream, upto))
            }
            UpMessage::CommandDone { number, server, result } => {
                self.panel.live.on_command_done(number, &server, result);
                Ok(vec![])
            }
            UpMessage::Join(request) => {
                let reply = join::join(self.panel, request, Some(&self.server)).await;
                Ok(self.upstream.on_joined(reply))
            }
            UpMessage::Hello { .. } | UpMessage::Committed { .. } => {
                bail!("the session handed on what it handles itself")
            }
        }
    }

    /// A master counts for the share of its cluster.
    fn counts_for(&self, world: &World, source: &Marker) -> bool {
        let cluster = world.fleet.membership(&self.server).map(|(cluster, _)| cluster);
        let cluster = cluster.filter(|cluster| cluster.master == self.server);
        let share = cluster.and_then(|cluster| world.fleet.shares.get(cluster.share.as_ref()?));
        share.is_some_and(|share| share.marker == *source)
    }

    /// A master speaks for the nodes of its cluster, any other server for itself alone.
    fn speaks_for(&self, world: &World, server: &Name) -> bool {
        *server == self.server
            || world.fleet.membership(server).is_some_and(|(cluster, _)| cluster.master == self.server)
    }
}

fn spec_at_of(standing: &Standing) -> Option<Position> {
    match standing {
        Standing::Master { spec_at, .. } => Some(*spec_at),
        Standing::Free | Standing::Slave { .. } | Standing::Refused(_) => None,
    }
}
