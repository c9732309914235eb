//! What answers the clients of a server: their requests go to files or processes.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use distant_protocol::{Error, ErrorKind, Msg, Request, Response};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::api::{encode, Files};
use super::caller::Caller;
use super::lifetime::Presence;
use super::process::{Processes, Wish};
use crate::wire::envelope;
use crate::wire::message::{ClientExtension, Header, EXTENSION};
use crate::wire::server::{Peer, Reply, Service};
use crate::wire::FRAME_MAX;

/// Requests of one batch that are worked on at the same time.
const BATCH: usize = 32;

/// What an envelope may add to its payload.
const ENVELOPE: usize = 64 * 1024;

/// Answers every client of a server.
pub(super) struct Answers {
    files: Files,
    pub(super) processes: Processes,
    presence: Presence,
    stop: CancellationToken,
}

impl Answers {
    /// Answers with what there is; counts clients in `presence` and fires `stop` when one wants
    /// the server to end.
    pub(super) fn new(
        files: Files,
        processes: Processes,
        presence: Presence,
        stop: CancellationToken,
    ) -> Self {
        Self { files, processes, presence, stop }
    }

    /// Answers a message: one request, or several of them.
    async fn answer(
        &self,
        caller: &Caller,
        message: Msg<Request>,
        header: &Header,
    ) -> Msg<Response> {
        match message {
            Msg::Single(Request::ProcStdin { id, data }) if extension(header).close_stdin => {
                let written = self.processes.write_last(id, data).await;
                Msg::Single(written.map_or_else(Response::from, |()| Response::Ok))
            }
            Msg::Single(request) => Msg::Single(self.answer_one(caller, request).await),
            Msg::Batch(requests) if header.get("sequence") == Some(&true.into()) => {
                let mut responses = Vec::new();
                let mut requests = requests.into_iter();
                for request in requests.by_ref() {
                    let response = self.answer_one(caller, request).await;
                    let failed = matches!(response, Response::Error(_));
                    responses.push(response);
                    if failed {
                        break;
                    }
                }
                responses.extend(requests.map(|_| skipped()));
                Msg::Batch(responses)
            }
            Msg::Batch(requests) => {
                let answers = requests.into_iter().map(|it| self.answer_one(caller, it));
                Msg::Batch(futures::stream::iter(answers).buffered(BATCH).collect().await)
            }
        }
    }

    /// Answers one request. Input for a process has its place in the line when this first waits.
    async fn answer_one(&self, caller: &Caller, request: Request) -> Response {
        let done = |result: io::Result<()>| result.map(|()| Response::Ok);
        let result = match request {
            Request::ProcSpawn { cmd, environment, current_dir, pty } => {
                let wish = Wish { command: cmd.into(), environment, current_dir, terminal: pty };
                let spawned = self.processes.spawn(caller, wish).await;
                spawned.map(|id| Response::ProcSpawned { id })
            }
            Request::ProcKill { id } => done(self.processes.kill(id)),
            Request::ProcStdin { id, data } => done(self.processes.write(id, data).await),
            Request::ProcResizePty { id, size } => done(self.processes.resize(id, &size)),
            request => Ok(self.files.answer(caller, request).await),
        };
        result.unwrap_or_else(Response::from)
    }
}

#[async_trait]
impl Service for Answers {
    /// The number of its connection.
    type Session = u32;

    fn open(&self, connection: u32, _: &Peer) -> u32 {
        connection
    }

    fn attached(&self, _: &u32) {
        self.presence.came();
    }

    fn detached(&self, _: &u32) {
        self.presence.left();
    }

    async fn handle(&self, connection: Arc<u32>, request: envelope::Request, reply: Reply) {
        let caller = Caller::new(*connection, reply);
        let _answering = caller.answering();
        let answer = match parse(&request) {
            Ok(message) => self.answer(&caller, message, &request.header).await,
            Err(error) => Msg::Single(Response::Error(error)),
        };
        // Nobody is left to be told.
        let _ = caller.send_bytes(fitting(&answer)).await;
        if extension(&request.header).stop {
            self.stop.cancel();
        }
    }

    fn malformed(&self, reason: &str) -> Vec<u8> {
        let description = format!("invalid request: {reason}");
        let error = Error { kind: ErrorKind::InvalidData, description };
        fitting(&Msg::Single(Response::Error(error))).into()
    }
}

fn skipped() -> Response {
    let description = "an earlier request of the sequence failed".to_owned();
    Response::Error(Error { kind: ErrorKind::Interrupted, description })
}

fn parse(request: &envelope::Request) -> Result<Msg<Request>, Error> {
    request.parse().map_err(|error| {
        // What fits neither form says nothing of why; the one that was meant does.
        let is_batch = matches!(request.payload.first(), Some(0x90..=0x9f | 0xdc | 0xdd));
        let reason = if is_batch {
            request.parse::<Vec<Request>>().err()
        } else {
            request.parse::<Request>().err()
        };
        Error { kind: ErrorKind::InvalidData, description: reason.unwrap_or(error).to_string() }
    })
}

/// Encodes an answer, or in its place why it cannot be sent.
fn fitting(answer: &Msg<Response>) -> Bytes {
    let refusal = match encode(answer) {
        Ok(bytes) if bytes.len() + ENVELOPE <= FRAME_MAX => return bytes,
        Ok(bytes) => format!(
            "the answer has {} bytes, and only {} fit into a message",
            bytes.len(),
            FRAME_MAX - ENVELOPE
        ),
        Err(error) => error.to_string(),
    };
    let refusal = Error { kind: ErrorKind::InvalidData, description: refusal };
    // A kind and a text can always be encoded.
    encode(&Msg::Single(Response::Error(refusal))).unwrap_or_default()
}

/// What only our own clients want.
fn extension(header: &Header) -> ClientExtension {
    let extension = header.get(EXTENSION).cloned();
    extension.and_then(|it| serde_json::from_value(it).ok()).unwrap_or_default()
}
