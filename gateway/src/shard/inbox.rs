//! What other threads leave for a shard: bounded in items and bytes, with a doorbell. Full means that items are lost, that
//! this is counted, and that the shard announces all its sessions again, so that nobody is left in silence.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use gimbal_rpc::link::{Body, Down, Page, Signal};

use crate::ring::Doorbell;

/// Counted for each item beside its contents.
const ITEM_BYTES: usize = 192;

/// Room for kicks beyond the bound. A kick that is lost is undone by the announcement that follows, for control has forgotten
/// the session by then and takes it back; anything else that is lost, the announcement mends.
const KICKS_MAX: usize = 1024;

/// One thing left for a shard.
#[derive(Debug)]
pub(crate) enum Item {
    /// From control.
    Down(Down),
    /// From a session of another shard of this gateway.
    Signal(Signal),
}

/// The queue in front of one shard. Many threads push, the shard pops.
pub(crate) struct Inbox {
    items: ArrayQueue<Item>,
    items_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
    overflowed: AtomicBool,
    lost: AtomicU64,
    doorbell: std::sync::Arc<Doorbell>,
}

impl Inbox {
    /// An empty inbox of at most `items_max` items and about `bytes_max` bytes.
    pub(crate) fn new(items_max: usize, bytes_max: usize, doorbell: std::sync::Arc<Doorbell>) -> Self {
        Self {
            items: ArrayQueue::new(items_max + KICKS_MAX),
            items_max,
            bytes: AtomicUsize::new(0),
            bytes_max,
            overflowed: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            doorbell,
        }
    }

    /// Leaves `item`, without ringing. When there is no room it is dropped and the shard will announce its sessions again.
    pub(crate) fn push(&self, item: Item) {
        let weight = weight(&item);
        let reserve = if matches!(item, Item::Down(Down::Kick { .. })) { KICKS_MAX } else { 0 };
        let before = self.bytes.fetch_add(weight, Ordering::Relaxed);
        let has_room = before + weight <= self.bytes_max + reserve * ITEM_BYTES
            && self.items.len() < self.items_max + reserve;
        if has_room && self.items.push(item).is_ok() {
            return;
        }
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.overflowed.store(true, Ordering::Release);
    }

    /// Wakes the shard if it sleeps. Once after all pushes of a batch.
    pub(crate) fn ring(&self) {
        self.doorbell.ring();
    }

    /// The oldest item.
    pub(crate) fn pop(&self) -> Option<Item> {
        let item = self.items.pop()?;
        self.bytes.fetch_sub(weight(&item), Ordering::Relaxed);
        Some(item)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether items were lost since the last call.
    pub(crate) fn take_overflow(&self) -> bool {
        self.overflowed.load(Ordering::Relaxed) && self.overflowed.swap(false, Ordering::Acquire)
    }

    /// Items lost since start.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// About what an item keeps alive; a body shared with other shards counts in each.
fn weight(item: &Item) -> usize {
    ITEM_BYTES
        + match item {
            Item::Signal(signal) | Item::Down(Down::Signal(signal)) => signal.content.len(),
            Item::Down(Down::Deliver { body, targets }) => body_bytes(body) + targets.len() * 24,
            Item::Down(Down::SyncDone { result: Ok(page), .. }) => page_bytes(page),
            Item::Down(Down::Room { frame, .. } | Down::All { frame, .. }) => frame.len(),
            Item::Down(_) => 0,
        }
}

fn body_bytes(body: &Body) -> usize {
    size_of::<Body>() + body.content.len()
}

fn page_bytes(page: &Page) -> usize {
    page.entries.iter().map(|(_, body)| body_bytes(body)).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use gimbal_codec::RoomId;

    use super::*;

    fn room_frame(bytes: usize) -> Item {
        Item::Down(Down::Room { room: RoomId::new(1), frame: Bytes::from(vec![0; bytes]) })
    }

    #[test]
    fn a_full_inbox_drops_counts_and_says_so_once() {
        let inbox = Inbox::new(2, 1 << 20, Arc::new(Doorbell::new().unwrap()));
        for _ in 0..3 {
            inbox.push(room_frame(10));
        }
        assert_eq!(inbox.lost(), 1);
        assert!(inbox.take_overflow() && !inbox.take_overflow());
        assert!(inbox.pop().is_some() && inbox.pop().is_some() && inbox.pop().is_none());
    }

    #[test]
    fn a_full_inbox_still_takes_kicks() {
        let kick = || {
            let session = gimbal_codec::SessionKey::from_u64(1);
            Item::Down(Down::Kick {
                session,
                attach: gimbal_codec::Attach::new(1),
                reason: gimbal_codec::CloseReason::Kicked,
            })
        };
        for (items_max, bytes_max) in [(2, 1 << 20), (100, 2 * (ITEM_BYTES + 10))] {
            let inbox = Inbox::new(items_max, bytes_max, Arc::new(Doorbell::new().unwrap()));
            (0..3).for_each(|_| inbox.push(room_frame(10)));
            (0..KICKS_MAX).for_each(|_| inbox.push(kick()));
            assert_eq!(inbox.lost(), 1);
            (0..2 * KICKS_MAX).for_each(|_| inbox.push(kick()));
            assert!(inbox.lost() > 1, "the reserve is bounded too");
        }
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let inbox = Inbox::new(100, 2 * (ITEM_BYTES + 1000), Arc::new(Doorbell::new().unwrap()));
        for _ in 0..3 {
            inbox.push(room_frame(1000));
        }
        assert_eq!(inbox.lost(), 1);
        assert!(inbox.pop().is_some());
        inbox.push(room_frame(1000));
        assert_eq!(inbox.lost(), 1);
    }
}
