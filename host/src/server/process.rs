//! The processes that clients run: what they say is sent on, what they are told is written to them.
//!
//! One task has each process from its start to its end. It reads no faster than the client takes
//! what was read, so a slow client slows the process down and never fills the server. distant-local
//! could do none of this: its replies cannot wait, its kill of a terminal's process only forgets it,
//! one process that does not read stalls all others, and a terminal costs 1000 wake-ups a second.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::{pin, Pin};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use distant_protocol::{Environment, Msg, ProcessId, PtySize, Response};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};
use rustix::termios::{tcsetwinsize, Winsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot, Notify};
use tokio::time::{sleep_until, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::caller::Caller;
use super::child::Starter;
use crate::paths;

/// Most bytes of one message with output.
const CHUNK: usize = 16 * 1024;

/// Between the request to end and the end by force, and for the last output after that. Less than
/// those who end the server leave it.
const GRACE: Duration = Duration::from_millis(500);

/// All processes of all clients.
#[derive(Debug)]
pub(super) struct Processes {
    starter: Starter,
    running: Arc<Mutex<HashMap<ProcessId, Handle>>>,
    /// One task for each process.
    tasks: TaskTracker,
    ending: CancellationToken,
}

/// What requests reach a process by.
#[derive(Debug, Clone)]
struct Handle {
    input: mpsc::UnboundedSender<Input>,
    kill: Arc<Notify>,
    terminal: Option<Terminal>,
}

impl Handle {
    async fn write(&self, data: Vec<u8>, is_last: bool) -> io::Result<()> {
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the process reads no input");
        let (written, done) = oneshot::channel();
        self.input.send(Input { data, is_last, written }).map_err(|_| closed())?;
        done.await.map_err(|_| closed())
    }
}

/// Bytes for a process. The request that brought them is answered when they are written, so the
/// bound for requests is one for these too.
#[derive(Debug)]
struct Input {
    data: Vec<u8>,
    /// Nothing follows.
    is_last: bool,
    written: oneshot::Sender<()>,
}

/// What a client wants to run.
pub(super) struct Wish {
    pub(super) command: String,
    pub(super) environment: Environment,
    pub(super) current_dir: Option<PathBuf>,
    pub(super) terminal: Option<PtySize>,
}

impl Processes {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            starter: Starter::new()?,
            running: Arc::default(),
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        })
    }

    /// Starts a process; what it says goes to the caller after its request is answered.
    ///
    /// # Errors
    ///
    /// Its command line is no command line, or it cannot be run.
    pub(super) async fn spawn(&self, caller: &Caller, wish: Wish) -> io::Result<ProcessId> {
        let size = wish.terminal.as_ref().map(winsize);
        let command = command(wish)?;
        let (input, inputs) = mpsc::unbounded_channel();
        let process = match size {
            None => Running::with_pipes(self.starter.start(command).await?)?,
            Some(size) => {
                let (child, terminal) = self.starter.start_in_terminal(command, size).await?;
                Running::with_terminal(child, terminal)?
            }
        };
        let handle = Handle { input, kill: Arc::default(), terminal: process.terminal.clone() };
        let id = self.register(handle.clone());
        let running = Arc::clone(&self.running);
        let (caller, ending) = (caller.clone(), self.ending.clone());
        self.tasks.spawn(async move {
            process.run(id, &caller, &handle.kill, inputs, &ending).await;
            lock(&running).remove(&id);
        });
        Ok(id)
    }

    fn register(&self, handle: Handle) -> ProcessId {
        let mut running = lock(&self.running);
        loop {
            let id = rand::random();
            if let std::collections::hash_map::Entry::Vacant(free) = running.entry(id) {
                free.insert(handle);
                return id;
            }
        }
    }

    fn find(&self, id: ProcessId) -> io::Result<Handle> {
        let found = lock(&self.running).get(&id).cloned();
        found.ok_or_else(|| io::Error::other(format!("no process has the id {id}")))
    }

    /// Ends a process by force, and all that belongs to its group.
    ///
    /// # Errors
    ///
    /// There is none of this id.
    pub(super) fn kill(&self, id: ProcessId) -> io::Result<()> {
        self.find(id)?.kill.notify_one();
        Ok(())
    }

    /// Hands a process its input, in the order in which the returned futures are polled first, and
    /// waits until it is written.
    ///
    /// # Errors
    ///
    /// There is no process of this id, or it reads no more.
    pub(super) async fn write(&self, id: ProcessId, data: Vec<u8>) -> io::Result<()> {
        self.find(id)?.write(data, false).await
    }

    /// Hands a process its last input, as [`Self::write`] does, and lets it see the end. A terminal
    /// has none: there the end is a key that is typed.
    ///
    /// # Errors
    ///
    /// There is no process of this id, or it reads no more.
    pub(super) async fn write_last(&self, id: ProcessId, data: Vec<u8>) -> io::Result<()> {
        let handle = self.find(id)?;
        let is_last = handle.terminal.is_none();
        handle.write(data, is_last).await
    }

    /// Tells a process that its terminal has another size.
    ///
    /// # Errors
    ///
    /// There is no process of this id, or it has no terminal.
    pub(super) fn resize(&self, id: ProcessId, size: &PtySize) -> io::Result<()> {
        let none = || io::Error::other(format!("the process {id} has no terminal"));
        let terminal = self.find(id)?.terminal.ok_or_else(none)?;
        Ok(tcsetwinsize(terminal.0.get_ref(), winsize(size))?)
    }

    /// Ends all of them and waits until they are gone.
    pub(super) async fn end(&self) {
        self.ending.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn winsize(size: &PtySize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: size.pixel_width,
        ws_ypixel: size.pixel_height,
    }
}

fn command(wish: Wish) -> io::Result<Command> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidInput, error);
    let words = shell_words::split(&wish.command).map_err(|error| invalid(error.to_string()))?;
    let (program, arguments) =
        words.split_first().ok_or_else(|| invalid("the command is empty".to_owned()))?;
    let mut command = Command::new(program);
    command.args(arguments);
    for variable in paths::LAUNCH_VARIABLES {
        // They are for this server, not for one that a client may start.
        command.env_remove(variable);
    }
    let current_dir = match (&wish.terminal, wish.current_dir) {
        // As in 0.20: somebody at a terminal starts at home, also if the folder does not exist.
        (Some(_), folder) => {
            let home = wish.environment.get("HOME").map_or_else(paths::home, PathBuf::from);
            Some(folder.filter(|folder| folder.is_dir()).unwrap_or(home))
        }
        (None, folder) => folder,
    };
    if let Some(folder) = current_dir {
        command.current_dir(folder);
    }
    command.envs(wish.environment);
    Ok(command)
}

/// A process and the ends of its streams.
struct Running {
    child: Child,
    group: Pid,
    ended: AsyncFd<OwnedFd>,
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    terminal: Option<Terminal>,
}

impl Running {
    fn with_pipes(mut child: Child) -> io::Result<Self> {
        let ended = ended(&mut child)?;
        let none = || io::Error::other("the process has no pipes");
        Ok(Self {
            stdin: Box::new(ChildStdin::from_std(child.stdin.take().ok_or_else(none)?)?),
            stdout: Box::new(ChildStdout::from_std(child.stdout.take().ok_or_else(none)?)?),
            stderr: Some(Box::new(ChildStderr::from_std(child.stderr.take().ok_or_else(none)?)?)),
            terminal: None,
            group: Pid::from_child(&child),
            ended,
            child,
        })
    }

    fn with_terminal(mut child: Child, terminal: OwnedFd) -> io::Result<Self> {
        let ended = ended(&mut child)?;
        let terminal = Terminal(Arc::new(awaitable(terminal)?));
        Ok(Self {
            stdin: Box::new(terminal.clone()),
            stdout: Box::new(terminal.clone()),
            stderr: None,
            terminal: Some(terminal),
            group: Pid::from_child(&child),
            ended,
            child,
        })
    }

    /// Has the process until it is gone, and tells the caller so unless the caller is gone.
    async fn run(
        mut self,
        id: ProcessId,
        caller: &Caller,
        kill: &Notify,
        inputs: mpsc::UnboundedReceiver<Input>,
        ending: &CancellationToken,
    ) {
        // The answer with the id goes first.
        caller.answered().await;
        let stdout = forward(self.stdout, caller, |data| Response::ProcStdout { id, data });
        let stderr = async {
            if let Some(stderr) = self.stderr {
                forward(stderr, caller, |data| Response::ProcStderr { id, data }).await;
            }
        };
        let mut outputs = pin!(async { tokio::join!(stdout, stderr) });
        let mut input = pin!(feed(self.stdin, inputs));
        let (mut fed, mut drained, mut ended, mut unwanted) = (false, false, false, false);
        let mut force: Option<Instant> = None;
        // The leader of the group is reaped last of all, so its number cannot be another's yet.
        let signal = |signal| {
            // An error means that nobody of the group is left.
            let _ = kill_process_group(self.group, signal);
        };
        while !(ended && (drained || unwanted)) {
            tokio::select! {
                _ = &mut outputs, if !drained => drained = true,
                () = &mut input, if !fed => fed = true,
                _ = self.ended.readable(), if !ended => {
                    ended = true;
                }
                () = kill.notified() => {
                    signal(Signal::KILL);
                    force = Some(Instant::now() + GRACE);
                }
                () = unwanted_by(caller, ending), if !unwanted => {
                    unwanted = true;
                    signal(if self.terminal.is_some() { Signal::HUP } else { Signal::TERM });
                    force = Some(Instant::now() + GRACE);
                }
                () = sleep_until(force.unwrap_or_else(Instant::now)), if force.is_some() => {
                    signal(Signal::KILL);
                    force = (!ended).then(|| Instant::now() + GRACE);
                    // What has left the group may hold the output open for ever.
                    drained |= ended;
                }
            }
        }
        if unwanted {
            // Whatever the leader has left behind.
            signal(Signal::KILL);
        }
        let status = self.child.wait();
        if unwanted {
            return;
        }
        let done = match status {
            Ok(status) => Response::ProcDone { id, success: status.success(), code: status.code() },
            Err(error) => Response::from(error),
        };
        // A caller who is gone needs no word.
        let _ = caller.send(&Msg::Single(done)).await;
    }
}

async fn unwanted_by(caller: &Caller, ending: &CancellationToken) {
    tokio::select! {
        () = caller.gone() => {}
        () = ending.cancelled() => {}
    }
}

/// Becomes readable when the process has ended. Without it the process is ended at once.
fn ended(child: &mut Child) -> io::Result<AsyncFd<OwnedFd>> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let ended = ended.map_err(io::Error::from).and_then(awaitable);
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    ended
}

#[allow(deprecated, reason = "unsound only with what may close its descriptor, unlike `OwnedFd`")]
fn awaitable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Sends on what a process says, until it says no more or nobody is left to hear it.
async fn forward(
    mut output: Box<dyn AsyncRead + Send + Unpin>,
    caller: &Caller,
    message: impl Fn(Vec<u8>) -> Response,
) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        let message = Msg::Single(message(buffer[..count].to_vec()));
        if caller.send(&message).await.is_err() {
            return;
        }
    }
}

/// Writes to a process what clients send, until it reads no more or nothing follows.
async fn feed(
    mut stdin: Box<dyn AsyncWrite + Send + Unpin>,
    mut inputs: mpsc::UnboundedReceiver<Input>,
) {
    while let Some(input) = inputs.recv().await {
        if stdin.write_all(&input.data).await.is_err() {
            return;
        }
        if input.is_last {
            drop(stdin);
            let _ = input.written.send(());
            return;
        }
        // Whoever sent it may be gone.
        let _ = input.written.send(());
    }
}

/// Our end of a terminal.
#[derive(Debug, Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *space)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The way of a terminal to say that nobody has its other end open any more.
                Ok(Err(error))
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
                {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            if let Ok(done) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                return Poll::Ready(done);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
