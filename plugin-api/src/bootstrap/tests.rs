use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::PidfdFlags;

use super::*;
use crate::destination::Destination;
use crate::message::{HostMessage, PluginMessage, Verdict, VerdictKind, Via};
use crate::options::Options;
use crate::Channel;

/// A login shell on this machine, in a home of its own.
pub(super) struct Shell {
    program: &'static str,
    pub(super) home: tempfile::TempDir,
    reach: Reach,
}

impl Shell {
    pub(super) fn new(program: &'static str) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { program, home, reach: Reach::Peer("127.0.0.1:22".parse().unwrap()) }
    }

    pub(super) fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Not by this process: a parallel fork could still hold the file open for writing.
        let mut writing = Command::new("sh");
        writing.args(["-c", "cat > \"$0\"; chmod \"$1\" \"$0\""]).arg(&path);
        let mut writing = writing.arg(format!("{mode:o}")).stdin(Stdio::piped()).spawn().unwrap();
        writing.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writing.wait().unwrap().success());
        path
    }

    /// A `distant` that daemonises like a real one, listens with netcat's twin in the shell, and
    /// writes its arguments and its pid into files.
    pub(super) fn server(&self, name: &str, port: u16) -> PathBuf {
        let key = "0f".repeat(32);
        let home = self.home.path().display();
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && exit\nfor a in \"$@\"; do printf '%s\\n' \"<$a>\"; done > {home}/args\n\
             echo $DISTANT_LAUNCH > {home}/launch\n\
             setsid sh -c 'echo $$ > {home}/pid; echo \"[distant server detached, pid = $$]\"; \
             printf \"\\r\\ndistant://:{key}@127.0.0.1:{port}\\n\\r\\n\"; \
             exec sleep 1000 >/dev/null 2>&1' &\nexit 0\n"
        );
        self.file(name, &script, 0o755)
    }

    pub(super) fn server_is_running(&self) -> bool {
        let Ok(pid) = fs::read_to_string(self.home.path().join("pid")) else { return false };
        let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
        // What init has not reaped yet does not run any more.
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    pub(super) fn end_server(&self) {
        let pid = fs::read_to_string(self.home.path().join("pid")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

impl Remote for Shell {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        let mut child = Command::new(self.program)
            .args(["-c", command])
            .env_clear()
            .env("HOME", self.home.path())
            .env("SHELL", self.program)
            .env("PATH", "/usr/bin:/bin")
            .env("SSH_CONNECTION", "127.0.0.1 1 127.0.0.1 22")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let stderr = child.stderr.take().unwrap();
        let child = Mutex::new(child);
        Ok(Running {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            ending: Box::new(move || Some(child.lock().unwrap().try_wait().ok()??.to_string())),
        })
    }

    fn reach(&self) -> Reach {
        self.reach.clone()
    }

    fn forward(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let _near = listener.accept().unwrap();
            let _far = TcpStream::connect(to);
        });
        Ok(near)
    }
}

/// A host that gives each offer the next of some verdicts, and remembers what it was told.
pub(super) struct Host {
    pub(super) told: Arc<Mutex<Vec<PluginMessage>>>,
    verdicts: Mutex<Vec<VerdictKind>>,
    cancel: (OwnedFd, Mutex<Option<OwnedFd>>),
    /// Somebody ends every connection as soon as it is there, not only one through a tunnel.
    ends: bool,
    /// In which stage nobody wants it any more, as soon as some of it is done.
    over: Option<Stage>,
}

pub(super) type Told = Arc<Mutex<Vec<PluginMessage>>>;

pub(super) fn host(verdicts: Vec<VerdictKind>, cancelled: bool) -> (Caller, Told) {
    host_that(verdicts, cancelled, false)
}

fn host_that(mut verdicts: Vec<VerdictKind>, cancelled: bool, ends: bool) -> (Caller, Told) {
    verdicts.reverse();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let told = Told::default();
    let write = Mutex::new(Some(write).filter(|_| !cancelled));
    let verdicts = Mutex::new(verdicts);
    let host = Host { told: told.clone(), verdicts, cancel: (read, write), ends, over: None };
    (Caller::new(host), told)
}

pub(super) fn host_that_cancels_at(stage: Stage) -> (Caller, Told) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (told, verdicts) = (Told::default(), Mutex::default());
    let cancel = (read, Mutex::new(Some(write)));
    let host = Host { told: told.clone(), verdicts, cancel, ends: false, over: Some(stage) };
    (Caller::new(host), told)
}

impl Channel for Host {
    fn send(&self, message: &PluginMessage) -> Result<Option<HostMessage>, LaunchError> {
        self.told.lock().unwrap().push(message.clone());
        if let PluginMessage::Progress(it) = message {
            if it.done > 0 && Some(it.stage) == self.over {
                self.cancel.1.lock().unwrap().take();
            }
        }
        let PluginMessage::Offer(offer) = message else { return Ok(None) };
        let result = self.verdicts.lock().unwrap().pop().unwrap();
        if (self.ends || offer.via == Via::Tunnel)
            && matches!(result, VerdictKind::Connected { .. })
        {
            // Somebody ends the connection.
            self.cancel.1.lock().unwrap().take();
        }
        Ok(Some(HostMessage::Verdict(Verdict { id: offer.id, result })))
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.1.lock().unwrap().is_none()
    }

    fn cancel_fd(&self) -> BorrowedFd<'_> {
        self.cancel.0.as_fd()
    }
}

pub(super) fn connected() -> VerdictKind {
    VerdictKind::Connected { by: None }
}

pub(super) fn unreachable() -> VerdictKind {
    VerdictKind::Unreachable { reason: "connection refused".into() }
}

pub(super) fn request(program: Option<&Path>, args: &[&str]) -> LaunchRequest {
    LaunchRequest {
        destination: Destination::new("box"),
        options: Options::new(),
        server: ServerCommand {
            program: program.map(|path| path.display().to_string()),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            bind: BindServer::Ssh,
            upload: None,
        },
        interactive: false,
        environment: Default::default(),
        cwd: None,
    }
}

pub(super) const SHELLS: [&str; 7] = [
    "/bin/sh",
    "/bin/dash",
    "/bin/bash",
    "/usr/bin/zsh",
    "/usr/bin/fish",
    "/usr/bin/tcsh",
    "/usr/bin/mksh",
];

fn offers(told: &Told) -> Vec<String> {
    let told = told.lock().unwrap();
    told.iter()
        .filter_map(|message| match message {
            PluginMessage::Offer(it) => Some(format!("{:?} {}:{}", it.via, it.host, it.port)),
            _ => None,
        })
        .collect()
}

#[test]
fn every_login_shell_starts_a_server_and_hands_on_every_argument() {
    let noise = format!("distant://:{}@127.0.0.1:9", "ab".repeat(32));
    let args = ["--log-file", "/tmp/a b.log", "$HOME;`id`", "it's \"q\"\\ !x", "naïve\n", "", "*"];
    for program in SHELLS {
        let shell = Shell::new(program);
        for rc in [".bashrc", ".profile", ".zshenv", ".tcshrc", ".config/fish/config.fish"] {
            shell.file(rc, &format!("echo '{noise}'\necho junk\n"), 0o644);
        }
        let server = shell.server("my bin/dis'tant", 4242);
        let (caller, told) = host(vec![connected()], false);
        launch(&shell, &request(Some(&server), &args), Tunnel::Auto, &caller).unwrap();
        assert_eq!(offers(&told), ["Direct 127.0.0.1:4242"], "{program}");
        let seen = fs::read_to_string(shell.home.path().join("args")).unwrap();
        let expected: String = args.iter().map(|arg| format!("<{arg}>\n")).collect();
        let first = "<server>\n<listen>\n<--daemon>\n<--shutdown>\n<lonely=86400>\n<--log-file>";
        assert!(seen.starts_with(first), "{program}: {seen}");
        assert!(
            seen.contains(&expected) && seen.ends_with("<--host>\n<ssh>\n"),
            "{program}: {seen}"
        );
        let variable = fs::read_to_string(shell.home.path().join("launch")).unwrap();
        assert_eq!(variable, "1\n");
        assert!(shell.server_is_running(), "{program}");
        shell.end_server();
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_ended() {
    for program in SHELLS {
        let shell = Shell::new(program);
        let server = shell.server("distant", 4242);
        let (caller, told) = host(vec![unreachable(), unreachable()], false);
        let error =
            launch(&shell, &request(Some(&server), &[]), Tunnel::Auto, &caller).unwrap_err();
        assert_eq!(error.kind, ErrorKind::PortUnreachable);
        assert_eq!(offers(&told).len(), 2);
        assert!(!shell.server_is_running(), "{program}");
    }
}

/// A shell behind which somebody cleans up.
struct Scheduled(Shell);

impl Remote for Scheduled {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        self.0.exec(command)
    }

    fn reach(&self) -> Reach {
        self.0.reach()
    }

    fn stays(&self) -> bool {
        true
    }
}

#[test]
fn a_server_that_ends_with_its_command_is_held_until_somebody_ends_the_connection() {
    let shell = Scheduled(Shell::new("/bin/sh"));
    let server = shell.0.server("distant", 4242);
    let (caller, told) = host_that(vec![connected()], false, true);
    let over = launch(&shell, &request(Some(&server), &[]), Tunnel::Auto, &caller);
    assert_eq!(over.unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(offers(&told).len(), 1);
    assert!(!shell.0.server_is_running());
}

#[test]
fn a_closed_port_is_reached_through_the_tunnel_and_the_server_lives_as_long_as_it() {
    let shell = Shell::new("/bin/sh");
    let server = shell.server("distant", 4242);
    let (caller, told) = host(vec![unreachable(), connected()], false);
    // The host says that it is enough once the tunnel is used.
    let error = launch(&shell, &request(Some(&server), &[]), Tunnel::Auto, &caller).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    let ways = offers(&told);
    assert!(ways[0].starts_with("Direct") && ways[1].starts_with("Tunnel"), "{ways:?}");
    assert!(!shell.server_is_running());
}

#[test]
fn a_missing_program_is_said_at_once_with_the_places() {
    for program in SHELLS {
        let shell = Shell::new(program);
        let mut request = request(None, &[]);
        request.server.program = Some("no-such-distant".into());
        let (caller, _) = host(vec![], false);
        let error = launch(&shell, &request, Tunnel::Auto, &caller).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ServerNotFound, "{program}: {error:?}");
        assert_eq!(error.causes[0], "not in /usr/bin:/bin", "{program}");
        assert!(error.causes.last().unwrap().contains("/.cargo/bin:"), "{program}");
    }
}

#[test]
fn a_program_on_the_login_shells_path_is_found() {
    let shell = Shell::new("/bin/bash");
    shell.server("tools/distant-of-mine", 4242);
    shell.file(".bash_profile", "echo junk\nPATH=$HOME/tools:$PATH\n", 0o644);
    let mut request = request(None, &[]);
    request.server.program = Some("distant-of-mine".into());
    let (caller, told) = host(vec![connected()], false);
    launch(&shell, &request, Tunnel::Auto, &caller).unwrap();
    assert_eq!(offers(&told).len(), 1);
    shell.end_server();
}

#[test]
fn the_last_words_are_in_the_error_and_no_key_is() {
    let shell = Shell::new("/bin/sh");
    let key = "0f".repeat(32);
    let check = |text: &str, mode: u32, kind: ErrorKind, cause: &str| {
        let program = shell.file("bad", text, mode);
        let (caller, _) = host(vec![], false);
        let error = launch(&shell, &request(Some(&program), &[]), Tunnel::Auto, &caller);
        let error = error.unwrap_err();
        assert_eq!(error.kind, kind, "{error:?}");
        let all = format!("{}: {}", error.message, error.causes.join(" / "));
        assert!(all.contains(cause), "{all}");
        assert!(!all.contains(&key));
    };
    let not_started = ErrorKind::ServerNotStarted;
    check("#!/bin/sh\necho port taken >&2; exit 3\n", 0o755, not_started, "status 3 / port taken");
    let ours = "echo error: no port >&2; echo '  caused by: taken' >&2; echo 'hint: another' >&2";
    let said = "status 1 / no port / taken / its hint: another";
    check(&format!("#!/bin/sh\n{ours}; exit 1\n"), 0o755, not_started, said);
    check("#!/bin/sh\nexit 0\n", 0o755, not_started, "no server started on `box`");
    check("#!/bin/sh\n", 0o644, ErrorKind::ServerNotFound, "is not executable");
    check("\u{7f}ELF", 0o755, not_started, "status");
    let half = format!("#!/bin/sh\nprintf distant://:{key}@127.0.0.1:4\n");
    check(&half, 0o755, not_started, "[redacted]");
    check("#!/bin/sh\nexec yes\n", 0o755, not_started, "prints without an end");
}

#[test]
fn a_cancelled_start_leaves_nothing() {
    let shell = Shell::new("/bin/sh");
    let home = shell.home.path().display().to_string();
    let hangs = format!("#!/bin/sh\necho $$ > {home}/pid\nprintf distant://:0f\nexec sleep 1000\n");
    let program = shell.file("hangs", &hangs, 0o755);
    let (caller, _) = host(vec![], true);
    let error = launch(&shell, &request(Some(&program), &[]), Tunnel::Auto, &caller).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert!(!shell.server_is_running());
}

#[test]
fn a_server_that_goes_to_the_background_while_it_is_ended_is_ended_too() {
    for program in SHELLS {
        let shell = Shell::new(program);
        let home = shell.home.path().display().to_string();
        // What goes to the background waits until what was started has gone, and shows nothing by which
        // it could be found before it says who it is.
        let script = format!(
            "#!/bin/sh\nf=$$ setsid env -u DISTANT_LAUNCH_MARK sh -c '\
             while kill -0 $f 2>/dev/null; do :; done; echo $$ > {home}/pid; \
             echo \"[distant server detached, pid = $$]\"; exec sleep 1000' &\nexit 0\n"
        );
        let server = shell.file("distant", &script, 0o755);
        let (caller, _) = host(vec![], true);
        let error = launch(&shell, &request(Some(&server), &[]), Tunnel::Auto, &caller);
        assert_eq!(error.unwrap_err().kind, ErrorKind::Cancelled);
        assert!(!shell.server_is_running(), "{program}");
    }
}

#[test]
fn a_remote_that_lies_about_where_it_looked_makes_no_long_error() {
    let mut found = Found::default();
    for _ in 0..100 {
        found.take(&format!("tried \u{1b}[2J{}", "x".repeat(60_000)));
    }
    found.take("missing");
    assert_eq!(found.tried.len(), PLACES);
    assert!(found.tried.iter().all(|it| it.len() == PLACE_MAX && it.starts_with("[2Jx")));
}

/// A connection that ends just as the host is connected: the word to stay goes nowhere.
struct Cut {
    shell: Shell,
    input: Arc<Mutex<Option<OwnedFd>>>,
}

impl Remote for Cut {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        let running = self.shell.exec(command)?;
        *self.input.lock().unwrap() = Some(running.stdin);
        let (_, nobody) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        Ok(Running { stdin: nobody, ..running })
    }

    fn reach(&self) -> Reach {
        self.shell.reach()
    }
}

struct Cutter {
    host: Host,
    input: Arc<Mutex<Option<OwnedFd>>>,
}

impl Channel for Cutter {
    fn send(&self, message: &PluginMessage) -> Result<Option<HostMessage>, LaunchError> {
        if matches!(message, PluginMessage::Offer(_)) {
            self.input.lock().unwrap().take();
        }
        self.host.send(message)
    }

    fn is_cancelled(&self) -> bool {
        self.host.is_cancelled()
    }

    fn cancel_fd(&self) -> BorrowedFd<'_> {
        self.host.cancel_fd()
    }
}

#[test]
fn a_server_that_was_not_told_to_stay_is_an_error() {
    let (shell, input) = (Shell::new("/bin/sh"), Arc::default());
    let server = shell.server("distant", 4242);
    let cut = Cut { shell, input: Arc::clone(&input) };
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let verdicts = Mutex::new(vec![connected()]);
    let cancel = (read, Mutex::new(Some(write)));
    let host = Host { told: Told::default(), verdicts, cancel, ends: false, over: None };
    let caller = Caller::new(Cutter { host, input });
    let error = launch(&cut, &request(Some(&server), &[]), Tunnel::Never, &caller).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error:?}");
    assert!(!cut.shell.server_is_running());
}

#[test]
fn a_server_that_never_says_its_pid_is_ended_too() {
    for program in SHELLS {
        let shell = Shell::new(program);
        let (key, home) = ("0f".repeat(32), shell.home.path().display());
        let script = format!(
            "#!/bin/sh\nsetsid sh -c 'echo $$ > {home}/new; mv {home}/new {home}/pid; \
             exec sleep 1000' </dev/null >/dev/null 2>&1 &\n\
             while [ ! -e {home}/pid ]; do :; done\necho; echo distant://:{key}@127.0.0.1:4242\n"
        );
        let server = shell.file("distant", &script, 0o755);
        let (caller, _) = host(vec![unreachable(), unreachable()], false);
        let error = launch(&shell, &request(Some(&server), &[]), Tunnel::Auto, &caller);
        assert_eq!(error.unwrap_err().kind, ErrorKind::PortUnreachable);
        // A killed process takes a moment to end where there is no time.
        let pid = fs::read_to_string(shell.home.path().join("pid")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        if let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
            let mut fds = [PollFd::new(&process, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1), "{program}");
        }
    }
}

#[test]
fn what_never_stops_printing_does_not_keep_a_launch_from_its_limit() {
    let mut yes = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let (errors, nobody) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdin = File::options().write(true).open("/dev/null").unwrap().into();
    let stdout = yes.stdout.take().unwrap().into();
    let running = Running { stdin, stdout, stderr: errors, ending: Box::new(|| None) };
    let (watch, stdin) = Watch::new(running, "mark".into());
    let line = format!("distant://:{}@127.0.0.1:4242", "0f".repeat(32));
    let mut server = Server {
        line: ConnectLine::parse(&line).unwrap(),
        addresses: Vec::new(),
        pid: None,
        proof: false,
        hello: None,
        watch,
        stdin: Some(stdin.into()),
    };
    let error = server.keep("box", Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    // And while the rest of a server's words is waited for.
    let (caller, _) = host(vec![], false);
    let mut found = Found { line: Some(server.line.clone()), ..Found::default() };
    let limit = Duration::from_millis(100);
    found.listen(&request(None, &[]), limit, &mut server.watch, &caller).unwrap();
    drop((server, nobody));
    let _ = yes.kill();
    yes.wait().unwrap();
}

#[test]
fn a_hello_is_handed_on_unless_it_is_longer_than_any() {
    let mut found = Found::default();
    found.take("say distant-server hello=93c418\r");
    assert_eq!(found.hello.as_deref(), Some("93c418"));
    found.take(&format!("say distant-server hello={}", "0".repeat(HELLO_MAX + 1)));
    assert_eq!(found.hello, None);
    found.take("half distant-server hello=93c4");
    assert_eq!(found.words, <[&str; 0]>::default());
}
