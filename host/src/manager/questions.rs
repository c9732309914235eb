//! Questions that a launch has put to a client and that are not answered yet.
//!
//! A question goes out as one more reply to the client's request, its answer comes as a request of
//! its own that names the question's id. Only the client that was asked can answer, and an answer
//! that does not fit cancels the question instead of leaving it open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use distant_plugin_api::secret::Secret;
use tokio::sync::oneshot;

use crate::wire::message::AuthenticationResponse;

/// What fits a question.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expected {
    /// So many texts.
    Texts(usize),
    /// Yes or no.
    Validity,
}

/// An answer that fits.
#[derive(Debug)]
pub(super) enum Given {
    /// One for each question.
    Texts(Vec<Secret>),
    /// Yes or no.
    Validity(bool),
}

#[derive(Debug)]
struct Open {
    connection: u32,
    expected: Expected,
    answer: oneshot::Sender<Given>,
}

/// All open questions of a manager.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: Mutex<HashMap<u32, Open>>,
}

/// One open question. Dropping it takes it back.
#[derive(Debug)]
pub(super) struct Question<'a> {
    questions: &'a Questions,
    id: u32,
    answer: oneshot::Receiver<Given>,
}

impl Questions {
    /// Opens a question to the client of a connection.
    pub(super) fn open(&self, connection: u32, expected: Expected) -> Question<'_> {
        let (sender, answer) = oneshot::channel();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut id = rand::random();
        while open.contains_key(&id) {
            id = rand::random();
        }
        open.insert(id, Open { connection, expected, answer: sender });
        Question { questions: self, id, answer }
    }

    /// Cancels a question that nobody answers.
    ///
    /// # Errors
    ///
    /// What to tell the client: there is no such question of its.
    pub(super) fn cancel(&self, connection: u32, id: u32) -> Result<(), String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get(&id).is_some_and(|it| it.connection == connection) {
            true => drop(open.remove(&id)),
            false => return Err(INVALID.to_owned()),
        }
        Ok(())
    }

    /// Answers a question; one that the answer does not fit is cancelled by it.
    ///
    /// # Errors
    ///
    /// What to tell the client: there is no such question of its, or the answer does not fit.
    pub(super) fn answer(
        &self,
        connection: u32,
        id: u32,
        answer: AuthenticationResponse,
    ) -> Result<(), String> {
        let invalid = || INVALID.to_owned();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(&id).is_none_or(|it| it.connection != connection) {
            return Err(invalid());
        }
        let question = open.remove(&id).ok_or_else(invalid)?;
        let given = match (question.expected, answer) {
            (Expected::Texts(wanted), AuthenticationResponse::Challenge { answers }) => {
                if answers.len() != wanted {
                    let given = answers.len();
                    return Err(format!(
                        "the challenge is cancelled: it wants {wanted} answers, not {given}"
                    ));
                }
                Given::Texts(answers)
            }
            (Expected::Validity, AuthenticationResponse::Verification { valid }) => {
                Given::Validity(valid)
            }
            (Expected::Texts(_), _) => {
                return Err(
                    "the challenge is cancelled: it wants an `auth_challenge_response`".into()
                );
            }
            (Expected::Validity, _) => {
                return Err(
                    "the verification is cancelled: it wants an `auth_verification_response`"
                        .into(),
                );
            }
        };
        question.answer.send(given).map_err(|_| invalid())
    }
}

/// The words of a 0.20 manager for a question that is not there.
const INVALID: &str = "Invalid authentication id";

impl Question<'_> {
    /// What the answer has to name.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Waits for the answer; `None` if the question was cancelled.
    pub(super) async fn answered(&mut self) -> Option<Given> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let mut open = self.questions.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(answers: &[&str]) -> AuthenticationResponse {
        let answers = answers.iter().map(|it| Secret::new(*it)).collect();
        AuthenticationResponse::Challenge { answers }
    }

    #[tokio::test]
    async fn an_answer_reaches_its_question_once() {
        let questions = Questions::default();
        let mut question = questions.open(1, Expected::Texts(1));
        let id = question.id();
        assert_eq!(questions.answer(1, id, texts(&["hunter2"])), Ok(()));
        let Some(Given::Texts(answers)) = question.answered().await else { panic!() };
        assert_eq!(answers, [Secret::new("hunter2")]);
        assert!(questions.answer(1, id, texts(&["again"])).is_err());
    }

    #[tokio::test]
    async fn only_the_client_that_was_asked_can_answer() {
        let questions = Questions::default();
        let question = questions.open(1, Expected::Validity);
        let yes = AuthenticationResponse::Verification { valid: true };
        let refused = questions.answer(2, question.id(), yes.clone());
        assert_eq!(refused, Err("Invalid authentication id".to_owned()));
        assert_eq!(questions.answer(1, question.id(), yes), Ok(()));
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_cancels() {
        let questions = Questions::default();
        for answer in [texts(&[]), AuthenticationResponse::Verification { valid: true }] {
            let mut question = questions.open(1, Expected::Texts(1));
            assert!(questions.answer(1, question.id(), answer).is_err());
            assert!(question.answered().await.is_none());
        }
    }

    #[tokio::test]
    async fn whoever_was_asked_may_cancel_and_nobody_else() {
        let questions = Questions::default();
        let mut question = questions.open(1, Expected::Validity);
        assert_eq!(questions.cancel(2, question.id()), Err(INVALID.to_owned()));
        assert_eq!(questions.cancel(1, question.id()), Ok(()));
        assert!(question.answered().await.is_none());
        assert_eq!(questions.cancel(1, question.id()), Err(INVALID.to_owned()));
    }

    #[test]
    fn nothing_is_left_of_a_question_that_was_taken_back() {
        let questions = Questions::default();
        drop(questions.open(1, Expected::Validity));
        assert!(questions.open.lock().unwrap().is_empty());
    }
}
