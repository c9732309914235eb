//! Whatever is taken for options is printed in a way that is read back as the same, and no schema
//! chokes on it.
#![no_main]

use distant_plugin_api::options::{OptionSchema, OptionType, Options, Schema};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (text, scheme) = input;
    let Ok(options) = text.parse::<Options>() else { return };
    assert_eq!(options.to_string().parse().as_ref(), Ok(&options));
    let schema = Schema(vec![
        OptionSchema::new("verbose", OptionType::Bool, "").or("false"),
        OptionSchema::new("timeout", OptionType::DurationMs, ""),
        OptionSchema::new("port", OptionType::Port, ""),
        OptionSchema::new("backend", OptionType::Enum(vec!["ssh2".into(), "libssh".into()]), ""),
    ]);
    if let Ok(checked) = schema.check(&options, "plugin", scheme) {
        // What was checked once is right.
        assert_eq!(schema.check(&checked, "plugin", scheme).as_ref(), Ok(&checked));
    }
});
