//! Our client with our server.

use tokio::net::{TcpSocket, UnixListener};

use super::*;
use crate::wire::client::{ConnectError, Status};
use crate::wire::frame::{CompressionLevel, CompressionType};

#[tokio::test]
async fn a_client_gets_in_by_proof_and_by_key() {
    let server = Served::tcp().await;
    for options in [proof(), sent_key()] {
        let client = Client::connect_tcp(&[server.address], options).await.unwrap();
        assert_eq!(client.peer(), Some(server.address));
        assert_eq!(echo(&client, "hello").await, "hello");
    }
}

#[tokio::test]
async fn a_wrong_key_is_rejected_either_way() {
    let server = Served::tcp().await;
    let wrong = SessionKey::new([8; 32]);
    for credential in [Credential::Proof(wrong.clone()), Credential::Key(wrong), Credential::None] {
        let options = ClientOptions::tcp(credential, DEADLINE);
        let error = Client::connect_tcp(&[server.address], options).await.unwrap_err();
        assert!(matches!(error, ConnectError::Rejected { .. }), "{error:?}");
    }
}

/// A port that refuses every connection, and that nobody else gets meanwhile.
fn nobody() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    socket
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_different() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ClientOptions { within: Duration::from_millis(200), ..proof() };
    let error = Client::connect_tcp(&[address], options).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    let nobody = nobody();
    let address = nobody.local_addr().unwrap();
    let error = Client::connect_tcp(&[address], proof()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn the_next_address_is_tried_after_a_dead_and_a_mute_one() {
    let server = Served::tcp().await;
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let dead = nobody();
    let addresses = [dead.local_addr().unwrap(), mute.local_addr().unwrap(), server.address];
    let options = ClientOptions { within: Duration::from_secs(3), ..proof() };
    let client = Client::connect_tcp(&addresses, options).await.unwrap();
    assert_eq!(client.peer(), Some(server.address));
}

#[tokio::test]
async fn every_compression_works_in_both_directions() {
    use CompressionLevel::{Nine, One, Six, Zero};
    let server = Served::tcp().await;
    let text = "all work and no play ".repeat(10_000);
    for kind in [CompressionType::Deflate, CompressionType::Gzip, CompressionType::Zlib] {
        for level in [Zero, One, Six, Nine] {
            let options = ClientOptions { compression: Some((kind, level)), ..proof() };
            let client = Client::connect_tcp(&[server.address], options).await.unwrap();
            assert_eq!(echo(&client, &text).await, text, "{kind:?} {level:?}");
        }
    }
}

#[tokio::test]
async fn requests_of_one_connection_do_not_wait_for_each_other() {
    let server = Served::tcp().await;
    let client = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    let mut silent = client.send(Request::new(&message("silence", ""))).await.unwrap();
    for number in 0..200 {
        assert_eq!(echo(&client, &number.to_string()).await, number.to_string());
    }
    client.close();
    assert!(within(silent.next()).await.is_none());
}

#[tokio::test]
async fn a_route_takes_the_replies_to_all_requests_of_its_prefix() {
    let server = Served::tcp().await;
    let client = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    let mut route = client.route("7");
    for number in 0..10 {
        let mut request = Request::new(&message("echo", &number.to_string()));
        request.id = format!("7_{number}");
        client.fire(request).await.unwrap();
    }
    assert_eq!(echo(&client, "its own").await, "its own");
    for number in 0..10 {
        let response = within(route.next()).await.unwrap();
        assert_eq!(response.origin_id, format!("7_{number}"));
    }
}

#[tokio::test]
async fn a_handler_that_panics_is_reported_and_the_connection_lives() {
    let server = Served::tcp().await;
    let client = Client::connect_tcp(&[server.address], proof()).await.unwrap();
    let mut replies = client.send(Request::new(&message("panic", ""))).await.unwrap();
    let reply: Message = within(replies.next()).await.unwrap().parse().unwrap();
    assert_eq!(reply["type"], "error");
    assert_eq!(echo(&client, "still here").await, "still here");
}

#[tokio::test]
async fn dropping_the_last_handle_closes_but_sends_what_was_queued() {
    let mut server = Served::tcp().await;
    let options = ClientOptions { reconnect: false, ..proof() };
    let client = Client::connect_tcp(&[server.address], options).await.unwrap();
    server.until(Event::Handled).await;
    drop(client.send(Request::new(&message("echo", "last words"))).await.unwrap());
    drop(client);
    server.until(Event::Handled).await;
    server.until(Event::Detached).await;
}

#[tokio::test]
async fn a_service_hears_of_each_step_in_its_order() {
    let mut server =
        Served::start(ServerOptions { reconnect: None, ..ServerOptions::tcp(key()) }).await;
    drop(Client::connect_tcp(&[server.address], proof()).await.unwrap());
    for event in [Event::Open, Event::Attached, Event::Handled, Event::Detached, Event::Closed] {
        assert_eq!(within(server.events.recv()).await, Some(event));
    }
}

#[tokio::test]
async fn a_server_that_is_shut_down_sends_what_was_queued_and_returns() {
    let server = Served::tcp().await;
    let options = ClientOptions { reconnect: false, ..proof() };
    let client = Client::connect_tcp(&[server.address], options).await.unwrap();
    let mut silent = client.send(Request::new(&message("silence", ""))).await.unwrap();
    assert_eq!(echo(&client, "before").await, "before");
    server.shutdown.cancel();
    within(server.task).await.unwrap();
    assert!(within(silent.next()).await.is_none());
    let mut status = client.status();
    within(status.wait_for(|status| matches!(status, Status::Closed { .. }))).await.unwrap();
    assert!(client.send(Request::new(&message("echo", "after"))).await.is_err());
}

/// Writes down what it sees, as the command line does for its reader.
struct Mirror(mpsc::UnboundedSender<String>);

#[async_trait]
impl crate::wire::client::Authenticator for Mirror {
    async fn see(&mut self, message: &crate::wire::message::Authentication) -> Result<(), String> {
        self.0.send(serde_json::to_string(message).unwrap()).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn a_unix_socket_needs_no_key_and_shows_its_round() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (service, mut events) = Echo::new();
    let shutdown = CancellationToken::new();
    let serving = server::serve(
        UnixListener::bind(&path).unwrap(),
        ServerOptions::unix(),
        service,
        shutdown.clone(),
    );
    let serving = tokio::spawn(serving);
    let (mirror, mut seen) = mpsc::unbounded_channel();
    let client = Client::connect_unix(&path, ClientOptions::unix(), Mirror(mirror)).await.unwrap();
    assert_eq!(echo(&client, "hello").await, "hello");
    let mut lines = Vec::new();
    while let Ok(line) = seen.try_recv() {
        lines.push(line);
    }
    assert_eq!(
        lines,
        [
            r#"{"type":"auth_initialization","methods":["none"]}"#,
            r#"{"type":"auth_start_method","method":"none"}"#,
            r#"{"type":"auth_finished"}"#,
        ]
    );
    drop(client);
    within(async { while events.recv().await != Some(Event::Closed) {} }).await;
    shutdown.cancel();
    within(serving).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_lives_on_heartbeats() {
    let heartbeat = Duration::from_millis(20);
    let server = Served::start(ServerOptions { heartbeat, ..ServerOptions::tcp(key()) }).await;
    let options = ClientOptions { silence: Duration::from_secs(2), ..proof() };
    let client = Client::connect_tcp(&[server.address], options.clone()).await.unwrap();
    let mut status = client.status();
    assert_eq!(*status.borrow_and_update(), Status::Connected);
    tokio::time::timeout(options.silence.mul_f64(1.5), status.changed()).await.unwrap_err();
    assert_eq!(echo(&client, "awake").await, "awake");
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    let server = Served::tcp().await;
    let options = ClientOptions { silence: Duration::from_millis(50), reconnect: false, ..proof() };
    let client = Client::connect_tcp(&[server.address], options).await.unwrap();
    let mut status = client.status();
    let closed = within(status.wait_for(|status| matches!(status, Status::Closed { .. }))).await;
    let Status::Closed { reason } = closed.unwrap().clone() else { unreachable!() };
    assert_eq!(reason, "no sign of life for 50ms");
}
