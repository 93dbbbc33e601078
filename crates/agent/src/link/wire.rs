//! Frames: a length (four bytes, big endian) and that many bytes of JSON.

use anyhow::{Context, ensure};
use phalanx_plan::session::FRAME_LEN_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A peer that takes nothing for so long is gone.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Reads one message. Not to be cancelled in its midst: the rest of a frame would be taken for another.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<T> {
    let len = from.read_u32().await.context("the connection ended")? as usize;
    ensure!(len <= FRAME_LEN_MAX, "a frame of {len} bytes came; {FRAME_LEN_MAX} are the most");
    let mut frame = vec![0; len];
    from.read_exact(&mut frame).await.context("the connection ended within a frame")?;
    serde_json::from_slice(&frame).context("a message that this version does not understand")
}

/// Writes one message.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> anyhow::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).context("a message that can't be written as JSON")?;
    let len = frame.len() - 4;
    ensure!(len <= FRAME_LEN_MAX, "a message of {len} bytes is too long; {FRAME_LEN_MAX} are the most");
    frame[..4].copy_from_slice(&u32::try_from(len).context("a bounded length")?.to_be_bytes());
    let send = async {
        to.write_all(&frame).await?;
        to.flush().await
    };
    tokio::time::timeout(WRITE_LIMIT, send).await.context("the peer takes nothing any more")?.context("sending failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_comes_back_and_a_long_one_is_refused() {
        let mut wire = Vec::new();
        write(&mut wire, &"hello").await.expect("written");
        assert_eq!(read::<String>(&mut wire.as_slice()).await.expect("read"), "hello");
        let long = (FRAME_LEN_MAX as u32 + 1).to_be_bytes();
        assert!(read::<String>(&mut long.as_slice()).await.expect_err("too long").to_string().contains("the most"));
        assert!(write(&mut wire, &"x".repeat(FRAME_LEN_MAX)).await.is_err());
    }
}
