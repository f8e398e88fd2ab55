//! The little of ELF that kernels and their modules need: what machine a file is for, its sections,
//! its symbols, and the PVH note.
//!
//! Formats: System V ABI, "Object Files"; x86-64 psABI. The input may be hostile: every offset is
//! checked, nothing is allocated by a size the file claims.

/// `e_machine` of x86-64.
const MACHINE_X86_64: u16 = 62;
const SECTION_SYMBOLS: u32 = 2;
const SECTION_NO_BITS: u32 = 8;
const SEGMENT_NOTE: u32 = 4;
/// Note type by which a kernel tells its PVH entry point (Xen's `elfnote.h`, `XEN_ELFNOTE_PHYS32_ENTRY`).
const NOTE_PHYS32_ENTRY: u32 = 18;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ElfError {
    #[error("not an ELF file")]
    NotElf,
    #[error("an ELF file for {0}, not for x86-64")]
    WrongMachine(String),
    #[error("a damaged ELF file: {0}")]
    Damaged(&'static str),
}

/// A 64-bit little-endian ELF file for x86-64.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elf<'a> {
    bytes: &'a [u8],
    section_offset: usize,
    section_count: usize,
    section_names: usize,
    segment_offset: usize,
    segment_count: usize,
}

/// One section.
#[derive(Clone, Copy, Debug)]
struct Section<'a> {
    name: u32,
    kind: u32,
    link: u32,
    content: &'a [u8],
}

impl<'a> Elf<'a> {
    /// Reads the header; refuses what is for another machine.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        if bytes.get(..4) != Some(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let (class, order) = (byte(bytes, 4)?, byte(bytes, 5)?);
        // In a big-endian file the machine's number is the other way round.
        let machine = half(bytes, 18)?;
        let machine = if order == 2 { machine.swap_bytes() } else { machine };
        if (class, order, machine) != (2, 1, MACHINE_X86_64) {
            return Err(ElfError::WrongMachine(machine_name(class, machine)));
        }
        Ok(Self {
            bytes,
            section_offset: position(bytes, 40)?,
            section_count: half(bytes, 60)?.into(),
            section_names: half(bytes, 62)?.into(),
            segment_offset: position(bytes, 32)?,
            segment_count: half(bytes, 56)?.into(),
        })
    }

    /// The content of the first section of this name.
    pub(super) fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let names = self.at(self.section_names).ok()?.content;
        (0..self.section_count).find_map(|index| {
            let section = self.at(index).ok()?;
            (text(names, section.name) == Some(name)).then_some(section.content)
        })
    }

    /// The names in the symbol table; none when the file has been stripped of it.
    pub(super) fn symbol_names(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let table = (0..self.section_count)
            .filter_map(|index| self.at(index).ok())
            .find(|s| s.kind == SECTION_SYMBOLS);
        let names = table.and_then(|table| self.at(table.link as usize).ok()).map_or(&[][..], |s| s.content);
        let symbols = table.map_or(&[][..], |table| table.content);
        // A symbol has 24 bytes, the first four of which point at its name.
        symbols.chunks_exact(24).filter_map(move |symbol| text(names, word(symbol, 0).ok()?))
    }

    /// Whether a hypervisor can enter this kernel directly (PVH), as QEMU does with a `vmlinux`.
    pub(super) fn has_pvh_entry(&self) -> bool {
        (0..self.segment_count).any(|index| self.segment_has_pvh_note(index).unwrap_or(false))
    }

    fn segment_has_pvh_note(&self, index: usize) -> Result<bool, ElfError> {
        let header = self.entry(self.segment_offset, index, 56)?;
        if word(header, 0)? != SEGMENT_NOTE {
            return Ok(false);
        }
        let mut notes = self.range(position(header, 8)?, position(header, 32)?)?;
        // Name and description are padded to 4 bytes each.
        while let Some(head) = notes.get(..12) {
            let (name_size, size) = (word(head, 0)? as usize, word(head, 4)? as usize);
            let name_end = 12usize.saturating_add(name_size);
            if word(head, 8)? == NOTE_PHYS32_ENTRY && notes.get(12..name_end) == Some(b"Xen\0") {
                return Ok(true);
            }
            let end = name_end.next_multiple_of(4).saturating_add(size).next_multiple_of(4);
            notes = notes.get(end..).unwrap_or_default();
        }
        Ok(false)
    }

    fn at(&self, index: usize) -> Result<Section<'a>, ElfError> {
        let header = self.entry(self.section_offset, index, 64)?;
        let kind = word(header, 4)?;
        let content = if kind == SECTION_NO_BITS {
            &[][..]
        } else {
            self.range(position(header, 24)?, position(header, 32)?)?
        };
        Ok(Section { name: word(header, 0)?, kind, link: word(header, 40)?, content })
    }

    fn entry(&self, table: usize, index: usize, size: usize) -> Result<&'a [u8], ElfError> {
        self.range(index.saturating_mul(size).saturating_add(table), size)
    }

    fn range(&self, start: usize, length: usize) -> Result<&'a [u8], ElfError> {
        start
            .checked_add(length)
            .and_then(|end| self.bytes.get(start..end))
            .ok_or(ElfError::Damaged("a part lies outside the file"))
    }
}

/// The text at an offset of a string table.
fn text(table: &[u8], offset: u32) -> Option<&[u8]> {
    let rest = table.get(offset as usize..)?;
    Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
}

fn byte(bytes: &[u8], offset: usize) -> Result<u8, ElfError> {
    bytes.get(offset).copied().ok_or(ElfError::Damaged("it ends within a header"))
}

fn half(bytes: &[u8], offset: usize) -> Result<u16, ElfError> {
    fixed(bytes, offset).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], offset: usize) -> Result<u32, ElfError> {
    fixed(bytes, offset).map(u32::from_le_bytes)
}

fn position(bytes: &[u8], offset: usize) -> Result<usize, ElfError> {
    let value = fixed(bytes, offset).map(u64::from_le_bytes)?;
    usize::try_from(value).map_err(|_| ElfError::Damaged("a part lies outside the file"))
}

fn fixed<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], ElfError> {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(ElfError::Damaged("it ends within a header"))
}

fn machine_name(class: u8, machine: u16) -> String {
    match machine {
        3 => "i386 (32-bit x86)".into(),
        MACHINE_X86_64 => if class == 2 { "a big-endian x86-64" } else { "x32" }.into(),
        183 => "arm64 (aarch64)".into(),
        40 => "arm".into(),
        243 => "riscv".into(),
        258 => "loongarch".into(),
        20 | 21 => "powerpc".into(),
        22 => "s390".into(),
        other => format!("machine number {other}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file with these sections, and a note segment with a PVH entry when asked for.
    pub(in crate::kernel) fn build(sections: &[(&str, u32, u32, Vec<u8>)], pvh: bool) -> Vec<u8> {
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        let mut names = vec![0u8];
        let mut headers = vec![[0u8; 64]];
        for (name, kind, link, content) in sections.iter().cloned().chain([(".shstrtab", 3, 0, Vec::new())]) {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&u32::try_from(names.len()).unwrap().to_le_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            let content = if name == ".shstrtab" { names.clone() } else { content };
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            header[40..44].copy_from_slice(&link.to_le_bytes());
            file.extend_from_slice(&content);
            headers.push(header);
        }
        if pvh {
            let note =
                [&4u32.to_le_bytes()[..], &4u32.to_le_bytes(), &18u32.to_le_bytes(), b"Xen\0", &[0; 4]];
            let note = note.concat();
            let at = file.len() as u64;
            file.extend_from_slice(&note);
            let mut segment = [0u8; 56];
            segment[..4].copy_from_slice(&SEGMENT_NOTE.to_le_bytes());
            segment[8..16].copy_from_slice(&at.to_le_bytes());
            segment[32..40].copy_from_slice(&(note.len() as u64).to_le_bytes());
            let at = file.len() as u64;
            file[32..40].copy_from_slice(&at.to_le_bytes());
            file[56..58].copy_from_slice(&1u16.to_le_bytes());
            file.extend_from_slice(&segment);
        }
        let at = file.len() as u64;
        file[40..48].copy_from_slice(&at.to_le_bytes());
        file[60..62].copy_from_slice(&u16::try_from(headers.len()).unwrap().to_le_bytes());
        file[62..64].copy_from_slice(&u16::try_from(headers.len() - 1).unwrap().to_le_bytes());
        file.extend(headers.concat());
        file
    }

    #[test]
    fn sections_and_the_pvh_note_are_found() {
        let file = build(&[(".modinfo", 1, 0, b"a=b\0".to_vec())], true);
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.section(b".modinfo"), Some(&b"a=b\0"[..]));
        assert_eq!(elf.section(b".text"), None);
        assert!(elf.has_pvh_entry());
        assert!(!Elf::parse(&build(&[], false)).unwrap().has_pvh_entry());
    }

    #[test]
    fn another_machine_is_named() {
        let mut file = build(&[], false);
        file[18] = 183;
        assert_eq!(Elf::parse(&file).unwrap_err(), ElfError::WrongMachine("arm64 (aarch64)".into()));
        file[4] = 1;
        file[18] = 3;
        assert!(Elf::parse(&file).unwrap_err().to_string().contains("i386"));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(
            at in 0usize..400,
            damage in prop::collection::vec(any::<u8>(), 1..16),
            cut in 0usize..500,
        ) {
            let mut file = build(&[(".modinfo", 1, 0, vec![7; 40]), (".symtab", 2, 1, vec![1; 48])], true);
            let end = (at + damage.len()).min(file.len());
            let at = at.min(end);
            file[at..end].copy_from_slice(&damage[..end - at]);
            file.truncate(cut.max(4));
            if let Ok(elf) = Elf::parse(&file) {
                let _ = elf.section(b".modinfo");
                let _ = elf.symbol_names().count();
                let _ = elf.has_pvh_entry();
            }
        }
    }
}
