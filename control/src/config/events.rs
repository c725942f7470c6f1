//! The event stream's settings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, first_broken};
use crate::store::value::EventKind;

/// What is kept of what happened, and for how long.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Kinds that are written. Default all. Without `online` and `offline` nobody's last time online is known.
    pub kinds: Vec<EventKind>,
    /// For how long. Default 24 h: a consumer that is mended the next day has lost nothing.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// Or so many, if that is less. Default 10,000,000: about 0.5 GB.
    pub keep_max: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self { kinds: EventKind::ALL.to_vec(), keep: Duration::from_secs(24 * 3600), keep_max: 10_000_000 }
    }
}

impl Events {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let minute = Duration::from_secs(60);
        first_broken(&[
            (
                (minute..=minute * 60 * 24 * 366).contains(&self.keep),
                "events.keep",
                "must be 1 min to 366 days",
            ),
            (
                (1_000..=10_000_000_000).contains(&self.keep_max),
                "events.keep_max",
                "must be 1,000 to 10,000,000,000",
            ),
        ])
    }
}
