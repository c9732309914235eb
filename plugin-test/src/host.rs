//! The manager's part of one launch, played by a script.
//!
//! It starts the same worker as a manager does and speaks the same lines, but it answers, decides
//! and goes away as the script has it, and it looks at everything that is left afterwards.

#![allow(clippy::disallowed_methods, reason = "a plugin gets a part of its user's environment")]

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{
    Answer, Ask, AskKind, HostHello, HostMessage, LogLevel, Offer, PluginMessage, ServerCommand,
    Verdict, VerdictKind,
};
use distant_plugin_api::options::Options;
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{LaunchRequest, Manifest, HOST_OPTIONS};
use rustix::process::Signal;

use crate::script::{Answers, Decide, Ending, Host, Script, Stop, Talk};
use crate::worker::{described, greet, short, Heard, Worker, GONE, GRACE};
use crate::{Kit, Launch};

/// The longest that a plugin needs to end after `connected`, unless it stays.
const STAYS: Duration = Duration::from_secs(4);
/// How long a server stays that nobody comes to; enough to see that it is there.
const LONELY: &str = "lonely=10";
/// Members that nobody has thought of yet.
const LATER: &str = r#","later":{"type":"cancel","id":1,"list":[null,{"a":"}]\""}]},"mood":1e3"#;
/// Variables of a client that a plugin gets to see.
const ENVIRONMENT: [&str; 6] = ["HOME", "KRB5CCNAME", "LANG", "LC_ALL", "SSH_AUTH_SOCK", "USER"];
/// Most bytes that a plugin may say in one launch.
const SAID_MAX: usize = 16 * 1024 * 1024;

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

/// A message as a host of this version writes it.
fn line(message: &HostMessage, host: Host) -> String {
    // Writing these types into memory cannot fail.
    let text = serde_json::to_string(message).unwrap_or_default();
    match (host, message) {
        (Host::Newer, _) => match text.strip_suffix('}') {
            Some(start) => format!("{start}{LATER}}}"),
            None => text,
        },
        (Host::Older, HostMessage::Hello(hello)) => {
            format!(r#"{{"type":"hello","protocol":{}}}"#, hello.protocol)
        }
        (Host::Older, HostMessage::Launch(request)) => {
            let member = |value: serde_json::Result<String>| value.unwrap_or_default();
            let destination = member(serde_json::to_string(&request.destination));
            let options = member(serde_json::to_string(&request.options));
            let server = member(serde_json::to_string(&request.server));
            format!(
                r#"{{"type":"launch","destination":{destination},"options":{options},"server":{server}}}"#
            )
        }
        _ => text,
    }
}

/// Plays one launch from the worker's start to the last thing that is left of it.
pub(crate) fn play(kit: &Kit, launch: &Launch, script: &Script) -> Talk {
    let mut talk = Talk {
        manifest: None,
        protocol: 1,
        said: Vec::new(),
        log_levels: Vec::new(),
        callbacks: 0,
        questions: 0,
        verifications: 0,
        host_keys: 0,
        asked_on: None,
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
    let (worker, hello) = match greet(kit, script.host.table()) {
        Ok(greeted) => greeted,
        Err(ending) => {
            talk.ending = ending;
            return talk;
        }
    };
    if script.host == Host::Foreign {
        talk.protocol = hello.protocol[1].saturating_add(1);
    }
    let request = request(launch, script, &hello.manifest);
    talk.manifest = Some(hello.manifest);
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
        let hello = HostHello { protocol: talk.protocol, log_level: LogLevel::Trace };
        let launch = HostMessage::Launch(Box::new(request));
        self.worker.say_line(&line(&HostMessage::Hello(hello), self.script.host));
        self.chatter();
        self.worker.say_line(&line(&launch, self.script.host));
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
        let mut length = 0;
        let ending = loop {
            // Whoever never stops talking is late all the same.
            let is_late = Instant::now() >= deadline;
            let heard = if is_late { Heard::Deadline } else { self.worker.next(deadline) };
            let (message, text) = match heard {
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
            length += text.len();
            if length > SAID_MAX {
                break Ending::Protocol(format!("it says more than {} MiB", SAID_MAX >> 20));
            }
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
        if let (AskKind::Challenge(challenge), Answers::No, 1..) =
            (&ask.question, &self.script.answers, talk.host_keys)
        {
            let text = challenge.questions.first().map_or("", |it| it.text.trim());
            talk.asked_on.get_or_insert_with(|| short(text));
        }
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
            AskKind::Verification(it) => {
                talk.verifications += 1;
                talk.host_keys += usize::from(it.kind == "host");
            }
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
        // What it has said last may still be on its way here; the end of its output is behind that.
        let has_ended = !matches!(talk.ending, Ending::Timeout(_));
        let until = Instant::now() + if has_ended { GRACE } else { Duration::ZERO };
        match self.worker.next(until) {
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
