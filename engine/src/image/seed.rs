//! Work seeds: the file systems that new machines' work disks begin as, mounted at the home of root.
//!
//! All is done to the image file itself: nothing is mounted, and nobody needs to be root.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{
    Directory, Editor, FileKind, Formatter, ImageError, InodeId, InodeKind, InodeNumber, Metadata, Options,
    Reader, Stat, Timestamp, Tree,
};

use crate::error::{Error, Result};

/// Home of root in a root file system.
pub(super) const HOME: &[u8] = b"root";
/// What `mke2fs` puts into every file system; it does not count as content.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Longest `authorized_keys` that is read.
const LONGEST_KEYS: u64 = 1 << 20;
/// Bytes that are free in a derived seed at least; the file is sparse, and the guest grows it.
const FREE: u64 = 64 << 20;
/// Bytes of its journal: the least the kernel takes (1,024 blocks).
const JOURNAL: u64 = 4 << 20;
/// Entries of a home that are taken: beyond that it is no home.
const MOST_ENTRIES: u64 = 2_000_000;
const STEP: usize = 1 << 20;

/// Adds a line to `.ssh/authorized_keys` of a work seed, unless its key is there. Blocking.
///
/// Returns whether it was added. What is there stays: other keys, owner and mode. A missing `.ssh` is made for root as sshd(8)
/// wants it.
pub fn authorize(seed: &Path, public_line: &str) -> Result<bool> {
    edit(seed, |editor, now| {
        let root = editor.reader().root();
        let private = |mode| Metadata { mode, modified: now, ..Metadata::default() };
        let folder = match editor.reader().resolve(b".ssh")? {
            Some(folder) if editor.reader().stat(folder)?.kind == FileKind::Directory => folder,
            _ => {
                // A file of that name, or a link to nowhere, is no place for keys.
                if editor.reader().lookup(root, b".ssh")?.is_some() {
                    editor.remove(root, b".ssh")?;
                }
                editor.create_directory(root, b".ssh", &private(0o700))?
            }
        };
        let before = match editor.reader().lookup(folder, b"authorized_keys")? {
            Some(file) => Some((editor.reader().stat(file)?, file)),
            None => None,
        };
        let (metadata, mut text) = match before {
            Some((stat, file)) if stat.kind == FileKind::File => {
                let text = editor.reader().read(file, LONGEST_KEYS)?;
                let metadata = Metadata { uid: stat.uid, gid: stat.gid, ..private(stat.mode) };
                (metadata, text)
            }
            _ => (private(0o600), Vec::new()),
        };
        let key = key_of(public_line);
        if text
            .split(|&byte| byte == b'\n')
            .any(|line| line.split(|byte| byte.is_ascii_whitespace()).any(|word| word == key.as_bytes()))
        {
            return Ok(false);
        }
        if text.last().is_some_and(|&last| last != b'\n') {
            text.push(b'\n');
        }
        text.extend(public_line.as_bytes());
        text.push(b'\n');
        if let Some((stat, _)) = before
            && stat.kind == FileKind::Directory
        {
            return Err(ImageError::NotAFile);
        }
        editor.write_file(folder, b"authorized_keys", &metadata, &text)?;
        Ok(true)
    })
}

/// Moves the content of a work seed one level up when it is nested: when all there is, is a folder
/// `root`. Seeds made by archiving `/root` instead of what is in it are like that. Blocking.
///
/// Returns whether it was nested. The folder's owner and mode become the root folder's.
pub fn flatten_nested_work_home(seed: &Path) -> Result<bool> {
    edit(seed, |editor, _| {
        let root = editor.reader().root();
        let content = |editor: &Editor, folder| -> std::result::Result<Vec<_>, ImageError> {
            let entries = editor.reader().entries(folder)?;
            Ok(entries.into_iter().filter(|(name, _)| name != LOST_AND_FOUND).collect())
        };
        let top = content(editor, root)?;
        let [(name, home)] = top.as_slice() else { return Ok(false) };
        let stat = editor.reader().stat(*home)?;
        if name != HOME || stat.kind != FileKind::Directory {
            return Ok(false);
        }
        // Out of the way: the home may itself hold something called `root`.
        let aside = b".vmdeck-nested-home".as_slice();
        editor.rename(root, HOME, root, aside)?;
        for (name, _) in content(editor, *home)? {
            editor.rename(*home, &name, root, &name)?;
        }
        if editor.reader().lookup(*home, LOST_AND_FOUND)?.is_some() {
            editor.remove(*home, LOST_AND_FOUND)?;
        }
        editor.remove(root, aside)?;
        editor.set_owner(root, stat.mode, stat.uid, stat.gid)?;
        Ok(true)
    })
}

/// Opens an image to change it, and syncs it after, if `change` says that it did.
fn edit(
    path: &Path,
    change: impl FnOnce(&mut Editor, Timestamp) -> std::result::Result<bool, ImageError>,
) -> Result<bool> {
    let fail = |error: std::io::Error| Error::io(format!("cannot change `{}`", path.display()), error);
    let refused = |error: ImageError| {
        Error::failed(format!("the file system in `{}` cannot be changed", path.display())).with_source(error)
    };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
    let now = now();
    let mut editor = Editor::open(file, now).map_err(refused)?;
    let changed = change(&mut editor, now).map_err(refused)?;
    if changed {
        editor.commit().map_err(refused)?.sync_all().map_err(fail)?;
    }
    Ok(changed)
}

/// Writes a new work seed with the content of `/root` of a root file system; an empty one when there
/// is no such folder. Blocking.
pub(crate) fn derive(rootfs: &Path, seed: &Path, cancel: &CancellationToken) -> Result<()> {
    let unreadable = |error: ImageError| {
        Error::failed(format!("the file system in `{}` cannot be read", rootfs.display())).with_source(error)
    };
    let file = File::open(rootfs)
        .map_err(|error| Error::io(format!("cannot open `{}`", rootfs.display()), error))?;
    let reader = Reader::open(file).map_err(unreadable)?;
    let mut home = None;
    if let Some(found) = reader.resolve(HOME).map_err(unreadable)?
        && reader.stat(found).map_err(unreadable)?.kind == FileKind::Directory
    {
        home = Some(found);
    }
    write(seed, home.map(|home| (&reader, home)), None, None, cancel)
}

/// Writes a new work seed with the content of a folder.
fn write(
    seed: &Path,
    home: Option<(&Reader, InodeNumber)>,
    forget: Option<(InodeNumber, &str)>,
    copied: Option<([u8; 16], Timestamp)>,
    cancel: &CancellationToken,
) -> Result<()> {
    let doing = || format!("cannot write the work seed `{}`", seed.display());
    let output = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(seed)
        .map_err(|error| Error::io(doing(), error))?;
    // A copy is what it is a copy of.
    let (uuid, created) = match copied {
        Some(identity) => identity,
        None => (random_uuid().map_err(|error| Error::failed(doing()).with_source(error))?, now()),
    };
    let options =
        Options { size: 0, free: FREE, journal: JOURNAL, uuid, label: "vmdeck-work".into(), created };
    let unwritable = |error: vmdeck_ext4::FormatError| Error::failed(doing()).with_source(error);
    let formatter = Formatter::create(output, options).map_err(unwritable)?;
    let tree = match home {
        Some((reader, home)) => copy_home(reader, home, &formatter, forget, cancel)?,
        None => Tree::new(Metadata { mode: 0o700, modified: created, ..Metadata::default() }),
    };
    let (file, _) = formatter.finish(&tree).map_err(unwritable)?;
    file.sync_all().map_err(|error| Error::io(doing(), error))
}

/// Writes a copy of a work seed that does not know a key: neither in `.ssh/authorized_keys` nor in
/// blocks that are free, as a file that was changed leaves them. Blocking.
pub(crate) fn without_key(
    seed: &Path,
    copy: &Path,
    public_line: &str,
    cancel: &CancellationToken,
) -> Result<()> {
    let unreadable = |error: ImageError| {
        Error::failed(format!("the work seed `{}` cannot be read", seed.display())).with_source(error)
    };
    let file =
        File::open(seed).map_err(|error| Error::io(format!("cannot open `{}`", seed.display()), error))?;
    let reader = Reader::open(file).map_err(unreadable)?;
    let keys = reader.resolve(b".ssh/authorized_keys").map_err(unreadable)?;
    let forget = keys.map(|keys| (keys, public_line));
    let made = reader.stat(reader.root()).map_err(unreadable)?.modified;
    write(copy, Some((&reader, reader.root())), forget, Some((reader.uuid(), made)), cancel)
}

/// RFC 9562, section 5.4.
fn random_uuid() -> Result<[u8; 16], getrandom::Error> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid)?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// The lines of `authorized_keys` that hold another key than that of `public_line`.
fn other_keys(text: &[u8], public_line: &str) -> Vec<u8> {
    let key = key_of(public_line).as_bytes();
    let holds = |line: &[u8]| line.split(|byte| byte.is_ascii_whitespace()).any(|word| word == key);
    text.split_inclusive(|&byte| byte == b'\n').filter(|line| !holds(line)).collect::<Vec<_>>().concat()
}

/// The key itself, without its type and comment.
fn key_of(public_line: &str) -> &str {
    public_line.split_ascii_whitespace().nth(1).unwrap_or(public_line)
}

/// Copies a folder of a file system and all in it. Of the file `forget` names, lines with its key stay
/// behind.
fn copy_home(
    reader: &Reader,
    home: InodeNumber,
    formatter: &Formatter,
    forget: Option<(InodeNumber, &str)>,
    cancel: &CancellationToken,
) -> Result<Tree> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::failed("cannot copy the home of root to the work seed").with_source(source)
    };
    let read = |error: ImageError| failed(error.into());
    let metadata = |inode: InodeNumber, stat: &Stat| -> Result<Metadata> {
        Ok(Metadata {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            modified: stat.modified,
            xattrs: reader.xattrs(inode).map_err(read)?,
        })
    };
    let mut tree = Tree::new(metadata(home, &reader.stat(home).map_err(read)?)?);
    let mut writer = formatter.data_writer();
    // Inodes with several names, so that they stay one.
    let mut copied: HashMap<InodeNumber, InodeId> = HashMap::new();
    let mut folders = vec![(home, tree.root())];
    let mut entries = 0;
    let mut buffer = vec![0; STEP];
    while let Some((from, to)) = folders.pop() {
        for (name, inode) in reader.entries(from).map_err(read)? {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            entries += 1;
            if entries > MOST_ENTRIES {
                return Err(Error::failed("the home of root has too many entries for a work seed"));
            }
            let added = if let Some(present) = copied.get(&inode) {
                tree.link(to, &name, *present)
            } else {
                let stat = reader.stat(inode).map_err(read)?;
                let kind = match stat.kind {
                    FileKind::Directory => InodeKind::Directory(Directory::new()),
                    FileKind::Symlink => InodeKind::Symlink(reader.read_link(inode).map_err(read)?.into()),
                    FileKind::CharacterDevice { major, minor } => InodeKind::CharacterDevice { major, minor },
                    FileKind::BlockDevice { major, minor } => InodeKind::BlockDevice { major, minor },
                    FileKind::Fifo => InodeKind::Fifo,
                    FileKind::Socket => InodeKind::Socket,
                    FileKind::File if forget.is_some_and(|(keys, _)| keys == inode) => {
                        let (keys, key) = forget.expect("looked at above");
                        let text = reader.read(keys, LONGEST_KEYS).map_err(read)?;
                        let text = other_keys(&text, key);
                        let written = writer.begin(text.len() as u64).and_then(|()| writer.write(&text));
                        written.map_err(|error| failed(error.into()))?;
                        InodeKind::File(writer.end().map_err(|error| failed(error.into()))?)
                    }
                    FileKind::File => {
                        writer.begin(stat.size.min(stat.allocated)).map_err(|error| failed(error.into()))?;
                        let mut position = 0;
                        while position < stat.size {
                            if cancel.is_cancelled() {
                                return Err(Error::cancelled());
                            }
                            let count = reader.read_at(inode, position, &mut buffer).map_err(read)?;
                            if count == 0 {
                                break;
                            }
                            // Blocks of zeros become holes again.
                            writer.write(&buffer[..count]).map_err(|error| failed(error.into()))?;
                            position += count as u64;
                        }
                        InodeKind::File(writer.end().map_err(|error| failed(error.into()))?)
                    }
                };
                let metadata = metadata(inode, &stat)?;
                tree.create(to, &name, metadata, kind).map(|new| {
                    if stat.kind == FileKind::Directory {
                        folders.push((inode, new));
                    } else if stat.links > 1 {
                        copied.insert(inode, new);
                    }
                })
            };
            added.map_err(|error| failed(error.into()))?;
        }
    }
    writer.flush().map_err(|error| failed(error.into()))?;
    Ok(tree)
}

fn now() -> Timestamp {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(elapsed.as_secs()).unwrap_or_default(),
        nanoseconds: elapsed.subsec_nanos(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A file system made by mke2fs from a folder; `None` when there is no mke2fs.
    fn made_of(folder: &Path, image: &Path) -> Option<()> {
        let made = Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096", "-d"])
            .arg(folder)
            .arg(image)
            .arg("16M")
            .status();
        match made {
            Ok(status) => {
                assert!(status.success());
                Some(())
            }
            Err(error) => {
                eprintln!("skipped: mke2fs cannot be run: {error}");
                None
            }
        }
    }

    fn sound(image: &Path) {
        let output = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn read(image: &Path, path: &str) -> Option<String> {
        let reader = Reader::open(File::open(image).unwrap()).unwrap();
        let inode = reader.resolve(path.as_bytes()).unwrap()?;
        Some(String::from_utf8(reader.read(inode, 1 << 20).unwrap()).unwrap())
    }

    #[test]
    fn a_key_is_added_once_and_other_keys_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (content, image) = (folder.path().join("content"), folder.path().join("seed"));
        std::fs::create_dir_all(content.join(".ssh")).unwrap();
        std::fs::write(content.join(".ssh/authorized_keys"), "ssh-rsa AAAA other").unwrap();
        let Some(()) = made_of(&content, &image) else { return };
        for _ in 0..3 {
            authorize(&image, "ssh-ed25519 BBBB vmdeck").unwrap();
        }
        // The same key under another comment is the same key.
        authorize(&image, "ssh-ed25519 BBBB renamed").unwrap();
        let keys = read(&image, ".ssh/authorized_keys").unwrap();
        assert_eq!(keys, "ssh-rsa AAAA other\nssh-ed25519 BBBB vmdeck\n");
        sound(&image);
    }

    #[test]
    fn an_empty_seed_gets_the_folder_as_sshd_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let (content, image) = (folder.path().join("content"), folder.path().join("seed"));
        std::fs::create_dir_all(&content).unwrap();
        // A link to nowhere in the place of the folder.
        std::os::unix::fs::symlink("/nowhere", content.join(".ssh")).unwrap();
        let Some(()) = made_of(&content, &image) else { return };
        authorize(&image, "ssh-ed25519 BBBB vmdeck").unwrap();
        let reader = Reader::open(File::open(&image).unwrap()).unwrap();
        let stat = reader.stat(reader.find(b".ssh").unwrap()).unwrap();
        assert_eq!((stat.kind, stat.mode, stat.uid), (FileKind::Directory, 0o700, 0));
        let stat = reader.stat(reader.find(b".ssh/authorized_keys").unwrap()).unwrap();
        assert_eq!((stat.kind, stat.mode), (FileKind::File, 0o600));
        sound(&image);
    }

    #[test]
    fn a_nested_home_moves_one_level_up_and_a_home_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (content, image) = (folder.path().join("content"), folder.path().join("seed"));
        let nested = content.join("root");
        std::fs::create_dir_all(nested.join("root/deep")).unwrap();
        std::fs::create_dir_all(nested.join(".config")).unwrap();
        std::fs::write(nested.join(".profile"), "p").unwrap();
        std::fs::write(nested.join("root/deep/file"), "f").unwrap();
        std::fs::hard_link(nested.join(".profile"), nested.join(".config/same")).unwrap();
        let Some(()) = made_of(&content, &image) else { return };
        assert!(flatten_nested_work_home(&image).unwrap());
        sound(&image);
        assert_eq!(read(&image, ".profile").as_deref(), Some("p"));
        assert_eq!(read(&image, ".config/same").as_deref(), Some("p"));
        assert_eq!(read(&image, "root/deep/file").as_deref(), Some("f"));
        // Now it is a home, in which there happens to be something called `root`.
        assert!(!flatten_nested_work_home(&image).unwrap());
        assert_eq!(read(&image, "root/deep/file").as_deref(), Some("f"));

        let plain = folder.path().join("plain");
        std::fs::remove_dir_all(&content).unwrap();
        std::fs::create_dir_all(&content).unwrap();
        std::fs::write(content.join("root"), "a file").unwrap();
        made_of(&content, &plain).unwrap();
        assert!(!flatten_nested_work_home(&plain).unwrap());
        assert_eq!(read(&plain, "root").as_deref(), Some("a file"));
    }

    #[test]
    fn a_seed_is_derived_from_the_home_of_root() {
        let folder = tempfile::tempdir().unwrap();
        let (content, image) = (folder.path().join("content"), folder.path().join("rootfs"));
        std::fs::create_dir_all(content.join("root/.ssh")).unwrap();
        std::fs::create_dir_all(content.join("etc")).unwrap();
        std::fs::write(content.join("root/big"), vec![b'x'; 3_000_000]).unwrap();
        std::fs::hard_link(content.join("root/big"), content.join("root/.ssh/same")).unwrap();
        std::os::unix::fs::symlink("big", content.join("root/link")).unwrap();
        let Some(()) = made_of(&content, &image) else { return };
        let seed = folder.path().join("seed");
        derive(&image, &seed, &CancellationToken::new()).unwrap();
        sound(&seed);
        let reader = Reader::open(File::open(&seed).unwrap()).unwrap();
        assert_eq!(reader.find(b"big").unwrap(), reader.find(b".ssh/same").unwrap());
        assert_eq!(reader.read(reader.find(b"link").unwrap(), 1 << 22).unwrap().len(), 3_000_000);
        assert!(reader.resolve(b"etc").unwrap().is_none());

        let empty = folder.path().join("empty");
        std::fs::create_dir_all(&empty).unwrap();
        let (image, seed) = (folder.path().join("rootfs2"), folder.path().join("seed2"));
        made_of(&empty, &image).unwrap();
        derive(&image, &seed, &CancellationToken::new()).unwrap();
        sound(&seed);
    }
}
