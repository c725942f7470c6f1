//! What is kept of what happened to messages.

use serde::{Deserialize, Serialize};

use super::{ConfigError, first_broken};
use crate::trace::Trace;

/// Records for `Admin.Trace`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// Records of deliveries, acks and pages, 64 bytes each, the newest. Default 65,536: 4 MiB, some 30,000 messages between
    /// two users that each acknowledge. 0 to 16,777,216; 0: none.
    pub kept: usize,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { kept: Trace::KEPT }
    }
}

impl TraceConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        first_broken(&[(self.kept <= 1 << 24, "trace.kept", "must be at most 16,777,216")])
    }
}
