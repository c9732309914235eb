//! The manager's part of one launch, played by a script.
//!
//! It starts the same worker as a manager does and speaks the same lines, but it answers, decides
//! and goes away as the script has it, and it looks at everything that is left afterwards.

#![allow(clippy::disallowed_methods, reason = "a plugin gets a part of its user's environment")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{
    Answer, Ask, AskKind, HostHello, HostMessage, LogLevel, Offer, PluginMessage, ServerCommand,
    Verdict, VerdictKind, MESSAGE_MAX,
};
use distant_plugin_api::options::Options;
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{LaunchError, LaunchRequest, Manifest, HOST_OPTIONS};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process, pidfd_open, Pid, PidfdFlags, Signal};

use crate::{attached, Kit, Launch};

/// How long a cancelled launch may take to let go of everything: what a manager gives it.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// How long a plugin may take to say what it is.
const HELLO: Duration = Duration::from_secs(10);
/// The longest that a plugin needs to end after `connected`, unless it stays.
const STAYS: Duration = Duration::from_secs(4);
/// How long what a launch started may take to be gone after it.
const GONE: Duration = Duration::from_secs(4);
/// How long a server stays that nobody comes to; enough to see that it is there.
const LONELY: &str = "lonely=10";
/// The variable by which everything that a launch started on this machine is found.
const MARK: &str = "DISTANT_PLUGIN_TEST";
/// Variables of a client that a plugin gets to see.
const ENVIRONMENT: [&str; 6] = ["HOME", "KRB5CCNAME", "LANG", "LC_ALL", "SSH_AUTH_SOCK", "USER"];
/// Characters of something unexpected that are shown.
const SHOWN: usize = 120;

/// How questions are answered.
#[derive(Debug, Clone, Default)]
pub(crate) enum Answers {
    /// As the author says.
    #[default]
    Given,
    /// Nobody is there.
    Nobody,
    /// Yes-or-no questions by no, others as the author says.
    No,
    /// Every question by this text.
    Text(String),
}

/// What becomes of an offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Decide {
    #[default]
    Connected,
    /// First `slow`, then `connected`.
    Slow,
    Unreachable,
    Refused,
}

/// How a launch is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// By `cancel`.
    Cancel,
    /// By the end of the plugin's input, as when the manager is killed.
    HangUp,
}

/// How a launch goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) answers: Answers,
    pub(crate) decide: Decide,
    /// At which message of the plugin the launch is given up; 0 is before the first.
    pub(crate) stop: Option<(usize, Stop)>,
    /// Lines that mean nothing, before each that does, picked by this number.
    pub(crate) noise: Option<u64>,
    /// Options that are added without being checked.
    pub(crate) unchecked: Vec<(String, String)>,
    /// Gives every default explicitly.
    pub(crate) defaults: bool,
    /// Where it leads, in place of the author's destination.
    pub(crate) destination: Option<String>,
    /// The worker's `--host-table`.
    pub(crate) table: Option<&'static str>,
}

/// How a launch ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Done,
    Error(LaunchError),
    /// Its process ended without a result; the signal or status in words, and whether it was one
    /// that a plugin that is told to go may have.
    Nothing(String, bool),
    /// It had to be killed; what it should have done.
    Timeout(String),
    /// It said something that is no message, or that makes no sense.
    Protocol(String),
    /// The launch could not even be asked for.
    Unusable(String),
}

/// What was seen of one launch.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) manifest: Option<Manifest>,
    /// Every message as it came, hello and offers left out.
    pub(crate) said: Vec<String>,
    pub(crate) log_levels: Vec<LogLevel>,
    /// Messages up to the result, the log left out.
    pub(crate) callbacks: usize,
    pub(crate) questions: usize,
    pub(crate) verifications: usize,
    pub(crate) unanswered: Option<String>,
    pub(crate) offers: Vec<Offer>,
    pub(crate) ending: Ending,
    /// It stayed in the launch until it was cancelled.
    pub(crate) stayed: bool,
    /// Whether its server could be reached when it was offered, and after the launch.
    pub(crate) reached: Option<String>,
    pub(crate) lived: bool,
    /// What it went on saying after its result.
    pub(crate) afterwards: Option<String>,
    /// What it left running on this machine.
    pub(crate) left: Vec<String>,
    pub(crate) stderr: String,
}

enum Heard {
    Message(PluginMessage, String),
    Junk(String),
    End,
    Deadline,
}

/// A worker process.
struct Worker {
    /// `None` where it is the process that has started this one.
    child: Option<Child>,
    stdin: Option<Box<dyn Write + Send>>,
    lines: mpsc::Receiver<Result<(PluginMessage, String), String>>,
    stderr: Option<thread::JoinHandle<String>>,
    mark: String,
}

impl Worker {
    fn start(kit: &Kit, table: Option<&str>) -> io::Result<Self> {
        if let Some(stream) = kit.in_process.then(attached::worker).flatten() {
            let (sender, lines) = mpsc::channel();
            let output = stream.try_clone()?;
            thread::spawn(move || read_lines(output, &sender));
            let stdin: Box<dyn Write + Send> = Box::new(Attached(stream));
            let mark = format!("{MARK}=attached");
            return Ok(Self { child: None, stdin: Some(stdin), lines, stderr: None, mark });
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}.{count}", std::process::id());
        let mut command = Command::new("/proc/self/exe");
        command.arg("plugin-worker");
        if !kit.is_library {
            command.arg("--exec");
        }
        if let Some(table) = table {
            command.args(["--host-table", table]);
        }
        command.arg(&kit.plugin).env(MARK, &mark);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"LD_") {
                command.env_remove(name);
            }
        }
        let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = streams.spawn()?;
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || read_lines(stdout, &sender));
        }
        let stderr = child.stderr.take().map(|stderr| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                // What was read until it failed is enough.
                let _ = stderr.take(8 << 20).read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        let stdin = child.stdin.take().map(|it| Box::new(it) as Box<dyn Write + Send>);
        let mark = format!("{MARK}={mark}");
        Ok(Self { child: Some(child), stdin, lines, stderr, mark })
    }

    fn next(&self, deadline: Instant) -> Heard {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(Ok((message, text))) => Heard::Message(message, text),
            Ok(Err(junk)) => Heard::Junk(junk),
            Err(mpsc::RecvTimeoutError::Timeout) => Heard::Deadline,
            Err(mpsc::RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    fn say(&mut self, message: &HostMessage) {
        if let Ok(line) = serde_json::to_string(message) {
            self.say_line(&line);
        }
    }

    fn say_line(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            // One that does not listen any more is heard of in other ways.
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Waits for its end; `None` if it does not come.
    fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let Some(child) = &mut self.child else { return Some(ExitStatus::default()) };
        let end = Instant::now() + limit;
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok()?;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            let left = end.checked_duration_since(Instant::now())?;
            let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            let left = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
            // An error is an interruption by a signal.
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
        }
    }

    /// What it started and is still there; nothing once `limit` has shown that all is gone.
    fn left(&self, limit: Duration) -> Vec<(Pid, String)> {
        let end = Instant::now() + limit;
        loop {
            let left = marked(&self.mark);
            if left.is_empty() || Instant::now() >= end {
                return left;
            }
            // The kernel sends no event when somebody else's child ends.
            thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Worker {
    /// Leaves nothing behind that the plugin started here.
    fn drop(&mut self) {
        self.stdin = None;
        for _ in 0..100 {
            let left = marked(&self.mark);
            if left.is_empty() {
                break;
            }
            for (pid, _) in left {
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The connection to a worker whose input ends when this is dropped.
struct Attached(UnixStream);

impl Write for Attached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It has ended by itself otherwise.
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }
}

/// The processes whose environment holds this, with their command lines.
fn marked(mark: &str) -> Vec<(Pid, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let found = entries.flatten().filter_map(|entry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let is_it = environment.split(|byte| *byte == 0).any(|it| it == mark.as_bytes());
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        Some((Pid::from_raw(number)?, short(words.trim()))).filter(|_| is_it)
    });
    found.collect()
}

fn read_lines(stdout: impl Read, sender: &mpsc::Sender<Result<(PluginMessage, String), String>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        match (&mut stdout).take(MESSAGE_MAX as u64 + 1).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(length) if length > MESSAGE_MAX => {
                let _ = sender.send(Err("a line of more than 1 MiB".to_owned()));
                return;
            }
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if text.is_empty() {
            continue;
        }
        let message = serde_json::from_slice(&line).map_err(|_| format!("`{}`", short(&text)));
        if sender.send(message.map(|message| (message, text))).is_err() {
            return;
        }
    }
}

/// The start of a text, without what could play tricks on a terminal.
pub(crate) fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect()
}

/// Says how a process ended.
fn described(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("it was killed by signal {signal}"),
        (None, code) => format!("it exited with status {} before its result", code.unwrap_or(0)),
    }
}

/// Starts a worker and waits for its hello.
fn greet(kit: &Kit, table: Option<&str>) -> Result<(Worker, Manifest), Ending> {
    let mut worker = Worker::start(kit, table)
        .map_err(|error| Ending::Unusable(format!("no worker can be started: {error}")))?;
    match worker.next(Instant::now() + HELLO) {
        Heard::Message(PluginMessage::Hello(hello), _) => {
            let [lowest, highest] = hello.protocol;
            if !(lowest..=highest).contains(&1) {
                let reason = format!("it speaks protocol {lowest} to {highest}, hosts speak 1");
                return Err(Ending::Protocol(reason));
            }
            Ok((worker, hello.manifest))
        }
        Heard::Message(PluginMessage::Error(error), _) => Err(Ending::Error(error)),
        Heard::Message(_, text) => {
            Err(Ending::Protocol(format!("its first message is no hello: `{}`", short(&text))))
        }
        Heard::Junk(junk) => Err(Ending::Protocol(format!("its first line is no message: {junk}"))),
        Heard::End => match worker.end(GRACE) {
            Some(status) => {
                let words = worker.stderr.take().and_then(|it| it.join().ok()).unwrap_or_default();
                let words = words.lines().last().map(|it| format!(": {}", short(it)));
                let text = format!("{}{}", described(status), words.unwrap_or_default());
                Err(Ending::Nothing(text, false))
            }
            None => Err(Ending::Protocol("it closed its output instead of saying hello".into())),
        },
        Heard::Deadline => {
            Err(Ending::Timeout(format!("it did not say hello within {} s", HELLO.as_secs())))
        }
    }
}

/// What a plugin says of itself, how long it took, what it printed to standard error, and whether
/// it ended when its input did.
pub(crate) struct Greeting {
    pub(crate) manifest: Manifest,
    pub(crate) took: Duration,
    pub(crate) stderr: String,
    pub(crate) more: Option<String>,
    pub(crate) ended: bool,
    pub(crate) left: Vec<String>,
}

/// Asks a plugin what it is, and nothing else.
pub(crate) fn ask_what_it_is(kit: &Kit) -> Result<Greeting, Ending> {
    let start = Instant::now();
    let (mut worker, manifest) = greet(kit, None)?;
    let took = start.elapsed();
    worker.stdin = None;
    let ended = worker.end(GRACE).is_some();
    let left = worker.left(if ended { GONE } else { Duration::ZERO });
    let left: Vec<_> = left.into_iter().map(|(_, words)| words).collect();
    let more = match worker.next(Instant::now()) {
        Heard::Message(_, text) | Heard::Junk(text) => Some(short(&text)),
        Heard::End | Heard::Deadline => None,
    };
    let can_join = ended && left.is_empty();
    let stderr = worker.stderr.take().filter(|_| can_join).and_then(|it| it.join().ok());
    Ok(Greeting { manifest, took, stderr: stderr.unwrap_or_default(), more, ended, left })
}

/// The request that a manager would make of what the author gave.
fn request(launch: &Launch, script: &Script, manifest: &Manifest) -> Result<LaunchRequest, String> {
    let destination = script.destination.as_ref().unwrap_or(&launch.destination);
    let destination: Destination =
        destination.parse().map_err(|error| format!("the destination is none: {error}"))?;
    let scheme = destination.scheme.clone().unwrap_or_else(|| "ssh".to_owned());
    if !manifest.schemes.contains(&scheme) {
        return Err(format!("the plugin does not serve the scheme `{scheme}`"));
    }
    let is_hosts = |key: &str| HOST_OPTIONS.contains(&key);
    let given: Options = launch.options.iter().filter(|(key, _)| !is_hosts(key)).collect();
    let checked = manifest.options.check(&given, &manifest.name, &scheme);
    let mut options = checked.map_err(|error| error.one_line().into_owned())?;
    if script.defaults {
        for option in &manifest.options.0 {
            if let Some(default) =
                option.default.as_ref().filter(|_| given.get(&option.name).is_none())
            {
                options.insert(&option.name, default);
            }
        }
    }
    for (key, value) in &script.unchecked {
        options.insert(key, value);
    }
    let program =
        launch.program.clone().or_else(|| launch.options.get("distant.bin").map(Into::into));
    let bind = launch.options.get("distant.bind_server").unwrap_or_default().to_owned().into();
    let args = ["--shutdown", LONELY].map(str::to_owned).to_vec();
    let value = |name: &str| Some((name.to_owned(), std::env::var(name).ok()?));
    let environment: BTreeMap<_, _> = ENVIRONMENT.into_iter().filter_map(value).collect();
    let cwd: Option<PathBuf> = std::env::current_dir().ok();
    let server = ServerCommand { program, args, bind, upload: None };
    Ok(LaunchRequest { destination, options, server, interactive: true, environment, cwd })
}

/// Plays one launch from the worker's start to the last thing that is left of it.
pub(crate) fn play(kit: &Kit, launch: &Launch, script: &Script) -> Talk {
    let mut talk = Talk {
        manifest: None,
        said: Vec::new(),
        log_levels: Vec::new(),
        callbacks: 0,
        questions: 0,
        verifications: 0,
        unanswered: None,
        offers: Vec::new(),
        ending: Ending::Done,
        stayed: false,
        reached: None,
        lived: false,
        afterwards: None,
        left: Vec::new(),
        stderr: String::new(),
    };
    let (worker, manifest) = match greet(kit, script.table) {
        Ok(greeted) => greeted,
        Err(ending) => {
            talk.ending = ending;
            return talk;
        }
    };
    let request = request(launch, script, &manifest);
    talk.manifest = Some(manifest);
    match request {
        Ok(request) => {
            Play { kit, launch, script, worker, noise: script.noise }.run(request, &mut talk)
        }
        Err(reason) => talk.ending = Ending::Unusable(reason),
    }
    talk
}

/// A launch that is under way.
struct Play<'a> {
    kit: &'a Kit,
    launch: &'a Launch,
    script: &'a Script,
    worker: Worker,
    noise: Option<u64>,
}

impl Play<'_> {
    fn run(mut self, request: LaunchRequest, talk: &mut Talk) {
        let log_level = LogLevel::Trace;
        self.worker.say(&HostMessage::Hello(HostHello { protocol: 1, log_level }));
        self.chatter();
        self.worker.say(&HostMessage::Launch(Box::new(request)));
        let (ending, connected) = self.converse(talk);
        talk.ending = ending;
        if connected && (talk.stayed || matches!(talk.ending, Ending::Done)) {
            // Whoever is first decides; all launches of a plugin are alike in that.
            let _ = self.kit.stays.set(talk.stayed);
        }
        talk.lived = connected && talk.offers.last().is_some_and(|it| reach(it).is_ok());
        self.settle(talk, connected);
    }

    /// Goes through the launch up to its result.
    fn converse(&mut self, talk: &mut Talk) -> (Ending, bool) {
        let mut connected = false;
        let mut stopped = self.stop_at(0);
        let mut deadline = Instant::now() + if stopped { GRACE } else { self.kit.timeout };
        let ending = loop {
            let (message, text) = match self.worker.next(deadline) {
                Heard::Message(message, text) => (message, text),
                Heard::Junk(junk) => {
                    break Ending::Protocol(format!("it said something that is no message: {junk}"))
                }
                Heard::End => break self.end_without_result(),
                Heard::Deadline if connected && !stopped => {
                    // It holds something that the connection needs; that ends with it.
                    talk.stayed = true;
                    stopped = true;
                    self.stop(Stop::Cancel);
                    deadline = Instant::now() + GRACE;
                    continue;
                }
                Heard::Deadline => break Ending::Timeout(self.missing(stopped)),
            };
            if !matches!(message, PluginMessage::Offer(_) | PluginMessage::Hello(_)) {
                talk.said.push(text);
            }
            match message {
                PluginMessage::Done => break Ending::Done,
                PluginMessage::Error(error) => break Ending::Error(error),
                PluginMessage::Hello(_) => break Ending::Protocol("it said hello twice".into()),
                PluginMessage::Log(log) => {
                    talk.log_levels.push(log.level);
                    continue;
                }
                _ => talk.callbacks += 1,
            }
            if self.stop_at(talk.callbacks) {
                stopped = true;
                deadline = Instant::now() + GRACE;
            }
            if let PluginMessage::Offer(offer) = &message {
                talk.offers.push(offer.clone());
            }
            if stopped {
                continue;
            }
            match message {
                PluginMessage::Ask(ask) => self.answer(ask, talk),
                PluginMessage::Offer(offer) => {
                    if let Err(reason) = reach(&offer) {
                        talk.reached.get_or_insert(reason);
                    }
                    connected = self.decide(&offer);
                    if connected {
                        deadline = Instant::now() + self.patience();
                    }
                }
                _ => {}
            }
        };
        (ending, connected)
    }

    /// How long the plugin may go on after `connected` before it counts as one that stays. Once
    /// one launch has shown whether it does, nobody waits for that again.
    fn patience(&self) -> Duration {
        match self.kit.stays.get() {
            None => STAYS,
            Some(true) => STAYS / 20,
            Some(false) => self.kit.timeout,
        }
    }

    /// Gives the launch up if the script has it so at this message.
    fn stop_at(&mut self, count: usize) -> bool {
        let Some((_, how)) = self.script.stop.filter(|(at, _)| *at == count) else { return false };
        self.stop(how);
        true
    }

    fn stop(&mut self, how: Stop) {
        match how {
            Stop::Cancel => self.worker.say(&HostMessage::Cancel),
            Stop::HangUp => self.worker.stdin = None,
        }
    }

    fn missing(&self, is_stopped: bool) -> String {
        if is_stopped {
            format!("it did not end within {} s after it was told to", GRACE.as_secs())
        } else {
            format!("the launch came to no end within {} s", self.kit.timeout.as_secs())
        }
    }

    fn end_without_result(&mut self) -> Ending {
        // A worker whose host has gone takes what the plugin left along, and itself with it.
        let takes_itself_along = self.worker.stdin.is_none();
        match self.worker.end(GRACE) {
            Some(status) => {
                let is_usual = match status.signal() {
                    Some(signal) => takes_itself_along && signal == Signal::KILL.as_raw(),
                    None => true,
                };
                Ending::Nothing(described(status), is_usual)
            }
            None => Ending::Timeout("it closed its output and went on running".to_owned()),
        }
    }

    fn answer(&mut self, ask: Ask, talk: &mut Talk) {
        let mut answer = Answer { id: ask.id, answers: None, valid: None, cancelled: false };
        match (&ask.question, &self.script.answers) {
            (_, Answers::Nobody) => answer.cancelled = true,
            (AskKind::Verification(_), answers) => {
                answer.valid = Some(!matches!(answers, Answers::No));
            }
            (AskKind::Challenge(challenge), answers) => {
                let mut texts = Vec::new();
                for question in &challenge.questions {
                    let text = match answers {
                        Answers::Text(text) => Some(text),
                        _ => self.given(&question.text),
                    };
                    match text {
                        Some(text) => texts.push(Secret::new(text.clone())),
                        None => talk.unanswered = Some(short(question.text.trim())),
                    }
                }
                answer.cancelled = texts.len() < challenge.questions.len();
                answer.answers = Some(texts).filter(|_| !answer.cancelled);
            }
            _ => answer.cancelled = true,
        }
        match ask.question {
            AskKind::Verification(_) => talk.verifications += 1,
            AskKind::Challenge(_) => talk.questions += 1,
            _ => {}
        }
        self.chatter();
        self.worker.say(&HostMessage::Answer(answer));
    }

    fn given(&self, question: &str) -> Option<&String> {
        let question = question.to_lowercase();
        let mut answers = self.launch.answers.iter();
        let found = answers.find(|(part, _)| question.contains(&part.to_lowercase()));
        found.map(|(_, answer)| answer)
    }

    /// Says what became of an offer; tells whether the launch is connected by that.
    fn decide(&mut self, offer: &Offer) -> bool {
        self.chatter();
        let id = offer.id;
        let mut say = |result| self.worker.say(&HostMessage::Verdict(Verdict { id, result }));
        let reason = || "the test has it so".to_owned();
        match self.script.decide {
            Decide::Unreachable => say(VerdictKind::Unreachable { reason: reason() }),
            Decide::Refused => say(VerdictKind::Refused { reason: reason() }),
            Decide::Slow => {
                say(VerdictKind::Slow);
                say(VerdictKind::Connected { by: None });
                return true;
            }
            Decide::Connected => {
                say(VerdictKind::Connected { by: None });
                return true;
            }
        }
        false
    }

    /// Says things that every plugin has to ignore: kinds, members and ids that it does not know.
    fn chatter(&mut self) {
        const LINES: [&str; 6] = [
            r#"{"type":"weather","sky":"grey"}"#,
            r#"{"type":"answer","id":987654321,"answers":["not","yours"],"mood":1}"#,
            r#"{"type":"verdict","id":987654321,"verdict":"connected"}"#,
            r#"{"type":"verdict","id":987654321,"verdict":"postponed","until":3}"#,
            r#"{"type":"weather","nested":{"type":"cancel","list":[{"a":"}]\""}]}}"#,
            r#"{"type":"answer","id":987654321,"valid":false,"text":"ünï\u0000\ud83e\udd80"}"#,
        ];
        let Some(state) = &mut self.noise else { return };
        for _ in 0..3 {
            // Xorshift: the same for the same seed, everywhere.
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let pick = usize::try_from(*state % 6).unwrap_or(0);
            self.worker.say_line(LINES[pick]);
        }
    }

    /// Looks at what is left once the launch has given its result.
    fn settle(mut self, talk: &mut Talk, connected: bool) {
        let gave_result = matches!(talk.ending, Ending::Done | Ending::Error(_));
        // It has said that it is over, so it ends without being told.
        if gave_result && self.worker.end(GRACE).is_none() {
            let text = format!("it gave its result, and went on running for {} s", GRACE.as_secs());
            talk.ending = Ending::Timeout(text);
        }
        self.worker.stdin = None;
        match self.worker.next(Instant::now()) {
            Heard::Message(_, text) | Heard::Junk(text) => talk.afterwards = Some(short(&text)),
            Heard::End | Heard::Deadline => {}
        }
        // A server that was connected to lives on by itself.
        let lives_on = connected && !talk.stayed && matches!(talk.ending, Ending::Done);
        if !lives_on && !matches!(talk.ending, Ending::Timeout(_)) {
            let left = self.worker.left(GONE);
            talk.left = left.into_iter().map(|(_, words)| words).collect();
            let end = Instant::now() + GONE;
            for offer in &talk.offers {
                while talk.left.is_empty() && reach(offer).is_ok() {
                    if Instant::now() >= end {
                        let address = format!("{}:{}", offer.host, offer.port);
                        talk.left.push(format!("a server that still answers on {address}"));
                        break;
                    }
                    thread::park_timeout(Duration::from_millis(20));
                }
            }
        }
        let stderr = self.worker.stderr.take();
        drop(self.worker);
        talk.stderr = stderr.and_then(|it| it.join().ok()).unwrap_or_default();
    }
}

/// Tries to connect to an offered server.
fn reach(offer: &Offer) -> Result<(), String> {
    let place = format!("{}:{}", offer.host, offer.port);
    let unreachable = |error: io::Error| format!("nothing answers at `{place}`: {error}");
    let addresses = (offer.host.as_str(), offer.port).to_socket_addrs().map_err(unreachable)?;
    let mut last = Err(format!("`{}` means nothing here", offer.host));
    for address in addresses {
        last = TcpStream::connect_timeout(&address, GRACE).map(drop).map_err(unreachable);
        if last.is_ok() {
            break;
        }
    }
    last
}
