//! Tests of the whole: packed layers in, a tree or an image out.

mod hostile;
mod model;
mod pipeline;
mod umoci;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vmdeck_ext4::{InodeId, InodeKind};

use super::*;

/// One name in a tree, and everything that is to be seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    kind: &'static str,
    mode: u32,
    uid: u32,
    gid: u32,
    modified: (i64, u32),
    links: u64,
    /// Of a link.
    target: Vec<u8>,
    device: (u64, u64),
    size: u64,
    /// SHA-256 of a file's content.
    content: String,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same inode.
    same_as: Vec<u8>,
}

/// By name, relative to the root.
type Dump = BTreeMap<Vec<u8>, Node>;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn options(folder: &Path, layers: usize) -> RootfsOptions {
    RootfsOptions {
        path: folder.join("rootfs.ext4"),
        layers,
        size: 64 << 20,
        uuid: [7; 16],
        limits: RootfsLimits::default(),
    }
}

/// Where large trees are written: in memory, where there is such a place.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("vmdeck-rootfs-").tempdir_in(place).unwrap()
}

/// Sends all layers at once, in small pieces, and waits for them.
fn send(builder: &RootfsBuilder, layers: &[Vec<u8>], compression: Compression) -> Result<()> {
    let sinks: Vec<_> = (0..layers.len()).map(|i| builder.layer(i, compression, None).unwrap()).collect();
    std::thread::scope(|scope| {
        let senders: Vec<_> = sinks
            .into_iter()
            .zip(layers)
            .map(|(sink, layer)| {
                scope.spawn(move || {
                    for piece in layer.chunks(20_011) {
                        if sink.bytes.blocking_send(Bytes::copy_from_slice(piece)).is_err() {
                            break;
                        }
                    }
                    finish(sink)
                })
            })
            .collect();
        senders.into_iter().try_for_each(|sender| sender.join().unwrap())
    })
}

fn finish(sink: LayerSink) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(sink.finish())
}

/// The merged tree of these archives.
fn merged(folder: &Path, archives: &[Vec<u8>]) -> Result<Dump> {
    let builder = RootfsBuilder::create(options(folder, archives.len()), CancellationToken::new())?;
    let packed: Vec<_> = archives.iter().map(|archive| gzip(archive)).collect();
    send(&builder, &packed, Compression::Gzip)?;
    let merged = builder.merge(&[])?;
    Ok(dump_tree(&merged))
}

/// The finished image of these archives.
fn image(folder: &Path, archives: &[Vec<u8>]) -> Result<PathBuf> {
    let options = options(folder, archives.len());
    let path = options.path.clone();
    let builder = RootfsBuilder::create(options, CancellationToken::new())?;
    let packed: Vec<_> = archives.iter().map(|archive| gzip(archive)).collect();
    send(&builder, &packed, Compression::Gzip)?;
    builder.finish(&[], None)?;
    check_image(&path);
    Ok(path)
}

/// e2fsck must have nothing to say.
fn check_image(path: &Path) {
    let Ok(output) = Command::new("e2fsck").arg("-fn").arg(path).output() else {
        eprintln!("skipped: e2fsck is not installed, the image was not checked");
        return;
    };
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn dump_tree(merged: &Merged) -> Dump {
    fn visit(
        merged: &Merged,
        id: InodeId,
        name: &[u8],
        first: &mut BTreeMap<InodeId, Vec<u8>>,
        dump: &mut Dump,
    ) {
        let inode = merged.jail.tree.inode(id);
        let metadata = &inode.metadata;
        let same_as = first.entry(id).or_insert_with(|| name.to_vec()).clone();
        let (kind, target, device, size, content) = match &inode.kind {
            InodeKind::Directory(_) => ("folder", vec![], (0, 0), 0, String::new()),
            InodeKind::File(data) => {
                let content = if data.size < 64 << 20 {
                    let mut content = vec![0; data.size as usize];
                    assert_eq!(merged.formatter.read_at(data, 0, &mut content).unwrap(), content.len());
                    hex(&content)
                } else {
                    String::new()
                };
                ("file", vec![], (0, 0), data.size, content)
            }
            InodeKind::Symlink(target) => ("symlink", target.to_vec(), (0, 0), 0, String::new()),
            InodeKind::CharacterDevice { major, minor } => {
                ("character", vec![], (u64::from(*major), u64::from(*minor)), 0, String::new())
            }
            InodeKind::BlockDevice { major, minor } => {
                ("block", vec![], (u64::from(*major), u64::from(*minor)), 0, String::new())
            }
            InodeKind::Fifo => ("fifo", vec![], (0, 0), 0, String::new()),
            InodeKind::Socket => ("socket", vec![], (0, 0), 0, String::new()),
        };
        dump.insert(
            name.to_vec(),
            Node {
                kind,
                mode: u32::from(metadata.mode),
                uid: metadata.uid,
                gid: metadata.gid,
                modified: (metadata.modified.seconds, metadata.modified.nanoseconds),
                links: if inode.is_directory() { 0 } else { u64::from(inode.links()) },
                target,
                device,
                size,
                content,
                xattrs: metadata.xattrs.clone(),
                same_as,
            },
        );
        for (entry, child) in merged.jail.tree.directory(id).into_iter().flatten() {
            visit(merged, *child, &join(name, entry), first, dump);
        }
    }
    let mut dump = Dump::new();
    visit(merged, merged.jail.tree.root(), b"", &mut BTreeMap::new(), &mut dump);
    dump
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// What the kernel shows of a tree on this host. Needs root to see all of it.
fn dump_host(root: &Path) -> Dump {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::os::unix::fs::MetadataExt;
    fn visit(path: &Path, name: &[u8], first: &mut BTreeMap<(u64, u64), Vec<u8>>, dump: &mut Dump) {
        let metadata = path.symlink_metadata().unwrap();
        let file_type = metadata.mode() & 0o170_000;
        let kind = match file_type {
            0o040_000 => "folder",
            0o100_000 => "file",
            0o120_000 => "symlink",
            0o020_000 => "character",
            0o060_000 => "block",
            0o010_000 => "fifo",
            _ => "socket",
        };
        let device = match kind {
            "character" | "block" => {
                (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()))
            }
            _ => (0, 0),
        };
        let xattrs = xattr::list(path)
            .unwrap()
            .map(|key| (key.as_bytes().to_vec(), xattr::get(path, &key).unwrap().unwrap_or_default()))
            .collect();
        let same_as = first.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.to_vec()).clone();
        let node = Node {
            kind,
            // The mode of a link means nothing and is the same everywhere.
            mode: if kind == "symlink" { 0o777 } else { metadata.mode() & 0o7777 },
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: (metadata.mtime(), metadata.mtime_nsec() as u32),
            links: if kind == "folder" { 0 } else { metadata.nlink() },
            target: if kind == "symlink" {
                std::fs::read_link(path).unwrap().into_os_string().into_vec()
            } else {
                vec![]
            },
            device,
            size: if kind == "file" { metadata.len() } else { 0 },
            content: if kind == "file" && metadata.len() < 64 << 20 {
                hex(&std::fs::read(path).unwrap())
            } else {
                String::new()
            },
            xattrs,
            same_as,
        };
        dump.insert(name.to_vec(), node);
        if kind == "folder" {
            // Sorted, so that the first name of an inode is the same everywhere.
            let mut entries: Vec<_> =
                std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            entries.sort();
            for entry in entries {
                visit(&path.join(&entry), &join(name, entry.as_bytes()), first, dump);
            }
        }
    }
    let mut dump = Dump::new();
    visit(root, b"", &mut BTreeMap::new(), &mut dump);
    dump
}

/// A mounted image; unmounted when dropped.
struct Mount(TempDir);

impl Mount {
    /// Needs root and a loop device; says why when there is none.
    fn new(image: &Path) -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: mounting the image needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-o", "loop,ro,noload"])
            .arg(image)
            .arg(folder.path())
            .output()
            .unwrap();
        if !output.status.success() {
            eprintln!(
                "skipped: the image cannot be mounted here: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            return None;
        }
        Some(Self(folder))
    }

    fn dump(&self) -> Dump {
        let mut dump = dump_host(self.0.path());
        assert!(dump.remove(&b"lost+found"[..]).is_some(), "lost+found is a part of every ext4");
        dump
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Every difference, as lines to read. `but` may blind both sides to something.
fn differences(found: &Dump, expected: &Dump, but: impl Fn(&[u8], &mut Node)) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        let shown = name.escape_ascii();
        match (found.get(name).cloned(), expected.get(name).cloned()) {
            (Some(mut one), Some(mut other)) => {
                but(name, &mut one);
                but(name, &mut other);
                if one != other {
                    lines.push(format!("{shown}:\n    found    {one:?}\n    expected {other:?}"));
                }
            }
            (Some(one), None) => lines.push(format!("{shown}: should not be there: {one:?}")),
            (None, other) => lines.push(format!("{shown}: is missing: {other:?}")),
        }
    }
    lines
}
