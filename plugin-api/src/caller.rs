//! The host, as a plugin sees it.
//!
//! Every call blocks until the host has answered, and ends at once with `cancelled` when nobody
//! wants the launch any more. How the messages travel is a [`Channel`]'s business, so a plugin's
//! own tests can put one of theirs in its place.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{poll, PollFd, PollFlags};

use crate::message::{
    Ask, AskKind, Challenge, ErrorKind, HostMessage, LaunchError, LogLevel, Notice, Offer,
    PluginMessage, Progress, Stage, VerdictKind, Verification,
};
use crate::secret::Secret;

/// Carries messages to a host and its answers back.
pub trait Channel: Send + Sync {
    /// Sends a message and, for an ask or an offer, waits for the answer.
    ///
    /// # Errors
    ///
    /// `cancelled` if nobody wants the launch any more, `plugin` if the host broke the protocol.
    fn send(&self, message: &PluginMessage) -> Result<Option<HostMessage>, LaunchError>;

    /// Tells whether nobody wants the launch any more. Never goes back to `false`.
    fn is_cancelled(&self) -> bool;

    /// Becomes readable, and stays so, when the launch is cancelled: for `poll` beside one's own
    /// sockets. Nobody reads from it.
    fn cancel_fd(&self) -> BorrowedFd<'_>;
}

/// The host, as a plugin sees it during one launch. It may be used from any thread.
pub struct Caller {
    channel: Box<dyn Channel>,
    last_id: AtomicU64,
}

impl Caller {
    /// Speaks to a host through a channel.
    pub fn new(channel: impl Channel + 'static) -> Self {
        Self { channel: Box::new(channel), last_id: AtomicU64::new(0) }
    }

    /// Makes an id that no ask or offer of this launch has had, from 1 up.
    pub fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Asks the person questions and waits for as long as it takes them.
    ///
    /// # Errors
    ///
    /// `authentication` if there is nobody or they would not say, `cancelled`, `plugin`.
    pub fn ask(&self, challenge: Challenge) -> Result<Vec<Secret>, LaunchError> {
        let expected = challenge.questions.len();
        let refusal = || {
            let message = "a question was left unanswered";
            let asked = challenge.questions.first().map(|it| it.text.trim().trim_end_matches(':'));
            let question = asked.map(str::to_owned);
            let error = LaunchError::new(ErrorKind::Authentication, message);
            question.into_iter().fold(error, LaunchError::caused_by)
        };
        let question = AskKind::Challenge(challenge.clone());
        match self.answer(question)? {
            (_, _, true) => Err(refusal()),
            (Some(answers), _, _) if answers.len() == expected => Ok(answers),
            _ => Err(refusal()),
        }
    }

    /// Asks the person for yes or no; somebody who would not say has said no.
    ///
    /// # Errors
    ///
    /// `cancelled`, `plugin`.
    pub fn verify(&self, verification: Verification) -> Result<bool, LaunchError> {
        let (_, valid, cancelled) = self.answer(AskKind::Verification(verification))?;
        Ok(valid.unwrap_or(false) && !cancelled)
    }

    #[allow(clippy::type_complexity, reason = "the three members of an answer, used just above")]
    fn answer(
        &self,
        question: AskKind,
    ) -> Result<(Option<Vec<Secret>>, Option<bool>, bool), LaunchError> {
        let id = self.next_id();
        match self.channel.send(&PluginMessage::Ask(Ask { id, question }))? {
            Some(HostMessage::Answer(answer)) if answer.id == id => {
                Ok((answer.answers, answer.valid, answer.cancelled))
            }
            _ => Err(unexpected("a question")),
        }
    }

    /// Offers a started server and waits until the host has tried to connect to it.
    ///
    /// After `slow`, the same offer again waits for its next verdict.
    ///
    /// # Errors
    ///
    /// `cancelled`: kill the server. `plugin`: likewise.
    pub fn offer(&self, offer: &Offer) -> Result<VerdictKind, LaunchError> {
        match self.channel.send(&PluginMessage::Offer(offer.clone()))? {
            Some(HostMessage::Verdict(verdict)) if verdict.id == offer.id => Ok(verdict.result),
            _ => Err(unexpected("an offer")),
        }
    }

    /// Shows the person a text.
    ///
    /// # Errors
    ///
    /// `cancelled`, `plugin`.
    pub fn notice(&self, level: LogLevel, text: impl Into<String>) -> Result<(), LaunchError> {
        self.tell(PluginMessage::Notice(Notice { level, text: text.into() }))
    }

    /// Tells what is being done now.
    ///
    /// # Errors
    ///
    /// `cancelled`, `plugin`.
    pub fn stage(&self, stage: Stage) -> Result<(), LaunchError> {
        self.progress(Progress { stage, done: 0, total: 0 })
    }

    /// Tells how much of a stage is done.
    ///
    /// # Errors
    ///
    /// `cancelled`, `plugin`.
    pub fn progress(&self, progress: Progress) -> Result<(), LaunchError> {
        self.tell(PluginMessage::Progress(progress))
    }

    fn tell(&self, message: PluginMessage) -> Result<(), LaunchError> {
        self.channel.send(&message).map(drop)
    }

    /// Tells whether nobody wants the launch any more.
    pub fn is_cancelled(&self) -> bool {
        self.channel.is_cancelled()
    }

    /// Returns `cancelled` if nobody wants the launch any more: for the top of a loop.
    ///
    /// # Errors
    ///
    /// `cancelled`.
    pub fn check(&self) -> Result<(), LaunchError> {
        if self.is_cancelled() {
            Err(LaunchError::cancelled())
        } else {
            Ok(())
        }
    }

    /// Becomes readable, and stays so, when the launch is cancelled.
    pub fn cancel_fd(&self) -> BorrowedFd<'_> {
        self.channel.cancel_fd()
    }

    /// Waits until the launch is cancelled: for a plugin that holds something which needs nothing
    /// done, such as a child process.
    pub fn wait_for_cancel(&self) {
        let descriptor = self.cancel_fd();
        while !self.is_cancelled() {
            // An error is an interruption by a signal.
            let _ = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], None);
        }
    }
}

fn unexpected(what: &str) -> LaunchError {
    let message = format!("the host answered {what} with something else");
    LaunchError::new(ErrorKind::Plugin, message)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::message::{Answer, Question, Verdict, Via};
    use crate::secret::SessionKey;

    /// A host that answers everything with one message.
    struct Answering {
        reply: Option<HostMessage>,
        nothing: std::fs::File,
    }

    impl Channel for Answering {
        fn send(&self, _: &PluginMessage) -> Result<Option<HostMessage>, LaunchError> {
            Ok(self.reply.clone())
        }

        fn is_cancelled(&self) -> bool {
            true
        }

        fn cancel_fd(&self) -> BorrowedFd<'_> {
            self.nothing.as_fd()
        }
    }

    fn caller(reply: Option<HostMessage>) -> Caller {
        let nothing = std::fs::File::open("/dev/null").unwrap();
        Caller::new(Answering { reply, nothing })
    }

    fn answer(id: u64, answers: Option<&[&str]>, valid: Option<bool>) -> Option<HostMessage> {
        let answers = answers.map(|texts| texts.iter().map(|text| Secret::new(*text)).collect());
        Some(HostMessage::Answer(Answer { id, answers, valid, cancelled: false }))
    }

    #[test]
    fn a_challenge_has_as_many_answers_as_questions_or_none() {
        let check = |reply: Option<HostMessage>, expected: &str| {
            let question = Question { text: "Password: ".into(), ..Question::default() };
            let challenge = Challenge { questions: vec![question], ..Challenge::default() };
            let shown = match caller(reply).ask(challenge) {
                Ok(answers) => answers.iter().map(Secret::expose).collect::<Vec<_>>().join(","),
                Err(error) => error.one_line().into_owned(),
            };
            assert_eq!(shown, expected);
        };
        let unanswered = "a question was left unanswered: Password";
        check(answer(1, Some(&["mellon"]), None), "mellon");
        check(answer(1, Some(&["mellon", "friend"]), None), unanswered);
        check(answer(1, None, Some(true)), unanswered);
        let cancelled = Answer { id: 1, answers: None, valid: None, cancelled: true };
        check(Some(HostMessage::Answer(cancelled)), unanswered);
        let unexpected = "the host answered a question with something else";
        check(answer(7, Some(&["mellon"]), None), unexpected);
        check(None, unexpected);
        check(Some(HostMessage::Cancel), unexpected);
    }

    #[test]
    fn only_a_clear_yes_is_one() {
        let verify = |reply| {
            let question = Verification { kind: "host".into(), text: "trust?".into() };
            caller(reply).verify(question).map_err(|error| error.kind)
        };
        assert_eq!(verify(answer(1, None, Some(true))), Ok(true));
        assert_eq!(verify(answer(1, None, Some(false))), Ok(false));
        assert_eq!(verify(answer(1, Some(&["yes"]), None)), Ok(false));
        let both = Answer { id: 1, answers: None, valid: Some(true), cancelled: true };
        assert_eq!(verify(Some(HostMessage::Answer(both))), Ok(false));
        assert_eq!(verify(answer(2, None, Some(true))), Err(ErrorKind::Plugin));
    }

    #[test]
    fn a_verdict_belongs_to_its_offer() {
        let verdict = |id| {
            let offer = Offer {
                id: 5,
                host: "::1".into(),
                port: 1,
                key: SessionKey::new([0; 32]),
                pid: None,
                proof: false,
                hello: None,
                via: Via::Direct,
            };
            let reply = HostMessage::Verdict(Verdict { id, result: VerdictKind::Slow });
            caller(Some(reply)).offer(&offer).map_err(|error| error.kind)
        };
        assert_eq!(verdict(5), Ok(VerdictKind::Slow));
        assert_eq!(verdict(6), Err(ErrorKind::Plugin));
    }

    #[test]
    fn a_cancelled_launch_waits_for_nothing() {
        let caller = caller(None);
        caller.wait_for_cancel();
        assert_eq!(caller.check().map_err(|error| error.kind), Err(ErrorKind::Cancelled));
        assert_ne!(caller.next_id(), caller.next_id());
    }
}
