//! Durations as people type them.

use std::time::Duration;

/// Reads `250ms`, `5s`, `1min`, `2h`, or a number of seconds; fractions are fine.
///
/// What a `Duration` or the clock cannot hold is refused rather than clamped.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let (number, unit_seconds) = split(text.trim());
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds = plain
        .then(|| number.parse::<f64>().ok())
        .flatten()
        .ok_or_else(|| "a duration is 250ms, 5s, 1min, or a number of seconds".to_owned())?
        * unit_seconds;
    if seconds > MOST_SECONDS {
        return Err("a duration is at most a year".to_owned());
    }
    // Whole nanoseconds: 0.1 s is 100 ms, not 100.000001.
    Ok(Duration::from_secs_f64(seconds))
}

fn split(text: &str) -> (&str, f64) {
    for (unit, seconds) in [("ms", 1e-3), ("min", 60.0), ("h", 3600.0), ("s", 1.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return (number.trim_end(), seconds);
        }
    }
    (text, 1.0)
}

/// A year: any instant that far ahead still fits the clock.
const MOST_SECONDS: f64 = 366.0 * 86_400.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_fractions_are_read() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("1min", 60_000),
            ("1.5min", 90_000),
            ("2h", 7_200_000),
            ("3", 3_000),
            ("0.25", 250),
            (".5s", 500),
            ("0", 0),
            ("0.1", 100),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "s",
            "ms",
            "-1",
            "+1",
            "1e3",
            "inf",
            "nan",
            "1d",
            "1.2.3",
            ".",
            "five",
            "99999999999",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
