//! A server in this process, and what the tests of its parts share.

use std::path::Path;
use std::time::Duration;

use distant_protocol::{Cmd, Environment, Msg, PtySize, Request, Response};
use tokio_util::sync::DropGuard;

use super::*;
use crate::wire::client::{Client, ClientOptions, Credential};
use crate::wire::envelope;

/// A server on some port of this machine.
pub(super) fn settings() -> Settings {
    Settings {
        host: BindHost::Address([127, 0, 0, 1].into()),
        ports: PortRange::default(),
        use_ipv6: false,
        shutdown: Shutdown::Never,
        current_dir: None,
        key: None,
        watch: WatchSettings::default(),
        launch: LaunchSettings::default(),
    }
}

/// Serves on some port with these options until the token is fired.
async fn start(change: impl FnOnce(&mut ServerOptions)) -> (SocketAddr, SessionKey, Stop) {
    let Bound { listener, address, .. } = listen::bind(&settings()).await.unwrap();
    let key = new_key();
    let (presence, stop) = (Presence::new(), CancellationToken::new());
    let files = Files::new(WatchSettings::default()).unwrap();
    let processes = Processes::new().unwrap();
    let answers = Arc::new(Answers::new(files, processes, presence, stop.clone()));
    let mut options = ServerOptions::tcp(key.clone());
    change(&mut options);
    tokio::spawn(serve(listener, options, answers, stop.clone()));
    (address, key, Stop(stop.drop_guard()))
}

/// Ends a server.
struct Stop(#[allow(dead_code, reason = "does it by being dropped")] DropGuard);

async fn connect(address: SocketAddr, key: &SessionKey) -> Client {
    let options = ClientOptions::tcp(Credential::Proof(key.clone()), Duration::from_secs(30));
    Client::connect_tcp(&[address], options).await.unwrap()
}

async fn ask(client: &Client, request: Request) -> Response {
    let mut replies = client.send(envelope::Request::new(&Msg::Single(request))).await.unwrap();
    let reply = replies.next().await.unwrap().parse::<Msg<Response>>().unwrap();
    reply.into_single().unwrap()
}

/// Waits for what nobody tells.
async fn eventually(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_has_started_ends_with_it() {
    let (address, key, _stop) = start(|options| {
        options.reconnect = Some(Duration::from_millis(50));
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let command = format!("sh -c 'echo $$ > {}; trap \"\" TERM; sleep 1000'", file.display());
    let client = connect(address, &key).await;
    for terminal in [None, Some(PtySize { rows: 24, cols: 80, ..Default::default() })] {
        let spawned = ask(
            &client,
            Request::ProcSpawn {
                cmd: Cmd::from(command.clone()),
                environment: Environment::new(),
                current_dir: None,
                pty: terminal,
            },
        )
        .await;
        assert!(matches!(spawned, Response::ProcSpawned { .. }), "{spawned:?}");
    }
    let watch = Request::Watch {
        path: folder.path().to_owned(),
        recursive: false,
        only: Vec::new(),
        except: Vec::new(),
    };
    assert_eq!(ask(&client, watch).await, Response::Ok);
    let pid = || std::fs::read_to_string(&file).ok().and_then(|pid| pid.trim().parse::<u32>().ok());
    eventually(|| pid().is_some()).await;
    let process = format!("/proc/{}", pid().unwrap());
    assert!(Path::new(&process).exists());
    client.close();
    drop(client);
    eventually(|| !Path::new(&process).exists()).await;
    // Another client finds nothing of it.
    let client = connect(address, &key).await;
    let unwatch = Request::Unwatch { path: folder.path().to_owned() };
    assert!(matches!(ask(&client, unwatch).await, Response::Error(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_is_read_that_does_not_fit_into_an_answer() {
    let (address, key, _stop) = start(|_| ()).await;
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    std::fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    let client = connect(address, &key).await;
    for path in [large, "/dev/zero".into()] {
        let Response::Error(error) = ask(&client, Request::FileRead { path }).await else {
            panic!()
        };
        assert_eq!(error.kind, distant_protocol::ErrorKind::InvalidData);
    }
    let Response::Text { data } =
        ask(&client, Request::FileReadText { path: "/proc/self/stat".into() }).await
    else {
        panic!()
    };
    assert!(data.starts_with(&std::process::id().to_string()));
}
