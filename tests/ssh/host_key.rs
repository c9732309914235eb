//! Whom a launch trusts.

use std::fs;

use super::each_backend;
use crate::support::{Finished, Home, Manager, Sshd};

fn refused(finished: Finished, reason: &str) {
    let finished = finished.code(1);
    assert!(finished.stderr.contains(reason), "{}", finished.told());
}

each_backend! {
    fn a_host_that_is_not_known_is_asked_about_and_remembered(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let known = home.write(".ssh/known_hosts", "# mine\n\nother ssh-ed25519 AAAA\n");
        let mut launch = sshd.launch(&home, backend, "").in_json();
        let question = launch.json();
        assert_eq!(question["type"], "auth_verification");
        assert_eq!(question["kind"], "host");
        let text = question["text"].as_str().unwrap();
        assert!(text.starts_with(&format!("SSH host {} is not yet trusted.\nEd25519 Fingerprint: SHA256:", sshd.address)), "{text}");
        launch.say(r#"{"type":"auth_verification_response","valid":true}"#);
        assert_eq!(launch.answer()["type"], "launched");
        launch.finish().success();
        let text = fs::read_to_string(&known).unwrap();
        let added = text.strip_prefix("# mine\n\nother ssh-ed25519 AAAA\n").unwrap();
        assert_eq!(added.lines().count(), 1, "{added}");
        sshd.launch(&home, backend, "").run().id();
    }

    fn without_any_known_hosts_file_it_is_asked_too(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let files = format!("user_known_hosts_files=\"{}\"", home.path("none/known").display());
        let mut launch = sshd.launch(&home, backend, &files).in_json();
        assert_eq!(launch.json()["type"], "auth_verification");
        launch.say(r#"{"type":"auth_verification_response","valid":false}"#);
        let error = launch.answer();
        assert_eq!((&error["type"], &error["kind"]), (&"error".into(), &"host_key".into()));
        launch.finish().code(1);
        assert!(!home.path("none/known").exists());
    }

    fn with_nobody_to_ask_it_is_refused(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        home.write(".ssh/known_hosts", "");
        refused(sshd.launch(&home, backend, "").run(), "is not yet trusted");
        assert_eq!(fs::read_to_string(home.path(".ssh/known_hosts")).unwrap(), "");
    }

    fn a_changed_key_is_refused_with_file_line_and_remedy(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let (sshd, other) = (Sshd::start(&home), Sshd::start(&home));
        let lines = other.known(&["ed25519", "ecdsa", "rsa"]).replace(&other.name(), &sshd.name());
        let file = home.write(".ssh/known_hosts", format!("# one\n{lines}"));
        let finished = sshd.launch(&home, backend, "").run().code(1);
        let told = finished.told();
        let named = format!("{}, line 2, has another one", file.display());
        assert!(told.contains(&named), "{told}");
        let remedy = format!("ssh-keygen -R '{}' -f {}", sshd.name(), file.display());
        assert!(told.contains(&remedy), "{told}");
        assert_eq!(fs::read_to_string(file).unwrap(), format!("# one\n{lines}"));
    }

    fn a_revoked_key_is_refused(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let line = sshd.known(&["ed25519"]);
        let revoked = format!("{line}@revoked * {}", line.split_once(' ').unwrap().1);
        home.write(".ssh/known_hosts", revoked);
        refused(sshd.launch(&home, backend, "").run(), "is revoked");
    }

    fn a_host_that_is_known_by_another_kind_of_key_is_asked_about_with_its_line(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let other = home.path("other");
        crate::support::keygen(&other, &["-N", "", "-t", "ecdsa", "-b", "521"]);
        let public = fs::read_to_string(other.with_extension("pub")).unwrap();
        let line = format!("# mine\n{} {public}", sshd.name());
        let file = home.write(".ssh/known_hosts", line);
        if backend == "openssh" {
            // `ssh` takes a key of another kind for a changed one, and that is its to decide.
            let changed = format!("{}, line 2, has another one", file.display());
            return refused(sshd.launch(&home, backend, "").run(), &changed);
        }
        let mut launch = sshd.launch(&home, backend, "").in_json();
        let text = launch.json()["text"].as_str().unwrap().to_owned();
        let said = format!("known: ecdsa-sha2-nistp521, {}, line 2\nTrust and", file.display());
        assert!(text.contains(&said), "{text}");
        launch.say(r#"{"type":"auth_verification_response","valid":false}"#);
        let error = launch.answer();
        assert!(error["causes"].to_string().contains("ecdsa-sha2-nistp521"), "{error}");
        launch.finish().code(1);
    }

    fn what_the_configuration_revokes_is_refused_and_what_is_not_done_is_said(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let public = fs::read_to_string(sshd.path("host_ed25519.pub")).unwrap();
        let list = home.write("gone", &public);
        let configure = |line: &str| home.write(".ssh/config", format!("Host *\n  {line}\n"));
        configure(&format!("RevokedHostKeys {}", list.display()));
        refused(sshd.launch(&home, backend, "").run(), "is revoked");
        home.write("gone", "");
        sshd.launch(&home, backend, "").run().id();
        // One with a line that is no key revokes all, and so does one that cannot be read; a pipe
        // too, which nobody waits for.
        home.write("gone", format!("@revoked * {}", sshd.known(&["rsa"])));
        refused(sshd.launch(&home, backend, "").run(), "whether");
        fs::remove_file(&list).unwrap();
        refused(sshd.launch(&home, backend, "").run(), "whether");
        if backend == "openssh" {
            // `ssh` waits for a pipe, within the limit of a launch, and does what it is configured to.
            return;
        }
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mkfifoat(rustix::fs::CWD, &list, mode).unwrap();
        refused(sshd.launch(&home, backend, "").run(), "it is no regular file");
        configure("KnownHostsCommand /bin/true\n  VerifyHostKeyDNS yes");
        let launched = sshd.launch(&home, backend, "").run();
        for said in ["`KnownHostsCommand` is not run", "`VerifyHostKeyDNS` is not done"] {
            assert_eq!(launched.stderr.matches(said).count(), 1, "{}", launched.told());
        }
        launched.id();
    }

    fn any_known_kind_of_key_is_enough(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        for kind in ["rsa", "ecdsa", "ed25519"] {
            home.write(".ssh/known_hosts", sshd.known(&[kind]));
            sshd.launch(&home, backend, "").run().id();
        }
        // The second file counts as well, with either spelling of the option.
        let second = home.write("second", sshd.known(&["rsa"]));
        home.write(".ssh/known_hosts", "");
        let files = format!("ssh.user_known_hosts_files=\"/none,{}\"", second.display());
        sshd.launch(&home, backend, &files).run().id();
    }
}

#[test]
fn a_host_certificate_is_checked_against_its_authority() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let folder = home.path("ca");
    let key = folder.join("host");
    crate::support::keygen(&folder.join("ca"), &["-N", "", "-t", "ed25519"]);
    crate::support::keygen(&key, &["-N", "", "-t", "ed25519"]);
    let sign = |names: &str| {
        let mut keygen = std::process::Command::new("ssh-keygen");
        keygen.args(["-q", "-h", "-I", "host", "-n", names, "-s"]).arg(folder.join("ca"));
        assert!(keygen.arg(key.with_extension("pub")).status().unwrap().success());
    };
    sign("127.0.0.1");
    let certificate = folder.join("host-cert.pub").display().to_string();
    let lines = format!("HostKey {}\nHostCertificate {certificate}", key.display());
    let sshd = Sshd::with(&home, &lines);
    let authority = fs::read_to_string(folder.join("ca.pub")).unwrap();
    home.write(".ssh/known_hosts", format!("@cert-authority [127.0.0.1]:* {authority}"));
    sshd.launch(&home, "ssh2", "").run().id();
    sshd.launch(&home, "openssh", "").run().id();
    refused(sshd.launch(&home, "libssh", "").run(), "only `backend=ssh2` reads it");
    sign("elsewhere");
    refused(sshd.launch(&home, "openssh", "").run(), "name is not a listed principal");
    refused(sshd.launch(&home, "ssh2", "").run(), "it is for other hosts");
}
