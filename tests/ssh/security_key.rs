//! Keys in a FIDO token, with `ssh` and `sshd` as they are and a stub of the token itself.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::login::answer;
use crate::support::{
    eventually, keygen, repository, Home, Invocation, Manager, Signal, Sshd, HELLO,
};

/// The stub of a token, as the middleware of a home's ssh configuration.
pub(super) struct TokenStub<'a> {
    home: &'a Home,
    pub(super) library: PathBuf,
}

impl<'a> TokenStub<'a> {
    pub(super) fn new(home: &'a Home) -> Self {
        let library = home.path("token/stub.so");
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(&library);
        cc.arg(repository().join("tests/ssh/security_key_stub.c")).arg("-lcrypto");
        let made = cc.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let line = format!("Host *\n  SecurityKeyProvider {}\n", library.display());
        home.write(".ssh/config", line);
        Self { home, library }
    }

    /// Makes a key in it, and lets that in.
    pub(super) fn key(&self, sshd: &Sshd, options: &[&str]) -> PathBuf {
        let key = self.home.path("token/id");
        let library = self.library.display().to_string();
        keygen(&key, &[&["-N", "", "-t", "ed25519-sk", "-w", &library], options].concat());
        sshd.authorize(&key.with_extension("pub"));
        key
    }

    /// Lets it sign nothing without a touch, which is a byte in this pipe.
    fn wants_touch(&self) -> File {
        let path = self.home.path("token/touch");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }
}

fn with_key(sshd: &Sshd, home: &Home, key: &Path) -> Invocation {
    sshd.launch(home, "openssh", &format!("identity_files=\"{}\"", key.display()))
}

const NO_PASSWORDS: &str = "PasswordAuthentication no\nKbdInteractiveAuthentication no";

#[test]
fn a_stub_of_a_token_is_to_be_touched_and_the_launch_waits_for_that() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::with(&home, NO_PASSWORDS);
    let token = TokenStub::new(&home);
    let key = token.key(&sshd, &[]);
    let mut touch = token.wants_touch();
    let launch = with_key(&sshd, &home, &key).start();
    eventually("the notice", || {
        launch.told().contains("Confirm user presence for key ED25519-SK SHA256:").then_some(())
    });
    touch.write_all(b"!").unwrap();
    launch.finish().id();
    assert!(sshd.log().contains("Accepted publickey for root"), "{}", sshd.log());
    // An editor is told as well.
    let mut editor = with_key(&sshd, &home, &key).arg("--format=json").start();
    editor.say(HELLO.trim_end());
    eventually("the line", || {
        let told = editor.told();
        let line = "{\"type\":\"auth_info\",\"text\":\"Confirm user presence for key ED25519-SK";
        told.contains(line).then_some(())
    });
    touch.write_all(b"!").unwrap();
    assert!(editor.finish().success().stdout.contains("\"type\":\"launched\""));
    assert!(sshd.log().contains("ED25519-SK SHA256:"), "{}", sshd.log());
}

#[test]
fn a_stub_of_a_token_that_nobody_touches_is_left_with_its_launch() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let sshd = Sshd::with(&home, NO_PASSWORDS);
    let token = TokenStub::new(&home);
    let key = token.key(&sshd, &[]);
    let _touch = token.wants_touch();
    for signal in [Signal::INT, Signal::KILL] {
        let launch = with_key(&sshd, &home, &key).start();
        eventually("the notice", || launch.told().contains("Confirm user presence").then_some(()));
        eventually("whoever waits for the touch", || {
            manager.offspring().iter().any(|it| it.command.contains("ssh-sk-helper")).then_some(())
        });
        launch.signal(signal);
        launch.finish();
        manager.assert_no_offspring();
    }
}

#[test]
fn the_pin_of_a_stub_of_a_token_is_asked_for() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::with(&home, &format!("{NO_PASSWORDS}\nPubkeyAuthOptions verify-required"));
    let token = TokenStub::new(&home);
    let key = token.key(&sshd, &["-O", "verify-required"]);
    home.write("token/pin", "2580");
    let question = format!("Enter PIN for ED25519-SK key {}: ", key.display());
    let (asked, end) = answer(with_key(&sshd, &home, &key), &[&["2580"]]);
    assert_eq!((asked, &end["type"]), (vec![question.clone()], &"launched".into()), "{end}");
    let (asked, end) = answer(with_key(&sshd, &home, &key), &[&["0000"]]);
    assert_eq!((asked.len(), &end["kind"]), (1, &"authentication".into()), "{end}");
    let causes = end["causes"].to_string();
    assert!(causes.contains("signing failed for ED25519-SK"), "{end}");
    assert!(!causes.contains("0000"), "{end}");
    // Nobody is there to say it.
    let error = with_key(&sshd, &home, &key).run().code(1);
    assert!(error.stderr.contains("a question was left unanswered"), "{}", error.told());
    assert!(error.stderr.contains(question.trim_end_matches([':', ' '])), "{}", error.told());
}

#[test]
fn a_stub_of_a_token_that_is_not_there_is_said() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::with(&home, NO_PASSWORDS);
    let token = TokenStub::new(&home);
    let key = token.key(&sshd, &[]);
    fs::remove_file(&token.library).unwrap();
    let error = with_key(&sshd, &home, &key).run().code(1);
    assert!(error.stderr.contains("signing failed for ED25519-SK"), "{}", error.told());
}
