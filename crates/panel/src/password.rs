//! Mailboxes' passwords: what is taken as one, and how it becomes a hash.
//!
//! Invariant: a password is in memory from the request to the hash, and nowhere else; neither it nor its hash is ever shown.

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use phalanx_model::mail::PasswordHash;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use std::fmt;
use tokio::sync::Semaphore;

/// Characters that a password has, at least and at most.
const LEN: std::ops::RangeInclusive<usize> = 8..=200;

/// What a check costs: 19 MiB and two passes, OWASP's advice of 2023. Each login costs it, so that Dovecot's own default of 64 MiB would
/// let few clients exhaust a node.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Hashes that are made at once: each takes a whole core, and its memory.
static ROOM: Semaphore = Semaphore::const_new(2);

/// A password as somebody chose it.
pub struct Password(String);

/// Not shown.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// By hand, since an error that is made for us quotes what it could not read.
impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Value::String(text) = Value::deserialize(deserializer)? else {
            return Err(de::Error::custom("a password is a text"));
        };
        if !LEN.contains(&text.chars().count()) || text.chars().any(char::is_control) {
            let why =
                format!("a password has {} to {} characters, none of them a control character", LEN.start(), LEN.end());
            return Err(de::Error::custom(why));
        }
        Ok(Self(text))
    }
}

/// Hashes a password, with a salt of its own, in the form that Dovecot reads.
///
/// # Errors
/// When the hash can't be made.
pub async fn hash(password: Password) -> anyhow::Result<PasswordHash> {
    let _room = ROOM.acquire().await.expect("nobody closes this semaphore");
    tokio::task::spawn_blocking(move || hash_now(&password)).await?
}

fn hash_now(password: &Password) -> anyhow::Result<PasswordHash> {
    // Errors of these two crates are no std errors in the features that we use them with.
    let told = |error: &dyn fmt::Display| anyhow::anyhow!("hashing a password: {error}");
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|e| told(&e))?;
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(|e| told(&e))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(password.0.as_bytes(), &salt).map_err(|e| told(&e))?;
    Ok(format!("{{ARGON2ID}}{hash}").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::password_hash::PasswordVerifier;
    use serde_json::json;

    fn read(value: Value) -> Result<Password, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_hash_is_of_its_password_alone() {
        let password = read(json!("correct horse")).expect("a password");
        let hashed = hash_now(&password).expect("a hash");
        let text = hashed.as_str();
        assert!(text.starts_with("{ARGON2ID}$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
        let parsed = argon2::PasswordHash::new(&text["{ARGON2ID}".len()..]).expect("its form");
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok());
        assert!(Argon2::default().verify_password(b"correct house", &parsed).is_err());
        assert_ne!(text, hash_now(&password).expect("a hash").as_str(), "each has a salt of its own");
    }

    #[test]
    fn what_is_no_password_is_refused_unseen() {
        let long = "x".repeat(201);
        for bad in
            [json!("short77"), json!("line\nbreak-secret"), json!("nul\0-secret"), json!(long), json!(123_456_789)]
        {
            let why = read(bad.clone()).expect_err("no password");
            let shown = bad.as_str().map_or_else(|| bad.to_string(), str::to_owned);
            assert!(!why.contains(&shown), "{why}");
        }
        for good in ["8 bytes.", "pässwörter", &"x".repeat(200)] {
            let password = read(json!(good)).expect(good);
            assert_eq!(format!("{password:?}"), "Password(…)");
        }
    }
}
