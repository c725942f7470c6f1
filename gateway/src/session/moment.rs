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

    /// This moment and `ms` more.
    pub(crate) const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
