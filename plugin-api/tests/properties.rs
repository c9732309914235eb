//! What holds for every text: parsing never panics, and what is printed is read back.
//!
//! Each property is tried with the same texts in every run; `DISTANT_SOAK=full` tries more of them.

#![allow(clippy::disallowed_methods, reason = "tests read the environment of their own run")]
#![allow(clippy::unwrap_used, reason = "this is all test code")]

use distant_plugin_api::connect_line::ConnectLine;
use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{
    Answer, Ask, AskKind, Challenge, HostMessage, Log, LogLevel, Notice, Offer, PluginMessage,
    Question, Verdict, VerdictKind, Verification, Via, MESSAGE_MAX,
};
use distant_plugin_api::options::{OptionSchema, OptionType, Options, Schema};
use distant_plugin_api::secret::{Secret, SessionKey};
use distant_plugin_api::{ErrorKind, LaunchError};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    let full = matches!(std::env::var("DISTANT_SOAK").as_deref(), Ok("full" | "1"));
    ProptestConfig {
        cases: if full { 50_000 } else { 500 },
        rng_seed: RngSeed::Fixed(0x6469_7374),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Texts that are nearly destinations.
fn near_destination() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("://".to_owned()),
        Just("@".to_owned()),
        Just(":".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("::1".to_owned()),
        Just("distant".to_owned()),
        Just("65536".to_owned()),
        "[a-zA-Z0-9.-]{0,70}",
        "\\PC{0,3}",
    ];
    vec(piece, 0..9).prop_map(|pieces| pieces.concat())
}

/// Texts that are nearly option maps.
fn near_options() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("=".to_owned()),
        Just("\"".to_owned()),
        Just("\\".to_owned()),
        Just(",".to_owned()),
        Just(" ".to_owned()),
        "[a-z.]{1,5}",
        "\\PC{0,3}",
    ];
    vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

fn destination() -> impl Strategy<Value = Destination> {
    let name = "[a-zA-Zäß0-9]([a-zA-Z0-9-]{0,8}[a-z0-9])?(\\.[a-z0-9]{1,5}){0,3}";
    let host = prop_oneof![
        name.prop_map(|name| name.to_owned()),
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string()),
    ];
    let scheme = option::of("[a-zA-Z0-9+.-]{0,8}");
    let user = option::of("[^:@]{1,8}");
    let password = option::of("[^@]{0,8}");
    (scheme, user, password, host, option::of(any::<u16>())).prop_map(
        |(scheme, user, password, host, port)| {
            let mut destination = Destination::new(host);
            destination.scheme = scheme;
            // Without a scheme, `://` in what follows would make one.
            let plain = |text: String| text.replace('/', "-");
            destination.user = user.map(plain);
            destination.password = password.map(|text| Secret::new(plain(text)));
            destination.port = port;
            destination
        },
    )
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,20}", any::<String>()]
}

fn error() -> impl Strategy<Value = LaunchError> {
    (text(), vec(text(), 0..3), option::of(text())).prop_map(|(message, causes, hint)| {
        let error = LaunchError::new(ErrorKind::HostKey, message);
        let error = causes.into_iter().fold(error, LaunchError::caused_by);
        hint.into_iter().fold(error, LaunchError::with_hint)
    })
}

fn plugin_message() -> impl Strategy<Value = PluginMessage> {
    let question = (text(), text(), any::<bool>()).prop_map(|(text, label, echo)| Question {
        text,
        label,
        echo,
    });
    let challenge =
        (vec(question, 0..3), text(), text()).prop_map(|(questions, instructions, username)| {
            AskKind::Challenge(Challenge { questions, instructions, username })
        });
    let verification = (text(), text())
        .prop_map(|(kind, text)| AskKind::Verification(Verification { kind, text }));
    let ask = (any::<u64>(), prop_oneof![challenge, verification]);
    let offer = (any::<u64>(), text(), any::<u16>(), any::<[u8; 32]>(), option::of(any::<u32>()));
    prop_oneof![
        ask.prop_map(|(id, question)| PluginMessage::Ask(Ask { id, question })),
        offer.prop_map(|(id, host, port, key, pid)| {
            let (key, proof, via) = (SessionKey::new(key), id % 2 == 0, Via::Tunnel);
            let hello = pid.map(|pid| pid.to_string());
            PluginMessage::Offer(Offer { id, host, port, key, pid, proof, hello, via })
        }),
        text().prop_map(|text| PluginMessage::Notice(Notice { level: LogLevel::Warn, text })),
        (text(), text()).prop_map(|(target, text)| {
            PluginMessage::Log(Log { level: LogLevel::Debug, target, text })
        }),
        error().prop_map(PluginMessage::Error),
        Just(PluginMessage::Done),
    ]
}

fn host_message() -> impl Strategy<Value = HostMessage> {
    let answers = option::of(vec(text().prop_map(Secret::new), 0..3));
    let answer = (any::<u64>(), answers, option::of(any::<bool>()), any::<bool>());
    let verdict = prop_oneof![
        option::of(any::<u64>()).prop_map(|by| VerdictKind::Connected { by }),
        Just(VerdictKind::Slow),
        text().prop_map(|reason| VerdictKind::Unreachable { reason }),
        text().prop_map(|reason| VerdictKind::Refused { reason }),
    ];
    prop_oneof![
        answer.prop_map(|(id, answers, valid, cancelled)| {
            HostMessage::Answer(Answer { id, answers, valid, cancelled })
        }),
        (any::<u64>(), verdict)
            .prop_map(|(id, result)| HostMessage::Verdict(Verdict { id, result })),
        Just(HostMessage::Cancel),
    ]
}

/// Prints a message, reads it back and prints it again.
fn there_and_back<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) {
    let line = serde_json::to_string(message).unwrap();
    assert!(!line.contains('\n'), "{line}");
    let back: T = serde_json::from_str(&line).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), line);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_text_makes_the_destination_panic(text in near_destination()) {
        match text.parse::<Destination>() {
            Ok(it) => {
                let shown = it.expose();
                assert_eq!(shown.expose().parse::<Destination>().as_ref(), Ok(&it), "{}", shown.expose());
            }
            Err(error) => assert!(error.to_string().len() < text.len() + 200),
        }
    }

    #[test]
    fn every_destination_is_read_back(it in destination()) {
        let shown = it.expose();
        prop_assert_eq!(shown.expose().parse(), Ok(it));
    }

    #[test]
    fn a_password_is_in_nothing_that_is_shown(it in destination(), password in "[A-Z]{12}") {
        let it = Destination { password: Some(Secret::new(password.clone())), ..it };
        let shown = format!("{it} {it:?}");
        prop_assert!(!shown.contains(&password));
    }

    #[test]
    fn no_text_makes_the_options_panic(text in near_options()) {
        match text.parse::<Options>() {
            Ok(map) => prop_assert_eq!(map.to_string().parse(), Ok(map)),
            Err(error) => prop_assert!(error.to_string().len() < text.len() + 100),
        }
    }

    #[test]
    fn every_map_with_plain_keys_is_read_back(
        pairs in vec(("[a-z][a-z0-9_.]{0,8}", any::<String>()), 0..6),
    ) {
        let map: Options = pairs.into_iter().collect();
        prop_assert_eq!(map.to_string().parse(), Ok(map));
    }

    #[test]
    fn no_map_makes_the_schema_panic(
        pairs in vec(("(\\PC|[sSſkK.]){0,4}[.a-z]{0,6}", "\\PC{0,6}|[0-9-]{0,30}"), 0..4),
        scheme in "[a-zA-Zſß.+-]{0,4}",
    ) {
        let schema = Schema(vec![
            OptionSchema::new("one", OptionType::Bool, ""),
            OptionSchema::new("two", OptionType::DurationMs, "").or("5"),
            OptionSchema::new("timeout", OptionType::Port, ""),
        ]);
        let map: Options = pairs.into_iter().collect();
        if let Ok(checked) = schema.check(&map, "plugin", &scheme) {
            prop_assert!(checked.iter().all(|(key, _)| schema.0.iter().any(|it| it.name == key)));
            prop_assert_eq!(checked.get("two").is_some(), true);
            prop_assert!(checked.duration_ms("two").is_ok() && checked.bool("one").is_ok());
        }
    }

    #[test]
    fn every_message_is_one_line_and_is_read_back(
        plugin in plugin_message(), host in host_message(),
    ) {
        there_and_back(&plugin);
        there_and_back(&host);
    }

    #[test]
    fn no_change_of_a_message_makes_a_reader_panic(
        message in plugin_message(),
        host in host_message(),
        at in any::<prop::sample::Index>(),
        with in "[\\PC\"{}\\[\\],:0-9]{0,3}",
        cut in 0..4usize,
    ) {
        for line in [serde_json::to_string(&message).unwrap(), serde_json::to_string(&host).unwrap()] {
            let characters: Vec<char> = line.chars().collect();
            let at = at.index(characters.len());
            let end = (at + cut).min(characters.len());
            let changed: String =
                characters[..at].iter().copied().chain(with.chars()).chain(characters[end..].iter().copied()).collect();
            let _ = serde_json::from_str::<PluginMessage>(&changed);
            let _ = serde_json::from_str::<HostMessage>(&changed);
        }
    }

    #[test]
    fn an_error_fits_into_a_message_whatever_it_says(error in error(), times in 1..2000usize) {
        let long = LaunchError { message: error.message.repeat(times), ..error };
        let line = serde_json::to_string(&PluginMessage::Error(long.clipped())).unwrap();
        prop_assert!(line.len() < MESSAGE_MAX);
        prop_assert!(!LaunchError::new(ErrorKind::Other, line).one_line().contains('\n'));
    }

    #[test]
    fn only_a_whole_connect_line_is_one(
        before in "\\PC{0,4}", key in any::<[u8; 32]>(), address in any::<std::net::SocketAddr>(), after in "\\PC{0,4}",
    ) {
        let line = ConnectLine { key: SessionKey::new(key), address };
        let text = format!("{before}{}{after}", line.expose().expose());
        if let Some(read) = ConnectLine::parse(&text) {
            // What stands around it is white space, or digits that make another port.
            prop_assert_eq!(read.key, line.key);
            prop_assert!(before.trim().is_empty());
            prop_assert_eq!(read.address.ip(), address.ip());
        } else {
            let whole = before.trim().is_empty() && after.trim().is_empty();
            prop_assert!(!whole || address.port() == 0);
        }
    }
}
