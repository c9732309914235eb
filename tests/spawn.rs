//! Commands that run over a connection as if they ran here: `… | distant spawn -- COMMAND`.

use std::fs;
use std::path::PathBuf;

use serde_json::{json, Value};

use crate::support::{eventually, Home, Manager, Running, Server, Signal};

/// A home whose selected connection leads to a server of ours.
fn launched() -> (Home, Manager) {
    let home = Home::new();
    let manager = Manager::start(&home);
    home.ours(["launch", "manager://localhost"]).run().success();
    (home, manager)
}

#[test]
fn the_end_of_the_input_is_seen_by_the_command() {
    let (home, _manager) = launched();
    for (command, input, expected) in [
        ("cat", "some words", "some words"),
        ("cat", "", ""),
        ("sort", "c\na\nb\n", "a\nb\nc\n"),
        ("wc -c", "12345", "5\n"),
    ] {
        let finished = home.ours(["spawn", "--", command]).input(input).run().success();
        assert_eq!(finished.stdout, expected, "{command}");
    }
    // One that has closed its input by then, or has ended.
    home.ours(["spawn", "--", "head -c 1"]).input("x".repeat(1 << 20)).run().success();
    home.ours(["spawn", "--", "false"]).input("x").run().code(1);
}

#[test]
fn much_input_arrives_whole_before_its_end_and_comes_back() {
    let (home, _manager) = launched();
    let lines: String = (0..1_000_000).rev().map(|number| format!("{number:07}\n")).collect();
    let same = home.ours(["spawn", "--", "cat"]).input(&lines).run().success();
    assert!(same.stdout == lines, "{} of {} bytes", same.stdout.len(), lines.len());

    let sorted = home.ours(["spawn", "--", "sort"]).input(&lines).run().success();
    let expected: String = (0..1_000_000).map(|number| format!("{number:07}\n")).collect();
    assert!(sorted.stdout == expected, "{} of {} bytes", sorted.stdout.len(), expected.len());
}

#[test]
fn an_editor_can_end_the_input_of_a_command_too() {
    let (home, _manager) = launched();
    let mut api = home.ours(["api"]).start();
    api.say(r#"{"type":"auth_initialization_response","methods":["none"]}"#);
    let ask = |api: &mut Running, id: &str, header: Value, payload: Value| {
        api.say(&json!({"id": id, "header": header, "payload": payload}).to_string());
    };
    while api.json()["type"] != "auth_finished" {}
    let spawn = json!({"type": "proc_spawn", "cmd": "cat", "environment": {}});
    ask(&mut api, "1", json!({}), spawn);
    let id = api.json()["payload"]["id"].clone();
    let end = json!({"launcher": {"version": 1, "close_stdin": true}});
    ask(&mut api, "2", end, json!({"type": "proc_stdin", "id": id, "data": [104, 105]}));
    // Its answer may come before what the command says, or after that.
    let mut heard = Vec::new();
    while heard.len() < 3 {
        heard.push(api.json()["payload"].clone());
    }
    for expected in ["ok", "proc_done", "proc_stdout"] {
        let found = heard.iter().find(|it| it["type"] == expected);
        let found = found.unwrap_or_else(|| panic!("no {expected} in {heard:?}"));
        if expected == "proc_stdout" {
            assert_eq!(found["data"], json!([104, 105]));
        }
    }
    api.close_stdin();
    api.finish().success();
}

#[test]
fn a_0_20_server_takes_the_input_and_never_hears_of_its_end() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let server = Server::start_peer(&home);
    let destination = format!("distant://{}", server.address);
    let connect = home.ours(["connect", &destination, "--key-from-stdin"]);
    connect.input(format!("{}\n", server.key)).run().success();

    let first = home.ours(["spawn", "--", "head -n 1"]).input("one\ntwo\n").run().success();
    assert_eq!(first.stdout, "one\n");
    let mut endless = home.ours(["spawn", "--", "cat"]).start();
    endless.feed(b"one\n");
    assert_eq!(endless.line(), "one");
    endless.signal(Signal::INT);
    endless.finish().code(130);
}

/// Starts `distant` with a standard output that nobody reads, waits until it is full, and ends it.
fn ended_while_nobody_reads(home: &Home, arguments: &str, input: &str) {
    let script = format!(
        "exec 5<&0; mkfifo full; exec 4<>full; \"$0\" {arguments} >&4 & echo $!; wait $!; echo \"ended $?\""
    );
    let ours = crate::support::programs().distant.clone();
    let mut shell = home.program("sh", ["-c".as_ref(), script.as_ref(), ours.as_os_str()]).start();
    let pid: u32 = shell.line().parse().unwrap();
    input.lines().for_each(|line| shell.say(line));
    let is_stuck = |task: PathBuf| {
        fs::read_to_string(task.join("wchan")).is_ok_and(|at| at.contains("pipe_write"))
    };
    eventually("a full pipe", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        let tasks =
            tasks.unwrap_or_else(|_| panic!("{arguments} ended: {}", shell.told())).flatten();
        tasks.map(|task| task.path()).any(is_stuck).then_some(())
    });
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(shell.line(), "ended 143");
    shell.finish().success();
    fs::remove_file(home.path("full")).unwrap();
}

#[test]
fn a_command_line_can_be_ended_while_nobody_reads_what_it_writes() {
    let (home, _manager) = launched();
    ended_while_nobody_reads(&home, "spawn -- yes", "");
    let request = json!({"type": "proc_spawn", "cmd": "yes", "environment": {}});
    let spawn = json!({"id": "1", "payload": request});
    let greeting = json!({"type": "auth_initialization_response", "methods": ["none"]});
    ended_while_nobody_reads(&home, "api <&5", &format!("{greeting}\n{spawn}\n"));
}
