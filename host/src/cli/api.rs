//! `distant api`: a server's protocol as JSON lines on the standard streams, for editors.
//!
//! A line is `{"id","payload"}`, a response `{"id","origin_id","payload"}`; either payload may be
//! a batch. A line that makes no sense, and a request that gets no response in time, are answered
//! with an error of their own; the next line counts again.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use distant_protocol as protocol;
use protocol::{Error, Msg, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::arguments::Api;
use super::channel::{self, Receiver, Sender};
use super::json::JsonInput;
use super::manager_client::{ManagerClient, Missing};
use super::person::Person;
use super::terminal::Terminal;
use super::{Context, Failure};
use crate::wire::message::{Header, UntypedResponse};

/// A request as a line has it.
#[derive(Deserialize)]
#[serde(expecting = "an object with `id` and `payload`")]
struct Line {
    #[serde(default)]
    header: Header,
    id: String,
    payload: Value,
}

/// A response as a line has it.
#[derive(Serialize)]
struct Reply {
    #[serde(skip_serializing_if = "Header::is_empty")]
    header: Header,
    id: String,
    origin_id: String,
    payload: Msg<Response>,
}

/// What the reading side tells the writing side.
enum Event {
    /// A request is on its way.
    Sent { id: String },
    /// A line was no request.
    Wrong { id: Option<String>, error: LaunchError },
}

/// Runs the command.
///
/// # Errors
///
/// There is no manager or connection, or it was lost.
pub(crate) fn run(arguments: &Api, context: &Context) -> Result<ExitCode, Failure> {
    let flag = &arguments.connection;
    let configured = context.config.client.api.timeout;
    let given = arguments.timeout.and_then(|it| Duration::try_from_secs_f64(it).ok());
    let timeout = given.or(configured).filter(|timeout| !timeout.is_zero());
    let network = context.client_network(&arguments.network);
    context.run(async {
        let mut person = Person::new(&context.terminal);
        let manager = ManagerClient::connect(context, &network, Missing::Fail, &mut person).await?;
        let connection = channel::connection(flag.connection, &flag.cache.cache)?;
        let (sender, receiver) = channel::open(&manager, connection).await?;
        let (events, heard) = mpsc::channel(1);
        let read = read_lines(person.into_input(), &sender, events);
        let write = write_lines(receiver, heard, timeout, &context.terminal);
        let result = {
            let (mut read, mut write) = (std::pin::pin!(read), std::pin::pin!(write));
            tokio::select! {
                // At the end of the input the responses that are under way are still written.
                result = &mut read => match result {
                    Ok(()) => write.await,
                    Err(error) => Err(error),
                },
                result = &mut write => result,
            }
        };
        sender.close().await;
        result?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn read_lines(
    mut input: JsonInput,
    sender: &Sender<'_>,
    events: mpsc::Sender<Event>,
) -> Result<(), LaunchError> {
    loop {
        let text = match input.text().await {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(()),
            Err(error) => {
                if events.send(Event::Wrong { id: None, error }).await.is_err() {
                    return Ok(());
                }
                continue;
            }
        };
        let event = match parse(&text) {
            Ok((header, id, payload)) => {
                let told = events.send(Event::Sent { id: id.clone() }).await;
                sender.send(header, id, &payload).await?;
                told
            }
            Err((id, error)) => events.send(Event::Wrong { id, error }).await,
        };
        if event.is_err() {
            return Ok(());
        }
    }
}

type Request = (Header, String, Msg<protocol::Request>);

/// Reads a line; where it is wrong, its id is still found if it has one.
fn parse(text: &str) -> Result<Request, (Option<String>, LaunchError)> {
    let wrong = |error: &serde_json::Error| {
        LaunchError::new(ErrorKind::InvalidOption, "a line of standard input is no request")
            .because(error)
    };
    let line: Line = match serde_json::from_str(text) {
        Ok(line) => line,
        Err(error) => {
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            let id = value.get("id").and_then(Value::as_str).map(str::to_owned);
            return Err((id, wrong(&error)));
        }
    };
    // Not as `Msg`, whose errors say only that nothing fits.
    let payload = match line.payload {
        Value::Array(batch) => {
            batch.into_iter().map(serde_json::from_value).collect::<Result<_, _>>().map(Msg::Batch)
        }
        single => serde_json::from_value(single).map(Msg::Single),
    };
    match payload {
        Ok(payload) => Ok((line.header, line.id, payload)),
        Err(error) => Err((Some(line.id), wrong(&error))),
    }
}

async fn write_lines(
    mut receiver: Receiver,
    mut events: mpsc::Receiver<Event>,
    timeout: Option<Duration>,
    terminal: &Terminal,
) -> Result<(), LaunchError> {
    // When each request that nothing was heard of yet is given up.
    let mut pending: HashMap<String, Option<Instant>> = HashMap::new();
    let mut reading = true;
    while reading || !pending.is_empty() {
        let next = pending.values().flatten().min().copied();
        let given_up = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // First what was sent: its response may be here already.
            biased;
            event = events.recv(), if reading => match event {
                Some(Event::Sent { id }) => {
                    pending.insert(id, timeout.and_then(|it| Instant::now().checked_add(it)));
                }
                Some(Event::Wrong { id: Some(id), error }) => {
                    let kind = protocol::ErrorKind::InvalidInput;
                    let reply = own_reply(id, kind, error.one_line().into_owned());
                    terminal.stream_json(&reply).await?;
                }
                Some(Event::Wrong { id: None, error }) => terminal.warn(&error.one_line()),
                None => reading = false,
            },
            response = receiver.next() => match response? {
                Some(response) => {
                    pending.remove(&response.origin_id);
                    terminal.stream_json(&reply(response)).await?;
                }
                None => {
                    let message = "the manager closed the channel";
                    return Err(LaunchError::new(ErrorKind::Unreachable, message));
                }
            },
            () = given_up => {
                let now = Instant::now();
                let late = |at: &Option<Instant>| at.is_some_and(|at| at <= now);
                let ids: Vec<_> =
                    pending.iter().filter(|(_, at)| late(at)).map(|(id, _)| id.clone()).collect();
                for id in ids {
                    pending.remove(&id);
                    let text = format!("no response within {:?}", timeout.unwrap_or_default());
                    let reply = own_reply(id, protocol::ErrorKind::TimedOut, text);
                    terminal.stream_json(&reply).await?;
                }
            }
        }
    }
    Ok(())
}

fn reply(response: UntypedResponse) -> Reply {
    match channel::parse(&response) {
        Ok(payload) => Reply {
            header: response.header,
            id: response.id,
            origin_id: response.origin_id,
            payload,
        },
        Err(error) => {
            let text = error.one_line().into_owned();
            own_reply(response.origin_id, protocol::ErrorKind::InvalidData, text)
        }
    }
}

fn own_reply(origin_id: String, kind: protocol::ErrorKind, description: String) -> Reply {
    Reply {
        header: Header::new(),
        id: rand::random::<u64>().to_string(),
        origin_id,
        payload: Msg::Single(Response::Error(Error { kind, description })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = match parse(text) {
            Ok((_, id, payload)) => format!("{id} {}", serde_json::to_string(&payload).unwrap()),
            Err((id, error)) => format!("{id:?} {}", error.one_line()),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn a_line_is_a_request_or_names_what_is_wrong() {
        check(r#"{"id":"1","payload":{"type":"version"}}"#, r#"1 {"type":"version"}"#);
        check(
            r#"{"id":"1","payload":[{"type":"version"},{"type":"system_info"}]}"#,
            r#"1 [{"type":"version"},{"type":"system_info"}]"#,
        );
        check(
            r#"{"id":"1","payload":{"type":"file_read","path":"/a"}}"#,
            r#"1 {"type":"file_read","path":"/a"}"#,
        );
        check(
            r#"{"id":"1","payload":{"type":"file_read"}}"#,
            r#"Some("1") a line of standard input is no request: missing field `path`"#,
        );
        check(
            r#"{"payload":{"type":"version"}}"#,
            "None a line of standard input is no request: missing field `id` at line 1 column 30",
        );
        check(
            "3",
            "None a line of standard input is no request: invalid type: integer `3`, expected an \
             object with `id` and `payload` at line 1 column 1",
        );
    }

    #[test]
    fn an_error_of_our_own_looks_like_a_servers() {
        let reply = own_reply("7".into(), protocol::ErrorKind::TimedOut, "late".into());
        let value = serde_json::to_value(&reply).unwrap();
        assert_eq!(value["origin_id"], "7");
        assert_eq!(
            value["payload"],
            serde_json::json!({ "type": "error", "kind": "timed_out", "description": "late" })
        );
    }
}
