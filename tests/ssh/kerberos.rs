//! Logins by a ticket of Kerberos, with a realm and a real KDC of the test's own.

use std::fs;
use std::path::PathBuf;

use super::login::answer;
use crate::support::{Home, Invocation, Look, Manager, Running, Sshd};

/// A realm with one user, root, and one host, 127.0.0.1. Its KDC ends when it is dropped.
pub(super) struct Realm<'a> {
    home: &'a Home,
    _center: Running,
}

impl<'a> Realm<'a> {
    pub(super) fn start(home: &'a Home) -> Self {
        let at = |name: &str| home.path("realm").join(name).display().to_string();
        // It chooses a port by itself, and says so to nobody: what it has open tells.
        home.write(
            "realm/kdc.conf",
            format!(
                "[kdcdefaults]\n kdc_listen = \"\"\n kdc_tcp_listen = 127.0.0.1:0\n\
                 [realms]\n TEST = {{\n  database_name = {}\n  key_stash_file = {}\n }}\n\
                 [logging]\n kdc = FILE:/dev/stdout\n",
                at("principals"),
                at("stash"),
            ),
        );
        configure(home, 0);
        let run = |program: &str, words: &[&str]| {
            let run = in_realm(home, home.program(program, words));
            run.env("KRB5_KDC_PROFILE", at("kdc.conf"))
        };
        run("kdb5_util", &["create", "-s", "-P", "of the database"]).run().success();
        let service = format!("ktadd -k {} host/127.0.0.1", at("keytab"));
        let user = format!("ktadd -k {} root", at("root.keytab"));
        for words in ["addprinc -randkey host/127.0.0.1", &service, "addprinc -randkey root", &user]
        {
            run("kadmin.local", &["-q", words]).run().success();
        }
        let center = run("krb5kdc", &["-n"]).start();
        while !center.line().ends_with("commencing operation") {}
        configure(home, port_of(&center));
        Self { home, _center: center }
    }

    /// An sshd that is a host of it.
    pub(super) fn sshd(&self) -> Sshd {
        let lines = "GSSAPIAuthentication yes\nGSSAPIStrictAcceptorCheck no\n\
                     PasswordAuthentication no\nKbdInteractiveAuthentication no";
        let at = |name: &str| self.home.path("realm").join(name).display().to_string();
        // What it would remember of tickets goes to a place for all, and would stay there.
        let variables = [
            format!("KRB5_CONFIG={}", at("krb5.conf")),
            format!("KRB5_KTNAME={}", at("keytab")),
            "KRB5RCACHENAME=none:".to_owned(),
        ];
        let sshd = Sshd::within(self.home, lines, &variables);
        sshd.make_known(self.home);
        self.home.write(".ssh/config", "Host *\n  GSSAPIAuthentication yes\n");
        sshd
    }

    /// A manager that knows the realm.
    pub(super) fn manager(&self) -> Manager {
        let listen = self.home.ours(["manager", "listen", "--user"]);
        Manager::listen(self.home, in_realm(self.home, listen), true)
    }

    /// A ticket of root's, as `KRB5CCNAME` names it.
    pub(super) fn ticket(&self) -> String {
        let name = format!("FILE:{}", self.home.path("realm/ticket").display());
        let keytab = self.home.path("realm/root.keytab").display().to_string();
        let get = self.home.program("kinit", ["-k", "-t", &keytab, "root"]);
        let get = in_realm(self.home, get).env("KRB5CCNAME", &name);
        // Should it fail, it says what it has tried.
        get.env("KRB5_TRACE", "/dev/stderr").run().success();
        name
    }
}

fn in_realm(home: &Home, program: Invocation) -> Invocation {
    program.env("KRB5_CONFIG", home.path("realm/krb5.conf"))
}

/// Writes what its users and hosts know.
fn configure(home: &Home, port: u16) -> PathBuf {
    let none = home.path("realm/nothing").display().to_string();
    home.write(
        "realm/krb5.conf",
        format!(
            "[libdefaults]\n default_realm = TEST\n dns_lookup_realm = false\n \
             dns_lookup_kdc = false\n dns_canonicalize_hostname = false\n rdns = false\n \
             udp_preference_limit = 1\n default_ccache_name = FILE:{none}\n\
             [realms]\n TEST = {{\n  kdc = 127.0.0.1:{port}\n }}\n"
        ),
    )
}

/// The port that a process listens on.
fn port_of(process: &Running) -> u16 {
    let open = Look::open(process.pid());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut ports = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_its = open.contains(&format!("socket:[{}]", fields.get(9)?));
        let port = fields[1].split_once(':')?.1;
        (is_its && fields[3] == "0A").then(|| u16::from_str_radix(port, 16).unwrap())
    });
    ports.next().expect("it listens")
}

#[test]
fn a_ticket_of_whoever_launches_gets_in_without_a_question() {
    let home = Home::new();
    let realm = Realm::start(&home);
    let sshd = realm.sshd();
    let ticket = realm.ticket();
    // The manager's own is nobody else's.
    let listen = home.ours(["manager", "listen", "--user"]).env("KRB5CCNAME", &ticket);
    let _manager = Manager::listen(&home, in_realm(&home, listen), true);
    let launch = || sshd.launch_as(&home, "root", "backend=openssh");
    let (asked, end) = answer(launch(), &[]);
    assert_eq!((asked.len(), &end["kind"]), (0, &"authentication".into()), "{end}");
    let (asked, end) = answer(launch().env("KRB5CCNAME", &ticket), &[]);
    assert_eq!((asked.len(), &end["type"]), (0, &"launched".into()), "{end}");
    assert!(sshd.log().contains("Accepted gssapi-with-mic for root"), "{}", sshd.log());
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
}

#[test]
fn why_a_ticket_is_of_no_use_is_said() {
    let home = Home::new();
    let realm = Realm::start(&home);
    let sshd = realm.sshd();
    let _manager = realm.manager();
    let launch = || sshd.launch_as(&home, "root", "backend=openssh");
    let none = home.path("realm/nothing");
    let error = launch().run().code(1).stderr;
    let reason = format!(
        "Kerberos: No Kerberos credentials available (default cache: FILE:{})",
        none.display()
    );
    assert_eq!(error.matches(&format!("  caused by: {reason}\n")).count(), 1, "{error}");
    assert!(error.contains("a ticket of Kerberos comes from `kinit`"), "{error}");
    // A realm that does not know the host.
    let ticket = realm.ticket();
    let other = format!("ssh://root@localhost:{}", sshd.address.port());
    let known = sshd.known(&["ed25519"]).replace("127.0.0.1", "localhost");
    home.write(".ssh/known_hosts", known);
    let elsewhere = home.ours(["launch", &other, "--options=backend=openssh"]);
    let error = elsewhere.env("KRB5CCNAME", &ticket).run().code(1).stderr;
    assert!(error.contains("Kerberos: Server host/localhost@TEST not found"), "{error}");
    // Somebody else's ticket.
    let account = super::remote::Account::new("/bin/sh", "x");
    sshd.make_known(&home);
    let as_other = sshd.launch_as(&home, &account.name, "backend=openssh");
    let error = as_other.env("KRB5CCNAME", &ticket).run().code(1).stderr;
    assert!(error.contains("  caused by: Kerberos: not accepted\n"), "{error}");
}

#[test]
fn who_has_no_ticket_and_needs_none_hears_nothing_of_it() {
    let home = Home::new();
    let realm = Realm::start(&home);
    let sshd = realm.sshd();
    let _manager = realm.manager();
    let launched = sshd.launch(&home, "openssh", "").run();
    assert_eq!(launched.stderr, "", "{}", launched.told());
    launched.id();
    assert!(sshd.log().contains("Accepted publickey"), "{}", sshd.log());
}
