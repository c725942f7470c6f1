//! A store in memory: the model that the real one is tested against.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Scan, Store, StoreError, Table, View, Visit};
use crate::log::{Record, Write};
use crate::partition::Partition;

type Tables = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// Ordered maps, copied on write while a snapshot is held. "Synced" as soon as applied.
#[derive(Default)]
pub struct MemoryStore {
    tables: RwLock<Arc<Tables>>,
    epoch: u32,
}

impl MemoryStore {
    /// An empty store in its first life.
    pub fn new() -> Self {
        Self { tables: RwLock::default(), epoch: 1 }
    }

    /// What a restart of control finds, given all tables, keys and values, and the number of the new life.
    pub fn from_dump(dump: Vec<(Table, Vec<u8>, Vec<u8>)>, epoch: u32) -> Self {
        let tables: Tables = dump.into_iter().map(|(table, key, value)| ((table, key), value)).collect();
        Self { tables: RwLock::new(Arc::new(tables)), epoch }
    }

    fn current(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.read().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Snapshot(Arc<Tables>);

impl View for Snapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let range = (Bound::Included((table, from.to_vec())), Bound::Excluded((table, to.to_vec())));
        for ((_, key), value) in self.0.range(range) {
            if visit(key, value)? == Scan::Stop {
                break;
            }
        }
        Ok(())
    }
}

impl View for MemoryStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Snapshot(self.current()).get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        Snapshot(self.current()).scan(table, from, to, visit)
    }
}

impl Store for MemoryStore {
    fn snapshot(&self) -> Box<dyn View + '_> {
        Box::new(Snapshot(self.current()))
    }

    fn apply(&self, records: &[(Partition, Record)]) -> Result<(), StoreError> {
        let mut guard = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let tables = Arc::make_mut(&mut guard);
        for (_, record) in records {
            for op in record.ops() {
                let op = op?;
                let key = (op.table, op.key.to_vec());
                match op.write {
                    Write::Put(value) => drop(tables.insert(key, value.to_vec())),
                    Write::Delete => drop(tables.remove(&key)),
                    Write::DeleteTo(end) => {
                        let end = (op.table, end.to_vec());
                        tables.retain(|at, _| *at < key || *at >= end);
                    }
                }
            }
        }
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        true
    }

    fn control_epoch(&self) -> u32 {
        self.epoch
    }

    fn wal_syncs(&self) -> u64 {
        0
    }
}
