//! Where masters find the panel.

use anyhow::{Result, ensure};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// The panel's address for masters, as an administrator gave it or as the kernel's routes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkAddress {
    /// `ADDRESS:PORT`, the same for everybody.
    Fixed(String),
    /// The address that leads to the one who asks, with this port.
    Routed(u16),
}

impl LinkAddress {
    /// The address out of `public` (`ADDRESS` or `ADDRESS:PORT`), or of where the link listens.
    ///
    /// # Errors
    /// When `public` can't be an address.
    pub fn new(public: Option<&str>, listen: IpAddr, port: u16) -> Result<Self> {
        let Some(public) = public else {
            return Ok(if listen.is_unspecified() {
                Self::Routed(port)
            } else {
                Self::Fixed(SocketAddr::new(listen, port).to_string())
            });
        };
        let is_plain = public.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '[' | ']'));
        ensure!(!public.is_empty() && is_plain, "{public:?} is no address under which masters could reach the panel");
        Ok(Self::Fixed(match public.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, port).to_string(),
            Err(_) if public.contains(':') => public.to_owned(),
            Err(_) => format!("{public}:{port}"),
        }))
    }

    /// The address for a machine at `peer`.
    pub fn towards(&self, peer: Ipv4Addr) -> String {
        let port = match self {
            Self::Fixed(address) => return address.clone(),
            Self::Routed(port) => *port,
        };
        // Connecting a UDP socket asks the kernel for the route and sends nothing.
        let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
            socket.connect((peer, port))?;
            socket.local_addr()
        });
        routed.map_or_else(|_| format!("PANEL:{port}"), |local| SocketAddr::new(local.ip(), port).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_address_may_leave_the_port_out() {
        let address = |public| {
            LinkAddress::new(public, Ipv4Addr::UNSPECIFIED.into(), 7400).map(|a| a.towards(Ipv4Addr::LOCALHOST))
        };
        assert_eq!(address(Some("10.9.0.2")).expect("valid"), "10.9.0.2:7400");
        assert_eq!(address(Some("panel.example.org:9")).expect("valid"), "panel.example.org:9");
        assert_eq!(address(Some("fd00::1")).expect("valid"), "[fd00::1]:7400");
        assert_eq!(address(None).expect("valid"), "127.0.0.1:7400");
        assert!(address(Some("x; rm")).is_err() && address(Some("")).is_err());
    }
}
