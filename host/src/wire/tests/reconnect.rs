//! Connections of ours that are lost and made again.

use super::*;
use crate::wire::client::Status;
use crate::wire::envelope::Response;
use crate::wire::handshake::{Connect, Counters, Exchange, ExchangeHalf, METHOD_KEY};
use crate::wire::message::{Authentication, AuthenticationResponse};

async fn closed(client: &Client) -> String {
    let mut status = client.status();
    let status = within(status.wait_for(|status| matches!(status, Status::Closed { .. }))).await;
    let Status::Closed { reason } = status.unwrap().clone() else { unreachable!() };
    reason
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_however_often_a_connection_is_cut() {
    let heartbeat = Duration::from_millis(20);
    let server = Served::start(ServerOptions { heartbeat, ..ServerOptions::tcp(key()) }).await;
    for options in [proof(), sent_key()] {
        let proxy = Proxy::start(server.address).await;
        let client = Client::connect_tcp(&[proxy.address], options).await.unwrap();
        let text = "x".repeat(500);
        let mut replies = client.send(Request::new(&message("endless", &text))).await.unwrap();
        let mut number = 0;
        while *proxy.connections.borrow() < 5 {
            let reply: Message = within(replies.next()).await.unwrap().parse().unwrap();
            assert_eq!(reply["text"], format!("{number} {text}"));
            if number % 1000 == 500 {
                proxy.cut();
            }
            number += 1;
        }
    }
}

#[tokio::test]
async fn requests_on_their_way_arrive_once() {
    let mut server = Served::tcp().await;
    let proxy = Proxy::start(server.address).await;
    let client = Client::connect_tcp(&[proxy.address], proof()).await.unwrap();
    server.until(Event::Handled).await;
    let mut waiting = Vec::new();
    for number in 0..100 {
        if number % 25 == 5 {
            proxy.cut();
        }
        let request = Request::new(&message("echo", &number.to_string()));
        waiting.push(client.send(request).await.unwrap());
    }
    for (number, mut replies) in waiting.into_iter().enumerate() {
        let reply: Message = within(replies.next()).await.unwrap().parse().unwrap();
        assert_eq!(reply["text"], number.to_string());
    }
    let mut handled = 0;
    while let Ok(event) = server.events.try_recv() {
        handled += u32::from(event == Event::Handled);
    }
    assert_eq!(handled, 100);
}

#[tokio::test]
async fn a_client_comes_back_before_the_server_has_noticed() {
    let mut server = Served::tcp().await;
    let proxy = Proxy::start(server.address).await;
    let client = Client::connect_tcp(&[proxy.address], proof()).await.unwrap();
    server.until(Event::Attached).await;
    proxy.strand();
    assert_eq!(echo(&client, "back").await, "back");
    server.until(Event::Detached).await;
    server.until(Event::Attached).await;
}

#[tokio::test]
async fn a_status_tells_of_each_change() {
    let server = Served::tcp().await;
    let proxy = Proxy::start(server.address).await;
    let client = Client::connect_tcp(&[proxy.address], proof()).await.unwrap();
    let mut status = client.status();
    // To a port where nobody listens.
    let nowhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    proxy.target.send_replace(nowhere.local_addr().unwrap());
    proxy.cut();
    within(status.wait_for(|status| matches!(status, Status::Reconnecting { .. }))).await.unwrap();
    proxy.target.send_replace(server.address);
    proxy.cut();
    within(status.wait_for(|status| *status == Status::Connected)).await.unwrap();
    assert_eq!(echo(&client, "again").await, "again");
}

#[tokio::test]
async fn a_server_forgets_who_does_not_come_back_and_says_so() {
    let keep = Duration::from_millis(50);
    let options = ServerOptions { reconnect: Some(keep), ..ServerOptions::tcp(key()) };
    let mut server = Served::start(options).await;
    let proxy = Proxy::start(server.address).await;
    let client = Client::connect_tcp(&[proxy.address], proof()).await.unwrap();
    let mut silent = client.send(Request::new(&message("silence", ""))).await.unwrap();
    server.until(Event::Handled).await;
    let nowhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    proxy.target.send_replace(nowhere.local_addr().unwrap());
    proxy.cut();
    server.until(Event::Closed).await;
    proxy.target.send_replace(server.address);
    proxy.cut();
    assert_eq!(closed(&client).await, "the server refuses to take the connection up again");
    assert!(within(silent.next()).await.is_none());
}

#[tokio::test]
async fn a_server_that_has_ended_is_not_waited_for() {
    let mut server = Served::tcp().await;
    let options = ClientOptions { back_off: Duration::from_millis(1), ..proof() };
    let client = Client::connect_tcp(&[server.address], options).await.unwrap();
    server.shutdown.cancel();
    server.until(Event::Closed).await;
    assert_eq!(closed(&client).await, "nobody listens there any more");
}

#[tokio::test]
async fn a_server_that_keeps_nothing_ends_at_the_end_of_the_stream() {
    let options = ServerOptions { reconnect: None, ..ServerOptions::tcp(key()) };
    let mut server = Served::start(options).await;
    let (stream, identity) = raw_client(server.address).await;
    drop(stream);
    server.until(Event::Closed).await;
    assert!(!takes_up(server.address, &identity, identity.passwords[0].expose()).await);
}

/// Tries to take a connection up with a password that is sent, as released clients do.
async fn takes_up(address: SocketAddr, identity: &Identity, password: &[u8]) -> bool {
    let socket = TcpStream::connect(address).await.unwrap();
    let mut stream = middle::greet_as_client(socket).await;
    let otp = password.to_vec();
    stream.writing.put_message(&Connect::Reconnect { id: identity.id, otp });
    stream.writing.put_message(&Exchange::new().half());
    stream.writing.flush().await.unwrap();
    within(stream.expect()).await.is_ok()
}

#[tokio::test]
async fn only_the_right_password_takes_a_connection_up() {
    let mut server = Served::tcp().await;
    let (stream, mut identity) = raw_client(server.address).await;
    let password = identity.passwords[0].clone();
    assert!(!takes_up(server.address, &identity, &[0; 32]).await);
    assert!(!takes_up(server.address, &identity, &password.expose()[..31]).await);
    assert!(!takes_up(server.address, &identity, &[]).await);
    // None of that has disturbed the one that is there.
    while let Ok(event) = server.events.try_recv() {
        assert_ne!(event, Event::Detached);
    }
    assert!(takes_up(server.address, &identity, password.expose()).await);
    identity.id = identity.id.wrapping_add(1);
    assert!(!takes_up(server.address, &identity, password.expose()).await);
    drop(stream);
}

#[tokio::test]
async fn a_password_that_has_to_be_proved_is_not_taken_as_it_is() {
    let server = Served::tcp().await;
    let socket = TcpStream::connect(server.address).await.unwrap();
    let Established { identity, .. } = establish(socket, &proof(), &mut (), None).await.unwrap();
    assert!(!takes_up(server.address, &identity, identity.passwords[0].expose()).await);
}

/// A released server takes the new password only once it has sent all again that was lost. Where
/// its socket does not take that at once, or breaks, it goes on with the old one, although some of
/// it has arrived by then.
#[tokio::test]
async fn the_old_password_is_kept_for_a_released_server_that_gives_an_attempt_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async || {
        let (socket, _) = within(listener.accept()).await.unwrap();
        middle::greet_as_server(socket).await
    };
    let reply =
        |id: &str| Response::new(Header::new(), id, pack(&message("reply", "")).into()).to_frame();

    let options = ClientOptions { back_off: Duration::from_millis(1), ..sent_key() };
    let connecting = tokio::spawn(async move { Client::connect_tcp(&[address], options).await });
    let mut stream = accept().await;
    let _: Connect = stream.expect_message().await.unwrap();
    stream.writing.put_message(&7_u32);
    let methods = vec![METHOD_KEY.to_owned()];
    stream.writing.put_message(&Authentication::Initialization { methods });
    stream.writing.put_message(&Authentication::Finished);
    let exchange = Exchange::new();
    stream.writing.put_message(&exchange.half());
    stream.writing.flush().await.unwrap();
    for _ in 0..2 {
        let _: AuthenticationResponse = stream.expect_message().await.unwrap();
    }
    let theirs: ExchangeHalf = stream.expect_message().await.unwrap();
    let password = exchange.finish(&theirs).unwrap();
    let request = Request::from_frame(&stream.expect().await.unwrap()).unwrap();
    stream.writing.put(&reply(&request.id));
    stream.writing.flush().await.unwrap();
    let client = within(connecting).await.unwrap().unwrap();
    let (sent, received) = (stream.writing.sent, stream.reading.received);
    drop(stream);

    let mut taken_up = Vec::new();
    while taken_up.len() < 2 {
        let mut stream = accept().await;
        let Connect::Reconnect { otp, .. } = stream.expect_message().await.unwrap() else {
            panic!("it has forgotten its connection")
        };
        if !password.is(&otp) {
            continue;
        }
        stream.writing.put_message(&Exchange::new().half());
        stream.writing.put_message::<Counters>(&(sent + 1, received, 1));
        if taken_up.is_empty() {
            stream.writing.put(&reply("nobody"));
        }
        stream.writing.flush().await.unwrap();
        let _: ExchangeHalf = stream.expect_message().await.unwrap();
        let (_, got, _): Counters = stream.expect_message().await.unwrap();
        taken_up.push(got);
        if taken_up.len() == 2 {
            let mut status = client.status();
            within(status.wait_for(|status| *status == Status::Connected)).await.unwrap();
        }
    }
    // What arrived in the attempt that was given up counts.
    assert_eq!(taken_up, [sent, sent + 1]);
}
