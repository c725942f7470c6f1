//! Monotonic time as the shard hands it in.

/// Milliseconds since the gateway's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Later than anything that happens.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// `ms` after the gateway's start.
    pub(crate) const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the gateway's start.
    pub(crate) const fn as_ms(self) -> u64 {
        self.0
    }

    /// In whole seconds, rounded up, for where there is room for four bytes; what is later than they tell is never.
    pub(crate) const fn to_seconds(self) -> u32 {
        let seconds = self.0.div_ceil(1000);
        if seconds < u32::MAX as u64 { seconds as u32 } else { u32::MAX }
    }

    /// What [`Self::to_seconds`] gave.
    pub(crate) const fn from_seconds(seconds: u32) -> Self {
        if seconds == u32::MAX { Self::NEVER } else { Self(seconds as u64 * 1000) }
    }

    /// This moment and `ms` more.
    pub(crate) const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
