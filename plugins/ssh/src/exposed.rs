//! Private keys that others have access to: they are left out, as `ssh` leaves them out, and the
//! person is told so once in a launch, whatever hosts are on the way.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use distant_plugin_api::message::LogLevel;
use distant_plugin_api::{Caller, LaunchError};

/// One such key.
pub struct Exposed {
    /// Its file.
    pub path: PathBuf,
    /// The file's permissions.
    pub mode: u32,
}

impl Exposed {
    /// What to do about it, as a hint.
    pub fn mend(&self) -> String {
        let path = self.path.display().to_string();
        format!("`chmod 600 {}` makes the key yours alone", shell_words::quote(&path))
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, mode) = (self.path.display(), self.mode);
        write!(f, "key `{path}`: it is left out, as others have access to it (mode {mode:04o})")
    }
}

/// Which of them the person was told of in this launch.
#[derive(Default)]
pub struct Told(Mutex<HashSet<PathBuf>>);

impl Told {
    /// Tells the person of those that are new.
    ///
    /// # Errors
    ///
    /// `cancelled`.
    pub fn tell(&self, all: &[Exposed], caller: &Caller) -> Result<(), LaunchError> {
        let is_new = |exposed: &&Exposed| {
            let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            told.insert(exposed.path.clone())
        };
        all.iter().filter(is_new).try_for_each(|exposed| {
            caller.notice(LogLevel::Warn, format!("{exposed}; {}", exposed.mend()))
        })
    }
}
