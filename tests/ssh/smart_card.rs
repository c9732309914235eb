//! A key in a smart card, which softhsm plays behind the real interface of one (PKCS#11).

use std::fs;

use super::login::answer;
use crate::support::{Home, Invocation, Manager, Sshd};

/// Where Debian's package has the library, whatever the machine.
const LIBRARY: &str = "/usr/lib/softhsm/libsofthsm2.so";

const PIN: &str = "2580";

/// A card with one key that an sshd lets in, named in the ssh configuration of a home.
pub(super) struct SoftCard<'a>(&'a Home);

impl<'a> SoftCard<'a> {
    pub(super) fn new(home: &'a Home, sshd: &Sshd) -> Self {
        let this = Self(home);
        let cards = home.path("card/all");
        fs::create_dir_all(&cards).unwrap();
        let config = format!("directories.tokendir = {}\nlog.level = ERROR\n", cards.display());
        home.write("card/softhsm2.conf", config);
        let key = home.path("card/key.pem").display().to_string();
        let run = |words: &str| {
            let words: Vec<_> = words.split(' ').collect();
            this.with(home.program(words[0], &words[1..])).run().success().stdout
        };
        run(&format!("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {key}"));
        run(&format!("softhsm2-util --init-token --free --label box --pin {PIN} --so-pin {PIN}"));
        run(&format!("softhsm2-util --import {key} --token box --label box --id 01 --pin {PIN}"));
        fs::remove_file(key).unwrap();
        let public = home.write("card/key.pub", run(&format!("ssh-keygen -D {LIBRARY}")));
        sshd.authorize(&public);
        home.write(".ssh/config", format!("Host *\n  PKCS11Provider {LIBRARY}\n"));
        this
    }

    /// A program that finds the card.
    fn with(&self, program: Invocation) -> Invocation {
        program.env("SOFTHSM2_CONF", self.0.path("card/softhsm2.conf"))
    }

    /// A manager whose launches find the card.
    pub(super) fn manager(&self) -> Manager {
        Manager::listen(self.0, self.with(self.0.ours(["manager", "listen", "--user"])), true)
    }
}

/// Its question, and the right answer.
pub(super) const ASKED: (&str, &str) = ("Enter PIN for 'box': ", PIN);

#[test]
fn the_pin_of_a_smart_card_by_softhsm_is_asked_for() {
    let home = Home::new();
    let sshd = Sshd::with(&home, "PasswordAuthentication no\nKbdInteractiveAuthentication no");
    sshd.make_known(&home);
    let card = SoftCard::new(&home, &sshd);
    let _manager = card.manager();
    let launch = || sshd.launch_as(&home, "root", "backend=openssh");
    let (asked, end) = answer(launch(), &[&[ASKED.1]]);
    assert_eq!((asked, &end["type"]), (vec![ASKED.0.to_owned()], &"launched".into()), "{end}");
    assert!(sshd.log().contains("Accepted publickey for root"), "{}", sshd.log());
    let (_, end) = answer(launch(), &[&["0000"]]);
    assert_eq!(end["kind"], "authentication", "{end}");
    let error = launch().run().code(1);
    assert!(error.stderr.contains("a question was left unanswered"), "{}", error.told());
    // The others say who can.
    let error = sshd.launch_as(&home, "root", "").run().code(1);
    assert!(error.stderr.contains("`PKCS11Provider` is not used"), "{}", error.told());
}
