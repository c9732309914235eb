//! What each option of a launch does, in every spelling, and where the server then listens.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::each_backend;
use super::hostile::silent;
use super::login::Agent;
use crate::support::{eventually, programs, report, Home, Manager, Sshd};

/// The addresses that the servers of a home listen on, as the kernel has them.
fn listening(home: &Home) -> Vec<IpAddr> {
    let servers = home.processes().into_iter().filter(|it| it.command.contains("server listen"));
    // One that is just ending has nothing open any more.
    let folders =
        servers.filter_map(|server| fs::read_dir(format!("/proc/{}/fd", server.pid)).ok());
    let links = folders.flatten().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let open: Vec<_> = links.map(|link| link.display().to_string()).collect();
    // The tables are read in pieces, in which one that moves meanwhile may be found twice or never.
    let mut found = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap().lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_listening = fields[3] == "0A";
            let socket = format!("socket:[{}]", fields[9]);
            if is_listening && open.contains(&socket) {
                found.insert(socket, address(fields[1].split(':').next().unwrap()));
            }
        }
    }
    found.into_values().collect()
}

/// Reads an address as `/proc/net` has it: words of four bytes, each as this machine keeps it.
fn address(text: &str) -> IpAddr {
    let words = text.as_bytes().chunks(8).map(|word| std::str::from_utf8(word).unwrap());
    let bytes: Vec<_> =
        words.flat_map(|word| u32::from_str_radix(word, 16).unwrap().to_ne_bytes()).collect();
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => Ipv4Addr::from(bytes).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()).into(),
    }
}

each_backend! {
    fn every_option_works_bare_and_with_its_prefix(backend: &str) {
        let home = Home::new();
        let log = home.path("manager.log");
        let log_file = log.display().to_string();
        let _manager = Manager::start_with(&home, &["--log-level", "info", "--log-file", &log_file]);
        let sshd = Sshd::with(
            &home,
            "LogLevel DEBUG1\nPasswordAuthentication no\nKbdInteractiveAuthentication no",
        );
        let known = home.write("known", sshd.known(&["ed25519"])).display().to_string();
        let agent = Agent::start(&home);
        agent.add(sshd.identity().as_ref());
        let key = sshd.identity();
        let marks = home.path("marks");
        let program = home.script(
            "other",
            &format!(
                "#!/bin/sh\necho other >> {}\nexec {} \"$@\"\n",
                marks.display(), programs().distant.display()
            ),
        );
        let program = program.display().to_string();
        let server_log = home.path("tmp/server.log");
        let server_args = format!("--log-level info --log-file {}", server_log.display());
        let count = |file: &std::path::Path, text: &str| {
            fs::read_to_string(file).unwrap_or_default().matches(text).count()
        };
        let trace = "SSH-2.0-OpenSSH";
        let client = match backend {
            "ssh2" => "software version libssh2_",
            "libssh" => "software version libssh_",
            _ => "software version OpenSSH_",
        };

        for prefix in ["", "ssh."] {
            let said = |name: &str, value: &str| format!("{prefix}{name}=\"{value}\"");
            // Each of these is enough for the launch together with the others, and without it the
            // launch ends, or does something else.
            let chosen = said("backend", backend);
            let keys = said("identity_files", &key);
            let hosts = said("user_known_hosts_files", &known);
            let bin = said("distant.bin", &program);
            let run = |options: &[&str], with_agent: bool| {
                let to = format!("ssh://root@{}", sshd.address);
                let launch = home.ours(["launch", &to, "--options", &options.join(",")]);
                match with_agent {
                    true => launch.env("SSH_AUTH_SOCK", &agent.socket).run(),
                    false => launch.run(),
                }
            };
            let all = [&*chosen, &*keys, &*hosts, &*bin];
            let and = |more: &str| run(&[&all[..], &[more]].concat(), false);

            let before = (count(&marks, "other"), count(&sshd.path("log"), client));
            run(&all, false).id();
            assert_eq!(count(&marks, "other"), before.0 + 1, "{bin}");
            assert_eq!(count(&sshd.path("log"), client), before.1 + 1, "{chosen}");
            let error = run(&[&chosen, &keys, &bin], false).code(1);
            assert!(error.stderr.contains("is not yet trusted"), "{hosts}: {}", error.told());
            let error = run(&[&chosen, &hosts, &bin], false).code(1);
            assert!(error.stderr.contains("does not let us in"), "{keys}: {}", error.told());

            let only = |value: &str| {
                run(&[&chosen, &hosts, &bin, &said("identities_only", value)], true)
            };
            only("false").id();
            let error = only("true").code(1);
            assert!(error.stderr.contains("does not let us in"), "{}", error.told());

            let error = and(&said("proxy_command", "sh -c 'echo by proxy >&2; exit 7'")).code(1);
            assert!(error.stderr.contains("by proxy"), "{}", error.told());

            let quiet = count(&log, trace);
            and(&said("verbose", "true")).id();
            assert!(count(&log, trace) > quiet, "{}", fs::read_to_string(&log).unwrap());

            let id = and(&said("distant.bind_server", "127.0.0.9")).id().to_string();
            let nine = IpAddr::from([127, 0, 0, 9]);
            eventually("an address with a server", || {
                listening(&home).contains(&nine).then_some(())
            });
            home.ours(["manager", "kill", &id]).run().success();
            eventually("an address without a server", || {
                (!listening(&home).contains(&nine)).then_some(())
            });

            and(&said("distant.args", &server_args)).id();
            assert!(server_log.exists());
            fs::remove_file(&server_log).unwrap();
            report(format!("options `{prefix}…`, {backend}: all of them work"));
        }
    }

    fn timeout_is_how_long_the_server_may_be_mute_and_has_no_prefix(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let program = home.script(
            "mute",
            &format!(
                "#!/bin/sh\necho 'distant://:{}@{}'\nexec sleep 1000\n",
                "ab".repeat(32), mute.local_addr().unwrap()
            ),
        );
        let program = program.display().to_string();
        let launch = |option: &str| {
            let options = format!(
                "backend={backend},identity_files=\"{}\",distant.bin=\"{program}\",{option}",
                sshd.identity()
            );
            let to = format!("ssh://root@{}", sshd.address);
            let since = Instant::now();
            (home.ours(["launch", &to, "--options", &options]).run().code(1), since.elapsed())
        };
        let (error, took) = launch("timeout=400");
        assert!(took < Duration::from_secs(12), "{took:?}: {}", error.told());
        assert!(error.stderr.contains("400 ms"), "{}", error.told());
        let (error, _) = launch("ssh.timeout=400");
        assert!(error.stderr.contains("unknown option `ssh.timeout`"), "{}", error.told());
    }

    fn the_server_listens_where_it_was_told_to(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let places = [
            ("any", "0.0.0.0"),
            ("ssh", "127.0.0.1"),
            ("127.0.0.9", "127.0.0.9"),
            ("::1", "::1"),
        ];
        for (told, expected) in places {
            let launch = sshd.launch(&home, backend, "tunnel=never");
            let id = launch.arg("--distant-bind-server").arg(told).run().id().to_string();
            let found = eventually("an address with a server", || {
                Some(listening(&home)).filter(|it| !it.is_empty())
            });
            assert_eq!(found, [expected.parse::<IpAddr>().unwrap()], "{told}");
            assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
            home.ours(["manager", "kill", &id]).run().success();
            eventually("an end of the server", || {
                listening(&home).is_empty().then_some(())
            });
            report(format!("bind_server {told}, {backend}: listens on {expected}"));
        }
    }

    fn a_closed_port_is_reached_through_ssh_and_that_is_said_once(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::apart(&home);
        let launched = sshd.launch(&home, backend, "").run();
        let said = launched.stderr.matches("connected through ssh to the server on").count();
        assert_eq!(said, 1, "{}", launched.told());
        let id = launched.id().to_string();
        let many = ["spawn", "--connection", &id, "--", "sh", "-c", "head -c 1000000 /dev/zero"];
        assert_eq!(home.ours(many).run().success().stdout.len(), 1_000_000);
        home.ours(["manager", "kill", &id]).run().success();
        manager.assert_no_offspring();
        let error = sshd.launch(&home, backend, "tunnel=never").run().code(1);
        assert!(error.stderr.contains("where the server is, cannot be used"), "{}", error.told());
        assert!(error.stderr.contains("ssh can carry it"), "{}", error.told());
    }

    fn a_silent_port_is_reached_through_ssh_and_at_once_where_that_has_worked(backend: &str) {
        let home = Home::new();
        let sshd = Sshd::apart(&home);
        // The server gets this port in its own network; in ours it says nothing.
        let launch = |mute: &(TcpListener, TcpStream), tunnel: &str| {
            let args = format!("--port {}", mute.0.local_addr().unwrap().port());
            let options = format!("distant.args=\"{args}\",tunnel={tunnel},timeout=15000");
            sshd.launch(&home, backend, &options).run()
        };
        let ports = [(); 4].map(|()| silent(Ipv4Addr::LOCALHOST.into()));
        let manager = Manager::start(&home);
        let launched = launch(&ports[0], "auto");
        let said = launched.stderr.matches("connected through ssh to the server on").count();
        assert_eq!(said, 1, "{}", launched.told());
        launched.id();
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
        manager.stop();
        // Silence lasts longer than a launch may take now, so that only what worked before helps.
        home.write("config/distant/config.toml", "[manager.limits]\nslow = 60\n");
        let manager = Manager::start(&home);
        launch(&ports[1], "always").id();
        launch(&ports[2], "auto").id();
        manager.stop();
        let _manager = Manager::start(&home);
        let error = launch(&ports[3], "auto").code(1);
        assert!(error.stderr.contains("no answer within 15000 ms"), "{}", error.told());
    }
}
