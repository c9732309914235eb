//! Secrets that a run has used, and every place where they must not be.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use crate::support::wire::Wire;
use crate::support::{eventually, programs, Finished, Home, Look, Manager, Server, HELLO};

/// Answers, passwords and the like that this test makes up.
const ANSWER: &str = "correct-horse-battery-3141";
const WRONG_ANSWER: &str = "wrong-horse-battery-2718";
const PASSWORD: &str = "staple-in-the-destination-1618";

/// Reads the arguments and environments of all processes of a home, again and again.
struct Spy {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<u8>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Spy {
    fn on(home: &Home) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (mark, stop_there, seen_there) = (home.mark().to_owned(), stop.clone(), seen.clone());
        let thread = thread::spawn(move || {
            while !stop_there.load(Ordering::SeqCst) {
                for process in Look::marked(&mark) {
                    for file in ["cmdline", "environ"] {
                        let path = format!("/proc/{}/{file}", process.pid);
                        let text = fs::read(path).unwrap_or_default();
                        let mut seen = seen_there.lock().unwrap();
                        if !contains(&seen, &text) {
                            seen.extend(text);
                        }
                    }
                }
                thread::yield_now();
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    fn seen(mut self) -> Vec<u8> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        let seen = self.seen.lock().unwrap();
        seen.clone()
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    !what.is_empty() && text.windows(what.len()).any(|window| window == what)
}

/// The forms in which a text might get somewhere: as it is, in capitals, as numbers, as the bytes
/// that its digits stand for.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let numbers = |bytes: &[u8], blank: &str| {
        let numbers: Vec<_> = bytes.iter().map(ToString::to_string).collect();
        numbers.join(&format!(",{blank}")).into_bytes()
    };
    let mut forms = vec![
        secret.as_bytes().to_vec(),
        secret.to_uppercase().into_bytes(),
        numbers(secret.as_bytes(), ""),
        numbers(secret.as_bytes(), " "),
        hex::encode(secret).into_bytes(),
    ];
    if let Ok(bytes) = hex::decode(secret) {
        forms.extend([numbers(&bytes, ""), numbers(&bytes, " "), bytes]);
    }
    forms
}

#[test]
fn the_search_finds_every_form() {
    let key = "00ff7f".repeat(11);
    assert!(forms(&key).iter().any(|form| contains(b"xx 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127, 0, 255, 127", form)));
    assert!(forms("ab").iter().any(|form| contains(b"[97, 98]", form)));
    assert!(forms("ab").iter().any(|form| contains(b"x6162", form)));
}

/// All files below a folder, but for those that the test wrote a secret into itself.
fn files(folder: &Path, but: &[PathBuf]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path(), but));
        } else if kind.is_file() && !but.contains(&entry.path()) {
            found.push((entry.path(), fs::read(entry.path()).unwrap()));
        }
    }
    found
}

/// What programs and the manager said, with who said it.
#[derive(Default)]
struct Said(Vec<(String, Vec<u8>)>);

impl Said {
    fn add(&mut self, who: String, text: Vec<u8>) {
        self.0.push((who, text));
    }

    fn note(&mut self, finished: &Finished) {
        let text = format!("{}{}", finished.stdout, finished.stderr);
        self.add(finished.told(), text.into_bytes());
    }
}

#[test]
fn no_secret_is_anywhere_but_where_it_belongs() {
    let home = Home::new();
    let by_hand = Server::start(&home);
    let peer_server = Server::start_peer(&home);
    let manager = Manager::start_with(&home, &["--log-level", "trace"]);
    let spy = Spy::on(&home);
    let mut said = Said::default();
    let trace = |args: &[&str]| home.ours(args).arg("--log-level").arg("trace");

    // A launch whose server's connect line the test overhears.
    let line = home.path("line");
    let script = format!(
        "#!/bin/sh\n{} \"$@\" --log-level trace --log-file {} | tee {}\n",
        programs().distant.display(),
        home.path("launched-server.log").display(),
        line.display()
    );
    let server = home.script("server", &script);
    let launched =
        trace(&["launch", "manager://localhost", "--distant", server.to_str().unwrap()]).run();
    said.note(&launched);
    let id = launched.id().to_string();
    // It is written there after it was handed on.
    let key = eventually("the line that was overheard", || {
        let overheard = fs::read_to_string(&line).ok()?;
        Some(overheard.split_once("distant://:")?.1.get(..64)?.to_owned())
    });
    for args in [
        &["spawn", "--", "echo", "hi"][..],
        &["manager", "list"],
        &["manager", "list", "--format=json"],
        &["manager", "info", &id],
        &["manager", "info", &id, "--format=json"],
        &["plugin", "list"],
    ] {
        said.note(&trace(args).run().success());
    }
    for args in [&["manager", "list"][..], &["manager", "info", &id]] {
        said.note(&home.peer(args).run().success());
    }

    // Answers, right and wrong, in both formats.
    let options = format!("ask=\"Password: \",expect={ANSWER},mode=error,when=asked");
    home.write("config/distant/config.toml", format!("[client.launch]\noptions = '{options}'\n"));
    // The right answer stands in that file, which is why it is none of those searched below.
    let config = home.path("config/distant/config.toml");
    for answer in [ANSWER, WRONG_ANSWER] {
        let mut launch = trace(&["launch", "faulty://x", "--format=json"]).start();
        launch.say(HELLO);
        while launch.json()["type"] != "auth_challenge" {}
        launch.say(&json!({"type": "auth_challenge_response", "answers": [answer]}).to_string());
        said.note(&launch.finish().code(1));
        let mut terminal = trace(&["launch", "faulty://x"]).on_terminal();
        terminal.expect("Password: ");
        terminal.type_keys(&format!("{answer}\n"));
        let (_, screen) = terminal.finish();
        said.add("the terminal".to_owned(), screen.into_bytes());
    }
    fs::remove_file(&config).unwrap();

    // Keys that a person gives, right and wrong.
    let wrong = "5e".repeat(32);
    for server in [&by_hand, &peer_server] {
        for key in [&server.key, &wrong] {
            let destination = format!("distant://{}", server.address);
            let connect = trace(&["connect", &destination, "--key-from-stdin"]);
            said.note(&connect.input(format!("{key}\n")).run());
        }
    }

    // A ticket, and what a client may put into its requests.
    let mut client = Wire::manager(manager.socket());
    let request = json!({
        "type": "launch",
        "destination": format!("manager://me:{PASSWORD}@localhost"),
        "options": "",
    });
    let launched = client.ask("1", &request).unwrap();
    assert_eq!(launched["type"], "launched", "{launched}");
    let destination = launched["destination"].as_str().unwrap();
    let ticket = destination.split_once("://:").unwrap().1[..64].to_owned();
    let connect = json!({"type": "connect", "destination": destination, "options": ""});
    let connected = client.ask("2", &connect).unwrap();
    assert_eq!(connected["type"], "connected", "{connected}");
    let again = client.ask("3", &connect).unwrap();
    assert_eq!(again["type"], "error", "a ticket was good for two connections");
    said.add("a used ticket's error".to_owned(), again.to_string().into_bytes());
    // An option that its plugin calls a secret, for a server that is not there.
    let offer = format!("offer=\"127.0.0.1:1\",key={wrong},proof=true,ask=password");
    let request = json!({"type": "launch", "destination": "faulty://x", "options": offer});
    client.request("4", &request).unwrap();
    let question = client.reply("4").unwrap();
    let answer = json!({"type": "auth_challenge_response", "answers": [ANSWER]});
    let answer = json!({"type": "authenticate", "id": question["id"], "msg": answer});
    client.request("5", &answer).unwrap();
    said.add("an error".to_owned(), client.reply("4").unwrap().to_string().into_bytes());
    let id = connected["id"].clone();
    let info = client.ask("6", &json!({"type": "info", "id": id})).unwrap();
    said.add("info".to_owned(), info.to_string().into_bytes());
    drop(client);

    let processes = spy.seen();
    let finished = manager.stop();
    said.note(&finished);

    let logs = files(home.path("").as_path(), &[line]);
    let logged = |name: &str, text: &[u8]| {
        logs.iter().any(|(path, log)| path.ends_with(name) && contains(log, text))
    };
    // What is searched is what was meant to be: full logs, and the arguments of workers.
    assert!(logged("manager.log", b"DEBUG") && logged("client.log", b"DEBUG"), "no full logs");
    assert!(logged("launched-server.log", b"listening"), "no log of the server");
    assert!(contains(&processes, b"plugin-worker") && contains(&processes, b"HOME="));

    let secrets = [
        ("the key of a launched server", &key),
        ("the key of our server", &by_hand.key),
        ("the key of a 0.20.0 server", &peer_server.key),
        ("a wrong key", &wrong),
        ("a ticket", &ticket),
        ("an answer", &ANSWER.to_owned()),
        ("a wrong answer", &WRONG_ANSWER.to_owned()),
        ("the password of a destination", &PASSWORD.to_owned()),
    ];
    for (name, secret) in secrets {
        for form in forms(secret) {
            assert!(!contains(&processes, &form), "{name} is in an argument or a variable");
            for (path, text) in &logs {
                assert!(!contains(text, &form), "{name} is in {}", path.display());
            }
            for (who, text) in &said.0 {
                assert!(!contains(text, &form), "{name} was said: {who}");
            }
        }
    }
}

#[test]
fn what_clients_send_through_a_server_is_in_no_log() {
    let home = Home::new();
    let manager = Manager::start_with(&home, &["--log-level", "trace"]);
    let log = home.path("launched-server.log");
    let arguments = format!("--log-level trace --log-file {}", log.display());
    home.ours(["launch", "manager://localhost", "--distant-args", &arguments]).run().success();
    let (variable, input, content) = ("a-token-in-a-variable", "typed-at-a-prompt", "in-a-file");

    let environment = format!("TOKEN={variable}");
    let spawned = home
        .ours(["spawn", "--log-level", "trace", "--environment", &environment, "--", "sh", "-c"])
        .arg("read -r line; echo $TOKEN $line")
        .input(format!("{input}\n"))
        .run()
        .success();
    assert_eq!(spawned.stdout, format!("{variable} {input}\n"));
    let file = home.path("file");
    for (id, request) in [
        json!({"type": "file_write_text", "path": file, "text": content}),
        json!({"type": "file_append", "path": file, "data": content.as_bytes()}),
        json!({"type": "file_read_text", "path": file}),
    ]
    .into_iter()
    .enumerate()
    {
        let greeting = json!({"type": "auth_initialization_response", "methods": ["none"]});
        let request = json!({"id": id.to_string(), "payload": request});
        let input = format!("{greeting}\n{request}\n");
        home.ours(["api", "--log-level", "trace"]).input(input).run().success();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), content.repeat(2));
    manager.stop();

    let logs = files(&home.path("cache"), &[]);
    let logs = logs.into_iter().chain([(log.clone(), fs::read(&log).unwrap())]);
    let logs: Vec<_> =
        logs.filter(|(path, _)| path.extension().is_some_and(|it| it == "log")).collect();
    assert_eq!(logs.len(), 3, "those of manager, server and command line");
    for (path, text) in logs {
        assert!(contains(&text, b"DEBUG distant::"), "{} is no full log", path.display());
        // What it does with requests is not known to be without secrets.
        assert!(!contains(&text, b"distant_local"), "{}", path.display());
        for secret in [variable, input, content] {
            for form in forms(secret) {
                assert!(!contains(&text, &form), "{secret} is in {}", path.display());
            }
        }
    }
}

/// Secrets of ssh logins, each used in one way only, so that a find says where it came from.
const LOGIN: &str = "login-staple-battery-8284";
const WRONG_LOGIN: &str = "wrong-staple-battery-5904";
const IN_DESTINATION: &str = "destination-staple-2353";
const PASSPHRASE: &str = "passphrase-battery-6028";
const WRONG_PASSPHRASE: &str = "wrong-passphrase-7471";
const CODE: &str = "one-time-code-3526624977";
const WRONG_CODE: &str = "wrong-time-code-5724709369";

/// Answers the questions of a launch in JSON mode with these, one after the other, and then none.
fn answer(launch: crate::support::Invocation, answers: &[&str], said: &mut Said) -> Finished {
    let mut launch = launch.arg("--format").arg("json").start();
    launch.json();
    launch.say(HELLO);
    let mut answers = answers.iter();
    loop {
        let message = launch.json();
        if message["type"] == "auth_challenge" {
            match answers.next() {
                Some(answer) => launch.say(
                    &json!({"type": "auth_challenge_response", "answers": [answer]}).to_string(),
                ),
                None => launch.close_stdin(),
            }
        } else if ["launched", "error"].contains(&message["type"].as_str().unwrap()) {
            let finished = launch.finish();
            said.note(&finished);
            return finished;
        }
    }
}

crate::ssh::each_backend! {
    fn no_secret_of_an_ssh_login_is_anywhere_but_where_it_belongs(backend: &str) {
        use crate::ssh::remote::Account;
        use crate::support::{keygen, Sshd};

        let home = Home::new();
        let manager = Manager::start_with(&home, &["--log-level", "trace"]);
        let spy = Spy::on(&home);
        let mut said = Said::default();
        let account = Account::new("/bin/sh", LOGIN);
        let by_password = Sshd::with(&home, "UsePAM no\nKbdInteractiveAuthentication no");
        let by_questions = Sshd::with(&home, "UsePAM yes\nPasswordAuthentication no");
        let by_key = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
        let all = [&by_password, &by_questions, &by_key];
        home.write(".ssh/known_hosts", all.map(|sshd| sshd.known(&["ed25519"])).concat());
        let distant = programs().distant.display().to_string();
        let launch = |sshd: &Sshd, who: &str, options: &str| {
            let options = format!("backend={backend},verbose=true,{options}");
            let to = format!("ssh://{who}@{}", sshd.address);
            let trace = ["--distant", &distant, "--log-level", "trace", "--options", &options];
            home.ours([&["launch", &to][..], &trace].concat())
        };

        // A password: wrong and then right, on a terminal, and in the destination.
        let name = account.name.as_str();
        answer(launch(&by_password, name, ""), &[WRONG_LOGIN, LOGIN], &mut said).success();
        let mut terminal = launch(&by_password, name, "").on_terminal();
        terminal.expect("Password for ");
        terminal.type_keys(&format!("{LOGIN}\n"));
        let (status, screen) = terminal.finish();
        assert!(status.success(), "{screen}");
        said.add("the terminal".to_owned(), screen.into_bytes());
        answer(launch(&by_password, name, ""), &[WRONG_LOGIN], &mut said).code(1);
        account.set_password(IN_DESTINATION);
        let mut client = Wire::manager(manager.socket());
        let request = json!({
            "type": "launch",
            "destination": format!("ssh://{name}:{IN_DESTINATION}@{}", by_password.address),
            "options": format!("backend={backend},verbose=true,distant.bin=\"{distant}\""),
        });
        let launched = client.ask("1", &request).unwrap();
        assert_eq!(launched["type"], "launched", "{launched}");
        drop(client);

        // A code that is good once, asked for by the server's own question.
        account.set_password(CODE);
        answer(launch(&by_questions, name, ""), &[WRONG_CODE, CODE], &mut said).success();
        account.set_password("another code by now");
        answer(launch(&by_questions, name, ""), &[CODE], &mut said).code(1);

        // Keys: a plain one, one with a passphrase in each form, one of an agent.
        let mut bodies = Vec::new();
        let mut secret_files = Vec::new();
        let kinds: [&[&str]; 3] = [&["-t", "ed25519"], &["-t", "rsa", "-m", "PEM"], &["-t", "ecdsa"]];
        for (index, form) in kinds.iter().enumerate() {
            for passphrase in ["", PASSPHRASE] {
                let key = home.path(format!("keys/{index}{}", passphrase.len()));
                keygen(&key, &[form, &["-N", passphrase][..]].concat());
                by_key.authorize(&key.with_extension("pub"));
                let text = fs::read_to_string(&key).unwrap();
                let lines: Vec<_> = text.lines().filter(|line| line.len() > 40).collect();
                // The public half is in there too, and may be anywhere.
                let public = fs::read_to_string(key.with_extension("pub")).unwrap();
                let body = lines.iter().rev().find(|line| !public.contains(**line));
                bodies.push((*body.unwrap()).to_owned());
                let option = format!("identity_files=\"{}\"", key.display());
                let answers: &[&str] = match passphrase {
                    "" => &[],
                    right => &[WRONG_PASSPHRASE, right],
                };
                answer(launch(&by_key, "root", &option), answers, &mut said).success();
                fs::copy(by_key.path("identity.pub"), by_key.path("authorized")).unwrap();
                secret_files.push(key);
            }
        }
        let key = home.path("keys/1".to_owned() + &PASSPHRASE.len().to_string());
        let option = format!("identity_files=\"{}\"", key.display());
        answer(launch(&by_key, "root", &option), &[WRONG_PASSPHRASE], &mut said).code(1);

        for args in [&["manager", "list"][..], &["manager", "list", "--format=json"], &["plugin", "list"]] {
            said.note(&home.ours(args).arg("--log-level").arg("trace").run().success());
        }
        let listed = home.ours(["manager", "list", "--format=json"]).run().success().stdout;
        let listed: serde_json::Value = serde_json::from_str(listed.lines().last().unwrap()).unwrap();
        for id in listed.as_object().unwrap().keys().filter(|key| key.parse::<u32>().is_ok()) {
            said.note(&home.ours(["manager", "info", id, "--format=json"]).run().success());
            // Its usual log is ours, and it would begin that anew.
            let peer = home.peer(["manager", "info", id]).arg("--log-file");
            said.note(&peer.arg(home.path("peer.log")).run());
        }
        let processes = spy.seen();
        said.note(&manager.stop());
        for sshd in all {
            secret_files.extend(["identity", "host_ed25519", "host_ecdsa", "host_rsa"].map(|it| sshd.path(it)));
        }
        let files = files(home.path("").as_path(), &secret_files);
        let logged = |name: &str, text: &str| {
            files.iter().any(|(path, log)| path.ends_with(name) && contains(log, text.as_bytes()))
        };
        // What is searched is what was meant to be: full logs with the library's own words.
        let trace = match backend {
            "ssh2" => "key exchange: ",
            "libssh" => "packet: ",
            _ => "debug1: ",
        };
        assert!(logged("manager.log", "DEBUG"), "no full log of the manager");
        assert!(logged("client.log", "DEBUG"), "no full log of the command line");
        assert!(logged("manager.log", trace), "no trace of the library");
        assert!(contains(&processes, b"plugin-worker"));

        let mut secrets = vec![
            ("a password", LOGIN.to_owned()),
            ("a wrong password", WRONG_LOGIN.to_owned()),
            ("the password of a destination", IN_DESTINATION.to_owned()),
            ("a passphrase", PASSPHRASE.to_owned()),
            ("a wrong passphrase", WRONG_PASSPHRASE.to_owned()),
            ("a code", CODE.to_owned()),
            ("a wrong code", WRONG_CODE.to_owned()),
        ];
        secrets.extend(bodies.into_iter().map(|body| ("a key", body)));
        for (name, secret) in secrets {
            for form in forms(&secret) {
                assert!(!contains(&processes, &form), "{name} is in an argument or a variable");
                for (path, text) in &files {
                    assert!(!contains(text, &form), "{name} is in {}", path.display());
                }
                for (who, text) in &said.0 {
                    assert!(!contains(text, &form), "{name} was said: {who}");
                }
            }
        }
    }
}

#[test]
fn no_manager_worker_or_command_line_leaves_a_core_dump() {
    let home = Home::new();
    let limited = |args: &str| {
        let script = format!("ulimit -c unlimited; exec {} {args}", programs().distant.display());
        home.program("sh", ["-c", &script])
    };
    let limit = |pid: u32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ")
    };
    let manager = Manager::listen(&home, limited("manager listen --user"), true);
    let mute = home.mute();
    let launch = limited(&format!("launch manager://localhost --distant '{mute}'")).start();
    manager.wait_for_mute();
    let workers = manager.offspring();
    assert!(!workers.is_empty());
    for pid in workers.iter().map(|it| it.pid).chain([manager.pid(), launch.pid()]) {
        assert_eq!(limit(pid), "0 0");
    }
    // What clients of a server start may be what they are looking for.
    let server = Server::listen(limited("server listen --host 127.0.0.1"));
    assert_eq!(limit(server.process.pid()), "unlimited unlimited");
}
