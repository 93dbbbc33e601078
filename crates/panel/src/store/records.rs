//! What stands beside the desired state: API tokens, join tokens, certificates of nodes, audit records, answers to earlier requests.

use super::write::expect_version;
use super::{Kind, Result, Store, StoreError, Write};
use crate::clock::rfc3339;
use crate::secret;
use phalanx_model::{Name, Refusal, Rule};
use phalanx_plan::spec::CertificateDigest;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, SqliteConnection};
use std::collections::BTreeMap;

/// How long a join token is valid, in seconds.
const JOIN_TOKEN_AGE_MAX_S: i64 = 24 * 3_600;
/// How long the answer to a request with an Idempotency-Key is kept, in seconds.
const IDEMPOTENCY_AGE_MAX_S: i64 = 24 * 3_600;
/// How many audit records are kept.
const AUDIT_KEPT_MAX: i64 = 1_000_000;
/// What an API token begins with, so that it is known where it leaks.
const TOKEN_PREFIX: &str = "phxapi_";

/// What an API token may do. Resellers and customers follow with accounts of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Admin,
    /// Look at everything, and change nothing.
    Reader,
}

impl Role {
    /// The role as the API and the CLI write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Reader => "reader",
        }
    }

    /// None for a role of a later version: its tokens are not known here.
    fn parse(text: &str) -> Option<Self> {
        [Self::Admin, Self::Reader].into_iter().find(|role| role.as_str() == text)
    }
}

/// Who asks for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The name of the API token, or of the panel's own part.
    pub token: String,
    /// What it may do.
    pub role: Role,
    /// Who owns what it makes.
    pub owner: Name,
}

impl Actor {
    /// The panel itself, for what it does in the background.
    pub fn panel() -> Self {
        Self { token: "panel".to_owned(), role: Role::Admin, owner: "admin".parse().expect("a valid name") }
    }

    /// A machine that joins as this server with its token. No API token has a space in its name.
    pub fn machine(server: &Name) -> Self {
        Self { token: format!("server {server}"), ..Self::panel() }
    }
}

/// An API token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: String,
    /// Who owns it.
    pub owner: String,
    /// Its version.
    pub version: i64,
    /// Seconds since 1970.
    pub created_at: i64,
}

/// A join token as it is given out, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The secret part.
    pub secret: String,
    /// Seconds since 1970.
    pub expires_at: i64,
}

/// Who changed what and when.
#[derive(Debug, Clone, FromRow)]
pub struct AuditRecord {
    /// Its number, from 1.
    pub id: i64,
    /// Seconds since 1970.
    pub at: i64,
    /// The API token's name.
    pub actor: String,
    /// add, change, remove or order.
    pub action: String,
    /// What kind of thing.
    pub kind: String,
    /// Which one.
    pub name: String,
    /// The revision that the change brought.
    pub revision: i64,
    /// The thing as it was: JSON.
    pub before: Option<String>,
    /// The thing as it is: JSON.
    pub after: Option<String>,
}

/// What is known of a request with this Idempotency-Key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Earlier {
    /// Nothing: it is this one's now.
    New,
    /// The same key came with another request.
    OtherRequest,
    /// The same request is being answered.
    Running,
    /// It was answered like this: status, headers as JSON, body.
    Answered(u16, String, Vec<u8>),
}

impl Store {
    /// Who holds this API token.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn actor(&self, token: &str) -> Result<Option<Actor>> {
        let found: Option<(String, String, String)> =
            sqlx::query_as("SELECT name, owner, role FROM token WHERE sha256 = ?")
                .bind(secret::sha256(token).as_slice())
                .fetch_optional(&self.pool)
                .await?;
        let Some((token, owner, role)) = found else { return Ok(None) };
        let Some(role) = Role::parse(&role) else { return Ok(None) };
        let owner = owner.parse().map_err(|e| StoreError::corrupt(format!("the token {token} with an owner"), e))?;
        Ok(Some(Actor { token, role, owner }))
    }

    /// API tokens by name after `after`, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tokens(&self, after: &str, limit: u32) -> Result<Vec<Token>> {
        let sql = "SELECT name, role, owner, version, created_at FROM token WHERE name > ? ORDER BY name LIMIT ?";
        Ok(sqlx::query_as(sql).bind(after).bind(limit).fetch_all(&self.pool).await?)
    }

    /// One API token.
    ///
    /// # Errors
    /// When it does not exist or the database fails.
    pub async fn token(&self, name: &str) -> Result<Token> {
        let sql = "SELECT name, role, owner, version, created_at FROM token WHERE name = ?";
        let found = sqlx::query_as(sql).bind(name).fetch_optional(&self.pool).await?;
        found.ok_or_else(|| StoreError::Unknown { kind: Kind::Token, name: name.to_owned() })
    }

    /// Audit records before a number, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audit_before(&self, id: i64, limit: u32) -> Result<Vec<AuditRecord>> {
        let sql = "SELECT id, at, actor, action, kind, name, revision, before, after FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?";
        Ok(sqlx::query_as(sql).bind(id).bind(limit).fetch_all(&self.pool).await?)
    }

    /// The server that an unused, unexpired join token was made for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join_token_server(&self, secret: &str) -> Result<Option<Name>> {
        let found: Option<String> =
            sqlx::query_scalar("SELECT server FROM join_token WHERE sha256 = ? AND expires_at > ?")
                .bind(secret::sha256(secret).as_slice())
                .bind(crate::clock::unix_s())
                .fetch_optional(&self.pool)
                .await?;
        found.map(|server| server.parse().map_err(|e| StoreError::corrupt("a join token's server", e))).transpose()
    }

    /// When servers joined, in seconds since 1970.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn joined(&self) -> Result<BTreeMap<String, i64>> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT server, joined_at FROM node_certificate").fetch_all(&self.pool).await?;
        Ok(rows.into_iter().collect())
    }

    /// Claims an Idempotency-Key for a request, or tells what became of the earlier one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim(&self, token: &str, key: &str, request: &[u8]) -> Result<Earlier> {
        let _turn = self.turn.lock().await;
        let inserted = sqlx::query("INSERT INTO idempotency VALUES (?, ?, ?, ?, 0, '', x'') ON CONFLICT DO NOTHING")
            .bind(token)
            .bind(key)
            .bind(request)
            .bind(crate::clock::unix_s())
            .execute(&self.pool)
            .await?;
        if inserted.rows_affected() == 1 {
            return Ok(Earlier::New);
        }
        let (known, status, headers, body): (Vec<u8>, i64, String, Vec<u8>) =
            sqlx::query_as("SELECT request, status, headers, body FROM idempotency WHERE token = ? AND key = ?")
                .bind(token)
                .bind(key)
                .fetch_one(&self.pool)
                .await?;
        Ok(match status {
            _ if known != request => Earlier::OtherRequest,
            0 => Earlier::Running,
            status => Earlier::Answered(u16::try_from(status).unwrap_or(500), headers, body),
        })
    }

    /// Keeps the answer to a request with an Idempotency-Key; without one, the key is free again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn answered(&self, token: &str, key: &str, answer: Option<(u16, &str, &[u8])>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let query = match answer {
            Some((status, headers, body)) => {
                sqlx::query("UPDATE idempotency SET status = ?3, headers = ?4, body = ?5 WHERE token = ?1 AND key = ?2")
                    .bind(token)
                    .bind(key)
                    .bind(i64::from(status))
                    .bind(headers)
                    .bind(body)
            }
            None => sqlx::query("DELETE FROM idempotency WHERE token = ? AND key = ?").bind(token).bind(key),
        };
        query.execute(&self.pool).await?;
        Ok(())
    }

    pub(super) async fn trim_records(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let now = crate::clock::unix_s();
        sqlx::query("DELETE FROM idempotency WHERE at < ?")
            .bind(now - IDEMPOTENCY_AGE_MAX_S)
            .execute(&self.pool)
            .await?;
        sqlx::query("DELETE FROM join_token WHERE expires_at < ?").bind(now).execute(&self.pool).await?;
        sqlx::query("DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?")
            .bind(AUDIT_KEPT_MAX)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

impl Write {
    /// A new API token; returns its secret, which is nowhere else.
    ///
    /// # Errors
    /// When the name is taken or the database fails.
    pub async fn add_token(&mut self, name: &Name, role: Role) -> Result<String> {
        let secret = format!("{TOKEN_PREFIX}{}", secret::new());
        let inserted = sqlx::query("INSERT INTO token VALUES (?, ?, ?, ?, 1, ?) ON CONFLICT DO NOTHING")
            .bind(name.as_str())
            .bind(role.as_str())
            .bind(self.actor.owner.as_str())
            .bind(secret::sha256(&secret).as_slice())
            .bind(crate::clock::unix_s())
            .execute(&mut *self.tx)
            .await?;
        if inserted.rows_affected() != 1 {
            return Err(Refusal::new(
                Rule::NameIsUnique,
                format!("there is a token {name} already"),
                "choose another name",
            )
            .into());
        }
        self.audit(Kind::Token, name, None, Some(serde_json::json!({ "name": name, "role": role })));
        Ok(secret)
    }

    /// Removes an API token, but not the last one of an administrator.
    ///
    /// # Errors
    /// When it does not exist, is at another version than the asker says, is the last, or the database fails.
    pub async fn remove_token(&mut self, name: &str, version: Option<u64>) -> Result<()> {
        let removed: Option<(String, i64)> = sqlx::query_as("DELETE FROM token WHERE name = ? RETURNING role, version")
            .bind(name)
            .fetch_optional(&mut *self.tx)
            .await?;
        let unknown = || StoreError::Unknown { kind: Kind::Token, name: name.to_owned() };
        let (role, found) = removed.ok_or_else(unknown)?;
        expect_version(Kind::Token, name, found.unsigned_abs(), version)?;
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM token WHERE role = 'admin'").fetch_one(&mut *self.tx).await?;
        if left == 0 {
            let detail = format!("{name} is the last token of role admin; without one nobody could change anything");
            return Err(Refusal::new(Rule::InUseIsNotRemoved, detail, "add another token of role admin first").into());
        }
        self.audit(Kind::Token, name, Some(serde_json::json!({ "name": name, "role": role })), None);
        Ok(())
    }

    /// A new join token for a server; an earlier one of the same server is void.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn new_join_token(&mut self, server: &Name) -> Result<JoinToken> {
        let (secret, expires_at) = (secret::new(), crate::clock::unix_s() + JOIN_TOKEN_AGE_MAX_S);
        let earlier: Option<i64> = sqlx::query_scalar("SELECT expires_at FROM join_token WHERE server = ?")
            .bind(server.as_str())
            .fetch_optional(&mut *self.tx)
            .await?;
        sqlx::query("INSERT OR REPLACE INTO join_token VALUES (?, ?, ?)")
            .bind(server.as_str())
            .bind(secret::sha256(&secret).as_slice())
            .bind(expires_at)
            .execute(&mut *self.tx)
            .await?;
        let seen = |at: i64| serde_json::json!({ "server": server, "expires_at": rfc3339(at) });
        self.audit(Kind::JoinToken, server, earlier.map(seen), Some(seen(expires_at)));
        Ok(JoinToken { secret, expires_at })
    }

    /// Uses a join token up and makes this certificate the server's only one. False where the token was used meanwhile.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn use_join_token(
        &mut self,
        secret: &str,
        server: &Name,
        certificate: &[u8],
        via: Option<&Name>,
    ) -> Result<bool> {
        let used = sqlx::query("DELETE FROM join_token WHERE sha256 = ? AND server = ? AND expires_at > ?")
            .bind(secret::sha256(secret).as_slice())
            .bind(server.as_str())
            .bind(crate::clock::unix_s())
            .execute(&mut *self.tx)
            .await?;
        if used.rows_affected() != 1 {
            return Ok(false);
        }
        let digest = CertificateDigest::of(certificate);
        sqlx::query("INSERT OR REPLACE INTO node_certificate VALUES (?, ?, ?)")
            .bind(server.as_str())
            .bind(digest.as_bytes().as_slice())
            .bind(crate::clock::unix_s())
            .execute(&mut *self.tx)
            .await?;
        // A machine that joins anew numbers its events anew.
        sqlx::query("DELETE FROM event_mark WHERE server = ?").bind(server.as_str()).execute(&mut *self.tx).await?;
        let before = self.world.certificates.get(server).map(|digest| serde_json::json!({ "sha256": digest }));
        let after = serde_json::json!({ "sha256": digest, "via": via });
        self.audit(Kind::Certificate, server, before, Some(after));
        self.certified(server, digest);
        Ok(true)
    }
}

/// The newest certificate of each server that has joined.
pub(super) async fn certificates(tx: &mut SqliteConnection) -> Result<BTreeMap<Name, CertificateDigest>> {
    let rows: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT server, sha256 FROM node_certificate").fetch_all(tx).await?;
    let parse = |(server, sha256): (String, Vec<u8>)| {
        let what = || format!("a certificate of {server}");
        let digest: [u8; 32] =
            sha256.try_into().map_err(|_| StoreError::corrupt(what(), "its digest has not 32 bytes"))?;
        Ok((server.parse().map_err(|e| StoreError::corrupt(what(), e))?, digest.into()))
    };
    rows.into_iter().map(parse).collect()
}
