//! What is wrong on the wire is answered or ends the connection; it never hangs.

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::wire::client::ConnectError;
use crate::wire::envelope::Response;
use crate::wire::handshake::version;

/// What a server does with the content of one frame.
#[derive(Debug, PartialEq)]
enum Answer {
    /// Replies, to the request with this id.
    To(String, Message),
    Closed,
}

/// Sends frames to a server; the connection is set up anew whenever it was closed.
struct Sender {
    address: SocketAddr,
    stream: Option<Stream<TcpStream>>,
}

impl Sender {
    async fn send(&mut self, content: &[u8]) -> Answer {
        if self.stream.is_none() {
            self.stream = Some(raw_client(self.address).await.0);
        }
        let stream = self.stream.as_mut().unwrap();
        stream.writing.put(content);
        stream.writing.flush().await.unwrap();
        match within(stream.expect()).await {
            Ok(frame) => {
                let response = Response::from_frame(&frame).unwrap();
                Answer::To(response.origin_id.clone(), response.parse().unwrap())
            }
            Err(_) => {
                self.stream = None;
                Answer::Closed
            }
        }
    }

    async fn is_answered(&mut self, content: &[u8], reason: &str) {
        let answer = self.send(content).await;
        let expected = Answer::To("7".to_owned(), message("error", reason));
        assert_eq!(answer, expected, "{:?}", Bytes::copy_from_slice(content));
    }
}

async fn sender() -> (Served, Sender) {
    let server = Served::tcp().await;
    let sender = Sender { address: server.address, stream: None };
    (server, sender)
}

#[tokio::test]
async fn a_broken_request_whose_id_can_be_read_is_answered() {
    let (_server, mut sender) = sender().await;
    for (content, reason) in [
        (&b"\x81\xa2id\xa17"[..], "no `payload`"),
        (b"\x82\xa2id\xa17\xa7payload", "no `payload`"),
        (b"\x82\xa2id\xa17\xa7paylaod\xc0", "an envelope with an unknown member"),
        (b"\x82\xa2id\xa17\x05\xc0", "something else where a text is expected"),
        (b"\x82\xa2id\xa17\xd9\xff", "a text that is too long"),
        (b"\x82\xa7payload\xc0\xa2id\xa17\xc0", "something follows the envelope"),
        (b"\x82\xa2id\xa17\xa7payload\xc0\xc0", "not understood"),
        (b"\x82\xa2id\xa17\xa7payload\xc1", "not understood"),
        (b"\x82\xa2id\xa17\xa7payload\x82\xa4type\xa4echo", "not understood"),
        (b"\x83\xa2id\xa17\xa6header\xdf\xff\xff\xff\xff\xa7payload\xc0", "it ends too early"),
        (
            b"\x83\xa2id\xa17\xa9origin_id\xa17\xa7payload\xc0",
            "a response where a request is expected",
        ),
    ] {
        sender.is_answered(content, reason).await;
    }
}

#[tokio::test]
async fn a_payload_that_nests_too_deep_is_answered() {
    let (_server, mut sender) = sender().await;
    let mut content = b"\x82\xa2id\xa17\xa7payload\x81\xa4deep".to_vec();
    content.extend(std::iter::repeat_n(0x91, 1_000_000));
    content.push(0xc0);
    sender.is_answered(&content, "not understood").await;
    let request = Request {
        header: Header::new(),
        id: "7".to_owned(),
        payload: Bytes::from(content).slice(14..),
    };
    let error = request.parse::<crate::wire::message::ManagerRequest>().unwrap_err();
    assert_eq!(error.reason, "it nests too deep");
}

#[test]
fn an_error_names_what_is_wrong_but_shows_no_value() {
    use crate::wire::message::ManagerRequest;
    for (payload, reason) in [
        (
            serde_json::json!({"type": "info", "id": "secret"}),
            "a value of another type than expected",
        ),
        (serde_json::json!({"type": "secret_"}), ""),
        (serde_json::json!({"type": "info"}), "missing field `id`"),
        (serde_json::json!(["secret"]), ""),
    ] {
        let error = Request::new(&payload).parse::<ManagerRequest>().unwrap_err();
        assert!(error.reason.starts_with(reason), "{error}");
        assert!(!error.reason.contains("\"secret"), "{error}");
    }
}

#[tokio::test]
async fn members_are_read_in_any_order() {
    let (_server, mut sender) = sender().await;
    let payload = pack(&message("echo", "hello"));
    let header = &b"\xa6header\x81\xa1a\x92\x01\xc2"[..];
    let payload = [b"\xa7payload", &payload[..]].concat();
    let id = &b"\xa2id\xa17"[..];
    for order in [[header, id, &payload], [&payload[..], id, header], [id, &payload, header]] {
        let answer = sender.send(&[b"\x83", &order.concat()[..]].concat()).await;
        assert_eq!(answer, Answer::To("7".to_owned(), message("echo", "hello")));
    }
}

#[tokio::test]
async fn what_is_no_request_at_all_ends_the_connection() {
    let (_server, mut sender) = sender().await;
    let deep = vec![0x91; 100_000];
    for content in [
        &b"\xc0"[..],
        b"garbage",
        b"\x80",
        b"\x81\xa2id\x07",
        b"\x85\xa2id\xa17",
        b"\x82\xa7payload\xc0\xa2ID\xa17",
        b"\xdf\xff\xff\xff\xff",
        &deep,
    ] {
        assert_eq!(sender.send(content).await, Answer::Closed, "{:?}", &content[..1]);
    }
}

#[tokio::test]
async fn a_header_must_be_a_map_and_not_too_large() {
    let (_server, mut sender) = sender().await;
    let bad = sender.send(b"\x83\xa6header\x93\x01\x02\x03\xa2id\xa17\xa7payload\xc0").await;
    assert!(matches!(bad, Answer::To(id, reply) if id == "7" && reply["type"] == "error"));
    let mut large = b"\x83\xa6header\x81\xa1a\xdc\xff\xff".to_vec();
    large.extend(std::iter::repeat_n([0xcd, 1, 1, 0xc0], 65_535).flatten().take(3 * 65_535));
    let large = [&large[..], b"\xa2id\xa17\xa7payload\xc0"].concat();
    let answer = sender.send(&large).await;
    assert!(matches!(answer, Answer::To(..) | Answer::Closed), "{answer:?}");
}

#[tokio::test]
async fn a_request_cut_off_anywhere_is_answered_or_ends_the_connection() {
    let (_server, mut sender) = sender().await;
    let mut request = Request::new(&message("echo", "hello"));
    request.header.insert("launcher".to_owned(), serde_json::json!({"version": 1}));
    let whole = request.to_frame();
    for length in 1..whole.len() {
        if let Answer::To(_, reply) = sender.send(&whole[..length]).await {
            assert_eq!(reply["type"], "error", "{length} bytes");
        }
    }
    let answer = sender.send(&whole).await;
    assert_eq!(answer, Answer::To(request.id, message("echo", "hello")));
}

#[tokio::test]
async fn a_frame_that_is_not_encrypted_with_the_key_ends_the_tcp_connection_only() {
    let mut server = Served::tcp().await;
    let (mut stream, _) = raw_client(server.address).await;
    server.until(Event::Attached).await;
    stream.writing.put_raw(&[0, 0, 0, 0, 0, 0, 0, 50]);
    stream.writing.put_raw(&[0; 50]);
    stream.writing.flush().await.unwrap();
    server.until(Event::Detached).await;
}

/// Sends bytes to a server instead of a handshake.
async fn is_refused(address: SocketAddr, bytes: &[u8]) {
    let socket = TcpStream::connect(address).await.unwrap();
    let mut stream = Stream::new(socket, 1000);
    let _: [u8; 24] = stream.raw().await.unwrap();
    stream.expect().await.unwrap();
    stream.writing.put_raw(bytes);
    stream.writing.flush().await.unwrap();
    // The server's half of the key exchange may still come.
    while within(stream.expect()).await.is_ok() {}
}

fn frame(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u64).to_be_bytes(), content].concat()
}

#[tokio::test]
async fn a_broken_handshake_is_refused_by_the_server() {
    let mut server = Served::tcp().await;
    let choice = |compression: &[u8], encryption: &[u8]| {
        let members = [b"\x83\xb1compression_level\xc0\xb0compression_type", compression].concat();
        frame(&[&members[..], b"\xafencryption_type", encryption].concat())
    };
    let good = choice(b"\xc0", b"\xb1XChaCha20Poly1305");
    let half = |key: &[u8], salt: usize| {
        let mut half = b"\x82\xaapublic_key".to_vec();
        rmp::encode::write_bin(&mut half, key).unwrap();
        half.extend_from_slice(b"\xa4salt");
        rmp::encode::write_bin(&mut half, &vec![0; salt]).unwrap();
        frame(&half)
    };
    for bytes in [
        frame(b""),
        frame(b"garbage"),
        frame(b"\x80"),
        choice(b"\xa5Snail", b"\xb1XChaCha20Poly1305"),
        choice(b"\xc0", b"\xa3ROT"),
        [&good[..], &frame(b"garbage")].concat(),
        // No point of the curve; a point at infinity; a salt of another length.
        [&good[..], &half(&[4; 65], 32)].concat(),
        [&good[..], &half(&[0], 32)].concat(),
        [&good[..], &half(&[], 0)].concat(),
    ] {
        is_refused(server.address, &bytes).await;
    }
    assert!(server.events.try_recv().is_err());
}

/// Serves bytes to a client instead of a handshake; then closes, or falls silent.
async fn connect_to(bytes: Vec<u8>, is_mute: bool) -> ConnectError {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        if is_mute {
            std::future::pending::<()>().await;
        }
    });
    let options = ClientOptions { within: Duration::from_secs(5), ..sent_key() };
    let error = Client::connect_tcp(&[address], options).await.unwrap_err();
    serving.abort();
    error
}

#[tokio::test]
async fn a_client_tells_what_is_wrong_with_a_server() {
    let other = [0_u64, 21, 0].map(u64::to_be_bytes).concat();
    let offer = b"\x82\xb1compression_types\x90\xb0encryption_types\x90";
    for is_mute in [false, true] {
        let error = connect_to(other.clone(), is_mute).await;
        assert!(
            matches!(&error, ConnectError::Incompatible { version } if version == "0.21.0"),
            "{error:?}"
        );
        let error = connect_to(Vec::new(), is_mute).await;
        assert!(matches!(error, ConnectError::Closed), "{error:?}");
        for bytes in [
            b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
            version().to_vec(),
            [&version()[..], &frame(b"garbage")].concat(),
            [&version()[..], &u64::MAX.to_be_bytes()].concat(),
            [&version()[..], &frame(offer)].concat(),
        ] {
            let error = connect_to(bytes.clone(), is_mute).await;
            assert!(matches!(error, ConnectError::Protocol { .. }), "{error:?} for {bytes:?}");
        }
    }
}
