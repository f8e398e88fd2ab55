//! OCI image layouts made by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// An image layout under construction.
pub(crate) struct Layout {
    path: PathBuf,
    layers: Vec<(String, u64)>,
    diff_ids: Vec<String>,
    pub(crate) architecture: String,
    pub(crate) config: serde_json::Value,
}

impl Layout {
    pub(crate) fn new(path: &Path) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self {
            path: path.to_owned(),
            layers: Vec::new(),
            diff_ids: Vec::new(),
            architecture: "amd64".into(),
            config: serde_json::json!({}),
        }
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let hex = hex(bytes);
        fs::write(self.path.join("blobs/sha256").join(&hex), bytes).unwrap();
        format!("sha256:{hex}")
    }

    /// Adds a layer from an uncompressed tar.
    pub(crate) fn layer(&mut self, tar: &[u8]) -> &mut Self {
        self.diff_ids.push(format!("sha256:{}", hex(tar)));
        let bytes = gzip(tar);
        let digest = self.blob(&bytes);
        self.layers.push((digest, bytes.len() as u64));
        self
    }

    /// Writes config, manifest and index; returns the manifest's digest.
    pub(crate) fn finish(&self) -> String {
        let config = serde_json::json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(digest, size)| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size,
                })
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(&config), "size": config.len(),
            },
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = self.blob(&manifest);
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest, "size": manifest.len(),
                "platform": { "architecture": self.architecture, "os": "linux" },
                "annotations": { "org.opencontainers.image.ref.name": "latest" },
            }],
        });
        fs::write(self.path.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        digest
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// Bytes that do not compress, the same every time (xorshift64).
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The digest as OCI writes it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tar with the given entries in their order.
#[derive(Default)]
pub(crate) struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    fn append(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        link: Option<&str>,
        content: &[u8],
    ) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        // Written past the crate's own checks: hostile names are the point of some tests.
        let name = header.as_old_mut();
        name.name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(link) = link {
            name.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> &mut Self {
        self.append(path, tar::EntryType::Directory, mode, None, b"")
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.append(path, tar::EntryType::Regular, mode, None, content)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.append(path, tar::EntryType::Symlink, 0o777, Some(target), b"")
    }

    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.append(path, tar::EntryType::Link, 0o644, Some(target), b"")
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.extend_from_slice(&[0; 1024]);
        bytes
    }
}
