//! `launch.unreachable_host` with the real plugins: an address that refuses, one that says nothing,
//! and a name that nobody has.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::{cases, is_found};
use crate::ssh::hostile::silent;
use crate::support::{executable, programs, refusing, Home, Sshd};

/// Destinations where nothing answers, with what has to live for that.
struct Gone {
    /// Nobody else gets this port, and nobody listens there.
    refusing: TcpListener,
    /// It takes nobody in, as one is waiting already.
    silent: (TcpListener, TcpStream),
}

impl Gone {
    fn new() -> Self {
        Self { refusing: refusing(), silent: silent(Ipv4Addr::LOCALHOST.into()) }
    }

    fn destinations(&self) -> [String; 3] {
        let at = |it: &TcpListener| format!("ssh://root@{}", it.local_addr().unwrap());
        [at(&self.refusing), at(&self.silent.0), "ssh://root@nonesuch.invalid".to_owned()]
    }
}

#[test]
fn the_real_plugins_of_ssh_say_that_a_host_is_unreachable() {
    let home = Home::new();
    let sshd = Sshd::start(&home);
    sshd.make_known(&home);
    home.write(".ssh/config", "ConnectTimeout 2\n");
    let gone = Gone::new();
    let distant = programs().distant.display().to_string();
    let to = format!("ssh://root@{}", sshd.address);
    let options = format!("identity_files=\"{}\"", sshd.identity());
    let check = |plugin: &std::path::Path, options: &str| {
        for gone in gone.destinations() {
            let arguments = [
                ["--launch", &to, "--distant", &distant],
                ["--options", options, "--unreachable", &gone],
                ["--only", "launch.unreachable_host", "--only", "launch.plain"],
            ];
            let found = cases(&home, plugin, &arguments.concat());
            // What the case compares with is a launch that works.
            is_found(&found, "launch.plain", "pass", "");
            is_found(&found, "launch.unreachable_host", "pass", "");
        }
    };
    for plugin in ["ssh2", "libssh", "openssh"] {
        check(programs().plugin(plugin), &options);
    }
    // What `plugin new` writes, with the one line changed that is there to be changed.
    let folder = home.path("reach");
    let new = ["plugin", "new", "reach", "--lang", "sh", "--dir", folder.to_str().unwrap()];
    home.ours(new).run().success();
    let plugin = folder.join("distant-plugin-reach");
    let text = std::fs::read_to_string(&plugin).unwrap();
    let argv = r#""argv":["sh","-c","{command}"]"#;
    assert!(text.contains(argv));
    let own = format!(
        r#""argv":["ssh","-i","{}","-p","'"${{to##*:}}"'","-o","BatchMode=yes","-o","ConnectTimeout=2","-o","UserKnownHostsFile={}","root@'"${{to%:*}}"'","{{command}}"],"address":"127.0.0.1""#,
        sshd.identity(),
        home.path(".ssh/known_hosts").display()
    );
    let reads =
        "case $line in\n        '{\"type\":\"launch\"'*) to=${line#*root@}; to=${to%%'\"'*}\n\
                 case $to in *:*) ;; *) to=$to:22 ;; esac ;;";
    let text = text.replace(argv, &own).replace("case $line in", reads);
    let text = text.replace("\"schemes\":[\"reach\"]", "\"schemes\":[\"ssh\"]");
    executable(&plugin, text);
    check(&plugin, "");
}
