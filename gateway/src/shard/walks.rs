//! Work that concerns every session and is spread over turns: announcing after the link changed or items were lost,
//! pushes to all, and the drain.

use std::collections::VecDeque;

use bytes::Bytes;
use gimbal_codec::CloseReason;
use gimbal_rpc::link::Up;

use super::Shard;
use crate::carrier::Carrier;
use crate::fanout::Offered;
use crate::metrics::{Drop, Total};
use crate::session::Moment;
use crate::transport::form::Shared;

/// Slots visited by one walk in one turn.
const SLOTS_PER_TURN: u32 = 512;

/// Pushes to all under way on one shard; further ones are refused and counted.
const PUSHES_MAX: usize = 64;

/// Items lost again and again lead to an announcement this often; its answers need room too.
const OVERFLOW_PAUSE_MS: u64 = 1000;

/// After the last session is told, what is not flushed may still take so long, beside flush and linger deadlines.
const DRAIN_GRACE_MS: u64 = 500;

/// Telling sessions that calls are lost, and control that sessions are here.
#[derive(Clone, Copy, Debug)]
struct Announce {
    next: u32,
    /// The link is gone: sign-ins under way are refused too.
    is_link_lost: bool,
    /// There is a link to announce on.
    is_link_up: bool,
}

/// One push to all.
#[derive(Debug)]
struct Push {
    frame: Bytes,
    next: u32,
    start: Moment,
    per_second: u64,
    /// Slots visited since `start`.
    visited: u64,
}

/// The end of service.
#[derive(Clone, Copy, Debug)]
struct Drain {
    start: Moment,
    over_ms: u64,
    next: u32,
    /// Nothing is waited for beyond this.
    give_up_at: Moment,
}

/// All walks of one shard.
#[derive(Debug)]
pub(super) struct Walks {
    announce: Option<Announce>,
    pushes: VecDeque<Push>,
    drain: Option<Drain>,
    /// Items were lost since the last announcement began.
    has_overflowed: bool,
    overflow_at: Moment,
    push_per_second: u64,
    shard_count: u64,
    /// A slice was cut short by its budget, not by its pace or the link.
    has_more: bool,
    /// Other shards were given signals in this turn.
    rings_peers: bool,
}

impl Walks {
    pub(super) fn new(push_per_second: u32, shard_count: u32) -> Self {
        Self {
            announce: None,
            pushes: VecDeque::new(),
            drain: None,
            has_overflowed: false,
            overflow_at: Moment::default(),
            push_per_second: u64::from(push_per_second.max(1)),
            shard_count: u64::from(shard_count.max(1)),
            has_more: false,
            rings_peers: false,
        }
    }

    /// Another pace for pushes that name none, from now on.
    pub(super) fn set_push_per_second(&mut self, push_per_second: u32) {
        self.push_per_second = push_per_second.max(1).into();
    }

    /// The next turn has something to walk that waits for nobody.
    pub(super) fn is_busy(&self) -> bool {
        self.has_more
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// How long the drain goes on telling sessions.
    pub(super) fn drain_left_ms(&self, now: Moment) -> Option<u64> {
        let drain = self.drain?;
        Some(drain.start.plus_ms(drain.over_ms).as_ms().saturating_sub(now.as_ms()))
    }

    /// Items for this shard were lost: every session is to ask control again where it stands.
    pub(super) fn note_overflow(&mut self) {
        self.has_overflowed = true;
    }

    /// `false` when too many are under way.
    pub(super) fn push_to_all(&mut self, frame: Bytes, per_second: u32, now: Moment) -> bool {
        if self.pushes.len() >= PUSHES_MAX {
            return false;
        }
        let per_second = match u64::from(per_second) {
            0 => self.push_per_second,
            named => (named / self.shard_count).max(1),
        };
        self.pushes.push_back(Push { frame, next: 0, start: now, per_second, visited: 0 });
        true
    }

    pub(super) fn ring_peers(&mut self) {
        self.rings_peers = true;
    }

    pub(super) fn take_ring_peers(&mut self) -> bool {
        std::mem::take(&mut self.rings_peers)
    }
}

impl<C: Carrier> Shard<C> {
    /// Sees what changed for the whole gateway.
    pub(super) fn take_orders(&mut self) {
        let link = self.peers.orders().link();
        if link != self.link_seen {
            self.link_seen = link;
            self.take_link_change(link % 2 == 1);
        }
        if let Some(over_ms) = self.peers.orders().drain_ms()
            && !self.walks.is_draining()
        {
            self.start_drain(over_ms);
        }
    }

    /// What was kept for the old link is announced anew on the new one, and control has forgotten what was to be ended.
    fn take_link_change(&mut self, is_up: bool) {
        self.walks.announce = Some(Announce { next: 0, is_link_lost: true, is_link_up: is_up });
        self.up.clear();
        self.up_to_rooms.clear();
        self.kept_count = 0;
        self.rooms.forget_reports();
    }

    /// One slice of each walk.
    pub(super) fn walk(&mut self) {
        self.walks.has_more = false;
        self.walk_announce();
        self.walk_push();
        self.walk_drain();
    }

    fn walk_announce(&mut self) {
        let is_link_up = self.is_link_up();
        let walks = &mut self.walks;
        if walks.has_overflowed && walks.announce.is_none() && walks.overflow_at <= self.now && is_link_up {
            walks.has_overflowed = false;
            walks.overflow_at = self.now.plus_ms(OVERFLOW_PAUSE_MS);
            walks.announce = Some(Announce { next: 0, is_link_lost: false, is_link_up });
        }
        let Some(announce) = self.walks.announce else { return };
        // Announcements wait while the link has no room for those before them.
        if announce.is_link_up && self.kept_count >= SLOTS_PER_TURN as usize {
            return;
        }
        let end = self.conns.index_end().min(announce.next.saturating_add(SLOTS_PER_TURN));
        for index in announce.next..end {
            self.announce_slot(index, announce);
        }
        let is_done = end >= self.conns.index_end();
        self.walks.announce = (!is_done).then_some(Announce { next: end, ..announce });
        self.walks.has_more |= !is_done;
    }

    fn announce_slot(&mut self, index: u32, announce: Announce) {
        let Some(key) = self.conns.key_at(index) else { return };
        let is_online = self.conns.get(key).is_some_and(|conn| conn.session.is_online());
        if is_online || announce.is_link_lost {
            self.call(key, |session, turn| session.handle_link_lost(turn));
        }
        if !announce.is_link_up {
            return;
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Some((caller, cursor)) = conn.session.announce(self.link_seen) {
            let peer = self.peer(key);
            self.up.push(Up::Announce { caller, cursor, peer });
            self.metrics.add(Total::Announced, 1);
        }
    }

    /// One push at a time, oldest first, as far as its pace allows.
    fn walk_push(&mut self) {
        let Some(push) = self.walks.pushes.front() else { return };
        let elapsed_ms = self.now.as_ms() - push.start.as_ms();
        let allowed = (elapsed_ms * push.per_second / 1000 + 1).saturating_sub(push.visited);
        let count = u32::try_from(allowed).unwrap_or(u32::MAX).min(SLOTS_PER_TURN);
        let (frame, start) = (Shared::new(push.frame.clone()).counted(&self.shared), push.next);
        let mut index = start;
        let mut given = 0;
        while index < self.conns.index_end() && given < count {
            given += u32::from(self.push_to_slot(index, &frame));
            index += 1;
            if index - start >= SLOTS_PER_TURN {
                break;
            }
        }
        let is_done = index >= self.conns.index_end();
        if is_done {
            self.walks.pushes.pop_front();
            if let Some(next) = self.walks.pushes.front_mut() {
                next.start = self.now;
                self.walks.has_more = true;
            }
        } else if let Some(push) = self.walks.pushes.front_mut() {
            push.next = index;
            push.visited += u64::from(given);
            self.walks.has_more |= given < count || u64::from(count) < allowed;
        }
    }

    /// Whether there was somebody.
    fn push_to_slot(&mut self, index: u32, frame: &Shared) -> bool {
        let Some(key) = self.conns.key_at(index) else { return false };
        match self.offer(key, frame) {
            Offered::Queued => self.metrics.add(Total::PushQueued, 1),
            Offered::Shed => self.metrics.dropped(Drop::AllShed, 1),
            Offered::Absent => return false,
        }
        true
    }

    fn start_drain(&mut self, over_ms: u64) {
        tracing::info!(shard = self.id.0, over_ms, connections = self.conns.count(), "draining");
        let waits_ms = self.limits.flush_ms + self.limits.linger_ms + DRAIN_GRACE_MS;
        let give_up_at = self.now.plus_ms(over_ms).plus_ms(waits_ms);
        self.walks.drain = Some(Drain { start: self.now, over_ms, next: 0, give_up_at });
        self.stop_accepting();
    }

    /// Tells sessions evenly over the time of the drain.
    fn walk_drain(&mut self) {
        let Some(drain) = self.walks.drain else { return };
        let end = u64::from(self.conns.index_end());
        let elapsed_ms = self.now.as_ms() - drain.start.as_ms();
        let due = if elapsed_ms >= drain.over_ms { end } else { end * elapsed_ms / drain.over_ms };
        let due = due as u32;
        let stop = due.min(drain.next.saturating_add(SLOTS_PER_TURN));
        for index in drain.next..stop {
            if let Some(key) = self.conns.key_at(index) {
                self.close(key, CloseReason::Draining);
            }
        }
        self.walks.drain = Some(Drain { next: stop.max(drain.next), ..drain });
        self.walks.has_more |= stop < due;
    }

    /// Everybody is told and gone, or has had all the time there is.
    pub(super) fn is_drained(&self) -> bool {
        self.walks.drain.is_some_and(|drain| {
            let is_closed = self.accepting.iter().all(|accepting| accepting.listener.is_none());
            let is_empty = self.conns.count() == 0 && is_closed && self.up.is_empty();
            self.now >= drain.give_up_at || (is_empty && !self.walks.has_more)
        })
    }
}
