//! The log of one machine: the store's own write-ahead log.

use std::sync::Arc;

use super::{CommandLog, CommitError, Record};
use crate::partition::Partition;
use crate::store::{Store, StoreError};

/// All records of a commit in one atomic write and one sync.
pub struct EmbeddedLog {
    store: Arc<dyn Store>,
}

impl EmbeddedLog {
    /// Over `store`, whose write-ahead log is the log.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

impl CommandLog for EmbeddedLog {
    fn commit(&mut self, records: Vec<(Partition, Record)>) -> Result<(), CommitError> {
        if !self.store.is_healthy() {
            return Err(CommitError(StoreError::Poisoned));
        }
        self.store.apply(&records).map_err(CommitError)
    }
}
