//! `distant launch manager://localhost`, as a person and a script meet it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    calm, programs, repository, variable, within, Finished, Home, Invocation, Manager, Signal,
};

/// What a person waits without wondering; a launch on this machine takes a fraction of it.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What may wait for another build in the same folder, and build everything itself.
const BUILDING: Duration = Duration::from_secs(600);

/// The exchange of the manager's own round, which begins everything in JSON mode.
const ROUND: [&str; 3] = [
    r#"{"type":"auth_initialization","methods":["none"]}"#,
    r#"{"type":"auth_start_method","method":"none"}"#,
    r#"{"type":"auth_finished"}"#,
];

const YES: &str = r#"{"type":"auth_initialization_response","methods":["none"]}"#;

fn launch(home: &Home) -> Invocation {
    home.ours(["launch", "manager://localhost"])
}

/// Runs `uname -a` over a connection and compares it with that of this machine.
#[track_caller]
fn assert_serves(home: &Home, id: u32) {
    let expected = String::from_utf8(Command::new("uname").arg("-a").output().unwrap().stdout);
    let here = home.ours(["spawn", "--connection", &id.to_string(), "--", "uname", "-a"]);
    assert_eq!(here.run().success().stdout, expected.unwrap());
}

/// Stops the manager that a command started in the background, and everything with it.
#[track_caller]
fn stop(home: &Home) {
    home.ours(["manager", "stop"]).run().success();
    home.assert_empty();
}

/// A program that cargo's own folders are there for.
fn with_cargo(invocation: Invocation) -> Invocation {
    let home = std::env::home_dir().unwrap();
    let folder = |name: &str, default: &str| {
        variable(name).map_or_else(|| home.join(default), PathBuf::from)
    };
    let cargo = folder("CARGO_HOME", ".cargo");
    let path = format!("{}:{}", cargo.join("bin").display(), variable("PATH").unwrap());
    let toolchain = variable("RUSTUP_TOOLCHAIN").unwrap_or_default();
    let invocation = invocation.env("CARGO_HOME", cargo).env("PATH", path);
    let invocation = invocation.env("RUSTUP_HOME", folder("RUSTUP_HOME", ".rustup"));
    if toolchain.is_empty() {
        invocation
    } else {
        invocation.env("RUSTUP_TOOLCHAIN", toolchain)
    }
}

#[test]
fn a_launch_without_a_manager_starts_one_and_gives_a_connection() {
    let home = Home::new();
    let id = launch(&home).run().id();
    assert_eq!(
        home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout,
        "hi\n",
        "the connection of the launch is the selected one"
    );
    assert_serves(&home, id);
    let second = launch(&home).run().id();
    assert_ne!(id, second);
    let managers = || {
        let running = home.processes().into_iter();
        running.filter(|seen| seen.command.contains("manager listen")).count()
    };
    assert_eq!(managers(), 1, "{:#?}", home.processes());
    stop(&home);
    assert!(fs::metadata(home.socket()).is_err(), "the socket is still there");
}

#[test]
fn launches_that_race_for_the_first_manager_share_the_winner() {
    let home = Home::new();
    let launches: Vec<_> = (0..4).map(|_| launch(&home).start()).collect();
    let mut ids: Vec<_> = launches.into_iter().map(|launch| launch.finish().id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    for id in ids {
        assert_serves(&home, id);
    }
    stop(&home);
}

#[test]
fn no_manager_is_started_behind_a_socket_that_was_named() {
    let home = Home::new();
    let socket = home.path("nobody.sock");
    let failed = launch(&home).arg("--unix-socket").arg(&socket).run().code(1);
    assert!(failed.stderr.starts_with("error: "), "{}", failed.told());
    assert!(failed.stderr.contains("nobody.sock"), "{}", failed.told());
    assert_eq!(failed.stdout, "");
    assert!(home.processes().is_empty());
}

#[test]
fn stdout_has_the_id_alone_and_stderr_nothing_where_nobody_looks() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let done = launch(&home).run().success();
    assert_eq!(done.stderr, "");
    assert_eq!(done.stdout.trim_end().parse::<u32>().map(|id| format!("{id}\n")), Ok(done.stdout));
}

#[test]
fn a_terminal_shows_how_far_the_launch_is() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let mut terminal = launch(&home).arg("--distant").arg(home.mute()).on_terminal();
    terminal.expect("starting");
    terminal.type_keys("\x03");
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(130), "{screen}");
}

fn ours() -> String {
    programs().distant.display().to_string()
}

#[test]
fn json_mode_says_the_documented_lines_and_no_other() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let mut running = launch(&home).arg("--format=json").start();
    assert_eq!(running.line(), ROUND[0]);
    running.say(YES);
    assert_eq!(running.line(), ROUND[1]);
    assert_eq!(running.line(), ROUND[2]);
    let done = running.line();
    let id =
        done.strip_prefix("{\"id\":").and_then(|rest| rest.strip_suffix(",\"type\":\"launched\"}"));
    let id: u32 = id.unwrap_or_else(|| panic!("{done}")).parse().unwrap();
    let finished = running.finish().success();
    assert_eq!(finished.stdout.lines().count(), 4, "{}", finished.told());
    assert_serves(&home, id);

    // The end of stdin counts as yes in the manager's own round.
    let finished = launch(&home).arg("-f").arg("json").run().success();
    assert_eq!(finished.stdout.lines().take(3).collect::<Vec<_>>(), ROUND);
}

#[test]
fn the_connection_is_remembered_where_0_20_looks_for_it() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let id = launch(&home).run().id();
    let remembered = |path: PathBuf| fs::read_to_string(path).unwrap().trim().to_owned();
    assert_eq!(remembered(home.cache()), format!("selected = \"{id}\""));

    let elsewhere = home.path("elsewhere/cache.toml");
    let other = launch(&home).arg("--cache").arg(&elsewhere).run().id();
    assert_eq!(remembered(elsewhere.clone()), format!("selected = \"{other}\""));
    assert_eq!(remembered(home.cache()), format!("selected = \"{id}\""));

    let spawn = home.ours(["spawn", "--cache"]).arg(&elsewhere).arg("--").arg("echo").arg("hi");
    assert_eq!(spawn.run().success().stdout, "hi\n");
}

#[track_caller]
fn assert_refused(finished: Finished, code: i32, said: &[&str]) {
    let finished = finished.code(code);
    assert_eq!(finished.stdout, "", "{}", finished.told());
    for text in said {
        assert!(finished.stderr.contains(text), "no `{text}`: {}", finished.told());
    }
}

#[test]
fn a_wrong_option_is_named_before_anything_is_started() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let started = home.path("started");
    let spy = home.script("spy", &format!("#!/bin/sh\ntouch {}\n", started.display()));
    let check = |options: &str, code, said: &[&str]| {
        let launch = launch(&home).arg("--distant").arg(&spy).arg("--options").arg(options);
        assert_refused(launch.run(), code, said);
        assert!(!started.exists(), "{options}");
    };
    check(
        "distant.bni=x",
        1,
        &["error: unknown option `distant.bni` for plugin `manager-local`; did you mean `distant.bin`?\n"],
    );
    check("timeout=soon", 1, &["`timeout`", "soon"]);
    check("backend=nobody", 1, &["nobody", "manager-local"]);
    check("distant.args='--x \"y'", 1, &["distant.args"]);
    check("a", 2, &["`=` is missing after the key `a`"]);
    check("a=\"b", 2, &["no closing"]);

    let unknown = home.ours(["launch", "foo://localhost"]).run();
    assert_refused(unknown, 1, &["error: ", "`foo`"]);
    manager.assert_no_offspring();

    let json = launch(&home).arg("--format=json").arg("--options=distant.bni=x").run().code(1);
    let last: serde_json::Value =
        serde_json::from_str(json.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["type"], "error");
    assert_eq!(last["kind"], "invalid_option");
    assert!(last["msg"].as_str().unwrap().contains("did you mean `distant.bin`?"), "{last}");
    assert!(last["hint"].as_str().unwrap().contains("`distant.args`"), "{last}");
    assert!(json.stderr.contains("unknown option `distant.bni`"), "{}", json.told());
}

#[test]
fn a_wrong_command_line_ends_with_2_and_starts_no_manager() {
    let home = Home::new();
    for wrong in [
        &["launch"][..],
        &["launch", "manager://local host"],
        &["launch", "manager://localhost:99999"],
        &["launch", "manager://localhost", "--nonsense"],
        &["launch", "manager://localhost", "--format=yaml"],
        &["frobnicate"],
    ] {
        let finished = home.ours(wrong).run().code(2);
        assert_eq!(finished.stdout, "", "{}", finished.told());
        assert!(finished.stderr.contains("error: "), "{}", finished.told());
    }
    assert!(home.processes().is_empty());
    assert!(home.ours(["--help"]).run().success().stdout.contains("launch"));
    assert!(home.ours(["launch", "--help"]).run().success().stdout.contains("--distant-args"));
    home.ours(["--version"]).run().success();
}

#[test]
fn the_flags_reach_the_server() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let seen = home.path("seen");
    let spy = home.script(
        "spy",
        &format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\nexec {} \"$@\"\n", seen.display(), ours()),
    );
    let log = home.path("a b.log");
    let args = format!("--log-file '{}' --shutdown lonely=100", log.display());
    let id = home
        .ours(["launch", "manager://anything-goes", "--distant-bind-server", "127.0.0.2"])
        .arg("--distant")
        .arg(&spy)
        .arg("--distant-args")
        .arg(args)
        .run()
        .id();
    let said = fs::read_to_string(seen).unwrap();
    let expected = ["server", "listen", "--host", "127.0.0.2", "--log-file", log.to_str().unwrap()];
    assert!(said.starts_with(&(expected.join("\n") + "\n")), "{said}");
    assert!(log.exists());
    assert_serves(&home, id);
    drop(manager);
}

#[test]
fn a_flag_beats_the_options_these_the_configuration_and_that_the_default() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let spy = |name: &str| {
        let text = format!(
            "#!/bin/sh\necho {name} > {}\nexec {} \"$@\"\n",
            home.path("who").display(),
            ours()
        );
        home.script(&format!("spies/{name}"), &text).display().to_string()
    };
    let (flag, options, config, nested) =
        (spy("flag"), spy("options"), spy("config"), spy("nested"));
    let who = |invocation: Invocation| {
        invocation.run().id();
        fs::read_to_string(home.path("who")).unwrap().trim().to_owned()
    };
    home.write(
        "config/distant/config.toml",
        format!("[client.launch.distant]\nbin = \"{nested}\"\n"),
    );
    assert_eq!(who(launch(&home)), "nested");
    home.write(
        "config/distant/config.toml",
        format!(
            "[client.launch]\nbin = \"{config}\"\n[client.launch.distant]\nbin = \"{nested}\"\n"
        ),
    );
    assert_eq!(who(launch(&home)), "config");
    let with_options = || launch(&home).arg("--options").arg(format!("distant.bin={options}"));
    assert_eq!(who(with_options()), "options");
    assert_eq!(who(with_options().arg("--distant").arg(flag)), "flag");
}

#[test]
fn a_missing_server_is_told_at_once() {
    let _calm = calm();
    let home = Home::new();
    let manager = Manager::start(&home);
    let check = |server: &str, said: &[&str]| {
        let begun = Instant::now();
        let failed = launch(&home).arg("--distant").arg(server).run();
        assert!(begun.elapsed() < AT_ONCE, "{server}: {:?}", begun.elapsed());
        assert_refused(failed, 1, said);
    };
    check("/no/such/distant", &["error: ", "/no/such/distant"]);
    let script = |name: &str, text: &str| home.script(name, text).display().to_string();
    let dies = script("dies", "#!/bin/sh\necho the disk is full >&2\nexit 3\n");
    check(&dies, &["no server started", "the disk is full"]);
    let falls_silent = script("silent", "#!/bin/sh\nexec >&- 2>&-\nexec sleep 1000\n");
    check(&falls_silent, &["no server started", "closed its output"]);
    manager.assert_no_offspring();
}

/// A launch that waits for a server which says nothing, once that has been started.
fn pending<'a>(
    home: &Home,
    manager: &Manager,
    start: impl FnOnce(Invocation) -> Running<'a>,
) -> Running<'a> {
    let running = start(launch(home).arg("--distant").arg(home.mute()));
    manager.wait_for_mute();
    running
}

type Running<'a> = Box<dyn Interruptible + 'a>;

/// A command line that somebody presses Ctrl-C on, or kills.
trait Interruptible {
    fn interrupt(&mut self);
    fn code(self: Box<Self>) -> Option<i32>;
}

impl Interruptible for crate::support::Running {
    fn interrupt(&mut self) {
        self.signal(Signal::INT);
    }

    fn code(self: Box<Self>) -> Option<i32> {
        self.finish().status.code()
    }
}

impl Interruptible for crate::support::Terminal {
    fn interrupt(&mut self) {
        self.type_keys("\x03");
    }

    fn code(self: Box<Self>) -> Option<i32> {
        self.finish().0.code()
    }
}

#[test]
fn ctrl_c_ends_the_launch_and_what_it_started() {
    let _calm = calm();
    let home = Home::new();
    let manager = Manager::start(&home);
    let piped: fn(Invocation) -> Running<'static> = |launch| Box::new(launch.start());
    let typed: fn(Invocation) -> Running<'static> = |launch| Box::new(launch.on_terminal());
    for start in [piped, typed] {
        let mut running = pending(&home, &manager, start);
        let pressed = Instant::now();
        running.interrupt();
        assert_eq!(running.code(), Some(130));
        assert!(pressed.elapsed() < AT_ONCE, "{:?}", pressed.elapsed());
        manager.assert_no_offspring();
        assert!(pressed.elapsed() < AT_ONCE, "{:?}", pressed.elapsed());
    }
    assert_serves(&home, launch(&home).run().id());
}

#[test]
fn a_second_manager_is_refused_and_a_stale_socket_is_not_in_the_way() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let second = home.ours(["manager", "listen", "--user"]).run().code(1);
    assert!(second.stderr.contains("error: "), "{}", second.told());
    launch(&home).run().id();
    manager.kill();
    assert!(home.socket().exists(), "killed as it was, it cannot have removed its socket");
    launch(&home).run().id();
    stop(&home);
}

#[test]
fn sigterm_sigint_and_stop_end_a_manager_with_all_it_started() {
    let home = Home::new();
    for signal in [Signal::TERM, Signal::INT] {
        let manager = Manager::start(&home);
        launch(&home).run().id();
        let _pending = pending(&home, &manager, |launch| Box::new(launch.start()));
        manager.signal(signal);
        manager.finish().success();
        assert!(!home.socket().exists());
    }
    let manager = Manager::start(&home);
    launch(&home).run().id();
    home.ours(["manager", "stop"]).run().success();
    manager.finish().success();
}

#[test]
fn kill_ends_the_server_that_a_launch_started() {
    let _calm = calm();
    let home = Home::new();
    let manager = Manager::start(&home);
    let (kept, killed) = (launch(&home).run().id(), launch(&home).run().id());
    assert_eq!(manager.servers().len(), 2);
    home.ours(["manager", "kill", &killed.to_string()]).run().success();
    let one = within(AT_ONCE, || (manager.servers().len() == 1).then_some(()));
    assert!(one.is_some(), "{:#?}", manager.servers());
    let listed = home.ours(["manager", "list"]).run().success().stdout;
    assert!(
        listed.contains(&kept.to_string()) && !listed.contains(&killed.to_string()),
        "{listed}"
    );
    assert_serves(&home, kept);
}

#[test]
fn logs_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let _manager = Manager::start(&home);
    launch(&home).run().id();
    let logs: Vec<_> = fs::read_dir(home.path("cache/distant")).unwrap().flatten().collect();
    let logs = logs.iter().filter(|entry| entry.path().extension().is_some_and(|it| it == "log"));
    let mut count = 0;
    for log in logs {
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", log.path());
        count += 1;
    }
    assert!(count >= 2, "client and manager have a log each");
    let mode = fs::metadata(home.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_make_install_puts_somewhere_launches_from_there() {
    let home = Home::new();
    let prefix = home.path("usr");
    let make = home
        .program("make", ["install", "PROFILE=dev"])
        .arg(format!("PREFIX={}", prefix.display()))
        .env("CARGO_TARGET_DIR", target())
        .cwd(repository());
    with_cargo(make).run_within(BUILDING).success();
    let distant = prefix.join("bin/distant");
    let names = |folder: &str| {
        let entries = fs::read_dir(prefix.join(folder)).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|it| it.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("bin"), ["distant"]);
    let plugins = names("lib/distant/plugins");
    assert!(plugins.contains(&"libdistant_plugin_manager_local.so".to_owned()), "{plugins:?}");
    assert!(!plugins.iter().any(|name| name.contains("faulty")), "{plugins:?}");

    let id = home.program(&distant, ["launch", "manager://localhost"]).run().id();
    let listed = home.program(&distant, ["plugin", "list"]).run().success().stdout;
    assert!(listed.contains("usr/lib/distant/plugins"), "{listed}");
    assert_serves(&home, id);
    stop(&home);

    // Root often has no cargo; then it is what somebody has built.
    let bare = |goal: &str| {
        let make = home.program("make", [goal, "PROFILE=dev", "CARGO=no-cargo"]);
        make.arg(format!("PREFIX={}", prefix.display()))
            .env("CARGO_TARGET_DIR", target())
            .cwd(repository())
    };
    fs::remove_file(&distant).unwrap();
    bare("install").run().success();
    assert!(distant.exists());
    let nothing = bare("install").env("CARGO_TARGET_DIR", home.path("empty")).run().code(2);
    assert!(nothing.stderr.contains("`make build` first"), "{}", nothing.told());

    home.write("usr/lib/distant/plugins/distant-plugin-other", "");
    bare("uninstall").run().success();
    assert!(!distant.exists());
    assert_eq!(names("lib/distant/plugins"), ["distant-plugin-other"]);
    fs::remove_file(prefix.join("lib/distant/plugins/distant-plugin-other")).unwrap();
    bare("uninstall").run().success();
    assert!(!prefix.join("lib/distant").exists());
}

/// The folder that cargo builds into.
fn target() -> &'static Path {
    programs().distant.parent().unwrap().parent().unwrap()
}

/// What the README has a person type first, and how it then has them use the connection.
fn readme_commands() -> (String, String) {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```sh\n").unwrap();
    let (first, rest) = rest.split_once("\n```").unwrap();
    let (_, rest) = rest.split_once("`./target/release/distant spawn").unwrap();
    let (spawn, _) = rest.split_once('`').unwrap();
    (first.to_owned(), format!("./target/release/distant spawn{spawn}"))
}

/// Names of the workspace's packages, as `cargo clean` takes them.
fn packages() -> String {
    let metadata = ["metadata", "--no-deps", "--offline", "--format-version=1"];
    let cargo = variable("CARGO").unwrap_or_else(|| "cargo".to_owned());
    let told = Command::new(cargo).args(metadata).current_dir(repository()).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let packages = told["packages"].as_array().unwrap().iter();
    packages.map(|package| format!(" -p {}", package["name"].as_str().unwrap())).collect()
}

#[test]
fn the_readme_works_in_a_clone_with_umask_002_below_a_world_writable_sticky_folder() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (first, spawn) = readme_commands();
    assert!(first.starts_with("cargo build --release && ./target/release/"), "{first}");
    // Word for word but in the profile of this run: another one would build every crate again.
    let profile = programs().distant.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let flag = if profile == "debug" { "dev" } else { profile };
    let here = |command: &str| {
        let command = command.replace("--release", &format!("--profile {flag}"));
        command.replace("./target/release/", &format!("./target/{profile}/"))
    };

    // On the file system of what was built already, whose dependencies it gets as links.
    let sticky = target().join("tmp/sticky");
    fs::create_dir_all(&sticky).unwrap();
    fs::set_permissions(&sticky, fs::Permissions::from_mode(0o1777)).unwrap();
    let folder = tempfile::tempdir_in(&sticky).unwrap();
    let clone = folder.path().join("clone");
    // What is not committed yet is tested as well. Of this workspace nothing built is left, so
    // that cargo builds all of it, and links nothing in that has the modes of another umask.
    let prepare = format!(
        "umask 002 && git clone --quiet '{repository}' '{clone}' && \
         git -C '{repository}' diff --binary HEAD | git -C '{clone}' apply --allow-empty && \
         mkdir '{clone}/target' && flock '{built}/.cargo-lock' \
         cp -rl --no-preserve=mode '{built}' '{clone}/target/{profile}' && cd '{clone}' && \
         rm 'target/{profile}/.cargo-lock' && \
         cargo clean --offline --profile {flag}{packages}",
        repository = repository().display(),
        clone = clone.display(),
        built = target().join(profile).display(),
        packages = packages(),
    );
    let home = Home::new();
    let run = |script: &str| with_cargo(home.program("sh", ["-c", script]));
    run(&prepare).run_within(BUILDING).success();
    let folder_built = clone.join("target").join(profile);
    let products = || -> Vec<PathBuf> {
        let entries = fs::read_dir(&folder_built).unwrap().flatten().map(|entry| entry.path());
        let is_product = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name == "distant" || name.ends_with(".so")
        };
        entries.filter(is_product).collect()
    };
    assert_eq!(products(), [] as [PathBuf; 0], "something of this workspace is still there");

    let command = format!("umask 002 && {}", here(&first));
    let built = run(&command).cwd(&clone).run_within(BUILDING);
    let id = built.id();
    let products = products();
    let has = |name: &str| products.contains(&folder_built.join(name));
    assert!(has("distant") && has("libdistant_plugin_manager_local.so"), "{products:?}");
    for path in products.iter().chain([&folder_built, &clone, &clone.join("Cargo.toml")]) {
        let found = fs::metadata(path).unwrap();
        let (mode, owner) = (found.mode() & 0o022, found.uid());
        assert_eq!(mode, 0o020, "{} is not as umask 002 makes it", path.display());
        assert_eq!(owner, rustix::process::geteuid().as_raw(), "{}", path.display());
    }
    assert_eq!(spawn, "./target/release/distant spawn -- uname -a");
    let uname = String::from_utf8(Command::new("uname").arg("-a").output().unwrap().stdout);
    let said = run(&here(&spawn)).cwd(&clone).run().success();
    assert_eq!(said.stdout, uname.unwrap());
    assert_serves(&home, id);
    stop(&home);
}
