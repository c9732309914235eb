//! Reading the person's own files: whatever their names lead to, it comes to an end.
//!
//! A name may be that of a pipe, which would wait for its writer, or of a device without an end.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use distant_plugin_api::LaunchError;
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags};
use zeroize::Zeroizing;

use crate::guard::system;

/// Reads a whole file.
///
/// # Errors
///
/// As the system says; `InvalidInput` if it is no regular file, `FileTooLarge` if it has more than
/// `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>> {
    read_judged(path, most).map(|(bytes, _)| bytes)
}

/// Reads a whole file, and gives its permissions as well if it belongs to whoever runs this and
/// anybody else has any. They are those of what was read, whatever its name has come to mean since.
///
/// # Errors
///
/// As [`read`].
pub(crate) fn read_judged(path: &Path, most: u64) -> Result<(Zeroizing<Vec<u8>>, Option<u32>)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let about = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let size = usize::try_from(about.st_size).unwrap_or(0).min(usize::try_from(most).unwrap_or(0));
    // Of the right size from the start, so that no piece of a key stays behind in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!("it has more than {most} bytes");
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    let mode = about.st_mode & 0o7777;
    let is_ours = about.st_uid == rustix::process::getuid().as_raw();
    Ok((bytes, (is_ours && mode & 0o077 != 0).then_some(mode)))
}

/// Reads a whole file as text, with a sign for what is none.
///
/// # Errors
///
/// As [`read`].
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    read(path, most).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes a file that has no place in any folder, and so is gone with the last process that holds it
/// open, however that ends. Others find it by the path as long as this process does.
///
/// # Errors
///
/// The system is out of something.
pub(crate) fn in_memory(text: &[u8]) -> std::result::Result<(File, PathBuf), LaunchError> {
    let file = rustix::fs::memfd_create("distant", MemfdFlags::CLOEXEC).map_err(system)?;
    let mut file = File::from(file);
    file.write_all(text).map_err(system)?;
    let process = rustix::process::getpid().as_raw_nonzero();
    let path = PathBuf::from(format!("/proc/{process}/fd/{}", file.as_raw_fd()));
    Ok((file, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_of_a_good_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        assert_eq!(read(&file, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RWXU).unwrap();
        for path in [&pipe, Path::new("/dev/zero"), folder.path()] {
            assert_eq!(read(path, 5).unwrap_err().kind(), ErrorKind::InvalidInput, "{path:?}");
        }
        assert_eq!(read(&folder.path().join("none"), 5).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
