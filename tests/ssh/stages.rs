//! The end of everybody who takes part in a launch, at every stage of it.
//!
//! Each stage is one where a launch stands still until somebody does something, so that it is known
//! to be there when it is ended; [`super::kill`] has the moments in between.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use super::each_backend;
use super::end::End;
use super::hostile::{stub, until_end};
use crate::support::{calm, eventually, report, Home, Manager, Running, Sshd, HELLO};

/// Where a launch stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The ssh configuration asks a program.
    Resolve,
    /// A proxy command says nothing, and minds no end of its input.
    Connect,
    /// A server does not speak.
    Handshake,
    /// Somebody is asked whether the host is right.
    HostKey,
    /// Somebody is asked for a password.
    Login,
    /// The server does not say where it listens.
    Start,
    /// The server does not speak where it listens, and it is a real one underneath.
    Offer,
    /// The launch is over, and the connection goes through ssh.
    Tunnel,
}

const STAGES: [Stage; 8] = [
    Stage::Resolve,
    Stage::Connect,
    Stage::Handshake,
    Stage::HostKey,
    Stage::Login,
    Stage::Start,
    Stage::Offer,
    Stage::Tunnel,
];

/// A launch that stands at a stage.
struct Standing {
    launch: Running,
    sshd: Sshd,
    /// Connections to a server that is none.
    open: Arc<AtomicUsize>,
}

impl Standing {
    fn at(stage: Stage, home: &Home, backend: &str) -> Self {
        let sshd = Sshd::with(home, "UsePAM no\nKbdInteractiveAuthentication no");
        sshd.make_known(home);
        let open = Arc::new(AtomicUsize::new(0));
        let sleeps = || home.processes().iter().any(|it| it.command == "sleep 1000");
        let seen = || sleeps().then_some(());
        let key = format!("identity_files=\"{}\"", sshd.identity());
        let to = |address| format!("ssh://root@{address}");
        let distant = crate::support::programs().distant.display().to_string();
        let start = |to: &str, server: &str, options: &str| {
            let options = format!("backend={backend},timeout=60000,{options}");
            let args = ["launch", to, "--distant", server, "--options", &options, "--format=json"];
            let mut launch = home.ours(args).start();
            launch.json();
            launch.say(HELLO);
            launch
        };
        let until = |launch: &Running, kind: &str| while launch.json()["type"] != kind {};
        let launch = match stage {
            Stage::Resolve => {
                home.write(".ssh/config", "Match exec \"sleep 1000\"\n  Port 1\n");
                let launch = start(&to(sshd.address), &distant, &key);
                eventually("a program of the configuration", seen);
                launch
            }
            Stage::Connect => {
                let proxy = "proxy_command=\"sh -c 'sleep 1000 & exec sleep 1001'\"";
                let launch = start(&to(sshd.address), &distant, proxy);
                eventually("a proxy", seen);
                launch
            }
            Stage::Handshake => {
                let count = open.clone();
                let address = stub(move |stream| {
                    count.fetch_add(1, Ordering::SeqCst);
                    until_end(stream);
                    count.fetch_sub(1, Ordering::SeqCst);
                });
                let launch = start(&to(address), &distant, &key);
                let is_open = || (open.load(Ordering::SeqCst) > 0).then_some(());
                eventually("a connection", is_open);
                launch
            }
            Stage::HostKey => {
                home.write(".ssh/known_hosts", "");
                let launch = start(&to(sshd.address), &distant, &key);
                until(&launch, "auth_verification");
                launch
            }
            Stage::Login => {
                let launch = start(&to(sshd.address), &distant, "identities_only=true");
                until(&launch, "auth_challenge");
                launch
            }
            Stage::Start => {
                let hangs = "#!/bin/sh\nprintf distant://:00; exec sleep 1000\n";
                let hangs = home.script("hangs", hangs).display().to_string();
                let launch = start(&to(sshd.address), &hangs, &key);
                eventually("a server that starts", seen);
                launch
            }
            Stage::Offer => {
                let mute = TcpListener::bind("127.0.0.1:0").unwrap();
                let line = format!("distant://:{}@{}", "ab".repeat(32), mute.local_addr().unwrap());
                let script = format!("#!/bin/sh\necho; echo {line}\nexec sleep 1000\n");
                let script = home.script("mute", &script).display().to_string();
                let launch = start(&to(sshd.address), &script, &key);
                // Held open for as long as this test runs.
                std::mem::forget(mute.accept().unwrap());
                std::mem::forget(mute);
                launch
            }
            Stage::Tunnel => {
                let launch = start(&to(sshd.address), &distant, &format!("{key},tunnel=always"));
                until(&launch, "launched");
                launch
            }
        };
        Self { launch, sshd, open }
    }
}

each_backend! {
    fn whoever_ends_at_whatever_stage_ends_the_launch(backend: &str) {
        let _calm = calm();
        for end in End::ALL {
            let mut longest = Duration::ZERO;
            for stage in STAGES {
                if stage == Stage::Tunnel && matches!(end, End::Client | End::Interrupt) {
                    // It has ended by then; its connection is meant to stay.
                    continue;
                }
                let home = Home::new();
                let manager = Manager::start(&home);
                let Standing { launch, sshd, open } = Standing::at(stage, &home, backend);
                let own = [manager.pid(), launch.pid()];
                let rest = || {
                    let mut there = home.processes();
                    there.retain(|it| !own.contains(&it.pid));
                    let open = sshd.open() + open.load(Ordering::SeqCst);
                    let is_clean = there.is_empty() && open == 0;
                    let what = format!("{end:?} at {stage:?}");
                    (!is_clean).then(|| format!("{what}, {open} connections, {there:#?}"))
                };
                let (took, finished) = end.leaves_nothing(launch, manager, rest);
                longest = longest.max(took);
                if end == End::Worker && stage != Stage::Tunnel {
                    assert!(finished.stderr.starts_with("error: "), "{}", finished.told());
                }
            }
            report(format!("{end:?} at each stage, {backend}: all clean within {longest:.2?}"));
        }
    }
}
