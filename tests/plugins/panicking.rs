//! A plugin in nothing but Rust's own library that panics in its launch, and catches that as
//! `export_plugin!` does. Built with `panic = "abort"` there is nothing to catch.

use std::ffi::c_void;
use std::panic::catch_unwind;

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

const fn text(text: &'static str) -> Text {
    Text { ptr: text.as_ptr(), len: text.len() }
}

extern "C" fn launch(caller: *const Caller, _: Text) -> i32 {
    let caller = unsafe { &*caller };
    let panicked = catch_unwind(|| panic!("plugin bug 44")).is_err();
    assert!(panicked);
    let error = text(r#"{"type":"error","kind":"plugin","message":"the plugin panicked"}"#);
    (caller.send)(caller.context, error, std::ptr::null_mut())
}

static PLUGIN: Plugin = Plugin {
    magic: u64::from_be_bytes(*b"distantp"),
    abi_major: 1,
    abi_minor: 0,
    struct_size: std::mem::size_of::<Plugin>(),
    manifest: text(r#"{"name":"panicking","version":"1","schemes":["panicking"]}"#),
    launch,
};

#[no_mangle]
pub extern "C" fn distant_plugin_v1() -> *const Plugin {
    &PLUGIN
}
