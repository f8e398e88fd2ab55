//! Reading a disk through all its layers into one sparse raw file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::{DiskFormat, Header};
use crate::error::{Error, Result};

/// Longest chain of backing files that is followed.
const MAX_LAYERS: usize = 64;
/// L2 entry and cluster descriptor (qcow2.txt, "L2 table entry").
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ALL_ZEROS: u64 = 1;

/// Writes what a guest reads from `disk` into a new raw file with holes; returns its length.
///
/// Follows backing files by the names in the headers, so `disk` must be one whose headers this
/// engine wrote; a guest cannot change them. `progress` is told the bytes of the disk done so far.
pub fn flatten(
    disk: &Path,
    format: DiskFormat,
    target: &Path,
    progress: impl Fn(u64),
    cancel: &CancellationToken,
) -> Result<u64> {
    let layers = open_chain(disk, format)?;
    let length = layers.first().map_or(0, Layer::length);
    let fail = |error| Error::io(format!("cannot write `{}`", target.display()), error);
    let output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(fail)?;
    let result = output
        .set_len(length)
        .map_err(fail)
        .and_then(|()| copy(&layers, &output, length, target, progress, cancel))
        .and_then(|()| output.sync_all().map_err(fail));
    if let Err(error) = result {
        let _ = std::fs::remove_file(target);
        return Err(error);
    }
    Ok(length)
}

/// One file of a chain.
enum Layer {
    Raw { file: File, length: u64 },
    Qcow2(Box<Qcow2>),
}

struct Qcow2 {
    file: File,
    header: Header,
    l1: Vec<u64>,
}

/// Where a stretch of a disk comes from in one layer.
enum Source {
    /// The next layer knows.
    Below,
    Zeros,
    /// Data at this place of the layer's file.
    Data(u64),
    /// A whole cluster, compressed.
    Compressed {
        offset: u64,
        length: usize,
    },
}

fn open_chain(disk: &Path, format: DiskFormat) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut next = Some((disk.to_owned(), format));
    while let Some((path, format)) = next.take() {
        if layers.len() == MAX_LAYERS {
            return Err(Error::failed(format!(
                "the disk `{}` has more than {MAX_LAYERS} layers",
                disk.display()
            )));
        }
        let fail = |error| Error::io(format!("cannot read the disk `{}`", path.display()), error);
        let file = File::open(&path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(Error::failed(format!("the disk `{}` is no regular file", path.display())));
        }
        match format {
            DiskFormat::Raw => layers.push(Layer::Raw { file, length: metadata.len() }),
            DiskFormat::Qcow2 => {
                let header = super::read_header(&path)?;
                next = match (&header.backing, header.backing_format) {
                    (None, _) => None,
                    (Some(name), Some(format)) => {
                        Some((path.parent().unwrap_or(Path::new("")).join(name), format))
                    }
                    // Guessing a format from content lets a guest choose what is read.
                    (Some(name), None) => {
                        return Err(Error::failed(format!(
                            "`{}` does not say which format its backing file `{}` has",
                            path.display(),
                            name.display()
                        )));
                    }
                };
                let mut bytes = vec![0; header.l1_entries as usize * 8];
                read_at(&file, &mut bytes, header.l1_offset).map_err(fail)?;
                let l1 = words(&bytes);
                layers.push(Layer::Qcow2(Box::new(Qcow2 { file, header, l1 })));
            }
        }
    }
    Ok(layers)
}

fn copy(
    layers: &[Layer],
    output: &File,
    length: u64,
    target: &Path,
    progress: impl Fn(u64),
    cancel: &CancellationToken,
) -> Result<()> {
    let write = |error| Error::io(format!("cannot write `{}`", target.display()), error);
    let read = |error| Error::io("cannot read a layer of the disk", error);
    // The stretch all layers can answer for at once; 2 MiB is the largest cluster there is.
    let chunk_bytes = 2_u64 << 20;
    let mut chunk = vec![0; usize::try_from(chunk_bytes).unwrap_or(0)];
    let mut tables = vec![Table::default(); layers.len()];
    let mut position = 0;
    while position < length {
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let count = chunk_bytes.min(length - position);
        let part = &mut chunk[..usize::try_from(count).unwrap_or(0)];
        if fill(layers, &mut tables, position, part).map_err(read)? {
            write_sparse(output, part, position).map_err(write)?;
        }
        position += count;
        progress(position);
    }
    Ok(())
}

/// The L2 table read last from a layer.
#[derive(Clone, Default)]
struct Table {
    offset: u64,
    words: Vec<u64>,
}

/// Reads the bytes at `position` through the layers. False when they are known to be zeros without
/// having been read; the buffer is not filled then.
fn fill(layers: &[Layer], tables: &mut [Table], position: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let Some((layer, below)) = layers.split_first() else { return Ok(false) };
    let Some((table, tables_below)) = tables.split_first_mut() else { return Ok(false) };
    let mut any = false;
    let mut done = 0;
    while done < buffer.len() {
        let at = position + done as u64;
        let (source, run) = layer.source(table, at, (buffer.len() - done) as u64)?;
        let run = usize::try_from(run).unwrap_or(0).clamp(1, buffer.len() - done);
        // A stretch that is not filled must be zeros once another one is.
        let part = &mut buffer[done..done + run];
        let filled = match source {
            Source::Zeros => false,
            Source::Below => fill(below, tables_below, at, part)?,
            Source::Data(offset) => {
                read_at(layer.file(), part, offset)?;
                true
            }
            Source::Compressed { offset, length } => {
                let Layer::Qcow2(qcow2) = layer else { return Err(corrupt("a compressed raw disk")) };
                let cluster = qcow2.decompress(offset, length)?;
                let within = usize::try_from(at % qcow2.header.cluster()).unwrap_or(0);
                let bytes = cluster.get(within..within + run).ok_or_else(|| corrupt("a short cluster"))?;
                part.copy_from_slice(bytes);
                true
            }
        };
        if !filled {
            part.fill(0);
        }
        any |= filled;
        done += run;
    }
    Ok(any)
}

impl Layer {
    fn length(&self) -> u64 {
        match self {
            Self::Raw { length, .. } => *length,
            Self::Qcow2(qcow2) => qcow2.header.virtual_size,
        }
    }

    fn file(&self) -> &File {
        match self {
            Self::Raw { file, .. } => file,
            Self::Qcow2(qcow2) => &qcow2.file,
        }
    }

    /// Where the bytes at `at` come from, and for how many of the next `most` that is the same.
    fn source(&self, table: &mut Table, at: u64, most: u64) -> io::Result<(Source, u64)> {
        match self {
            _ if at >= self.length() => Ok((Source::Zeros, most)),
            Self::Raw { file, length } => raw_source(file, *length, at, most),
            Self::Qcow2(qcow2) => qcow2.source(table, at, most.min(qcow2.header.virtual_size - at)),
        }
    }
}

/// Holes of a raw file are zeros that need not be read.
fn raw_source(file: &File, length: u64, at: u64, most: u64) -> io::Result<(Source, u64)> {
    use rustix::fs::{SeekFrom, seek};
    let data = match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(rustix::io::Errno::NXIO) => return Ok((Source::Zeros, most)),
        // Not every file system knows of holes.
        Err(_) => return Ok((Source::Data(at), most.min(length - at))),
    };
    if data > at {
        return Ok((Source::Zeros, most.min(data - at)));
    }
    let hole = seek(file, SeekFrom::Hole(at)).unwrap_or(length);
    Ok((Source::Data(at), most.min(hole.min(length).saturating_sub(at)).max(1)))
}

impl Qcow2 {
    fn source(&self, table: &mut Table, at: u64, most: u64) -> io::Result<(Source, u64)> {
        let cluster = self.header.cluster();
        let per_l1 = self.header.bytes_per_l1_entry();
        let l1 = usize::try_from(at / per_l1).ok().and_then(|index| self.l1.get(index)).copied();
        let l2_offset = l1.ok_or_else(|| corrupt("a table of clusters that is too short"))? & OFFSET_MASK;
        if l2_offset == 0 {
            return Ok((Source::Below, most.min(per_l1 - at % per_l1)));
        }
        if table.offset != l2_offset {
            let mut bytes = vec![0; usize::try_from(cluster).unwrap_or(0)];
            read_at(&self.file, &mut bytes, l2_offset)?;
            *table = Table { offset: l2_offset, words: words(&bytes) };
        }
        let words_per_entry = self.header.l2_entry_bytes() / 8;
        let index = usize::try_from(at % per_l1 / cluster * words_per_entry).unwrap_or(usize::MAX);
        let entry = *table.words.get(index).ok_or_else(|| corrupt("an L2 table that is too short"))?;
        let within = at % cluster;
        let run = most.min(cluster - within);
        if entry & COMPRESSED != 0 {
            return Ok((self.compressed(entry), run));
        }
        let data = entry & OFFSET_MASK;
        if self.header.extended_l2 {
            let bitmap =
                *table.words.get(index + 1).ok_or_else(|| corrupt("an L2 table that is too short"))?;
            let part = cluster / 32;
            let bit = within / part;
            let run = most.min(part - within % part);
            let source = if bitmap >> (32 + bit) & 1 != 0 {
                Source::Zeros
            } else if bitmap >> bit & 1 != 0 {
                Source::Data(data + within)
            } else {
                Source::Below
            };
            return Ok((source, run));
        }
        let source = match data {
            _ if entry & ALL_ZEROS != 0 => Source::Zeros,
            0 => Source::Below,
            data => Source::Data(data + within),
        };
        Ok((source, run))
    }

    /// Descriptor of a compressed cluster: offset in the low bits, above it the number of further
    /// sectors of 512 bytes that it reaches into.
    fn compressed(&self, entry: u64) -> Source {
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let descriptor = entry & (COMPRESSED - 1);
        let offset = descriptor & ((1 << offset_bits) - 1);
        let sectors = (descriptor >> offset_bits) + 1;
        // At most 2^13 sectors: the field has `cluster_bits - 8` bits.
        let length = usize::try_from(sectors * 512 - offset % 512).unwrap_or(0);
        Source::Compressed { offset, length }
    }

    fn decompress(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut packed = vec![0; length];
        read_at(&self.file, &mut packed, offset)?;
        let cluster = usize::try_from(self.header.cluster()).unwrap_or(0);
        let mut plain = vec![0; cluster];
        if self.header.zstd {
            let mut decoder = zstd::stream::read::Decoder::new(&packed[..])?;
            io::Read::read_exact(&mut decoder, &mut plain)?;
        } else {
            // What follows the stream in its last sector belongs to the next cluster.
            let mut inflate = flate2::Decompress::new(false);
            inflate.decompress(&packed, &mut plain, flate2::FlushDecompress::Finish)?;
            if inflate.total_out() != cluster as u64 {
                return Err(corrupt("a compressed cluster that is too short"));
            }
        }
        Ok(plain)
    }
}

/// Reads what there is; a file that ends early reads as zeros, as QEMU has it.
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                break;
            }
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes the blocks of 4 KiB that are not all zeros.
fn write_sparse(output: &File, bytes: &[u8], position: u64) -> io::Result<()> {
    const BLOCK: usize = 4096;
    let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
    let mut start = 0;
    while start < bytes.len() {
        let blocks = || bytes[start..].chunks(BLOCK);
        let skipped = blocks().take_while(|block| is_zero(block)).count();
        let from = (start + skipped * BLOCK).min(bytes.len());
        let written = bytes[from..].chunks(BLOCK).take_while(|block| !is_zero(block)).count();
        let to = (from + written * BLOCK).min(bytes.len());
        if to > from {
            output.write_all_at(&bytes[from..to], position + from as u64)?;
        }
        start = to.max(from);
        if from == bytes.len() {
            break;
        }
    }
    Ok(())
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the qcow2 disk has {what}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::super::tests::qemu_img;
    use super::super::{create_empty, create_overlay};
    use super::*;

    fn run(folder: &Path, disk: &str) -> Vec<u8> {
        let target = folder.join("flat");
        let _ = std::fs::remove_file(&target);
        flatten(&folder.join(disk), DiskFormat::Qcow2, &target, |_| {}, &CancellationToken::new()).unwrap();
        std::fs::read(target).unwrap()
    }

    #[test]
    fn an_untouched_overlay_reads_like_its_base_and_then_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let mut base = vec![0; 3 << 20];
        base[5000..9000].fill(7);
        base[(3 << 20) - 1] = 9;
        std::fs::write(folder.path().join("base"), &base).unwrap();
        create_overlay(&folder.path().join("a"), Path::new("base"), DiskFormat::Raw, 8 << 20).unwrap();
        create_overlay(&folder.path().join("b"), Path::new("a"), DiskFormat::Qcow2, 16 << 20).unwrap();
        base.resize(16 << 20, 0);
        assert!(run(folder.path(), "b") == base);
        assert!(std::fs::metadata(folder.path().join("flat")).unwrap().blocks() < 64, "holes stay holes");
    }

    #[test]
    fn disks_written_by_qemu_read_as_qemu_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let base: Vec<u8> = (0..2_u32 << 20).map(|at| (at / 777) as u8).collect();
        std::fs::write(path.join("base"), &base).unwrap();
        for options in ["compression_type=zlib", "compression_type=zstd", "cluster_size=4k", "extended_l2=on"]
        {
            let convert = ["convert", "-q", "-O", "qcow2", "-o", options, "base", "disk"];
            let compressed = [&["convert", "-c"], &convert[1..]].concat();
            let arguments: &[&str] = if options.starts_with("compression") { &compressed } else { &convert };
            if qemu_img(path, arguments).is_none() {
                return;
            }
            assert!(run(path, "disk") == base, "{options}");
            // An overlay with stretches written and stretches zeroed.
            let _ = std::fs::remove_file(path.join("over"));
            create_overlay(&path.join("over"), Path::new("disk"), DiskFormat::Qcow2, 4 << 20).unwrap();
            let writes = "write -P 5 4096 8192;write -z 131072 65536;write -P 6 3145728 512";
            let status = std::process::Command::new("qemu-io")
                .args(writes.split(';').flat_map(|write| ["-c", write]))
                .args(["-f", "qcow2", "over"])
                .current_dir(path)
                .output()
                .unwrap();
            assert!(status.status.success());
            qemu_img(path, &["convert", "-O", "raw", "over", "expected"]);
            assert!(run(path, "over") == std::fs::read(path.join("expected")).unwrap(), "{options}");
            qemu_img(path, &["check", "-q", "over"]);
        }
    }

    #[test]
    fn a_cancelled_copy_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        create_empty(&folder.path().join("disk"), 1 << 20).unwrap();
        let (disk, target) = (folder.path().join("disk"), folder.path().join("flat"));
        let cancel = CancellationToken::new();
        cancel.cancel();
        let error = flatten(&disk, DiskFormat::Qcow2, &target, |_| {}, &cancel).unwrap_err();
        assert!(error.is_cancelled());
        assert!(!target.exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn hostile_tables_do_not_panic(entries in proptest::collection::vec(any::<u64>(), 1..16)) {
            let folder = tempfile::tempdir().unwrap();
            let disk = folder.path().join("disk");
            create_empty(&disk, 1 << 20).unwrap();
            let file = OpenOptions::new().write(true).open(&disk).unwrap();
            // L1 leads to a table of whatever it is given.
            let table = 64_u64 << 16;
            file.write_all_at(&table.to_be_bytes(), super::super::L1_TABLE).unwrap();
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            file.write_all_at(&bytes, table).unwrap();
            let _ = flatten(&disk, DiskFormat::Qcow2, &folder.path().join("flat"), |_| {}, &CancellationToken::new());
        }
    }
}
