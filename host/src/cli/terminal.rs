//! What a person and a script see: the only file that prints.
//!
//! Standard output carries results and, in JSON format, the questions; standard error carries
//! everything for people. Whatever came from elsewhere is shown without its control characters, so
//! that a remote host cannot move the cursor, retitle the window or forge a prompt.

#![allow(clippy::print_stderr, reason = "the one file that prints")]

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use distant_plugin_api::message::{ErrorKind, Log, Notice, Progress, Stage};
use distant_plugin_api::LaunchError;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::arguments::Format;
use crate::paths;
use crate::wire::message::Authentication;

/// What the spinner turns through where the locale has no other characters.
const PLAIN_SPINNER: &str = "-\\|/";
/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Where a command writes.
pub(crate) struct Terminal {
    format: Format,
    spinner: Mutex<Option<ProgressBar>>,
    /// Whoever read standard output has closed it.
    is_abandoned: AtomicBool,
}

impl Terminal {
    /// Writes in this format.
    pub(crate) fn new(format: Format) -> Self {
        Self { format, spinner: Mutex::new(None), is_abandoned: AtomicBool::new(false) }
    }

    /// The format that it writes in.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether whoever read standard output has closed it, as `head` does when it has enough.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    /// Whether a result with lines of so many columns fits where it is shown.
    pub(crate) fn has_room_for(&self, columns: usize) -> bool {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return true;
        }
        let size = rustix::termios::tcgetwinsize(stdout);
        size.map_or(true, |size| size.ws_col == 0 || columns <= size.ws_col.into())
    }

    /// Writes a line of the result to standard output, as it is.
    ///
    /// # Errors
    ///
    /// Nobody reads it, or the disk is full.
    pub(crate) fn line(&self, line: &str) -> Result<(), LaunchError> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Writes a part of the result to standard output at once, as it is.
    ///
    /// # Errors
    ///
    /// Nobody reads it, or the disk is full.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), LaunchError> {
        self.without_spinner(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        })
        .map_err(|error| self.unwritable(&error))
    }

    /// Writes a part of a stream to standard output at once, as it is. While nobody takes it, this
    /// waits and everything else goes on: signals, and what comes from the other side.
    ///
    /// # Errors
    ///
    /// Nobody reads it any more, or the disk is full.
    ///
    /// # Cancellation
    ///
    /// Some of it may still be written.
    pub(crate) async fn stream(&self, bytes: Vec<u8>) -> Result<(), LaunchError> {
        self.finish_progress();
        let written = write_aside(bytes, || io::stdout().lock()).await;
        written.map_err(|error| self.unwritable(&error))
    }

    /// Writes a value as one line of JSON to standard output, as [`Self::stream`] does.
    ///
    /// # Errors
    ///
    /// Nobody reads it any more, or the disk is full.
    pub(crate) async fn stream_json<T: Serialize>(&self, value: &T) -> Result<(), LaunchError> {
        self.stream(json_line(value)?).await
    }

    /// Writes a part of the error stream of a remote process, which the person asked for, to standard
    /// error, as [`Self::stream`] does.
    pub(crate) async fn stream_error(&self, bytes: Vec<u8>) {
        self.finish_progress();
        // Nobody is left to be told.
        let _ = write_aside(bytes, || io::stderr().lock()).await;
    }

    /// Writes a value as one line of JSON to standard output.
    ///
    /// # Errors
    ///
    /// Nobody reads it, or the disk is full.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), LaunchError> {
        self.bytes(&json_line(value)?)
    }

    /// Says why the command failed: what, why, what to try. In JSON format a line on standard
    /// output says it too.
    pub(crate) fn error(&self, error: &LaunchError) {
        self.finish_progress();
        match self.format {
            Format::Shell => self.say(&describe(error)),
            Format::Json => {
                // It is on standard error as well, so nothing is lost if this one is.
                let _ = self.json(&error_line(error));
                self.say(&format!("error: {}", sanitise(&error.one_line()).replace('\n', " ")));
            }
        }
    }

    /// Says that something is not as it should be, though the command goes on.
    pub(crate) fn warn(&self, text: &str) {
        self.say(&format!("warning: {}", indent(sanitise(text).trim_end())));
    }

    /// Shows what a plugin wants the person to read. In JSON format it is a line of the kind that a
    /// released program has for it, and that its editors know.
    pub(crate) fn notice(&self, notice: &Notice) {
        match self.format {
            Format::Shell => self.say(sanitise(&notice.text).trim_end()),
            // It fails where the result will, too.
            Format::Json => {
                let _ = self.json(&Authentication::Info { text: notice.text.clone() });
            }
        }
    }

    /// Shows a line of a plugin's log, which was asked for with `verbose`.
    pub(crate) fn log(&self, log: &Log) {
        let level = match serde_json::to_value(log.level) {
            Ok(serde_json::Value::String(level)) => level,
            _ => String::new(),
        };
        let target = if log.target.is_empty() { "plugin" } else { &log.target };
        self.say(&indent(sanitise(&format!("{level:5} {target}: {}", log.text)).trim_end()));
    }

    /// Writes a line for people to standard error, as it is.
    pub(crate) fn say(&self, line: &str) {
        self.without_spinner(|| {
            // Nobody is left to be told.
            let _ = writeln!(io::stderr().lock(), "{line}");
        });
    }

    /// Shows how far a launch is, beside a spinner; only a person at a terminal sees it. In JSON format
    /// it is a line for an upload alone, which comes only where one was asked for.
    pub(crate) fn progress(&self, progress: &Progress) {
        if self.format == Format::Json && progress.stage == Stage::Upload {
            // It fails where the result will, too.
            let _ = self.json(&ProgressLine { r#type: "progress", progress });
        }
        let is_seen = io::stderr().is_terminal() && paths::has_capable_terminal();
        if self.format == Format::Json || !is_seen {
            return;
        }
        let mut spinner = self.spinner();
        let bar = spinner.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::default_spinner();
            bar.set_style(match paths::has_utf8_locale() {
                true => style,
                // The last one is that of the end.
                false => style.tick_chars(&format!("{PLAIN_SPINNER} ")),
            });
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_message(progress_text(progress));
    }

    /// Takes the spinner away.
    pub(crate) fn finish_progress(&self) {
        if let Some(bar) = self.spinner().take() {
            bar.finish_and_clear();
        }
    }

    fn unwritable(&self, error: &io::Error) -> LaunchError {
        self.is_abandoned.fetch_or(error.kind() == io::ErrorKind::BrokenPipe, Ordering::Relaxed);
        LaunchError::new(ErrorKind::Other, "cannot write to standard output").because(error)
    }

    fn without_spinner<T>(&self, write: impl FnOnce() -> T) -> T {
        match &*self.spinner() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn spinner(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        self.spinner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn json_line<T: Serialize>(value: &T) -> Result<Vec<u8>, LaunchError> {
    let mut line = serde_json::to_vec(value).map_err(|error| {
        LaunchError::new(ErrorKind::Other, "cannot write a result as JSON").because(&error)
    })?;
    line.push(b'\n');
    Ok(line)
}

/// Writes where a reader that takes nothing keeps only that thread waiting.
async fn write_aside<W: Write>(
    bytes: Vec<u8>,
    stream: impl FnOnce() -> W + Send + 'static,
) -> io::Result<()> {
    let write = move || {
        let mut stream = stream();
        stream.write_all(&bytes).and_then(|()| stream.flush())
    };
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}

/// Writes what is wrong with the command line, or its help, as clap words it; returns the words.
pub(crate) fn show_clap(error: &clap::Error, hide: impl Fn(String) -> String) -> String {
    let styled = error.render();
    let is_terminal =
        if error.use_stderr() { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
    let is_coloured = is_terminal && paths::wants_colours() && paths::has_capable_terminal();
    let text = hide(if is_coloured { styled.ansi().to_string() } else { styled.to_string() });
    // Nobody is left to be told.
    let _ = if error.use_stderr() {
        io::stderr().lock().write_all(text.as_bytes())
    } else {
        io::stdout().lock().write_all(text.as_bytes())
    };
    hide(styled.to_string())
}

/// Says to a program what is wrong with its command line, in the words for people.
pub(crate) fn show_usage_in_json(shown: &str) {
    let what = shown.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = what.split_whitespace().collect();
    let message = words.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let error = LaunchError::new(ErrorKind::InvalidOption, message).with_hint("try `--help`");
    // It is on standard error as well.
    let _ = Terminal::new(Format::Json).json(&error_line(&error));
}

fn describe(error: &LaunchError) -> String {
    // Whoever worded it, no line of it is another part of the error.
    let mut text = format!("error: {}", indent(sanitise(&error.message).trim_end()));
    for cause in &error.causes {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  caused by: {}", indent(sanitise(cause).trim_end()));
    }
    if let Some(hint) = &error.hint {
        let _ = write!(text, "\n\nhint: {}", indent(&sanitise(hint)));
    }
    text
}

fn indent(text: &str) -> String {
    text.replace('\n', "\n    ")
}

/// `msg` and `type` are those of distant 0.20.
#[derive(Serialize)]
struct ErrorLine<'a> {
    msg: String,
    r#type: &'static str,
    kind: ErrorKind,
    causes: &'a [String],
    hint: Option<&'a str>,
}

fn error_line(error: &LaunchError) -> ErrorLine<'_> {
    ErrorLine {
        msg: error.one_line().into_owned(),
        r#type: "error",
        kind: error.kind,
        causes: &error.causes,
        hint: error.hint.as_deref(),
    }
}

/// How far an upload is.
#[derive(Serialize)]
struct ProgressLine<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    progress: &'a Progress,
}

fn progress_text(progress: &Progress) -> String {
    let stage = stage_text(progress.stage);
    match progress.total {
        before if progress.stage == Stage::Wait => wait_text(before),
        0 => stage.to_owned(),
        total => {
            let done = progress.done.min(total);
            // Whatever a plugin says, without an overflow.
            let share = format!("{stage}: {} %", u128::from(done) * 100 / u128::from(total));
            match progress.stage {
                Stage::Upload => format!("{share}, {} of {} MB", megabytes(done), megabytes(total)),
                _ => share,
            }
        }
    }
}

/// Bytes as a person reads them: `12.3`.
fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes / 100_000 % 10)
}

/// What a plugin does in a stage, for people.
pub(crate) fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Wait => "waiting for other launches to end",
        Stage::Allocate => "waiting for a place to run",
        Stage::Resolve => "resolving the name",
        Stage::Connect => "connecting",
        Stage::HostKey => "checking the host key",
        Stage::Authenticate => "logging in",
        Stage::Probe => "looking for distant there",
        Stage::Upload => "uploading distant",
        Stage::Start => "starting the server",
        Stage::Offer => "connecting to the server",
        _ => "launching",
    }
}

fn wait_text(before: u64) -> String {
    match before {
        0 => "waiting for another launch to end, as the next one".to_owned(),
        before => format!("waiting for other launches to end, {before} of them before this one"),
    }
}

/// Replaces what could do more to a terminal than show a character; line ends and tabs stay.
pub(crate) fn sanitise(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            // The directions of Unicode can make a text read as another one.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

/// Makes a [`LaunchError`] of any error, with its sources as the causes.
pub(crate) fn from_error(what: impl Into<String>, error: &dyn Error) -> LaunchError {
    LaunchError::new(ErrorKind::Other, what).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> LaunchError {
        LaunchError::new(ErrorKind::ServerNotStarted, "no server started on `example.com:22`")
            .caused_by("the command ended with status 127: sh: 1: distant: \u{1b}[31mnot found\r\n")
            .with_hint("install distant there, or name it with `--distant <PATH>`")
    }

    #[test]
    fn an_error_says_what_why_and_what_to_try() {
        assert_eq!(
            describe(&failed()),
            "error: no server started on `example.com:22`\n  \
             caused by: the command ended with status 127: sh: 1: distant: \\u{1b}[31mnot found\n\n\
             hint: install distant there, or name it with `--distant <PATH>`"
        );
    }

    #[test]
    fn no_part_of_an_error_looks_like_another() {
        let forged = "it failed\n\nhint: run this";
        let error = LaunchError::new(ErrorKind::Other, forged).caused_by(forged).with_hint(forged);
        let said = describe(&error);
        assert_eq!(said.matches("\nhint: ").count(), 1, "{said}");
        assert_eq!(said.matches("\n    hint: ").count(), 3, "{said}");
    }

    #[test]
    fn an_error_line_has_the_members_of_0_20_first() {
        let error = LaunchError::new(ErrorKind::TimedOut, "no answer").caused_by("silence");
        assert_eq!(
            serde_json::to_string(&error_line(&error)).unwrap(),
            r#"{"msg":"no answer: silence","type":"error","kind":"timed_out","causes":["silence"],"hint":null}"#
        );
    }

    #[test]
    fn a_remote_text_cannot_steer_the_terminal() {
        assert_eq!(sanitise("a\tb\r\nc\n"), "a\tb\nc\n");
        assert_eq!(sanitise("\u{1b}]0;x\u{7}"), "\\u{1b}]0;x\\u{7}");
        assert_eq!(sanitise("ok\rno"), "ok\\rno");
        assert_eq!(sanitise("\u{9b}2J\u{202e}txt"), "\\u{9b}2J\\u{202e}txt");
    }

    #[test]
    fn progress_reads_as_a_person_would_say_it() {
        let progress = |stage, done, total| progress_text(&Progress { stage, done, total });
        assert_eq!(progress(Stage::Authenticate, 0, 0), "logging in");
        assert_eq!(
            progress(Stage::Wait, 0, 2),
            "waiting for other launches to end, 2 of them before this one"
        );
        assert_eq!(progress(Stage::Probe, 3, 4), "looking for distant there: 75 %");
        assert_eq!(
            progress(Stage::Upload, 3_080_000, 4_100_000),
            "uploading distant: 75 %, 3.0 of 4.1 MB"
        );
        assert_eq!(progress(Stage::Upload, 9, 4), "uploading distant: 100 %, 0.0 of 0.0 MB");
        assert!(progress(Stage::Upload, u64::MAX, u64::MAX).starts_with("uploading distant: 100 %"));
    }
}
