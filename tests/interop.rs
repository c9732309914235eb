//! With the released distant 0.20.0, in every pairing.

use std::fs;
use std::time::Duration;

use serde_json::{json, Value};

use crate::support::wire::Wire;
use crate::support::{
    eventually, peer, within, Home, Invocation, Manager, Proxy, Running, Server, HELLO, PATIENCE,
};

/// One line of 64 characters, and how many of them a long output has.
const LINES: usize = 20_000;

/// The `distant` that runs a command.
type Program = fn(&Home, &[&str]) -> Invocation;

fn by_ours(home: &Home, args: &[&str]) -> Invocation {
    home.ours(args)
}

fn by_peer(home: &Home, args: &[&str]) -> Invocation {
    home.peer(args)
}

/// Everything that 0.20.0 can ask over a connection which goes by its command line.
#[track_caller]
fn assert_peer_can_use_it(home: &Home) {
    let file = home.write("greeting.txt", "guten Tag\n");
    assert_eq!(home.peer(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    let info = home.peer(["system-info"]).run().success().stdout;
    assert!(info.contains("Operating System: \"linux\""), "{info}");
    let read = home.peer(["fs", "read"]).arg(&file).run().success();
    assert_eq!(read.stdout, "guten Tag\n");
    let copy = home.path("copy.txt");
    home.peer(["fs", "copy"]).arg(&file).arg(&copy).run().success();
    assert_eq!(fs::read_to_string(copy).unwrap(), "guten Tag\n");
    assert!(home.peer(["version"]).run().success().stdout.contains("+exec"));
    let failed = home.peer(["fs", "read", "/no/such/file"]).run();
    assert!(!failed.status.success(), "{}", failed.told());
}

/// Does over an `api` what an editor does, and kills it then: 0.20.0 does not end with its stdin.
#[track_caller]
fn assert_editor_can_use_it(home: &Home, mut api: Running) {
    assert_eq!(api.json(), json!({"type": "auth_initialization", "methods": ["none"]}));
    api.say(HELLO);
    assert_eq!(api.json()["type"], "auth_start_method");
    assert_eq!(api.json()["type"], "auth_finished");
    let folder = tempfile::tempdir_in(home.path("tmp")).unwrap();
    let folder = folder.path();
    let (file, other) = (folder.join("a"), folder.join("b"));
    let ask = |api: &mut Running, id: &str, payload: Value| {
        api.say(&json!({"id": id, "payload": payload}).to_string());
        let reply = api.json();
        assert_eq!(reply["origin_id"], id, "{reply}");
        assert!(reply["id"].is_string(), "{reply}");
        reply["payload"].clone()
    };

    let info = ask(&mut api, "info", json!({"type": "system_info"}));
    assert_eq!((&info["type"], &info["os"]), (&json!("system_info"), &json!("linux")));
    let write = json!({"type": "file_write_text", "path": file, "text": "one two\n"});
    assert_eq!(ask(&mut api, "write", write), json!({"type": "ok"}));
    let exists = |path| json!({"type": "exists", "path": path});
    let batch = json!([exists(&file), exists(&other), {"type": "file_read_text", "path": file}]);
    let replies = json!([
        {"type": "exists", "value": true},
        {"type": "exists", "value": false},
        {"type": "text", "data": "one two\n"},
    ]);
    assert_eq!(ask(&mut api, "batch", batch), replies);
    let missing = ask(&mut api, "missing", json!({"type": "file_read", "path": other}));
    assert_eq!((&missing["type"], &missing["kind"]), (&json!("error"), &json!("not_found")));

    let search = json!({"type": "search", "query": {
        "target": "contents", "condition": {"type": "contains", "value": "two"},
        "paths": [folder], "options": {},
    }});
    let begun = ask(&mut api, "search", search);
    assert_eq!(begun["type"], "search_started");
    let found = api.json()["payload"].clone();
    assert_eq!(found["matches"][0]["submatches"][0]["start"], 4, "{found}");
    assert_eq!(api.json()["payload"], json!({"type": "search_done", "id": begun["id"]}));

    let cat = ask(&mut api, "cat", json!({"type": "proc_spawn", "cmd": "cat"}));
    assert_eq!(cat["type"], "proc_spawned");
    let typed = json!({"type": "proc_stdin", "id": cat["id"], "data": b"miau\n"});
    api.say(&json!({"id": "typed", "payload": typed}).to_string());
    // The reply to the input and the output that it makes may come in either order.
    let mut replies = [api.json(), api.json()];
    replies.sort_by_key(|reply| reply["origin_id"].to_string());
    assert_eq!(replies[0]["origin_id"], "cat");
    assert_eq!(replies[0]["payload"]["data"], json!(b"miau\n"), "{replies:?}");
    assert_eq!(replies[1]["payload"], json!({"type": "ok"}), "{replies:?}");
    api.say(&json!({"id": "kill", "payload": {"type": "proc_kill", "id": cat["id"]}}).to_string());
    let mut replies = [api.json(), api.json()];
    replies.sort_by_key(|reply| reply["origin_id"].to_string());
    assert_eq!(replies[0]["payload"]["type"], "proc_done", "{replies:?}");

    let watch =
        json!({"type": "watch", "path": folder, "recursive": true, "only": [], "except": []});
    assert_eq!(ask(&mut api, "watch", watch), json!({"type": "ok"}));
    fs::write(&other, "new").unwrap();
    let changed = api.json();
    assert_eq!(changed["origin_id"], "watch", "{changed}");
    assert_eq!(changed["payload"]["type"], "changed", "{changed}");
    assert_eq!(changed["payload"]["path"], json!(other), "{changed}");
}

#[test]
fn a_0_20_command_line_uses_our_manager() {
    let home = Home::new();
    let manager = Manager::start(&home);
    // It always says `distant.bin="distant"`, and there is no such program in the manager's PATH.
    let id = home.peer(["launch", "manager://localhost"]).run().id();
    assert_peer_can_use_it(&home);
    assert_editor_can_use_it(&home, home.peer(["api"]).start());

    let list = home.peer(["manager", "list"]).run().success().stdout;
    assert!(list.contains(&id.to_string()), "{list}");
    let info = home.peer(["manager", "info", &id.to_string()]).run().success().stdout;
    assert!(info.contains(&id.to_string()), "{info}");
    let version = home.peer(["manager", "version"]).run().success().stdout;
    assert!(version.contains("0.20.0"), "{version}");
    home.peer(["manager", "kill", &id.to_string()]).run().success();
    manager.assert_no_offspring();
    assert!(!home.peer(["manager", "info", &id.to_string()]).run().status.success());
}

#[test]
fn a_0_20_command_line_is_told_what_went_wrong() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let check = |arguments: &[&str], said: &str| {
        let failed = home.peer(["launch"].iter().chain(arguments)).run().code(1);
        assert!(failed.stderr.contains(said), "{}", failed.told());
    };
    check(&["foo://localhost"], "`foo`");
    check(&["manager://localhost", "--options", "distant.bni=x"], "did you mean `distant.bin`?");
    check(&["manager://localhost", "--distant", "/no/such/distant"], "/no/such/distant");
    check(&["faulty://localhost", "--options", "mode=panic"], "plugin bug 42");
    manager.assert_no_offspring();
}

#[test]
fn a_0_20_command_line_in_json_format_uses_our_manager() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let mut launch = home.peer(["launch", "manager://localhost", "--format", "json"]).start();
    assert_eq!(launch.json()["type"], "auth_initialization");
    launch.say(HELLO);
    assert_eq!(launch.json()["type"], "auth_start_method");
    assert_eq!(launch.json()["type"], "auth_finished");
    let launched = launch.json();
    assert_eq!(launched["type"], "launched", "{launched}");
    launch.finish().success();

    // Questions of a plugin reach it as those of its own ssh did.
    let options = "verify=trust it?,ask=\"Password: \",expect=secret,mode=error,when=asked";
    let mut launch = home
        .peer(["launch", "faulty://localhost", "--format", "json", "--options", options])
        .start();
    launch.json();
    launch.say(HELLO);
    launch.json();
    launch.json();
    let verification = json!({"type": "auth_verification", "kind": "host", "text": "trust it?"});
    assert_eq!(launch.json(), verification);
    launch.say(r#"{"type":"auth_verification_response","valid":true}"#);
    let challenge = launch.json();
    assert_eq!(challenge["type"], "auth_challenge");
    assert_eq!(challenge["questions"][0]["text"], "Password: ");
    assert_eq!(challenge["questions"][0]["options"]["echo"], "false");
    launch.say(r#"{"type":"auth_challenge_response","answers":["secret"]}"#);
    let error = launch.json();
    assert_eq!(error["type"], "error");
    assert!(error["msg"].as_str().unwrap().contains("the moon is full"), "{error}");
    launch.finish().code(1);
}

#[test]
fn our_manager_launches_a_0_20_server() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let peer = peer().display().to_string();
    for program in [by_ours as Program, by_peer] {
        let launch = program(&home, &["launch", "manager://localhost", "--distant", &peer]);
        let id = launch.run().id();
        let servers = manager.servers();
        assert_eq!(servers.len(), 1, "{servers:#?}");
        assert!(servers[0].command.starts_with(&peer), "{servers:#?}");
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
        assert_peer_can_use_it(&home);
        assert_editor_can_use_it(&home, home.ours(["api"]).start());
        home.ours(["manager", "kill", &id.to_string()]).run().success();
        manager.assert_no_offspring();
    }
}

#[test]
fn an_editor_uses_our_api_and_server() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    home.ours(["launch", "manager://localhost"]).run().id();
    assert_editor_can_use_it(&home, home.ours(["api"]).start());
    assert_peer_can_use_it(&home);

    // Ours end with their stdin, once everything is done.
    let mut api = home.ours(["api"]).start();
    api.say(HELLO);
    api.say(r#"{"id":"1","payload":{"type":"version"}}"#);
    let said = api.finish().success().stdout;
    assert!(said.lines().last().unwrap().contains("\"origin_id\":\"1\""), "{said}");
    let head = home.ours(["spawn", "--", "head", "-n", "1"]).input("one\ntwo\n").run().success();
    assert_eq!(head.stdout, "one\n");
}

#[test]
fn a_0_20_manager_connects_to_our_server() {
    let home = Home::new();
    let server = Server::start(&home);
    let manager = Manager::start_peer(&home);
    home.peer(["connect", &server.destination_by(server.address)]).run().id();
    assert_peer_can_use_it(&home);
    assert_editor_can_use_it(&home, home.peer(["api"]).start());
    // And our command line drives a 0.20.0 manager.
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    drop(manager);
    let wrong = Home::new();
    let _manager = Manager::start_peer(&wrong);
    let key = "00".repeat(32);
    let refused = wrong.peer(["connect", &format!("distant://:{key}@{}", server.address)]).run();
    refused.code(1);
}

#[test]
fn our_connect_reaches_a_0_20_server_and_ours() {
    let home = Home::new();
    let manager = Manager::start(&home);
    for server in [Server::start_peer(&home), Server::start(&home)] {
        let destination = format!("distant://{}", server.address);
        let connect = || home.ours(["connect", &destination, "--key-from-stdin"]);
        connect().input(format!("{}\n", server.key)).run().id();
        assert_peer_can_use_it(&home);
        assert_editor_can_use_it(&home, home.ours(["api"]).start());
        home.peer(["connect", &server.destination_by(server.address)]).run().id();
        assert_peer_can_use_it(&home);

        let wrong = connect().input(format!("{}\n", "00".repeat(32))).run().code(1);
        assert!(wrong.stderr.contains("error: "), "{}", wrong.told());
        let file = home.write("key", &server.key);
        home.ours(["connect", &destination, "--key-file"]).arg(file).run().id();
        // It was only connected to: ending the connection does not end it.
        let id =
            home.ours(["connect", &destination, "--key-from-stdin"]).input(&server.key).run().id();
        home.ours(["manager", "kill", &id.to_string()]).run().success();
        assert!(!server.process.ends_within(Duration::ZERO));
        assert_peer_can_use_it_by(&home, &connect().input(&server.key).run().id().to_string());
    }
    drop(manager);
}

#[track_caller]
fn assert_peer_can_use_it_by(home: &Home, id: &str) {
    let spawn = home.peer(["spawn", "--connection", id, "--", "echo", "hi"]);
    assert_eq!(spawn.run().success().stdout, "hi\n");
}

#[test]
fn connect_sends_ssh_to_launch() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let refused = home.ours(["connect", "ssh://localhost"]).run();
    assert!(!refused.status.success() && refused.stderr.contains("launch"), "{}", refused.told());
}

/// Runs a command with much output while its connection is cut again and again, and then one that
/// echoes; nothing may be missing or come twice. Does `meanwhile` whenever nothing comes.
///
/// The command is killed in the end. That of 0.20.0 goes on when its stdin ends; and when the
/// remote one ends, it does not wait for output that it has not printed yet.
#[track_caller]
fn assert_cuts_lose_nothing(home: &Home, proxy: &Proxy, meanwhile: impl Fn()) {
    let seq = format!("#!/bin/sh\nseq -f %063g 1 {LINES}\nexec cat\n");
    let numbers = home.script("numbers", &seq).display().to_string();
    let before = proxy.accepted();
    proxy.cut_after(400_000);
    let mut numbers = home.peer(["spawn", "--", &numbers]).start();
    let expect = |numbers: &Running, expected: String| {
        let line = within(PATIENCE, || {
            let line = numbers.line_within(Duration::from_millis(5));
            if line.is_none() {
                meanwhile();
            }
            line
        });
        assert_eq!(line, Some(expected), "{}", numbers.told());
    };
    for line in 1..=LINES {
        expect(&numbers, format!("{line:063}"));
    }
    assert!(proxy.accepted() > before, "the connection was never cut");
    proxy.cut_after(0);
    for round in 0..20 {
        numbers.say(&format!("line {round}"));
        if round % 7 == 3 {
            proxy.cut();
        }
        expect(&numbers, format!("line {round}"));
    }
}

#[test]
fn a_0_20_client_that_is_cut_off_reconnects_and_loses_nothing() {
    let home = Home::new();
    let server = Server::start(&home);
    let proxy = Proxy::to(server.address);
    let _manager = Manager::start_peer(&home);
    home.peer(["connect", &server.destination_by(proxy.address)]).run().id();
    assert_cuts_lose_nothing(&home, &proxy, || ());
}

#[test]
fn our_client_that_is_cut_off_reconnects_and_loses_nothing() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let server = Server::start(&home);
    let proxy = Proxy::to(server.address);
    home.peer(["connect", &server.destination_by(proxy.address)]).run().id();
    assert_cuts_lose_nothing(&home, &proxy, || ());
}

/// A 0.20.0 server whose connection breaks while it writes tries to write for ever, without a
/// pause. Where none of its other threads waits for its sockets just then, it serves nobody any
/// more, and no client can help that. Something that happens on a thread of its own does: here, a
/// file that it watches.
#[test]
fn our_client_that_is_cut_off_from_a_0_20_server_reconnects_and_loses_nothing() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let server = Server::start_peer(&home);
    let proxy = Proxy::to(server.address);
    let watched = home.write("watched/file", "");
    let mut watcher = Wire::server(server.address, &server.key);
    let folder = watched.parent().unwrap();
    let watch =
        json!({"type": "watch", "path": folder, "recursive": true, "only": [], "except": []});
    assert_eq!(watcher.ask("watch", &watch).unwrap(), json!({"type": "ok"}));
    home.peer(["connect", &server.destination_by(proxy.address)]).run().id();
    assert_cuts_lose_nothing(&home, &proxy, || fs::write(&watched, "changed").unwrap());
}

#[test]
fn a_server_that_is_gone_is_shown_and_one_that_refuses_is_dropped() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let server = Server::start(&home);
    let proxy = Proxy::to(server.address);
    let id = home.peer(["connect", &server.destination_by(proxy.address)]).run().id().to_string();
    let listed = || home.ours(["manager", "list"]).run().success().stdout;
    let info = || home.ours(["manager", "info", &id]).run().stdout;
    assert!(listed().contains(&id) && !info().contains("reconnecting"));
    drop(server);
    eventually("a connection that is shown as lost", || {
        info().contains("reconnecting").then_some(())
    });
    // Another server at the same place does not know the connection.
    let again = Server::start(&home);
    proxy.lead_to(again.address);
    eventually("a connection that is dropped", || (!listed().contains(&id)).then_some(()));
}
