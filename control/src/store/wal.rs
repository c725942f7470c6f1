//! The end of the write-ahead log after a crash, told from damage, before the engine opens it.
//!
//! The engine cannot be asked to. After a loss of power the pages of the last record may be there in part, zero or old,
//! which its recovery takes for damage and refuses, though nobody was told of that record. And zeros between records, or
//! a wrong length in the last block, it takes for the end and drops what follows without a word, acknowledged or not.
//!
//! What it is here: every write is synced and only one is under way, so a crash can tear the last record of the newest
//! log and nothing else. If no record begins behind the first one that is not whole, that one is the torn end: it is
//! moved out of the log into a file beside it. If one does, or an older log is not whole, the log is damaged and nothing
//! is changed.
//!
//! Form of a log (RocksDB, `db/log_format.h`): blocks of 32 KiB; in a block records of checksum 4 (little endian, masked
//! CRC-32C of type and payload), length 2 (little endian), type 1, payload; less than a header at the end of a block is
//! skipped. A write is one FULL record, or FIRST, MIDDLE.., LAST over blocks. Recycled logs have other types; we recycle
//! none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
/// Compression, timestamp sizes, predecessor: whole in themselves, without a write.
const NOTES: [u8; 3] = [9, 10, 130];

/// Why the logs cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum WalError {
    /// Something acknowledged may be lost.
    #[error("{log} is not whole at byte {at}, and that is not its torn end")]
    Damaged { log: String, at: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What was moved out of the newest log.
#[derive(Debug)]
pub(super) struct Torn {
    pub(super) log: PathBuf,
    /// Its length now.
    pub(super) at: u64,
    /// Where the rest is.
    pub(super) kept: PathBuf,
}

/// Checks all logs in `path` and takes the torn end off the newest one, if it has one. Reads each log once.
///
/// # Errors
/// [`WalError`]; nothing was changed, unless moving the torn end itself failed.
pub(super) fn mend(path: &Path) -> Result<Option<Torn>, WalError> {
    let logs = logs(path)?;
    for (index, log) in logs.iter().enumerate() {
        let Some(bad) = first_bad(BufReader::with_capacity(BLOCK_BYTES, File::open(log)?))? else { continue };
        if bad.more_follow || index + 1 < logs.len() {
            let log = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(WalError::Damaged { log, at: bad.at });
        }
        return Ok(Some(cut(path, log, bad.at)?));
    }
    Ok(None)
}

/// Oldest first.
fn logs(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "log"))
        {
            logs.push((number, path));
        }
    }
    logs.sort_unstable();
    Ok(logs.into_iter().map(|(_, path)| path).collect())
}

/// Every step is durable before the next, so that a crash in between loses nothing.
fn cut(path: &Path, log: &Path, at: u64) -> io::Result<Torn> {
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    let kept = path.join(format!("torn-{name}-{at}"));
    let mut torn = OpenOptions::new().read(true).write(true).open(log)?;
    torn.seek(SeekFrom::Start(at))?;
    let mut copy = File::create(&kept)?;
    io::copy(&mut torn, &mut copy)?;
    copy.sync_all()?;
    File::open(path)?.sync_all()?;
    torn.set_len(at)?;
    torn.sync_all()?;
    Ok(Torn { log: log.into(), at, kept })
}

/// The first write that is not whole.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Bad {
    /// Where it begins.
    pub(crate) at: u64,
    /// Another begins behind it.
    pub(crate) more_follow: bool,
}

/// `None`: the log is whole.
pub(crate) fn first_bad(mut log: impl Read) -> io::Result<Option<Bad>> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let (mut start, mut open, mut bad) = (0, None, None);
    loop {
        block.clear();
        log.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(bad.or(open).map(|at| Bad { at, more_follow: false }));
        }
        let mut from = 0;
        if bad.is_none() {
            let whole = walk(&block, start, &mut open);
            if whole < block.len() {
                (bad, from) = (Some(open.unwrap_or(start + whole as u64)), whole);
            }
        }
        if let Some(at) = bad
            && (from..block.len()).any(|at| matches!(record(&block[at..], at), Some((FULL | FIRST, _))))
        {
            return Ok(Some(Bad { at, more_follow: true }));
        }
        start += block.len() as u64;
    }
}

/// Follows the records of one block to the first that is not whole or not in its place, or to the end of the block.
/// `open` is where the write began whose LAST record is still to come.
fn walk(block: &[u8], start: u64, open: &mut Option<u64>) -> usize {
    let mut at = 0;
    while BLOCK_BYTES - at >= HEADER_BYTES && at < block.len() {
        let Some((kind, length)) = record(&block[at..], at) else { return at };
        match (kind, &open) {
            (FIRST, None) => *open = Some(start + at as u64),
            (LAST, Some(_)) => *open = None,
            (FULL, None) | (MIDDLE, Some(_)) => {}
            (kind, None) if NOTES.contains(&kind) => {}
            _ => return at,
        }
        at += length;
    }
    block.len()
}

/// Type and length, header included, of the whole record that `bytes` begin with; they begin `at` in their block.
fn record(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let [c0, c1, c2, c3, l0, l1, kind] = *header;
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    if kind == 0 || at + HEADER_BYTES + length > BLOCK_BYTES {
        return None;
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), rest.get(..length)?);
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    (masked == u32::from_le_bytes([c0, c1, c2, c3])).then_some((kind, HEADER_BYTES + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(log: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
        log.extend(crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
        log.extend((payload.len() as u16).to_le_bytes());
        log.push(kind);
        log.extend(payload);
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
            let kind = [[MIDDLE, LAST], [FIRST, FULL]][usize::from(first)][usize::from(then.is_empty())];
            put(log, kind, now);
            (payload, first) = (then, false);
            if then.is_empty() {
                return;
            }
        }
    }

    /// A log of writes of these lengths, and where each begins.
    fn log(lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut log, mut starts) = (Vec::new(), Vec::new());
        for (at, length) in lengths.iter().enumerate() {
            starts.push(log.len());
            write(&mut log, &vec![at as u8 + 1; *length]);
        }
        (log, starts)
    }

    fn bad(log: &[u8]) -> Option<Bad> {
        first_bad(log).unwrap()
    }

    #[test]
    fn whole_logs_are_whole_wherever_blocks_end() {
        for last in 0..40 {
            let (log, _) = log(&[100, BLOCK_BYTES - 2 * HEADER_BYTES - 120 + last, 3 * BLOCK_BYTES, 5]);
            assert_eq!(bad(&log), None);
        }
        assert_eq!(bad(&[]), None);
    }

    #[test]
    fn any_cut_is_a_torn_end_at_the_start_of_its_write() {
        let (log, starts) = log(&[100, 2 * BLOCK_BYTES, 300]);
        for (start, end) in [(starts[1], starts[2]), (starts[2], log.len())] {
            for cut in (start + 1..end).step_by(97) {
                assert_eq!(bad(&log[..cut]), Some(Bad { at: start as u64, more_follow: false }), "{cut}");
            }
        }
    }

    #[test]
    fn damage_to_the_last_write_is_its_torn_end_and_to_any_other_is_damage() {
        let (log, starts) = log(&[100, 500, 2 * BLOCK_BYTES, 300, 70]);
        for at in 0..log.len() {
            if at % 211 != 0 && starts.iter().all(|start| !(*start..start + 9).contains(&at)) {
                continue;
            }
            let mut hurt = log.clone();
            hurt[at] ^= 0x41;
            let index = starts.iter().rposition(|start| *start <= at).unwrap();
            let is_trailer = at % BLOCK_BYTES > BLOCK_BYTES - HEADER_BYTES;
            let expected = Bad { at: starts[index] as u64, more_follow: index + 1 < starts.len() };
            assert!(is_trailer || bad(&hurt) == Some(expected), "byte {at}: {:?}", bad(&hurt));
        }
    }

    #[test]
    fn zeros_at_the_end_are_torn_and_between_writes_are_damage() {
        let (whole, starts) = log(&[100, 500, 300]);
        let mut longer = whole.clone();
        longer.resize(whole.len() + 3 * BLOCK_BYTES, 0);
        assert_eq!(bad(&longer), Some(Bad { at: whole.len() as u64, more_follow: false }));
        let mut holed = whole.clone();
        holed[starts[1]..starts[2]].fill(0);
        assert_eq!(bad(&holed), Some(Bad { at: starts[1] as u64, more_follow: true }));
    }
}
