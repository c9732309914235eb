//! What comes in at the socket, and how the manager ends.

use serde_json::json;

use super::support::{soon, Fixture, Launched};
use crate::manager::{run, ManagerError, Settings};
use crate::wire::client::{Client, ClientOptions, Status};
use crate::wire::message::{ClientExtension, ManagerRequest, ManagerResponse};

#[tokio::test]
async fn its_version_is_that_of_the_protocol() {
    let manager = Fixture::start().await;
    let version = manager.client().await.one(ManagerRequest::Version).await;
    assert!(matches!(version, ManagerResponse::Version { version } if version == "0.20.0"));
}

#[tokio::test]
async fn what_is_no_request_gets_an_error() {
    let manager = Fixture::start().await;
    let client = manager.client().await;
    for malformed in [
        json!({ "type": "dance" }),
        json!({ "type": "launch" }),
        json!({ "type": "info", "id": "one" }),
        json!({ "type": "info", "id": -1 }),
        json!({ "type": "authenticate", "id": 1, "msg": { "type": "shout" } }),
        json!({ "type": "channel", "id": 1, "request": [] }),
        json!({}),
        json!([]),
        json!(null),
        json!("version"),
    ] {
        let error = client.ask(&malformed).await.error().await;
        assert!(error.starts_with("the request is invalid: "), "{malformed}: {error}");
    }
    assert!(matches!(client.one(ManagerRequest::Version).await, ManagerResponse::Version { .. }));
}

#[tokio::test]
async fn a_second_manager_is_refused() {
    let manager = Fixture::start().await;
    let second = run(Settings::new(&manager.socket), || panic!("it must not start")).await;
    assert!(matches!(second, Err(ManagerError::InUse { .. })));
    assert_eq!(manager.client().await.list().await, []);
}

#[tokio::test]
async fn stop_ends_servers_workers_and_the_manager_and_leaves_nothing() {
    let manager = Fixture::start().await;
    let mut free = Launched::start().await;
    let held = Launched::start().await;
    let _events =
        manager.plugin("free", &format!("{}\nhear; say '{{\"type\":\"done\"}}'", free.offer(1)));
    let mut holds = manager
        .plugin("held", &format!("{}\nhear; log held; while hear; do :; done", held.offer(1)));
    let mut pending = manager.plugin("slow", "log started; while hear; do :; done");
    let client = manager.client().await;
    client.launch_and_connect("free://there").await;
    client.launch_and_connect("held://there").await;
    let mut launch = client.launch("slow://there", "").await;
    assert_eq!(pending.next().await, "started");
    assert_eq!(holds.next().await, "held");

    let own =
        manager.own_client(ClientExtension { stop: true, ..ClientExtension::default() }).await;
    let stopped = own.one(ManagerRequest::Version).await;

    assert!(matches!(stopped, ManagerResponse::Version { .. }));
    assert_eq!(free.event().await, "stop");
    assert_eq!(holds.next().await, "cancelled");
    assert_eq!(pending.next().await, "cancelled");
    assert!(launch.error().await.contains("cancelled"));
    let (result, folder) = manager.ended().await;
    result.unwrap();
    for name in ["it.sock", "it.sock.lock", "it.sock~"] {
        assert!(!folder.path().join(name).exists(), "{name}");
    }
    let mut status = client.client.status();
    let closed = status.wait_for(|status| matches!(status, Status::Closed { .. })).await;
    assert!(closed.is_ok());
}

#[tokio::test]
async fn who_comes_while_a_manager_ends_gets_the_next_one() {
    let manager = Fixture::start().await;
    let gate = manager.gate();
    let body = format!("log started; read -r _; log asked; read -r _ <'{}'", gate.display());
    let mut events = manager.plugin("slow", &body);
    let client = manager.client().await;
    let _launch = client.launch("slow://there", "").await;
    assert_eq!(events.next().await, "started");
    // Another name for the same socket, as whoever has just connected to it has it.
    let late = manager.folder.path().join("late.sock");
    std::fs::hard_link(&manager.socket, &late).unwrap();
    let own =
        manager.own_client(ClientExtension { stop: true, ..ClientExtension::default() }).await;
    let mut stopped = own.ask(&ManagerRequest::Version).await;
    assert_eq!(events.next().await, "asked");

    let refused = Client::connect_unix(&late, ClientOptions::unix(), ()).await.unwrap_err();
    assert_eq!(refused.to_string(), "the manager is about to end");
    let (sender, mut ready) = tokio::sync::oneshot::channel();
    let next = run(Settings::new(&manager.socket), move || sender.send(()).unwrap());
    let next = tokio::spawn(next);
    assert!(ready.try_recv().is_err());

    tokio::fs::write(&gate, "go\n").await.unwrap();
    assert!(matches!(stopped.next().await, ManagerResponse::Version { .. }));
    soon("the next manager", ready).await.unwrap();
    let socket = manager.socket.clone();
    let (result, _folder) = manager.ended().await;
    result.unwrap();
    assert!(Client::connect_unix(&socket, ClientOptions::unix(), ()).await.is_ok());
    next.abort();
}

#[tokio::test]
async fn clients_are_limited_and_the_one_too_many_is_told() {
    let manager = Fixture::with(|limits| limits.clients = 2).await;
    let (first, second) = (manager.client().await, manager.client().await);
    let connect = || Client::connect_unix(&manager.socket, ClientOptions::unix(), ());
    let refused = connect().await.unwrap_err();
    assert_eq!(refused.to_string(), "the limit of 2 clients is reached");
    assert_eq!(second.list().await, []);

    drop(first);
    soon("its place", async { while connect().await.is_err() {} }).await;
}
