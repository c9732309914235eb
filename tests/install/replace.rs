//! What `plugin add` and `remove` do where something is there already, or does not keep still.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;

use super::{add, home, json, launch_says, listed, mend_by, script, set_mode, FOLDER};
use crate::support::{eventually, executable, Home, Manager, Running, Signal};

#[test]
fn a_file_that_changes_while_it_is_copied_is_not_added() {
    let (home, folder) = home();
    let file = script(&home, "distant-plugin-hello", "hello", "hello");
    // Enough to take its time; a script ends before it.
    let mut text = fs::read(&file).unwrap();
    text.extend(b"exit\n");
    text.extend(vec![b'#'; 64 << 20]);
    executable(&file, &text);
    let (over, begun) = (AtomicBool::new(false), Barrier::new(2));
    let refused = std::thread::scope(|scope| {
        // As whoever is still copying it there: by the same name, or by a new file under it.
        scope.spawn(|| {
            let mut growing = File::options().append(true).open(&file).unwrap();
            begun.wait();
            while !over.load(Ordering::Acquire) {
                growing.write_all(b"#").unwrap();
            }
        });
        begun.wait();
        let refused = add(&home, &file);
        over.store(true, Ordering::Release);
        refused
    });
    let refused = refused.code(1);
    let said = "caused by: it was changed or replaced while it was copied\n\n\
                hint: add it again when it is complete\n";
    assert!(refused.stderr.ends_with(said), "{}", refused.told());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert!(!home.path("config/distant/plugins.toml").exists());
    add(&home, &file).success();
    assert_eq!(listed(&home, "hello")["state"], "used");
}

#[test]
fn a_half_copied_script_is_not_added() {
    let (home, folder) = home();
    let file = script(&home, "distant-plugin-hello", "hello", "hello");
    let text = fs::read(&file).unwrap();
    for (length, reason) in [(0, "it is empty"), (15, "it exited with status "), (40, "it ")] {
        executable(&file, &text[..length]);
        let refused = add(&home, &file).code(1);
        assert!(refused.stderr.contains(&format!("caused by: {reason}")), "{}", refused.told());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

#[test]
fn the_same_file_again_changes_nothing_and_a_new_version_replaces() {
    let (home, folder) = home();
    let file = script(&home, "distant-plugin-hello", "hello", "one");
    assert!(add(&home, &file).success().stdout.starts_with("added `hello` 1.0: "));
    let place = folder.join("distant-plugin-hello");
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = inode(&place);
    let again = add(&home, &file).success();
    assert!(again.stdout.starts_with("already added `hello` 1.0: "), "{}", again.told());
    assert_eq!(inode(&place), before);
    let again = home.ours(["plugin", "add", "--json"]).arg(&file).run().success();
    let again = json(&again);
    assert_eq!(again["unchanged"], true);
    assert_eq!(again["replaced"].as_array().map(Vec::len), Some(0));

    script(&home, "distant-plugin-hello", "hello", "two");
    let new = json(&home.ours(["plugin", "add", "--json"]).arg(&file).run().success());
    assert_eq!(new["unchanged"], false);
    assert_eq!(new["replaced"][0], place.to_str().unwrap());
    launch_says(&home, "hello://x", "this is two");
    home.ours(["manager", "stop"]).run().success();
}

#[test]
fn what_would_be_lost_is_replaced_only_by_force() {
    let (home, folder) = home();
    let file = script(&home, "distant-plugin-hello", "hello", "mine");
    let place = folder.join("distant-plugin-hello");
    let refused = |message: &str, cause: &str| {
        let before = fs::read(&place).unwrap();
        let refused = add(&home, &file).code(1);
        let said = format!("error: {message}\n  caused by: {cause}");
        assert!(refused.stderr.starts_with(&said), "{}", refused.told());
        assert!(refused.stderr.contains("\nhint: `--force` replaces it"), "{}", refused.told());
        assert_eq!(fs::read(&place).unwrap(), before);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    };
    let force = || home.ours(["plugin", "add", "--force"]).arg(&file).run().success();

    // One that somebody has put there by hand.
    script(&home, &format!("{FOLDER}/distant-plugin-hello"), "hello", "by hand");
    refused(
        "there is a plugin `hello` already that nobody has added",
        &format!("it is in `{}`", place.display()),
    );
    // To add what is there is to say that it may stay.
    add(&home, &place).success();
    add(&home, &file).success();
    assert_eq!(fs::read(&place).unwrap(), fs::read(&file).unwrap());

    // One that serves more.
    let text = fs::read_to_string(&file).unwrap();
    let more = text.replace("\"schemes\":[\"hello\"]", "\"schemes\":[\"hello\",\"hi\"]");
    home.script("distant-plugin-hello", &more);
    add(&home, &file).success();
    home.script("distant-plugin-hello", &text);
    refused(
        "plugin `hello` would not serve `hi` any more",
        &format!("the one that was added before does: `{}`", place.display()),
    );
    assert!(force().stdout.starts_with("replaced `hello` 1.0: "));
    assert_eq!(listed(&home, "hello")["schemes"].as_array().map(Vec::len), Some(1));
}

#[test]
fn who_else_could_have_written_a_file_is_said_when_it_is_added() {
    let (home, _) = home();
    let file = script(&home, "open/distant-plugin-hello", "hello", "hello");
    let open = home.path("open").canonicalize().unwrap();
    set_mode(&open, 0o777);
    let said = format!(
        "warning: somebody else may have written it: bad ownership or modes for directory `{}`: \
         everybody may write to it (mode 0777)\n  mend: chmod go-w {}\n",
        open.display(),
        open.display()
    );
    let added = add(&home, &file).success();
    assert_eq!(added.stderr, said);
    // A launch is safe from it all the same, as it has the copy.
    assert_eq!(listed(&home, "hello")["state"], "used");
    let again = json(&home.ours(["plugin", "add", "--json"]).arg(&file).run().success());
    let warnings = again["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{again}");
    mend_by(&home, warnings[0]["mend"].as_str().unwrap());
    assert_eq!(add(&home, &file).success().stderr, "");
    // A sticky folder is like /tmp, and as good.
    set_mode(&open, 0o1777);
    assert_eq!(add(&home, &file).success().stderr, "");
}

#[test]
fn a_plugin_that_is_removed_during_a_launch_is_there_until_its_end() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let text = "#!/bin/sh\n\
         say() { printf '%s\\n' \"$1\"; }\n\
         say '{\"type\":\"hello\",\"protocol\":[1,1],\
         \"manifest\":{\"name\":\"asking\",\"schemes\":[\"asking\"]}}'\n\
         read hello && read launch || exit\n\
         say '{\"type\":\"ask\",\"id\":1,\"verification\":{\"kind\":\"host\",\"text\":\"Sure?\"}}'\n\
         read answer\n\
         say '{\"type\":\"error\",\"kind\":\"other\",\"message\":\"still here\"}'\n";
    let script = home.script("distant-plugin-asking", text);
    let library = crate::abi::c_plugin(&home, "hostile.c", "FIRST");
    let renamed = home.path("libdistant_plugin_hostile.so");
    fs::rename(library, &renamed).unwrap();
    for (name, file, options) in
        [("asking", script, &[][..]), ("hostile", renamed, &["--options", "variant=asks"])]
    {
        add(&home, &file).success();
        let destination = format!("{name}://x");
        let words = ["launch", &destination, "--format", "json"];
        let mut launch = home.ours(words.iter().chain(options)).start();
        launch.say(r#"{"type":"auth_initialization_response","methods":["none"]}"#);
        while launch.json()["type"] != "auth_verification" {}
        home.ours(["plugin", "remove", name]).run().success();
        launch_says(&home, &destination, &format!("no plugin serves the scheme `{name}`"));
        launch.say(r#"{"type":"auth_verification_response","valid":true}"#);
        assert_eq!(launch.json()["msg"], "still here");
        assert_eq!(launch.finish().status.code(), Some(1));
    }
    drop(manager);
}

#[test]
fn the_copy_of_an_add_that_was_killed_is_removed_and_that_of_another_is_not() {
    let (home, folder) = home();
    home.write("config/distant/config.toml", "[manager.worker]\nhello = 300\n");
    let good = script(&home, "distant-plugin-hello", "hello", "hello");
    let slow = home.script("distant-plugin-slow", "#!/bin/sh\nexec sleep 1000\n");
    let begin = || {
        let adding = home.ours(["plugin", "add"]).arg(&slow).start();
        eventually("the plugin that says nothing", || {
            home.processes().iter().any(|it| it.command == "sleep 1000").then_some(())
        });
        adding
    };
    let end = |adding: Running| {
        adding.signal(Signal::KILL);
        adding.finish();
        home.assert_empty();
    };
    let names = || {
        let names = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name());
        let mut names: Vec<_> = names.map(|it| it.into_string().unwrap()).collect();
        names.sort();
        names.iter_mut().filter(|it| it.starts_with(".adding-")).for_each(|it| it.truncate(8));
        names
    };

    let first = begin();
    add(&home, &good).success();
    assert_eq!(names(), [".adding-", "distant-plugin-hello"], "of one that lives");
    end(first);
    assert_eq!(names(), [".adding-", "distant-plugin-hello"], "nobody could");
    for command in ["list", "doctor"] {
        let said = home.ours(["plugin", command, "--json"]).run().success();
        assert!(!said.stdout.contains("adding"), "{}", said.told());
    }
    add(&home, &good).success();
    assert_eq!(names(), ["distant-plugin-hello"]);

    end(begin());
    assert_eq!(names(), [".adding-", "distant-plugin-hello"]);
    home.ours(["plugin", "remove", "hello"]).run().success();
    assert_eq!(names(), [""; 0]);
}
