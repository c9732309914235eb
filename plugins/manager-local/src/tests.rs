//! Launches in this process: a shell script is the server, a [`Host`] says the verdicts.

use std::fs;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Mutex};

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{HostMessage, PluginMessage, ServerCommand, Verdict};
use distant_plugin_api::Channel;

use super::*;

/// What a script starts with: it prints its connect line as 0.20.0 does.
const LINE: &str = "printf '\\r\\ndistant://:%064d@127.0.0.1:4000\\n' 7; printf '\\r\\n'";

/// A host that answers each offer with the next of its verdicts; without one left, it cancels.
struct Host {
    verdicts: Mutex<Vec<VerdictKind>>,
    offers: mpsc::Sender<Offer>,
    cancelled: AtomicBool,
    cancel: PipeReader,
    cancelling: Mutex<Option<PipeWriter>>,
}

impl Host {
    fn new(verdicts: impl Into<Vec<VerdictKind>>) -> (Self, mpsc::Receiver<Offer>) {
        let (cancel, cancelling) = std::io::pipe().unwrap();
        let (offers, offered) = mpsc::channel();
        let mut verdicts = verdicts.into();
        verdicts.reverse();
        let host = Self {
            verdicts: Mutex::new(verdicts),
            offers,
            cancelled: AtomicBool::new(false),
            cancel,
            cancelling: Mutex::new(Some(cancelling)),
        };
        (host, offered)
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.cancelling.lock().unwrap().take();
    }
}

impl Channel for Host {
    fn send(&self, message: &PluginMessage) -> Result<Option<HostMessage>, LaunchError> {
        if self.is_cancelled() {
            return Err(LaunchError::cancelled());
        }
        let PluginMessage::Offer(offer) = message else { return Ok(None) };
        self.offers.send(offer.clone()).unwrap();
        match self.verdicts.lock().unwrap().pop() {
            Some(result) => Ok(Some(HostMessage::Verdict(Verdict { id: offer.id, result }))),
            None => {
                self.cancel();
                Err(LaunchError::cancelled())
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    fn cancel_fd(&self) -> BorrowedFd<'_> {
        self.cancel.as_fd()
    }
}

/// A folder with a script in it that plays the server.
struct Script {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Script {
    fn new(body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("distant");
        let pid = folder.path().join("pid");
        let text = format!("#!/bin/sh\necho $$ > '{}'\n{body}\n", pid.display());
        // Written elsewhere first: a parallel fork may still hold the file open for writing.
        let mut writing = std::process::Command::new("sh");
        writing.args(["-c", "cat > \"$0\" && chmod 700 \"$0\""]).arg(&program);
        let mut writing = writing.stdin(std::process::Stdio::piped()).spawn().unwrap();
        writing.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writing.wait().unwrap().success());
        Self { folder, program }
    }

    fn request(&self) -> LaunchRequest {
        LaunchRequest {
            destination: Destination::new("localhost"),
            options: Default::default(),
            server: ServerCommand {
                program: Some(self.program.to_str().unwrap().to_owned()),
                ..Default::default()
            },
            interactive: false,
            environment: Default::default(),
            cwd: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn assert_gone(&self) {
        let pid = fs::read_to_string(self.path("pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "the server {pid} is still there");
    }
}

const CONNECTED: VerdictKind = VerdictKind::Connected { by: None };

fn launch(script: &Script, request: &LaunchRequest, host: Host) -> Result<(), LaunchError> {
    let plugin = ManagerLocal { start_limit: Duration::from_secs(10) };
    let result = plugin.launch(request, &Caller::new(host));
    script.assert_gone();
    result
}

/// Launches a script that has to fail; the error as one text.
fn failure(body: &str, verdicts: impl Into<Vec<VerdictKind>>) -> (ErrorKind, String) {
    let script = Script::new(body);
    let (host, _offers) = Host::new(verdicts);
    let error = launch(&script, &script.request(), host).unwrap_err();
    let text = error.one_line().replace(script.program.to_str().unwrap(), "PROGRAM");
    (error.kind, text)
}

#[test]
fn a_server_is_offered_and_held_until_it_ends() {
    let script = Script::new(&format!("{LINE}; read end; exit 0"));
    let (host, offers) = Host::new([CONNECTED]);
    let watching = std::thread::spawn(move || {
        let offer = offers.recv().unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(offer.pid.unwrap() as i32).unwrap(),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        offer
    });
    launch(&script, &script.request(), host).unwrap();
    let offer = watching.join().unwrap();
    assert_eq!((offer.host.as_str(), offer.port, offer.proof), ("127.0.0.1", 4000, false));
    assert_eq!(offer.key.expose_hex().expose(), format!("{:064}", 7));
}

#[test]
fn the_proof_line_and_a_wildcard_address_are_understood() {
    for (address, proof, expected) in [
        ("0.0.0.0", "distant-server proof=1\\n", ("127.0.0.1", true)),
        ("[::]", "distant-server proof=1\\n", ("::1", true)),
        ("10.0.0.7", "", ("10.0.0.7", false)),
    ] {
        let line = format!("\\r\\ndistant://:%064d@{address}:4000\\n{proof}\\r\\n");
        let script = Script::new(&format!("printf '{line}' 7; read end"));
        let (host, offers) = Host::new([]);
        let error = launch(&script, &script.request(), host).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
        let offer = offers.recv().unwrap();
        assert_eq!((offer.host.as_str(), offer.proof), expected);
    }
}

#[test]
fn a_program_that_prints_nothing_after_its_line_is_offered_all_the_same() {
    let script = Script::new("printf 'motd\\ndistant://:%064d@127.0.0.1:4000\\n' 7; read end");
    let (host, offers) = Host::new([]);
    launch(&script, &script.request(), host).unwrap_err();
    assert_eq!(offers.recv().unwrap().port, 4000);
}

#[test]
fn the_hello_of_a_server_is_none_of_its_last_words() {
    let script = Script::new("printf 'distant-server hello=93c4\\nno port is free\\n'; exit 3");
    let (host, _offers) = Host::new([]);
    let error = launch(&script, &script.request(), host).unwrap_err().one_line().into_owned();
    assert!(error.contains("no port is free") && !error.contains("93c4"), "{error}");
}

#[test]
fn the_server_gets_the_arguments_in_their_words() {
    let script = Script::new(
        "printf '%s\\n' \"$@\" \"$DISTANT_LAUNCH $DISTANT_LIFELINE\" \"$PWD\" > ${0%/*}/said; exit 3",
    );
    let check = |change: &dyn Fn(&mut LaunchRequest), expected: &str| {
        let mut request = script.request();
        change(&mut request);
        let (host, _offers) = Host::new([]);
        launch(&script, &request, host).unwrap_err();
        let said = fs::read_to_string(script.path("said")).unwrap();
        let (said, folder) = said.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(said, format!("server\nlisten\n{expected}\n1 stdin"));
        if let Some(cwd) = &request.cwd {
            assert_eq!(Path::new(folder), cwd.canonicalize().unwrap());
        }
    };
    check(&|_| {}, "--host\n127.0.0.1");
    check(&|it| it.server.bind = BindServer::Any, "--host\nany");
    check(&|it| it.server.bind = BindServer::Host("::1".into()), "--host\n::1");
    check(&|it| it.destination.port = Some(4001), "--host\n127.0.0.1\n--port\n4001");
    check(&|it| it.cwd = Some(script.folder.path().to_owned()), "--host\n127.0.0.1");
    let args = ["--log-file", "/tmp/a b.log", "--shutdown", "lonely=60"];
    check(
        &|it| it.server.args = args.map(str::to_owned).to_vec(),
        "--host\n127.0.0.1\n--log-file\n/tmp/a b.log\n--shutdown\nlonely=60",
    );
    let told = |it: &mut LaunchRequest| {
        it.destination.port = Some(1);
        it.server.args = ["--host=any", "--port", "9"].map(str::to_owned).to_vec();
    };
    check(&told, "--host=any\n--port\n9");
}

#[test]
fn arguments_that_would_break_the_promise_are_refused() {
    let script = Script::new("exit 0");
    for flag in ["--daemon", "--key-from-stdin"] {
        let mut request = script.request();
        request.server.args = vec![flag.to_owned()];
        let (host, _offers) = Host::new([]);
        let error = ManagerLocal::default().launch(&request, &Caller::new(host)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption);
        assert!(error.message.contains(flag), "{error}");
    }
}

#[test]
fn a_server_that_does_not_start_is_quoted() {
    let ours = "echo 'error: no port is free' >&2; echo '  caused by: address in use' >&2; \
                echo 'hint: another' >&2; exit 1";
    let released =
        "printf 'Failed to start server\\n\\nCaused by:\\n    address in use\\n' >&2; exit 1";
    let kind = ErrorKind::ServerNotStarted;
    let what = "no server started on this machine";
    let ended = format!("{what}: `PROGRAM`: it ended with status 1");
    assert_eq!(
        failure(ours, []),
        (kind, format!("{ended}: no port is free: address in use: its hint: another"))
    );
    assert_eq!(
        failure(released, []),
        (kind, format!("{ended}: Failed to start server: address in use"))
    );
    assert_eq!(
        failure("echo usage; kill -9 $$", []),
        (kind, format!("{what}: `PROGRAM`: it was ended by signal 9: usage"))
    );
    assert_eq!(
        failure("exec >&-; read end", []),
        (kind, format!("{what}: `PROGRAM` closed its output without a connect line"))
    );
}

#[test]
fn half_a_connect_line_is_no_connect_line() {
    let half = "printf 'distant://:%064d@127.0.0.1:40' 7; exit 0";
    let (kind, text) = failure(half, []);
    assert_eq!(kind, ErrorKind::ServerNotStarted);
    assert!(!text.contains("distant://"), "the key shows: {text}");
}

#[test]
fn a_server_that_says_nothing_of_use_ends_with_its_time() {
    for body in ["exec sleep 1000", "exec yes"] {
        let script = Script::new(body);
        let (host, _offers) = Host::new([]);
        let plugin = ManagerLocal { start_limit: Duration::from_millis(300) };
        let error = plugin.launch(&script.request(), &Caller::new(host)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ServerNotStarted);
        assert!(error.causes[0].ends_with("printed no connect line within 300ms"), "{error:?}");
        script.assert_gone();
    }
}

#[test]
fn a_missing_or_unfit_program_is_not_found() {
    let script = Script::new("exit 0");
    let folder = script.folder.path().to_str().unwrap().to_owned();
    fs::write(script.path("plain"), "#!/bin/sh\n").unwrap();
    fs::write(script.path("other"), "\x7fELF of another machine").unwrap();
    fs::set_permissions(script.path("other"), fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["missing", "plain", "other", "distant/x", "."] {
        let mut request = script.request();
        request.server.program = Some(format!("{folder}/{name}"));
        let (host, _offers) = Host::new([]);
        let error = ManagerLocal::default().launch(&request, &Caller::new(host)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ServerNotFound, "{name}: {error:?}");
        assert!(error.one_line().contains(name) && error.hint.is_some());
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_ended() {
    let body = format!("{LINE}; read end");
    let unreachable = VerdictKind::Unreachable { reason: "no route".into() };
    let (kind, text) = failure(&body, [VerdictKind::Slow, unreachable]);
    assert_eq!(kind, ErrorKind::PortUnreachable);
    assert_eq!(text, "the server on `127.0.0.1:4000` cannot be used: no route");
    let refused = VerdictKind::Refused { reason: "another server".into() };
    let (kind, _) = failure(&body, [refused]);
    assert_eq!(kind, ErrorKind::PortUnreachable);
}

#[test]
fn a_chatty_server_never_blocks() {
    // More than any pipe holds, on both streams, while nobody waits for either.
    let flood = "head -c 3000000 /dev/zero | tr '\\0' x";
    let body = format!("{LINE}; {flood} >&2; {flood}; {flood} >&2; touch ${{0%/*}}/done; exit 0");
    let script = Script::new(&body);
    let (host, _offers) = Host::new([CONNECTED]);
    launch(&script, &script.request(), host).unwrap();
    assert!(script.path("done").exists());
}

#[test]
fn a_server_that_ignores_the_request_to_end_is_killed() {
    let script = Script::new(&format!("trap '' TERM; {LINE}; while :; do sleep 1000; done"));
    let (host, _offers) = Host::new([]);
    let start = Instant::now();
    let error = launch(&script, &script.request(), host).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(5));
}
