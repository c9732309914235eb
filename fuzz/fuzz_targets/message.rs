//! Whatever is taken for a message is written as one line that is read back as the same.
#![no_main]

use distant_plugin_api::message::{HostMessage, LaunchRequest, PluginMessage};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use serde::Serialize;

fn there_and_back<T: Serialize + DeserializeOwned>(line: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(line) else { return };
    let Ok(written) = serde_json::to_string(&message) else { return };
    assert!(!written.contains('\n'));
    let again: T = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), written);
}

fuzz_target!(|line: &[u8]| {
    there_and_back::<PluginMessage>(line);
    there_and_back::<HostMessage>(line);
    there_and_back::<LaunchRequest>(line);
});
