//! A plugin in nothing but Rust's own library, so that any compiler there is can build it.
//!
//! It says by hand what `distant_plugin.h` says, and launches by sending a notice.

use std::ffi::c_void;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    ptr: *const u8,
    len: usize,
}

#[repr(C)]
pub struct Caller {
    struct_size: usize,
    context: *mut c_void,
    send: extern "C" fn(*mut c_void, Text, *mut Text) -> i32,
}

#[repr(C)]
pub struct Plugin {
    magic: u64,
    abi_major: u32,
    abi_minor: u32,
    struct_size: usize,
    manifest: Text,
    launch: extern "C" fn(*const Caller, Text) -> i32,
}

unsafe impl Sync for Plugin {}

const MANIFEST: &str = r#"{"name":"other-rustc","schemes":["other-rustc"]}"#;

const fn text(text: &'static str) -> Text {
    Text { ptr: text.as_ptr(), len: text.len() }
}

extern "C" fn launch(caller: *const Caller, request: Text) -> i32 {
    let caller = unsafe { &*caller };
    let request = unsafe { std::slice::from_raw_parts(request.ptr, request.len) };
    let knows = String::from_utf8_lossy(request).contains("other-rustc://box");
    let notice = text(if knows && caller.struct_size >= std::mem::size_of::<Caller>() {
        r#"{"type":"notice","text":"launched"}"#
    } else {
        r#"{"type":"error","kind":"other","message":"the request is not the one"}"#
    });
    (caller.send)(caller.context, notice, std::ptr::null_mut())
}

static PLUGIN: Plugin = Plugin {
    magic: u64::from_be_bytes(*b"distantp"),
    abi_major: 1,
    abi_minor: 0,
    struct_size: std::mem::size_of::<Plugin>(),
    manifest: text(MANIFEST),
    launch,
};

#[no_mangle]
pub extern "C" fn distant_plugin_v1() -> *const Plugin {
    &PLUGIN
}
