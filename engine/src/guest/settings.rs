//! What a machine's init is told, as a second cpio appended to the kernel's initrd.

pub use vmdeck_protocol::settings::{
    Lan as GuestLan, MODULES_PATH, MODULES_SERIAL, Network as GuestNetwork, PATH, ROOT_SERIAL,
    Settings as GuestSettings, WORK_SERIAL,
};

use crate::cpio::Archive;
use crate::error::{Error, Result};

/// The settings as a cpio archive (newc), to be appended to an initrd at a multiple of 4 bytes.
pub fn archive(settings: &GuestSettings) -> Result<Vec<u8>> {
    let failed = "the settings of the machine cannot be written";
    let json = serde_json::to_vec(settings).map_err(|error| Error::failed(failed).with_source(error))?;
    let mut archive = Archive::new();
    if let Some((folder, _)) = PATH.rsplit_once('/') {
        archive.directory(folder, 0o700).map_err(|error| Error::failed(failed).with_source(error))?;
    }
    // Only init reads it: environments hold secrets.
    archive.file(PATH, 0o600, &json).map_err(|error| Error::failed(failed).with_source(error))?;
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_settings() {
        let settings = GuestSettings { hostname: "dev".to_owned(), ..GuestSettings::default() };
        let bytes = archive(&settings).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let begin = bytes.windows(2).position(|pair| pair == b"{\"").unwrap();
        let mut found = serde_json::Deserializer::from_slice(&bytes[begin..]).into_iter::<GuestSettings>();
        assert_eq!(found.next().unwrap().unwrap(), settings);
    }
}
