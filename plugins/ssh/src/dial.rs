//! Connecting to an ssh server: every address, the next one beside a slow one, and no waiting that
//! a cancel cannot end.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::{Caller, ErrorKind, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{sockopt, AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::config::Settings;
use crate::guard::system;

/// How long an address is tried alone before the next one is tried beside it (RFC 8305).
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the host of the settings.
///
/// # Errors
///
/// `unresolved`, `unreachable`, `timed_out`, `cancelled`.
pub fn dial(settings: &Settings, caller: &Caller) -> Result<(OwnedFd, SocketAddr), LaunchError> {
    let deadline = Instant::now() + settings.connect_limit;
    let mut addresses = lookup(settings, deadline, caller)?;
    addresses.retain(|address| match settings.family.as_str() {
        "inet" => address.is_ipv4(),
        "inet6" => address.is_ipv6(),
        _ => true,
    });
    let place = settings.place();
    if addresses.is_empty() {
        let message = format!("`{}` has no address of the wanted family", settings.host);
        return Err(LaunchError::new(ErrorKind::Unresolved, message));
    }
    let mut waiting = addresses.into_iter();
    let mut open: Vec<(OwnedFd, SocketAddr)> = Vec::new();
    let mut failures: Vec<String> = Vec::new();
    let mut next_at = Instant::now();
    loop {
        let now = Instant::now();
        if now >= deadline {
            let message = format!("`{place}` does not answer");
            let error = LaunchError::new(ErrorKind::TimedOut, message)
                .caused_by(format!("no answer within {:?}", settings.connect_limit))
                .with_hint("is the host up, and the port right? A firewall may drop the packets");
            return Err(failures.into_iter().fold(error, LaunchError::caused_by));
        }
        if open.is_empty() || now >= next_at {
            match waiting.next().map(|address| (start(address, settings), address)) {
                Some((Ok(socket), address)) => open.push((socket, address)),
                Some((Err(error), address)) => {
                    failures.push(format!("{address}: {}", std::io::Error::from(error)));
                    continue;
                }
                None if open.is_empty() => {
                    let message = format!("cannot reach `{place}`");
                    let error = LaunchError::new(ErrorKind::Unreachable, message)
                        .with_hint("is the host up, and does an ssh server listen at that port?");
                    return Err(failures.into_iter().fold(error, LaunchError::caused_by));
                }
                None => {}
            }
            next_at = if waiting.len() == 0 { deadline } else { now + STAGGER };
        }
        if let Some(index) = wait(&open, next_at.min(deadline), caller)? {
            let (socket, address) = open.swap_remove(index);
            match sockopt::socket_error(&socket).map_err(system)? {
                Ok(()) => {
                    tune(&socket);
                    return Ok((socket, address));
                }
                Err(error) => {
                    failures.push(format!("{address}: {}", std::io::Error::from(error)));
                    next_at = Instant::now();
                }
            }
        }
    }
}

/// The name lookup cannot be interrupted, so it is left to end by itself if nobody waits any more.
fn lookup(
    settings: &Settings,
    deadline: Instant,
    caller: &Caller,
) -> Result<Vec<SocketAddr>, LaunchError> {
    let target = (settings.host.clone(), settings.port);
    let (answer, result) = mpsc::channel();
    let (done, ended) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
    let work = move || {
        // Nobody may wait any more.
        let _ = answer.send(target.to_socket_addrs().map(Iterator::collect));
        drop(ended);
    };
    thread::Builder::new().name("lookup".into()).spawn(work).map_err(system)?;
    let cancel = caller.cancel_fd();
    let mut fds = [PollFd::new(&done, PollFlags::IN), PollFd::new(&cancel, PollFlags::IN)];
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
    rustix::event::poll(&mut fds, left.as_ref()).map_err(system)?;
    caller.check()?;
    let message = format!("there is no host `{}`", settings.host);
    match result.try_recv() {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(LaunchError::new(ErrorKind::Unresolved, message)
            .because(&error)
            .with_hint("check how it is spelt; an alias has to be in your ssh configuration")),
        Err(_) => Err(LaunchError::new(ErrorKind::TimedOut, message)
            .caused_by("the name lookup did not end in time")),
    }
}

fn start(address: SocketAddr, settings: &Settings) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    if let Some(from) = settings.bind {
        rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn wait(
    open: &[(OwnedFd, SocketAddr)],
    until: Instant,
    caller: &Caller,
) -> Result<Option<usize>, LaunchError> {
    let cancel = caller.cancel_fd();
    let mut fds: Vec<_> =
        open.iter().map(|(socket, _)| PollFd::new(socket, PollFlags::OUT)).collect();
    fds.push(PollFd::new(&cancel, PollFlags::IN));
    let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
    match rustix::event::poll(&mut fds, left.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(system(error)),
    }
    caller.check()?;
    Ok(fds[..open.len()].iter().position(|fd| !fd.revents().is_empty()))
}

/// Makes the socket block again, and every small message leave at once: the libraries do not.
fn tune(socket: &OwnedFd) {
    // None of these can fail on a connected TCP socket, and none is needed for it to work.
    let _ = rustix::io::ioctl_fionbio(socket.as_fd(), false);
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_tcp_quickack(socket, true);
    let _ = sockopt::set_socket_keepalive(socket, true);
}
