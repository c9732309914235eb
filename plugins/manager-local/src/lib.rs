//! `manager://`: a server on the manager's own machine, which ends with the manager.
//!
//! The server stays a child of the launch: [`Plugin::launch`] returns when it has ended. So it ends
//! when the launch is cancelled, and when this process or the manager dies in whatever way. It
//! listens on 127.0.0.1 unless told otherwise, and the destination's host is free text.

mod server;

use std::io;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use distant_plugin_api::bootstrap;
use distant_plugin_api::message::{BindServer, Offer, Stage, VerdictKind, Via};
use distant_plugin_api::{
    export_plugin, Caller, ErrorKind, LaunchError, LaunchRequest, Manifest, Plugin,
};

use rustix::io::Errno;
use server::{Event, Listening, NotListening, Server};

/// For a server to say how it is reached.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Arguments that a server of this plugin cannot have, and why.
const REFUSED: [(&str, &str); 2] = [
    ("--daemon", "a server of `manager://` ends with the manager, so it cannot be a daemon"),
    ("--key-from-stdin", "a server of `manager://` has nobody who would give it a key"),
];

/// Launches servers on this machine.
#[derive(Debug)]
struct ManagerLocal {
    start_limit: Duration,
}

impl Default for ManagerLocal {
    fn default() -> Self {
        Self { start_limit: START_LIMIT }
    }
}

export_plugin!(ManagerLocal::default());

impl Plugin for ManagerLocal {
    fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::new("manager-local", ["manager"]);
        manifest.version = env!("CARGO_PKG_VERSION").to_owned();
        manifest.description =
            "starts a server on the manager's own machine; it ends with the manager".to_owned();
        manifest
    }

    fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        let program = program(request)?;
        let command = command(program, request)?;
        caller.stage(Stage::Start)?;
        let mut server = Server::start(command).map_err(|e| not_run(program, &e))?;
        let listening = server
            .wait_listening(caller.cancel_fd(), Instant::now() + self.start_limit)
            .map_err(|why| self.not_listening(program, &server, why))?;
        caller.stage(Stage::Offer)?;
        offer(caller, &mut server, &listening)?;
        match server.wait_end(caller.cancel_fd()) {
            Ok(Event::Ended(status)) => {
                tracing::info!("the server is gone: {}", server::how(status))
            }
            Ok(Event::Cancelled) => tracing::debug!("the server is not wanted any more"),
            Err(error) => {
                return Err(
                    LaunchError::new(ErrorKind::Other, "cannot watch the server").because(&error)
                )
            }
        }
        Ok(())
    }
}

fn program(request: &LaunchRequest) -> Result<&str, LaunchError> {
    request.server.program.as_deref().ok_or_else(|| {
        LaunchError::new(ErrorKind::ServerNotFound, "no server program was named")
            .with_hint("name one with `--distant <PATH>`")
    })
}

fn command(program: &str, request: &LaunchRequest) -> Result<Command, LaunchError> {
    let arguments = &request.server.args;
    let given = |flag: &str| {
        arguments.iter().any(|it| {
            it.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    for (flag, reason) in REFUSED {
        if given(flag) {
            let message = format!("`distant.args` has `{flag}`");
            return Err(LaunchError::new(ErrorKind::InvalidOption, message).caused_by(reason));
        }
    }
    let mut command = Command::new(program);
    command.args(["server", "listen"]);
    if !given("--host") {
        let host = match &request.server.bind {
            BindServer::Ssh => "127.0.0.1",
            BindServer::Any => "any",
            BindServer::Host(host) => host,
        };
        command.args(["--host", host]);
    }
    if let Some(port) = request.destination.port.filter(|_| !given("--port")) {
        command.args(["--port", &port.to_string()]);
    }
    command.args(arguments);
    command.env("DISTANT_LAUNCH", "1").env("DISTANT_LIFELINE", "stdin");
    if let Some(folder) = request.cwd.as_ref().filter(|folder| folder.is_dir()) {
        command.current_dir(folder);
    }
    Ok(command)
}

/// Offers the server until the host is connected.
fn offer(caller: &Caller, server: &mut Server, listening: &Listening) -> Result<(), LaunchError> {
    let ip = match listening.line.address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "::1".to_owned(),
        ip => ip.to_string(),
    };
    let offer = Offer {
        id: caller.next_id(),
        host: ip,
        port: listening.line.address.port(),
        key: listening.line.key.clone(),
        pid: Some(server.pid()),
        proof: listening.proof,
        hello: None,
        via: Via::Direct,
    };
    let reason = loop {
        match caller.offer(&offer)? {
            VerdictKind::Connected { .. } => return Ok(()),
            // There is no other way to a server on this machine; the next verdict decides.
            VerdictKind::Slow => {}
            VerdictKind::Unreachable { reason } | VerdictKind::Refused { reason } => break reason,
            _ => break "the host does not want it".to_owned(),
        }
    };
    Err(match server.ended() {
        Some(status) => with_last_words(not_started("no server is left on this machine"), server)
            .caused_by(server::how(status)),
        None => {
            let message = format!("the server on `{}` cannot be used", listening.line.address);
            LaunchError::new(ErrorKind::PortUnreachable, message).caused_by(reason)
        }
    })
}

impl ManagerLocal {
    fn not_listening(&self, program: &str, server: &Server, why: NotListening) -> LaunchError {
        let error = not_started("no server started on this machine");
        let error = match why {
            NotListening::Cancelled => return LaunchError::cancelled(),
            NotListening::System(system) => return error.because(&system),
            NotListening::Ended(status) => {
                // The two by which a shell says that there is nothing to run.
                let kind = match status.code() {
                    Some(126 | 127) => ErrorKind::ServerNotFound,
                    _ => error.kind,
                };
                LaunchError { kind, ..error }
                    .caused_by(format!("`{program}`: {}", server::how(status)))
            }
            NotListening::Silenced => {
                error.caused_by(format!("`{program}` closed its output without a connect line"))
            }
            NotListening::TimedOut => error.caused_by(format!(
                "`{program}` printed no connect line within {:?}",
                self.start_limit
            )),
        };
        with_last_words(error, server)
    }
}

fn not_started(message: &str) -> LaunchError {
    LaunchError::new(ErrorKind::ServerNotStarted, message)
        .with_hint("run `distant server listen` by hand to see what it says")
}

/// Adds what the server said, a cause for each line.
fn with_last_words(error: LaunchError, server: &Server) -> LaunchError {
    bootstrap::with_last_words(error, server.last_words().iter().map(String::as_str))
}

fn not_run(program: &str, error: &io::Error) -> LaunchError {
    use io::ErrorKind::{InvalidInput, NotADirectory, NotFound, PermissionDenied};
    // A file of another format or machine has no kind of its own.
    let no_program =
        matches!(error.kind(), InvalidInput | NotADirectory | NotFound | PermissionDenied)
            || error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error());
    let kind = if no_program { ErrorKind::ServerNotFound } else { ErrorKind::ServerNotStarted };
    let error = LaunchError::new(kind, format!("cannot run `{program}`")).because(error);
    if no_program {
        error.with_hint("name a distant on this machine with `--distant <PATH>`")
    } else {
        error
    }
}

#[cfg(test)]
mod tests;
