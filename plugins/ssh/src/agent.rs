//! An agent of our own, between an ssh library and the person's agent and key files.
//!
//! Every library hangs on a mute agent, and none filters or orders its keys. This one shows exactly
//! one key at a time, so the order of attempts is ours; it asks the person's agent for signatures
//! with a limit, and signs by itself for a key file that has a passphrase. That is asked for only
//! when a signature is wanted, which is when the server has said that it would take the key.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use distant_plugin_api::LaunchError;
use rsa::pkcs1v15::SigningKey;
use rsa::signature::{SignatureEncoding, Signer};
use rsa::BigUint;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::{pipe_with, PipeFlags};
use sha2::Sha256;
use ssh_key::private::KeypairData;
use ssh_key::PrivateKey;

use crate::guard::system;

/// Longest message of an agent (OpenSSH's own bound).
const MESSAGE_MAX: usize = 256 * 1024;
/// How long the person's agent may take to say which keys it has.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to sign: somebody may have to touch a key or confirm.
const SIGN_LIMIT: Duration = Duration::from_secs(55);

const FAILURE: u8 = 5;
const LIST: u8 = 11;
const LISTED: u8 = 12;
const SIGN: u8 = 13;
const SIGNED: u8 = 14;
/// The flag by which a signature with SHA-256 is asked for.
const RSA_SHA2_256: u32 = 2;

/// A key of the person's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey {
    /// The public key or certificate as it travels.
    pub public: Vec<u8>,
    /// What the person calls it.
    pub comment: String,
}

/// Opens the key file with an index; nothing if it stays closed.
pub type Open<'a> = dyn Fn(usize) -> Option<PrivateKey> + Sync + 'a;

/// The one key that is shown now.
#[derive(Debug, Clone)]
pub enum Shown {
    /// One of the person's agent.
    Theirs(AgentKey),
    /// The public key or certificate of the file with this index.
    Ours(Vec<u8>, usize),
}

/// The agent that a session talks to.
pub struct Agent {
    listener: UnixListener,
    /// The socket's file, which has no name any more.
    place: OwnedFd,
    upstream: Option<PathBuf>,
    stop: Mutex<Option<OwnedFd>>,
    stopped: OwnedFd,
}

impl Agent {
    /// Listens in a place that has no name in any folder, so that nothing is left of it, however
    /// this process ends.
    ///
    /// # Errors
    ///
    /// No temporary folder can be written, or the system is out of something.
    pub fn new(upstream: Option<PathBuf>) -> Result<Self, LaunchError> {
        // A manager may outlive the folder that its `TMPDIR` names.
        let folders = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()];
        let mut bound = bind(&folders[0]);
        for folder in &folders[1..] {
            bound = bound.or_else(|_| bind(folder));
        }
        let (listener, place) = bound.map_err(system)?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        Ok(Self { listener, place, upstream, stop: Mutex::new(Some(stop)), stopped })
    }

    /// Where it listens, for this process alone.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.place.as_raw_fd()).into()
    }

    /// The keys of the person's agent; none if it does not answer.
    pub fn keys(&self) -> Vec<AgentKey> {
        let Some(upstream) = &self.upstream else { return Vec::new() };
        match ask(upstream, &[LIST], LIST_LIMIT) {
            Ok(answer) => parse_keys(&answer).unwrap_or_default(),
            Err(error) => {
                tracing::warn!("the agent at {} does not answer: {error}", upstream.display());
                Vec::new()
            }
        }
    }

    /// Answers the session's requests until [`Agent::stop`].
    pub fn serve(&self, shown: &Mutex<Option<Shown>>, open: &Open<'_>) {
        loop {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.stopped, PollFlags::IN),
            ];
            if rustix::event::poll(&mut fds, None).is_err() || !fds[1].revents().is_empty() {
                return;
            }
            let Ok((stream, _)) = self.listener.accept() else { continue };
            self.talk(&stream, shown, open);
        }
    }

    fn talk(&self, stream: &UnixStream, shown: &Mutex<Option<Shown>>, open: &Open<'_>) {
        loop {
            let mut fds = [
                PollFd::new(stream, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.stopped, PollFlags::IN),
            ];
            let polled = rustix::event::poll(&mut fds, None);
            let (asked, another, stop) = (fds[0].revents(), fds[1].revents(), fds[2].revents());
            // The library is one thread: who connects anew has no use for the old connection.
            if polled.is_err() || !stop.is_empty() || (asked.is_empty() && !another.is_empty()) {
                return;
            }
            // Half a message would keep us from being stopped.
            let Ok(request) = Exchange::within(stream, LIST_LIMIT).receive() else { return };
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let answer = shown.and_then(|shown| self.answer(&request, &shown, open));
            let answer = answer.unwrap_or_else(|| vec![FAILURE]);
            if Exchange::within(stream, LIST_LIMIT).send(&answer).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &[u8], shown: &Shown, open: &Open<'_>) -> Option<Vec<u8>> {
        let (kind, mut rest) = request.split_first()?;
        let (public, comment) = match shown {
            Shown::Theirs(key) => (&key.public, key.comment.as_str()),
            Shown::Ours(public, _) => (public, ""),
        };
        match *kind {
            LIST => {
                let mut answer = vec![LISTED, 0, 0, 0, 1];
                put(&mut answer, public);
                put(&mut answer, comment.as_bytes());
                Some(answer)
            }
            SIGN => match shown {
                _ if take(&mut rest)? != public.as_slice() => None,
                Shown::Theirs(_) => {
                    let answer = ask(self.upstream.as_ref()?, request, SIGN_LIMIT).ok()?;
                    (answer.first() == Some(&SIGNED)).then_some(answer)
                }
                Shown::Ours(_, index) => {
                    let data = take(&mut rest)?;
                    let flags = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
                    let mut answer = vec![SIGNED];
                    put(&mut answer, &sign(&open(*index)?, data, flags)?);
                    Some(answer)
                }
            },
            _ => None,
        }
    }

    /// Ends [`Agent::serve`].
    pub fn stop(&self) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Listens in a folder, and removes the name again.
fn bind(folder: &Path) -> io::Result<(UnixListener, OwnedFd)> {
    let folder = tempfile::Builder::new().prefix("distant-").tempdir_in(folder)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let held = rustix::fs::open(folder.path(), flags, Mode::empty())?;
    // By its descriptor, as the name of a socket has room for 107 bytes.
    let name = PathBuf::from(format!("/proc/self/fd/{}/agent", held.as_raw_fd()));
    let listener = UnixListener::bind(&name)?;
    let place = rustix::fs::open(&name, flags, Mode::empty())?;
    folder.close()?;
    Ok((listener, place))
}

/// Signs as an agent does: the name of the algorithm and the signature.
fn sign(key: &PrivateKey, data: &[u8], flags: u32) -> Option<Vec<u8>> {
    let (name, signature) = match key.key_data() {
        KeypairData::Rsa(pair) => {
            let number =
                |bytes: &ssh_key::Mpint| Some(BigUint::from_bytes_be(bytes.as_positive_bytes()?));
            let primes = vec![number(&pair.private.p)?, number(&pair.private.q)?];
            let (n, e) = (number(&pair.public.n)?, number(&pair.public.e)?);
            let key = rsa::RsaPrivateKey::from_components(n, e, number(&pair.private.d)?, primes);
            let key = key.ok()?;
            match flags & RSA_SHA2_256 {
                0 => {
                    let signer = SigningKey::<sha2::Sha512>::new(key);
                    ("rsa-sha2-512".to_owned(), signer.try_sign(data).ok()?.to_vec())
                }
                _ => {
                    let signer = SigningKey::<Sha256>::new(key);
                    ("rsa-sha2-256".to_owned(), signer.try_sign(data).ok()?.to_vec())
                }
            }
        }
        _ => {
            let signature: ssh_key::Signature = key.try_sign(data).ok()?;
            (signature.algorithm().to_string(), signature.as_bytes().to_vec())
        }
    };
    let mut whole = Vec::new();
    put(&mut whole, name.as_bytes());
    put(&mut whole, &signature);
    Some(whole)
}

/// Tells whether an agent answers within a few seconds; one that does not would be waited for.
pub fn answers(agent: &Path) -> bool {
    ask(agent, &[LIST], LIST_LIMIT).is_ok()
}

fn ask(path: &Path, request: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let stream = UnixStream::from(socket);
    let mut exchange = Exchange::within(&stream, limit);
    // Connecting obeys it: it waits while too many others do.
    stream.set_write_timeout(Some(limit))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(path)?)?;
    exchange.send(request)?;
    exchange.receive()
}

/// Messages over a connection that has one limit for all of them: the other end may be slow, and say
/// each byte in time.
struct Exchange<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl<'a> Exchange<'a> {
    fn within(stream: &'a UnixStream, limit: Duration) -> Self {
        Self { stream, deadline: Instant::now() + limit }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let mut whole = Vec::new();
        put(&mut whole, message);
        self.write_all(&whole)
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MESSAGE_MAX {
            return Err(io::Error::other("the message is too long"));
        }
        let mut message = vec![0; length];
        self.read_exact(&mut message)?;
        Ok(message)
    }

    fn wait(&self, wanted: PollFlags) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let ready = rustix::event::poll(&mut [PollFd::new(self.stream, wanted)], Some(&timeout))?;
        match ready > 0 && !left.is_zero() {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Exchange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN)?;
        self.stream.read(buffer)
    }
}

impl Write for Exchange<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT)?;
        // What would wait for more room than there is takes no more than there is.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(self.stream, bytes, flags) {
            Err(Errno::AGAIN) => Err(io::ErrorKind::Interrupted.into()),
            sent => Ok(sent?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn put(into: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing here comes near 4 GiB: see MESSAGE_MAX.
    into.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
    into.extend_from_slice(bytes);
}

fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(from.get(..4)?.try_into().ok()?);
    let (bytes, rest) = from[4..].split_at_checked(usize::try_from(length).ok()?)?;
    *from = rest;
    Some(bytes)
}

fn parse_keys(answer: &[u8]) -> Option<Vec<AgentKey>> {
    let mut rest = answer.strip_prefix(&[LISTED])?;
    let count = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
    rest = &rest[4..];
    let mut keys = Vec::new();
    for _ in 0..count {
        let public = take(&mut rest)?.to_vec();
        let comment = String::from_utf8_lossy(take(&mut rest)?).into_owned();
        keys.push(AgentKey { public, comment });
    }
    Some(keys)
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn it_is_reached_where_no_folder_has_it() {
        let folder = tempfile::tempdir().unwrap();
        // Too long for the name of a socket.
        let folder = folder.path().join("x".repeat(200));
        std::fs::create_dir(&folder).unwrap();
        let (listener, place) = bind(&folder).unwrap();
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        let _client = UnixStream::connect(path).unwrap();
        listener.accept().unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        assert!(bind(&folder.join("none")).is_err());
        UnixStream::connect(Agent::new(None).unwrap().path()).unwrap();
    }

    #[test]
    fn an_agent_whose_queue_is_full_has_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let flags = SocketFlags::CLOEXEC;
        let full =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&full, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        let error = ask(&path, &[LIST], Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_agent_that_drips_has_one_limit_for_its_whole_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        let drip = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut answer = Vec::new();
            put(&mut answer, &[LISTED; 300]);
            // Each byte is well in time, and all of them take seconds.
            let pace = Duration::from_millis(10);
            answer.iter().take_while(|_| stopped.recv_timeout(pace).is_err()).for_each(|byte| {
                // Whoever has waited long enough is gone.
                let _ = stream.write_all(&[*byte]);
            });
        });
        let error = ask(&path, &[LIST], Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        stop.send(()).unwrap();
        drip.join().unwrap();
    }

    #[test]
    fn an_agent_that_takes_nothing_has_the_same_limit() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut exchange = Exchange::within(&near, Duration::from_millis(50));
        let error = (0..64).find_map(|_| exchange.send(&[0; MESSAGE_MAX]).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
