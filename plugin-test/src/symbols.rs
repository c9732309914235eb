//! What a library's file says without being loaded: the names that it gives away and those that it
//! needs, told from its ELF symbol table.

use std::fs;
use std::path::Path;

/// Type of the section that holds the dynamic symbols.
const DYNSYM: u32 = 11;
/// Bytes of a symbol.
const SYMBOL_SIZE: u64 = 24;
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
        let (sections, each, count) = (file.word(0, 40)?, file.short(0, 58)?, file.short(0, 60)?);
        let section = |index: u64| sections.checked_add(index.checked_mul(each)?);
        let symbols =
            (0..count).filter_map(section).find(|&at| file.integer(at, 4) == Some(DYNSYM))?;
        let (start, length) = (file.word(symbols, 24)?, file.word(symbols, 32)?);
        let link = u64::from(file.integer(symbols, 40)?);
        let names = file.word(section(link)?, 24)?;
        let is_rust = file.0.windows(RUSTC.len()).any(|it| it == RUSTC);
        let mut found = Self { is_rust, ..Self::default() };
        // A file may say anything of itself; no more of them than it has room for.
        let count = (length / SYMBOL_SIZE).min(file.0.len() as u64 / SYMBOL_SIZE);
        for index in 0..count {
            if let Some((name, is_defined)) =
                file.symbol(start.checked_add(index * SYMBOL_SIZE)?, names)
            {
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
        let name = u64::from(self.integer(at, 0)?);
        let [info, other] = self.number(at, 4)?;
        let is_defined = self.short(at, 6)? != 0;
        // Global or weak, function or data, of default or protected visibility.
        let is_seen = matches!(info >> 4, 1 | 2 | 10) && matches!(other & 3, 0 | 3);
        let is_code_or_data = matches!(info & 15, 0 | 1 | 2 | 6 | 10);
        (is_seen && is_code_or_data)
            .then(|| self.text(names.checked_add(name)?))?
            .map(|it| (it, is_defined))
    }

    /// The bytes so far behind a place.
    fn number<const N: usize>(&self, place: u64, offset: u64) -> Option<[u8; N]> {
        let at = usize::try_from(place.checked_add(offset)?).ok()?;
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn word(&self, place: u64, offset: u64) -> Option<u64> {
        self.number(place, offset).map(u64::from_le_bytes)
    }

    fn integer(&self, place: u64, offset: u64) -> Option<u32> {
        self.number(place, offset).map(u32::from_le_bytes)
    }

    fn short(&self, place: u64, offset: u64) -> Option<u64> {
        self.number(place, offset).map(u16::from_le_bytes).map(u64::from)
    }

    fn text(&self, at: u64) -> Option<String> {
        let rest = self.0.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// What is found in a file of this content, by whoever has time for it.
    fn found(content: &[u8]) -> usize {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("distant-symbols-{}-{}", name.0, name.1));
        fs::write(&path, content).unwrap();
        let found = Symbols::of(&path).unwrap_or_default();
        fs::remove_file(&path).unwrap();
        found.exported.len() + found.imported.len()
    }

    #[test]
    fn nonsense_exports_nothing() {
        assert_eq!(found(&b"\x7fELF\x02\x01\xff\xff".repeat(100)), 0);
    }

    #[test]
    fn what_a_file_says_of_itself_is_bounded_by_what_it_has() {
        let mut file = vec![0; 256];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        // One section behind the header, of 64 bytes.
        put(40, &64u64.to_le_bytes());
        put(58, &[64, 0, 1, 0]);
        put(64 + 4, &DYNSYM.to_le_bytes());
        for start in [0, 128, u64::MAX - 30] {
            for length in [0, 24, u64::MAX] {
                let mut file = file.clone();
                file[64 + 24..][..8].copy_from_slice(&start.to_le_bytes());
                file[64 + 32..][..8].copy_from_slice(&length.to_le_bytes());
                assert_eq!(found(&file), 0, "{length} at {start}");
            }
        }
        // Sections at the end of all numbers.
        file[40..48].copy_from_slice(&(u64::MAX - 2).to_le_bytes());
        assert_eq!(found(&file), 0);
    }
}
