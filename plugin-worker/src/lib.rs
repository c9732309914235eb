//! The child that runs one plugin for one launch: `distant plugin-worker [--fd N] [--exec] PATH`.
//!
//! It stands between a foreign library and the manager, so that whatever the library does ends
//! one launch and nothing else. It speaks the messages of the plugin API as JSON lines over the
//! standard input and output that it was started with; what the plugin itself prints goes to
//! standard error. An executable plugin speaks those lines by itself; the worker is its parent, which
//! passes them on and sees to it that the plugin ends when it has to, whether it listens or not.

#![allow(unsafe_code, reason = "ends the process without exit handlers")]

mod commands;
mod library;
mod misfit;
mod program;
mod relay;
mod session;
mod started;

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use distant_plugin_api::message::{
    HostMessage, LogLevel, PluginHello, PluginMessage, MESSAGE_MAX, PROTOCOL,
};
use distant_plugin_api::{ErrorKind, LaunchError, LaunchRequest};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal};
use zeroize::Zeroizing;

use library::Library;
pub use misfit::misfit;
use program::Program;
use relay::{Outcome, Relay};
use session::Session;

/// Lowest number of a descriptor that the worker keeps for itself: above all that a plugin closes
/// when it cleans up before it starts a program.
const DESCRIPTOR_MIN: RawFd = 100;

/// Stack of the thread that runs the plugin, as a main thread's usually is.
const STACK_SIZE: usize = 8 * 1024 * 1024;

/// How long a cancelled launch may take to clean up where no manager is left to end it.
const GRACE: Duration = Duration::from_secs(2);

/// The arguments of `distant plugin-worker`.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// The plugin's file, opened and checked by whoever started the worker: then this very file is
    /// loaded, even if another one is at `path` by now.
    pub fd: Option<RawFd>,
    /// Whether the plugin is a program rather than a library.
    pub exec: bool,
    /// The plugin's file.
    pub path: PathBuf,
    /// Which version of the host the worker is to the library.
    pub host: HostTable,
}

/// The table that a library gets as its host. All but the first are for tests of plugins: a plugin
/// is built once and meets hosts of every age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostTable {
    /// The one of this build.
    #[default]
    Usual,
    /// One that ends behind the members of the first version. Bytes that lead nowhere follow.
    Older,
    /// One that has more members than this build knows, all of which lead nowhere.
    Newer,
}

/// Runs one plugin for one launch and returns how the process is to end.
///
/// A failed launch is no failure of the worker: it says so in an `error` message.
pub fn run(arguments: Arguments) -> ExitCode {
    if io::stdin().is_terminal() {
        // Not an error to log: somebody tries out what they saw in `ps`.
        let _ = writeln!(
            io::stderr(),
            "`distant plugin-worker` runs one plugin for one launch; the manager starts it and \
             talks to it in JSON lines. Try `distant plugin list` or `distant launch` instead."
        );
        return ExitCode::from(2);
    }
    match take_protocol() {
        Ok((from_host, to_host)) => {
            restrict();
            match arguments.exec {
                true => supervise(&arguments, from_host, to_host),
                false => serve(arguments, from_host, to_host),
            }
        }
        Err(error) => {
            let error =
                LaunchError::new(ErrorKind::Plugin, "the plugin's process cannot be set up")
                    .because(&error);
            tell(&mut io::stdout(), &PluginMessage::Error(error))
        }
    }
}

/// Leaves the manager's session and its terminal, and leaves no core dumps.
fn restrict() {
    // Fails only where this process leads a group already, which is as good.
    let _ = rustix::process::setsid();
    leave_no_core_dumps();
}

/// Has this process, and all that it starts from now on, leave no core dumps, which hold secrets.
pub fn leave_no_core_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Lowering a limit is always allowed.
    let _ = rustix::process::setrlimit(Resource::Core, none);
}

/// Runs an executable plugin as a child, and ends as it ended.
fn supervise(arguments: &Arguments, from_host: File, mut to_host: File) -> ExitCode {
    match Program::start(arguments) {
        Ok((mut program, pipes)) => match Relay::new(from_host, to_host, pipes).run(&mut program) {
            Outcome::Ended(status) => program::end_like(status),
            Outcome::RunsCommands(handover) => commands::serve(program, *handover),
        },
        Err(error) => tell(&mut to_host, &PluginMessage::Error(error)),
    }
}

/// Writes a message where there is no session yet, and fails.
fn tell(to_host: &mut impl Write, message: &PluginMessage) -> ExitCode {
    let line = serde_json::to_string(message).unwrap_or_default();
    // If nobody reads it, the exit status is all there is to say.
    let _ = writeln!(to_host, "{line}");
    ExitCode::FAILURE
}

/// Takes the two ends of the protocol out of the plugin's reach, and gives it an empty standard
/// input and standard error for standard output.
fn take_protocol() -> io::Result<(File, File)> {
    let from_host = out_of_reach(rustix::stdio::stdin())?;
    let to_host = out_of_reach(rustix::stdio::stdout())?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok((File::from(from_host), File::from(to_host)))
}

fn out_of_reach(descriptor: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, DESCRIPTOR_MIN)
}

/// Runs the plugin on a thread of its own while this one reads what the host says.
fn serve(arguments: Arguments, from_host: File, to_host: File) -> ExitCode {
    let session = match Session::new(to_host, out_of_reach) {
        // The plugin may hold on to it for as long as the process lives.
        Ok(session) => &*Box::leak(Box::new(session)),
        Err(error) => {
            // Standard output is standard error by now, which the host shows.
            let _ = writeln!(io::stderr(), "the plugin's process cannot be set up: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (launch, launches) = mpsc::sync_channel(1);
    let plugin = move || {
        // A panic here is the worker's own; without this the manager would wait for ever.
        if catch_unwind(AssertUnwindSafe(|| run_plugin(&arguments, session, &launches))).is_err() {
            session.fail(LaunchError::new(ErrorKind::Plugin, "the plugin's process failed"));
        }
        leave(session)
    };
    let plugin = thread::Builder::new().name("launch".into()).stack_size(STACK_SIZE).spawn(plugin);
    if let Err(error) = plugin {
        let message = "there is no thread for the plugin";
        session.fail(LaunchError::new(ErrorKind::Plugin, message).because(&error));
        leave(session);
    }
    match listen(from_host, session, &launch, |_| {}) {
        Ok(()) => session.host_is_gone(),
        Err(error) => session.fail(error),
    }
    if session.is_launched() {
        // The launch ends the process as soon as it has cleaned up.
        thread::sleep(GRACE);
    }
    leave(session)
}

/// Loads the plugin, introduces it, and runs the launch that the host asks for.
fn run_plugin(arguments: &Arguments, session: &'static Session, launches: &mpsc::Receiver<Launch>) {
    let library = match Library::load(arguments) {
        Ok(library) => library,
        Err(error) => return session.fail(error),
    };
    let manifest = library.manifest().clone();
    session.introduce(PluginHello { protocol: PROTOCOL, manifest });
    // No launch comes any more: the other thread is about to end the process.
    let Ok(Launch { request, log_level }) = launches.recv() else { return };
    match serde_json::to_string(&request).map(Zeroizing::new) {
        Ok(text) => session.finish(library.launch(session, log_level, &text, arguments.host)),
        Err(error) => session.fail(
            LaunchError::new(ErrorKind::Plugin, "the launch request cannot be passed on")
                .because(&error),
        ),
    }
}

/// What the thread that reads gives to the thread that launches.
struct Launch {
    request: Box<LaunchRequest>,
    log_level: LogLevel,
}

/// Reads what the host says until it closes its end; an error breaks the protocol. An executable
/// plugin gets the lines that are for it by `pass`.
fn listen(
    from_host: impl Read,
    session: &Session,
    launch: &mpsc::SyncSender<Launch>,
    pass: impl Fn(&[u8]),
) -> Result<(), LaunchError> {
    let broken = |what: &str| LaunchError::new(ErrorKind::Plugin, what);
    let mut from_host = BufReader::new(from_host);
    let mut log_level = LogLevel::default();
    loop {
        let mut line = Zeroizing::new(Vec::new());
        match (&mut from_host).take(MESSAGE_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(MESSAGE_MAX) => return Err(broken("the host sent a line of more than 1 MiB")),
            // Cut off in the middle of a line.
            Ok(_) => return Ok(()),
        }
        let message = serde_json::from_slice(&line).map_err(|error| {
            broken(&format!("the host sent a line that {}", wrong_with(&error)))
        })?;
        match message {
            HostMessage::Hello(hello) if !(PROTOCOL[0]..=PROTOCOL[1]).contains(&hello.protocol) => {
                return Err(broken("the host speaks another version of the protocol"));
            }
            HostMessage::Hello(hello) => {
                log_level = hello.log_level;
                pass(&line);
            }
            HostMessage::Launch(_) if session.is_launched() => {
                return Err(broken("the host asked for a second launch"));
            }
            HostMessage::Launch(request) => {
                session.launched();
                pass(&line);
                // Nobody takes it only where the process is about to end.
                let _ = launch.try_send(Launch { request, log_level });
            }
            HostMessage::Answer(answer) => {
                pass(&line);
                session.answered(answer);
            }
            HostMessage::Verdict(verdict) => session.decided(verdict),
            HostMessage::Cancel => session.cancel(),
            _ => {}
        }
    }
}

/// Says what is wrong with a message without repeating a piece of it, which may be a secret.
fn wrong_with(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match error.classify() {
        serde_json::error::Category::Data if text.starts_with("missing field") => {
            format!("has a {}", text.split(" at line").next().unwrap_or_default())
        }
        serde_json::error::Category::Data => "has a member of the wrong type or value".to_owned(),
        _ => format!("is no JSON from column {} on", error.column()),
    }
}

/// Ends the process at once. Where nobody is left to do it, what the plugin started and left in
/// its process group ends too.
fn leave(session: &Session) -> ! {
    let own = rustix::process::getpid();
    if session.is_host_gone() && rustix::process::getpgrp() == own {
        // Takes this process along.
        let _ = rustix::process::kill_process_group(own, Signal::KILL);
    }
    // SAFETY: it touches no memory. Returning from `main` instead would run the exit handlers of
    // the library and of what it brought along, while its threads may still be running.
    unsafe { libc::_exit(0) }
}
