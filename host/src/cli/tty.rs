//! The terminal itself: asking a person who sits at it, and handing their keys through unread.
//!
//! Questions go to `/dev/tty`, so that they reach the person also where the standard streams lead
//! elsewhere. Every change of the terminal's modes is undone when its guard is dropped, however
//! the command ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use distant_plugin_api::secret::Secret;
use rustix::process::Signal;
use rustix::termios::{tcgetattr, tcsetattr, LocalModes, OptionalActions, Termios};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{signal, SignalKind};
use zeroize::Zeroizing;

/// Most bytes of an answer. The kernel's own limit for a line is 4096.
const LINE_MAX: usize = 4096;

/// The person's terminal.
pub(crate) struct Tty {
    input: AsyncFd<File>,
    output: File,
}

impl Tty {
    /// Tells whether there is a terminal to ask at.
    pub(crate) fn exists() -> bool {
        OpenOptions::new().read(true).write(true).open("/dev/tty").is_ok()
    }

    /// Opens it; within a runtime.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn open() -> io::Result<Self> {
        // Two openings, because only the reading one may not block.
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits());
        let flags = nonblocking.map_err(io::Error::other)?;
        let input = OpenOptions::new().read(true).custom_flags(flags).open("/dev/tty")?;
        let output = OpenOptions::new().write(true).open("/dev/tty")?;
        #[allow(deprecated, reason = "a `File` owns its descriptor, which is all that it asks for")]
        let input = AsyncFd::new(input)?;
        Ok(Self { input, output })
    }

    /// Writes text to it.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub(crate) fn write(&self, text: &str) -> io::Result<()> {
        (&self.output).write_all(text.as_bytes())
    }

    /// Asks for a line, which is visible while it is typed only with `echo`, and again where the
    /// program was stopped (Ctrl-Z) and goes on. `None` if the person ends the input instead (Ctrl-D).
    ///
    /// # Errors
    ///
    /// It is gone, or the line is too long.
    ///
    /// # Cancellation
    ///
    /// Dropping the future makes what is typed visible again.
    pub(crate) async fn ask(&self, prompt: &str, echo: bool) -> io::Result<Option<Secret>> {
        let mut continued = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        let mut question = Question { hidden: None, tty: self, needs_newline: true };
        let mut line = std::pin::pin!(self.line());
        let line = loop {
            // The shell has had the terminal meanwhile, and made it show what is typed. What it was
            // before is put back first, so that the end of the question puts back no less.
            question.hidden = None;
            question.hidden = if echo { None } else { Some(hide(&self.output)?) };
            // Only now, so that nothing that is typed at the prompt is seen.
            self.write(prompt)?;
            tokio::select! {
                line = &mut line => break line,
                Some(()) = continued.recv() => {}
            }
        };
        question.needs_newline = !echo || !matches!(line, Ok(Some(_)));
        line
    }

    async fn line(&self) -> io::Result<Option<Secret>> {
        let mut line = Zeroizing::new(Vec::with_capacity(LINE_MAX));
        let mut buffer = Zeroizing::new([0; LINE_MAX]);
        loop {
            let mut ready = self.input.readable().await?;
            let Ok(count) = ready.try_io(|tty| tty.get_ref().read(buffer.as_mut_slice())) else {
                continue;
            };
            let count = count?;
            if count == 0 {
                return Ok(None);
            }
            line.extend_from_slice(&buffer[..count]);
            if line.len() > LINE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
            }
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let text = std::str::from_utf8(&line[..end]).map_err(io::Error::other)?;
                return Ok(Some(Secret::new(text.strip_suffix('\r').unwrap_or(text))));
            }
        }
    }
}

/// A question that is open. However it ends, what comes next begins a line.
struct Question<'a> {
    hidden: Option<Restore<'a>>,
    tty: &'a Tty,
    needs_newline: bool,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.hidden = None;
        if self.needs_newline {
            // The terminal is gone then.
            let _ = self.tty.write("\n");
        }
    }
}

/// Puts a terminal's modes back when dropped.
pub(crate) struct Restore<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        // It is gone then, and its modes with it.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

fn change<'a>(
    terminal: &'a impl AsFd,
    change: impl FnOnce(&mut Termios),
) -> io::Result<Restore<'a>> {
    let terminal = terminal.as_fd();
    let before = tcgetattr(terminal)?;
    let mut modes = before.clone();
    change(&mut modes);
    tcsetattr(terminal, OptionalActions::Flush, &modes)?;
    Ok(Restore { terminal, before })
}

fn hide(terminal: &impl AsFd) -> io::Result<Restore<'_>> {
    change(terminal, |modes| {
        modes.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
        modes.local_modes.insert(LocalModes::ICANON | LocalModes::ISIG);
    })
}

/// Hands every key through as it is typed, Ctrl-C included, until the guard is dropped.
///
/// # Errors
///
/// It is no terminal.
pub(crate) fn raw(terminal: &impl AsFd) -> io::Result<Restore<'_>> {
    change(terminal, Termios::make_raw)
}
