//! Messages as no program sends them, to a manager and to a server that really run.
//!
//! Whatever comes, the answer is a reply that says so or a closed connection, at once; others go on
//! undisturbed, and nothing is kept of it.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{json, Value};

use crate::support::wire::{pack, Wire};
use crate::support::{eventually, Home, Look, Manager, Server};

/// How long an end may take to react to nonsense.
const AT_ONCE: Duration = Duration::from_secs(10);

/// One of the two that are spoken to.
enum Target<'a> {
    Manager(&'a Manager),
    Server(&'a Server),
}

impl Target<'_> {
    fn pid(&self) -> u32 {
        match self {
            Self::Manager(manager) => manager.pid(),
            Self::Server(server) => server.process.pid(),
        }
    }

    /// A connection on which nothing was said yet.
    fn open(&self) -> Wire {
        match self {
            Self::Manager(manager) => Wire::open_manager(manager.socket()),
            Self::Server(server) => Wire::open_server(server.address),
        }
    }

    /// A connection that is ready for requests.
    fn ready(&self) -> Wire {
        match self {
            Self::Manager(manager) => Wire::manager(manager.socket()),
            Self::Server(server) => Wire::server(server.address, &server.key),
        }
    }

    /// A request that each can be asked.
    fn assert_works(&self) {
        let version = self.ready().ask("works", &json!({"type": "version"})).unwrap();
        assert_eq!(version["type"], "version", "{version}");
    }
}

/// Runs a test against a manager and against a server, and then looks whether they are as before.
fn with_each(test: impl Fn(&Target<'_>)) {
    let home = Home::new();
    let (server, manager) = (Server::start(&home), Manager::start(&home));
    for target in [Target::Manager(&manager), Target::Server(&server)] {
        target.assert_works();
        let files = |target: &Target<'_>| Look::open(target.pid()).len();
        let (before, memory) = (files(&target), Look::memory(target.pid()));
        test(&target);
        target.assert_works();
        eventually("no more files than before", || (files(&target) <= before).then_some(()));
        let grown = Look::memory(target.pid()).saturating_sub(memory);
        assert!(grown < 48 * 1024, "it grew by {grown} KiB");
    }
}

/// The same with the requests that each knows, all of them right.
fn with_each_and_its_requests(test: impl Fn(&Target<'_>, &[Value])) {
    let folder = tempfile::tempdir().unwrap();
    with_each(|target| match target {
        Target::Manager(_) => test(target, &manager_requests()),
        Target::Server(_) => test(target, &server_requests(folder.path())),
    });
}

/// Waits until the other end closes, whatever it says before.
#[track_caller]
fn assert_closes(wire: &mut Wire, what: &str) {
    wire.wait_at_most(AT_ONCE);
    let begun = Instant::now();
    let end = wire.read_to_end();
    assert!(end.is_ok(), "after {:?} it still listens to {what}: {end:?}", begun.elapsed());
}

#[test]
fn a_set_up_that_is_none_is_closed() {
    let public_key = |bytes: Vec<u8>| Half { public_key: bytes, salt: vec![7; 32] };
    let choice = json!({
        "compression_level": null, "compression_type": null, "encryption_type": "XChaCha20Poly1305",
    });
    let frame = |content: &[u8]| {
        let mut frame = (content.len() as u64).to_be_bytes().to_vec();
        frame.extend(content);
        frame
    };
    let after_choice = |content: &[u8]| [frame(&pack(&choice)), frame(content)].concat();
    let nonsense: [(&str, Vec<u8>); 16] = [
        ("text", b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".to_vec()),
        ("the longest length", vec![0xff; 8]),
        ("a gigabyte", (1u64 << 30).to_be_bytes().to_vec()),
        ("a length just too long", ((16u64 << 20) + 1).to_be_bytes().to_vec()),
        ("no choice", frame(b"")),
        ("a choice that is no MessagePack", frame(&[0xc1; 32])),
        ("a choice that is a number", frame(&pack(&1))),
        ("a choice that is a list", frame(&pack(&json!([1, 2, 3])))),
        (
            "an unknown encryption",
            frame(&pack(&json!({
                "compression_level": null, "compression_type": null, "encryption_type": "Rot13",
            }))),
        ),
        (
            "an unknown compression",
            frame(&pack(&json!({
                "compression_level": "Best", "compression_type": "Zip", "encryption_type": null,
            }))),
        ),
        ("no point", after_choice(&pack(&public_key(vec![4; 65])))),
        ("the point at infinity", after_choice(&pack(&public_key(vec![0])))),
        ("no key", after_choice(&pack(&public_key(Vec::new())))),
        ("a long key", after_choice(&pack(&public_key(vec![4; 1 << 20])))),
        ("a key exchange that is text", after_choice(&pack("Connect"))),
        ("the choice twice", after_choice(&pack(&choice))),
    ];
    with_each(|target| {
        for (what, bytes) in &nonsense {
            let mut wire = target.open();
            // It may close while this is being written.
            let _ = wire.write_raw(bytes);
            assert_closes(&mut wire, what);
        }
    });
}

#[derive(serde::Serialize)]
struct Half {
    #[serde(with = "serde_bytes")]
    public_key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    salt: Vec<u8>,
}

#[test]
fn an_authentication_that_is_none_is_closed() {
    let long = "x".repeat(1 << 20);
    let said: Vec<(&str, Vec<Value>)> = vec![
        ("nothing it knows", vec![json!("Reticulate")]),
        ("a number", vec![json!(7)]),
        ("a reconnection of nobody", vec![json!({"Reconnect": {"id": 1, "otp": [1, 2, 3]}})]),
        ("a reconnection without a password", vec![json!({"Reconnect": {"id": 1}})]),
        ("an answer first", vec![json!({"type": "auth_challenge_response", "answers": ["x"]})]),
        (
            "an unknown method",
            vec![
                json!("Connect"),
                json!({"type": "auth_initialization_response", "methods": ["telepathy"]}),
            ],
        ),
        (
            "no method",
            vec![json!("Connect"), json!({"type": "auth_initialization_response", "methods": []})],
        ),
        (
            "methods of the wrong type",
            vec![json!("Connect"), json!({"type": "auth_initialization_response", "methods": 7})],
        ),
        (
            "a method by a long name",
            vec![
                json!("Connect"),
                json!({"type": "auth_initialization_response", "methods": [long]}),
            ],
        ),
        ("an unknown message", vec![json!("Connect"), json!({"type": "auth_dance"})]),
        (
            "a request before its time",
            vec![json!("Connect"), json!({"id": "1", "payload": {"type": "version"}})],
        ),
        (
            "a wrong answer",
            vec![
                json!("Connect"),
                json!({"type": "auth_initialization_response", "methods": ["static_key"]}),
                json!({"type": "auth_challenge_response", "answers": ["00".repeat(32)]}),
            ],
        ),
        (
            "a wrong proof",
            vec![
                json!("Connect"),
                json!({"type": "auth_initialization_response", "methods": ["static_key_proof"]}),
                json!({"type": "auth_challenge_response", "answers": ["00".repeat(32)]}),
            ],
        ),
        (
            "too many answers",
            vec![
                json!("Connect"),
                json!({"type": "auth_initialization_response", "methods": ["static_key"]}),
                json!({"type": "auth_challenge_response", "answers": vec![""; 10_000]}),
            ],
        ),
    ];
    with_each(|target| {
        for (what, messages) in &said {
            let mut wire = target.open();
            wire.be_client().unwrap();
            for message in messages {
                let _ = wire.say(message);
            }
            assert_closes(&mut wire, what);
        }
        let mut wire = target.open();
        wire.be_client().unwrap();
        let _ = wire.send(&[0x91; 1 << 20]);
        assert_closes(&mut wire, "something very deep");
        // A frame that was tampered with, and one that never ends.
        let mut wire = target.open();
        wire.be_client().unwrap();
        let mut body = wire.seal(&pack("Connect"));
        *body.last_mut().unwrap() ^= 1;
        wire.write_raw(&(body.len() as u64).to_be_bytes()).unwrap();
        wire.write_raw(&body).unwrap();
        assert_closes(&mut wire, "a tampered frame");
        let mut wire = target.open();
        wire.be_client().unwrap();
        wire.write_raw(&1000u64.to_be_bytes()).unwrap();
        wire.write_raw(&[0; 10]).unwrap();
        wire.wait_at_most(Duration::from_secs(20));
        assert!(wire.read_to_end().is_ok(), "half a frame is waited for without an end");
    });
}

/// Requests of the manager's protocol, each right, as far as they go without a launch.
fn manager_requests() -> Vec<Value> {
    let inner = json!({"id": "1", "payload": pack(&json!({"type": "version"}))});
    vec![
        json!({"type": "version"}),
        json!({"type": "launch", "destination": "nobody://x", "options": ""}),
        json!({"type": "connect", "destination": "nobody://x", "options": ""}),
        json!({"type": "authenticate", "id": 7, "msg":
            {"type": "auth_challenge_response", "answers": ["x"]}}),
        json!({"type": "authenticate", "id": 7, "msg":
            {"type": "auth_verification_response", "valid": true}}),
        json!({"type": "open_channel", "id": 7}),
        json!({"type": "channel", "id": 7, "request": inner}),
        json!({"type": "close_channel", "id": 7}),
        json!({"type": "info", "id": 7}),
        json!({"type": "kill", "id": 7}),
        json!({"type": "list"}),
    ]
}

/// Requests to a server, each right and harmless.
fn server_requests(folder: &Path) -> Vec<Value> {
    let file = folder.join("file");
    vec![
        json!({"type": "version"}),
        json!({"type": "system_info"}),
        json!({"type": "exists", "path": file}),
        json!({"type": "file_read", "path": file}),
        json!({"type": "file_write_text", "path": file, "text": "x"}),
        json!({"type": "file_append", "path": file, "data": [1, 2, 3]}),
        json!({"type": "dir_read", "path": folder, "depth": 1, "absolute": false,
            "canonicalize": false, "include_root": false}),
        json!({"type": "rename", "src": file, "dst": folder.join("other")}),
        json!({"type": "metadata", "path": file, "canonicalize": false,
            "resolve_file_type": false}),
        json!({"type": "unwatch", "path": folder}),
        json!({"type": "cancel_search", "id": 7}),
        json!({"type": "proc_spawn", "cmd": "true", "environment": {}, "current_dir": null,
            "pty": null}),
        json!({"type": "proc_stdin", "id": 7, "data": [1]}),
        json!({"type": "proc_kill", "id": 7}),
        json!({"type": "proc_resize_pty", "id": 7, "size":
            {"rows": 1, "cols": 1, "pixel_width": 1, "pixel_height": 1}}),
    ]
}

/// A value of every type.
fn values() -> Vec<Value> {
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1.5),
        json!(""),
        json!("text"),
        json!([]),
        json!({}),
        json!({"type": "version"}),
        deep,
    ]
}

/// Every way to spoil a request: each member left out, of each wrong type, or added; an unknown
/// type; and what is no request at all.
fn spoilt(request: &Value) -> Vec<Value> {
    let members = request.as_object().unwrap();
    let mut all = Vec::new();
    for name in members.keys() {
        let mut without = members.clone();
        without.remove(name);
        all.push(Value::Object(without));
        for value in values() {
            let mut wrong = members.clone();
            wrong.insert(name.clone(), value);
            all.push(Value::Object(wrong));
        }
    }
    let mut more = members.clone();
    more.insert("surplus".to_owned(), json!(1));
    all.push(Value::Object(more));
    let mut unknown = members.clone();
    unknown.insert("type".to_owned(), json!("reticulate_splines"));
    all.push(Value::Object(unknown));
    all
}

/// Sends frames that are hardly requests, each followed by a good one on the same connection. Each
/// has to be replied to or has to close it, and the good one to be replied to unless it is closed.
fn assert_each_is_answered(target: &Target<'_>, requests: impl Iterator<Item = (String, Vec<u8>)>) {
    let mut wire = target.ready();
    wire.wait_at_most(AT_ONCE);
    for (number, (what, frame)) in requests.enumerate() {
        let (id, next) = (id_of(&frame), format!("next-{number}"));
        let exchanged = wire.send(&frame).and_then(|()| {
            wire.request(&next, &json!({"type": "version"}))?;
            let (mut replied, mut version) = (id.is_none(), false);
            while !(replied && version) {
                let reply = wire.message()?;
                replied |= Some(&reply["origin_id"]) == id.as_ref();
                version |= reply["origin_id"] == *next;
            }
            Ok(())
        });
        if let Err(error) = exchanged {
            let in_vain = matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::InvalidData
            );
            assert!(!in_vain, "no reply to {what}, nor is it closed: {error}");
            wire = target.ready();
            wire.wait_at_most(AT_ONCE);
        }
    }
}

/// The id of an envelope, where it has one that can be read.
fn id_of(frame: &[u8]) -> Option<Value> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(frame);
    reader.set_max_depth(200);
    let envelope = Value::deserialize(&mut reader).ok()?;
    envelope.get("id").filter(|id| id.is_string()).cloned()
}

#[test]
fn every_request_spoilt_in_every_way_is_answered() {
    with_each_and_its_requests(|target, requests| {
        let spoilt = requests.iter().flat_map(spoilt).enumerate().map(|(number, payload)| {
            let text = payload.to_string();
            let what = text.chars().take(200).collect();
            (what, pack(&json!({"id": format!("spoilt-{number}"), "payload": payload})))
        });
        assert_each_is_answered(target, spoilt);
    });
}

#[test]
fn every_request_cut_off_anywhere_is_answered() {
    with_each_and_its_requests(|target, requests| {
        let cut = requests.iter().flat_map(|request| {
            let whole = pack(&json!({"id": "cut", "payload": request}));
            let cuts = 1..whole.len();
            cuts.map(|at| (format!("{at} bytes of {request}"), whole[..at].to_vec()))
                .collect::<Vec<_>>()
        });
        assert_each_is_answered(target, cut);
    });
}

#[test]
fn every_envelope_that_is_none_is_answered() {
    let good = json!({"type": "version"});
    // Written by hand, as no encoder would: a map, its length, its keys in this order.
    let map = |pairs: &[(&str, Vec<u8>)]| {
        let mut bytes = vec![0x80 | pairs.len() as u8];
        for (key, value) in pairs {
            bytes.extend(pack(key));
            bytes.extend(value);
        }
        bytes
    };
    let (id, payload) = (pack("odd"), pack(&good));
    let header = pack(&json!({"launcher": {"version": 1}}));
    let mut odd: Vec<(String, Vec<u8>)> = vec![
        ("no map".into(), pack("hello")),
        ("an empty map".into(), map(&[])),
        ("no payload".into(), map(&[("id", id.clone())])),
        ("no id".into(), map(&[("payload", payload.clone())])),
        ("another order".into(), map(&[("payload", payload.clone()), ("id", id.clone())])),
        (
            "the header last".into(),
            map(&[("id", id.clone()), ("payload", payload.clone()), ("header", header)]),
        ),
        ("an id that is a number".into(), map(&[("id", pack(&7)), ("payload", payload.clone())])),
        (
            "an id of a megabyte".into(),
            map(&[("id", pack(&"x".repeat(1 << 20))), ("payload", payload.clone())]),
        ),
        (
            "the id twice".into(),
            map(&[("id", id.clone()), ("id", id.clone()), ("payload", payload.clone())]),
        ),
        (
            "something after it".into(),
            [map(&[("id", id.clone()), ("payload", payload)]), vec![1, 2, 3]].concat(),
        ),
        ("a payload of nothing".into(), map(&[("id", id.clone()), ("payload", vec![0xc0])])),
        (
            "a payload that is 2 GiB by its own account".into(),
            map(&[("id", id.clone()), ("payload", vec![0xc6, 0x7f, 0xff, 0xff, 0xff])]),
        ),
        ("a map of 4 billion".into(), vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        (
            "a list of 4 billion".into(),
            map(&[("id", id.clone()), ("payload", vec![0xdd, 0xff, 0xff, 0xff, 0xff])]),
        ),
        ("very deep lists".into(), map(&[("id", id.clone()), ("payload", vec![0x91; 1 << 20])])),
        (
            "very deep maps".into(),
            map(&[("id", id), ("payload", [0x81, 0xa1, b'a'].repeat(1 << 18))]),
        ),
    ];
    for header in values() {
        let envelope = json!({"header": header, "id": "odd", "payload": good});
        odd.push((
            format!(
                "the header {}",
                envelope["header"].to_string().chars().take(50).collect::<String>()
            ),
            pack(&envelope),
        ));
    }
    with_each(|target| assert_each_is_answered(target, odd.iter().cloned()));
}

#[test]
fn a_frame_that_is_too_long_is_closed_and_a_long_one_is_read() {
    with_each(|target| {
        let mut wire = target.ready();
        let long = json!({"type": "launch", "destination": "x".repeat(1 << 20), "options": ""});
        let reply = wire.ask("long", &long).unwrap();
        assert_eq!(reply["type"], "error", "{reply}");
        // A file travels in one frame, so it may be long; it takes memory only as far as it comes.
        let mut wires: Vec<_> = (0..20).map(|_| target.ready()).collect();
        for wire in &mut wires {
            wire.write_raw(&(200u64 << 20).to_be_bytes()).unwrap();
            wire.write_raw(&[0; 1000]).unwrap();
        }
        let mut wire = target.ready();
        wire.write_raw(&((256u64 << 20) + 4096).to_be_bytes()).unwrap();
        assert_closes(&mut wire, "a frame of more than 256 MiB");
    });
}

#[test]
fn connections_that_say_nothing_are_closed_and_keep_nobody_out() {
    let home = Home::new();
    let server = Server::start(&home);
    let pid = server.process.pid();
    let before = Look::open(pid).len();
    let silent: Vec<_> = (0..400).filter_map(|_| TcpStream::connect(server.address).ok()).collect();
    // The limit is on those that have not said who they are; somebody who does gets in in time.
    eventually("a client that gets in", || {
        let mut wire = Wire::open_server(server.address);
        wire.wait_at_most(Duration::from_secs(5));
        wire.be_client().and_then(|()| wire.connect(Some(&server.key))).ok()
    });
    assert!(Look::open(pid).len() < before + 300, "{} files", Look::open(pid).len());
    eventually("the end of the silent ones", || (Look::open(pid).len() <= before).then_some(()));
    drop(silent);
}

#[test]
fn requests_without_number_do_not_make_a_manager_grow() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let before = Look::memory(manager.pid());
    let mut wire = Wire::manager(manager.socket());
    // Nobody reads the replies: it has to stop reading, or close.
    wire.wait_at_most(AT_ONCE);
    let mut writer = wire.twin();
    let thread = std::thread::spawn(move || {
        for number in 0..200_000 {
            if writer.request(&number.to_string(), &json!({"type": "list"})).is_err() {
                break;
            }
        }
    });
    let mut peak = 0;
    for _ in 0..50 {
        peak = peak.max(Look::memory(manager.pid()));
        let version = Wire::manager(manager.socket()).ask("v", &json!({"type": "version"}));
        assert_eq!(version.unwrap()["type"], "version");
    }
    wire.end();
    thread.join().unwrap();
    assert!(peak < before + 48 * 1024, "it grew from {before} to {peak} KiB");
}
