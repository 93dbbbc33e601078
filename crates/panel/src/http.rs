//! The HTTP port: how many connections there may be, and how long one may keep us waiting.
//!
//! One rule ends those that dawdle: a connection on which no byte of an answer could be sent for [`ANSWER_GAP_MAX`] is closed. That is who
//! never finishes a head or a body, who does not read, and who is idle. Handlers answer well within that time, and streams of events
//! send a sign of life more often.
//!
//! Deliberately absent: TLS, and any look at what is said; hyper bounds heads, handlers bound bodies.

use axum::serve::Listener;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// The most connections at once; others wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 512;
/// The longest time without a byte of an answer.
pub const ANSWER_GAP_MAX: Duration = Duration::from_secs(40);
/// The wait after a connection could not be accepted: out of file descriptors, most likely.
const RETRY: Duration = Duration::from_millis(100);

/// Accepts connections within the bounds.
#[derive(Debug)]
pub struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
    answer_gap_max: Duration,
}

impl Bounded {
    /// Accepts from `listener` with the usual bounds.
    pub fn new(listener: TcpListener) -> Self {
        Self::with(listener, CONNECTIONS_MAX, ANSWER_GAP_MAX)
    }

    fn with(listener: TcpListener, connections_max: usize, answer_gap_max: Duration) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(connections_max)), answer_gap_max }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("nobody closes this semaphore");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%address, "TCP_NODELAY: {error}");
                    }
                    let deadline = Box::pin(tokio::time::sleep(self.answer_gap_max));
                    let gap_max = self.answer_gap_max;
                    return (Connection { stream, deadline, gap_max, _room: room }, address);
                }
                Err(error) => {
                    tracing::warn!("accepting a connection failed: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing of an answer could be sent for too long.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    gap_max: Duration,
    _room: OwnedSemaphorePermit,
}

impl Connection {
    /// An error once the time is up; else wakes the task when it is.
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        pin!(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match pin!(&mut self.stream).poll_write(context, from) {
            Poll::Pending => {
                self.in_time(context)?;
                Poll::Pending
            }
            written => {
                let deadline = Instant::now() + self.gap_max;
                self.deadline.as_mut().reset(deadline);
                written
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(pin!(&mut self.stream).poll_shutdown(context))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const GAP_MAX: Duration = Duration::from_millis(300);
    /// Nothing here takes this long.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn serve(connections_max: usize) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let slow = || async {
            // Longer than a gap may be, as a stream of events that sends nothing but signs of life.
            let lines = tokio_stream::StreamExt::throttle(tokio_stream::iter(0..6), GAP_MAX / 3);
            let lines = tokio_stream::StreamExt::map(lines, |n| Ok::<_, io::Error>(format!("{n}\n")));
            axum::body::Body::from_stream(lines)
        };
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/body", post(|body: String| async move { body }))
            .route("/slow", get(slow));
        tokio::spawn(axum::serve(Bounded::with(listener, connections_max, GAP_MAX), router).into_future());
        address
    }

    /// Sends this and reads until the server closes.
    async fn exchange(stream: &mut TcpStream, text: &str) -> String {
        let mut answer = String::new();
        stream.write_all(text.as_bytes()).await.expect("it reads");
        // How it ends, closed or reset, is the same here.
        let _ended = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it ends in time");
        answer
    }

    #[tokio::test]
    async fn who_never_finishes_is_cut_off() {
        let address = serve(8).await;
        for unfinished in [
            "",
            "GET / HTTP/1.1\r\nHost: panel\r\n",
            "POST /body HTTP/1.1\r\nHost: panel\r\nContent-Length: 9\r\n\r\nhalf",
        ] {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            let began = Instant::now();
            let answer = exchange(&mut stream, unfinished).await;
            assert!(!answer.contains("200 OK"), "{unfinished:?}: {answer}");
            assert!(began.elapsed() >= GAP_MAX / 2, "{unfinished:?}");
        }
    }

    #[tokio::test]
    async fn a_head_that_drips_in_is_cut_off_too() {
        let address = serve(8).await;
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: panel\r\n").await.expect("it reads");
        let began = Instant::now();
        while stream.write_all(b"X: y\r\n").await.is_ok() {
            assert!(began.elapsed() < PATIENCE, "it drips for ever");
            tokio::time::sleep(GAP_MAX / 10).await;
        }
    }

    #[tokio::test]
    async fn an_answer_that_goes_on_is_not() {
        let address = serve(8).await;
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let answer = exchange(&mut stream, "GET /slow HTTP/1.1\r\nHost: panel\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains("0\n") && answer.contains("5\n"), "{answer}");
    }

    #[tokio::test]
    async fn who_is_one_too_many_waits_for_its_turn() {
        let address = serve(1).await;
        let mut first = TcpStream::connect(address).await.expect("it listens");
        let mut second = TcpStream::connect(address).await.expect("the kernel takes it");
        let request = "GET / HTTP/1.1\r\nHost: panel\r\nConnection: close\r\n\r\n";
        second.write_all(request.as_bytes()).await.expect("the kernel takes it");
        let early = tokio::time::timeout(GAP_MAX / 4, second.read_u8()).await;
        assert!(early.is_err(), "the first one has the only place");
        assert!(exchange(&mut first, request).await.contains("hello"));
        assert!(exchange(&mut second, "").await.contains("hello"));
    }
}
