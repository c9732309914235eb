//! How long a launch takes over a long line, in round trips; and many launches at one sshd.
//!
//! Two network namespaces are joined by a link that delays every packet, so that the TCP handshake,
//! Nagle and delayed acknowledgements cost what they cost on a real line.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{programs, report, repository, Home, Invocation, Manager, Running, Sshd};

/// The server's side.
const FAR: &str = "10.99.0.1:4022";

/// The link, with a listening sshd at its far end. Dropping it removes the namespaces.
struct Line {
    name: String,
    delay: Option<Running>,
    sshd: Child,
}

impl Line {
    fn new(home: &Home, sshd: &Sshd, name: &str, milliseconds: u32, lines: &str) -> Self {
        let name = format!("{name}{}", std::process::id() % 100_000);
        let script = repository().join("tests/support/netdelay.py");
        let delay = home.program("python3", [script.as_os_str()]);
        let delay = delay.arg(milliseconds.to_string()).arg(&name).start();
        assert_eq!(delay.line(), "ready", "{}", delay.told());
        let config = sshd.path(&format!("config-{milliseconds}"));
        let own = fs::read_to_string(sshd.path("config")).unwrap();
        fs::write(&config, format!("{lines}\nListenAddress {FAR}\n{own}")).unwrap();
        let mut listening = Command::new("ip");
        listening.args(["netns", "exec", &format!("{name}-far"), "/usr/sbin/sshd", "-De", "-f"]);
        let sshd = listening.arg(config).stderr(Stdio::null()).spawn().unwrap();
        let line = Self { name, delay: Some(delay), sshd };
        line.until_listening(home);
        line
    }

    fn near(&self, home: &Home, args: &[&str]) -> Invocation {
        let near = format!("{}-near", self.name);
        home.program("ip", [&["netns", "exec", &near][..], args].concat())
    }

    fn until_listening(&self, home: &Home) {
        let (host, port) = FAR.split_once(':').unwrap();
        let probe = format!("exec 3<>/dev/tcp/{host}/{port}");
        crate::support::eventually("an sshd that listens", || {
            let tried = self.near(home, &["bash", "-c", &probe]).run();
            tried.status.success().then_some(())
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
        if let Some(mut delay) = self.delay.take() {
            delay.close_stdin();
            delay.finish();
        }
    }
}

fn launch_args(sshd: &Sshd, backend: &str) -> [String; 6] {
    let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
    let distant = programs().distant.display().to_string();
    let to = format!("ssh://root@{FAR}");
    ["launch".into(), to, "--distant".into(), distant, "--options".into(), options]
}

fn known(home: &Home, sshd: &Sshd) {
    let lines = sshd.known(&["ed25519"]).replace(&sshd.name(), "[10.99.0.1]:4022");
    home.write(".ssh/known_hosts", lines);
}

/// The steps that wait for the other end of the line.
const STEPS: [&str; 5] = ["connect", "authenticate", "start", "tcp", "proof"];

/// The steps of a launch that `--timings` tells of, and how many milliseconds each took.
fn timings(told: &str) -> impl Iterator<Item = (String, f64)> + '_ {
    told.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let took = words.next()?.parse().ok()?;
        Some((words.next()?.to_owned(), took))
    })
}

#[test]
fn a_launch_takes_few_round_trips() {
    let home = Home::new();
    let sshd = Sshd::start(&home);
    known(&home, &sshd);
    let distant = programs().distant.display().to_string();
    let mut times = Vec::new();
    let mut steps = Vec::new();
    for milliseconds in [25, 100] {
        let line = Line::new(&home, &sshd, "rt", milliseconds, "");
        let listen = line.near(&home, &[&distant, "manager", "listen", "--user"]);
        let manager = Manager::listen(&home, listen, true);
        let fastest = |args: &[&str], see: &mut dyn FnMut(&str)| -> Duration {
            let mut run = || {
                let since = Instant::now();
                let finished = line.near(&home, args).run();
                let took = since.elapsed();
                see(&finished.stderr);
                finished.success();
                took
            };
            (0..7).map(|_| run()).min().unwrap()
        };
        let mut shortest = BTreeMap::new();
        let mut of = |backend: &'static str| {
            let args = launch_args(&sshd, backend);
            let args = args.iter().map(String::as_str).chain(["--timings"]);
            let args: Vec<_> = [distant.as_str()].into_iter().chain(args).collect();
            fastest(&args, &mut |told| {
                for (step, took) in timings(told) {
                    let shortest = shortest.entry((backend, step)).or_insert(took);
                    *shortest = took.min(*shortest);
                }
            })
        };
        let files = format!("UserKnownHostsFile={}", home.path(".ssh/known_hosts").display());
        let identity = sshd.identity();
        let bare = ["ssh", "-i", &identity, "-o", &files, "-p", "4022", "root@10.99.0.1", "true"];
        times.push([of("ssh2"), of("libssh"), of("openssh"), fastest(&bare, &mut |_| ())]);
        steps.push(shortest);
        drop(manager);
    }
    for (index, (name, most)) in
        [("ssh2", 13.0), ("libssh", 12.0), ("openssh", 16.0), ("bare ssh", 99.0)].iter().enumerate()
    {
        let round_trips = (times[1][index] - times[0][index]).as_secs_f64() / 0.150;
        let parts: Vec<_> = STEPS
            .iter()
            .filter_map(|step| {
                let of = |index: usize| steps[index].get(&(*name, (*step).to_owned()));
                Some(format!("{step} {:.1}", (of(1)? - of(0)?) / 150.0))
            })
            .collect();
        let parts =
            if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        report(format!("round trips, {name}: {round_trips:.1}{parts}"));
        // The rest is what a busy machine adds.
        assert!(round_trips < most + 0.5, "{name}: {round_trips}");
    }
}

/// Starts many launches at once at one listening sshd, and expects all to succeed; tells how many
/// of them were sent away at first, with each backend.
fn many_at_once(name: &str, lines: &str, count: usize) -> Vec<usize> {
    let home = Home::new();
    let sshd = Sshd::start(&home);
    known(&home, &sshd);
    let distant = programs().distant.display().to_string();
    let line = Line::new(&home, &sshd, name, 0, lines);
    let listen = line.near(&home, &[&distant, "manager", "listen", "--user"]);
    let _manager = Manager::listen(&home, listen, true);
    let run = |backend: &&str| {
        let since = Instant::now();
        let args = launch_args(&sshd, backend);
        let args: Vec<_> =
            [distant.as_str()].into_iter().chain(args.iter().map(String::as_str)).collect();
        let running: Vec<_> = (0..count).map(|_| line.near(&home, &args).start()).collect();
        let finished = running.into_iter().map(|it| it.finish_within(Duration::from_secs(240)));
        let again = finished.map(|it| {
            let again = it.stderr.contains("trying again");
            it.id();
            again
        });
        let again = again.filter(|again| *again).count();
        let lines = if lines.is_empty() { "MaxStartups as usual" } else { lines };
        report(format!(
            "{count} launches at once, {backend}, {lines}: all in {:.1?}, {again} tried again",
            since.elapsed()
        ));
        again
    };
    ["ssh2", "libssh", "openssh"].iter().map(run).collect()
}

#[test]
fn many_launches_at_once_succeed() {
    let again = many_at_once("ma", "MaxStartups 200:30:300", crate::support::often(100));
    assert_eq!(again, [0, 0, 0]);
}

#[test]
fn many_launches_at_once_wait_for_a_busy_sshd_and_say_so() {
    let count = crate::support::often(100);
    // The usual patience is for 10 logins at a time, and a manager has 16.
    many_at_once("mb", "", count);
    let again = many_at_once("mc", "MaxStartups 1:60:4", count);
    assert!(again.iter().all(|again| *again > 0), "nobody was sent away: {again:?}");
}
