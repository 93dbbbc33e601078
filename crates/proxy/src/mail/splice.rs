//! Bytes from one socket to another and back, until both sides have ended.
//!
//! A connection that is silent holds no buffer: its thread's is borrowed when something is there, and only what the other side does not
//! take at once is kept, at most [`ROOM_BYTES`] for each direction. Nothing is read from a side while something of it is still kept, so a slow
//! reader slows its writer down.

use super::tally::Tally;
use crate::patience::Patience;
use crate::socket::end_writing;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The most that is read at once, and that is kept of one direction.
const ROOM_BYTES: usize = 16 * 1024;
/// How long the second side may be silent after the first one has ended. A server that has closed has no use for more, and its client would
/// otherwise be kept for as long as IMAP's IDLE may last.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(60);

thread_local! {
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM_BYTES].into_boxed_slice());
}

/// Why a connection did not end in order.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// One of the sockets failed.
    #[error("a socket failed")]
    Socket(#[from] io::Error),
    /// Nothing moved for too long.
    #[error("nothing moved for {} s", .0.as_secs())]
    Silent(Duration),
}

/// Moves bytes both ways until both sides have ended. The end of one side is told to the other, which may go on.
///
/// # Errors
/// See [`Broken`].
pub async fn splice(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    tally: &Tally,
    idle_timeout: Duration,
) -> Result<(), Broken> {
    let (mut there, mut back) = (Stretch::default(), Stretch::default());
    let mut moved_at = Instant::now();
    let mut patience = Patience::until(moved_at + idle_timeout);
    poll_fn(|context| {
        let mut moved = false;
        let there = there.poll(client, upstream, &tally.bytes_from_clients, &mut moved, context)?;
        let back = back.poll(upstream, client, &tally.bytes_to_clients, &mut moved, context)?;
        if there.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if moved {
            moved_at = Instant::now();
        }
        let half_closed = there.is_ready() || back.is_ready();
        let bound = if half_closed { idle_timeout.min(HALF_CLOSED_TIMEOUT) } else { idle_timeout };
        ready!(patience.poll_end(moved_at + bound, context));
        Poll::Ready(Err(Broken::Silent(bound)))
    })
    .await
}

/// One direction.
#[derive(Default)]
struct Stretch {
    /// Read and not yet written, from `written` on; without room of its own while empty.
    left: Vec<u8>,
    written: usize,
    end: End,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum End {
    /// More may come.
    #[default]
    No,
    /// Nothing more comes; the other side is told when it has all that came.
    Seen,
    /// The other side has been told.
    Told,
}

impl Stretch {
    /// Moves all that can be moved now. Ready when this direction is over; else the task is woken when more can be moved.
    fn poll(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: &AtomicU64,
        moved: &mut bool,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.end != End::Told {
            while self.written < self.left.len() {
                self.written += ready!(Pin::new(&mut *to).poll_write(context, &self.left[self.written..]))?;
                *moved = true;
            }
            *self = Self { end: self.end, ..Self::default() };
            if self.end == End::Seen {
                end_writing(to);
                self.end = End::Told;
                break;
            }
            let read = ROOM.with_borrow_mut(|room| self.poll_once(from, to, room, context));
            let bytes = ready!(read)?;
            count.fetch_add(bytes as u64, Ordering::Relaxed);
            *moved = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes once; what is not taken is kept. Gives how many bytes were read.
    fn poll_once(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        room: &mut [u8],
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut space = ReadBuf::new(room);
        ready!(Pin::new(from).poll_read(context, &mut space))?;
        let bytes = space.filled();
        if bytes.is_empty() {
            self.end = End::Seen;
            return Poll::Ready(Ok(0));
        }
        let taken = match Pin::new(to).poll_write(context, bytes) {
            Poll::Ready(taken) => taken?,
            Poll::Pending => 0,
        };
        if taken < bytes.len() {
            self.left = bytes[taken..].to_vec();
        }
        Poll::Ready(Ok(bytes.len()))
    }
}
