//! The file of a log: an event is a line, and the file has a limit.
//!
//! What is logged may come from a plugin or a server, so nothing in it may look like another event.
//! A file that is full is put aside while the process goes on; of what was put aside before nothing
//! is kept. Several processes may write to one file: whoever finds it full first puts it aside, and
//! the others follow.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{flock, FlockOperation};
use tracing_subscriber::fmt::MakeWriter;

use super::terminal::sanitise;

/// Bytes of a file; then it is put aside. So a log takes up twice as many.
const FILE_MAX: u64 = 10 * 1024 * 1024;

/// Bytes of a line; the rest of it is left out.
const LINE_MAX: usize = 16 * 1024;

/// A log file that is open.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    most: u64,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens a file, or makes it, with the folders above.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, FILE_MAX)
    }

    fn with_limit(path: &Path, most: u64) -> io::Result<Self> {
        // A daemon changes its folder.
        let path = std::path::absolute(path)?;
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file = Mutex::new(open(&path)?);
        let log = Self { path, most, file };
        log.make_room(&mut log.lock(), 0)?;
        Ok(log)
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the file aside if it has no room for a line of so many bytes.
    fn make_room(&self, file: &mut File, length: usize) -> io::Result<()> {
        let found = file.metadata()?;
        // A terminal or a pipe is nobody's to put aside.
        if !found.is_file() || found.len() == 0 || found.len() + length as u64 <= self.most {
            return Ok(());
        }
        // Only one of those who have this file open puts it aside.
        flock(&*file, FlockOperation::LockExclusive)?;
        let named = self.path.metadata().map(|it| (it.dev(), it.ino()));
        if named.is_ok_and(|it| it == (found.dev(), found.ino())) {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".old");
            std::fs::rename(&self.path, aside)?;
        }
        // Closing the old one unlocks it.
        *file = open(&self.path)?;
        Ok(())
    }

    fn write_line(&self, event: &[u8]) -> io::Result<()> {
        let line = one_line(event);
        let mut file = self.lock();
        // A file that cannot be put aside, as in a folder of somebody else's, is written all the
        // same: it has room until the disk is full.
        let _ = self.make_room(&mut file, line.len());
        file.write_all(line.as_bytes())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let found = file.metadata()?;
    if found.is_file() && found.permissions().mode() & 0o077 != 0 {
        // A released distant leaves its logs readable for everybody.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Makes one line of an event, with nothing in it that steers a terminal.
fn one_line(event: &[u8]) -> String {
    let event = event.strip_suffix(b"\n").unwrap_or(event);
    let shown = &event[..event.len().min(LINE_MAX)];
    let mut line = sanitise(&String::from_utf8_lossy(shown)).replace('\n', "\\n");
    if shown.len() < event.len() {
        line.push_str(&format!("… {} bytes are left out", event.len() - shown.len()));
    }
    line.push('\n');
    line
}

/// Writes one event, which comes in one piece.
pub(super) struct Event<'a>(&'a LogFile);

impl Write for Event<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.write_line(event)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Event<'a> {
        Event(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aside(path: &Path) -> PathBuf {
        path.with_extension("log.old")
    }

    #[test]
    fn a_log_is_its_owners_and_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/client.log");
        LogFile::open(&path).unwrap().write_line(b"one\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        LogFile::open(&path).unwrap().write_line(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let events: [(&[u8], &str); 3] = [
            (b"said\n2026-01-01 INFO forged\n", "said\\n2026-01-01 INFO forged\n"),
            (b"a\r\nb\x1b[2Jc", "a\\nb\\u{1b}[2Jc\n"),
            (b"\xff\n", "\u{fffd}\n"),
        ];
        for (event, line) in events {
            assert_eq!(one_line(event), line);
        }
        let long = one_line(&vec![b'x'; LINE_MAX + 7]);
        assert!(long.ends_with("x… 7 bytes are left out\n"), "{long}");
    }

    #[test]
    fn all_that_a_log_takes_up_is_bounded_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.log");
        let log = LogFile::with_limit(&path, 100).unwrap();
        for number in 0..100 {
            log.write_line(format!("line {number:3}\n").as_bytes()).unwrap();
            let length = |path: &Path| path.metadata().map_or(0, |it| it.len());
            assert!(length(&path) <= 100 && length(&aside(&path)) <= 100);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let both = [aside(&path), path].map(|it| std::fs::read_to_string(it).unwrap()).concat();
        let numbers = both.lines().map(|line| line[5..].trim().parse::<u32>().unwrap());
        let numbers: Vec<_> = numbers.collect();
        // What is left is the end, without a gap.
        assert!(numbers.len() > 11 && numbers.ends_with(&[98, 99]));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    }

    #[test]
    fn those_who_share_a_log_put_it_aside_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.log");
        let both = [0, 1].map(|_| LogFile::with_limit(&path, 100).unwrap());
        both[0].write_line(&[b'a'; 90]).unwrap();
        both[0].write_line(&[b'b'; 20]).unwrap();
        both[1].write_line(&[b'c'; 20]).unwrap();
        assert_eq!(aside(&path).metadata().unwrap().len(), 91);
        let shared = std::fs::read_to_string(&path).unwrap();
        assert_eq!(shared, format!("{}\n{}\n", "b".repeat(20), "c".repeat(20)));
    }
}
