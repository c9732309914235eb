//! How a server starts, says so, and ends.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use distant_plugin_api::connect_line::{parse_detached_line, ConnectLine, HELLO_LINE};
use serde_json::json;

use super::Client;
use crate::support::{often, report, Finished, Home, Look, Manager, Server, Signal};

const LISTEN: [&str; 4] = ["server", "listen", "--host", "127.0.0.1"];

/// What was printed, with a mark for what differs.
fn shape(stdout: &str) -> String {
    let lines = stdout.split('\n').map(|line| match ConnectLine::parse(line) {
        Some(line) => format!("LINE@{}", line.address.ip()),
        None if line.starts_with(HELLO_LINE) => "HELLO".to_owned(),
        None => match parse_detached_line(line) {
            Some(_) => "DETACHED".to_owned(),
            None => line.to_owned(),
        },
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_connect_line_has_the_bytes_of_the_released_server() {
    let home = Home::new();
    let check = |arguments: &[&str], expected: &str| {
        let all = LISTEN[..2].iter().chain(arguments).chain(&["--shutdown", "lonely=0.1"]);
        let all: Vec<_> = all.collect();
        let ours = home.ours(&all).run().success();
        assert_eq!(shape(&ours.stdout), expected);
        assert_eq!(ours.stderr, "");
        let theirs = home.peer(&all).run().success();
        assert_eq!(shape(&theirs.stdout), expected);
    };
    check(&["--host", "127.0.0.1"], "\r\nLINE@127.0.0.1\n\r\n");
    check(&[], "\r\nLINE@0.0.0.0\n\r\n");
    check(&["--host", "ANY", "--daemon"], "DETACHED\n\r\nLINE@0.0.0.0\n\r\n");
    check(&["-6"], "\r\nLINE@::\n\r\n");
    check(&["--host", "::1"], "\r\nLINE@::1\n\r\n");
    check(&["--host", "localhost", "--port", "0"], "\r\nLINE@127.0.0.1\n\r\n");
    let launched = home.ours(LISTEN).arg("--shutdown=lonely=0.1").env("DISTANT_LAUNCH", "1");
    let expected = "\r\nHELLO\nLINE@127.0.0.1\ndistant-server proof=1\n\r\n";
    assert_eq!(shape(&launched.run().success().stdout), expected);
}

#[test]
fn the_key_may_come_from_stdin() {
    let home = Home::new();
    for daemon in [None, Some("--daemon")] {
        let listen = LISTEN.iter().chain(&["--key-from-stdin", "--shutdown", "lonely=0.1"]);
        let listen: Vec<_> = listen.copied().chain(daemon).collect();
        let done = home.ours(&listen).input([7; 40]).run().success();
        assert!(done.stdout.contains(&format!("distant://:{}@", "07".repeat(32))));
        let short = home.ours(&listen).input([7; 31]).run().code(1);
        assert!(short.stderr.starts_with("error: cannot read the key"), "{}", short.stderr);
    }
}

#[test]
fn a_daemon_is_there_when_its_command_returns_and_holds_nothing_of_it() {
    let home = Home::new();
    // As a script does it: the shell waits until nobody has its pipe open any more.
    let script =
        "out=$(\"$0\" server listen --daemon --host 127.0.0.1 2>&1 </dev/null); echo \"$out\"";
    let program = &crate::support::programs().distant;
    let done = home.program("sh", ["-c".as_ref(), script.as_ref(), program.as_os_str()]).run();
    let stdout = done.success().stdout;
    let pid = stdout.lines().find_map(parse_detached_line).unwrap();
    let line = stdout.lines().find_map(ConnectLine::parse).unwrap();
    TcpStream::connect(line.address).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let (group, session, terminal) = (fields[2], fields[3], fields[4]);
    assert_eq!((group, session, terminal), (&*pid.to_string(), &*pid.to_string(), "0"));
    for stream in 0..3 {
        let open = std::fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap();
        assert_eq!(open.to_str(), Some("/dev/null"));
    }
    let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(folder, home.path("").canonicalize().unwrap());
    home.clear();
}

#[test]
fn a_start_that_fails_says_why_in_the_background_too() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let check = |arguments: &[&str], code: i32, expected: &str| {
        for daemon in [None, Some("--daemon")] {
            let all = ["server", "listen"].iter().chain(arguments).copied().chain(daemon);
            let failed: Finished = home.ours(all).run().code(code);
            assert_eq!(failed.stdout, "");
            assert_eq!(failed.stderr.lines().next(), Some(expected), "{}", failed.told());
        }
    };
    let port_taken = format!("error: cannot listen on 127.0.0.1, port {port}");
    check(&["--host", "127.0.0.1", "--port", &port], 1, &port_taken);
    let foreign = "error: cannot listen on 203.0.113.1, port 0";
    check(&["--host", "203.0.113.1"], 1, foreign);
    let missing = "error: cannot enter the folder `/no/such/folder`";
    check(&["--current-dir", "/no/such/folder"], 1, missing);
    let negative = "error: invalid value 'lonely=-1' for '--shutdown <SHUTDOWN>': \
                    N has to be a number of seconds, from 0 to 3153600000 (a hundred years)";
    check(&["--shutdown", "lonely=-1"], 2, negative);
    check(&["--shutdown=lonely=-1"], 2, negative);
    let slow = "error: the debounce tick rate of 2s is longer than the debounce timeout of 500ms";
    check(&["--watch-debounce-tick-rate", "2"], 2, slow);
}

#[test]
fn the_configuration_stands_in_for_flags() {
    let home = Home::new();
    let config = "[server.listen]\nhost = '127.0.0.1'\nshutdown = 'lonely=0.1'\n";
    home.write("config/distant/config.toml", config);
    let done = home.ours(["server", "listen"]).run().success();
    assert_eq!(shape(&done.stdout), "\r\nLINE@127.0.0.1\n\r\n");
    let flag = home.ours(["server", "listen", "--host", "127.0.0.2"]).run().success();
    assert_eq!(shape(&flag.stdout), "\r\nLINE@127.0.0.2\n\r\n");
    home.write("config/distant/config.toml", "[server.listen]\nshutdown = 'after=-1'\n");
    let failed = home.ours(["server", "listen"]).run().code(1);
    let expected = "error: `server.listen.shutdown` in the configuration is `after=-1`\n";
    assert!(failed.stderr.starts_with(expected), "{}", failed.stderr);
}

#[test]
fn a_missing_ssh_session_is_explained_and_survived() {
    let home = Home::new();
    let listen = ["server", "listen", "--host", "ssh", "--shutdown", "lonely=0.1"];
    let remark = "warning: SSH_CONNECTION is not set, as it would be in an ssh session, \
                  so the server listens on every address\n";
    let done = home.ours(listen).run().success();
    assert_eq!((&*shape(&done.stdout), &*done.stderr), ("\r\nLINE@0.0.0.0\n\r\n", remark));
    let done = home.ours(listen).arg("--daemon").run().success();
    assert_eq!(
        (&*shape(&done.stdout), &*done.stderr),
        ("DETACHED\n\r\nLINE@0.0.0.0\n\r\n", remark)
    );
    let session = "10.0.0.1 50000 127.0.0.4 22";
    let done = home.ours(listen).env("SSH_CONNECTION", session).run().success();
    assert_eq!((&*shape(&done.stdout), &*done.stderr), ("\r\nLINE@127.0.0.4\n\r\n", ""));
}

#[test]
fn only_authenticated_clients_keep_a_server_from_being_lonely() {
    let home = Home::new();
    let server = Server::listen(home.ours(LISTEN).arg("--shutdown").arg("lonely=1"));
    // 0.20.0 would stay for as long as this does.
    let mut silent = TcpStream::connect(server.address).unwrap();
    server.process.finish().success();
    // The end of it, after what the server says first.
    let _ = silent.read_to_end(&mut Vec::new());

    let server = Server::listen(home.ours(LISTEN).arg("--shutdown").arg("lonely=2"));
    let mut client = Client::of(&server);
    assert!(!server.process.ends_within(Duration::from_secs(3)));
    assert_eq!(client.ask(json!({"type": "version"}))["type"], "version");
    let left = Instant::now();
    client.wire.end();
    server.process.finish().success();
    assert!(left.elapsed() >= Duration::from_secs(2));
}

#[test]
fn after_ends_a_server_whoever_is_there() {
    let home = Home::new();
    let server = Server::listen(home.ours(LISTEN).arg("--shutdown").arg("after=2"));
    let _client = Client::of(&server);
    server.process.finish().success();
}

#[test]
fn a_launched_server_waits_for_its_first_client_only_so_long() {
    let home = Home::new();
    let launched = || {
        let listen = home.ours(LISTEN).env("DISTANT_LAUNCH", "1");
        Server::listen(listen.env("DISTANT_WATCHDOG_MS", "2000"))
    };
    let server = launched();
    let _silent = TcpStream::connect(server.address).unwrap();
    server.process.finish().success();
    let server = launched();
    Client::of(&server).wire.end();
    assert!(!server.process.ends_within(Duration::from_secs(3)));
    // Nobody launched this one.
    let server = Server::listen(home.ours(LISTEN).env("DISTANT_WATCHDOG_MS", "1"));
    assert!(!server.process.ends_within(Duration::from_secs(1)));
}

#[test]
fn a_lifeline_ends_it() {
    let home = Home::new();
    let server = Server::listen(home.ours(LISTEN).env("DISTANT_LIFELINE", "stdin"));
    let _client = Client::of(&server);
    let Server { mut process, .. } = server;
    process.say("what comes by the lifeline means nothing");
    assert!(!process.ends_within(Duration::from_millis(300)));
    process.close_stdin();
    process.finish().success();
    // Without the word for it, the end of stdin is nothing to a server.
    let Server { mut process, .. } = Server::start(&home);
    process.close_stdin();
    assert!(!process.ends_within(Duration::from_millis(300)));
}

#[test]
fn signals_end_it_in_order() {
    let home = Home::new();
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::start(&home);
        let mut client = Client::of(&server);
        server.process.signal(signal);
        server.process.finish().success();
        assert_eq!(client.wire.read_to_end().unwrap(), b"");
    }
}

#[test]
fn a_client_may_end_it() {
    let home = Home::new();
    let server = Server::start(&home);
    let mut client = Client::of(&server);
    let stop = |version| {
        json!({
            "header": {"launcher": {"version": version, "stop": true}},
            "id": "stop",
            "payload": {"type": "version"},
        })
    };
    client.wire.say(&stop(1)).unwrap();
    assert_eq!(client.next("stop")["type"], "version");
    server.process.finish().success();
}

#[test]
fn a_pipe_that_nobody_reads_any_more_is_no_reason_to_end() {
    let home = Home::new();
    // A released manager closes its end when it has read the connect line.
    let script = "\"$0\" server listen --host 127.0.0.1 --shutdown lonely=1 | read first";
    let program = &crate::support::programs().distant;
    let start = Instant::now();
    let shell = ["-c".as_ref(), script.as_ref(), program.as_os_str()];
    home.program("bash", shell).env("DISTANT_LAUNCH", "1").run();
    assert!(start.elapsed() >= Duration::from_secs(1), "it did not live to be lonely");
}

#[test]
fn a_released_manager_launches_it_every_time() {
    let home = Home::new();
    let _manager = Manager::start_peer(&home);
    let program = &crate::support::programs().distant;
    let count = often(100);
    for _ in 0..count {
        // Of its own servers it loses 12 to 60 of 100 to the pipe that it closes.
        let launch = home.peer(["launch", "manager://localhost", "--distant"]).arg(program);
        launch.arg("--distant-args").arg("--shutdown lonely=5").run().id();
    }
    assert_eq!(home.peer(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
}

#[test]
fn an_idle_server_sleeps() {
    let home = Home::new();
    let watched = Duration::from_secs(10);
    let (ours, theirs) = (Server::start(&home), Server::start_peer(&home));
    let measure = || {
        let pids = [&ours, &theirs].map(|server| server.process.pid());
        let before = pids.map(Look::wake_ups);
        assert!(!ours.process.ends_within(watched));
        let after = pids.map(Look::wake_ups);
        [after[0].since(&before[0]), after[1].since(&before[1])]
    };
    // What a start leaves to be done is done when the first request is answered.
    for server in [&ours, &theirs] {
        Client::of(server).ask(json!({"type": "version"}));
    }
    let nobody = measure();
    let clients = [Client::of(&ours), Client::of(&theirs)];
    let somebody = measure();
    drop(clients);
    report(format!(
        "an idle server in {watched:?}: {} wake-ups, with a client {}; 0.20.0: {} and {}",
        nobody[0], somebody[0], nobody[1], somebody[1]
    ));
    assert!(nobody[0] <= 5, "{nobody:?}");
    assert!(somebody[0] <= 20, "{somebody:?}");
}
