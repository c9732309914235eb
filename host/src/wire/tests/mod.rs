//! Both ends against each other and against those of the released crates.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use distant_plugin_api::secret::SessionKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::client::connect::{establish, Established, Identity};
use super::client::{Client, ClientOptions, Credential};
use super::envelope::Request;
use super::message::Header;
use super::pack;
use super::server::{self, Peer, Reply, ServerOptions, Service};
use super::stream::Stream;

mod channel;
mod limits;
mod malformed;
mod middle;
mod properties;
mod reconnect;
mod released;
mod together;
mod told;

/// The payload of all requests and replies here.
type Message = BTreeMap<String, String>;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(30);

fn message(kind: &str, text: &str) -> Message {
    [("type", kind), ("text", text)].map(|(name, value)| (name.into(), value.into())).into()
}

fn key() -> SessionKey {
    SessionKey::new([7; 32])
}

fn proof() -> ClientOptions {
    ClientOptions::tcp(Credential::Proof(key()), DEADLINE)
}

fn sent_key() -> ClientOptions {
    ClientOptions::tcp(Credential::Key(key()), DEADLINE)
}

async fn within<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("nothing happened for too long")
}

/// Sends a text and returns what comes back.
async fn echo(client: &Client, text: &str) -> String {
    let mut replies = client.send(Request::new(&message("echo", text))).await.unwrap();
    let response = within(replies.next()).await.expect("no reply");
    response.parse::<Message>().unwrap()["text"].clone()
}

/// What a service gets to know about its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Open,
    Attached,
    Detached,
    Closed,
    Handled,
}

fn message_of(text: &str) -> Message {
    message("reply", text)
}

struct Echo {
    events: mpsc::UnboundedSender<Event>,
    /// Replies to `endless` that were taken off its hands.
    sent: watch::Sender<u64>,
}

impl Echo {
    fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { events, sent: watch::channel(0).0 }), receiver)
    }
}

#[async_trait]
impl Service for Echo {
    type Session = ();

    fn open(&self, _connection: u32, _peer: &Peer) {
        let _ = self.events.send(Event::Open);
    }

    fn attached(&self, (): &()) {
        let _ = self.events.send(Event::Attached);
    }

    fn detached(&self, (): &()) {
        let _ = self.events.send(Event::Detached);
    }

    fn closed(&self, (): &()) {
        let _ = self.events.send(Event::Closed);
    }

    async fn handle(&self, _session: Arc<()>, request: Request, reply: Reply) {
        let _ = self.events.send(Event::Handled);
        let Ok(message) = request.parse::<Message>() else {
            let payload = self.malformed("not understood").into();
            let _ = reply.send_bytes(Header::new(), payload).await;
            return;
        };
        match message["type"].as_str() {
            "panic" => panic!("as it was told to"),
            "silence" => reply.closed().await,
            // Replies until told otherwise, each with its number.
            "endless" => {
                for number in 0.. {
                    let text = format!("{number} {}", message["text"]);
                    if reply.send(&message_of(&text)).await.is_err() {
                        break;
                    }
                    self.sent.send_modify(|sent| *sent += 1);
                }
            }
            _ => {
                let _ = reply.send(&message).await;
            }
        }
    }

    fn malformed(&self, reason: &str) -> Vec<u8> {
        pack(&message("error", reason))
    }
}

/// A server of ours.
struct Served {
    address: SocketAddr,
    events: mpsc::UnboundedReceiver<Event>,
    /// See [`Echo::sent`].
    sent: watch::Receiver<u64>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start(options: ServerOptions) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (service, events) = Echo::new();
        let sent = service.sent.subscribe();
        let shutdown = CancellationToken::new();
        let serving = server::serve(listener, options, service, shutdown.clone());
        Self { address, events, sent, shutdown, task: tokio::spawn(serving) }
    }

    async fn tcp() -> Self {
        Self::start(ServerOptions::tcp(key())).await
    }

    /// Waits for an event; all before it are skipped.
    async fn until(&mut self, wanted: Event) {
        within(async { while self.events.recv().await.expect("the server is gone") != wanted {} })
            .await;
    }
}

/// A TCP connection in the middle, to be cut.
struct Proxy {
    address: SocketAddr,
    /// Where new connections lead.
    target: watch::Sender<SocketAddr>,
    cuts: watch::Sender<Cut>,
    /// Connections so far.
    connections: watch::Receiver<u64>,
    /// Pieces so far that came from servers. Each heartbeat of an idle connection is one.
    heard: watch::Receiver<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    None,
    Both,
    /// The server does not notice.
    Near,
}

impl Proxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, targets) = watch::channel(target);
        let cuts = watch::channel(Cut::None).0;
        let sender = cuts.clone();
        let (count, connections) = watch::channel(0);
        let (pieces, heard) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                count.send_modify(|count| *count += 1);
                let mut cut = sender.subscribe();
                let target = *targets.borrow();
                let pieces = pieces.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
                    let back = carry(from_far, to_near, || pieces.send_modify(|count| *count += 1));
                    tokio::select! {
                        _ = async { tokio::join!(carry(from_near, to_far, || ()), back) } => return,
                        _ = cut.changed() => {}
                    }
                    drop(near);
                    if matches!(*cut.borrow_and_update(), Cut::Near) {
                        // Until the next cut.
                        let _ = cut.changed().await;
                    }
                });
            }
        });
        Self { address, target, cuts, connections, heard }
    }

    /// Waits for that many heartbeats of connections on which nothing else is said.
    async fn heartbeats(&mut self, count: u64) {
        let enough = *self.heard.borrow() + count;
        within(self.heard.wait_for(|heard| *heard >= enough)).await.unwrap();
    }

    /// Cuts all connections; new ones get through.
    fn cut(&self) {
        self.cuts.send_replace(Cut::Both);
    }

    /// Cuts all connections so that only the clients notice.
    fn strand(&self) {
        self.cuts.send_replace(Cut::Near);
    }
}

/// Copies one direction of a connection until it ends, and tells of each piece.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, heard: impl Fn()) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        heard();
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Sets up what a client or server of another kind could: connected, authenticated by the key.
async fn raw_client(address: SocketAddr) -> (Stream<TcpStream>, Identity) {
    let socket = TcpStream::connect(address).await.unwrap();
    let Established { stream, identity } =
        within(establish(socket, &sent_key(), &mut (), None)).await.unwrap();
    (stream, identity)
}
