//! Which plugins there are, and which one a launch gets: with real files, as a person sees it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{copy_executable, programs, Home, Manager};

/// A home with a folder for plugins of the user's own.
fn home() -> (Home, PathBuf) {
    let home = Home::new();
    let folder = home.path("data/distant/plugins");
    fs::create_dir_all(&folder).unwrap();
    for folder in folder.ancestors().take(3) {
        set_mode(folder, 0o755);
    }
    (home, folder)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// An executable plugin that says only which one it is.
fn script(home: &Home, name: &str, scheme: &str) -> PathBuf {
    let manifest = format!(r#"{{"name":"{name}","schemes":["{scheme}"]}}"#);
    let text = format!(
        "#!/bin/sh\n\
         echo '{{\"type\":\"hello\",\"protocol\":[1,1],\"manifest\":{manifest}}}'\n\
         read hello && read launch || exit\n\
         echo '{{\"type\":\"error\",\"kind\":\"other\",\"message\":\"this is {name}\"}}'\n"
    );
    home.script(&format!("data/distant/plugins/distant-plugin-{name}"), &text)
}

fn list(home: &Home) -> Vec<Value> {
    let listed = home.ours(["plugin", "list", "--json"]).run().success();
    let Value::Array(all) = serde_json::from_str(&listed.stdout).unwrap() else { panic!() };
    all
}

fn named<'a>(all: &'a [Value], name: &str) -> &'a Value {
    all.iter().find(|it| it["name"] == name).unwrap()
}

#[test]
fn a_broken_library_is_listed_with_the_reason_and_a_command_that_mends_it() {
    let (home, folder) = home();
    let library = programs().plugin("faulty");
    let content = fs::read(library).unwrap();
    let put = |name: &str, content: &[u8], mode: u32| {
        let path = folder.join(format!("libdistant_plugin_{name}.so"));
        fs::write(&path, content).unwrap();
        set_mode(&path, mode);
    };
    put("open", &content, 0o777);
    put("half", &content[..content.len() / 2], 0o755);
    put("empty", b"", 0o755);
    let mut foreign = content.clone();
    foreign[18..20].copy_from_slice(&22_u16.to_ne_bytes());
    put("foreign", &foreign, 0o755);
    put("faulty", &content, 0o755);

    let all = list(&home);

    let broken = |name: &str, reason: &str| {
        let it = named(&all, name);
        assert_eq!(it["state"], "broken", "{it}");
        assert!(it["reason"].as_str().unwrap().contains(reason), "{it}");
        it["mend"].as_str().unwrap_or_default().to_owned()
    };
    broken("half", "it is cut short");
    broken("empty", "it is empty");
    broken("foreign", "it is for S/390");
    let mend = broken("open", "bad ownership or modes for file");
    let local = named(&all, "manager-local");
    assert_eq!((&local["state"], &local["kind"]), (&"used".into(), &"library".into()));

    assert!(Command::new("sh").arg("-c").arg(&mend).status().unwrap().success(), "{mend}");
    // What is left to say of it is that it is a copy under another name.
    broken_now(&home, "open", "it calls itself `faulty`, but its file is named for `open`");

    let shown = home.ours(["plugin", "list"]).run().success().stdout;
    assert!(shown.starts_with("NAME "), "{shown}");
    assert!(
        shown.contains("\n  reason: it is empty\n  mend: build it or copy it again\n"),
        "{shown}"
    );
}

fn broken_now(home: &Home, name: &str, reason: &str) {
    let all = list(home);
    let it = named(&all, name);
    assert_eq!((&it["state"], &it["reason"]), (&"broken".into(), &reason.into()));
}

#[test]
fn a_plugin_that_turns_up_gets_no_launch_until_it_is_chosen() {
    let (home, _) = home();
    let manager = Manager::start(&home);
    home.ours(["launch", "manager://localhost"]).run().id();
    script(&home, "mine", "manager");
    let pid = manager.pid();

    home.ours(["launch", "manager://localhost"]).run().id();
    let shadowed = &list(&home);
    assert_eq!(named(shadowed, "mine")["state"], "shadowed");
    assert_eq!(named(shadowed, "mine")["by"], "manager-local");
    let chosen = ["launch", "manager://localhost", "--options", "manager.backend=mine"];
    assert!(home.ours(chosen).run().code(1).stderr.contains("this is mine"));

    let path = home.write("config/distant/plugins.toml", "# my own words\n");
    set_mode(&path, 0o600);
    home.ours(["plugin", "use", "manager=nobody"]).run().code(1);
    home.ours(["plugin", "use", "other=mine"]).run().code(1);
    home.ours(["plugin", "use", "manager"]).run().code(2);
    assert_eq!(fs::read_to_string(&path).unwrap(), "# my own words\n");
    home.ours(["plugin", "use", "manager=mine"]).run().success();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("# my own words\n") && text.contains("manager = \"mine\"\n"), "{text}");

    let launch = home.ours(["launch", "manager://localhost"]).run().code(1);
    assert!(launch.stderr.contains("this is mine"), "{}", launch.told());
    let built_in = ["launch", "manager://localhost", "--options", "backend=manager-local"];
    home.ours(built_in).run().id();
    assert_eq!(manager.pid(), pid);
}

#[test]
fn every_option_of_a_plugin_is_described() {
    let (home, _) = home();
    let shown = home.ours(["plugin", "info", "manager-local"]).run().success().stdout;
    for fact in ["schemes      manager\n", "  distant.bin: text\n", "  timeout: a whole number"] {
        assert!(shown.contains(fact), "{shown}");
    }
    let shown = home.ours(["plugin", "info", "manager-local", "--json"]).run().success().stdout;
    let plugin: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(plugin["manifest"]["options"][0]["name"], "distant.bin");

    let unknown = home.ours(["plugin", "info", "manager-locla", "--json"]).run().code(1);
    let error: Value = serde_json::from_str(&unknown.stdout).unwrap();
    assert_eq!(error["msg"], "there is no plugin `manager-locla`; did you mean `manager-local`?");
}

#[test]
fn a_program_without_any_plugin_says_where_it_looked_and_what_to_build() {
    let (home, folder) = home();
    let alone = home.path("alone/distant");
    fs::create_dir(alone.parent().unwrap()).unwrap();
    copy_executable(&programs().distant, &alone);
    let listed = home.program(&alone, ["plugin", "list"]).run().success();
    assert!(listed.stderr.contains(&folder.display().to_string()), "{}", listed.told());

    let launch = home.program(&alone, ["launch", "manager://localhost"]).run().code(1);
    for said in [
        "there is no plugin",
        "cargo build --release",
        &alone.parent().unwrap().display().to_string(),
    ] {
        assert!(launch.stderr.contains(said), "{said}: {}", launch.told());
    }
    home.program(&alone, ["manager", "stop"]).run().success();
}

#[test]
fn the_plugin_commands_are_configured_as_the_manager_is() {
    let (home, _folder) = home();
    home.script("data/distant/plugins/distant-plugin-mute", "#!/bin/sh\nexec sleep 1000\n");
    home.write("config/distant/config.toml", "[manager.worker]\nhello = 0.25\n");
    let reason = named(&list(&home), "mute")["reason"].clone();
    assert_eq!(reason, "it said nothing within 250ms of its start");
    let mend = named(&list(&home), "mute")["mend"].clone();
    assert!(mend.as_str().unwrap().contains("flush each line"), "{mend}");

    let named_here = script(&home, "other", "other");
    let elsewhere = home.path("elsewhere/distant-plugin-other");
    fs::create_dir(elsewhere.parent().unwrap()).unwrap();
    set_mode(elsewhere.parent().unwrap(), 0o755);
    fs::rename(named_here, &elsewhere).unwrap();
    // Relative, and on either side of the command: it is the folder that the person is in.
    for line in [
        ["plugin", "--plugin", "mine=elsewhere/distant-plugin-other", "info", "mine", "--json"],
        ["plugin", "info", "mine", "--json", "--plugin", "mine=elsewhere/distant-plugin-other"],
    ] {
        let shown = home.ours(line).run().success();
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown["state"], "used", "{shown}");
        assert_eq!(Path::new(shown["path"].as_str().unwrap()), elsewhere.canonicalize().unwrap());
    }
}

#[test]
fn each_command_about_plugins_answers_in_json() {
    let (home, folder) = home();
    let plugin = script(&home, "mine", "mine");
    let built = home.path("distant-plugin-mine");
    fs::rename(&plugin, &built).unwrap();
    let built = built.display().to_string();
    let answer = |words: &[&str]| {
        let finished = home.ours(["plugin"]).args(words).arg("--json").run().success();
        assert_eq!(finished.stderr, "", "{}", finished.told());
        serde_json::from_str::<Value>(&finished.stdout).unwrap()
    };
    let place = folder.join("distant-plugin-mine");
    assert_eq!(answer(&["add", &built])["path"], place.to_str().unwrap());
    assert_eq!(named(answer(&["list"]).as_array().unwrap(), "mine")["state"], "used");
    assert_eq!(answer(&["info", "mine"])["manifest"]["schemes"][0], "mine");
    let used = answer(&["use", "mine=mine"]);
    assert_eq!((&used["scheme"], &used["plugin"]), (&"mine".into(), &"mine".into()));
    assert_eq!(answer(&["doctor", "mine"])["well"], true);
    assert!(answer(&["test", "--list"])[0]["case"].is_string());
    assert_eq!(answer(&["test", &built, "--only", "load.hello"])["good"], true);
    let new = answer(&["new", "other", "--lang", "sh"]);
    assert!(Path::new(new["files"][0].as_str().unwrap()).is_file(), "{new}");
    assert_eq!(answer(&["remove", "mine"])["files"][0], place.to_str().unwrap());

    // What goes wrong is one too, and a line for people beside it.
    for words in [
        &["add", "/nowhere"][..],
        &["info", "nobody"],
        &["use", "mine=nobody"],
        &["doctor", "nobody"],
        &["test", "/nowhere"],
        &["new", "other", "--lang", "sh"],
        &["remove", "nobody"],
    ] {
        let failed = home.ours(["plugin"]).args(words).arg("--json").run().code(1);
        let error: Value = serde_json::from_str(&failed.stdout).unwrap();
        assert_eq!(error["type"], "error", "{}", failed.told());
        assert!(failed.stderr.starts_with("error: "), "{}", failed.told());
    }
}
