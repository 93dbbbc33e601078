//! A way from the machine's own loopback to a host's: connections to a local port are carried into the host's network
//! namespace and connect there, mostly to 127.0.0.1. It is how a person's browser reaches a page that a host serves.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How many connections are carried at once; more are closed at once.
const CONNECTIONS_MAX: usize = 128;

/// Listens at 127.0.0.1:`local` (0 takes a free port) and carries connections to `target` as seen from the network namespace
/// that the file `namespace` stands for, as long as the process lives. Returns where it listens.
pub fn start(namespace: PathBuf, target: SocketAddr, local: u16) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local))
        .with_context(|| format!("cannot listen at 127.0.0.1:{local} (say 0 for a free port)"))?;
    let address = listener.local_addr()?;
    let open = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for client in listener.incoming() {
            // A client that went away before it was accepted is no loss.
            let Ok(client) = client else { continue };
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (namespace, open) = (namespace.clone(), Arc::clone(&open));
            thread::spawn(move || {
                if let Err(error) = carry(&client, &namespace, target) {
                    eprintln!("lab: a connection was not carried: {error:#}");
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(address)
}

/// Connects within the namespace and copies both ways until both sides have ended.
fn carry(client: &TcpStream, namespace: &PathBuf, target: SocketAddr) -> Result<()> {
    // Opened for each connection, since a host that was killed and booted has another one.
    let file = File::open(namespace).context("the host is not running")?;
    // This moves only this thread, which makes the connection and ends with it.
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter the host's network")?;
    let host = TcpStream::connect(target).with_context(|| format!("nothing answers the host at {target}"))?;
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &host));
        copy(&host, client);
    });
    Ok(())
}

/// Copies until the end of `from`, and passes the end on. An error is an end, too.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _copied = io::copy(&mut from, &mut to);
    let _flushed = to.flush();
    let _passed = to.shutdown(Shutdown::Write);
}
