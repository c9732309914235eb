//! Plugins in C that mean harm: each ends its own launch, and the manager does not even notice.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::abi::c_plugin;
use crate::support::{eventually, Home, Manager};

/// What a plugin does, and what its launch says of it.
const VARIANTS: [(&str, &str); 19] = [
    ("no_result", "the plugin failed without saying why"),
    ("odd_status", "the plugin failed without saying why"),
    ("two_results", "still here"),
    ("late_callbacks", "still here"),
    ("no_json", "caused by: its message is no JSON"),
    ("not_utf8", "caused by: its message cannot be read: it is not UTF-8"),
    ("huge", "it has 1073741824 bytes, more than 1048576"),
    ("exit", "status 0"),
    ("segv", "signal 11 (SIGSEGV)"),
    ("overflow", "signal 6 (SIGABRT)"),
    ("abort", "signal 6 (SIGABRT)"),
    ("hang", "plugin `hostile` came to no end within"),
    ("spin", "plugin `hostile` came to no end within"),
    ("deaf", "plugin `hostile` came to no end within"),
    ("noise", "still here"),
    ("close", "still here"),
    ("fork", "still here"),
    ("surroundings", "still here"),
    ("none", "still here"),
];

/// Puts a library into the home's folder for plugins of one's own.
fn install(home: &Home, library: &Path, name: &str) {
    let folder = home.path("data/distant/plugins");
    fs::create_dir_all(&folder).unwrap();
    for folder in folder.ancestors().take(3) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let place = folder.join(format!("libdistant_plugin_{name}.so"));
    fs::rename(library, &place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn a_hostile_plugin_ends_its_own_launch_and_nothing_else() {
    let home = Home::new();
    home.write("config/distant/config.toml", "[manager.limits]\nplugin = 2\n");
    install(&home, &c_plugin(&home, "hostile.c", "ANY"), "hostile");
    let manager = Manager::start(&home);
    let (pid, umask) = (manager.pid(), status(manager.pid(), "Umask:"));
    for (variant, said) in VARIANTS {
        let options = format!("variant={variant}");
        let launch = home.ours(["launch", "hostile://x", "--options", &options]).run().code(1);
        assert_eq!(launch.stdout, "", "{variant}");
        assert!(launch.stderr.contains(said), "{variant}, no `{said}`: {}", launch.told());
        let errors = launch.stderr.lines().filter(|line| line.starts_with("error: "));
        assert_eq!(errors.count(), 1, "{variant}: {}", launch.told());
        eventually("the end of the worker", || manager.offspring().is_empty().then_some(()));
        assert_eq!(manager.pid(), pid, "{variant}");
    }
    assert_eq!(status(pid, "Umask:"), umask);
    home.ours(["launch", "manager://localhost"]).run().id();
}

fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
}

#[test]
fn a_library_that_does_harm_while_it_is_loaded_is_listed_as_broken() {
    let home = Home::new();
    let limit = "[plugins.constructor-hang]\ntimeout = 500\n";
    let config = home.write("config/distant/plugins.toml", limit);
    fs::set_permissions(config, fs::Permissions::from_mode(0o600)).unwrap();
    for (variant, reason) in [
        ("CONSTRUCTOR_HANG", "it said nothing within 500ms of its start"),
        ("CONSTRUCTOR_CRASH", "it was killed by signal 11 (SIGSEGV)"),
        ("TRUNCATED", "its table has 40 bytes, fewer than the 48 that every version has"),
        ("MAGIC", "not with the magic number of plugins"),
        ("NULL_LAUNCH", "its table has no `launch`"),
    ] {
        let name = variant.to_lowercase();
        install(&home, &c_plugin(&home, "table.c", variant), &name);
        let listed = home.ours(["plugin", "list", "--json"]).run().success();
        let all: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
        let name = name.replace('_', "-");
        let it = all.iter().find(|it| it["name"] == name.as_str()).unwrap();
        assert_eq!(it["state"], "broken", "{it}");
        assert!(it["reason"].as_str().unwrap().contains(reason), "{it}");
    }
}
