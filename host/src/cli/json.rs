//! JSON values on standard input, one a line or one over several lines; or lines as they are.

use std::io;

use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::secret::Secret;
use distant_plugin_api::LaunchError;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Stdin};
use zeroize::Zeroizing;

/// Most bytes of one value. A file travels as an array of numbers, four bytes each.
const VALUE_MAX: usize = 128 * 1024 * 1024;

/// Most bytes of an answer that is a line.
const ANSWER_MAX: usize = 64 * 1024;

/// What came of reading a line.
enum Line {
    /// It is there, or what there was of it at the end of the input.
    Read,
    /// It is longer than it may be.
    TooLong,
    /// The input has ended.
    End,
}

/// Reads values one after the other.
pub(crate) struct JsonInput<R = BufReader<Stdin>> {
    lines: R,
    /// Most bytes of one value.
    most: usize,
    /// Reading has failed; it would fail again and again.
    is_broken: bool,
}

impl JsonInput {
    /// Reads standard input.
    pub(crate) fn stdin() -> Self {
        Self::new(BufReader::new(tokio::io::stdin()))
    }
}

impl<R: AsyncBufRead + Unpin> JsonInput<R> {
    fn new(lines: R) -> Self {
        Self { lines, most: VALUE_MAX, is_broken: false }
    }

    /// Reads the text of the next value, adding lines until they parse; `None` at the end.
    ///
    /// The text is wiped when dropped: it may be an answer.
    ///
    /// # Errors
    ///
    /// `other` if it is no JSON or ends in the middle; what was read of it is dropped, so the next
    /// call starts afresh. The text is not repeated. What cannot be read at all counts as the end
    /// after it was told once.
    ///
    /// # Cancellation
    ///
    /// A value of which some lines have been read is lost.
    pub(crate) async fn text(&mut self) -> Result<Option<Zeroizing<String>>, LaunchError> {
        let mut bytes = Zeroizing::new(Vec::new());
        if self.is_broken {
            return Ok(None);
        }
        loop {
            let before = bytes.len();
            match self.read_line(&mut bytes, self.most).await {
                Ok(Line::End) if bytes.trim_ascii().is_empty() => return Ok(None),
                Ok(Line::End) => {
                    return Err(wrong("standard input ended in the middle of a JSON value"))
                }
                Ok(Line::TooLong) => {
                    let message = format!("a JSON value has more than {} bytes", self.most);
                    return Err(wrong(&message));
                }
                Ok(Line::Read) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_broken = true;
                    return Err(wrong("cannot read standard input").because(&error));
                }
            }
            // A blank line between two values is nothing.
            if bytes[before..].trim_ascii().is_empty() && before == 0 {
                bytes.clear();
                continue;
            }
            let Ok(text) = std::str::from_utf8(&bytes) else {
                return Err(wrong("a line of standard input is not UTF-8"));
            };
            match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => return Ok(Some(Zeroizing::new(text.to_owned()))),
                Err(error) if error.is_eof() => {}
                Err(error) => return Err(no_json(&error)),
            }
        }
    }

    /// Reads one line, for a question that a person answers where there is no terminal; `None` at
    /// the end. What follows it stays for the next question.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub(crate) async fn line(&mut self) -> io::Result<Option<Secret>> {
        let mut line = Zeroizing::new(Vec::new());
        match self.read_line(&mut line, ANSWER_MAX).await? {
            Line::Read => Ok(Some(Secret::new(String::from_utf8_lossy(&line)))),
            Line::End => Ok(None),
            Line::TooLong => {
                let words = format!("the answer has more than {ANSWER_MAX} bytes");
                Err(io::Error::new(io::ErrorKind::InvalidData, words))
            }
        }
    }

    /// Appends the next line to `bytes`, which may then have `most` of them. Of a line that does not
    /// fit the rest is skipped.
    async fn read_line(&mut self, bytes: &mut Vec<u8>, most: usize) -> io::Result<Line> {
        let before = bytes.len();
        let mut too_long = false;
        loop {
            let there = self.lines.fill_buf().await?;
            if there.is_empty() {
                return Ok(match bytes.len() > before {
                    _ if too_long => Line::TooLong,
                    true => Line::Read,
                    false => Line::End,
                });
            }
            let newline = there.iter().position(|&byte| byte == b'\n');
            let count = newline.map_or(there.len(), |newline| newline + 1);
            too_long |= bytes.len() + count > most;
            if !too_long {
                bytes.extend_from_slice(&there[..count]);
            }
            self.lines.consume(count);
            if newline.is_some() {
                return Ok(if too_long { Line::TooLong } else { Line::Read });
            }
        }
    }

    /// Reads the next value; `None` at the end.
    ///
    /// # Errors
    ///
    /// Those of [`JsonInput::text`], and `other` if the value is something else.
    pub(crate) async fn value<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LaunchError> {
        let Some(text) = self.text().await? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| no_json(&error))
    }
}

fn wrong(message: &str) -> LaunchError {
    LaunchError::new(ErrorKind::Other, message)
}

/// Says where it goes wrong, but not what stands there: an answer may be a secret.
fn no_json(error: &serde_json::Error) -> LaunchError {
    let said = match error.classify() {
        serde_json::error::Category::Data => {
            wrong("the answer on standard input is not of the kind that was asked for")
        }
        _ => wrong("a line of standard input is no JSON"),
    };
    // A member that is missing has no place.
    if error.line() == 0 {
        return said;
    }
    let place = format!("line {} column {}", error.line(), error.column());
    said.caused_by(format!("the first character that does not fit is in {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &str) -> Vec<String> {
        let mut input = JsonInput::new(text.as_bytes());
        let mut seen = Vec::new();
        loop {
            match input.value::<serde_json::Value>().await {
                Ok(Some(value)) => seen.push(value.to_string()),
                Ok(None) => return seen,
                Err(error) => {
                    seen.push(error.message.clone());
                    if error.message.contains("ended") {
                        return seen;
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_value_may_span_lines() {
        let text = "{\"a\":1}\n\n{\n  \"b\":\n[1,\n2]}\r\n\"c\"";
        assert_eq!(read(text).await, ["{\"a\":1}", "{\"b\":[1,2]}", "\"c\""]);
    }

    #[tokio::test]
    async fn the_answers_of_two_questions_are_two_lines() {
        let mut input = JsonInput::new("y\nno\n".as_bytes());
        for expected in [Some("y\n"), Some("no\n"), None] {
            let line = input.line().await.unwrap();
            assert_eq!(line.as_ref().map(Secret::expose), expected);
        }
    }

    #[tokio::test]
    async fn a_broken_line_is_an_error_and_the_next_one_counts() {
        let seen = read("hello\n{\"a\":1}\n{\"a\" 2}\n{\"b\":").await;
        let broken = "a line of standard input is no JSON";
        let end = "standard input ended in the middle of a JSON value";
        assert_eq!(seen, [broken, "{\"a\":1}", broken, end]);
    }

    #[tokio::test]
    async fn a_value_has_a_limit_and_the_line_after_it_counts() {
        // Endless, if its end was looked for.
        let endless = tokio::io::BufReader::new(tokio::io::AsyncReadExt::chain(
            tokio::io::AsyncReadExt::take(tokio::io::repeat(b'['), 1 << 26),
            "\n[1]\n[2,\n3,\n4]\n\"x\"\n".as_bytes(),
        ));
        let mut input = JsonInput::new(endless);
        input.most = 8;
        let too_long = "a JSON value has more than 8 bytes";
        assert_eq!(input.text().await.unwrap_err().message, too_long);
        assert_eq!(*input.text().await.unwrap().unwrap(), "[1]\n");
        // Also where its lines are short.
        assert_eq!(input.text().await.unwrap_err().message, too_long);
        assert_eq!(*input.text().await.unwrap().unwrap(), "\"x\"\n");
        assert!(input.text().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_error_does_not_repeat_the_answer() {
        let mut input = JsonInput::new("[\"hunter2\"]\n".as_bytes());
        let error = input.value::<u32>().await.unwrap_err();
        assert!(!error.one_line().contains("hunter2"), "{error:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_once_and_then_is_the_end() {
        let folder = tokio::fs::File::open("/").await.unwrap();
        let mut input = JsonInput::new(BufReader::new(folder));
        assert_eq!(input.text().await.unwrap_err().message, "cannot read standard input");
        assert!(input.text().await.unwrap().is_none());
    }
}
