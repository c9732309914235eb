//! Which program a launch may bring to where its server is to run, and what it is.
//!
//! Its content is read once and remembered for as long as its file stays as it is: a launch is not to
//! wait for a hash. Only a program is ever taken, so that no option can bring a key file elsewhere.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use distant_plugin_api::message::Upload;
use distant_plugin_api::{ErrorKind, LaunchError};
use sha2::{Digest, Sha256};

use crate::elf::{self, machine, Header};

/// Programs that are remembered.
const REMEMBERED: usize = 16;
/// Bytes of the largest program: whoever wants one read that has no end is not to keep a thread busy.
const SIZE_MAX: u64 = 1 << 30;
/// Bytes that are read at once.
const PIECE: usize = 256 * 1024;

/// The programs of this machine that launches have wanted to bring elsewhere.
#[derive(Debug, Clone, Default)]
pub(super) struct Programs(Arc<Mutex<Vec<(Identity, Upload)>>>);

/// A file with its content, as far as a system can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity(PathBuf, [u64; 3], [i64; 4]);

impl Identity {
    fn of(path: &Path, it: &Metadata) -> Self {
        let times = [it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()];
        Self(path.to_owned(), [it.dev(), it.ino(), it.size()], times)
    }
}

impl Programs {
    /// Says what the program at `path` is; `always` is whether it is to run wherever it is brought.
    ///
    /// # Errors
    ///
    /// `invalid_option`: there is no file, or it is no program.
    pub(super) async fn look(&self, path: PathBuf, always: bool) -> Result<Upload, LaunchError> {
        let programs = self.clone();
        let shown = path.display().to_string();
        let looked = tokio::task::spawn_blocking(move || programs.read(&path));
        let looked = looked.await.unwrap_or_else(|error| Err(std::io::Error::other(error).into()));
        let upload = looked.map_err(|reason| {
            let message = format!("`{shown}` is no program that could be brought elsewhere");
            let hint =
                "`--distant-upload` takes `never`, `auto` for this program, or the path of one";
            match reason {
                Unfit::Unreadable(error) => {
                    LaunchError::new(ErrorKind::InvalidOption, message).because(&error)
                }
                Unfit::NoProgram => LaunchError::new(ErrorKind::InvalidOption, message)
                    .caused_by("it is no ELF file that can be run"),
                Unfit::TooLong => LaunchError::new(ErrorKind::InvalidOption, message)
                    .caused_by("it is larger than 1 GiB"),
            }
            .with_hint(hint)
        })?;
        Ok(Upload { always, ..upload })
    }

    fn read(&self, path: &Path) -> Result<Upload, Unfit> {
        if !path.metadata()?.is_file() {
            return Err(Unfit::NoProgram);
        }
        // It may be another one by now, and opening a pipe would wait for its other end.
        let options = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut file = File::options().read(true).custom_flags(options).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Unfit::NoProgram);
        }
        let identity = Identity::of(path, &metadata);
        if let Some(upload) = self.remembered(&identity) {
            return Ok(upload);
        }
        let mut piece = vec![0; PIECE];
        let count = read_full(&mut file, &mut piece)?;
        let (system, machine) = purpose(&piece[..count]).ok_or(Unfit::NoProgram)?;
        if metadata.len() > SIZE_MAX {
            return Err(Unfit::TooLong);
        }
        let (mut hash, mut size) = (Sha256::new(), 0);
        let mut rest = count;
        while rest > 0 {
            hash.update(&piece[..rest]);
            size += rest as u64;
            if size > SIZE_MAX {
                return Err(Unfit::TooLong);
            }
            rest = read_full(&mut file, &mut piece)?;
        }
        let sha256 = hex::encode(hash.finalize());
        let upload = Upload { file: path.to_owned(), size, sha256, system, machine, always: false };
        // One that is being written has no content yet that is worth remembering.
        if Identity::of(path, &file.metadata()?) == identity {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|(of, _)| of.0 != identity.0);
            if known.len() >= REMEMBERED {
                known.remove(0);
            }
            known.push((identity, upload.clone()));
        }
        Ok(upload)
    }

    fn remembered(&self, identity: &Identity) -> Option<Upload> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(of, _)| of == identity).map(|(_, upload)| upload.clone())
    }
}

/// Why a file is none to bring elsewhere.
enum Unfit {
    Unreadable(std::io::Error),
    NoProgram,
    TooLong,
}

impl From<std::io::Error> for Unfit {
    fn from(error: std::io::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// Reads until the piece is full or the file at its end.
fn read_full(file: &mut File, piece: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < piece.len() {
        match file.read(&mut piece[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// The system and the machine that a program is for, in the words of `uname`, by its ELF header.
fn purpose(start: &[u8]) -> Option<(String, String)> {
    let elf = Header::read(start)?;
    // What is run is an executable, or a shared object that can be put anywhere.
    if !matches!(elf.kind, elf::PROGRAM | elf::SHARED) {
        return None;
    }
    let system = match elf.system {
        0 | 3 => "Linux".to_owned(),
        2 => "NetBSD".to_owned(),
        9 => "FreeBSD".to_owned(),
        12 => "OpenBSD".to_owned(),
        other => format!("elf-system-{other}"),
    };
    let machine = match (elf.machine, elf.is_long, elf.is_little) {
        (machine::X86, false, _) => "i686".to_owned(),
        (machine::X86_64, true, _) => "x86_64".to_owned(),
        (machine::ARM, false, true) => "arm".to_owned(),
        (machine::ARM_64, true, true) => "aarch64".to_owned(),
        (machine::ARM_64, true, false) => "aarch64_be".to_owned(),
        (machine::RISC_V, true, _) => "riscv64".to_owned(),
        (machine::RISC_V, false, _) => "riscv32".to_owned(),
        (machine::POWER_64, true, true) => "ppc64le".to_owned(),
        (machine::POWER_64, true, false) => "ppc64".to_owned(),
        (machine::POWER, false, _) => "ppc".to_owned(),
        (machine::S390, true, _) => "s390x".to_owned(),
        (machine::LOONG, true, _) => "loongarch64".to_owned(),
        (machine::MIPS, true, _) => "mips64".to_owned(),
        (machine::MIPS, false, _) => "mips".to_owned(),
        (other, _, _) => format!("elf-machine-{other}"),
    };
    Some((system, machine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_a_program_is_for() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let (system, machine) = purpose(&own).unwrap();
        assert_eq!((system.as_str(), machine.as_str()), ("Linux", std::env::consts::ARCH));
        let with = |changes: &[(usize, u8)]| {
            let mut header = own[..elf::HEADER].to_vec();
            changes.iter().for_each(|(at, byte)| header[*at] = *byte);
            purpose(&header).map(|(system, machine)| format!("{system} {machine}"))
        };
        let check = |changes: &[(usize, u8)], expected: Option<&str>| {
            assert_eq!(with(changes).as_deref(), expected, "{changes:?}");
        };
        check(&[(18, 183), (19, 0)], Some("Linux aarch64"));
        check(&[(7, 9), (18, 62), (19, 0)], Some("FreeBSD x86_64"));
        check(&[(5, 2), (16, 0), (17, 2), (18, 0), (19, 22)], Some("Linux s390x"));
        check(&[(18, 99), (19, 1)], Some("Linux elf-machine-355"));
        check(&[(16, 1)], None);
        check(&[(16, 4)], None);
        check(&[(4, 3)], None);
        check(&[(0, b'#')], None);
        assert_eq!(purpose(b"\x7fELF"), None);
    }

    #[test]
    fn a_program_without_an_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        // Nothing but a hole, which takes no room.
        File::options().write(true).open(&path).unwrap().set_len(1 << 42).unwrap();
        assert!(matches!(Programs::default().read(&path), Err(Unfit::TooLong)));
    }

    #[test]
    fn a_program_is_read_again_only_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        let programs = Programs::default();
        let first = programs.read(&path).ok().unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!(first.sha256, hex::encode(Sha256::digest(&content)));
        assert_eq!(first.size, content.len() as u64);
        programs.0.lock().unwrap()[0].1.sha256 = "remembered".into();
        assert_eq!(programs.read(&path).ok().unwrap().sha256, "remembered");
        std::fs::write(&path, &content[..1000]).unwrap();
        let second = programs.read(&path).ok().unwrap();
        assert_eq!((second.size, programs.0.lock().unwrap().len()), (1000, 1));
        assert_eq!(second.sha256, hex::encode(Sha256::digest(&content[..1000])));
    }
}
