//! What the ring reports about sockets, and what is sent.

use std::os::fd::{AsFd, OwnedFd};

use gimbal_codec::{CloseReason, SessionKey};

use super::conn::Conn;
use super::{ACCEPT_PAUSE_MS, ACCEPT_WARN_MS, COMPLETIONS_PER_TURN, SENDS_PER_TURN, Shard};
use crate::metrics::{Drop, Total};
use crate::ring::{AcceptEnd, Chunk, Completion, ReceiveEnd};
use crate::session::Turn;
use crate::transport::tcp;

impl Shard {
    pub(super) fn take_completions(&mut self) {
        for _ in 0..COMPLETIONS_PER_TURN {
            if self.is_work_done() {
                return;
            }
            match self.ring.next() {
                None => return,
                Some(Completion::Received { key, chunk, more }) => self.received(key, chunk, more),
                Some(Completion::Sent { key, result }) => self.sent(key, result),
                Some(Completion::ReceiveEnded { key, end }) => self.receive_ended(key, end),
                Some(Completion::Accepted { socket, more }) => self.accepted(socket, more),
                Some(Completion::AcceptEnded(end)) => self.accept_ended(end),
                Some(Completion::Closed { key }) => self.closed(key),
                Some(Completion::Doorbell) => {}
                Some(Completion::Tick) => self.is_tick = true,
            }
        }
    }

    pub(super) fn arm_accept(&mut self) {
        self.accepting.retry_at = None;
        if let Some(listener) = &self.accepting.listener
            && !self.accepting.is_armed
        {
            self.accepting.is_armed = true;
            self.ring.accept(listener.as_fd());
        }
    }

    fn accepted(&mut self, socket: OwnedFd, more: bool) {
        self.accepting.is_armed = more;
        let is_late = self.walks.is_draining();
        if !is_late {
            self.arm_accept();
        } else if !more {
            self.accepting.listener = None;
        }
        self.metrics.add(Total::Accepted, 1);
        let (now, limits) = (self.now, &self.limits);
        let Some(key) = self.conns.insert_with(|_| Conn::new(socket, now, limits)) else {
            self.metrics.dropped(Drop::OverLimit, 1);
            return;
        };
        self.arm_receive(key);
        if is_late {
            self.close(key, CloseReason::Draining);
        } else {
            self.settle(key);
        }
    }

    /// Accepting goes on whatever ended it, unless we ended it.
    fn accept_ended(&mut self, end: AcceptEnd) {
        self.accepting.is_armed = false;
        if self.walks.is_draining() {
            self.accepting.listener = None;
            return;
        }
        match end {
            // At once, but not again and again: an error that lasts would keep the shard busy with nothing else.
            AcceptEnd::Again if self.accepting.again_at != self.now => {
                self.accepting.again_at = self.now;
                self.arm_accept();
            }
            AcceptEnd::Again => self.accepting.retry_at = Some(self.now.plus_ms(ACCEPT_PAUSE_MS)),
            AcceptEnd::Exhausted(errno) => {
                if self.accepting.warn_at <= self.now {
                    self.accepting.warn_at = self.now.plus_ms(ACCEPT_WARN_MS);
                    tracing::warn!(
                        shard = self.id.0,
                        errno,
                        "accepting pauses: no descriptor or memory left"
                    );
                }
                self.metrics.dropped(Drop::NoDescriptor, 1);
                self.accepting.retry_at = Some(self.now.plus_ms(ACCEPT_PAUSE_MS));
            }
            AcceptEnd::Cancelled => {
                tracing::error!(shard = self.id.0, "accepting was ended by the kernel");
                self.accepting.retry_at = Some(self.now.plus_ms(ACCEPT_PAUSE_MS));
            }
        }
    }

    fn arm_receive(&mut self, key: SessionKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && let Some(socket) = &conn.socket
            && !conn.is_receiving
            && !conn.is_ending
        {
            conn.is_receiving = true;
            self.ring.receive(key, socket.as_fd());
        }
    }

    fn received(&mut self, key: SessionKey, chunk: Chunk, more: bool) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.is_receiving = more;
            self.metrics.add(Total::Receives, 1);
            self.feed(key, &chunk);
            self.settle(key);
            if !more {
                self.arm_receive(key);
                self.finish_end(key);
            }
        }
        self.ring.recycle(chunk);
    }

    /// Gives the frames in `chunk` to the session, until one is not welcome.
    fn feed(&mut self, key: SessionKey, chunk: &Chunk) {
        let bytes = self.ring.bytes(chunk);
        self.metrics.add(Total::BytesIn, bytes.len() as u64);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_ending || conn.session.is_closing() {
            return;
        }
        let before = conn.queue.cost_bytes();
        let partial_before = conn.decoder.allocated();
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
        let mut frame_count = 0;
        let mut feed = conn.decoder.feed(bytes);
        let refused = loop {
            match feed.next_frame(conn.session.frame_bytes_max()) {
                Ok(None) => break None,
                Ok(Some(body)) => {
                    frame_count += 1;
                    if let Err(reason) = conn.session.handle_frame(body, &mut turn) {
                        break Some(reason);
                    }
                }
                Err(error) => break Some(error.close_reason()),
            }
        };
        if let Some(reason) = refused {
            conn.session.begin_close(reason, 0, &mut turn);
            conn.decoder = Default::default();
        }
        self.work += frame_count as usize;
        self.partial_bytes = self.partial_bytes + conn.decoder.allocated() - partial_before;
        self.metrics.add(Total::FramesIn, frame_count);
        self.queue_bytes = self.queue_bytes + conn.queue.cost_bytes() - before;
    }

    fn receive_ended(&mut self, key: SessionKey, end: ReceiveEnd) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.is_receiving = false;
        if conn.is_ending {
            self.finish_end(key);
            return;
        }
        let is_flushing = conn.session.is_closing() && !conn.queue.is_empty();
        match end {
            ReceiveEnd::Again => self.arm_receive(key),
            // A peer that has said all may still read why it is closed.
            ReceiveEnd::Eof if is_flushing => conn.is_at_eof = true,
            ReceiveEnd::Eof => self.gone(key, false),
            ReceiveEnd::Broken(_) => self.gone(key, true),
        }
    }

    /// The peer is no longer there.
    fn gone(&mut self, key: SessionKey, reset: bool) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.session.is_closing() {
            self.metrics.dropped(Drop::PeerGone, 1);
            self.call(key, |session, turn| {
                session.handle_gone(turn);
                Ok(())
            });
        }
        self.end(key, reset);
    }

    /// Closes the socket as soon as nothing of it is in flight, and sees to it that nothing stays so.
    pub(super) fn end(&mut self, key: SessionKey, reset: bool) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.is_ending {
            conn.is_ending = true;
            let is_in_flight = conn.is_receiving || conn.queue.is_in_flight();
            if let Some(socket) = &conn.socket
                && (reset || is_in_flight)
            {
                tcp::shutdown_both(socket, reset);
            }
        }
        self.finish_end(key);
    }

    fn finish_end(&mut self, key: SessionKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && conn.is_ending
            && !conn.is_receiving
            && !conn.queue.is_in_flight()
            && let Some(socket) = conn.socket.take()
        {
            self.ring.close(key, socket);
        }
    }

    fn closed(&mut self, key: SessionKey) {
        if let Some(conn) = self.conns.remove(key) {
            self.timers.cancel(key.index());
            self.queue_bytes -= conn.queue.cost_bytes();
            self.partial_bytes -= conn.decoder.allocated();
        }
    }

    /// Sends what waits, as much as the turn's budget allows; the rest stays on the list.
    pub(super) fn start_sends(&mut self) {
        for _ in 0..SENDS_PER_TURN {
            let Some(key) = self.dirty.pop_front() else { return };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.is_dirty = false;
            if !conn.wants_send() {
                continue;
            }
            let before = conn.queue.cost_bytes();
            if let Some(bytes) = conn.queue.start_send(tcp::join_bytes_max(before))
                && let Some(socket) = &conn.socket
            {
                self.ring.send(key, socket.as_fd(), bytes);
            }
            self.queue_bytes = self.queue_bytes + conn.queue.cost_bytes() - before;
        }
    }

    fn sent(&mut self, key: SessionKey, result: Result<usize, i32>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let before = conn.queue.cost_bytes();
        conn.queue.finish_send(result.unwrap_or(0));
        self.queue_bytes = self.queue_bytes + conn.queue.cost_bytes() - before;
        if conn.is_ending {
            self.finish_end(key);
            return;
        }
        let Ok(taken) = result else {
            self.gone(key, true);
            return;
        };
        self.metrics.add(Total::BytesOut, taken as u64);
        if conn.is_write_watched {
            conn.is_write_watched = false;
            conn.session.handle_write_progress(self.now, &self.limits);
        }
        if conn.queue.is_empty() && conn.session.wants_no_drained() {
            return;
        }
        if conn.queue.is_empty() {
            self.call(key, |session, turn| {
                session.handle_drained(turn);
                Ok(())
            });
        } else {
            self.settle(key);
        }
    }

    /// Starts the write deadline of sends that are in flight at a tick. Nearly all sends end in the call that starts them,
    /// so nothing is spent on their deadlines.
    pub(super) fn watch_writes(&mut self) {
        let mut keys = std::mem::take(&mut self.keys);
        keys.clear();
        self.ring.sends_in_flight(&mut keys);
        for &key in &keys {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            if !conn.is_write_watched {
                conn.is_write_watched = true;
                conn.session.handle_write_progress(self.now, &self.limits);
                self.timers.arm(key.index(), conn.session.deadline());
            }
        }
        self.keys = keys;
    }

    /// Refuses with a reason and a word when to come back.
    pub(super) fn close(&mut self, key: SessionKey, reason: CloseReason) {
        self.call(key, |_, _| Err(reason));
    }
}
