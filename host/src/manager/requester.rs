//! The client behind a request that takes a while: a launch or a connect.
//!
//! Everything that such a request says to its client goes through here, so that what only our own
//! clients understand reaches nobody else, and a client that went away stops being asked.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use distant_plugin_api::message::{
    Answer, Ask, AskKind, Challenge, Log, LogLevel, Notice, Progress,
};
use distant_plugin_api::LaunchError;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::questions::{Expected, Given};
use super::service::Manager;
use crate::wire::message::{
    Authentication, AuthenticationQuestion, ClientExtension, Header, ManagerExtension,
    ManagerResponse, Step, Timing, EXTENSION,
};
use crate::wire::server::Reply;
use crate::wire::Closed;

/// What the manager keeps of one client's connection.
#[derive(Debug)]
pub(super) struct Session {
    /// The connection's number.
    pub(super) connection: u32,
    /// The user that the client runs as.
    pub(super) uid: u32,
    /// Counts this client among those that are connected, until it has gone.
    pub(super) present: Mutex<Option<TaskTrackerToken>>,
    /// Fires when the client has gone.
    pub(super) gone: CancellationToken,
    /// Launches and connects that may still be asked for.
    pub(super) pending: Arc<Semaphore>,
    /// Channels that may still be opened.
    pub(super) channels: Arc<Semaphore>,
    /// Bytes from servers that may still wait for this client.
    pub(super) backlog: Arc<Semaphore>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

/// The client behind one request.
#[derive(Debug, Clone)]
pub(super) struct Requester {
    pub(super) session: Arc<Session>,
    pub(super) extension: Option<Arc<ClientExtension>>,
    pub(super) reply: Reply,
    /// When the request came.
    pub(super) since: Instant,
}

/// Reads what our own clients put into a request's header.
pub(super) fn extension(header: &Header) -> Option<ClientExtension> {
    serde_json::from_value(header.get(EXTENSION)?.clone()).ok()
}

fn header(extension: &ManagerExtension) -> Header {
    let mut header = Header::new();
    match serde_json::to_value(extension) {
        Ok(value) => drop(header.insert(EXTENSION.to_owned(), value)),
        Err(error) => tracing::error!(%error, "an extension cannot be written"),
    }
    header
}

impl Requester {
    /// Replies to the request.
    pub(super) async fn reply(&self, response: &ManagerResponse) -> Result<(), Closed> {
        self.reply.send(response).await
    }

    /// Replies, if the client is still there.
    pub(super) async fn tell(&self, response: &ManagerResponse) {
        let _ = self.reply.send(response).await;
    }

    /// Replies, and waits until the client has that even if this manager is killed now.
    pub(super) async fn tell_for_sure(&self, response: &ManagerResponse) -> Result<(), Closed> {
        self.reply.send(response).await?;
        self.reply.flushed().await
    }

    /// Replies, and says why to a client that has a place for it.
    pub(super) async fn tell_because(
        &self,
        response: &ManagerResponse,
        reason: Option<LaunchError>,
    ) {
        let reason = reason.filter(|_| self.is_extended());
        let header = reason.map_or_else(Header::new, |it| header(&ManagerExtension::Error(it)));
        let _ = self.reply.send_with(header, response).await;
    }

    /// Tells why the request failed.
    pub(super) async fn fail(&self, error: &LaunchError) {
        let payload = ManagerResponse::Error { description: error.one_line().into_owned() };
        let header = match &self.extension {
            Some(_) => header(&ManagerExtension::Error(error.clone())),
            None => Header::new(),
        };
        let _ = self.reply.send_with(header, &payload).await;
    }

    /// Tells how far a launch is, if the client wants to know.
    pub(super) fn progress(&self, progress: Progress) {
        self.mention(ManagerExtension::Progress(progress), String::new());
    }

    /// Tells that a step of a launch begins now, if the client wants to know.
    pub(super) fn step(&self, step: Step) {
        self.step_at(step, Instant::now());
    }

    /// Tells when a step of a launch began, if the client wants to know.
    pub(super) fn step_at(&self, step: Step, begun: Instant) {
        if self.extension.as_ref().is_some_and(|it| it.timings) {
            let at = begun.saturating_duration_since(self.since).as_micros();
            let timing = Timing { step, at: at.try_into().unwrap_or(u64::MAX) };
            self.mention(ManagerExtension::Timing(timing), String::new());
        }
    }

    /// Shows the person a text, if the client can.
    pub(super) fn notice(&self, notice: Notice) {
        let text = notice.text.clone();
        self.mention(ManagerExtension::Notice(notice), text);
    }

    /// Passes a line of a plugin's log on, if the client can take it.
    pub(super) fn log(&self, log: Log) {
        let text = log.text.clone();
        self.mention(ManagerExtension::Log(log), text);
    }

    /// Whether the client gets more than 0.20 has a place for.
    pub(super) fn is_extended(&self) -> bool {
        self.extension.is_some()
    }

    /// A client that does not keep up misses this; what matters is in the reply that ends the
    /// request.
    fn mention(&self, extension: ManagerExtension, text: String) {
        if self.is_extended() {
            let msg = Authentication::Info { text };
            let payload = ManagerResponse::Authenticate { id: 0, msg };
            let _ = self.reply.try_send(header(&extension), &payload);
        }
    }

    /// Whether somebody is there to answer questions. A 0.20 client does not tell; it is asked.
    pub(super) fn is_interactive(&self) -> bool {
        self.extension.as_ref().is_none_or(|it| it.interactive)
    }

    /// Asks the client what a plugin wants to know. Dropping the future takes the question back.
    pub(super) async fn ask(&self, manager: &Manager, ask: Ask) -> Answer {
        let (id, given) = match ask.question {
            AskKind::Challenge(challenge) => {
                let expected = Expected::Texts(challenge.questions.len());
                (ask.id, self.put(manager, expected, challenge_message(challenge)).await)
            }
            AskKind::Verification(verification) => {
                let kind = if verification.kind == "host" { "host" } else { "unknown" };
                let text = verification.text;
                let msg = Authentication::Verification { kind: kind.to_owned(), text };
                (ask.id, self.put(manager, Expected::Validity, msg).await)
            }
            // Nobody could be asked that; the plugin knows what to do without an answer.
            _ => (ask.id, None),
        };
        let cancelled = given.is_none();
        match given {
            Some(Given::Texts(answers)) => {
                Answer { id, answers: Some(answers), valid: None, cancelled }
            }
            Some(Given::Validity(valid)) => {
                Answer { id, answers: None, valid: Some(valid), cancelled }
            }
            None => Answer { id, answers: None, valid: None, cancelled },
        }
    }

    /// Puts a question to the client; `None` if it stays without an answer.
    pub(super) async fn put(
        &self,
        manager: &Manager,
        expected: Expected,
        msg: Authentication,
    ) -> Option<Given> {
        if !self.is_interactive() {
            return None;
        }
        let mut question = manager.questions.open(self.session.connection, expected);
        let asked = ManagerResponse::Authenticate { id: question.id(), msg };
        let answered = async {
            let header = match self.is_extended() {
                true => header(&ManagerExtension::Question),
                false => Header::new(),
            };
            self.reply.send_with(header, &asked).await.ok()?;
            question.answered().await
        };
        tokio::select! {
            answer = tokio::time::timeout(manager.limits.question, answered) => match answer {
                Ok(answer) => answer,
                Err(_) => {
                    self.notice(Notice {
                        level: LogLevel::Warn,
                        text: format!("no answer within {:?}", manager.limits.question),
                    });
                    None
                }
            },
            () = self.session.gone.cancelled() => None,
        }
    }
}

/// Writes a challenge as it travels to a client.
pub(super) fn challenge_message(challenge: Challenge) -> Authentication {
    let questions = challenge.questions.into_iter().map(|question| AuthenticationQuestion {
        label: question.label,
        text: question.text,
        options: [("echo".to_owned(), question.echo.to_string())].into(),
    });
    Authentication::Challenge {
        questions: questions.collect(),
        options: [
            ("instructions".to_owned(), challenge.instructions),
            ("username".to_owned(), challenge.username),
        ]
        .into(),
    }
}
