//! What a kernel file is, and the uncompressed `vmlinux` in it.
//!
//! QEMU enters a `vmlinux` directly (PVH), which skips the kernel's own decompressor: seconds under
//! emulation. A bzImage holds its `vmlinux` as a compressed payload whose place the boot protocol
//! tells (kernel documentation, `arch/x86/boot.rst`).

use super::decompress::{Compression, DecompressError, decompress};
use super::elf::{Elf, ElfError};

/// The largest `vmlinux` that is taken, in bytes; stock kernels have 30–90 MiB.
pub(super) const LARGEST_VMLINUX: u64 = 512 << 20;

/// A kernel ready to be booted.
#[derive(Debug)]
pub(super) struct BootImage {
    pub(super) content: BootContent,
    /// What `uname -r` will say, where the file tells.
    pub(super) release: Option<String>,
}

#[derive(Debug)]
pub(super) enum BootContent {
    /// Uncompressed, with a PVH entry.
    Vmlinux(Vec<u8>),
    /// The bzImage as it came, and why there is no `vmlinux`.
    BzImage(Vec<u8>, NoVmlinux),
}

/// Why a bzImage is booted as it is. It works, but takes longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoVmlinux {
    #[error("its boot protocol {}.{:02} is too old to tell where the payload is", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    #[error("its payload is in a format that is not known")]
    UnknownPayload,
    #[error("its payload cannot be decompressed")]
    Payload(#[source] DecompressError),
    #[error("its payload is no kernel")]
    NotElf(#[source] ElfError),
    #[error("it was built without CONFIG_PVH")]
    NoPvhEntry,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BootImageError {
    #[error("it is a kernel for {0}, and machines here are x86-64")]
    WrongArchitecture(String),
    #[error("it is neither a bzImage nor a vmlinux")]
    Unknown,
    #[error("it is a vmlinux without a PVH entry (CONFIG_PVH), which cannot be booted directly")]
    NoPvhEntry,
    #[error("it is a damaged vmlinux")]
    Elf(#[source] ElfError),
    #[error("it is a damaged bzImage: it ends within its header")]
    Truncated,
    #[error("it cannot be decompressed")]
    Compressed(#[source] DecompressError),
}

/// Tells what a kernel file is and takes the `vmlinux` out of it where that can be done.
pub(super) fn read(file: Vec<u8>) -> Result<BootImage, BootImageError> {
    if let Some(compression) = Compression::detect(&file) {
        // A vmlinux or a raw Image that somebody compressed; one layer only.
        let inner = decompress(compression, &file, LARGEST_VMLINUX).map_err(BootImageError::Compressed)?;
        return read_plain(inner);
    }
    read_plain(file)
}

fn read_plain(file: Vec<u8>) -> Result<BootImage, BootImageError> {
    if file.starts_with(b"\x7fELF") {
        return read_vmlinux(file);
    }
    // arch/arm64/boot.rst and arch/riscv/boot-image-header.rst: a magic number at 56; the EFI zboot
    // header has "zimg" at 4 (drivers/firmware/efi/libstub/zboot-header.S).
    match file.get(56..60) {
        Some(b"ARM\x64") => return Err(BootImageError::WrongArchitecture("arm64 (aarch64)".into())),
        Some(b"RSC\x05") => return Err(BootImageError::WrongArchitecture("riscv".into())),
        _ => {}
    }
    if file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg") {
        let what = "another architecture (an EFI zboot image, as arm64, riscv and loongarch have)";
        return Err(BootImageError::WrongArchitecture(what.into()));
    }
    if file.get(0x202..0x206) != Some(b"HdrS") || file.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) {
        return Err(BootImageError::Unknown);
    }
    read_bzimage(file)
}

fn read_vmlinux(file: Vec<u8>) -> Result<BootImage, BootImageError> {
    let elf = Elf::parse(&file).map_err(|error| match error {
        ElfError::WrongMachine(machine) => BootImageError::WrongArchitecture(machine),
        other => BootImageError::Elf(other),
    })?;
    if !elf.has_pvh_entry() {
        return Err(BootImageError::NoPvhEntry);
    }
    let release = release_in_vmlinux(&file);
    Ok(BootImage { content: BootContent::Vmlinux(file), release })
}

fn read_bzimage(file: Vec<u8>) -> Result<BootImage, BootImageError> {
    let header = Header::parse(&file).ok_or(BootImageError::Truncated)?;
    if header.protocol >= 0x20c && !header.is_64_bit {
        return Err(BootImageError::WrongArchitecture("i386 (32-bit x86)".into()));
    }
    let release = header.release.clone();
    match extract(&file, &header) {
        Ok(vmlinux) => {
            let release = release.or_else(|| release_in_vmlinux(&vmlinux));
            Ok(BootImage { content: BootContent::Vmlinux(vmlinux), release })
        }
        Err(NoVmlinux::NotElf(ElfError::WrongMachine(machine))) => {
            Err(BootImageError::WrongArchitecture(machine))
        }
        Err(reason) => Ok(BootImage { content: BootContent::BzImage(file, reason), release }),
    }
}

/// The fields of the real-mode header that are needed.
#[derive(Debug)]
struct Header {
    /// Version of the boot protocol, 0x020c for 2.12.
    protocol: u16,
    /// Where the protected-mode code begins, in bytes.
    code: usize,
    /// Place of the payload behind `code`, and its length, in bytes.
    payload: (usize, usize),
    is_64_bit: bool,
    release: Option<String>,
}

impl Header {
    fn parse(file: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_le_bytes(*file.get(at..)?.first_chunk()?));
        let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
        let setup_sectors = match *file.get(0x1f1)? {
            0 => 4, // as the protocol has it
            sectors => usize::from(sectors),
        };
        let release = match half(0x20e)? {
            0 => None,
            offset => file.get(usize::from(offset) + 0x200..).and_then(leading_release),
        };
        Some(Self {
            protocol: half(0x206)?,
            code: (setup_sectors + 1) * 512,
            payload: (word(0x248)?, word(0x24c)?),
            is_64_bit: half(0x236)? & 1 != 0, // XLF_KERNEL_64
            release,
        })
    }
}

fn extract(file: &[u8], header: &Header) -> Result<Vec<u8>, NoVmlinux> {
    if header.protocol < 0x208 {
        return Err(NoVmlinux::OldProtocol(header.protocol));
    }
    let (offset, length) = header.payload;
    let start = header.code.saturating_add(offset);
    let payload = file.get(start..start.saturating_add(length)).ok_or(NoVmlinux::UnknownPayload)?;
    let vmlinux = if payload.starts_with(b"\x7fELF") {
        payload.to_vec()
    } else {
        let compression = Compression::detect(payload).ok_or(NoVmlinux::UnknownPayload)?;
        decompress(compression, payload, LARGEST_VMLINUX).map_err(NoVmlinux::Payload)?
    };
    if !Elf::parse(&vmlinux).map_err(NoVmlinux::NotElf)?.has_pvh_entry() {
        return Err(NoVmlinux::NoPvhEntry);
    }
    Ok(vmlinux)
}

/// The release in the banner that every kernel holds: `Linux version 6.1.0-13-amd64 (…`.
fn release_in_vmlinux(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = vmlinux;
    // There is also a format string that begins the same way.
    while let Some(at) = find(rest, BANNER) {
        rest = &rest[at + BANNER.len()..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            return leading_release(rest);
        }
    }
    None
}

pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&byte| byte == needle[0]) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// The word at the beginning, when it can be a release. The kernel allows 64 bytes (`__NEW_UTS_LEN`).
fn leading_release(text: &[u8]) -> Option<String> {
    let end = text.iter().take(65).position(|&byte| byte == b' ' || byte == 0)?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    is_release(word).then(|| word.to_owned())
}

/// Whether this can be a kernel's release: it is used as the name of a folder.
pub(super) fn is_release(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::elf;
    use super::*;

    pub(in crate::kernel) fn vmlinux(pvh: bool) -> Vec<u8> {
        vmlinux_of("6.12.1+deb12-cloud", pvh)
    }

    pub(in crate::kernel) fn vmlinux_of(release: &str, pvh: bool) -> Vec<u8> {
        let text = format!("Linux version %s\0Linux version {release} (x)\0").into_bytes();
        elf::tests::build(&[(".rodata", 1, 0, text)], pvh)
    }

    pub(in crate::kernel) fn bzimage(payload: &[u8], version: &str) -> Vec<u8> {
        let mut file = vec![0u8; 0x400];
        file[0x1f1] = 1;
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        file[0x236] = 1;
        file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        file[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        file.extend([0; 16]);
        file.extend(payload);
        file
    }

    pub(in crate::kernel) fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 1).unwrap()
    }

    #[test]
    fn a_bzimage_gives_its_vmlinux_and_its_release() {
        let image = read(bzimage(&zstd(&vmlinux(true)), "6.12.1-x (builder@host) #1 SMP")).unwrap();
        assert_eq!(image.release.as_deref(), Some("6.12.1-x"));
        assert!(matches!(image.content, BootContent::Vmlinux(content) if content == vmlinux(true)));
    }

    #[test]
    fn a_vmlinux_is_taken_as_it_is_also_compressed() {
        for file in [vmlinux(true), zstd(&vmlinux(true))] {
            let image = read(file).unwrap();
            assert_eq!(image.release.as_deref(), Some("6.12.1+deb12-cloud"));
            assert!(matches!(image.content, BootContent::Vmlinux(_)));
        }
    }

    #[test]
    fn a_bzimage_without_a_usable_payload_is_booted_as_it_is() {
        let lzo = [0x89, b'L', b'Z', b'O', 0, 0];
        for payload in [b"?".to_vec(), lzo.to_vec(), zstd(b"text"), zstd(&vmlinux(false))] {
            let image = read(bzimage(&payload, "5.4.0 ")).unwrap();
            assert!(matches!(image.content, BootContent::BzImage(..)), "{:?}", image.content);
        }
    }

    #[test]
    fn kernels_of_other_architectures_are_named() {
        let mut arm64 = vec![0u8; 64];
        arm64[56..60].copy_from_slice(b"ARM\x64");
        let mut i386 = bzimage(&zstd(b""), "5.4.0 ");
        i386[0x236] = 0;
        let mut foreign = vmlinux(true);
        foreign[18] = 243;
        for (file, name) in [
            (zstd(&arm64), "arm64"),
            (arm64, "arm64"),
            (i386, "i386"),
            (bzimage(&zstd(&foreign), "5.4.0 "), "riscv"),
            (foreign, "riscv"),
        ] {
            let error = read(file).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_is_no_kernel_says_so() {
        assert!(matches!(read(b"#!/bin/sh\n".to_vec()), Err(BootImageError::Unknown)));
        assert!(matches!(read(Vec::new()), Err(BootImageError::Unknown)));
        assert!(matches!(read(vmlinux(false)), Err(BootImageError::NoPvhEntry)));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(at in 0x1f0usize..0x420, damage in prop::collection::vec(any::<u8>(), 1..8), cut in 0usize..2000) {
            let mut file = bzimage(&zstd(&vmlinux(true)), "6.1 ");
            let end = (at + damage.len()).min(file.len());
            let at = at.min(end);
            file[at..end].copy_from_slice(&damage[..end - at]);
            file.truncate(cut);
            let _ = read(file);
        }
    }
}
