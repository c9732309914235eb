//! Whoever answers questions: a person at a terminal, or a program on the other end of the pipes.
//!
//! In shell format the terminal is asked, in JSON format one line of JSON on standard output gets
//! one on standard input. Where nobody can answer the question counts as refused; an empty answer
//! is never made up.

use std::io::{self, IsTerminal};

use distant_plugin_api::message::{ErrorKind, LogLevel, Notice};
use distant_plugin_api::secret::Secret;
use distant_plugin_api::LaunchError;
use rustix::fs::FileType;

use super::arguments::Format;
use super::json::JsonInput;
use super::terminal::{sanitise, Terminal};
use super::tty::Tty;
use crate::wire::message::{Authentication, AuthenticationQuestion, AuthenticationResponse};

/// Most bytes of the answers to one message. They have to fit into one of a plugin's, with what quoting
/// adds to them.
const ANSWERS_MAX: usize = distant_plugin_api::message::MESSAGE_MAX / 2;

/// Answers questions.
pub(crate) struct Person<'a> {
    terminal: &'a Terminal,
    input: JsonInput,
}

impl<'a> Person<'a> {
    /// Asks in the terminal's format.
    pub(crate) fn new(terminal: &'a Terminal) -> Self {
        Self { terminal, input: JsonInput::stdin() }
    }

    /// The JSON values that follow the answers.
    pub(crate) fn into_input(self) -> JsonInput {
        self.input
    }

    /// Tells whether somebody is likely to answer.
    pub(crate) fn is_there(&self) -> bool {
        self.terminal.format() == Format::Json || Tty::exists() || stdin_may_answer()
    }

    /// Goes along with the manager's own authentication, which asks for nothing but a yes. It is
    /// mirrored in JSON format, where the end of the input counts as yes.
    ///
    /// # Errors
    ///
    /// The other side said something else than yes.
    pub(crate) async fn greet(&mut self, messages: &[Authentication]) -> Result<(), LaunchError> {
        if self.terminal.format() == Format::Shell {
            return Ok(());
        }
        for message in messages {
            self.terminal.json(message)?;
            let Authentication::Initialization { .. } = message else { continue };
            match self.input.value().await.map_err(|error| expected(error, message))? {
                None => {}
                Some(AuthenticationResponse::Initialization { methods })
                    if methods.iter().any(|method| method == "none") => {}
                Some(_) => {
                    let error = LaunchError::new(
                        ErrorKind::Authentication,
                        "the answer does not choose the manager's method `none`",
                    );
                    return Err(expected(error, message));
                }
            }
        }
        Ok(())
    }

    /// Hands a question on and returns its answer; `None` for what wants no answer.
    ///
    /// # Errors
    ///
    /// `cancelled` if there is nobody or they would not say, `other` if the answer makes no sense.
    ///
    /// # Cancellation
    ///
    /// The terminal is as it was before.
    pub(crate) async fn ask(
        &mut self,
        message: &Authentication,
    ) -> Result<Option<AuthenticationResponse>, LaunchError> {
        match message {
            Authentication::Initialization { .. }
            | Authentication::Challenge { .. }
            | Authentication::Verification { .. } => {}
            Authentication::Info { text } => {
                self.terminal.notice(&Notice { level: LogLevel::Info, text: text.clone() });
                return Ok(None);
            }
            Authentication::Error { text, .. } => {
                tracing::debug!("the manager relays: {text}");
                return Ok(None);
            }
            Authentication::StartMethod { .. } | Authentication::Finished => return Ok(None),
        }
        self.terminal.finish_progress();
        match self.terminal.format() {
            Format::Json => self.ask_program(message).await.map(Some),
            Format::Shell => self.ask_person(message).await.map(Some),
        }
    }

    /// Has the person choose by number; `None` if they change nothing.
    ///
    /// # Errors
    ///
    /// `cancelled` if there is nobody, `invalid_option` if they say something else.
    pub(crate) async fn choose(
        &self,
        choices: &[String],
        current: usize,
    ) -> Result<Option<usize>, LaunchError> {
        let tty =
            Tty::open().map_err(|error| unanswered("a choice needs a terminal").because(&error));
        let tty =
            tty.map_err(|error| error.with_hint("`distant manager select <ID>` needs none"))?;
        let mut prompt = String::new();
        for (index, choice) in choices.iter().enumerate() {
            let mark = if index == current { '>' } else { ' ' };
            prompt.push_str(&format!("{mark} {}) {}\n", index + 1, sanitise(choice)));
        }
        prompt.push_str(&format!("Choose [{}]> ", current + 1));
        let line = tty.ask(&prompt, true).await.map_err(|error| terminal_gone(&error))?;
        let Some(line) = line else { return Ok(None) };
        match line.expose().trim() {
            "" => Ok(Some(current)),
            number => match number.parse::<usize>() {
                Ok(number) if (1..=choices.len()).contains(&number) => Ok(Some(number - 1)),
                _ => Err(LaunchError::new(
                    ErrorKind::InvalidOption,
                    format!("`{number}` is none of the choices"),
                )),
            },
        }
    }

    async fn ask_program(
        &mut self,
        message: &Authentication,
    ) -> Result<AuthenticationResponse, LaunchError> {
        self.terminal.json(message)?;
        let answer = self.input.value().await.map_err(|error| expected(error, message))?;
        let answer = answer
            .ok_or_else(|| unanswered("standard input ended before the question was answered"))?;
        match (message, &answer) {
            (
                Authentication::Challenge { questions, .. },
                AuthenticationResponse::Challenge { answers },
            ) if questions.len() != answers.len() => {
                let (wanted, given) = (questions.len(), answers.len());
                let wrong = format!(
                    "`answers` on standard input wants one for each question: {wanted}, not {given}"
                );
                Err(LaunchError::new(ErrorKind::Other, wrong))
            }
            // Its way to the plugin takes no more, and would end the launch without a reason.
            (_, AuthenticationResponse::Challenge { answers })
                if answers.iter().map(|it| it.expose().len()).sum::<usize>() > ANSWERS_MAX =>
            {
                let wrong =
                    format!("`answers` on standard input have more than {ANSWERS_MAX} bytes");
                Err(LaunchError::new(ErrorKind::Other, wrong))
            }
            (
                Authentication::Initialization { .. },
                AuthenticationResponse::Initialization { .. },
            )
            | (Authentication::Challenge { .. }, AuthenticationResponse::Challenge { .. })
            | (Authentication::Verification { .. }, AuthenticationResponse::Verification { .. }) => {
                Ok(answer)
            }
            _ => {
                let wrong = "the answer on standard input is not of the kind that was asked for";
                Err(expected(LaunchError::new(ErrorKind::Other, wrong), message))
            }
        }
    }

    async fn ask_person(
        &mut self,
        message: &Authentication,
    ) -> Result<AuthenticationResponse, LaunchError> {
        match message {
            Authentication::Initialization { methods } => {
                Ok(AuthenticationResponse::Initialization { methods: methods.clone() })
            }
            Authentication::Challenge { questions, options } => {
                let tty = Tty::open().map_err(|error| {
                    unanswered("a question needs a terminal to be answered at").because(&error)
                })?;
                tty.write(&introduction(options, questions))
                    .map_err(|error| terminal_gone(&error))?;
                let mut answers = Vec::with_capacity(questions.len());
                for question in questions {
                    answers.push(answer(&tty, question).await?);
                }
                Ok(AuthenticationResponse::Challenge { answers })
            }
            Authentication::Verification { text, .. } => {
                let prompt = format!("{}\nEnter [y/N]> ", sanitise(text).trim_end());
                let line = match Tty::open() {
                    Ok(tty) => {
                        tty.ask(&prompt, true).await.map_err(|error| terminal_gone(&error))?
                    }
                    Err(_) => {
                        self.terminal.say(&prompt);
                        // Not from a reader of its own, which would take the next answers along.
                        self.input.line().await.map_err(|error| {
                            unanswered("standard input cannot be read").because(&error)
                        })?
                    }
                };
                let line = line.ok_or_else(|| unanswered("a question was not answered"))?;
                let word = line.expose().trim().to_lowercase();
                Ok(AuthenticationResponse::Verification { valid: word == "y" || word == "yes" })
            }
            _ => Err(unanswered("the manager asks in a way that this program does not know")),
        }
    }
}

async fn answer(tty: &Tty, question: &AuthenticationQuestion) -> Result<Secret, LaunchError> {
    let echo = question.options.get("echo").is_some_and(|echo| echo == "true");
    let answer = tty.ask(&prompt(&question.text), echo).await;
    let answer = answer.map_err(|error| terminal_gone(&error))?;
    answer.ok_or_else(|| {
        unanswered("a question was not answered").caused_by(question.text.trim().to_owned())
    })
}

/// What is read before the questions: what they are about, and for whom where they do not say that
/// themselves.
fn introduction(
    options: &std::collections::BTreeMap<String, String>,
    questions: &[AuthenticationQuestion],
) -> String {
    let mut text = String::new();
    let get = |key: &str| options.get(key).map(|it| sanitise(it.trim())).unwrap_or_default();
    let mut whom = get("username");
    if questions.iter().all(|question| sanitise(&question.text).contains(&whom)) {
        whom.clear();
    }
    for line in [whom, get("instructions")] {
        if !line.is_empty() {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

fn prompt(text: &str) -> String {
    let mut prompt = sanitise(text);
    if !prompt.ends_with(char::is_whitespace) {
        prompt.push(' ');
    }
    prompt
}

/// Says what an answer looks like, where one was none.
fn expected(error: LaunchError, message: &Authentication) -> LaunchError {
    let line = match message {
        Authentication::Initialization { .. } => {
            r#"{"type":"auth_initialization_response","methods":["none"]}"#
        }
        Authentication::Challenge { .. } => {
            r#"{"type":"auth_challenge_response","answers":["…"]}, with one for each question"#
        }
        Authentication::Verification { .. } => {
            r#"{"type":"auth_verification_response","valid":true}"#
        }
        _ => return error,
    };
    error.with_hint(format!("an answer is a line such as {line}"))
}

/// Tells whether standard input is a pipe, a socket or a file, which may hold a `y`.
fn stdin_may_answer() -> bool {
    let stdin = io::stdin();
    let kind = rustix::fs::fstat(&stdin).map(|it| FileType::from_raw_mode(it.st_mode));
    stdin.is_terminal()
        || matches!(kind, Ok(FileType::Fifo | FileType::Socket | FileType::RegularFile))
}

fn unanswered(message: &str) -> LaunchError {
    LaunchError::new(ErrorKind::Cancelled, message).with_hint(
        "run it at a terminal, or with `--format json` and a line on standard input for each \
         question",
    )
}

fn terminal_gone(error: &io::Error) -> LaunchError {
    unanswered("the terminal cannot be used for a question").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_clean_and_leaves_room_for_the_answer() {
        assert_eq!(prompt("Password:"), "Password: ");
        assert_eq!(prompt("PIN: "), "PIN: ");
        assert_eq!(prompt("a\nb\u{1b}[2J> "), "a\nb\\u{1b}[2J> ");
    }

    #[test]
    fn it_is_said_for_whom_and_why() {
        let options = [("instructions", "Two questions\n"), ("username", "root")];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let questions = |texts: &[&str]| -> Vec<_> {
            let question = |text: &&str| AuthenticationQuestion {
                label: String::new(),
                text: (*text).to_owned(),
                options: std::collections::BTreeMap::new(),
            };
            texts.iter().map(question).collect()
        };
        let shown = |texts: &[&str]| introduction(&options, &questions(texts));
        assert_eq!(shown(&["Password: ", "PIN of root: "]), "root\nTwo questions\n");
        assert_eq!(shown(&["Password of root@box: "]), "Two questions\n");
        assert_eq!(introduction(&std::collections::BTreeMap::new(), &questions(&["PIN: "])), "");
    }
}
