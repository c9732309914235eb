//! What is started at the other end, and what is left of it when something fails.

use std::time::{Duration, Instant};

use super::each_backend;
use super::remote::Account;
use crate::support::{peer, report, within, Home, Manager, Signal, Sshd};

each_backend! {
    fn a_launch_by_key_gives_a_connection_and_leaves_no_ssh_behind(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "MaxSessions 1\nPermitTTY no");
        let id = sshd.launch(&home, backend, "").run().id();
        let echo = ["spawn", "--connection", &id.to_string(), "--", "echo", "hi"];
        assert_eq!(home.ours(echo).run().success().stdout, "hi\n");
        assert_eq!(sshd.connections(), 1);
        let workers = || manager.offspring().is_empty().then_some(());
        assert!(within(Duration::from_secs(10), workers).is_some(), "{:?}", manager.offspring());
        home.ours(["manager", "kill", &id.to_string()]).run().success();
    }

    fn a_released_server_works_too(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let released = peer().display().to_string();
        sshd.make_known(&home);
        let to = format!("ssh://root@{}", sshd.address);
        let key = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        home.ours(["launch", &to, "--distant", &released, "--options", &key]).run().id();
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    }

    fn a_missing_program_is_said_at_once(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let to = format!("ssh://root@{}", sshd.address);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        let launch = |program: &str| {
            let since = Instant::now();
            let args = ["launch", &to, "--distant", program, "--options", &options];
            let error = home.ours(args).run().code(1);
            (error, since.elapsed())
        };
        launch("/none/distant");
        let (error, took) = launch("/none/distant");
        assert!(error.stderr.contains("there is no `/none/distant`"), "{}", error.told());
        report(format!("missing program, {backend}: said after {took:.2?}"));
        let (error, _) = launch("no-such-distant");
        assert!(error.stderr.contains("not in /"), "{}", error.told());
    }

    fn a_server_that_fails_says_why(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let to = format!("ssh://root@{}", sshd.address);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        let check = |name: &str, text: &str, mode: u32, expected: &str| {
            let program = home.script(name, text);
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&program, mode).unwrap();
            let program = program.display().to_string();
            let args = ["launch", &to, "--distant", &program, "--options", &options];
            let error = home.ours(args).run().code(1);
            assert!(error.stderr.contains(expected), "{name}: {}", error.told());
            report(format!("server fault, {backend}: {name}: said"));
        };
        check("not executable", "#!/bin/sh\n", 0o644, "is not executable");
        check("wrong architecture", "\u{7f}ELF\u{1}", 0o755, "no server started");
        check("exits at once", "#!/bin/sh\necho oh no >&2; exit 3\n", 0o755, "oh no");
        let half = "#!/bin/sh\nprintf distant://:00; exec sleep 1000\n";
        check("half a line", half, 0o755, "was not ready within 15 s");
    }

    fn arguments_keep_their_quoting(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let log = home.path("tmp/a 'quoted' $HOME; log.txt");
        let args = format!("--log-level info --log-file \"{}\"", log.display().to_string().replace('$', "\\$"));
        sshd.launch(&home, backend, "").arg("--distant-args").arg(args).run().id();
        assert!(log.exists());
    }

    fn every_login_shell_and_its_noise_is_survived(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let shells = [
            ("sh", "/bin/sh"),
            ("dash", "/bin/dash"),
            ("bash", "/bin/bash"),
            ("zsh", "/usr/bin/zsh"),
            ("fish", "/usr/bin/fish"),
            ("tcsh", "/usr/bin/tcsh"),
            ("mksh", "/usr/bin/mksh"),
        ];
        let junk = format!("echo 'distant://:{}@127.0.0.1:9'\n", "ab".repeat(32));
        let files = [
            ".bashrc", ".zshenv", ".tcshrc", ".mkshrc", ".profile", ".config/fish/config.fish",
        ];
        for (name, shell) in shells {
            let account = Account::new(shell, "x");
            let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
            for noise in ["quiet", "noisy"] {
                if noise == "noisy" {
                    for file in files {
                        account.write(file, &junk);
                    }
                    account.write(".bash_profile", "exec fish\n");
                }
                let launch = sshd.launch_as(&home, &account.name, &options);
                let id = launch.run().id().to_string();
                let echo = ["spawn", "--connection", &id, "--", "echo", "hi"];
                assert_eq!(home.ours(echo).run().success().stdout, "hi\n", "{name}, {noise}");
                home.ours(["manager", "kill", &id]).run().success();
                report(format!("login shell {name}, {noise}, {backend}: launched"));
            }
        }
    }

    fn a_tunnel_carries_the_connection_where_it_is_wanted(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let id = sshd.launch(&home, backend, "tunnel=always").run().id().to_string();
        let many = ["spawn", "--connection", &id, "--", "sh", "-c", "head -c 3000000 /dev/zero"];
        assert_eq!(home.ours(many).run().success().stdout.len(), 3_000_000);
        home.ours(["manager", "kill", &id]).run().success();
        manager.assert_no_offspring();
    }

    fn an_interrupted_launch_leaves_nothing(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let hangs = home.script("hangs", "#!/bin/sh\nprintf distant://:00; exec sleep 1000\n");
        sshd.make_known(&home);
        let to = format!("ssh://root@{}", sshd.address);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        let hangs = hangs.display().to_string();
        let servers = || {
            let mut seen = home.processes();
            seen.retain(|seen| seen.command.contains("sleep 1000"));
            seen
        };
        for signal in [Signal::INT, Signal::KILL] {
            let args = ["launch", &to, "--distant", &hangs, "--options", &options];
            let launch = home.ours(args).start();
            let started = || (!servers().is_empty()).then_some(());
            within(Duration::from_secs(30), started).expect("a server that is starting");
            launch.signal(signal);
            let since = Instant::now();
            let gone = || servers().is_empty().then_some(());
            within(Duration::from_secs(10), gone).expect("no server");
            report(format!("{signal:?} of a launch, {backend}: clean after {:.2?}", since.elapsed()));
            manager.assert_no_offspring();
        }
    }
}
