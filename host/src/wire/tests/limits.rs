//! What one end lets the other have: time, places, bytes, wake-ups.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::wire::frame::{
    cut, Codec, CompressionLevel, CompressionType, EncryptionType, InvalidFrame,
};
use crate::wire::handshake::Choice;
use crate::wire::outbox::{Lost, Outbox, Refused};

/// Waits for the other end to close, whatever it says before.
async fn is_closed(socket: &mut TcpStream) {
    let mut ignored = Vec::new();
    // A reset is an end as well.
    let _ = within(socket.read_to_end(&mut ignored)).await;
}

#[tokio::test]
async fn who_does_not_authenticate_in_time_is_closed() {
    let authentication = Duration::from_millis(50);
    let options = ServerOptions { authentication, ..ServerOptions::tcp(key()) };
    let server = Served::start(options).await;
    let mut mute = TcpStream::connect(server.address).await.unwrap();
    is_closed(&mut mute).await;
    // Also who drips.
    let mut dripping = TcpStream::connect(server.address).await.unwrap();
    dripping.write_all(&[0, 0]).await.unwrap();
    is_closed(&mut dripping).await;
}

#[tokio::test]
async fn places_for_newcomers_are_limited_and_given_back() {
    let options = ServerOptions { unauthenticated: 2, ..ServerOptions::tcp(key()) };
    let server = Served::start(options).await;
    // Those who authenticate take no place.
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect_tcp(&[server.address], proof()).await.unwrap());
    }
    let mut mute = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        // It has its place when the server speaks to it.
        within(socket.read_exact(&mut [0; 24])).await.unwrap();
        mute.push(socket);
    }
    let mut one_too_many = TcpStream::connect(server.address).await.unwrap();
    is_closed(&mut one_too_many).await;
    assert_eq!(echo(&clients[0], "still here").await, "still here");
    mute.clear();
    within(async {
        // The server has to notice first that they are gone.
        while Client::connect_tcp(&[server.address], proof()).await.is_err() {}
    })
    .await;
}

#[tokio::test]
async fn a_frame_that_claims_too_much_closes_the_connection_unread() {
    let server = Served::tcp().await;
    for length in [64 * 1024 + 1, u64::MAX] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(&length.to_be_bytes()).await.unwrap();
        is_closed(&mut socket).await;
    }
    let options = ServerOptions { frame: 1000, ..ServerOptions::tcp(key()) };
    let server = Served::start(options).await;
    let client = ClientOptions { reconnect: false, ..proof() };
    let client = Client::connect_tcp(&[server.address], client).await.unwrap();
    let long = message("echo", &"x".repeat(1000));
    let mut replies = client.send(Request::new(&long)).await.unwrap();
    assert!(within(replies.next()).await.is_none());
}

#[tokio::test]
async fn a_reply_that_is_too_long_is_replaced_by_the_reason() {
    let options = ServerOptions { frame: 1000, ..ServerOptions::tcp(key()) };
    let server = Served::start(options).await;
    let client = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    let long = message("endless", &"x".repeat(930));
    let mut replies = client.send(Request::new(&long)).await.unwrap();
    let reply: Message = within(replies.next()).await.unwrap().parse().unwrap();
    assert_eq!(reply["type"], "error");
    assert!(reply["text"].ends_with("bytes, and only 1000 fit into a message"), "{reply:?}");
}

#[tokio::test]
async fn nobody_is_served_over_tcp_without_encryption() {
    let mut server = Served::tcp().await;
    for encryption_type in [None, Some(EncryptionType::Unknown)] {
        let socket = TcpStream::connect(server.address).await.unwrap();
        let mut stream = Stream::new(socket, 1000);
        let _: [u8; 24] = stream.raw().await.unwrap();
        stream.expect().await.unwrap();
        stream.writing.put_message(&Choice {
            compression_level: None,
            compression_type: None,
            encryption_type,
        });
        stream.writing.flush().await.unwrap();
        assert!(within(stream.expect()).await.is_err());
    }
    assert!(server.events.try_recv().is_err());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_only_itself() {
    let mut server = Served::tcp().await;
    let lazy = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    let busy = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    let text = "x".repeat(10_000);
    let mut replies = lazy.send(Request::new(&message("endless", &text))).await.unwrap();
    // Until nothing more is taken off the handler's hands.
    while let Ok(changed) =
        tokio::time::timeout(Duration::from_millis(300), server.sent.changed()).await
    {
        changed.unwrap();
    }
    let held = *server.sent.borrow();
    assert!(held * 10_000 < 40_000_000, "{held} replies are held somewhere");
    assert_eq!(echo(&busy, "not held up").await, "not held up");
    for number in 0..held + 100 {
        let reply: Message = within(replies.next()).await.unwrap().parse().unwrap();
        assert_eq!(reply["text"], format!("{number} {text}"));
    }
}

#[tokio::test]
async fn long_replies_that_nobody_takes_are_few_and_hold_up_nobody_for_ever() {
    let mut server = Served::tcp().await;
    let client = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    let text = "x".repeat(2_000_000);
    let mut replies = client.send(Request::new(&message("endless", &text))).await.unwrap();
    // Until nothing more is taken off the handler's hands.
    while let Ok(changed) =
        tokio::time::timeout(Duration::from_millis(500), server.sent.changed()).await
    {
        changed.unwrap();
    }
    // Two wait, and one for its place; what is left is in queues and the system's buffers.
    let held = *server.sent.borrow();
    assert!(held < 20, "{held} replies are held somewhere");
    for number in 0..held + 20 {
        let reply: Message = within(replies.next()).await.unwrap().parse().unwrap();
        assert!(reply["text"].starts_with(&format!("{number} x")));
    }
    // And who takes none any more holds up nobody, though more and more comes.
    drop(replies);
    assert_eq!(echo(&client, "next").await, "next");
}

#[tokio::test]
async fn requests_of_one_connection_wait_for_a_place() {
    let options = ServerOptions { requests: 2, ..ServerOptions::tcp(key()) };
    let mut server = Served::start(options).await;
    let client = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    server.until(Event::Handled).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(client.send(Request::new(&message("silence", ""))).await.unwrap());
    }
    server.until(Event::Handled).await;
    server.until(Event::Handled).await;
    let third = tokio::time::timeout(Duration::from_millis(100), server.events.recv()).await;
    assert!(third.is_err(), "{third:?}");
}

#[test]
fn a_thread_that_sends_waits_for_room() {
    let outbox = Arc::new(Outbox::new(0, 0));
    let frame = Bytes::from(vec![0; 600_000]);
    let (sent, is_sent) = std::sync::mpsc::channel();
    outbox.push_blocking(&frame).unwrap();
    outbox.push_blocking(&frame).unwrap();
    assert_eq!(outbox.try_push(&frame), Err(Refused::Full));
    let thread = {
        let outbox = Arc::clone(&outbox);
        std::thread::spawn(move || {
            outbox.push_blocking(&frame).unwrap();
            sent.send(()).unwrap();
            // Full again: this wait ends with the connection.
            outbox.push_blocking(&frame).unwrap_err();
        })
    };
    assert!(is_sent.try_recv().is_err());
    assert_eq!(outbox.take(1).len(), 1);
    is_sent.recv_timeout(DEADLINE).unwrap();
    outbox.close();
    thread.join().unwrap();
}

#[test]
fn a_full_backup_drops_the_oldest_and_does_not_pretend_otherwise() {
    let outbox = Outbox::new(6, 1000);
    for number in 0..10_u8 {
        outbox.try_push(&Bytes::from(vec![number; 200])).unwrap();
    }
    assert_eq!(outbox.take(usize::MAX).len(), 10);
    // 264 bytes each, so three are kept, and the last one.
    assert_eq!(outbox.counters(), (16, 4));
    assert_eq!(outbox.resume(11), Err(Lost));
    assert_eq!(outbox.resume(17), Err(Lost));
    outbox.resume(12).unwrap();
    let again: Vec<u8> = outbox.take(usize::MAX).iter().map(|frame| frame[0]).collect();
    assert_eq!(again, [6, 7, 8, 9]);
    assert_eq!(outbox.counters(), (16, 4));
}

#[test]
fn a_frame_does_not_unpack_beyond_its_limit() {
    let key = [1; 32];
    for kind in [CompressionType::Deflate, CompressionType::Gzip, CompressionType::Zlib] {
        let codec = Codec::new(None, Some((kind, CompressionLevel::Nine)));
        let mut bomb = BytesMut::new();
        codec.encode(&vec![0; 20_000_000], &mut bomb);
        assert!(bomb.len() < 64 * 1024);
        let body = cut(&mut bomb, 64 * 1024).unwrap().unwrap();
        let error = codec.decode(body, 64 * 1024).unwrap_err();
        assert_eq!(error, InvalidFrame::TooLong { length: 64 * 1024 + 1, limit: 64 * 1024 });
        // What may be just as long as allowed is, however badly it can be compressed.
        let codec = Codec::new(Some(&key), Some((kind, CompressionLevel::Zero)));
        let mut frame = BytesMut::new();
        codec.encode(&vec![0; 64 * 1024], &mut frame);
        let body = cut(&mut frame, usize::MAX).unwrap().unwrap();
        assert_eq!(codec.decode(body, 64 * 1024).unwrap().len(), 64 * 1024);
    }
}

fn switches() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Clients and server share this thread, so this counts the wake-ups of both ends.
#[tokio::test]
async fn many_idle_connections_wake_up_as_often_as_one() {
    let heartbeat = Duration::from_millis(200);
    let server = Served::start(ServerOptions { heartbeat, ..ServerOptions::tcp(key()) }).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(Client::connect_tcp(&[server.address], proof()).await.unwrap());
    }
    let before = switches();
    // Not a wait for something, but the time over which is counted.
    tokio::time::sleep(5 * heartbeat).await;
    let wake_ups = switches() - before;
    assert!(wake_ups < 50, "{wake_ups} wake-ups for 5 heartbeats of 50 connections");
}
