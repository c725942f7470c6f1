//! The only place at control's edge that reads a clock; everything below takes time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Unix milliseconds; may jump either way.
#[expect(clippy::disallowed_methods, reason = "the edge reads the clock once per call or batch")]
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Monotonic.
#[expect(clippy::disallowed_methods, reason = "the edge reads the clock once per call or batch")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
