//! The service: with packages made here, and with the real package archive.

mod archive;
mod exchange;
mod packages;
mod sample;

use std::fs;
use std::path::Path;

use super::*;

/// A service on a data directory of its own.
struct Fixture {
    folder: tempfile::TempDir,
    data: DataDirectory,
    store: Store,
    kernels: KernelService,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path().join("data")).unwrap();
        let store = Store::open(&data.database()).unwrap();
        let operations = Operations::new(store.clone()).unwrap();
        let kernels = KernelService::new(data.clone(), store.clone(), operations);
        Self { folder, data, store, kernels }
    }

    /// A file of the fixture.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    async fn import(&self, from: ImportSource, name: Option<&str>) -> Result<Kernel> {
        let request = ImportKernel { from, name: name.map(str::to_owned) };
        self.kernels.import(request, None).wait().await
    }

    async fn import_deb(&self, package: &[u8]) -> Result<Kernel> {
        self.import(ImportSource::Deb(self.file("kernel.deb", package)), None).await
    }

    /// No staging folder, and no folder under `kernels/` but these.
    fn assert_only(&self, kernels: &[&str]) {
        assert_eq!(names(&self.data.staging_root()), Vec::<String>::new(), "staging");
        assert_eq!(names(&self.data.kernels()), kernels, "kernels");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
