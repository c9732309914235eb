//! How a launch finds its way: the ssh configuration, proxies and hosts in between.

use std::fs;

use super::each_backend;
use crate::support::{Home, Manager, Sshd};

/// What a launch says where the connection does not go by itself.
const TUNNELLED: &str = "connected through ssh to the server on";

each_backend! {
    fn the_ssh_configuration_is_honoured(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        home.write(".ssh/known_hosts", sshd.known(&["ed25519"]).replace(&sshd.name(), "alias"));
        home.write(
            ".ssh/config",
            format!(
                "Host box\n  HostName {}\n  Port {}\n  User root\n  HostKeyAlias alias\n  \
                 IdentityFile {}\n",
                sshd.address.ip(), sshd.address.port(), sshd.identity()
            ),
        );
        let distant = crate::support::programs().distant.display().to_string();
        let options = format!("backend={backend}");
        let args = ["launch", "ssh://box", "--distant", &distant, "--options", &options];
        home.ours(args).run().id();
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
        // Without the program `ssh` our own reader gives the same, to those that can do without.
        let path = home.path("bin").display().to_string();
        home.ours(["manager", "stop"]).run().success();
        let without = home.ours(args).env("PATH", path).run();
        if backend == "openssh" {
            let error = without.code(1);
            assert!(error.stderr.contains("the program `ssh` cannot be run"), "{}", error.told());
            assert!(error.stderr.contains("leave `backend=openssh` out"), "{}", error.told());
        } else {
            without.id();
        }
        home.ours(["manager", "stop"]).run().success();
    }

    fn a_temporary_folder_that_is_gone_or_has_a_long_name_is_in_nobodys_way(backend: &str) {
        let home = Home::new();
        let sshd = Sshd::start(&home);
        let long = home.path("x".repeat(200));
        fs::create_dir(&long).unwrap();
        // The manager is started by the launch, and has the folder of whoever was first.
        for folder in [home.path("gone"), long] {
            sshd.launch(&home, backend, "").env("TMPDIR", folder).run().id();
            home.ours(["manager", "stop"]).run().success();
        }
    }

    fn a_proxy_command_is_the_connection(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let log = home.path("proxied");
        let program = home.script(
            "bin/through",
            &format!("#!/bin/bash\necho \"$@\" >> {}\nexec 3<>/dev/tcp/$1/$2\ncat <&3 & exec cat >&3\n",
                log.display()),
        );
        let command = format!("proxy_command=\"{} %h %p %r\"", program.display());
        let launched = sshd.launch(&home, backend, &command).run();
        // Whoever needs a proxy for ssh needs it for the server too.
        assert!(launched.stderr.contains(TUNNELLED), "{}", launched.told());
        launched.id();
        let expected = format!("{} {} root\n", sshd.address.ip(), sshd.address.port());
        assert_eq!(fs::read_to_string(log).unwrap(), expected);
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    }

    fn a_proxy_command_that_fails_is_quoted(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let command = "proxy_command=\"sh -c 'echo no way >&2; exit 7'\"";
        let error = sshd.launch(&home, backend, command).run().code(1);
        assert!(error.stderr.contains("no way"), "{}", error.told());
        // `ssh` waits for no proxy, so it cannot tell how one ended.
        let status = error.stderr.contains("exit status: 7");
        assert!(status || backend == "openssh", "{}", error.told());
    }

    fn hosts_in_between_are_passed(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let hosts = [Sshd::start(&home), Sshd::start(&home), Sshd::start(&home)];
        let known: String = hosts.iter().map(|host| host.known(&["ed25519"])).collect();
        home.write(".ssh/known_hosts", known);
        let block = |name: &str, host: &Sshd, jump: &str| {
            format!("Host {name}\n  HostName {}\n  Port {}\n  User root\n  IdentityFile {}\n{jump}",
                host.address.ip(), host.address.port(), host.identity())
        };
        let config = [
            block("one", &hosts[0], ""),
            block("two", &hosts[1], "  ProxyJump one\n"),
            block("end", &hosts[2], "  ProxyJump two\n"),
        ];
        home.write(".ssh/config", config.concat());
        let distant = crate::support::programs().distant.display().to_string();
        let options = format!("backend={backend}");
        let args = ["launch", "ssh://end", "--distant", &distant, "--options", &options];
        let launched = home.ours(args).run();
        assert!(launched.stderr.contains(TUNNELLED), "{}", launched.told());
        launched.id();
        let echo = home.ours(["spawn", "--", "sh", "-c", "head -c 1000000 /dev/zero"]);
        assert_eq!(echo.run().success().stdout.len(), 1_000_000);
        assert!(hosts.iter().all(|host| host.connections() == 1));
    }
}
