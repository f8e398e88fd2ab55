//! Whatever a registry calls a manifest, an index or a config: an error or a value, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmdeck_engine::image::read_documents(bytes));
