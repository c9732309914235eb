//! An executable plugin that only says how a command is run there; the rest of its launch is ours.
//!
//! The plugin's own messages pass through to the manager. Its answer to `exec` makes a [`Remote`] of
//! it, over which [`bootstrap::launch`] starts and offers a server. When that is over the plugin
//! hears what became of it, and ends.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use distant_plugin_api::abi::Status;
use distant_plugin_api::bootstrap::{self, Reach, Remote, Running, Tunnel, START_LIMIT};
use distant_plugin_api::message::{
    Exec, HostMessage, PluginHello, PluginMessage, Run, Verdict, VerdictKind, MESSAGE_MAX,
};
use distant_plugin_api::{Caller, Channel, ErrorKind, LaunchError};
use rustix::process::Signal;
use zeroize::Zeroizing;

use crate::misfit;
use crate::program::{end_like, Program};
use crate::relay::TERMINATE;
use crate::session::{Refusal, Session};
use crate::started::{self, Started};
use crate::{leave, listen, Launch, GRACE};

/// The id of the one request of a launch.
const EXEC: u64 = 1;
/// What stands for the command in a plugin's words.
const COMMAND: &str = "{command}";
/// Messages that may wait until a plugin reads them.
const QUEUE: usize = 64;
/// Longest name or address of a server.
const ADDRESS_MAX: usize = 255;
/// Longest time that a plugin may give a command.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a program that has closed its output may take to end.
const STATUS_LIMIT: Duration = Duration::from_millis(500);

/// What a relay knows and holds when it finds such a plugin.
pub(crate) struct Handover {
    pub(crate) hello: PluginHello,
    pub(crate) from_host: File,
    pub(crate) to_host: File,
    pub(crate) from_plugin: File,
    pub(crate) to_plugin: File,
    /// What the manager has said already.
    pub(crate) inward: Zeroizing<Vec<u8>>,
    /// What the plugin has said behind its hello.
    pub(crate) outward: Zeroizing<Vec<u8>>,
}

/// A line for the plugin, with its newline; a password may be in it. `None` closes its input.
type Line = Option<Zeroizing<Vec<u8>>>;

/// Runs the launch of such a plugin, and ends the process.
pub(crate) fn serve(program: Program, handover: Handover) -> ExitCode {
    let Handover { hello, from_host, to_host, from_plugin, to_plugin, inward, outward } = handover;
    let session = match Session::new(to_host, Ok) {
        // Its threads use it for as long as the process lives.
        Ok(session) => &*Box::leak(Box::new(session)),
        Err(error) => {
            let _ = writeln!(io::stderr(), "the plugin's process cannot be set up: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (to_plugin_thread, lines) = mpsc::sync_channel(QUEUE);
    let plugin = Plugin { session, name: hello.manifest.name.clone(), lines: to_plugin_thread };
    session.introduce(hello);
    let (launch, launches) = mpsc::sync_channel(1);
    let hearing = plugin.clone();
    let launching = plugin.clone();
    let thread = |name: &str| thread::Builder::new().name(name.into());
    let threads = [
        thread("to plugin").spawn(move || write(to_plugin, &lines)),
        thread("plugin").spawn(move || hearing.hear(Cursor::new(outward).chain(from_plugin))),
        thread("launch").spawn(move || launching.launch(program, &launches)),
    ];
    if let Some(error) = threads.into_iter().find_map(Result::err) {
        let message = "there is no thread for the plugin";
        session.fail(LaunchError::new(ErrorKind::Plugin, message).because(&error));
        leave(session);
    }
    let from_host = Cursor::new(inward).chain(from_host);
    match listen(from_host, session, &launch, |line| plugin.tell(line)) {
        Ok(()) => session.host_is_gone(),
        Err(error) => session.fail(error),
    }
    if session.is_launched() {
        // The launch ends the process as soon as it has cleaned up.
        thread::sleep(GRACE);
    }
    leave(session)
}

/// Hands lines to a plugin, which may take its time to read them.
fn write(mut to_plugin: File, lines: &mpsc::Receiver<Line>) {
    while let Ok(Some(line)) = lines.recv() {
        // One that has closed its input does not want to know.
        let _ = to_plugin.write_all(&line);
    }
}

/// The plugin's process, as its threads see it.
#[derive(Clone)]
struct Plugin {
    session: &'static Session,
    name: String,
    lines: mpsc::SyncSender<Line>,
}

impl Plugin {
    fn broke(&self, how: &str) -> LaunchError {
        let message = format!("plugin `{}` broke the protocol: {how}", self.name);
        LaunchError::new(ErrorKind::Plugin, message)
    }

    /// Queues a line for the plugin.
    fn tell(&self, line: &[u8]) {
        if let Err(mpsc::TrySendError::Full(_)) = self.lines.try_send(Some(line.to_vec().into())) {
            self.session.stop(self.broke("it does not read what it is sent"));
        }
    }

    fn send(&self, message: &HostMessage) {
        // Writing these types into memory cannot fail.
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        line.push(b'\n');
        self.tell(&line);
    }

    /// Takes in what the plugin says until it closes its output.
    fn hear(&self, from_plugin: impl Read) {
        let mut from_plugin = BufReader::new(from_plugin);
        loop {
            let mut line = Zeroizing::new(Vec::new());
            let read = (&mut from_plugin).take(MESSAGE_MAX as u64).read_until(b'\n', &mut line);
            if line.len() >= MESSAGE_MAX && !line.ends_with(b"\n") {
                return self.session.stop(self.broke("it sent a line of more than 1 MiB"));
            }
            match serde_json::from_slice(&line) {
                _ if line.trim_ascii().is_empty() => {}
                Ok(message) => self.take(message),
                // Cut off, as its process ended in the middle of it.
                Err(_) if !line.ends_with(b"\n") => {}
                Err(error) => {
                    let broke = self.broke("it sent a line that is no message");
                    return self.session.stop(broke.caused_by(misfit(&error)));
                }
            }
            if !matches!(read, Ok(1..)) {
                self.session.ran(None);
                return;
            }
        }
    }

    fn take(&self, message: PluginMessage) {
        match message {
            PluginMessage::Run(run) => match check(&run) {
                Ok(()) if self.session.ran(Some(run)) => {}
                Ok(()) => self.session.stop(self.broke("its `run` answers nothing")),
                Err(how) => self.session.stop(self.broke(how)),
            },
            PluginMessage::Done => drop(self.session.ran(None)),
            PluginMessage::Error(error) => self.session.stop(error.clipped()),
            PluginMessage::Offer(_) => {
                self.session.stop(self.broke("it offers a server, although it runs commands"));
            }
            PluginMessage::Hello(_) => self.session.stop(self.broke("it said hello twice")),
            PluginMessage::Other => {}
            message => self.session.pass(&message),
        }
    }

    /// Waits for the launch, runs it, and ends the process.
    fn launch(&self, mut program: Program, launches: &mpsc::Receiver<Launch>) {
        // No launch comes any more: the first thread is about to end the process.
        let Ok(Launch { request, .. }) = launches.recv() else { return };
        let remote = Commands {
            plugin: self,
            run: OnceLock::new(),
            is_unanswered: AtomicBool::new(false),
            started: Mutex::new(None),
        };
        let caller = Caller::new(Host(self.session));
        let launch = || bootstrap::launch(&remote, &request, Tunnel::of(&request), &caller);
        let outcome = catch_unwind(AssertUnwindSafe(launch)).unwrap_or_else(|_| {
            Err(LaunchError::new(ErrorKind::Plugin, "the plugin's process failed"))
        });
        remote.end();
        let connected = Verdict { id: EXEC, result: VerdictKind::Connected { by: None } };
        self.send(&match outcome {
            Ok(()) => HostMessage::Verdict(connected),
            Err(_) => HostMessage::Cancel,
        });
        // A full queue means that it does not read, and then the end of its input is no news.
        let _ = self.lines.try_send(None);
        let mut has_ended = started::ends_within(&program.exited, GRACE);
        if !has_ended {
            program.signal(Signal::TERM);
            has_ended = started::ends_within(&program.exited, TERMINATE);
        }
        let is_unanswered = remote.is_unanswered.into_inner();
        match (outcome, self.session.stopped()) {
            (Ok(()), _) => self.session.finish(Status::OK),
            (Err(_), Some(error)) => self.session.fail(error),
            (Err(_), None) if is_unanswered && has_ended && !self.session.is_host_gone() => {
                end_like(program.status());
            }
            (Err(_), None) if is_unanswered => {
                self.session.fail(self.broke("it did not say how a command is run"));
            }
            (Err(error), None) => self.session.fail(error),
        }
        leave(self.session)
    }
}

/// Checks what a plugin answered; the error fits behind "it broke the protocol: ".
fn check(run: &Run) -> Result<(), &'static str> {
    if run.id != EXEC {
        return Err("its `run` has the id of no request");
    }
    if run.argv.first().is_none_or(String::is_empty) {
        return Err("its `run` names no program");
    }
    let fits = |address: &String| {
        let is_odd = |c: char| c.is_whitespace() || c.is_control();
        !address.is_empty() && address.len() <= ADDRESS_MAX && !address.contains(is_odd)
    };
    if !run.address.as_ref().is_none_or(fits) {
        return Err("the address in its `run` is none");
    }
    Ok(())
}

/// The manager, as a launch sees it.
struct Host(&'static Session);

impl Channel for Host {
    fn send(&self, message: &PluginMessage) -> Result<Option<HostMessage>, LaunchError> {
        self.0.send(message.clone()).map_err(|refusal| match refusal {
            Refusal::Cancelled => LaunchError::cancelled(),
            Refusal::Malformed(why) => LaunchError::new(ErrorKind::Plugin, why),
        })
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    fn cancel_fd(&self) -> BorrowedFd<'_> {
        self.0.cancelled()
    }
}

/// The other place, by way of the programs that the plugin names.
struct Commands<'a> {
    plugin: &'a Plugin,
    run: OnceLock<Run>,
    /// The plugin has ended without an answer.
    is_unanswered: AtomicBool,
    started: Mutex<Option<Arc<Mutex<Started>>>>,
}

impl Commands<'_> {
    /// Asks the plugin how the command is run.
    fn ask(&self, command: &str) -> Result<&Run, LaunchError> {
        let exec = Exec { id: EXEC, command: command.to_owned() };
        self.plugin.session.wants_run();
        self.plugin.send(&HostMessage::Exec(exec));
        match self.plugin.session.wait_for_run() {
            Ok(Some(run)) => Ok(self.run.get_or_init(|| run)),
            Ok(None) => {
                self.is_unanswered.store(true, Ordering::Relaxed);
                Err(LaunchError::cancelled())
            }
            Err(_) => Err(LaunchError::cancelled()),
        }
    }

    /// Ends the program of the command, which has done its work or has to.
    fn end(&self) {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(started) = started {
            started.lock().unwrap_or_else(PoisonError::into_inner).end();
        }
    }
}

impl Remote for Commands<'_> {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        let run = self.ask(command)?;
        let argv: Vec<_> = run.argv.iter().map(|it| it.replace(COMMAND, command)).collect();
        let failed = |error: &io::Error| {
            let message = format!("cannot run `{}`, by which commands get there", argv[0]);
            LaunchError::new(ErrorKind::Unreachable, message)
                .because(error)
                .with_hint("install it, or see that it is in the `PATH` of the manager")
        };
        let (started, ends) = Started::start(&argv, false).map_err(|error| failed(&error))?;
        let missing = || io::Error::other("a standard stream is missing");
        let stderr = ends.stderr.ok_or_else(missing).map_err(|error| failed(&error))?;
        let started = Arc::new(Mutex::new(started));
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = Some(started.clone());
        let ending =
            move || started.lock().unwrap_or_else(PoisonError::into_inner).ending(STATUS_LIMIT);
        Ok(Running { stdin: ends.stdin, stdout: ends.stdout, stderr, ending: Box::new(ending) })
    }

    fn reach(&self) -> Reach {
        match self.run.get().and_then(|run| run.address.as_deref()) {
            None => Reach::Reported,
            Some("none") => Reach::Tunnel,
            Some(address) => Reach::Host(address.to_owned()),
        }
    }

    fn forward(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        let words = self.run.get().map(|run| run.forward.as_slice()).unwrap_or_default();
        let name = &self.plugin.name;
        let failed = || {
            let message = format!("plugin `{name}` brings no connection to `{to}`");
            LaunchError::new(ErrorKind::PortUnreachable, message)
        };
        if words.is_empty() {
            return Err(failed());
        }
        let (host, port, address) = (to.ip().to_string(), to.port().to_string(), to.to_string());
        let fill = |word: &String| {
            word.replace("{host}", &host).replace("{port}", &port).replace("{address}", &address)
        };
        started::forward(words.iter().map(fill).collect()).map_err(|error| failed().because(&error))
    }

    fn stays(&self) -> bool {
        self.run.get().is_some_and(|run| run.stays)
    }

    fn carrier(&self) -> &'static str {
        "the plugin"
    }

    fn start_limit(&self) -> Duration {
        let told = self.run.get().and_then(|run| run.wait_ms).map(Duration::from_millis);
        told.unwrap_or(START_LIMIT).min(WAIT_MAX)
    }
}
