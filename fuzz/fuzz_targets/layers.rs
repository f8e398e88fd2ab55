//! Two layers of any bytes: an error, or an image that can be read. Never a panic, and no memory or
//! time beyond the limits.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tokio_util::sync::CancellationToken;
use vmdeck_engine::rootfs::{Compression, RootfsBuilder, RootfsLimits, RootfsOptions};
use vmdeck_ext4::Reader;

fuzz_target!(|layers: (Vec<u8>, Vec<u8>)| {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = folder.path().join("rootfs.ext4");
    let options = RootfsOptions {
        path: path.clone(),
        layers: 2,
        size: 0,
        uuid: [7; 16],
        limits: RootfsLimits { entries: 10_000, bytes: 64 << 20, ratio: 1_100 },
    };
    let builder = RootfsBuilder::create(options, CancellationToken::new()).unwrap();
    for (index, layer) in [layers.0, layers.1].into_iter().enumerate() {
        let sink = builder.layer(index, Compression::Detect, None).unwrap();
        let fed = futures_executor::block_on(async {
            // A layer that is refused takes no more.
            let _ = sink.bytes.send(Bytes::from(layer)).await;
            sink.finish().await
        });
        if fed.is_err() {
            return;
        }
    }
    if builder.finish(&[], None).is_ok() {
        let reader = Reader::open(std::fs::File::open(&path).unwrap()).unwrap();
        reader.entries(reader.root()).unwrap();
    }
});
