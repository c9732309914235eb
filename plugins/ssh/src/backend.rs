//! What an ssh library has to do: little more than the protocol itself.
//!
//! A backend gets a connected socket and never resolves, prompts, reads a file or decides whom to
//! trust. Until [`Session::set_blocking`] says otherwise its calls block, and end at once when
//! somebody shuts the socket down; that is how a launch is cancelled.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use distant_plugin_api::secret::Secret;
use rustix::event::{PollFd, PollFlags};

/// An ssh library.
pub trait Backend: Sync {
    /// The plugin's name, by which a person chooses it.
    fn name(&self) -> &'static str;

    /// Whether it understands host certificates.
    fn host_certificates(&self) -> bool;

    /// Whether it can log in with a user certificate and a key from memory.
    fn user_certificates(&self) -> bool;

    /// Whether it tells an answer that is right but not enough from a wrong one.
    fn tells_partial(&self) -> bool;

    /// Why it cannot log in with this kind of key, and what can.
    fn cannot_use(&self, kind: &str) -> Option<&'static str>;

    /// Exchanges keys over a connected socket.
    ///
    /// # Errors
    ///
    /// [`NotOpened`], with the library's own words.
    fn open(&self, socket: OwnedFd, setup: &Setup<'_>) -> Result<Box<dyn Session>, NotOpened>;
}

/// What a backend needs to know before the key exchange.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The name to show in the library's own messages.
    pub host: &'a str,
    /// Who logs in.
    pub user: &'a str,
    /// Kinds of host keys, best first.
    pub host_key_algorithms: &'a [&'static str],
    /// Whether the library's own trace goes to the log.
    pub verbose: bool,
    /// The agent that the session shall use.
    pub agent: &'a Path,
    /// Whether the first stream will be a command's.
    pub runs_command: bool,
}

/// Whether a server is known to take packets that it could have been asked about first: it says by
/// its banner that it is OpenSSH's, which reads what has come in order and answers what it does not
/// want with a word of its own. Of others nobody knows.
pub fn takes_flights(banner: &str) -> bool {
    banner.starts_with("SSH-2.0-OpenSSH_")
}

/// Waits until a library that does not block can go on: for something to read, or for room to
/// write. Whoever shuts the socket down ends the wait.
///
/// # Errors
///
/// The system is out of something.
pub fn wait(socket: impl AsFd, wants_write: bool) -> Result<(), Failure> {
    let mut wanted = PollFlags::IN;
    wanted.set(PollFlags::OUT, wants_write);
    match rustix::event::poll(&mut [PollFd::new(&socket, wanted)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Failure(error.to_string())),
    }
    acknowledge(socket);
    Ok(())
}

/// Acknowledges what has come at once. Until a command runs, sshd sends a small packet only when
/// the one before has been acknowledged, and the system puts that off by up to a round trip where
/// it has nothing else to send.
pub fn acknowledge(socket: impl AsFd) {
    // It has to be said each time; what is no TCP socket needs none.
    let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
}

/// What a library says when something fails.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// Why no keys were exchanged.
#[derive(Debug, Clone)]
pub enum NotOpened {
    /// The server hung up before it said that it speaks ssh, as one does that has too many
    /// connections. Another try may do.
    HungUp(Failure),
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for NotOpened {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The server's answer to an attempt to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// We are in.
    Accepted,
    /// Right, but another method has to follow.
    Partial,
    /// Not with this.
    Refused,
}

/// Questions that the server asks.
#[derive(Debug)]
pub struct Questions {
    /// A title; may be empty.
    pub name: String,
    /// Read before the questions; may be empty.
    pub instructions: String,
    /// Each question, and whether its answer may be seen.
    pub prompts: Vec<(String, bool)>,
}

/// Answers the server's questions; nothing if nobody will, which ends the method.
pub type Answer<'a> = dyn FnMut(Questions) -> Option<Vec<Secret>> + 'a;

/// What a stream leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A command of the user's login shell there.
    Command(String),
    /// A host and a port as seen from the server.
    Address(String, u16),
}

/// One connection after the key exchange.
pub trait Session: Send {
    /// The host's public key, or its certificate, as it travels.
    ///
    /// # Errors
    ///
    /// The library's own words, as everywhere below.
    fn host_key(&mut self) -> Result<Vec<u8>, Failure>;

    /// What the server wants everybody to read before logging in, if it has said so yet.
    fn banner(&mut self) -> Option<String>;

    /// The methods that the server would take now; nothing if it has let us in without any. It may
    /// cost a round trip.
    fn methods(&mut self, user: &str) -> Result<Option<Vec<String>>, Failure>;

    /// Tries a private key in OpenSSH's form, not encrypted, and its certificate if there is one.
    fn public_key(
        &mut self,
        user: &str,
        key: &Secret,
        certificate: Option<&str>,
    ) -> Result<Reply, Failure>;

    /// Tries the one key that the agent of [`Setup::agent`] shows.
    fn agent(&mut self, user: &str) -> Result<Reply, Failure>;

    /// Tries a password.
    fn password(&mut self, user: &str, password: &Secret) -> Result<Reply, Failure>;

    /// Answers whatever the server asks.
    fn keyboard_interactive(
        &mut self,
        user: &str,
        answer: &mut Answer<'_>,
    ) -> Result<Reply, Failure>;

    /// Opens a stream; nothing if the server has not answered yet. Then it has to be asked for
    /// again, with the same target, before any other.
    fn open(&mut self, target: &Target) -> Result<Option<Box<dyn Stream>>, Failure>;

    /// Whether calls wait for the other side.
    fn set_blocking(&mut self, blocking: bool);

    /// Whether something waits until the socket takes more.
    fn wants_write(&self) -> bool;
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing there now.
    Later,
    /// Nothing will come any more.
    End,
}

/// A command's or a connection's bytes; its calls never wait once the session does not block.
pub trait Stream: Send {
    /// Reads what the other side says, or complains of.
    fn read(&mut self, buffer: &mut [u8], errors: bool) -> Result<Read, Failure>;

    /// Writes some of it; 0 if nothing can be taken now.
    fn write(&mut self, data: &[u8]) -> Result<usize, Failure>;

    /// Says that nothing more will be written; `false` if that has to be said again later.
    fn finish(&mut self) -> Result<bool, Failure>;

    /// How the command ended, if the server has said so: `status 1`, `signal TERM`.
    fn ending(&mut self) -> Option<String>;
}
