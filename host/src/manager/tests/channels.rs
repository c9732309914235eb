//! Many clients share one connection without getting in each other's way.

use std::time::Duration;

use serde_json::json;

use super::support::{Fixture, Launched, Person};
use crate::wire::message::{ClientExtension, ManagerRequest, ManagerResponse};

async fn connected(manager: &Fixture, server: &Launched, client: &Person) -> u32 {
    // Ends at whatever it hears after the verdict.
    let _events = manager.plugin("box", &format!("{}\nhear; read -r _", server.offer(1)));
    client.launch_and_connect("box://there").await
}

#[tokio::test]
async fn each_channel_gets_the_replies_to_its_own_requests() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let (one, two) = (manager.client().await, manager.client().await);
    let id = connected(&manager, &server, &one).await;
    let (mut first, mut second) = (one.channel(id).await, two.channel(id).await);
    assert_ne!(first.id, second.id);
    first.send("7", json!({ "type": "echo", "text": "first" })).await;
    second.send("7_a", json!({ "type": "echo", "text": "second" })).await;
    let (origin, payload) = first.next().await;
    assert_eq!((origin.as_str(), &payload["text"]), ("7", &json!("first")));
    let (origin, payload) = second.next().await;
    assert_eq!((origin.as_str(), &payload["text"]), ("7_a", &json!("second")));
}

#[tokio::test]
async fn requests_of_a_channel_arrive_in_their_order() {
    let manager = Fixture::start().await;
    let mut server = Launched::start().await;
    let client = manager.client().await;
    let id = connected(&manager, &server, &client).await;
    let channel = client.channel(id).await;
    let mut sent = Vec::new();
    for number in 0..200 {
        sent.push(channel.send("1", json!({ "type": "echo", "text": number })).await);
    }
    for number in 0..200 {
        assert_eq!(server.event().await, number.to_string());
    }
}

#[tokio::test]
async fn a_request_may_have_many_replies() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let client = manager.client().await;
    let id = connected(&manager, &server, &client).await;
    let mut channel = client.channel(id).await;
    channel.send("1", json!({ "type": "count", "to": 500 })).await;
    for number in 0..500 {
        assert_eq!(channel.next().await.1["number"], number);
    }
}

#[tokio::test]
async fn a_channel_is_its_clients_alone_and_ends_with_it() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let (one, two) = (manager.client().await, manager.client().await);
    let id = connected(&manager, &server, &one).await;
    let channel = one.channel(id).await;
    let not_open = "Channel is not open or does not exist";
    let close = ManagerRequest::CloseChannel { id: channel.id };
    assert_eq!(two.ask(&close).await.error().await, not_open);
    let closed = one.one(close.clone()).await;
    assert!(matches!(closed, ManagerResponse::ChannelClosed { id } if id == channel.id));
    let late = channel.send("1", json!({ "type": "version" })).await.error().await;
    assert_eq!(late, not_open);
}

#[tokio::test]
async fn channels_close_when_their_connection_is_killed() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let (one, two) = (manager.client().await, manager.client().await);
    let id = connected(&manager, &server, &one).await;
    let own = manager.own_client(ClientExtension::default()).await;
    let (mut channel, mut told) = (two.channel(id).await, own.channel(id).await);
    assert!(matches!(one.one(ManagerRequest::Kill { id }).await, ManagerResponse::Killed));
    // A released program would not know what to do with a reason.
    assert_eq!(channel.closed().await, None);
    let reason = told.closed().await.unwrap();
    assert_eq!(reason.one_line(), format!("the connection {id} is over: it was ended here"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_neither_grows_the_manager_nor_holds_up_others() {
    let manager = Fixture::with(|limits| {
        limits.backlog = 64 * 1024;
        limits.patience = Duration::from_millis(50);
    })
    .await;
    let mut server = Launched::start().await;
    let idle = manager.own_client(ClientExtension::default()).await;
    let busy = manager.client().await;
    let id = connected(&manager, &server, &busy).await;
    let mut flooded = idle.channel(id).await;
    let mut channel = busy.channel(id).await;

    // More than all queues on the way to a client hold together.
    flooded.send("1", json!({ "type": "count", "to": 400, "size": 8 * 1024 })).await;
    channel.send("2", json!({ "type": "echo", "text": "me too" })).await;

    assert_eq!(channel.next().await.0, "2");
    // What comes after all of the flood gets through only past a channel that is closed.
    while server.event().await != "counted" {}
    channel.send("3", json!({ "type": "echo", "text": "me again" })).await;
    assert_eq!(channel.next().await.0, "3");
    let reason = flooded.closed().await;
    assert!(reason.unwrap().one_line().contains("more than 64 KiB waited"));
    assert_eq!(busy.list().await.len(), 1);
}

#[tokio::test]
async fn a_client_that_is_only_slow_gets_everything() {
    let manager = Fixture::with(|limits| limits.backlog = 64 * 1024).await;
    let server = Launched::start().await;
    let client = manager.client().await;
    let id = connected(&manager, &server, &client).await;
    let mut channel = client.channel(id).await;
    channel.send("1", json!({ "type": "count", "to": 100, "size": 16 * 1024 })).await;
    for number in 0..100 {
        assert_eq!(channel.next().await.1["number"], number);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_may_not_open_channels_without_end() {
    let manager = Fixture::with(|limits| limits.channels = 2).await;
    let server = Launched::start().await;
    let client = manager.client().await;
    let id = connected(&manager, &server, &client).await;
    let _two = (client.channel(id).await, client.channel(id).await);
    let error = client.ask(&ManagerRequest::OpenChannel { id }).await.error().await;
    assert!(error.contains("2 open channels"), "{error}");
}
