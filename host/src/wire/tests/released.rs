//! Each of our ends against the other end of the released crates.
//!
//! On several threads: a released server whose connection breaks while it writes tries again and
//! again without a pause, and the only thread of a runtime would never get to see that it is closed.

use std::net::IpAddr;

use distant_core::net::auth::msg::{Challenge, ChallengeResponse, Error, Info};
use distant_core::net::auth::msg::{Verification, VerificationResponse};
use distant_core::net::auth::{
    AuthHandlerMap, AuthMethodHandler, SingleAuthHandler, StaticKeyAuthMethodHandler, Verifier,
};
use distant_core::net::client::{Client as ReleasedClient, ClientConfig, ReconnectStrategy};
use distant_core::net::common::{Request as ReleasedRequest, SecretKey32, Version};
use distant_core::net::server::{
    RequestCtx, Server as ReleasedServer, ServerConfig, ServerHandler, TcpServerRef,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::wire::client::{ConnectError, Status};
use crate::wire::message::PROTOCOL_VERSION;

/// Replies of one request in the tests that cut connections.
const MANY: usize = 2_000;

struct Handler;

#[async_trait]
impl ServerHandler for Handler {
    type Request = Message;
    type Response = Message;

    async fn on_request(&self, context: RequestCtx<Message, Message>) {
        let message = context.request.payload;
        if message["type"] != "many" {
            context.reply.send(message).unwrap();
            return;
        }
        for number in 0..MANY {
            let text = format!("{number} {}", message["text"]);
            context.reply.send(super::message("many", &text)).unwrap();
            tokio::task::yield_now().await;
        }
    }
}

fn version() -> Version {
    let [major, minor, patch] = PROTOCOL_VERSION;
    Version::new(major, minor, patch)
}

fn released_key() -> SecretKey32 {
    SecretKey32::from(*key().expose())
}

async fn released_server() -> (TcpServerRef, SocketAddr) {
    let server = ReleasedServer::tcp()
        .config(ServerConfig {
            connection_heartbeat: Duration::from_millis(50),
            ..Default::default()
        })
        .handler(Handler)
        .verifier(Verifier::static_key(released_key()))
        .version(version())
        .start(IpAddr::from(Ipv4Addr::LOCALHOST), 0)
        .await
        .unwrap();
    let address = SocketAddr::from((server.ip_addr(), server.port()));
    (server, address)
}

async fn released_client(address: SocketAddr) -> ReleasedClient<Message, Message> {
    let config = ClientConfig {
        reconnect_strategy: ReconnectStrategy::FixedInterval {
            interval: Duration::from_millis(20),
            max_retries: None,
            timeout: None,
        },
        ..Default::default()
    };
    let connecting = ReleasedClient::tcp(address)
        .auth_handler(AuthHandlerMap::new().with_static_key(released_key()))
        .config(config)
        .version(version())
        .connect();
    within(connecting).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_uses_a_released_server() {
    let (_server, address) = released_server().await;
    let client = Client::connect_tcp(&[address], sent_key()).await.unwrap();
    assert_eq!(echo(&client, "hello").await, "hello");
    let long = "x".repeat(3_000_000);
    assert_eq!(echo(&client, &long).await, long);
}

/// Counts what a client sends until it has its first answer, each piece as it arrives.
async fn flights(target: SocketAddr, options: ClientOptions) -> usize {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let counting = tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = near.into_split();
        let far = TcpStream::connect(target).await.unwrap();
        let (mut from_server, mut to_server) = far.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut flights = 0;
        let mut piece = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut piece).await {
            flights += 1;
            to_server.write_all(&piece[..length]).await.unwrap();
        }
        flights
    });
    let options = ClientOptions { reconnect: false, ..options };
    drop(Client::connect_tcp(&[address], options).await.unwrap());
    within(counting).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_flights_bring_the_first_answer() {
    let (_server, released) = released_server().await;
    assert_eq!(flights(released, sent_key()).await, 2);
    let ours = Served::tcp().await;
    for options in [sent_key(), proof()] {
        assert_eq!(flights(ours.address, options).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_server_takes_neither_a_wrong_key_nor_a_proof() {
    let (_server, address) = released_server().await;
    let wrong = Credential::Key(SessionKey::new([8; 32]));
    for options in [ClientOptions::tcp(wrong, DEADLINE), proof()] {
        let error = Client::connect_tcp(&[address], options).await.unwrap_err();
        assert!(matches!(error, ConnectError::Rejected { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_client_uses_our_server() {
    let server = Served::tcp().await;
    let mut client = released_client(server.address).await;
    let long = "x".repeat(3_000_000);
    for text in ["hello", &long] {
        let response =
            within(client.send(ReleasedRequest::new(message("echo", text)))).await.unwrap();
        assert_eq!(response.payload["text"], text);
    }
}

/// Agrees to every method, as released clients may.
struct AgreesToAll(StaticKeyAuthMethodHandler<String>);

#[async_trait]
impl AuthMethodHandler for AgreesToAll {
    async fn on_challenge(&mut self, challenge: Challenge) -> std::io::Result<ChallengeResponse> {
        self.0.on_challenge(challenge).await
    }

    async fn on_verification(
        &mut self,
        verification: Verification,
    ) -> std::io::Result<VerificationResponse> {
        self.0.on_verification(verification).await
    }

    async fn on_info(&mut self, info: Info) -> std::io::Result<()> {
        self.0.on_info(info).await
    }

    async fn on_error(&mut self, error: Error) -> std::io::Result<()> {
        self.0.on_error(error).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_client_that_agrees_to_every_method_is_asked_for_the_key() {
    let server = Served::tcp().await;
    let answer = StaticKeyAuthMethodHandler::simple(key().expose_hex().expose().to_owned());
    let connecting = ReleasedClient::tcp(server.address)
        .auth_handler(SingleAuthHandler::new(AgreesToAll(answer)))
        .version(version())
        .connect::<Message, Message>();
    let mut client = within(connecting).await.unwrap();
    let response =
        within(client.send(ReleasedRequest::new(message("echo", "hello")))).await.unwrap();
    assert_eq!(response.payload["text"], "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_client_hears_our_heartbeats() {
    let heartbeat = Duration::from_millis(20);
    let server = Served::start(ServerOptions { heartbeat, ..ServerOptions::tcp(key()) }).await;
    let silence_duration = Duration::from_secs(2);
    let config = ClientConfig { silence_duration, ..Default::default() };
    let connecting = ReleasedClient::tcp(server.address)
        .auth_handler(AuthHandlerMap::new().with_static_key(released_key()))
        .config(config)
        .version(version())
        .connect::<Message, Message>();
    let client = within(connecting).await.unwrap();
    let mut states = client.clone_connection_watcher();
    tokio::time::timeout(silence_duration.mul_f64(1.5), states.next()).await.unwrap_err();
    assert!(!client.is_finished());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_takes_up_a_connection_to_a_released_server_and_loses_nothing() {
    let (_server, address) = released_server().await;
    let mut proxy = Proxy::start(address).await;
    let client = Client::connect_tcp(&[proxy.address], sent_key()).await.unwrap();
    let mut status = client.status();
    let text = "x".repeat(500);
    let mut replies = client.send(Request::new(&message("many", &text))).await.unwrap();
    for number in 0..MANY {
        let reply: Message = within(replies.next()).await.unwrap().parse().unwrap();
        assert_eq!(reply["text"], format!("{number} {text}"));
        if number % 500 == 250 {
            proxy.cut();
        }
    }
    // Heartbeats must not count: let some pass, then lose a request on its way.
    status.mark_unchanged();
    within(status.wait_for(|status| *status == Status::Connected)).await.unwrap();
    proxy.heartbeats(5).await;
    for number in 0..4 {
        proxy.cut();
        assert_eq!(echo(&client, &number.to_string()).await, number.to_string());
    }
}

fn hasty(patience: Duration) -> ClientOptions {
    let (back_off, attempt) = (Duration::from_millis(10), Duration::from_millis(200));
    ClientOptions { back_off, attempt, patience, ..sent_key() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_server_that_does_not_notice_the_loss_is_given_up_after_a_while() {
    let (_server, address) = released_server().await;
    let proxy = Proxy::start(address).await;
    let client =
        Client::connect_tcp(&[proxy.address], hasty(Duration::from_secs(1))).await.unwrap();
    let lost = std::time::Instant::now();

    // As if the client had come back from another network: the server waits for the old one.
    proxy.strand();

    let mut status = client.status();
    let status = within(status.wait_for(|status| matches!(status, Status::Closed { .. }))).await;
    let Status::Closed { reason } = status.unwrap().clone() else { unreachable!() };
    assert!(reason.contains("take the connection up again"), "{reason}");
    assert!(lost.elapsed() >= Duration::from_secs(1), "it was not waited for");
    assert!(lost.elapsed() < Duration::from_secs(10), "after {:?}", lost.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_server_that_notices_the_loss_in_time_gives_the_connection_back() {
    let (_server, address) = released_server().await;
    let mut proxy = Proxy::start(address).await;
    let client = Client::connect_tcp(&[proxy.address], hasty(DEADLINE)).await.unwrap();
    assert_eq!(echo(&client, "before").await, "before");
    proxy.strand();
    // More attempts than a server gets that may not have noticed.
    within(proxy.connections.wait_for(|connections| *connections > 6)).await.unwrap();

    proxy.cut();

    assert_eq!(echo(&client, "again").await, "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_client_takes_up_a_connection_to_our_server_and_loses_nothing() {
    let heartbeat = Duration::from_millis(50);
    let server = Served::start(ServerOptions { heartbeat, ..ServerOptions::tcp(key()) }).await;
    let proxy = Proxy::start(server.address).await;
    let mut client = released_client(proxy.address).await;
    let text = "x".repeat(500);
    let mut replies =
        within(client.mail(ReleasedRequest::new(message("endless", &text)))).await.unwrap();
    let mut number = 0;
    while *proxy.connections.borrow() < 5 {
        let reply = within(replies.next()).await.unwrap();
        assert_eq!(reply.payload["text"], format!("{number} {text}"));
        if number % 500 == 250 {
            proxy.cut();
        }
        number += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_client_loses_nothing_after_heartbeats_either() {
    let heartbeat = Duration::from_millis(10);
    let server = Served::start(ServerOptions { heartbeat, ..ServerOptions::tcp(key()) }).await;
    let mut proxy = Proxy::start(server.address).await;
    let mut client = released_client(proxy.address).await;
    for number in 0..20 {
        // A released client counts these, and reports them as received.
        proxy.heartbeats(5).await;
        proxy.cut();
        let text = number.to_string();
        let request = ReleasedRequest::new(message("echo", &text));
        let response = within(client.send(request)).await.unwrap();
        assert_eq!(response.payload["text"], text);
    }
}
