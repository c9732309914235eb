//! How a connection of a server is set up: handshake, and authentication or reconnection.

use std::io;
use std::sync::Arc;

use distant_plugin_api::secret::SessionKey;
use tokio::sync::OwnedSemaphorePermit;

use super::connection::{Attachment, Connection};
use super::{Server, ServerOptions, Service, Verifier};
use crate::wire::frame::{Codec, CompressionType, EncryptionType};
use crate::wire::handshake::{
    offer, unpack, version, Choice, Connect, Counters, Exchange, ExchangeHalf, Purpose, Role,
    SharedKey, Transcript, METHOD_KEY, METHOD_NONE, METHOD_PROOF,
};
use crate::wire::message::{Authentication, AuthenticationQuestion, AuthenticationResponse};
use crate::wire::pack;
use crate::wire::stream::{Socket, Stream};

/// Bytes of a frame from a client that is not known yet.
const UNKNOWN: usize = 64 * 1024;

/// What a client has become.
pub(super) enum Client<S: Service> {
    New { id: u32, password: SharedKey, is_proved: bool, place: OwnedSemaphorePermit },
    Known { connection: Arc<Connection<S>>, attachment: Attachment },
}

fn refused(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason)
}

/// Sets a connection up. Whatever is wrong with the client ends in an error and a closed socket.
pub(super) async fn set_up<T: Socket, S: Service>(
    server: &Server<S>,
    socket: T,
) -> io::Result<(Stream<T>, Client<S>)> {
    let mut stream = Stream::new(socket, UNKNOWN);
    let Greeted { transcript, told } = greet(&mut stream, &server.options).await?;
    let client = match stream.expect_message().await? {
        Connect::New => {
            let id = unused_id(server);
            stream.writing.put_message(&id);
            let (method, last) =
                authenticate(&mut stream, &server.options.verifier, &transcript).await?;
            if let Some((hello, key)) = server.options.hello.as_ref().zip(told) {
                if !hello.take(key) {
                    return Err(refused("what another client has sent already"));
                }
            }
            // Not before the client has shown what it has to: nobody else is told anything.
            let place = match server.admit() {
                Ok(place) => place,
                Err(text) => {
                    let kind = "fatal".to_owned();
                    let error = Authentication::Error { kind, text: text.clone() };
                    stream.writing.put_message(&error);
                    stream.writing.flush().await?;
                    return Err(refused(&text));
                }
            };
            for message in last {
                stream.writing.put_message(&message);
            }
            // The last frames of the authentication, and this end's half.
            let exchange = Exchange::new();
            stream.writing.put_message(&exchange.half());
            stream.writing.flush().await?;
            let theirs = stream.expect_message().await?;
            let password = exchange.finish(&theirs)?;
            Client::New { id, password, is_proved: method == METHOD_PROOF, place }
        }
        // Whoever connected while that exchange was of use had nothing to take up yet; and what one
        // client says after it could be said again to another connection that is as old.
        Connect::Reconnect { .. } if told.is_some() => {
            return Err(refused("a connection that is older than what it would take up"));
        }
        Connect::Reconnect { id, otp } => {
            let unknown = || refused("a connection that is not known");
            let connection = server.connections().get(&id).cloned().ok_or_else(unknown)?;
            let attachment = resume(&mut stream, &connection, &otp, &transcript).await?;
            Client::Known { connection, attachment }
        }
    };
    stream.reading.set_limit(server.options.frame);
    Ok((stream, client))
}

fn unused_id<S: Service>(server: &Server<S>) -> u32 {
    let connections = server.connections();
    loop {
        let id = rand::random();
        if !connections.contains_key(&id) {
            return id;
        }
    }
}

/// What comes of both ends' first words.
struct Greeted {
    transcript: Transcript,
    /// What came of a key exchange that somebody was told of.
    told: Option<SharedKey>,
}

/// Says what this end can do, and does what the client wants of it.
async fn greet<T: Socket>(stream: &mut Stream<T>, options: &ServerOptions) -> io::Result<Greeted> {
    let offer = offer();
    let mut told = None;
    stream.writing.put_raw(&version());
    stream.writing.put(&offer);
    stream.writing.flush().await?;
    let choice_bytes = stream.expect().await?;
    let choice: Choice = unpack(&choice_bytes)?;
    if choice.compression_type == Some(CompressionType::Unknown) {
        return Err(refused("a compression that is not known"));
    }
    let mut transcript = Transcript::default();
    for piece in [&version()[..], &offer, &choice_bytes] {
        transcript.add(piece);
    }
    match choice.encryption_type {
        Some(EncryptionType::XChaCha20Poly1305) => {
            let known = options.hello.as_ref().and_then(|hello| hello.told());
            let is_known = known.is_some();
            let exchange = known.unwrap_or_else(|| Arc::new(Exchange::new()));
            let half = pack(&exchange.half());
            stream.writing.put(&half);
            stream.writing.flush().await?;
            let their_bytes = stream.expect().await?;
            let theirs: ExchangeHalf = unpack(&their_bytes)?;
            let key = exchange.finish(&theirs)?;
            transcript.add(&their_bytes);
            transcript.add(&half);
            stream.switch(Codec::new(Some(key.expose()), choice.compression()));
            told = is_known.then_some(key);
        }
        None if options.plain => stream.switch(Codec::new(None, choice.compression())),
        // A deliberate difference to released servers, which would take the key in plain text.
        None => return Err(refused("a client that wants no encryption")),
        Some(EncryptionType::Unknown) => return Err(refused("an encryption that is not known")),
    }
    Ok(Greeted { transcript, told })
}

/// Has the client show what it has to. Returns the method, and what tells the client that it did.
async fn authenticate<T: Socket>(
    stream: &mut Stream<T>,
    verifier: &Verifier,
    transcript: &Transcript,
) -> io::Result<(&'static str, Vec<Authentication>)> {
    let offered = match verifier {
        Verifier::None => vec![METHOD_NONE.to_owned()],
        Verifier::Key { .. } => vec![METHOD_PROOF.to_owned(), METHOD_KEY.to_owned()],
    };
    stream.writing.put_message(&Authentication::Initialization { methods: offered });
    stream.writing.flush().await?;
    let AuthenticationResponse::Initialization { methods } = stream.expect_message().await? else {
        return Err(refused("a client that does not choose a method"));
    };
    let wants = |method: &str| methods.iter().any(|wanted| wanted == method);
    match verifier {
        Verifier::None if wants(METHOD_NONE) => {
            let method = METHOD_NONE.to_owned();
            let start = Authentication::StartMethod { method };
            Ok((METHOD_NONE, vec![start, Authentication::Finished]))
        }
        // Released clients may agree to every method that is offered, but know only this one.
        Verifier::Key { key } if wants(METHOD_KEY) => {
            let answer = challenge(stream, METHOD_KEY, "key", "Provide a key: ").await?;
            let given: SessionKey = answer.expose().parse().map_err(|_| refused("no key"))?;
            let is_same: bool =
                subtle::ConstantTimeEq::ct_eq(&given.expose()[..], &key.expose()[..]).into();
            if !is_same {
                return Err(refused("a wrong key"));
            }
            Ok((METHOD_KEY, vec![Authentication::Finished]))
        }
        Verifier::Key { key } if wants(METHOD_PROOF) => {
            let answer = challenge(stream, METHOD_PROOF, "proof", "Prove the key: ").await?;
            let proof = hex::decode(answer.expose()).map_err(|_| refused("no proof"))?;
            if !transcript.verify(Purpose::Connect(key), Role::Client, &proof) {
                return Err(refused("a wrong proof"));
            }
            let text = hex::encode(transcript.prove(Purpose::Connect(key), Role::Server));
            Ok((METHOD_PROOF, vec![Authentication::Info { text }, Authentication::Finished]))
        }
        _ => Err(refused("a client that chooses no method that is offered")),
    }
}

async fn challenge<T: Socket>(
    stream: &mut Stream<T>,
    method: &str,
    label: &str,
    text: &str,
) -> io::Result<distant_plugin_api::secret::Secret> {
    stream.writing.put_message(&Authentication::StartMethod { method: method.to_owned() });
    stream.writing.put_message(&Authentication::Challenge {
        questions: vec![AuthenticationQuestion {
            label: label.to_owned(),
            text: text.to_owned(),
            options: Default::default(),
        }],
        options: Default::default(),
    });
    stream.writing.flush().await?;
    match stream.expect_message().await? {
        AuthenticationResponse::Challenge { answers } => {
            answers.into_iter().next().ok_or_else(|| refused("no answer"))
        }
        _ => Err(refused("something else than an answer")),
    }
}

/// Takes a connection up again: who comes is the one who left, and each gets what it lacks.
async fn resume<T: Socket, S: Service>(
    stream: &mut Stream<T>,
    connection: &Arc<Connection<S>>,
    otp: &[u8],
    transcript: &Transcript,
) -> io::Result<Attachment> {
    let is_right = |password: &SharedKey| match connection.is_proved {
        true => transcript.verify(Purpose::Reconnect(password), Role::Client, otp),
        false => password.is(otp),
    };
    let wrong = || refused("a wrong one-time password");
    let password = connection.passwords().iter().find(|known| is_right(known)).cloned();
    let password = password.ok_or_else(wrong)?;
    // Whoever has it now has lost it, perhaps without having noticed yet.
    let attachment = connection.take_over().await.ok_or_else(wrong)?;
    if connection.is_proved {
        let proof = transcript.prove(Purpose::Reconnect(&password), Role::Server);
        stream.writing.put(&proof);
    }
    let exchange = Exchange::new();
    stream.writing.put_message(&exchange.half());
    stream.writing.flush().await?;
    let theirs = stream.expect_message().await?;
    let next = exchange.finish(&theirs)?;
    // A released client forgets what it has read up to now, so the counters have to wait for its
    // own, which it sends after that.
    let (sent, received, available): Counters = stream.expect_message().await?;
    let lacking = sent.checked_sub(attachment.received);
    if lacking.is_none_or(|lacking| lacking > available) {
        connection.give_up();
        return Err(refused("a client that no longer has all its messages"));
    }
    if let Err(lost) = connection.outbox.resume(received) {
        connection.give_up();
        return Err(io::Error::other(lost));
    }
    // Nothing is announced as sent again: a released client would put it into its buffer where that
    // happens to be, perhaps into the middle of another frame. It comes as if it was new.
    stream.writing.put_message::<Counters>(&(received, attachment.received, 0));
    // The client may not get this; until it shows that it did, the old password is good as well.
    connection.set_passwords(vec![next, password]);
    stream.writing.flush().await?;
    stream.reading.received = attachment.received;
    Ok(attachment)
}
