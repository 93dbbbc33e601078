//! Streams of events (`text/event-stream`): what there is, then each as it comes. A reader that is too slow is served from the database
//! again; none is passed over. Streams are few: each token has its share of them.

use super::list::LIMIT_MAX;
use super::problem::{Problem, Reply};
use crate::Panel;
use crate::store::Event;
use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// The most streams at once of one token.
const STREAMS_OF_TOKEN_MAX: usize = 16;
/// The most streams at once.
const STREAMS_MAX: usize = 128;

/// Who holds how many streams.
#[derive(Debug, Default)]
pub struct Streams {
    held: Mutex<BTreeMap<String, usize>>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A place for one more stream of this token, if there is one.
    fn take(self: &Arc<Self>, token: &str) -> Option<Place> {
        let mut held = self.lock();
        let own = held.get(token).copied().unwrap_or(0);
        if own >= STREAMS_OF_TOKEN_MAX || held.values().sum::<usize>() >= STREAMS_MAX {
            return None;
        }
        held.insert(token.to_owned(), own + 1);
        Some(Place { streams: Arc::clone(self), token: token.to_owned() })
    }
}

/// The right to one stream, given back when it is dropped.
#[derive(Debug)]
struct Place {
    streams: Arc<Streams>,
    token: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.streams.lock();
        if let Some(own) = held.get_mut(&self.token) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.token);
            }
        }
    }
}

/// A stream for the holder of `token`: those after `after` (the newest `limit` where nothing is said), then each as it comes.
pub(super) fn follow(panel: Panel, token: &str, after: Option<i64>, limit: u32) -> Reply<Response> {
    let place = panel.streams.take(token).ok_or_else(|| {
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-streams",
            "There are too many streams",
            format!(
                "the token {token} may hold {STREAMS_OF_TOKEN_MAX} streams of events, all tokens together {STREAMS_MAX}"
            ),
            "end a stream, or ask for events without follow",
        )
    })?;
    let (sender, receiver) = mpsc::channel::<Result<sse::Event, Infallible>>(16);
    tokio::spawn(async move {
        let _place = place;
        let mut stopping = panel.stopping.clone();
        tokio::select! {
            ended = send_events(&panel, &sender, after, limit) => if let Err(error) = ended {
                tracing::warn!("a stream of events ended: {error}");
            },
            () = sender.closed() => {}
            _ = stopping.wait_for(|stop| *stop) => {}
        }
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response())
}

async fn send_events(
    panel: &Panel,
    sender: &mpsc::Sender<Result<sse::Event, Infallible>>,
    after: Option<i64>,
    limit: u32,
) -> crate::store::Result<()> {
    let mut live = panel.store.follow_events();
    let mut last = after.unwrap_or(0);
    let mut rows = match after {
        Some(after) => panel.store.events_after(after, LIMIT_MAX).await?,
        None => panel.store.events_newest(limit).await?,
    };
    loop {
        // Up to now from the database …
        while !rows.is_empty() {
            for event in rows {
                last = event.id;
                if sender.send(Ok(frame(&event))).await.is_err() {
                    return Ok(());
                }
            }
            rows = panel.store.events_after(last, LIMIT_MAX).await?;
        }
        // … then as they come.
        loop {
            match live.recv().await {
                Ok(event) if event.id <= last => {}
                Ok(event) => {
                    last = event.id;
                    if sender.send(Ok(frame(&event))).await.is_err() {
                        return Ok(());
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            }
        }
        rows = panel.store.events_after(last, LIMIT_MAX).await?;
    }
}

fn frame(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).expect("an event is plain data");
    sse::Event::default().id(event.id.to_string()).data(data)
}
