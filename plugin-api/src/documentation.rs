//! `docs/plugins.md` against the types: a member, a type or a word that one has and the other has not
//! is an error, as is an example that is no message.
//!
//! The literals here name every member and the matches every variant, so whoever adds one is led here
//! by the compiler.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::message::{
    Answer, Ask, AskKind, BindServer, Challenge, ErrorKind, Exec, HostHello, HostMessage,
    LaunchError, LaunchRequest, Log, LogLevel, Notice, Offer, PluginHello, PluginMessage, Progress,
    Question, Run, ServerCommand, Stage, Upload, Verdict, VerdictKind, Verification, Via,
};
use crate::options::{OptionSchema, OptionType, Schema};
use crate::secret::{Secret, SessionKey};
use crate::Manifest;

const GUIDE: &str = include_str!("../../docs/plugins.md");

/// What is below a heading, up to the next one that is not below it.
fn section(title: &str) -> &'static str {
    let level = title.split(' ').next().unwrap();
    let start = GUIDE.find(&format!("\n{title}\n")).unwrap_or_else(|| panic!("no `{title}`"));
    let text = &GUIDE[start + title.len() + 2..];
    let is_end = |line: &str| {
        let marks = line.split(' ').next().unwrap_or_default();
        !marks.is_empty() && marks.chars().all(|c| c == '#') && marks.len() <= level.len()
    };
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if is_end(line.trim_end()) {
            break;
        }
        end += line.len();
    }
    &text[..end]
}

/// The words in backticks of a table's first column, and whether they are in italics.
fn rows(section: &str) -> Vec<(String, bool)> {
    let lines = section.lines().skip_while(|line| !line.starts_with("|--"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| {
        let first = row.trim_start_matches("| ").split(" | ").next().unwrap();
        let is_needed = first.starts_with('*');
        first.split('`').skip(1).step_by(2).map(move |word| (word.to_owned(), is_needed))
    })
    .collect()
}

/// The lines of the examples in a section.
fn examples(section: &'static str) -> impl Iterator<Item = &'static str> {
    let blocks = section.split("```json\n").skip(1);
    blocks.flat_map(|block| block.split("```").next().unwrap().lines())
}

/// Finds each member of a value among those documented, or those of its members.
fn find(value: &Value, path: &str, documented: &[(String, bool)], found: &mut BTreeSet<String>) {
    if documented.iter().any(|(name, _)| name == path) {
        found.insert(path.to_owned());
        return;
    }
    let (members, path) = match value {
        Value::Array(items) if !path.is_empty() => (items.first(), format!("{path}[]")),
        _ => (Some(value), path.to_owned()),
    };
    match members {
        Some(Value::Object(members)) if !members.is_empty() => {
            for (name, value) in members {
                let dot = if path.is_empty() { "" } else { "." };
                find(value, &format!("{path}{dot}{name}"), documented, found);
            }
        }
        _ => panic!("`{path}` is not documented"),
    }
}

/// Compares a table with values that together have every member.
fn check_members<T: DeserializeOwned>(section: &'static str, title: &str, values: &[Value]) {
    let documented = rows(section);
    let mut found = BTreeSet::new();
    for value in values {
        let mut value = value.clone();
        let kind = match title {
            "" => None,
            _ => value.as_object_mut().unwrap().remove("type"),
        };
        if !value.as_object().unwrap().is_empty() {
            find(&value, "", &documented, &mut found);
        }
        let parse = |keep: &dyn Fn(&str) -> bool| {
            let members = value.as_object().unwrap().iter().filter(|(name, _)| keep(name));
            let mut members: serde_json::Map<_, _> =
                members.map(|(name, value)| (name.clone(), value.clone())).collect();
            members.extend(kind.clone().map(|kind| ("type".to_owned(), kind)));
            serde_json::from_value::<T>(Value::Object(members)).map(drop)
        };
        let needed: Vec<_> = documented.iter().filter(|(_, needed)| *needed).collect();
        for (name, _) in &needed {
            assert!(parse(&|it| it != name).is_err(), "{title}: `{name}` may be left out");
        }
        let has_parts = |it: &str| {
            let prefix = format!("{it}.");
            documented.iter().any(|(name, _)| name.starts_with(&prefix))
                || it == "challenge"
                || it == "reason"
        };
        let least = |it: &str| needed.iter().any(|(name, _)| name == it) || has_parts(it);
        parse(&least).unwrap_or_else(|error| panic!("{title}: what it says is needed: {error}"));
    }
    let stale: Vec<_> = documented.iter().filter(|(name, _)| !found.contains(name)).collect();
    assert!(stale.is_empty(), "{title}: {stale:?} is documented, but is none");
}

fn manifest() -> Manifest {
    let text = || "x".to_owned();
    Manifest {
        name: text(),
        version: text(),
        description: text(),
        schemes: vec![text()],
        options: Schema(vec![OptionSchema {
            name: text(),
            kind: OptionType::String,
            default: Some(text()),
            help: text(),
            secret: true,
            aliases: vec![text()],
        }]),
        runs_commands: true,
    }
}

/// Messages of a plugin that together have every kind and every member.
fn of_plugins() -> Vec<PluginMessage> {
    let text = || "x".to_owned();
    let question = Question { text: text(), label: text(), echo: true };
    let challenge = Challenge { questions: vec![question], instructions: text(), username: text() };
    let verification = Verification { kind: text(), text: text() };
    vec![
        PluginMessage::Hello(PluginHello { protocol: [1, 1], manifest: manifest() }),
        PluginMessage::Ask(Ask { id: 1, question: AskKind::Challenge(challenge) }),
        PluginMessage::Ask(Ask { id: 1, question: AskKind::Verification(verification) }),
        PluginMessage::Offer(Offer {
            id: 1,
            host: text(),
            port: 1,
            key: SessionKey::new([0; 32]),
            pid: Some(1),
            proof: true,
            hello: Some(text()),
            via: Via::Tunnel,
        }),
        PluginMessage::Run(Run {
            id: 1,
            argv: vec![text()],
            address: Some(text()),
            forward: vec![text()],
            stays: true,
            wait_ms: Some(1),
        }),
        PluginMessage::Notice(Notice { level: LogLevel::Warn, text: text() }),
        PluginMessage::Progress(Progress { stage: Stage::Start, done: 1, total: 2 }),
        PluginMessage::Log(Log { level: LogLevel::Warn, target: text(), text: text() }),
        PluginMessage::Done,
        PluginMessage::Error(LaunchError {
            kind: ErrorKind::Other,
            message: text(),
            causes: vec![text()],
            hint: Some(text()),
        }),
    ]
}

/// Messages of a host, likewise.
fn of_hosts() -> Vec<HostMessage> {
    let text = || "x".to_owned();
    let answer = Answer {
        id: 1,
        answers: Some(vec![Secret::new(text())]),
        valid: Some(true),
        cancelled: true,
    };
    let reason = text();
    vec![
        HostMessage::Hello(HostHello { protocol: 1, log_level: LogLevel::Info }),
        HostMessage::Launch(Box::new(LaunchRequest {
            destination: "mine://box".parse().unwrap(),
            options: Default::default(),
            server: ServerCommand {
                program: Some(text()),
                args: vec![text()],
                bind: BindServer::Any,
                upload: Some(Upload {
                    file: "/x".into(),
                    size: 1,
                    sha256: text(),
                    system: text(),
                    machine: text(),
                    always: true,
                }),
            },
            interactive: true,
            environment: Default::default(),
            cwd: Some("/".into()),
        })),
        HostMessage::Exec(Exec { id: 1, command: text() }),
        HostMessage::Answer(answer),
        HostMessage::Verdict(Verdict { id: 1, result: VerdictKind::Connected { by: Some(2) } }),
        HostMessage::Verdict(Verdict { id: 1, result: VerdictKind::Unreachable { reason } }),
        HostMessage::Cancel,
    ]
}

/// Compares all of one direction: headings, tables and examples.
fn check_direction<T: serde::Serialize + DeserializeOwned>(title: &str, messages: &[T]) {
    let values: Vec<_> = messages.iter().map(|it| serde_json::to_value(it).unwrap()).collect();
    let kind = |value: &Value| value["type"].as_str().unwrap().to_owned();
    let kinds: BTreeSet<_> = values.iter().map(kind).collect();
    let whole = section(title);
    let headings = whole.lines().filter_map(|it| it.strip_prefix("#### `")?.strip_suffix('`'));
    let headings: BTreeSet<_> = headings.map(str::to_owned).collect();
    assert_eq!(headings, kinds, "{title}");
    for name in &kinds {
        // `hello` is there in both directions.
        let start = whole.find(&format!("#### `{name}`\n")).unwrap();
        let part = &whole[start + 4..];
        let part = part.find("\n#### ").map_or(part, |end| &part[..end]);
        let of_kind: Vec<_> = values.iter().filter(|it| kind(it) == *name).cloned().collect();
        check_members::<T>(part, &format!("{title}, {name}"), &of_kind);
        assert!(examples(part).count() > 0, "{title}: no example of `{name}`");
        for line in examples(part) {
            let given: Value = serde_json::from_str(line).unwrap();
            let read: T = serde_json::from_str(line).unwrap_or_else(|it| panic!("{it}: {line}"));
            let read = serde_json::to_value(&read).unwrap();
            for (member, value) in given.as_object().unwrap() {
                let is_same = read[member] == *value || read[member].is_object();
                assert!(is_same, "`{member}` of {line} reads as {}", read[member]);
            }
        }
    }
}

#[test]
fn the_guide_has_every_message_with_every_member_and_an_example() {
    // Whoever adds a variant adds it to the messages above too.
    let _ = |message: &PluginMessage| match message {
        PluginMessage::Hello(_) | PluginMessage::Ask(_) | PluginMessage::Offer(_) => (),
        PluginMessage::Notice(_) | PluginMessage::Run(_) | PluginMessage::Progress(_) => (),
        PluginMessage::Log(_) | PluginMessage::Done | PluginMessage::Error(_) => (),
        PluginMessage::Other => (),
    };
    let _ = |message: &HostMessage| match message {
        HostMessage::Hello(_) | HostMessage::Launch(_) | HostMessage::Answer(_) => (),
        HostMessage::Verdict(_) | HostMessage::Exec(_) | HostMessage::Cancel => (),
        HostMessage::Other => (),
    };
    check_direction("### From the plugin", &of_plugins());
    check_direction("### From the host", &of_hosts());
}

#[test]
fn the_guide_has_every_member_of_a_manifest_and_its_options() {
    let value = serde_json::to_value(manifest()).unwrap();
    check_members::<Manifest>(section("## The manifest"), "", std::slice::from_ref(&value));
    let option = &value["options"][0];
    check_members::<OptionSchema>(section("## Options"), "", std::slice::from_ref(option));
    for line in examples(section("## The manifest")) {
        let read: Manifest = serde_json::from_str(line).unwrap();
        read.check().unwrap();
        let given: Value = serde_json::from_str(line).unwrap();
        assert_eq!(given["options"][0]["type"], serde_json::json!({"enum": ["small", "large"]}));
        assert_eq!(given["schemes"], serde_json::to_value(&read.schemes).unwrap());
    }
}

/// Compares a table of words with the values of a type.
fn check_words<T: serde::Serialize>(section: &str, values: &[T]) {
    let word = |value: &T| match serde_json::to_value(value).unwrap() {
        Value::String(word) => word,
        Value::Object(members) => members.keys().next().unwrap().clone(),
        other => panic!("{other}"),
    };
    let expected: BTreeSet<_> = values.iter().map(word).collect();
    let documented: BTreeSet<_> = rows(section).into_iter().map(|(name, _)| name).collect();
    assert_eq!(documented, expected);
}

#[test]
fn the_guide_has_every_word_of_every_list() {
    use ErrorKind as E;
    use LogLevel as L;
    use OptionType as O;
    use Stage as S;
    let _ = |it: E| match it {
        E::InvalidOption | E::Unresolved | E::Unreachable | E::HostKey | E::Authentication => (),
        E::ServerNotFound | E::ServerNotStarted | E::PortUnreachable | E::TimedOut => (),
        E::Cancelled | E::Plugin | E::Other => (),
    };
    let kinds = [
        [E::InvalidOption, E::Unresolved, E::Unreachable, E::HostKey, E::Authentication, E::Other],
        [
            E::ServerNotFound,
            E::ServerNotStarted,
            E::PortUnreachable,
            E::TimedOut,
            E::Cancelled,
            E::Plugin,
        ],
    ];
    check_words(section("### Error kinds"), &kinds.concat());
    let _ = |it: S| match it {
        S::Allocate | S::Resolve | S::Connect | S::HostKey | S::Authenticate | S::Probe => (),
        S::Upload | S::Start | S::Offer | S::Wait | S::Other => (),
    };
    let stages = [
        [S::Wait; 3],
        [S::Allocate, S::Resolve, S::Connect],
        [S::HostKey, S::Authenticate, S::Probe],
        [S::Upload, S::Start, S::Offer],
    ];
    check_words(section("### Stages"), &stages.concat());
    let _ = |it: L| match it {
        L::Off | L::Error | L::Warn | L::Info | L::Debug | L::Trace => (),
    };
    let levels = [L::Off, L::Error, L::Warn, L::Info, L::Debug, L::Trace];
    check_words(section("### Levels"), &levels);
    let _ = |it: O| match it {
        O::String | O::Bool | O::DurationMs | O::Path | O::PathList | O::Enum(_) | O::Port => (),
        O::Other => (),
    };
    let types = [O::String, O::Bool, O::DurationMs, O::Path, O::PathList, O::Enum(vec![]), O::Port];
    let options = section("## Options");
    check_words(&options[options.find("| type | a value is |").unwrap()..], &types);

    let _ = |it: &VerdictKind| match it {
        VerdictKind::Connected { .. } | VerdictKind::Slow => (),
        VerdictKind::Unreachable { .. } | VerdictKind::Refused { .. } | VerdictKind::Other => (),
    };
    assert!(section("### From the host").contains("`connected`, `slow`, `unreachable`, `refused`;"));
    let _ = |it: Via| match it {
        Via::Direct | Via::Tunnel => (),
    };
    assert!(section("### From the plugin").contains("| `via` | `direct`, `tunnel` |"));
    for owned in crate::HOST_OPTIONS {
        assert!(options.contains(&format!("`{owned}`")), "{owned}");
    }
}

#[test]
fn the_guide_says_the_limits_that_this_crate_has() {
    let limits = section("## Limits");
    assert_eq!(crate::message::MESSAGE_MAX, 1024 * 1024);
    assert!(limits.contains("| a message, its newline included | 1 MiB |"));
    assert_eq!(crate::bootstrap::START_LIMIT.as_secs(), 15);
    assert!(limits.contains("to the connect line | 15 s, or `wait_ms`"));
}
