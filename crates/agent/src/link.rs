//! The links: [`up`] to the upstream, [`down`] to slaves and joining machines. Both drive the state machines of
//! `phalanx_plan::session`; here are only sockets, TLS and time limits.

pub mod down;
pub mod up;
pub mod wire;

use rustix::net::sockopt;
use std::time::Duration;
use tokio::net::TcpStream;

/// A peer whose kernel acknowledges nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Makes the kernel find out that a peer is gone, whether or not there is something to send.
fn watch_over(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    let millis = u32::try_from(SILENCE_MAX.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, millis)?)
}
