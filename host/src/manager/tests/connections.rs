//! Connections are listed without keys, and end with their servers.

use std::time::Duration;

use distant_plugin_api::secret::Secret;
use serde_json::json;

use super::support::{nobody, soon, Answers, Fixture, Launched, Person};
use crate::wire::client::Status;
use crate::wire::message::{ClientExtension, ManagerRequest, ManagerResponse, EXTENSION};

/// Offers a server and lets go of it.
fn lets_go(offer: &str) -> String {
    format!("{offer}\nhear; say '{{\"type\":\"done\"}}'")
}

/// Offers a server and holds it until it is told to go.
fn holds(offer: &str) -> String {
    format!("{offer}\nhear; log held; while hear; do :; done")
}

async fn error(person: &Person, request: ManagerRequest) -> String {
    person.ask(&request).await.error().await
}

async fn connect(person: &Person, destination: &str, options: &str) -> ManagerResponse {
    let (destination, options) = (Secret::new(destination), Secret::new(options));
    person.one(ManagerRequest::Connect { destination, options }).await
}

/// Waits until a connection is listed no more.
async fn unlisted(person: &Person) {
    soon("the end of the connection", async {
        while !person.list().await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_listed_holds_no_secret() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let _events = manager.plugin("box", &holds(&server.offer(1)));
    let client = manager.client().await;
    let options = "password=hunter2,BOX.password=hunter2,verbose=false,distant.args=\"-x\"";
    let launched = client.launch("box://me:hunter2@there", options).await.launched().await;
    let ManagerResponse::Connected { id } = client.connect(&launched).await else { panic!() };

    let ManagerResponse::Info(info) = client.one(ManagerRequest::Info { id }).await else {
        panic!()
    };
    assert_eq!(info.destination, format!("distant://127.0.0.1:{}", server.port));
    assert_eq!(info.options, r#"distant.args="-x",verbose="false""#);
}

#[tokio::test]
async fn an_unknown_id_is_said_to_be_one_in_the_words_of_0_20() {
    let manager = Fixture::start().await;
    let client = manager.client().await;
    assert_eq!(error(&client, ManagerRequest::Info { id: 1 }).await, "No connection found");
    assert_eq!(error(&client, ManagerRequest::Kill { id: 1 }).await, "No connection found");
    let open = ManagerRequest::OpenChannel { id: 1 };
    assert_eq!(error(&client, open).await, "Connection does not exist");
    let close = ManagerRequest::CloseChannel { id: 1 };
    assert_eq!(error(&client, close).await, "Channel is not open or does not exist");
}

#[tokio::test]
async fn kill_cancels_the_plugin_that_holds_a_server() {
    let manager = Fixture::start().await;
    let mut server = Launched::start().await;
    let mut events = manager.plugin("box", &holds(&server.offer(1)));
    let client = manager.client().await;
    let id = client.launch_and_connect("box://there").await;
    assert_eq!(events.next().await, "held");

    assert!(matches!(client.one(ManagerRequest::Kill { id }).await, ManagerResponse::Killed));
    assert_eq!(events.next().await, "cancelled");
    // This plugin forgot its server; then the connection is used as well.
    assert_eq!(server.event().await, "stop");
    assert_eq!(client.list().await, []);
}

#[tokio::test]
async fn kill_asks_a_server_of_ours_to_end_and_makes_a_released_one_kill_itself() {
    let manager = Fixture::start().await;
    for (name, proof, expected) in
        [("ours", true, "stop"), ("released", false, "sh -c 'kill $PPID'")]
    {
        let mut server = Launched::start().await;
        let offer = server.offer_with(1, json!({ "proof": proof, "pid": null }));
        let _events = manager.plugin(name, &lets_go(&offer));
        let client = manager.client().await;
        let id = client.launch_and_connect(&format!("{name}://there")).await;
        assert!(matches!(client.one(ManagerRequest::Kill { id }).await, ManagerResponse::Killed));
        assert_eq!(server.event().await, expected);
        server.ended().await;
        assert_eq!(client.list().await, []);
    }
}

#[tokio::test]
async fn who_ends_a_server_that_is_out_of_reach_hears_that_it_is_waited_for() {
    let manager = Fixture::with(|limits| limits.kill = Duration::from_millis(300)).await;
    let server = Launched::start().await;
    let gate = manager.gate();
    // The worker stays until the connection is lost, and leaves a server that lives.
    let body = format!("{}\nhear; log held; read -r _ <'{}'", server.offer(1), gate.display());
    let mut events = manager.plugin("box", &body);
    let client = manager.own_client(ClientExtension::default()).await;
    let launched = client.launch("box://there", "").await;
    let id = connected_after(launched, &client).await;
    assert_eq!(events.next().await, "held");
    tokio::fs::write(&gate, "go\n").await.unwrap();
    soon("a look at the server", server.looked_at(2)).await;
    server.end();
    soon("the loss", async {
        loop {
            let ManagerResponse::Info(info) = client.one(ManagerRequest::Info { id }).await else {
                panic!()
            };
            if info.options.contains("reconnecting") {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;

    let mut replies = client.ask(&ManagerRequest::Kill { id }).await;

    let notice = replies.response().await.header[EXTENSION]["notice"]["text"].clone();
    assert_eq!(notice, "the server cannot be reached now; it is waited for 0.3 s");
    assert!(replies.error().await.contains("its server cannot be reached"));
}

/// Redeems a launch of a client that also hears how it goes.
async fn connected_after(mut replies: Answers, client: &Person) -> u32 {
    let launched = loop {
        match replies.next().await {
            ManagerResponse::Launched { destination } => break destination,
            ManagerResponse::Authenticate { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    match client.connect(&launched).await {
        ManagerResponse::Connected { id } => id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_was_only_connected_to_is_left_alone() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let client = manager.client().await;
    let (key, port) = (server.key.expose_hex(), server.port);
    let address = format!("distant://:{}@127.0.0.1:{port}", key.expose());
    let ManagerResponse::Connected { id } = connect(&client, &address, "").await else { panic!() };
    assert_eq!(client.list().await, [(id, format!("distant://127.0.0.1:{port}"))]);

    assert!(matches!(client.one(ManagerRequest::Kill { id }).await, ManagerResponse::Killed));
    assert_eq!(client.list().await, []);
    // It is still there for the next one.
    assert!(matches!(connect(&client, &address, "").await, ManagerResponse::Connected { .. }));
}

#[tokio::test]
async fn a_key_may_be_an_option_and_may_be_proved() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let client = manager.client().await;
    let address = format!("127.0.0.1:{}", server.port);
    let key = server.key.expose_hex();
    for options in [format!("key={}", key.expose()), format!("key={},proof=true", key.expose())] {
        let connected = connect(&client, &address, &options).await;
        let ManagerResponse::Connected { id } = connected else { panic!("{connected:?}") };
        let info = client.one(ManagerRequest::Info { id }).await;
        let ManagerResponse::Info(info) = info else { panic!() };
        assert!(!info.options.contains(key.expose()), "{}", info.options);
    }
}

#[tokio::test]
async fn what_cannot_be_connected_to_is_explained() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let client = manager.own_client(ClientExtension::default()).await;
    let nobody = nobody();
    let closed = nobody.local_addr().unwrap();
    let key = "00".repeat(32);
    for (destination, options, expected) in [
        ("ssh://there".to_owned(), "", "nothing connects to `ssh://` without a launch"),
        (format!("distant://:{key}@there"), "", "has no port"),
        ("distant://:nokey@127.0.0.1:1".to_owned(), "", "64 hexadecimal digits"),
        (format!("distant://:{key}@{closed}"), "", "refused"),
        (format!("distant://:{key}@127.0.0.1:{}", server.port), "", "cannot connect to"),
        (format!("distant://127.0.0.1:{}", server.port), "", "nobody gave the server's key"),
        (format!("distant://:{key}@{closed}"), "kei=1", "did you mean `key`?"),
    ] {
        let connected = connect(&client, &destination, options).await;
        let ManagerResponse::Error { description } = connected else { panic!("{connected:?}") };
        assert!(description.contains(expected), "{description}");
        assert!(!description.contains(&key), "{description}");
    }
}

#[tokio::test]
async fn a_mute_server_is_given_up_when_the_time_is_over() {
    let manager = Fixture::with(|limits| limits.connect = Duration::from_millis(50)).await;
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = manager.client().await;
    let destination = format!("distant://:{}@{}", "00".repeat(32), mute.local_addr().unwrap());
    let connected = connect(&client, &destination, "").await;
    let ManagerResponse::Error { description } = connected else { panic!("{connected:?}") };
    assert!(description.contains("did not answer within 50 ms"), "{description}");
}

#[tokio::test]
async fn a_client_that_connects_too_often_at_once_is_refused() {
    let manager = Fixture::with(|limits| limits.pending = 1).await;
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = manager.client().await;
    let destination = format!("distant://:{}@{}", "00".repeat(32), mute.local_addr().unwrap());
    let request = |destination: &str| ManagerRequest::Connect {
        destination: Secret::new(destination),
        options: Secret::default(),
    };
    let _first = client.ask(&request(&destination)).await;
    let refused = error(&client, request(&destination)).await;
    assert!(refused.contains("1 launches and connects"), "{refused}");
}

#[tokio::test]
async fn a_server_that_ends_with_its_worker_is_dropped() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let gate = manager.gate();
    let body = format!("{}\nhear; log held; read -r _ <'{}'", server.offer(1), gate.display());
    let mut events = manager.plugin("box", &body);
    let client = manager.client().await;
    client.launch_and_connect("box://there").await;
    assert_eq!(events.next().await, "held");

    server.end();
    tokio::fs::write(&gate, "go\n").await.unwrap();

    unlisted(&client).await;
}

#[tokio::test]
async fn a_worker_that_lets_go_leaves_the_connection() {
    let manager = Fixture::start().await;
    let mut server = Launched::start().await;
    let _events = manager.plugin("box", &lets_go(&server.offer(1)));
    let client = manager.client().await;
    let id = client.launch_and_connect("box://there").await;
    let mut channel = client.channel(id).await;
    channel.send("1", json!({ "type": "echo", "text": "still there" })).await;
    assert_eq!(server.event().await, "\"still there\"");
    assert_eq!(channel.next().await.0, "1");
    assert_eq!(client.list().await.len(), 1);
    assert_eq!(*client.client.status().borrow(), Status::Connected);
}
