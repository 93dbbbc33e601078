//! Traffic of sites and mail domains by day: sums, to which each count is added once.

use super::{Result, Store};
use phalanx_model::share::Marker;
use phalanx_plan::logs::batch::{Counted, CountedPart};
use phalanx_plan::logs::stream::Stream;
use serde::Serialize;

/// What was counted of a site or a mail domain on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct TrafficRow {
    /// The site or mail domain.
    pub site: String,
    /// The day in UTC: `2026-11-28`.
    pub day: String,
    /// Requests.
    pub requests: i64,
    /// Messages that mailboxes got or handed in.
    pub messages: i64,
    /// Bytes sent, heads included.
    pub sent_bytes: i64,
    /// Bytes received, heads included.
    pub received_bytes: i64,
}

/// A sum of two of these is still a number of SQLite's; no true count comes near.
const COUNT_MAX: i64 = i64::MAX / 2;

/// Which rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficFilter {
    /// Those of this site.
    pub site: Option<String>,
    /// From this day on.
    pub from: String,
    /// Up to this day.
    pub to: String,
    /// After this site and day.
    pub after: (String, String),
}

impl Store {
    /// Adds what was counted in a stream of a share, if it goes on where the last part ended. Returns the number up to which all is added.
    ///
    /// # Errors
    /// When the database fails; then nothing is added.
    pub async fn add_traffic(&self, source: &Marker, stream: Stream, part: &CountedPart) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mark: Option<i64> = sqlx::query_scalar("SELECT upto FROM traffic_mark WHERE source = ? AND stream = ?")
            .bind(source.as_str())
            .bind(stream.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let mark = mark.unwrap_or(0).unsigned_abs();
        if part.after != mark || part.upto <= mark {
            return Ok(mark);
        }
        let Counted { sites } = &part.counted;
        let mut rows = Vec::new();
        for (site, days) in sites {
            rows.extend(days.iter().map(|(day, count)| (site, day, *count)));
        }
        for (site, day, count) in rows {
            let sql = "INSERT INTO traffic (site, day, requests, messages, sent, received) VALUES (?, ?, ?, ?, ?, ?) \
                 ON CONFLICT (site, day) DO UPDATE SET requests = min(requests, 4611686018427387903) + excluded.requests, messages = min(messages, 4611686018427387903) + excluded.messages, sent = min(sent, 4611686018427387903) + excluded.sent, \
                 received = min(received, 4611686018427387903) + excluded.received";
            let bounded = |number: u64| i64::try_from(number).unwrap_or(COUNT_MAX).min(COUNT_MAX);
            sqlx::query(sql)
                .bind(site)
                .bind(day)
                .bind(bounded(count.requests))
                .bind(bounded(count.messages))
                .bind(bounded(count.sent))
                .bind(bounded(count.received))
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("INSERT OR REPLACE INTO traffic_mark VALUES (?, ?, ?)")
            .bind(source.as_str())
            .bind(stream.to_string())
            .bind(i64::try_from(part.upto).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(part.upto)
    }

    /// Rows by site and day.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn traffic(&self, filter: &TrafficFilter, limit: u32) -> Result<Vec<TrafficRow>> {
        let TrafficFilter { site, from, to, after: (after_site, after_day) } = filter;
        let sql = "SELECT site, day, requests, messages, sent AS sent_bytes, received AS received_bytes FROM traffic \
             WHERE (site, day) > (?, ?) AND (? IS NULL OR site = ?) AND day >= ? AND day <= ? ORDER BY site, day LIMIT ?";
        let query = sqlx::query_as(sql).bind(after_site).bind(after_day).bind(site).bind(site).bind(from).bind(to);
        Ok(query.bind(limit).fetch_all(&self.pool).await?)
    }
}
