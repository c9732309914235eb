//! The C tables: the header says what Rust says, and what is no table of ours is refused.

use std::mem::{align_of, offset_of, size_of};
use std::process::Command;

use distant_plugin_api::abi::{
    CallerTable, PluginTable, Status, Text, ABI_MAJOR, ABI_MINOR, PLUGIN_MAGIC, ROOT_SYMBOL, SYMBOL,
};
use distant_plugin_api::message::MESSAGE_MAX;
use serde_json::json;

use super::{c_plugin, c_template, told, Worker, KEY};
use crate::support::{programs, repository, Home};

#[test]
fn the_header_and_rust_agree_on_every_offset_size_and_constant() {
    let members = |name: &str, members: &[(&str, usize)]| {
        let offset = |(member, offset): &(&str, usize)| {
            (format!("offsetof({name}, {member})"), *offset as u64)
        };
        members.iter().map(offset).collect::<Vec<_>>()
    };
    let size = |name: &str, size: usize, align: usize| {
        vec![(format!("sizeof({name})"), size as u64), (format!("_Alignof({name})"), align as u64)]
    };
    let constant = |name: &str, value: u64| vec![(name.to_owned(), value)];
    let expected: Vec<(String, u64)> = [
        size("distant_text", size_of::<Text>(), align_of::<Text>()),
        members("distant_text", &[("ptr", offset_of!(Text, ptr)), ("len", offset_of!(Text, len))]),
        size("distant_status", size_of::<Status>(), align_of::<Status>()),
        size("distant_caller", size_of::<CallerTable>(), align_of::<CallerTable>()),
        members(
            "distant_caller",
            &[
                ("struct_size", offset_of!(CallerTable, struct_size)),
                ("context", offset_of!(CallerTable, context)),
                ("send", offset_of!(CallerTable, send)),
                ("is_cancelled", offset_of!(CallerTable, is_cancelled)),
                ("cancel_fd", offset_of!(CallerTable, cancel_fd)),
                ("log_level", offset_of!(CallerTable, log_level)),
            ],
        ),
        size("distant_plugin", size_of::<PluginTable>(), align_of::<PluginTable>()),
        members(
            "distant_plugin",
            &[
                ("magic", offset_of!(PluginTable, magic)),
                ("abi_major", offset_of!(PluginTable, abi_major)),
                ("abi_minor", offset_of!(PluginTable, abi_minor)),
                ("struct_size", offset_of!(PluginTable, struct_size)),
                ("manifest", offset_of!(PluginTable, manifest)),
                ("launch", offset_of!(PluginTable, launch)),
            ],
        ),
        constant("DISTANT_PLUGIN_MAGIC", PLUGIN_MAGIC),
        constant("DISTANT_ABI_MAJOR", ABI_MAJOR.into()),
        constant("DISTANT_ABI_MINOR", ABI_MINOR.into()),
        constant("DISTANT_MESSAGE_MAX", MESSAGE_MAX as u64),
        constant("DISTANT_OK", Status::OK.0 as u64),
        constant("DISTANT_FAILED", Status::FAILED.0 as u64),
        constant("DISTANT_CANCELLED", Status::CANCELLED.0 as u64),
        constant("DISTANT_MALFORMED", Status::MALFORMED.0 as u64),
    ]
    .concat();

    let home = Home::new();
    let lines = expected.iter().map(|(expression, _)| {
        format!(
            "    printf(\"%s %llu\\n\", \"{expression}\", (unsigned long long)({expression}));\n"
        )
    });
    let source = format!(
        "#include <stdio.h>\n#include \"distant_plugin.h\"\nint main(void) {{\n{}}}\n",
        lines.collect::<String>()
    );
    let source = home.write("layout.c", source);
    let built = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wpedantic", "-I"])
        .arg(repository().join("plugin-api/include"))
        .arg(&source)
        .arg("-o")
        .arg(home.path("layout"))
        .status()
        .unwrap();
    assert!(built.success());
    let printed = home.program(home.path("layout"), [""; 0]).run().success().stdout;

    let expected = expected.iter().map(|(name, value)| format!("{name} {value}\n"));
    assert_eq!(printed, expected.collect::<String>());
}

#[test]
fn the_header_names_the_symbol_that_the_host_looks_for() {
    let header = repository().join("plugin-api/include/distant_plugin.h");
    let header = std::fs::read_to_string(header).unwrap();
    assert!(header.contains(&format!("const distant_plugin *{SYMBOL}(void);")), "{SYMBOL}");
}

/// Loads a variant and runs its launch, which sends one notice.
fn launches(variant: &str) {
    let home = Home::new();
    let library = c_plugin(&home, "table.c", variant);
    let mut worker = Worker::start_in(home, &library);
    assert_eq!(worker.greet()["name"], "c");
    worker.launch(json!({}));
    assert_eq!(worker.next()["text"], "launched");
    worker.succeeds();
}

#[test]
fn a_table_of_this_minor_loads_and_launches() {
    launches("NONE");
}

#[test]
fn a_table_cut_after_launch_by_the_minor_before_loads_and_launches() {
    launches("MINOR_BEFORE");
}

#[test]
fn a_table_that_the_next_minor_made_longer_loads_and_launches() {
    launches("MINOR_AFTER");
}

#[test]
fn a_library_that_is_no_plugin_for_this_host_is_refused_in_one_line() {
    let check = |variant: &str, expected: &str| {
        let home = Home::new();
        let library = c_plugin(&home, "table.c", variant);
        let worker = Worker::start_in(home, &library);
        let error = worker.running.json();
        assert_eq!(error["type"], "error", "{variant}: {error}");
        let (kind, text) = told(&error);
        assert_eq!(kind, "plugin", "{variant}");
        assert_eq!(text.replace(library.to_str().unwrap(), "PATH"), expected, "{variant}");
        worker.end().success();
    };
    check("NO_SYMBOL", "`PATH` is not a distant plugin: it has no symbol `distant_plugin_v1`");
    check("NULL_TABLE", "`PATH` is not a distant plugin: its table is null");
    check(
        "MAGIC",
        "`PATH` is not a distant plugin: \
         its table starts with 0x0000000000001234, not with the magic number of plugins",
    );
    check(
        "MAJOR",
        "`PATH` was built for another version of distant: \
         it has plugin ABI 2.1, this program has 1.1",
    );
    check(
        "TRUNCATED",
        "`PATH` is not a distant plugin: \
         its table has 40 bytes, fewer than the 48 that every version has",
    );
    check("NULL_LAUNCH", "`PATH` is not a distant plugin: its table has no `launch`");
    check("NOT_UTF8", "the manifest of `PATH` cannot be read: it is not UTF-8");
    check(
        "HUGE_LENGTH",
        "the manifest of `PATH` cannot be read: it has 1073741824 bytes, more than 1048576",
    );
    check("NULL_MANIFEST", "the manifest of `PATH` cannot be read: its address is null");
    check(
        "BAD_MANIFEST",
        "the manifest of `PATH` cannot be read: expected ident at line 1 column 2",
    );
}

#[test]
fn a_file_that_is_no_library_is_refused_with_its_name() {
    let home = Home::new();
    let text = home.write("libdistant_plugin_text.so", "not ELF, just text that is long enough");
    let worker = Worker::start_in(home, &text);
    let (kind, error) = told(&worker.running.json());
    let shown = text.display();
    assert_eq!(
        (kind.as_str(), error),
        ("plugin", format!("cannot load `{shown}`: {shown}: file too short"))
    );
    worker.end().success();
}

#[test]
fn c_alone_is_enough_to_launch_a_server() {
    let home = Home::new();
    let library = c_template(&home);
    let server = home.script(
        "a \"server\"",
        &format!(
            "#!/bin/sh\necho \"$@\" >args\necho Welcome\necho distant://:{KEY}@127.0.0.1:8080\n\
             exec sleep 1000\n"
        ),
    );
    let mut worker = Worker::start_in(home, &library);
    assert_eq!(worker.greet()["schemes"], json!(["program"]));
    worker.say(json!({
        "type": "launch",
        "destination": "program://box",
        "options": {"program": "another"},
        "server": {"args": ["]}\"", "{"], "program": server, "bind": "any"},
    }));

    let offer = worker.next();
    assert_eq!(offer["host"], "127.0.0.1");
    assert_eq!(offer["port"], 8080);
    assert_eq!(offer["key"], KEY);
    assert_eq!(
        std::fs::read_to_string(worker.home.path("args")).unwrap(),
        "server listen --host 127.0.0.1 ]}\" {\n"
    );
    worker.say(json!({"type": "verdict", "id": offer["id"], "verdict": "slow"}));
    worker.say(json!({"type": "verdict", "id": offer["id"], "verdict": "connected"}));
    worker.say(json!({"type": "cancel"}));

    // The home finds out whether the server is gone.
    worker.succeeds();
}

#[test]
fn a_c_plugin_kills_the_server_that_cannot_be_reached() {
    let home = Home::new();
    let library = c_template(&home);
    let server = home.script(
        "server",
        &format!("#!/bin/sh\necho distant://:{KEY}@127.0.0.1:8080\nexec sleep 1000\n"),
    );
    let mut worker = Worker::start_in(home, &library);
    worker.greet();
    worker.say(json!({
        "type": "launch", "destination": "program://box", "server": {"program": server},
    }));
    let id = worker.next()["id"].clone();
    worker.say(json!({"type": "verdict", "id": id, "verdict": "unreachable", "reason": "no"}));
    let expected = ("port_unreachable".to_owned(), "the server cannot be reached".to_owned());
    assert_eq!(worker.fails(), expected);
}

#[test]
fn a_rust_plugin_exports_its_two_symbols_and_nothing_else() {
    for library in programs().plugins() {
        let listed =
            Command::new("nm").args(["-D", "--defined-only"]).arg(library).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let mut symbols: Vec<_> =
            listed.lines().filter_map(|line| line.split(' ').nth(2)).collect();
        symbols.sort_unstable();
        // A library without the second one would be taken without a look at its layout.
        assert_eq!(symbols, [ROOT_SYMBOL, SYMBOL], "{}", library.display());
    }
}
