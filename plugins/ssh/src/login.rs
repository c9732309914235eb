//! Logging in: which way to try next, and what to ask the person on the way.
//!
//! Nothing is asked of the server that a right key would not need: the first key goes out at once,
//! and only after a refusal the server is asked what it would take.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::thread;

use distant_plugin_api::message::{Challenge, LogLevel, Question};
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{Caller, ErrorKind, LaunchError};
use ssh_key::PrivateKey;

use crate::agent::{Agent, AgentKey, Shown};
use crate::backend::{Backend, Failure, Questions, Reply, Session};
use crate::config::Settings;
use crate::exposed::{Exposed, Told};
use crate::files;
use crate::guard::Guard;
use crate::identity::{to_text, Identity, KeyError};

/// Tries of each method that a person answers.
const TRIES: usize = 3;
/// Most keys that are tried: OpenSSH's servers hang up after six attempts of any kind.
const KEYS_MAX: usize = 5;
/// Longest file with a certificate that is read.
const CERTIFICATE_MAX: u64 = 1024 * 1024;
/// Attempts, after which nothing is asked of the server but what it may accept: OpenSSH's servers hang
/// up after six.
const ATTEMPTS_MAX: usize = 5;
/// Most rounds of questions that a server may ask within one try.
const ROUNDS_MAX: usize = 20;

/// All that a login needs to know.
pub struct Login<'a> {
    /// The library.
    pub backend: &'a dyn Backend,
    /// Whom and how.
    pub settings: &'a Settings,
    /// The agent that the session was opened with.
    pub agent: &'a Agent,
    /// The person.
    pub caller: &'a Caller,
    /// What limits the server, but not the person.
    pub guard: &'a Guard,
    /// A password that was given with the destination.
    pub password: Option<&'a Secret>,
    /// What the person was told already, on the way here.
    pub told: &'a Told,
}

/// A key to try.
enum Candidate {
    /// The file with this index.
    File(usize),
    Agent(AgentKey),
}

/// What a login has at hand and what became of it; the agent's thread sees it too.
struct State {
    identities: Vec<Identity>,
    /// The keys that others have access to and no agent has.
    exposed: Vec<Exposed>,
    shown: Mutex<Option<Shown>>,
    /// What was tried, for the error.
    tried: Mutex<Vec<String>>,
    /// Why nothing more is to be tried.
    stopped: Mutex<Option<LaunchError>>,
}

impl State {
    fn note(&self, line: String) {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn notes(&self) -> Vec<String> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, key: Option<Shown>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    fn stop(&self, error: LaunchError) {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Ends the agent's thread when dropped.
struct Stop<'a>(&'a Agent);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Login<'_> {
    /// Logs in.
    ///
    /// # Errors
    ///
    /// `authentication`: the causes are what was tried. `timed_out`, `cancelled`.
    pub fn run(&self, session: &mut dyn Session) -> Result<(), LaunchError> {
        let state = State {
            identities: Vec::new(),
            exposed: Vec::new(),
            shown: Mutex::new(None),
            tried: Mutex::new(Vec::new()),
            stopped: Mutex::new(None),
        };
        let (identities, exposed) = self.identities(&state);
        let state = State { identities, exposed, ..state };
        let open = |index: usize| self.open(&state.identities[index], &state);
        thread::scope(|scope| {
            let serving = scope.spawn(|| self.agent.serve(&state.shown, &open));
            // Also if a library panics: the scope would wait for the agent's thread for ever.
            let stop = Stop(self.agent);
            let outcome = self.attempt(session, &state);
            drop(stop);
            // A thread that panicked has served nobody, which the outcome says.
            let _ = serving.join();
            outcome
        })
    }

    fn whom(&self) -> String {
        format!("{}@{}", self.settings.user, self.settings.given)
    }

    fn identities(&self, state: &State) -> (Vec<Identity>, Vec<Exposed>) {
        let (mut identities, mut all_exposed) = (Vec::new(), Vec::new());
        for path in &self.settings.identity_files {
            match Identity::load(path) {
                Ok(mut identity) => {
                    for file in &self.settings.certificate_files {
                        if let Ok(text) = files::read_text(file, CERTIFICATE_MAX) {
                            identity.certify(&text);
                        }
                    }
                    if let Some(kind) = identity.hardware() {
                        state.note(format!(
                            "key `{}`: it is in a security key ({kind}), which `backend={}` \
                             cannot ask",
                            path.display(),
                            self.backend.name(),
                        ));
                    }
                    let mode = identity.exposed();
                    if (identity.is_elsewhere() || mode.is_some())
                        && !self.agent.keys().iter().any(|key| is_of(key, &identity))
                    {
                        if let Some(mode) = mode {
                            let exposed = Exposed { path: path.clone(), mode };
                            state.note(exposed.to_string());
                            all_exposed.push(exposed);
                        } else {
                            state.note(format!(
                                "key `{}`: it is a public key, and no agent has the private one",
                                path.display(),
                            ));
                        }
                    }
                    identities.push(identity);
                }
                Err(KeyError::Missing) if !self.settings.identities_chosen => {}
                Err(error) => state.note(format!("key `{}`: {error}", path.display())),
            }
        }
        (identities, all_exposed)
    }

    /// The keys in the order to try: chosen files that need no passphrase; the agent's keys for
    /// the files; its other keys, unless only files count; the remaining files.
    fn candidates(&self, identities: &[Identity]) -> Vec<Candidate> {
        let agent = self.agent.keys();
        let mut order = Vec::new();
        let mut seen: HashSet<Vec<u8>> = HashSet::new();
        for (index, identity) in identities.iter().enumerate() {
            if self.settings.identities_chosen && identity.clear().is_some() {
                seen.extend(identity.public.clone());
                order.push(Candidate::File(index));
            }
        }
        let of_files = |key: &&AgentKey| identities.iter().any(|identity| is_of(key, identity));
        let (first, rest): (Vec<_>, Vec<_>) = agent.iter().partition(of_files);
        let rest = rest.into_iter().filter(|_| !self.settings.identities_only);
        for key in first.into_iter().chain(rest) {
            if seen.insert(key.public.clone()) {
                order.push(Candidate::Agent(key.clone()));
            }
        }
        for (index, identity) in identities.iter().enumerate() {
            let is_new = identity.public.clone().is_none_or(|public| seen.insert(public));
            if is_new && (identity.clear().is_some() || identity.is_locked()) {
                order.push(Candidate::File(index));
            }
        }
        order
    }

    fn attempt(&self, session: &mut dyn Session, state: &State) -> Result<(), LaunchError> {
        let mut keys = match self.settings.methods.iter().any(|it| it == "publickey") {
            true => {
                if self.settings.identities_chosen {
                    self.told.tell(&state.exposed, self.caller)?;
                }
                self.candidates(&state.identities)
            }
            false => Vec::new(),
        };
        let left_out = keys.len().saturating_sub(KEYS_MAX);
        keys.truncate(KEYS_MAX);
        let mut keys = keys.into_iter();
        let mut allowed: Option<Vec<String>> = None;
        let mut asked = HashMap::<&str, usize>::new();
        let mut first = true;
        let mut attempts = 0;
        loop {
            // Right after the connection only a key may be tried unasked.
            if allowed.is_none() && !(first && keys.len() > 0) {
                allowed = self.methods(session, state)?;
                attempts += 1;
                if allowed.is_none() {
                    return Ok(());
                }
            }
            first = false;
            let is_allowed =
                |method: &str| allowed.as_ref().is_none_or(|it| it.iter().any(|it| it == method));
            let mut reply = None;
            for method in self.settings.methods.iter().filter(|method| is_allowed(method)) {
                if method == "publickey" {
                    let Some(key) = keys.next() else {
                        // The usual files, that nobody has named, matter only now.
                        self.told.tell(&state.exposed, self.caller)?;
                        continue;
                    };
                    reply = Some(self.try_key(session, &key, state)?);
                    break;
                }
                let count = asked.entry(method.as_str()).or_default();
                if *count < TRIES {
                    *count += 1;
                    reply = Some(if method == "password" {
                        self.try_password(session, *count == 1, state)?
                    } else {
                        let (reply, has_asked) = self.try_questions(session, state)?;
                        // A server that has no question will have none the next time either, and
                        // each attempt counts with it.
                        if !has_asked && reply == Reply::Refused {
                            *count = TRIES;
                        }
                        reply
                    });
                    break;
                }
            }
            attempts += 1;
            // A server that got what it wanted may want something else now, and one library does
            // not tell that from a refusal; asking counts as an attempt, of which there are few.
            let may_be_partial = !self.backend.tells_partial() && attempts < ATTEMPTS_MAX;
            match reply {
                Some(Reply::Accepted) => return Ok(()),
                Some(Reply::Partial) => allowed = None,
                Some(Reply::Refused) if keys.len() == 0 && (asked.is_empty() || may_be_partial) => {
                    allowed = None;
                }
                Some(Reply::Refused) => {}
                None => return Err(self.refused(allowed.as_deref(), left_out, state)),
            }
        }
    }

    fn methods(
        &self,
        session: &mut dyn Session,
        state: &State,
    ) -> Result<Option<Vec<String>>, LaunchError> {
        let methods = session.methods(&self.settings.user);
        self.banner(session)?;
        methods.map_err(|failure| self.broken(&failure, state))
    }

    fn banner(&self, session: &mut dyn Session) -> Result<(), LaunchError> {
        match session.banner() {
            Some(banner) if !banner.trim().is_empty() => {
                self.caller.notice(LogLevel::Info, printable(banner.trim_end()))
            }
            _ => Ok(()),
        }
    }

    fn try_key(
        &self,
        session: &mut dyn Session,
        key: &Candidate,
        state: &State,
    ) -> Result<Reply, LaunchError> {
        let user = &self.settings.user;
        let (what, outcome) = match key {
            Candidate::Agent(key) => {
                let kind = crate::known_hosts::kind(&key.public);
                let mut what = format!("key `{}` of the agent", printable(&key.comment));
                if let Some(note) = self.backend.cannot_use(&kind) {
                    what.push_str(&format!(" ({note})"));
                }
                state.show(Some(Shown::Theirs(key.clone())));
                (what, session.agent(user))
            }
            Candidate::File(index) => {
                let identity = &state.identities[*index];
                let what = format!("key `{}`", identity.path.display());
                let certificate = identity.certificate.as_ref();
                let usable = certificate.is_none() || self.backend.user_certificates();
                let line = certificate.map(|(line, _)| line.as_str());
                let public = certificate.map(|(_, bytes)| bytes).or(identity.public.as_ref());
                let outcome = match (identity.clear().filter(|_| usable), public) {
                    (Some(key), _) => {
                        session.public_key(user, &to_text(key).unwrap_or_default(), line)
                    }
                    // Through the agent, which is asked for a signature, and asks for the
                    // passphrase, only if the server would take the key.
                    (None, Some(public)) => {
                        state.show(Some(Shown::Ours(public.clone(), *index)));
                        session.agent(user)
                    }
                    (None, None) => match self.open(identity, state) {
                        Some(key) => {
                            session.public_key(user, &to_text(&key).unwrap_or_default(), None)
                        }
                        None => Ok(Reply::Refused),
                    },
                };
                (what, outcome)
            }
        };
        state.show(None);
        self.judge(what, outcome, session, state)
    }

    /// Opens a key, asking for its passphrase where there is one.
    fn open(&self, identity: &Identity, state: &State) -> Option<PrivateKey> {
        if let Some(key) = identity.clear() {
            return Some(key.clone());
        }
        let path = identity.path.display();
        for _ in 0..TRIES {
            let text = format!("Passphrase to decrypt {path} for {}:\n> ", self.whom());
            let passphrase = match self.ask_one(text) {
                Ok(passphrase) => passphrase?,
                Err(error) if error.kind == ErrorKind::Authentication => {
                    state.note(format!("key `{path}`: nobody told its passphrase"));
                    return None;
                }
                Err(error) => {
                    state.stop(error);
                    return None;
                }
            };
            match identity.unlock(&passphrase) {
                Ok(key) => return Some(key),
                Err(error) => state.note(format!("key `{path}`: {error}")),
            }
        }
        None
    }

    /// Asks one question; an empty answer is none.
    fn ask_one(&self, text: String) -> Result<Option<Secret>, LaunchError> {
        let question = Question { text, label: "ssh-prompt".into(), echo: false };
        let challenge = Challenge {
            questions: vec![question],
            instructions: String::new(),
            username: self.settings.user.clone(),
        };
        let answers = self.guard.while_asking(|| self.caller.ask(challenge))?;
        Ok(answers.into_iter().next().filter(|answer| !answer.expose().is_empty()))
    }

    fn try_password(
        &self,
        session: &mut dyn Session,
        is_first: bool,
        state: &State,
    ) -> Result<Reply, LaunchError> {
        let password = match self.password.filter(|_| is_first) {
            Some(password) => password.clone(),
            None => {
                let answer = self.ask_one(format!("Password for {}: ", self.whom()));
                match answer.map_err(|error| self.unanswered(error, state))? {
                    Some(answer) => answer,
                    None => return Err(self.refused(None, 0, state)),
                }
            }
        };
        let outcome = session.password(&self.settings.user, &password);
        self.judge("password".into(), outcome, session, state)
    }

    /// Also tells whether the server has asked anything.
    fn try_questions(
        &self,
        session: &mut dyn Session,
        state: &State,
    ) -> Result<(Reply, bool), LaunchError> {
        let mut rounds = 0;
        let mut answer = |questions: Questions| {
            rounds += 1;
            let text = |text: &str| printable(text);
            let instructions = [&questions.name, &questions.instructions]
                .into_iter()
                .filter(|it| !it.trim().is_empty())
                .map(|it| text(it))
                .collect::<Vec<_>>()
                .join("\n");
            if rounds > ROUNDS_MAX || state.is_stopped() {
                return None;
            }
            if questions.prompts.is_empty() {
                if !instructions.is_empty() {
                    // If nobody wants it any more, the next question says so.
                    let _ = self.caller.notice(LogLevel::Info, instructions);
                }
                return Some(Vec::new());
            }
            let ask = |(prompt, echo): &(String, bool)| Question {
                text: format!("({}) {}", self.whom(), text(prompt)),
                label: "ssh-prompt".into(),
                echo: *echo,
            };
            let challenge = Challenge {
                questions: questions.prompts.iter().map(ask).collect(),
                instructions,
                username: self.settings.user.clone(),
            };
            match self.guard.while_asking(|| self.caller.ask(challenge)) {
                Ok(answers) if answers.iter().any(|answer| !answer.expose().is_empty()) => {
                    return Some(answers);
                }
                Ok(_) => state.stop(self.refused(None, 0, state)),
                Err(error) => state.stop(self.unanswered(error, state)),
            }
            // That is the end of the login, and libssh2 would send empty answers first.
            self.guard.shut();
            None
        };
        let outcome = session.keyboard_interactive(&self.settings.user, &mut answer);
        let reply = self.judge("the server's questions".into(), outcome, session, state)?;
        Ok((reply, rounds > 0))
    }

    fn judge(
        &self,
        what: String,
        outcome: Result<Reply, Failure>,
        session: &mut dyn Session,
        state: &State,
    ) -> Result<Reply, LaunchError> {
        self.banner(session)?;
        if let Some(error) = state.stopped.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        match outcome {
            Ok(reply) => {
                match reply {
                    Reply::Refused => state.note(format!("{what}: not accepted")),
                    Reply::Partial => state.note(format!("{what}: accepted, but not enough")),
                    Reply::Accepted => {}
                }
                Ok(reply)
            }
            Err(failure) => {
                state.note(format!("{what}: the connection ended"));
                Err(self.broken(&failure, state))
            }
        }
    }

    /// The error where nothing is left to try.
    fn refused(&self, allowed: Option<&[String]>, left_out: usize, state: &State) -> LaunchError {
        let message = format!("`{}` does not let us in", self.whom());
        let mut error = LaunchError::new(ErrorKind::Authentication, message);
        error.causes = state.notes();
        if left_out > 0 {
            error.causes.push(format!("{left_out} more keys were not tried"));
            return error.with_hint("name the right key with `identity_files`");
        }
        let allowed = allowed.unwrap_or_default();
        if !allowed.is_empty() {
            error.causes.push(format!("the server takes {}", allowed.join(", ")));
        }
        if state.identities.iter().any(|identity| identity.hardware().is_some()) {
            return error.with_hint(
                "`backend=openssh` can use a security key, and so can `backend=libssh` where an \
                 agent holds it: `ssh-add FILE`",
            );
        }
        if let Some(exposed) = state.exposed.first() {
            return error.with_hint(exposed.mend());
        }
        let more = if self.settings.has_card {
            "; `backend=openssh` can log in by the smart card of `PKCS11Provider`"
        } else if allowed.iter().any(|method| method.starts_with("gssapi")) {
            "; `backend=openssh` can log in by a ticket of Kerberos"
        } else {
            ""
        };
        let usual = "check the user's name, and `identity_files` or the agent's keys";
        error.with_hint(format!("{usual}{more}"))
    }

    /// The error where a question had no answer.
    fn unanswered(&self, error: LaunchError, state: &State) -> LaunchError {
        if error.kind != ErrorKind::Authentication {
            return error;
        }
        let whole = self.refused(None, 0, state);
        LaunchError {
            causes: [whole.causes, vec![error.one_line().into_owned()]].concat(),
            ..whole
        }
    }

    /// The error where the connection ended, or the library gave up.
    fn broken(&self, failure: &Failure, state: &State) -> LaunchError {
        if self.caller.is_cancelled() {
            return LaunchError::cancelled();
        }
        if self.guard.is_late() {
            let message = format!("`{}` took too long over the login", self.whom());
            return LaunchError::new(ErrorKind::TimedOut, message);
        }
        let mut error = self.refused(None, 0, state);
        error.causes.push(failure.to_string());
        error
    }
}

impl State {
    fn is_stopped(&self) -> bool {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A server's text without what could play tricks on a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).take(8192).collect()
}

/// Whether an agent's key is that of a file, or its certificate.
fn is_of(key: &AgentKey, identity: &Identity) -> bool {
    let certificate = identity.certificate.as_ref().map(|(_, bytes)| bytes);
    Some(&key.public) == identity.public.as_ref() || Some(&key.public) == certificate
}
