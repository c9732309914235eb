//! A machine in the middle that makes a key exchange with each end and reads everything.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::*;
use crate::wire::client::ConnectError;
use crate::wire::frame::{Codec, CompressionType, EncryptionType};
use crate::wire::handshake::{
    version, Choice, Connect, Counters, Exchange, ExchangeHalf, Offer, METHOD_PROOF,
};
use crate::wire::message::{Authentication, AuthenticationResponse};
use crate::wire::stream::{Reading, Writing};

const LIMIT: usize = 1024 * 1024;

/// Does what a released client does up to the encryption.
pub(super) async fn greet_as_client(socket: TcpStream) -> Stream<TcpStream> {
    let mut stream = Stream::new(socket, LIMIT);
    let _: [u8; 24] = stream.raw().await.unwrap();
    let _: Offer = stream.expect_message().await.unwrap();
    stream.writing.put_message(&Choice {
        compression_level: None,
        compression_type: None,
        encryption_type: Some(EncryptionType::XChaCha20Poly1305),
    });
    exchange(stream).await
}

/// Does what a server does up to the encryption.
pub(super) async fn greet_as_server(socket: TcpStream) -> Stream<TcpStream> {
    let mut stream = Stream::new(socket, LIMIT);
    stream.writing.put_raw(&version());
    stream.writing.put_message(&Offer {
        compression_types: vec![CompressionType::Deflate],
        encryption_types: vec![EncryptionType::XChaCha20Poly1305],
    });
    stream.writing.flush().await.unwrap();
    let _: Choice = stream.expect_message().await.unwrap();
    exchange(stream).await
}

async fn exchange(mut stream: Stream<TcpStream>) -> Stream<TcpStream> {
    let exchange = Exchange::new();
    stream.writing.put_message(&exchange.half());
    stream.writing.flush().await.unwrap();
    let theirs: ExchangeHalf = stream.expect_message().await.unwrap();
    let key = exchange.finish(&theirs).unwrap();
    stream.switch(Codec::new(Some(key.expose()), None));
    stream
}

/// The machine, and every frame that it has read.
pub(super) struct Middle {
    pub(super) address: SocketAddr,
    read: Arc<Mutex<Vec<u8>>>,
    connections: watch::Receiver<u64>,
}

impl Middle {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let read = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&read);
        let (count, connections) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(target).await.unwrap();
                let (near, far) = tokio::join!(greet_as_server(near), greet_as_client(far));
                let there = pass_on(near.reading, far.writing, Arc::clone(&record));
                let back = pass_on(far.reading, near.writing, Arc::clone(&record));
                tokio::spawn(async move {
                    tokio::select! { () = there => {} () = back => {} }
                });
                count.send_modify(|count| *count += 1);
            }
        });
        Self { address, read, connections }
    }

    fn has_read(&self, bytes: &[u8]) -> bool {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.windows(bytes.len()).any(|window| window == bytes)
    }

    pub(super) fn has_read_key(&self) -> bool {
        self.has_read(key().expose()) || self.has_read(key().expose_hex().expose().as_bytes())
    }
}

async fn pass_on(
    mut from: Reading<TcpStream>,
    mut to: Writing<TcpStream>,
    record: Arc<Mutex<Vec<u8>>>,
) {
    while let Ok(Some(content)) = from.next().await {
        record.lock().unwrap().extend_from_slice(&content);
        to.put(&content);
        if to.flush().await.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn the_proof_fails_through_a_machine_in_the_middle_which_learns_nothing() {
    let mut server = Served::tcp().await;
    let middle = Middle::start(server.address).await;
    let error = Client::connect_tcp(&[middle.address], proof()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Rejected { .. }), "{error:?}");
    assert!(middle.has_read(b"static_key_proof") && !middle.has_read_key());
    assert!(server.events.try_recv().is_err(), "the server took somebody in");
}

/// What the proof is there for: with released programs the key passes, and nobody notices.
#[tokio::test]
async fn a_key_that_is_sent_is_read_by_a_machine_in_the_middle() {
    let server = Served::tcp().await;
    let middle = Middle::start(server.address).await;
    let client = Client::connect_tcp(&[middle.address], sent_key()).await.unwrap();
    assert_eq!(echo(&client, "hello").await, "hello");
    assert!(middle.has_read_key());
}

#[tokio::test]
async fn a_machine_that_comes_into_the_middle_later_cannot_take_the_connection_up() {
    let mut server = Served::tcp().await;
    let middle = Middle::start(server.address).await;
    let proxy = Proxy::start(server.address).await;
    let client = Client::connect_tcp(&[proxy.address], proof()).await.unwrap();
    server.until(Event::Handled).await;
    proxy.target.send_replace(middle.address);
    proxy.cut();
    let mut tries = middle.connections.clone();
    within(tries.wait_for(|tries| *tries > 0)).await.unwrap();
    proxy.target.send_replace(server.address);
    assert_eq!(echo(&client, "only for the server").await, "only for the server");
    assert!(middle.has_read(b"Reconnect") && !middle.has_read(b"only for the server"));
}

/// Takes somebody for a client who wants to prove the key, and answers with a proof of its own.
async fn answer_with(listener: TcpListener, proof: impl Fn(&str) -> String) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut stream = greet_as_server(socket).await;
    let _: Connect = stream.expect_message().await.unwrap();
    let _: AuthenticationResponse = stream.expect_message().await.unwrap();
    let AuthenticationResponse::Challenge { answers } = stream.expect_message().await.unwrap()
    else {
        panic!("no proof")
    };
    let text = proof(answers[0].expose());
    stream.writing.put_message(&1_u32);
    for message in [
        Authentication::Initialization { methods: vec![METHOD_PROOF.to_owned()] },
        Authentication::StartMethod { method: METHOD_PROOF.to_owned() },
        Authentication::Info { text },
        Authentication::Finished,
    ] {
        stream.writing.put_message(&message);
    }
    stream.writing.put_message(&Exchange::new().half());
    // The client may have gone away by then.
    let _ = stream.writing.flush().await;
    while let Ok(Some(_)) = stream.reading.next().await {}
}

#[tokio::test]
async fn a_machine_in_the_place_of_the_server_does_not_pass_for_it() {
    let proofs: [fn(&str) -> String; 4] =
        [|_| String::new(), |_| "no proof".to_owned(), |_| "00".repeat(32), str::to_owned];
    for proof in proofs {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(answer_with(listener, proof));
        let connected = within(Client::connect_tcp(&[address], self::proof())).await;
        let error = connected.map(|_| "it is connected").unwrap_err();
        assert!(matches!(error, ConnectError::Rejected { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_machine_in_the_place_of_the_server_does_not_take_a_connection_up() {
    let mut server = Served::tcp().await;
    let proxy = Proxy::start(server.address).await;
    let client = Client::connect_tcp(&[proxy.address], proof()).await.unwrap();
    server.until(Event::Handled).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    proxy.target.send_replace(listener.local_addr().unwrap());
    proxy.cut();
    let (socket, _) = within(listener.accept()).await.unwrap();
    let mut stream = greet_as_server(socket).await;
    let Connect::Reconnect { .. } = within(stream.expect_message()).await.unwrap() else {
        panic!("it is a new one")
    };
    let _: ExchangeHalf = within(stream.expect_message()).await.unwrap();
    let (sent, received, _): Counters = within(stream.expect_message()).await.unwrap();
    // What a server says then: its proof, its half, and how far it is.
    stream.writing.put(&[0; 32]);
    stream.writing.put_message(&Exchange::new().half());
    stream.writing.put_message::<Counters>(&(received, sent, 0));
    stream.writing.flush().await.unwrap();
    proxy.target.send_replace(server.address);
    // It is not told anything, and the server is, once it can be reached again.
    let request = echo(&client, "only for the server");
    let (reply, heard) = tokio::join!(request, within(stream.reading.next()));
    assert!(matches!(heard, Ok(None) | Err(_)), "{heard:?}");
    assert_eq!(reply, "only for the server");
}
