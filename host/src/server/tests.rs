//! A server in this process, and what the tests of its parts share.

use std::os::fd::OwnedFd;
use std::time::Duration;

use distant_protocol::{Environment, Msg, PtySize, Request, Response};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::PidfdFlags;
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

/// Starts a process that says its number, and keeps an eye on it.
async fn spawn(client: &Client, pty: Option<PtySize>) -> OwnedFd {
    let request = Request::ProcSpawn {
        cmd: "sh -c 'trap \"\" TERM; echo $$; sleep 1000'".to_owned().into(),
        environment: Environment::new(),
        current_dir: None,
        pty,
    };
    let request = envelope::Request::new(&Msg::Single(request));
    let mut replies = client.send(request).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\n") {
        match replies.next().await.unwrap().parse::<Msg<Response>>().unwrap().into_single() {
            Some(Response::ProcSpawned { .. }) => {}
            Some(Response::ProcStdout { data, .. }) => said.extend(data),
            other => panic!("{other:?}"),
        }
    }
    let pid: i32 = String::from_utf8(said).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

/// Waits for the end of a process; `false` if it takes too long.
fn ends(process: &OwnedFd) -> bool {
    let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_has_started_ends_with_it() {
    let (address, key, _stop) = start(|options| {
        options.reconnect = Some(Duration::from_millis(50));
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let client = connect(address, &key).await;
    let size = PtySize { rows: 24, cols: 80, ..Default::default() };
    let processes = [spawn(&client, None).await, spawn(&client, Some(size)).await];
    let watch = Request::Watch {
        path: folder.path().to_owned(),
        recursive: false,
        only: Vec::new(),
        except: Vec::new(),
    };
    assert_eq!(ask(&client, watch).await, Response::Ok);
    client.close();
    drop(client);
    for process in processes {
        let ended = tokio::task::spawn_blocking(move || ends(&process)).await;
        assert!(ended.unwrap(), "a process is still there");
    }
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
