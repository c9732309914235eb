//! What is true of every text and every message, tried with as many as time allows.
//!
//! The seeds are numbered from zero, so each run begins with the same cases, and a failure names its
//! seed. `fuzz/` has targets that look for the unexpected without an end.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use distant::wire::envelope::{Request, Response};
use distant::wire::frame::{cut, Codec};
use distant::wire::message::{Authentication, AuthenticationResponse, ManagerRequest};
use distant_plugin_api::connect_line::ConnectLine;
use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{HostMessage, PluginMessage};
use distant_plugin_api::options::Options;
use proptest::prelude::*;
use proptest::strategy::Strategy;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::support::wire::pack;

/// Time for each of the properties here.
const TIME: Duration = Duration::from_secs(8);

/// Tries a property with other cases until the time is over.
fn check<S: Strategy>(strategy: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let end = Instant::now() + TIME;
    for seed in 0_u64.. {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let result = TestRunner::new_with_rng(config, rng).run(&strategy, &property);
        result.unwrap_or_else(|failure| panic!("with seed {seed}: {failure}"));
        if Instant::now() > end {
            return;
        }
    }
}

/// Texts that look like what a person types into an option or a destination, and others.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,80}",
        "[a-z]{0,6}(://)?[a-zA-Z0-9:@.\\-\\[\\]%_]{0,40}",
        "([a-z]{1,6}://)?([a-z]{1,4}(:[a-z]{9,12})?@)?([a-z.]{1,10}|\\[[0-9a-f]{0,4}::[0-9a-f]{1,4}\\])(:[0-9]{1,5})?",
        "([a-z.]{1,8}=(\"([^\"\\\\]|\\\\.)*\"|[^,]*),?){0,6}",
    ]
}

#[test]
fn a_destination_that_is_read_is_printed_the_same() {
    check(text(), |text| {
        let Ok(destination) = text.parse::<Destination>() else { return Ok(()) };
        let shown = destination.expose();
        let again: Destination = shown.expose().parse().map_err(|error| {
            TestCaseError::fail(format!("{text:?} prints as {:?}: {error}", shown.expose()))
        })?;
        prop_assert_eq!(&again, &destination);
        // What people see never has the password.
        if let Some(password) = destination.password.as_ref().filter(|it| it.expose().len() > 8) {
            let seen = format!("{destination} {destination:?}");
            prop_assert!(!seen.contains(password.expose()), "{}", seen);
        }
        Ok(())
    });
}

#[test]
fn options_that_are_read_are_printed_the_same() {
    check(text(), |text| {
        let Ok(options) = text.parse::<Options>() else { return Ok(()) };
        prop_assert_eq!(&options.to_string().parse::<Options>(), &Ok(options));
        Ok(())
    });
    let key = "[a-z][a-zA-Z0-9 ._@-]{0,8}[a-z]";
    check(proptest::collection::btree_map(key, ".{0,30}", 0..6), |map| {
        let options: Options = map.into_iter().collect();
        prop_assert_eq!(&options.to_string().parse::<Options>(), &Ok(options));
        Ok(())
    });
}

#[test]
fn a_line_that_is_no_connect_line_is_none() {
    let line =
        "(say )?(distant://)?:?[0-9a-f]{60,66}@(127\\.0\\.0\\.1|\\[::1\\]|box)(:[0-9]{0,6})?";
    check(line, |line| {
        let read = ConnectLine::parse(&line);
        if let Some(read) = &read {
            let shown = read.expose();
            let again = ConnectLine::parse(shown.expose());
            prop_assert_eq!(again.as_ref(), Some(read));
            prop_assert!(!line.starts_with("say"), "{}", line);
        }
        Ok(())
    });
}

/// JSON as a plugin, a host or nobody would send it.
fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let words = "hello|launch|ask|answer|offer|verdict|notice|progress|log|cancel|done|error|id|\
                 host|port|key|type|kind|text|level|stage|message|answers|valid|connected|slow";
    let words = proptest::sample::select(words.split('|').collect::<Vec<_>>());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words.clone().prop_map(Value::from),
        ".{0,10}".prop_map(Value::from),
    ];
    let inner = leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(words.clone().prop_map(String::from), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let kinds = ["hello", "launch", "ask", "answer", "offer", "verdict", "error", "log", "dance"];
    (inner, proptest::sample::select(kinds.to_vec())).prop_map(|(mut value, kind)| {
        if let Some(members) = value.as_object_mut() {
            members.insert("type".to_owned(), kind.into());
        }
        value
    })
}

#[test]
fn a_message_of_a_plugin_or_a_host_is_read_or_refused_and_written_the_same() {
    check(json(), |value| {
        if let Ok(message) = serde_json::from_value::<PluginMessage>(value.clone()) {
            let written = serde_json::to_value(&message).unwrap();
            let again = serde_json::from_value::<PluginMessage>(written.clone());
            let again =
                again.map_err(|error| TestCaseError::fail(format!("{written}: {error}")))?;
            prop_assert_eq!(serde_json::to_value(&again).unwrap(), written);
        }
        if let Ok(message) = serde_json::from_value::<HostMessage>(value) {
            let written = serde_json::to_value(&message).unwrap();
            let again = serde_json::from_value::<HostMessage>(written.clone());
            let again =
                again.map_err(|error| TestCaseError::fail(format!("{written}: {error}")))?;
            prop_assert_eq!(serde_json::to_value(&again).unwrap(), written);
        }
        Ok(())
    });
}

#[test]
fn bytes_are_a_frame_and_a_message_or_refused() {
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..400),
        json().prop_map(|value| pack(&value)),
        json().prop_map(|value| pack(&serde_json::json!({"id": "1", "payload": value}))),
        (json(), 0..200_usize, any::<u8>()).prop_map(|(value, at, byte)| {
            let mut bytes = pack(&serde_json::json!({"id": "1", "payload": value}));
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes
        }),
    ];
    check(bytes, |bytes| {
        let content = Bytes::from(bytes);
        if let Ok(request) = Request::from_frame(&content) {
            prop_assert_eq!(&Request::from_frame(&request.to_frame()).unwrap().id, &request.id);
            let _ = request.parse::<ManagerRequest>();
            let _ = request.parse::<Authentication>();
            let _ = request.parse::<AuthenticationResponse>();
        }
        let _ = Response::from_frame(&content);
        // As a frame it comes out as it went in, and nothing else does.
        let codec = Codec::new(Some(&[7; 32]), None);
        let mut frame = BytesMut::new();
        codec.encode(&content, &mut frame);
        let body = cut(&mut frame, 1 << 20).unwrap().unwrap();
        prop_assert_eq!(&codec.decode(body, 1 << 20).unwrap(), &content);
        prop_assert!(codec.decode(BytesMut::from(&content[..]), 1 << 20).is_err());
        let mut stream = BytesMut::from(&content[..]);
        while let Ok(Some(_)) = cut(&mut stream, 1 << 20) {}
        Ok(())
    });
}
