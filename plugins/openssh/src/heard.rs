//! Standard error of `ssh`, read on a thread as it comes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::LaunchError;
use distant_ssh::guard::system;
use rustix::event::{eventfd, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::login::lock;
use crate::process::END_LIMIT;
use crate::words::{Speaker, Step, Words};

/// Longest line that is kept whole.
const LINE_MAX: usize = 8 * 1024;
/// How long a question may be kept back for what was said before it.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(1);

/// What the thread has learnt.
pub(crate) struct Heard {
    pub(crate) words: Mutex<Words>,
    /// Readable when there is something new.
    pub(crate) news: OwnedFd,
    /// Where it comes from, for a look at whether there is more.
    source: Mutex<Option<Arc<File>>>,
    /// Set before something is taken from there, and until it is among the words.
    is_busy: AtomicBool,
}

impl Heard {
    /// Nothing yet.
    ///
    /// # Errors
    ///
    /// The system is out of something.
    pub(crate) fn new(is_proxied: bool) -> Result<Self, LaunchError> {
        let news = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system)?;
        let words = Mutex::new(Words::new(is_proxied));
        Ok(Self { words, news, source: Mutex::default(), is_busy: AtomicBool::default() })
    }

    /// Starts to read, and to hand on to `rest` what is not `ssh`'s own trace.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub(crate) fn listen(
        self: &Arc<Self>,
        stderr: File,
        rest: File,
        verbose: bool,
    ) -> io::Result<()> {
        let (this, stderr) = (self.clone(), Arc::new(stderr));
        *lock(&self.source) = Some(stderr.clone());
        let hear = move || this.hear(&stderr, rest, verbose);
        thread::Builder::new().name("stderr".into()).spawn(hear).map(drop)
    }

    fn hear(&self, source: &File, mut rest: File, verbose: bool) {
        let mut stderr = BufReader::new(source);
        let mut line = Vec::new();
        loop {
            line.clear();
            if stderr.buffer().is_empty() {
                until_readable(source);
                self.is_busy.store(true, Ordering::SeqCst);
            }
            let read = (&mut stderr).take(LINE_MAX as u64).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let (speaker, is_in) = {
                let mut words = lock(&self.words);
                let is_in = words.step == Step::LoggedIn;
                (words.hear(&text), is_in)
            };
            match speaker {
                Speaker::Trace if verbose => tracing::info!("{}", text.trim_end()),
                Speaker::Trace => tracing::trace!("{}", text.trim_end()),
                Speaker::Other if is_in => {
                    // Nobody reads it once the launch is over.
                    let _ = rest.write_all(&line);
                }
                Speaker::Other => {}
            }
            self.is_busy.store(!stderr.buffer().is_empty(), Ordering::SeqCst);
            self.tell();
        }
        lock(&self.words).has_ended = true;
        self.is_busy.store(false, Ordering::SeqCst);
        self.tell();
    }

    fn tell(&self) {
        // It is readable already where this fails.
        let _ = rustix::io::write(&self.news, &1_u64.to_ne_bytes());
    }

    pub(crate) fn clear_news(&self) {
        // Fails where there is nothing new.
        let _ = rustix::io::read(&self.news, &mut [0_u8; 8]);
    }

    /// Waits until all is heard that was said so far. A line without an end, which may never get
    /// one, is not waited for long.
    pub(crate) fn catch_up(&self) {
        let Some(source) = lock(&self.source).clone() else { return };
        // In this order: what is not there any more was taken by a thread that was busy by then.
        let is_behind = || {
            rustix::io::ioctl_fionread(&source).is_ok_and(|bytes| bytes > 0)
                || self.is_busy.load(Ordering::SeqCst)
        };
        self.wait_while(is_behind, CATCH_UP_LIMIT);
    }

    /// Waits until all is heard that a process has said which has ended; something that it left
    /// behind may keep its standard error open.
    pub(crate) fn until_end(&self) {
        self.wait_while(|| !lock(&self.words).has_ended, END_LIMIT);
    }

    fn wait_while(&self, goes_on: impl Fn() -> bool, limit: Duration) {
        let deadline = Instant::now() + limit;
        while goes_on() && Instant::now() < deadline {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
            let mut fds = [PollFd::new(&self.news, PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, left.as_ref());
            self.clear_news();
        }
    }
}

/// Waits for something to read, or for its end.
fn until_readable(source: &File) {
    let mut fds = [PollFd::new(source, PollFlags::IN)];
    while rustix::event::poll(&mut fds, None) == Err(Errno::INTR) {}
}
