//! What the manager answers to each request.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use distant_plugin_api::message::{LogLevel, Notice};
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{ErrorKind, LaunchError};
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channels::{self, Channels};
use super::connections::Connections;
use super::line::Places;
use super::offers::Ways;
use super::questions::Questions;
use super::requester::{extension, Requester, Session};
use super::tickets::Tickets;
use super::upload::Programs;
use super::{connect, kill, launch, Limits};
use crate::plugin::{self, Registry};
use crate::wire::channel;
use crate::wire::envelope::Request;
use crate::wire::message::{ManagerRequest, ManagerResponse, PROTOCOL_VERSION};
use crate::wire::server::{Peer, Reply, Service};

/// The words of a 0.20 manager for a connection that is not there.
const NO_CONNECTION: &str = "No connection found";

/// All that a manager has.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) registry: Registry,
    pub(super) limits: Limits,
    pub(super) connections: Connections,
    pub(super) channels: Channels,
    pub(super) questions: Questions,
    pub(super) tickets: Arc<Tickets>,
    /// What launches have wanted to bring elsewhere.
    pub(super) programs: Programs,
    pub(super) ways: Ways,
    /// Launches that may still run beside the others.
    pub(super) places: Places,
    /// Fires when the manager ends: no launch and no connection begins any more.
    pub(super) ending: CancellationToken,
    stop_wanted: CancellationToken,
    stopped: CancellationToken,
    /// Clients that are connected.
    clients: TaskTracker,
    /// Clients that wait to hear that the manager has ended.
    waiting: TaskTracker,
    pub(super) launches: TaskTracker,
}

impl Manager {
    /// Makes a manager that has nothing yet.
    pub(super) fn new(plugins: plugin::Settings, limits: Limits) -> Self {
        Self {
            registry: Registry::new(plugins),
            connections: Connections::default(),
            channels: Channels::default(),
            questions: Questions::default(),
            tickets: Arc::new(Tickets::new()),
            programs: Programs::default(),
            ways: Ways::default(),
            places: Places::new(limits.launches),
            ending: CancellationToken::new(),
            stop_wanted: CancellationToken::new(),
            stopped: CancellationToken::new(),
            clients: TaskTracker::new(),
            waiting: TaskTracker::new(),
            launches: TaskTracker::new(),
            limits,
        }
    }

    /// Waits until a client wants the manager to end.
    pub(super) async fn stop_wanted(&self) {
        self.stop_wanted.cancelled().await;
    }

    /// Waits until no client is connected.
    pub(super) async fn clients_gone(&self) {
        self.clients.close();
        self.clients.wait().await;
    }

    /// Ends all launches, and all servers that they started, within the limit for that.
    pub(super) async fn end(&self) {
        self.ending.cancel();
        self.launches.close();
        let ended = async {
            let servers = self.connections.remove_all();
            let all = servers.iter().map(|connection| kill::end(connection, self.limits.kill));
            futures::future::join_all(all).await;
            self.launches.wait().await;
            self.registry.workers_gone().await;
        };
        if tokio::time::timeout(self.limits.kill, ended).await.is_err() {
            tracing::warn!("not everything ended in time");
        }
    }

    /// Tells those who wanted it that the manager has ended, as far as they listen.
    pub(super) async fn say_stopped(&self) {
        self.stopped.cancel();
        self.waiting.close();
        if tokio::time::timeout(self.limits.kill, self.waiting.wait()).await.is_err() {
            tracing::warn!("a client that ended the manager does not take what it is told");
        }
    }

    /// Ends the manager for a client, which hears of it when it is done.
    fn stop(self: Arc<Self>, requester: Requester) -> Result<(), String> {
        let own = rustix::process::geteuid().as_raw();
        if ![own, 0].contains(&requester.session.uid) {
            return Err("only the manager's own user can stop it".to_owned());
        }
        let token = self.waiting.token();
        tokio::spawn(async move {
            self.stop_wanted.cancel();
            self.stopped.cancelled().await;
            requester.tell(&version()).await;
            drop(token);
        });
        Ok(())
    }

    fn launch(
        self: &Arc<Self>,
        requester: Requester,
        destination: Secret,
        options: Secret,
    ) -> Result<(), LaunchError> {
        let permit = Arc::clone(&requester.session.pending).try_acquire_owned().map_err(|_| {
            let message = format!("this client has {} launches already", self.limits.pending);
            LaunchError::new(ErrorKind::Other, message)
        })?;
        let launch = launch::run(Arc::clone(self), requester.clone(), destination, options, permit);
        self.launches.spawn(answered(requester, launch));
        Ok(())
    }

    fn kill(self: Arc<Self>, requester: Requester, id: u32) -> Result<(), String> {
        let connection = self.connections.remove(id).ok_or(NO_CONNECTION)?;
        if kill::has_to_wait(&connection) {
            let limit = self.limits.kill.as_secs_f64();
            let text = format!("the server cannot be reached now; it is waited for {limit} s");
            requester.notice(Notice { level: LogLevel::Warn, text });
        }
        tokio::spawn(async move {
            let response = match kill::end(&connection, self.limits.kill).await {
                Ok(()) => ManagerResponse::Killed,
                Err(error) => {
                    let description = format!("connection {id} is dropped, but {error}");
                    ManagerResponse::Error { description }
                }
            };
            requester.tell(&response).await;
        });
        Ok(())
    }

    /// Answers a request, or sets going what will. The error is for the client.
    async fn answer(
        self: Arc<Self>,
        requester: Requester,
        request: ManagerRequest,
    ) -> Result<Option<ManagerResponse>, Failure> {
        let client = requester.session.connection;
        Ok(match request {
            ManagerRequest::Version => {
                if requester.extension.as_ref().is_some_and(|it| it.stop) {
                    self.stop(requester)?;
                    None
                } else {
                    Some(version())
                }
            }
            ManagerRequest::Launch { destination, options } => {
                self.launch(requester, destination, options)?;
                None
            }
            ManagerRequest::Connect { destination, options } => {
                let connect = connect::run(self, requester.clone(), destination, options);
                tokio::spawn(answered(requester, connect));
                None
            }
            ManagerRequest::Authenticate { id, msg } => {
                match requester.extension.as_ref().is_some_and(|it| it.unanswered) {
                    true => self.questions.cancel(client, id)?,
                    false => self.questions.answer(client, id, msg)?,
                }
                None
            }
            ManagerRequest::OpenChannel { id } => {
                channels::open(&self, requester, id).await?;
                None
            }
            ManagerRequest::Channel { id, request } => {
                self.channels.send(&requester.session, id, request.into()).await?;
                None
            }
            ManagerRequest::CloseChannel { id } => {
                self.channels.close(client, id)?;
                Some(ManagerResponse::ChannelClosed { id })
            }
            ManagerRequest::Info { id } => {
                let connection = self.connections.get(id).ok_or(NO_CONNECTION.to_owned())?;
                Some(ManagerResponse::Info(connection.info()))
            }
            ManagerRequest::Kill { id } => {
                self.kill(requester, id)?;
                None
            }
            ManagerRequest::List => Some(ManagerResponse::List(self.connections.list())),
        })
    }
}

/// Why a request was not carried out.
#[derive(Debug)]
struct Failure(LaunchError);

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self(error)
    }
}

impl From<String> for Failure {
    fn from(description: String) -> Self {
        Self(LaunchError::new(ErrorKind::Other, description))
    }
}

/// Sees to it that a request gets its answer even if what should give it panics.
async fn answered(requester: Requester, answer: impl Future<Output = ()>) {
    if AssertUnwindSafe(answer).catch_unwind().await.is_err() {
        let message = "the manager failed to handle the request";
        requester.fail(&LaunchError::new(ErrorKind::Other, message)).await;
    }
}

fn version() -> ManagerResponse {
    let [major, minor, patch] = PROTOCOL_VERSION;
    ManagerResponse::Version { version: format!("{major}.{minor}.{patch}") }
}

/// The wire's view of a manager: a handle on it.
#[derive(Debug, Clone)]
pub(super) struct Requests(pub(super) Arc<Manager>);

#[async_trait]
impl Service for Requests {
    type Session = Session;

    fn admit(&self) -> Result<(), String> {
        match self.0.ending.is_cancelled() {
            true => Err("the manager is about to end".to_owned()),
            false => Ok(()),
        }
    }

    fn open(&self, connection: u32, peer: &Peer) -> Session {
        let limits = &self.0.limits;
        let uid = match peer {
            Peer::Unix { uid, .. } => *uid,
            // Nobody comes this way; if one did, no ticket would be theirs.
            Peer::Tcp(_) => u32::MAX,
        };
        Session {
            connection,
            uid,
            present: Mutex::new(Some(self.0.clients.token())),
            gone: CancellationToken::new(),
            pending: Arc::new(Semaphore::new(limits.pending)),
            channels: Arc::new(Semaphore::new(limits.channels)),
            backlog: Arc::new(Semaphore::new(limits.backlog)),
        }
    }

    fn closed(&self, session: &Session) {
        session.gone.cancel();
        drop(session.present.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    async fn handle(&self, session: Arc<Session>, request: Request, reply: Reply) {
        let extension = extension(&request.header).map(Arc::new);
        let requester = Requester { session, extension, reply, since: Instant::now() };
        if let Some(parsed) = channel::parse_request(&request.payload) {
            let failure = match parsed {
                // In the order of arrival, up to its first wait: see `Service::handle`.
                Ok((id, request)) => self.0.channels.send(&requester.session, id, request).await,
                Err(error) => return requester.fail(&invalid(&error.to_string())).await,
            };
            if let Err(description) = failure {
                let error = LaunchError::new(ErrorKind::Other, description);
                requester.fail(&error).await;
            }
            return;
        }
        let request = match request.parse::<ManagerRequest>() {
            Ok(request) => request,
            Err(error) => return requester.fail(&invalid(&error.to_string())).await,
        };
        match Arc::clone(&self.0).answer(requester.clone(), request).await {
            Ok(Some(response)) => requester.tell(&response).await,
            Ok(None) => {}
            Err(Failure(error)) => requester.fail(&error).await,
        }
    }

    fn malformed(&self, reason: &str) -> Vec<u8> {
        let description = invalid(reason).one_line().into_owned();
        rmp_serde::to_vec_named(&ManagerResponse::Error { description }).unwrap_or_default()
    }
}

fn invalid(reason: &str) -> LaunchError {
    LaunchError::new(ErrorKind::Other, "the request is invalid").caused_by(reason)
}
