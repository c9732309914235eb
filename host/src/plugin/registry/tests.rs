//! Which plugin a launch gets, and what a person reads where it gets none.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::plugin::listing::State;
use crate::plugin::support::{set_mode, Place};

async fn resolved(place: &Place, scheme: &str, backend: Option<&str>) -> String {
    match place.registry().resolve(scheme, backend).await {
        Ok(entry) => entry.name,
        Err(error) => {
            let hint = error.hint.clone().unwrap_or_default();
            format!("{} | {hint}", error.one_line())
                .replace(&place.path("").display().to_string(), "…/")
        }
    }
}

async fn listed(place: &Place) -> Vec<String> {
    let shown = |it: &Listed| {
        let schemes = it
            .schemes
            .iter()
            .map(|it| format!(" {}={}", it.name, it.used.as_deref().unwrap_or("nobody")));
        let state = match &it.state {
            State::Used => "used".to_owned(),
            State::Shadowed { by, .. } => format!("shadowed by {by}"),
            State::Changed { .. } => "changed".to_owned(),
            State::Disabled => "disabled".to_owned(),
            State::Broken { reason, mend } => {
                format!("broken: {reason} | {}", mend.as_deref().unwrap_or("-"))
            }
        };
        let line = format!("{} {state}{}", it.name, schemes.collect::<String>());
        line.replace(&place.path("").display().to_string(), "…/")
    };
    place.registry().list().await.unwrap().iter().map(shown).collect()
}

/// How often a script that counts its starts was started.
fn starts(place: &Place) -> usize {
    fs::read_to_string(place.path("starts")).unwrap_or_default().lines().count()
}

fn counting(place: &Place, path: &str, hello: &str) -> PathBuf {
    let counter = place.path("starts");
    place.script(path, &format!("echo start >>{}\n{hello}\nread -r end", counter.display()))
}

#[tokio::test]
async fn what_came_with_the_program_serves_its_schemes_until_another_is_chosen() {
    let place = Place::new();
    place.plugin("own", "ssh2", "ssh");
    place.plugin("own", "libssh", "ssh");
    place.plugin("user", "aaa", "ssh");
    place.plugin("user", "cloud", "cloud");

    assert_eq!(resolved(&place, "ssh", None).await, "ssh2");
    assert_eq!(resolved(&place, "SSH", Some("LIBSSH")).await, "libssh");
    assert_eq!(resolved(&place, "ssh", Some("aaa")).await, "aaa");
    assert_eq!(resolved(&place, "cloud", None).await, "cloud");
    assert_eq!(
        listed(&place).await,
        [
            "libssh shadowed by ssh2 ssh=ssh2",
            "ssh2 used ssh=ssh2",
            "aaa shadowed by ssh2 ssh=ssh2",
            "cloud used cloud=cloud",
        ]
    );

    let chosen = place.registry().choose("ssh", "aaa").await.unwrap();
    assert_eq!(chosen.name, "aaa");
    assert_eq!(resolved(&place, "ssh", None).await, "aaa");
    assert_eq!(resolved(&place, "ssh", Some("ssh2")).await, "ssh2");
    assert_eq!(listed(&place).await[1..3], ["ssh2 shadowed by aaa ssh=aaa", "aaa used ssh=aaa"]);
}

#[tokio::test]
async fn without_its_default_a_scheme_goes_to_the_first_that_serves_it() {
    let place = Place::new();
    place.plugin("user", "a", "ssh");
    place.plugin("user", "ssh2", "ssh");
    assert_eq!(resolved(&place, "ssh", None).await, "a");
    place.plugin("own", "zzz", "ssh");
    assert_eq!(resolved(&place, "ssh", None).await, "zzz");
}

#[tokio::test]
async fn a_file_with_the_name_of_a_built_in_plugin_does_not_replace_it() {
    let place = Place::new();
    place.plugin("own", "ssh2", "ssh");
    let intruder = place.plugin("user", "ssh2", "ssh");
    for backend in [None, Some("ssh2")] {
        let entry = place.registry().resolve("ssh", backend).await.unwrap();
        assert_eq!(entry.path, place.path("own/distant-plugin-ssh2"));
    }
    let expected = "ssh2 shadowed by ssh2 (…/own/distant-plugin-ssh2) ssh=ssh2";
    assert_eq!(listed(&place).await[1], expected);

    // A path that a person wrote down does.
    place.configure(&format!("[plugins.ssh2]\npath = \"{}\"\n", intruder.display()));
    let entry = place.registry().resolve("ssh", Some("ssh2")).await.unwrap();
    assert_eq!(entry.path, intruder);
}

#[tokio::test]
async fn a_broken_plugin_is_not_replaced_unasked() {
    let place = Place::new();
    set_mode(&place.plugin("own", "ssh2", "ssh"), 0o757);
    place.plugin("own", "libssh", "ssh");
    assert_eq!(
        resolved(&place, "ssh", None).await,
        "plugin `ssh2` cannot be used: `…/own/distant-plugin-ssh2`: bad ownership or modes for file \
         `…/own/distant-plugin-ssh2`: everybody may write to it (mode 0757) \
         | chmod go-w …/own/distant-plugin-ssh2"
    );
    assert_eq!(resolved(&place, "ssh", Some("libssh")).await, "libssh");
}

#[tokio::test]
async fn a_scheme_that_nobody_serves_is_told_with_the_nearest() {
    let place = Place::new();
    assert_eq!(
        resolved(&place, "ssh", None).await,
        "there is no plugin: searched `…/user`, `…/own` | `cargo build --release` puts those that \
         belong to `distant` beside it"
    );
    place.plugin("own", "ssh2", "ssh");
    place.plugin("own", "manager-local", "manager");
    let hint = "| the schemes there are: `manager`, `ssh`; searched `…/user`, `…/own`";
    assert_eq!(
        resolved(&place, "shs", None).await,
        format!("no plugin serves the scheme `shs`; did you mean `ssh`? {hint}")
    );
    assert_eq!(
        resolved(&place, "docker", None).await,
        format!("no plugin serves the scheme `docker` {hint}")
    );
    place.script("user/distant-plugin-docker", "exit 3");
    assert_eq!(
        resolved(&place, "docker", None).await,
        format!(
            "no plugin serves the scheme `docker`: plugin `docker` cannot be used: it \
             exited with status 3 before answering {}",
            hint.replace("| ", "| `distant plugin doctor docker` says what mends it; ")
        )
    );
}

#[tokio::test]
async fn an_unknown_backend_is_told_with_those_there_are() {
    let place = Place::new();
    place.plugin("own", "ssh2", "ssh");
    place.plugin("user", "mine", "ssh");
    place.plugin("own", "manager-local", "manager");
    let hint = "| those that do are `ssh2`, `mine`";
    for backend in ["putty", "manager-local"] {
        assert_eq!(
            resolved(&place, "ssh", Some(backend)).await,
            format!("no plugin `{backend}` serves the scheme `ssh` {hint}")
        );
    }
    place.configure("[use]\nssh = \"gone\"\n");
    assert_eq!(
        resolved(&place, "ssh", None).await,
        format!(
            "no plugin `gone` serves the scheme `ssh`: it was chosen in `…/config/plugins.toml` {hint}"
        )
    );
    assert_eq!(listed(&place).await[1], "ssh2 shadowed by gone ssh=nobody");
    assert!(place.registry().choose("ssh", "putty").await.is_err());
}

#[tokio::test]
async fn plugins_toml_decides_about_paths_pins_schemes_and_use() {
    let place = Place::new();
    let mine = place.script("elsewhere", "hello whatever ssh; read -r end");
    place.plugin("own", "ssh2", "ssh");
    let pin = hex::encode(Sha256::digest(fs::read(&mine).unwrap()));
    let text = format!("[plugins.mine]\npath = \"{}\"\nsha256 = \"{pin}\"\n", mine.display());

    place.configure(&text);
    assert_eq!(resolved(&place, "ssh", Some("mine")).await, "mine");
    assert_eq!(listed(&place).await, ["mine shadowed by ssh2 ssh=ssh2", "ssh2 used ssh=ssh2"]);

    place.configure(&format!("{text}[plugins.ssh2]\nenabled = false\n"));
    assert_eq!(resolved(&place, "ssh", None).await, "mine");
    assert_eq!(listed(&place).await, ["mine used ssh=mine", "ssh2 disabled"]);

    place.configure(&format!("{text}schemes = [\"other\"]\n"));
    assert!(resolved(&place, "ssh", Some("mine")).await.starts_with("no plugin `mine` serves"));

    place.configure(&text);
    place.script("elsewhere", "hello whatever ssh; read -r end # changed");
    let error = resolved(&place, "ssh", Some("mine")).await;
    assert!(error.contains("its SHA-256 is not the one in `plugins.toml`"), "{error}");

    place.configure("[plugins.mine]\npath = \"relative\"\n");
    let error = resolved(&place, "ssh", Some("mine")).await;
    assert!(error.contains("its path is not absolute"), "{error}");

    place.configure("[plugins\n");
    let error = resolved(&place, "ssh", None).await;
    assert!(error.starts_with("`…/config/plugins.toml` is not valid"), "{error}");
}

#[tokio::test]
async fn a_disabled_plugin_is_listed_but_never_run() {
    let place = Place::new();
    let ran = place.path("ran");
    place
        .script("own/distant-plugin-a", &format!(": >'{}'; hello a a; read -r end", ran.display()));
    place.configure("[plugins.a]\nenabled = false\n");
    assert!(listed(&place).await[0].starts_with("a disabled"));
    assert!(resolved(&place, "a", None).await.starts_with("no plugin serves the scheme"));
    assert!(!ran.exists());
}

#[tokio::test]
async fn trust_is_sshds_rule_outside_of_the_programs_own_folder() {
    let place = Place::new();
    let (own, user) = (place.plugin("own", "a", "a"), place.plugin("user", "b", "b"));
    // What a clone with a umask of 002 has.
    for path in [&own, &user, &place.path("own"), &place.path("user")] {
        set_mode(path, 0o775);
    }
    assert_eq!(resolved(&place, "a", None).await, "a");
    assert!(resolved(&place, "b", None).await.contains("bad ownership or modes for file"));
    set_mode(&user, 0o755);
    let error = resolved(&place, "b", None).await;
    assert!(error.contains("bad ownership or modes for directory `…/user`"), "{error}");
    let path = user.display();
    place.configure(&format!("[plugins.b]\npath = \"{path}\"\nallow_unsafe_path = true\n"));
    assert_eq!(resolved(&place, "b", None).await, "b");
}

#[tokio::test]
async fn a_link_is_as_good_as_what_it_leads_to_and_where_it_lies() {
    let place = Place::new();
    place.plugin("own", "a", "a");
    fs::rename(place.path("own/distant-plugin-a"), place.path("kept")).unwrap();
    symlink(place.path("kept"), place.path("own/distant-plugin-a")).unwrap();
    symlink(place.path("kept"), place.path("user/distant-plugin-a")).unwrap();
    assert_eq!(resolved(&place, "a", None).await, "a");
    // It is not in the program's own folder, so the full rule holds for it.
    set_mode(&place.path("kept"), 0o775);
    assert!(resolved(&place, "a", None).await.contains("its group may write to it"));

    set_mode(&place.path("kept"), 0o755);
    fs::remove_file(place.path("own/distant-plugin-a")).unwrap();
    assert_eq!(resolved(&place, "a", None).await, "a");
    set_mode(&place.path("user"), 0o777);
    let error = resolved(&place, "a", None).await;
    assert!(error.contains("bad ownership or modes for directory `…/user`"), "{error}");
}

#[tokio::test]
async fn what_is_broken_is_listed_with_the_reason_and_what_mends_it() {
    let place = Place::new();
    let script = |name: &str, body: &str| place.script(&format!("own/distant-plugin-{name}"), body);
    script("crash", "echo sorry >&2; kill -SEGV $$");
    script("lies", "hello truth x; read -r end");
    script(
        "nothing",
        r#"say '{"type":"hello","protocol":[1,1],"manifest":{"name":"nothing","schemes":[]}}'"#,
    );
    set_mode(&script("quiet", ""), 0o644);
    fs::write(place.path("own/libdistant_plugin_half.so"), b"\x7fELF").unwrap();
    set_mode(&place.path("own/libdistant_plugin_half.so"), 0o644);
    assert_eq!(
        listed(&place).await,
        [
            "half broken: it is no shared library | build it as a `cdylib`, or with `cc -shared`",
            "crash broken: it was killed by signal 11 (SIGSEGV): sorry | -",
            "lies broken: it calls itself `truth`, but its file is named for `lies` | give the file its name",
            "nothing broken: its manifest cannot be used: it serves no scheme | -",
            "quiet broken: it may not be executed | chmod +x …/own/distant-plugin-quiet",
        ]
    );
}

#[tokio::test]
async fn a_plugin_is_asked_once_until_its_file_changes() {
    let place = Place::new();
    counting(&place, "own/distant-plugin-a", "hello a a");
    let registry = place.registry();
    for _ in 0..3 {
        registry.resolve("a", None).await.unwrap();
        place.registry().resolve("a", None).await.unwrap();
    }
    assert_eq!(starts(&place), 1);

    // The same registry sees another file there, that is all of hot swap.
    counting(&place, "own/distant-plugin-a", "hello a b");
    assert!(registry.resolve("a", None).await.is_err());
    assert_eq!(registry.resolve("b", None).await.unwrap().name, "a");
    assert_eq!(starts(&place), 2);

    fs::write(&place.settings.cache, "damaged").unwrap();
    set_mode(&place.settings.cache, 0o600);
    place.registry().resolve("b", None).await.unwrap();
    assert_eq!(starts(&place), 3);
}

#[tokio::test]
async fn many_launches_at_once_ask_a_plugin_once() {
    let place = Place::new();
    counting(&place, "own/distant-plugin-a", "hello a a");
    let registry = place.registry();
    let all = join_all((0..20).map(|_| registry.resolve("a", None))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(starts(&place), 1);
}

#[tokio::test]
async fn nobody_waits_for_a_plugin_that_is_not_needed() {
    let place = Place::new();
    place.plugin("own", "ssh2", "ssh");
    counting(&place, "own/distant-plugin-aaa", "sleep 300");
    counting(&place, "user/distant-plugin-ssh", "sleep 300");
    assert_eq!(resolved(&place, "ssh", None).await, "ssh2");
    assert_eq!(starts(&place), 0);
}

#[tokio::test]
async fn a_failure_is_remembered_but_not_for_ever() {
    let place = Place::new();
    place.plugin("own", "b", "b");
    let switch = place.path("mended");
    let body = format!("test -e {} || exit 1; hello a a", switch.display());
    counting(&place, "own/distant-plugin-a", &body);
    let registry = place.registry();
    for _ in 0..3 {
        assert_eq!(registry.resolve("b", None).await.unwrap().name, "b");
    }
    assert_eq!(starts(&place), 1);
    // A launch that wants it asks again, but not twice.
    assert!(registry.resolve("a", None).await.is_err());
    assert_eq!(starts(&place), 2);
    assert!(place.registry().resolve("a", Some("a")).await.is_err());
    assert_eq!(starts(&place), 3);
    fs::write(&switch, "").unwrap();
    assert_eq!(registry.resolve("a", None).await.unwrap().name, "a");
}

#[tokio::test]
async fn describing_leaves_no_worker() {
    let place = Place::new();
    place.script("own/distant-plugin-a", "trap '' TERM; hello a a; while :; do sleep 1; done");
    let registry = place.registry();
    registry.resolve("a", None).await.unwrap();
    registry.workers_gone().await;
    assert_eq!(registry.workers_running(), 0);
}

#[tokio::test]
async fn a_disabled_plugin_is_said_to_be_disabled() {
    let place = Place::new();
    place.plugin("own", "ssh2", "ssh");
    place.plugin("user", "cloud", "cloud");
    place.configure("[plugins.cloud]\nenabled = false\n");
    let cause = "`…/config/plugins.toml` has `enabled = false` for it";
    assert_eq!(
        resolved(&place, "cloud", Some("cloud")).await,
        format!(
            "plugin `cloud` is disabled: {cause} | \
             remove `enabled = false` from `…/config/plugins.toml`"
        )
    );
    let unknown = resolved(&place, "cloud", None).await;
    let expected = "no plugin serves the scheme `cloud`: plugin `cloud` is disabled";
    assert!(unknown.starts_with(expected), "{unknown}");
}

#[tokio::test]
async fn an_executable_is_held_to_the_rules_that_a_library_is_built_by() {
    let place = Place::new();
    let option = r#"{"name":"Deep","type":"string"}"#;
    let hello = format!(
        r#"{{"type":"hello","protocol":[1,1],"manifest":{{"name":"x","schemes":["x"],"options":[{option}]}}}}"#
    );
    place.script("user/distant-plugin-x", &format!("say '{hello}'; read -r end"));
    let error = resolved(&place, "x", Some("x")).await;
    let expected = "its manifest cannot be used: the option `Deep` can never be given";
    assert!(error.contains(expected), "{error}");
}
