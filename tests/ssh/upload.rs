//! A machine without a server program: one is brought there.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::each_backend;
use super::end::End;
use super::remote::Account;
use crate::support::{eventually, peer, programs, report, Home, Invocation, Manager, Seen, Sshd};

const HELLO: &str = r#"{"type":"auth_initialization_response","methods":["none"]}"#;

/// A machine that this is not, by its number in a header and by its name.
const OTHER: (u16, &str) =
    if cfg!(target_arch = "aarch64") { (62, "x86_64") } else { (183, "aarch64") };

/// Where programs are brought to.
fn folder(sshd: &Sshd) -> PathBuf {
    sshd.path("home/cache/distant/bin")
}

fn brought(sshd: &Sshd) -> Vec<String> {
    let names = fs::read_dir(folder(sshd)).into_iter().flatten().flatten();
    names.map(|it| it.file_name().into_string().unwrap()).collect()
}

fn launch(home: &Home, sshd: &Sshd, backend: &str, to: SocketAddr, upload: &str) -> Invocation {
    // The proxy of a test is as well known as what is behind it.
    let known = sshd
        .known(&["ed25519"])
        .replace(&sshd.name(), &format!("{},[{}]:{}", sshd.name(), to.ip(), to.port()));
    home.write(".ssh/known_hosts", known);
    let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
    let to = format!("ssh://root@{to}");
    home.ours(["launch", &to, "--options", &options, "--distant-upload", upload])
}

/// A copy of the released program whose header says that it is for another machine.
fn for_another_machine(home: &Home) -> PathBuf {
    let mut program = fs::read(peer()).unwrap();
    program[18..20].copy_from_slice(&OTHER.0.to_le_bytes());
    home.write("for-another-machine", program)
}

each_backend! {
    fn a_program_is_brought_to_a_machine_that_has_none_and_found_there_by_the_next_launch(
        backend: &str
    ) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "MaxSessions 1\nPermitTTY no");
        let released = peer().display().to_string();
        // One that is there already may be open to others.
        fs::create_dir_all(folder(&sshd)).unwrap();
        fs::set_permissions(folder(&sshd), Permissions::from_mode(0o755)).unwrap();
        let mut seen = Vec::new();
        for is_first in [true, false] {
            let launch = launch(&home, &sshd, backend, sshd.address, &released).arg("--format=json");
            let mut launch = launch.start();
            launch.json();
            launch.say(HELLO);
            let mut progress = Vec::new();
            loop {
                let line = launch.json();
                match line["type"].as_str() {
                    Some("progress") => progress.push(line),
                    Some("launched") => break,
                    Some("auth_start_method" | "auth_finished") => {}
                    _ => panic!("{line}: {}", launch.told()),
                }
            }
            launch.finish().success();
            assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
            assert_eq!(!progress.is_empty(), is_first, "{progress:?}");
            if is_first {
                let size = fs::metadata(peer()).unwrap().len();
                let last = progress.last().unwrap();
                assert_eq!((last["stage"].as_str(), last["done"].as_u64()), (Some("upload"), Some(size)));
                assert_eq!(last["total"].as_u64(), Some(size));
            }
            seen.push(brought(&sshd));
        }
        // One for each launch, whether it has brought something or not.
        assert_eq!((sshd.connections(), sshd.log().matches("Accepted publickey").count()), (2, 2));
        assert_eq!((seen[0].len(), &seen[0]), (1, &seen[1]));
        let program = folder(&sshd).join(&seen[0][0]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&folder(&sshd)), mode(&program)), (0o700, 0o700));
        let there = fs::read(program).unwrap();
        assert!(there == fs::read(peer()).unwrap());
        let key = "distant://";
        assert!(home.processes().iter().all(|it| !it.command.contains(key)));
    }

    fn a_program_for_another_machine_is_refused_before_anything_is_sent(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let other = for_another_machine(&home).display().to_string();
        let failed = launch(&home, &sshd, backend, sshd.address, &other).run().code(1);
        let said = format!("error: `{other}` does not run on `127.0.0.1`, where no server program is\n");
        assert!(failed.stderr.contains(&said), "{}", failed.told());
        let said = format!("caused by: it is for Linux {}\n", OTHER.1);
        assert!(failed.stderr.contains(&said), "{}", failed.told());
        assert!(failed.stderr.contains("hint: install distant there, or name one for that machine"));
        assert!(!folder(&sshd).exists());
        manager.assert_no_offspring();
    }

    fn a_full_disk_is_said_and_nothing_is_left_on_it(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let disk = Disk::new(&sshd.path("home/cache"), "size=4m");
        let released = peer().display().to_string();
        let failed = launch(&home, &sshd, backend, sshd.address, &released).run().code(1);
        let said = format!("error: `{released}` did not arrive on `127.0.0.1`\n");
        assert!(failed.stderr.contains(&said), "{}", failed.told());
        assert!(failed.stderr.contains("No space left on device"), "{}", failed.told());
        assert!(failed.stderr.contains("hint: it needs 13 MB in"), "{}", failed.told());
        assert_eq!(brought(&sshd), Vec::<String>::new());
        manager.assert_no_offspring();
        drop(disk);
    }

    fn a_disk_that_no_program_may_run_from_is_said(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let disk = Disk::new(&sshd.path("home/cache"), "size=64m,noexec");
        let released = peer().display().to_string();
        let failed = launch(&home, &sshd, backend, sshd.address, &released).run().code(1);
        let said = "was brought to `127.0.0.1`, but does not run there\n";
        assert!(failed.stderr.contains(said), "{}", failed.told());
        assert!(failed.stderr.contains("hint: no program may run from `~/.cache` there"));
        assert_eq!(brought(&sshd), Vec::<String>::new());
        manager.assert_no_offspring();
        drop(disk);
    }

    fn a_disk_that_nobody_may_write_to_is_said(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        let disk = Disk::new(&sshd.path("home/cache"), "ro");
        let released = peer().display().to_string();
        let failed = launch(&home, &sshd, backend, sshd.address, &released).run().code(1);
        let said = "error: no program can be put on `127.0.0.1`\n";
        assert!(failed.stderr.contains(said), "{}", failed.told());
        assert!(failed.stderr.contains("Read-only file system"), "{}", failed.told());
        manager.assert_no_offspring();
        drop(disk);
    }

    fn a_password_is_asked_for_once_and_is_in_no_command_line(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let password = "correct-horse-battery-77";
        let account = Account::new("/bin/sh", password);
        let (mark, its) = (home.mark(), account.home.display());
        let sshd = Sshd::with(&home, &format!(
            "UsePAM no\nKbdInteractiveAuthentication no\n\
             SetEnv {mark} HOME={its} XDG_CACHE_HOME={its}/cache XDG_RUNTIME_DIR={its}"
        ));
        sshd.make_known(&home);
        let to = format!("ssh://{}@{}", account.name, sshd.address);
        let options = format!("backend={backend},distant.upload={}", peer().display());
        let launch = home.ours(["launch", &to, "--options", &options, "--format=json"]);
        let mut launch = launch.start();
        launch.json();
        launch.say(HELLO);
        let (mut questions, mut uploads) = (0, 0);
        loop {
            let line = launch.json();
            match line["type"].as_str() {
                Some("auth_challenge") => {
                    questions += 1;
                    launch.say(&format!(
                        r#"{{"type":"auth_challenge_response","answers":["{password}"]}}"#
                    ));
                }
                Some("progress") => {
                    uploads += 1;
                    let is_shown = |it: &Seen| it.command.contains(password);
                    assert!(!home.processes().iter().any(is_shown));
                }
                Some("launched") => break,
                Some("auth_initialization" | "auth_start_method" | "auth_finished") => {}
                _ => panic!("{line}: {}", launch.told()),
            }
        }
        launch.finish().success();
        assert!(uploads > 0);
        assert_eq!(questions, 1);
        assert!(!sshd.log().contains("Failed password"), "{}", sshd.log());
        let there = account.home.join("cache/distant/bin");
        assert_eq!(fs::read_dir(there).unwrap().count(), 1);
    }

    fn whoever_ends_in_the_middle_of_an_upload_leaves_nothing_of_it(backend: &str) {
        for end in End::ALL {
            let home = Home::new();
            let manager = Manager::start(&home);
            let sshd = Sshd::start(&home);
            let to = swallowing(sshd.address, 1_500_000);
            let released = peer().display().to_string();
            let launch = launch(&home, &sshd, backend, to, &released).arg("--format=json");
            let mut launch = launch.start();
            launch.json();
            launch.say(HELLO);
            while launch.json()["done"].as_u64().is_none_or(|done| done == 0) {}
            eventually("a part of the program", || {
                let parts = fs::read_dir(folder(&sshd)).ok()?;
                let sizes = parts.flatten().filter_map(|it| Some(it.metadata().ok()?.len()));
                sizes.max().filter(|size| *size > 1_000_000)
            });
            let rest = || {
                let mut there = home.processes();
                there.retain(|it| it.command.contains("distant/bin"));
                let (parts, open) = (brought(&sshd), sshd.open());
                let is_clean = there.is_empty() && parts.is_empty() && open == 0;
                (!is_clean).then(|| format!("{parts:?}, {open} connections, {there:#?}"))
            };
            let (took, _) = end.leaves_nothing(launch, manager, rest);
            report(format!("{end:?} during an upload, {backend}: clean after {took:.2?}"));
        }
    }

    fn whoever_ends_when_what_was_brought_starts_leaves_the_program_alone(backend: &str) {
        for end in End::ALL {
            let home = Home::new();
            let manager = Manager::start(&home);
            let sshd = Sshd::start(&home);
            let hangs = that_hangs(&home).display().to_string();
            let launch = launch(&home, &sshd, backend, sshd.address, &hangs).start();
            let runs = |seen: &Seen| seen.command.contains("server listen");
            eventually("the server", || home.processes().iter().any(runs).then_some(()));
            let rest = || {
                let (mut there, open) = (home.processes(), sshd.open());
                there.retain(runs);
                let is_clean = there.is_empty() && open == 0;
                (!is_clean).then(|| format!("{open} connections, {there:#?}"))
            };
            end.leaves_nothing(launch, manager, rest);
            assert_eq!((brought(&sshd).len(), sshd.connections()), (1, 1));
        }
    }
}

/// A program that runs, and never says where it listens.
fn that_hangs(home: &Home) -> PathBuf {
    let text = "#include <unistd.h>\nint main(int argc, char **argv) {\n\
                (void)argv;\n  return argc == 2 ? 0 : pause();\n}\n";
    let (source, program) = (home.write("hangs.c", text), home.path("hangs"));
    let made = Command::new("cc").arg(source).arg("-o").arg(&program).status().unwrap();
    assert!(made.success());
    program
}

/// Somebody in the middle of each connection who brings that many bytes there, and loses the rest until
/// the connection ends.
fn swallowing(target: SocketAddr, most: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(target) else { return };
            let (from_client, to_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || pass(from_client, to_server, most));
            thread::spawn(move || pass(server, client, usize::MAX));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, most: usize) {
    let (mut buffer, mut left) = ([0; 4096], most);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let brought = count.min(left);
        left -= brought;
        if to.write_all(&buffer[..brought]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A file system of the test's own.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
        assert!(mount.status().unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever is still open there keeps nobody from removing the folder.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn this_very_program_is_brought_where_none_is_and_a_wrong_file_nowhere() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let launch_own = launch(&home, &sshd, "ssh2", sshd.address, "auto");
    launch_own.args(&["--distant", "no-such-distant"]).run_within(Duration::from_secs(120)).id();
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    let [name] = <[_; 1]>::try_from(brought(&sshd)).unwrap();
    let there = fs::metadata(folder(&sshd).join(name)).unwrap();
    assert_eq!(there.len(), fs::metadata(&programs().distant).unwrap().len());
    let connections = sshd.connections();
    let check = |upload: &str, cause: &str| {
        let failed = launch(&home, &sshd, "ssh2", sshd.address, upload).run().code(1);
        assert!(failed.stderr.contains("is no program that could be brought elsewhere"));
        assert!(failed.stderr.contains(cause), "{}", failed.told());
    };
    // No option brings a file away that is none of the kind.
    check(&sshd.identity(), "it is no ELF file that can be run");
    check("/none/distant", "No such file");
    check("always", "No such file");
    assert_eq!(sshd.connections(), connections);
}
