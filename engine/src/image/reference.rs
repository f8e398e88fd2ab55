//! What a user may write to name an image to pull.
//!
//! The forms are skopeo's (containers-transports(5)); a registry's own grammar is that of the
//! distribution project (`github.com/distribution/reference`, `regexp.go`), with Docker's
//! shorthand: no registry means `docker.io`, no namespace there means `library/`.
//!
//! Not `oci_client::Reference`: its regular expression takes 57 ms to compile, once in every process,
//! and a whole pull of what is here already may take 50.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::digest::Digest;
use crate::error::{Error, Result};

/// The forms there are, for error messages and help.
pub const FORMS: &str = "[docker://]NAME[:TAG][@DIGEST], oci:DIR[:TAG|@DIGEST], oci-archive:FILE[:TAG|@DIGEST], \
                         docker-archive:FILE[:TAG], bundle:FILE|URL[@DIGEST]";

/// Longest text taken at all; a path has 4095 bytes at most.
const LONGEST: usize = 8192;
/// Longest repository name (distribution/reference, `RepositoryNameTotalLengthMax`).
const LONGEST_REPOSITORY: usize = 255;

/// Prefixes that other tools give a meaning and that must not be taken for a repository's name.
const FOREIGN: &[&str] =
    &["atomic", "containers-storage", "dir", "docker-daemon", "oci-layout", "ostree", "sif"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageReference {
    Registry(RegistryReference),
    /// An OCI image layout in a folder (OCI image-spec, image-layout.md). The tag may be `@` and the digest
    /// of a manifest.
    Layout {
        directory: PathBuf,
        tag: Option<String>,
    },
    /// The same in a tar file.
    OciArchive {
        file: PathBuf,
        tag: Option<String>,
    },
    /// What `docker save` writes. The tag is `NAME:TAG` or `@INDEX`.
    DockerArchive {
        file: PathBuf,
        tag: Option<String>,
    },
    /// A bundle of ready file systems, as `image export` writes it; perhaps the digest of the file.
    Bundle(BundleLocation, Option<Digest>),
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryReference {
    /// Host and, where given, port; `docker.io` for Docker Hub.
    pub registry: String,
    /// Path of the repository in it, `library/` included.
    pub repository: String,
    /// `latest` when neither tag nor digest is given.
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleLocation {
    File(PathBuf),
    Url(String),
}

impl ImageReference {
    /// A name for the image when the user gives none: the last part of the repository's name or of
    /// the path, made fit for [`crate::identifier::check_name`].
    pub fn default_name(&self) -> String {
        match self {
            Self::Registry(reference) => as_name(last_part(&reference.repository)),
            Self::Layout { directory: path, .. } => as_name(&file_name(path)),
            Self::OciArchive { file, .. }
            | Self::DockerArchive { file, .. }
            | Self::Bundle(BundleLocation::File(file), _) => as_name(without_extensions(&file_name(file))),
            Self::Bundle(BundleLocation::Url(url), _) => {
                let path = url.split(['?', '#']).next().unwrap_or_default();
                as_name(without_extensions(last_part(path)))
            }
        }
    }

    /// The default name and the tag: for a second image of one repository.
    pub fn longer_name(&self) -> String {
        let tag = match self {
            Self::Registry(RegistryReference { digest: Some(digest), .. }) => Some(digest.short()),
            Self::Registry(reference) => reference.tag.clone(),
            Self::Layout { tag, .. } | Self::OciArchive { tag, .. } | Self::DockerArchive { tag, .. } => {
                tag.as_deref().map(|tag| match tag.strip_prefix('@').map(str::parse::<Digest>) {
                    Some(Ok(digest)) => digest.short(),
                    _ => tag.to_owned(),
                })
            }
            Self::Bundle(..) => None,
        };
        match tag {
            Some(tag) => as_name(&format!("{}-{tag}", self.default_name())),
            None => self.default_name(),
        }
    }
}

impl RegistryReference {
    /// Host and port to speak to.
    pub fn endpoint(&self) -> &str {
        match self.registry.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        }
    }

    /// Whether the registry is on this very host, where plain HTTP is safe and usual.
    pub fn is_loopback(&self) -> bool {
        let host = host(&self.registry);
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// What names the manifest in the registry: the digest where there is one, else the tag.
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl FromStr for ImageReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let shown: String = text.chars().take(200).collect();
            Error::usage(format!("`{}` is no image reference", shown.escape_debug()))
                .with_source(why)
                .with_hint(format!("the forms are: {FORMS}"))
        };
        if text.is_empty() {
            return Err(refuse("it is empty"));
        }
        if text.len() > LONGEST {
            return Err(refuse("it is too long"));
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return parse_registry(rest).map(Self::Registry).map_err(refuse);
        }
        if let Some(rest) = text.strip_prefix("bundle:") {
            return parse_bundle(rest)
                .map(|(location, digest)| Self::Bundle(location, digest))
                .map_err(refuse);
        }
        for (prefix, by_digest, make) in LOCAL_FORMS {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (path, tag) = parse_local(rest, by_digest).map_err(refuse)?;
                return Ok(make(path, tag));
            }
        }
        if let Some((prefix, _)) = text.split_once(':')
            && (FOREIGN.contains(&prefix) || text.contains("://"))
        {
            return Err(refuse(&format!("`{prefix}:` is not supported")));
        }
        parse_registry(text).map(Self::Registry).map_err(refuse)
    }
}

type MakeLocal = fn(PathBuf, Option<String>) -> ImageReference;

/// With whether an image of it may be named by its digest.
const LOCAL_FORMS: [(&str, bool, MakeLocal); 3] = [
    ("oci:", true, |directory, tag| ImageReference::Layout { directory, tag }),
    ("oci-archive:", true, |file, tag| ImageReference::OciArchive { file, tag }),
    ("docker-archive:", false, |file, tag| ImageReference::DockerArchive { file, tag }),
];

/// `PATH[:TAG]`; as in skopeo the first colon ends the path. Or `PATH@DIGEST`, where an image may be named
/// by its digest.
fn parse_local(rest: &str, by_digest: bool) -> Result<(PathBuf, Option<String>), &'static str> {
    let digest = rest.rfind("@sha256:").filter(|_| by_digest);
    let (path, tag) = match (digest, rest.split_once(':')) {
        (Some(at), _) => (&rest[..at], Some(&rest[at..])),
        (None, Some((path, tag))) => (path, Some(tag)),
        (None, None) => (rest, None),
    };
    if digest.is_some() && tag.is_some_and(|tag| tag[1..].parse::<Digest>().is_err()) {
        return Err("after `@` there must be a sha256 digest");
    }
    if path.contains(':') {
        return Err("a digest goes in the place of the tag");
    }
    if path.is_empty() || path.contains('\0') {
        return Err("there is no path");
    }
    if tag.is_some_and(|tag| tag.is_empty() || tag.len() > 512 || tag.chars().any(char::is_control)) {
        return Err("the tag after the path is empty or malformed");
    }
    let path = std::path::absolute(path).map_err(|_| "the path cannot be made absolute")?;
    Ok((path, tag.map(str::to_owned)))
}

fn parse_bundle(rest: &str) -> Result<(BundleLocation, Option<Digest>), &'static str> {
    // A path or a URL may hold an `@` of its own; what follows tells.
    let (place, digest) = match rest.rsplit_once('@') {
        Some((place, digest)) if digest.starts_with("sha256:") => {
            (place, Some(digest.parse().map_err(|_| "after `@` there must be a sha256 digest")?))
        }
        _ => (rest, None),
    };
    if place.starts_with("https://") || place.starts_with("http://") {
        // Parsers of URLs leave them out (WHATWG URL, section 4.4): what is around them may mean something else
        // then.
        if place.contains(char::is_control) {
            return Err("the URL of the bundle is malformed");
        }
        return match reqwest::Url::parse(place) {
            Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => {
                Ok((BundleLocation::Url(url.into()), digest))
            }
            _ => Err("the URL of the bundle is malformed"),
        };
    }
    if place.is_empty() || place.contains('\0') {
        return Err("there is no path");
    }
    if place.contains("://") {
        return Err("bundles come from files and by http: or https: URLs");
    }
    if ["md5", "sha1", "sha384", "sha512"].iter().any(|other| place.contains(&format!("@{other}:"))) {
        return Err("after `@` there must be a sha256 digest");
    }
    let path = std::path::absolute(place).map_err(|_| "the path cannot be made absolute")?;
    Ok((BundleLocation::File(path), digest))
}

/// `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.
fn parse_registry(text: &str) -> Result<RegistryReference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse::<Digest>().map_err(|_| "after `@` there must be a sha256 digest")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let slash = rest.rfind('/').map_or(0, |position| position + 1);
    let (name, tag) = match rest[slash..].rfind(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if !tag.is_none_or(is_tag) {
        return Err("a tag has letters, digits, `_`, `.` and `-`, at most 128, the first no `.` or `-`");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if looks_like_registry(first) => (first, path),
        _ => ("docker.io", name),
    };
    if !is_registry(registry) {
        return Err("the registry's host name or port is malformed");
    }
    // Hosts are the same in any case, but for one that is told from a repository's name by nothing but
    // its capitals.
    let lower = registry.to_ascii_lowercase();
    let registry = if looks_like_registry(&lower) { lower } else { registry.to_owned() };
    let docker_hub = matches!(registry.as_str(), "docker.io" | "index.docker.io");
    let repository =
        if docker_hub && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if path.is_empty() {
        return Err("there is no repository name");
    }
    if repository.len() > LONGEST_REPOSITORY || !repository.split('/').all(is_component) {
        return Err(
            "a repository name has lower-case letters and digits, separated by `.`, `_`, `__` or `-`, \
                    and `/` between its parts",
        );
    }
    let registry = if docker_hub { "docker.io".to_owned() } else { registry };
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, None) => Some("latest".to_owned()),
        (None, Some(_)) => None,
    };
    Ok(RegistryReference { registry, repository, tag, digest })
}

/// What tells a registry from the first part of a repository's name.
fn looks_like_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// A host name, IPv4 address or bracketed IPv6 address, with or without a port.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if port
        .is_some_and(|port| port.parse::<u16>().map_or(true, |number| number == 0) || port.starts_with('+'))
    {
        return false;
    }
    if let Some(address) = host.strip_prefix('[') {
        return address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    host.len() <= 253
        && host.split('.').all(|label| {
            let bytes = label.as_bytes();
            (1..=63).contains(&bytes.len())
                && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && bytes[0] != b'-'
                && bytes[bytes.len() - 1] != b'-'
        })
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && !tag.starts_with(['.', '-'])
}

/// One part of a repository's name: runs of lower-case letters and digits, between them one `.`, one
/// or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !plain(first) || !plain(last) {
        return false;
    }
    bytes.split(plain).filter(|separator| !separator.is_empty()).all(|separator| {
        matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
    })
}

fn host(registry: &str) -> &str {
    if let Some(rest) = registry.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    registry.split(':').next().unwrap_or_default()
}

fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn without_extensions(name: &str) -> &str {
    let mut name = name;
    for extension in [".zst", ".gz", ".tar", ".tgz", ".oci", ".bundle"] {
        name = name.strip_suffix(extension).filter(|rest| !rest.is_empty()).unwrap_or(name);
    }
    name
}

fn as_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+') { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(63)
        .collect();
    if name.is_empty() { "image".to_owned() } else { name }
}

impl fmt::Display for ImageReference {
    /// The canonical form: two references that print alike mean the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut local = |form: &str, path: &Path, tag: &Option<String>| {
            write!(f, "{form}:{}", path.display())?;
            match tag {
                Some(digest) if digest.starts_with("@sha256:") => f.write_str(digest),
                Some(tag) => write!(f, ":{tag}"),
                None => Ok(()),
            }
        };
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { directory, tag } => local("oci", directory, tag),
            Self::OciArchive { file, tag } => local("oci-archive", file, tag),
            Self::DockerArchive { file, tag } => local("docker-archive", file, tag),
            Self::Bundle(location, digest) => {
                match location {
                    BundleLocation::File(file) => write!(f, "bundle:{}", file.display())?,
                    BundleLocation::Url(url) => write!(f, "bundle:{url}")?,
                }
                digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
            }
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    fn check(text: &str, canonical: &str, name: &str) {
        let reference: ImageReference = text.parse().unwrap();
        assert_eq!(reference.to_string(), canonical);
        assert_eq!(reference.default_name(), name);
        assert_eq!(reference.to_string().parse::<ImageReference>().unwrap(), reference);
    }

    #[test]
    fn registry_references_are_normalised_as_docker_does() {
        let digest = Digest::of(b"").to_string();
        check("debian", "docker.io/library/debian:latest", "debian");
        check("debian:12", "docker.io/library/debian:12", "debian");
        check("docker://debian:12", "docker.io/library/debian:12", "debian");
        check("index.docker.io/debian", "docker.io/library/debian:latest", "debian");
        check("grafana/loki:3.1", "docker.io/grafana/loki:3.1", "loki");
        check("localhost/a", "localhost/a:latest", "a");
        check("localhost:5000/a/b_c:v1", "localhost:5000/a/b_c:v1", "b_c");
        check("127.0.0.1:5000/debian:12", "127.0.0.1:5000/debian:12", "debian");
        check("[::1]:5000/debian", "[::1]:5000/debian:latest", "debian");
        check("GHCR.io/a/b", "ghcr.io/a/b:latest", "b");
        check("LOCALHOST/a", "localhost/a:latest", "a");
        // Found by the fuzz target.
        check("builD/a", "builD/a:latest", "a");
        check(&format!("debian@{digest}"), &format!("docker.io/library/debian@{digest}"), "debian");
        check(&format!("q.io/a:1@{digest}"), &format!("q.io/a:1@{digest}"), "a");
    }

    #[test]
    fn local_references_have_a_path_and_perhaps_a_tag() {
        check("oci:/a/b", "oci:/a/b", "b");
        check("oci:/a/My Image:12", "oci:/a/My Image:12", "My-Image");
        check("oci-archive:/x/debian-12.tar", "oci-archive:/x/debian-12.tar", "debian-12");
        check("docker-archive:/x/a.tar.gz:a:1", "docker-archive:/x/a.tar.gz:a:1", "a");
        check("bundle:/x/a.tar.zst", "bundle:/x/a.tar.zst", "a");
        check("bundle:https://h.example/x/b.tar.zst?k=v", "bundle:https://h.example/x/b.tar.zst?k=v", "b");
        let digest = Digest::of(b"");
        check(&format!("oci:/a/b@{digest}"), &format!("oci:/a/b@{digest}"), "b");
        check(&format!("oci-archive:/a@b@{digest}"), &format!("oci-archive:/a@b@{digest}"), "a-b");
        let pinned = format!("bundle:/x/a@b.tar.zst@{}", Digest::of(b""));
        check(&pinned, &pinned, "a-b");
        let relative: ImageReference = "oci:some/dir".parse().unwrap();
        let directory = std::env::current_dir().unwrap().join("some/dir");
        assert_eq!(relative, ImageReference::Layout { directory, tag: None });
    }

    #[test]
    fn what_is_no_reference_is_a_usage_error_that_names_the_forms() {
        let long = format!("a/{}", "b".repeat(255));
        for text in [
            "",
            ":",
            "@",
            "/",
            "debian:",
            "debian:-x",
            "Debian",
            "debian:\u{fc}",
            "a//b",
            "a/",
            "/a",
            "a..b",
            "a___b",
            "-a",
            "a b",
            "debian@sha256:00",
            "debian@sha512:00",
            "host:99999/a",
            "host:0/a",
            "host:/a",
            "host:+5/a",
            "h_st.io/a",
            "[::1/a",
            "[x]:1/a",
            "oci:",
            "oci::tag",
            "oci:/a:",
            "oci:/a@sha256:00",
            "oci:/a:b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "oci-archive:",
            "docker-archive:",
            "dir:/x",
            "containers-storage:debian",
            "docker-daemon:debian:12",
            "https://docker.io/debian",
            "bundle:",
            "bundle:https://",
            "bundle:ftp://h.example/x",
            "bundle:/x@md5:00",
            "bundle:https://h.example/x@\tsha256:y",
            "debian\u{1b}[m",
            "debian\n",
            long.as_str(),
            "q.io",
            "docker://",
        ] {
            // A lone host name is a repository of Docker Hub by the grammar.
            if text == "q.io" {
                check(text, "docker.io/library/q.io:latest", "q.io");
                continue;
            }
            let error = text.parse::<ImageReference>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.hint().unwrap().contains("oci-archive:FILE"), "{text}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
    }

    #[test]
    fn plain_http_is_for_the_loopback_interface() {
        let loopback = |text: &str| parse_registry(text).unwrap().is_loopback();
        assert!(loopback("127.0.0.1:5000/a") && loopback("127.8.0.1/a") && loopback("[::1]:5/a"));
        assert!(loopback("localhost:5000/a") && loopback("registry.localhost/a"));
        assert!(!loopback("127.0.0.1.example/a") && !loopback("debian") && !loopback("10.0.0.1:5000/a"));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_taken_survives_a_round_trip(text in "\\PC{0,60}") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                prop_assert_eq!(&reference.to_string().parse::<ImageReference>().unwrap(), &reference);
                prop_assert!(crate::identifier::check_name("an image", &reference.default_name()).is_ok());
            }
        }

        #[test]
        fn well_formed_registry_references_are_taken(
            registry in "([a-z][a-z0-9]{0,8}\\.(io|dev)(:[1-9][0-9]{0,3})?/)?",
            path in "[a-z0-9]{1,5}([_-][a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}((--|__|\\.)[a-z0-9]{1,5}){0,2}){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let reference = format!("{registry}{path}{tag}").parse::<ImageReference>().unwrap();
            let ImageReference::Registry(parsed) = &reference else { panic!("no registry reference") };
            prop_assert!(parsed.repository.ends_with(last_part(&path)));
            prop_assert_eq!(parsed.tag.as_deref(), Some(tag.strip_prefix(':').unwrap_or("latest")));
            prop_assert_eq!(&reference.to_string().parse::<ImageReference>().unwrap(), &reference);
        }
    }
}
