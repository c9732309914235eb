//! What a plugin cannot do by the API alone: it speaks through the bare table here.
//!
//! The symbols are those that `export_plugin!` writes, with a `launch` that keeps the table.

use std::ptr;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use distant_plugin_api::abi::{self, CallerTable, PluginTable, RootResult, Status, Text};
use distant_plugin_api::export::Exported;

static EXPORTED: Exported = Exported::new(|| Box::new(super::Faulty), launch);
static CALLER: OnceLock<CallerTable> = OnceLock::new();
static STATUS: OnceLock<Status> = OnceLock::new();

unsafe extern "C" fn launch(caller: *const CallerTable, request: Text) -> Status {
    // SAFETY: the host's promise for `PluginTable::launch`.
    let status = unsafe {
        if let Some(table) = caller.as_ref() {
            let _ = CALLER.set(*table);
        }
        EXPORTED.launch(caller, request)
    };
    STATUS.get().copied().unwrap_or(status)
}

#[unsafe(no_mangle)]
extern "C" fn distant_plugin_v1() -> *const PluginTable {
    EXPORTED.table()
}

extern "C" fn root() -> RootResult {
    abi::root(distant_plugin_v1)
}

#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
static HEADER: abi::Header = abi::header(root);

/// Runs while the library is loaded.
#[used]
#[cfg_attr(target_os = "macos", link_section = "__DATA,__mod_init_func")]
#[cfg_attr(not(target_os = "macos"), link_section = ".init_array")]
static INITIALISER: extern "C" fn() = initialise;

extern "C" fn initialise() {
    #[allow(clippy::disallowed_methods, reason = "nothing else reaches a library this early")]
    let mode = std::env::var("DISTANT_FAULTY_LOAD").unwrap_or_default();
    match mode.as_str() {
        "hang" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        "crash" => segfault(),
        "exit" => std::process::exit(0),
        "noise" => (0..40_000).for_each(|line| println!("{line:059}")),
        _ => {}
    }
}

/// Sends any text at all.
pub(super) fn send(text: &str) -> Status {
    let Some((table, send)) = CALLER.get().and_then(|table| Some((table, table.send?))) else {
        return Status::MALFORMED;
    };
    // SAFETY: the table's own context, and a text that lives until this returns.
    unsafe { send(table.context, Text { ptr: text.as_ptr(), len: text.len() }, ptr::null_mut()) }
}

/// Starts a thread that sends for as long as there is a process.
pub(super) fn send_for_ever() {
    thread::spawn(|| loop {
        send(r#"{"type":"log","level":"error","text":"late"}"#);
    });
}

/// Has `launch` return this, whatever it would have returned.
pub(super) fn return_status(status: i32) {
    let _ = STATUS.set(Status(status));
}

pub(super) fn segfault() {
    let nowhere = ptr::without_provenance_mut::<u8>(64);
    // SAFETY: none; that is what is wanted.
    unsafe { nowhere.write_volatile(1) };
}

pub(super) fn close_fds() {
    for descriptor in 0..64 {
        // SAFETY: it may belong to anybody; that is what is wanted.
        unsafe {
            let borrowed = std::os::fd::BorrowedFd::borrow_raw(descriptor);
            if rustix::io::fcntl_getfd(borrowed).is_ok() {
                rustix::io::close(descriptor);
            }
        }
    }
}

/// Writes a line that is no message to every descriptor but the standard ones.
pub(super) fn scribble() {
    for descriptor in 3..1024 {
        // SAFETY: it may belong to anybody; that is what is wanted.
        let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
        let _ = rustix::io::write(descriptor, b"scribble\n");
    }
}
