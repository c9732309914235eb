//! Cases that launch, again and again, with one thing different each time.

use std::thread;

use distant_plugin_api::message::{ErrorKind, LogLevel};

use crate::host::play;
use crate::report::{fail, skip, Case, Found, Status};
use crate::script::{Answers, Decide, Ending, Host, Script, Stop, Talk};
use crate::worker::last_words;
use crate::{Kit, Launch};

/// Launches at a time.
const PARALLEL: usize = 8;
/// Most points at which a launch is cancelled; more are spread over all there are.
const POINTS: usize = 24;
/// Bytes of the longest answer that is tried.
const LONG_ANSWER: usize = 64 * 1024;
/// Secrets that are shorter occur by chance.
const SECRET_MIN: usize = 4;
/// Different ways of saying nonsense.
const NONSENSE: u64 = 3;

pub(crate) const CASES: &[Case] = &[
    Case { name: "launch.plain", about: "a launch works, and its server lives on", run: plain },
    Case { name: "launch.slow", about: "after `slow` it waits for its next verdict", run: slow },
    Case { name: "launch.parallel", about: "8 launches at a time all work", run: parallel },
    Case { name: "launch.nonsense", about: "what it does not know it ignores", run: nonsense },
    Case {
        name: "launch.unknown_option",
        about: "a strange option is no crash",
        run: unknown_option,
    },
    Case {
        name: "launch.older_host",
        about: "a host without the newest members is enough",
        run: older_host,
    },
    Case {
        name: "launch.newer_host",
        about: "what it does not know of a host is left alone",
        run: newer_host,
    },
    Case {
        name: "launch.foreign_host",
        about: "a host of another protocol is refused",
        run: foreign_host,
    },
    Case {
        name: "launch.nobody_answers",
        about: "a question without an answer ends it well",
        run: nobody_answers,
    },
    Case { name: "launch.no", about: "`no` ends it well, and to a host key at once", run: no },
    Case {
        name: "launch.odd_answers",
        about: "empty, strange and long answers are no crash",
        run: odd_answers,
    },
    Case {
        name: "launch.unreachable_server",
        about: "an offer in vain leaves no server",
        run: unreachable_server,
    },
    Case {
        name: "launch.refused_server",
        about: "an offer that is refused leaves no server",
        run: refused_server,
    },
    Case {
        name: "launch.cancel",
        about: "cancelled anywhere, it ends within 2 s and leaves nothing",
        run: cancel,
    },
    Case { name: "launch.hang_up", about: "so it does when its host is gone", run: hang_up },
    Case {
        name: "launch.unreachable_host",
        about: "a host that does not answer is said to be that",
        run: unreachable_host,
    },
    Case { name: "launch.secrets", about: "no secret is in a log, notice or error", run: secrets },
];

fn given(kit: &Kit) -> Result<&Launch, (Status, String)> {
    match &kit.launch {
        Some(launch) => Ok(launch),
        None => skip("no destination was given that launches"),
    }
}

fn played(kit: &Kit, script: &Script) -> Result<Talk, (Status, String)> {
    Ok(play(kit, given(kit)?, script))
}

/// What no launch may do, however it goes. `told` is whether the plugin was told to go, when it
/// need not give a result any more.
fn sound(talk: &Talk, told: bool) -> Result<(), (Status, String)> {
    match &talk.ending {
        Ending::Nothing(_, true) if told => {}
        Ending::Nothing(text, _) => {
            return Err((Status::Crash, format!("{text}{}", last_words(&talk.stderr))));
        }
        Ending::Timeout(text) => return Err((Status::Timeout, text.clone())),
        Ending::Protocol(text) | Ending::Unusable(text) => return fail(text),
        Ending::Error(error) if error.kind == ErrorKind::Plugin => {
            return fail(error.one_line().into_owned())
        }
        Ending::Done | Ending::Error(_) => {}
    }
    if let Some(more) = &talk.afterwards {
        return fail(format!("after its result it says more: `{more}`"));
    }
    match talk.left.first() {
        Some(left) => fail(format!("it leaves behind: {left}")),
        None => Ok(()),
    }
}

/// What a launch that should work has to do.
fn works(talk: &Talk) -> Result<(), (Status, String)> {
    sound(talk, talk.stayed)?;
    if let Some(question) = &talk.unanswered {
        return fail(format!("it asks `{question}`, which no answer was given for"));
    }
    match &talk.ending {
        Ending::Error(error) if !talk.stayed => fail(format!("it fails: {}", error.one_line())),
        _ if talk.offers.is_empty() => fail("it is done without an offer"),
        _ => match &talk.reached {
            Some(reason) => fail(format!("it offers a server, but {reason}")),
            None => Ok(()),
        },
    }
}

fn works_with(kit: &Kit, script: &Script) -> Found {
    let talk = played(kit, script)?;
    works(&talk).map(|()| None)
}

/// The error of a launch that should fail.
fn failure(talk: &Talk) -> Result<&distant_plugin_api::LaunchError, (Status, String)> {
    sound(talk, false)?;
    match &talk.ending {
        Ending::Error(error) => Ok(error),
        _ => fail("the launch succeeds all the same"),
    }
}

fn kind_of(kind: ErrorKind) -> String {
    let word = serde_json::to_value(kind).ok();
    word.and_then(|it| it.as_str().map(str::to_owned)).unwrap_or_default()
}

fn plain(kit: &Kit) -> Found {
    let talk = played(kit, &Script::default())?;
    works(&talk)?;
    if talk.stayed {
        return Ok(Some("it stays for as long as the connection lasts".to_owned()));
    }
    if !talk.lived {
        return fail("its server ends with the launch");
    }
    Ok(None)
}

fn slow(kit: &Kit) -> Found {
    works_with(kit, &Script { decide: Decide::Slow, ..Script::default() })
}

fn parallel(kit: &Kit) -> Found {
    let launch = given(kit)?;
    let talks = thread::scope(|scope| {
        let one = || play(kit, launch, &Script::default());
        let all: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|it| it.join()).collect::<Vec<_>>()
    });
    for talk in talks {
        match talk {
            Ok(talk) => works(&talk)?,
            Err(_) => return fail("the case itself broke down"),
        }
    }
    Ok(None)
}

fn nonsense(kit: &Kit) -> Found {
    for round in 0..NONSENSE {
        // Zero is the one number that the picking cannot start from.
        let noise = kit.seed.wrapping_mul(1000).wrapping_add(round).max(1);
        let talk = played(kit, &Script { noise: Some(noise), ..Script::default() })?;
        works(&talk)?;
    }
    Ok(None)
}

fn unknown_option(kit: &Kit) -> Found {
    let unchecked = vec![("no-such-option".to_owned(), "{\"a\\".to_owned())];
    let talk = played(kit, &Script { unchecked, ..Script::default() })?;
    sound(&talk, talk.stayed)?;
    match &talk.ending {
        Ending::Error(error) if !talk.stayed && error.kind != ErrorKind::InvalidOption => {
            let kind = kind_of(error.kind);
            fail(format!("its error is of kind `{kind}`, not `invalid_option`"))
        }
        _ => Ok(None),
    }
}

/// A launch by another version of a host.
fn with_host(kit: &Kit, host: Host) -> Result<Talk, (Status, String)> {
    played(kit, &Script { host, ..Script::default() })
}

fn older_host(kit: &Kit) -> Found {
    let talk = with_host(kit, Host::Older)?;
    if kit.is_library && talk.log_levels.iter().any(|level| *level > LogLevel::Info) {
        return fail("it reads the log level behind the end of an older host's table");
    }
    works(&talk).map(|()| None)
}

fn newer_host(kit: &Kit) -> Found {
    works(&with_host(kit, Host::Newer)?).map(|()| None)
}

fn foreign_host(kit: &Kit) -> Found {
    if kit.is_library {
        return skip("it is a library, and says by its symbol which version it speaks");
    }
    let talk = with_host(kit, Host::Foreign)?;
    if talk.manifest.as_ref().is_some_and(|it| it.runs_commands) {
        return skip("it only runs commands, and its worker speaks the protocol for it");
    }
    let theirs = talk.protocol;
    let said = match &talk.ending {
        _ if !talk.offers.is_empty() => {
            fail(format!("it launches for a host that speaks protocol {theirs}"))
        }
        Ending::Done => fail("it is done without an offer"),
        Ending::Timeout(_) => {
            let reason = format!("it does not refuse a host that speaks protocol {theirs}");
            Err((Status::Timeout, reason))
        }
        // Whoever speaks another protocol may not understand its error.
        Ending::Nothing(_, true) if !talk.stderr.trim().is_empty() => Ok(None),
        Ending::Nothing(text, true) => fail(format!("{text}, and does not say why")),
        Ending::Nothing(text, false) => Err((Status::Crash, text.clone())),
        Ending::Protocol(text) | Ending::Unusable(text) => fail(text),
        Ending::Error(error) => Ok(Some(error.message.clone())),
    }?;
    match talk.left.first() {
        Some(left) => fail(format!("it leaves behind: {left}")),
        None => Ok(said),
    }
}

fn nobody_answers(kit: &Kit) -> Found {
    let talk = played(kit, &Script { answers: Answers::Nobody, ..Script::default() })?;
    if talk.questions + talk.verifications == 0 {
        return skip("it asks nothing");
    }
    let error = failure(&talk)?;
    match error.kind {
        ErrorKind::Authentication | ErrorKind::HostKey | ErrorKind::Cancelled => Ok(None),
        kind => {
            let kind = kind_of(kind);
            fail(format!("its error is of kind `{kind}`, not `authentication` or `host_key`"))
        }
    }
}

fn no(kit: &Kit) -> Found {
    let talk = played(kit, &Script { answers: Answers::No, ..Script::default() })?;
    if talk.verifications == 0 {
        return skip("it asks no yes-or-no question");
    }
    if talk.host_keys == 0 {
        // What becomes of it then is the plugin's to say.
        return sound(&talk, talk.stayed).map(|()| None);
    }
    if let Some(question) = &talk.asked_on {
        return fail(format!("after `no` it goes on, and asks `{question}`"));
    }
    let error = failure(&talk)?;
    match error.kind {
        ErrorKind::HostKey => Ok(None),
        kind => fail(format!("its error is of kind `{}`, not `host_key`", kind_of(kind))),
    }
}

fn odd_answers(kit: &Kit) -> Found {
    let long = "x".repeat(LONG_ANSWER);
    for text in ["", "\u{fc}n\u{ef}c\u{f6}d\u{e9} \u{1f980}\u{202e}\n\"\\", &long] {
        let answers = Answers::Text(text.to_owned());
        let talk = played(kit, &Script { answers, ..Script::default() })?;
        if talk.questions == 0 {
            return skip("it asks nothing");
        }
        sound(&talk, talk.stayed)?;
    }
    Ok(None)
}

fn unreachable_server(kit: &Kit) -> Found {
    let talk = played(kit, &Script { decide: Decide::Unreachable, ..Script::default() })?;
    let error = failure(&talk)?;
    match error.kind {
        ErrorKind::PortUnreachable => Ok(None),
        kind => fail(format!("its error is of kind `{}`, not `port_unreachable`", kind_of(kind))),
    }
}

fn refused_server(kit: &Kit) -> Found {
    let talk = played(kit, &Script { decide: Decide::Refused, ..Script::default() })?;
    failure(&talk).map(|_| None)
}

/// Gives a launch up at each of its messages.
fn stopped(kit: &Kit, how: Stop) -> Found {
    let plain = played(kit, &Script::default())?;
    works(&plain)?;
    // Every so many, and the first and the last whatever happens.
    let step = plain.callbacks.div_ceil(POINTS).max(1);
    let points = (0..=plain.callbacks).filter(|at| at % step == 0 || *at == plain.callbacks);
    let mut count = 0;
    for at in points {
        let talk = played(kit, &Script { stop: Some((at, how)), ..Script::default() })?;
        // It may have been faster than the cancellation.
        sound(&talk, true).map_err(|(status, reason)| {
            (status, format!("at message {at} of {}: {reason}", plain.callbacks))
        })?;
        count += 1;
    }
    Ok(Some(format!("at {count} points")))
}

fn cancel(kit: &Kit) -> Found {
    stopped(kit, Stop::Cancel)
}

fn hang_up(kit: &Kit) -> Found {
    stopped(kit, Stop::HangUp)
}

fn unreachable_host(kit: &Kit) -> Found {
    let launch = given(kit)?;
    let Some(destination) = kit.unreachable.clone() else {
        return skip("no destination was given where nothing answers");
    };
    let talk = play(kit, launch, &Script { destination: Some(destination), ..Script::default() });
    let error = failure(&talk)?;
    match error.kind {
        // One that says nothing at all is known by the time that it takes.
        ErrorKind::Unreachable | ErrorKind::Unresolved | ErrorKind::TimedOut => Ok(None),
        // All that the host sees of a plugin that runs commands is that the command did not run.
        ErrorKind::ServerNotStarted
            if talk.manifest.as_ref().is_some_and(|it| it.runs_commands) =>
        {
            Ok(Some(error.one_line().into_owned()))
        }
        kind => fail(format!("its error is of kind `{}`, not `unreachable`", kind_of(kind))),
    }
}

fn secrets(kit: &Kit) -> Found {
    let launch = given(kit)?;
    // Of the right answers, and of a wrong one.
    let wrong = format!("wrong-answer-{:016x}", kit.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for answers in [Answers::Given, Answers::Text(wrong.clone())] {
        let talk = play(kit, launch, &Script { answers, ..Script::default() });
        sound(&talk, talk.stayed)?;
        let keys = talk.offers.iter().map(|it| it.key.expose_hex().expose().to_owned());
        let mut secrets: Vec<_> = keys.map(|key| ("the key of its server", key)).collect();
        secrets.push(("an answer", wrong.clone()));
        secrets.extend(launch.answers.iter().map(|(_, answer)| ("an answer", answer.clone())));
        for option in talk.manifest.iter().flat_map(|it| &it.options.0).filter(|it| it.secret) {
            let value = launch.options.get(&option.name);
            secrets.extend(value.map(|it| ("a secret option", it.to_owned())));
        }
        secrets.retain(|(_, secret)| secret.len() >= SECRET_MIN);
        for (what, secret) in &secrets {
            if talk.stderr.contains(secret) {
                return fail(format!("it prints {what}"));
            }
            if let Some(text) = talk.said.iter().find(|text| text.contains(secret)) {
                let kind = serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
                let kind = kind["type"].as_str().unwrap_or("message").to_owned();
                return fail(format!("there is {what} in its `{kind}`"));
            }
        }
    }
    Ok(None)
}
