//! What a batch reads: the store, covered by what the batch has written so far.

use hashbrown::HashMap;

use crate::log::Record;
use crate::partition::Partition;
use crate::store::value::Value;
use crate::store::{StoreError, Table, View};

/// Room for a send's writes with a short content: an entry, a head, a dedup entry and its head.
const RECORD_BYTES: usize = 320;

/// A view and the writes of one batch over it, grouped by partition.
pub(crate) struct Overlay<'a> {
    view: &'a dyn View,
    changed: [HashMap<Vec<u8>, Option<Vec<u8>>>; Table::ALL.len()],
    records: Vec<(Partition, Record)>,
    /// Index into `records` and one, by partition.
    record_of: Vec<u16>,
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(view: &'a dyn View) -> Self {
        Self {
            view,
            changed: Default::default(),
            records: Vec::new(),
            record_of: vec![0; usize::from(Partition::COUNT)],
        }
    }

    /// Whether nothing was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The store below.
    pub(crate) fn view(&self) -> &'a dyn View {
        self.view
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changed[table as usize].get(key) {
            Some(change) => Ok(change.clone()),
            None => self.view.get(table, key),
        }
    }

    /// What this batch has made of a key, `None` where it left it alone; for what was scanned in the store below.
    pub(crate) fn change(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        self.changed[table as usize].get(key).map(Option::as_deref)
    }

    pub(crate) fn value<V: Value>(&self, table: Table, key: &[u8]) -> Result<Option<V>, StoreError> {
        Ok(self.get(table, key)?.map(|bytes| V::from_bytes(&bytes)).transpose()?)
    }

    /// A write that the rest of the batch sees.
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.record(key).put(table, key, &value);
        self.changed[table as usize].insert(key.to_vec(), Some(value));
    }

    /// A removal that the rest of the batch sees.
    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) {
        self.record(key).delete(table, key);
        self.changed[table as usize].insert(key.to_vec(), None);
    }

    /// A write or removal that the rest of the batch does not read by [`Self::get`]: its caller keeps track.
    pub(crate) fn record(&mut self, key: &[u8]) -> &mut Record {
        let partition = key.first_chunk().and_then(|bytes| Partition::from_u16(u16::from_be_bytes(*bytes)));
        let partition = partition.expect("every key starts with a partition");
        let slot = &mut self.record_of[usize::from(partition.get())];
        if *slot == 0 {
            self.records.push((partition, Record::with_capacity(RECORD_BYTES)));
            *slot = u16::try_from(self.records.len()).expect("there are 1,024 partitions");
        }
        &mut self.records[usize::from(*slot) - 1].1
    }

    /// In rising order of partition: keys that arrive in order are cheaper to insert.
    pub(crate) fn finish(mut self) -> Vec<(Partition, Record)> {
        self.records.sort_unstable_by_key(|(partition, _)| *partition);
        self.records
    }
}
