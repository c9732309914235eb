//! Translates the paths in the messages of a language server: what an editor calls
//! `distant://…` is `file://…` on the server's machine.

use serde_json::{Map, Value};

/// Most bytes of one message's header.
const HEADER_MAX: usize = 16 * 1024;
/// Most bytes of one message's content.
const CONTENT_MAX: usize = 64 * 1024 * 1024;

/// Translates a stream of messages in one direction.
#[derive(Debug)]
pub(crate) struct Translator {
    from: String,
    to: String,
    buffer: Vec<u8>,
}

/// What came is no stream of a language server's messages.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("that is no message of a language server: {0}")]
pub(crate) struct NotLsp(&'static str);

impl Translator {
    /// Towards the server: URIs with `scheme` (without it, `distant`) become files.
    pub(crate) fn to_server(scheme: Option<&str>) -> Self {
        Self::new(scheme.unwrap_or("distant"), "file")
    }

    /// Towards the editor: files become URIs with `scheme`.
    pub(crate) fn to_editor(scheme: Option<&str>) -> Self {
        Self::new("file", scheme.unwrap_or("distant"))
    }

    fn new(from: &str, to: &str) -> Self {
        let prefix = |scheme: &str| format!("{}:", scheme.trim_end_matches("://"));
        Self { from: prefix(from), to: prefix(to), buffer: Vec::new() }
    }

    /// Takes the next bytes of the stream and returns every message that they complete.
    ///
    /// # Errors
    ///
    /// The stream is something else; nothing after that can be understood.
    pub(crate) fn translate(&mut self, bytes: &[u8]) -> Result<Vec<u8>, NotLsp> {
        self.buffer.extend_from_slice(bytes);
        let mut translated = Vec::new();
        while let Some((header, length)) = self.header()? {
            let end = header + length;
            if self.buffer.len() < end {
                break;
            }
            let content: Value = serde_json::from_slice(&self.buffer[header..end])
                .map_err(|_| NotLsp("its content is no JSON"))?;
            let content = self.swap(content).to_string();
            translated.extend_from_slice(&self.other_headers(header));
            translated.extend_from_slice(
                format!("Content-Length: {}\r\n\r\n{content}", content.len()).as_bytes(),
            );
            self.buffer.drain(..end);
        }
        Ok(translated)
    }

    /// Where the header of the first message ends, and how long its content is.
    fn header(&self) -> Result<Option<(usize, usize)>, NotLsp> {
        let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            return match self.buffer.len() {
                0..=HEADER_MAX => Ok(None),
                _ => Err(NotLsp("its header does not end")),
            };
        };
        let header = std::str::from_utf8(&self.buffer[..end])
            .map_err(|_| NotLsp("its header is no text"))?;
        let length = header.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        match length {
            Some(length) if length <= CONTENT_MAX => Ok(Some((end + 4, length))),
            Some(_) => Err(NotLsp("it is too long")),
            None => Err(NotLsp("its header has no length")),
        }
    }

    /// Every line of the first message's header but the length.
    fn other_headers(&self, header: usize) -> Vec<u8> {
        let text = String::from_utf8_lossy(&self.buffer[..header]);
        let is_length =
            |line: &&str| line.trim().to_ascii_lowercase().starts_with("content-length");
        let lines = text.split("\r\n").filter(|line| !line.is_empty() && !is_length(line));
        lines.flat_map(|line| [line.as_bytes(), b"\r\n"]).flatten().copied().collect()
    }

    fn swap(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.swap_text(text)),
            Value::Array(items) => {
                Value::Array(items.into_iter().map(|item| self.swap(item)).collect())
            }
            Value::Object(members) => {
                let swap = |(key, value)| (self.swap_text(key), self.swap(value));
                Value::Object(members.into_iter().map(swap).collect::<Map<_, _>>())
            }
            other => other,
        }
    }

    fn swap_text(&self, text: String) -> String {
        match text.strip_prefix(&self.from) {
            Some(rest) => format!("{}{rest}", self.to),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(content: &str) -> String {
        format!("Content-Length: {}\r\n\r\n{content}", content.len())
    }

    #[test]
    fn uris_are_translated_wherever_they_stand() {
        let mut translator = Translator::to_server(None);
        let text = message(r#"{"distant://a":["distant://b",{"c":"distant:d"}],"e":"x distant:"}"#);
        let expected = message(r#"{"e":"x distant:","file://a":["file://b",{"c":"file:d"}]}"#);
        assert_eq!(
            String::from_utf8(translator.translate(text.as_bytes()).unwrap()).unwrap(),
            expected
        );
        let mut back = Translator::to_editor(Some("custom"));
        let shown = back.translate(message(r#"["file:///a"]"#).as_bytes()).unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), message(r#"["custom:///a"]"#));
    }

    #[test]
    fn messages_may_come_in_pieces_and_several_at_once() {
        let text = message("[1]").repeat(2)
            + "Content-Type: x\r\ncontent-length: 3\r\n\r\n[2]"
            + &message("[3]");
        for size in [1, 7, 1000] {
            let mut translator = Translator::to_server(None);
            let mut seen = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                seen.extend(translator.translate(piece).unwrap());
            }
            let expected = message("[1]").repeat(2)
                + "Content-Type: x\r\nContent-Length: 3\r\n\r\n[2]"
                + &message("[3]");
            assert_eq!(String::from_utf8(seen).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn something_else_is_refused_and_never_kept_for_ever() {
        let refused = |text: &[u8]| Translator::to_server(None).translate(text).unwrap_err().0;
        assert_eq!(refused(b"hello\r\n\r\n"), "its header has no length");
        assert_eq!(refused(&[b'x'; HEADER_MAX + 1]), "its header does not end");
        assert_eq!(refused(b"Content-Length: 99999999999\r\n\r\n"), "it is too long");
        assert_eq!(refused(b"Content-Length: 1\r\n\r\n{"), "its content is no JSON");
    }
}
