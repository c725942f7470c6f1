//! Calls into sessions, and what they ask for in return.

use gimbal_codec::{Advice, CloseReason, SessionKey};
use gimbal_rpc::link::{Signal, SignalTarget, Up};

use super::Debts;
use super::memory::Room;
use super::rooms::Interest;
use super::{SIGNAL_WORK_MAX, SLICE_ITEMS, Shard};
use crate::carrier::Carrier;
use crate::fanout::{Offered, offer};
use crate::metrics::{Drop, Total};
use crate::session::{Action, Counter, Session, Turn, signal_frame};
use crate::transport::form::Shared;

/// Clients that are told to come back later spread over so long, from one second on.
const RETRY_SPREAD_MS: u64 = 4000;

/// While memory is tight a session is given what may be lost only up to so much, in bytes: whoever reads gets small messages, and those
/// who made it tight get nothing.
const TIGHT_QUEUE_BYTES: usize = 4096;

impl<C: Carrier> Shard<C> {
    /// Calls the session behind `key`, closes it for the reason that comes back, and does what it asks for. `false` when
    /// nobody is there.
    pub(super) fn call<F>(&mut self, key: SessionKey, work: F) -> bool
    where
        F: FnOnce(&mut Session, &mut Turn<'_>) -> Result<(), CloseReason>,
    {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        let before = conn.queue.own_bytes();
        let mut turn = Turn {
            key,
            now: self.now,
            unix_ms: self.unix_ms,
            link: self.link_seen,
            limits: &self.limits,
            queue: &mut conn.queue,
            out: &mut self.actions,
            counts: &mut self.counts,
        };
        if let Err(reason) = work(&mut conn.session, &mut turn) {
            note_debt(&self.live.debts, &conn.session, reason, &turn);
            let retry_after_ms = self.retry_hint_ms.unwrap_or_else(|| {
                retry_after_ms(reason, self.walks.drain_left_ms(self.now), key, self.unix_ms)
            });
            conn.session.begin_close(reason, retry_after_ms, &mut turn);
            if let Some(socket) = &conn.socket {
                self.carrier.closing(socket, reason);
            }
        }
        self.queue_bytes = self.queue_bytes + conn.queue.own_bytes() - before;
        self.settle(key);
        true
    }

    /// As [`Self::call`], for an item of control, which is counted as stale when nobody is there.
    pub(super) fn call_for_control<F>(&mut self, key: SessionKey, work: F)
    where
        F: FnOnce(&mut Session, &mut Turn<'_>) -> Result<(), CloseReason>,
    {
        if !self.call(key, work) {
            self.counts.add(Counter::StaleItem);
        }
    }

    /// After a session was called: its sends, its deadline, its wishes.
    pub(super) fn settle(&mut self, key: SessionKey) {
        if let Some(conn) = self.conns.get_mut(key) {
            if conn.wants_send() && !conn.is_dirty {
                conn.is_dirty = true;
                self.dirty.push_back(key);
            }
            self.timers.arm(key.index(), conn.session.deadline());
        }
        if !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            for action in actions.drain(..) {
                self.act(key, action);
            }
            self.actions = actions;
        }
        if self.conns.get(key).is_some_and(|conn| conn.is_closing_untold()) {
            self.end(key, true);
        }
    }

    fn act(&mut self, key: SessionKey, action: Action) {
        match action {
            Action::SignIn(request) => {
                let peer = self.peer(key);
                let (user, device, token, cursor) =
                    (request.user, request.device, request.token, request.cursor);
                self.admit_sign_in(key, Up::SignIn { session: key, user, device, token, cursor, peer });
            }
            Action::Up(up) => self.up.push(up),
            Action::UpToRoom(up) => self.up_to_rooms.push(up),
            Action::Online { user } => {
                self.users.insert(user, key);
                self.online_count += 1;
                self.metrics.add(Total::SignedIn, 1);
            }
            Action::Offline { user } => {
                self.users.remove(user, key);
                self.rooms.leave_all(key);
                self.online_count -= 1;
            }
            Action::Join(room) => {
                self.rooms.join(key, room);
            }
            Action::Leave(room) => {
                self.rooms.leave(key, room);
            }
            Action::Signal(signal) => self.send_signal(signal),
            Action::ShutdownWrite => self.shutdown_write(key),
            Action::Abort => self.abort(key),
        }
    }

    fn shutdown_write(&mut self, key: SessionKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_at_eof {
            self.end(key, false);
        } else if let Some(socket) = &conn.socket {
            self.carrier.shutdown_write(socket);
        }
    }

    /// What is written may still arrive; what is not never will, so the kernel need not keep it.
    fn abort(&mut self, key: SessionKey) {
        let is_unwritten = self.conns.get(key).is_some_and(|conn| !conn.queue.is_empty());
        self.end(key, is_unwritten);
    }

    /// The address of the peer, for operators; a system call.
    pub(super) fn peer(&self, key: SessionKey) -> String {
        let socket = self.conns.get(key).and_then(|conn| conn.socket.as_ref());
        let peer = self.proxied.client(key).or_else(|| self.carrier.peer(socket?));
        peer.map(|peer| peer.to_string()).unwrap_or_default()
    }

    /// A signal of one of our sessions: to our own, to the other shards, and to the other gateways.
    fn send_signal(&mut self, signal: Signal) {
        if self.work >= SIGNAL_WORK_MAX {
            self.metrics.dropped(Drop::SignalOverWork, 1);
            return;
        }
        self.give_signal(&signal);
        if self.peers.has_others() {
            self.peers.signal(self.id, &signal);
            self.walks.ring_peers();
        }
        self.up.push(Up::Signal(signal));
    }

    /// Gives a signal to the sessions of this shard that it is for, but never to its sender.
    pub(super) fn give_signal(&mut self, signal: &Signal) {
        let mut keys = std::mem::take(&mut self.keys);
        keys.clear();
        match signal.to {
            SignalTarget::User(user) => self.users.sessions(user, &mut keys),
            SignalTarget::Room(room) => keys.extend_from_slice(self.rooms.members(room)),
        }
        self.work += keys.len();
        if !keys.is_empty() {
            let frame = Shared::new(signal_frame(signal)).counted(&self.shared);
            for &key in &keys {
                self.give_signal_to(key, signal, &frame);
            }
        }
        self.keys = keys;
    }

    fn give_signal_to(&mut self, key: SessionKey, signal: &Signal, frame: &Shared) {
        let sender = (signal.from_user, signal.from_device);
        let caller = self.conns.get(key).and_then(|conn| conn.session.caller());
        if caller.is_some_and(|caller| (caller.user, caller.device) != sender) {
            match self.offer(key, frame) {
                Offered::Queued => self.metrics.add(Total::SignalsQueued, 1),
                Offered::Shed => self.metrics.dropped(Drop::SignalShed, 1),
                Offered::Absent => {}
            }
        }
    }

    /// Offers frames that may be shed to one session.
    pub(super) fn offer(&mut self, key: SessionKey, frames: &Shared) -> Offered {
        let room = self.memory_room();
        let Some(conn) = self.conns.get_mut(key) else { return Offered::Absent };
        let would_wait = conn.queue.cost_bytes() + frames.len();
        if room == Room::Full || (room == Room::Tight && would_wait > TIGHT_QUEUE_BYTES) {
            self.metrics.dropped(Drop::MemoryTight, 1);
            return Offered::Shed;
        }
        let before = conn.queue.own_bytes();
        let offered = offer(&conn.session, &mut conn.queue, frames, self.limits.queue_bytes_max);
        self.queue_bytes = self.queue_bytes + conn.queue.own_bytes() - before;
        if !conn.is_dirty && conn.wants_send() {
            conn.is_dirty = true;
            self.dirty.push_back(key);
        }
        offered
    }

    /// Hands the turn's items to the link, in slices of which each is taken or refused as a whole. After one that is refused
    /// no other is tried, so that what is kept stays in order.
    pub(super) fn submit(&mut self) {
        if self.walks.take_ring_peers() {
            self.peers.ring_all();
        }
        self.is_link_full = false;
        let mut refused = Vec::new();
        if self.up.len() <= SLICE_ITEMS {
            let mut items = std::mem::take(&mut self.up);
            if !items.is_empty() && !self.hand_over(&mut items) {
                refused = items;
            } else {
                self.up = items;
            }
        } else {
            let mut items = std::mem::take(&mut self.up).into_iter();
            let mut slice: Vec<Up> = items.by_ref().take(SLICE_ITEMS).collect();
            while !slice.is_empty() && self.hand_over(&mut slice) {
                slice.extend(items.by_ref().take(SLICE_ITEMS));
            }
            refused.extend(slice.into_iter().chain(items));
        }
        self.refuse_up(refused);
        self.submit_interest();
        self.submit_to_rooms();
        self.kept_count = self.up.len();
    }

    /// `false`: refused. What is meant for one link never travels on the next, which knows nothing of these sessions yet.
    fn hand_over(&mut self, items: &mut Vec<Up>) -> bool {
        let count = items.len() as u64;
        let is_current = self.is_link_up() && self.peers.orders().link() == self.link_seen;
        let is_taken = is_current && self.uplink.submit(self.id, items).is_ok();
        let (total, by) = if is_taken { (Total::UpItems, count) } else { (Total::UpFull, 1) };
        self.metrics.add(total, by);
        self.is_link_full |= !is_taken;
        is_taken
    }

    /// The counts of rooms go by themselves and last: what is refused is reported again as it is then.
    fn submit_interest(&mut self) {
        if self.interest.is_empty() {
            return;
        }
        let shard = self.id;
        let items = self.interest.iter().map(|&Interest { room, members, .. }| Up::RoomInterest {
            room,
            shard,
            members,
        });
        let mut items = items.collect();
        let is_taken = !self.is_link_full && self.hand_over(&mut items);
        for interest in self.interest.drain(..) {
            if !is_taken {
                self.rooms.unreport(interest);
            }
        }
    }

    /// What control can do only once it knows of a room's members comes behind their counts, in this turn or, while counts
    /// wait, in a later one.
    fn submit_to_rooms(&mut self) {
        if self.up_to_rooms.is_empty() || (self.rooms.has_urgent() && !self.is_link_full) {
            return;
        }
        let mut items = std::mem::take(&mut self.up_to_rooms);
        if self.is_link_full || !self.hand_over(&mut items) {
            self.refuse_up(items);
        }
    }

    /// The link is full or down: calls are refused to their clients, signals dropped. What a link that is full must learn
    /// is kept for the next turn, at most a few items for each session; one that is down will be told all anew.
    fn refuse_up(&mut self, refused: Vec<Up>) {
        let is_kept = |up: &Up| matches!(up, Up::Detach { .. } | Up::Announce { .. });
        let (kept, refused): (Vec<_>, Vec<_>) = refused.into_iter().partition(is_kept);
        if self.is_link_up() {
            // Before the refusals, which may end sessions that are announced here.
            self.up.extend(kept);
        } else {
            self.metrics.dropped(Drop::LinkFull, kept.len() as u64);
        }
        for up in refused {
            match &up {
                Up::SignIn { session, .. } => self.refuse_call(*session, &up),
                Up::Send { caller, .. }
                | Up::Sync { caller, .. }
                | Up::Ack { caller, .. }
                | Up::Publish { caller, .. } => {
                    self.refuse_call(caller.session, &up);
                }
                _ => self.metrics.dropped(Drop::LinkFull, 1),
            }
        }
    }

    fn refuse_call(&mut self, key: SessionKey, up: &Up) {
        self.metrics.dropped(Drop::LinkFull, 1);
        self.call(key, |session, turn| session.handle_not_submitted(up, turn));
    }
}

/// When a client that is told to come back later should: spread, so that they do not come together.
/// Remembers a device that is closed for its rate.
pub(super) fn note_debt(debts: &Debts, session: &Session, reason: CloseReason, turn: &Turn<'_>) {
    if reason == CloseReason::OverRate
        && let Some(caller) = session.caller()
    {
        debts.note(caller.device, turn.now, turn.limits.debt_ms());
    }
}

fn retry_after_ms(reason: CloseReason, drain_left_ms: Option<u64>, key: SessionKey, unix_ms: i64) -> u64 {
    if reason.advice() != Advice::ReconnectLater {
        return 0;
    }
    let random = scramble(key.to_u64() ^ unix_ms as u64);
    match drain_left_ms {
        Some(left_ms) => left_ms + random % (left_ms + RETRY_SPREAD_MS),
        None => 1000 + random % RETRY_SPREAD_MS,
    }
}

/// Spreads near values far apart (the finalizer of splitmix64).
fn scramble(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
