//! One ssh connection, from nothing to logged in: the target's, or one on the way to it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use distant_plugin_api::message::{LogLevel, Stage, Verification};
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{Caller, ErrorKind, LaunchError};

use crate::agent::Agent;
use crate::backend::{Backend, Failure, NotOpened, Session, Setup};
use crate::busy::Busy;
use crate::child::Proxy;
use crate::config::{Person, Settings, UnknownHost};
use crate::dial::dial;
use crate::exposed::Told;
use crate::guard::{system, Guard};
use crate::known_hosts::{self, KnownHosts, Verdict};
use crate::login::Login;
use crate::mux::Mux;
use crate::revoked::Revoked;

/// The limit of the key exchange.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);
/// The limit of the login, without the time that a person takes.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);

/// Most known keys of other kinds that a question names.
const OTHERS_MAX: usize = 3;

/// What became of one try.
enum Opened {
    Ready(Box<Hop>),
    HungUp(LaunchError),
}

/// A connection after the login. Dropping it ends it.
pub struct Hop {
    /// All that goes through it.
    pub mux: Mux,
    /// The address that it really goes to, unless it goes through something else.
    pub peer: Option<SocketAddr>,
    /// Dropped after the connection.
    _proxy: Option<Proxy>,
}

/// All that opening one needs.
pub struct Opening<'a> {
    /// The library.
    pub backend: &'a dyn Backend,
    /// Where to, and how.
    pub settings: &'a Settings,
    /// Whose files.
    pub person: &'a Person,
    /// The host.
    pub caller: &'a Caller,
    /// Whether the library's own trace goes to the log.
    pub verbose: bool,
    /// A password that was given with the destination.
    pub password: Option<&'a Secret>,
    /// Whether a command is run there, as at the end of the way.
    pub runs_command: bool,
    /// What the person was told already, on the way here.
    pub told: &'a Told,
}

impl Opening<'_> {
    /// Opens it, through the one before if there is one.
    ///
    /// # Errors
    ///
    /// Whatever went wrong on the way.
    pub fn open(&self, before: Option<&Hop>) -> Result<Hop, LaunchError> {
        self.caller.stage(Stage::Connect)?;
        let mut busy = Busy::default();
        loop {
            match self.open_once(before)? {
                Opened::Ready(hop) => return Ok(*hop),
                Opened::HungUp(error) => {
                    if !busy.try_again(&self.settings.place(), self.caller)? {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn open_once(&self, before: Option<&Hop>) -> Result<Opened, LaunchError> {
        let settings = self.settings;
        let (socket, peer, mut proxy) = match (before, &settings.proxy_command) {
            (Some(before), _) => (before.mux.connect(&settings.host, settings.port)?, None, None),
            (None, Some(command)) => {
                let (proxy, socket) = Proxy::start(command, &self.person.cwd)?;
                (socket, None, Some(proxy))
            }
            (None, None) => {
                let (socket, peer) = dial(settings, self.caller)?;
                (socket, Some(peer), None)
            }
        };
        let guard = Guard::new(&socket, self.caller)?;
        let kept = socket.try_clone().map_err(system)?;
        let mut hung_up = false;
        let session = self.log_in(socket, &guard, &mut hung_up).map_err(|error| match &mut proxy {
            Some(proxy) if error.kind == ErrorKind::Unreachable => {
                proxy.last_words().into_iter().fold(error, LaunchError::caused_by)
            }
            _ => error,
        });
        match session {
            Ok(session) => {
                guard.unlimited();
                let mux = Mux::start(session, kept, guard)?;
                Ok(Opened::Ready(Box::new(Hop { mux, peer, _proxy: proxy })))
            }
            Err(error) => {
                guard.shut();
                // Only a server hangs up for being busy; a proxy has its own reasons.
                let is_busy = hung_up && proxy.is_none() && error.kind == ErrorKind::Unreachable;
                if is_busy {
                    Ok(Opened::HungUp(error))
                } else {
                    Err(error)
                }
            }
        }
    }

    fn log_in(
        &self,
        socket: OwnedFd,
        guard: &Guard,
        hung_up: &mut bool,
    ) -> Result<Box<dyn Session>, LaunchError> {
        let settings = self.settings;
        let agent = Agent::new(settings.agent.clone())?;
        let files: Vec<_> =
            settings.known_hosts.iter().chain(&settings.global_known_hosts).cloned().collect();
        let known = KnownHosts::read(&files, &settings.ca_algorithms);
        let name = known_hosts::name(&settings.host, settings.port, settings.alias.as_deref());
        let setup = Setup {
            host: &settings.host,
            user: &settings.user,
            host_key_algorithms: &known.algorithms(&name, self.backend.host_certificates()),
            verbose: self.verbose,
            runs_command: self.runs_command,
            agent: &agent.path(),
        };
        guard.limit(HANDSHAKE_LIMIT);
        let opened = self.backend.open(socket, &setup);
        let mut session = opened.map_err(|error| {
            *hung_up = matches!(error, NotOpened::HungUp(_));
            let (NotOpened::HungUp(failure) | NotOpened::Failed(failure)) = error;
            self.failed(&failure, guard)
        })?;
        let outcome = self.check_and_log_in(&mut *session, &agent, guard, &known, &name);
        if outcome.is_err() {
            // A library that is dropped with something open would wait for the server.
            guard.shut();
        }
        outcome.map(|()| session)
    }

    fn check_and_log_in(
        &self,
        session: &mut dyn Session,
        agent: &Agent,
        guard: &Guard,
        known: &KnownHosts,
        name: &str,
    ) -> Result<(), LaunchError> {
        self.caller.stage(Stage::HostKey)?;
        let key = session.host_key().map_err(|failure| self.failed(&failure, guard))?;
        self.check_host(known, name, &key, guard)?;
        self.caller.stage(Stage::Authenticate)?;
        guard.limit(LOGIN_LIMIT);
        let (backend, caller, password) = (self.backend, self.caller, self.password);
        let (settings, told) = (self.settings, self.told);
        Login { backend, settings, agent, caller, guard, password, told }.run(session)
    }

    fn failed(&self, failure: &Failure, guard: &Guard) -> LaunchError {
        if self.caller.is_cancelled() {
            return LaunchError::cancelled();
        }
        let place = self.settings.place();
        if guard.is_late() {
            let message = format!("`{place}` does not speak ssh, or is too slow");
            return LaunchError::new(ErrorKind::TimedOut, message)
                .caused_by(format!("no key exchange within {} s", HANDSHAKE_LIMIT.as_secs()));
        }
        let other = if self.backend.name() == "ssh2" { "libssh" } else { "ssh2" };
        LaunchError::new(ErrorKind::Unreachable, format!("no ssh connection to `{place}`"))
            .because(failure)
            .with_hint(format!("if it is an ssh server, try `--options backend={other}`"))
    }

    fn check_host(
        &self,
        known: &KnownHosts,
        name: &str,
        key: &[u8],
        guard: &Guard,
    ) -> Result<(), LaunchError> {
        let place = self.settings.place();
        let fingerprint = known_hosts::fingerprint(key);
        let refuse = |message: String| Err(LaunchError::new(ErrorKind::HostKey, message));
        self.check_revoked(key)?;
        match known.check(name, key) {
            Verdict::Known => Ok(()),
            Verdict::Changed(at) => {
                let (file, line) = (at.file.display(), at.line);
                let message = format!("the host key of `{place}` is not the one that is known");
                refuse(message).map_err(|error| {
                    error
                        .caused_by(format!("{file}, line {line}, has another one"))
                        .caused_by(format!("the host shows {fingerprint}"))
                        .with_hint(format!(
                            "somebody may be in between. If the host was set up anew: \
                             `ssh-keygen -R {} -f {}`",
                            shell_words::quote(name),
                            shell_words::quote(&file.to_string()),
                        ))
                })
            }
            Verdict::Revoked(at) => {
                let (file, line) = (at.file.display(), at.line);
                refuse(format!("the host key of `{place}` is revoked")).map_err(|error| {
                    error
                        .caused_by(format!("{file}, line {line}, says so of {fingerprint}"))
                        .with_hint("somebody else may have this key: ask whoever runs the host")
                })
            }
            Verdict::BadCertificate(reason) => {
                refuse(format!("the certificate of `{place}` is not good"))
                    .map_err(|error| error.caused_by(reason))
            }
            Verdict::Unknown(others) => self.unknown_host(known, name, key, &others, guard),
        }
    }

    /// Refuses a key that the file of `RevokedHostKeys` names, and every key if it cannot be read.
    fn check_revoked(&self, key: &[u8]) -> Result<(), LaunchError> {
        let Some(file) = &self.settings.revoked else { return Ok(()) };
        let place = self.settings.place();
        let error = |message| LaunchError::new(ErrorKind::HostKey, message);
        match Revoked::read(file) {
            Ok(revoked) if !revoked.holds(key) => Ok(()),
            Ok(_) => Err(error(format!("the host key of `{place}` is revoked"))
                .caused_by(format!(
                    "{}, the `RevokedHostKeys`, says so of {}",
                    file.display(),
                    known_hosts::fingerprint(key)
                ))
                .with_hint("somebody else may have this key: ask whoever runs the host")),
            Err(reason) => Err(error(format!("whether `{place}` is revoked cannot be told"))
                .caused_by(format!("{}, the `RevokedHostKeys`: {reason}", file.display()))
                .with_hint(
                    "mend the file, or take `RevokedHostKeys` out of the ssh configuration",
                )),
        }
    }

    fn unknown_host(
        &self,
        known: &KnownHosts,
        name: &str,
        key: &[u8],
        others: &[(known_hosts::Place, String)],
        guard: &Guard,
    ) -> Result<(), LaunchError> {
        let place = self.settings.place();
        let message = format!("the host key of `{place}` is not known");
        let fingerprint = known_hosts::fingerprint(key);
        let kind = match known_hosts::kind(key).as_str() {
            "ssh-ed25519" => "Ed25519",
            "ssh-rsa" => "Rsa",
            "ecdsa-sha2-nistp256" => "Ecdsa256",
            "ecdsa-sha2-nistp384" => "Ecdsa384",
            "ecdsa-sha2-nistp521" => "Ecdsa521",
            _ => "Key",
        };
        let others: Vec<_> = others
            .iter()
            .take(OTHERS_MAX)
            .map(|(at, kind)| {
                let file = at.file.display();
                format!("only a key of another kind is known: {kind}, {file}, line {}", at.line)
            })
            .collect();
        let refused = || {
            let mut error = LaunchError::new(ErrorKind::HostKey, message.clone())
                .caused_by(format!("it shows the {kind} key {fingerprint}"));
            error = others.iter().cloned().fold(error, LaunchError::caused_by);
            if known.has_authority(name) && !self.backend.host_certificates() {
                error =
                    error.caused_by("its certificate is left out: only `backend=ssh2` reads it");
            }
            error.with_hint(
                "compare the fingerprint, and launch once at a terminal, where you can accept it",
            )
        };
        if known.has_authority(name) && !self.backend.host_certificates() {
            let text = format!("an authority is known for `{place}`: only `backend=ssh2` reads it");
            self.caller.notice(LogLevel::Warn, text)?;
        }
        match self.settings.unknown_host {
            UnknownHost::Refuse => {
                return Err(refused().caused_by("`StrictHostKeyChecking` is `yes`"));
            }
            UnknownHost::Accept => {
                let text = format!("accepted the {kind} host key {fingerprint} of {place}");
                self.caller.notice(LogLevel::Warn, text)?;
            }
            UnknownHost::Ask => {
                let others: String = others.iter().map(|other| format!("{other}\n")).collect();
                let text = format!(
                    "SSH host {place} is not yet trusted.\n{kind} Fingerprint: {fingerprint}\n\
                     {others}Trust and continue connecting?"
                );
                let question = Verification { kind: "host".into(), text };
                if !guard.while_asking(|| self.caller.verify(question))? {
                    return Err(refused().caused_by("nobody said that it is the right one"));
                }
            }
        }
        let Some(file) = self.settings.known_hosts.first() else { return Ok(()) };
        if let Err(error) = known_hosts::append(file, name, key, self.settings.hash_names) {
            let text = format!("the host key cannot be kept in {}: {error}", file.display());
            self.caller.notice(LogLevel::Warn, text)?;
        }
        Ok(())
    }
}
