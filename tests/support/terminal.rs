//! A program on a terminal of its own, for prompts.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags};
use rustix::pty::{grantpt, ioctl_tiocgptpeer, openpt, unlockpt, OpenptFlags};

use super::process::{pid_of, wait_for_end, Output, Signal};
use super::PATIENCE;

/// A program whose stdin, stdout and stderr are a terminal, which it also finds as `/dev/tty`.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    screen: Output,
}

impl Terminal {
    /// Starts the program.
    pub(crate) fn start(command: &Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = File::from(ioctl_tiocgptpeer(&master, flags).unwrap());
        // `setsid` of util-linux makes the terminal the controlling one, which Rust's `Command`
        // cannot.
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        for (name, value) in command.get_envs() {
            started.env(name, value.unwrap_or_default());
        }
        if let Some(folder) = command.get_current_dir() {
            started.current_dir(folder);
        }
        let stream = || Stdio::from(terminal.try_clone().unwrap());
        let child = started.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let keyboard = File::from(master);
        let screen = Output::read(keyboard.try_clone().unwrap());
        Self { child, keyboard, screen }
    }

    /// Waits until the screen shows this after what earlier calls have seen, and returns all up to
    /// there.
    #[track_caller]
    pub(crate) fn expect(&self, text: &str) -> String {
        let shown = self.screen.until(text, Instant::now() + PATIENCE);
        shown.unwrap_or_else(|| panic!("no `{text}` on the screen:\n{}", self.screen.so_far()))
    }

    /// Types something; `\x03` is Ctrl-C.
    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for its end; gives that and everything that was ever on the screen.
    #[track_caller]
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let pidfd = pidfd_open(pid_of(&self.child), PidfdFlags::empty()).unwrap();
        let ended = wait_for_end(&pidfd, PATIENCE);
        assert!(ended, "it does not end:\n{}", self.screen.so_far());
        let status = self.child.wait().unwrap();
        let shown = self.screen.all(Instant::now() + PATIENCE);
        (status, shown.expect("somebody still holds the terminal"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid: Pid = pid_of(&self.child);
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[test]
fn a_program_finds_its_terminal() {
    let home = super::Home::new();
    let script = "stty -echo; printf 'name? ' >/dev/tty; read name </dev/tty; echo \"hi $name\"";
    let mut terminal = home.program("sh", ["-c", script]).on_terminal();
    terminal.expect("name? ");
    terminal.type_keys("Anna\n");
    terminal.expect("hi Anna");
    let (status, screen) = terminal.finish();
    assert!(status.success(), "{screen}");
}
