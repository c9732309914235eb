//! A 0.20.0 CLI that drives our manager over ssh, and an editor-like client.

use super::each_backend;
use super::remote::Account;
use crate::support::{Home, Invocation, Manager, Running, Sshd};

/// The released CLI's launch; it finds our server by its path.
fn launch(home: &Home, user: &str, sshd: &Sshd, options: &str) -> Invocation {
    let distant = crate::support::programs().distant.display().to_string();
    let to = format!("ssh://{user}@{}", sshd.address);
    home.peer(["launch", &to, "--distant", &distant, "--options", options])
}

/// A server that asks for a password itself, and whose key is known; and who may log in there.
fn asking(home: &Home) -> (Sshd, Account) {
    let lines = "UsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication yes";
    let sshd = Sshd::with(home, lines);
    sshd.make_known(home);
    (sshd, Account::new("/bin/sh", "the right one"))
}

/// One whose key is not known, where a password is the first that can be asked for.
fn unknown(home: &Home) -> (Sshd, Account) {
    let sshd = Sshd::with(home, "KbdInteractiveAuthentication no");
    (sshd, Account::new("/bin/sh", "the right one"))
}

/// The next message that needs an answer or ends the launch.
fn next(launch: &Running) -> serde_json::Value {
    loop {
        let message = launch.json();
        let passing = ["auth_start_method", "auth_finished", "auth_info"];
        if !passing.iter().any(|kind| message["type"] == *kind) {
            return message;
        }
    }
}

each_backend! {
    fn a_released_cli_is_asked_for_host_and_password(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let (sshd, account) = unknown(&home);
        let launch = launch(&home, &account.name, &sshd, &format!("backend={backend}"));
        let mut launch = launch.in_json();
        let question = next(&launch);
        assert_eq!(question["type"], "auth_verification", "{question}");
        launch.say(r#"{"type":"auth_verification_response","valid":true}"#);
        let question = next(&launch);
        assert_eq!(question["type"], "auth_challenge", "{question}");
        assert_eq!(question["questions"][0]["options"]["echo"], "false");
        launch.say(r#"{"type":"auth_challenge_response","answers":["the right one"]}"#);
        let end = next(&launch);
        assert_eq!(end["type"], "launched", "{end}");
        launch.finish().success();
        assert_eq!(home.peer(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    }

    fn a_released_cli_is_asked_the_servers_questions_on_a_terminal(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let (sshd, account) = asking(&home);
        let options = format!("backend={backend}");
        let mut terminal = launch(&home, &account.name, &sshd, &options).on_terminal();
        terminal.expect("Password: ");
        terminal.type_keys("the right one\n");
        let (status, screen) = terminal.finish();
        assert!(status.success(), "{screen}");
    }

    fn a_released_cli_is_asked_for_host_and_password_on_a_terminal(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let (sshd, account) = unknown(&home);
        let options = format!("backend={backend}");
        let mut terminal = launch(&home, &account.name, &sshd, &options).on_terminal();
        terminal.expect("is not yet trusted");
        terminal.expect("y/N");
        terminal.type_keys("y\n");
        terminal.expect("Password for ");
        terminal.type_keys("the right one\n");
        let (status, screen) = terminal.finish();
        // It hides what is typed only after it has asked, so what is typed at once may be seen.
        assert!(status.success(), "{screen}");
        assert_eq!(home.peer(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    }

    fn a_released_cli_is_asked_the_servers_questions(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let (sshd, account) = asking(&home);
        let launch = launch(&home, &account.name, &sshd, &format!("backend={backend}"));
        let mut launch = launch.in_json();
        let question = next(&launch);
        let asked = question["questions"][0]["text"].as_str().unwrap_or_default();
        assert_eq!(asked, format!("({}@127.0.0.1) Password: ", account.name), "{question}");
        launch.say(r#"{"type":"auth_challenge_response","answers":["the right one"]}"#);
        let end = next(&launch);
        assert_eq!(end["type"], "launched", "{end}");
        launch.finish().success();
    }
}
