//! How a client sets a connection up: in as few round trips as the other end's answers allow.
//!
//! A server says its version and its offer as soon as it is reached, and what a client wants does
//! not depend on them. So the client sends its choice and its half of the key exchange at once, and
//! everything else with the key that comes of it: the credential before it is asked for, the second
//! key exchange, the first request. Released servers read all that as if it had come bit by bit.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use distant_plugin_api::secret::Secret;

use super::{Authenticator, ClientOptions, ConnectError, Credential};
use crate::wire::frame::{Codec, CompressionLevel, CompressionType, EncryptionType};
use crate::wire::handshake::{
    check_version, unpack, Choice, Connect, Counters, Exchange, ExchangeHalf, Offer, Purpose, Role,
    SharedKey, Transcript, METHOD_KEY, METHOD_NONE, METHOD_PROOF, VERSION_LENGTH,
};
use crate::wire::message::{Authentication, AuthenticationResponse};
use crate::wire::outbox::Outbox;
use crate::wire::stream::{Socket, Stream};
use crate::wire::{pack, Told, FRAME_MAX};

/// Bytes of a frame from a server that is not known yet.
const UNKNOWN: usize = 64 * 1024;

/// A connection that was set up.
pub(in crate::wire) struct Established<S> {
    pub(in crate::wire) stream: Stream<S>,
    pub(in crate::wire) identity: Identity,
}

/// What makes it the same connection over another TCP connection.
pub(in crate::wire) struct Identity {
    pub(in crate::wire) id: u32,
    /// The one-time password; before it, the one whose successor the server may not have got.
    pub(in crate::wire) passwords: Vec<SharedKey>,
    /// Whether the passwords are proved instead of sent.
    pub(in crate::wire) is_proved: bool,
    /// Whether the server is of our kind: it offers the proof.
    pub(in crate::wire) is_ours: bool,
}

/// How far a set-up is, to tell what an end of the stream means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The other end has not said a word yet.
    First,
    Hello,
    Credential,
    Done,
}

/// Turns what went wrong while talking into what it means for the caller.
pub(super) fn explain(stage: Stage, error: io::Error) -> ConnectError {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ended =
        matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
    match (stage, error.kind()) {
        (_, io::ErrorKind::InvalidData) => ConnectError::Protocol { reason: error.to_string() },
        (Stage::Credential, _) if ended => ConnectError::Rejected {
            reason: "the server closed the connection instead of taking the key".to_owned(),
        },
        (Stage::First, _) if ended => ConnectError::Closed,
        _ if ended => ConnectError::Protocol {
            reason: "it closed the connection before it had said what it is".to_owned(),
        },
        _ => ConnectError::Io { source: error },
    }
}

/// What is still to come of a server whose first words are known.
struct Awaited<'a> {
    told: &'a Told,
    codec: Codec,
}

impl Awaited<'_> {
    /// Reads them, and what follows them as it is encrypted.
    async fn hear<S: Socket>(self, stream: &mut Stream<S>) -> Result<(), ConnectError> {
        let failed = |error| explain(Stage::Hello, error);
        let version: [u8; VERSION_LENGTH] = stream.raw().await.map_err(failed)?;
        let is_known = version == self.told.version
            && stream.expect().await.map_err(failed)? == self.told.offer
            && stream.expect().await.map_err(failed)? == self.told.half;
        if !is_known {
            let reason = "it does not say what it was to say first".to_owned();
            return Err(ConnectError::Protocol { reason });
        }
        stream.hear(self.codec);
        Ok(())
    }
}

/// Puts the first flight to a server whose first words are known; what is put next is encrypted.
fn greet_as_told<'a, S: Socket>(
    stream: &mut Stream<S>,
    told: &'a Told,
) -> Result<(Transcript, Awaited<'a>), ConnectError> {
    let failed = |error| explain(Stage::Hello, error);
    let exchange = Exchange::new();
    let (choice, half) = (choose(None), pack(&exchange.half()));
    stream.writing.put_message(&choice);
    stream.writing.put(&half);
    let theirs: ExchangeHalf = unpack(&told.half).map_err(failed)?;
    let key = exchange.finish(&theirs).map_err(failed)?;
    let mut transcript = Transcript::default();
    for piece in [&told.version[..], &told.offer, &pack(&choice), &half, &told.half] {
        transcript.add(piece);
    }
    let codec = Codec::new(Some(key.expose()), choice.compression());
    stream.say(codec.clone());
    Ok((transcript, Awaited { told, codec }))
}

/// The first flight: what this client wants, and the key exchange.
///
/// Returns what both said, for proofs; the frames are encrypted from here on.
async fn greet<S: Socket>(
    stream: &mut Stream<S>,
    compression: Option<(CompressionType, CompressionLevel)>,
    is_new: bool,
) -> Result<Transcript, ConnectError> {
    let failed = |error| explain(Stage::Hello, error);
    let exchange = Exchange::new();
    let half = pack(&exchange.half());
    let mut choice = choose(compression);
    // Only a wish for compression depends on the offer.
    if compression.is_none() {
        let put = put_choice(stream, &choice, &half).await;
        put.map_err(|error| explain(Stage::First, error))?;
    }
    let version: Result<[u8; VERSION_LENGTH], _> = stream.raw().await;
    let version = version.map_err(|error| match stream.reading.is_empty() {
        true => explain(Stage::First, error),
        false => failed(error),
    })?;
    if is_new {
        check_version(&version).map_err(|version| ConnectError::Incompatible { version })?;
    }
    let offer_bytes = stream.expect().await.map_err(failed)?;
    let offer: Offer = unpack(&offer_bytes).map_err(failed)?;
    if !offer.encryption_types.contains(&EncryptionType::XChaCha20Poly1305) {
        return Err(ConnectError::Protocol { reason: "it offers no encryption".to_owned() });
    }
    if let Some((kind, _)) = compression {
        if !offer.compression_types.contains(&kind) {
            choice = choose(None);
        }
        put_choice(stream, &choice, &half).await.map_err(failed)?;
    }
    let their_bytes = stream.expect().await.map_err(failed)?;
    let theirs: ExchangeHalf = unpack(&their_bytes).map_err(failed)?;
    let key = exchange.finish(&theirs).map_err(failed)?;
    let mut transcript = Transcript::default();
    for piece in [&version[..], &offer_bytes, &pack(&choice), &half, &their_bytes] {
        transcript.add(piece);
    }
    stream.switch(Codec::new(Some(key.expose()), choice.compression()));
    Ok(transcript)
}

fn choose(compression: Option<(CompressionType, CompressionLevel)>) -> Choice {
    Choice {
        compression_level: compression.map(|(_, level)| level),
        compression_type: compression.map(|(kind, _)| kind),
        encryption_type: Some(EncryptionType::XChaCha20Poly1305),
    }
}

async fn put_choice<S: Socket>(
    stream: &mut Stream<S>,
    choice: &Choice,
    half: &[u8],
) -> io::Result<()> {
    stream.writing.put_message(choice);
    stream.writing.put(half);
    stream.writing.flush().await
}

/// Sets a new connection up; `first` goes along as the first request.
///
/// # Errors
///
/// See [`ConnectError`].
pub(in crate::wire) async fn establish<S: Socket>(
    socket: S,
    options: &ClientOptions,
    authenticator: &mut dyn Authenticator,
    first: Option<&Bytes>,
) -> Result<Established<S>, ConnectError> {
    let mut stream = Stream::new(socket, UNKNOWN);
    let told = options.told.as_ref().filter(|_| options.compression.is_none());
    let (transcript, awaited) = match (told, &options.credential) {
        (Some(told), Credential::Proof(_)) => {
            let (transcript, awaited) = greet_as_told(&mut stream, told)?;
            (transcript, Some(awaited))
        }
        _ => (greet(&mut stream, options.compression, true).await?, None),
    };
    let (method, answer) = match &options.credential {
        Credential::None => (METHOD_NONE, None),
        Credential::Key(key) => (METHOD_KEY, Some(key.expose_hex())),
        Credential::Proof(key) => {
            let proof = transcript.prove(Purpose::Connect(key), Role::Client);
            (METHOD_PROOF, Some(Secret::new(hex::encode(proof))))
        }
    };
    let exchange = Exchange::new();
    let writing = &mut stream.writing;
    writing.put_message(&Connect::New);
    writing.put_message(&AuthenticationResponse::Initialization { methods: vec![method.into()] });
    if let Some(answer) = answer {
        writing.put_message(&AuthenticationResponse::Challenge { answers: vec![answer] });
    }
    writing.put_message(&exchange.half());
    if let Some(first) = first {
        writing.put(first);
    }
    let failed = |error| explain(Stage::Credential, error);
    writing.flush().await.map_err(failed)?;
    if let Some(awaited) = awaited {
        awaited.hear(&mut stream).await?;
    }

    let id = stream.expect_message().await.map_err(failed)?;
    let is_ours =
        authenticate(&mut stream, method, &options.credential, &transcript, authenticator).await?;
    let failed = |error| explain(Stage::Done, error);
    let theirs = stream.expect_message().await.map_err(failed)?;
    let password = exchange.finish(&theirs).map_err(failed)?;
    stream.reading.set_limit(FRAME_MAX);
    stream.reading.counts_heartbeats = is_ours;
    let is_proved = method == METHOD_PROOF;
    let identity = Identity { id, passwords: vec![password], is_proved, is_ours };
    Ok(Established { stream, identity })
}

/// Follows the server's side of the authentication. Returns whether it is a server of our kind.
async fn authenticate<S: Socket>(
    stream: &mut Stream<S>,
    method: &str,
    credential: &Credential,
    transcript: &Transcript,
    authenticator: &mut dyn Authenticator,
) -> Result<bool, ConnectError> {
    let failed = |error| explain(Stage::Credential, error);
    let rejected = |reason: String| Err(ConnectError::Rejected { reason });
    let mut is_ours = false;
    let mut is_proven = false;
    loop {
        let message: Authentication = stream.expect_message().await.map_err(failed)?;
        if let Err(reason) = authenticator.see(&message).await {
            return rejected(reason);
        }
        match message {
            Authentication::Initialization { methods } => {
                is_ours = methods.iter().any(|offered| offered == METHOD_PROOF);
                if !methods.iter().any(|offered| offered == method) {
                    return rejected(format!("the server does not know the method `{method}`"));
                }
            }
            Authentication::Info { text } => {
                if let Credential::Proof(key) = credential {
                    let proof = hex::decode(text).unwrap_or_default();
                    if !transcript.verify(Purpose::Connect(key), Role::Server, &proof) {
                        break;
                    }
                    is_proven = true;
                }
            }
            Authentication::Error { kind, text } if kind == "fatal" => return rejected(text),
            Authentication::Finished => break,
            _ => {}
        }
    }
    if matches!(credential, Credential::Proof(_)) && !is_proven {
        return rejected("the server does not prove that it knows the key".to_owned());
    }
    Ok(is_ours)
}

/// Why a connection was not made again.
pub(super) enum ReconnectError {
    /// Not now; perhaps later.
    Failed(ConnectError),
    /// The server does not want to know about it.
    Refused,
    /// It makes no sense any more.
    Final(String),
}

/// Takes a connection up again over another TCP connection.
///
/// `is_asked` becomes true once the server has been asked to.
pub(super) async fn resume<S: Socket>(
    socket: S,
    compression: Option<(CompressionType, CompressionLevel)>,
    identity: &mut Identity,
    password: usize,
    received: u64,
    outbox: &Outbox,
    is_asked: &mut bool,
) -> Result<Stream<S>, ReconnectError> {
    let mut stream = Stream::new(socket, UNKNOWN);
    let transcript =
        greet(&mut stream, compression, false).await.map_err(ReconnectError::Failed)?;
    let password = identity.passwords[password.min(identity.passwords.len() - 1)].clone();
    let purpose = Purpose::Reconnect(&password);
    let otp = match identity.is_proved {
        true => transcript.prove(purpose, Role::Client).to_vec(),
        false => password.expose().to_vec(),
    };
    let exchange = Exchange::new();
    stream.writing.put_message(&Connect::Reconnect { id: identity.id, otp });
    stream.writing.put_message(&exchange.half());
    if identity.is_ours {
        let (sent, available) = outbox.counters();
        stream.writing.put_message::<Counters>(&(sent, received, available));
    }
    let refused = |error| match explain(Stage::Credential, error) {
        ConnectError::Rejected { .. } => ReconnectError::Refused,
        other => ReconnectError::Failed(other),
    };
    *is_asked = true;
    stream.writing.flush().await.map_err(refused)?;
    if identity.is_proved {
        let proof = stream.expect().await.map_err(refused)?;
        if !transcript.verify(purpose, Role::Server, &proof) {
            return Err(ReconnectError::Failed(ConnectError::Rejected {
                reason: "the server does not prove that it knows the connection".to_owned(),
            }));
        }
    }
    let theirs = stream.expect_message().await.map_err(refused)?;
    let failed = |error| ReconnectError::Failed(explain(Stage::Done, error));
    let next = exchange.finish(&theirs).map_err(failed)?;
    let (their_sent, their_received, available): Counters =
        stream.expect_message().await.map_err(failed)?;
    // From here on the server may have dropped the old password, or not.
    identity.passwords = vec![next, password];
    if their_sent < received || their_sent - received > available {
        return Err(ReconnectError::Final("the server no longer has all its messages".to_owned()));
    }
    if !identity.is_ours {
        // A released server puts what is sent again while it compares counters into its buffer
        // where it happens to be, so it is told that there is nothing, and gets it as if it was new.
        stream.writing.put_message::<Counters>(&(their_received, received, 0));
        stream.writing.flush().await.map_err(failed)?;
    }
    outbox.resume(their_received).map_err(|lost| ReconnectError::Final(lost.to_string()))?;
    stream.reading.received = received;
    stream.reading.counts_heartbeats = identity.is_ours;
    stream.reading.set_limit(FRAME_MAX);
    Ok(stream)
}

/// Makes a TCP connection.
pub(super) async fn reach(address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
