//! The server's own questions, as libssh2 asks them.
//!
//! Done here, because the crate around libssh2 does not pass on a round without a question, which
//! is how a server says something, reads a question without a text from nowhere, and keeps copies of
//! the answers.

#![allow(unsafe_code, reason = "libssh2 takes a C function that it asks")]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};

use distant_ssh::backend::{Answer, Questions};
use libssh2_sys as raw;

/// Asks `answer` whatever the server asks.
///
/// # Errors
///
/// The server does not let us in, or libssh2 says something else.
pub(crate) fn answer(
    session: &ssh2::Session,
    user: &str,
    answer: &mut Answer<'_>,
) -> Result<(), ssh2::Error> {
    let mut answer = answer;
    let length = c_uint::try_from(user.len()).unwrap_or(c_uint::MAX);
    // Held until libssh2 has returned, so nobody else comes near the session.
    let mut held = session.raw();
    let held: *mut raw::LIBSSH2_SESSION = &mut *held;
    // SAFETY: the session lives as long as its lock is held. What its user's pointer points to
    // outlives the only call that passes it on, and is put back after it.
    let code = unsafe {
        let theirs = raw::libssh2_session_abstract(held);
        let before = std::mem::replace(&mut *theirs, (&raw mut answer).cast::<c_void>());
        let code = raw::libssh2_userauth_keyboard_interactive_ex(
            held,
            user.as_ptr().cast(),
            length,
            Some(ask),
        );
        *theirs = before;
        code
    };
    match code {
        0 => Ok(()),
        code => Err(ssh2::Error::from_session_error_raw(held, code)),
    }
}

/// Asks one round of questions for libssh2.
extern "C" fn ask(
    name: *const c_char,
    name_length: c_int,
    instructions: *const c_char,
    instructions_length: c_int,
    count: c_int,
    prompts: *const raw::LIBSSH2_USERAUTH_KBDINT_PROMPT,
    responses: *mut raw::LIBSSH2_USERAUTH_KBDINT_RESPONSE,
    theirs: *mut *mut c_void,
) {
    let round = || {
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: libssh2 passes what it has of the server's message, with its length, or nothing.
        let (name, instructions) = unsafe {
            let (one, two) = (name_length.max(0) as usize, instructions_length.max(0) as usize);
            (text(name.cast(), one), text(instructions.cast(), two))
        };
        let prompt = |index: usize| {
            // SAFETY: there are `count` of them where there is any.
            let prompt = unsafe { &*prompts.add(index) };
            // SAFETY: as above; libssh2 has nothing where the text is empty.
            (unsafe { text(prompt.text, prompt.length) }, prompt.echo != 0)
        };
        let known = if prompts.is_null() || responses.is_null() { 0 } else { count };
        let prompts = (0..known).map(prompt).collect();
        // SAFETY: `answer` put it there, and waits for the end of this call.
        let answer = unsafe { &mut **(*theirs).cast::<&mut Answer<'_>>() };
        let answers = answer(Questions { name, instructions, prompts }).unwrap_or_default();
        for (index, answer) in answers.iter().take(known).enumerate() {
            let bytes = answer.expose().as_bytes();
            let Ok(length) = c_uint::try_from(bytes.len()) else { continue };
            // SAFETY: libssh2 frees it with the function that belongs to this one, as the session
            // was made with the usual ones; there is room for `count` responses.
            unsafe {
                let copy = libc::malloc(bytes.len() + 1).cast::<u8>();
                if !copy.is_null() {
                    copy.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                    copy.add(bytes.len()).write(0);
                    let response = &mut *responses.add(index);
                    (response.text, response.length) = (copy.cast(), length);
                }
            }
        }
    };
    // A panic must not run through C; what is not answered is refused by the server.
    let _ = catch_unwind(AssertUnwindSafe(round));
}

/// Copies a text of the server.
///
/// # Safety
///
/// `start` is null or has so many bytes.
unsafe fn text(start: *const u8, length: usize) -> String {
    if start.is_null() || length == 0 {
        return String::new();
    }
    // SAFETY: the caller's promise above.
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(start, length) }).into_owned()
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use distant_plugin_api::secret::Secret;

    use super::*;

    /// Asks as libssh2 does, and gives what was asked with the answers that libssh2 got.
    fn round(
        instructions: &str,
        prompts: &mut [raw::LIBSSH2_USERAUTH_KBDINT_PROMPT],
        answers: Option<&[&str]>,
    ) -> (Questions, Vec<String>) {
        let mut asked = None;
        let mut answer = |questions: Questions| {
            asked = Some(questions);
            answers.map(|answers| answers.iter().map(|it| Secret::new(*it)).collect())
        };
        let mut answer: &mut Answer<'_> = &mut answer;
        let mut theirs = (&raw mut answer).cast::<c_void>();
        let empty = || raw::LIBSSH2_USERAUTH_KBDINT_RESPONSE { text: null_mut(), length: 0 };
        let mut responses: Vec<_> = prompts.iter().map(|_| empty()).collect();
        let (first, room) = match prompts.is_empty() {
            true => (null(), null_mut()),
            false => (prompts.as_ptr(), responses.as_mut_ptr()),
        };
        let count = prompts.len() as c_int;
        let length = instructions.len() as c_int;
        ask(null(), 0, instructions.as_ptr().cast(), length, count, first, room, &raw mut theirs);
        let given = responses.iter().map(|response| {
            // SAFETY: it is null or from `malloc`, with so many bytes and a zero.
            unsafe {
                let given = text(response.text.cast(), response.length as usize);
                libc::free(response.text.cast());
                given
            }
        });
        let given = given.collect();
        (asked.unwrap(), given)
    }

    fn prompt(text: &mut [u8], echo: bool) -> raw::LIBSSH2_USERAUTH_KBDINT_PROMPT {
        let length = text.len();
        let text = if text.is_empty() { null_mut() } else { text.as_mut_ptr() };
        raw::LIBSSH2_USERAUTH_KBDINT_PROMPT { text, length, echo: echo.into() }
    }

    #[test]
    fn a_round_without_questions_and_a_question_without_a_text_are_passed_on() {
        let (asked, given) = round("mind the gap", &mut [], Some(&[]));
        assert_eq!((asked.instructions.as_str(), asked.prompts.len()), ("mind the gap", 0));
        assert!(given.is_empty());
        let (mut code, mut nothing) = (*b"Code: ", []);
        let mut prompts = [prompt(&mut code, true), prompt(&mut nothing, false)];
        let (asked, given) = round("", &mut prompts, Some(&["123", "é"]));
        assert_eq!(asked.prompts, [("Code: ".to_owned(), true), (String::new(), false)]);
        assert_eq!(given, ["123", "é"]);
        // Nobody answers, or more than was asked.
        let (_, given) = round("", &mut prompts, None);
        assert_eq!(given, ["", ""]);
        let (_, given) = round("", &mut prompts[..1], Some(&["1", "2"]));
        assert_eq!(given, ["1"]);
    }
}
