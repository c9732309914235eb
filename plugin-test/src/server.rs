//! What a launch sees of `distant server listen`: a port that answers, and the line that says
//! where. It lets nobody do anything.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// How long it stays without a client unless told otherwise.
const LONELY: Duration = Duration::from_secs(60);

/// Runs the server with these arguments of `server listen`.
pub(crate) fn run(arguments: &[Cow<'_, str>]) -> ExitCode {
    if arguments.iter().any(|it| it == "--daemon") {
        return detach(arguments).unwrap_or(ExitCode::FAILURE);
    }
    serve(arguments).unwrap_or(ExitCode::FAILURE)
}

/// The value of a flag, in either of its forms.
fn value<'a>(arguments: &'a [Cow<'_, str>], flag: &str) -> Option<&'a str> {
    let mut words = arguments.iter().map(AsRef::as_ref);
    while let Some(word) = words.next() {
        let word: &str = word;
        if word == flag {
            return words.next();
        }
        if let Some(value) = word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value);
        }
    }
    None
}

/// Starts the server in the background and says what it says.
fn detach(arguments: &[Cow<'_, str>]) -> Option<ExitCode> {
    let rest = arguments.iter().filter(|it| *it != "--daemon").map(AsRef::<str>::as_ref);
    let mut child = Command::new("/proc/self/exe")
        .args(["server", "listen"])
        .args(rest)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
    let mut output = std::io::stdout();
    writeln!(output, "{line}[distant server detached, pid = {}]", child.id()).ok()?;
    output.flush().ok()?;
    Some(ExitCode::SUCCESS)
}

fn serve(arguments: &[Cow<'_, str>]) -> Option<ExitCode> {
    if arguments.iter().any(|it| it == "--detached") {
        rustix::process::setsid().ok()?;
    }
    // As the real one does where nobody says more: on all addresses.
    let host: IpAddr = value(arguments, "--host")
        .and_then(|host| host.parse().ok())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let listener = TcpListener::bind((host, 0)).ok()?;
    let lonely = value(arguments, "--shutdown")
        .and_then(|rule| rule.strip_prefix("lonely="))
        .and_then(|seconds| seconds.parse().ok())
        .map_or(LONELY, Duration::from_secs);
    let mut key = [0_u8; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut key)).ok()?;
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut output = std::io::stdout();
    writeln!(output, "distant://:{key}@{}", listener.local_addr().ok()?).ok()?;
    output.flush().ok()?;

    let end = Instant::now() + lonely;
    listener.set_nonblocking(true).ok()?;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        // An error is an interruption by a signal.
        let _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&left));
        // It is enough that somebody could come.
        drop(listener.accept());
    }
    Some(ExitCode::SUCCESS)
}
