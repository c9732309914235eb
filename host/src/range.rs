//! What a number that somebody configured may be.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A number with which nothing would work, or everything could be used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {given}, and has to be from {lowest} to {highest}")]
pub struct OutOfRange {
    key: String,
    given: String,
    lowest: String,
    highest: String,
}

/// Checks a number.
///
/// # Errors
///
/// It is not within `allowed`.
pub(crate) fn number<N: PartialOrd + Display>(
    key: &str,
    given: N,
    allowed: RangeInclusive<N>,
) -> Result<(), OutOfRange> {
    if allowed.contains(&given) {
        return Ok(());
    }
    let (lowest, highest) = (allowed.start().to_string(), allowed.end().to_string());
    Err(OutOfRange { key: key.to_owned(), given: given.to_string(), lowest, highest })
}

/// Checks a time, in seconds.
///
/// # Errors
///
/// It is not within `allowed`.
pub(crate) fn seconds(
    key: &str,
    given: Duration,
    allowed: RangeInclusive<f64>,
) -> Result<(), OutOfRange> {
    number(key, given.as_secs_f64(), allowed)
}
