//! The questions of `ssh`, which arrive through the program named in `SSH_ASKPASS`.
//!
//! That program is a script in a private folder. It hands the question on through one pipe there and
//! reads the answer from another, so that no secret is in an argument, an environment or a file, and
//! nothing besides `/bin/sh` is needed. Whoever can write into that folder is this user.
//!
//! All pipes are made and held open here before anybody can ask, so that whoever asks or waits hears
//! of our end at any moment: its pipes are closed then.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use distant_plugin_api::secret::Secret;
use distant_plugin_api::LaunchError;
use distant_ssh::guard::system;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

/// Folders of this plugin begin with it; then follows the process that made one.
const PREFIX: &str = "distant-ssh-";
/// Longest path of a folder in which `ssh` can still make a socket.
const FOLDER_MAX: usize = 70;
/// Bytes of questions that are read at once, or a little more; the rest waits in the pipe.
const READ_MAX: usize = 16 * 1024;
/// Most questions that wait for an answer at once; further ones are refused. Each of the hosts on the
/// way has one program that asks, and that asks one question at a time.
const WAITING_MAX: usize = 8;

/// `ssh` runs it with the question, and takes what it prints for the answer. One that only tells the
/// person something is not waited for. A pipe is opened for both directions first, as that waits for
/// nobody, and then for the one that is needed: with no end of ours open it is at its end at once.
const SCRIPT: &str = r#"#!/bin/sh
# Hands a question of ssh on to the launch that it belongs to, and the answer back.
folder=${0%/*}
if [ "$SSH_ASKPASS_PROMPT" != none ]; then
    own=$folder/$$
    for pipe in "$folder"/answer-*; do
        mv -f "$pipe" "$own" 2>/dev/null && break
    done
    [ -p "$own" ] || exit 1
    exec 3<>"$own" 4<"$own" 3>&-
    rm -f "$own"
fi
exec 3<>"$folder/questions" 5>"$folder/questions" 3>&-
printf '%s\t%s\t%s\000' "${pipe##*-}" "$SSH_ASKPASS_PROMPT" "$1" >&5 || exit 1
[ "$SSH_ASKPASS_PROMPT" = none ] && exit 0
IFS= read -r answer <&4
case $answer in
    +*) printf '%s\n' "${answer#?}" ;;
    *) exit 1 ;;
esac
"#;

/// A private folder with the script, in which `ssh` may also keep sockets.
pub(crate) struct Questions {
    folder: tempfile::TempDir,
    pipe: File,
    pending: Vec<u8>,
    /// The pipes for answers, of which whoever asks takes one.
    answers: [Option<File>; WAITING_MAX],
}

/// What `ssh` wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Which pipe the answer goes to, if one is waited for.
    pipe: Option<usize>,
    /// What it asks.
    pub(crate) kind: Kind,
}

/// The kinds of questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whether a host is trusted.
    Host {
        /// The host's name or address and its port.
        place: String,
        /// Its key, in words for people.
        key: String,
        /// What else `ssh` has to say about it.
        more: Vec<String>,
    },
    /// The passphrase of a key file.
    Passphrase(String),
    /// The password of `user@host`.
    Password(String),
    /// Yes or no.
    Confirm(String),
    /// Nothing: the person shall do something, such as touching a key.
    Tell(String),
    /// What the server asks, a PIN, or anything else.
    Other(String),
}

impl Questions {
    /// Makes the folder.
    ///
    /// # Errors
    ///
    /// There is no place for it.
    pub(crate) fn new() -> Result<Self, LaunchError> {
        let runtime = format!("/run/user/{}", rustix::process::getuid().as_raw());
        let parents = [std::env::temp_dir(), runtime.into(), "/tmp".into(), "/var/tmp".into()];
        let folder = place(&parents).map_err(system)?;
        let script = folder.path().join("askpass");
        let mut file = fs::OpenOptions::new();
        let mut file =
            file.write(true).create_new(true).mode(0o700).open(script).map_err(system)?;
        file.write_all(SCRIPT.as_bytes()).map_err(system)?;
        drop(file);
        let pipe = make_pipe(folder.path(), "questions").map_err(system)?;
        let mut answers = [const { None }; WAITING_MAX];
        for (count, answer) in answers.iter_mut().enumerate() {
            *answer = Some(make_pipe(folder.path(), &answer_name(count)).map_err(system)?);
        }
        Ok(Self { folder, pipe, pending: Vec::new(), answers })
    }

    /// What `SSH_ASKPASS` is to be.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.path().join("askpass")
    }

    /// A path for a socket.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Readable when something was asked.
    pub(crate) fn pipe(&self) -> impl AsFd + '_ {
        &self.pipe
    }

    /// Takes what was asked meanwhile; does not wait.
    pub(crate) fn take(&mut self) -> Option<Asked> {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.pipe.read(&mut buffer) {
            self.pending.extend_from_slice(&buffer[..count]);
            if self.pending.len() > READ_MAX {
                break;
            }
        }
        loop {
            let end = self.pending.iter().position(|byte| *byte == 0)?;
            let question: Vec<u8> = self.pending.drain(..=end).collect();
            let asked = parse(&String::from_utf8_lossy(&question[..end]));
            if asked.is_some() {
                return asked;
            }
        }
    }

    /// Gives the answer, or says that there is none.
    pub(crate) fn answer(&mut self, asked: &Asked, answer: Option<&Secret>) {
        let Some(count) = asked.pipe else { return };
        let Some(place) = self.answers.get_mut(count) else { return };
        let Some(mut pipe) = place.take() else { return };
        let lines: &[&[u8]] = match answer {
            Some(answer) => &[b"+", answer.expose().as_bytes(), b"\n"],
            None => &[b"-\n"],
        };
        // A pipe that nobody has read from yet takes this at once, and keeps it for whoever asked, who
        // has it open. The next question needs another.
        let _ = lines.iter().try_for_each(|part| pipe.write_all(part));
        *place = make_pipe(self.folder.path(), &answer_name(count)).ok();
    }
}

fn answer_name(count: usize) -> String {
    format!("answer-{count}")
}

/// Makes a pipe that is open from the first moment that it has its name.
fn make_pipe(folder: &Path, name: &str) -> io::Result<File> {
    let path = folder.join("unopened");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR)?;
    let pipe = open_both(&path)?;
    fs::rename(path, folder.join(name))?;
    Ok(pipe)
}

/// Opens a pipe for both directions, so that nothing waits for the other side.
fn open_both(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Makes a folder where programs may be run from and paths are short, and removes those that
/// launches which were killed have left there.
fn place(parents: &[PathBuf]) -> io::Result<tempfile::TempDir> {
    let own = rustix::process::getuid().as_raw();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for parent in parents {
        // Those that mean something else to `ssh` in the name of a socket.
        let is_plain = !parent.to_string_lossy().contains(['%', '$', ':', '[', '\\']);
        let is_executable = rustix::fs::statvfs(parent)
            .is_ok_and(|it| !it.f_flag.contains(StatVfsMountFlags::NOEXEC));
        let is_short = parent.as_os_str().len() <= FOLDER_MAX - PREFIX.len() - 20;
        if !(is_plain && is_executable && is_short) {
            continue;
        }
        sweep(parent, own);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let mut builder = tempfile::Builder::new();
        match builder.prefix(&prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent)
        {
            Ok(folder) => return Ok(folder),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn sweep(parent: &Path, own: u32) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        let Some(maker) = maker.and_then(|maker| maker.parse::<u32>().ok()) else { continue };
        let is_own = entry.metadata().is_ok_and(|it| it.is_dir() && it.uid() == own);
        if is_own && !is_in_use(&entry.path(), maker) {
            // Another launch may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether the launch that has made a folder goes on. Its process tells only until the pipe is there:
/// a number may be another's by now, and one of another container is not seen here.
fn is_in_use(folder: &Path, maker: u32) -> bool {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::open(folder.join("questions"), flags, Mode::empty()) {
        Ok(_) => true,
        // Nobody has it open for reading.
        Err(Errno::NXIO) => false,
        Err(_) => Path::new(&format!("/proc/{maker}")).exists(),
    }
}

fn parse(question: &str) -> Option<Asked> {
    let mut parts = question.splitn(3, '\t');
    let (pipe, hint, text) = (parts.next()?, parts.next()?, parts.next()?);
    let text: String = text.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    let kind = kind(hint, &text);
    let pipe = match kind {
        Kind::Tell(_) => None,
        _ => Some(pipe.parse().ok()?),
    };
    Some(Asked { pipe, kind })
}

fn kind(hint: &str, text: &str) -> Kind {
    let trimmed = text.trim();
    if hint == "none" {
        return Kind::Tell(trimmed.to_owned());
    }
    if let Some(host) = host(trimmed) {
        return host;
    }
    // What a server asks begins with `(user@host)`, and any text may be its answer.
    if hint == "confirm" || (trimmed.contains("(yes/no)") && !trimmed.starts_with('(')) {
        return Kind::Confirm(trimmed.to_owned());
    }
    let between = |before: &str, after: &str| {
        trimmed.strip_prefix(before)?.strip_suffix(after).map(str::to_owned)
    };
    if let Some(file) = between("Enter passphrase for key '", "':") {
        return Kind::Passphrase(file);
    }
    match trimmed.strip_suffix("'s password:").filter(|whom| !whom.contains([' ', '\n'])) {
        Some(whom) => Kind::Password(whom.to_owned()),
        None => Kind::Other(text.to_owned()),
    }
}

/// Reads the question whether a host is the right one.
fn host(text: &str) -> Option<Kind> {
    // At the start, as a server's own question could hold these words further on.
    let rest = text.strip_prefix("The authenticity of host '")?;
    let (named, rest) = rest.split_once("' can't be established")?;
    let mut key = String::new();
    let mut more = Vec::new();
    for line in rest.lines().map(str::trim) {
        if let Some((kind, fingerprint)) = line.split_once(" key fingerprint is ") {
            let kind = match kind {
                "ED25519" => "Ed25519",
                "RSA" => "Rsa",
                "ECDSA" => "Ecdsa",
                other => other,
            };
            key = format!("{kind} Fingerprint: {}", fingerprint.trim_end_matches('.'));
        } else if !line.is_empty() && line != "." && !line.contains("(yes/no") {
            more.push(line.to_owned());
        }
    }
    Some(Kind::Host { place: named_place(named), key, more })
}

/// `[10.0.0.7]:2222 ([10.0.0.7]:2222)` as `10.0.0.7:2222`.
fn named_place(named: &str) -> String {
    let name = named.split(' ').next().unwrap_or_default();
    match name.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        Some((host, port)) if host.contains(':') => format!("[{host}]:{port}"),
        Some((host, port)) => format!("{host}:{port}"),
        None if name.contains(':') => format!("[{name}]:22"),
        None => format!("{name}:22"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    #[test]
    fn what_ssh_asks_is_told_apart() {
        let check = |hint: &str, text: &str, expected: Kind| assert_eq!(kind(hint, text), expected);
        check("", "Enter passphrase for key '/a b/id': ", Kind::Passphrase("/a b/id".into()));
        check("", "me@box's password: ", Kind::Password("me@box".into()));
        check("", "(me@box) One-time code: ", Kind::Other("(me@box) One-time code: ".into()));
        let feigned = "(me@box) The authenticity of host 'box' can't be established. (yes/no)? ";
        check("", feigned, Kind::Other(feigned.into()));
        check("", "Enter PIN for key /k: ", Kind::Other("Enter PIN for key /k: ".into()));
        let touch = "Confirm user presence for key ED25519-SK SHA256:x";
        check("none", touch, Kind::Tell(touch.into()));
        check("confirm", "Allow this?", Kind::Confirm("Allow this?".into()));
        let host = "The authenticity of host '[10.0.0.7]:2222 ([10.0.0.7]:2222)' can't be \
                    established.\nED25519 key fingerprint is SHA256:abc.\nThis key is not known by \
                    any other names.\nAre you sure you want to continue connecting \
                    (yes/no/[fingerprint])? ";
        let expected = Kind::Host {
            place: "10.0.0.7:2222".into(),
            key: "Ed25519 Fingerprint: SHA256:abc".into(),
            more: vec!["This key is not known by any other names.".into()],
        };
        check("", host, expected);
        for (named, expected) in [
            ("box (10.0.0.7)", "box:22"),
            ("::1 (::1)", "[::1]:22"),
            ("[::1]:23 ([::1]:23)", "[::1]:23"),
        ] {
            assert_eq!(named_place(named), expected);
        }
    }

    fn ask(program: &Path, hint: Option<&str>, text: &str) -> Child {
        let mut askpass = Command::new(program);
        askpass.arg(text).stdout(Stdio::piped()).env_remove("SSH_ASKPASS_PROMPT");
        if let Some(hint) = hint {
            askpass.env("SSH_ASKPASS_PROMPT", hint);
        }
        askpass.spawn().unwrap()
    }

    fn wait(questions: &mut Questions) -> Asked {
        loop {
            if let Some(asked) = questions.take() {
                return asked;
            }
            let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
            let mut fds = [PollFd::new(&questions.pipe, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1));
        }
    }

    #[test]
    fn a_question_reaches_us_and_its_answer_comes_back_whole() {
        let mut questions = Questions::new().unwrap();
        let program = questions.program();
        let mode = fs::metadata(questions.folder.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let files = |questions: &Questions| {
            let entries = fs::read_dir(questions.folder.path()).unwrap();
            let mut files: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            files.sort();
            files
        };
        let before = files(&questions);
        let secret = r"  -n a\b 'c' $d %s ü ";
        let answers =
            [(Some(secret), format!("{secret}\n")), (Some(""), "\n".into()), (None, String::new())];
        // More often than there are pipes.
        for (answer, expected) in answers.iter().cycle().take(WAITING_MAX + 4) {
            let askpass = ask(&program, None, "me@box's password: ");
            let asked = wait(&mut questions);
            assert_eq!(asked.kind, Kind::Password("me@box".into()));
            questions.answer(&asked, answer.map(Secret::new).as_ref());
            let output = askpass.wait_with_output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), *expected);
            assert_eq!(output.status.success(), answer.is_some());
        }
        let askpass = ask(&program, Some("none"), "touch it");
        assert_eq!(wait(&mut questions).kind, Kind::Tell("touch it".into()));
        assert!(askpass.wait_with_output().unwrap().status.success());
        // Neither a pipe nor an answer is left in the folder.
        assert_eq!(files(&questions), before);
    }

    #[test]
    fn each_of_many_questions_gets_its_own_answer_and_too_many_are_refused() {
        let mut questions = Questions::new().unwrap();
        let program = questions.program();
        let asking: Vec<_> =
            (0..WAITING_MAX).map(|count| ask(&program, None, &count.to_string())).collect();
        let asked: Vec<_> = (0..WAITING_MAX).map(|_| wait(&mut questions)).collect();
        assert!(!ask(&program, None, "more").wait().unwrap().success());
        for asked in asked.iter().rev() {
            let Kind::Other(text) = &asked.kind else { panic!("{asked:?}") };
            questions.answer(asked, Some(&Secret::new(format!("answer to {text}"))));
        }
        for (count, asking) in asking.into_iter().enumerate() {
            let output = asking.wait_with_output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("answer to {count}\n"));
        }
    }

    #[test]
    fn whoever_asks_when_we_are_gone_ends_at_once() {
        // As after SIGKILL: the folder is still there, and nobody has its pipes open.
        let Questions { folder, pipe, answers, .. } = Questions::new().unwrap();
        drop((pipe, answers));
        let long = "x".repeat(100_000);
        for (hint, text) in [(None, "PIN: "), (Some("none"), "touch it"), (None, &*long)] {
            let mut askpass = ask(&folder.path().join("askpass"), hint, text);
            let ended = rustix::process::pidfd_open(
                rustix::process::Pid::from_child(&askpass),
                rustix::process::PidfdFlags::empty(),
            );
            let ended = ended.unwrap();
            let mut fds = [PollFd::new(&ended, PollFlags::IN)];
            let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
            let count = rustix::event::poll(&mut fds, Some(&limit));
            let _ = askpass.kill();
            assert!(!askpass.wait().unwrap().success());
            assert_eq!(count, Ok(1), "{hint:?} waits for nobody");
        }
    }

    #[test]
    fn only_a_folder_whose_name_ssh_takes_as_it_is_is_chosen() {
        let top = tempfile::tempdir().unwrap();
        let odd = ["a:b", "%h", "${HOME}", "[x", "a\\", &"x".repeat(60), "none"];
        let mut parents = odd.map(|name| top.path().join(name)).to_vec();
        parents[..odd.len() - 1].iter().for_each(|parent| fs::create_dir(parent).unwrap());
        parents.push(top.path().join("good"));
        fs::create_dir(top.path().join("good")).unwrap();
        assert_eq!(place(&parents).unwrap().path().parent(), Some(&*top.path().join("good")));
    }

    #[test]
    fn what_a_killed_launch_left_is_removed_by_the_next_one() {
        let parent = tempfile::tempdir().unwrap();
        let own = rustix::process::getuid().as_raw();
        let mut ended = Command::new("true").spawn().unwrap();
        let gone = parent.path().join(format!("{PREFIX}{}-x", ended.id()));
        let kept = parent.path().join(format!("{PREFIX}{}-x", std::process::id()));
        ended.wait().unwrap();
        // One of another container, and one whose number is another's by now.
        let elsewhere = parent.path().join(format!("{PREFIX}{}-y", ended.id()));
        let reused = parent.path().join(format!("{PREFIX}{}-y", std::process::id()));
        for folder in [&gone, &kept, &elsewhere, &reused] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("askpass"), "").unwrap();
        }
        let pipe = |folder: &Path| {
            let path = folder.join("questions");
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
            open_both(&path).unwrap()
        };
        let _open = pipe(&elsewhere);
        drop(pipe(&reused));
        sweep(parent.path(), own);
        assert!(!gone.exists() && kept.exists());
        assert!(elsewhere.exists() && !reused.exists());
    }
}
