//! Calls into sessions, and what they ask for in return.

use gimbal_codec::{Advice, CloseReason, SessionKey};
use gimbal_rpc::link::{Signal, SignalTarget, Up};

use super::Shard;
use crate::fanout::{Offered, offer};
use crate::metrics::{Drop, Total};
use crate::session::{Action, Counter, Session, Turn, signal_frame};
use crate::transport::tcp;

/// Clients that are told to come back later spread over so long, from one second on.
const RETRY_SPREAD_MS: u64 = 4000;

impl Shard {
    /// Calls the session behind `key`, closes it for the reason that comes back, and does what it asks for. `false` when
    /// nobody is there.
    pub(super) fn call<F>(&mut self, key: SessionKey, work: F) -> bool
    where
        F: FnOnce(&mut Session, &mut Turn<'_>) -> Result<(), CloseReason>,
    {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        let before = conn.queue.cost_bytes();
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
            let retry_after_ms =
                retry_after_ms(reason, self.walks.drain_left_ms(self.now), key, self.unix_ms);
            conn.session.begin_close(reason, retry_after_ms, &mut turn);
        }
        self.queue_bytes = self.queue_bytes + conn.queue.cost_bytes() - before;
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
    }

    fn act(&mut self, key: SessionKey, action: Action) {
        match action {
            Action::SignIn(request) => {
                let peer = self.peer(key);
                let (user, device, token, cursor) =
                    (request.user, request.device, request.token, request.cursor);
                self.up.push(Up::SignIn { session: key, user, device, token, cursor, peer });
            }
            Action::Up(up) => self.up.push(up),
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
            tcp::shutdown_write(socket);
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
        socket.map(tcp::peer).unwrap_or_default()
    }

    /// A signal of one of our sessions: to our own, to the other shards, and to the other gateways.
    fn send_signal(&mut self, signal: Signal) {
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
        if !keys.is_empty() {
            let frame = signal_frame(signal);
            for &key in &keys {
                self.give_signal_to(key, signal, &frame);
            }
        }
        self.keys = keys;
    }

    fn give_signal_to(&mut self, key: SessionKey, signal: &Signal, frame: &bytes::Bytes) {
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
    pub(super) fn offer(&mut self, key: SessionKey, frames: &bytes::Bytes) -> Offered {
        let Some(conn) = self.conns.get_mut(key) else { return Offered::Absent };
        let before = conn.queue.cost_bytes();
        let offered = offer(&conn.session, &mut conn.queue, frames, self.limits.queue_bytes_max);
        self.queue_bytes = self.queue_bytes + conn.queue.cost_bytes() - before;
        if !conn.is_dirty && conn.wants_send() {
            conn.is_dirty = true;
            self.dirty.push_back(key);
        }
        offered
    }

    /// Hands the turn's items to the link.
    pub(super) fn submit(&mut self) {
        if self.walks.take_ring_peers() {
            self.peers.ring_all();
        }
        if self.up.is_empty() {
            return;
        }
        let count = self.up.len() as u64;
        match self.uplink.submit(self.id, &mut self.up) {
            Ok(()) => self.metrics.add(Total::UpItems, count),
            Err(_) => {
                self.metrics.add(Total::UpFull, 1);
                self.refuse_up();
            }
        }
    }

    /// The link is full or down: calls are refused to their clients, signals dropped; what control must learn is kept for
    /// the next turn, at most a few items for each session and room.
    fn refuse_up(&mut self) {
        for up in std::mem::take(&mut self.up) {
            match &up {
                Up::Detach { .. } | Up::RoomInterest { .. } | Up::Announce { .. } => self.up.push(up),
                Up::Signal(_) => self.metrics.dropped(Drop::LinkFull, 1),
                Up::SignIn { session, .. } => self.refuse_call(*session, &up),
                Up::Send { caller, .. } | Up::Sync { caller, .. } | Up::Ack { caller, .. } => {
                    self.refuse_call(caller.session, &up);
                }
            }
        }
    }

    fn refuse_call(&mut self, key: SessionKey, up: &Up) {
        self.metrics.dropped(Drop::LinkFull, 1);
        self.call(key, |session, turn| session.handle_not_submitted(up, turn));
    }
}

/// When a client that is told to come back later should: spread, so that they do not come together.
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
