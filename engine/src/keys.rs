//! The SSH key of this installation: made in this process when it is first needed, then kept.
//!
//! New machines take its public half as an authorized key; `vmdeck vm ssh` shows the private half to
//! the guest's SSH service. A user may put a key of another type or with a passphrase in its place:
//! the public half stands unencrypted in every private key of OpenSSH's own format, and is read from
//! there.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::{OperationId, VmId};

const PRIVATE_NAME: &str = "id_ed25519";
const HOST_NAME: &str = "ssh_host_ed25519_key";
/// Third field of the public line: tells a person where the key comes from.
const COMMENT: &str = "vmdeck";
/// First bytes of OpenSSH's private key format (openssh-portable, PROTOCOL.key, section 1).
const MAGIC: &[u8] = b"openssh-key-v1\0";
const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
/// A private key file is a few kilobytes at most (RSA with 16384 bits: 12 KiB).
const LARGEST_FILE: u64 = 64 << 10;

/// The key with which this installation logs in to its machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallationKey {
    /// A line for `authorized_keys`, without its newline (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
    pub public_line: String,
    /// Absolute path of the private half, mode 0600.
    pub private_path: PathBuf,
}

/// The installation's key; made first if there is none yet. Blocking, brief.
///
/// Two processes may come here at once: the first to link its file under the final name wins, and
/// both read that one.
pub fn installation_key(data: &DataDirectory) -> Result<InstallationKey> {
    key(data.keys().join(PRIVATE_NAME))
}

/// The key of a machine's SSH service, in the machine's folder: made and kept in the same way.
pub fn host_key(data: &DataDirectory, vm: &VmId) -> Result<InstallationKey> {
    key(data.vm(vm).join(HOST_NAME))
}

fn key(private_path: PathBuf) -> Result<InstallationKey> {
    let fail = |error| Error::io(format!("cannot prepare the SSH key `{}`", private_path.display()), error);
    let text = match read(&private_path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            publish(&private_path, generate()?.as_bytes()).map_err(fail)?;
            read(&private_path).map_err(fail)?
        }
        Err(error) => return Err(fail(error)),
    };
    let public_line = public_line(&text).ok_or_else(|| {
        Error::failed(format!("`{}` is no private key in OpenSSH's format", private_path.display()))
            .with_hint("put the right file there, or move it away: vmdeck then makes a new key")
    })?;
    let public_path = private_path.with_extension("pub");
    let line = format!("{public_line}\n");
    keep(&public_path, &line).map_err(fail)?;
    Ok(InstallationKey { public_line, private_path })
}

/// Makes this the whole content of a file, which is the caller's alone to read.
pub fn keep(path: &Path, content: &str) -> std::io::Result<()> {
    if read(path).ok().as_deref() == Some(content) {
        return Ok(());
    }
    fs::rename(stage(path, content.as_bytes())?, path)
}

/// The text of a key or of what belongs to it.
pub fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Puts `content` under `path` as a whole or, when somebody else was first, not at all.
fn publish(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let staged = stage(path, content)?;
    let linked = match fs::hard_link(&staged, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    fs::remove_file(&staged)?;
    linked?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn stage(path: &Path, content: &[u8]) -> std::io::Result<PathBuf> {
    let staged = path.with_extension(format!("{}.new", OperationId::random()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(staged)
}

/// A new private key as the text of its file (openssh-portable, PROTOCOL.key; RFC 8709 for the key
/// type's blobs).
fn generate() -> Result<String> {
    let mut seed = [0u8; 32];
    let mut check = [0u8; 4];
    getrandom::fill(&mut seed)
        .and_then(|()| getrandom::fill(&mut check))
        .map_err(|error| Error::failed("cannot make an SSH key: no random numbers").with_source(error))?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed)
        .map_err(|_| Error::failed("cannot make an SSH key: the seed was rejected"))?;
    let public = pair.public_key().as_ref();

    let mut blob = Vec::new();
    put_string(&mut blob, b"ssh-ed25519");
    put_string(&mut blob, public);

    let mut private = Vec::new();
    private.extend(check);
    private.extend(check);
    private.extend(&blob);
    put_string(&mut private, &[&seed[..], public].concat());
    put_string(&mut private, COMMENT.as_bytes());
    // Padded with 1, 2, 3, … to the block length of the cipher, which is 8 for "none".
    let mut padding = 1;
    while private.len() % 8 != 0 {
        private.push(padding);
        padding += 1;
    }

    let mut file = MAGIC.to_vec();
    put_string(&mut file, b"none");
    put_string(&mut file, b"none");
    put_string(&mut file, b"");
    file.extend(1u32.to_be_bytes());
    put_string(&mut file, &blob);
    put_string(&mut file, &private);

    let encoded = BASE64.encode(&file);
    let mut text = format!("{BEGIN}\n");
    for line in encoded.as_bytes().chunks(70) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str(END);
    text.push('\n');
    Ok(text)
}

/// The public half of a private key file, as a line for `authorized_keys`.
fn public_line(private: &str) -> Option<String> {
    let body = private.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let encoded: String = body.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    let decoded = BASE64.decode(encoded).ok()?;
    let mut rest = decoded.strip_prefix(MAGIC)?;
    for _cipher_and_its_parameters in 0..3 {
        take_string(&mut rest)?;
    }
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*count) != 1 {
        return None;
    }
    let blob = take_string(&mut rest)?;
    let kind = std::str::from_utf8(take_string(&mut &*blob)?).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-@.".contains(&byte);
    (!kind.is_empty() && kind.bytes().all(plain)).then(|| format!("{kind} {} {COMMENT}", BASE64.encode(blob)))
}

/// A string as RFC 4251, section 5, has it: length in four bytes, then the bytes.
fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("the parts of one key are short");
    out.extend(length.to_be_bytes());
    out.extend(bytes);
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (bytes, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| installation_key(&data).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(fs::metadata(&keys[0].private_path).unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> =
            fs::read_dir(data.keys()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let public = fs::read_to_string(data.keys().join("id_ed25519.pub")).unwrap();
        assert_eq!(public.trim_end(), keys[0].public_line);
    }

    #[test]
    fn openssh_reads_the_key_and_sees_the_same_public_half() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let key = installation_key(&data).unwrap();
        let output = match Command::new("ssh-keygen").arg("-y").arg("-f").arg(&key.private_path).output() {
            Ok(output) => output,
            Err(error) => return eprintln!("skipped: ssh-keygen cannot be run: {error}"),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line = String::from_utf8(output.stdout).unwrap();
        assert_eq!(line.trim_end(), key.public_line);
    }

    #[test]
    fn a_key_with_a_passphrase_in_its_place_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let path = data.keys().join(PRIVATE_NAME);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ecdsa", "-N", "secret", "-C", "mine", "-f"])
            .arg(&path)
            .status();
        match made {
            Ok(status) => assert!(status.success()),
            Err(error) => return eprintln!("skipped: ssh-keygen cannot be run: {error}"),
        }
        let theirs = fs::read_to_string(path.with_extension("pub")).unwrap();
        let key = installation_key(&data).unwrap();
        assert_eq!(key.public_line.split(' ').nth(1), theirs.split(' ').nth(1));
    }

    #[test]
    fn what_is_no_key_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let path = data.keys().join(PRIVATE_NAME);
        let cut = generate().unwrap();
        for text in ["", "hello", BEGIN, &cut[..cut.len() / 2], &format!("{BEGIN}\nAAAA\n{END}\n")] {
            fs::write(&path, text).unwrap();
            let error = installation_key(&data).unwrap_err();
            assert!(error.to_string().contains("no private key"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
