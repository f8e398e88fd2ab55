//! Comparison with `umoci unpack`, run as root, as the reference of what layers mean.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::super::path::{NameKind, clean_entry};
use super::super::torture::archive::{Item, archive};
use super::super::torture::{self, LARGE_FOLDER};
use super::*;

/// What `umoci` makes of these archives; `None` where it cannot be run.
pub(super) fn unpack(folder: &Path, archives: &[Vec<u8>]) -> Option<Dump> {
    if !is_root() {
        eprintln!("skipped: `umoci unpack` as root is the reference, and this is not root");
        return None;
    }
    if Command::new("umoci").arg("--version").output().is_err() {
        eprintln!("skipped: umoci is not installed");
        return None;
    }
    let layout = folder.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |content: &[u8]| {
        let digest = hex(content);
        fs::write(blobs.join(&digest), content).unwrap();
        format!("\"digest\":\"sha256:{digest}\",\"size\":{}", content.len())
    };
    let layers: Vec<_> = archives
        .iter()
        .map(|archive| {
            format!(
                "{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",{}}}",
                blob(&gzip(archive))
            )
        })
        .collect();
    let diff_ids: Vec<_> = archives.iter().map(|archive| format!("\"sha256:{}\"", hex(archive))).collect();
    let config = blob(
        format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
            diff_ids.join(",")
        )
        .as_bytes(),
    );
    let manifest = blob(
        format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",{config}}},\"layers\":[{}]}}",
            layers.join(",")
        )
        .as_bytes(),
    );
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    fs::write(
        layout.join("index.json"),
        format!(
            "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",{manifest},\
             \"annotations\":{{\"org.opencontainers.image.ref.name\":\"latest\"}}}}]}}"
        ),
    )
    .unwrap();
    let bundle = folder.join("bundle");
    let output = Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:latest", layout.display()))
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(output.status.success(), "umoci: {}", String::from_utf8_lossy(&output.stderr));
    let dump = dump_host(&bundle.join("rootfs"));
    fs::remove_dir_all(&bundle).unwrap();
    Some(dump)
}

/// Folders whose time `umoci` changes itself: it makes or removes something below them and brings
/// back only the time of the folder an entry is in.
const TOUCHED: [&[u8]; 3] = [b"headers", b"links", b"white/again-folder-late"];

/// Folders that some layer describes. `umoci` gives the others the time at which it runs.
fn described(layers: &[Vec<Item>]) -> BTreeSet<Vec<u8>> {
    let mut names = BTreeSet::new();
    for item in layers.iter().flatten() {
        let mut clean = Vec::new();
        if matches!(clean_entry(&item.name, &mut clean), Ok(NameKind::Ordinary | NameKind::Root)) {
            names.insert(clean);
        }
    }
    names
}

fn check(layers: &[Vec<Item>]) {
    let folder = scratch();
    let archives: Vec<_> = layers.iter().map(|items| archive(items)).collect();
    let Some(expected) = unpack(folder.path(), &archives) else { return };
    let described = described(layers);
    let blind = |name: &[u8], node: &mut Node| {
        if node.kind == "folder" && (!described.contains(name) || TOUCHED.contains(&name)) {
            node.modified = (0, 0);
        }
    };
    let image = image(folder.path(), &archives).unwrap();
    let Some(mount) = Mount::new(&image) else { return };
    let found = mount.dump();
    let lines = differences(&found, &expected, blind);
    assert!(lines.is_empty(), "{} differences:\n{}", lines.len(), lines.join("\n"));
    assert_eq!(found.len(), expected.len());
}

#[test]
fn the_torture_layers_are_unpacked_as_umoci_does() {
    check(&torture::layers(LARGE_FOLDER));
}
