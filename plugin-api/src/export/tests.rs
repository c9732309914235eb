use std::ffi::c_void;
use std::mem::offset_of;
use std::sync::Mutex;

use super::*;
use crate::message::{LogLevel, Manifest, PluginMessage};
use crate::LaunchRequest;

/// What a host has been sent, in the order of it.
#[derive(Default)]
struct Received(Mutex<Vec<PluginMessage>>);

unsafe extern "C" fn send(context: *mut c_void, message: Text, reply: *mut Text) -> Status {
    // SAFETY: the context of `table`, which outlives the launch, and a message that lives.
    let (received, text) = unsafe { (&*context.cast::<Received>(), message.read().unwrap()) };
    let message: PluginMessage = serde_json::from_str(text).unwrap();
    if matches!(message, PluginMessage::Offer(_)) {
        const VERDICT: &str = r#"{"type":"verdict","id":1,"verdict":"connected"}"#;
        // SAFETY: an offer comes with a place for its answer.
        unsafe { reply.write(Text::new(VERDICT)) };
    }
    received.0.lock().unwrap().push(message);
    Status::OK
}

unsafe extern "C" fn cancelled_send(_: *mut c_void, _: Text, _: *mut Text) -> Status {
    Status::CANCELLED
}

unsafe extern "C" fn zero(_: *mut c_void) -> i32 {
    0
}

unsafe extern "C" fn minus_one(_: *mut c_void) -> i32 {
    -1
}

fn table(received: &Received) -> CallerTable {
    CallerTable {
        struct_size: size_of::<CallerTable>(),
        context: std::ptr::from_ref(received).cast_mut().cast(),
        send: Some(send),
        is_cancelled: Some(zero),
        cancel_fd: Some(zero),
        log_level: abi::level_number(LogLevel::Trace),
    }
}

/// A plugin whose launch is a function.
struct Acting(fn(&Caller) -> Result<(), LaunchError>);

impl Plugin for Acting {
    fn manifest(&self) -> Manifest {
        Manifest::new("acting", ["acting"])
    }

    fn launch(&self, _: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        (self.0)(caller)
    }
}

unsafe extern "C" fn unused(_: *const CallerTable, _: Text) -> Status {
    Status::MALFORMED
}

const REQUEST: &str = r#"{"destination":"acting://box","server":{"bind":"any"},"later":1}"#;

/// Runs a launch as a host does, and returns how it ended and what it sent.
fn launch(
    make: fn() -> Box<dyn Plugin>,
    change: impl FnOnce(&mut CallerTable),
    request: &str,
) -> (Status, Vec<PluginMessage>) {
    let exported: &'static Exported = Box::leak(Box::new(Exported::new(make, unused)));
    let received: &'static Received = Box::leak(Box::default());
    let mut table = table(received);
    change(&mut table);
    // SAFETY: the table and what is behind it are there for good, the request for long enough.
    let status = unsafe { exported.launch(Box::leak(Box::new(table)), Text::new(request)) };
    let messages = std::mem::take(&mut *received.0.lock().unwrap());
    (status, messages)
}

#[track_caller]
fn fails(make: fn() -> Box<dyn Plugin>, request: &str, expected: &str) {
    let (status, messages) = launch(make, |_| {}, request);
    assert_eq!(status, Status::FAILED);
    let [PluginMessage::Error(error)] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!((error.kind, &*error.one_line()), (ErrorKind::Plugin, expected));
}

#[test]
fn a_launch_speaks_through_the_table() {
    let make = || -> Box<dyn Plugin> {
        Box::new(Acting(|caller| {
            let offer = crate::message::Offer {
                id: caller.next_id(),
                host: "::1".into(),
                port: 8080,
                key: crate::secret::SessionKey::new([7; 32]),
                pid: None,
                proof: true,
                hello: None,
                via: Default::default(),
            };
            let verdict = caller.offer(&offer)?;
            assert_eq!(verdict, crate::message::VerdictKind::Connected { by: None });
            caller.notice(LogLevel::Info, "connected")
        }))
    };
    let (status, messages) = launch(make, |_| {}, REQUEST);
    assert_eq!(status, Status::OK);
    assert!(matches!(&messages[..], [PluginMessage::Offer(_), PluginMessage::Notice(_)]));
}

#[test]
fn an_older_and_a_newer_host_are_served() {
    let make = || -> Box<dyn Plugin> { Box::new(Acting(|caller| caller.check())) };
    let older = offset_of!(CallerTable, log_level);
    for size in [older, size_of::<CallerTable>() + 64] {
        assert_eq!(launch(make, |table| table.struct_size = size, REQUEST).0, Status::OK);
    }
}

#[test]
fn a_host_that_makes_no_sense_is_refused() {
    let make = || -> Box<dyn Plugin> { Box::new(Acting(|_| panic!("it must not come to this"))) };
    assert_eq!(launch(make, |table| table.struct_size = 8, REQUEST).0, Status::MALFORMED);
    assert_eq!(launch(make, |table| table.send = None, REQUEST).0, Status::MALFORMED);
    assert_eq!(
        launch(make, |table| table.cancel_fd = Some(minus_one), REQUEST).0,
        Status::MALFORMED
    );
    fails(
        make,
        "{}",
        "the plugin cannot read the launch request: missing field `destination` at line 1 column 2",
    );
}

#[test]
fn a_panic_stops_at_the_boundary() {
    let text = || -> Box<dyn Plugin> { Box::new(Acting(|_| panic!("bug"))) };
    fails(text, REQUEST, "the plugin panicked: bug");
    let string = || -> Box<dyn Plugin> { Box::new(Acting(|_| panic!("bug {}", 42))) };
    fails(string, REQUEST, "the plugin panicked: bug 42");

    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("again");
        }
    }
    let bomb = || -> Box<dyn Plugin> { Box::new(Acting(|_| std::panic::panic_any(Bomb))) };
    fails(bomb, REQUEST, "the plugin panicked");
}

#[test]
fn a_plugin_that_cannot_say_what_it_is_has_no_table() {
    static EXPORTED: Exported = Exported::new(|| panic!("no plugin today"), unused);
    assert!(EXPORTED.table().is_null());
    static GOOD: Exported = Exported::new(|| Box::new(Acting(|_| Ok(()))), unused);
    assert!(!GOOD.table().is_null());
    assert_eq!(GOOD.table(), GOOD.table());
}

#[test]
fn a_launch_that_nobody_wants_ends_as_cancelled() {
    let make =
        || -> Box<dyn Plugin> { Box::new(Acting(|caller| caller.notice(LogLevel::Info, "x"))) };
    let (status, messages) = launch(make, |table| table.send = Some(cancelled_send), REQUEST);
    assert_eq!((status, messages.len()), (Status::CANCELLED, 0));
}

#[test]
fn a_message_that_no_host_would_take_is_not_sent() {
    let make = || -> Box<dyn Plugin> {
        Box::new(Acting(|caller| caller.notice(LogLevel::Info, "x".repeat(MESSAGE_MAX))))
    };
    fails(make, REQUEST, "the plugin made a message of more than 1 MiB");
}
