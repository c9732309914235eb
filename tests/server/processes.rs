//! The processes that a server runs for its clients.

use std::fs;
use std::time::Duration;

use serde_json::{json, Value};

use super::{bytes, Client};
use crate::support::{eventually, report, Home, Look, Server, Signal};

#[test]
fn a_process_is_told_and_tells_everything_in_order() {
    let home = Home::new();
    for server in [Server::start(&home), Server::start_peer(&home)] {
        let mut client = Client::of(&server);
        let script = "printf '%s %s ' \"$NAME\" \"$PWD\"; read line; printf '%s' \"$line\"; \
                      echo bad >&2; exit 7";
        let more = json!({"environment": {"NAME": "x y"}, "current_dir": home.path("tmp")});
        let (request, id) = client.spawn(&format!("sh -c {}", quoted(script)), more);
        let fed = client.ask(json!({"type": "proc_stdin", "id": id, "data": b"in\n"}));
        assert_eq!(fed["type"], "ok", "{fed}");
        let (stdout, stderr, done) = client.finish(&request);
        let expected = format!("x y {} in", home.path("tmp").display());
        assert_eq!(String::from_utf8(stdout).unwrap(), expected);
        assert_eq!(stderr, b"bad\n");
        assert_eq!(done, json!({"type": "proc_done", "id": id, "success": false, "code": 7}));
        let gone = client.ask(json!({"type": "proc_stdin", "id": id, "data": [1]}));
        assert_eq!((&gone["type"], &gone["kind"]), (&json!("error"), &json!("other")));
    }
}

fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', "'\\''"))
}

#[test]
fn input_that_is_sent_without_waiting_arrives_in_order() {
    let home = Home::new();
    let server = Server::start(&home);
    let mut client = Client::of(&server);
    let (request, id) = client.spawn("head -c 20000", json!({}));
    let mut expected = Vec::new();
    let mut number = 0;
    while expected.len() < 20_000 {
        let piece = format!("{number} ");
        client.send(json!({"type": "proc_stdin", "id": id, "data": piece.as_bytes()}));
        expected.extend(piece.into_bytes());
        number += 1;
    }
    expected.truncate(20_000);
    let (stdout, _, done) = client.finish(&request);
    assert_eq!(done["success"], true, "{done}");
    let same = stdout.iter().zip(&expected).take_while(|(one, other)| one == other).count();
    assert_eq!((stdout.len(), same), (20_000, 20_000), "out of order after {same} bytes");
}

#[test]
fn a_terminal_is_one() {
    let home = Home::new();
    let server = Server::start(&home);
    let mut client = Client::of(&server);
    let script = "tty; stty size; ps -o tpgid= -p $$; echo $$; read line; stty size; cd /; exit 5";
    let size = json!({"rows": 33, "cols": 44});
    let more = json!({"pty": size, "environment": {"HOME": home.path("tmp")}});
    let (request, id) = client.spawn(&format!("sh -c {}", quoted(script)), more);
    let mut said = String::new();
    let mut hear_until = |client: &mut Client, lines: usize| {
        while said.matches('\n').count() < lines {
            let reply = client.next_of(&request, "proc_stdout");
            said.push_str(&String::from_utf8(bytes(&reply["data"]).collect()).unwrap());
        }
        said.clone()
    };
    let said = hear_until(&mut client, 4);
    let lines: Vec<_> = said.lines().map(str::trim).collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{said}");
    assert_eq!(lines[1], "33 44");
    assert_eq!(lines[2], lines[3], "it is not in the foreground: {said}");
    let size = json!({"rows": 10, "cols": 20});
    let resized = client.ask(json!({"type": "proc_resize_pty", "id": id, "size": size}));
    assert_eq!(resized["type"], "ok", "{resized}");
    client.ask(json!({"type": "proc_stdin", "id": id, "data": b"go\n"}));
    let said = hear_until(&mut client, 6);
    assert!(said.ends_with("go\r\n10 20\r\n"), "{said:?}");
    let done = client.next_of(&request, "proc_done");
    // 0.20.0 knows no code of what runs on a terminal.
    assert_eq!((&done["success"], &done["code"]), (&json!(false), &json!(5)));
    let (_, without) = client.spawn("sleep 1000", json!({}));
    let size = json!({"rows": 1, "cols": 1});
    let refused = client.ask(json!({"type": "proc_resize_pty", "id": without, "size": size}));
    assert_eq!(refused["type"], "error", "{refused}");
}

#[test]
fn ctrl_c_reaches_what_runs_on_a_terminal() {
    let home = Home::new();
    let server = Server::start(&home);
    let mut client = Client::of(&server);
    let more = json!({"pty": {"rows": 24, "cols": 80}});
    let (request, id) = client.spawn("sh -c 'echo up; exec sleep 1000'", more);
    client.next_of(&request, "proc_stdout");
    client.ask(json!({"type": "proc_stdin", "id": id, "data": [3]}));
    let done = client.next_of(&request, "proc_done");
    assert_eq!((&done["success"], &done["code"]), (&json!(false), &Value::Null));
}

#[test]
fn kill_ends_the_whole_group_with_and_without_a_terminal() {
    let home = Home::new();
    let server = Server::start(&home);
    let mut client = Client::of(&server);
    for more in [json!({}), json!({"pty": {"rows": 24, "cols": 80}})] {
        let script = "trap '' TERM HUP; sleep 1001 & sleep 1002 & echo up; wait";
        let (request, id) = client.spawn(&format!("sh -c {}", quoted(script)), more);
        client.next_of(&request, "proc_stdout");
        assert_eq!(client.ask(json!({"type": "proc_kill", "id": id}))["type"], "ok");
        let done = client.next_of(&request, "proc_done");
        assert_eq!((&done["success"], &done["code"]), (&json!(false), &Value::Null));
        eventually("all of them end", || sleepers(&home).is_empty().then_some(()));
    }
}

fn sleepers(home: &Home) -> Vec<String> {
    let processes = home.processes();
    processes.into_iter().map(|it| it.command).filter(|it| it.starts_with("sleep")).collect()
}

#[test]
fn no_process_outlives_the_server() {
    let home = Home::new();
    let start_sleepers = |server: &Server, commands: &[&str]| {
        let mut client = Client::of(server);
        for command in commands {
            client.spawn(command, json!({}));
            client.spawn(command, json!({"pty": {"rows": 24, "cols": 80}}));
        }
        let count = 2 * commands.len();
        eventually("they run", || (sleepers(&home).len() == count).then_some(()));
        client
    };
    let stubborn = "sh -c \"trap '' TERM; sleep 1001; sleep 1002\"";
    let server = Server::start(&home);
    let client = start_sleepers(&server, &["sleep 1000", stubborn]);
    server.process.signal(Signal::TERM);
    server.process.finish().success();
    // Those that were killed with it need a moment to be gone.
    eventually("they end", || sleepers(&home).is_empty().then_some(()));
    drop(client);

    // What those have started is out of reach for a server that was killed.
    let server = Server::start(&home);
    let client = start_sleepers(&server, &["sleep 1000"]);
    server.process.signal(Signal::KILL);
    eventually("they end", || sleepers(&home).is_empty().then_some(()));
    drop(client);
}

#[test]
fn a_launch_s_own_variables_are_not_handed_on() {
    let home = Home::new();
    let server = home.ours(["server", "listen", "--host", "127.0.0.1"]);
    let server = Server::listen(server.env("DISTANT_LAUNCH", "1"));
    let mut client = Client::of(&server);
    let (request, _) = client.spawn("env", json!({}));
    let (stdout, ..) = client.finish(&request);
    let variables = String::from_utf8(stdout).unwrap();
    assert!(variables.contains("HOME=") && !variables.contains("DISTANT_LAUNCH"), "{variables}");
}

#[test]
fn a_slow_client_slows_the_process_down_and_fills_nothing() {
    let home = Home::new();
    let server = Server::start(&home);
    let pid = server.process.pid();
    let mut slow = Client::of(&server);
    let count = home.path("count");
    let script =
        format!("while head -c 1000000 /dev/zero; do printf x >> {}; done", count.display());
    let before = Look::memory(pid);
    let (request, id) = slow.spawn(&format!("sh -c {}", quoted(&script)), json!({}));
    // It has stopped when it writes no more for a while, though nobody has read a byte.
    let written = || fs::metadata(&count).map_or(0, |it| it.len());
    let mut last = (written(), std::time::Instant::now());
    eventually("the process waits", || {
        if written() != last.0 {
            last = (written(), std::time::Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
    let grown = Look::memory(pid).saturating_sub(before);
    report(format!(
        "a server with a client that reads nothing: {} MB taken from the process, {grown} KiB more",
        last.0
    ));
    assert!(grown < 30_000, "the server has grown by {grown} KiB");
    // Others are served meanwhile, and the slow one goes on where it stopped.
    let mut other = Client::of(&server);
    assert_eq!(other.ask(json!({"type": "version"}))["type"], "version");
    for _ in 0..300 {
        assert_eq!(slow.next(&request)["type"], "proc_stdout");
    }
    assert_eq!(other.ask(json!({"type": "proc_kill", "id": id}))["type"], "ok");
}

#[test]
fn a_process_that_does_not_read_stalls_nobody() {
    let home = Home::new();
    let server = Server::start(&home);
    let mut client = Client::of(&server);
    let (request, deaf) = client.spawn("sleep 1000", json!({}));
    let data = vec![b'x'; 20_000];
    for _ in 0..30 {
        client.send(json!({"type": "proc_stdin", "id": deaf, "data": data}));
    }
    let (echo, _) = client.spawn("echo hi", json!({}));
    assert_eq!(client.finish(&echo).0, b"hi\n");
    assert_eq!(client.ask(json!({"type": "proc_kill", "id": deaf}))["type"], "ok");
    client.next_of(&request, "proc_done");
}

#[test]
fn a_process_costs_no_wake_ups_while_it_does_nothing() {
    let home = Home::new();
    let server = Server::start(&home);
    let mut client = Client::of(&server);
    let (request, _) = client.spawn("sh -c 'echo up; exec sleep 1000'", json!({}));
    client.next_of(&request, "proc_stdout");
    let more = json!({"pty": {"rows": 24, "cols": 80}});
    let (request, _) = client.spawn("sh -c 'echo up; exec sleep 1000'", more);
    client.next_of(&request, "proc_stdout");
    let pid = server.process.pid();
    let before = Look::wake_ups(pid);
    client.wire.wait_at_most(Duration::from_secs(60));
    // Two heartbeats are about ten seconds.
    for _ in 0..2 {
        assert_eq!(client.wire.receive_any().unwrap(), b"");
    }
    let wake_ups = Look::wake_ups(pid).since(&before);
    report(format!("a server with two idle processes: {wake_ups} wake-ups in two heartbeats"));
    assert!(wake_ups < 40, "{wake_ups}");
}
