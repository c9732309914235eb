//! `ssh://` with libssh2.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use distant_plugin_api::secret::Secret;
use distant_plugin_api::{export_plugin, Caller, LaunchError, LaunchRequest, Manifest, Plugin};
use distant_ssh::backend::{
    Answer, Backend, Failure, NotOpened, Questions, Read, Reply, Session, Setup, Stream,
};
// Its version is what matters: older ones let a server write into the heap before the login.
use libssh2_sys as raw;
use ssh2::{BlockDirections, ErrorCode, KeyboardInteractivePrompt, MethodType, Prompt};

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

    fn cannot_use(&self, kind: &str) -> Option<&'static str> {
        let is_rsa_certificate = kind.starts_with("ssh-rsa-cert");
        (kind.starts_with("sk-") || is_rsa_certificate)
            .then_some("libssh2 cannot use this kind from an agent; `backend=libssh` can")
    }

    fn open(&self, socket: OwnedFd, setup: &Setup<'_>) -> Result<Box<dyn Session>, NotOpened> {
        let mut session = ssh2::Session::new().map_err(said)?;
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
        let (agent, verbose) = (setup.agent.to_owned(), setup.verbose);
        Ok(Box::new(Connection { session, agent, verbose, banner_shown: false }))
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

struct Connection {
    session: ssh2::Session,
    agent: PathBuf,
    verbose: bool,
    banner_shown: bool,
}

impl Connection {
    /// Sorts a server's no from a connection that has ended.
    fn reply(&self, method: &str, result: Result<(), ssh2::Error>) -> Result<Reply, Failure> {
        let reply = match result {
            Ok(()) if self.session.authenticated() => Ok(Reply::Accepted),
            Ok(()) => Ok(Reply::Partial),
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
        let methods = self.session.auth_methods(user).map_err(said)?;
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
        let result = self.session.userauth_pubkey_memory(user, certificate, key.expose(), None);
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
        let result = agent.userauth(user, &identity);
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
        struct Asking<'a, 'b>(&'a mut Answer<'b>);
        impl KeyboardInteractivePrompt for Asking<'_, '_> {
            fn prompt(
                &mut self,
                name: &str,
                instructions: &str,
                prompts: &[Prompt<'_>],
            ) -> Vec<String> {
                let questions = Questions {
                    name: name.to_owned(),
                    instructions: instructions.to_owned(),
                    prompts: prompts.iter().map(|it| (it.text.to_string(), it.echo)).collect(),
                };
                let answers = (self.0)(questions).unwrap_or_default();
                answers.iter().map(|answer| answer.expose().to_owned()).collect()
            }
        }
        let result = self.session.userauth_keyboard_interactive(user, &mut Asking(answer));
        self.reply("keyboard-interactive", result)
    }

    fn exec(&mut self, command: &str) -> Result<Box<dyn Stream>, Failure> {
        let mut channel = self.session.channel_session().map_err(said)?;
        channel.exec(command).map_err(said)?;
        Ok(Box::new(Channel { channel }))
    }

    fn connect(&mut self, host: &str, port: u16) -> Result<Box<dyn Stream>, Failure> {
        let channel = self.session.channel_direct_tcpip(host, port, None).map_err(said)?;
        Ok(Box::new(Channel { channel }))
    }

    fn set_blocking(&mut self, blocking: bool) {
        self.session.set_blocking(blocking);
    }

    fn wants_write(&self) -> bool {
        let directions = self.session.block_directions();
        matches!(directions, BlockDirections::Outbound | BlockDirections::Both)
    }
}

struct Channel {
    channel: ssh2::Channel,
}

fn broken(error: &std::io::Error) -> Failure {
    Failure(format!("libssh2: {error}"))
}

impl Stream for Channel {
    fn read(&mut self, buffer: &mut [u8], errors: bool) -> Result<Read, Failure> {
        let stream = i32::from(errors);
        match self.channel.stream(stream).read(buffer) {
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
            Err(error) if error.code() == ErrorCode::Session(raw::LIBSSH2_ERROR_EAGAIN) => {
                Ok(false)
            }
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
