//! Manifests, indexes and configs of images: the parts that matter here, read from bytes nobody
//! trusts yet.
//!
//! Formats: OCI image-spec 1.1 (manifest.md, image-index.md, config.md) and Docker's image manifest
//! version 2, schema 2, which differ in media types only. The wire forms are `oci-client`'s; what is
//! read becomes types of ours, whose digests are digests and whose sizes cannot be negative.
//!
//! The outer form of a config is our own: `oci_client::config::ConfigFile` knows no variant, and
//! refuses the `null` that Go writes for no layers and dates that nobody needs here.

use std::collections::BTreeMap;
use std::fmt;

use oci_client::config::Config as RunConfig;
use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
    IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_LAYER_MEDIA_TYPE, ImageIndexEntry,
    OciDescriptor, OciImageIndex, OciImageManifest,
};
pub(crate) use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE as DOCKER_LIST, IMAGE_MANIFEST_MEDIA_TYPE as DOCKER_MANIFEST,
    OCI_IMAGE_INDEX_MEDIA_TYPE as OCI_INDEX, OCI_IMAGE_MEDIA_TYPE as OCI_MANIFEST,
};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::digest::Digest;
use super::record::ImageConfig;
use super::text::printable;
use crate::error::{Error, Result};
use crate::rootfs::Compression;

/// Longest manifest or index taken: what registries themselves accept (distribution's limit).
pub(crate) const LARGEST_MANIFEST: u64 = 4 << 20;
/// Longest image config taken. Its history grows with every build step; 8 MiB is far beyond any.
pub(crate) const LARGEST_CONFIG: u64 = 8 << 20;
/// Most layers of one image. Overlay file systems, which other tools use, end at 500.
const MOST_LAYERS: usize = 512;
/// Most entries of an index looked into that do not say which platform they are for.
const MOST_TRIES: usize = 16;

/// `oci-client` has no name for it yet.
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A pointer to a blob (OCI image-spec, descriptor.md), whose digest and size have been understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    pub annotations: BTreeMap<String, String>,
    pub platform: Option<Platform>,
}

impl Descriptor {
    fn new(
        media_type: String,
        digest: &str,
        size: i64,
        annotations: Option<BTreeMap<String, String>>,
    ) -> Result<Self> {
        let refuse = |why: String| {
            Error::failed(format!(
                "the image's manifest is malformed: a part with the digest `{}` {why}",
                printable(digest, 80)
            ))
        };
        let parsed = digest.parse().map_err(|error| refuse("cannot be named".into()).with_source(error))?;
        let size = u64::try_from(size).map_err(|_| refuse(format!("is said to be {size} bytes long")))?;
        Ok(Self {
            media_type,
            digest: parsed,
            size,
            annotations: annotations.unwrap_or_default(),
            platform: None,
        })
    }
}

impl TryFrom<OciDescriptor> for Descriptor {
    type Error = Error;

    fn try_from(wire: OciDescriptor) -> Result<Self> {
        Self::new(wire.media_type, &wire.digest, wire.size, wire.annotations)
    }
}

impl TryFrom<ImageIndexEntry> for Descriptor {
    type Error = Error;

    fn try_from(wire: ImageIndexEntry) -> Result<Self> {
        let descriptor = Self::new(wire.media_type, &wire.digest, wire.size, wire.annotations)?;
        Ok(Self { platform: wire.platform.map(Platform::from), ..descriptor })
    }
}

/// What an image is made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", printable(&self.os, 30), printable(&self.architecture, 30))?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{}", printable(variant, 30)))
    }
}

impl From<oci_client::manifest::Platform> for Platform {
    fn from(wire: oci_client::manifest::Platform) -> Self {
        Self { architecture: wire.architecture.to_string(), os: wire.os.to_string(), variant: wire.variant }
    }
}

impl Platform {
    /// Linux on the processor this program runs on, in OCI's words (image-spec, image-index.md: the
    /// values of Go's GOARCH).
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image for `offered` runs here; lower is better, `None` is not at all.
    fn rank(&self, offered: &Self) -> Option<u8> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let offered = offered.variant.as_deref().unwrap_or_default();
        // Best first. On amd64 the variants are levels of instruction sets, and the lowest runs
        // everywhere; on arm a newer core runs older code (containerd, platforms/compare.go).
        let order: &[&str] = match self.architecture.as_str() {
            "amd64" => &["", "v1", "v2", "v3"],
            "arm64" => &["v8", "", "v8.0"],
            "arm" => &["v7", "", "v6", "v5"],
            _ => return offered.is_empty().then_some(0).or(Some(1)),
        };
        order.iter().position(|variant| *variant == offered).and_then(|rank| u8::try_from(rank).ok())
    }
}

/// What a manifest's name led to.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// One image for one platform.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    /// Bottom first.
    pub layers: Vec<Descriptor>,
}

impl Document {
    /// Reads a manifest or an index, whichever the bytes are.
    ///
    /// # Errors
    /// What is neither, Docker's schema 1, which holds no config, and other artifacts.
    pub(crate) fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self> {
        /// What tells the kinds apart. `oci_client::manifest::OciManifest` would take the first that
        /// fits, also of a text that is both.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<i32>,
            media_type: Option<String>,
            manifests: Option<IgnoredAny>,
            config: Option<IgnoredAny>,
            layers: Option<IgnoredAny>,
        }
        let shape: Shape = read(bytes)?;
        if shape.schema_version == Some(1) {
            return Err(Error::failed(
                "the image has a manifest of Docker's schema 1, which is no longer in use",
            )
            .with_hint("push the image again with a current tool"));
        }
        let stated = shape.media_type.as_deref().or(media_type).unwrap_or_default();
        let known = matches!(stated, OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST | "");
        match (shape.manifests, shape.config, shape.layers) {
            // The text must not be one thing for us and another for a scanner (CVE-2021-41190).
            (Some(_), None, None) if !matches!(stated, OCI_MANIFEST | DOCKER_MANIFEST) => {
                let index: OciImageIndex = read(bytes)?;
                let entries = index.manifests.into_iter().map(Descriptor::try_from);
                entries.collect::<Result<_>>().map(Self::Index)
            }
            (None, Some(_), Some(_)) if !matches!(stated, OCI_INDEX | DOCKER_LIST) => {
                let OciImageManifest { config, layers, artifact_type, .. } = read(bytes)?;
                let layers = layers.into_iter().map(Descriptor::try_from).collect::<Result<_>>()?;
                let manifest = Manifest { config: config.try_into()?, layers };
                manifest.check(artifact_type.as_deref())?;
                Ok(Self::Manifest(manifest))
            }
            _ if !known => Err(Error::failed(format!(
                "the manifest is of type `{}`, which is no container image",
                printable(stated, 100)
            ))),
            _ => Err(Error::failed("the manifest is neither an image nor an index of images")),
        }
    }
}

/// The next step where a text is none of an image's.
pub(crate) const NO_REGISTRY: &str =
    "check that the address is a registry's, and the image one for containers";

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::failed("the image's manifest is malformed").with_source(error).with_hint(NO_REGISTRY)
    })
}

impl Manifest {
    fn check(&self, artifact_type: Option<&str>) -> Result<()> {
        let config = self.config.media_type.as_str();
        let is_image = matches!(config, "" | IMAGE_CONFIG_MEDIA_TYPE | IMAGE_DOCKER_CONFIG_MEDIA_TYPE);
        if !is_image {
            let what = artifact_type.unwrap_or(config);
            return Err(Error::failed(format!(
                "the reference names an artifact of type `{}`, which is no container image",
                printable(what, 100)
            )));
        }
        if self.layers.len() > MOST_LAYERS {
            return Err(Error::failed(format!(
                "the image has {} layers; at most {MOST_LAYERS} are taken",
                self.layers.len()
            )));
        }
        if self.config.size > LARGEST_CONFIG {
            return Err(Error::failed(format!(
                "the image's config is said to be {} bytes long; at most {LARGEST_CONFIG} are taken",
                self.config.size
            )));
        }
        self.layers.iter().try_for_each(|layer| layer.compression().map(|_| ()))?;
        self.layers
            .iter()
            .try_fold(0u64, |sum, layer| sum.checked_add(layer.size))
            .filter(|sum| *sum < 1 << 50)
            .map(|_| ())
            .ok_or_else(|| Error::failed("the sizes of the image's layers are beyond reason"))
    }
}

impl Descriptor {
    /// How a layer is packed, by its media type.
    pub(crate) fn compression(&self) -> Result<Compression> {
        let media_type = self.media_type.as_str();
        let refuse = |why: &str| {
            Err(Error::failed(format!(
                "layer {} is of type `{}`: {why}",
                self.digest.short(),
                printable(media_type, 100)
            )))
        };
        if media_type.contains("foreign") || media_type.contains("nondistributable") {
            return refuse("a foreign layer, which the registry does not hold");
        }
        if media_type.ends_with("+encrypted") {
            return refuse("it is encrypted");
        }
        match media_type {
            IMAGE_LAYER_MEDIA_TYPE | IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE => Ok(Compression::None),
            IMAGE_LAYER_GZIP_MEDIA_TYPE | IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE => Ok(Compression::Gzip),
            LAYER_ZSTD | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
            _ => refuse("no layer of a root file system"),
        }
    }

    /// Whether this entry of an index describes another entry instead of being an image: what build
    /// tools attach as provenance (BuildKit, attestation-storage.md).
    fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
            || self
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "unknown" && platform.architecture == "unknown")
    }
}

/// The entries of an index that are images.
pub(crate) fn images(entries: &[Descriptor]) -> Vec<&Descriptor> {
    let is_image = |entry: &&Descriptor| {
        !entry.is_attestation()
            && matches!(
                entry.media_type.as_str(),
                OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST | ""
            )
    };
    entries.iter().filter(is_image).collect()
}

/// The entries of an index that may be for `platform`, never none: the one that says so, the first of
/// equals as the specification has it; else those that do not say, whose configs will.
pub(crate) fn candidates<'a>(entries: &'a [Descriptor], platform: &Platform) -> Result<Vec<&'a Descriptor>> {
    let images = images(entries);
    let ranked = images.iter().filter_map(|entry| Some((platform.rank(entry.platform.as_ref()?)?, *entry)));
    if let Some((_, entry)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(vec![entry]);
    }
    let silent: Vec<&Descriptor> =
        images.iter().copied().filter(|entry| entry.platform.is_none()).take(MOST_TRIES).collect();
    if !silent.is_empty() {
        return Ok(silent);
    }
    let offered: Vec<Platform> = images.iter().filter_map(|entry| entry.platform.clone()).collect();
    Err(not_for(platform, &offered))
}

/// What to say where all there is is for other platforms.
pub(crate) fn not_for(wanted: &Platform, offered: &[Platform]) -> Error {
    let mut names: Vec<String> = offered.iter().take(32).map(Platform::to_string).collect();
    names.dedup();
    match names.as_slice() {
        [] => Error::failed("the index holds no image"),
        [one] => Error::failed(format!("the image is for {one}; this host runs {wanted}"))
            .with_hint("choose a tag or digest that is for this host's architecture"),
        _ => Error::failed(format!("there is no image for {wanted}; there are: {}", names.join(", ")))
            .with_hint("vmdeck runs images of this host's own architecture"),
    }
}

/// An image's config (OCI image-spec, config.md).
#[derive(Clone, Debug)]
pub struct Config {
    pub platform: Platform,
    pub run: ImageConfig,
    /// Digests of the layers as plain tar, bottom first.
    pub diff_ids: Vec<Digest>,
}

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            #[serde(flatten)]
            platform: Platform,
            #[serde(default, deserialize_with = "nullable")]
            config: RunConfig,
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default, deserialize_with = "nullable")]
            diff_ids: Vec<Digest>,
        }
        let file: File = serde_json::from_slice(bytes).map_err(|error| {
            Error::failed("the image's config is malformed").with_source(error).with_hint(NO_REGISTRY)
        })?;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let run = file.config;
        let mut exposed_ports: Vec<String> = run.exposed_ports.into_iter().flatten().collect();
        exposed_ports.sort_unstable();
        Ok(Self {
            platform: file.platform,
            run: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                command: run.cmd.unwrap_or_default(),
                environment: run.env.unwrap_or_default(),
                working_directory: given(run.working_dir),
                user: given(run.user),
                exposed_ports,
                stop_signal: given(run.stop_signal),
                labels: run.labels.into_iter().flatten().collect(),
            },
            diff_ids: file.rootfs.diff_ids,
        })
    }

    /// Whether an image can be one for this platform.
    pub(crate) fn is_for(&self, wanted: &Platform) -> bool {
        // Some tools leave both out of the config; then there is nothing to compare.
        let fits = |offered: &str, wanted: &str| offered.is_empty() || offered == wanted;
        fits(&self.platform.os, &wanted.os) && fits(&self.platform.architecture, &wanted.architecture)
    }

    /// Refuses an image made for another machine.
    pub fn check_platform(&self, wanted: &Platform) -> Result<()> {
        if self.is_for(wanted) { Ok(()) } else { Err(not_for(wanted, std::slice::from_ref(&self.platform))) }
    }
}

/// `null` as the type's default: Go writes empty lists and maps so.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(os: &str, architecture: &str, variant: Option<&str>, content: &str) -> Descriptor {
        let platform = Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        };
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(content.as_bytes()),
            size: 1,
            annotations: BTreeMap::new(),
            platform: Some(platform),
        }
    }

    fn platform(architecture: &str, variant: Option<&str>) -> Platform {
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        }
    }

    #[test]
    fn the_entry_that_suits_the_host_best_is_chosen() {
        let mut attestation = entry("linux", "amd64", None, "attestation");
        attestation.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        let entries = [
            attestation,
            entry("unknown", "unknown", None, "unknown"),
            entry("windows", "amd64", None, "windows"),
            entry("linux", "amd64", Some("v3"), "v3"),
            entry("linux", "amd64", None, "plain"),
            entry("linux", "arm", Some("v6"), "armv6"),
            entry("linux", "arm", Some("v7"), "armv7"),
            entry("linux", "arm64", Some("v8"), "arm64"),
        ];
        let chosen = |platform: Platform| candidates(&entries, &platform).unwrap()[0].digest;
        assert_eq!(chosen(platform("amd64", None)), Digest::of(b"plain"));
        assert_eq!(chosen(platform("arm", Some("v7"))), Digest::of(b"armv7"));
        assert_eq!(chosen(platform("arm64", Some("v8"))), Digest::of(b"arm64"));
    }

    #[test]
    fn an_index_without_the_platform_says_what_it_has() {
        let entries = [entry("linux", "arm64", Some("v8"), "a"), entry("windows", "amd64", None, "b")];
        let error = candidates(&entries, &platform("amd64", None)).unwrap_err();
        assert!(error.to_string().contains("no image for linux/amd64"), "{error}");
        assert!(error.to_string().contains("linux/arm64/v8, windows/amd64"), "{error}");
        assert!(candidates(&[], &platform("amd64", None)).unwrap_err().to_string().contains("no image"));
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_type() {
        let check = |text: &str, expected: &str| {
            let error = Document::parse(text.as_bytes(), None).unwrap_err();
            assert!(error.full_message().contains(expected), "{}", error.full_message());
        };
        let digest = Digest::of(b"");
        check(r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1");
        check(r#"{"schemaVersion":2}"#, "neither an image nor an index");
        check(r#"{"schemaVersion":2,"mediaType":"application/x\u001b"}"#, r"application/x\u{1b}");
        check("[", "malformed");
        let manifest = |config: &str, layer: &str| {
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{digest}","size":1}},
                    "layers":[{{"mediaType":"{layer}","digest":"{digest}","size":1}}]}}"#
            )
        };
        let image = "application/vnd.oci.image.config.v1+json";
        check(&manifest("application/vnd.cncf.helm.config.v1+json", "x"), "helm");
        check(&manifest(image, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), "foreign layer");
        check(&manifest(image, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "encrypted");
        check(&manifest(image, "text/plain"), "no layer of a root file system");
        let both = format!(
            r#"{{"schemaVersion":2,"manifests":[],"config":{{"mediaType":"x","digest":"{digest}","size":1}},"layers":[]}}"#
        );
        check(&both, "neither an image nor an index");
        let sized = |digest: &str, size: i64| {
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{image}","digest":"{digest}","size":{size}}},"layers":[]}}"#
            )
        };
        check(&sized(&digest.to_string(), -1), "-1 bytes");
        check(&sized("sha512:00", 1), "not sha256");
    }

    #[test]
    fn a_config_with_nulls_is_read() {
        let text = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},
            "config":{"Cmd":["sh"],"Entrypoint":null,"Env":null,"WorkingDir":"","ExposedPorts":{"80/tcp":{}}}}"#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.run.command, ["sh"]);
        assert_eq!(config.run.exposed_ports, ["80/tcp"]);
        assert_eq!(config.run.working_directory, None);
        assert!(config.check_platform(&platform("amd64", None)).is_ok());
        let error = config.check_platform(&platform("arm64", Some("v8"))).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64/v8"), "{error}");
        assert!(Config::parse(br#"{"rootfs":{},"config":null}"#).unwrap().diff_ids.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes, None);
            let _ = Config::parse(&bytes);
        }
    }
}
