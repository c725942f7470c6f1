//! Limits that may change while the gateway runs: given once by whoever reads the file again, taken by each shard at its next
//! tick.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::session::Limits;
use crate::shard::{Debts, Memory, Sources};

/// What a shard takes over. Connections that are there keep the deadlines they were given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    /// Of one shard; 0: any number.
    pub(crate) sign_ins_per_second: u32,
    /// Of one shard.
    pub(crate) push_per_second: u32,
}

/// Where shards look for them.
#[derive(Debug)]
pub(crate) struct Live {
    settings: Mutex<Settings>,
    version: AtomicU64,
    pub(crate) sources: Arc<Sources>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) debts: Debts,
}

impl Live {
    /// At the start.
    pub(crate) fn new(settings: Settings, sources: Arc<Sources>, memory: Arc<Memory>) -> Self {
        Self {
            settings: Mutex::new(settings),
            version: AtomicU64::new(0),
            sources,
            memory,
            debts: Debts::default(),
        }
    }

    /// From now on.
    pub(crate) fn set(&self, settings: Settings, config: &Config) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        self.version.fetch_add(1, Ordering::Release);
        self.sources.set(
            config.connections_per_address,
            config.connections_per_prefix,
            config.connections_unlimited_from.clone(),
        );
        self.memory.set_max(config.memory_max.as_u64());
    }

    /// As they are now.
    pub(crate) fn settings(&self) -> Settings {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has changed since `seen`, which moves on.
    pub(crate) fn changed(&self, seen: &mut u64) -> Option<Settings> {
        let version = self.version.load(Ordering::Acquire);
        if version == *seen {
            return None;
        }
        *seen = version;
        Some(self.settings())
    }
}
