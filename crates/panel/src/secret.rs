//! Secrets that the panel gives out: made of 256 random bits, kept as SHA-256 only.
//!
//! A secret with that much entropy needs neither salt nor a slow hash, and finding it by its hash tells a guesser nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// A new secret: 43 characters of the URL-safe base64 alphabet.
pub fn new() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// What is stored of a secret, and what any content is known by.
pub fn sha256(content: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
