//! A manager, plugins that are shell scripts, and servers, all within one test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use distant_plugin_api::destination::Destination;
use distant_plugin_api::secret::{Secret, SessionKey};
use distant_plugin_api::LaunchError;
use serde_json::{json, Value};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::manager::{run, Limits, ManagerError, Settings};
use crate::plugin;
use crate::plugin::{Folder, Origin};
use crate::wire::client::{Client, ClientOptions, Replies};
use crate::wire::envelope::{Request, Response};
use crate::wire::message::{
    AuthenticationResponse, ClientExtension, Header, ManagerExtension, ManagerRequest,
    ManagerResponse, UntypedRequest, EXTENSION,
};
use crate::wire::server::{serve, Peer, Reply, ServerOptions, Service};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must come.
pub(super) async fn soon<T>(what: &str, future: impl std::future::Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} did not come"),
    }
}

/// A port that refuses every connection, and that nobody else gets meanwhile.
pub(super) fn nobody() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    socket
}

/// A manager with a folder, a socket and plugins of its own.
pub(super) struct Fixture {
    pub(super) folder: tempfile::TempDir,
    pub(super) socket: PathBuf,
    running: JoinHandle<Result<(), ManagerError>>,
}

impl Fixture {
    /// Starts a manager that has the usual limits.
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts a manager with other limits.
    pub(super) async fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("it.sock");
        let plugins = folder.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        let mut limits = Limits::default();
        change(&mut limits);
        let settings = Settings {
            socket: socket.clone(),
            access: Default::default(),
            plugins: plugin::Settings {
                config: folder.path().join("plugins.toml"),
                cache: folder.path().join("plugins.json"),
                program: Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plugin/support/worker.sh"),
                folders: vec![Folder { path: plugins, origin: Origin::Program }],
                // Every plugin here ends when it is told to, however long it takes this machine.
                limits: plugin::Limits { grace: PATIENCE, ..plugin::Limits::default() },
                ..plugin::Settings::default()
            },
            limits,
        };
        let (sender, ready) = tokio::sync::oneshot::channel();
        let running = tokio::spawn(run(settings, move || sender.send(()).unwrap()));
        soon("the manager", ready).await.unwrap();
        Self { folder, socket, running }
    }

    /// Installs a plugin that does `body` once it has its launch request, and tells what it logs.
    pub(super) fn plugin(&self, name: &str, body: &str) -> Events {
        let events = Events::new(&self.folder.path().join(format!("{name}.events")));
        let fifo = events.path.display();
        let options = r#"[{"name":"password","type":"string","secret":true},{"name":"verbose","type":"bool"}]"#;
        let script = format!(
            r#"#!/bin/sh
log() {{ printf '%s\n' "$1" >'{fifo}'; }}
say() {{ printf '%s\n' "$1"; }}
hear() {{
    IFS= read -r line || {{ log eof; exit 0; }}
    case $line in *'"type":"cancel"'*) log cancelled; exit 0;; esac
}}
greet() {{
    IFS= read -r line || exit 0
    case $line in *'"type":"cancel"'*) exit 0;; esac
}}
say '{{"type":"hello","protocol":[1,1],"manifest":{{"name":"{name}","schemes":["{name}"],"options":{options}}}}}'
greet
greet
{body}
"#
        );
        let path = self.folder.path().join("plugins").join(format!("distant-plugin-{name}"));
        std::fs::write(&path, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        events
    }

    /// Makes what a plugin can wait at, until something is written to it.
    pub(super) fn gate(&self) -> PathBuf {
        let path = self.folder.path().join("gate");
        make_fifo(&path);
        path
    }

    /// Connects like a released program.
    pub(super) async fn client(&self) -> Person {
        let connecting = Client::connect_unix(&self.socket, ClientOptions::unix(), ());
        let client = soon("the socket", connecting).await.unwrap();
        Person { client, extension: None }
    }

    /// Connects like our own program.
    pub(super) async fn own_client(&self, extension: ClientExtension) -> Person {
        let extension = ClientExtension { version: 1, ..extension };
        Person { extension: Some(extension), ..self.client().await }
    }

    /// Waits until the manager has ended.
    pub(super) async fn ended(self) -> (Result<(), ManagerError>, tempfile::TempDir) {
        (soon("the end", self.running).await.unwrap(), self.folder)
    }
}

fn make_fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
}

/// What a plugin logs, line by line.
pub(super) struct Events {
    path: PathBuf,
    lines: Lines<BufReader<pipe::Receiver>>,
}

impl Events {
    fn new(path: &Path) -> Self {
        make_fifo(path);
        // Open for writing too, so that it has no end between two writers.
        let pipe = pipe::OpenOptions::new().read_write(true).open_receiver(path).unwrap();
        Self { path: path.to_owned(), lines: BufReader::new(pipe).lines() }
    }

    /// Waits for the next line.
    pub(super) async fn next(&mut self) -> String {
        soon("an event", self.lines.next_line()).await.unwrap().unwrap()
    }

    /// Waits for the next line, which is JSON.
    pub(super) async fn next_json(&mut self) -> Value {
        serde_json::from_str(&self.next().await).unwrap()
    }
}

/// A client of a manager.
pub(super) struct Person {
    pub(super) client: Client,
    extension: Option<ClientExtension>,
}

impl Person {
    /// Sends a request.
    pub(super) async fn ask(&self, payload: &impl serde::Serialize) -> Answers {
        let mut request = Request::new(payload);
        if let Some(extension) = &self.extension {
            let value = serde_json::to_value(extension).unwrap();
            request.header.insert(EXTENSION.to_owned(), value);
        }
        Answers(self.client.send(request).await.unwrap())
    }

    /// Sends a request that has one reply.
    pub(super) async fn one(&self, request: ManagerRequest) -> ManagerResponse {
        self.ask(&request).await.next().await
    }

    /// Launches.
    pub(super) async fn launch(&self, destination: &str, options: &str) -> Answers {
        let (destination, options) = (Secret::new(destination), Secret::new(options));
        self.ask(&ManagerRequest::Launch { destination, options }).await
    }

    /// Connects to what a launch has given.
    pub(super) async fn connect(&self, destination: &Secret) -> ManagerResponse {
        let options = Secret::default();
        self.one(ManagerRequest::Connect { destination: destination.clone(), options }).await
    }

    /// Launches and connects, with nothing in between.
    pub(super) async fn launch_and_connect(&self, destination: &str) -> u32 {
        let launched = self.launch(destination, "").await.launched().await;
        match self.connect(&launched).await {
            ManagerResponse::Connected { id } => id,
            other => panic!("{other:?}"),
        }
    }

    /// Answers a question.
    pub(super) async fn answer(&self, id: u32, msg: AuthenticationResponse) -> Answers {
        self.ask(&ManagerRequest::Authenticate { id, msg }).await
    }

    /// Ids and destinations of all connections.
    pub(super) async fn list(&self) -> Vec<(u32, String)> {
        match self.one(ManagerRequest::List).await {
            ManagerResponse::List(list) => list.0.into_iter().collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Opens a channel.
    pub(super) async fn channel(&self, connection: u32) -> Channel<'_> {
        let mut replies = self.ask(&ManagerRequest::OpenChannel { id: connection }).await;
        match replies.next().await {
            ManagerResponse::ChannelOpened { id } => Channel { person: self, id, replies },
            other => panic!("{other:?}"),
        }
    }
}

/// What a manager answers to one request.
pub(super) struct Answers(Replies);

impl Answers {
    /// Waits for the next reply, with its header.
    pub(super) async fn response(&mut self) -> Response {
        soon("a reply", self.0.next()).await.expect("the connection is there")
    }

    /// Waits for the next reply.
    pub(super) async fn next(&mut self) -> ManagerResponse {
        self.response().await.parse().unwrap()
    }

    /// Waits for a server, and returns its address with the ticket.
    pub(super) async fn launched(&mut self) -> Secret {
        match self.next().await {
            ManagerResponse::Launched { destination } => destination,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a failure.
    pub(super) async fn error(&mut self) -> String {
        match self.next().await {
            ManagerResponse::Error { description } => description,
            other => panic!("{other:?}"),
        }
    }
}

/// A channel to a server.
pub(super) struct Channel<'a> {
    person: &'a Person,
    pub(super) id: u32,
    replies: Answers,
}

impl Channel<'_> {
    /// Sends a request to the server.
    pub(super) async fn send(&self, id: &str, payload: Value) -> Answers {
        let payload = rmp_serde::to_vec_named(&payload).unwrap().into();
        let request = UntypedRequest { header: Header::new(), id: id.to_owned(), payload };
        self.person.ask(&ManagerRequest::Channel { id: self.id, request }).await
    }

    /// Waits for what the server replies next, and to which request.
    pub(super) async fn next(&mut self) -> (String, Value) {
        match self.replies.next().await {
            ManagerResponse::Channel { id, response } => {
                assert_eq!(id, self.id);
                (response.origin_id, rmp_serde::from_slice(&response.payload).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the manager to close it, whatever comes before, and returns why, if it says so.
    pub(super) async fn closed(&mut self) -> Option<LaunchError> {
        loop {
            let response = self.replies.response().await;
            match response.parse().unwrap() {
                ManagerResponse::ChannelClosed { id } => {
                    assert_eq!(id, self.id);
                    let extension = response.header.get(EXTENSION)?.clone();
                    match serde_json::from_value(extension).unwrap() {
                        ManagerExtension::Error(reason) => return Some(reason),
                        other => panic!("{other:?}"),
                    }
                }
                ManagerResponse::Channel { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A server that a plugin can offer.
pub(super) struct Launched {
    pub(super) port: u16,
    pub(super) key: SessionKey,
    end: CancellationToken,
    events: mpsc::UnboundedReceiver<String>,
    looks: watch::Receiver<u32>,
}

impl Launched {
    /// Starts one.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let key = SessionKey::new(rand::random());
        let end = CancellationToken::new();
        let (sender, events) = mpsc::unbounded_channel();
        let (count, looks) = watch::channel(0);
        let service = Arc::new(Does { events: sender, end: end.clone(), looks: count });
        tokio::spawn(serve(listener, ServerOptions::tcp(key.clone()), service, end.clone()));
        Self { port, key, end, events, looks }
    }

    /// The offer of it that a plugin makes, by id.
    pub(super) fn offer(&self, id: u64) -> String {
        self.offer_with(id, json!({}))
    }

    /// An offer with other members too.
    pub(super) fn offer_with(&self, id: u64, more: Value) -> String {
        let mut offer = json!({
            "type": "offer", "id": id, "host": "127.0.0.1", "port": self.port,
            "key": self.key.expose_hex().expose(), "proof": true, "pid": 4242,
        });
        for (name, value) in more.as_object().unwrap() {
            offer[name] = value.clone();
        }
        format!("say '{offer}'")
    }

    /// Waits for what somebody makes it do.
    pub(super) async fn event(&mut self) -> String {
        soon("an event of the server", self.events.recv()).await.unwrap()
    }

    /// Waits until somebody has asked so often whether it is there.
    pub(super) async fn looked_at(&self, times: u32) {
        self.looks.clone().wait_for(|looks| *looks >= times).await.unwrap();
    }

    /// Ends it as a crash would, for its connections.
    pub(super) fn end(&self) {
        self.end.cancel();
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        soon("the server's end", self.end.cancelled()).await;
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// What the server can do.
struct Does {
    looks: watch::Sender<u32>,
    events: mpsc::UnboundedSender<String>,
    end: CancellationToken,
}

#[async_trait]
impl Service for Does {
    type Session = ();

    fn open(&self, _connection: u32, _peer: &Peer) {}

    async fn handle(&self, _session: Arc<()>, request: Request, reply: Reply) {
        let payload: Value = request.parse().unwrap();
        let does_stop = request.header.get(EXTENSION).is_some_and(|it| it["stop"] == true);
        match payload["type"].as_str().unwrap() {
            "version" => {
                let _ = reply.send(&json!({ "type": "version" })).await;
                self.looks.send_modify(|looks| *looks += 1);
                if does_stop {
                    let _ = self.events.send("stop".to_owned());
                    self.end.cancel();
                }
            }
            "proc_spawn" => {
                let _ = self.events.send(payload["cmd"].as_str().unwrap().to_owned());
                self.end.cancel();
            }
            "echo" => {
                let _ = self.events.send(payload["text"].to_string());
                let _ = reply.send(&payload).await;
            }
            "count" => {
                for number in 0..payload["to"].as_u64().unwrap() {
                    let text = "x".repeat(payload["size"].as_u64().unwrap_or(1) as usize);
                    if reply.send(&json!({ "number": number, "text": text })).await.is_err() {
                        break;
                    }
                }
                let _ = self.events.send("counted".to_owned());
            }
            other => panic!("{other}"),
        }
    }

    fn malformed(&self, reason: &str) -> Vec<u8> {
        rmp_serde::to_vec_named(&json!({ "type": "error", "description": reason })).unwrap()
    }
}

/// The ticket in a launch's result.
pub(super) fn ticket(destination: &Secret) -> Secret {
    let destination: Destination = destination.expose().parse().unwrap();
    destination.password.unwrap()
}
