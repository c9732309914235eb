//! What a library's file says without being loaded: the names that it gives away and those that it
//! needs, told from its ELF symbol table.

use std::fs;
use std::path::Path;

/// Type of the section that holds the dynamic symbols.
const DYNSYM: u32 = 11;
/// Bytes of a library that is looked at.
const SIZE_MAX: u64 = 512 * 1024 * 1024;

/// What marks a file that rustc has made: its note in `.comment`, which survives `strip`.
const RUSTC: &[u8] = b"rustc version ";

/// The names in a library's symbol table, and who has made it.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    /// All functions and data that it exports.
    pub(crate) exported: Vec<String>,
    /// All names that it needs from other libraries.
    pub(crate) imported: Vec<String>,
    /// There is code of rustc in it.
    pub(crate) is_rust: bool,
}

impl Symbols {
    /// Reads a 64-bit ELF library; `None` for other files.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        if fs::metadata(path).ok()?.len() > SIZE_MAX {
            return None;
        }
        let file = Elf(fs::read(path).ok()?);
        if !file.0.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (sections, each, count) = (file.word(40)?, file.short(58)?, file.short(60)?);
        let section = |index: u64| sections.checked_add(index.checked_mul(each)?);
        let symbols = (0..count)
            .filter_map(section)
            .find(|&at| file.number::<4>(at + 4).map(u32::from_le_bytes) == Some(DYNSYM))?;
        let (start, length) = (file.word(symbols + 24)?, file.word(symbols + 32)?);
        let link = u64::from(file.number::<4>(symbols + 40).map(u32::from_le_bytes)?);
        let names = file.word(section(link)? + 24)?;
        let is_rust = file.0.windows(RUSTC.len()).any(|it| it == RUSTC);
        let mut found = Self { is_rust, ..Self::default() };
        for index in 0..length / 24 {
            if let Some((name, is_defined)) = file.symbol(start.checked_add(index * 24)?, names) {
                if is_defined { &mut found.exported } else { &mut found.imported }.push(name);
            }
        }
        Some(found)
    }
}

struct Elf(Vec<u8>);

impl Elf {
    /// A symbol that others see or should have, and whether it is here.
    fn symbol(&self, at: u64, names: u64) -> Option<(String, bool)> {
        let name = u64::from(u32::from_le_bytes(self.number(at)?));
        let [info, other] = self.number::<2>(at + 4)?;
        let is_defined = self.short(at + 6)? != 0;
        // Global or weak, function or data, of default or protected visibility.
        let is_seen = matches!(info >> 4, 1 | 2 | 10) && matches!(other & 3, 0 | 3);
        let is_code_or_data = matches!(info & 15, 0 | 1 | 2 | 6 | 10);
        (is_seen && is_code_or_data).then(|| self.text(names + name))?.map(|it| (it, is_defined))
    }

    fn number<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let at = usize::try_from(at).ok()?;
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn word(&self, at: u64) -> Option<u64> {
        self.number(at).map(u64::from_le_bytes)
    }

    fn short(&self, at: u64) -> Option<u64> {
        self.number(at).map(u16::from_le_bytes).map(u64::from)
    }

    fn text(&self, at: u64) -> Option<String> {
        let rest = self.0.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_exports_nothing() {
        let folder = std::env::temp_dir().join(format!("distant-exports-{}", std::process::id()));
        fs::write(&folder, b"\x7fELF\x02\x01\xff\xff".repeat(100)).unwrap();
        let found = Symbols::of(&folder).unwrap_or_default();
        assert_eq!(found.exported.len() + found.imported.len(), 0);
        fs::remove_file(&folder).unwrap();
    }
}
