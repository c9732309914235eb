//! Whether a file can be run on this machine, told from its first bytes.
//!
//! The dynamic loader would refuse a wrong file too, but in words that say neither what is wrong
//! nor what to do, and a half-copied library may even crash it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::discovery::Kind;
use super::trust::{quoted, Complaint};
use crate::elf::machine::{self, ARM_64, X86_64};
use crate::elf::{self, Header};
use crate::paths;

/// Bytes of a script's first line that the kernel looks at.
const LINE_MAX: usize = 256;
/// Most program headers that are looked at; real files have about ten.
const HEADERS_MAX: u64 = 64;

/// Checks that a file is what `kind` says and made for this machine.
pub(super) fn check(file: &File, path: &Path, kind: Kind) -> Result<(), Complaint> {
    let length = file.metadata().map(|it| it.len()).unwrap_or(0);
    if length == 0 {
        return Err(Complaint::new("it is empty").mend("build it or copy it again"));
    }
    if kind == Kind::Executable {
        let script = first_line(file).filter(|it| it.starts_with(b"#!"));
        // Nobody is told to make executable what could not run all the same.
        let could_run = script.is_some() || header(file).is_some();
        if could_run && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_err() {
            let complaint = Complaint::new("it may not be executed");
            return Err(complaint.mend(format!("chmod +x {}", quoted(path))));
        }
        if let Some(line) = script {
            return check_interpreter(&line[2..], path);
        }
    }
    let Some(elf) = header(file) else {
        return Err(match kind {
            Kind::Library => Complaint::new("it is no shared library")
                .mend("build it as a `cdylib`, or with `cc -shared`"),
            Kind::Executable => Complaint::new("it is neither a program nor a script")
                .mend("begin it with a line such as `#!/bin/sh`"),
        });
    };
    // The system may know how to run a foreign program, but never a foreign library.
    if let Some(complaint) = foreign(elf).filter(|_| kind == Kind::Library) {
        return Err(complaint);
    }
    if kind == Kind::Library && elf.kind != elf::SHARED {
        return Err(Complaint::new("it is no shared library")
            .mend("build it as a `cdylib`, or with `cc -shared`"));
    }
    if whole(file, elf).is_none_or(|whole| length < whole) {
        let reason = format!("it is cut short: only {length} bytes of it are there");
        return Err(Complaint::new(reason)
            .mend("copy it again, under another name, and rename it when it is complete"));
    }
    Ok(())
}

/// What to say of a program that did not run: it is for another machine. `None` if it is for this
/// one, or for one whose programs this processor runs too.
pub(super) fn for_another_machine(file: &File) -> Option<Complaint> {
    let elf = header(file)?;
    let runs = |own: Header| {
        matches!((own.machine, elf.machine), (X86_64, machine::X86) | (ARM_64, machine::ARM))
    };
    foreign(elf).filter(|_| !own().is_some_and(runs))
}

fn foreign(elf: Header) -> Option<Complaint> {
    let own = own()?;
    let facts = |it: Header| (it.is_long, it.is_little, it.machine);
    let differs = facts(elf) != facts(own);
    let reason = || format!("it is for {}, and this is {}", name(elf), name(own));
    differs.then(|| Complaint::new(reason()).mend("build it for this machine"))
}

/// The first line of a file without its end, as far as the kernel looks at it.
fn first_line(file: &File) -> Option<Vec<u8>> {
    let mut start = vec![0; LINE_MAX];
    let length = file.read_at(&mut start, 0).ok()?;
    start.truncate(length);
    let end = start.iter().position(|byte| *byte == b'\n').unwrap_or(length);
    start.truncate(end);
    Some(start)
}

/// Checks that what a script begins with is there; the kernel would only say that something is not.
fn check_interpreter(line: &[u8], path: &Path) -> Result<(), Complaint> {
    if line.ends_with(b"\r") {
        let complaint = Complaint::new("its lines end with a carriage return, as on Windows");
        return Err(complaint.mend(format!(r"sed -i 's/\r$//' {}", quoted(path))));
    }
    let line = String::from_utf8_lossy(line);
    match line.split_whitespace().next() {
        Some(interpreter) if Path::new(interpreter).exists() => Ok(()),
        Some(interpreter) => {
            let reason = format!("its interpreter `{interpreter}` is not on this machine");
            Err(Complaint::new(reason).mend("install it, or write another one behind `#!`"))
        }
        None => Err(Complaint::new("it names no interpreter")
            .mend("begin it with a line such as `#!/bin/sh`")),
    }
}

/// What this program is.
fn own() -> Option<Header> {
    static OWN: OnceLock<Option<Header>> = OnceLock::new();
    *OWN.get_or_init(|| header(&File::open(paths::executable_to_spawn()).ok()?))
}

/// The dynamic loader that runs this program, and so its plugins; `None` if it has none.
pub(super) fn loader() -> Option<PathBuf> {
    // The kernel maps it into every program that has one.
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let is_loader = |file: &&str| {
        let name = file.rsplit('/').next().unwrap_or_default();
        name.starts_with("ld-linux") || name.starts_with("ld64.so") || name.starts_with("ld.so")
    };
    files.find(is_loader).map(PathBuf::from)
}

/// What a file is for, in words for a person.
fn name(elf: Header) -> String {
    let machine = match elf.machine {
        machine::X86 => "x86",
        machine::MIPS => "MIPS",
        machine::POWER => "PowerPC",
        machine::POWER_64 => "64-bit PowerPC",
        machine::S390 => "S/390",
        machine::ARM => "32-bit ARM",
        X86_64 => "x86-64",
        ARM_64 => "64-bit ARM",
        machine::RISC_V => "RISC-V",
        machine::LOONG => "LoongArch",
        other => return format!("machine type {other}"),
    };
    let order = if elf.is_little { "" } else { ", big endian" };
    let bits = if elf.is_long { "64" } else { "32" };
    format!("{machine} ({bits} bits{order})")
}

fn header(file: &File) -> Option<Header> {
    let mut start = [0; elf::HEADER];
    file.read_exact_at(&mut start, 0).ok()?;
    Header::read(&start)
}

/// Bytes that a file has at least if it is whole; `None` if what says so is missing itself.
fn whole(file: &File, elf: Header) -> Option<u64> {
    // Numbers of the header's native width are 8 or 4 bytes.
    let width = if elf.is_long { 8 } else { 4 };
    let number = |at: u64, bytes: usize| -> Option<u64> {
        let mut buffer = [0; 8];
        file.read_exact_at(&mut buffer[..bytes], at).ok()?;
        Some(if elf.is_little {
            u64::from_le_bytes(buffer)
        } else {
            u64::from_be_bytes(buffer) >> (64 - 8 * bytes)
        })
    };
    let (programs, sections, sizes) = if elf.is_long { (32, 40, 54) } else { (28, 32, 42) };
    let (programs, sections) = (number(programs, width)?, number(sections, width)?);
    let size = |index: u64| number(sizes + 2 * index, 2);
    let (each_program, program_count, each_section, section_count) =
        (size(0)?, size(1)?, size(2)?, size(3)?);

    let table = |start: u64, each: u64, count: u64| start.saturating_add(each * count);
    let tables = table(sections, each_section, section_count).max(table(
        programs,
        each_program,
        program_count,
    ));
    let segments = (0..program_count.min(HEADERS_MAX)).map(|index| {
        let at = |offset: u64| table(programs, each_program, index).saturating_add(offset);
        let (offset, length) = if elf.is_long { (at(8), at(32)) } else { (at(4), at(16)) };
        Some(number(offset, width)?.saturating_add(number(length, width)?))
    });
    segments.chain([Some(tables)]).try_fold(0, |most, end| Some(end?.max(most)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn complaint(content: &[u8], mode: u32, kind: Kind) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        check(&File::open(&path).unwrap(), &path, kind).err().map(|it| it.reason)
    }

    /// This very test program, which is position-independent and so passes for a library.
    fn whole() -> Vec<u8> {
        fs::read(paths::executable_to_spawn()).unwrap()
    }

    #[test]
    fn a_file_for_this_machine_passes() {
        assert_eq!(complaint(&whole(), 0o644, Kind::Library), None);
        assert_eq!(complaint(&whole(), 0o755, Kind::Executable), None);
        assert_eq!(complaint(b"#!/bin/sh\n", 0o755, Kind::Executable), None);
    }

    #[test]
    fn a_file_that_cannot_run_here_is_refused_with_the_reason() {
        let refused = |content: &[u8], mode, kind, expected: &str| {
            assert_eq!(complaint(content, mode, kind).as_deref(), Some(expected));
        };
        refused(b"", 0o755, Kind::Library, "it is empty");
        refused(b"GIF89a", 0o755, Kind::Library, "it is no shared library");
        refused(b"GIF89a", 0o755, Kind::Executable, "it is neither a program nor a script");
        refused(b"#!/bin/sh\n", 0o644, Kind::Executable, "it may not be executed");
        refused(b"root:x:0:0", 0o644, Kind::Executable, "it is neither a program nor a script");
        refused(b"#!\nexit", 0o755, Kind::Executable, "it names no interpreter");
        let reason = "its interpreter `/no/such/sh` is not on this machine";
        refused(b"#! /no/such/sh -e\nexit", 0o755, Kind::Executable, reason);
        let reason = "its lines end with a carriage return, as on Windows";
        refused(b"#!/bin/sh\r\nexit", 0o755, Kind::Executable, reason);

        let whole = whole();
        let half = &whole[..whole.len() / 2];
        let reason = format!("it is cut short: only {} bytes of it are there", half.len());
        refused(half, 0o644, Kind::Library, &reason);
        for length in [20, 50, 100] {
            let reason = format!("it is cut short: only {length} bytes of it are there");
            refused(&whole[..length], 0o644, Kind::Library, &reason);
        }

        let mut foreign = whole.clone();
        foreign[18] = 22;
        let reason = complaint(&foreign, 0o644, Kind::Library).unwrap();
        assert!(reason.starts_with("it is for S/390 (64 bits), and this is "), "{reason}");

        let mut fixed = whole;
        fixed[16] = 2;
        refused(&fixed, 0o644, Kind::Library, "it is no shared library");
    }

    #[test]
    fn garbage_after_the_magic_bytes_does_no_harm() {
        for (class, order) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let mut content = vec![0xff; 4096];
            content[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
            assert!(complaint(&content, 0o644, Kind::Library).is_some());
        }
    }
}
