//! What a worker can do wrong, each with its one clear error. The plugins are shell scripts.

use std::os::fd::OwnedFd;
use std::time::Duration;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::LaunchRequest;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::*;
use crate::plugin::registry::Registry;
use crate::plugin::support::Place;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A registry with one plugin `x`, whose body is given.
struct Lab {
    place: Place,
    registry: Registry,
}

impl Lab {
    fn new() -> Self {
        let place = Place::new();
        let registry = place.registry();
        Self { place, registry }
    }

    fn entry(&self, body: &str) -> Entry {
        let path = self.place.script("own/distant-plugin-x", body);
        Entry::unchecked(&self.registry, &path, Kind::Executable)
    }

    async fn start(&self, body: &str) -> Result<Process, LaunchError> {
        let (entry, environment) = (self.entry(body), BTreeMap::new());
        let started = Process::start(&entry, &environment, LogLevel::Debug);
        tokio::time::timeout(PATIENCE, started).await.unwrap().map(|(process, _)| process)
    }

    /// Starts the plugin and launches with it.
    async fn launch(&self, body: &str) -> Process {
        let body = format!("hello x x; read -r hello; read -r launch\n{body}");
        let process = self.start(&body).await.unwrap();
        process.send(HostMessage::Launch(Box::new(request())));
        process
    }
}

fn request() -> LaunchRequest {
    LaunchRequest {
        destination: Destination::new("box"),
        options: Default::default(),
        server: Default::default(),
        interactive: false,
        environment: BTreeMap::new(),
        cwd: None,
    }
}

/// What a worker says until it ends, and how it ends.
async fn all(process: &mut Process) -> (Vec<PluginMessage>, Result<(), LaunchError>) {
    let mut messages = Vec::new();
    let ended = async {
        loop {
            match process.next().await {
                Event::Message(message) => messages.push(message),
                Event::Ended(result) => return result,
            }
        }
    };
    let result = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    (messages, result)
}

async fn notice(process: &mut Process) -> String {
    match tokio::time::timeout(PATIENCE, process.next()).await.unwrap() {
        Event::Message(PluginMessage::Notice(notice)) => notice.text,
        other => panic!("expected a notice, got {other:?}"),
    }
}

fn shown(messages: &[PluginMessage]) -> Vec<String> {
    messages.iter().map(|message| serde_json::to_string(message).unwrap()).collect()
}

fn watch(pid: &str) -> OwnedFd {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

/// Waits until a watched process is dead.
async fn is_gone(process: OwnedFd) {
    let wait = move || {
        let patience = Timespec { tv_sec: PATIENCE.as_secs().try_into().unwrap(), tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).unwrap()
    };
    assert_eq!(tokio::task::spawn_blocking(wait).await.unwrap(), 1);
}

#[tokio::test]
async fn a_launch_is_a_conversation_with_an_end() {
    let lab = Lab::new();
    let body = r#"notice "$(echo $launch | cut -c1-16 | tr -d '"')"
        read -r answer
        case $answer in *'"id":1'*) say '{"type":"done"}';; esac"#;
    let mut process = lab.launch(body).await;
    assert_eq!(notice(&mut process).await, "{type:launch");
    let answer = distant_plugin_api::message::Answer {
        id: 1,
        answers: None,
        valid: Some(true),
        cancelled: false,
    };
    process.send(HostMessage::Answer(answer));
    let (messages, result) = all(&mut process).await;
    assert_eq!(shown(&messages), [r#"{"type":"done"}"#]);
    assert_eq!(result, Ok(()));
    assert!(matches!(process.next().await, Event::Ended(Ok(()))));
}

#[tokio::test]
async fn after_its_result_nothing_that_a_plugin_says_counts() {
    let lab = Lab::new();
    let body = r#"say '{"type":"error","kind":"host_key","message":"no"}'
        say '{"type":"done"}'; notice late; say junk"#;
    let (messages, result) = all(&mut lab.launch(body).await).await;
    assert!(matches!(&messages[..], [PluginMessage::Error(error)] if error.message == "no"));
    assert_eq!(result, Ok(()));
}

#[tokio::test]
async fn a_result_counts_although_the_plugin_stays_and_has_to_be_killed() {
    let lab = Lab::new();
    let body = r#"trap '' TERM; say '{"type":"done"}'; while :; do sleep 1; done"#;
    let (messages, result) = all(&mut lab.launch(body).await).await;
    assert_eq!(shown(&messages), [r#"{"type":"done"}"#]);
    assert_eq!(result, Ok(()));
}

async fn fails(body: &str, message: &str, causes: &[&str]) {
    let lab = Lab::new();
    let (_, result) = all(&mut lab.launch(body).await).await;
    let error = result.unwrap_err();
    let expected = format!("plugin `x` {message}");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Plugin, expected.as_str()));
    assert_eq!(error.causes, causes);
}

#[tokio::test]
async fn a_crash_is_told_with_the_signal_and_the_last_words() {
    fails(
        "echo oh >&2; echo no >&2; kill -SEGV $$",
        "was killed by signal 11 (SIGSEGV)",
        &["oh; no"],
    )
    .await;
    fails("kill -ABRT $$", "was killed by signal 6 (SIGABRT)", &[]).await;
}

#[tokio::test]
async fn an_exit_without_a_result_is_told_with_the_status() {
    fails("exit 0", "exited with status 0 before answering", &[]).await;
    fails("echo why >&2; exit 3", "exited with status 3 before answering", &["why"]).await;
}

#[tokio::test]
async fn what_is_no_protocol_is_told() {
    let known = "broke the protocol: ";
    let none = format!("{known}it sent a line that is no message");
    fails("say '{}'", &none, &["the member `type` is missing"]).await;
    // What follows the hello is not shown, as it may be a damaged offer with a key in it.
    fails("say '{\"type\":\"offer\",\"key\":1'", &none, &["it is no JSON from its column 23 on"])
        .await;
    fails("tr '\\0' x </dev/zero", &format!("{known}it sent a line of more than 1 MiB"), &[]).await;
    fails("exec >&-; sleep 300", &format!("{known}it closed its output and went on running"), &[])
        .await;
}

async fn does_not_start(body: &str, message: &str, causes: &[&str]) {
    let mut lab = Lab::new();
    // Only what never says a word has to wait for it.
    if message.starts_with("said nothing") {
        lab.place.settings.limits.hello = Duration::from_millis(500);
        lab.registry = lab.place.registry();
    }
    let error = lab.start(body).await.unwrap_err();
    let expected = format!("plugin `x` {message}");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Plugin, expected.as_str()));
    assert_eq!(error.causes, causes);
    lab.registry.workers_gone().await;
}

#[tokio::test]
async fn a_plugin_that_does_not_say_hello_does_not_start() {
    let known = "broke the protocol: ";
    does_not_start(
        "echo Welcome to the machine",
        &format!("{known}its first line is no message"),
        &["it is no JSON from its column 1 on", "`Welcome to the machine`"],
    )
    .await;
    does_not_start("notice hi", &format!("{known}its first message is no hello"), &[]).await;
    does_not_start("exit 0", "exited with status 0 before answering", &[]).await;
    does_not_start("sleep 300", "said nothing within 500ms of its start", &[]).await;
    does_not_start(
        r#"say '{"type":"hello","protocol":[2,3],"manifest":{"name":"x","schemes":["x"]}}'"#,
        "speaks protocol 2 to 3, this program 1 to 1",
        &[],
    )
    .await;
}

#[tokio::test]
async fn a_worker_that_cannot_load_its_plugin_says_why_itself() {
    let lab = Lab::new();
    let body = r#"say '{"type":"error","kind":"plugin","message":"no symbol","hint":"build it"}'"#;
    let error = lab.start(body).await.unwrap_err();
    assert_eq!((error.message.as_str(), error.hint.as_deref()), ("no symbol", Some("build it")));
}

#[tokio::test]
async fn a_cancelled_plugin_may_clean_up() {
    let mut lab = Lab::new();
    lab.place.settings.limits.grace = PATIENCE;
    lab.registry = lab.place.registry();
    let body = r#"notice here; read -r cancel
        say '{"type":"error","kind":"cancelled","message":"'$(echo $cancel | tr -d '"')'"}'"#;
    let mut process = lab.launch(body).await;
    assert_eq!(notice(&mut process).await, "here");
    process.cancel();
    let (messages, result) = all(&mut process).await;
    let [PluginMessage::Error(error)] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(error.message, "{type:cancel}");
    assert_eq!(result, Ok(()));
}

#[tokio::test]
async fn a_cancelled_plugin_that_does_not_listen_is_killed() {
    let lab = Lab::new();
    let mut process = lab.launch("trap '' TERM; notice here; while :; do sleep 1; done").await;
    assert_eq!(notice(&mut process).await, "here");
    process.cancel();
    let error = all(&mut process).await.1.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(error.causes, ["plugin `x` did not let go of it in time and was killed"]);
}

#[tokio::test]
async fn sigterm_comes_before_sigkill() {
    let mut lab = Lab::new();
    lab.place.settings.limits.terminate = PATIENCE;
    lab.registry = lab.place.registry();
    let marker = lab.place.path("terminated");
    let body = format!(
        "trap 'touch {}; exit 1' TERM; notice here; while :; do sleep 0.01; done",
        marker.display()
    );
    let mut process = lab.launch(&body).await;
    assert_eq!(notice(&mut process).await, "here");
    process.cancel();
    assert_eq!(all(&mut process).await.1.unwrap_err().kind, ErrorKind::Cancelled);
    assert!(marker.exists());
}

#[tokio::test]
async fn what_a_plugin_forked_dies_with_it() {
    for end in ["kill -SEGV $$", "exit 0", "say '{\"type\":\"done\"}'"] {
        let lab = Lab::new();
        let body = format!("sleep 300 & notice $!; read -r go; {end}");
        let mut process = lab.launch(&body).await;
        let forked = watch(&notice(&mut process).await);
        process.send(HostMessage::Other);
        all(&mut process).await.1.ok();
        is_gone(forked).await;
    }
}

#[tokio::test]
async fn a_dropped_process_and_its_children_end_in_the_background() {
    let lab = Lab::new();
    let mut process = lab.launch("trap '' TERM; sleep 300 & notice $!; wait; sleep 300").await;
    let (forked, worker) = (watch(&notice(&mut process).await), watch(&process.pid().to_string()));
    let pid = process.pid();
    drop(process);
    tokio::time::timeout(PATIENCE, lab.registry.workers_gone()).await.unwrap();
    is_gone(worker).await;
    is_gone(forked).await;
    // Reaped, so not even a zombie has its number.
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_leaves_nothing() {
    let lab = Lab::new();
    let entry = lab.entry("trap '' TERM; while :; do sleep 1; done");
    let environment = BTreeMap::new();
    {
        let start = Process::start(&entry, &environment, LogLevel::Off);
        tokio::pin!(start);
        assert!(futures::poll!(start.as_mut()).is_pending());
    }
    assert_eq!(lab.registry.workers_running(), 1);
    tokio::time::timeout(PATIENCE, lab.registry.workers_gone()).await.unwrap();
    assert_eq!(lab.registry.workers_running(), 0);
}

#[test]
fn a_runtime_that_ends_takes_its_workers_along() {
    let lab = Lab::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let process = runtime.block_on(lab.launch("trap '' TERM; while :; do sleep 1; done"));
    let pid = process.pid();
    drop(runtime);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn endless_output_is_slowed_down_and_can_be_cancelled() {
    let mut lab = Lab::new();
    lab.place.settings.limits.output = 4096;
    lab.place.settings.limits.output_rate = 1024;
    lab.registry = lab.place.registry();
    let mut process = lab.launch("while :; do notice more; done").await;
    for _ in 0..4 {
        assert_eq!(notice(&mut process).await, "more");
    }
    process.cancel();
    let (messages, result) = all(&mut process).await;
    // What was allowed at once, at about 290 bytes each, and what came before the cancel got there.
    assert!(messages.len() < 30, "{}", messages.len());
    assert_eq!(result.unwrap_err().kind, ErrorKind::Cancelled);
}

#[tokio::test]
async fn endless_notices_end_the_launch() {
    let lab = Lab::new();
    let (messages, result) = all(&mut lab.launch("while :; do notice more; done").await).await;
    assert_eq!(messages.len(), 200);
    assert_eq!(result.unwrap_err().message, "plugin `x` sent more than 200 notices");
}

#[tokio::test]
async fn endless_noise_on_standard_error_does_not_disturb() {
    let lab = Lab::new();
    let body = r#"yes "noise" | head -c 3000000 >&2; yes >&2 & say '{"type":"done"}'"#;
    let (messages, result) = all(&mut lab.launch(body).await).await;
    assert_eq!(shown(&messages), [r#"{"type":"done"}"#]);
    assert_eq!(result, Ok(()));
    fails(
        "yes noise | head -c 3000000 >&2; printf 'a\\033[2J\\n' >&2; exit 1",
        "exited with status 1 before answering",
        &["noise; noise; noise; noise; a [2J"],
    )
    .await;
}

#[tokio::test]
async fn a_plugin_that_reads_nothing_cannot_make_the_manager_wait() {
    let lab = Lab::new();
    let mut process = lab.launch("notice here; exec sleep 300").await;
    assert_eq!(notice(&mut process).await, "here");
    let notice = request();
    for _ in 0..10_000 {
        process.send(HostMessage::Launch(Box::new(notice.clone())));
    }
    let error = all(&mut process).await.1.unwrap_err();
    assert_eq!(error.message, "plugin `x` broke the protocol: it does not read what it is sent");
}

#[tokio::test]
async fn a_launch_too_long_for_a_line_is_not_sent() {
    let lab = Lab::new();
    let mut process = lab.start("hello x x; while read -r line; do :; done").await.unwrap();
    let mut request = request();
    request.server.args = vec!["x".repeat(MESSAGE_MAX)];
    process.send(HostMessage::Launch(Box::new(request)));
    let error = all(&mut process).await.1.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidOption);
    assert_eq!(error.message, "the launch is too long for plugin `x`: more than 1 MiB");
}

#[tokio::test]
async fn a_worker_has_the_clients_agent_and_nothing_that_loads_code() {
    let lab = Lab::new();
    let entry =
        lab.entry("hello x x; notice \"$SSH_AUTH_SOCK $LANG ${HOME:+home} $(env | grep -c ^LD_)\"");
    let pairs = [("SSH_AUTH_SOCK", "/agent"), ("LANG", "xx"), ("LD_PRELOAD", "/evil.so")];
    let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let (mut process, _) = Process::start(&entry, &environment, LogLevel::Off).await.unwrap();
    assert_eq!(notice(&mut process).await, "/agent xx home 0");
}

#[tokio::test]
async fn a_library_is_handed_over_opened_and_to_its_own_worker_alone() {
    let lab = Lab::new();
    let body = "hello x x; notice \"$(ls -l /proc/$$/fd | grep -o 'libdistant_plugin_[0-9]*' | tr '\\n' ' ')\"";
    let workers = (0..8).map(|number| {
        let path = lab.place.script(&format!("own/libdistant_plugin_{number}.so"), body);
        let entry = Entry::unchecked(&lab.registry, &path, Kind::Library);
        tokio::spawn(async move {
            let started = Process::start(&entry, &BTreeMap::new(), LogLevel::Off).await;
            let (mut process, _) = started.unwrap();
            (format!("libdistant_plugin_{number} "), notice(&mut process).await)
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        let (expected, open) = worker.await.unwrap();
        // The shell has its script open once more.
        assert_eq!(open, expected.repeat(2));
    }
}

#[tokio::test]
async fn the_log_is_kept_as_far_as_wanted_and_readable() {
    let lab = Lab::new();
    let body = r#"say '{"type":"log","level":"trace","text":"too much"}'
        yes '{"type":"log","level":"debug","text":"wanted"}' | head -n 1500
        sleep 0.1; say '{"type":"log","level":"error","text":"last"}'; say '{"type":"done"}'"#;
    let (messages, result) = all(&mut lab.launch(body).await).await;
    assert_eq!(result, Ok(()));
    let texts: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            PluginMessage::Log(log) => Some(log.text.as_str()),
            _ => None,
        })
        .collect();
    let wanted = texts.iter().filter(|text| **text == "wanted").count();
    assert!((1000..1500).contains(&wanted), "{wanted}");
    let left_out: usize = texts
        .iter()
        .filter_map(|it| it.strip_suffix(" lines of the log were left out"))
        .map(|it| it.parse::<usize>().unwrap())
        .sum();
    assert_eq!(wanted + left_out, 1500);
    assert_eq!(texts.last(), Some(&"last"));
}

#[tokio::test]
async fn a_plugin_that_floods_its_standard_error_is_slowed_down() {
    let mut lab = Lab::new();
    lab.place.settings.limits.output = 64 * 1024;
    lab.place.settings.limits.output_rate = 64 * 1024;
    lab.registry = lab.place.registry();
    // Each notice comes after as much noise as a pipe holds.
    let body = "while :; do head -c 65536 /dev/zero >&2; notice more; done";
    let mut process = lab.launch(body).await;
    // From then on it is counted, however long its start has taken.
    let mut notices = usize::from(matches!(process.next().await, Event::Message(_)));
    let second = tokio::time::sleep(Duration::from_secs(1));
    tokio::pin!(second);
    loop {
        tokio::select! {
            () = &mut second => break,
            _ = process.next() => notices += 1,
        }
    }
    // What the pipe and the allowance hold, and what a second allows.
    assert!((1..=6).contains(&notices), "{notices}");
}
