//! What people get wrong, or find broken, and what they are told then.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use serde_json::Value;

use crate::support::{keygen, programs, Finished, Home, Manager, Sshd, HELLO};

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
    let distant = programs().distant.display();
    let (config, identity) = (sshd.path("config"), sshd.identity());
    let script = format!(
        "ip link set lo up && ip -6 address add fe80::1/64 dev lo nodad || exit 9\n\
         /usr/sbin/sshd -D -e -f {} -o ListenAddress=fe80::1%lo -o Port=22 & sshd=$!\n\
         until ss -Hltn6 2>&- | grep -q ':22 '; do kill -0 $sshd || exit 8; done\n\
         launch() {{ {distant} launch \"$1\" --distant {distant} --options 'identity_files=\"{identity}\"'; }}\n\
         launch 'ssh://root@[fe80::1%lo]' && {distant} spawn -- echo hi\n\
         launch 'ssh://root@[fe80::1%25lo]:1'\n\
         {distant} manager stop; kill $sshd; wait",
        config.display()
    );
    let done = home.program("unshare", ["--net", "sh", "-c", &script]).run();
    assert!(done.stdout.ends_with("\nhi\n"), "{}", done.told());
    assert!(done.stderr.contains("error: cannot reach `[fe80::1%lo]:1`\n"), "{}", done.told());
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
