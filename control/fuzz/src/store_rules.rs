//! Bytes from disk: values, keys, records of a log, and the write-ahead log itself. Included by control's tests, too.

use std::fmt::Debug;
use std::io::{self, Read};

use crate::log::{Record, Write};
use crate::store::inspect::describe;
use crate::store::value::{
    AckRecord, BlockRecord, DedupEntry, DedupHead, DeviceRecord, Entry, EventRecord, FriendRecord, IdemEntry,
    LastSeen, MailboxHead, MetaNumber, NameEntry, NotBefore, OnlineRecord, Owner, ProfileRecord, SharedBody,
    SocialCounts, TokenRecord, UserRecord, Value,
};
use crate::store::wal::{Bad, first_bad};
use crate::store::{Table, key};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;

/// The first byte tells which decoder gets the rest.
pub(super) fn check_store(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind % 8 {
        0..=3 => check_values(rest),
        4 => check_key(rest),
        5 => check_record(rest),
        6 => check_wal(rest),
        _ => check_damaged_wal(rest),
    }
}

/// What is read of any bytes says the same once it is written again, as often as one likes.
fn check_value<V: Value + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = V::from_bytes(bytes) else { return };
    let written = value.to_bytes();
    assert_eq!(V::from_bytes(&written).as_ref(), Ok(&value));
    assert!(written.len() <= bytes.len() + 48, "a form that was added since costs some bytes, no more");
    let longer = [&written[..], &[0]].concat();
    assert!(V::from_bytes(&longer).is_err(), "bytes left over are an error");
    assert!(V::from_bytes(&written[..written.len() - 1]).is_err(), "a cut value is an error");
}

fn check_values(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 21 {
        0 => check_value::<MetaNumber>(bytes),
        1 => check_value::<Owner>(bytes),
        2 => check_value::<AckRecord>(bytes),
        3 => check_value::<NotBefore>(bytes),
        4 => check_value::<MailboxHead>(bytes),
        5 => check_value::<DedupHead>(bytes),
        6 => check_value::<DedupEntry>(bytes),
        7 => check_value::<UserRecord>(bytes),
        8 => check_value::<DeviceRecord>(bytes),
        9 => check_value::<TokenRecord>(bytes),
        10 => check_value::<IdemEntry>(bytes),
        11 => check_value::<Entry>(bytes),
        12 => check_value::<SharedBody>(bytes),
        13 => check_value::<EventRecord>(bytes),
        14 => check_value::<LastSeen>(bytes),
        19 => check_value::<OnlineRecord>(bytes),
        15 => check_value::<FriendRecord>(bytes),
        16 => check_value::<NameEntry>(bytes),
        17 => check_value::<ProfileRecord>(bytes),
        18 => check_value::<SocialCounts>(bytes),
        _ => check_value::<BlockRecord>(bytes),
    }
}

/// Any key with any value is told in one line.
fn check_key(bytes: &[u8]) {
    let Some((&[table, key_bytes], rest)) = bytes.split_first_chunk() else { return };
    let (key, value) = rest.split_at(rest.len().min(key_bytes.into()));
    let Some(table) = Table::from_u8(table % 10) else { panic!("there are ten tables") };
    let line = describe(table, key, value);
    assert!(line.starts_with(table.name()));
    if let Some(device) = key::device_of(key) {
        assert_eq!(key[11..], device.get().to_be_bytes());
    }
}

/// The writes of a record, put into another one, are those writes.
fn check_record(bytes: &[u8]) {
    let read = Record::from_bytes(bytes.to_vec());
    let (mut again, mut count) = (Record::default(), 0);
    for op in read.ops() {
        let Ok(op) = op else { break };
        count += 1;
        match op.write {
            Write::Put(value) => again.put(op.table, op.key, value),
            Write::Delete => again.delete(op.table, op.key),
            Write::DeleteTo(end) => again.delete_range(op.table, op.key, end),
        }
    }
    assert!(again.as_bytes().len() <= bytes.len());
    let ops = again.ops().map(|op| op.expect("written by ourselves"));
    assert!(ops.eq(read.ops().take(count).map(|op| op.expect("it was read before"))));
}

/// Gives a few bytes at a time.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min(self.1);
        self.0.read(&mut into[..count])
    }
}

fn bad(log: &[u8]) -> Option<Bad> {
    let bad = first_bad(log).expect("memory is read without errors");
    assert_eq!(first_bad(Slow(log, 1_111)).expect("the same"), bad);
    bad
}

/// Any bytes: whole, or cut at what is bad they are whole, or more follows.
fn check_wal(bytes: &[u8]) {
    check_bad(bytes);
    // The same at the end of a block, where records are cut; not always, for it takes long.
    if !bytes.len().is_multiple_of(8) {
        return;
    }
    let mut log = Vec::new();
    write(&mut log, &vec![5; BLOCK_BYTES - 2 * HEADER_BYTES - bytes.len() % 40]);
    log.extend(bytes);
    check_bad(&log);
}

fn check_bad(log: &[u8]) {
    let Some(Bad { at, more_follow }) = bad(log) else { return };
    let at = usize::try_from(at).expect("within memory");
    assert!(at <= log.len());
    assert_eq!(bad(&log[..at]), None, "what comes before is whole");
    if !more_follow {
        let mut written = log[..at].to_vec();
        write(&mut written, b"the next write");
        assert_eq!(bad(&written), None, "and can be written on");
    }
}

/// A log as the engine writes it, with bytes changed in one of its writes: that one is bad, and nothing before it.
fn check_damaged_wal(bytes: &[u8]) {
    let Some((&[a, b, c, index, position, flip], rest)) = bytes.split_first_chunk() else { return };
    let (mut log, mut starts) = (Vec::new(), Vec::new());
    for (count, length) in [a, b, c].into_iter().enumerate() {
        starts.push(log.len());
        // Each write is unlike the others; one of them may go over blocks.
        let length = usize::from(length) * if length % 64 == 63 { 300 } else { 1 };
        write(&mut log, &[&vec![count as u8 + 1; length], rest].concat());
    }
    starts.push(log.len());
    assert_eq!(bad(&log), None);
    let index = usize::from(index) % 3;
    let span = starts[index]..starts[index + 1];
    let at = span.start + usize::from(position) * span.len() / 256;
    if flip == 0 {
        let cut = bad(&log[..at]);
        let expected = Bad { at: span.start as u64, more_follow: false };
        assert_eq!(cut, (at > span.start).then_some(expected), "cut at {at}");
        return;
    }
    log[at] ^= flip;
    // What fills the end of a block belongs to no write.
    let is_filler = BLOCK_BYTES - at % BLOCK_BYTES < HEADER_BYTES;
    match bad(&log) {
        Some(bad) => {
            assert_eq!(bad, Bad { at: span.start as u64, more_follow: index < 2 }, "changed at {at}")
        }
        None => assert!(is_filler, "the change at {at} is not seen"),
    }
}

/// As the engine writes it: cut into blocks.
fn write(log: &mut Vec<u8>, mut payload: &[u8]) {
    let mut first = true;
    loop {
        let left = BLOCK_BYTES - log.len() % BLOCK_BYTES;
        if left < HEADER_BYTES {
            log.extend(&[0; HEADER_BYTES][..left]);
            continue;
        }
        let (now, then) = payload.split_at(payload.len().min(left - HEADER_BYTES));
        let kind = [[3, 4], [2, 1]][usize::from(first)][usize::from(then.is_empty())];
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), now);
        log.extend(crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
        log.extend((now.len() as u16).to_le_bytes());
        log.push(kind);
        log.extend(now);
        (payload, first) = (then, false);
        if then.is_empty() {
            return;
        }
    }
}

/// For the fuzz target.
#[cfg(not(test))]
pub fn store(data: &[u8]) {
    check_store(data);
}
