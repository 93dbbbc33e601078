//! Events: what happened on nodes and in the panel, for a person to read. The newest [`EVENTS_KEPT_MAX`] are kept.

use super::{Result, Store};
use phalanx_model::Name;
use phalanx_plan::report::{NodeEvent, Severity};
use serde::Serialize;
use tokio::sync::broadcast;

/// How many events are kept.
pub const EVENTS_KEPT_MAX: u64 = 100_000;

/// What is kept of an event's texts, in bytes: a node is trusted to be a member, not to be moderate.
const TEXT_LEN_MAX: usize = 2_000;
const DETAIL_LEN_MAX: usize = 64 << 10;
const TOPIC_LEN_MAX: usize = 40;

/// An event as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Event {
    /// Its number in the panel, from 1.
    pub id: i64,
    /// When, on the clock of where it happened: RFC 3339.
    #[sqlx(try_from = "i64")]
    pub at: At,
    /// The server it is about.
    pub server: String,
    /// info, warning or error.
    pub severity: String,
    /// A word for what it is about.
    pub topic: String,
    /// One sentence.
    pub text: String,
    /// More lines.
    pub detail: String,
}

/// Seconds since 1970, shown as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At(i64);

impl From<i64> for At {
    fn from(unix_s: i64) -> Self {
        Self(unix_s)
    }
}

impl Serialize for At {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::clock::rfc3339(self.0))
    }
}

impl Store {
    /// Keeps what a node told of itself; what it told before is passed over. Returns the number up to which all is kept.
    ///
    /// # Errors
    /// When the database fails; then nothing is kept.
    pub async fn keep_events(&self, server: &Name, events: &[NodeEvent]) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mark: Option<i64> = sqlx::query_scalar("SELECT number FROM event_mark WHERE server = ?")
            .bind(server.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let mut mark = mark.unwrap_or(0) as u64;
        let mut kept = Vec::new();
        for event in events {
            if event.number <= mark {
                continue;
            }
            mark = event.number;
            kept.push(insert(&mut tx, server, event).await?);
        }
        sqlx::query("INSERT OR REPLACE INTO event_mark VALUES (?, ?)")
            .bind(server.as_str())
            .bind(i64::try_from(mark).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.announce(kept);
        Ok(mark)
    }

    /// Keeps an event that the panel itself saw.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note(&self, server: &Name, severity: Severity, topic: &str, text: String) -> Result<()> {
        let _turn = self.turn.lock().await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let kept = insert(&mut tx, server, &of_panel(severity, topic, text)).await?;
        tx.commit().await?;
        self.announce(vec![kept]);
        Ok(())
    }

    pub(super) fn announce(&self, events: Vec<Event>) {
        for event in events {
            // Nobody listening is no error: the event is in the database.
            let _listeners = self.events.send(event);
        }
    }

    /// Events as they are kept from now on.
    pub fn follow_events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Events after a number, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_after(&self, id: i64, limit: u32) -> Result<Vec<Event>> {
        let sql = "SELECT id, at, server, severity, topic, text, detail FROM event WHERE id > ? ORDER BY id LIMIT ?";
        Ok(sqlx::query_as(sql).bind(id).bind(limit).fetch_all(&self.pool).await?)
    }

    /// The newest events, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_newest(&self, limit: u32) -> Result<Vec<Event>> {
        let sql = "SELECT * FROM (SELECT id, at, server, severity, topic, text, detail FROM event ORDER BY id DESC LIMIT ?) ORDER BY id";
        Ok(sqlx::query_as(sql).bind(limit).fetch_all(&self.pool).await?)
    }

    pub(super) async fn trim_events(&self, kept: u64) -> Result<()> {
        let _turn = self.turn.lock().await;
        sqlx::query("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?")
            .bind(kept as i64)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// An event of the panel's own, happening now.
pub(super) fn of_panel(severity: Severity, topic: &str, text: String) -> NodeEvent {
    let at_unix_s = crate::clock::unix_s().unsigned_abs();
    NodeEvent { number: 0, at_unix_s, severity, topic: topic.to_owned(), text, detail: String::new() }
}

pub(super) async fn insert(tx: &mut sqlx::SqliteConnection, server: &Name, event: &NodeEvent) -> Result<Event> {
    let NodeEvent { number: _, at_unix_s, severity, topic, text, detail } = event;
    let severity = match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    // The year 9999 is the last that RFC 3339 can write.
    let at = i64::try_from(*at_unix_s).unwrap_or(i64::MAX).min(253_402_300_799);
    let sql = "INSERT INTO event (at, server, severity, topic, text, detail) VALUES (?, ?, ?, ?, ?, ?) \
         RETURNING id, at, server, severity, topic, text, detail";
    let query = sqlx::query_as(sql).bind(at).bind(server.as_str()).bind(severity);
    let query = query
        .bind(shortened(topic, TOPIC_LEN_MAX))
        .bind(shortened(text, TEXT_LEN_MAX))
        .bind(shortened(detail, DETAIL_LEN_MAX));
    Ok(query.fetch_one(tx).await?)
}

/// The text, cut at a character's end where it has more than `len_max` bytes.
fn shortened(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}
