//! Keys that sign a domain's outgoing mail (DKIM, RFC 6376): RSA of 2,048 bits, made by the system's OpenSSL.
//!
//! RSA, since that is what every receiver can check (RFC 8463's Ed25519 is not), and no library here makes such keys. Keys pass through
//! pipes alone: nothing secret is in an argument, an environment or a file.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx_model::mail::DkimKey;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

/// What all keys are called so far. A second one of the same domain will need another name.
pub const SELECTOR: &str = "phalanx";

/// The program that makes keys.
const OPENSSL: &str = "openssl";
/// The longest that a key may take, waiting for others included: a quarter of a second as a rule, more on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Keys that are made at once: each takes a whole core.
static ROOM: Semaphore = Semaphore::const_new(2);

/// Makes a key.
///
/// # Errors
/// When OpenSSL is missing, fails or takes too long.
pub async fn generate() -> Result<DkimKey> {
    generate_by(OPENSSL).await
}

async fn generate_by(program: &str) -> Result<DkimKey> {
    let made = tokio::time::timeout(TIME_MAX, generate_in_turn(program)).await;
    made.with_context(|| format!("{program} takes longer than {} s", TIME_MAX.as_secs()))?
}

async fn generate_in_turn(program: &str) -> Result<DkimKey> {
    let _room = ROOM.acquire().await.expect("nobody closes this semaphore");
    let made = run(program, &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], &[]).await?;
    let private_pem = String::from_utf8(made).context("the key is not PEM")?;
    ensure!(private_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "the key is not PKCS #8 in PEM");
    let public = run(program, &["pkey", "-pubout", "-outform", "DER"], private_pem.as_bytes()).await?;
    ensure!(!public.is_empty(), "the public half of the key is empty");
    let selector = SELECTOR.parse().context("the selector's name")?;
    Ok(DkimKey { selector, private_pem, public_base64: STANDARD.encode(public) })
}

/// What a program writes, given `input`.
async fn run(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {program}, which makes DKIM keys; install it: apt-get install openssl"))?;
    let mut stdin = child.stdin.take().context("its standard input is a pipe")?;
    let written = async {
        // All of it fits into the pipe, so that nobody waits for the other.
        stdin.write_all(input).await?;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = written.await.with_context(|| format!("running {program} {}", arguments.join(" ")))?;
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr).chars().take(500).collect();
        bail!("{program} {} failed ({}): {}", arguments.join(" "), output.status, said.trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_fits_its_public_half() {
        let key = generate().await.expect("openssl is there");
        let der = STANDARD.decode(&key.public_base64).expect("base64");
        // SubjectPublicKeyInfo of 2,048 bits: the modulus and exponent 65537 end it (RFC 8017, A.1.1).
        assert!(der.len() == 294 && der.ends_with(&[0x02, 0x03, 0x01, 0x00, 0x01]), "{} bytes", der.len());
        let other = generate().await.expect("openssl is there");
        assert_ne!(key.private_pem, other.private_pem);
        assert!(!format!("{key:?}").contains("PRIVATE"), "a key is not shown");
    }

    #[tokio::test]
    async fn a_missing_or_failing_program_is_told() {
        let missing = generate_by("phalanx-no-such-program").await.expect_err("it is missing");
        assert!(format!("{missing:#}").contains("apt-get install openssl"), "{missing:#}");
        let failing = generate_by("false").await.expect_err("it fails");
        assert!(format!("{failing:#}").contains("failed"), "{failing:#}");
    }
}
