//! What the connections of all shards hold, against one bound: beyond most of it what may be lost is shed, beyond all of it
//! nobody new comes in. So it ends before the kernel ends the process.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counted for each connection beside its queue and its partial frame, in bytes: its slot, timer and entries of tables.
const CONNECTION_BYTES: u64 = 512;

/// Keys and state of rustls for one connection; measured at 3.8 kB.
const ENCRYPTION_BYTES: u64 = 4096;

/// Of the bound, in percent: from here on frames that may be lost are.
const TIGHT_PERCENT: u64 = 80;

/// Bounds are not below this, in bytes: a shard begins with some of it.
const MEMORY_MIN: u64 = 64 << 20;

/// How much is left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Room {
    /// Nothing.
    Full,
    /// Little: only what may not be lost is kept.
    Tight,
    /// Enough.
    Enough,
}

/// What each shard holds, in bytes.
#[derive(Debug)]
pub(crate) struct Memory {
    shards: Vec<AtomicU64>,
    max: AtomicU64,
}

impl Memory {
    /// For `shard_count` shards; `max` bytes in all, 0: half of what the machine, or the control group, has.
    pub(crate) fn new(shard_count: usize, max: u64) -> Self {
        Self {
            shards: (0..shard_count).map(|_| AtomicU64::new(0)).collect(),
            max: AtomicU64::new(bound(max)),
        }
    }

    /// The bound, in bytes.
    pub(crate) fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    /// From now on; 0 as in [`Self::new`].
    pub(crate) fn set_max(&self, max: u64) {
        self.max.store(bound(max), Ordering::Relaxed);
    }

    /// Says what `shard` holds; what all others hold is returned.
    pub(super) fn publish(&self, shard: usize, bytes: u64) -> u64 {
        self.shards[shard].store(bytes, Ordering::Relaxed);
        let others = self.shards.iter().enumerate().filter(|(index, _)| *index != shard);
        others.map(|(_, bytes)| bytes.load(Ordering::Relaxed)).sum()
    }

    /// What frames that have not wholly arrived may take of one shard, in bytes: half of everything, so that whoever never ends them
    /// leaves room for what waits for others.
    pub(super) fn partial_max(&self) -> u64 {
        self.max() / 2 / self.shards.len().max(1) as u64
    }

    /// How much room is left when `bytes` are held.
    pub(super) fn room(&self, bytes: u64) -> Room {
        let max = self.max();
        if bytes >= max {
            Room::Full
        } else if bytes >= max / 100 * TIGHT_PERCENT {
            Room::Tight
        } else {
            Room::Enough
        }
    }
}

fn bound(max: u64) -> u64 {
    match max {
        0 => available().map_or(u64::MAX, |bytes| (bytes / 2).max(MEMORY_MIN)),
        max => max,
    }
}

/// What so many connections cost that are encrypted, beside that, in bytes.
pub(super) fn of_encrypted(count: u32) -> u64 {
    u64::from(count) * ENCRYPTION_BYTES
}

/// What connections hold, in bytes, besides what waits for them or has come of their frames.
pub(super) fn of_connections(count: u32) -> u64 {
    u64::from(count) * CONNECTION_BYTES
}

/// Memory of the machine or of the control group, whichever is less, in bytes.
fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(total);
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(group).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_summed_and_the_room_gets_less() {
        let memory = Memory::new(3, 1000);
        assert_eq!(memory.publish(0, 100), 0);
        assert_eq!(memory.publish(2, 50), 100);
        assert_eq!(memory.publish(1, 0), 150);
        assert_eq!(memory.publish(0, 10), 50);
        assert_eq!(memory.partial_max(), 166);
        for (bytes, room) in [
            (0, Room::Enough),
            (799, Room::Enough),
            (800, Room::Tight),
            (999, Room::Tight),
            (1000, Room::Full),
        ] {
            assert_eq!(memory.room(bytes), room, "{bytes}");
        }
    }

    #[test]
    fn without_a_bound_the_machine_gives_one() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16316204 kB\n"), Some(16_316_204 << 10));
        assert_eq!(total("MemTotal: many"), None);
        let memory = Memory::new(1, 0);
        assert!(memory.max() >= MEMORY_MIN && memory.max() < u64::MAX, "{}", memory.max());
    }
}
