//! What the tests of several parts of the server share.

use super::settings::*;

/// A server on some port of this machine.
pub(super) fn settings() -> Settings {
    Settings {
        host: BindHost::Address([127, 0, 0, 1].into()),
        ports: PortRange::default(),
        use_ipv6: false,
        shutdown: Shutdown::Never,
        current_dir: None,
        key: None,
        watch: WatchSettings::default(),
        launch: LaunchSettings::default(),
    }
}
