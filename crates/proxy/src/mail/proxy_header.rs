//! The PROXY protocol's header, version 2: who a connection comes from, told before its first byte.
//!
//! After HAProxy's `doc/proxy-protocol.txt`, section 2.2. Deliberately absent: reading one (Dovecot does), IPv6, and additional fields.

use std::net::SocketAddrV4;

/// A header's length, for IPv4.
pub const LENGTH: usize = 28;
/// What no other protocol begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2; the connection is somebody else's (not LOCAL).
const VERSION_AND_COMMAND: u8 = 0x21;
/// AF_INET and SOCK_STREAM.
const TCP_OVER_IPV4: u8 = 0x11;
/// Two addresses and two ports.
const ADDRESSES_LENGTH: u16 = 12;

/// The header of a connection from `client`, which came to `destination`.
pub fn header(client: SocketAddrV4, destination: SocketAddrV4) -> [u8; LENGTH] {
    let mut header = [0; LENGTH];
    header[..12].copy_from_slice(&SIGNATURE);
    header[12] = VERSION_AND_COMMAND;
    header[13] = TCP_OVER_IPV4;
    header[14..16].copy_from_slice(&ADDRESSES_LENGTH.to_be_bytes());
    header[16..20].copy_from_slice(&client.ip().octets());
    header[20..24].copy_from_slice(&destination.ip().octets());
    header[24..26].copy_from_slice(&client.port().to_be_bytes());
    header[26..28].copy_from_slice(&destination.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddrV4 {
        text.parse().expect("an address in a test")
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let expected: [u8; LENGTH] = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, // the signature
            0x21, 0x11, 0x00, 0x0c, // version 2, PROXY; TCP over IPv4; 12 bytes follow
            198, 51, 100, 7, // the client
            10, 9, 0, 41, // where it came to
            0xd4, 0x31, // 54321
            0x03, 0xe1, // 993
        ];
        assert_eq!(header(address("198.51.100.7:54321"), address("10.9.0.41:993")), expected);
    }

    #[test]
    fn the_greatest_values_stay_in_their_places() {
        let header = header(address("255.255.255.255:65535"), address("0.0.0.0:0"));
        assert_eq!(header[16..], [255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 0, 0]);
    }
}
