//! What a file in ELF is for, told from its first bytes.
//!
//! Files come from anywhere, so nothing is read but what is there, and nothing is believed: a number
//! that nobody has given a meaning stays a number.

/// Bytes at the beginning of a file that say what it is for.
pub(crate) const HEADER: usize = 20;
/// The kind of a program with a place of its own.
pub(crate) const PROGRAM: u16 = 2;
/// The kind of a shared library, and of a program that can be put anywhere.
pub(crate) const SHARED: u16 = 3;

/// Machines, by their numbers.
pub(crate) mod machine {
    pub(crate) const X86: u16 = 3;
    pub(crate) const MIPS: u16 = 8;
    pub(crate) const POWER: u16 = 20;
    pub(crate) const POWER_64: u16 = 21;
    pub(crate) const S390: u16 = 22;
    pub(crate) const ARM: u16 = 40;
    pub(crate) const X86_64: u16 = 62;
    pub(crate) const ARM_64: u16 = 183;
    pub(crate) const RISC_V: u16 = 243;
    pub(crate) const LOONG: u16 = 258;
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// 64 bits rather than 32.
    pub(crate) is_long: bool,
    /// The little end of a number comes first.
    pub(crate) is_little: bool,
    /// The system, where a file names one.
    pub(crate) system: u8,
    /// Such as [`PROGRAM`] or [`SHARED`].
    pub(crate) kind: u16,
    pub(crate) machine: u16,
}

impl Header {
    /// Reads it from the first bytes of a file, which are at least [`HEADER`]; `None` if there is
    /// none.
    pub(crate) fn read(start: &[u8]) -> Option<Self> {
        let start: &[u8; HEADER] = start.first_chunk()?;
        let (is_long, is_little) = match start[..6] {
            [0x7f, b'E', b'L', b'F', class @ (1 | 2), order @ (1 | 2)] => (class == 2, order == 1),
            _ => return None,
        };
        let number = |at: usize| {
            let bytes = [start[at], start[at + 1]];
            if is_little {
                u16::from_le_bytes(bytes)
            } else {
                u16::from_be_bytes(bytes)
            }
        };
        let (kind, machine) = (number(16), number(18));
        Some(Self { is_long, is_little, system: start[7], kind, machine })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of these first bytes, with its two numbers as they stand in the file.
    fn read(start: [u8; 8], numbers: [u8; 4]) -> Option<Header> {
        Header::read(&[&start[..], &[0; 8], &numbers].concat())
    }

    #[test]
    fn numbers_are_read_in_the_order_of_the_file() {
        let expected =
            Header { is_long: true, is_little: true, system: 9, kind: 3, machine: 0x0102 };
        assert_eq!(read(*b"\x7fELF\x02\x01\x01\x09", [3, 0, 2, 1]), Some(expected));
        let expected = Header { is_long: false, is_little: false, ..expected };
        assert_eq!(read(*b"\x7fELF\x01\x02\x01\x09", [0, 3, 1, 2]), Some(expected));
    }

    #[test]
    fn what_is_no_header_is_none_and_every_other_is_read() {
        let whole = [&b"\x7fELF\x02\x01"[..], &[0xff; 64]].concat();
        for length in 0..whole.len() {
            assert_eq!(Header::read(&whole[..length]).is_some(), length >= HEADER, "{length}");
        }
        for at in 0..6 {
            for byte in 0..=u8::MAX {
                let mut start = whole.clone();
                start[at] = byte;
                let is_one = byte == whole[at] || (at >= 4 && matches!(byte, 1 | 2));
                assert_eq!(Header::read(&start).is_some(), is_one, "{byte} at {at}");
            }
        }
    }
}
