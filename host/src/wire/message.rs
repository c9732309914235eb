//! What travels in the envelopes of the manager's socket, and the frames of authentication.
//!
//! Names, members and their order are those of distant 0.20, which refuses members that it does not
//! know. What 0.20 has no place for travels in the envelope's header: see [`ClientExtension`] and
//! [`ManagerExtension`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use distant_plugin_api::message::{Log, Notice, Progress, Stage};
use distant_plugin_api::secret::Secret;
use distant_plugin_api::LaunchError;
use serde::{Deserialize, Serialize};

/// The version that this end says it has; 0.20 clients take any 0.20.x from their own up.
pub const PROTOCOL_VERSION: [u64; 3] = [0, 20, 0];

/// A request to a manager.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ManagerRequest {
    /// Asks for the manager's version.
    Version,
    /// Starts a server. `destination` is text in the grammar of destinations, `options` in that of options.
    Launch {
        /// Where.
        destination: Secret,
        /// How.
        options: Secret,
    },
    /// Connects to a server, or redeems the ticket of a launch.
    Connect {
        /// Which, with the key or ticket as its password.
        destination: Secret,
        /// How.
        options: Secret,
    },
    /// Answers an [`ManagerResponse::Authenticate`].
    Authenticate {
        /// That one's id.
        id: u32,
        /// The answer.
        msg: AuthenticationResponse,
    },
    /// Opens a channel over a connection.
    OpenChannel {
        /// The connection.
        id: u32,
    },
    /// Sends a request to a server.
    Channel {
        /// The channel.
        id: u32,
        /// An envelope for the server.
        request: UntypedRequest,
    },
    /// Closes a channel.
    CloseChannel {
        /// The channel.
        id: u32,
    },
    /// Asks about one connection.
    Info {
        /// The connection.
        id: u32,
    },
    /// Ends one connection, and its server if a launch started it.
    Kill {
        /// The connection.
        id: u32,
    },
    /// Asks for all connections.
    List,
}

/// A manager's reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ManagerResponse {
    /// The manager's version.
    Version {
        /// `0.20.0`.
        version: String,
    },
    /// A server was started.
    Launched {
        /// Where it is, with a ticket as its password.
        destination: Secret,
    },
    /// A connection exists.
    Connected {
        /// Its id.
        id: u32,
    },
    /// Something for the person.
    Authenticate {
        /// What the answer has to name.
        id: u32,
        /// What to ask or show.
        msg: Authentication,
    },
    /// A channel exists.
    ChannelOpened {
        /// Its id.
        id: u32,
    },
    /// A server's reply.
    Channel {
        /// The channel.
        id: u32,
        /// The server's envelope.
        response: UntypedResponse,
    },
    /// A channel is closed.
    ChannelClosed {
        /// Its id.
        id: u32,
    },
    /// One connection.
    Info(ConnectionInfo),
    /// All connections: integer keys beside the `type`.
    List(ConnectionList),
    /// A connection was ended.
    Killed,
    /// The request failed.
    Error {
        /// Why, in one line.
        description: String,
    },
}

/// One connection of a manager.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Its id.
    pub id: u32,
    /// Where it leads, without a key.
    pub destination: String,
    /// The options it was made with, without secrets.
    pub options: String,
}

/// All connections of a manager: id and destination, without keys.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnectionList(pub BTreeMap<u32, String>);

/// An envelope for a server, its payload untouched.
///
/// Released programs write the bytes of both header and payload as lists of numbers. The functions
/// of [`super::channel`] do so too, and faster than serde.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UntypedRequest {
    /// May be empty.
    #[serde(default, with = "header_bytes", skip_serializing_if = "Header::is_empty")]
    pub header: Header,
    /// Chosen by the client.
    pub id: String,
    /// MessagePack.
    #[serde(with = "byte_list")]
    pub payload: Bytes,
}

/// An envelope from a server, its payload untouched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UntypedResponse {
    /// May be empty.
    #[serde(default, with = "header_bytes", skip_serializing_if = "Header::is_empty")]
    pub header: Header,
    /// Chosen by the server.
    pub id: String,
    /// The request's id.
    pub origin_id: String,
    /// MessagePack.
    #[serde(with = "byte_list")]
    pub payload: Bytes,
}

/// The members of an envelope's header.
pub type Header = serde_json::Map<String, serde_json::Value>;

/// What an authenticator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Authentication {
    /// Offers methods.
    #[serde(rename = "auth_initialization")]
    Initialization {
        /// Their names.
        methods: Vec<String>,
    },
    /// Starts one of the methods that were chosen.
    #[serde(rename = "auth_start_method")]
    StartMethod {
        /// Its name.
        method: String,
    },
    /// Asks for texts.
    #[serde(rename = "auth_challenge")]
    Challenge {
        /// One answer each.
        questions: Vec<AuthenticationQuestion>,
        /// `instructions` and `username`.
        options: BTreeMap<String, String>,
    },
    /// Asks for yes or no.
    #[serde(rename = "auth_verification")]
    Verification {
        /// `host`, or `unknown`.
        kind: String,
        /// What to ask.
        text: String,
    },
    /// Says something.
    #[serde(rename = "auth_info")]
    Info {
        /// What to show.
        text: String,
    },
    /// Says what is wrong.
    #[serde(rename = "auth_error")]
    Error {
        /// `fatal` or `error`.
        kind: String,
        /// Why.
        text: String,
    },
    /// The client is who it should be.
    #[serde(rename = "auth_finished")]
    Finished,
}

/// One question of a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthenticationQuestion {
    /// A word for programs.
    pub label: String,
    /// What to ask.
    pub text: String,
    /// `echo`: `true` or `false`.
    pub options: BTreeMap<String, String>,
}

/// What somebody answers to an authenticator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AuthenticationResponse {
    /// Chooses methods, the first first.
    #[serde(rename = "auth_initialization_response")]
    Initialization {
        /// Their names.
        methods: Vec<String>,
    },
    /// Answers a challenge.
    #[serde(rename = "auth_challenge_response")]
    Challenge {
        /// One for each question.
        answers: Vec<Secret>,
    },
    /// Answers a verification.
    #[serde(rename = "auth_verification_response")]
    Verification {
        /// Yes or no.
        valid: bool,
    },
}

/// What our own client puts into the header of a request, under the key `launcher`.
///
/// Only a client that did so gets [`ManagerExtension`]s.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ClientExtension {
    /// Version of the extensions: 1.
    pub version: u32,
    /// Whether somebody is there to answer questions; 0.20 clients count as if there was.
    #[serde(default)]
    pub interactive: bool,
    /// Of the client's environment what a plugin may see.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The client's working folder.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// Wanted from a server over its connection: that it ends. With the payload `{"type":"version"}`.
    #[serde(default)]
    pub stop: bool,
    /// Wanted of a launch: that the manager tells when each step of it began.
    #[serde(default)]
    pub timings: bool,
    /// With an `authenticate`: nobody answers, and what the payload says is only for a manager that
    /// does not know this. For questions that come with [`ManagerExtension::Question`].
    #[serde(default)]
    pub unanswered: bool,
    /// With a `proc_stdin` for a server: nothing follows its data, so the process sees the end of its
    /// input. A released server knows no such end and takes the data alone.
    #[serde(default)]
    pub close_stdin: bool,
}

/// What a manager of ours puts into the header of a response, under the key `launcher`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManagerExtension {
    /// How far a launch is; the payload is an `authenticate` with an `auth_info`.
    Progress(Progress),
    /// A text for the person; the payload is an `authenticate` with an `auth_info`.
    Notice(Notice),
    /// A line of the plugin's log (`verbose`); the payload is an `authenticate` with an `auth_info`.
    Log(Log),
    /// When a step of a launch began; the payload is an `authenticate` with an `auth_info`.
    Timing(Timing),
    /// A question that may stay unanswered; the payload is an `authenticate`.
    Question,
    /// Why a request failed, the payload being an `error`; or why a channel was closed, the payload
    /// being `channel_closed`.
    Error(LaunchError),
    /// A kind that this build does not know.
    #[serde(other)]
    Other,
}

/// When a step of a launch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The step.
    pub step: Step,
    /// Microseconds from the moment that the manager got the request.
    pub at: u64,
}

/// The steps of a launch that the manager times, in their usual order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Choosing the plugin and checking its options.
    Plan,
    /// Waiting for a place among the launches that run at the same time.
    Queue,
    /// Starting the worker.
    Worker,
    /// Waiting for its hello: the program starts and loads the plugin.
    Load,
    /// Handing it the launch.
    Request,
    /// Connecting to the server that was offered.
    Tcp,
    /// Showing it the key, up to its first answer.
    Proof,
    /// Giving the connection to the client.
    Ticket,
    /// A stage of the plugin, by its own name.
    #[serde(untagged)]
    Plugin(Stage),
}

/// The key of both extensions in a header.
pub const EXTENSION: &str = "launcher";

/// Bytes as a list of numbers; read also from MessagePack's own bytes.
mod byte_list {
    use std::fmt;

    use bytes::Bytes;
    use serde::de::{SeqAccess, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        struct Numbers;

        impl<'de> Visitor<'de> for Numbers {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, or a list of them")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::copy_from_slice(bytes))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element()? {
                    bytes.push(byte);
                }
                Ok(bytes.into())
            }
        }

        from.deserialize_any(Numbers)
    }
}

/// A header as the bytes of its MessagePack.
mod header_bytes {
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    use super::{byte_list, Header};

    pub(super) fn serialize<S: Serializer>(
        header: &Header,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        byte_list::serialize(&crate::wire::pack(header), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Header, D::Error> {
        let bytes = byte_list::deserialize(from)?;
        match bytes.is_empty() {
            true => Ok(Header::new()),
            false => crate::wire::unpack(&bytes).map_err(D::Error::custom),
        }
    }
}
