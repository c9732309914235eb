//! For each case that launches, a program with the one fault that it is there for, and none.

use super::{cases, is_found, seconds};
use crate::support::{Home, Server};

/// A program that asks for a word and whether the machine is the right one, and then offers a server
/// which somebody else has started.
const ASKING: &str = r#"#!/bin/sh
say() { printf '%s\n' "$1"; }
fail() { say '{"type":"error","kind":"'"$1"'","message":"no"}'; exit; }
say '{"type":"hello","protocol":[1,1],"manifest":{"name":"odd","version":"1","schemes":["odd"]}}'
while read -r line; do
    case $line in
        '{"type":"launch","destination":"odd://gone"'*) fail unreachable ;;
        '{"type":"launch"'*'"no-such-option"'*) fail invalid_option ;;
        '{"type":"launch"'*) say '{"type":"ask","id":1,"verification":{"kind":"host","text":"Sure?"}}' ;;
        '{"type":"answer","id":1,"valid":true'*)
            say '{"type":"ask","id":2,"challenge":{"questions":[{"text":"Word? ","echo":false}]}}' ;;
        '{"type":"answer","id":1,'*) fail host_key ;;
        '{"type":"answer","id":2,"answers":["mellon"]'*)
            say '{"type":"offer","id":3,"host":"127.0.0.1","port":PORT,"key":"KEY"}' ;;
        '{"type":"answer","id":2,'*) fail authentication ;;
        '{"type":"verdict","id":3,"verdict":"slow"'*) : ;;
        '{"type":"verdict","id":3,"verdict":"connected"'*) say '{"type":"done"}'; exit ;;
        '{"type":"verdict","id":3,'*) fail port_unreachable ;;
        '{"type":"cancel"'*) exit ;;
    esac
done
"#;

#[test]
fn each_case_that_launches_finds_its_fault() {
    let home = Home::new();
    let server = Server::start(&home);
    let good = ASKING.replace("PORT", &server.address.port().to_string());
    let good = good.replace("KEY", &server.key);
    let check = |text: &str, case: &str, status: &str, reason: &str| {
        let program = home.script("distant-plugin-odd", text);
        let arguments = ["--launch", "odd://x", "--unreachable", "odd://gone"];
        let answers = ["--answer", "word=mellon", "--timeout", seconds(status), "--only", case];
        let arguments = [&arguments[..], &answers].concat();
        is_found(&cases(&home, &program, &arguments), case, status, reason);
    };
    // What is found in one that differs from the good one in this alone.
    let finds = |from: &str, to: &str, case: &str, status: &str, reason: &str| {
        assert!(good.contains(from), "{from}");
        check(&good, case, "pass", "");
        check(&good.replacen(from, to, 1), case, status, reason);
    };
    finds(
        "\"slow\"'*) : ;;",
        "\"slow\"'*) exit 5 ;;",
        "launch.slow",
        "crash",
        "status 5 before its result",
    );
    finds(
        "fail invalid_option",
        "fail other",
        "launch.unknown_option",
        "fail",
        "its error is of kind `other`, not `invalid_option`",
    );
    finds("fail invalid_option", "exit 6", "launch.unknown_option", "crash", "status 6");
    finds(
        "fail host_key",
        "fail unreachable",
        "launch.nobody_answers",
        "fail",
        "its error is of kind `unreachable`, not `authentication` or `host_key`",
    );
    finds("fail host_key", "kill -ABRT $$", "launch.nobody_answers", "crash", "signal 6");
    finds(
        "fail host_key",
        "fail authentication",
        "launch.no",
        "fail",
        "its error is of kind `authentication`, not `host_key`",
    );
    // Another question is the plugin's own business, but no reason to crash.
    let own = good.replace("\"kind\":\"host\"", "\"kind\":\"user\"");
    check(&own.replacen("fail host_key", "fail authentication", 1), "launch.no", "pass", "");
    check(&own.replacen("fail host_key", "exit 8", 1), "launch.no", "crash", "status 8");
    let went_on = "after `no` it goes on, and asks `Word?`";
    // A host that is not the right one gets no password.
    finds(
        "'{\"type\":\"answer\",\"id\":1,'*) fail host_key ;;",
        "'{\"type\":\"answer\",\"id\":1,'*)
            say '{\"type\":\"ask\",\"id\":7,\"challenge\":{\"questions\":[{\"text\":\"Word? \"}]}}' ;;
        '{\"type\":\"answer\",\"id\":7,'*) fail host_key ;;",
        "launch.no",
        "fail",
        went_on,
    );
    // It goes on although the person has said no.
    finds("\"valid\":true'*)", "\"valid\":'*)", "launch.no", "fail", went_on);
    let offer = good.lines().find(|line| line.contains("\"offer\"")).unwrap();
    finds("fail host_key ;;", offer, "launch.no", "fail", "succeeds all the same");
    finds("fail authentication", "exit 7", "launch.odd_answers", "crash", "status 7");
    finds(
        "fail unreachable",
        "fail server_not_started",
        "launch.unreachable_host",
        "fail",
        "its error is of kind `server_not_started`, not `unreachable`",
    );
    finds("//gone", "//away", "launch.unreachable_host", "fail", "succeeds all the same");
    // Nothing that it is told reaches it any more, once it has been answered.
    finds(
        "'{\"type\":\"answer\",\"id\":2,\"answers\":[\"mellon\"]'*)",
        "'{\"type\":\"answer\",\"id\":2,\"answers\":[\"mellon\"]'*) trap '' TERM; sleep 8",
        "launch.plain",
        "timeout",
        "the launch came to no end within 3 s",
    );
    // Its server is the test's own, which nobody may end; so the case is about its own end alone.
    check(&good, "launch.hang_up", "fail", "a server that still answers on 127.0.0.1:");
    let deaf = format!("{good}trap '' TERM\nsleep 9\n");
    check(&deaf, "launch.hang_up", "timeout", "at message 0 of 3: it did not end within 2 s");
}
