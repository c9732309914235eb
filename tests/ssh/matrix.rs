//! What works with which library, as tables: the README has what a run of these gives.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use super::kerberos::Realm;
use super::login::{answer, Agent};
use super::remote::Account;
use super::security_key::TokenStub;
use super::smart_card::{self, SoftCard};
use crate::support::{keygen, peer, programs, report, repository, Home, Invocation, Manager, Sshd};

const BACKENDS: [&str; 3] = ["ssh2", "libssh", "openssh"];

/// A table in Markdown, made row by row.
struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|it| (*it).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds what a row's cells turned out to be, for one more column or several.
    fn add(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        match self.rows.iter_mut().find(|row| row[0] == name) {
            Some(row) => row.extend(cells),
            None => self.rows.push([name.to_owned()].into_iter().chain(cells).collect()),
        }
    }

    fn text(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.head.len()));
        [line(&self.head), rule].into_iter().chain(self.rows.iter().map(|row| line(row))).collect()
    }

    /// Shows it to whoever runs the tests, and holds the README to it.
    fn finish(self) {
        let text = self.text();
        assert!(self.rows.iter().all(|row| row.len() == self.head.len()), "{text}");
        report(format!("\n{text}"));
        let readme = fs::read_to_string(repository().join("README.md")).unwrap();
        assert!(readme.contains(&text), "the README has another table than this:\n{text}");
    }
}

#[test]
fn a_table_is_markdown_and_a_row_grows() {
    let mut table = Table::new(&["a", "b", "c"]);
    table.add("x", ["1".to_owned()]);
    table.add("x", ["2".to_owned()]);
    assert_eq!(table.text(), "| a | b | c |\n|---|---|---|\n| x | 1 | 2 |\n");
}

/// `in`, or the kind of the error and the backend that it names.
fn outcome(end: &serde_json::Value) -> String {
    if end["type"] == "launched" {
        return "in".to_owned();
    }
    let kind = end["kind"].as_str().unwrap_or_else(|| panic!("{end}")).replace('_', " ");
    let kind = if kind == "authentication" { "refused".to_owned() } else { kind };
    let text = end.to_string();
    assert_ne!(kind, "other", "{text}");
    let named = ["openssh", "ssh2", "libssh"].into_iter().filter_map(|backend| {
        let name = format!("`backend={backend}`");
        (text.contains(&format!("{name} can")) || text.contains(&format!("{name} does")))
            .then_some(name)
    });
    match named.into_iter().next() {
        Some(name) => format!("{kind}, names {name}"),
        None => kind,
    }
}

#[test]
fn the_readme_says_which_logins_work() {
    let mut table = Table::new(&["login", "`ssh2`", "`libssh`", "`openssh`"]);
    for backend in BACKENDS {
        let home = Home::new();
        let _manager = Manager::start(&home);
        keys(&mut table, &home, backend);
        certificates_and_agents(&mut table, &home, backend);
        questions(&mut table, &home, backend);
        cards(&mut table, backend);
        tickets(&mut table, backend);
    }
    table.finish();
}

fn with_key(sshd: &Sshd, home: &Home, backend: &str, key: &Path) -> Invocation {
    sshd.launch(home, backend, &format!("identity_files=\"{}\"", key.display()))
}

fn keys(table: &mut Table, home: &Home, backend: &str) {
    let sshd = Sshd::with(home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
    sshd.make_known(home);
    let kinds = [
        ("ed25519", "-t ed25519"),
        ("ed25519, locked with AES-GCM", "-t ed25519 -Z aes256-gcm@openssh.com"),
        ("ed25519, locked with chacha20", "-t ed25519 -Z chacha20-poly1305@openssh.com"),
        ("ecdsa 256", "-t ecdsa -b 256"),
        ("ecdsa 384, PEM", "-t ecdsa -b 384 -m PEM"),
        ("ecdsa 521", "-t ecdsa -b 521"),
        ("rsa", "-t rsa -b 2048"),
        ("rsa, PEM", "-t rsa -b 2048 -m PEM"),
        ("rsa, PKCS8", "-t rsa -b 2048 -m PKCS8"),
    ];
    for (index, (name, kind)) in kinds.iter().enumerate() {
        for passphrase in ["", "open sesame"] {
            if passphrase.is_empty() && kind.contains("-Z") {
                continue;
            }
            let key = home.path(format!("keys/{index}{}", passphrase.len()));
            keygen(&key, &kind.split(' ').chain(["-N", passphrase]).collect::<Vec<_>>());
            sshd.authorize(&key.with_extension("pub"));
            let answers: &[&[&str]] =
                if passphrase.is_empty() { &[] } else { &[&["wrong"], &[passphrase]] };
            let (asked, end) = answer(with_key(&sshd, home, backend, &key), answers);
            assert_eq!(asked.len(), answers.len(), "{name}: {asked:?}");
            if let Some(first) = asked.first() {
                let file = key.display();
                assert_eq!(*first, format!("Passphrase to decrypt {file} for root@127.0.0.1:\n> "));
            }
            // A key counts towards the few that sshd looks at.
            fs::copy(sshd.path("identity.pub"), sshd.path("authorized")).unwrap();
            let lock = if passphrase.is_empty() { "" } else { ", passphrase" };
            table.add(&format!("key, {name}{lock}"), [outcome(&end)]);
        }
    }
    let token = TokenStub::new(home);
    let key = token.key(&sshd, &[]);
    let (_, end) = answer(with_key(&sshd, home, backend, &key), &[]);
    let named = end.to_string().contains("sk-ssh-ed25519@openssh.com");
    assert!(named || backend == "openssh", "{end}");
    table.add("key, in a security key (sk-*; stub of a token)", [outcome(&end)]);
    let agent = Agent::start(home);
    agent.add_of(&key, &token.library);
    let options = format!("backend={backend},identity_files=\"{}.pub\"", key.display());
    let launch = sshd.launch_as(home, "root", &options).env("SSH_AUTH_SOCK", &agent.socket);
    let (_, end) = answer(launch, &[]);
    table.add("agent, security key (sk-*; stub of a token)", [outcome(&end)]);
    fs::remove_file(home.path(".ssh/config")).unwrap();
}

fn cards(table: &mut Table, backend: &str) {
    let home = Home::new();
    let sshd = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
    sshd.make_known(&home);
    let card = SoftCard::new(&home, &sshd);
    let _manager = card.manager();
    let answers: &[&[&str]] = if backend == "openssh" { &[&[smart_card::ASKED.1]] } else { &[] };
    let launch = sshd.launch_as(&home, "root", &format!("backend={backend}"));
    table.add("key, in a smart card (softhsm)", [outcome(&answer(launch, answers).1)]);
}

fn tickets(table: &mut Table, backend: &str) {
    let home = Home::new();
    let realm = Realm::start(&home);
    let (sshd, _manager) = (realm.sshd(), realm.manager());
    let launch = || sshd.launch_as(&home, "root", &format!("backend={backend}"));
    let (_, end) = answer(launch().env("KRB5CCNAME", realm.ticket()), &[]);
    table.add("ticket of Kerberos", [outcome(&end)]);
    let (_, end) = answer(launch(), &[]);
    table.add("ticket of Kerberos, none there", [outcome(&end)]);
}

fn certificates_and_agents(table: &mut Table, home: &Home, backend: &str) {
    let ca = home.path("ca");
    keygen(&ca, &["-N", "", "-t", "ed25519"]);
    let trusted = format!(
        "TrustedUserCAKeys {}.pub\nPasswordAuthentication no\nKbdInteractiveAuthentication no",
        ca.display()
    );
    let sshd = Sshd::with(home, &trusted);
    sshd.make_known(home);
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let key = home.path(format!("certified/{kind}"));
        keygen(&key, &["-N", "", "-t", kind]);
        let mut sign = Command::new("ssh-keygen");
        sign.args(["-q", "-I", "me", "-n", "root", "-s"]).arg(&ca);
        assert!(sign.arg(key.with_extension("pub")).status().unwrap().success());
        let (_, end) = answer(with_key(&sshd, home, backend, &key), &[]);
        table.add(&format!("certificate, {kind}"), [outcome(&end)]);
    }
    let agent = Agent::start(home);
    agent.add(Path::new(&sshd.identity()));
    let through = |options: &str| {
        let options = format!("backend={backend},{options}");
        let launch = sshd.launch_as(home, "root", &options);
        outcome(&answer(launch.env("SSH_AUTH_SOCK", &agent.socket), &[]).1)
    };
    table.add("agent", [through("")]);
    let only = format!("identities_only=true,identity_files=\"{}.pub\"", sshd.identity());
    table.add("agent, `identities_only` with the public key's file", [through(&only)]);
    table.add("agent, `identities_only` without", [through("identities_only=true")]);
    for kind in ["ed25519", "ecdsa", "rsa"] {
        agent.forget();
        // With its certificate, which lies beside it.
        agent.add(&home.path(format!("certified/{kind}")));
        table.add(&format!("agent, certificate, {kind}"), [through("")]);
    }
}

fn questions(table: &mut Table, home: &Home, backend: &str) {
    let password = "the right one";
    let account = Account::new("/bin/sh", password);
    let mut check = |name: &str, lines: &str, with_key: bool, answers: &[&[&str]]| {
        let sshd = Sshd::with(home, lines);
        sshd.make_known(home);
        let mut options = format!("backend={backend}");
        if with_key {
            options.push_str(&format!(",identity_files=\"{}\"", sshd.identity()));
        }
        let (asked, end) = answer(sshd.launch_as(home, &account.name, &options), answers);
        assert_eq!(asked.len(), answers.len(), "{name}: {asked:?}, {end}");
        table.add(name, [outcome(&end)]);
    };
    let only_password = "UsePAM no\nKbdInteractiveAuthentication no";
    check("password", only_password, false, &[&["wrong"], &[password]]);
    check("password, wrong three times", only_password, false, &[&["a"], &["b"], &["c"]]);
    let questions = "UsePAM yes\nPasswordAuthentication no\nKbdInteractiveAuthentication yes";
    check("keyboard-interactive", questions, false, &[&[password]]);
    let both = "UsePAM no\nAuthenticationMethods publickey,password";
    check("key, then password", both, true, &[&[password]]);
    let three = "UsePAM yes\nAuthenticationMethods publickey,keyboard-interactive,password";
    check("key, then questions, then password", three, true, &[&[password], &[password]]);
    account.clear_password();
    check("nothing asked for", "UsePAM no\nPermitEmptyPasswords yes", false, &[]);
}

/// What a shell that is not installed here does with the command that it gets: nothing else of it.
const STUB: &str = r#"#!/usr/bin/python3
import os, re, sys
noise = os.path.expanduser("~/.noise")
if os.path.exists(noise):
    print(open(noise).read(), flush=True)
words = re.fullmatch(r"(\S+) (\S+) '([^']*)'", sys.argv[2])
os.execvp(words[1], list(words.groups()))
"#;

const CMD_STUB: &str = "#!/bin/sh\nprintf \"'sh' is not recognized as an internal or external \
     command,\\r\\noperable program or batch file.\\r\\n\" >&2\nexit 1\n";

#[test]
fn the_readme_says_which_login_shells_work() {
    let mut table = Table::new(&[
        "login shell",
        "`ssh2`",
        "`ssh2`, noisy",
        "`libssh`",
        "`libssh`, noisy",
        "`openssh`",
        "`openssh`, noisy",
    ]);
    let shells = [
        ("sh", "/bin/sh"),
        ("dash", "/bin/dash"),
        ("bash", "/bin/bash"),
        ("zsh", "/usr/bin/zsh"),
        ("fish", "/usr/bin/fish"),
        ("tcsh", "/usr/bin/tcsh"),
        ("mksh", "/usr/bin/mksh"),
        ("nu (stub)", STUB),
        ("pwsh (stub)", STUB),
        ("cmd of Windows (stub)", CMD_STUB),
    ];
    let junk = format!("echo 'distant://:{}@127.0.0.1:9'\necho junk\n", "ab".repeat(32));
    let files = [
        ".bashrc",
        ".zshenv",
        ".tcshrc",
        ".mkshrc",
        ".profile",
        ".noise",
        ".config/fish/config.fish",
    ];
    for backend in BACKENDS {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        for (name, shell) in shells {
            let account = match shell.starts_with("#!") {
                true => Account::with_own_shell(shell, "x"),
                false => Account::new(shell, "x"),
            };
            let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
            for noise in ["quiet", "noisy"] {
                if noise == "noisy" {
                    for file in files {
                        account.write(file, &junk);
                    }
                    account.write(".bash_profile", "exec fish\n");
                }
                let launch = sshd.launch_as(&home, &account.name, &options);
                let (_, end) = answer(launch, &[]);
                let cell = match end["type"] == "launched" {
                    true => {
                        let id = end["id"].to_string();
                        let echo = ["spawn", "--connection", &id, "--", "echo", "hi"];
                        let said = home.ours(echo).run().success().stdout;
                        assert_eq!(said, "hi\n", "{name}, {noise}");
                        home.ours(["manager", "kill", &id]).run().success();
                        "launched".to_owned()
                    }
                    false => {
                        assert!(end.to_string().contains("looks like Windows"), "{end}");
                        "said to be Windows".to_owned()
                    }
                };
                table.add(name, [cell]);
            }
        }
    }
    table.finish();
}

#[test]
fn the_readme_says_what_becomes_of_a_server_that_fails() {
    let mut table = Table::new(&["server", "`ssh2`", "`libssh`", "`openssh`", "is said with"]);
    let distant = programs().distant.display().to_string();
    let released = peer().display().to_string();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let taken = format!("--port {}", taken.local_addr().unwrap().port());
    // Until the kernel has closed its port, which takes a moment longer than the signal.
    let killed = |program: &str| {
        format!(
            "#!/bin/sh\nout=$({program} \"$@\" 2>&1 </dev/null)\n\
             pid=${{out#*detached, pid = }}; pid=${{pid%%]*}}; kill -9 \"$pid\"\n\
             while ls /proc/$pid/fd 2>/dev/null | grep -q .; do :; done\n\
             printf '%s\\n' \"$out\"\n"
        )
    };
    let (killed_ours, killed_released) = (killed(&distant), killed(&released));
    let half = "#!/bin/sh\nprintf distant://:00; exec sleep 1000\n";
    // A name, the program's text or path, its mode, arguments, and what the error says.
    let faults: [(&str, &str, u32, &str, &str); 9] = [
        ("missing", "/none/distant", 0, "", "there is no `/none/distant`"),
        ("not executable", "#!/bin/sh\n", 0o644, "", "is not executable"),
        ("of another architecture", "\u{7f}ELF\u{1}", 0o755, "", "no server started"),
        ("whose port is taken", &distant, 0, &taken, "in use"),
        ("whose port is taken, 0.20.0", &released, 0, &taken, "no server started"),
        ("that ends at once", "#!/bin/sh\necho oh no >&2; exit 3\n", 0o755, "", "oh no"),
        ("that says half a line and hangs", half, 0o755, "", "was not ready within 15 s"),
        ("killed after its line", &killed_ours, 0o755, "", "cannot be used"),
        ("killed after its line, 0.20.0", &killed_released, 0o755, "", "cannot be used"),
    ];
    for backend in BACKENDS {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let to = format!("ssh://root@{}", sshd.address);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        for (name, text, mode, args, said) in faults {
            let program = match text.starts_with('/') {
                true => text.to_owned(),
                false => {
                    let program = home.script(&name.replace([' ', ','], "-"), text);
                    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
                    fs::set_permissions(&program, mode).unwrap();
                    program.display().to_string()
                }
            };
            let mut words = vec!["launch", &to, "--distant", &program, "--options", &options];
            if !args.is_empty() {
                words.extend(["--distant-args", args]);
            }
            let (_, end) = answer(home.ours(words), &[]);
            assert!(end.to_string().contains(said), "{name}: {end}");
            table.add(name, [outcome(&end)]);
            manager.assert_no_offspring();
        }
        let remote = || {
            let mut seen = home.processes();
            seen.retain(|it| it.pid != manager.pid());
            seen
        };
        crate::support::eventually("an end of all servers", || remote().is_empty().then_some(()));
    }
    for (name, _, _, _, said) in faults {
        table.add(name, [said.to_owned()]);
    }
    table.finish();
}
