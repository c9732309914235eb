//! A launch is a transaction.

use std::time::Duration;

use serde_json::json;

use super::support::{nobody, ticket, Answers, Fixture, Launched};
use crate::wire::message::{ClientExtension, ManagerResponse, EXTENSION};

/// Offers a server, logs each verdict, and stays for as long as it is not told to go.
fn offers(server: &Launched) -> String {
    format!("{}\nwhile hear; do log \"$line\"; done", server.offer(1))
}

#[tokio::test]
async fn the_ticket_commits_a_launch_and_only_then_the_plugin_lets_go() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let body = format!(
        "{}\nlog offered\nhear; log \"$line\"; say '{{\"type\":\"done\"}}'",
        server.offer(1)
    );
    let mut events = manager.plugin("box", &body);
    let client = manager.client().await;

    let launched = client.launch("box://me@there", "").await.launched().await;
    assert_eq!(events.next().await, "offered");
    let ManagerResponse::Connected { id } = client.connect(&launched).await else { panic!() };

    assert_eq!(
        events.next_json().await,
        json!({ "type": "verdict", "id": 1, "verdict": "connected" })
    );
    let expected = format!("distant://127.0.0.1:{}", server.port);
    assert_eq!(client.list().await, [(id, expected)]);
}

#[tokio::test]
async fn the_key_is_shown_to_nobody() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let _events = manager.plugin("box", &offers(&server));
    let client = manager.client().await;
    let launched = client.launch("box://there", "").await.launched().await;
    assert_ne!(ticket(&launched), server.key.expose_hex());
    assert_eq!(ticket(&launched).expose().len(), 64);
}

#[tokio::test]
async fn a_ticket_is_good_once_for_any_connection_of_the_user() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let _events = manager.plugin("box", &offers(&server));
    let (first, second) = (manager.client().await, manager.client().await);

    let launched = first.launch("box://there", "").await.launched().await;
    assert!(matches!(second.connect(&launched).await, ManagerResponse::Connected { .. }));
    let ManagerResponse::Error { description } = first.connect(&launched).await else { panic!() };
    assert!(description.contains("used up"), "{description}");
}

#[tokio::test]
async fn a_ticket_that_nobody_shows_in_time_takes_the_launch_back() {
    let manager = Fixture::with(|limits| limits.ticket = Duration::from_millis(50)).await;
    let server = Launched::start().await;
    let mut events = manager.plugin("box", &offers(&server));
    let client = manager.client().await;

    let mut replies = client.launch("box://there", "").await;
    let launched = replies.launched().await;
    assert_eq!(events.next().await, "cancelled");
    assert!(replies.error().await.contains("nobody took"));
    let ManagerResponse::Error { description } = client.connect(&launched).await else { panic!() };
    assert!(description.contains("nobody took"), "{description}");
    assert_eq!(client.list().await, []);
}

#[tokio::test]
async fn a_ticket_says_why_its_launch_failed_after_all() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let gate = manager.gate();
    let body = format!("{}\nread -r _ <'{}'; kill -SEGV $$", server.offer(1), gate.display());
    let _events = manager.plugin("box", &body);
    let client = manager.client().await;
    let mut replies = client.launch("box://there", "").await;
    let launched = replies.launched().await;

    tokio::fs::write(&gate, "go\n").await.unwrap();

    let error = replies.error().await;
    assert!(error.contains("signal 11"), "{error}");
    let ManagerResponse::Error { description } = client.connect(&launched).await else { panic!() };
    assert_eq!(description, error);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_launch_back() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let mut waiting = manager.plugin("slow", "log started; while hear; do :; done");
    let mut offered = manager.plugin("box", &offers(&server));
    let client = manager.client().await;
    let _replies = client.launch("slow://there", "").await;
    let launched = client.launch("box://there", "").await.launched().await;
    assert_eq!(waiting.next().await, "started");

    client.client.close();

    assert_eq!(waiting.next().await, "cancelled");
    assert_eq!(offered.next().await, "cancelled");
    let another = manager.client().await;
    assert!(matches!(another.connect(&launched).await, ManagerResponse::Error { .. }));
}

#[tokio::test]
async fn a_silent_offer_is_called_slow_and_races_with_the_next_one() {
    let manager = Fixture::with(|limits| limits.slow = Duration::from_millis(50)).await;
    let server = Launched::start().await;
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let body = format!(
        "{}\nhear; log \"$line\"\n{}\nwhile hear; do log \"$line\"; done",
        server.offer_with(1, json!({ "port": port })),
        server.offer_with(2, json!({ "via": "tunnel" })),
    );
    let mut events = manager.plugin("box", &body);
    let client = manager.client().await;

    client.launch_and_connect("box://there").await;

    let verdict =
        |id: u64, verdict: &str| json!({ "type": "verdict", "id": id, "verdict": verdict });
    assert_eq!(events.next_json().await, verdict(1, "slow"));
    let mut by = verdict(1, "connected");
    by["by"] = json!(2);
    // On a busy machine the second one may be called slow as well.
    let mut next = events.next_json().await;
    if next == verdict(2, "slow") {
        next = events.next_json().await;
    }
    assert_eq!(next, by);
    assert_eq!(events.next_json().await, verdict(2, "connected"));
}

#[tokio::test]
async fn an_offer_that_comes_too_late_is_not_tried_and_gets_the_common_verdict() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let late = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    late.set_nonblocking(true).unwrap();
    let gate = manager.gate();
    let port = late.local_addr().unwrap().port();
    let body = format!(
        "{}\nread -r _ <'{}'\n{}\nlog late\nhear; log \"$line\"; hear; log \"$line\"; hear",
        server.offer(1),
        gate.display(),
        server.offer_with(2, json!({ "port": port })),
    );
    let mut events = manager.plugin("box", &body);
    let client = manager.client().await;

    let launched = client.launch("box://there", "").await.launched().await;
    tokio::fs::write(&gate, "go\n").await.unwrap();
    assert_eq!(events.next().await, "late");
    assert!(matches!(client.connect(&launched).await, ManagerResponse::Connected { .. }));

    let verdicts = [events.next_json().await, events.next_json().await];
    assert_eq!(verdicts[0], json!({ "type": "verdict", "id": 1, "verdict": "connected" }));
    let by = json!({ "type": "verdict", "id": 2, "verdict": "connected", "by": 1 });
    assert_eq!(verdicts[1], by);
    assert!(late.accept().is_err());
}

#[tokio::test]
async fn the_way_that_worked_is_remembered_for_its_host() {
    // So long that only the memory of the first launch can bring the second one's verdict.
    let manager = Fixture::with(|limits| limits.slow = Duration::from_secs(3600)).await;
    let server = Launched::start().await;
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let direct = server.offer_with(1, json!({ "port": port }));
    let tunnel = server.offer_with(2, json!({ "via": "tunnel" }));
    let _learn = manager.plugin("learn", &format!("{tunnel}\nhear; hear"));
    let mut events =
        manager.plugin("box", &format!("{direct}\nhear; log \"$line\"\n{tunnel}\nhear; hear"));
    let client = manager.client().await;

    client.launch_and_connect("learn://there").await;
    client.launch_and_connect("box://there").await;

    assert_eq!(events.next_json().await["verdict"], "slow");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_unreachable_and_the_plugin_says_the_rest() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    let nobody = nobody();
    let closed = nobody.local_addr().unwrap().port();
    let body = format!(
        "{}\nhear; log \"$line\"\nsay '{}'",
        server.offer_with(1, json!({ "port": closed })),
        json!({ "type": "error", "kind": "port_unreachable", "message": "no way to it",
                "causes": ["a firewall"], "hint": "open it" }),
    );
    let mut events = manager.plugin("box", &body);
    let own = manager.own_client(ClientExtension::default()).await;
    let released = manager.client().await;

    let mut replies = released.launch("box://there", "").await;
    assert_eq!(events.next_json().await["verdict"], "unreachable");
    let response = replies.response().await;
    assert!(response.header.is_empty());
    let ManagerResponse::Error { description } = response.parse().unwrap() else { panic!() };
    assert_eq!(description, "no way to it: a firewall");

    let error = reason(own.launch("box://there", "").await).await;
    assert_eq!(error["kind"], "port_unreachable");
    assert_eq!(error["hint"], "open it");
}

#[tokio::test]
async fn a_server_with_another_key_is_refused() {
    let manager = Fixture::start().await;
    let server = Launched::start().await;
    for proof in [true, false] {
        let name = format!("box{proof}");
        let wrong = json!({ "key": "00".repeat(32), "proof": proof });
        let body = format!("{}\nhear; log \"$line\"", server.offer_with(1, wrong));
        let mut events = manager.plugin(&name, &body);
        let client = manager.client().await;
        let mut replies = client.launch(&format!("{name}://there"), "").await;
        assert_eq!(events.next_json().await["verdict"], "refused");
        assert!(replies.error().await.contains(&format!("plugin `{name}`")));
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_ended() {
    let manager = Fixture::with(|limits| limits.plugin = Duration::from_millis(50)).await;
    let mut events = manager.plugin("box", "log started; while hear; do :; done");
    let client = manager.client().await;
    let error = client.launch("box://there", "timeout=0").await.error().await;
    assert!(error.contains("came to no end"), "{error}");
    assert_eq!(events.next().await, "started");
    assert_eq!(events.next().await, "cancelled");

    let own = manager.own_client(ClientExtension::default()).await;
    let error = reason(own.launch("box://there", "timeout=0").await).await;
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("`plugin` below `[manager.limits]`"), "{hint}");
}

/// Why a launch of our own client failed.
async fn reason(mut replies: Answers) -> serde_json::Value {
    loop {
        let response = replies.response().await;
        if matches!(response.parse().unwrap(), ManagerResponse::Error { .. }) {
            return response.header[EXTENSION]["error"].clone();
        }
    }
}

#[tokio::test]
async fn the_time_in_a_schedulers_queue_is_not_the_plugins_and_has_a_limit_of_its_own() {
    let manager = Fixture::with(|limits| {
        limits.plugin = Duration::from_secs(2);
        limits.allocate = Duration::from_millis(4500);
    })
    .await;
    let queue = "say '{\"type\":\"progress\",\"stage\":\"allocate\"}'";
    let server = Launched::start().await;
    let _events = manager.plugin("box", &format!("{queue}; sleep 2.5; {}", offers(&server)));
    let _events = manager.plugin("full", &format!("{queue}; while hear; do :; done"));
    let client = manager.client().await;

    client.launch("box://there", "timeout=100").await.launched().await;
    let begun = std::time::Instant::now();
    let description = client.launch("full://there", "timeout=100").await.error().await;
    assert!(description.contains("plugin `full` came to no end within 4 s"), "{description}");
    assert!(begun.elapsed() >= Duration::from_millis(4500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_plugin_that_breaks_ends_only_its_launch() {
    let manager = Fixture::start().await;
    let client = manager.client().await;
    for (name, body) in [
        ("crashes", "kill -SEGV $$"),
        ("leaves", "exit 0"),
        ("done", "say '{\"type\":\"done\"}'"),
        ("babbles", "say babble; while hear; do :; done"),
    ] {
        let _events = manager.plugin(name, body);
        let error = client.launch(&format!("{name}://there"), "").await.error().await;
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
    assert_eq!(client.list().await, []);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_before_anything_starts() {
    let manager = Fixture::start().await;
    let _events = manager.plugin("box", "log started");
    let client = manager.client().await;
    for (destination, options, expected) in [
        ("box://not a host", "", "`not a host` is no host name"),
        ("box://there", "a", "`=` is missing after the key `a`"),
        ("box://there", "pasword=x", "did you mean `password`?"),
        ("box://there", "verbose=maybe", "option `verbose` is `maybe`"),
        ("nobody://there", "", "nobody"),
    ] {
        let error = client.launch(destination, options).await.error().await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn more_launches_than_there_are_places_wait_in_line() {
    let manager = Fixture::with(|limits| limits.launches = 1).await;
    let server = Launched::start().await;
    let body = format!("log started\n{}\nwhile hear; do log \"$line\"; done", server.offer(1));
    let mut events = manager.plugin("box", &body);
    let client = manager.client().await;
    let mut first = client.launch("box://there", "").await;
    let launched = first.launched().await;
    assert_eq!(events.next().await, "started");
    // Our own clients hear how many are before them, and when that changes.
    let own = manager.own_client(ClientExtension::default()).await;
    let waits = |before: u32| json!({ "stage": "wait", "done": 0, "total": before });
    let mut second = own.launch("box://there", "").await;
    let before = second.response().await.header[EXTENSION]["progress"].clone();
    assert_eq!(before, waits(0));
    let mut third = own.launch("box://there", "").await;
    let before = third.response().await.header[EXTENSION]["progress"].clone();
    assert_eq!(before, waits(1));
    // One whose client goes while it waits leaves the line.
    let gone = manager.client().await;
    let _replies = gone.launch("box://there", "").await;
    gone.client.close();

    // Only the first one's verdict makes room.
    assert!(matches!(client.connect(&launched).await, ManagerResponse::Connected { .. }));
    while !matches!(second.next().await, ManagerResponse::Launched { .. }) {}
    let before = third.response().await.header[EXTENSION]["progress"].clone();
    assert_eq!(before, waits(0));
    let both = [events.next().await, events.next().await];
    assert!(both.contains(&"started".to_owned()), "{both:?}");
    assert!(both.iter().any(|event| event.contains("connected")), "{both:?}");
}

#[tokio::test]
async fn an_offer_that_is_repeated_is_no_new_one() {
    let manager = Fixture::with(|limits| limits.offers = 2).await;
    let server = Launched::start().await;
    let nobody = nobody();
    let nobody = nobody.local_addr().unwrap().port();
    let closed = |id: u64| {
        let offer = server.offer_with(id, json!({ "port": nobody }));
        format!("{offer}\nhear; log \"$line\"\n")
    };
    let enough = r#"say '{"type":"error","kind":"other","message":"enough"}'"#;
    let body = format!("{}{}{}{enough}", closed(1), closed(2), closed(1).repeat(5));
    let mut events = manager.plugin("box", &body);
    let client = manager.client().await;

    let error = client.launch("box://there", "").await.error().await;

    for id in [1, 2, 1, 1, 1, 1, 1] {
        let verdict = events.next_json().await;
        assert_eq!((&verdict["id"], &verdict["verdict"]), (&id.into(), &"unreachable".into()));
    }
    assert_eq!(error, "enough");
}

#[tokio::test]
async fn an_upload_that_drips_comes_to_an_end() {
    let manager = Fixture::with(|limits| {
        limits.plugin = Duration::from_millis(500);
        limits.upload = Duration::from_millis(500);
    })
    .await;
    let body = r#"exec 3<&0; (IFS= read -r _; kill $$) <&3 & n=0
while :; do
    n=$((n + 1)); say '{"type":"progress","stage":"upload","total":1000000,"done":'$n'}'
    sleep 0.05
done"#;
    let _events = manager.plugin("box", body);
    let client = manager.client().await;
    let error = client.launch("box://there", "timeout=0").await.error().await;
    assert!(error.contains("came to no end"), "{error}");
}

#[tokio::test]
async fn only_our_own_clients_hear_how_it_goes() {
    let manager = Fixture::start().await;
    let body = r#"say '{"type":"progress","stage":"connect","done":1,"total":2}'
say '{"type":"notice","level":"warn","text":"hello\nthere"}'
say '{"type":"log","level":"debug","target":"ssh","text":"details"}'
say '{"type":"error","kind":"unreachable","message":"nobody there"}'"#;
    let _events = manager.plugin("box", body);
    let released = manager.client().await;
    let error = released.launch("box://there", "verbose=true").await.error().await;
    assert_eq!(error, "nobody there");

    let own = manager.own_client(ClientExtension::default()).await;
    for (options, expected) in [
        ("", vec!["progress", "notice", "error"]),
        ("verbose=true", vec!["progress", "notice", "log", "error"]),
    ] {
        let mut replies = own.launch("box://there", options).await;
        let mut heard = Vec::new();
        while heard.last().is_none_or(|last| last != "error") {
            let response = replies.response().await;
            let extension = response.header[EXTENSION].as_object().unwrap().clone();
            heard.extend(extension.into_iter().map(|(kind, _)| kind));
        }
        assert_eq!(heard, expected);
    }
}

#[tokio::test]
async fn a_plugin_gets_the_clients_place_and_what_the_options_say() {
    let manager = Fixture::start().await;
    let mut events = manager.plugin("box", "log \"$line\"");
    let own = manager
        .own_client(ClientExtension {
            environment: [("LANG".into(), "C".into()), ("LD_PRELOAD".into(), "x".into())].into(),
            cwd: Some("/work".into()),
            interactive: true,
            ..ClientExtension::default()
        })
        .await;
    let options = "password=\"hunter2\",distant.args=\"--port '80 81'\",distant.bin=distant";
    let _replies = own.launch("BOX://me@there:22", options).await;
    let request = events.next_json().await;
    assert_eq!(request["destination"], "BOX://me@there:22");
    assert_eq!(request["options"]["password"], "hunter2");
    assert_eq!(request["server"]["args"], json!(["--port", "80 81"]));
    assert_eq!(request["server"]["program"], json!(null));
    assert_eq!(request["environment"], json!({ "LANG": "C" }));
    assert_eq!(request["cwd"], "/work");
    assert_eq!(request["interactive"], true);
}

#[tokio::test]
async fn a_local_server_is_started_from_a_program_that_is_there() {
    let manager = Fixture::start().await;
    let mut events = manager.plugin("manager", "log \"$line\"");
    let client = manager.client().await;
    let _replies = client.launch("manager://localhost", "").await;
    let own = std::env::current_exe().unwrap();
    assert_eq!(events.next_json().await["server"]["program"], own.to_str().unwrap());

    let error = client.launch("manager://localhost", "distant.bin=/no/such").await.error().await;
    assert!(error.contains("`/no/such` was not found"), "{error}");
}

#[tokio::test]
async fn a_client_that_asks_for_too_much_is_refused() {
    let manager = Fixture::with(|limits| limits.pending = 1).await;
    let mut events = manager.plugin("box", "log started; while hear; do :; done");
    let client = manager.client().await;
    let _first = client.launch("box://there", "").await;
    assert_eq!(events.next().await, "started");
    let error = client.launch("box://there", "").await.error().await;
    assert!(error.contains("1 launches already"), "{error}");
    let another = manager.client().await;
    let _replies = another.launch("box://there", "").await;
    assert_eq!(events.next().await, "started");
}
