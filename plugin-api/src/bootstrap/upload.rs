//! Bringing a program of this machine to where a server is to run.
//!
//! The command that starts a server and has found none receives it: a launch runs one command, so
//! nobody logs in again. It says whether the program fits the machine before anything is sent, takes
//! the bytes on its standard input, checks them, and only then gives the file its name. Its file
//! lives as long as the command does, so whatever ends the connection removes half a file. The name
//! is made of the program's content, by which [the next launch](look) finds it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::watch::{remember, shown, Watch, Woken, OUTPUT_MAX, WORD_MAX};
use super::{Remote, KILL_LIMIT};
use crate::message::{ErrorKind, LaunchError, LaunchRequest, Progress, Stage, Upload};
use crate::Caller;

/// How long the other side may take nothing, and how long it may take to check what it has got,
/// some of which is still on its way.
const STALL_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// How long a command that has to give up may take to remove its file; where the connection does not
/// let it hear of that, its end will.
const ABORT_LIMIT: Duration = Duration::from_secs(1);
/// How often a person hears how far it is.
const TICK: Duration = Duration::from_millis(100);
/// Bytes that are read at once.
const PIECE: usize = 64 * 1024;
/// Digits of the hash that the name has.
const DIGITS: usize = 32;

/// The words on the command's input, behind the line that receives a program: its bytes follow, or
/// the file is there.
const DATA: &str = "data\n";
const SENT: &str = "sent\n";

/// The folder of what was brought, in `p`.
const FOLDER: &str =
    r#"case $XDG_CACHE_HOME in /*) p=$XDG_CACHE_HOME;; *) p=$HOME/.cache;; esac; p=$p/distant/bin"#;

/// Whether nobody else can put another program there, or the whole folder away: `XDG_CACHE_HOME` may be
/// somebody else's, or where everybody writes. Then nobody may have made a link of the folder in it,
/// and only a sticky one keeps it where it is.
const OWN: &str = r#"o() { u=${p%/*/*}; [ -O "${p%/*}" ] && [ -O "$p" ] || return 1; [ -O "$u" ] && return; if [ -L "${p%/*}" ]; then return 1; fi; [ -k "$u" ] || if [ -w "$u" ]; then return 1; fi; }"#;

/// Sets `c` to the program if it is there, whole, and nobody else's.
const LOOK: &str = r#"u() { o && [ -O "$p/%NAME%" ] && [ -x "$p/%NAME%" ] && [ "$(($(wc -c <"$p/%NAME%")))" = %SIZE% ] && c=$p/%NAME%; }"#;

/// Takes the next line of the input for what receives a program, and looks for that again. In the
/// command itself it would make every launch longer.
pub(super) const BRING: &str =
    r#"[ -n "$c" ] || { echo "$m missing"; IFS= read -r a <&3 && eval "$a" && u; }"#;

/// Receives a program. What is old is removed before there may be too little room: a program that
/// nobody has brought for a month, and a part that a machine has left which was switched off. Exactly
/// the program's bytes are read, as the input goes on.
const RECEIVE: [&str; 13] = [
    r#"umask 077; trap "" PIPE"#,
    r#"f() { printf %s "$2" | tail -n 6 | while IFS= read -r l || [ -n "$l" ]; do printf %s "$m say $l"; echo; done; echo "$m failed $1"; exit 1; }"#,
    r#"a="$(uname -s) $(uname -m)"; case $a in %FITS%) ;; *) echo "$m machine $a"; exit 1;; esac"#,
    r#"o=$(mkdir -p "$p" 2>&1) || f folder "$o"; o || f folder "$p belongs to somebody else, or is where others write""#,
    r#"o=$(chmod 700 "$p" 2>&1) || f folder "$o"; { find "$p" -type f -name "distant-*" -mtime +30 -exec rm -f {} +; find "$p" -type f -name ".distant-*" -mtime +0 -exec rm -f {} +; } 2>/dev/null"#,
    r#"t=$p/.%NAME%.${m#distant-}; trap "exit 1" HUP INT TERM; z() { rm -f "$t"; }; trap z EXIT"#,
    r#"o=$( { : >"$t"; } 2>&1 ) || f folder "$o"; echo "$m ready $t""#,
    r#"IFS= read -r a <&3; case $a in data) o=$( { head -c %SIZE% <&3 >"$t"; } 2>&1 ) || f "write $?" "$o";; sent) ;; *) exit 1;; esac"#,
    r#"n=$(($(wc -c <"$t"))); [ "$n" = %SIZE% ] || f "size $n" """#,
    r#"h=$(sha256sum <"$t" 2>/dev/null || shasum -a 256 <"$t" 2>/dev/null) || h=; h=${h%% *}; case $h in ""|%SHA256%) ;; *) f hash "";; esac"#,
    r#"o=$(chmod 700 "$t" 2>&1) || f folder "$o"; k=; command -v timeout >/dev/null 2>&1 && k="timeout 10"; o=$($k "$t" --version 2>&1) || f "run $?" "$o""#,
    r#"o=$(mv -f "$t" "$p/%NAME%" 2>&1) || f folder "$o""#,
    r#"echo "$m done""#,
];

/// The part of a script that finds the program where it was brought to: a function `u`.
///
/// # Errors
///
/// `plugin`: the host says of the program what cannot be.
pub(super) fn look(program: &Upload) -> Result<String, LaunchError> {
    check(program)?;
    Ok(format!("{FOLDER}; {OWN}; {}", fill(LOOK, program)))
}

/// The line that receives the program, in a shell that has [looked](look) for it. What it sets is of
/// no use to what comes after it.
fn receive(program: &Upload) -> Result<String, LaunchError> {
    check(program)?;
    Ok(format!("( {} )\n", fill(&RECEIVE.join("; "), program)))
}

fn fill(script: &str, program: &Upload) -> String {
    let fits: Vec<_> =
        kin(&program.machine).iter().map(|it| format!("\"{} {it}\"", program.system)).collect();
    script
        .replace("%NAME%", &format!("distant-{}", &program.sha256[..DIGITS]))
        .replace("%SIZE%", &program.size.to_string())
        .replace("%SHA256%", &program.sha256)
        .replace("%FITS%", &fits.join("|"))
}

/// Looks that nothing of it is anything to a shell.
fn check(program: &Upload) -> Result<(), LaunchError> {
    let is_word = |text: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        !text.is_empty() && text.len() <= 64 && text.bytes().all(fits)
    };
    let is_hash = program.sha256.len() == 64
        && program.sha256.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it));
    if is_hash && is_word(&program.system) && is_word(&program.machine) {
        return Ok(());
    }
    let message = "the host does not say properly which program to bring there";
    Err(LaunchError::new(ErrorKind::Plugin, message))
}

/// The names that machines have on which a program for this one may run; whether it does is tried
/// before it is used.
fn kin(machine: &str) -> Vec<&str> {
    match machine {
        "x86_64" => vec!["x86_64", "amd64"],
        "aarch64" => vec!["aarch64", "arm64"],
        "i686" => vec!["i386", "i486", "i586", "i686", "x86_64", "amd64"],
        "arm" => vec!["arm", "armv6l", "armv7l", "armv8l", "aarch64", "arm64"],
        other => vec![other],
    }
}

/// Brings the program to the command that has not found it, and gives the command's input back.
///
/// # Errors
///
/// * `server_not_found`: it does not fit, there is no room or no right to put it there, or it does
///   not run there.
/// * `unreachable`: the connection ended on the way.
/// * `timed_out`: nothing more was taken.
/// * `cancelled`: nobody wants it any more.
///
/// Nothing is left there in each of these cases.
pub(super) fn bring(
    remote: &dyn Remote,
    request: &LaunchRequest,
    program: &Upload,
    caller: &Caller,
    watch: &mut Watch,
    stdin: OwnedFd,
) -> Result<OwnedFd, LaunchError> {
    watch.total = 0;
    let place = request.destination.host.as_str();
    let stdin = File::from(stdin);
    let heard = Heard::default();
    let mut transfer = Transfer { remote, program, caller, place, watch, stdin, heard, sent: 0 };
    let outcome = transfer.run();
    let Transfer { watch, stdin, .. } = transfer;
    watch.total = 0;
    match outcome {
        Ok(()) => Ok(stdin.into()),
        Err(error) => {
            drop(stdin);
            watch.until_end(ABORT_LIMIT);
            Err(error)
        }
    }
}

/// Opens the program, which may have been replaced since the host looked at it.
fn open(program: &Upload) -> Result<File, LaunchError> {
    let shown = program.file.display();
    // A pipe in its place would wait for its other end, and nobody could cancel that.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(&program.file, flags, Mode::empty()).map(File::from);
    let size = file.as_ref().ok().and_then(|file| file.metadata().ok()).map(|it| it.len());
    match file {
        Ok(file) if size == Some(program.size) => Ok(file),
        Ok(_) => Err(changed(program)),
        Err(error) => {
            let message = format!("`{shown}`, which is to be brought there, cannot be read");
            Err(LaunchError::new(ErrorKind::Other, message).because(&error))
        }
    }
}

fn changed(program: &Upload) -> LaunchError {
    let message = format!("`{}` was changed while it was brought there", program.file.display());
    LaunchError::new(ErrorKind::Other, message).with_hint("launch again")
}

/// Whether a plugin may take this for the path of a new file there: the other machine says it, which
/// may be a folder or a disk of this one. So nobody may take it for a flag, nor for any other file.
fn is_path(text: &str, program: &Upload) -> bool {
    let part = fill("/distant/bin/.%NAME%.", program);
    let marker = text.rsplit_once(&part).map_or("", |(_, marker)| marker);
    let is_marker = !marker.is_empty() && marker.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_straight = text.split('/').all(|folder| folder != "..");
    is_marker && is_straight && text.starts_with('/') && !text.contains(char::is_control)
}

/// What the command has said.
#[derive(Default)]
struct Heard {
    /// Where the file goes.
    ready: Option<String>,
    done: bool,
    /// What the machine is, where the program does not fit.
    machine: Option<String>,
    failed: Option<String>,
    words: Vec<String>,
}

struct Transfer<'a> {
    remote: &'a dyn Remote,
    program: &'a Upload,
    caller: &'a Caller,
    place: &'a str,
    watch: &'a mut Watch,
    stdin: File,
    heard: Heard,
    sent: u64,
}

impl Transfer<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let file = open(self.program)?;
        self.tell()?;
        self.say(&receive(self.program)?);
        let limit = self.remote.start_limit();
        self.listen(limit, |heard| heard.ready.is_some())?;
        let to = self.heard.ready.clone().unwrap_or_default();
        match self.remote.upload(&self.program.file, &to, self.caller) {
            Some(outcome) => {
                outcome?;
                self.say(SENT);
                self.sent = self.program.size;
            }
            None => {
                self.say(DATA);
                self.block(false)?;
                self.send(file.take(self.program.size))?;
                self.block(true)?;
            }
        }
        self.tell()?;
        self.listen(CHECK_LIMIT, |heard| heard.done)
    }

    fn say(&mut self, line: &str) {
        // A few bytes fit into any pipe; if it is closed, its output says why.
        let written = self.stdin.write_all(line.as_bytes());
        tracing::trace!(?written, "a line to the command that receives the program");
    }

    /// Says whether who writes more than the command takes is to wait.
    fn block(&self, is_to_wait: bool) -> Result<(), LaunchError> {
        rustix::io::ioctl_fionbio(&self.stdin, !is_to_wait)
            .map_err(|error| self.ended().because(&error))
    }

    fn tell(&self) -> Result<(), LaunchError> {
        let (done, total) = (self.sent.min(self.program.size), self.program.size);
        self.caller.progress(Progress { stage: Stage::Upload, done, total })
    }

    /// Sends the file for as long as the command takes it.
    fn send(&mut self, mut file: impl Read) -> Result<(), LaunchError> {
        let mut piece = vec![0; PIECE];
        let (mut begin, mut end) = (0, 0);
        let mut told: Option<Instant> = None;
        let mut deadline = Instant::now() + STALL_LIMIT;
        loop {
            if begin == end {
                let count =
                    file.read(&mut piece).map_err(|error| changed(self.program).because(&error))?;
                (begin, end) = (0, count);
                if count == 0 {
                    // The command would wait for the rest.
                    let is_whole = self.sent == self.program.size;
                    return if is_whole { Ok(()) } else { Err(changed(self.program)) };
                }
            }
            let stdin = self.stdin.as_fd();
            let woken = self.watch.wait_beside(Some(stdin), Some(deadline), Some(self.caller))?;
            match woken {
                Woken::Writable => match rustix::io::write(stdin, &piece[begin..end]) {
                    Ok(count) => {
                        begin += count;
                        self.sent += count as u64;
                        deadline = Instant::now() + STALL_LIMIT;
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    // It says why it takes nothing more.
                    Err(_) => return Ok(()),
                },
                Woken::Data => {
                    self.hear();
                    if self.heard.failed.is_some() || self.watch.total > OUTPUT_MAX {
                        return Ok(());
                    }
                }
                Woken::End => return Ok(()),
                Woken::Deadline => return Err(self.stalled()),
            }
            if self.sent > 0 && told.is_none_or(|last| last.elapsed() >= TICK) {
                told = Some(Instant::now());
                self.tell()?;
            }
        }
    }

    fn hear(&mut self) {
        // What comes behind the last word is the server's.
        while !self.heard.done {
            let Some(line) = self.watch.next_line() else { return };
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let heard = &mut self.heard;
            match verb {
                "ready" if is_path(rest, self.program) => heard.ready = Some(rest.to_owned()),
                "ready" => heard.failed = Some("folder".to_owned()),
                "done" => heard.done = true,
                "machine" => heard.machine = Some(shown(rest, WORD_MAX)),
                "failed" => heard.failed = Some(shown(rest, WORD_MAX)),
                "say" => remember(&mut heard.words, rest),
                _ => {}
            }
        }
    }

    /// Waits until the command says something, or why it never will.
    fn listen(
        &mut self,
        limit: Duration,
        is_enough: impl Fn(&Heard) -> bool,
    ) -> Result<(), LaunchError> {
        let deadline = Instant::now() + limit;
        loop {
            self.hear();
            if is_enough(&self.heard) {
                return Ok(());
            }
            if self.heard.machine.is_some() || self.heard.failed.is_some() {
                return Err(self.failure());
            }
            if self.watch.total > OUTPUT_MAX {
                return Err(self.ended().caused_by("it prints without an end"));
            }
            match self.watch.wait(Some(deadline), Some(self.caller))? {
                Woken::Data | Woken::Writable => {}
                Woken::Deadline => return Err(self.stalled()),
                Woken::End => {
                    self.watch.drain(KILL_LIMIT / 3);
                    return Err(self.ended());
                }
            }
        }
    }

    /// The command's own reason.
    fn failure(&self) -> LaunchError {
        let (place, program) = (self.place, self.program);
        let shown = program.file.display();
        let error = |message: String| LaunchError::new(ErrorKind::ServerNotFound, message);
        if let Some(machine) = &self.heard.machine {
            return error(format!(
                "`{shown}` does not run on `{place}`, where no server program is"
            ))
            .caused_by(format!("it is for {} {}", program.system, program.machine))
            .caused_by(format!("`{place}` is {machine}"))
            .with_hint(
                "install distant there, or name one for that machine with \
                     `--distant-upload <PATH>`",
            );
        }
        let failed = self.heard.failed.as_deref().unwrap_or_default();
        let (what, number) = failed.split_once(' ').unwrap_or((failed, ""));
        let (made, hint) = match what {
            "write" | "size" => {
                let message = format!("`{shown}` did not arrive on `{place}`");
                let size = program.size.div_ceil(1_000_000);
                let hint = format!(
                    "it needs {size} MB in `~/.cache/distant/bin` there; or install distant there \
                     in another place, and name it with `--distant <PATH>`"
                );
                let cause = match what {
                    "size" => format!("{number} of {} bytes were written", program.size),
                    _ => format!("writing it ended with status {number}"),
                };
                (error(message).caused_by(cause), hint)
            }
            "hash" => {
                let message = format!("`{shown}` did not arrive on `{place}` as it is here");
                (error(message), "was it changed meanwhile? Launch again".to_owned())
            }
            "run" => {
                let message = format!("`{shown}` was brought to `{place}`, but does not run there");
                let cause = format!("`--version` ended with status {number}");
                let hint = match number {
                    "126" => {
                        "no program may run from `~/.cache` there (`noexec`?): install distant in \
                         another place, and name it with `--distant <PATH>`"
                    }
                    _ => {
                        "it may need libraries that are not there: install distant there, or name \
                         a static one with `--distant-upload <PATH>`"
                    }
                };
                (error(message).caused_by(cause), hint.to_owned())
            }
            _ => {
                let message = format!("no program can be put on `{place}`");
                let hint = "see that `~/.cache/distant/bin` can be written there, or install \
                            distant in another place, and name it with `--distant <PATH>`";
                (error(message), hint.to_owned())
            }
        };
        self.heard.words.iter().cloned().fold(made, LaunchError::caused_by).with_hint(hint)
    }

    /// The error where the command ended without a word.
    fn ended(&self) -> LaunchError {
        let place = self.place;
        let program = self.program.file.display();
        let message = format!("the connection to `{place}` ended before `{program}` was there");
        let (sent, size) = (self.sent, self.program.size);
        let error = LaunchError::new(ErrorKind::Unreachable, message)
            .caused_by(format!("{sent} of {size} bytes were on their way"));
        let ending = (self.watch.ending)().map(|it| format!("the command ended with {it}"));
        let noise = self.watch.noise.iter().cloned();
        ending.into_iter().chain(noise).fold(error, LaunchError::caused_by)
    }

    fn stalled(&self) -> LaunchError {
        let message = format!("`{}` takes nothing more of what is brought there", self.place);
        let (sent, size) = (self.sent, self.program.size);
        LaunchError::new(ErrorKind::TimedOut, message)
            .caused_by(format!("{sent} of {size} bytes were on their way"))
    }
}

#[cfg(test)]
#[path = "upload/tests.rs"]
mod tests;
