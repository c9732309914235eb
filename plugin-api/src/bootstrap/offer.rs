//! Offering a started server to the host: directly, through a tunnel, or both at once.
//!
//! The first way that is proven wins. A direct connection needs nothing of us afterwards; a tunnel
//! lives as long as the launch, and the server with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

use super::{Remote, Server, Tunnel};
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
            let message = format!("the server on `{place}` listens where only ssh can reach it");
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
            let message = format!("the ssh connection to `{place}`, and the tunnel in it, ended");
            Err(LaunchError::new(ErrorKind::Unreachable, message))
        }
        Answer::Connected { .. } => Ok(()),
        Answer::No { reason, kind } => {
            let port = ways.server.line.address.port();
            let message = format!("port {port} of `{place}`, where the server is, cannot be used");
            let error = LaunchError::new(kind, message).caused_by(reason);
            Err(match tunnel {
                Tunnel::Never => error.with_hint("leave `tunnel=never` out: ssh can carry it"),
                _ => error.with_hint("open the port there, or allow ssh to forward connections"),
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
            via,
        }
    }

    /// The server as the network has it, unless nothing can be reached like that.
    fn direct(&self, bind: &BindServer) -> Option<Offer> {
        let listens = self.server.line.address;
        let peer = self.remote.peer().map(|peer| peer.ip());
        let named = matches!(bind, BindServer::Host(_)) && !listens.ip().is_unspecified();
        let ip = match peer {
            Some(peer) if listens.ip().is_loopback() => peer.is_loopback().then(|| listens.ip())?,
            _ if named => listens.ip(),
            Some(peer) => peer,
            None => return None,
        };
        Some(self.make(ip.to_string(), listens.port(), Via::Direct))
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
                Ok((Answer::No { reason, kind }, Some(through.id)))
            }
            connected => Ok((connected, Some(through.id))),
        }
    }
}
