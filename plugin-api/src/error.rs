//! Why a launch failed: one struct at every boundary, from the plugin to the client's JSON.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, for programs. New kinds may come; an unknown one reads as `other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option, a destination or a scheme is wrong; nothing was tried.
    InvalidOption,
    /// The name of the host means nothing here.
    Unresolved,
    /// The host does not answer.
    Unreachable,
    /// The host is not the one it should be, or nobody said that it is.
    HostKey,
    /// The host does not let us in.
    Authentication,
    /// There is no server program there.
    ServerNotFound,
    /// The server program did not start a server.
    ServerNotStarted,
    /// A server was started but cannot be reached.
    PortUnreachable,
    /// A time limit passed.
    TimedOut,
    /// Nobody wanted it any more.
    Cancelled,
    /// The plugin crashed, broke the protocol or cannot be loaded.
    Plugin,
    /// Anything else.
    #[serde(other)]
    Other,
}

/// Why a launch failed: a kind for code, words for people. It is the same at every boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchError {
    /// What a program would tell apart.
    pub kind: ErrorKind,
    /// What failed, and on what: one line, lower-case, without a full stop.
    pub message: String,
    /// Why, the nearest cause first.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What to try.
    #[serde(default)]
    pub hint: Option<String>,
}

impl LaunchError {
    /// Says what failed.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), hint: None }
    }

    /// Makes the error for a launch that nobody wants any more.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "the launch was cancelled")
    }

    /// Adds an error and all of its sources as the causes.
    #[must_use]
    pub fn because(mut self, error: &dyn Error) -> Self {
        let chain = std::iter::successors(Some(error), |&error| error.source());
        self.causes.extend(chain.map(ToString::to_string));
        self
    }

    /// Adds a cause that is no error value, such as a server's last words.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Says what to try.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Cuts every text so that the whole fits well into one message, however it came about.
    #[must_use]
    pub fn clipped(mut self) -> Self {
        const TEXT_MAX: usize = 4096;
        const CAUSES_MAX: usize = 16;
        self.causes.truncate(CAUSES_MAX);
        let texts = self.causes.iter_mut().chain(&mut self.hint);
        for text in texts.chain([&mut self.message]) {
            if text.len() > TEXT_MAX {
                text.truncate((0..=TEXT_MAX).rfind(|&end| text.is_char_boundary(end)).unwrap_or(0));
                text.push('…');
            }
        }
        self
    }

    /// Puts message and causes into one line, for a peer that knows only text.
    pub fn one_line(&self) -> Cow<'_, str> {
        if self.causes.is_empty() && !self.message.contains('\n') {
            return Cow::Borrowed(&self.message);
        }
        let texts = std::iter::once(&self.message).chain(&self.causes);
        // A cause may be a server's last words, in several lines.
        let lines = texts.flat_map(|text| text.lines()).map(str::trim);
        Cow::Owned(lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": "))
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for LaunchError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_one_line() {
        let error = LaunchError::new(ErrorKind::Other, "no server started")
            .because(&std::io::Error::other("the command ended"))
            .caused_by("first\n\n  last words\r\n");
        assert_eq!(error.one_line(), "no server started: the command ended: first: last words");
    }

    #[test]
    fn a_clipped_error_fits_into_a_message() {
        let error = LaunchError::new(ErrorKind::Other, "\u{1}".repeat(1 << 20)).with_hint("ä");
        let error = (0..100).fold(error, |error, _| error.caused_by("ä".repeat(1 << 20)));
        let length = serde_json::to_string(&error.clipped()).unwrap().len();
        assert!(length < crate::message::MESSAGE_MAX / 2, "{length}");
    }
}
