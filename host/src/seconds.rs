//! Durations as people write them in a configuration file: a number of seconds.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Reads a number of seconds, which may have a fraction.
///
/// # Errors
///
/// It is no number, is negative, or is longer than a duration can be.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let number = f64::deserialize(deserializer)?;
    Duration::try_from_secs_f64(number)
        .map_err(|_| D::Error::custom("it has to be a number of seconds, 0 or more"))
}
