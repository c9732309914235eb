//! Durations as people write them in a configuration file: a number of seconds.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// The longest time that is one: a year. Clocks overflow far beyond it.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Reads a number of seconds, which may have a fraction.
///
/// # Errors
///
/// It is no number, is negative, or more than a year.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let number = f64::deserialize(deserializer)?;
    let given = Duration::try_from_secs_f64(number).ok().filter(|given| *given <= LONGEST);
    given.ok_or_else(|| {
        let most = LONGEST.as_secs();
        D::Error::custom(format!("it has to be a number of seconds from 0 to {most}, a year"))
    })
}
