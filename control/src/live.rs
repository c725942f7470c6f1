//! What may change while control runs. It is given once, by whoever reads the file again, and looked at whenever it is used.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::{Config, Limits};

/// The limits that hold now. Clones share them.
#[derive(Clone)]
pub(crate) struct LiveLimits(Arc<ArcSwap<Limits>>);

impl LiveLimits {
    /// At the start.
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(limits)))
    }

    /// As they are now.
    pub(crate) fn get(&self) -> arc_swap::Guard<Arc<Limits>> {
        self.0.load()
    }

    /// From now on.
    pub(crate) fn set(&self, limits: Limits) {
        self.0.store(Arc::new(limits));
    }

    /// Longest content, bytes.
    pub(crate) fn content_bytes_max(&self) -> usize {
        usize::try_from(self.get().content_bytes_max.as_u64()).unwrap_or(usize::MAX)
    }
}

impl Config {
    /// Whether something differs in `newer` that is looked at once, at the start.
    pub fn needs_start_for(&self, newer: &Self) -> bool {
        let limits = Limits {
            calls_per_connection_max: self.limits.calls_per_connection_max,
            keepalive: self.limits.keepalive,
            reads_max: self.limits.reads_max,
            repeats_kept: self.limits.repeats_kept,
            ..newer.limits.clone()
        };
        let taken = Self {
            limits,
            api: newer.api.clone(),
            backend_key_file: newer.backend_key_file.clone(),
            admin_key_file: newer.admin_key_file.clone(),
            link_key_file: newer.link_key_file.clone(),
            ..self.clone()
        };
        taken != *newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_keys_are_taken_over_and_all_else_needs_a_start() {
        let old = Config::default();
        let mut newer = Config { admin_key_file: Some("/k".into()), ..Config::default() };
        newer.limits.rooms_max = 7;
        newer.limits.calls_max = 77;
        assert!(!old.needs_start_for(&newer));
        newer.limits.reads_max = 77;
        assert!(old.needs_start_for(&newer));
        newer.limits.reads_max = old.limits.reads_max;
        newer.limits.repeats_kept *= 2;
        assert!(old.needs_start_for(&newer));
        assert!(old.needs_start_for(&Config { data_dir: "elsewhere".into(), ..Config::default() }));
    }
}
