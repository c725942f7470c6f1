//! A log that crashes before or after its commit, as told.

use std::sync::{Arc, Mutex};

use gimbal_control::log::{CommandLog, CommitError, EmbeddedLog, Record};
use gimbal_control::partition::Partition;
use gimbal_control::store::StoreError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crash {
    /// Nothing of the batch is durable.
    BeforeCommit,
    /// All of it is, and nobody is told.
    AfterCommit,
}

/// What the next commit does; `None`: it works.
pub(crate) type Plan = Arc<Mutex<Option<Crash>>>;

pub(crate) struct CrashingLog {
    pub(crate) inner: EmbeddedLog,
    pub(crate) plan: Plan,
}

impl CommandLog for CrashingLog {
    fn commit(&mut self, records: Vec<(Partition, Record)>) -> Result<(), CommitError> {
        let crash = *self.plan.lock().unwrap();
        if crash != Some(Crash::BeforeCommit) {
            self.inner.commit(records)?;
        }
        match crash {
            None => Ok(()),
            Some(_) => Err(CommitError(StoreError::Engine("crash".into()))),
        }
    }
}
