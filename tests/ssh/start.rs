//! What is started at the other end, and what is left of it when something fails.

use std::time::{Duration, Instant};

use super::each_backend;
use crate::support::{calm, peer, report, within, Home, Manager, Signal, Sshd};

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
        let _calm = calm();
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
        // As fast as that machine is, while this one may be busy now and then.
        let quick = (0..10).map(|_| launch("/none/distant")).find_map(|(error, took)| {
            assert!(error.stderr.contains("there is no `/none/distant`"), "{}", error.told());
            (took < Duration::from_secs(1)).then_some(took)
        });
        let took = quick.expect("a word within a second");
        report(format!("missing program, {backend}: said after {took:.2?}"));
        let (error, _) = launch("no-such-distant");
        assert!(error.stderr.contains("not in /"), "{}", error.told());
    }

    fn arguments_keep_their_quoting(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let log = home.path("tmp/a 'quoted' $HOME; naïve 日本 log.txt");
        let args = format!("--log-level info --log-file \"{}\"", log.display().to_string().replace('$', "\\$"));
        sshd.launch(&home, backend, "").arg("--distant-args").arg(args).run().id();
        assert!(log.exists());
    }

    fn without_a_word_on_where_ssh_came_to_the_server_listens_on_all_and_that_is_said(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let command = "env -u SSH_CONNECTION sh -c \"$SSH_ORIGINAL_COMMAND\"";
        let sshd = Sshd::with(&home, &format!("ForceCommand {command}"));
        let launched = sshd.launch(&home, backend, "").run();
        let said = "does not say which address ssh came to, so the server listens on all";
        assert_eq!(launched.stderr.matches(said).count(), 1, "{}", launched.told());
        launched.id();
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
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
