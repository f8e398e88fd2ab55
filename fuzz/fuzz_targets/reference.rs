//! Whatever a user writes: a usage error, or a reference whose canonical form means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmdeck_engine::image::ImageReference;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<ImageReference>() {
        assert_eq!(reference.to_string().parse::<ImageReference>().unwrap(), reference);
        assert!(vmdeck_engine::identifier::check_name("an image", &reference.default_name()).is_ok());
    }
});
