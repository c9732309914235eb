//! The cache file: which connection is the selected one.
//!
//! It is distant 0.20's file, so both programs mean the same connection. Keys of other versions are
//! kept; a file that is missing or broken counts as empty, because losing it costs one `select`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use toml::{Table, Value};

/// The key of the selected connection. Its id is text, and `0` stands for none.
const SELECTED: &str = "selected";

/// What the file holds.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    table: Table,
}

impl Cache {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let table = text.parse().unwrap_or_else(|_| {
            tracing::warn!("the cache file `{}` is no TOML and counts as empty", path.display());
            Table::new()
        });
        Self { path: path.to_owned(), table }
    }

    /// The selected connection.
    pub(crate) fn selected(&self) -> Option<u32> {
        let id = self.table.get(SELECTED)?.as_str()?.parse().ok()?;
        Some(id).filter(|id| *id != 0)
    }

    /// Selects a connection; whoever reads the file sees the old one or the new one, no half of it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn select(&mut self, id: u32) -> Result<(), LaunchError> {
        self.table.insert(SELECTED.to_owned(), Value::String(id.to_string()));
        self.write().map_err(|error| {
            let message = format!("cannot write the cache file `{}`", self.path.display());
            LaunchError::new(ErrorKind::Other, message).because(&error)
        })
    }

    fn write(&self) -> io::Result<()> {
        // A link stays a link: its target is what is replaced.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(self.table.to_string().as_bytes())?;
        file.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn check(before: Option<&str>, after: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("distant/cache.toml");
        if let Some(before) = before {
            fs::create_dir(path.parent().unwrap()).unwrap();
            fs::write(&path, before).unwrap();
        }
        Cache::read(&path).select(2_376_113_239).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
        assert_eq!(Cache::read(&path).selected(), Some(2_376_113_239));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_selected_connection_is_written_as_0_20_reads_it() {
        check(None, "selected = \"2376113239\"\n");
        check(Some("selected = \"1\""), "selected = \"2376113239\"\n");
    }

    #[test]
    fn a_broken_file_counts_as_empty_and_foreign_keys_stay() {
        check(Some("selected = "), "selected = \"2376113239\"\n");
        check(Some("b = 1\n"), "b = 1\nselected = \"2376113239\"\n");
    }

    #[test]
    fn zero_is_no_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.toml");
        assert_eq!(Cache::read(&path).selected(), None);
        fs::write(&path, "selected = \"0\"").unwrap();
        assert_eq!(Cache::read(&path).selected(), None);
    }
}
