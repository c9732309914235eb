//! How a launch logs in.

use std::fs::{self, Permissions};
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::each_backend;
use super::remote::Account;
use crate::support::wire::Wire;
use crate::support::{keygen, programs, report, Home, Invocation, Manager, Running, Sshd};

/// Answers every challenge with the next of the answers, passes over what is only to be read, and
/// gives the questions and the outcome.
pub(super) fn answer(launch: Invocation, answers: &[&[&str]]) -> (Vec<String>, serde_json::Value) {
    let mut launch = launch.in_json();
    let mut answers = answers.iter();
    let mut asked = Vec::new();
    loop {
        let message = launch.answer();
        if message["type"] != "auth_challenge" {
            launch.finish();
            return (asked, message);
        }
        for question in message["questions"].as_array().unwrap() {
            asked.push(question["text"].as_str().unwrap().to_owned());
        }
        let next = answers.next().unwrap_or_else(|| panic!("one question too many: {message}"));
        let reply = serde_json::json!({"type": "auth_challenge_response", "answers": next});
        launch.say(&reply.to_string());
    }
}

fn keys(path: &Path) -> String {
    format!("identity_files=\"{}\"", path.display())
}

each_backend! {
    fn a_wrong_key_is_said_with_its_name(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
        let key = home.path("wrong");
        keygen(&key, &["-N", "", "-t", "ed25519"]);
        let (_, end) = answer(sshd.launch(&home, backend, &keys(&key)), &[]);
        assert_eq!(end["kind"], "authentication", "{end}");
        let causes = end["causes"].to_string();
        assert!(causes.contains(&format!("key `{}`: not accepted", key.display())), "{causes}");
        assert!(causes.contains("the server takes publickey"), "{causes}");
    }

    fn a_key_that_others_can_read_is_left_out_and_named(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
        sshd.make_known(&home);
        let exposed = sshd.identity();
        let mode = |mode| fs::set_permissions(&exposed, Permissions::from_mode(mode)).unwrap();
        let launch = |files: &str| {
            let options = format!("backend={backend},identity_files=\"{files}\"");
            sshd.launch_as(&home, "root", &options)
        };
        let said = |mode: u32| match backend {
            "openssh" => "WARNING: UNPROTECTED PRIVATE KEY FILE!".to_owned(),
            _ => {
                format!("key `{exposed}`: it is left out, as others have access to it (mode {mode:04o})")
            }
        };
        let mend = format!("`chmod 600 {exposed}` makes the key yours alone\n");
        for open in [0o640, 0o602, 0o601] {
            mode(open);
            let refused = launch(&exposed).run().code(1);
            let cause = format!("caused by: {}\n", said(open));
            assert!(refused.stderr.contains(&cause), "{}", refused.told());
            if backend != "openssh" {
                let notice = format!("{}; {mend}", said(open));
                assert_eq!(refused.stderr.matches(&notice).count(), 1, "{}", refused.told());
                assert!(refused.stderr.contains(&format!("hint: {mend}")), "{}", refused.told());
            }
        }
        assert!(!sshd.log().contains("Accepted publickey"), "{}", sshd.log());

        mode(0o640);
        let other = home.path("other");
        keygen(&other, &["-N", "", "-t", "ed25519"]);
        sshd.authorize(&other.with_extension("pub"));
        let both = format!("{exposed},{}", other.display());
        let launched = launch(&both).run();
        assert_eq!(launched.stderr.matches(&said(0o640)).count(), 1, "{}", launched.told());
        launched.id();
        let in_json = launch(&both).in_json();
        let told = in_json.json();
        assert_eq!(told["type"], "auth_info", "{told}");
        assert!(told["text"].as_str().unwrap().contains(&said(0o640)), "{told}");
        assert_eq!(in_json.answer()["type"], "launched");
        in_json.finish().success();

        // What is in an agent is read by nobody from there, and the file still says which key.
        let agent = Agent::start(&home);
        mode(0o600);
        agent.add(Path::new(&exposed));
        mode(0o640);
        let options = format!("backend={backend},identities_only=true,identity_files=\"{exposed}\"");
        let launched = sshd.launch_as(&home, "root", &options).env("SSH_AUTH_SOCK", &agent.socket);
        let launched = launched.run();
        assert!(!launched.stderr.contains(&said(0o640)), "{}", launched.told());
        launched.id();
        // Somebody else's file is theirs to protect.
        chown(&exposed, Some(65534), None).unwrap();
        let launched = launch(&exposed).run();
        assert!(!launched.stderr.contains(&said(0o640)), "{}", launched.told());
        launched.id();
    }

    fn a_password_is_asked_for_three_times_at_most(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "UsePAM no\nKbdInteractiveAuthentication no");
        let account = Account::new("/bin/sh", "the right one");
        sshd.make_known(&home);
        let launch = || sshd.launch_as(&home, &account.name, &format!("backend={backend}"));
        let (asked, end) = answer(launch(), &[&["wrong"], &["the right one"]]);
        assert_eq!(end["type"], "launched", "{end}");
        assert_eq!(asked[1], format!("Password for {}@127.0.0.1: ", account.name));
        let (asked, end) = answer(launch(), &[&["a"], &["b"], &["c"]]);
        assert_eq!((asked.len(), &end["kind"]), (3, &"authentication".into()), "{end}");
        // Nobody there: no empty password is ever sent.
        launch().run().code(1);
        assert_eq!(sshd.log().matches("Failed password").count(), 4, "{}", sshd.log());
        report(format!("login {backend}: password: in"));
    }

    fn a_server_that_asks_for_nothing_lets_in(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "UsePAM no\nPermitEmptyPasswords yes");
        let account = Account::new("/bin/sh", "none soon");
        account.clear_password();
        sshd.make_known(&home);
        let launch = sshd.launch_as(&home, &account.name, &format!("backend={backend}"));
        let (asked, end) = answer(launch, &[]);
        assert_eq!((asked.len(), &end["type"]), (0, &"launched".into()), "{end}");
        assert!(sshd.log().contains("Accepted none"), "{}", sshd.log());
        report(format!("login {backend}: nothing asked for: in"));
    }

    fn the_servers_own_questions_are_answered(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(
            &home,
            "UsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication yes",
        );
        let account = Account::new("/bin/sh", "the right one");
        sshd.make_known(&home);
        let launch = || sshd.launch_as(&home, &account.name, &format!("backend={backend}"));
        let (asked, end) = answer(launch(), &[&["the right one"]]);
        assert_eq!(end["type"], "launched", "{end}");
        assert_eq!(asked, [format!("({}@127.0.0.1) Password: ", account.name)]);
        report(format!("login {backend}: keyboard-interactive: in"));
    }

    fn a_key_and_then_a_password_get_in(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let lines = "UsePAM no\nAuthenticationMethods publickey,password";
        let sshd = Sshd::with(&home, lines);
        let account = Account::new("/bin/sh", "the right one");
        sshd.make_known(&home);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        let launch = sshd.launch_as(&home, &account.name, &options);
        let (_, end) = answer(launch, &[&["the right one"]]);
        assert_eq!(end["type"], "launched", "{end}");
        report(format!("login {backend}: key, then password: in"));
    }

    fn a_server_that_makes_new_keys_at_each_packet_is_launched_on(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "LogLevel DEBUG1\nRekeyLimit 16");
        for tunnel in ["never", "always"] {
            sshd.launch(&home, backend, &format!("tunnel={tunnel}")).run().id();
            assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
        }
        let log = sshd.log();
        assert!(log.matches("ssh_set_newkeys: rekeying out").count() > 4, "{log}");
    }

    fn the_password_of_a_destination_is_shown_to_no_host_in_between(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let lines = "UsePAM no\nKbdInteractiveAuthentication no";
        let hosts = [Sshd::with(&home, lines), Sshd::with(&home, lines)];
        let accounts = ["the one in between", "the one at the end"];
        let accounts = accounts.map(|password| Account::new("/bin/sh", password));
        home.write(".ssh/known_hosts", hosts.each_ref().map(|it| it.known(&["ed25519"])).concat());
        let block = |name: &str, at: usize, jump: &str| {
            let (ip, port) = (hosts[at].address.ip(), hosts[at].address.port());
            let user = &accounts[at].name;
            format!("Host {name}\n  HostName {ip}\n  Port {port}\n  User {user}\n{jump}")
        };
        let config = [block("jump", 0, ""), block("end", 1, "  ProxyJump jump\n")];
        home.write(".ssh/config", config.concat());

        let mut client = Wire::manager(manager.socket());
        let distant = programs().distant.display();
        let launch = json!({
            "type": "launch",
            "destination": "ssh://:the one at the end@end",
            "options": format!("backend={backend},distant.bin=\"{distant}\""),
        });
        let question = client.ask("1", &launch).unwrap();
        let text = question["msg"]["questions"][0]["text"].as_str().unwrap_or_default();
        assert!(text.contains(&format!("Password for {}@", accounts[0].name)), "{question}");
        let answer = json!({"type": "auth_challenge_response", "answers": ["the one in between"]});
        let answer = json!({"type": "authenticate", "id": question["id"], "msg": answer});
        client.request("2", &answer).unwrap();
        let launched = client.reply("1").unwrap();
        assert_eq!(launched["type"], "launched", "{launched}");
        assert!(hosts.iter().all(|host| !host.log().contains("Failed password")));
    }

    fn an_agents_key_gets_in_unless_only_files_count(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
        let agent = Agent::start(&home);
        for index in 0..4 {
            let key = home.path(format!("others/{index}"));
            keygen(&key, &["-N", "", "-t", "ed25519"]);
            agent.add(&key);
        }
        agent.add(Path::new(&sshd.identity()));
        sshd.make_known(&home);
        let launch = |options: &str| {
            let options = format!("backend={backend},{options}");
            sshd.launch_as(&home, "root", &options).env("SSH_AUTH_SOCK", &agent.socket)
        };
        launch("").run().id();
        let error = launch("identities_only=true").run().code(1);
        assert!(error.stderr.contains("does not let us in"), "{}", error.told());
        // The public half of the file is enough to choose the key.
        let public = format!("{}.pub", sshd.identity());
        launch(&format!("identities_only=yes,identity_files=\"{public}\"")).run().id();
        report(format!("login {backend}: agent: in"));
    }

    fn a_right_key_is_shown_at_once_and_nothing_before_it(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "LogLevel DEBUG1");
        sshd.launch(&home, backend, "").run().id();
        let log = sshd.log();
        let tried = |method: &str| {
            log.matches(&format!("service ssh-connection method {method}")).count()
        };
        let expected = match backend {
            "libssh" => (0, 1),
            // It asks first whether the key would do.
            "ssh2" => (0, 2),
            _ => (1, 2),
        };
        assert_eq!((tried("none"), tried("publickey")), expected, "{log}");
    }

    fn a_banner_is_shown_without_what_plays_tricks_on_a_terminal(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let banner = home.write("banner", "Be nice\u{1b}[31m to\u{7} this machine.\n");
        let sshd = Sshd::with(&home, &format!("Banner {}", banner.display()));
        let wrong = home.path("wrong");
        keygen(&wrong, &["-N", "", "-t", "ed25519"]);
        // libssh2 has no word of a banner where the first key gets in.
        let keys = format!("identity_files=\"{},{}\"", wrong.display(), sshd.identity());
        let launched = sshd.launch(&home, backend, &keys).run();
        assert_eq!(launched.stderr.matches("Be nice").count(), 1, "{}", launched.told());
        assert!(launched.stderr.contains("this machine."), "{}", launched.told());
        assert!(!launched.stderr.contains(['\u{1b}', '\u{7}']), "{}", launched.told());
        launched.id();
    }

    fn a_mute_agent_costs_a_few_seconds_and_not_the_launch(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let socket = home.path("mute");
        let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        sshd.launch(&home, backend, "").env("SSH_AUTH_SOCK", &socket).run().id();
    }
}

#[test]
fn a_usual_key_that_others_can_read_is_named_once_and_only_where_it_matters() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
    sshd.make_known(&home);
    let usual = home.path(".ssh/id_ed25519");
    keygen(&usual, &["-N", "", "-t", "ed25519"]);
    fs::set_permissions(&usual, Permissions::from_mode(0o644)).unwrap();
    let agent = Agent::start(&home);
    agent.add(Path::new(&sshd.identity()));
    let said = format!("key `{}`: it is left out", usual.display());
    for backend in ["ssh2", "libssh"] {
        let launch = || sshd.launch_as(&home, "root", &format!("backend={backend}"));
        let launched = launch().env("SSH_AUTH_SOCK", &agent.socket).run();
        assert!(!launched.stderr.contains(&said), "{}", launched.told());
        launched.id();
        let refused = launch().run().code(1);
        // In the notice, and as a cause.
        assert_eq!(refused.stderr.matches(&said).count(), 2, "{}", refused.told());

        let (ip, port) = (sshd.address.ip(), sshd.address.port());
        let files =
            format!("  IdentityFile {}\n  IdentityFile {}\n", usual.display(), sshd.identity());
        let all = format!("Host *\n  User root\n  HostName {ip}\n  Port {port}\n{files}");
        home.write(".ssh/config", format!("Host end\n  ProxyJump jump\n{all}"));
        let distant = programs().distant.display().to_string();
        let options = format!("backend={backend}");
        let words = ["launch", "ssh://end", "--distant", &distant, "--options", &options];
        let launched = home.ours(words).run();
        assert_eq!(launched.stderr.matches(&said).count(), 1, "{}", launched.told());
        launched.id();
        fs::remove_file(home.path(".ssh/config")).unwrap();
    }
}

/// A real ssh-agent.
pub(super) struct Agent {
    pub(super) socket: std::path::PathBuf,
    _process: Running,
}

impl Agent {
    pub(super) fn start(home: &Home) -> Self {
        let socket = home.path("agent");
        // One that was killed has left it.
        let _ = std::fs::remove_file(&socket);
        // It takes the libraries of tokens from where it is told to alone.
        let process = home.program("ssh-agent", ["-D", "-P", "/tmp/*", "-a"]).arg(&socket).start();
        process.line();
        Self { socket, _process: process }
    }

    pub(super) fn add(&self, key: &Path) {
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket);
        assert!(add.status().unwrap().success());
    }

    /// Adds a key that a token holds, by the library for that.
    pub(super) fn add_of(&self, key: &Path, token: &Path) {
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg("-S").arg(token).arg(key).env("SSH_AUTH_SOCK", &self.socket);
        assert!(add.status().unwrap().success());
    }

    pub(super) fn forget(&self) {
        let mut forget = Command::new("ssh-add");
        forget.args(["-q", "-D"]).env("SSH_AUTH_SOCK", &self.socket);
        assert!(forget.status().unwrap().success());
    }
}
