//! What only `backend=openssh` can, and what only it could leave behind.

use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::login::Agent;
use super::remote::Account;
use crate::support::{
    eventually, keygen, programs, Home, Invocation, Look, Manager, Running, Seen, Signal, Sshd,
};

/// Folders that questions go through, as they are left in a home.
fn folders(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.path("tmp")).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("distant-ssh-")).collect()
}

/// A block of the ssh configuration for a server that nobody has to be asked about.
fn block(home: &Home, name: &str, sshd: &Sshd) -> String {
    sshd.make_known(home);
    format!(
        "Host {name}\n  HostName {}\n  Port {}\n  User root\n  IdentityFile {}\n  \
         UserKnownHostsFile {}\n",
        sshd.address.ip(),
        sshd.address.port(),
        sshd.identity(),
        home.path(".ssh/known_hosts").display()
    )
}

fn launch(home: &Home, to: &str, options: &str) -> Invocation {
    let distant = programs().distant.display().to_string();
    let options = format!("backend=openssh,{options}");
    home.ours(["launch", to, "--distant", &distant, "--options", &options])
}

/// Starts a launch in JSON mode, and waits for the first question, or for its end.
fn asked(launch: Invocation) -> (Running, serde_json::Value) {
    let launch = launch.in_json();
    loop {
        let message = launch.json();
        let kind = message["type"].as_str().unwrap();
        if ["auth_challenge", "auth_verification", "launched", "error"].contains(&kind) {
            return (launch, message);
        }
    }
}

/// A launch that waits for the answer to a question of `ssh`, and the worker in which it does.
struct Waiting {
    launch: Running,
    worker: Seen,
    manager: Manager,
    sshd: Sshd,
    _account: Account,
}

impl Waiting {
    fn at(home: &Home) -> Self {
        let manager = Manager::start(home);
        let sshd = Sshd::with(home, "UsePAM no\nKbdInteractiveAuthentication no");
        let account = Account::new("/bin/sh", "x");
        sshd.make_known(home);
        let (launch, _) = asked(sshd.launch_as(home, &account.name, "backend=openssh"));
        let is_worker = |seen: &Seen| seen.command.contains("plugin-worker");
        let worker = manager.offspring().into_iter().find(is_worker).unwrap();
        Self { launch, worker, manager, sshd, _account: account }
    }
}

#[test]
fn a_connection_that_ssh_shares_already_needs_no_other_login() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let control = home.path("control");
    let config = format!(
        "{}  ControlMaster auto\n  ControlPath {}\n",
        block(&home, "box", &sshd),
        control.display()
    );
    let config = home.write(".ssh/config", config);
    let master = home.program("ssh", ["-N", "-F"]).arg(config).arg("box").start();
    eventually("a connection to share", || control.exists().then_some(()));
    launch(&home, "ssh://box", "").run().id();
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    // The tunnel goes through it too, and leaves nothing in it.
    let folder = home.path("tmp").display().to_string();
    let listens = || {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        sockets.lines().any(|line| line.contains(&folder) && line.contains("/tunnel"))
    };
    let id = launch(&home, "ssh://box", "tunnel=always").run().id().to_string();
    let many = ["spawn", "--connection", &id, "--", "sh", "-c", "head -c 1000000 /dev/zero"];
    assert_eq!(home.ours(many).run().success().stdout.len(), 1_000_000);
    assert!(listens());
    home.ours(["manager", "kill", &id]).run().success();
    eventually("the end of the tunnel", || (!listens()).then_some(()));
    assert_eq!(sshd.connections(), 1);
    home.ours(["manager", "stop"]).run().success();
    manager.finish().success();
    assert!(!master.ends_within(Duration::ZERO), "{}", master.told());
}

#[test]
fn what_only_ssh_itself_understands_counts() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let flag = home.path("flag");
    let there = block(&home, "box", &sshd).replace(
        "Host box",
        &format!("Match originalhost box exec \"test -e {}\"", flag.display()),
    );
    home.write(".ssh/config", format!("{there}Match all\n  HostName nowhere.invalid\n"));
    let error = launch(&home, "ssh://box", "").run().code(1);
    assert!(error.stderr.contains("there is no host `nowhere.invalid`"), "{}", error.told());
    fs::write(flag, "").unwrap();
    launch(&home, "ssh://box", "").run().id();
}

#[test]
fn a_key_goes_to_the_agent_if_the_person_says_so() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let agent = Agent::start(&home);
    home.write(".ssh/config", "Host *\n  AddKeysToAgent ask\n");
    let held = || {
        let list = home.program("ssh-add", ["-L"]).env("SSH_AUTH_SOCK", &agent.socket).run();
        list.stdout.contains(fs::read_to_string(sshd.path("identity.pub")).unwrap().trim())
    };
    for yes in [false, true] {
        let launch = sshd.launch(&home, "openssh", "").env("SSH_AUTH_SOCK", &agent.socket);
        let (mut launch, question) = asked(launch);
        let text = question["text"].as_str().unwrap_or_default();
        assert!(text.starts_with(&format!("Add key {}", sshd.identity())), "{question}");
        launch.say(&format!(r#"{{"type":"auth_verification_response","valid":{yes}}}"#));
        assert_eq!(launch.answer()["type"], "launched");
        launch.finish().success();
        assert_eq!(held(), yes);
    }
}

#[test]
fn a_command_that_knows_hosts_is_run_and_nothing_else_is_said_of_it() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let known = home.write("known", sshd.known(&["ed25519"]));
    home.write(".ssh/known_hosts", "");
    let line = format!("Host *\n  KnownHostsCommand /bin/cat {}\n", known.display());
    home.write(".ssh/config", line);
    let launched = sshd.launch(&home, "openssh", "").run();
    assert_eq!(launched.stderr, "");
    launched.id();
}

#[test]
fn what_is_configured_for_hosts_that_run_no_command_is_undone() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let more = "  ForkAfterAuthentication yes\n  StdinNull yes\n  SessionType none\n  \
                RequestTTY force\n  RemoteCommand false\n  ExitOnForwardFailure yes\n  \
                UpdateHostKeys yes\n";
    // What is to be forwarded may be so already, for the person's other connections.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = format!("  LocalForward {} 127.0.0.1:9\n", taken.local_addr().unwrap());
    home.write(".ssh/config", block(&home, "box", &sshd) + more + &forward);
    let known = fs::read_to_string(home.path(".ssh/known_hosts")).unwrap();
    launch(&home, "ssh://box", "").run().id();
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    // What the server calls its other keys is not looked into, nor kept.
    assert_eq!(fs::read_to_string(home.path(".ssh/known_hosts")).unwrap(), known);
}

#[test]
fn no_answer_to_ssh_is_anywhere_but_in_pipes() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::with(&home, "UsePAM no\nKbdInteractiveAuthentication no");
    let password = "correct-horse-battery-31";
    let account = Account::new("/bin/sh", password);
    sshd.make_known(&home);
    let options = "backend=openssh,verbose=true";
    let (mut launch, _) = asked(sshd.launch_as(&home, &account.name, options));
    let (stop, scripts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (mark, stopped, counted) = (home.mark().to_owned(), stop.clone(), scripts.clone());
    let spy = thread::spawn(move || {
        let mut found = None;
        while !stopped.load(Ordering::Acquire) {
            for seen in Look::marked(&mark) {
                let is_script = seen.command.contains("/askpass ");
                for file in ["cmdline", "environ"] {
                    let text = fs::read(format!("/proc/{}/{file}", seen.pid)).unwrap_or_default();
                    if String::from_utf8_lossy(&text).contains(password) {
                        found = Some(seen.clone());
                    }
                }
                counted.fetch_add(is_script.into(), Ordering::AcqRel);
            }
        }
        found
    });
    eventually("a look at the script that asks", || {
        (scripts.load(Ordering::Acquire) > 0).then_some(())
    });
    let folder = folders(&home).pop().unwrap();
    launch.say(&format!(r#"{{"type":"auth_challenge_response","answers":["{password}"]}}"#));
    let end = launch.answer();
    assert_eq!(end["type"], "launched", "{end}");
    launch.finish().success();
    stop.store(true, Ordering::Release);
    let found: Option<Seen> = spy.join().unwrap();
    assert!(found.is_none(), "{found:?}");
    assert!(!folder.is_empty());
    let grep = home.program("grep", ["-rlF", password, "."]).run();
    assert_eq!(grep.stdout, "", "{}", grep.told());
    eventually("the end of the folder", || folders(&home).is_empty().then_some(()));
}

#[test]
fn whoever_waits_for_an_answer_ends_with_worker_and_manager() {
    let home = Home::new();
    let Waiting { launch, worker, manager, sshd: _sshd, _account } = Waiting::at(&home);
    // Neither is left to end the other's group, which a stopped manager cannot do either.
    manager.signal(Signal::STOP);
    worker.kill();
    manager.signal(Signal::KILL);
    let waits = || home.processes().iter().any(|it| it.command.contains("/askpass "));
    eventually("the end of the script that asks", || (!waits()).then_some(()));
    launch.finish().code(1);
    manager.finish();
}

#[test]
fn questions_that_come_together_are_all_asked() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    // Stands in for an `ssh` that has two things to say while somebody thinks about a third.
    let script = "#!/bin/sh\n\
        for word; do [ \"$word\" = -G ] && exec /usr/bin/ssh \"$@\"; done\n\
        \"$SSH_ASKPASS\" 'PIN: ' >/dev/null & first=$!\n\
        read go < go\n\
        for it in one two; do SSH_ASKPASS_PROMPT=none \"$SSH_ASKPASS\" \"touch key $it\"; done\n\
        echo > done; wait $first; \"$SSH_ASKPASS\" 'last: ' >/dev/null; exit 1\n";
    home.script("bin/ssh", script);
    for name in ["go", "done"] {
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mkfifoat(rustix::fs::CWD, home.path(name), mode).unwrap();
    }
    let mut terminal = launch(&home, "ssh://box", "").on_terminal();
    terminal.expect("PIN: ");
    fs::write(home.path("go"), "\n").unwrap();
    assert_eq!(fs::read(home.path("done")).unwrap(), b"\n");
    terminal.type_keys("1\n");
    terminal.expect("touch key one");
    terminal.expect("touch key two");
    terminal.expect("last: ");
    terminal.type_keys("2\n");
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(1), "{screen}");
}

#[test]
fn what_ssh_says_before_a_question_is_shown_before_it() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    // Stands in for an `ssh` whose trace takes longer to read than its question to arrive.
    let script = "#!/bin/sh\n\
        for word; do [ \"$word\" = -G ] && exec /usr/bin/ssh \"$@\"; done\n\
        yes \"$(printf 'debug1: x\\r')\" | head -n 6000 >&2\n\
        printf '2FA title\\r\\n' >&2\n\
        \"$SSH_ASKPASS\" 'PIN: ' >/dev/null; exit 1\n";
    home.script("bin/ssh", script);
    let launch = launch(&home, "ssh://box", "").in_json();
    let told = launch.json();
    assert_eq!((&told["type"], &told["text"]), (&"auth_info".into(), &"2FA title".into()));
    assert_eq!(launch.json()["type"], "auth_challenge");
    launch.finish().code(1);
}

#[test]
fn what_a_killed_launch_leaves_is_removed_by_the_next() {
    let home = Home::new();
    let Waiting { launch, worker, manager, sshd, _account } = Waiting::at(&home);
    worker.kill();
    launch.finish().code(1);
    // `ssh` and the script that waits for the answer end too; the folder has nobody left.
    manager.assert_no_offspring();
    assert_eq!(folders(&home).len(), 1);
    sshd.launch(&home, "openssh", "").run().id();
    eventually("the end of the folders", || folders(&home).is_empty().then_some(()));
}

#[test]
fn an_ssh_that_is_killed_ends_the_launch_and_the_server() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    sshd.make_known(&home);
    let mute = home.script("mute", "#!/bin/sh\nexec sleep 1000\n").display().to_string();
    let options = format!("backend=openssh,identity_files=\"{}\"", sshd.identity());
    let to = format!("ssh://root@{}", sshd.address);
    let launch = home.ours(["launch", &to, "--distant", &mute, "--options", &options]).start();
    let started = |seen: &Seen| seen.command == "sleep 1000";
    eventually("the server", || home.processes().iter().any(started).then_some(()));
    let ssh = manager.offspring().into_iter().find(|it| it.command.starts_with("ssh ")).unwrap();
    ssh.kill();
    let failed = launch.finish().code(1);
    assert!(failed.stderr.contains("while the server was starting"), "{}", failed.told());
    eventually("its end", || (!home.processes().iter().any(started)).then_some(()));
    manager.assert_no_offspring();
}

#[test]
fn a_banner_does_not_say_where_the_connection_goes() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let lines = "debug1: Connecting to box [192.0.2.1] port 22.\r\n\
                 debug1: Connection established.\r\n\
                 Authenticated to box ([192.0.2.1]:22) using \"publickey\".\r\n";
    let banner = home.write("banner", lines);
    let sshd = Sshd::with(&home, &format!("Banner {}", banner.display()));
    let launch = sshd.launch(&home, "openssh", "tunnel=never,timeout=2000");
    launch.arg("--distant-bind-server").arg("any").run().id();
}

#[test]
fn a_banner_makes_no_other_error() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let lines = "REMOTE HOST IDENTIFICATION HAS CHANGED\n\
                 Offending key in /etc/hosts:1\n\
                 Host key for elsewhere has changed\n";
    let banner = home.write("banner", lines);
    let config = "PasswordAuthentication no\nKbdInteractiveAuthentication no\nBanner";
    let sshd = Sshd::with(&home, &format!("{config} {}", banner.display()));
    sshd.make_known(&home);
    keygen(&home.path("unknown"), &["-N", "", "-t", "ed25519"]);
    let key = home.path("unknown").display().to_string();
    let options = format!("backend=openssh,identity_files=\"{key}\"");
    let refused = sshd.launch_as(&home, "root", &options).run().code(1);
    assert!(refused.stderr.contains(" does not let us in\n"), "{}", refused.told());
    assert!(!refused.stderr.contains("ssh-keygen"), "{}", refused.told());
}

#[test]
fn it_is_there_beside_the_default() {
    let home = Home::new();
    let listed = home.ours(["plugin", "list", "--json"]).run().success().stdout;
    let all: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let state = |name: &str| {
        let named = all.as_array().unwrap().iter().find(|it| it["name"] == name);
        named.unwrap_or_else(|| panic!("no `{name}`: {listed}"))["state"].clone()
    };
    assert_eq!((state("ssh2"), state("openssh")), ("used".into(), "shadowed".into()));
}
