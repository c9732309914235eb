//! The lines by which a server says how it is reached.
//!
//! A server prints one *connect line* when it is ready; whoever started it reads that line among
//! whatever else a shell prints. Printing and reading both live here, so they can only change
//! together. The format is that of distant 0.20: `distant://:<64 hexadecimal digits>@<ip>:<port>`
//! in a line of its own.

use std::net::{IpAddr, SocketAddr};

use crate::destination::Destination;
use crate::secret::{Secret, SessionKey};

/// The line by which a server says that the key can be proved to it (`static_key_proof`). It comes
/// after the connect line, and only where the launch asked for it.
pub const PROOF_LINE: &str = "distant-server proof=1";

/// How the line begins by which such a server says, before the connect line, what it will say to its
/// first client; what follows is for that client.
pub const HELLO_LINE: &str = "distant-server hello=";

/// Longest of what follows there that is taken; it has about 400 bytes.
pub const HELLO_MAX: usize = 4096;

/// What a connect line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectLine {
    /// The server's key.
    pub key: SessionKey,
    /// The address that it listens on; a wildcard address where it listens on all.
    pub address: SocketAddr,
}

impl ConnectLine {
    /// Prints the line without its end. It shows the key, as its only purpose is to.
    pub fn expose(&self) -> Secret {
        let key = self.key.expose_hex();
        // Without the scope of a link-local address: it counts on this machine only, and no
        // reader knows the `%`.
        let address = SocketAddr::new(self.address.ip(), self.address.port());
        Secret::new(format!("distant://:{}@{address}", key.expose()))
    }

    /// Reads a complete line, white space around it cut off; `None` if it says anything else.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if !line.starts_with("distant://:") {
            return None;
        }
        let destination: Destination = line.parse().ok()?;
        let key = destination.password.as_ref()?.expose().parse().ok()?;
        let ip: IpAddr = destination.host.parse().ok()?;
        let port = destination.port.filter(|port| *port != 0)?;
        Some(Self { key, address: SocketAddr::new(ip, port) })
    }
}

/// The line that a server started with `--daemon` prints first.
pub fn detached_line(pid: u32) -> String {
    format!("[distant server detached, pid = {pid}]")
}

/// Reads the line of [`detached_line`]; `None` if it says anything else.
pub fn parse_detached_line(line: &str) -> Option<u32> {
    line.trim().strip_prefix("[distant server detached, pid = ")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    fn check(line: &str, expected: Option<&str>) {
        let shown = ConnectLine::parse(line).map(|line| line.address.to_string());
        assert_eq!(shown.as_deref(), expected, "{line}");
    }

    #[test]
    fn only_a_complete_line_counts() {
        let key = "00ff".repeat(16);
        check(&format!("distant://:{key}@10.0.0.7:8080\r"), Some("10.0.0.7:8080"));
        check(&format!("distant://:{key}@[::1]:8080"), Some("[::1]:8080"));
        check(&format!("distant://:{key}@10.0.0.7:0"), None);
        check(&format!("distant://:{key}@10.0.0.7"), None);
        check(&format!("distant://:{key}@box:8080"), None);
        check(&format!("distant://:{}@10.0.0.7:8080", &key[2..]), None);
        check(&format!("say distant://:{key}@10.0.0.7:8080"), None);
        check("Last login: Tue Nov  3 09:12:44 from 10.0.0.1", None);
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let key = "00ff".repeat(16).parse().unwrap();
        let line = ConnectLine { key, address: "[::1]:36027".parse().unwrap() };
        assert_eq!(ConnectLine::parse(line.expose().expose()), Some(line.clone()));
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 36027, 0, 2);
        let line = ConnectLine { address: scoped.into(), ..line };
        let read = ConnectLine::parse(line.expose().expose()).unwrap();
        assert_eq!(read.address.to_string(), "[fe80::1]:36027");
        assert_eq!(parse_detached_line(&detached_line(42)), Some(42));
    }
}
