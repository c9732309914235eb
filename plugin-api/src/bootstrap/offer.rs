//! Offering a started server to the host: directly, through a tunnel, or both at once.
//!
//! The first way that is proven wins. A direct connection needs nothing of us afterwards; a tunnel
//! lives as long as the launch, and the server with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

use super::{Reach, Remote, Server, Tunnel};
use crate::message::{
    BindServer, ErrorKind, LaunchError, LaunchRequest, Offer, Stage, VerdictKind, Via,
};
use crate::Caller;

/// What the host made of a way to the server.
enum Answer {
    Connected { by: u64 },
    No { reason: String, kind: ErrorKind },
}

/// Offers the server until the host is connected, and returns when nothing needs to be held.
pub(super) fn offer(
    remote: &dyn Remote,
    request: &LaunchRequest,
    tunnel: Tunnel,
    caller: &Caller,
    server: &mut Server,
) -> Result<(), LaunchError> {
    caller.stage(Stage::Offer)?;
    let ways = Ways { remote, caller, server };
    let direct = match tunnel {
        Tunnel::Always => None,
        Tunnel::Auto | Tunnel::Never => ways.direct(&request.server.bind),
    };
    let place = request.destination.host.as_str();
    let (by, through) = match direct {
        Some(direct) if tunnel == Tunnel::Never => (ways.ask(&direct, false)?, None),
        Some(direct) => ways.race(&direct)?,
        None if tunnel == Tunnel::Never => {
            let carrier = remote.carrier();
            let message =
                format!("the server on `{place}` listens where only {carrier} can reach it");
            return Err(LaunchError::new(ErrorKind::PortUnreachable, message)
                .with_hint("leave `tunnel=never` out, or choose another `--distant-bind-server`"));
        }
        None => {
            let through = ways.tunnel()?;
            (ways.ask(&through, false)?, Some(through.id))
        }
    };
    match by {
        Answer::Connected { by } if Some(by) == through => {
            server.watch.hold(caller)?;
            let carrier = remote.carrier();
            let message = format!("the tunnel through {carrier} to `{place}` ended");
            Err(LaunchError::new(ErrorKind::Unreachable, message))
        }
        Answer::Connected { .. } if remote.stays() => {
            server.watch.hold(caller)?;
            let message = format!("the command ended that the server on `{place}` belongs to");
            Err(LaunchError::new(ErrorKind::Unreachable, message))
        }
        Answer::Connected { .. } => Ok(()),
        Answer::No { reason, kind } => {
            let port = ways.server.line.address.port();
            let message = format!("port {port} of `{place}`, where the server is, cannot be used");
            let error = LaunchError::new(kind, message).caused_by(reason);
            Err(match (tunnel, kind) {
                // The port answers, so opening it is no help.
                (_, ErrorKind::Other) => error.with_hint(
                    "something else answers there, in between or in the server's place: try another \
                     port with `--distant-args '--port <PORT>'`",
                ),
                (Tunnel::Never, _) => error.with_hint(format!(
                    "leave `tunnel=never` out: {} can carry it",
                    remote.carrier()
                )),
                _ => error.with_hint(format!(
                    "open the port there, or allow {} to forward connections",
                    remote.carrier()
                )),
            })
        }
    }
}

/// The ways to one server.
struct Ways<'a> {
    remote: &'a dyn Remote,
    caller: &'a Caller,
    server: &'a Server,
}

impl Ways<'_> {
    fn make(&self, host: String, port: u16, via: Via) -> Offer {
        Offer {
            id: self.caller.next_id(),
            host,
            port,
            key: self.server.line.key.clone(),
            pid: self.server.pid,
            proof: self.server.proof,
            hello: self.server.hello.clone(),
            via,
        }
    }

    /// The server as the network has it, unless nothing can be reached like that.
    fn direct(&self, bind: &BindServer) -> Option<Offer> {
        let listens = self.server.line.address;
        let is_named = matches!(bind, BindServer::Host(_));
        let host = host(&self.remote.reach(), listens.ip(), is_named, &self.server.addresses)?;
        Some(self.make(host, listens.port(), Via::Direct))
    }

    fn tunnel(&self) -> Result<Offer, LaunchError> {
        let mut to = self.server.line.address;
        if to.ip().is_unspecified() {
            to.set_ip(match to {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
        let near = self.remote.forward(to)?;
        Ok(self.make(near.ip().to_string(), near.port(), Via::Tunnel))
    }

    /// Offers one way until its answer is final, or only slow where that counts as one.
    fn ask(&self, offer: &Offer, slow_is_enough: bool) -> Result<Answer, LaunchError> {
        loop {
            let (reason, kind) = match self.caller.offer(offer)? {
                VerdictKind::Connected { by } => {
                    return Ok(Answer::Connected { by: by.unwrap_or(offer.id) })
                }
                VerdictKind::Slow if slow_is_enough => {
                    ("no answer yet".to_owned(), ErrorKind::TimedOut)
                }
                VerdictKind::Slow => continue,
                VerdictKind::Unreachable { reason } => (reason, ErrorKind::PortUnreachable),
                VerdictKind::Refused { reason } => (reason, ErrorKind::Other),
                VerdictKind::Other => {
                    ("the host did not take it".to_owned(), ErrorKind::PortUnreachable)
                }
            };
            return Ok(Answer::No { reason, kind });
        }
    }

    /// Tries the direct way, and a tunnel beside it as soon as that one turns out slow or closed.
    fn race(&self, direct: &Offer) -> Result<(Answer, Option<u64>), LaunchError> {
        let (reason, slow) = match self.ask(direct, true)? {
            connected @ Answer::Connected { .. } => return Ok((connected, None)),
            Answer::No { reason, kind: ErrorKind::TimedOut } => (reason, true),
            Answer::No { reason, kind: ErrorKind::PortUnreachable } => (reason, false),
            refused @ Answer::No { .. } => return Ok((refused, None)),
        };
        let through = match self.tunnel() {
            Ok(through) => through,
            Err(_) if slow => return Ok((self.ask(direct, false)?, None)),
            Err(error) => {
                let cause = error.one_line().into_owned();
                let reason = format!("{reason}; a tunnel does not work either: {cause}");
                return Ok((Answer::No { reason, kind: ErrorKind::PortUnreachable }, None));
            }
        };
        let (first, second) = thread::scope(|scope| {
            let first = slow.then(|| scope.spawn(|| self.ask(direct, false)));
            let second = self.ask(&through, false);
            (first.map(|thread| thread.join()), second)
        });
        if let Some(Ok(Ok(connected @ Answer::Connected { .. }))) = first {
            return Ok((connected, Some(through.id)));
        }
        match second? {
            Answer::No { reason: second, kind } => {
                let reason = format!("{reason}; through a tunnel: {second}");
                // Where nothing listens, a tunnel is closed as one to another server would be.
                let kind = if slow { kind } else { ErrorKind::PortUnreachable };
                Ok((Answer::No { reason, kind }, Some(through.id)))
            }
            connected => Ok((connected, Some(through.id))),
        }
    }
}

/// By which name or address a server is reached that listens on `ip`, the person having named that
/// one or not; `addresses` are those that its machine says it has.
fn host(reach: &Reach, ip: IpAddr, is_named: bool, addresses: &[IpAddr]) -> Option<String> {
    let named = Some(ip).filter(|ip| is_named && !ip.is_unspecified());
    // A loopback address is one of the server's own machine; only if that is this one, it leads there.
    let here = |is_here: bool| is_here.then(|| ip.to_string());
    match reach {
        Reach::Peer(peer) if ip.is_loopback() => here(peer.ip().is_loopback()),
        Reach::Peer(peer) => Some(with_zone(named.unwrap_or(peer.ip()), peer)),
        Reach::Tunnel => named.filter(|ip| !ip.is_loopback()).map(|ip| ip.to_string()),
        Reach::Host(host) if ip.is_loopback() => here(is_here(host)),
        Reach::Host(host) => Some(host.clone()),
        Reach::Reported if ip.is_unspecified() => {
            let usable = |it: &&IpAddr| !it.is_loopback() && !it.is_unspecified();
            addresses.iter().find(usable).map(IpAddr::to_string)
        }
        Reach::Reported => here(!ip.is_loopback()),
    }
}

/// An address with the zone by which `peer` is reached, where it means nothing without one.
fn with_zone(ip: IpAddr, peer: &SocketAddr) -> String {
    match (ip, peer) {
        (IpAddr::V6(ip), SocketAddr::V6(peer)) if ip.is_unicast_link_local() => {
            match peer.scope_id() {
                0 => ip.to_string(),
                zone => format!("{ip}%{zone}"),
            }
        }
        _ => ip.to_string(),
    }
}

/// Tells whether a name is one of this very machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_reached_where_the_plugin_or_it_says() {
        let check = |reach: &Reach, listens: &str, named: bool, expected: Option<&str>| {
            let addresses = ["127.0.1.1", "10.0.0.7", "fd00::7"].map(|it| it.parse().unwrap());
            let found = host(reach, listens.parse().unwrap(), named, &addresses);
            assert_eq!(found.as_deref(), expected, "{reach:?} {listens} {named}");
        };
        let near = Reach::Peer("127.0.0.1:22".parse().unwrap());
        let far = Reach::Peer("192.0.2.1:22".parse().unwrap());
        check(&near, "127.0.0.9", true, Some("127.0.0.9"));
        check(&far, "127.0.0.9", true, None);
        check(&far, "0.0.0.0", false, Some("192.0.2.1"));
        check(&far, "10.1.1.1", false, Some("192.0.2.1"));
        check(&far, "10.1.1.1", true, Some("10.1.1.1"));
        let zone = Reach::Peer("[fe80::7%3]:22".parse().unwrap());
        check(&zone, "::", false, Some("fe80::7%3"));
        check(&zone, "fe80::8", true, Some("fe80::8%3"));
        check(&zone, "fd00::8", true, Some("fd00::8"));
        check(&Reach::Tunnel, "0.0.0.0", false, None);
        check(&Reach::Tunnel, "10.1.1.1", true, Some("10.1.1.1"));
        check(&Reach::Tunnel, "127.0.0.1", true, None);
        let told = Reach::Host("box.example".into());
        check(&told, "::", false, Some("box.example"));
        check(&told, "10.1.1.1", true, Some("box.example"));
        check(&told, "127.0.0.1", true, None);
        check(&Reach::Host("127.0.0.1".into()), "127.0.0.9", true, Some("127.0.0.9"));
        check(&Reach::Host("localhost".into()), "::1", true, Some("::1"));
        check(&Reach::Reported, "0.0.0.0", false, Some("10.0.0.7"));
        check(&Reach::Reported, "10.1.1.1", false, Some("10.1.1.1"));
        check(&Reach::Reported, "127.0.0.1", true, None);
        assert_eq!(host(&Reach::Reported, "::".parse().unwrap(), false, &[]), None);
    }
}
