use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Mutex};
use std::thread;

use super::*;
use crate::bootstrap::tests::{
    connected, host, host_that_cancels_at, request, Shell, Told, SHELLS,
};
use crate::bootstrap::{launch, Reach, Running, Tunnel};
use crate::message::PluginMessage;

/// What a program says of itself where this machine is concerned.
fn program(file: &Path) -> Upload {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    Upload {
        file: file.to_owned(),
        size: fs::metadata(file).unwrap().len(),
        sha256: said("sha256sum", &[&file.display().to_string()]),
        system: said("uname", &["-s"]),
        machine: said("uname", &["-m"]),
        always: true,
    }
}

fn asked(program: Upload) -> LaunchRequest {
    let mut request = request(None, &[]);
    request.server.upload = Some(program);
    request
}

/// Makes a program as long as a real one.
fn lengthen(file: &Path) {
    let mut file = fs::File::options().append(true).open(file).unwrap();
    file.write_all(b"exit\n").unwrap();
    file.write_all(&b"0123456789abcde\n".repeat(1 << 18)).unwrap();
}

/// How a command is run there.
type Run = Box<dyn Fn(&Shell, &str) -> Running + Sync>;

/// A shell where commands are counted, and may be run in another way than usual.
struct Counted {
    shell: Shell,
    commands: AtomicUsize,
    run: Option<Run>,
    copies: bool,
}

impl Counted {
    fn new(program: &'static str) -> Self {
        let (shell, commands) = (Shell::new(program), AtomicUsize::new(0));
        Self { shell, commands, run: None, copies: false }
    }

    /// One whose first command is run like this.
    fn that(run: impl Fn(&Shell, &str) -> Running + Sync + 'static) -> Self {
        Self { run: Some(Box::new(run)), ..Self::new("/bin/sh") }
    }

    fn commands(&self) -> usize {
        self.commands.swap(0, Ordering::Relaxed)
    }

    /// The names in the folder of what was brought.
    fn brought(&self) -> Vec<String> {
        let folder = fs::read_dir(self.shell.home.path().join(".cache/distant/bin"));
        let names = folder.into_iter().flatten().map(|it| it.unwrap().file_name());
        names.map(|it| it.into_string().unwrap()).collect()
    }
}

impl Remote for Counted {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        let before = self.commands.fetch_add(1, Ordering::Relaxed);
        match &self.run {
            Some(run) if before == 0 => Ok(run(&self.shell, command)),
            _ => self.shell.exec(command),
        }
    }

    fn reach(&self) -> Reach {
        self.shell.reach()
    }

    fn upload(&self, file: &Path, to: &str, _: &Caller) -> Option<Result<(), LaunchError>> {
        self.copies.then(|| {
            fs::copy(file, to).unwrap();
            Ok(())
        })
    }
}

/// The last of what was told of the upload.
fn progress(told: &Told) -> Option<(u64, u64)> {
    let told = told.lock().unwrap();
    let mut of_upload = told.iter().filter_map(|message| match message {
        PluginMessage::Progress(it) if it.stage == Stage::Upload => Some((it.done, it.total)),
        _ => None,
    });
    of_upload.next_back()
}

#[test]
fn a_program_is_brought_once_whatever_the_login_shell_and_found_from_then_on() {
    for program_of_login in SHELLS {
        let there = Counted::new(program_of_login);
        for rc in [".bashrc", ".profile", ".zshenv", ".tcshrc", ".config/fish/config.fish"] {
            there.shell.file(rc, "echo junk\n", 0o644);
        }
        let file = there.shell.server("my programs/it's one", 4242);
        lengthen(&file);
        let brought = program(&file);
        for is_first in [true, false] {
            let (caller, told) = host(vec![connected()], false);
            let request = asked(brought.clone());
            launch(&there, &request, Tunnel::Auto, &caller).unwrap();
            assert_eq!(there.commands(), 1, "{program_of_login}");
            let size = brought.size;
            assert_eq!(progress(&told), is_first.then_some((size, size)), "{program_of_login}");
            assert!(there.shell.server_is_running(), "{program_of_login}");
            there.shell.end_server();
        }
        let [name] = <[_; 1]>::try_from(there.brought()).unwrap();
        assert_eq!(name, format!("distant-{}", &brought.sha256[..32]));
        let folder = there.shell.home.path().join(".cache/distant/bin");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&folder), mode(&folder.join(&name))), (0o700, 0o700));
        assert_eq!(fs::read(folder.join(&name)).unwrap(), fs::read(&file).unwrap());
        // Half of one under the name is none.
        fs::File::options().write(true).open(folder.join(name)).unwrap().set_len(1000).unwrap();
        let (caller, _) = host(vec![connected()], false);
        launch(&there, &asked(brought), Tunnel::Auto, &caller).unwrap();
        assert_eq!(there.commands(), 1, "{program_of_login}");
        there.shell.end_server();
    }
}

#[test]
fn a_program_that_is_there_is_taken_unless_ours_is_named() {
    let there = Counted::new("/bin/sh");
    let installed = there.shell.server(".local/bin/distant-installed", 4242);
    let brought = program(&there.shell.server("ours", 4243));
    let port = |request: LaunchRequest| {
        let (caller, told) = host(vec![connected()], false);
        launch(&there, &request, Tunnel::Auto, &caller).unwrap();
        there.shell.end_server();
        let told = told.lock().unwrap();
        told.iter().find_map(|it| match it {
            PluginMessage::Offer(offer) => Some(offer.port),
            _ => None,
        })
    };
    let mut named = asked(brought.clone());
    named.server.program = Some(installed.display().to_string());
    assert_eq!((port(named.clone()), there.commands()), (Some(4242), 1));
    named.server.program = Some("/none/distant".into());
    assert_eq!((port(named), there.commands()), (Some(4243), 1));
    assert_eq!((port(asked(brought)), there.commands()), (Some(4243), 1));
}

#[test]
fn a_plugin_may_bring_it_in_its_own_way() {
    let there = Counted { copies: true, ..Counted::new("/bin/sh") };
    let brought = program(&there.shell.server("ours", 4242));
    let (caller, _) = host(vec![connected()], false);
    launch(&there, &asked(brought.clone()), Tunnel::Auto, &caller).unwrap();
    there.shell.end_server();
    assert_eq!((there.commands(), there.brought().len()), (1, 1));
    // What it brings is checked as well.
    let other = there.shell.file("other", "#!/bin/sh\nexit 0\n", 0o755);
    let (caller, _) = host(vec![], false);
    let wrong = Upload { file: other.clone(), sha256: brought.sha256, ..program(&other) };
    let wrong = Upload { size: 17, ..wrong };
    let error = launch(&there, &asked(wrong), Tunnel::Auto, &caller).unwrap_err();
    assert!(error.message.ends_with("did not arrive on `box` as it is here"), "{error:?}");
    assert_eq!(there.brought().len(), 1);
}

/// Takes the line that receives a program, and sets `s` to the name that it gives to a part of one.
const NAME: &str = r"read -r a; s=${a#*/.distant-}; s=.distant-${s%%.*}.0123";

#[test]
fn what_a_server_says_together_with_the_last_word_of_an_upload_is_heard() {
    let there = Counted::that(|shell, command| {
        let line = format!("distant://:{}@127.0.0.1:4242", "0f".repeat(32));
        let (mark, _) = command.split_once(';').unwrap();
        let takes = format!(
            r#"echo "$m missing"; {NAME}; echo "$m ready /distant/bin/$s"; read -r a; head -c 3 >&2"#
        );
        let says = format!("echo \"$m done\n$m say {line}\n$m closed\"; read -r a; echo $m kept");
        shell.exec(&format!("{mark}; {takes}; {says}'")).unwrap()
    });
    let file = there.shell.file("ours", "123", 0o755);
    let (caller, _) = host(vec![connected()], false);
    launch(&there, &asked(program(&file)), Tunnel::Auto, &caller).unwrap();
}

/// Launches where this has to fail, and nothing may be left.
fn fails(there: &Counted, program: Upload, kind: ErrorKind) -> String {
    let (caller, _) = host(vec![], false);
    let error = launch(there, &asked(program), Tunnel::Auto, &caller).unwrap_err();
    assert_eq!(error.kind, kind, "{error:?}");
    assert_eq!(there.brought(), <[&str; 0]>::default(), "{error:?}");
    error.one_line().into_owned()
}

#[test]
fn a_program_for_another_machine_is_not_sent() {
    let there = Counted::new("/bin/sh");
    let file = there.shell.server("ours", 4242);
    let other = Upload { machine: "pdp11".into(), ..program(&file) };
    let error = fails(&there, other, ErrorKind::ServerNotFound);
    let here = program(&file);
    let expected = format!(
        "does not run on `box`, where no server program is: it is for Linux pdp11: `box` is {} {}",
        here.system, here.machine
    );
    assert!(error.ends_with(&expected), "{error}");
    assert!(!there.shell.home.path().join(".cache").exists());
}

#[test]
fn a_machine_without_room_keeps_no_half_a_program() {
    let there = Counted::that(|shell, command| {
        let limited = format!("ulimit -f 100; {command}");
        shell.exec(&limited).unwrap()
    });
    let file = there.shell.server("ours", 4242);
    lengthen(&file);
    let error = fails(&there, program(&file), ErrorKind::ServerNotFound);
    assert!(error.contains("did not arrive on `box`: writing it ended with status 1"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let there = Counted::new("/bin/sh");
    there.shell.file(".cache", "a file", 0o644);
    let file = there.shell.server("ours", 4242);
    let error = fails(&there, program(&file), ErrorKind::ServerNotFound);
    assert!(error.contains("no program can be put on `box`: mkdir: "), "{error}");
}

#[test]
fn a_folder_of_somebody_else_is_neither_searched_nor_written_to() {
    for theirs in [".cache/distant/bin", ".cache/distant"] {
        let there = Counted::new("/bin/sh");
        let file = there.shell.server("ours", 4242);
        let (caller, _) = host(vec![connected()], false);
        launch(&there, &asked(program(&file)), Tunnel::Auto, &caller).unwrap();
        there.shell.end_server();
        let names = there.brought();
        assert_eq!((there.commands(), names.len()), (1, 1));
        let folder = there.shell.home.path().join(theirs);
        std::os::unix::fs::chown(folder, Some(65534), None).unwrap();
        let (caller, _) = host(vec![], false);
        let error = launch(&there, &asked(program(&file)), Tunnel::Auto, &caller).unwrap_err();
        let error = error.one_line();
        assert!(error.ends_with(OTHERS), "{error}");
        assert_eq!((there.commands(), there.brought()), (1, names));
    }
}

/// Why a folder is none for programs.
const OTHERS: &str = "/.cache/distant/bin belongs to somebody else, or is where others write";

#[test]
fn a_folder_that_others_can_put_in_the_place_of_ours_is_neither_searched_nor_written_to() {
    let check = |mode: u32, is_link: bool, is_good: bool| {
        let there = Counted::new("/bin/sh");
        let file = there.shell.server("ours", 4242);
        let (caller, _) = host(vec![connected()], false);
        launch(&there, &asked(program(&file)), Tunnel::Auto, &caller).unwrap();
        there.shell.end_server();
        assert_eq!(there.commands(), 1);
        // Somebody else's folder in which ours is.
        let theirs = there.shell.home.path().join(".cache");
        if is_link {
            let ours = there.shell.home.path().join("ours-too");
            fs::rename(theirs.join("distant"), &ours).unwrap();
            std::os::unix::fs::symlink(&ours, theirs.join("distant")).unwrap();
        }
        fs::set_permissions(&theirs, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
        let old = theirs.join("distant/bin/distant-of-last-year");
        fs::File::create(&old).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let (caller, _) = host(if is_good { vec![connected()] } else { vec![] }, false);
        let launched = launch(&there, &asked(program(&file)), Tunnel::Auto, &caller);
        if is_good {
            launched.unwrap();
            there.shell.end_server();
            assert_eq!(there.commands(), 1);
        } else {
            let error = launched.unwrap_err();
            assert!(error.one_line().ends_with(OTHERS), "{error:?}");
            assert!(old.exists() && there.commands() == 1);
        }
    };
    check(0o1777, false, true);
    check(0o1777, true, false);
    check(0o755, true, false);
    check(0o777, false, false);
}

#[test]
fn a_plugin_is_given_no_flag_and_no_other_file_for_the_path_that_it_brings_the_program_to() {
    let part = "distant/bin/$s";
    for said in [
        "--rm",
        &format!("none/{part}"),
        "",
        &format!("/tmp/\u{1b}[2J/{part}"),
        "/etc/passwd",
        &format!("/home/../{part}"),
        &format!("/home/{part}/.bashrc"),
        &format!("/home/{part}/../.bashrc"),
    ] {
        let said = said.to_owned();
        let there = Counted::that(move |shell, command| {
            let says =
                format!(r#"echo; echo "$m missing"; {NAME}; echo "$m ready {said}"; read -r a"#);
            let (mark, _) = command.split_once(';').unwrap();
            shell.exec(&format!("{mark}; {says}'")).unwrap()
        });
        let there = Counted { copies: true, ..there };
        let file = there.shell.server("distant", 4242);
        let said = fails(&there, program(&file), ErrorKind::ServerNotFound);
        assert!(said.starts_with("no program can be put on `box`"), "{said}");
    }
}

#[test]
fn a_program_that_does_not_run_there_is_not_kept() {
    let there = Counted::new("/bin/sh");
    let text = "#!/bin/sh\necho version GLIBC_9.9 not found >&2\nexit 1\n";
    let file = there.shell.file("ours", text, 0o755);
    let error = fails(&there, program(&file), ErrorKind::ServerNotFound);
    let expected =
        "does not run there: `--version` ended with status 1: version GLIBC_9.9 not found";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn a_connection_that_is_cut_in_the_middle_leaves_nothing() {
    let there = Counted::that(|shell, command| {
        let running = shell.exec(command).unwrap();
        let (ours, theirs) = std::io::pipe().unwrap();
        let mut to_shell = fs::File::from(running.stdin);
        // It ends with the test: what it reads is as long as a program.
        std::thread::spawn(move || std::io::copy(&mut ours.take(1_000_000), &mut to_shell));
        Running { stdin: theirs.into(), ..running }
    });
    let file = there.shell.server("ours", 4242);
    lengthen(&file);
    let lines = receive(&program(&file)).unwrap().len() + DATA.len();
    let error = fails(&there, program(&file), ErrorKind::ServerNotFound);
    let (arrived, size) = (1_000_000 - lines, program(&file).size);
    assert!(error.ends_with(&format!(": {arrived} of {size} bytes were written")), "{error}");
}

#[test]
fn a_place_that_takes_nothing_more_is_given_up() {
    let held = Mutex::new(Vec::new());
    let there = Counted::that(move |shell, command| {
        let running = shell.exec(command).unwrap();
        let (ours, theirs) = std::io::pipe().unwrap();
        // Both stay open, and nothing goes from one to the other.
        held.lock().unwrap().push((ours, running.stdin));
        Running { stdin: theirs.into(), ..running }
    });
    let file = there.shell.server("ours", 4242);
    lengthen(&file);
    let (caller, _) = host(vec![], false);
    let error = launch(&there, &asked(program(&file)), Tunnel::Auto, &caller).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TimedOut, "{error:?}");
    assert_eq!(error.message, "`box` takes nothing more of what is brought there");
}

#[test]
fn a_launch_that_is_cancelled_in_the_middle_leaves_nothing() {
    let there = Counted::new("/bin/sh");
    let file = there.shell.server("ours", 4242);
    lengthen(&file);
    let request = asked(program(&file));
    let (caller, told) = host_that_cancels_at(Stage::Upload);
    let error = launch(&there, &request, Tunnel::Auto, &caller).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled, "{error:?}");
    let (done, total) = progress(&told).unwrap();
    assert!(done > 0 && done < total);
    assert_eq!((there.commands(), there.brought()), (1, vec![]));
}

#[test]
fn nothing_of_a_program_is_anything_to_a_login_shell() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let good = program(file.path());
    let script = look(&good).unwrap() + BRING;
    assert!(!script.contains(['\'', '\\', '!', '\n']) && script.is_ascii(), "{script}");
    // This one is read with one write, and as one line.
    let line = receive(&good).unwrap();
    assert!(line.len() < 4096 && line.find('\n') == Some(line.len() - 1), "{line}");
    for odd in ["", "x y", "$(id)", "a\"b", "é"] {
        assert!(look(&Upload { machine: odd.into(), ..good.clone() }).is_err(), "{odd}");
        assert!(look(&Upload { system: odd.into(), ..good.clone() }).is_err(), "{odd}");
        assert!(look(&Upload { sha256: odd.into(), ..good.clone() }).is_err(), "{odd}");
    }
}

#[test]
fn a_pipe_in_the_place_of_the_program_is_waited_for_by_nobody() {
    let there = Counted::new("/bin/sh");
    let program = program(&there.shell.server("ours", 4242));
    fs::remove_file(&program.file).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &program.file, Mode::RWXU).unwrap();
    let (tell, opened) = mpsc::channel();
    thread::spawn(move || tell.send(open(&program).map(drop)));
    let error = opened.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_err();
    assert!(error.message.ends_with("was changed while it was brought there"), "{error:?}");
}
