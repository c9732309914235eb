//! A process that loads a library and watches what it does meanwhile.
//!
//! A plugin says what it is while nobody has asked for a launch, on every `distant plugin list`. So
//! all it may do then is to return its table: start no thread, open nothing and print nothing.

#![allow(unsafe_code, reason = "loads foreign code and calls it")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use distant_plugin_api::abi::{self, PluginTable, TableFunction};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use serde::{Deserialize, Serialize};

/// What a library did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Watched {
    /// Why it could not be loaded or has no table.
    pub(crate) error: Option<String>,
    /// What is wrong with its table, or changed from one look to the next.
    pub(crate) table: Option<String>,
    /// Threads more than before.
    pub(crate) threads: usize,
    /// Descriptors that were not there before, as the kernel names them.
    pub(crate) opened: Vec<String>,
    /// Bytes that it printed.
    pub(crate) printed: u64,
    /// How long it took until the table was there.
    pub(crate) microseconds: u64,
}

/// Loads a library, watches it, and prints what it did as JSON: what the hidden
/// `distant plugin-probe PATH` does.
pub fn probe(path: &Path) -> ExitCode {
    let Some((mut report, printed)) = redirect() else { return ExitCode::FAILURE };
    let (threads, descriptors) = (threads(), descriptors());
    let start = Instant::now();
    let (mut watched, library) = match load(path) {
        Ok(library) => (Watched::default(), Some(library)),
        Err(error) => (Watched { error: Some(error), ..Watched::default() }, None),
    };
    if let Some((library, first)) = &library {
        watched.microseconds = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        watched.table = look_again(library, *first, path);
    }
    watched.threads = self::threads().saturating_sub(threads);
    let opened = self::descriptors().into_iter();
    let opened = opened.filter(|(number, name)| descriptors.get(number) != Some(name));
    watched.opened = opened.map(|(_, name)| name).collect();
    watched.printed = printed.metadata().map_or(0, |it| it.len());
    let line = serde_json::to_vec(&watched).unwrap_or_default();
    let written = report.write_all(&line);
    // SAFETY: it touches no memory, and runs nothing of the library any more.
    unsafe { libc::_exit(i32::from(written.is_err())) }
}

/// Moves standard output out of the library's reach, and catches what it prints in a file.
fn redirect() -> Option<(File, File)> {
    let report = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 100).ok()?;
    let printed = rustix::fs::memfd_create("printed", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    rustix::stdio::dup2_stdout(&printed).ok()?;
    rustix::stdio::dup2_stderr(&printed).ok()?;
    Some((File::from(report), File::from(printed)))
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn descriptors() -> BTreeMap<String, String> {
    let Ok(folder) = rustix::fs::open(
        "/proc/self/fd",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    ) else {
        return BTreeMap::new();
    };
    let own = folder.as_raw_fd().to_string();
    let Ok(entries) = rustix::fs::Dir::new(folder) else { return BTreeMap::new() };
    let named = entries.filter_map(|entry| {
        let number = entry.ok()?.file_name().to_str().ok()?.to_owned();
        let target = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
        (number != own).then(|| (number, target.display().to_string()))
    });
    named.collect()
}

/// Loads the library and asks for its table.
fn load(path: &Path) -> Result<(Library, *const PluginTable), String> {
    // SAFETY: the library's initialisers run here; this process has nothing to lose.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| {
        std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
    })?;
    match table(&library) {
        Some(table) if !table.is_null() => Ok((library, table)),
        Some(_) => Err("its table is null".to_owned()),
        None => Err(format!("it has no symbol `{}`", abi::SYMBOL)),
    }
}

fn table(library: &Library) -> Option<*const PluginTable> {
    // SAFETY: whatever exports this name promises that it is this function.
    let function = unsafe { library.get::<TableFunction>(abi::SYMBOL.as_bytes()) };
    function.ok().map(|function| function())
}

/// Asks for the table again and again: it has to be the same one, with the same content.
fn look_again(library: &Library, first: *const PluginTable, path: &Path) -> Option<String> {
    // SAFETY: it is not null, and the plugin promises what it is.
    let read = || unsafe { PluginTable::read(first) };
    let before = match read() {
        Ok(table) => table,
        Err(error) => return Some(error.to_string()),
    };
    // SAFETY: the plugin promises that it stays valid while the library is loaded.
    let manifest = |table: &PluginTable| unsafe { table.manifest.read() }.map(str::to_owned);
    let text = match manifest(&before) {
        Ok(text) => text,
        Err(error) => return Some(format!("its manifest cannot be read: {error}")),
    };
    // SAFETY: as in `load`; it is loaded already, so nothing of it runs.
    let again = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.ok();
    for library in std::iter::once(library).chain(&again) {
        if table(library) != Some(first) {
            return Some("another call returns another table".to_owned());
        }
    }
    let Ok(after) = read() else { return Some("its table goes bad".to_owned()) };
    let launches = (before.launch.map(|it| it as usize), after.launch.map(|it| it as usize));
    if launches.0 != launches.1 || manifest(&after).ok() != Some(text) {
        return Some("its table changes".to_owned());
    }
    std::mem::forget(again);
    None
}
