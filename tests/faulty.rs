//! A plugin that misbehaves ends its own launch with one clear error, and touches nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{
    calm, copy_executable, eventually, programs, Finished, Home, Invocation, Manager, Server,
    Signal, HELLO,
};

/// How a launch with a faulty plugin ends.
enum End {
    /// It misbehaves in a way that harms nobody, and is connected.
    Connected,
    /// The launch fails, and its error has this.
    Error(&'static str),
}

use End::{Connected, Error};

/// Every mode of the plugin, and what becomes of a launch with it.
const MODES: [(&str, End); 26] = [
    ("ok", Connected),
    ("error", Error("cannot reach `nowhere`")),
    ("panic", Error("caused by: plugin bug 42")),
    ("panic_elsewhere", Connected),
    ("segfault", Error("signal 11")),
    ("stack_overflow", Error("signal 6")),
    ("abort", Error("signal 6")),
    ("exit", Error("status 0")),
    ("hang", Error("plugin `faulty` came to no end within")),
    ("spin", Error("plugin `faulty` came to no end within")),
    ("wait", Error("plugin `faulty` came to no end within")),
    ("slow_cleanup", Error("plugin `faulty` came to no end within")),
    ("noise", Connected),
    ("endless_output", Error("plugin `faulty` came to no end within")),
    ("endless_notices", Error("plugin `faulty` sent more than 200 notices")),
    ("endless_log", Error("plugin `faulty` came to no end within")),
    ("close_fds", Connected),
    ("fork", Connected),
    ("scribble", Error("broke the protocol")),
    ("bad_json", Error("caused by: its message is no JSON")),
    ("huge_message", Error("it has 2097179 bytes, more than 1048576")),
    ("two_results", Error("plugin `faulty`")),
    ("late_callbacks", Connected),
    ("crowd", Error("sent more than 200 notices")),
    ("silent_failure", Error("the plugin failed without saying why")),
    ("odd_status", Error("the plugin failed without saying why")),
];

/// A home whose manager gives a plugin only two seconds.
fn home() -> Home {
    let home = Home::new();
    home.write("config/distant/config.toml", "[manager.limits]\nplugin = 2\n");
    home
}

fn launch(home: &Home, server: &Server, mode: &str) -> Invocation {
    let (address, key) = (server.address, &server.key);
    let options = format!("mode={mode},offer=\"{address}\",key={key},proof=true");
    home.ours(["launch", "faulty://anywhere", "--options", &options])
}

/// One error, as everybody is promised it: a line that says what, further ones that say why, and
/// nothing of the inside.
#[track_caller]
fn assert_one_clear_error(finished: &Finished, said: &str) {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.told());
    assert_eq!(finished.stdout, "", "{}", finished.told());
    let errors: Vec<_> =
        finished.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", finished.told());
    assert!(finished.stderr.contains(said), "no `{said}`: {}", finished.told());
    assert!(finished.stderr.len() < 20_000, "{} bytes of error", finished.stderr.len());
}

#[test]
fn every_fault_is_one_clear_error_and_nobody_else_notices() {
    let _calm = calm();
    let home = home();
    let manager = Manager::start(&home);
    let (pid, other) = (manager.pid(), home.ours(["launch", "manager://localhost"]).run().id());
    // Talks over its connection all the while.
    let mut cat = home.ours(["spawn", "--connection", &other.to_string(), "--", "cat"]).start();
    for (mode, end) in &MODES {
        // One for each, as ending the connection ends the server of a launch.
        let server = Server::start(&home);
        let faulty = match end {
            Connected => launch(&home, &server, mode),
            Error(_) => {
                home.ours(["launch", "faulty://anywhere", "--options"]).arg(format!("mode={mode}"))
            }
        };
        let faulty = faulty.start();
        let parallel = home.ours(["launch", "manager://localhost"]).start();
        let parallel = parallel.finish().id();
        let finished = faulty.finish();
        match end {
            Connected => {
                let id = finished.id().to_string();
                let kill = home.ours(["manager", "kill", &id]);
                kill.run().success();
            }
            Error(said) => assert_one_clear_error(&finished, said),
        }
        cat.say(mode);
        assert_eq!(&cat.line(), mode);
        let kill = home.ours(["manager", "kill", &parallel.to_string()]);
        kill.run().success();
        // The worker with all it forked is gone, and so is the parallel launch's.
        eventually("the end of the worker", || (manager.offspring().len() == kept()).then_some(()));
        assert_eq!(manager.pid(), pid);
    }
}

/// Processes of the one launch that stays: its worker and its server, which runs `cat`.
fn kept() -> usize {
    3
}

#[test]
fn each_fault_after_the_answer_or_the_verdict_is_survived_too() {
    let home = home();
    let manager = Manager::start(&home);
    for mode in ["panic", "segfault", "exit", "bad_json", "close_fds", "hang"] {
        for when in ["asked", "connected"] {
            let server = Server::start(&home);
            let (address, key) = (server.address, &server.key);
            let options = format!(
                "mode={mode},when={when},verify=sure?,offer=\"{address}\",key={key},proof=true"
            );
            let launch = home.ours(["launch", "faulty://anywhere", "--options", &options]);
            let mut launch = launch.arg("--format=json").start();
            launch.say(HELLO);
            while launch.json()["type"] != "auth_verification" {}
            launch.say(r#"{"type":"auth_verification_response","valid":true}"#);
            let last = launch.json();
            let finished = launch.finish();
            // Once the host is connected, the plugin has nothing left that could be spoilt.
            let works = mode == "close_fds" || when == "connected";
            let (code, kind) = if works { (0, "launched") } else { (1, "error") };
            assert_eq!(last["type"], kind, "{mode} {when}: {last}");
            assert_eq!(finished.status.code(), Some(code), "{mode} {when}: {}", finished.told());
            if works {
                let spawn = home.ours(["spawn", "--connection", &last["id"].to_string()]);
                let spawn = spawn.arg("--").arg("echo").arg("hi").run().success();
                assert_eq!(spawn.stdout, "hi\n");
                home.ours(["manager", "kill", &last["id"].to_string()]).run().success();
            }
            eventually("the end of the worker", || manager.offspring().is_empty().then_some(()));
        }
    }
}

#[test]
fn a_plugin_that_hangs_is_gone_soon_after_nobody_wants_it() {
    let _calm = calm();
    let home = Home::new();
    let server = Server::start(&home);
    let manager = Manager::start(&home);
    for mode in ["hang", "spin", "wait", "slow_cleanup", "endless_output", "endless_log"] {
        let launch = launch(&home, &server, mode).start();
        eventually("a worker", || (!manager.offspring().is_empty()).then_some(()));
        launch.signal(Signal::INT);
        let pressed = Instant::now();
        assert_eq!(launch.finish().status.code(), Some(130), "{mode}");
        manager.assert_no_offspring();
        // Two seconds to come to an end by itself, one for SIGTERM.
        let limit = Duration::from_secs(3) + Duration::from_secs(3);
        assert!(pressed.elapsed() < limit, "{mode}: {:?}", pressed.elapsed());
    }
}

#[test]
fn what_a_plugin_cannot_even_be_loaded_for_is_said() {
    let home = home();
    for (load, said) in [
        ("crash", "killed by signal"),
        ("exit", "exited with status"),
        ("hang", "said nothing within 1s of its start"),
        // Which harms nobody: the launch fails as its options want it to.
        ("noise", "cannot reach `nowhere`"),
    ] {
        // How long a plugin may take to be loaded is decided for each.
        let limit = if load == "hang" { 1000 } else { 60_000 };
        let config = format!("[plugins.faulty]\ntimeout = {limit}\n");
        home.write("config/distant/plugins.toml", config);
        let invocation = home.ours(["manager", "listen", "--user"]);
        let invocation = invocation.env("DISTANT_FAULTY_LOAD", load);
        let manager = Manager::listen(&home, invocation, true);
        let launch = home.ours(["launch", "faulty://x", "--options", "mode=error"]).run();
        assert_one_clear_error(&launch, said);
        home.ours(["launch", "manager://localhost"]).run().id();
        drop(manager);
    }
}

/// Puts a file into its place as an installation does.
fn replace(source: &Path, target: &Path) {
    let new = target.with_extension("new");
    copy_executable(source, &new);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, target).unwrap();
}

#[test]
fn a_plugin_that_is_replaced_takes_effect_at_the_next_launch() {
    let home = Home::new();
    let folder = home.path("plugins");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.join("distant-plugin-moody");
    let version = |text: &str| {
        let manifest = r#"{"name":"moody","schemes":["moody"]}"#;
        home.script(
            "version",
            &format!(
                "#!/bin/sh\n\
                 echo '{{\"type\":\"hello\",\"protocol\":[1,1],\"manifest\":{manifest}}}'\n\
                 read hello; read launch\n\
                 echo '{{\"type\":\"error\",\"kind\":\"other\",\"message\":\"{text}\"}}'\n"
            ),
        )
    };
    let invocation = home.ours(["manager", "listen", "--user"]);
    replace(&version("the first version"), &file);
    let manager = Manager::listen(&home, invocation.env("DISTANT_PLUGIN_PATH", &folder), true);
    for text in ["the first version", "the second version", "a third one"] {
        replace(&version(text), &file);
        let launch = home.ours(["launch", "moody://x"]).run();
        assert_one_clear_error(&launch, text);
    }
    drop(manager);

    // A library likewise, while a worker has the old one mapped.
    let library = folder.join("libdistant_plugin_manager_local.so");
    fs::remove_file(&file).unwrap();
    replace(programs().plugin("faulty"), &library);
    let named = format!("--plugin=mine={}", library.display());
    let _manager = Manager::start_with(&home, &[&named]);
    let waiting =
        home.ours(["launch", "faulty://x", "--options", "backend=mine,mode=wait"]).start();
    eventually("its worker", || (!_manager.offspring().is_empty()).then_some(()));
    replace(programs().plugin("manager_local"), &library);
    let launch = home.ours(["launch", "manager://x", "--options", "backend=mine"]).run();
    launch.id();
    waiting.signal(Signal::INT);
    assert_eq!(waiting.finish().status.code(), Some(130));
}
