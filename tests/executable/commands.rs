//! Executable plugins that only say how a command is run: in `/bin/sh`, without a JSON parser.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{asked, is_worker, plugin};
use crate::support::{
    calm, eventually, peer, programs, Finished, Home, Invocation, Manager, Running, Seen, Signal,
};

const RUNS_COMMANDS: &str = r#","runs_commands":true"#;

/// Runs commands on this machine.
const HERE: &str = r#""argv":["sh","-c","{command}"],"address":"127.0.0.1""#;

/// Puts `here://` into a home; the plugin answers `exec` with these members, does something before
/// that, and writes down what else it hears.
fn here(home: &Home, before: &str, members: &str) -> PathBuf {
    let heard = home.path("heard");
    let file = heard.display();
    let body = format!(
        r#"while read -r line; do
            case $line in
                '{{"type":"hello"'*) ;;
                '{{"type":"launch"'*) ;;
                '{{"type":"exec","id":1,'*) {before}; echo '{{"type":"run","id":1,{members}}}' ;;
                *) echo "$line" >> {file} ;;
            esac
        done
        echo end >> {file}"#,
        before = if before.is_empty() { ":" } else { before },
    );
    plugin(home, "here", RUNS_COMMANDS, &body);
    heard
}

fn launch(home: &Home, server: &str) -> Invocation {
    home.ours(["launch", "here://box", "--distant", server])
}

fn ours() -> String {
    programs().distant.display().to_string()
}

const CONNECTED: &str = "{\"type\":\"verdict\",\"id\":1,\"verdict\":\"connected\"}\nend\n";
const CANCELLED: &str = "{\"type\":\"cancel\"}\nend\n";

#[test]
fn a_shell_script_that_runs_commands_launches_and_may_go() {
    let home = Home::new();
    let heard = here(&home, "", HERE);
    let manager = Manager::start(&home);
    for server in [ours(), peer().display().to_string()] {
        let id = launch(&home, &server).run().id().to_string();
        let spawned = home.ours(["spawn", "--connection", &id, "--", "echo", "hi"]).run().success();
        assert_eq!(spawned.stdout, "hi\n");
        eventually("the end of worker and plugin", || {
            let left = manager.offspring();
            left.iter().all(|it| it.command.contains("server listen")).then_some(())
        });
        assert_eq!(manager.offspring().len(), 1);
        assert_eq!(fs::read_to_string(&heard).unwrap(), CONNECTED);
        fs::remove_file(&heard).unwrap();
        home.ours(["manager", "kill", &id]).run().success();
        manager.assert_no_offspring();
    }
}

#[test]
fn a_shell_script_that_runs_commands_brings_a_program_where_none_is() {
    let home = Home::new();
    let heard = here(&home, "", HERE);
    let _manager = Manager::start(&home);
    let released = peer().display().to_string();
    let brought = || {
        let names = fs::read_dir(home.cache().with_file_name("bin")).into_iter().flatten();
        names.map(|it| it.unwrap().metadata().unwrap().modified().unwrap()).collect::<Vec<_>>()
    };
    let mut first = Vec::new();
    for _ in 0..2 {
        launch(&home, "/none/distant").args(&["--distant-upload", &released]).run().id();
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
        if first.is_empty() {
            first = brought();
        }
        assert_eq!((first.len(), &first), (1, &brought()));
        eventually("the end of the plugin", || {
            (fs::read_to_string(&heard).ok()? == CONNECTED).then_some(())
        });
        fs::remove_file(&heard).unwrap();
    }
}

#[test]
fn a_plugin_that_puts_the_command_in_itself_brings_a_program_too() {
    let home = Home::new();
    let take = "c=${line#*'\"command\":'}; c=${c%?}";
    here(&home, take, r#""argv":["sh","-c",'"$c"'],"address":"127.0.0.1""#);
    let _manager = Manager::start(&home);
    let released = peer().display().to_string();
    launch(&home, "/none/distant").args(&["--distant-upload", &released]).run().id();
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
}

#[test]
fn a_plugin_that_answers_and_ends_at_once_launches_too() {
    let home = Home::new();
    let body = format!(
        "read hello; read launch; read exec || exit\necho '{{\"type\":\"run\",\"id\":1,{HERE}}}'"
    );
    plugin(&home, "here", RUNS_COMMANDS, &body);
    let _manager = Manager::start(&home);
    launch(&home, &ours()).run().id();
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
}

#[test]
fn what_a_plugin_asks_before_it_runs_a_command_is_answered() {
    let home = Home::new();
    let ask = r#"echo '{"type":"ask","id":1,"challenge":{"questions":[{"text":"token?"}]}}'; read -r token"#;
    let members = format!("{HERE},\"token\":\"'\"${{#token}}\"'\"");
    here(&home, ask, &members);
    let _manager = Manager::start(&home);
    let mut launch = launch(&home, &ours()).arg("--format").arg("json").start();
    assert_eq!(asked(&mut launch), "token?");
    launch.say(r#"{"type":"auth_challenge_response","answers":["123456"]}"#);
    let end = launch.json();
    assert_eq!(end["type"], "launched", "{end}");
    launch.finish();
}

/// Launches with a plugin that cannot, and gives what the person sees; the plugin hears of it.
#[track_caller]
fn fails(members: &str, server: &str, expected: &[&str]) -> Finished {
    let home = Home::new();
    let heard = here(&home, "", members);
    let manager = Manager::start(&home);
    let begun = Instant::now();
    let failed = launch(&home, server).run().code(1);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for text in expected {
        assert!(failed.stderr.contains(text), "no `{text}`: {}", failed.told());
    }
    manager.assert_no_offspring();
    assert_eq!(fs::read_to_string(&heard).unwrap(), CANCELLED);
    failed
}

#[test]
fn what_goes_wrong_with_a_command_is_told_and_leaves_nothing() {
    let server = ours();
    fails(HERE, "/nowhere/distant", &["error: there is no `/nowhere/distant` on `box`"]);
    let none = r#""argv":["nonesuch-program","{command}"]"#;
    let said = ["error: cannot run `nonesuch-program`", "No such file", "in the `PATH`"];
    fails(none, &server, &said);
    let refused = r#""argv":["sh","-c","echo no entry >&2; exit 9"]"#;
    let said = ["did not run the command", "ended with status 9", "caused by: no entry"];
    fails(refused, &server, &said);
    let killed = r#""argv":["sh","-c","kill -9 $$"]"#;
    fails(killed, &server, &["did not run the command", "ended with signal 9"]);
    let hangs = r#""argv":["sleep","1000"],"wait_ms":500"#;
    fails(hangs, &server, &["error: `box` did not run a command within 500 ms"]);
    let broken = r#""argv":["sh","-c","{command}"],"address":"none""#;
    fails(broken, &server, &["plugin `here` brings no connection to `"]);
    let wrong = r#""argv":["sh","-c","{command}"],"address":"192.0.2.255""#;
    let home = Home::new();
    here(&home, "", wrong);
    let manager = Manager::start(&home);
    let failed = launch(&home, &server).arg("--options").arg("timeout=400").run().code(1);
    assert!(failed.stderr.contains("where the server is, cannot be used"), "{}", failed.told());
    manager.assert_no_offspring();
}

#[test]
fn a_plugin_that_breaks_the_protocol_instead_is_named() {
    let check = |body: &str, expected: &[&str]| {
        let home = Home::new();
        plugin(&home, "here", RUNS_COMMANDS, &format!("read hello; read launch || exit\n{body}"));
        let manager = Manager::start(&home);
        let failed = launch(&home, &ours()).run().code(1);
        for text in expected {
            assert!(failed.stderr.contains(text), "no `{text}`: {}", failed.told());
        }
        manager.assert_no_offspring();
    };
    let broke = |how: &str| format!("error: plugin `here` broke the protocol: {how}");
    let status = "error: plugin `here` exited with status 4 before answering";
    check("echo sorry >&2; exit 4", &[status, "caused by: sorry"]);
    check("kill -SEGV $$", &["error: plugin `here` was killed by signal 11 (SIGSEGV)"]);
    check("exec >&-; trap '' TERM; sleep 1000", &[&broke("it did not say how a command is run")]);
    let told = r#"echo '{"type":"error","kind":"unreachable","message":"it is off"}'; sleep 1000"#;
    check(told, &["error: it is off"]);
    let junk = broke("it sent a line that is no message");
    check("read exec; echo rubbish; sleep 1000", &[&junk]);
    let less = r#"read exec; echo '{"type":"run","id":1}'; sleep 1000"#;
    check(less, &[&junk, "caused by: the member `argv` is missing"]);
    let long = broke("it sent a line of more than 1 MiB");
    check("tr '\\0' x </dev/zero", &[&long]);
    let none = broke("its `run` names no program");
    check(r#"read exec; echo '{"type":"run","id":1,"argv":[]}'; sleep 1000"#, &[&none]);
    let other = broke("its `run` has the id of no request");
    check(r#"read exec; echo '{"type":"run","id":2,"argv":["a"]}'; sleep 1000"#, &[&other]);
    let twice = format!("read exec; run='{{\"type\":\"run\",\"id\":1,{HERE}}}'; echo \"$run\"; echo \"$run\"; sleep 1000");
    check(&twice, &[&broke("its `run` answers nothing")]);
    let odd = r#"read exec; echo '{"type":"run","id":1,"argv":["a"],"address":"a b"}'; sleep 1000"#;
    check(odd, &[&broke("the address in its `run` is none")]);
    let key = "00ff".repeat(16);
    let offer = format!(
        r#"echo '{{"type":"offer","id":1,"host":"a","port":1,"key":"{key}"}}'; sleep 1000"#
    );
    check(&offer, &[&broke("it offers a server, although it runs commands")]);
}

/// Kills one of those that take part while a server that never speaks is being started.
#[track_caller]
fn killed(victim: impl Fn(&Seen) -> bool, signal: Signal) {
    let _calm = calm();
    let home = Home::new();
    here(&home, "", HERE);
    let manager = Manager::start(&home);
    let launch = launch(&home, &home.mute()).start();
    manager.wait_for_mute();
    let picked: Vec<_> = home.processes().into_iter().filter(victim).collect();
    assert_eq!(picked.len(), 1, "{picked:?}");
    let pid = rustix::process::Pid::from_raw(picked[0].pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    let since = Instant::now();
    launch.finish();
    if picked[0].pid == manager.pid() {
        manager.finish();
        home.assert_empty();
    } else {
        manager.assert_no_offspring();
    }
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
}

#[test]
fn no_server_is_left_of_a_command_whoever_is_killed() {
    killed(is_worker, Signal::KILL);
    killed(|seen| seen.command.contains("manager listen"), Signal::KILL);
    killed(|seen| seen.command.contains("distant launch here"), Signal::KILL);
    killed(|seen| seen.command.contains("distant launch here"), Signal::INT);
}

#[test]
fn who_runs_for_a_killed_worker_ends_and_who_has_left_its_session_stays() {
    let home = Home::new();
    // The first listens to nobody, be it the end of its input or what a command sends to its group.
    let deaf = r#"(trap \"\" TERM; exec sleep 3000)"#;
    let argv = format!(r#""argv":["sh","-c","{deaf} & setsid sleep 4000 & {{command}}"]"#);
    here(&home, "", &format!(r#"{argv},"address":"127.0.0.1""#));
    let manager = Manager::start(&home);
    let launch = launch(&home, &home.mute()).start();
    manager.wait_for_mute();
    eventually("both", || {
        let of = |words: &str| manager.offspring().iter().any(|it| it.command == words);
        (of("sleep 3000") && of("sleep 4000")).then_some(())
    });
    let worker = manager.offspring().into_iter().find(is_worker).unwrap();
    worker.kill();
    launch.finish().code(1);
    // Whoever hears of the end of its input has ended by then too.
    let left = manager.offspring();
    let words: Vec<_> = left.iter().map(|it| it.command.as_str()).collect();
    assert_eq!(words, ["sleep 4000"]);
    left[0].kill();
    manager.stop();
}

/// A network of its own, where nothing can be reached but by what is started in it.
struct Apart {
    _process: Running,
    pid: u32,
}

impl Apart {
    fn start(home: &Home) -> Self {
        let script = "ip link set lo up && echo $$ && exec sleep 10000";
        let process = home.program("unshare", ["--net", "sh", "-c", script]).start();
        let pid = process.line().trim().parse().unwrap();
        Self { _process: process, pid }
    }
}

#[test]
fn a_server_that_nothing_else_reaches_is_reached_by_a_program_for_each_connection() {
    let home = Home::new();
    let apart = Apart::start(&home);
    let enter = format!(r#""nsenter","-t","{}","-n""#, apart.pid);
    let members = format!(
        r#""argv":[{enter},"sh","-c","{{command}}"],"address":"127.0.0.1",
        "forward":[{enter},"bash","-c","exec 3<>/dev/tcp/{{host}}/{{port}}; cat <&3 & exec cat >&3"]"#
    )
    .replace('\n', "");
    here(&home, "", &members);
    let manager = Manager::start(&home);
    let launched = launch(&home, &ours()).run();
    assert!(
        launched.stderr.contains("connected through here to the server"),
        "{}",
        launched.told()
    );
    let id = launched.id().to_string();
    let many = ["spawn", "--connection", &id, "--", "sh", "-c", "head -c 1000000 /dev/zero"];
    assert_eq!(home.ours(many).run().success().stdout.len(), 1_000_000);
    home.ours(["manager", "kill", &id]).run().success();
    manager.assert_no_offspring();
    let never = launch(&home, &ours()).arg("--options").arg("tunnel=never").run().code(1);
    // The plugin declares no such option.
    assert!(never.stderr.contains("unknown option `tunnel`"), "{}", never.told());
}

#[test]
fn the_shell_program_of_the_documentation_is_one() {
    let docs = fs::read_to_string(crate::support::repository().join("plugin-api/src/message.rs"));
    let docs = docs.unwrap();
    let (_, program) = docs.split_once("//! ```sh\n").unwrap();
    let (program, _) = program.split_once("//! ```\n").unwrap();
    let program: String = program
        .lines()
        .map(|it| it[3..].trim_start_matches(' '))
        .fold("#!/bin/sh\n".to_owned(), |all, line| all + line + "\n");
    let home = Home::new();
    // The `docker` of this test runs the command here.
    home.script(
        "bin/docker",
        "#!/bin/sh\n[ \"$1 $2 $3\" = \"exec -i box\" ] && shift 3 && exec \"$@\"\n",
    );
    plugin(&home, "pod", "", "");
    home.script("data/distant/plugins/distant-plugin-pod", &program);
    let _manager = Manager::start(&home);
    let to = ["launch", "pod://box", "--distant", &ours()];
    let failed = home.ours(to).arg("--distant-bind-server").arg("127.0.0.1").run().code(1);
    // It runs, although nobody says how a server on the loopback address of a pod is reached.
    assert!(failed.stderr.contains("brings no connection to `127.0.0.1:"), "{}", failed.told());
}
