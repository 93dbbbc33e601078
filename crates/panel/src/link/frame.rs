//! Frames on a stream: four bytes of length, big endian, then that many bytes of JSON.

use anyhow::{Context, Result, bail};
use phalanx_plan::session::{DownMessage, FRAME_LEN_MAX, UpMessage};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long a peer may take to accept one frame; one that does not read is gone.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);

/// Reads one message; None at the stream's clean end. Not cancel-safe: use it from a task of its own.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), len_max: usize) -> Result<Option<UpMessage>> {
    let len = match stream.read_u32().await {
        Ok(len) => len as usize,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error).context("reading a frame's length"),
    };
    if len > len_max {
        bail!("a frame of {len} bytes is longer than the {len_max} allowed");
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.context("reading a frame")?;
    serde_json::from_slice(&body).context("a frame is no message of the protocol").map(Some)
}

/// Writes one message.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &DownMessage) -> Result<()> {
    let body = serde_json::to_vec(message).context("encoding a message")?;
    if body.len() > FRAME_LEN_MAX {
        bail!("a message of {} bytes is longer than the {FRAME_LEN_MAX} allowed", body.len());
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(&body);
    let writing = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    tokio::time::timeout(WRITE_TIME_MAX, writing).await.context("the peer does not read")?.context("writing a frame")
}
