//! Whatever is taken for a destination is printed in a way that is read back as the same.
#![no_main]

use distant_plugin_api::destination::Destination;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(destination) = text.parse::<Destination>() {
        let shown = destination.expose();
        assert_eq!(shown.expose().parse(), Ok(destination));
    }
});
