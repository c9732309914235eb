//! What people get wrong, or find broken, and what they are told then.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use serde_json::Value;

use crate::support::{keygen, peer, programs, Finished, Home, Manager, Signal, Sshd, HELLO};

/// The last line in JSON mode.
#[track_caller]
fn last_line(finished: &Finished) -> Value {
    let line = finished.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| panic!("{}", finished.told()))
}

#[test]
fn a_configuration_that_others_could_have_written_is_refused_unless_it_is_named() {
    let home = Home::new();
    let file = home.write("config/distant/config.toml", "[client.launch]\nbin = '/evil'\n");
    let open = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    let shown = file.display();
    for (mode, mend) in [(0o666, "go-w"), (0o664, "g-w")] {
        open(mode);
        for command in
            [["launch", "manager://localhost"], ["manager", "listen"], ["server", "listen"]]
        {
            let refused = home.ours(command).run().code(1);
            let expected =
                format!("error: `{shown}` is not used, as others could have written it\n");
            assert!(refused.stderr.starts_with(&expected), "{}", refused.told());
            let expected = format!("hint: chmod {mend} {shown}\n");
            assert!(refused.stderr.ends_with(&expected), "{}", refused.told());
        }
    }
    // As with `ssh -F`, a file that somebody names is their choice.
    let named = ["manager", "list", "--config", &shown.to_string()];
    assert!(home.ours(named).run().code(1).stderr.contains("no manager is running"));
    open(0o644);
    let list = home.ours(["manager", "list"]).run().code(1);
    assert!(list.stderr.contains("no manager is running"), "{}", list.told());
}

#[test]
fn a_port_that_closes_every_connection_is_said_to_be_unreachable() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let destination = format!("distant://{}", listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().for_each(drop));
    let key = home.write("key", "ab".repeat(32)).display().to_string();
    let connect = ["connect", &destination, "--key-file", &key, "--format=json"];
    let shown = home.ours(connect).input(format!("{HELLO}\n")).run().code(1);
    let error = last_line(&shown);
    assert_eq!(error["kind"], "unreachable", "{}", shown.told());
    assert_eq!(error["causes"][0], "the connection was closed before the server had said anything");
    assert_eq!(error["hint"], "check whether the server still runs there");
}

#[test]
fn a_home_that_cannot_be_written_to_or_is_none_is_a_warning_and_no_obstacle() {
    let home = Home::new();
    let place = home.path("place");
    fs::create_dir(&place).unwrap();
    let distant = programs().distant.display();
    let mount = |options: &str| format!("mount -t tmpfs -o {options} none {}", place.display());
    let full = format!("{}; head -c 9999 /dev/zero > {}/x 2>&-", mount("size=4k"), place.display());
    let own = format!("export HOME={}", place.display());
    for (prepare, is_warned) in [
        (format!("{}; {own}", mount("ro")), true),
        (format!("{full}; {own}"), true),
        ("export HOME=/dev/null".to_owned(), true),
        // That of the account is taken then.
        ("unset HOME; export XDG_CACHE_HOME=/dev/null".to_owned(), true),
    ] {
        let script = format!(
            "unset XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME; {prepare}; \
             id=$({distant} launch manager://localhost) || exit; echo $id; \
             {distant} spawn --connection $id -- echo hi; {distant} manager stop"
        );
        let done = home.program("unshare", ["--mount", "sh", "-c", &script]).run().success();
        assert!(done.stdout.ends_with("\nhi\n"), "{prepare}: {}", done.told());
        let warning = "warning: cannot write the cache file";
        assert_eq!(done.stderr.contains(warning), is_warned, "{prepare}: {}", done.told());
        assert!(done.stderr.contains("name the connection with `--connection"), "{}", done.told());
        assert!(!done.stderr.contains("error: "), "{prepare}: {}", done.told());
    }
}

#[test]
fn a_result_that_nobody_can_read_is_an_error_that_says_what_is_there_now() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let distant = programs().distant.display();
    let script = format!("{distant} launch manager://localhost > /dev/full");
    let refused = home.program("sh", ["-c", &script]).run().code(1);
    let start = "error: cannot write to standard output\n";
    assert!(refused.stderr.starts_with(start), "{}", refused.told());
    let mend = refused.stderr.split('`').nth(1).unwrap().to_owned();
    assert!(mend.starts_with("distant manager kill "), "{}", refused.told());
    home.ours(mend.split(' ').skip(1)).run().success();
    // Help that is cut off is none.
    let script = format!("set -o pipefail; {distant} launch --help | head -n 1");
    let help = home.program("bash", ["-c", &script]).run();
    assert_eq!(help.stderr, "", "{}", help.told());
}

#[test]
fn a_socket_that_is_none_and_a_connection_that_is_none_are_said_to_be() {
    let home = Home::new();
    let refused = |args: &[&str], said: &[&str]| {
        let shown = home.ours(args).run().code(1);
        said.iter().for_each(|said| assert!(shown.stderr.contains(said), "{}", shown.told()));
        shown
    };
    let list = ["manager", "list", "--unix-socket"];
    let file = home.write("file", "").display().to_string();
    let shown = refused(&[&list[..], &[&file]].concat(), &["caused by: it is no socket\n"]);
    assert!(!shown.stderr.contains("hint"), "{}", shown.told());
    let long = home.path("x".repeat(120)).display().to_string();
    let said =
        ["caused by: the path of a socket has 107 bytes at most\n", "hint: name a shorter one"];
    refused(&[&list[..], &[&long]].concat(), &said);

    refused(&["manager", "select", "7"], &["no manager is running"]);
    let _manager = Manager::start(&home);
    let said =
        ["error: there is no connection 7 to select\n", "hint: `distant manager list` shows"];
    refused(&["manager", "select", "7"], &said);
    let id = home.ours(["launch", "manager://localhost"]).run().id().to_string();
    let quiet = home.ours(["manager", "select", &id, "--format=json"]).run().success();
    assert_eq!((&*quiet.stdout, &*quiet.stderr), ("", ""), "{}", quiet.told());
}

#[test]
fn a_host_with_an_underscore_is_one_also_where_0_20_lists_it() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let known = sshd.known(&["ed25519"]).replace(&sshd.name(), "my_box");
    home.write(".ssh/known_hosts", known);
    let (ip, port) = (sshd.address.ip(), sshd.address.port());
    let identity = sshd.identity();
    home.write(
        ".ssh/config",
        format!(
            "Host my_box\n HostName {ip}\n Port {port}\n User root\n HostKeyAlias my_box\n \
             IdentityFile {identity}\n"
        ),
    );
    let distant = programs().distant.display().to_string();
    let id = home.ours(["launch", "my_box", "--distant", &distant]).run().id();
    let list = home.peer(["manager", "list"]).run().success();
    assert!(list.stdout.contains(&id.to_string()), "{}", list.told());
}

#[test]
fn an_address_with_a_zone_is_reached_and_one_that_is_closed_is_in_brackets() {
    let home = Home::new();
    let sshd = Sshd::start(&home);
    let known = sshd.known(&["ed25519"]).replace(&sshd.name(), "fe80::1%lo");
    home.write(".ssh/known_hosts", known);
    let (distant, released) = (programs().distant.display(), peer().display());
    let (config, identity) = (sshd.path("config"), sshd.identity());
    let script = format!(
        "ip link set lo up && ip -6 address add fe80::1/64 dev lo nodad || exit 9\n\
         /usr/sbin/sshd -D -e -f {} -o ListenAddress=fe80::1%lo -o Port=22 & sshd=$!\n\
         until ss -Hltn6 2>&- | grep -q ':22 '; do kill -0 $sshd || exit 8; done\n\
         launch() {{ {distant} launch \"$1\" --distant {distant} --options \"identity_files=\\\"{identity}\\\",$2\"; }}\n\
         for backend in ssh2 libssh openssh; do\n\
           launch 'ssh://root@[fe80::1%lo]' tunnel=never,backend=$backend && {distant} spawn -- echo hi\n\
         done\n\
         launch 'ssh://root@[fe80::1%25lo]:1' tunnel=never\n\
         server=$({distant} server listen --daemon --host :: --shutdown lonely=5 | grep -o 'distant://.*')\n\
         {distant} connect \"$(echo \"$server\" | sed 's/@.*]/@[fe80::1%lo]/')\"\n\
         {released} manager list; {distant} manager stop; kill $sshd; wait",
        config.display()
    );
    let done = home.program("unshare", ["--net", "sh", "-c", &script]).run();
    assert_eq!(done.stdout.matches("\nhi\n").count(), 3, "{}", done.told());
    assert!(done.stderr.contains("error: cannot reach `[fe80::1%lo]:1`\n"), "{}", done.told());
    assert_eq!(done.stdout.matches("fe80::1").count(), 4, "{}", done.told());
}

#[test]
fn port_0_of_ssh_is_refused_by_what_it_is() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    for backend in ["ssh2", "openssh"] {
        let backend = format!("backend={backend}");
        let refused = home.ours(["launch", "ssh://box:0", "--options", &backend]).run().code(1);
        let start = "error: there is no port 0 to reach `box` at\n";
        assert!(refused.stderr.starts_with(start), "{}", refused.told());
    }
}

#[test]
fn a_server_that_asks_nothing_is_tried_once() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication yes");
    sshd.make_known(&home);
    let key = home.path("unknown").display().to_string();
    keygen(&home.path("unknown"), &["-N", "", "-t", "ed25519"]);
    for backend in ["ssh2", "libssh"] {
        let options = format!("backend={backend},identity_files=\"{key}\"");
        let refused = sshd.launch_as(&home, "root", &options).run().code(1);
        let tries = refused.stderr.matches("the server's questions: not accepted").count();
        assert_eq!(tries, 1, "{}", refused.told());
    }
}

#[test]
fn the_help_says_the_exit_codes_and_they_are_true() {
    let home = Home::new();
    let help = home.ours(["--help"]).run().success();
    let codes = "0 done, 1 failed, 2 the command line cannot be read, 130 interrupted";
    assert!(help.stdout.contains(codes), "{}", help.told());
    home.ours(["manager", "list"]).run().code(1);
    home.ours(["lanch"]).run().code(2);
    let manager = Manager::start(&home);
    let mute = home.mute();
    let launch = home.ours(["launch", "manager://localhost", "--distant", &mute]).start();
    manager.wait_for_mute();
    launch.signal(Signal::INT);
    launch.finish().code(130);
    home.ours(["launch", "manager://localhost"]).run().id();
    home.ours(["spawn", "--", "sh", "-c", "exit 7"]).run().code(7);
}

#[test]
fn a_host_that_is_none_and_a_closed_port_come_with_what_to_look_at() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    for backend in ["ssh2", "libssh"] {
        let launch = |to: &str| {
            let backend = format!("backend={backend}");
            home.ours(["launch", to, "--options", &backend]).run().code(1)
        };
        let none = launch("no-such-host.invalid");
        assert!(none.stderr.starts_with("error: there is no host `no-such-host.invalid`\n"));
        assert!(
            none.stderr.contains("\nhint: check how it is spelt; an alias "),
            "{}",
            none.told()
        );
        let closed = launch("ssh://[::1]:1");
        assert!(closed.stderr.starts_with("error: cannot reach `[::1]:1`\n"), "{}", closed.told());
        assert!(
            closed.stderr.contains("\nhint: is the host up, and does an "),
            "{}",
            closed.told()
        );
    }
}

#[test]
fn a_scheme_whose_plugin_is_broken_names_the_command_that_says_what_mends_it() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let file = home.script("data/distant/plugins/distant-plugin-hello", "#!/bin/sh\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o757)).unwrap();
    let refused = home.ours(["launch", "hello://x"]).run().code(1);
    let hint = "\nhint: `distant plugin doctor hello` says what mends it; the schemes there are: ";
    assert!(refused.stderr.contains(hint), "{}", refused.told());
    let doctor = home.ours(["plugin", "doctor", "hello"]).run().code(1);
    assert!(doctor.stdout.contains("chmod go-w"), "{}", doctor.told());
}

#[test]
fn a_terminal_gets_no_colours_and_no_characters_that_it_cannot_show_or_that_nobody_wants() {
    let home = Home::new();
    let screen = |name: &str, value: &str| {
        let help = home.ours(["launch", "--help"]).env(name, value).on_terminal();
        help.finish().1
    };
    assert!(screen("NO_COLOR", "").contains("\u{1b}["));
    assert!(!screen("NO_COLOR", "1").contains('\u{1b}'));
    assert!(!screen("TERM", "dumb").contains('\u{1b}'));

    let manager = Manager::start(&home);
    let mute = home.mute();
    for (locale, is_ascii) in [("C", true), ("C.UTF-8", false)] {
        let launch = home.ours(["launch", "manager://localhost", "--distant", &mute]);
        let mut launch = launch.env("LANG", locale).on_terminal();
        launch.expect("starting the server");
        manager.wait_for_mute();
        launch.type_keys("\x03");
        let (_, shown) = launch.finish();
        assert_eq!(shown.is_ascii(), is_ascii, "{locale}: {shown:?}");
        manager.assert_no_offspring();
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    home.ours(["launch", "manager://localhost"]).run().id();
    let distant = programs().distant.display();
    let script = format!("set -o pipefail; {distant} spawn -- seq 1000000 | head -n 1");
    let done = home.program("bash", ["-c", &script]).run().code(141);
    assert_eq!((&*done.stdout, &*done.stderr), ("1\n", ""));
}

#[test]
fn a_command_that_is_none_there_or_none_of_this_program_is_named_with_what_to_do() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    home.ours(["launch", "manager://localhost"]).run().id();
    for command in [&["--", "no-such", "x"][..], &["-c", "no-such x"]] {
        let shown = home.ours([&["spawn"], command].concat()).run().code(1);
        assert!(
            shown.stderr.starts_with("error: cannot start `no-such` there\n"),
            "{}",
            shown.told()
        );
    }
    for (flag, what) in [("--shell=no-such", "no-such"), ("--current-dir=/no", "ls` in `/no")] {
        let shown = home.ours(["spawn", flag, "--", "ls"]).run().code(1);
        let start = format!("error: cannot start `{what}` there\n");
        assert!(shown.stderr.starts_with(&start), "{}", shown.told());
    }
    for (command, here) in [
        (&["fs", "read", "/x"][..], "`distant spawn -- cat <FILE>` reads a file; "),
        (&["shell"], "`distant spawn --pty -- bash -l` is a shell at a terminal; "),
        (&["manager", "service", "start"], "a launch starts a manager by itself"),
    ] {
        let shown = home.ours(command).run().code(2);
        assert!(shown.stderr.contains(&format!("\nhint: {here}")), "{}", shown.told());
    }
    let select = home.ours(["manager", "select"]).run().code(1);
    let hint = "\nhint: `distant manager select <ID>` needs none\n";
    assert!(select.stderr.ends_with(hint), "{}", select.told());
}

#[test]
fn the_options_of_a_scheme_can_be_read_in_a_narrow_terminal() {
    let home = Home::new();
    let options = |columns: &str| {
        let script = format!(
            "stty cols {columns}; exec {} launch --help-options ssh",
            programs().distant.display()
        );
        home.program("sh", ["-c", &script]).on_terminal().finish().1
    };
    assert!(options("1000").starts_with("OPTION "), "{}", options("1000"));
    let narrow = options("80");
    let shown =
        "timeout: a whole number of milliseconds, at most a year; default 15000\r\n      millis";
    assert!(narrow.contains(shown), "{narrow}");
}

#[test]
fn a_program_is_told_in_json_what_is_wrong_with_its_command_line_and_with_its_answers() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    for (flags, message) in [
        (&["--format", "json", "--nope"][..], "unexpected argument '--nope' found"),
        (&["-fjson"], "the following required arguments were not provided: <DESTINATION>"),
        (
            &["--format=json", "a", "ssh://me:hunter2@b"],
            "unexpected argument 'ssh://me:[redacted]@b' found",
        ),
    ] {
        let shown = home.ours([&["launch"], flags].concat()).run().code(2);
        let error = last_line(&shown);
        assert_eq!((&error["type"], &error["msg"]), (&"error".into(), &message.into()));
        assert_eq!(error["kind"], "invalid_option", "{}", shown.told());
        assert!(shown.stderr.starts_with("error: "), "{}", shown.told());
    }
    let plain = home.ours(["launch", "--nope"]).run().code(2);
    assert_eq!(plain.stdout, "", "{}", plain.told());

    for answer in [r#"{"type":"auth_initialization_response"}"#, r#"{"type":"nope"}"#, "[]", "yes"]
    {
        let launch = home.ours(["launch", "manager://localhost", "--format=json"]);
        let shown = launch.input(format!("{answer}\n")).run().code(1);
        let error = last_line(&shown);
        let hint = error["hint"].as_str().unwrap();
        assert!(hint.ends_with(HELLO), "{}", shown.told());
        assert!(!error["msg"].as_str().unwrap().contains("line 0"), "{}", shown.told());
    }
    let connect = home.ours(["connect", "distant://127.0.0.1:1", "--format=json"]);
    let long = "x".repeat(2 << 20);
    let answer = format!(r#"{{"type":"auth_challenge_response","answers":["{long}"]}}"#);
    let error = last_line(&connect.input(format!("{HELLO}\n{answer}\n")).run().code(1));
    assert_eq!(error["msg"], "`answers` on standard input have more than 524288 bytes");
}

#[test]
fn a_mistyped_scheme_before_an_option_of_the_configuration_is_a_warning() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let plugin = |name: &str| {
        let text = format!(
            "#!/bin/sh\n\
             echo '{{\"type\":\"hello\",\"protocol\":[1,1],\
             \"manifest\":{{\"name\":\"{name}\",\"schemes\":[\"{name}\"]}}}}'\n\
             read hello && read launch || exit\n\
             echo '{{\"type\":\"error\",\"kind\":\"other\",\"message\":\"this is {name}\"}}'\n"
        );
        home.script(&format!("data/distant/plugins/distant-plugin-{name}"), &text);
    };
    plugin("hello");
    let options = "options = 'Helo.word=x,quite-another.size=1,hello.timeout=1'\n";
    home.write("config/distant/config.toml", format!("[client.launch]\n{options}"));
    let launch = || home.ours(["launch", "hello://x"]).run().code(1);
    let warning = "warning: `Helo.word` in the configuration is for `helo://`, which no plugin \
                   serves; did you mean `hello.word`?\n";
    let refused = launch();
    // It is left out all the same, and what has the right prefix is checked as ever.
    let said = format!("{warning}error: unknown option `hello.timeout` for plugin `hello`");
    assert!(refused.stderr.starts_with(&said), "{}", refused.told());
    let other = home.ours(["launch", "manager://localhost"]).run().success();
    assert_eq!(other.stderr, "");

    let options = options.replace(",hello.timeout=1", "");
    home.write("config/distant/config.toml", format!("[client.launch]\n{options}"));
    assert!(launch().stderr.starts_with(&format!("{warning}error: this is hello\n")));
    plugin("helo");
    assert!(launch().stderr.starts_with("error: this is hello\n"));
}

#[test]
fn a_key_of_the_configuration_that_looks_misspelt_is_warned_of() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let file =
        home.write("config/distant/config.toml", "[client.launch]\nbinn = 'x'\n[new]\nkey = 1");
    let launch = home.ours(["launch", "manager://localhost"]).run().success();
    let warning = format!(
        "warning: nothing reads `client.launch.binn` in `{}`; did you mean `client.launch.bin`?\n",
        file.display()
    );
    assert_eq!(launch.stderr, warning);
    assert_eq!(home.ours(["manager", "list"]).run().success().stderr, "");
}

#[test]
fn what_is_typed_stays_hidden_after_the_program_was_stopped_and_went_on() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let mut shell = home.program("bash", ["--norc", "-i"]).on_terminal();
    let distant = programs().distant.display();
    shell.type_keys(&format!("{distant} connect distant://127.0.0.1:1\n"));
    shell.expect("Key of distant://");
    shell.type_keys("\x1a");
    shell.expect("Stopped");
    shell.type_keys("fg\n");
    shell.expect("Key of distant://");
    shell.type_keys("hunter2\n");
    shell.expect("error: ");
    shell.type_keys("exit\n");
    let (_, shown) = shell.finish();
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_public_key_in_place_of_a_private_one_and_a_key_that_others_can_read_are_named() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    sshd.make_known(&home);
    let launch = |backend: &str, key: &str| {
        let options = format!("backend={backend},identity_files=\"{key}\"");
        sshd.launch_as(&home, "root", &options).run().code(1)
    };
    let public = format!("{}.pub", sshd.identity());
    for backend in ["ssh2", "libssh"] {
        let refused = launch(backend, &public);
        let said =
            format!("key `{public}`: it is a public key, and no agent has the private one\n");
        assert!(refused.stderr.contains(&said), "{}", refused.told());
    }
    fs::set_permissions(sshd.identity(), fs::Permissions::from_mode(0o644)).unwrap();
    let refused = launch("openssh", &sshd.identity());
    let said = "caused by: WARNING: UNPROTECTED PRIVATE KEY FILE!\n";
    assert!(refused.stderr.contains(said), "{}", refused.told());
    assert!(!refused.stderr.contains("caused by: @"), "{}", refused.told());
}
