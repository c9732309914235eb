//! Launches that a plugin has ended badly of late, for `plugin doctor`.
//!
//! Whoever sees one fail, whichever manager that is, adds a line to one file in the user's cache
//! folder; so whoever asks later needs no manager, and hears of all of them. It is a record for
//! people and nothing else: a line that cannot be written or read is left out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::config;

/// Failures that are older are nobody's concern any more.
pub(super) const LATELY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Bytes of the file at which the older half of it is forgotten.
const SIZE_MAX: u64 = 256 * 1024;
/// Characters that are kept of a text.
const TEXT_MAX: usize = 600;

/// How a plugin has ended a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Its process ended without a result.
    Crashed,
    /// It did not end when it was told to, and was killed.
    Killed,
    /// It took longer than it may.
    TimedOut,
    /// It gave an error that is its own fault, such as a panic.
    Failed,
    /// What it said made no sense.
    BrokeProtocol,
}

/// One launch that a plugin has ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When: seconds since the beginning of 1970.
    pub at: u64,
    /// The plugin's file, without links.
    pub path: PathBuf,
    /// What kind of failure it was.
    pub how: How,
    /// What the launch said of it.
    pub message: String,
    /// The end of what the plugin printed to standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_words: Option<String>,
}

impl Failure {
    /// Makes one of this moment.
    pub(super) fn now(path: &Path, how: How, message: &str, last_words: Option<&str>) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let short = |text: &str| text.chars().take(TEXT_MAX).collect::<String>();
        let (message, last_words) = (short(message), last_words.map(short));
        Self { at, path: path.to_owned(), how, message, last_words }
    }

    /// How long ago it was; nothing where the clock was set back.
    pub(super) fn age(&self) -> Duration {
        let then = UNIX_EPOCH + Duration::from_secs(self.at);
        SystemTime::now().duration_since(then).unwrap_or_default()
    }
}

/// The file that has them. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Failures(PathBuf);

impl Failures {
    /// Those of the user whose cache of manifests this is.
    pub(super) fn beside(cache: &Path) -> Self {
        Self(cache.with_file_name("plugin-failures.jsonl"))
    }

    /// Adds one. It fails without harm.
    pub(super) fn add(&self, failure: &Failure) {
        if let Err(error) = self.try_add(failure) {
            tracing::debug!(%error, path = %self.0.display(), "cannot note the failure of a plugin");
        }
    }

    fn try_add(&self, failure: &Failure) -> io::Result<()> {
        // It begins with an end of line as well, since the one before may have been cut off by a
        // full disk.
        let mut line = vec![b'\n'];
        serde_json::to_writer(&mut line, failure)?;
        line.push(b'\n');
        config::make_folder(&self.0)?;
        // What a plugin has said is for its user alone.
        let mut file = self.open(File::options().append(true).create(true).mode(0o600), 0o077)?;
        // In one piece, as others may be adding theirs.
        file.write_all(&line)?;
        if file.metadata()?.len() > SIZE_MAX {
            self.forget_half()?;
        }
        Ok(())
    }

    /// Keeps the newer half. What another process adds meanwhile may be lost with the older one.
    fn forget_half(&self) -> io::Result<()> {
        let half = self.read(SIZE_MAX / 2)?;
        let start = half.iter().position(|byte| *byte == b'\n');
        config::write(&self.0, &half[start.map_or(0, |at| at + 1)..])
    }

    /// Those of a plugin's file that are not too old, the newest first.
    pub(super) fn of(&self, path: &Path) -> Vec<Failure> {
        let content = self.read(2 * SIZE_MAX).unwrap_or_default();
        let lines = content.split(|byte| *byte == b'\n');
        let all = lines.filter_map(|line| serde_json::from_slice::<Failure>(line).ok());
        let mut own: Vec<_> = all.filter(|it| it.path == path && it.age() <= LATELY).collect();
        own.reverse();
        own
    }

    /// The end of the file, unless somebody else could have written it.
    fn read(&self, length: u64) -> io::Result<Vec<u8>> {
        let mut file = self.open(File::options().read(true), 0o022)?;
        let start = file.metadata()?.len().saturating_sub(length);
        file.seek(SeekFrom::Start(start))?;
        let mut content = Vec::new();
        file.take(length).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Opens it, unless it is something else than a file of ours, or others have one of these rights.
    fn open(&self, options: &mut OpenOptions, others: u32) -> io::Result<File> {
        // Not blocking, as it may be a pipe that nobody is at the other end of.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW).bits();
        // Flags are small positive numbers.
        let flags = i32::try_from(flags).unwrap_or_default();
        let file = options.custom_flags(flags).open(&self.0)?;
        let metadata = file.metadata()?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if metadata.is_file() && is_ours && metadata.mode() & others == 0 {
            Ok(file)
        } else {
            Err(io::Error::other("it is not a file of ours alone"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn failures() -> (tempfile::TempDir, Failures) {
        let folder = tempfile::tempdir().unwrap();
        let failures = Failures::beside(&folder.path().join("cache/plugins.json"));
        (folder, failures)
    }

    fn failure(path: &str, message: &str) -> Failure {
        Failure::now(Path::new(path), How::Crashed, message, Some("oh no"))
    }

    #[test]
    fn the_newest_comes_first_and_each_file_has_its_own() {
        let (_folder, failures) = failures();
        assert_eq!(failures.of(Path::new("/p/a")), []);
        let [first, other, second] =
            [("/p/a", "one"), ("/p/b", "two"), ("/p/a", "three")].map(|(at, it)| failure(at, it));
        for it in [&first, &other, &second] {
            failures.add(it);
        }
        assert_eq!(failures.of(Path::new("/p/a")), [second, first]);
        assert_eq!(failures.of(Path::new("/p/b")), [other]);
        assert_eq!(fs::metadata(&failures.0).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_old_damaged_or_somebody_elses_is_left_out() {
        let (_folder, failures) = failures();
        let new = failure("/p/a", "new");
        let old = Failure { at: new.at - LATELY.as_secs() - 60, ..failure("/p/a", "old") };
        failures.add(&old);
        fs::write(&failures.0, [&fs::read(&failures.0).unwrap()[..], b"{\"at\":\n\n[]\n"].concat())
            .unwrap();
        failures.add(&new);
        assert_eq!(failures.of(Path::new("/p/a")), [new]);
        fs::set_permissions(&failures.0, fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(failures.of(Path::new("/p/a")), []);
    }

    #[test]
    fn a_line_that_was_cut_off_takes_no_other_along() {
        let (_folder, failures) = failures();
        let [first, cut, last] = ["first", "cut", "last"].map(|it| failure("/p/a", it));
        failures.add(&first);
        failures.add(&cut);
        let whole = fs::read(&failures.0).unwrap();
        for missing in [2, 10] {
            fs::write(&failures.0, &whole[..whole.len() - missing]).unwrap();
            failures.add(&last);
            assert_eq!(failures.of(Path::new("/p/a")), [last.clone(), first.clone()]);
        }
    }

    #[test]
    fn of_a_file_that_others_made_too_long_the_end_counts() {
        let (_folder, failures) = failures();
        let failure = failure("/p/a", "new");
        failures.add(&failure);
        let file = File::options().write(true).open(&failures.0).unwrap();
        file.set_len(8 * SIZE_MAX).unwrap();
        failures.add(&failure);
        assert_eq!(failures.of(Path::new("/p/a")), [failure]);
        assert!(fs::metadata(&failures.0).unwrap().len() <= SIZE_MAX);
    }

    #[test]
    fn only_a_file_of_ours_alone_is_written_and_nothing_is_waited_for() {
        let (folder, failures) = failures();
        let failure = failure("/p/a", "no");
        failures.add(&failure);
        fs::set_permissions(&failures.0, fs::Permissions::from_mode(0o644)).unwrap();
        failures.add(&failure);
        assert_eq!(failures.of(&failure.path).len(), 1, "others could have read it");

        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&failures.0, &elsewhere).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &failures.0).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        failures.add(&failure);
        assert_eq!(fs::read(&elsewhere).unwrap(), before);
        assert_eq!(failures.of(&failure.path), []);

        fs::remove_file(&failures.0).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &failures.0, rustix::fs::Mode::RWXU).unwrap();
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            failures.add(&failure);
            let _ = sender.send(failures.of(&failure.path));
        });
        assert_eq!(done.recv_timeout(Duration::from_secs(2)), Ok(Vec::new()));
    }

    #[test]
    fn the_file_is_bounded_and_the_newest_stay() {
        let (_folder, failures) = failures();
        let long = "x".repeat(10_000);
        for number in 0..1000 {
            failures.add(&failure("/p/a", &format!("{number} {long}")));
            assert!(fs::metadata(&failures.0).unwrap().len() <= SIZE_MAX);
        }
        let left = failures.of(Path::new("/p/a"));
        assert!(left.len() > 100, "{}", left.len());
        for (failure, number) in left.iter().zip((0..1000).rev()) {
            assert!(failure.message.starts_with(&format!("{number} ")), "{number}");
        }
    }
}
