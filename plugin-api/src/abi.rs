//! The C tables that a plugin's library and the host hand each other.
//!
//! A library exports one symbol, [`SYMBOL`]. It returns a table with a manifest and a function;
//! everything else travels as the JSON messages of [`crate::message`] through that function's two
//! ends. `include/distant_plugin.h` says the same in C, and a test compares every offset.
//!
//! Rust plugins also export an `abi_stable` root module over the same tables, so that the host can
//! compare the layouts before it calls anything. This file alone knows `abi_stable`.

#![allow(unsafe_code, reason = "reads tables and texts that another compilation unit made")]

use core::ffi::c_void;
use core::mem::{offset_of, size_of};

use abi_stable::abi_stability::abi_checking::{check_layout_compatibility, AbiInstability};
use abi_stable::library::{
    AbiHeader, CheckTypeLayout, LibHeader, LibraryError, RootModule, RootModuleError,
    RootModuleResult,
};
use abi_stable::marker_type::ErasedPrefix;
use abi_stable::prefix_type::{PrefixRef, PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::type_layout::TLFieldOrFunction;
use abi_stable::StableAbi;

use crate::message::{LogLevel, MESSAGE_MAX};

/// The symbol that a plugin's library exports: a [`TableFunction`].
pub const SYMBOL: &str = "distant_plugin_v1";

/// The symbol under which a library finds its root module, as `abi_stable` names it.
pub const ROOT_SYMBOL: &str = abi_stable::library::ROOT_MODULE_LOADER_NAME;

/// First member of every [`PluginTable`]: `distantp` in ASCII.
pub const PLUGIN_MAGIC: u64 = 0x6469_7374_616e_7470;

/// Changes only together with [`SYMBOL`].
pub const ABI_MAJOR: u32 = 1;

/// Counts the members appended to the tables. 1: [`CallerTable::log_level`].
pub const ABI_MINOR: u32 = 1;

/// What [`SYMBOL`] is: it returns the library's table, the same one each time.
pub type TableFunction = extern "C" fn() -> *const PluginTable;

/// [`PluginTable::launch`]. The tables spell these types out, as `abi_stable` cannot see through
/// a name.
pub type LaunchFunction = unsafe extern "C" fn(caller: *const CallerTable, request: Text) -> Status;

/// [`CallerTable::send`].
pub type SendFunction =
    unsafe extern "C" fn(context: *mut c_void, message: Text, reply: *mut Text) -> Status;

/// [`CallerTable::is_cancelled`] and [`CallerTable::cancel_fd`].
pub type AskFunction = unsafe extern "C" fn(context: *mut c_void) -> i32;

/// UTF-8 that somebody else owns: no terminating NUL, nobody frees it.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct Text {
    /// The first byte; may be null where `len` is 0.
    pub ptr: *const u8,
    /// How many bytes there are, at most [`MESSAGE_MAX`].
    pub len: usize,
}

// SAFETY: a text is never written through, and who hands one out promises how long it lives.
unsafe impl Send for Text {}
// SAFETY: as above.
unsafe impl Sync for Text {}

/// Why a text of the other side cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidText {
    /// It has bytes, but no address.
    #[error("its address is null")]
    Null,
    /// It is longer than any message may be.
    #[error("it has {0} bytes, more than {MESSAGE_MAX}")]
    TooLong(usize),
    /// Its bytes are no UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
}

impl Text {
    /// No text at all.
    pub const EMPTY: Self = Self { ptr: core::ptr::null(), len: 0 };

    /// Points at a text for as long as that one lives and is not changed.
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() }
    }

    /// Reads what the text points at.
    ///
    /// # Errors
    ///
    /// Each variant of [`InvalidText`]; nothing is read unless address and length make sense.
    ///
    /// # Safety
    ///
    /// A non-null `ptr` must point at `len` bytes that live, unchanged, for as long as `'a`.
    pub unsafe fn read<'a>(self) -> Result<&'a str, InvalidText> {
        if self.len == 0 {
            return Ok("");
        }
        if self.ptr.is_null() {
            return Err(InvalidText::Null);
        }
        if self.len > MESSAGE_MAX {
            return Err(InvalidText::TooLong(self.len));
        }
        // SAFETY: the caller's promise; the length is bounded above.
        let bytes = unsafe { core::slice::from_raw_parts(self.ptr, self.len) };
        core::str::from_utf8(bytes).map_err(|_| InvalidText::NotUtf8)
    }
}

/// How a call over the boundary ended. A number that is none of these reads as [`Status::FAILED`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, StableAbi)]
pub struct Status(pub i32);

impl Status {
    /// It did what it should.
    pub const OK: Self = Self(0);
    /// It did not. A `launch` has said why with an `error` message.
    pub const FAILED: Self = Self(1);
    /// Nobody wants the launch any more.
    pub const CANCELLED: Self = Self(2);
    /// The other side's table, text or message makes no sense.
    pub const MALFORMED: Self = Self(3);
}

/// The table a plugin hands out: all that its library exports.
///
/// # Changing it
///
/// Hosts and plugins are built apart, so this layout is a promise. Tables grow at the end and
/// announce it by `struct_size`; the `abi_stable` root is never touched (it decides only where
/// both sides have the same minor). To send more data, add a member to a JSON message instead:
/// that needs no change here.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct PluginTable {
    /// [`PLUGIN_MAGIC`]; anything else is not a plugin.
    pub magic: u64,
    /// [`ABI_MAJOR`] as the plugin was built.
    pub abi_major: u32,
    /// [`ABI_MINOR`] as the plugin was built.
    pub abi_minor: u32,
    /// Bytes of this table as the plugin was built; a member counts only if they cover it.
    pub struct_size: usize,
    /// A [`Manifest`](crate::Manifest) in JSON, valid for as long as the library is loaded.
    pub manifest: Text,
    /// Runs one launch to its end; a [`LaunchRequest`](crate::LaunchRequest) in JSON goes in and
    /// is valid until the call returns. Called once in a process. Never null.
    ///
    /// A launch that fails says why by sending an `error` message and returns
    /// [`Status::FAILED`]; [`Status::OK`] alone means that all is done.
    pub launch: Option<unsafe extern "C" fn(caller: *const CallerTable, request: Text) -> Status>,
}

/// The table a host gives to [`PluginTable::launch`]. It and its context are valid for as long as
/// the process lives, so a thread that outlives its launch does no harm; it is told `cancelled`.
///
/// Every function may be called from any thread, several at a time. It grows as the plugin's does.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct CallerTable {
    /// Bytes of this table as the host was built; a member counts only if they cover it.
    pub struct_size: usize,
    /// To be given to each function; means nothing to the plugin.
    pub context: *mut c_void,
    /// Sends one [`PluginMessage`](crate::message::PluginMessage) in JSON. After an `ask` or an
    /// `offer` it waits for the answer and puts it into `reply`, which may be null where no answer
    /// is due. The reply is borrowed: valid until the same thread calls `send` again, or ends.
    pub send: Option<
        unsafe extern "C" fn(context: *mut c_void, message: Text, reply: *mut Text) -> Status,
    >,
    /// Returns 1 once nobody wants the launch any more, else 0.
    pub is_cancelled: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
    /// Returns a file descriptor that becomes readable, and stays so, when the launch is
    /// cancelled. The plugin neither reads nor closes it.
    pub cancel_fd: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
    /// What the host keeps of the plugin's log: 0 nothing, 1 errors, 2 warnings, 3 information,
    /// 4 details, 5 everything. Since minor 1.
    pub log_level: u32,
}

// SAFETY: `context` is given back only to functions that take calls from any thread.
unsafe impl Send for CallerTable {}
// SAFETY: as above.
unsafe impl Sync for CallerTable {}

/// Why a table of the other side cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTable {
    /// There is none.
    #[error("its table is null")]
    Null,
    /// Its address cannot be one of a table.
    #[error("its table is not aligned")]
    Unaligned,
    /// It is not a plugin's table.
    #[error("its table starts with {0:#018x}, not with the magic number of plugins")]
    Magic(u64),
    /// It is for hosts that know another ABI.
    #[error("it has plugin ABI {0}.{1}, this program has {ABI_MAJOR}.{ABI_MINOR}")]
    Major(u32, u32),
    /// It ends before the members that every table has.
    #[error("its table has {0} bytes, fewer than the {1} that every version has")]
    Truncated(usize, usize),
    /// A function that has to be there is null.
    #[error("its table has no `{0}`")]
    Missing(&'static str),
}

/// Copies a table's first `size` bytes over `into`, which stays as it is behind them.
///
/// # Safety
///
/// `table` must point at `size` readable bytes, and any bytes must make a valid `T`.
unsafe fn copy_covered<T>(table: *const T, size: usize, into: &mut T) {
    let size = size.min(size_of::<T>());
    // SAFETY: the caller's promise for the source; `into` is a whole `T` elsewhere.
    unsafe {
        core::ptr::copy_nonoverlapping(table.cast::<u8>(), core::ptr::from_mut(into).cast(), size);
    }
}

impl PluginTable {
    /// Bytes that every table of this major has.
    pub const SIZE_MIN: usize =
        offset_of!(PluginTable, launch) + size_of::<Option<LaunchFunction>>();

    /// Makes a plugin's table, as this build knows it.
    pub const fn new(manifest: Text, launch: LaunchFunction) -> Self {
        Self {
            magic: PLUGIN_MAGIC,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            struct_size: size_of::<Self>(),
            manifest,
            launch: Some(launch),
        }
    }

    /// Copies what a plugin's table has of the members that this build knows.
    ///
    /// # Errors
    ///
    /// Each variant of [`InvalidTable`]. Nothing behind a member is read before that one is right.
    ///
    /// # Safety
    ///
    /// A non-null `table` must point at something whose first 8 bytes can be read and that, where
    /// magic number and major are right, is a table of `struct_size` bytes.
    pub unsafe fn read(table: *const Self) -> Result<Self, InvalidTable> {
        if table.is_null() {
            return Err(InvalidTable::Null);
        }
        if !table.is_aligned() {
            return Err(InvalidTable::Unaligned);
        }
        // SAFETY: not null, aligned, and these bytes can be read as the caller promised.
        let magic = unsafe { (*table).magic };
        if magic != PLUGIN_MAGIC {
            return Err(InvalidTable::Magic(magic));
        }
        // SAFETY: with this magic number it is a table, and every major starts with these.
        let (major, minor, size) =
            unsafe { ((*table).abi_major, (*table).abi_minor, (*table).struct_size) };
        if major != ABI_MAJOR {
            return Err(InvalidTable::Major(major, minor));
        }
        if size < Self::SIZE_MIN {
            return Err(InvalidTable::Truncated(size, Self::SIZE_MIN));
        }
        let mut covered = Self {
            magic: 0,
            abi_major: 0,
            abi_minor: 0,
            struct_size: 0,
            manifest: Text::EMPTY,
            launch: None,
        };
        // SAFETY: `size` bytes are there as the caller promised; every member takes any bytes.
        unsafe { copy_covered(table, size, &mut covered) };
        if covered.launch.is_none() {
            return Err(InvalidTable::Missing("launch"));
        }
        Ok(covered)
    }
}

impl CallerTable {
    /// Bytes that every table of this major has.
    pub const SIZE_MIN: usize =
        offset_of!(CallerTable, cancel_fd) + size_of::<Option<AskFunction>>();

    /// Copies what a host's table has of the members that this build knows. An older host keeps
    /// the log at [`LogLevel::Info`].
    ///
    /// # Errors
    ///
    /// Each variant of [`InvalidTable`] but those for magic number and major.
    ///
    /// # Safety
    ///
    /// A non-null `table` must point at a table of `struct_size` bytes.
    pub unsafe fn read(table: *const Self) -> Result<Self, InvalidTable> {
        if table.is_null() {
            return Err(InvalidTable::Null);
        }
        if !table.is_aligned() {
            return Err(InvalidTable::Unaligned);
        }
        // SAFETY: not null, aligned, and every table starts with this as the caller promised.
        let size = unsafe { (*table).struct_size };
        if size < Self::SIZE_MIN {
            return Err(InvalidTable::Truncated(size, Self::SIZE_MIN));
        }
        let mut covered = Self {
            struct_size: 0,
            context: core::ptr::null_mut(),
            send: None,
            is_cancelled: None,
            cancel_fd: None,
            log_level: level_number(LogLevel::Info),
        };
        // SAFETY: `size` bytes are there as the caller promised; every member takes any bytes.
        unsafe { copy_covered(table, size, &mut covered) };
        for (name, missing) in [
            ("send", covered.send.is_none()),
            ("is_cancelled", covered.is_cancelled.is_none()),
            ("cancel_fd", covered.cancel_fd.is_none()),
        ] {
            if missing {
                return Err(InvalidTable::Missing(name));
            }
        }
        Ok(covered)
    }
}

/// Turns a level into its number in [`CallerTable::log_level`].
pub const fn level_number(level: LogLevel) -> u32 {
    match level {
        LogLevel::Off => 0,
        LogLevel::Error => 1,
        LogLevel::Warn => 2,
        LogLevel::Info => 3,
        LogLevel::Debug => 4,
        LogLevel::Trace => 5,
    }
}

/// Turns a number in [`CallerTable::log_level`] into its level; a higher one means everything.
pub const fn level_of_number(number: u32) -> LogLevel {
    match number {
        0 => LogLevel::Off,
        1 => LogLevel::Error,
        2 => LogLevel::Warn,
        3 => LogLevel::Info,
        4 => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}

/// The `abi_stable` root module of a Rust plugin: a second way to the same table, which carries
/// the layout of both tables. Never touched; see [`PluginTable`].
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootFields)))]
#[sabi(missing_field(panic))]
pub struct Root {
    /// The function behind [`SYMBOL`].
    pub table: extern "C" fn() -> *const PluginTable,
    /// How `launch` gets its caller. Only its type matters: it brings in [`CallerTable`].
    #[sabi(last_prefix_field)]
    pub caller: extern "C" fn() -> *const CallerTable,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "distant_plugin";
    const NAME: &'static str = "distant_plugin";
    // The ABI's version, not the product's.
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.1.0");
}

/// What a Rust plugin exports as [`ROOT_SYMBOL`]. For [`export_plugin!`](crate::export_plugin).
#[doc(hidden)]
pub type Header = LibHeader;

/// What the function in a [`Header`] returns.
#[doc(hidden)]
pub type RootResult = RootModuleResult;

/// Makes a header whose layout is compared before `constructor` is called.
#[doc(hidden)]
pub const fn header(constructor: extern "C" fn() -> RootResult) -> Header {
    // SAFETY: `constructor` is made by `export_plugin!` alone and returns what `root` does.
    unsafe { LibHeader::from_constructor::<RootRef>(constructor, CheckTypeLayout::Yes) }
}

/// Makes the root module around a plugin's table.
#[doc(hidden)]
pub fn root(table: TableFunction) -> RootResult {
    extern "C" fn caller() -> *const CallerTable {
        core::ptr::null()
    }
    let root = Root { table, caller }.leak_into_prefix();
    // SAFETY: erased here and given back its type by `init_root_module`, once the layout is known
    // to be that of `RootRef`.
    let erased: PrefixRef<ErasedPrefix> = unsafe { root.to_prefix_ref().cast() };
    RootResult::from(Ok::<_, RootModuleError>(erased))
}

/// The value of [`ROOT_SYMBOL`] in a library that has one.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct RootSymbol(abi_stable::library::AbiHeaderRef);

impl RootSymbol {
    /// Compares the layout of the library's tables with this build's, without calling anything.
    ///
    /// The version of this crate makes no difference, although `abi_stable` would have it so: the
    /// messages and the Rust side of the API change more often than the tables.
    ///
    /// # Errors
    ///
    /// What differs, in one line.
    pub fn check(self) -> Result<(), String> {
        let header = self.0.upgrade().map_err(|error| match error {
            // Its own text prints the magic string as 32 decimal numbers.
            LibraryError::InvalidAbiHeader(AbiHeader { abi_major, abi_minor, .. }) => {
                format!("it was built with another abi_stable, {abi_major}.{abi_minor}")
            }
            error => first_error(&error.to_string()),
        })?;
        let layout = header.layout().ok_or("it does not say how its tables are laid out")?;
        let Err(mut found) = check_layout_compatibility(RootRef::LAYOUT, layout) else {
            return Ok(());
        };
        for error in &mut found.errors {
            error.errs.retain(|it| !matches!(it, AbiInstability::PackageVersion(_)));
        }
        found.errors.retain(|error| !error.errs.is_empty());
        let Some(first) = found.errors.first() else { return Ok(()) };
        let mut path = first.stack_trace.iter().filter_map(|step| match step.expected {
            TLFieldOrFunction::Field(field) => Some(field.name()),
            TLFieldOrFunction::Function(_) => None,
        });
        // Parameters, results and what pointers lead to have names that say nothing.
        let named =
            |name: &&str| name.starts_with(char::is_alphabetic) && !name.starts_with("param_");
        let member = path.rfind(named);
        let place = member.map(|name| format!("in `{name}`: ")).unwrap_or_default();
        Err(place + &first_error(&found.to_string()))
    }
}

/// Takes the first `Error:` block out of a report of `abi_stable`, which may have 100 kB, and makes
/// one line of it.
fn first_error(report: &str) -> String {
    let block = report.split_once("Error:").map_or(report, |(_, block)| block);
    let lines = block.lines().map(str::trim).skip_while(|line| line.is_empty());
    let words = lines.take_while(|line| !line.is_empty()).flat_map(str::split_whitespace);
    let line = words.collect::<Vec<_>>().join(" ");
    let line = line.replace(" Expected: ", ", expected ").replace(" Found: ", ", found ");
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests;
