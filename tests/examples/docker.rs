//! `docker://`: a library of level a in Rust, over real containers: docker's own, by a daemon of the
//! test, and those of podman, which takes the same command line and needs no daemon.

use std::fs;
use std::os::unix::fs::symlink;

use super::{built, cargo, conforms, install, kill_worker, over_there, refused};
use crate::support::{
    eventually, peer, programs, Finished, Home, Invocation, Manager, Running, Signal, PATIENCE,
};

/// Makes one test for each engine of each body.
macro_rules! each_engine {
    ($(fn $name:ident($engine:ident: Engine) $body:block)*) => {$(
        mod $name {
            use super::*;

            fn body($engine: Engine) $body

            #[test]
            fn dockerd() {
                body(Engine::Dockerd);
            }

            #[test]
            fn podman_as_docker() {
                body(Engine::PodmanAsDocker);
            }
        }
    )*};
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Dockerd,
    PodmanAsDocker,
}

/// Containers of this home alone. They have this machine's programs and our `distant`.
struct Containers<'a> {
    home: &'a Home,
    daemon: Option<Running>,
}

impl<'a> Containers<'a> {
    fn new(home: &'a Home, engine: Engine) -> Self {
        let at = |name: &str| home.path("engine").join(name).display().to_string();
        for name in ["root", "run", "tmp", "rootfs"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{name}"), home.path("engine/rootfs").join(name)).unwrap();
        }
        // What says nothing in a server's place.
        home.script("engine/rootfs/mute", "#!/bin/sh\nexec sleep 2000\n");
        match engine {
            Engine::Dockerd => Self::with_daemon(home, &at),
            Engine::PodmanAsDocker => Self::with_podman(home, &at),
        }
    }

    fn with_podman(home: &'a Home, at: &dyn Fn(&str) -> String) -> Self {
        // What it would give to a container by default may be more than this machine allows.
        home.write("engine/containers.conf", "[containers]\ndefault_ulimits = []\n");
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
        Self { home, daemon: None }
    }

    /// The network of its machine is one of its own, so that nothing of this machine's is touched.
    fn with_daemon(home: &'a Home, at: &dyn Fn(&str) -> String) -> Self {
        let socket = format!("unix://{}", at("socket"));
        let script = "ip link set lo up && exec dockerd \"$@\"";
        let daemon = home.program("unshare", ["--net", "sh", "-c", script, "dockerd"]);
        let daemon = daemon.args(&["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        let places = [("data-root", "root"), ("exec-root", "run"), ("pidfile", "pid")];
        let daemon = places
            .into_iter()
            .fold(daemon, |daemon, (flag, name)| daemon.arg(format!("--{flag}={}", at(name))));
        let daemon = daemon.args(&["--storage-driver=vfs", "--host", &socket]).start();
        eventually("the daemon of docker", || {
            assert!(!daemon.ends_within(std::time::Duration::ZERO), "{}", daemon.told());
            daemon.told().contains("API listen on").then_some(())
        });
        let client = format!("#!/bin/sh\nexec /usr/bin/docker --host {socket} \"$@\"\n");
        home.script("bin/docker", &client);
        let this = Self { home, daemon: Some(daemon) };
        // An image out of nothing, as there is no registry here.
        let archive = at("rootfs.tar");
        let tar = ["-C", &at("rootfs"), "-cf", &archive, "."];
        home.program("tar", tar).run().success();
        this.docker(["import", &archive, "rootfs"]).success();
        this
    }

    fn docker<'b>(&self, words: impl IntoIterator<Item = &'b str>) -> Finished {
        self.home.program(self.home.path("bin/docker"), words).run()
    }

    /// A manager on the machine of the containers.
    fn manager(&self) -> Manager {
        let Some(daemon) = &self.daemon else { return Manager::start(self.home) };
        let network = format!("--net=/proc/{}/ns/net", daemon.pid());
        let enter = self.home.program("nsenter", [network]).arg(&programs().distant);
        Manager::listen(self.home, enter.args(&["manager", "listen", "--user"]), true)
    }

    /// Starts one with this network.
    fn start(&self, name: &str, network: &str) {
        let distant = format!("{}:/opt/distant/bin/distant:ro", programs().distant.display());
        let rootfs = self.home.path("engine/rootfs").display().to_string();
        let words = ["run", "--detach", "--name", name, "--network", network];
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        // There may be an AppArmor, and nothing here that could load a profile.
        let freedom = ["--security-opt", "apparmor=unconfined"];
        let volumes = ["--volume", "/usr:/usr:ro", "--volume", &distant];
        let image: &[&str] = match self.daemon {
            Some(_) => &["rootfs"],
            None => &["--rootfs", &rootfs],
        };
        let image = image.iter().copied();
        let words = words.into_iter().chain(limits).chain(freedom).chain(volumes).chain(image);
        self.docker(words.chain(["sleep", "10000"])).success();
    }

    /// What runs in one.
    fn processes(&self, name: &str) -> String {
        self.docker(["top", name, "-eo", "pid,args"]).success().stdout
    }

    /// Whether a server runs in one.
    fn has_server(&self, name: &str) -> bool {
        self.processes(name).contains("server listen")
    }

    #[track_caller]
    fn assert_no_server(&self, name: &str) {
        eventually("the end of the server", || (!self.has_server(name)).then_some(()));
    }
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        let all = self.docker(["ps", "--all", "--quiet"]).stdout;
        let removed = self.docker(["rm", "--force"].into_iter().chain(all.split_whitespace()));
        let mut is_clean = removed.status.success() || all.is_empty();
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(Signal::TERM);
            is_clean &= daemon.ends_within(PATIENCE);
            // It leaves the network of its machine mounted, and the home could not be removed.
            let network = self.home.path("engine/run/netns/default").display().to_string();
            self.home.program("umount", ["--lazy", &network]).run();
        }
        assert!(is_clean || std::thread::panicking(), "{}", removed.told());
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

each_engine! {
    fn docker_passes_the_conformance_kit_launches_included(engine: Engine) {
        let home = home();
        let containers = Containers::new(&home, engine);
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

    fn docker_gets_into_a_container_without_a_network(engine: Engine) {
        let home = home();
        let containers = Containers::new(&home, engine);
        containers.start("box", "none");
        let manager = containers.manager();
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

    fn docker_leaves_a_server_in_a_container_with_a_network(engine: Engine) {
        let home = home();
        let containers = Containers::new(&home, engine);
        containers.start("net", "host");
        let manager = containers.manager();
        let options = "--options=container=net,user=65534";
        let id = launch(&home, "docker://localhost").arg(options).run().id().to_string();
        assert_eq!(over_there(&home, &["id", "-u"]), "65534\n");
        // Nothing of ours stays behind for it.
        manager.assert_no_offspring();
        assert!(containers.has_server("net"));
        home.ours(["manager", "kill", &id]).run().success();
        containers.assert_no_server("net");
    }

    fn docker_brings_a_program_into_a_container_once(engine: Engine) {
        let home = home();
        let containers = Containers::new(&home, engine);
        containers.start("box", "none");
        let manager = containers.manager();
        let released = peer().display().to_string();
        let look = "stat -c \"%n %s %y\" \"$HOME\"/.cache/distant/bin/*";
        let launched = [(); 2].map(|()| {
            let words = ["--distant=/nowhere/distant", "--distant-upload", &released];
            let id = launch(&home, "docker://box").args(&words).run().id().to_string();
            let there = over_there(&home, &["sh", "-c", look]);
            home.ours(["manager", "kill", &id]).run().success();
            containers.assert_no_server("box");
            there
        });
        let size = fs::metadata(peer()).unwrap().len();
        assert!(launched[0].contains(&format!(" {size} ")), "{}", launched[0]);
        assert_eq!((launched[0].lines().count(), &launched[0]), (1, &launched[1]));
        manager.assert_no_offspring();
    }

    fn docker_says_what_is_wrong_and_leaves_nothing(engine: Engine) {
        let home = home();
        let containers = Containers::new(&home, engine);
        containers.start("box", "none");
        let manager = containers.manager();
        refused(launch(&home, "docker://nonesuch"), &["error: there is no container `nonesuch`\n"]);
        let missing = launch(&home, "docker://box").arg("--distant=/nowhere/distant");
        refused(missing, &["error: there is no `/nowhere/distant` on `box`\n"]);
        let never = launch(&home, "docker://box").arg("--options=tunnel=never");
        refused(never, &["listens where only docker exec can reach it"]);
        let absent = launch(&home, "docker://box").arg("--options=program=nonesuch");
        refused(absent, &["error: cannot run `nonesuch`\n", "hint: install it"]);

        // A server that says nothing, until the person has enough of it.
        let mute = launch(&home, "docker://box").arg("--distant=/mute").start();
        eventually("what is taken for a server", || {
            containers.processes("box").contains("sleep 2000").then_some(())
        });
        mute.signal(Signal::INT);
        mute.finish().code(130);
        eventually("its end", || {
            (!containers.processes("box").contains("sleep 2000")).then_some(())
        });
        containers.docker(["stop", "--time", "0", "box"]).success();
        let stopped = ["error: the container `box` does not run\n", "hint: `docker start box`"];
        refused(launch(&home, "docker://box"), &stopped);
        manager.assert_no_offspring();
    }
}

#[test]
fn docker_reaches_a_server_by_the_address_of_its_container_with_dockerd() {
    let home = home();
    let containers = Containers::new(&home, Engine::Dockerd);
    containers.start("box", "bridge");
    let manager = containers.manager();
    let id = launch(&home, "docker://box").run().id().to_string();
    assert_eq!(over_there(&home, &["cat", "/proc/1/cmdline"]), "sleep\u{0}10000\u{0}");
    // Nothing of ours stays behind for it: neither a tunnel nor the launch.
    manager.assert_no_offspring();
    assert!(containers.has_server("box"));
    home.ours(["manager", "kill", &id]).run().success();
    containers.assert_no_server("box");
}
