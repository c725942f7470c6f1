//! The only place where this crate reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time.
#[expect(clippy::disallowed_methods, reason = "the edge: everything below takes time as an argument")]
pub fn now() -> Instant {
    Instant::now()
}

/// Time since 1970; zero on a clock set before that.
#[expect(clippy::disallowed_methods, reason = "the edge: everything below takes time as an argument")]
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Monotonic time as a number that all processes of one machine share, nanoseconds.
pub fn shared_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `HH:MM:SS.mmm` in UTC, for one line of output.
pub fn time_of_day(unix_ms: i64) -> String {
    const DAY_MS: i64 = 86_400_000;
    let ms = unix_ms.rem_euclid(DAY_MS);
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_day_wraps_at_midnight_and_before_1970() {
        assert_eq!(time_of_day(86_400_000 + 3_723_004), "01:02:03.004");
        assert_eq!(time_of_day(-1), "23:59:59.999");
    }
}
