//! The vocabulary of a launch: every message between the host and a plugin.
//!
//! A message is one JSON object with a `type`. The same objects cross the C tables between worker
//! and library, the pipes between manager and worker, and the pipes between manager and an
//! executable plugin; there they are lines of at most [`MESSAGE_MAX`] bytes. Members that a
//! receiver does not know are ignored and kinds that it does not know become `Other`, so that
//! either side may be newer.
//!
//! # An executable plugin
//!
//! A program named `distant-plugin-NAME` writes [`PluginMessage`]s to its standard output and reads
//! [`HostMessage`]s from its standard input, one object a line. Standard error is for whatever else
//! it has to say. One launch, `>` being what it writes:
//!
//! ```text
//! > {"type":"hello","protocol":[1,1],"manifest":{"name":"mine","schemes":["mine"]}}
//! < {"type":"hello","protocol":1,"log_level":"info"}
//! < {"type":"launch","destination":"mine://box","options":{},"server":{"args":[],"bind":"ssh"},…}
//! > {"type":"progress","stage":"start"}
//! > {"type":"offer","id":1,"host":"10.0.0.7","port":8080,"key":"64 hexadecimal digits"}
//! < {"type":"verdict","id":1,"verdict":"connected"}
//! > {"type":"done"}
//! ```
//!
//! Instead of the launch its input may end: the host only wanted to know what it is, and it ends
//! too. The same end, or `cancel`, during a launch means that nobody wants it any more; what must
//! not be left behind has to go then. A launch that fails ends with `error` in place of `done`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::destination::Destination;
pub use crate::error::{ErrorKind, LaunchError};
pub use crate::manifest::Manifest;
use crate::options::Options;
use crate::secret::{Secret, SessionKey};

/// Versions of the message protocol that this build speaks, lowest and highest.
pub const PROTOCOL: [u32; 2] = [1, 1];

/// Most bytes of one message, its newline included.
pub const MESSAGE_MAX: usize = 1024 * 1024;

/// What a plugin sends to the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PluginMessage {
    /// The first message of a worker or an executable plugin.
    Hello(PluginHello),
    /// A question for the person; answered by [`HostMessage::Answer`].
    Ask(Ask),
    /// A started server; answered by [`HostMessage::Verdict`].
    Offer(Offer),
    /// Something the person should read, such as a banner.
    Notice(Notice),
    /// How far the launch is.
    Progress(Progress),
    /// A line for the log.
    Log(Log),
    /// The launch is over and the plugin holds nothing any more.
    Done,
    /// The launch failed, and nothing that it started is left.
    Error(LaunchError),
    /// A kind that this build does not know.
    #[serde(other)]
    Other,
}

/// What the host sends to a plugin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum HostMessage {
    /// The answer to the plugin's hello.
    Hello(HostHello),
    /// Starts the one launch of this process.
    Launch(Box<LaunchRequest>),
    /// The answer to an [`Ask`].
    Answer(Answer),
    /// The answer to an [`Offer`]; after `slow` another one follows for the same offer.
    Verdict(Verdict),
    /// Nobody wants the launch any more: let go of everything, kill the server, end.
    Cancel,
    /// A kind that this build does not know.
    #[serde(other)]
    Other,
}

/// A plugin introduces itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginHello {
    /// Lowest and highest version of the message protocol that it speaks.
    pub protocol: [u32; 2],
    /// What it is and what it can.
    pub manifest: Manifest,
}

/// The host introduces itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostHello {
    /// The version that both speak from now on.
    pub protocol: u32,
    /// What the host keeps of the plugin's log; the plugin need not send more.
    #[serde(default)]
    pub log_level: LogLevel,
}

/// One launch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchRequest {
    /// Where to launch.
    pub destination: Destination,
    /// The plugin's own options: plain keys, values checked, defaults filled in.
    #[serde(default)]
    pub options: Options,
    /// The server to start there.
    #[serde(default)]
    pub server: ServerCommand,
    /// Whether somebody is there to answer questions.
    #[serde(default)]
    pub interactive: bool,
    /// Of the client's environment: `SSH_AUTH_SOCK`, `LANG`, `HOME`, `USER`, as far as set.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The client's working folder, which relative paths in the options start from.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
}

/// The server that a launch starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCommand {
    /// The `distant` to run (`distant.bin`); `None` where nobody said, then a plugin looks in the
    /// places where one usually is. Plugins that launch on the host's own machine get an absolute path.
    #[serde(default)]
    pub program: Option<String>,
    /// Further arguments for `server listen` (`distant.args`), one word each.
    #[serde(default)]
    pub args: Vec<String>,
    /// The address to listen on (`distant.bind_server`).
    #[serde(default)]
    pub bind: BindServer,
}

/// Where a launched server listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum BindServer {
    /// On the address that the ssh connection came to. Without ssh it means that nobody said.
    #[default]
    Ssh,
    /// On every address.
    Any,
    /// On this address or name.
    Host(String),
}

impl fmt::Display for BindServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ssh => "ssh",
            Self::Any => "any",
            Self::Host(host) => host,
        })
    }
}

impl From<String> for BindServer {
    fn from(text: String) -> Self {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "ssh" => Self::Ssh,
            "any" => Self::Any,
            _ => Self::Host(text.trim().to_owned()),
        }
    }
}

impl From<BindServer> for String {
    fn from(bind: BindServer) -> Self {
        bind.to_string()
    }
}

/// A question with the id that its answer will have.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "AskFields")]
pub struct Ask {
    /// Chosen by the plugin, different for each ask of a launch.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub question: AskKind,
}

/// An ask as it is read: the members of every kind that this build knows.
#[derive(Deserialize)]
struct AskFields {
    id: u64,
    #[serde(default)]
    challenge: Option<Challenge>,
    #[serde(default)]
    verification: Option<Verification>,
}

impl From<AskFields> for Ask {
    fn from(AskFields { id, challenge, verification }: AskFields) -> Self {
        let verification = verification.map(AskKind::Verification);
        let question = challenge.map(AskKind::Challenge).or(verification);
        Self { id, question: question.unwrap_or(AskKind::Other) }
    }
}

/// The kinds of questions.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AskKind {
    /// Wants a text for each question, such as a password.
    Challenge(Challenge),
    /// Wants yes or no, such as for an unknown host key.
    Verification(Verification),
    /// A kind that this build does not know. It is answered as if nobody was there.
    #[serde(skip)]
    Other,
}

/// Questions that are asked together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// What to ask, in order; each has one answer.
    pub questions: Vec<Question>,
    /// Read before the questions; may be empty.
    #[serde(default)]
    pub instructions: String,
    /// Whom the answers are for; may be empty.
    #[serde(default)]
    pub username: String,
}

/// One question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What the person reads.
    pub text: String,
    /// A word for programs, such as `ssh-prompt`.
    #[serde(default)]
    pub label: String,
    /// Whether the answer may be seen while it is typed.
    #[serde(default)]
    pub echo: bool,
}

/// A question for yes or no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// A word for programs; `host` for a host key.
    pub kind: String,
    /// What the person reads.
    pub text: String,
}

/// What the person said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The ask's id.
    pub id: u64,
    /// To a challenge, one for each question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Vec<Secret>>,
    /// To a verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<bool>,
    /// There is nobody, or they would not say. The plugin ends with `authentication` or `host_key`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
}

/// A server was started and can be reached.
///
/// An offer that is repeated with the same id asks for its next verdict, which exists after `slow`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// Chosen by the plugin, different for each offer of a launch.
    pub id: u64,
    /// A name or address of the server that the host can connect to, without a port.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its key.
    pub key: SessionKey,
    /// Its process there, if known.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Whether it said `distant-server proof=1`: then the key is proved to it and never sent.
    #[serde(default)]
    pub proof: bool,
    /// How it is reached.
    #[serde(default)]
    pub via: Via,
}

/// How an offered server is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// Over the network.
    #[default]
    Direct,
    /// Through something the plugin holds open, for as long as it stays in `launch`.
    Tunnel,
}

/// What became of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The offer's id.
    pub id: u64,
    /// What became of it.
    #[serde(flatten)]
    pub result: VerdictKind,
}

/// What may become of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerdictKind {
    /// The host is connected and the launch has succeeded. Whatever the connection does not need
    /// may go.
    Connected {
        /// The offer that the connection goes by, where it is not this one: every open offer of
        /// a launch gets this verdict together.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<u64>,
    },
    /// No answer yet; the host goes on trying. A plugin with another way should offer it now.
    Slow,
    /// The server cannot be reached this way. A plugin may offer another one, or kills the server.
    Unreachable {
        /// Why, for people.
        reason: String,
    },
    /// Something answered that is not this server. The plugin kills the server.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// A result that this build does not know; it is treated as refused.
    #[serde(other)]
    Other,
}

/// Something that the person should read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// How much it matters.
    #[serde(default)]
    pub level: LogLevel,
    /// What to read; may have several lines.
    pub text: String,
}

/// How far a launch is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done now.
    pub stage: Stage,
    /// How much of it is done, such as bytes of an upload.
    #[serde(default)]
    pub done: u64,
    /// How much there is to do; 0 if that is not known.
    #[serde(default)]
    pub total: u64,
}

/// The stages of a launch, in their usual order; the first is the host's to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Waiting for other launches to end; `total` is how many wait before it.
    Wait,
    /// Finding out the address.
    Resolve,
    /// Opening the connection.
    Connect,
    /// Checking whom it leads to.
    HostKey,
    /// Logging in.
    Authenticate,
    /// Looking for a server program there.
    Probe,
    /// Bringing one there.
    Upload,
    /// Starting the server.
    Start,
    /// Connecting to the server.
    Offer,
    /// A stage that this build does not know.
    #[serde(other)]
    Other,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// How much it matters.
    #[serde(default)]
    pub level: LogLevel,
    /// Which part of the plugin says it.
    #[serde(default)]
    pub target: String,
    /// What it says. No secret may be in it.
    pub text: String,
}

/// How much a line of the log matters.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Nothing is kept.
    Off,
    /// Something failed.
    Error,
    /// Something may fail.
    Warn,
    /// Something happened.
    #[default]
    Info,
    /// How it happened.
    Debug,
    /// Everything. A level that this build does not know reads as this one.
    #[serde(other)]
    Trace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_yet_is_survived() {
        let other: PluginMessage = serde_json::from_str(r#"{"type":"dance","to":1}"#).unwrap();
        assert!(matches!(other, PluginMessage::Other));
        let text = r#"{"type":"verdict","id":1,"verdict":"postponed","until":3}"#;
        let HostMessage::Verdict(verdict) = serde_json::from_str(text).unwrap() else { panic!() };
        assert_eq!(verdict.result, VerdictKind::Other);
        let text = r#"{"type":"ask","id":7,"fingerprint":{"finger":2}}"#;
        let PluginMessage::Ask(ask) = serde_json::from_str(text).unwrap() else { panic!() };
        assert!(matches!(ask, Ask { id: 7, question: AskKind::Other }));
        let text = r#"{"type":"error","kind":"melted","message":"x","new":[]}"#;
        let PluginMessage::Error(error) = serde_json::from_str(text).unwrap() else { panic!() };
        assert_eq!(error.kind, ErrorKind::Other);
    }

    #[test]
    fn messages_have_the_documented_form() {
        let check = |message: &PluginMessage, expected: &str| {
            assert_eq!(serde_json::to_string(message).unwrap(), expected);
        };
        let verification = Verification { kind: "host".into(), text: "trust?".into() };
        check(
            &PluginMessage::Ask(Ask { id: 7, question: AskKind::Verification(verification) }),
            r#"{"type":"ask","id":7,"verification":{"kind":"host","text":"trust?"}}"#,
        );
        check(&PluginMessage::Done, r#"{"type":"done"}"#);
        let verdict = Verdict { id: 1, result: VerdictKind::Unreachable { reason: "x".into() } };
        assert_eq!(
            serde_json::to_string(&HostMessage::Verdict(verdict)).unwrap(),
            r#"{"type":"verdict","id":1,"verdict":"unreachable","reason":"x"}"#
        );
    }
}
