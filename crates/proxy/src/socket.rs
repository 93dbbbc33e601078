//! What this crate wants of TCP sockets beyond reading and writing: binding, the ways to end, and how many there may be.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Connections that the kernel holds before they are accepted.
const BACKLOG: u32 = 4_096;
/// How long a closed connection is read on, so that its last answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
/// How much is read on.
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// Listens on `address`. One that the machine does not have yet can be bound all the same (IP_FREEBIND), so that the order in which
/// addresses and services come up does not matter.
///
/// # Errors
/// The kernel's: another socket listens there, or the port is not for this process.
pub fn bind(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    rustix::net::sockopt::set_ip_freebind(&socket, true)?;
    socket.bind(SocketAddr::V4(address))?;
    socket.listen(BACKLOG)
}

/// Closes a connection such that the client can read the last answer: writing ends, and what still comes is dropped, for a while.
pub async fn linger(stream: TcpStream) {
    end_writing(&stream);
    let drain = async {
        let mut dropped = 0;
        while dropped < LINGER_BYTES_MAX && stream.readable().await.is_ok() {
            // Not kept while waiting: it would be a part of every task that may come here.
            let mut room = [0; 4_096];
            match stream.try_read(&mut room) {
                Ok(0) => return,
                Ok(count) => dropped += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    if timeout(LINGER, drain).await.is_err() {
        tracing::debug!("a client kept its connection open after its last answer");
    }
}

/// Makes the connection end with a reset instead of an orderly close.
pub fn reset(stream: &TcpStream) {
    if let Err(error) = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)) {
        tracing::debug!("a broken connection is closed in order: {error}");
    }
}

/// Takes [`reset`] back.
pub fn close_in_order(stream: &TcpStream) {
    if let Err(error) = rustix::net::sockopt::set_socket_linger(stream, None) {
        tracing::debug!("a connection ends with a reset: {error}");
    }
}

/// Whether the other end has closed its side or is gone, whatever lies unread before that.
pub fn has_ended(stream: &TcpStream) -> bool {
    let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut asked = [PollFd::new(stream, PollFlags::RDHUP)];
    // Where the kernel can't tell, reading or writing will.
    poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().intersects(ends)
}

/// Tells the other end that nothing more comes.
pub fn end_writing(stream: &TcpStream) {
    // A peer that is gone needs not be told.
    if let Err(error) = rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
        tracing::debug!("a connection was gone before it was closed: {error}");
    }
}

/// Raises the limit of open files as far as this process may, and says what it is.
pub fn raise_files_max() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum.map_or(usize::MAX, |max| max as usize),
        Err(error) => {
            tracing::warn!("the limit of open files can't be raised: {error}");
            current.map_or(usize::MAX, |max| max as usize)
        }
    }
}
