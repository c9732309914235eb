//! Everything that goes through one ssh connection, on one thread.
//!
//! An ssh library lets one thread at a time into a session. So that thread moves all bytes, between
//! the session's streams and ordinary pipes and sockets, and everybody else uses those.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use distant_plugin_api::bootstrap::Running;
use distant_plugin_api::{ErrorKind, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::backend::{acknowledge, Failure, Read, Session, Stream, Target};
use crate::guard::{system, Guard};

/// Bytes that may wait in each direction of a stream.
const BUFFER: usize = 256 * 1024;
/// Bytes moved at once.
const CHUNK: usize = 32 * 1024;
/// Most connections through one tunnel at a time.
const LINKS_MAX: usize = 64;

/// How long the thread waits for the socket before it looks into the session again, at first and at
/// last. A library that is asked for one stream's bytes may take those of another one from the
/// socket, just after that one had none: then nothing would ever wake us for them.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long the server may take to run a command or to connect to somewhere.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

type Ending = Arc<Mutex<Option<String>>>;

enum Order {
    Open(Opening),
    Listen { listener: TcpListener, to: SocketAddr },
}

/// A stream that the server is still to open, or has not said yet whether it will.
struct Opening {
    target: Target,
    link: Link,
    /// Who waits for it; nobody where somebody came to a tunnel.
    done: Option<Sender<Result<(), Failure>>>,
}

impl Opening {
    /// Tells whoever waits why there will be none.
    fn fail(self, failure: Failure) {
        match self.done {
            // They may have gone away.
            Some(done) => drop(done.send(Err(failure))),
            None => tracing::warn!("the ssh server does not open {:?}: {failure}", self.target),
        }
    }
}

/// A session that is worked by a thread of its own. Dropping it ends the connection.
pub struct Mux {
    orders: Option<Sender<Order>>,
    wake: UnixStream,
    guard: Guard,
    thread: Option<JoinHandle<()>>,
}

impl Mux {
    /// Takes over a session after the login.
    ///
    /// # Errors
    ///
    /// The system is out of something.
    pub fn start(
        session: Box<dyn Session>,
        socket: OwnedFd,
        guard: Guard,
    ) -> Result<Self, LaunchError> {
        let (wake, woken) = UnixStream::pair().map_err(system)?;
        woken.set_nonblocking(true).map_err(system)?;
        let (orders, receiver) = mpsc::channel();
        let work = Worker {
            session,
            socket,
            woken,
            orders: receiver,
            openings: VecDeque::new(),
            links: Vec::new(),
            listeners: Vec::new(),
        };
        let run = move || work.run();
        let thread = thread::Builder::new().name("ssh".into()).spawn(run).map_err(system)?;
        Ok(Self { orders: Some(orders), wake, guard, thread: Some(thread) })
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // If the thread has ended, the sender of the answer is dropped with the order.
            let _ = orders.send(order);
            let _ = (&self.wake).write(&[0]);
        }
    }

    /// Has something opened, for which the server gets only so long: one that does not answer
    /// then is given up whole.
    fn open(&self, target: Target, link: Link, limit: Duration) -> Result<(), Failure> {
        let (done, answer) = mpsc::channel();
        self.guard.limit(limit);
        self.order(Order::Open(Opening { target, link, done: Some(done) }));
        let outcome =
            answer.recv().unwrap_or_else(|_| Err(Failure("the connection has ended".into())));
        self.guard.unlimited();
        if outcome.is_err() && self.guard.is_late() {
            return Err(Failure(format!("no answer within {} s", limit.as_secs())));
        }
        outcome
    }

    /// The kind of an error, which is another one if the server took too long.
    fn kind(&self, kind: ErrorKind) -> ErrorKind {
        if self.guard.is_late() {
            ErrorKind::TimedOut
        } else {
            kind
        }
    }

    /// Runs a command.
    ///
    /// # Errors
    ///
    /// The server does not let us.
    pub fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(system);
        let ((input, stdin), (stdout, output), (stderr, errors)) = (pipe()?, pipe()?, pipe()?);
        let link = Link::new(input, output, Some(errors))?;
        let ending = link.ending.clone();
        let target = Target::Command(command.to_owned());
        self.open(target, link, OPEN_LIMIT).map_err(|failure| {
            let message = "the ssh server does not run commands";
            LaunchError::new(self.kind(ErrorKind::ServerNotStarted), message)
                .because(&failure)
                .with_hint("try `ssh HOST true`; the server's `MaxSessions` may be 0")
        })?;
        let ending =
            Box::new(move || ending.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok(Running { stdin, stdout, stderr, ending })
    }

    /// Opens a connection from the server to somewhere, as a socket here.
    ///
    /// # Errors
    ///
    /// The server cannot, or does not let us.
    pub fn connect(&self, host: &str, port: u16) -> Result<OwnedFd, LaunchError> {
        let (near, far) = UnixStream::pair().map_err(system)?;
        let far = OwnedFd::from(far);
        let link = Link::new(far.try_clone().map_err(system)?, far, None)?;
        let target = Target::Address(host.to_owned(), port);
        self.open(target, link, OPEN_LIMIT).map_err(|failure| {
            let message = format!("the ssh server on the way cannot reach `{host}:{port}`");
            LaunchError::new(self.kind(ErrorKind::Unreachable), message).because(&failure)
        })?;
        Ok(near.into())
    }

    /// Listens here, and brings each connection to an address as seen from the server.
    ///
    /// # Errors
    ///
    /// The system is out of something.
    pub fn listen(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let near = listener.local_addr().map_err(system)?;
        self.order(Order::Listen { listener, to });
        Ok(near)
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        drop(self.orders.take());
        // A library that is asked to end a stream would wait for the server: the socket first.
        self.guard.shut();
        let _ = (&self.wake).write(&[0]);
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                tracing::error!("the thread of the ssh connection panicked");
            }
        }
    }
}

/// A stream of the session and the files here that it is joined to.
struct Link {
    stream: Option<Box<dyn Stream>>,
    input: Option<File>,
    output: Option<File>,
    errors: Option<File>,
    to_remote: VecDeque<u8>,
    to_output: VecDeque<u8>,
    to_errors: VecDeque<u8>,
    output_ended: bool,
    errors_ended: bool,
    finished: bool,
    ending: Ending,
}

impl Link {
    fn new(input: OwnedFd, output: OwnedFd, errors: Option<OwnedFd>) -> Result<Self, LaunchError> {
        for fd in [&input, &output].into_iter().chain(&errors) {
            rustix::io::ioctl_fionbio(fd, true).map_err(system)?;
        }
        Ok(Self {
            stream: None,
            input: Some(input.into()),
            output: Some(output.into()),
            errors_ended: errors.is_none(),
            errors: errors.map(File::from),
            to_remote: VecDeque::new(),
            to_output: VecDeque::new(),
            to_errors: VecDeque::new(),
            output_ended: false,
            finished: false,
            ending: Ending::default(),
        })
    }

    fn is_over(&self) -> bool {
        let flushed = self.to_output.is_empty() && self.to_errors.is_empty();
        self.output_ended && self.errors_ended && flushed
    }

    /// Moves what can be moved without waiting; says whether anything was.
    fn pump(&mut self) -> Result<bool, Failure> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        let mut moved = false;
        let mut chunk = [0; CHUNK];
        if let Some(input) = self.input.as_mut().filter(|_| self.to_remote.len() < BUFFER) {
            match input.read(&mut chunk) {
                Ok(0) => self.input = None,
                Ok(count) => {
                    self.to_remote.extend(&chunk[..count]);
                    moved = true;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => self.input = None,
            }
        }
        while !self.to_remote.is_empty() {
            match stream.write(self.to_remote.as_slices().0) {
                Ok(0) => break,
                Ok(count) => {
                    self.to_remote.drain(..count);
                    moved = true;
                }
                // The other side may have closed this stream alone. If it is the connection that
                // has ended, reading says so.
                Err(failure) => {
                    tracing::debug!("a stream takes nothing more: {failure}");
                    self.to_remote.clear();
                    self.input = None;
                    self.finished = true;
                }
            }
        }
        if self.input.is_none() && self.to_remote.is_empty() && !self.finished {
            self.finished = stream.finish()?;
        }
        let ways = [
            (false, &mut self.to_output, &mut self.output_ended, &mut self.output),
            (true, &mut self.to_errors, &mut self.errors_ended, &mut self.errors),
        ];
        for (errors, buffer, ended, file) in ways {
            if !*ended && buffer.len() < BUFFER {
                match stream.read(&mut chunk, errors)? {
                    Read::Bytes(count) => {
                        buffer.extend(&chunk[..count]);
                        moved = true;
                    }
                    Read::End => *ended = true,
                    Read::Later => {}
                }
            }
            moved |= flush(buffer, file);
            if *ended && buffer.is_empty() {
                *file = None;
            }
        }
        if self.output_ended {
            let ending = stream.ending();
            *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = ending;
        }
        Ok(moved)
    }
}

/// Writes what the file takes; a file that nobody reads any more takes everything.
fn flush(buffer: &mut VecDeque<u8>, file: &mut Option<File>) -> bool {
    let mut moved = false;
    while !buffer.is_empty() {
        match file.as_mut().map(|file| file.write(buffer.as_slices().0)) {
            Some(Ok(count @ 1..)) => {
                buffer.drain(..count);
                moved = true;
            }
            Some(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            _ => {
                *file = None;
                buffer.clear();
            }
        }
    }
    moved
}

struct Worker {
    session: Box<dyn Session>,
    socket: OwnedFd,
    woken: UnixStream,
    orders: Receiver<Order>,
    /// Only the first one is asked for: a library opens one stream at a time.
    openings: VecDeque<Opening>,
    links: Vec<Link>,
    listeners: Vec<(TcpListener, SocketAddr)>,
}

impl Worker {
    fn run(mut self) {
        self.session.set_blocking(false);
        if let Err(failure) = self.work() {
            tracing::debug!("the ssh connection ended: {failure}");
        }
        // Whoever drops a stream of a session that can still talk waits for the server.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.links.clear();
    }

    fn work(&mut self) -> Result<(), Failure> {
        let mut pause = PAUSE;
        loop {
            loop {
                match self.orders.try_recv() {
                    Ok(Order::Open(opening)) => self.openings.push_back(opening),
                    Ok(Order::Listen { listener, to }) => self.listeners.push((listener, to)),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.accept();
            self.open();
            // What one stream reads from the socket may belong to another one.
            while self.pump()? {
                pause = PAUSE;
            }
            self.links.retain(|link| !link.is_over());
            self.wait(pause)?;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn accept(&mut self) {
        for (listener, to) in &self.listeners {
            while self.links.len() + self.openings.len() < LINKS_MAX {
                let Ok((near, _)) = listener.accept() else { break };
                let _ = near.set_nodelay(true);
                let near = OwnedFd::from(near);
                let copy = near.try_clone().map_err(system);
                match copy.and_then(|copy| Link::new(copy, near, None)) {
                    Ok(link) => {
                        let target = Target::Address(to.ip().to_string(), to.port());
                        self.openings.push_back(Opening { target, link, done: None });
                    }
                    Err(error) => tracing::warn!("a connection cannot be taken: {error}"),
                }
            }
        }
    }

    /// Opens what can be opened without waiting.
    fn open(&mut self) {
        while let Some(opening) = self.openings.front() {
            match self.session.open(&opening.target) {
                Ok(None) => return,
                Ok(Some(stream)) => {
                    let Some(mut opening) = self.openings.pop_front() else { return };
                    opening.link.stream = Some(stream);
                    self.links.push(opening.link);
                    // They may have gone away, which the link then notices.
                    let _ = opening.done.map(|done| done.send(Ok(())));
                }
                Err(failure) => {
                    if let Some(opening) = self.openings.pop_front() {
                        opening.fail(failure);
                    }
                }
            }
        }
    }

    fn pump(&mut self) -> Result<bool, Failure> {
        let mut moved = false;
        for link in &mut self.links {
            moved |= link.pump()?;
        }
        Ok(moved)
    }

    fn wait(&mut self, pause: Duration) -> Result<(), Failure> {
        // Only streams read from the session; without one, what comes would wake us for ever.
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, !self.links.is_empty() || !self.openings.is_empty());
        if self.session.wants_write() {
            wanted |= PollFlags::OUT;
        }
        let mut fds: Vec<(BorrowedFd<'_>, PollFlags)> =
            vec![(self.socket.as_fd(), wanted), (self.woken.as_fd(), PollFlags::IN)];
        if self.links.len() + self.openings.len() < LINKS_MAX {
            fds.extend(self.listeners.iter().map(|(it, _)| (it.as_fd(), PollFlags::IN)));
        }
        for link in &self.links {
            if let Some(input) = link.input.as_ref().filter(|_| link.to_remote.len() < BUFFER) {
                fds.push((input.as_fd(), PollFlags::IN));
            }
            let ways = [(&link.output, &link.to_output), (&link.errors, &link.to_errors)];
            for (file, buffer) in ways {
                if let Some(file) = file.as_ref().filter(|_| !buffer.is_empty()) {
                    fds.push((file.as_fd(), PollFlags::OUT));
                }
            }
        }
        let mut fds: Vec<_> =
            fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match rustix::event::poll(&mut fds, Timespec::try_from(pause).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure(error.to_string())),
        }
        let ended = fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        drop(fds);
        if !self.openings.is_empty() {
            acknowledge(&self.socket);
        }
        let mut buffer = [0; 64];
        // It is only a wake-up; the orders say what for.
        let _ = (&self.woken).read(&mut buffer);
        let idle = self.links.is_empty() && self.listeners.is_empty();
        if ended && (idle || !self.pump()?) {
            return Err(Failure("the server closed the connection".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "mux/tests.rs"]
mod tests;
