//! What each word of the ssh configuration does to a launch: by `ssh -G`, and where that program is
//! missing by our own reader, which has to say the same.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::each_backend;
use super::hostile::silent;
use super::login::Agent;
use crate::support::{keygen, programs, Finished, Home, Invocation, Manager, Sshd};

/// Does something with a manager that has the program `ssh`, and again with one that has not, for
/// those who can do without.
fn with_and_without_ssh(home: &Home, backend: &str, check: impl Fn()) {
    for has_ssh in [true, false] {
        let listen = home.ours(["manager", "listen", "--user"]);
        let listen = match has_ssh {
            true => listen,
            false if backend == "openssh" => return,
            false => listen.env("PATH", home.path("bin")),
        };
        let _manager = Manager::listen(home, listen, true);
        check();
    }
}

/// A launch on `box`, which is that sshd, with further lines for it.
fn launch(home: &Home, sshd: &Sshd, backend: &str, lines: &str, options: &str) -> Invocation {
    let (ip, port) = (sshd.address.ip(), sshd.address.port());
    // Of two that say the same thing the first one counts.
    let text = format!("Host box\n{lines}\n  HostName {ip}\n  Port {port}\n  User root\n");
    home.write(".ssh/config", text);
    let distant = programs().distant.display().to_string();
    let options = format!("backend={backend},{options}");
    home.ours(["launch", "ssh://box", "--distant", &distant, "--options", &options])
}

fn refused(finished: Finished, reason: &str) {
    let finished = finished.code(1);
    assert!(finished.stderr.contains(reason), "{}", finished.told());
}

const NOT_IN: &str = "does not let us in";

each_backend! {
    fn its_keys_log_in_and_no_others_where_it_says_so(backend: &str) {
        let home = Home::new();
        let ca = home.path("ca");
        keygen(&ca, &["-N", "", "-t", "ed25519"]);
        let lines = "PasswordAuthentication no\nKbdInteractiveAuthentication no";
        let sshd = Sshd::with(&home, &format!("TrustedUserCAKeys {}.pub\n{lines}", ca.display()));
        sshd.make_known(&home);
        // Only its certificate lets this one in, which lies elsewhere.
        let key = home.path("keys/certified");
        keygen(&key, &["-N", "", "-t", "ed25519"]);
        let mut sign = Command::new("ssh-keygen");
        sign.args(["-q", "-I", "me", "-n", "root", "-s"]).arg(&ca);
        assert!(sign.arg(key.with_extension("pub")).status().unwrap().success());
        fs::create_dir(home.path("certificates")).unwrap();
        fs::rename(home.path("keys/certified-cert.pub"), home.path("certificates/root")).unwrap();
        let named = home.path(format!("keys/{}-root", sshd.address.port()));
        fs::copy(sshd.identity(), named).unwrap();
        let agent = Agent::start(&home);
        agent.add(sshd.identity().as_ref());
        let (socket, key) = (agent.socket.display(), key.display());
        let folder = home.path("keys").display().to_string();

        with_and_without_ssh(&home, backend, || {
            let launch = |lines: &str, options: &str| launch(&home, &sshd, backend, lines, options);
            launch(&format!("  IdentityFile {folder}/%p-%r"), "").run().id();
            let certified = format!("  IdentityFile {key}");
            refused(launch(&certified, "").run(), NOT_IN);
            let certificate = format!("CertificateFile {}/%r", home.path("certificates").display());
            launch(&format!("{certified}\n  {certificate}"), "").run().id();
            // An option wins.
            let right = format!("identity_files=\"{}\"", sshd.identity());
            launch(&certified, &right).run().id();

            let by_agent = format!("  IdentityAgent {socket}");
            launch(&by_agent, "").run().id();
            let none = launch("  IdentityAgent none", "").env("SSH_AUTH_SOCK", &agent.socket);
            refused(none.run(), NOT_IN);
            let only = format!("{by_agent}\n{certified}\n  IdentitiesOnly yes");
            refused(launch(&only, "").run(), NOT_IN);
            launch(&only, "identities_only=false").run().id();
        });
    }

    fn its_order_of_methods_is_kept(backend: &str) {
        let home = Home::new();
        let sshd = Sshd::with(&home, "KbdInteractiveAuthentication no");
        sshd.make_known(&home);
        let key = format!("  IdentityFile {}\n", sshd.identity());
        with_and_without_ssh(&home, backend, || {
            let lines = format!("{key}  PreferredAuthentications password,publickey");
            let launch = launch(&home, &sshd, backend, &lines, "").in_json();
            let question = launch.json();
            assert_eq!(question["type"], "auth_challenge", "{question}");
            launch.finish().code(1);
        });
    }

    fn its_word_on_hosts_counts(backend: &str) {
        let home = Home::new();
        let (sshd, other) = (Sshd::start(&home), Sshd::start(&home));
        let key = format!("identity_files=\"{}\"", sshd.identity());
        home.write("known/127.0.0.1", sshd.known(&["ed25519"]));
        let elsewhere = format!("  UserKnownHostsFile {}/%h", home.path("known").display());
        with_and_without_ssh(&home, backend, || {
            let launch = |lines: &str, options: &str| {
                launch(&home, &sshd, backend, lines, &format!("{key},{options}"))
            };
            let known = home.write(".ssh/known_hosts", "");
            launch(&elsewhere, "").run().id();
            let option = format!("user_known_hosts_files=\"{}\"", known.display());
            refused(launch(&elsewhere, &option).run(), "is not yet trusted");

            // Nobody is asked with either.
            let run = |lines: &str| launch(lines, "").in_json();
            let strict = run("  StrictHostKeyChecking yes");
            let end = strict.answer();
            assert_eq!((&end["type"], &end["kind"]), (&"error".into(), &"host_key".into()), "{end}");
            strict.finish().code(1);
            assert_eq!(fs::read_to_string(&known).unwrap(), "");
            let new = "  StrictHostKeyChecking accept-new\n  HashKnownHosts";
            for (hashes, beginning) in [("yes", "|1|"), ("no", &*sshd.name())] {
                fs::write(&known, "").unwrap();
                let accepting = run(&format!("{new} {hashes}"));
                let end = accepting.answer();
                assert_eq!(end["type"], "launched", "{end}");
                accepting.finish().success();
                let line = fs::read_to_string(&known).unwrap();
                assert!(line.starts_with(beginning), "{line}");
                launch("", "").run().id();
            }
            assert_eq!(fs::read_to_string(&known).unwrap(), sshd.known(&["ed25519"]));

            // But a changed key is one.
            let changed = other.known(&["ed25519"]).replace(&other.name(), &sshd.name());
            fs::write(&known, &changed).unwrap();
            refused(launch(&format!("{new} no"), "").run(), "line 1, has another one");
            assert_eq!(fs::read_to_string(&known).unwrap(), changed);
        });
    }

    fn its_way_is_taken(backend: &str) {
        let home = Home::new();
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let key = format!("identity_files=\"{}\"", sshd.identity());
        let mute = silent(Ipv4Addr::LOCALHOST.into());
        with_and_without_ssh(&home, backend, || {
            let launch = |lines: &str, options: &str| {
                launch(&home, &sshd, backend, lines, &format!("{key},{options}"))
            };
            launch("  AddressFamily inet", "").run().id();
            let before = sshd.connections();
            launch("  AddressFamily inet6", "").run().code(1);
            assert_eq!(sshd.connections(), before);

            let from = "Connection from 127.0.0.5 ";
            let before = sshd.log().matches(from).count();
            launch("  BindAddress 127.0.0.5", "").run().id();
            assert_eq!(sshd.log().matches(from).count(), before + 1);

            let since = Instant::now();
            let port = mute.0.local_addr().unwrap().port();
            let late = launch(&format!("  ConnectTimeout 1\n  Port {port}"), "").run();
            let took = since.elapsed();
            refused(late, "does not answer");
            // Without that word it is 15 s.
            assert!(took < Duration::from_secs(10), "{took:?}");

            let proxy = "  ProxyCommand /bin/sh -c 'echo by proxy >&2; exit 7'";
            refused(launch(proxy, "").run(), "by proxy");
            launch(proxy, "proxy_command=none").run().id();
        });
    }

    fn each_address_of_a_host_is_tried(backend: &str) {
        let home = Home::new();
        let sshd = Sshd::start(&home);
        // The first one says nothing, and that is the one that a lookup of our own machine begins
        // with; behind another is sshd, and nobody is at the last.
        let mute = silent(Ipv4Addr::LOCALHOST.into());
        let port = mute.0.local_addr().unwrap().port();
        let second = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).unwrap();
        let to = sshd.address;
        thread::spawn(move || {
            for near in second.incoming().map_while(Result::ok) {
                forward(near, to);
            }
        });
        let addresses = [1, 2, 3].map(|last| format!("127.0.0.{last} several\n"));
        let hosts = home.write("hosts", addresses.concat());
        let name = format!("[several]:{port}");
        home.write(".ssh/known_hosts", sshd.known(&["ed25519"]).replace(&sshd.name(), &name));
        home.write(".ssh/config", "ConnectTimeout 5\n");
        let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
        let distant = programs().distant.display().to_string();
        let listen = ["--mount", "sh", "-c", &script, "sh", &distant, "manager", "listen", "--user"];
        let _manager = Manager::listen(&home, home.program("unshare", listen), true);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        let to = format!("ssh://root@several:{port}");
        home.ours(["launch", &to, "--distant", &distant, "--options", &options]).run().id();
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    }
}

/// Brings what comes to `to`, and back what that says.
fn forward(near: TcpStream, to: SocketAddr) {
    let far = TcpStream::connect(to).unwrap();
    let ends = [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)];
    for (mut from, mut to) in ends {
        thread::spawn(move || {
            // Whoever ends first ends both.
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    }
}

#[test]
fn without_ssh_a_match_block_is_left_out_and_that_is_said() {
    let home = Home::new();
    let sshd = Sshd::start(&home);
    sshd.make_known(&home);
    let listen = home.ours(["manager", "listen", "--user"]).env("PATH", home.path("bin"));
    let _manager = Manager::listen(&home, listen, true);
    for backend in ["ssh2", "libssh"] {
        let key = format!("  IdentityFile {}\nMatch all\n  User nobody\nHost box", sshd.identity());
        let launched = launch(&home, &sshd, backend, &key, "").run();
        let said = "the `Match` blocks of the ssh configuration are left out";
        assert_eq!(launched.stderr.matches(said).count(), 1, "{}", launched.told());
        launched.id();
    }
}
