//! One `ssh` process, from its start to the command that it runs.
//!
//! Its standard error says how far it is; its questions are asked
//! while the login lasts. Whatever ends the launch ends the process.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use distant_plugin_api::bootstrap::{Reach, Remote, Running};
use distant_plugin_api::message::{Challenge, LogLevel, Question, Stage, Verification};
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{Caller, ErrorKind, LaunchError, LaunchRequest};
use distant_ssh::child;
use distant_ssh::config::{Person, Settings};
use distant_ssh::guard::system;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::arguments::Arguments;
use crate::heard::Heard;
use crate::process::{described, Process, END_LIMIT};
use crate::questions::{Asked, Kind, Questions};
use crate::words::{Step, Words};
use crate::{no_program, tunnel};

/// The limit of the key exchange, which begins when the connection is made.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);
/// The limit of the login, without the time that a person takes.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);
/// The limit of a request to the running `ssh`.
const FORWARD_LIMIT: Duration = Duration::from_secs(10);
/// How long one that has closed its output may take to say how the command ended.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// What became of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has not come to an end.
    Open,
    /// The server hung up at once, as a busy one does.
    HungUp,
    /// The command runs.
    LoggedIn,
}

/// A login that [`Remote::exec`] makes: the connection ends with the command.
pub(crate) struct Login<'a> {
    settings: &'a Settings,
    person: &'a Person,
    caller: &'a Caller,
    arguments: Arguments,
    verbose: bool,
    is_proxied: bool,
    /// One that was given with the destination.
    password: Mutex<Option<Secret>>,
    questions: Mutex<Questions>,
    heard: Arc<Heard>,
    process: Mutex<Option<Process>>,
    /// Takes a tunnel back that goes through a connection which is not ours.
    to_cancel: Mutex<Option<Command>>,
    outcome: Mutex<Outcome>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Login<'a> {
    /// Prepares it.
    ///
    /// # Errors
    ///
    /// The system is out of something.
    pub(crate) fn new(
        settings: &'a Settings,
        person: &'a Person,
        caller: &'a Caller,
        arguments: Arguments,
        request: &LaunchRequest,
    ) -> Result<Self, LaunchError> {
        let is_proxied = settings.proxy_command.is_some() || !settings.proxy_jump.is_empty();
        Ok(Self {
            settings,
            person,
            caller,
            arguments,
            verbose: request.options.bool("verbose")?.unwrap_or(false),
            is_proxied,
            password: Mutex::new(request.destination.password.clone()),
            questions: Mutex::new(Questions::new()?),
            heard: Arc::new(Heard::new(is_proxied)?),
            process: Mutex::new(None),
            to_cancel: Mutex::new(None),
            outcome: Mutex::new(Outcome::Open),
        })
    }

    /// What became of it.
    pub(crate) fn outcome(&self) -> Outcome {
        *lock(&self.outcome)
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        lock(&self.heard.words)
    }

    fn ssh(&self, arguments: Vec<OsString>) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(arguments).env("HOME", &self.person.home);
        if self.person.cwd.is_dir() {
            ssh.current_dir(&self.person.cwd);
        }
        ssh
    }

    fn start(&self, command: &str) -> Result<(Process, Running), LaunchError> {
        let questions = lock(&self.questions);
        let mut ssh = self.ssh(self.arguments.run(&questions.socket("control"), command));
        ssh.env("SSH_ASKPASS", questions.program()).env("SSH_ASKPASS_REQUIRE", "force");
        #[allow(clippy::disallowed_methods, reason = "it is `ssh`'s own, passed on as it is")]
        let has_display = std::env::var_os("DISPLAY").is_some();
        if !has_display {
            // Without one, an older `ssh` asks nobody.
            ssh.env("DISPLAY", ":0");
        }
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = Process::start(&mut ssh).map_err(|error| no_program(&error))?;
        let missing = || system(rustix::io::Errno::BADF);
        let mut child = lock(&process.child);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = child.stderr.take().ok_or_else(missing)?;
        drop(child);
        let (rest, to_rest) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let (stderr, to_rest) = (OwnedFd::from(stderr).into(), to_rest.into());
        self.heard.listen(stderr, to_rest, self.verbose).map_err(system)?;
        let ending = process.clone();
        let running = Running {
            stdin: stdin.ok_or_else(missing)?.into(),
            stdout: stdout.ok_or_else(missing)?.into(),
            stderr: rest,
            ending: Box::new(move || {
                let status = ending.ends_within(STATUS_LIMIT)?;
                Some(described(status))
            }),
        };
        Ok((process, running))
    }

    /// Waits until the command runs, and asks what has to be asked.
    fn log_in(&self, process: &Process, running: &Running) -> Result<(), LaunchError> {
        let mut deadline = Instant::now() + self.settings.connect_limit + HANDSHAKE_LIMIT;
        let mut step = Step::Connecting;
        let mut shown = 0;
        loop {
            let now = self.words().step;
            if now != step {
                if now == Step::LoggedIn {
                    return self.show(&mut shown);
                }
                if step == Step::Connecting {
                    deadline = Instant::now() + LOGIN_LIMIT;
                    self.caller.stage(Stage::HostKey)?;
                }
                if now == Step::Authenticating {
                    self.caller.stage(Stage::Authenticate)?;
                }
                step = now;
            }
            match self.wait(process, running, deadline)? {
                Woken::News => {}
                Woken::Asked => {
                    // All of them: nothing says again that there was another one behind it.
                    while let Some(asked) = self.asked() {
                        let since = Instant::now();
                        self.heard.catch_up();
                        self.show(&mut shown)?;
                        self.ask(&asked, process)?;
                        deadline += since.elapsed();
                    }
                }
                // Whoever prints has let us in.
                Woken::Output => return self.show(&mut shown),
                Woken::Exited(status) if self.words().step == Step::LoggedIn => {
                    tracing::debug!("ssh has ended: {status}");
                    return Ok(());
                }
                Woken::Exited(status) => return Err(self.failed(status)),
                Woken::Late => return Err(self.late(step)),
            }
        }
    }

    fn wait(
        &self,
        process: &Process,
        running: &Running,
        deadline: Instant,
    ) -> Result<Woken, LaunchError> {
        let ready: Vec<PollFlags> = {
            let questions = lock(&self.questions);
            let (cancel, asked) = (self.caller.cancel_fd(), questions.pipe());
            let mut fds = [
                PollFd::new(&cancel, PollFlags::IN),
                PollFd::new(&asked, PollFlags::IN),
                PollFd::new(&self.heard.news, PollFlags::IN),
                PollFd::new(&running.stdout, PollFlags::IN),
                PollFd::new(&process.exited, PollFlags::IN),
            ];
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(Woken::Late),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => return Ok(Woken::News),
                Err(error) => return Err(system(error)),
            }
            fds.iter().map(PollFd::revents).collect()
        };
        self.caller.check()?;
        if !ready[1].is_empty() {
            return Ok(Woken::Asked);
        }
        if ready[3].contains(PollFlags::IN) {
            return Ok(Woken::Output);
        }
        if !ready[4].is_empty() {
            self.heard.until_end();
            if let Some(status) = process.ends_within(END_LIMIT) {
                return Ok(Woken::Exited(status));
            }
        }
        self.heard.clear_news();
        Ok(Woken::News)
    }

    fn asked(&self) -> Option<Asked> {
        lock(&self.questions).take()
    }

    /// Shows the person what `ssh` had to say meanwhile, such as the server's banner.
    fn show(&self, shown: &mut usize) -> Result<(), LaunchError> {
        let text = self.words().since(shown);
        match text.is_empty() {
            true => Ok(()),
            false => self.caller.notice(LogLevel::Info, text),
        }
    }

    fn ask(&self, asked: &Asked, process: &Process) -> Result<(), LaunchError> {
        let answer = |answer: Option<&Secret>| lock(&self.questions).answer(asked, answer);
        let whom = || format!("{}@{}", self.settings.user, self.settings.given);
        match &asked.kind {
            Kind::Tell(text) => self.caller.notice(LogLevel::Info, text.clone())?,
            Kind::Host { place, key, more } => {
                let more: String = more.iter().map(|line| format!("{line}\n")).collect();
                let text = format!(
                    "SSH host {place} is not yet trusted.\n{key}\n{more}Trust and continue connecting?"
                );
                if !self.caller.verify(Verification { kind: "host".into(), text })? {
                    process.kill();
                    answer(None);
                    let message = format!("the host key of `{place}` is not known");
                    return Err(LaunchError::new(ErrorKind::HostKey, message)
                        .caused_by(format!("it shows the {}", key.replace(" Fingerprint: ", " key ")))
                        .caused_by("nobody said that it is the right one")
                        .with_hint(
                            "compare the fingerprint, and launch once at a terminal, where you can accept it",
                        ));
                }
                answer(Some(&Secret::new("yes")));
            }
            Kind::Confirm(text) => {
                let question = Verification { kind: "confirm".into(), text: text.clone() };
                let yes = self.caller.verify(question)?.then(|| Secret::new("yes"));
                answer(yes.as_ref());
            }
            Kind::Passphrase(file) => {
                let text = format!("Passphrase to decrypt {file} for {}:\n> ", whom());
                match self.ask_one(&text) {
                    Ok(passphrase) => answer(Some(&passphrase)),
                    Err(error) if error.kind == ErrorKind::Authentication => {
                        self.words().note(format!("key `{file}`: nobody told its passphrase"));
                        answer(None);
                    }
                    Err(error) => return Err(error),
                }
            }
            Kind::Password(of) => {
                // A host in between may ask for one too, and must not get it.
                let is_meant = !self.is_proxied || is_of(of, self.settings);
                let given = lock(&self.password).take_if(|_| is_meant);
                let ask = || self.ask_one(&format!("Password for {of}: "));
                self.required(given.map_or_else(ask, Ok), asked, process)?;
            }
            Kind::Other(text) => self.required(self.ask_one(text), asked, process)?,
        }
        Ok(())
    }

    /// Hands an answer on; without one `ssh` would send an empty one, so it has to end first.
    fn required(
        &self,
        answer: Result<Secret, LaunchError>,
        asked: &Asked,
        process: &Process,
    ) -> Result<(), LaunchError> {
        let error = match answer {
            Ok(answer) => {
                lock(&self.questions).answer(asked, Some(&answer));
                return Ok(());
            }
            Err(error) => error,
        };
        process.kill();
        lock(&self.questions).answer(asked, None);
        if error.kind != ErrorKind::Authentication {
            return Err(error);
        }
        Err(self.words().refused(self.settings).caused_by(error.one_line().into_owned()))
    }

    /// Asks one question; an empty answer is none.
    fn ask_one(&self, text: &str) -> Result<Secret, LaunchError> {
        let question = Question { text: text.into(), label: "ssh-prompt".into(), echo: false };
        let challenge = Challenge {
            questions: vec![question],
            instructions: String::new(),
            username: self.settings.user.clone(),
        };
        let answer = self.caller.ask(challenge)?.into_iter().next();
        answer.filter(|answer| !answer.expose().is_empty()).ok_or_else(|| {
            LaunchError::new(ErrorKind::Authentication, "a question was left unanswered")
                .caused_by(text.trim().trim_end_matches(':'))
        })
    }

    fn failed(&self, status: ExitStatus) -> LaunchError {
        let words = self.words();
        if words.hung_up() {
            *lock(&self.outcome) = Outcome::HungUp;
        }
        words.error(self.settings, &described(status))
    }

    fn late(&self, step: Step) -> LaunchError {
        let error = |message| LaunchError::new(ErrorKind::TimedOut, message);
        match step {
            Step::Connecting => {
                error(format!("`{}` does not speak ssh, or is too slow", self.settings.place()))
            }
            _ => error(format!(
                "`{}@{}` took too long over the login",
                self.settings.user, self.settings.given
            )),
        }
    }
}

impl Remote for Login<'_> {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        let (process, running) = self.start(command)?;
        *lock(&self.process) = Some(process.clone());
        self.log_in(&process, &running)?;
        *lock(&self.outcome) = Outcome::LoggedIn;
        Ok(running)
    }

    fn reach(&self) -> Reach {
        match self.words().peer {
            _ if self.is_proxied => Reach::Tunnel,
            Some(peer) => Reach::Peer(peer),
            // The connection is another one's.
            None => Reach::Host(self.settings.host.clone()),
        }
    }

    fn forward(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        let (control, socket) = {
            let questions = lock(&self.questions);
            (questions.socket("control"), questions.socket("tunnel"))
        };
        let to_server = to.to_string();
        let ssh = |order| {
            let arguments = self.arguments.forward(order, &control, &socket, &to_server);
            self.ssh(arguments)
        };
        let failed = || {
            let message = format!("`ssh` brings no connection to `{to}`");
            LaunchError::new(ErrorKind::PortUnreachable, message)
        };
        let forward = ssh("forward");
        let output = child::output(forward, FORWARD_LIMIT, self.caller)?.ok_or_else(failed)?;
        if !output.success {
            let lines = output.errors.lines().map(str::to_owned);
            return Err(lines.fold(failed(), LaunchError::caused_by));
        }
        if self.arguments.is_shared {
            // The connection outlives the launch, and would go on to listen.
            *lock(&self.to_cancel) = Some(ssh("cancel"));
        }
        tunnel::listen(socket).map_err(|error| failed().because(&error))
    }

    fn carrier(&self) -> &'static str {
        "ssh"
    }
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        if let Some(mut cancel) = lock(&self.to_cancel).take() {
            let cancel = cancel.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Whoever has ended the connection has ended this too.
            if let Ok(cancel) = Process::start(cancel) {
                cancel.end(true);
            }
        }
        if let Some(process) = lock(&self.process).take() {
            process.end(*lock(&self.outcome) == Outcome::LoggedIn);
        }
    }
}

/// Whether `ssh` asks for the password of the host that the settings are for: it cuts long names.
fn is_of(asked: &str, settings: &Settings) -> bool {
    let cut = |name: &str, most: usize| name.as_bytes()[..name.len().min(most)].to_owned();
    let host = settings.host.to_lowercase();
    let whom = [cut(&settings.user, 30), b"@".to_vec(), cut(&host, 128)].concat();
    asked.as_bytes() == whom
}

enum Woken {
    News,
    Asked,
    Output,
    Exited(ExitStatus),
    Late,
}
