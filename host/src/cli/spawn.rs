//! `distant spawn`: runs a program on a server as if it ran here.
//!
//! Standard streams are connected through, their ends included, and the exit code is the remote one.
//! A released server cannot be told of the end of the input: there a program that reads to the end
//! runs until it is interrupted. With `--pty` the
//! program gets a terminal of its own and every key goes to it, Ctrl-C included; without, Ctrl-C
//! ends the program there and then this one.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use distant_protocol::{Cmd, Msg, PtySize, Request, Response};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::Semaphore;

use super::arguments::Spawn;
use super::channel::{self, Receiver, Sender};
use super::launch::parse_options;
use super::lsp::Translator;
use super::manager_client::{ManagerClient, Missing};
use super::person::Person;
use super::shell;
use super::terminal::{self, Terminal};
use super::{end_signal, tty, Context, Failure};
use crate::wire::message::{ClientExtension, Header, EXTENSION};

/// Most bytes of standard input in one request, as in 0.20.
const CHUNK: usize = 16 * 1024;
/// Requests with input that are under way at the same time.
const WINDOW: usize = 16;
/// How long a round trip to the server may take after a program has ended there.
const ROUND_TRIP: Duration = Duration::from_secs(10);
/// How long the last output of the program may take after that.
const TAIL: Duration = Duration::from_millis(50);
/// How long the end of a program there may take after Ctrl-C here.
const KILL: Duration = Duration::from_secs(1);
/// What a terminal is called where the person does not say, as in 0.20.
const TERM: &str = "xterm-256color";
/// Ends the input of a program at a terminal (Ctrl-D).
const END_OF_INPUT: &[u8] = b"\x04";

/// Runs the command.
///
/// # Errors
///
/// The command line is wrong, there is no connection, or the program cannot be started.
pub(crate) fn run(arguments: &Spawn, context: &Context) -> Result<ExitCode, Failure> {
    let environment = parse_options(&arguments.environment, "--environment")?;
    let mut environment: HashMap<String, String> =
        environment.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if arguments.cmd_str.is_none() && arguments.cmd.is_empty() {
        return Err(Failure::usage("there is no command to run")
            .with_hint("`distant spawn -- <CMD>`, or `distant spawn -c '<CMD>'`"));
    }
    if arguments.pty {
        environment.entry("TERM".to_owned()).or_insert_with(|| TERM.to_owned());
    }
    let attending = Cell::new(false);
    let signal = async {
        let kind = end_signal().await;
        // From then on the program there has to be ended first.
        if attending.get() {
            std::future::pending::<()>().await;
        }
        kind
    };
    context.run_with_signals(async {
        tokio::select! {
            result = work(arguments, environment, &attending, context) => result,
            kind = signal => Err(Failure::Interrupted(kind)),
        }
    })
}

async fn work(
    arguments: &Spawn,
    environment: HashMap<String, String>,
    attending: &Cell<bool>,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let flag = &arguments.connection;
    let network = context.client_network(&arguments.network);
    let mut person = Person::new(&context.terminal);
    let manager = ManagerClient::connect(context, &network, Missing::Fail, &mut person).await?;
    let connection = channel::connection(flag.connection, &flag.cache.cache)?;
    let (sender, mut receiver) = channel::open(&manager, connection).await?;
    let cmd = match &arguments.shell {
        None => shell::command(arguments.cmd_str.as_deref(), &arguments.cmd),
        Some(named) => {
            let text = shell::text(arguments.cmd_str.as_deref(), &arguments.cmd);
            let shell = match named {
                Some(named) => named.clone(),
                None => default_shell(&sender, &mut receiver).await?,
            };
            shell::wrap(&shell, &text)?
        }
    };
    // Not the rest, which may hold a secret.
    let mut what = shell_words::split(&cmd).unwrap_or_default().into_iter().next();
    if let (Some(name), Some(folder)) = (&mut what, &arguments.current_dir) {
        name.push_str(&format!("` in `{}", folder.display()));
    }
    let request = Request::ProcSpawn {
        cmd: Cmd::new(cmd),
        environment,
        current_dir: arguments.current_dir.clone(),
        pty: arguments.pty.then(size),
    };
    let what = what.unwrap_or_default();
    let program = Program::start(&sender, &mut receiver, &request, &what).await?;
    attending.set(true);
    let translators = arguments.lsp.as_ref().map(|scheme| {
        let scheme = scheme.as_deref();
        (Translator::to_server(scheme), Translator::to_editor(scheme))
    });
    let code = program.attend(receiver, arguments.pty, translators, &context.terminal).await;
    sender.close().await;
    code
}

/// The size of this terminal; 24 rows of 80 where there is none.
fn size() -> PtySize {
    let size = rustix::termios::tcgetwinsize(io::stdout())
        .or_else(|_| rustix::termios::tcgetwinsize(io::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => PtySize {
            rows: size.ws_row,
            cols: size.ws_col,
            pixel_width: size.ws_xpixel,
            pixel_height: size.ws_ypixel,
        },
        _ => PtySize::default(),
    }
}

async fn default_shell(
    sender: &Sender<'_>,
    receiver: &mut Receiver,
) -> Result<String, LaunchError> {
    send(sender, "shell", &Request::SystemInfo {}).await?;
    match next(receiver).await? {
        (_, Response::SystemInfo(info)) => Ok(shell::default_of(&info)),
        (_, other) => Err(unexpected(other, "the server does not tell about its system")),
    }
}

async fn send(sender: &Sender<'_>, id: &str, request: &Request) -> Result<(), LaunchError> {
    sender.send(Header::new(), id.to_owned(), &Msg::Single(request)).await
}

/// The next response, with the id of its request.
async fn next(receiver: &mut Receiver) -> Result<(String, Response), LaunchError> {
    let response = receiver.next().await?.ok_or_else(|| {
        LaunchError::new(ErrorKind::Unreachable, "the manager closed the channel")
    })?;
    match channel::parse(&response)? {
        Msg::Single(message) => Ok((response.origin_id, message)),
        Msg::Batch(_) => {
            Err(LaunchError::new(ErrorKind::Other, "the server answered one request with a batch"))
        }
    }
}

fn unexpected(response: Response, message: &str) -> LaunchError {
    let error = LaunchError::new(ErrorKind::Other, message);
    match response {
        Response::Error(cause) => error.caused_by(cause.description),
        _ => error.caused_by("it replied with something else than was asked for"),
    }
}

/// A program that runs on the server.
struct Program<'a> {
    sender: &'a Sender<'a>,
    id: u32,
    /// Lets only so many requests with input be under way.
    window: Semaphore,
}

/// The ids of this command's requests; each kind has one.
const SPAWN: &str = "spawn";
const STDIN: &str = "stdin";
const RESIZE: &str = "resize";
const KILLED: &str = "kill";
const LAST: &str = "last";

impl<'a> Program<'a> {
    async fn start(
        sender: &'a Sender<'a>,
        receiver: &mut Receiver,
        request: &Request,
        what: &str,
    ) -> Result<Self, LaunchError> {
        send(sender, SPAWN, request).await?;
        match next(receiver).await? {
            (_, Response::ProcSpawned { id }) => {
                Ok(Self { sender, id, window: Semaphore::new(WINDOW) })
            }
            (_, other) => Err(unexpected(other, &format!("cannot start `{what}` there"))),
        }
    }

    /// Connects the standard streams through until the program has ended, and returns its exit
    /// code.
    async fn attend(
        &self,
        receiver: Receiver,
        pty: bool,
        translators: Option<(Translator, Translator)>,
        terminal: &Terminal,
    ) -> Result<ExitCode, Failure> {
        let (to_server, to_editor) = translators.unzip();
        let stdin = io::stdin();
        let raw = pty && to_server.is_none() && stdin.is_terminal();
        let restore = raw.then(|| tty::raw(&stdin)).transpose();
        let restore = restore
            .map_err(|error| terminal::from_error("the terminal cannot be handed over", &error))?;
        let result = tokio::select! {
            result = self.output(receiver, to_editor, terminal) => result.map_err(Failure::from),
            Err(error) = self.input(pty, to_server) => Err(error.into()),
            Err(error) = self.resize(), if raw => Err(error.into()),
            kind = end_signal() => Err(Failure::Interrupted(kind)),
        };
        drop(restore);
        if result.is_err() {
            tokio::select! {
                () = self.kill() => {}
                () = tokio::time::sleep(KILL) => {}
                _ = end_signal() => {}
            }
        }
        result
    }

    async fn output(
        &self,
        mut receiver: Receiver,
        mut translator: Option<Translator>,
        terminal: &Terminal,
    ) -> Result<ExitCode, LaunchError> {
        let mut code = None;
        let mut limit = ROUND_TRIP;
        loop {
            let message = match code {
                None => next(&mut receiver).await?,
                // Output that was under way when the program ended still comes.
                Some(code) => match tokio::time::timeout(limit, next(&mut receiver)).await {
                    Ok(message) => message?,
                    Err(_) => return Ok(ExitCode::from(code)),
                },
            };
            match message {
                (id, _) if id == LAST => limit = TAIL,
                (_, Response::ProcStdout { data, .. }) => match &mut translator {
                    None => terminal.stream(data).await?,
                    Some(translator) => {
                        let translated = translator.translate(&data).map_err(|error| {
                            terminal::from_error("the program's output is wrong", &error)
                        })?;
                        terminal.stream(translated).await?;
                    }
                },
                (_, Response::ProcStderr { data, .. }) => terminal.stream_error(data).await,
                (_, Response::ProcDone { success, code: given, .. }) => {
                    code = Some(exit_code(success, given));
                    send(self.sender, LAST, &Request::Version {}).await?;
                }
                (id, response) if id == STDIN => {
                    self.window.add_permits(1);
                    if let Response::Error(error) = response {
                        // The program has closed its input, or ended: its output says more.
                        tracing::debug!("the program takes no more input: {}", error.description);
                    }
                }
                (_, Response::Error(error)) => tracing::debug!("{}", error.description),
                (id, _) => tracing::trace!("a response to `{id}`"),
            }
        }
    }

    /// Sends standard input until it ends, and then waits for ever: the program may still run.
    async fn input(
        &self,
        pty: bool,
        mut translator: Option<Translator>,
    ) -> Result<std::convert::Infallible, LaunchError> {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = stdin.read(&mut buffer).await;
            let count = count
                .map_err(|error| terminal::from_error("cannot read standard input", &error))?;
            if count == 0 {
                match pty {
                    true => self.feed(END_OF_INPUT).await?,
                    false => self.end_input().await?,
                }
                return std::future::pending().await;
            }
            match &mut translator {
                None => self.feed(&buffer[..count]).await?,
                Some(translator) => {
                    let translated = translator
                        .translate(&buffer[..count])
                        .map_err(|error| terminal::from_error("standard input is wrong", &error))?;
                    for piece in translated.chunks(CHUNK) {
                        self.feed(piece).await?;
                    }
                }
            }
        }
    }

    async fn feed(&self, data: &[u8]) -> Result<(), LaunchError> {
        self.send_input(Header::new(), data).await
    }

    /// Has the program see the end of its input. A released server takes it for input of no bytes.
    async fn end_input(&self) -> Result<(), LaunchError> {
        let extension =
            ClientExtension { version: 1, close_stdin: true, ..ClientExtension::default() };
        let extension = serde_json::to_value(extension)
            .map_err(|error| terminal::from_error("cannot write a request", &error))?;
        self.send_input([(EXTENSION.to_owned(), extension)].into_iter().collect(), &[]).await
    }

    async fn send_input(&self, header: Header, data: &[u8]) -> Result<(), LaunchError> {
        // It is given back when the response is there.
        if let Ok(permit) = self.window.acquire().await {
            permit.forget();
        }
        let request = Request::ProcStdin { id: self.id, data: data.to_vec() };
        self.sender.send(header, STDIN.to_owned(), &Msg::Single(&request)).await
    }

    async fn resize(&self) -> Result<std::convert::Infallible, LaunchError> {
        let Ok(mut changes) = signal(SignalKind::window_change()) else {
            return std::future::pending().await;
        };
        loop {
            changes.recv().await;
            let request = Request::ProcResizePty { id: self.id, size: size() };
            send(self.sender, RESIZE, &request).await?;
        }
    }

    async fn kill(&self) {
        // Its reply is not waited for: closing the channel comes after it.
        let _ = send(self.sender, KILLED, &Request::ProcKill { id: self.id }).await;
    }
}

/// The exit code of this program for that of the remote one; 1 if a signal ended it.
fn exit_code(success: bool, code: Option<i32>) -> u8 {
    match (success, code) {
        (true, _) => 0,
        // Its lowest byte, as every system passes it on.
        (false, Some(code)) => code.to_le_bytes()[0],
        (false, None) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_passed_on() {
        assert_eq!(exit_code(true, Some(0)), 0);
        assert_eq!(exit_code(false, Some(127)), 127);
        assert_eq!(exit_code(false, Some(-1)), 255);
        assert_eq!(exit_code(false, None), 1);
    }
}
