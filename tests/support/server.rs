//! A server that was started by hand, and says itself how it is reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use distant_plugin_api::connect_line::ConnectLine;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{Home, Invocation, Running};

/// A port of this address that nobody listens at yet, and that nobody else gets while this lives.
pub(crate) fn bound(ip: IpAddr) -> OwnedFd {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((ip, 0))).unwrap();
    socket
}

/// One that refuses every connection as long as this lives; it knows its address.
pub(crate) fn refusing() -> TcpListener {
    bound(Ipv4Addr::LOCALHOST.into()).into()
}

/// A `distant server listen` in the foreground.
pub(crate) struct Server {
    /// The process.
    pub(crate) process: Running,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its key, 64 hexadecimal digits.
    pub(crate) key: String,
}

impl Server {
    /// Starts ours on this machine.
    pub(crate) fn start(home: &Home) -> Self {
        Self::listen(home.ours(["server", "listen", "--host", "127.0.0.1"]))
    }

    /// Starts the released 0.20.0 on this machine.
    pub(crate) fn start_peer(home: &Home) -> Self {
        Self::listen(home.peer(["server", "listen", "--host", "127.0.0.1"]))
    }

    /// Starts any command that prints a connect line.
    pub(crate) fn listen(invocation: Invocation) -> Self {
        let process = invocation.start();
        let line = loop {
            if let Some(line) = ConnectLine::parse(&process.line()) {
                break line;
            }
        };
        let key = line.key.expose_hex().expose().to_owned();
        Self { process, address: line.address, key }
    }

    /// Its destination with the key, by way of another address, as 0.20.0 wants it.
    pub(crate) fn destination_by(&self, address: SocketAddr) -> String {
        format!("distant://:{}@{address}", self.key)
    }
}
