//! What other threads left: control's items and the signals of other shards.

use std::sync::Arc;

use gimbal_codec::{Attach, Seq, SessionKey};
use gimbal_rpc::link::{Body, Caller, Down, Grant, Target, Up};

use super::inbox::Item;
use super::{ITEMS_PER_TURN, Shard};
use crate::carrier::Carrier;
use crate::fanout::Offered;
use crate::metrics::{Drop, Total};
use crate::session::{Counter, Deliver};

impl<C: Carrier> Shard<C> {
    pub(super) fn take_items(&mut self) {
        if self.inbox.take_overflow() {
            tracing::warn!(
                shard = self.id.0,
                lost = self.inbox.lost(),
                "inbox full: announcing all sessions again"
            );
            self.walks.note_overflow();
        }
        for _ in 0..ITEMS_PER_TURN {
            if self.is_work_done() {
                return;
            }
            let Some(item) = self.inbox.pop() else { return };
            self.metrics.add(Total::InboxItems, 1);
            match item {
                Item::Signal(signal) => self.give_signal(&signal),
                Item::Down(down) => self.take_down(down),
            }
        }
    }

    /// Control may have learned that the session is gone before it knew whose it is: it is told again, by that name.
    fn take_signed_in(&mut self, session: SessionKey, attach: Attach, latest: Seq, grant: Grant) {
        let is_there = self.call(session, |s, turn| s.handle_signed_in(attach, latest, grant, turn));
        if !is_there {
            self.counts.add(Counter::StaleItem);
            let Grant { user, device, .. } = grant;
            self.up.push(Up::Detach { caller: Caller { session, attach, user, device } });
        } else if !grant.device.is_none() {
            self.refuse_debt(session, grant.device);
        }
    }

    fn take_down(&mut self, down: Down) {
        match down {
            Down::SignedIn { session, attach, latest, grant } => {
                self.take_signed_in(session, attach, latest, grant);
            }
            Down::SignInRefused { session, refusal } => {
                self.call_for_control(session, |s, turn| s.handle_sign_in_refused(&refusal, turn));
            }
            Down::Announced { session, attach, latest } => {
                self.call_for_control(session, |s, turn| s.handle_announced(attach, latest, turn));
            }
            Down::Deliver { body, targets } => self.deliver(&body, &targets),
            Down::SendDone { to: (session, attach), tag, result } => {
                let result = result.as_ref().copied();
                self.call_for_control(session, |s, turn| s.handle_send_done(attach, &tag, result, turn));
            }
            Down::SyncDone { to: (session, attach), tag, result } => {
                self.call_for_control(session, |s, turn| {
                    s.handle_sync_done(attach, &tag, result.as_ref(), turn)
                });
            }
            Down::AckDone { to: (session, attach), tag, result } => {
                let result = result.as_ref().copied();
                self.call_for_control(session, |s, turn| s.handle_ack_done(attach, &tag, result, turn));
            }
            Down::PublishDone { to: (session, attach), tag, result } => {
                let result = result.as_ref().copied();
                self.call_for_control(session, |s, turn| s.handle_publish_done(attach, &tag, result, turn));
            }
            Down::Kick { session, attach, reason } => {
                self.call_for_control(session, |s, turn| s.handle_kick(attach, reason, turn));
            }
            Down::Room { room, frame } => {
                let member_count = self.rooms.members(room).len();
                if member_count == 0 {
                    self.metrics.dropped(Drop::RoomEmpty, 1);
                } else {
                    self.metrics.add(Total::RoomFrames, 1);
                    if self.bursts.add(room, frame) {
                        self.work += member_count;
                    }
                }
            }
            Down::All { frame, per_second } => {
                if !self.walks.push_to_all(frame, per_second, self.now) {
                    self.metrics.dropped(Drop::AllOverlap, 1);
                }
            }
            Down::Signal(signal) => self.give_signal(&signal),
        }
    }

    fn deliver(&mut self, body: &Arc<Body>, targets: &[Target]) {
        let mut deliver = Deliver::new(body, targets.len());
        for &Target { session, attach, seq } in targets {
            self.call_for_control(session, |s, turn| s.handle_deliver(attach, seq, &mut deliver, turn));
        }
    }

    /// Queues what came for rooms in this turn: the frames of one room as one buffer, shared by all members.
    pub(super) fn give_bursts(&mut self) {
        if self.bursts.is_empty() {
            return;
        }
        let mut bursts = std::mem::take(&mut self.bursts);
        let mut keys = std::mem::take(&mut self.keys);
        for burst in bursts.drain() {
            let frame_count = u64::from(burst.frame_count());
            keys.clear();
            keys.extend_from_slice(self.rooms.members(burst.room));
            let frames = burst.join().counted(&self.shared);
            let (mut queued, mut shed) = (0, 0);
            for &key in &keys {
                match self.offer(key, &frames) {
                    Offered::Queued => queued += frame_count,
                    Offered::Shed => shed += frame_count,
                    Offered::Absent => {}
                }
            }
            self.metrics.add(Total::RoomQueued, queued);
            self.metrics.dropped(Drop::RoomShed, shed);
        }
        self.bursts = bursts;
        self.keys = keys;
    }
}
