//! `chroot://`: all of a launch in C, in real root folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{conforms, install, kill_worker, make, over_there, refused};
use crate::support::{
    copy_executable, eventually, programs, Home, Invocation, Look, Manager, Seen, Signal,
};

/// A folder with `distant` and a few programs of this machine, and what they need.
fn root(home: &Home, name: &str) -> PathBuf {
    let root = home.path("roots").join(name);
    let put = |from: &Path, to: &str| {
        let place = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        if !place.exists() {
            copy_executable(from, &place);
        }
    };
    let programs = [(programs().distant.as_path(), "/usr/local/bin/distant")];
    let small = ["/bin/cat", "/usr/bin/id"].map(|it| (Path::new(it), it));
    for (from, to) in programs.into_iter().chain(small) {
        put(from, to);
        let needs = String::from_utf8(Command::new("ldd").arg(from).output().unwrap().stdout);
        for library in needs.unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
            put(Path::new(library), library);
        }
    }
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::write(root.join("etc/which-root"), name).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:\nbuilder:x:4711:4712::/:\n").unwrap();
    root
}

fn launch(home: &Home, destination: &str) -> Invocation {
    let launch = home.ours(["launch", destination, "--options"]);
    launch.arg(format!("folder={}", home.path("roots").display()))
}

/// The processes whose root is one of the home's. They have an environment of their own, so nothing
/// else tells whose they are.
fn inside(home: &Home) -> Vec<Seen> {
    let roots = home.path("roots");
    let is_inside = |seen: &Seen| {
        fs::read_link(format!("/proc/{}/root", seen.pid)).is_ok_and(|it| it.starts_with(&roots))
    };
    Look::running().into_iter().filter(is_inside).collect()
}

/// Waits until nothing of a launch is left, in the root folder or out of it.
#[track_caller]
fn assert_gone(home: &Home, manager: &Manager) {
    manager.assert_no_offspring();
    eventually("the end of all that is inside", || inside(home).is_empty().then_some(()));
}

/// A home with the plugin and one root folder.
fn home() -> Home {
    let out = make("chroot", &["all"]);
    let home = Home::new();
    install(&home, &out.join("libdistant_plugin_chroot.so"));
    root(&home, "sid");
    home
}

#[test]
fn the_tests_of_the_plugin_in_c_pass_with_the_sanitizers() {
    make("chroot", &["test"]);
}

#[test]
fn chroot_passes_the_conformance_kit_launches_included() {
    let home = home();
    let plugin = make("chroot", &["all"]).join("libdistant_plugin_chroot.so");
    let options = format!("folder={}", home.path("roots").display());
    let words = ["--launch", "chroot://sid", "--options", &options];
    conforms(&home, &plugin, &[&words[..], &["--distant", "/usr/local/bin/distant"]].concat(), 20);
    eventually("the end of all that is inside", || inside(&home).is_empty().then_some(()));
}

#[test]
fn chroot_runs_a_server_inside_of_the_folder_until_the_connection_ends() {
    let home = home();
    let manager = Manager::start(&home);
    let id = launch(&home, "chroot://sid").run().id();
    assert_eq!(over_there(&home, &["cat", "/etc/which-root"]), "sid");
    assert!(over_there(&home, &["id"]).starts_with("uid=0"), "it is root's");
    assert_eq!(inside(&home).len(), 1);
    home.ours(["manager", "kill", &id.to_string()]).run().success();
    assert_gone(&home, &manager);

    launch(&home, "chroot://builder@sid").run().id();
    let builder = over_there(&home, &["id"]);
    assert!(builder.starts_with("uid=4711(builder) gid=4712 groups=4712"), "{builder}");
    // Its worker dies, and the server with it, although that is another user's.
    kill_worker(&manager);
    assert_gone(&home, &manager);
}

#[test]
fn chroot_says_what_is_missing() {
    let home = home();
    let manager = Manager::start(&home);
    refused(launch(&home, "chroot://etch"), &["error: there is no root folder `", "roots/etch`"]);
    let nobody = ["error: it is not possible to become `nobody` in there\n"];
    refused(launch(&home, "chroot://nobody@sid"), &nobody);
    let missing = ["error: `/opt/distant` cannot be run in there\n", "No such file", "\nhint: "];
    refused(launch(&home, "chroot://sid").arg("--distant=/opt/distant"), &missing);
    let last_words = ["error: no server started in `", "caused by: error: "];
    refused(launch(&home, "chroot://sid").arg("--distant-args=--nonsense"), &last_words);
    assert_gone(&home, &manager);
}

#[test]
fn chroot_leaves_no_server_when_its_launch_is_given_up() {
    let home = home();
    let mute = home.path("roots/sid/usr/local/bin/mute");
    let source =
        home.write("mute.c", "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n");
    let built = Command::new("cc").arg(source).arg("-o").arg(mute).status().unwrap();
    assert!(built.success());
    let manager = Manager::start(&home);
    let given_up = launch(&home, "chroot://sid").arg("--distant=mute").start();
    eventually("the server of the launch", || {
        inside(&home)
            .iter()
            .any(|seen| seen.command.starts_with("mute server listen"))
            .then_some(())
    });
    given_up.signal(Signal::INT);
    given_up.finish().code(130);
    assert_gone(&home, &manager);
}
