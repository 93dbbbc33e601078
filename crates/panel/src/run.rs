//! Beginning and end: `phalanx panel init` and `phalanx panel run`.

use crate::ca::{self, Ca};
use crate::link::LinkAddress;
use crate::live::Live;
use crate::store::{self, Actor, Adopted, Role, Store};
use crate::{Panel, api, fencing, http, leaving, link, moving};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

const DATABASE: &str = "panel.sqlite";
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const ADMIN_TOKEN: &str = "admin.token";

/// How often old changes, events and records are removed.
const TIDY_PERIOD: Duration = Duration::from_secs(600);
/// How long connections may take to end when the panel stops.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// How a panel is made.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Where its store lies; `/var/lib/phalanx/panel`. Made with mode 0700 where it does not exist.
    pub data_dir: PathBuf,
}

/// How a panel runs.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where its store lies.
    pub data_dir: PathBuf,
    /// Where API and pages are served, as plain HTTP.
    pub listen: SocketAddr,
    /// Where masters are accepted.
    pub link_listen: SocketAddr,
    /// `ADDRESS` or `ADDRESS:PORT` under which masters reach the panel: part of the join commands. Without it, they name
    /// the address of this machine from which the kernel would send to the joining one.
    pub public: Option<String>,
}

/// Makes the store, the certificate authority and the first API token, which it returns and writes to `admin.token`.
///
/// # Errors
/// When there is a panel already, or files can't be written.
pub async fn init(options: &InitOptions) -> Result<String> {
    let dir = &options.data_dir;
    if !dir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making {}", dir.display()))?;
    }
    let key_path = dir.join(CA_KEY);
    ensure!(
        !key_path.exists(),
        "there is a panel in {} already; use another data directory, or remove it",
        dir.display()
    );
    let (certificate, key) = ca::generate()?;
    let store = Store::open(&dir.join(DATABASE), true)
        .await
        .with_context(|| format!("making the store in {}", dir.display()))?;
    // A first run that was broken off may have left a token of which nobody knows the secret.
    let left_over = store.tokens("", 1).await?.into_iter().next().map(|token| token.name);
    let mut write = store.write(&Actor::panel()).await?;
    let name = if left_over.is_some() { format!("admin-{:08x}", rand::random::<u32>()) } else { "admin".to_owned() };
    let token = write.add_token(&name.parse().context("naming the first token")?, Role::Admin).await?;
    write.commit().await?;
    store.close().await;
    private_file(&dir.join(ADMIN_TOKEN), &format!("{token}\n"))?;
    private_file(&dir.join(CA_CERTIFICATE), &certificate)?;
    // Last: with the key, the panel is made.
    private_file(&key_path, &key)?;
    give_to_owner(dir)?;
    Ok(token)
}

/// Makes a store that was put back from a backup the present one; see [`store::adopt`]. No panel may run on it.
///
/// # Errors
/// When there is no whole panel in the data directory, one runs on it, or it can't be written.
pub async fn adopt_backup(data_dir: &Path) -> Result<Adopted> {
    for file in [DATABASE, CA_CERTIFICATE, CA_KEY] {
        let path = data_dir.join(file);
        ensure!(path.exists(), "{} is missing; a backup has {DATABASE}, {CA_CERTIFICATE} and {CA_KEY}", path.display());
    }
    let database = data_dir.join(DATABASE);
    let adopted = store::adopt(&database).await.with_context(|| format!("adopting {}", database.display()))?;
    give_to_owner(data_dir)?;
    Ok(adopted)
}

/// Writes a file that only its owner may read, in one step.
fn private_file(path: &Path, content: &str) -> Result<()> {
    let staged = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Root may have made the files in a directory that belongs to the panel's user: they become that user's.
fn give_to_owner(dir: &Path) -> Result<()> {
    let owner = fs::metadata(dir).with_context(|| format!("looking at {}", dir.display()))?;
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        let found = entry.metadata().with_context(|| format!("looking at {}", entry.path().display()))?;
        if (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
            std::os::unix::fs::lchown(entry.path(), Some(owner.uid()), Some(owner.gid()))
                .with_context(|| format!("giving {} to the panel's user", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Runs a panel until SIGTERM or SIGINT.
///
/// # Errors
/// When there is no panel in the data directory, it can't be read, or a port can't be taken.
pub async fn run(options: &RunOptions) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let api =
        TcpListener::bind(options.listen).await.with_context(|| format!("taking {} for the API", options.listen))?;
    let links = TcpListener::bind(options.link_listen).await;
    let links = links.with_context(|| format!("taking {} for masters", options.link_listen))?;
    let stop = async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    };
    serve(options, api, links, stop).await
}

/// Serves a panel on these listeners until `stop` ends.
///
/// # Errors
/// When there is no panel in the data directory, it can't be read, or serving fails.
pub async fn serve(
    options: &RunOptions,
    api: TcpListener,
    links: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let (stopper, stopping) = watch::channel(false);
    let panel = open(options, links.local_addr()?.port(), stopping.clone()).await?;
    panel.store.tidy().await.context("tidying the store")?;
    let router = api::router(panel.clone());
    tracing::info!(api = %api.local_addr()?, links = %links.local_addr()?, "the panel is serving");
    let mut http_stopping = stopping.clone();
    let http = axum::serve(http::Bounded::new(api), router).with_graceful_shutdown(async move {
        // The sender going away means the same.
        let _stop = http_stopping.wait_for(|stop| *stop).await;
    });
    let mut http = tokio::spawn(http.into_future());
    let mut links = tokio::spawn(link::serve(panel.clone(), links));
    let tidying = tokio::spawn(tidy(panel.clone()));
    let leaving = tokio::spawn(leaving::run(panel.clone()));
    let moving = tokio::spawn(moving::run(panel.clone()));
    let returning = tokio::spawn(fencing::run(panel.clone()));
    notify("READY=1").context("telling the service manager that the panel is ready")?;
    let ended: Result<()> = tokio::select! {
        () = stop => Ok(()),
        ended = &mut http => ended.context("the API's task failed").and_then(|served| served.context("serving the API")),
        ended = &mut links => ended.context("the links' task failed").and_then(|served| served),
    };
    notify("STOPPING=1").context("telling the service manager that the panel stops")?;
    stopper.send_replace(true);
    tidying.abort();
    if ended.is_ok() && tokio::time::timeout(STOP_TIME_MAX, http).await.is_err() {
        tracing::warn!("connections to the API were cut: they did not end within {} s", STOP_TIME_MAX.as_secs());
    }
    if tokio::time::timeout(STOP_TIME_MAX, leaving).await.is_err() {
        tracing::warn!("a removal of a slave was broken off; it goes on when the panel is started again");
    }
    if tokio::time::timeout(STOP_TIME_MAX, moving).await.is_err() {
        tracing::warn!("the move of a grant was broken off; it goes on when the panel is started again");
    }
    if tokio::time::timeout(STOP_TIME_MAX, returning).await.is_err() {
        tracing::warn!("the end of a fence was broken off; it goes on when the panel is started again");
    }
    panel.store.close().await;
    ended
}

async fn open(options: &RunOptions, link_port: u16, stopping: watch::Receiver<bool>) -> Result<Panel> {
    let dir = &options.data_dir;
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path)
            .with_context(|| format!("reading {}; make a panel first: phalanx panel init", path.display()))
    };
    let ca = Ca::load(&read(CA_CERTIFICATE)?, &read(CA_KEY)?)?;
    let store = Store::open(&dir.join(DATABASE), false)
        .await
        .with_context(|| format!("opening {}", dir.join(DATABASE).display()))?;
    let link_address = LinkAddress::new(options.public.as_deref(), options.link_listen.ip(), link_port)?;
    Ok(Panel {
        store,
        live: Arc::new(Live::default()),
        ca: Arc::new(ca),
        fencing: Arc::default(),
        streams: Arc::default(),
        link_address: Arc::new(link_address),
        stopping,
    })
}

async fn tidy(panel: Panel) {
    let mut ticks = tokio::time::interval(TIDY_PERIOD);
    loop {
        ticks.tick().await;
        if let Err(error) = panel.store.tidy().await {
            tracing::error!("tidying the store failed: {error}");
        }
    }
}

/// Tells systemd, where it asked to be told (sd_notify(3)).
fn notify(state: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
        _ => std::os::unix::net::SocketAddr::from_pathname(&path)?,
    };
    std::os::unix::net::UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
