//! Whatever is taken for a connect line is printed in a way that is read back as the same.
#![no_main]

use distant_plugin_api::connect_line::{parse_detached_line, ConnectLine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(line) = ConnectLine::parse(text) {
        assert_eq!(ConnectLine::parse(line.expose().expose()), Some(line));
    }
    let _ = parse_detached_line(text);
});
