//! A client that was told what the server will say first.

use bytes::BytesMut;
use tokio::io::duplex;

use super::middle::Middle;
use super::*;
use crate::wire::client::ConnectError;
use crate::wire::frame::Codec;
use crate::wire::handshake::{
    unpack, Connect, Counters, Exchange, Purpose, Role, Transcript, METHOD_KEY,
};
use crate::wire::message::AuthenticationResponse;
use crate::wire::{Hello, Told};

/// A server with something to tell, and that.
async fn served() -> (Served, Told) {
    let hello = Arc::new(Hello::default());
    let told = Told::parse(&hello.text().unwrap()).unwrap();
    let options = ServerOptions { hello: Some(hello), ..ServerOptions::tcp(key()) };
    (Served::start(options).await, told)
}

fn with(told: &Told) -> ClientOptions {
    ClientOptions { told: Some(told.clone()), ..proof() }
}

/// Passes on what the client says, and what the server says only once it was let through.
async fn held_back(target: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (through, mut gate) = watch::channel(false);
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(target).await.unwrap();
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        let back = async {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            carry(from_far, to_near, || ()).await;
        };
        tokio::join!(carry(from_near, to_far, || ()), back);
    });
    (address, through)
}

/// All that a client says before it has heard anything.
async fn first_words(told: &Told) -> Vec<u8> {
    let (near, mut far) = duplex(64 * 1024);
    let (options, authenticator) = (with(told), &mut ());
    let mut words = vec![0; 64 * 1024];
    let length = tokio::select! {
        _ = establish(near, &options, authenticator, None) => unreachable!("nobody answers"),
        length = within(far.read(&mut words)) => length.unwrap(),
    };
    words.truncate(length);
    words
}

/// Where a number of frames ends that begin at the start.
fn end_of_frames(bytes: &[u8], count: usize) -> usize {
    (0..count).fold(0, |start, _| {
        let length = bytes[start..].first_chunk::<8>().unwrap();
        start + 8 + usize::try_from(u64::from_be_bytes(*length)).unwrap()
    })
}

async fn reads_until_the_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A server that closes with something unread resets.
    let _ = within(stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn who_was_told_has_its_first_request_handled_before_it_has_heard_a_word() {
    let (mut server, told) = served().await;
    let (address, through) = held_back(server.address).await;
    let client = tokio::spawn(async move {
        let client = Client::connect_tcp(&[address], with(&told)).await.unwrap();
        echo(&client, "hello").await
    });
    server.until(Event::Handled).await;
    through.send_replace(true);
    assert_eq!(within(client).await.unwrap(), "hello");
}

#[tokio::test]
async fn what_was_told_is_of_use_to_the_first_client_alone_and_in_nobodys_way() {
    let (mut server, told) = served().await;
    for options in [with(&told), with(&told), proof(), sent_key()] {
        let client = Client::connect_tcp(&[server.address], options).await.unwrap();
        assert_eq!(echo(&client, "hello").await, "hello");
        server.until(Event::Open).await;
    }
}

#[tokio::test]
async fn who_sends_the_key_first_is_in_nobodys_way() {
    let (server, told) = served().await;
    let sending = Client::connect_tcp(&[server.address], sent_key()).await.unwrap();
    let client = Client::connect_tcp(&[server.address], with(&told)).await.unwrap();
    assert_eq!(echo(&sending, "first").await, "first");
    assert_eq!(echo(&client, "second").await, "second");
}

#[tokio::test]
async fn what_a_client_that_was_told_has_sent_gets_nobody_in_again() {
    let (mut server, told) = served().await;
    let words = first_words(&told).await;
    let (greeting, rest) = words.split_at(end_of_frames(&words, 2));
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(greeting).await.unwrap();
        // With its half of the exchange it has settled on the one that was told.
        let mut heard = vec![0; told.version.len() + 8 + told.offer.len() + 8 + told.half.len()];
        within(stream.read_exact(&mut heard)).await.unwrap();
        assert!(heard.ends_with(&told.half));
        connections.push(stream);
    }
    connections[0].write_all(rest).await.unwrap();
    server.until(Event::Open).await;
    connections[1].write_all(rest).await.unwrap();
    reads_until_the_end(&mut connections[1]).await;
    let mut later = TcpStream::connect(server.address).await.unwrap();
    later.write_all(&words).await.unwrap();
    reads_until_the_end(&mut later).await;
    assert_ne!(server.events.try_recv(), Ok(Event::Open), "somebody got in by what they heard");
}

#[tokio::test]
async fn what_a_client_has_sent_gets_nobody_in_again_in_other_words() {
    let (mut server, told) = served().await;
    let exchange = Exchange::new();
    let shared = exchange.finish(&unpack(&told.half).unwrap()).unwrap();
    let half = pack(&exchange.half());
    // A map of two, as short as can be and longer.
    let longer = [&[0xde, 0, half[0] & 0x0f], &half[1..]].concat();
    // Unlike a proof, a key that is sent does not hang on how that was put.
    let (codec, mut rest) = (Codec::new(Some(shared.expose()), None), BytesMut::new());
    let answers = vec![key().expose_hex()];
    for message in [
        pack(&Connect::New),
        pack(&AuthenticationResponse::Initialization { methods: vec![METHOD_KEY.into()] }),
        pack(&AuthenticationResponse::Challenge { answers }),
        pack(&Exchange::new().half()),
    ] {
        codec.encode(&message, &mut rest);
    }
    let words = first_words(&told).await;
    let mut connections = Vec::new();
    for half in [half, longer] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&words[..end_of_frames(&words, 1)]).await.unwrap();
        let mut heard = vec![0; told.version.len() + 8 + told.offer.len() + 8 + told.half.len()];
        within(stream.read_exact(&mut heard)).await.unwrap();
        assert!(heard.ends_with(&told.half));
        let mut said = BytesMut::new();
        Codec::new(None, None).encode(&half, &mut said);
        connections.push((stream, [said, rest.clone()].concat()));
    }
    let (again, said_again) = &mut connections.pop().unwrap();
    let (first, said) = &mut connections[0];
    first.write_all(said).await.unwrap();
    server.until(Event::Open).await;
    again.write_all(said_again).await.unwrap();
    reads_until_the_end(again).await;
    assert_ne!(server.events.try_recv(), Ok(Event::Open), "somebody got in by what they heard");
}

#[tokio::test]
async fn nobody_takes_a_connection_up_by_what_was_told() {
    let (mut server, told) = served().await;
    let words = first_words(&told).await;
    let choice = &words[..end_of_frames(&words, 1)];
    // Whoever is in the middle was there before the first client.
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(choice).await.unwrap();
        let mut heard = vec![0; told.version.len() + 8 + told.offer.len() + 8 + told.half.len()];
        within(stream.read_exact(&mut heard)).await.unwrap();
        assert!(heard.ends_with(&told.half));
        connections.push(stream);
    }
    let socket = TcpStream::connect(server.address).await.unwrap();
    let client = establish(socket, &with(&told), &mut (), None).await.unwrap();
    let Established { stream: lost, identity } = client;
    server.until(Event::Attached).await;
    // What that client says when its next connection is led through one of those: the same to each.
    let exchange = Exchange::new();
    let half = pack(&exchange.half());
    let mut transcript = Transcript::default();
    for piece in [&told.version[..], &told.offer, &choice[8..], &half, &told.half] {
        transcript.add(piece);
    }
    let otp = transcript.prove(Purpose::Reconnect(&identity.passwords[0]), Role::Client).to_vec();
    let shared = exchange.finish(&unpack(&told.half).unwrap()).unwrap();
    let counters: Counters = (lost.writing.sent, lost.reading.received, 0);
    let (codec, mut said) = (Codec::new(Some(shared.expose()), None), BytesMut::new());
    Codec::new(None, None).encode(&half, &mut said);
    for message in [
        pack(&Connect::Reconnect { id: identity.id, otp }),
        pack(&Exchange::new().half()),
        pack(&counters),
    ] {
        codec.encode(&message, &mut said);
    }
    for stream in &mut connections {
        stream.write_all(&said).await.unwrap();
        // A server that closes with something unread resets.
        let heard = within(stream.read(&mut [0; 64])).await.unwrap_or(0);
        assert_eq!(heard, 0, "the server has taken somebody for the client");
    }
    assert!(server.events.try_recv().is_err(), "somebody else has the connection");
}

#[tokio::test]
async fn a_machine_in_the_middle_of_who_was_told_learns_nothing() {
    let (mut server, told) = served().await;
    let middle = Middle::start(server.address).await;
    let error = Client::connect_tcp(&[middle.address], with(&told)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Rejected { .. }), "{error:?}");
    assert!(!middle.has_read_key());
    assert!(server.events.try_recv().is_err(), "the server took somebody in");
}

#[test]
fn what_is_told_is_read_only_if_it_is_whole() {
    let text = Hello::default().text().unwrap();
    assert!(Told::parse(&text).is_some());
    for bad in ["", "00", "zz", &text[2..], &text[..text.len() - 2], &"00".repeat(1 << 20)] {
        assert_eq!(Told::parse(bad), None);
    }
    // Of a version that this client does not get on with.
    let at = text.find(&"00".repeat(7)).unwrap();
    let other = format!("{}7f{}", &text[..at], &text[at + 2..]);
    assert_eq!(Told::parse(&other), None);
}
