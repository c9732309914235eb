//! A command's connection to the manager: finding it, starting one if there is none, asking it.
//!
//! Whoever names a socket means that one. Otherwise the user's own manager comes first and then
//! the one for everybody; a command that needs a manager to do its work starts the user's own.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;

use super::arguments::Network;
use super::person::Person;
use super::{listen, logging, terminal, Context};
use crate::paths;
use crate::wire::client::{Authenticator, Client, ClientOptions, ConnectError, Replies, Status};
use crate::wire::envelope::{Request, Response};
use crate::wire::message::{
    Authentication, AuthenticationResponse, ClientExtension, ManagerExtension, ManagerRequest,
    ManagerResponse, EXTENSION,
};

/// Bytes of a socket's path: what the system's address holds, without the NUL at its end.
const SOCKET_PATH_MAX: usize = 107;

/// A connection to the manager. Dropping it cancels every launch that it waits for.
pub(crate) struct ManagerClient {
    client: Client,
    socket: PathBuf,
    extension: ClientExtension,
}

/// Whether a command does without a manager that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// One is started.
    Start,
    /// The command fails.
    Fail,
}

impl ManagerClient {
    /// Connects to the manager and goes through its authentication with `person`.
    ///
    /// # Errors
    ///
    /// `unreachable` if there is none or it does not answer, with where it was looked for.
    pub(crate) async fn connect(
        context: &Context,
        network: &Network,
        missing: Missing,
        person: &mut Person<'_>,
    ) -> Result<Self, LaunchError> {
        let found = find(context, network, missing).await?;
        person.greet(&found.messages).await?;
        let extension = ClientExtension {
            version: 1,
            interactive: person.is_there(),
            environment: paths::launch_environment(),
            // One that is no text has no place in a message; then no path is relative to it.
            cwd: std::env::current_dir().ok().filter(|cwd| cwd.to_str().is_some()),
            stop: false,
            timings: false,
            unanswered: false,
            close_stdin: false,
        };
        Ok(Self { client: found.client, socket: found.socket, extension })
    }

    /// Has the manager tell from now on when each step of a launch begins.
    pub(crate) fn want_timings(&mut self) {
        self.extension.timings = true;
    }

    /// Sends a request that may be replied to more than once.
    ///
    /// # Errors
    ///
    /// The manager is gone.
    pub(crate) async fn send(&self, request: &ManagerRequest) -> Result<Replies, LaunchError> {
        self.send_with(request, &self.extension).await
    }

    /// Sends a request that is written already.
    ///
    /// # Errors
    ///
    /// The manager is gone.
    pub(crate) async fn send_bytes(&self, payload: Bytes) -> Result<Replies, LaunchError> {
        self.send_envelope(Request { payload, ..Request::new(&()) }, &self.extension).await
    }

    async fn send_with(
        &self,
        request: &ManagerRequest,
        extension: &ClientExtension,
    ) -> Result<Replies, LaunchError> {
        self.send_envelope(Request::new(request), extension).await
    }

    async fn send_envelope(
        &self,
        mut envelope: Request,
        extension: &ClientExtension,
    ) -> Result<Replies, LaunchError> {
        let extension = serde_json::to_value(extension)
            .map_err(|error| terminal::from_error("cannot write a request", &error))?;
        envelope.header.insert(EXTENSION.to_owned(), extension);
        self.client.send(envelope).await.map_err(|_| gone())
    }

    /// Tells the manager that nobody answers a question that it called
    /// [`ManagerExtension::Question`].
    ///
    /// # Errors
    ///
    /// The manager is gone.
    pub(crate) async fn send_unanswered(&self, id: u32) -> Result<(), LaunchError> {
        let extension = ClientExtension { unanswered: true, ..self.extension.clone() };
        let msg = AuthenticationResponse::Verification { valid: false };
        self.send_with(&ManagerRequest::Authenticate { id, msg }, &extension).await.map(drop)
    }

    /// Asks the manager to end; its version comes back when everything has ended.
    ///
    /// # Errors
    ///
    /// The manager is gone.
    pub(crate) async fn send_stop(&self) -> Result<Replies, LaunchError> {
        let extension = ClientExtension { stop: true, ..self.extension.clone() };
        self.send_with(&ManagerRequest::Version, &extension).await
    }

    /// Waits until the connection is over.
    pub(crate) async fn closed(&self) {
        let mut status = self.client.status();
        // An error means that nothing is left that could change it.
        let _ = status.wait_for(|status| matches!(status, Status::Closed { .. })).await;
    }

    /// The manager's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends a request and returns the one reply.
    ///
    /// # Errors
    ///
    /// What the manager says, or that it is gone.
    pub(crate) async fn ask(
        &self,
        request: &ManagerRequest,
    ) -> Result<ManagerResponse, LaunchError> {
        let mut replies = self.send(request).await?;
        let response = replies.next().await.ok_or_else(gone)?;
        read(&response)
    }
}

/// Reads a reply; an error of the manager becomes this side's.
///
/// # Errors
///
/// What the manager says, or that it says what nobody understands.
pub(crate) fn read(response: &Response) -> Result<ManagerResponse, LaunchError> {
    match response.parse() {
        Ok(ManagerResponse::Error { description }) => Err(match extension(response) {
            Some(ManagerExtension::Error(error)) => error,
            _ => LaunchError::new(ErrorKind::Other, description),
        }),
        Ok(reply) => Ok(reply),
        Err(error) => Err(terminal::from_error("the manager's reply makes no sense", &error)),
    }
}

/// What a manager of ours adds to a reply.
pub(crate) fn extension(response: &Response) -> Option<ManagerExtension> {
    serde_json::from_value(response.header.get(EXTENSION)?.clone()).ok()
}

/// Says that a reply does not belong to the request.
pub(crate) fn unexpected() -> LaunchError {
    LaunchError::new(ErrorKind::Other, "the manager replied with something else than was asked for")
}

/// Says that the manager has gone away.
pub(crate) fn gone() -> LaunchError {
    LaunchError::new(ErrorKind::Unreachable, "the connection to the manager was lost")
        .with_hint("its log may say why; `distant manager list` shows whether one is running")
}

struct Found {
    client: Client,
    socket: PathBuf,
    messages: Vec<Authentication>,
}

/// Why there is no connection over one socket.
enum Absent {
    /// Nobody listens there.
    Nobody(io::Error),
    /// This user may not use it.
    Denied(io::Error),
    /// Somebody does, or it is not for us; another socket would not be what was meant.
    Broken(LaunchError),
}

async fn find(
    context: &Context,
    network: &Network,
    missing: Missing,
) -> Result<Found, LaunchError> {
    if let Some(path) = &network.unix_socket {
        let path = paths::expand(path);
        return connect(&path).await.map_err(|absent| match absent {
            Absent::Broken(error) => error,
            Absent::Denied(reason) => unusable(&path, &reason),
            Absent::Nobody(reason) => {
                let message = format!("no manager listens on `{}`", path.display());
                let error = LaunchError::new(ErrorKind::Unreachable, message);
                let is_other = |it: fs::Metadata| !it.file_type().is_socket();
                if path.metadata().is_ok_and(is_other) {
                    return error.caused_by("it is no socket");
                }
                error.because(&reason).with_hint(format!(
                    "start one with `distant manager listen --daemon --unix-socket {}`",
                    path.display()
                ))
            }
        });
    }
    let sockets = [paths::user_socket(), paths::global_socket()];
    match first(&sockets).await {
        Ok(found) => Ok(found),
        Err(Absent::Broken(error)) => Err(error),
        Err(Absent::Denied(reason)) => Err(unusable(&sockets[0], &reason)),
        Err(Absent::Nobody(_)) if missing == Missing::Start => start(context, &sockets).await,
        Err(Absent::Nobody(_)) => {
            let places = sockets.map(|path| format!("nobody listens on `{}`", path.display()));
            let message = "no manager is running";
            let error = LaunchError::new(ErrorKind::Unreachable, message);
            Err(places.into_iter().fold(error, LaunchError::caused_by).with_hint(
                "`distant launch` starts one, and so does `distant manager listen --daemon --user`",
            ))
        }
    }
}

/// Connects to the first socket that somebody listens on.
async fn first(sockets: &[PathBuf; 2]) -> Result<Found, Absent> {
    if let Some(error) = foreign(&sockets[0]) {
        return Err(Absent::Broken(error));
    }
    match connect(&sockets[0]).await {
        // It may have got there just after that look. Nothing was told yet.
        Ok(found) => match found.client.peer_uid().and_then(|uid| strange(&sockets[0], uid)) {
            Some(error) => Err(Absent::Broken(error)),
            None => Ok(found),
        },
        Err(Absent::Nobody(_)) => match connect(&sockets[1]).await {
            // Others' manager is as good as none.
            Err(Absent::Denied(reason)) => Err(Absent::Nobody(reason)),
            found => found,
        },
        found => found,
    }
}

/// A user's socket may be in a folder that everybody writes to. One that somebody else has put
/// there would get this user's passwords.
fn foreign(socket: &Path) -> Option<LaunchError> {
    strange(socket, socket.symlink_metadata().ok()?.uid())
}

fn strange(socket: &Path, owner: u32) -> Option<LaunchError> {
    let own = rustix::process::getuid().as_raw();
    (owner != own && owner != 0).then(|| {
        let message =
            format!("the manager's socket `{}` belongs to somebody else", socket.display());
        LaunchError::new(ErrorKind::Unreachable, message)
            .caused_by(format!("its owner has the user id {owner}, this process has {own}"))
            .with_hint("name the socket with `--unix-socket` if it is the one you mean")
    })
}

async fn connect(path: &Path) -> Result<Found, Absent> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = Listener(Arc::clone(&heard));
    match Client::connect_unix(path, ClientOptions::unix(), listener).await {
        Ok(client) => {
            tracing::debug!("connected to the manager on `{}`", path.display());
            let messages =
                std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
            Ok(Found { client, socket: path.to_owned(), messages })
        }
        Err(ConnectError::Refused { source } | ConnectError::Io { source }) => {
            Err(absent(path, source))
        }
        Err(error) => Err(Absent::Broken(unusable(path, &error))),
    }
}

fn absent(path: &Path, error: io::Error) -> Absent {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotADirectory => Absent::Nobody(error),
        io::ErrorKind::PermissionDenied => Absent::Denied(error),
        _ => Absent::Broken(unusable(path, &error)),
    }
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> LaunchError {
    let message = format!("the manager on `{}` cannot be used", path.display());
    let unusable = LaunchError::new(ErrorKind::Unreachable, message);
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return unusable
            .caused_by(format!("the path of a socket has {SOCKET_PATH_MAX} bytes at most"))
            .with_hint("name a shorter one with `--unix-socket`, or in `$XDG_RUNTIME_DIR`");
    }
    unusable.because(error)
}

/// Starts the user's own manager, and connects to it or to one that somebody else has started
/// meanwhile.
async fn start(context: &Context, sockets: &[PathBuf; 2]) -> Result<Found, LaunchError> {
    tracing::info!("no manager is running; starting one on `{}`", sockets[0].display());
    let (socket, config) = (sockets[0].clone(), context.common.config.clone());
    let starting = tokio::task::spawn_blocking(move || listen::start_own(socket, config));
    let started = starting.await.unwrap_or_else(|error| {
        Err(terminal::from_error("the start of a manager was given up", &error))
    });
    match (first(sockets).await, started) {
        (Ok(found), _) => Ok(found),
        (Err(Absent::Broken(error)), Ok(_)) => Err(error),
        (Err(Absent::Nobody(reason) | Absent::Denied(reason)), Ok(_)) => {
            let message = "a manager was started but does not listen";
            Err(LaunchError::new(ErrorKind::Unreachable, message).because(&reason))
        }
        (Err(_), Err(reason)) => {
            let message = format!(
                "no manager is running on `{}`, and none could be started",
                sockets[0].display()
            );
            let mut error = LaunchError::new(reason.kind, message).caused_by(reason.message);
            error.causes.extend(reason.causes);
            let log = format!(
                "the manager's log is `{}`",
                logging::manager_file(&context.config).display()
            );
            Err(error.with_hint(reason.hint.map_or(log.clone(), |hint| format!("{hint}\n{log}"))))
        }
    }
}

/// Keeps what the manager says while the client authenticates.
struct Listener(Arc<Mutex<Vec<Authentication>>>);

#[async_trait]
impl Authenticator for Listener {
    async fn see(&mut self, message: &Authentication) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
        Ok(())
    }
}
