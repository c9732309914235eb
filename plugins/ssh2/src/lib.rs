//! `ssh://` with libssh2.

mod early;
mod integrity;
mod questions;

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use distant_plugin_api::secret::Secret;
use distant_plugin_api::{export_plugin, Caller, LaunchError, LaunchRequest, Manifest, Plugin};
use distant_ssh::backend::{
    Answer, Backend, Failure, NotOpened, Read, Reply, Session, Setup, Stream, Target,
};
use early::Early;
use integrity::Integrity;
// Its version is what matters: older ones let a server write into the heap before the login.
use libssh2_sys as raw;
use ssh2::{BlockDirections, ErrorCode, MethodType};

struct Ssh2;

impl Plugin for Ssh2 {
    fn manifest(&self) -> Manifest {
        let description = "Launches distant servers over ssh, with libssh2";
        distant_ssh::manifest(self.name(), env!("CARGO_PKG_VERSION"), description)
    }

    fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        distant_ssh::launch(self, request, caller)
    }
}

export_plugin!(Ssh2);

impl Backend for Ssh2 {
    fn name(&self) -> &'static str {
        "ssh2"
    }

    fn host_certificates(&self) -> bool {
        true
    }

    fn user_certificates(&self) -> bool {
        true
    }

    fn tells_partial(&self) -> bool {
        false
    }

    fn cannot_use(&self, kind: &str) -> Option<&'static str> {
        let is_rsa_certificate = kind.starts_with("ssh-rsa-cert");
        (kind.starts_with("sk-") || is_rsa_certificate)
            .then_some("libssh2 cannot use this kind from an agent; `backend=libssh` can")
    }

    fn open(&self, socket: OwnedFd, setup: &Setup<'_>) -> Result<Box<dyn Session>, NotOpened> {
        let mut session = ssh2::Session::new().map_err(said)?;
        let kept = socket.try_clone().map_err(|error| Failure(error.to_string()))?;
        session.set_tcp_stream(socket);
        session
            .method_pref(MethodType::HostKey, &setup.host_key_algorithms.join(","))
            .map_err(said)?;
        session.handshake().map_err(|error| match error.code() {
            _ if !session.banner().is_some_and(|it| it.starts_with("SSH-")) => {
                NotOpened::HungUp(said(error))
            }
            // libssh2 says the same for a refused algorithm and a closed connection.
            ErrorCode::Session(raw::LIBSSH2_ERROR_KEY_EXCHANGE_FAILURE) => {
                let offered = session.supported_algs(MethodType::Kex).unwrap_or_default();
                let offered = offered.join(", ");
                let text = format!("the key exchange failed; libssh2 has the methods {offered}");
                NotOpened::Failed(Failure(text))
            }
            _ => NotOpened::Failed(said(error)),
        })?;
        if setup.verbose {
            tell(&session);
        }
        let integrity = Integrity::of(&session, kept);
        let (agent, verbose) = (setup.agent.to_owned(), setup.verbose);
        let early = Early::of(&session, setup);
        let (opened, banner_shown) = (None, false);
        Ok(Box::new(Connection { session, integrity, opened, early, agent, verbose, banner_shown }))
    }
}

/// libssh2 has a trace only in a debug build, so this says what was agreed on.
fn tell(session: &ssh2::Session) {
    tracing::info!("server: {}", session.banner().unwrap_or("no banner"));
    let methods = [
        ("key exchange", MethodType::Kex),
        ("host key", MethodType::HostKey),
        ("cipher to the server", MethodType::CryptCs),
        ("cipher from the server", MethodType::CryptSc),
        ("mac to the server", MethodType::MacCs),
        ("mac from the server", MethodType::MacSc),
    ];
    for (name, kind) in methods {
        tracing::info!("{name}: {}", session.methods(kind).unwrap_or("none"));
    }
}

fn said(error: ssh2::Error) -> Failure {
    let text = error.message();
    match error.code() {
        ErrorCode::Session(code) => Failure(format!("libssh2: {text} ({code})")),
        ErrorCode::SFTP(_) => Failure(format!("libssh2: {text}")),
    }
}

/// Whether something that does not block has to be called again.
fn is_later(error: &ssh2::Error) -> bool {
    error.code() == ErrorCode::Session(raw::LIBSSH2_ERROR_EAGAIN)
}

/// Whether a session waits until its socket takes more.
fn wants_write(session: &ssh2::Session) -> bool {
    let directions = session.block_directions();
    matches!(directions, BlockDirections::Outbound | BlockDirections::Both)
}

struct Connection {
    session: ssh2::Session,
    integrity: Integrity,
    /// A channel whose command is not yet started.
    opened: Option<ssh2::Channel>,
    early: Early,
    agent: PathBuf,
    verbose: bool,
    banner_shown: bool,
}

impl Connection {
    /// Sorts a server's no from a connection that has ended.
    fn reply(&self, method: &str, result: Result<(), ssh2::Error>) -> Result<Reply, Failure> {
        self.integrity.check()?;
        let reply = match result {
            Ok(()) if self.session.authenticated() => Ok(Reply::Accepted),
            Ok(()) => Ok(Reply::Partial),
            // Whatever code it has, there was no answer.
            Err(error) if error.message().starts_with("Waiting for") => Err(said(error)),
            Err(error) => match error.code() {
                ErrorCode::Session(
                    raw::LIBSSH2_ERROR_SOCKET_DISCONNECT
                    | raw::LIBSSH2_ERROR_SOCKET_RECV
                    | raw::LIBSSH2_ERROR_SOCKET_SEND
                    | raw::LIBSSH2_ERROR_SOCKET_TIMEOUT
                    | raw::LIBSSH2_ERROR_TIMEOUT
                    | raw::LIBSSH2_ERROR_PROTO
                    | raw::LIBSSH2_ERROR_ALLOC,
                ) => Err(said(error)),
                _ => {
                    tracing::debug!("{method}: {error}");
                    Ok(Reply::Refused)
                }
            },
        };
        if self.verbose {
            tracing::info!("{method}: {reply:?}");
        }
        reply
    }
}

impl Session for Connection {
    fn host_key(&mut self) -> Result<Vec<u8>, Failure> {
        let key = self.session.host_key().map(|(key, _)| key.to_vec());
        key.ok_or_else(|| Failure("libssh2 shows no host key".into()))
    }

    fn banner(&mut self) -> Option<String> {
        let banner = self.session.userauth_banner().ok().flatten().map(str::to_owned);
        banner.filter(|_| !std::mem::replace(&mut self.banner_shown, true))
    }

    fn methods(&mut self, user: &str) -> Result<Option<Vec<String>>, Failure> {
        let methods = self.session.auth_methods(user);
        self.integrity.check()?;
        let methods = methods.map_err(said)?;
        let methods = methods.split(',').map(str::to_owned).collect();
        // The question is an attempt to log in with nothing, and that may be enough.
        Ok(Some(methods).filter(|_| !self.session.authenticated()))
    }

    fn public_key(
        &mut self,
        user: &str,
        key: &Secret,
        certificate: Option<&str>,
    ) -> Result<Reply, Failure> {
        let session = self.session.clone();
        let result =
            self.sign_in(|| session.userauth_pubkey_memory(user, certificate, key.expose(), None))?;
        self.reply("public key", result)
    }

    fn agent(&mut self, user: &str) -> Result<Reply, Failure> {
        let mut agent = self.session.agent().map_err(said)?;
        agent.set_identity_path(&self.agent).map_err(said)?;
        agent.connect().map_err(said)?;
        agent.list_identities().map_err(said)?;
        let Some(identity) = agent.identities().map_err(said)?.into_iter().next() else {
            return Ok(Reply::Refused);
        };
        let result = self.sign_in(|| agent.userauth(user, &identity))?;
        self.reply("agent", result)
    }

    fn password(&mut self, user: &str, password: &Secret) -> Result<Reply, Failure> {
        let result = self.session.userauth_password(user, password.expose());
        self.reply("password", result)
    }

    fn keyboard_interactive(
        &mut self,
        user: &str,
        answer: &mut Answer<'_>,
    ) -> Result<Reply, Failure> {
        let result = questions::answer(&self.session, user, answer);
        self.reply("keyboard-interactive", result)
    }

    fn open(&mut self, target: &Target) -> Result<Option<Box<dyn Stream>>, Failure> {
        self.integrity.check()?;
        if !self.take_back() {
            return Ok(None);
        }
        let opened = match (self.opened.take(), target) {
            (Some(channel), _) => Ok(channel),
            (None, Target::Command(_)) => self.session.channel_session(),
            (None, Target::Address(host, port)) => {
                self.session.channel_direct_tcpip(host, *port, None)
            }
        };
        let mut channel = match opened {
            Err(error) if is_later(&error) => return Ok(None),
            opened => opened.map_err(said)?,
        };
        if let Target::Command(command) = target {
            match channel.exec(command) {
                Err(error) if is_later(&error) => {
                    self.opened = Some(channel);
                    return Ok(None);
                }
                started => started.map_err(said)?,
            }
        }
        let integrity = self.integrity.clone();
        Ok(Some(Box::new(Channel { channel, integrity })))
    }

    fn set_blocking(&mut self, blocking: bool) {
        self.session.set_blocking(blocking);
    }

    fn wants_write(&self) -> bool {
        wants_write(&self.session)
    }
}

struct Channel {
    channel: ssh2::Channel,
    integrity: Integrity,
}

fn broken(error: &std::io::Error) -> Failure {
    Failure(format!("libssh2: {error}"))
}

impl Stream for Channel {
    fn read(&mut self, buffer: &mut [u8], errors: bool) -> Result<Read, Failure> {
        let stream = i32::from(errors);
        let read = self.channel.stream(stream).read(buffer);
        self.integrity.check()?;
        match read {
            Ok(0) => Ok(Read::End),
            Ok(count) => Ok(Read::Bytes(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Read::Later),
            Err(error) => Err(broken(&error)),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Failure> {
        match self.channel.write(data) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(broken(&error)),
        }
    }

    fn finish(&mut self) -> Result<bool, Failure> {
        match self.channel.send_eof() {
            Ok(()) => Ok(true),
            Err(error) if is_later(&error) => Ok(false),
            Err(error) => Err(said(error)),
        }
    }

    fn ending(&mut self) -> Option<String> {
        let signal = self.channel.exit_signal().ok().and_then(|it| it.exit_signal);
        match signal {
            Some(signal) => Some(format!("signal {signal}")),
            None => self.channel.exit_status().ok().map(|status| format!("status {status}")),
        }
    }
}
