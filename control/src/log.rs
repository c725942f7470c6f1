//! The ordered record of effects: what the executor decided, not what it was asked.

pub mod embedded;

pub use embedded::EmbeddedLog;

use crate::partition::Partition;
use crate::store::value::{CorruptValue, Reader, put_varint};
use crate::store::{StoreError, Table};

/// Makes effects durable.
pub trait CommandLog: Send {
    /// Makes all of `records` durable and applied, or none, and returns then. After an error every later commit is
    /// refused.
    ///
    /// # Errors
    /// [`CommitError`]: whether the records became durable is unknown until a restart.
    fn commit(&mut self, records: Vec<(Partition, Record)>) -> Result<(), CommitError>;
}

/// The commit failed, or one before it did.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("commit failed: {0}")]
pub struct CommitError(#[from] pub StoreError);

/// One write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op<'a> {
    /// Where.
    pub table: Table,
    /// Starts with the partition.
    pub key: &'a [u8],
    /// What becomes of it.
    pub write: Write<'a>,
}

/// What becomes of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write<'a> {
    /// It has this value.
    Put(&'a [u8]),
    /// It is gone.
    Delete,
    /// It is gone with all keys of its table from there to this one, which stays.
    DeleteTo(&'a [u8]),
}

/// Marks a [`Write::DeleteTo`] in the number of its table.
const RANGE: u8 = 0x80;

/// The writes of one batch in one partition, in order, as one byte string that a log can carry:
/// per write: table 1, key length varint, key, then 0 (delete) or 1 + value length varint, value; of a range: table 1 with its highest
/// bit set, first key and end, each after its length.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    bytes: Vec<u8>,
}

impl Record {
    /// No write, and room for some.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Appends a write.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.key(table, key);
        put_varint(&mut self.bytes, value.len() as u64 + 1);
        self.bytes.extend_from_slice(value);
    }

    /// Appends a removal.
    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.key(table, key);
        self.bytes.push(0);
    }

    /// Appends the removal of all keys from `from` (inclusive) to `to` (exclusive).
    pub fn delete_range(&mut self, table: Table, from: &[u8], to: &[u8]) {
        self.bytes.push(table as u8 | RANGE);
        for key in [from, to] {
            put_varint(&mut self.bytes, key.len() as u64);
            self.bytes.extend_from_slice(key);
        }
    }

    /// As a log carries it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// From a log; [`Self::ops`] checks it.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The writes in order; ends after the first error.
    pub fn ops(&self) -> impl Iterator<Item = Result<Op<'_>, CorruptValue>> {
        let mut reader = Reader::new("record", &self.bytes);
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed || reader.is_empty() {
                return None;
            }
            let op = read_op(&mut reader);
            failed = op.is_err();
            Some(op)
        })
    }

    fn key(&mut self, table: Table, key: &[u8]) {
        self.bytes.push(table as u8);
        put_varint(&mut self.bytes, key.len() as u64);
        self.bytes.extend_from_slice(key);
    }
}

fn read_op<'a>(reader: &mut Reader<'a>) -> Result<Op<'a>, CorruptValue> {
    let number = reader.u8()?;
    let table = Table::from_u8(number & !RANGE).ok_or_else(|| reader.corrupt("unknown table"))?;
    let key = reader.bytes()?;
    if number & RANGE != 0 {
        return Ok(Op { table, key, write: Write::DeleteTo(reader.bytes()?) });
    }
    let write = match reader.varint()? {
        0 => Write::Delete,
        length => Write::Put(reader.take(length - 1)?),
    };
    Ok(Op { table, key, write })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_back_its_writes_in_order_and_refuses_damage() {
        let mut record = Record::default();
        record.put(Table::Mailbox, b"key", b"value");
        record.delete(Table::Dedup, b"gone");
        record.put(Table::Meta, b"empty", b"");
        record.delete_range(Table::Event, b"from", b"to");
        let ops: Vec<Op<'_>> = record.ops().collect::<Result<_, _>>().unwrap();
        assert_eq!(ops[0], Op { table: Table::Mailbox, key: b"key", write: Write::Put(b"value") });
        assert_eq!(ops[1], Op { table: Table::Dedup, key: b"gone", write: Write::Delete });
        assert_eq!(ops[2], Op { table: Table::Meta, key: b"empty", write: Write::Put(b"") });
        assert_eq!(ops[3], Op { table: Table::Event, key: b"from", write: Write::DeleteTo(b"to") });
        let mut damaged = record.as_bytes().to_vec();
        damaged[0] = 200;
        assert!(Record::from_bytes(damaged).ops().next().unwrap().is_err());
        let cut = record.as_bytes()[..7].to_vec();
        assert!(Record::from_bytes(cut).ops().next().unwrap().is_err());
    }
}
