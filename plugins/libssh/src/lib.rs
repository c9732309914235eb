//! `ssh://` with libssh.

mod trace;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{export_plugin, Caller, LaunchError, LaunchRequest, Manifest, Plugin};
use distant_ssh::backend::{
    Answer, Backend, Failure, NotOpened, Questions, Read, Reply, Session, Setup, Stream, Target,
};
use libssh_rs::{AuthMethods, AuthStatus, Error, LogLevel, SshKey, SshOption};
use rustix::fs::MemfdFlags;
use zeroize::Zeroizing;

/// Not AES-GCM: libssh 0.11.4, which libssh-rs brings along, does not check its tag, so that
/// anybody in between could change what goes through (CVE-2026-59847).
const CIPHERS: &str = "chacha20-poly1305@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr";

/// Longer than every limit of ours: those shut the socket, which ends a call at once.
const TIMEOUT: Duration = Duration::from_secs(600);

struct Libssh;

impl Plugin for Libssh {
    fn manifest(&self) -> Manifest {
        let description = "Launches distant servers over ssh, with libssh";
        distant_ssh::manifest(self.name(), env!("CARGO_PKG_VERSION"), description)
    }

    fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        distant_ssh::launch(self, request, caller)
    }
}

export_plugin!(Libssh);

impl Backend for Libssh {
    fn name(&self) -> &'static str {
        "libssh"
    }

    fn host_certificates(&self) -> bool {
        false
    }

    fn user_certificates(&self) -> bool {
        // It takes one only from an agent, which ours is for it.
        false
    }

    fn tells_partial(&self) -> bool {
        true
    }

    fn cannot_use(&self, _kind: &str) -> Option<&'static str> {
        None
    }

    fn open(&self, socket: OwnedFd, setup: &Setup<'_>) -> Result<Box<dyn Session>, NotOpened> {
        let session = libssh_rs::Session::new().map_err(said)?;
        let keys = setup.host_key_algorithms.join(",");
        let agent = setup.agent.display().to_string();
        // libssh closes it at some ends and forgets it at others, so nobody else may; the process
        // of a launch is short, and the connection itself is shut by its guard.
        let socket = socket.into_raw_fd();
        trace::listen(socket, setup.verbose);
        let options = [
            SshOption::LogLevel(LogLevel::Packet),
            SshOption::ProcessConfig(false),
            SshOption::Hostname(setup.host.to_owned()),
            SshOption::User(Some(setup.user.to_owned())),
            SshOption::Socket(socket),
            SshOption::HostKeys(keys),
            SshOption::CiphersCS(CIPHERS.to_owned()),
            SshOption::CiphersSC(CIPHERS.to_owned()),
            SshOption::IdentityAgent(Some(agent)),
            // Whom to trust is decided elsewhere; it would look into its own usual files.
            SshOption::KnownHosts(Some("/dev/null".to_owned())),
            SshOption::GlobalKnownHosts(Some("/dev/null".to_owned())),
            SshOption::Timeout(TIMEOUT),
        ];
        for option in options {
            session.set_option(option).map_err(said)?;
        }
        session.connect().map_err(|error| {
            let Failure(text) = said(error);
            if session.get_server_banner().is_err() {
                return NotOpened::HungUp(Failure(text));
            }
            // Only what the server offers names GCM here, as we never do.
            if text.contains("gcm@openssh.com") && text.contains("crypt") {
                return NotOpened::Failed(Failure(format!(
                    "the server wants AES-GCM, which this libssh does not check; \
                     `backend=ssh2` does ({text})"
                )));
            }
            NotOpened::Failed(Failure(text))
        })?;
        Ok(Box::new(Connection { opening: None, session, banner_shown: false }))
    }
}

fn said(error: Error) -> Failure {
    match error {
        Error::Fatal(text) | Error::RequestDenied(text) if text.is_empty() => {
            Failure("libssh: the connection ended".into())
        }
        Error::Fatal(text) | Error::RequestDenied(text) => Failure(format!("libssh: {text}")),
        other => Failure(format!("libssh: {other}")),
    }
}

struct Connection {
    /// A channel that is not yet ready, and whether it is open already. Dropped before the session.
    opening: Option<(libssh_rs::Channel, bool)>,
    session: libssh_rs::Session,
    banner_shown: bool,
}

impl Connection {
    fn reply(&self, result: Result<AuthStatus, Error>) -> Result<Reply, Failure> {
        match result {
            Ok(AuthStatus::Success) => Ok(Reply::Accepted),
            Ok(AuthStatus::Partial) => Ok(Reply::Partial),
            Ok(AuthStatus::Denied | AuthStatus::Info) => Ok(Reply::Refused),
            // It says so of a socket that was shut, too.
            Ok(AuthStatus::Again) => Err(Failure("libssh: the connection ended".into())),
            Err(_) if self.session.is_connected() => Ok(Reply::Refused),
            Err(error) => Err(said(error)),
        }
    }
}

impl Session for Connection {
    fn host_key(&mut self) -> Result<Vec<u8>, Failure> {
        // libssh-rs shows only hashes of the key, but it writes whole lines.
        let unreadable = |what: &dyn std::fmt::Display| Failure(format!("the host key: {what}"));
        let file = rustix::fs::memfd_create("host-key", MemfdFlags::CLOEXEC);
        let mut file = File::from(file.map_err(|error| unreadable(&error))?);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.session.set_option(SshOption::KnownHosts(Some(path))).map_err(said)?;
        self.session.update_known_hosts_file().map_err(said)?;
        let mut line = String::new();
        file.read_to_string(&mut line).map_err(|error| unreadable(&error))?;
        let key = line.split_whitespace().nth(2).and_then(|key| Base64::decode_vec(key).ok());
        key.ok_or_else(|| unreadable(&"libssh does not show it"))
    }

    fn banner(&mut self) -> Option<String> {
        let banner = self.session.get_issue_banner().ok()?;
        (!std::mem::replace(&mut self.banner_shown, true)).then_some(banner)
    }

    fn methods(&mut self, user: &str) -> Result<Option<Vec<String>>, Failure> {
        let mut methods = self.session.userauth_list(None).map_err(said)?;
        if methods.is_empty() {
            // Only an answer to an attempt tells them.
            tracing::debug!("asking for the methods of {user}");
            if self.reply(self.session.userauth_none(None))? == Reply::Accepted {
                return Ok(None);
            }
            methods = self.session.userauth_list(None).map_err(said)?;
        }
        let names = [
            (AuthMethods::PUBLIC_KEY, "publickey"),
            (AuthMethods::PASSWORD, "password"),
            (AuthMethods::INTERACTIVE, "keyboard-interactive"),
            (AuthMethods::HOST_BASED, "hostbased"),
            (AuthMethods::GSSAPI_MIC, "gssapi-with-mic"),
        ];
        let offered = names.into_iter().filter(|(method, _)| methods.contains(*method));
        Ok(Some(offered.map(|(_, name)| name.to_owned()).collect()))
    }

    fn public_key(
        &mut self,
        _user: &str,
        key: &Secret,
        _certificate: Option<&str>,
    ) -> Result<Reply, Failure> {
        let key = SshKey::from_privkey_base64(key.expose(), None).map_err(said)?;
        // Signed at once: asking first whether the key is welcome would cost a round trip.
        self.reply(self.session.userauth_publickey(None, &key))
    }

    fn agent(&mut self, _user: &str) -> Result<Reply, Failure> {
        self.reply(self.session.userauth_agent(None))
    }

    fn password(&mut self, _user: &str, password: &Secret) -> Result<Reply, Failure> {
        self.reply(self.session.userauth_password(None, Some(password.expose())))
    }

    fn keyboard_interactive(
        &mut self,
        _user: &str,
        answer: &mut Answer<'_>,
    ) -> Result<Reply, Failure> {
        loop {
            let status = self.session.userauth_keyboard_interactive(None, None);
            if !matches!(status, Ok(AuthStatus::Info)) {
                return self.reply(status);
            }
            let info = self.session.userauth_keyboard_interactive_info().map_err(said)?;
            let questions = Questions {
                name: info.name,
                instructions: info.instruction,
                prompts: info.prompts.into_iter().map(|it| (it.prompt, it.echo)).collect(),
            };
            let Some(answers) = answer(questions) else { return Ok(Reply::Refused) };
            let answers: Zeroizing<Vec<String>> =
                Zeroizing::new(answers.iter().map(|it| it.expose().to_owned()).collect());
            self.session.userauth_keyboard_interactive_set_answers(&answers).map_err(said)?;
        }
    }

    fn open(&mut self, target: &Target) -> Result<Option<Box<dyn Stream>>, Failure> {
        let (channel, mut is_open) = match self.opening.take() {
            Some(opening) => opening,
            None => (self.session.new_channel().map_err(said)?, false),
        };
        let outcome = match target {
            Target::Address(host, port) => channel.open_forward(host, *port, "127.0.0.1", 22),
            Target::Command(_) if !is_open => channel.open_session(),
            Target::Command(_) => Ok(()),
        };
        let outcome = match (outcome, target) {
            (Ok(()), Target::Command(command)) => {
                is_open = true;
                channel.request_exec(command)
            }
            (outcome, _) => outcome,
        };
        match outcome {
            Ok(()) => Ok(Some(Box::new(Channel { channel }))),
            Err(Error::TryAgain) => {
                self.opening = Some((channel, is_open));
                Ok(None)
            }
            Err(error) => Err(said(error)),
        }
    }

    fn set_blocking(&mut self, blocking: bool) {
        self.session.set_blocking(blocking);
    }

    fn wants_write(&self) -> bool {
        self.session.get_poll_state().1
    }
}

struct Channel {
    channel: libssh_rs::Channel,
}

impl Stream for Channel {
    fn read(&mut self, buffer: &mut [u8], errors: bool) -> Result<Read, Failure> {
        match self.channel.read_nonblocking(buffer, errors) {
            Ok(0) if self.channel.is_eof() || self.channel.is_closed() => Ok(Read::End),
            Ok(0) | Err(Error::TryAgain) => Ok(Read::Later),
            Ok(count) => Ok(Read::Bytes(count)),
            Err(error) => Err(said(error)),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Failure> {
        // With no room at the other end, the library would wait for some.
        let room = self.channel.window_size().min(data.len());
        if room == 0 {
            return Ok(0);
        }
        match self.channel.stdin().write(&data[..room]) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(Failure(format!("libssh: {error}"))),
        }
    }

    fn finish(&mut self) -> Result<bool, Failure> {
        match self.channel.send_eof() {
            Ok(()) => Ok(true),
            Err(Error::TryAgain) => Ok(false),
            Err(error) => Err(said(error)),
        }
    }

    fn ending(&mut self) -> Option<String> {
        if let Some(state) = self.channel.get_exit_signal() {
            return Some(format!("signal {}", state.signal_name.unwrap_or_default()));
        }
        // The question waits for an answer unless the server has closed the stream.
        let status = self.channel.is_closed().then(|| self.channel.get_exit_status())?;
        status.map(|status| format!("status {status}"))
    }
}
