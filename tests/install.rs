//! Adding, removing and examining plugins, as a person does it.

mod replace;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::abi::c_plugin;
use crate::ssh::remote::Account;
use crate::support::{copy_executable, executable, programs, Finished, Home, Manager};

const FOLDER: &str = "data/distant/plugins";

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A home with the folder for plugins of one's own.
fn home() -> (Home, PathBuf) {
    let home = Home::new();
    let folder = home.path(FOLDER);
    fs::create_dir_all(&folder).unwrap();
    for folder in folder.ancestors().take(3) {
        set_mode(folder, 0o755);
    }
    (home, folder)
}

/// The text of an executable plugin that says only what it is and, when it is launched, `word`.
fn script_text(name: &str, word: &str) -> String {
    format!(
        "#!/bin/sh\n\
         echo '{{\"type\":\"hello\",\"protocol\":[1,1],\
         \"manifest\":{{\"name\":\"{name}\",\"version\":\"1.0\",\"schemes\":[\"{name}\"]}}}}'\n\
         read hello && read launch || exit\n\
         echo '{{\"type\":\"error\",\"kind\":\"other\",\"message\":\"this is {word}\"}}'\n"
    )
}

/// Writes one.
fn script(home: &Home, path: &str, name: &str, word: &str) -> PathBuf {
    home.script(path, &script_text(name, word))
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.told()))
}

fn listed(home: &Home, name: &str) -> Value {
    let all = json(&home.ours(["plugin", "list", "--json"]).run().success());
    all.as_array().unwrap().iter().find(|it| it["name"] == name).cloned().unwrap_or_default()
}

fn add(home: &Home, path: &Path) -> Finished {
    home.ours(["plugin", "add"]).arg(path).run()
}

#[track_caller]
fn launch_says(home: &Home, destination: &str, word: &str) {
    let launch = home.ours(["launch", destination]).run().code(1);
    assert!(launch.stderr.contains(word), "no `{word}`: {}", launch.told());
}

#[test]
fn a_plugin_that_is_added_works_at_once_and_is_gone_when_it_is_removed() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let file = script(&home, "build/distant-plugin-hello", "hello", "the first");
    launch_says(&home, "hello://x", "no plugin serves the scheme `hello`");

    let added = add(&home, &file).success();
    let place = home.path(FOLDER).join("distant-plugin-hello");
    let expected = format!(
        "added `hello` 1.0: {}\nit serves hello://, try: distant launch hello://HOST\n",
        place.display()
    );
    assert_eq!(added.stdout, expected);
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o755);
    launch_says(&home, "hello://x", "this is the first");

    script(&home, "build/distant-plugin-hello", "hello", "the second");
    let added = home.ours(["plugin", "add", "--json"]).arg(&file).cwd(home.path("build")).run();
    let added = json(&added.success());
    assert_eq!((&added["state"], &added["name"]), (&"used".into(), &"hello".into()));
    assert_eq!(added["replaced"][0], place.to_str().unwrap());
    assert_eq!(added["sha256"].as_str().unwrap().len(), 64);
    launch_says(&home, "hello://x", "this is the second");
    assert_eq!(fs::read_dir(home.path(FOLDER)).unwrap().count(), 1);

    home.ours(["plugin", "use", "hello=hello"]).run().success();
    let removed = json(&home.ours(["plugin", "remove", "hello", "--json"]).run().success());
    assert_eq!(removed["files"][0], place.to_str().unwrap());
    assert_eq!(removed["schemes"][0], "hello");
    launch_says(&home, "hello://x", "no plugin serves the scheme `hello`");
    let config = fs::read_to_string(home.path("config/distant/plugins.toml")).unwrap();
    assert!(!config.contains("hello"), "{config}");
    drop(manager);
}

#[test]
fn a_library_takes_the_place_of_a_program_of_its_name() {
    let (home, folder) = home();
    let program = script(&home, "distant-plugin-c", "c", "a program");
    add(&home, &program).success();
    let library = c_plugin(&home, "table.c", "NONE");
    let added = add(&home, &library).success();
    assert!(added.stdout.starts_with("replaced `c`"), "{}", added.told());
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["libdistant_plugin_c.so"]);
    let mode = fs::metadata(folder.join(&left[0])).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
    // The name is the plugin's own, whatever the file is called.
    assert_eq!(listed(&home, "c")["state"], "used");
}

#[test]
fn what_no_launch_would_take_is_not_added_and_leaves_nothing() {
    let (home, folder) = home();
    let refused = |path: &Path, reason: &str, hint: &str| {
        let add = add(&home, path).code(1);
        let shown = path.display();
        assert!(
            add.stderr.starts_with(&format!("error: `{shown}` cannot be added\n  caused by: ")),
            "{}",
            add.told()
        );
        assert!(add.stderr.contains(reason), "no `{reason}`: {}", add.told());
        assert!(add.stderr.contains(&format!("\nhint: {hint}")), "no `{hint}`: {}", add.told());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    };
    let program = script(&home, "distant-plugin-hello", "hello", "hello");
    set_mode(&program, 0o777);
    refused(&program, "everybody may write to it", "chmod go-w ");
    set_mode(&program, 0o644);
    refused(&program, "it may not be executed", "chmod +x ");

    let library = c_plugin(&home, "table.c", "MAJOR");
    refused(
        &library,
        &format!("`{}` was built for another version of distant", library.display()),
        "build it again with the plugin API of this version",
    );
    let library = c_plugin(&home, "table.c", "NONE");
    let content = fs::read(&library).unwrap();
    fs::write(&library, &content[..content.len() / 2]).unwrap();
    refused(&library, "it is cut short", "copy it again");
    let mut foreign = content;
    foreign[18..20].copy_from_slice(&22_u16.to_ne_bytes());
    fs::write(&library, foreign).unwrap();
    refused(&library, "it is for S/390", "build it for this machine");

    let missing = add(&home, Path::new("/nowhere/distant-plugin-x")).code(1);
    assert!(missing.stderr.contains("caused by: there is no such file"), "{}", missing.told());
}

#[test]
fn a_folder_that_others_may_write_to_gets_no_plugin() {
    let (home, folder) = home();
    let file = script(&home, "distant-plugin-hello", "hello", "hello");
    set_mode(&folder, 0o777);
    let refused = add(&home, &file).code(1);
    assert!(refused.stderr.contains("bad ownership or modes for directory"), "{}", refused.told());
    set_mode(&folder, 0o755);
    // And where the folder is made first, the umask makes no difference.
    let fresh = Home::new();
    let file = script(&fresh, "distant-plugin-hello", "hello", "hello");
    set_mode(&fresh.path("data"), 0o755);
    let distant = programs().distant.display();
    let line = format!("umask 002; exec {distant} plugin add {}", file.display());
    fresh.program("sh", ["-c", &line]).run().success();
    assert_eq!(listed(&fresh, "hello")["state"], "used");
}

#[test]
fn a_name_that_is_taken_is_not_taken_over_in_silence() {
    let (home, _) = home();
    let own = script(&home, "distant-plugin-manager-local", "manager-local", "mine");
    let refused = add(&home, &own).code(1);
    assert!(
        refused
            .stderr
            .contains("there is a plugin `manager-local` already, and that one comes first"),
        "{}",
        refused.told()
    );

    // What is called like another one, but serves its scheme by another name, may stay beside it.
    let text = fs::read_to_string(&own).unwrap();
    let text = text.replacen("\"name\":\"manager-local\"", "\"name\":\"mine\"", 1);
    let text = text.replace("\"schemes\":[\"manager-local\"]", "\"schemes\":[\"manager\"]");
    let beside = home.script("distant-plugin-mine", &text);
    let added = add(&home, &beside).success();
    let said = "manager:// stays with `manager-local`; \
                to change that: distant plugin use manager=mine\n";
    assert!(added.stdout.contains(said), "{}", added.told());

    let not_added = home.ours(["plugin", "remove", "manager-local"]).run().code(1);
    assert!(not_added.stderr.contains("is not one that was added"), "{}", not_added.told());
    let unknown = home.ours(["plugin", "remove", "mien"]).run().code(1);
    assert!(unknown.stderr.contains("those that were added are `mine`"), "{}", unknown.told());
}

#[test]
fn a_plugin_that_somebody_changed_is_not_run_until_it_is_added_again() {
    let (home, folder) = home();
    let file = script(&home, "distant-plugin-hello", "hello", "the first");
    add(&home, &file).success();
    let place = folder.join("distant-plugin-hello");
    let other = script(&home, "other", "hello", "another one");
    fs::rename(other, &place).unwrap();

    launch_says(&home, "hello://x", "the file was changed");
    home.ours(["manager", "stop"]).run().success();
    let it = listed(&home, "hello");
    assert_eq!(it["state"], "changed");
    let mend = it["mend"].as_str().unwrap().to_owned();
    let doctor = home.ours(["plugin", "doctor", "hello"]).run().code(1);
    assert!(doctor.stdout.starts_with("hello (changed): "), "{}", doctor.told());
    assert!(doctor.stdout.contains("BAD   content: its SHA-256 is not"), "{}", doctor.told());

    mend_by(&home, &mend);
    assert_eq!(listed(&home, "hello")["state"], "used");
}

/// Does what a listing says would mend a plugin.
fn mend_by(home: &Home, mend: &str) {
    let distant = programs().distant.parent().unwrap().display();
    home.program("sh", ["-c", &format!("PATH={distant}:$PATH; {mend}")]).run().success();
}

/// Everything that can be wrong with a plugin, each with what is said of it and what mends it.
#[test]
fn each_way_of_being_ill_is_listed_with_its_reason_and_what_mends_it() {
    let (home, folder) = home();
    let library = |variant: &str, name: &str| {
        let built = c_plugin(&home, "table.c", variant);
        let place = folder.join(format!("libdistant_plugin_{name}.so"));
        fs::rename(built, &place).unwrap();
        place
    };
    let ill = |name: &str, state: &str, reason: &str, mend: &str| {
        let it = listed(&home, name);
        assert_eq!(it["state"], state, "{it}");
        assert!(it["reason"].as_str().unwrap_or_default().contains(reason), "{it}");
        let said = it["mend"].as_str().unwrap_or_default();
        assert!(said.contains(mend), "{it}");

        let doctor = home.ours(["plugin", "doctor", name, "--json"]).run().code(1);
        let doctor = json(&doctor);
        assert_eq!(doctor["well"], false);
        let checks = doctor["plugins"][0]["checks"].as_array().unwrap();
        let bad = checks.iter().find(|it| it["verdict"] == "bad").unwrap();
        assert!(bad["text"].as_str().unwrap().contains(reason), "{doctor}");
        assert!(bad["mend"].as_str().unwrap_or_default().contains(mend), "{doctor}");
        assert!(doctor["plugins"][0]["launch"].is_null());
        said.to_owned()
    };

    // Writable for everybody: the command is the cure.
    let place = library("NONE", "c");
    set_mode(&place, 0o666);
    let mend = ill("c", "broken", "everybody may write to it (mode 0666)", "chmod go-w ");
    mend_by(&home, &mend);
    assert_eq!(listed(&home, "c")["state"], "used");
    let well = json(&home.ours(["plugin", "doctor", "c", "--json"]).run().success());
    assert_eq!(well["plugins"][0]["launch"], "distant launch c://HOST");
    let content = fs::read(&place).unwrap();

    // Half-copied, and for another machine.
    let half = folder.join("libdistant_plugin_half.so");
    fs::write(&half, &content[..content.len() / 2]).unwrap();
    set_mode(&half, 0o644);
    ill("half", "broken", "it is cut short: only ", "rename it when it is complete");
    let mut foreign = content.clone();
    foreign[18..20].copy_from_slice(&22_u16.to_ne_bytes());
    let foreign_file = folder.join("libdistant_plugin_foreign.so");
    fs::write(&foreign_file, foreign).unwrap();
    set_mode(&foreign_file, 0o644);
    ill("foreign", "broken", "it is for S/390", "build it for this machine");

    // For another host, and one that crashes while it is loaded.
    library("MAJOR", "old");
    ill("old", "broken", "it has plugin ABI 2.1, this program has 1.1", "build it again");
    library("CONSTRUCTOR_CRASH", "crashing");
    ill("crashing", "broken", "it was killed by signal 11 (SIGSEGV)", "");

    // Programs: for another machine, half-copied, for another host, without what runs them.
    let program = |name: &str, content: &[u8]| {
        let place = folder.join(format!("distant-plugin-{name}"));
        executable(&place, content);
        place
    };
    let whole = fs::read("/bin/true").unwrap();
    let mut other = whole.clone();
    other[18..20].copy_from_slice(&22_u16.to_ne_bytes());
    program("other-machine", &other);
    ill("other-machine", "broken", "it is for S/390", "build it for this machine");
    program("half-program", &whole[..whole.len() / 2]);
    ill("half-program", "broken", "it is cut short: only ", "rename it when it is complete");
    let hello =
        r#"{"type":"hello","protocol":[2,3],"manifest":{"name":"newer","schemes":["newer"]}}"#;
    program("newer", format!("#!/bin/sh\necho '{hello}'\nread x\n").as_bytes());
    let said = "it speaks protocol 2 to 3, this program 1 to 1";
    ill("newer", "broken", said, "in versions that belong together");
    program("no-shell", b"#! /no/such/shell -e\nexit\n");
    let said = "its interpreter `/no/such/shell` is not on this machine";
    ill("no-shell", "broken", said, "install it, or write another one behind `#!`");
    program("windows", b"#!/bin/sh\r\nexit\r\n");
    let mend = ill("windows", "broken", "its lines end with a carriage return", "sed -i");
    mend_by(&home, &mend);
    ill("windows", "broken", "it exited with status 0 before answering", "");

    // A library that needs another one which is not there.
    let other = home.path("libnot_there.so");
    let cc = |arguments: &[&str]| {
        let built = Command::new("cc").args(["-shared", "-fPIC"]).args(arguments).status();
        assert!(built.unwrap().success());
    };
    let empty = home.write("empty.c", "int not_there(void) { return 0; }\n");
    let uses =
        home.write("uses.c", "int not_there(void);\nint use(void) { return not_there(); }\n");
    let [empty, uses, other_path] = [&empty, &uses, &other].map(|it| it.to_str().unwrap());
    let needing = folder.join("libdistant_plugin_needing.so");
    cc(&[empty, "-Wl,-soname,libnot_there.so", "-o", other_path]);
    cc(&[uses, "-Wl,--no-as-needed", other_path, "-o", needing.to_str().unwrap()]);
    fs::remove_file(&other).unwrap();
    let it = listed(&home, "needing");
    assert!(it["reason"].as_str().unwrap().contains("cannot open shared object file"), "{it}");
    let doctor = home.ours(["plugin", "doctor", "needing"]).run().code(1);
    let said = "BAD   libraries: it needs `libnot_there.so`, which is not on this machine\n";
    assert!(doctor.stdout.contains(said), "{}", doctor.told());

    // Shadowed: by its name, and by its scheme. That is no illness.
    script(&home, &format!("{FOLDER}/distant-plugin-manager-local"), "manager-local", "mine");
    let doctor = home.ours(["plugin", "doctor", "manager-local"]).run().success();
    let said = "note  use: another plugin of the same name comes first: manager-local (";
    assert!(doctor.stdout.contains(said), "{}", doctor.told());
    let text = fs::read_to_string(home.path(FOLDER).join("distant-plugin-manager-local")).unwrap();
    let text = text.replacen("\"name\":\"manager-local\"", "\"name\":\"mine\"", 1);
    let text = text.replace("\"schemes\":[\"manager-local\"]", "\"schemes\":[\"manager\"]");
    home.script(&format!("{FOLDER}/distant-plugin-mine"), &text);
    let mine = listed(&home, "mine");
    assert_eq!(mine["state"], "shadowed");
    assert_eq!(mine["by"], "manager-local");
    assert_eq!(mine["mend"], "distant plugin use manager=mine");
    let info = home.ours(["plugin", "info", "mine"]).run().success().stdout;
    assert!(info.contains("to use it    distant plugin use manager=mine\n"), "{info}");
    let doctor = home.ours(["plugin", "doctor", "mine"]).run().success();
    for said in [
        "note  use: `manager://` is served by `manager-local`\n",
        "mend: distant plugin use manager=mine\n",
        "try   distant launch manager://HOST --options backend=mine\n",
    ] {
        assert!(doctor.stdout.contains(said), "{}", doctor.told());
    }
    mend_by(&home, "distant plugin use manager=mine");
    assert_eq!(listed(&home, "mine")["state"], "used");

    // Disabled.
    let config = home.path("config/distant/plugins.toml");
    fs::write(&config, "[plugins.c]\nenabled = false\n").unwrap();
    assert_eq!(listed(&home, "c")["state"], "disabled");
    let doctor = home.ours(["plugin", "doctor", "c"]).run().success();
    assert!(doctor.stdout.contains("take `enabled = false` out of `[plugins.c]`"));

    // And everything at once says so by its exit code.
    let doctor = home.ours(["plugin", "doctor"]).run().code(1);
    assert!(doctor.stdout.starts_with("folders\n"), "{}", doctor.told());
    let unknown = home.ours(["plugin", "doctor", "manager-locla"]).run().code(1);
    assert!(unknown.stderr.contains("did you mean `manager-local`?"), "{}", unknown.told());
}

#[test]
fn a_plugin_that_may_not_be_read_is_listed_with_the_command_that_mends_it() {
    let (home, _) = home();
    // Root may read everything, so this is for somebody else.
    let distant = home.path("bin/distant");
    copy_executable(&programs().distant, &distant);
    let file = script(&home, &format!("{FOLDER}/distant-plugin-closed"), "closed", "closed");
    set_mode(&file, 0o300);
    let other = |arguments: &[&str]| {
        if rustix::process::geteuid().is_root() {
            let root = home.path("");
            let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(&root).status();
            assert!(owned.unwrap().success());
            let words = ["--reuid=65534", "--regid=65534", "--clear-groups"];
            let program = home.program("setpriv", words).arg(&distant);
            arguments.iter().fold(program, |program, word| program.arg(word)).run()
        } else {
            home.program(&distant, arguments).run()
        }
    };
    let all = json(&other(&["plugin", "list", "--json"]).success());
    let it = all.as_array().unwrap().iter().find(|it| it["name"] == "closed").unwrap();
    assert_eq!(it["state"], "broken");
    assert_eq!(it["reason"], format!("`{}` may not be read", file.display()));
    let mend = it["mend"].as_str().unwrap();
    assert_eq!(mend, format!("chmod u+r {}", file.display()));
    let doctor = other(&["plugin", "doctor", "closed"]).code(1);
    assert!(doctor.stdout.contains("BAD   file: `"), "{}", doctor.told());
    mend_by(&home, mend);
    let all = json(&other(&["plugin", "list", "--json"]).success());
    let it = all.as_array().unwrap().iter().find(|it| it["name"] == "closed").unwrap();
    assert_eq!(it["state"], "used", "{it}");
}

#[test]
fn a_group_may_write_that_has_nobody_but_the_user_in_it() {
    let home = Home::new();
    // useradd gives it a group of its own; a umask of 002 is usual then.
    let account = Account::new("/bin/sh", "unused");
    let plugin = account.write("distant-plugin-hello", &script_text("hello", "the first"));
    account.write(".config/distant/config.toml", "[client.launch]\nbin = '/nowhere'\n");
    let distant = programs().distant.display().to_string();
    let run = |script: &str| {
        let script = format!("umask 002; distant() {{ {distant} \"$@\"; }}; cd; {script}");
        let name = account.name.as_str();
        home.program("runuser", ["-l", name, "-c", &script]).run()
    };
    let plugin = plugin.display();
    // What is root's in its home is nobody's choice but root's.
    let owned = format!("{0}:{0}", account.name);
    let chown = ["-R", &owned, &account.home.display().to_string()];
    home.program("chown", chown).run().success();
    run(&format!("chmod 775 ~ {plugin}; chmod -R g+w .config")).success();

    run(&format!("distant plugin add {plugin}")).success();
    let list = run("ls -ld ~ .local .local/share; distant plugin list").success();
    assert!(list.stdout.contains("drwxrwxr-x"), "{}", list.told());
    assert!(list.stdout.contains("hello"), "{}", list.told());
    run("distant plugin doctor hello").success();

    // With somebody else in it, it is no longer theirs alone.
    account.let_into_group("nobody");
    let refused = run("distant plugin list").code(1);
    assert!(refused.stderr.contains("its group may write to it"), "{}", refused.told());
}

#[test]
fn a_plugin_that_is_updated_during_a_launch_does_not_disturb_it() {
    let home = Home::new();
    let manager = Manager::start(&home);
    // A library, which the launch has mapped, and a script, which its shell is still reading.
    let library = |variant: &str| {
        let built = c_plugin(&home, "hostile.c", variant);
        let renamed = home.path("libdistant_plugin_hostile.so");
        fs::rename(built, &renamed).unwrap();
        renamed
    };
    let asking = |word: &str| {
        let text = format!(
            "#!/bin/sh\n\
             say() {{ printf '%s\\n' \"$1\"; }}\n\
             say '{{\"type\":\"hello\",\"protocol\":[1,1],\
             \"manifest\":{{\"name\":\"asking\",\"schemes\":[\"asking\"]}}}}'\n\
             read hello && read launch || exit\n\
             say '{{\"type\":\"ask\",\"id\":1,\"verification\":{{\"kind\":\"host\",\"text\":\"Sure?\"}}}}'\n\
             read answer\n\
             # {word}\n\
             say '{{\"type\":\"error\",\"kind\":\"other\",\"message\":\"{word}\"}}'\n"
        );
        home.script("distant-plugin-asking", &text)
    };
    let check = |first: PathBuf, second: &dyn Fn() -> PathBuf, destination: &str| {
        add(&home, &first).success();
        let launch = ["launch", destination, "--format", "json"];
        let options = ["--options", "variant=asks"];
        let options = if destination.starts_with("hostile") { &options[..] } else { &[] };
        let mut launch = home.ours(launch.iter().chain(options)).start();
        launch.say(r#"{"type":"auth_initialization_response","methods":["none"]}"#);
        while launch.json()["type"] != "auth_verification" {}
        add(&home, &second()).success();
        // The next launch has the new one already, while the first goes on with the old.
        let next = home.ours(["launch", destination, "--format", "json"]);
        let next = next.input(
            "{\"type\":\"auth_initialization_response\",\"methods\":[\"none\"]}\n\
                               {\"type\":\"auth_verification_response\",\"valid\":true}\n",
        );
        let next = next.run().code(1);
        assert!(next.stderr.contains("the second version"), "{}", next.told());
        launch.say(r#"{"type":"auth_verification_response","valid":true}"#);
        assert_eq!(launch.json()["msg"], "still here");
        assert_eq!(launch.finish().status.code(), Some(1));
    };
    check(library("FIRST"), &|| library("SECOND"), "hostile://x");
    check(asking("still here"), &|| asking("the second version"), "asking://x");
    drop(manager);
}
