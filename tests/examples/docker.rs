//! `docker://`: a library of level a in Rust, over real containers. What is called docker here is podman,
//! which takes the same command line and needs no daemon.

use std::fs;
use std::os::unix::fs::symlink;

use super::{built, cargo, conforms, install, kill_worker, over_there, refused};
use crate::support::{eventually, programs, Finished, Home, Invocation, Manager, Signal};

/// Containers of this home alone. They have this machine's programs and our `distant`.
struct Containers<'a>(&'a Home);

impl<'a> Containers<'a> {
    fn new(home: &'a Home) -> Self {
        let at = |name: &str| home.path("podman").join(name).display().to_string();
        for name in ["root", "run", "tmp", "rootfs"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{name}"), home.path("podman/rootfs").join(name)).unwrap();
        }
        // What it would give to a container by default may be more than this machine allows.
        home.write("podman/containers.conf", "[containers]\ndefault_ulimits = []\n");
        home.script(
            "bin/docker",
            &format!(
                "#!/bin/sh\nexport CONTAINERS_CONF={}\nexec podman --runtime runc --root {} --runroot {} \
                 --tmpdir {} --storage-driver vfs --cgroup-manager cgroupfs --events-backend file \"$@\"\n",
                at("containers.conf"),
                at("root"),
                at("run"),
                at("tmp"),
            ),
        );
        Self(home)
    }

    fn docker<'b>(&self, words: impl IntoIterator<Item = &'b str>) -> Finished {
        self.0.program(self.0.path("bin/docker"), words).run()
    }

    /// Starts one with this network.
    fn start(&self, name: &str, network: &str) {
        let distant = format!("{}:/opt/distant/bin/distant:ro", programs().distant.display());
        let rootfs = self.0.path("podman/rootfs").display().to_string();
        let words = ["run", "--detach", "--name", name, "--network", network];
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let volumes = ["--volume", "/usr:/usr:ro", "--volume", &distant];
        let command = ["--rootfs", &rootfs, "sleep", "10000"];
        let words = words.into_iter().chain(limits).chain(volumes).chain(command);
        self.docker(words).success();
    }

    /// Whether a server runs in one.
    fn has_server(&self, name: &str) -> bool {
        self.docker(["top", name, "args"]).success().stdout.contains("server listen")
    }

    #[track_caller]
    fn assert_no_server(&self, name: &str) {
        eventually("the end of the server", || (!self.has_server(name)).then_some(()));
    }
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        let removed = self.docker(["rm", "--all", "--force", "--time", "0"]);
        assert!(removed.status.success() || std::thread::panicking(), "{}", removed.told());
    }
}

fn home() -> Home {
    let out = cargo("docker", &["build"]);
    let home = Home::new();
    install(&home, &out.join("debug/libdistant_plugin_docker.so"));
    home
}

fn launch(home: &Home, destination: &str) -> Invocation {
    home.ours(["launch", destination])
}

#[test]
fn the_tests_of_the_plugin_in_rust_pass() {
    cargo("docker", &["test"]);
}

#[test]
fn docker_passes_the_conformance_kit_launches_included_with_podman_as_docker() {
    let home = home();
    let containers = Containers::new(&home);
    containers.start("box", "none");
    let plugin = built("docker").join("debug/libdistant_plugin_docker.so");
    let words =
        ["--launch", "docker://box", "--unreachable", "docker://nonesuch", "--only", "load."];
    // Not eight at a time: podman lets one exec wait for the other.
    let cases =
        ["plain", "slow", "nonsense", "unreachable", "refused", "cancel", "hang_up", "secrets"];
    let only = cases.iter().flat_map(|case| ["--only", case]);
    conforms(&home, &plugin, &words.into_iter().chain(only).collect::<Vec<_>>(), 15);
    containers.assert_no_server("box");
}

#[test]
fn docker_gets_into_a_container_without_a_network_with_podman_as_docker() {
    let home = home();
    let containers = Containers::new(&home);
    containers.start("box", "none");
    let manager = Manager::start(&home);
    let id = launch(&home, "docker://box").run().id().to_string();
    assert_eq!(over_there(&home, &["cat", "/proc/1/cmdline"]), "sleep\u{0}10000\u{0}");
    assert_eq!(over_there(&home, &["head", "-c", "1000000", "/dev/zero"]).len(), 1_000_000);
    home.ours(["manager", "kill", &id]).run().success();
    containers.assert_no_server("box");
    manager.assert_no_offspring();

    // The tunnel is gone with its worker, and the server with that.
    launch(&home, "docker://box").run().id();
    assert!(containers.has_server("box"));
    kill_worker(&manager);
    containers.assert_no_server("box");
    manager.assert_no_offspring();
}

#[test]
fn docker_leaves_a_server_in_a_container_with_a_network_with_podman_as_docker() {
    let home = home();
    let containers = Containers::new(&home);
    containers.start("net", "host");
    let manager = Manager::start(&home);
    let options = "--options=container=net,user=65534";
    let id = launch(&home, "docker://localhost").arg(options).run().id().to_string();
    assert_eq!(over_there(&home, &["id", "-u"]), "65534\n");
    // Nothing of ours stays behind for it.
    manager.assert_no_offspring();
    assert!(containers.has_server("net"));
    home.ours(["manager", "kill", &id]).run().success();
    containers.assert_no_server("net");
}

#[test]
fn docker_says_what_is_wrong_and_leaves_nothing_with_podman_as_docker() {
    let home = home();
    let containers = Containers::new(&home);
    containers.start("box", "none");
    let manager = Manager::start(&home);
    refused(launch(&home, "docker://nonesuch"), &["error: there is no container `nonesuch`\n"]);
    let missing = launch(&home, "docker://box").arg("--distant=/nowhere/distant");
    refused(missing, &["error: there is no `/nowhere/distant` on `box`\n"]);
    let never = launch(&home, "docker://box").arg("--options=tunnel=never");
    refused(never, &["listens where only docker exec can reach it"]);
    let absent = launch(&home, "docker://box").arg("--options=program=nonesuch");
    refused(absent, &["error: cannot run `nonesuch`\n", "hint: install it"]);

    home.script("podman/rootfs/mute", "#!/bin/sh\nexec sleep 2000\n");
    // A server that says nothing, until the person has enough of it.
    let mute = launch(&home, "docker://box").arg("--distant=/mute").start();
    eventually("what is taken for a server", || {
        containers.docker(["top", "box", "args"]).stdout.contains("sleep 2000").then_some(())
    });
    mute.signal(Signal::INT);
    mute.finish().code(130);
    eventually("its end", || {
        (!containers.docker(["top", "box", "args"]).stdout.contains("sleep 2000")).then_some(())
    });
    containers.docker(["stop", "--time", "0", "box"]).success();
    let stopped = ["error: the container `box` does not run\n", "hint: `docker start box`"];
    refused(launch(&home, "docker://box"), &stopped);
    manager.assert_no_offspring();
}
