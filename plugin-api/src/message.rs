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
//! < {"type":"launch","destination":"mine://box","options":{},"server":{"args":[],"bind":"ssh"}}
//! > {"type":"progress","stage":"start"}
//! > {"type":"offer","id":1,"host":"10.0.0.7","port":8080,"key":"00ff…"}
//! < {"type":"verdict","id":1,"verdict":"connected"}
//! > {"type":"done"}
//! ```
//!
//! The key has 64 hexadecimal digits; it is the one of the server's connect line. Questions are asked
//! in between, and what a person should know is told:
//!
//! ```text
//! > {"type":"ask","id":1,"challenge":{"questions":[{"text":"Token: ","echo":false}],"username":"me"}}
//! < {"type":"answer","id":1,"answers":["123456"]}
//! > {"type":"ask","id":2,"verification":{"kind":"host","text":"is this the right one?"}}
//! < {"type":"answer","id":2,"valid":true}
//! > {"type":"notice","level":"warn","text":"the machine is about to be restarted"}
//! > {"type":"progress","stage":"upload","done":1024,"total":4096}
//! > {"type":"log","level":"debug","target":"mine","text":"three tries left"}
//! > {"type":"error","kind":"unreachable","message":"no way to `box`","causes":["it is off"],"hint":"start it"}
//! ```
//!
//! Instead of the launch its input may end: the host only wanted to know what it is, and it ends
//! too. The same end, or `cancel`, during a launch means that nobody wants it any more; what must
//! not be left behind has to go then. A launch that fails ends with `error` in place of `done`.
//! Whatever the plugin does, two seconds after the end of its input it gets SIGTERM, and a second
//! later it and all that it has started in its process group are killed.
//!
//! # An executable plugin that runs commands
//!
//! One that can run a command there needs no more than that: with `"runs_commands":true` in its
//! manifest, the host finds and starts the server, offers it, and kills it if the launch fails, all
//! by one command. The plugin says which program of this machine runs that command there:
//!
//! ```text
//! > {"type":"hello","protocol":[1,1],"manifest":{"name":"pod","schemes":["pod"],"runs_commands":true}}
//! < {"type":"hello","protocol":1,"log_level":"info"}
//! < {"type":"launch","destination":"pod://box","options":{},"server":{"args":[],"bind":"ssh"}}
//! < {"type":"exec","id":1,"command":"sh -c '…'"}
//! > {"type":"run","id":1,"argv":["docker","exec","-i","box","sh","-c","{command}"]}
//! < {"type":"verdict","id":1,"verdict":"connected"}
//! ```
//!
//! `{command}` is replaced by the host, so a plugin need not read it. Before it answers `exec`, which
//! follows the launch at once, it may prepare, ask, tell and fail like any other; it offers nothing
//! and need not say `done`. In the end it gets the verdict `connected`, and the server lives on by
//! itself; or `cancel`, and there is none (any more). Then its input ends, and it has two seconds to
//! end too. With more members in its answer it says [how the server is reached](Run::address),
//! [how to tunnel](Run::forward), [how long to wait](Run::wait_ms) and [that the command has to
//! stay](Run::stays):
//!
//! ```text
//! > {"type":"run","id":1,"argv":["srun","-p","short","sh","-c","{command}"],"stays":true,"wait_ms":60000}
//! > {"type":"run","id":1,"argv":["ssh","box","{command}"],"address":"10.0.0.7"}
//! > {"type":"run","id":1,"argv":["kubectl","exec","-i","box","--","sh","-c","{command}"],"address":"none","forward":["kubectl","exec","-i","box","--","socat","-","TCP:{address}"]}
//! ```
//!
//! A whole one in the language of `/bin/sh`:
//!
//! ```sh
//! echo '{"type":"hello","protocol":[1,1],"manifest":{"name":"pod","schemes":["pod"],"runs_commands":true}}'
//! while read -r line; do
//!     case $line in
//!         '{"type":"launch"'*) name=${line#*'"destination":"pod://'}; name=${name%%'"'*} ;;
//!         '{"type":"exec"'*)
//!             echo '{"type":"run","id":1,"argv":["docker","exec","-i","'"$name"'","sh","-c","{command}"]}' ;;
//!     esac
//! done
//! ```
//!
//! What it relies on is promised: `type` is the first member of what the host sends, no blank is
//! outside of a text, and the id of `exec` is 1.

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
    /// The answer to [`HostMessage::Exec`].
    Run(Run),
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
    /// Wants to know how to run a command there; answered by [`PluginMessage::Run`]. Comes once, right
    /// after the launch, to an executable whose manifest says [`Manifest::runs_commands`].
    Exec(Exec),
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
    /// Of the client's environment: `SSH_AUTH_SOCK`, `KRB5CCNAME`, `LANG`, `HOME`, `USER`, as far as
    /// set.
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
    /// The program to bring there where none is (`distant.upload`); `None` where nobody wants that.
    /// A plugin that launches on the host's own machine needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
}

/// A program of the host's machine that may be brought to where the server is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Its file, as an absolute path.
    pub file: PathBuf,
    /// How many bytes it has.
    pub size: u64,
    /// Its SHA-256, as 64 hexadecimal digits.
    pub sha256: String,
    /// The system that it runs on, as `uname -s` says it there: `Linux`.
    pub system: String,
    /// The machine that it runs on, as `uname -m` says it there: `x86_64`.
    pub machine: String,
    /// Whether it is the one to run, even where another one is found, unless
    /// [`ServerCommand::program`] is.
    #[serde(default)]
    pub always: bool,
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
    /// What it said behind `distant-server hello=`, which saves its first client a round trip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello: Option<String>,
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

/// A command to run there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The id that the answer and the verdict have; 1.
    pub id: u64,
    /// One line for a login shell: `sh -c '…'`, without another `'` or anything else that a shell
    /// might touch.
    pub command: String,
}

/// How to run a command there.
///
/// The host starts `argv` as a child of its own: without a shell, `argv[0]` looked up in `PATH`, in a
/// process group of its own that ends with the launch. The command needs its standard input until
/// the launch is over, on which also a program arrives that is [brought](Upload) there: `docker exec`
/// wants `-i` for that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The id of [`Exec`].
    pub id: u64,
    /// The program and its arguments. `{command}` is replaced by [`Exec::command`] wherever it is in
    /// a word; where it is in none, the plugin has put the command in itself.
    pub argv: Vec<String>,
    /// The name or address that a server there is reached by. Without it, the address that the
    /// server says it listens on, or that its machine says it has, is taken; with `none` the server
    /// is reached through [`Run::forward`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// A program, and its arguments, whose standard input and output are one connection to an address
    /// as seen from there: `{host}`, `{port}`, or both as `{address}` (an IPv6 host in brackets) are
    /// replaced. The server is then reached through it where its port cannot be, and the launch
    /// lasts as long as that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<String>,
    /// The command has to stay for as long as the connection, as the server ends with it: so it is
    /// where a scheduler cleans up behind each command.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
    /// Milliseconds that the command may take until the server is ready, where something queues it;
    /// [`START_LIMIT`](crate::bootstrap::START_LIMIT) without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
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
    /// Waiting for a place to run, such as in a scheduler's queue. As long as this is the stage, the
    /// host does not count the time that it otherwise bounds; `wait_ms` does.
    Allocate,
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
        // A worker passes it on, as the manager is the one to answer.
        let again = serde_json::from_value(serde_json::to_value(&ask).unwrap()).unwrap();
        assert!(matches!(again, Ask { id: 7, question: AskKind::Other }));
        let text = r#"{"type":"error","kind":"melted","message":"x","new":[]}"#;
        let PluginMessage::Error(error) = serde_json::from_str(text).unwrap() else { panic!() };
        assert_eq!(error.kind, ErrorKind::Other);
    }

    /// The lines of the module's documentation that begin with a mark, of which a `…` stands for
    /// something longer.
    fn documented(mark: &str) -> Vec<String> {
        let lines = include_str!("message.rs").lines().filter_map(|it| it.strip_prefix("//! "));
        let marked = lines.filter_map(|it| it.strip_prefix(mark));
        marked.map(|it| it.replace("00ff…", &"00ff".repeat(16))).collect()
    }

    #[test]
    fn every_documented_line_is_a_message_with_all_its_members() {
        let check = |line: &str, read: Result<serde_json::Value, serde_json::Error>| {
            let read = read.unwrap_or_else(|error| panic!("{error}: {line}"));
            assert_ne!(read, serde_json::json!({"type":"other"}), "{line}");
            let given: serde_json::Value = serde_json::from_str(line).unwrap();
            for (name, value) in given.as_object().unwrap() {
                let known = &read[name.as_str()];
                assert!(known == value || known.is_object(), "`{name}` of {line} is {known}");
            }
        };
        let (mine, hosts) = (documented("> "), documented("< "));
        for line in &mine {
            let message = serde_json::from_str::<PluginMessage>(line);
            check(line, message.and_then(|it| serde_json::to_value(&it)));
        }
        for line in &hosts {
            let message = serde_json::from_str::<HostMessage>(line);
            check(line, message.and_then(|it| serde_json::to_value(&it)));
        }
        // Each kind is there, but for `cancel`, which has no members.
        for kind in ["hello", "ask", "offer", "notice", "run", "progress", "log", "done", "error"] {
            assert!(mine.iter().any(|it| it.contains(&format!("\"type\":\"{kind}\""))), "{kind}");
        }
        for kind in ["hello", "launch", "answer", "verdict", "exec"] {
            assert!(hosts.iter().any(|it| it.contains(&format!("\"type\":\"{kind}\""))), "{kind}");
        }
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
        let run = Run { id: 1, argv: vec!["sh".into()], ..Run::default() };
        check(&PluginMessage::Run(run), r#"{"type":"run","id":1,"argv":["sh"]}"#);
        let exec = Exec { id: 1, command: "true".into() };
        assert_eq!(
            serde_json::to_string(&HostMessage::Exec(exec)).unwrap(),
            r#"{"type":"exec","id":1,"command":"true"}"#
        );
        let verdict = Verdict { id: 1, result: VerdictKind::Unreachable { reason: "x".into() } };
        assert_eq!(
            serde_json::to_string(&HostMessage::Verdict(verdict)).unwrap(),
            r#"{"type":"verdict","id":1,"verdict":"unreachable","reason":"x"}"#
        );
    }
}
