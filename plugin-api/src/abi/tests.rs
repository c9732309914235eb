use super::*;

unsafe extern "C" fn launch(_: *const CallerTable, _: Text) -> Status {
    Status::OK
}

unsafe extern "C" fn send(_: *mut c_void, _: Text, _: *mut Text) -> Status {
    Status::OK
}

unsafe extern "C" fn ask(_: *mut c_void) -> i32 {
    0
}

fn plugin_table() -> PluginTable {
    PluginTable::new(Text::new("{}"), launch)
}

fn caller_table() -> CallerTable {
    CallerTable {
        struct_size: size_of::<CallerTable>(),
        context: core::ptr::null_mut(),
        send: Some(send),
        is_cancelled: Some(ask),
        cancel_fd: Some(ask),
        log_level: level_number(LogLevel::Error),
    }
}

#[test]
fn the_root_has_the_version_of_the_abi() {
    let version = RootRef::VERSION_STRINGS.version.as_str();
    assert_eq!(version, format!("{ABI_MAJOR}.{ABI_MINOR}.0"));
    assert_eq!(SYMBOL, format!("distant_plugin_v{ABI_MAJOR}"));
}

#[test]
fn export_plugin_writes_the_symbol_that_abi_stable_looks_for() {
    assert_eq!(ROOT_SYMBOL, "_1as_0lib_1header_0root_bmodule_bloader");
}

#[test]
fn a_member_counts_only_if_the_table_covers_it() {
    let mut table = caller_table();
    // SAFETY: in each case the table has at least the bytes that it says.
    let level = |table: &CallerTable| unsafe { CallerTable::read(table) }.unwrap().log_level;
    assert_eq!(level(&table), 1);
    table.struct_size = offset_of!(CallerTable, log_level);
    assert_eq!(level(&table), 3);
    table.struct_size = offset_of!(CallerTable, log_level) + size_of::<u32>();
    assert_eq!(level(&table), 1);

    #[repr(C)]
    struct Longer<T>(T, [u8; 64]);
    let mut longer = Longer(caller_table(), [0xa5; 64]);
    longer.0.struct_size = size_of::<Longer<CallerTable>>();
    assert_eq!(level(&longer.0), 1);
    let mut longer = Longer(plugin_table(), [0xa5; 64]);
    longer.0.struct_size = size_of::<Longer<PluginTable>>();
    // SAFETY: as above.
    let read = unsafe { PluginTable::read(&raw const longer.0) }.unwrap();
    assert_eq!(read.struct_size, size_of::<Longer<PluginTable>>());
}

#[test]
fn what_is_no_table_is_refused_with_the_reason() {
    let plugin = |change: &dyn Fn(&mut PluginTable)| {
        let mut table = plugin_table();
        change(&mut table);
        // SAFETY: a whole table, whatever it says.
        unsafe { PluginTable::read(&raw const table) }.unwrap_err()
    };
    assert_eq!(plugin(&|it| it.magic = 7), InvalidTable::Magic(7));
    assert_eq!(plugin(&|it| it.abi_major = 2), InvalidTable::Major(2, ABI_MINOR));
    assert_eq!(plugin(&|it| it.struct_size -= 1), InvalidTable::Truncated(47, 48));
    assert_eq!(plugin(&|it| it.struct_size = 0), InvalidTable::Truncated(0, 48));
    assert_eq!(plugin(&|it| it.launch = None), InvalidTable::Missing("launch"));

    let caller = |change: &dyn Fn(&mut CallerTable)| {
        let mut table = caller_table();
        change(&mut table);
        // SAFETY: a whole table, whatever it says.
        unsafe { CallerTable::read(&raw const table) }.unwrap_err()
    };
    assert_eq!(caller(&|it| it.struct_size = 39), InvalidTable::Truncated(39, 40));
    assert_eq!(caller(&|it| it.send = None), InvalidTable::Missing("send"));
    assert_eq!(caller(&|it| it.is_cancelled = None), InvalidTable::Missing("is_cancelled"));
    assert_eq!(caller(&|it| it.cancel_fd = None), InvalidTable::Missing("cancel_fd"));

    let nowhere = core::ptr::without_provenance::<u8>(9);
    // SAFETY: neither is read from.
    unsafe {
        assert_eq!(PluginTable::read(core::ptr::null()).err(), Some(InvalidTable::Null));
        assert_eq!(PluginTable::read(nowhere.cast()).err(), Some(InvalidTable::Unaligned));
        assert_eq!(CallerTable::read(core::ptr::null()).err(), Some(InvalidTable::Null));
        assert_eq!(CallerTable::read(nowhere.cast()).err(), Some(InvalidTable::Unaligned));
    }
}

#[test]
fn a_text_is_read_only_where_it_makes_sense() {
    // SAFETY: what is not null points at what it says, or has a length that is refused.
    let read = |text: Text| unsafe { text.read() };
    assert_eq!(read(Text::new("straße")), Ok("straße"));
    assert_eq!(read(Text::EMPTY), Ok(""));
    assert_eq!(read(Text { ptr: core::ptr::null(), len: 1 }), Err(InvalidText::Null));
    let huge = Text { ptr: b"x".as_ptr(), len: 1 << 30 };
    assert_eq!(read(huge), Err(InvalidText::TooLong(1 << 30)));
    let bytes = [b'a', 0xff];
    assert_eq!(read(Text { ptr: bytes.as_ptr(), len: 2 }), Err(InvalidText::NotUtf8));
}

#[test]
fn a_level_survives_as_a_number() {
    for number in 0..=5 {
        assert_eq!(level_number(level_of_number(number)), number);
    }
    assert_eq!(level_of_number(77), LogLevel::Trace);
}

/// A plugin's header, as the worker finds it behind [`ROOT_SYMBOL`].
fn symbol(header: Header) -> RootSymbol {
    let header: &'static Header = Box::leak(Box::new(header));
    // SAFETY: the symbol's value is the header's address, and both types are only that.
    unsafe { core::mem::transmute::<&'static Header, RootSymbol>(header) }
}

#[test]
fn a_plugin_with_this_layout_is_taken() {
    extern "C" fn table() -> *const PluginTable {
        core::ptr::null()
    }
    extern "C" fn constructor() -> RootResult {
        root(table)
    }
    assert_eq!(symbol(header(constructor)).check(), Ok(()));
}

/// Tables of the same names and the same version in which something else has changed.
macro_rules! other {
    ($name:ident, $reply:ty, $level:ty) => {
        #[allow(dead_code, reason = "only the layout is of interest")]
        mod $name {
            use super::*;

            #[repr(C)]
            #[derive(StableAbi)]
            pub(super) struct CallerTable {
                struct_size: usize,
                context: *mut c_void,
                send: Option<
                    unsafe extern "C" fn(
                        context: *mut c_void,
                        message: Text,
                        reply: $reply,
                    ) -> Status,
                >,
                is_cancelled: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
                cancel_fd: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
                log_level: $level,
            }

            #[repr(C)]
            #[derive(StableAbi)]
            pub(super) struct PluginTable {
                magic: u64,
                abi_major: u32,
                abi_minor: u32,
                struct_size: usize,
                manifest: Text,
                launch: Option<
                    unsafe extern "C" fn(caller: *const CallerTable, request: Text) -> Status,
                >,
            }

            #[repr(C)]
            #[derive(StableAbi)]
            #[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootFields)))]
            #[sabi(missing_field(panic))]
            pub(super) struct Root {
                table: extern "C" fn() -> *const PluginTable,
                #[sabi(last_prefix_field)]
                caller: extern "C" fn() -> *const CallerTable,
            }

            impl RootModule for RootRef {
                abi_stable::declare_root_module_statics! {RootRef}
                const BASE_NAME: &'static str = "distant_plugin";
                const NAME: &'static str = "distant_plugin";
                const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.1.0");
            }
        }
    };
}

other!(another_reply, *mut u8, u32);
other!(another_level, *mut Text, u64);

#[test]
fn a_plugin_with_another_layout_is_refused_in_one_line() {
    extern "C" fn constructor() -> RootResult {
        unreachable!("nothing is called before the layout is known")
    }
    let check = |header: Header| {
        let reason = symbol(header).check().unwrap_err();
        assert!(!reason.contains('\n') && (10..=300).contains(&reason.len()), "{reason}");
        reason
    };
    // SAFETY: the constructor is never called, so it does not matter what it would make.
    let (reply, level) = unsafe {
        (
            LibHeader::from_constructor::<another_reply::RootRef>(
                constructor,
                CheckTypeLayout::Yes,
            ),
            LibHeader::from_constructor::<another_level::RootRef>(
                constructor,
                CheckTypeLayout::Yes,
            ),
        )
    };
    assert_eq!(check(reply), "in `send`: mismatched type, expected Text, found u8");
    assert_eq!(check(level), "in `log_level`: mismatched type, expected u32, found u64");
}
