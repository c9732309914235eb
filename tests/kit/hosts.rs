//! What a plugin may do while nobody wants a launch of it, and which hosts it may meet: libraries
//! and programs alike.

use std::process::Command;

use super::{cases, is_found, renamed, seconds, PROGRAM};
use crate::abi::{builds, c_plugin};
use crate::support::{repository, Home, Manager, Server};

#[test]
fn a_program_meets_older_newer_and_foreign_hosts() {
    let home = Home::new();
    let server = Server::start(&home);
    let simple = PROGRAM.replace("PORT", &server.address.port().to_string());
    let simple = simple.replace("KEY", &server.key);
    let check = |text: &str, case: &str, status: &str, reason: &str| {
        let program = home.script("distant-plugin-odd", text);
        let arguments = ["--launch", "odd://x", "--timeout", seconds(status), "--only", case];
        is_found(&cases(&home, &program, &arguments), case, status, reason);
    };
    let first = |more: &str| simple.replacen("case $line in", &format!("case $line in\n{more}"), 1);

    check(&simple, "launch.older_host", "pass", "");
    let needs = first("'{\"type\":\"hello\"'*log_level*) : ;; '{\"type\":\"hello\"'*) exit 3 ;;");
    check(&needs, "launch.plain", "pass", "");
    check(&needs, "launch.older_host", "crash", "status 3 before its result");

    check(&simple, "launch.newer_host", "pass", "");
    let picky = first("*'\"later\"'*) exit 4 ;;");
    check(&picky, "launch.plain", "pass", "");
    check(&picky, "launch.newer_host", "crash", "status 4 before its result");

    // It never looks which protocol its host speaks.
    check(&simple, "launch.foreign_host", "fail", "for a host that speaks protocol 2");
    let looks = |what: &str| {
        first(&format!(
            "'{{\"type\":\"hello\",\"protocol\":1'*) : ;; '{{\"type\":\"hello\"'*) {what} ;;"
        ))
    };
    let error = r#"say '{"type":"error","kind":"plugin","message":"I speak protocol 1"}'; exit"#;
    check(&looks(error), "launch.foreign_host", "pass", "I speak protocol 1");
    check(&looks("echo 'I speak protocol 1' >&2; exit 1"), "launch.foreign_host", "pass", "");
    check(&looks("exit 1"), "launch.foreign_host", "fail", "and does not say why");
    check(&looks("kill -SEGV $$"), "launch.foreign_host", "crash", "signal 11");
    check(&looks("sleep 9"), "launch.foreign_host", "timeout", "it does not refuse a host");
    check(&looks("say '{\"type\":\"done\"}'; exit"), "launch.foreign_host", "fail", "it is done");
    check(
        &simple.replace("\"schemes\"", "\"runs_commands\":true,\"schemes\""),
        "launch.foreign_host",
        "skip",
        "its worker speaks the protocol for it",
    );
}

#[test]
fn a_library_built_with_panic_abort_is_named_and_takes_nobody_along() {
    let home = Home::new();
    let built =
        |panic: &str| builds::rustc_plugin(&home, "panicking", &[&format!("-Cpanic={panic}")]);
    let arguments = ["--launch", "panicking://x", "--only", "load.panic", "--only", "launch.plain"];

    let found = cases(&home, &built("unwind"), &arguments);
    is_found(&found, "load.panic", "pass", "");
    is_found(&found, "launch.plain", "fail", "the plugin panicked");

    let library = built("abort");
    let found = cases(&home, &library, &arguments);
    is_found(&found, "load.panic", "fail", "it is built with `panic = \"abort\"`");
    is_found(&found, "launch.plain", "crash", "it was killed by signal 6: thread '");
    is_found(&found, "launch.plain", "crash", "plugin bug 44");

    // It ends its own launch, with one clear error, and the manager launches on.
    let manager = Manager::start(&home);
    let pid = manager.pid();
    home.ours(["plugin", "add"]).arg(&library).run().success();
    let launch = home.ours(["launch", "panicking://x"]).run().code(1);
    assert!(launch.stderr.contains("was killed by signal 6 (SIGABRT)"), "{}", launch.told());
    assert!(launch.stderr.contains("plugin bug 44"), "{}", launch.told());
    home.ours(["launch", "manager://localhost"]).run().id();
    assert_eq!(manager.pid(), pid);
}

#[test]
fn a_program_that_uses_the_network_before_a_launch_is_found() {
    let home = Home::new();
    let check = |before: &str, status: &str, reason: &str| {
        let text = PROGRAM.replacen("#!/bin/sh", &format!("#!/bin/bash\n{before}"), 1);
        let program = home.script("distant-plugin-odd", &text);
        let found = cases(&home, &program, &["--only", "load.network", "--only", "load.hello"]);
        is_found(&found, "load.hello", "pass", "odd");
        is_found(&found, "load.network", status, reason);
    };
    check("", "pass", "");
    // By itself, and by a program that it starts; a socket of this machine is none of the network.
    check(
        "(: > /dev/tcp/127.0.0.1/9) 2>/dev/null",
        "fail",
        "it uses the network while it says what",
    );
    let python = |family: &str| {
        format!("python3 -c 'import socket; socket.socket(socket.{family})' 2>/dev/null")
    };
    check(&python("AF_INET6"), "fail", "it says what it is: `python3 -c import socket");
    check(&python("AF_UNIX"), "pass", "");
    // When it hears from its host that it was only asked.
    let text = PROGRAM.replacen("case $line", "(: > /dev/udp/::1/9) 2>/dev/null\ncase $line", 1);
    let program = home.script("distant-plugin-odd", &text.replacen("/bin/sh", "/bin/bash", 1));
    let found = cases(&home, &program, &["--only", "load.network"]);
    is_found(&found, "load.network", "fail", "distant-plugin-odd`");
}

/// A case that cannot look must not pass for one that has seen nothing.
#[test]
fn where_nobody_may_watch_the_network_case_says_that_it_is_not_checked() {
    let home = Home::new();
    let source = repository().join("tests/plugins/c/unwatched.c");
    let unwatched = home.path("bin/unwatched");
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror", "-o"]).args([&unwatched, &source]);
    assert!(cc.status().unwrap().success());
    let distant = crate::support::programs().distant.as_os_str();
    for plugin in [
        home.script("distant-plugin-odd", PROGRAM),
        renamed(&home, &c_plugin(&home, "restless.c", "NETWORK"), "libdistant_plugin_restless.so"),
    ] {
        let test = home.program(&unwatched, [distant]).args(&["plugin", "test", "--only"]);
        let test = test.arg("load.network").arg(&plugin).run().success();
        let said = "skip    load.network: not checked: this system lets nobody watch: ";
        assert!(test.stdout.starts_with(said), "{}", test.told());
    }
}
