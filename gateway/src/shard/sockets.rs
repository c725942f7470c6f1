//! What the carrier reports about connections, and what is sent.

use gimbal_codec::{CloseReason, SessionKey};

use super::{COMPLETIONS_PER_TURN, RECEIVES_PER_TURN, SENDS_PER_TURN, Shard};
use crate::carrier::{Carrier, Completion, ReceiveEnd};
use crate::metrics::{Drop, Total};

impl<C: Carrier> Shard<C> {
    pub(super) fn take_completions(&mut self) {
        for _ in 0..COMPLETIONS_PER_TURN {
            if self.is_work_done() {
                return;
            }
            match self.carrier.next() {
                None => return,
                Some(Completion::Received { key, chunk, more }) => self.received(key, chunk, more),
                Some(Completion::Sent { key, result }) => self.sent(key, result),
                Some(Completion::ReceiveEnded { key, end }) => self.receive_ended(key, end),
                Some(Completion::Accepted { listener, socket, more }) => {
                    self.accepted(listener, socket, more)
                }
                Some(Completion::AcceptEnded { listener, end }) => self.accept_ended(listener, end),
                Some(Completion::Closed { key }) => self.closed(key),
                Some(Completion::Doorbell) => {}
                Some(Completion::Tick) => self.is_tick = true,
            }
        }
    }

    pub(super) fn arm_receive(&mut self, key: SessionKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && let Some(socket) = &conn.socket
            && !conn.is_receiving
            && !conn.is_ending
        {
            conn.is_receiving = true;
            self.carrier.receive(key, socket);
        }
    }

    /// Who found no buffer gets one, the one that waits longest first.
    pub(super) fn feed_starved(&mut self) {
        for _ in 0..RECEIVES_PER_TURN {
            let Some(key) = self.starved.pop_front() else { return };
            if let Some(conn) = self.conns.get_mut(key)
                && let Some(socket) = &conn.socket
                && !conn.is_ending
            {
                conn.is_receiving = true;
                self.carrier.receive_once(key, socket);
            }
        }
    }

    /// The receive that brought `chunk` has ended.
    fn receive_more(&mut self, key: SessionKey, chunk: &C::Chunk) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_starved && self.carrier.is_full(chunk) {
            self.starved.push_back(key);
        } else {
            conn.is_starved = false;
            self.arm_receive(key);
        }
    }

    fn received(&mut self, key: SessionKey, mut chunk: C::Chunk, more: bool) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.is_receiving = more;
            self.metrics.add(Total::Receives, 1);
            if let Some(skip) = self.skip_proxy_header(key, &mut chunk) {
                self.feed(key, &mut chunk, skip);
            }
            self.settle(key);
            if !more {
                self.receive_more(key, &chunk);
                self.finish_end(key);
            }
        }
        self.carrier.recycle(chunk);
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
            ReceiveEnd::NoBuffer => {
                conn.is_starved = true;
                self.starved.push_back(key);
            }
            // A peer that has said all may still read why it is closed.
            ReceiveEnd::Eof if is_flushing => conn.is_at_eof = true,
            ReceiveEnd::Eof => self.gone(key, false),
            ReceiveEnd::Broken(_) => self.gone(key, true),
        }
    }

    /// The peer is no longer there.
    pub(super) fn gone(&mut self, key: SessionKey, reset: bool) {
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
            let is_in_flight = conn.is_receiving || conn.is_sending;
            if let Some(socket) = &conn.socket
                && (reset || is_in_flight)
            {
                self.carrier.shutdown_both(socket, reset);
            }
        }
        self.finish_end(key);
    }

    fn finish_end(&mut self, key: SessionKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && conn.is_ending
            && !conn.is_receiving
            && !conn.is_sending
            && let Some(socket) = conn.socket.take()
        {
            self.carrier.close(key, socket);
        }
    }

    fn closed(&mut self, key: SessionKey) {
        if let Some(conn) = self.conns.remove(key) {
            self.timers.cancel(key.index());
            self.left(key, conn.source, conn.is_counted);
            self.queue_bytes -= conn.queue.own_bytes();
            self.partial_bytes -= conn.allocated();
            self.encrypted -= u32::from(conn.tls.is_some());
            self.handshaking -= u32::from(conn.tls.is_some_and(|tls| !tls.is_open()));
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
            let before = conn.queue.own_bytes();
            let bytes = conn.start_send();
            self.queue_bytes = self.queue_bytes + conn.queue.own_bytes() - before;
            match (bytes, &conn.socket) {
                (Some(bytes), Some(socket)) => {
                    conn.is_sending = true;
                    self.carrier.send(key, socket, bytes);
                }
                // What waits can never be encrypted.
                _ => self.gone(key, true),
            }
        }
    }

    fn sent(&mut self, key: SessionKey, result: Result<usize, i32>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let before = conn.queue.own_bytes();
        conn.finish_send(result);
        self.queue_bytes = self.queue_bytes + conn.queue.own_bytes() - before;
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
        if conn.is_drained() && conn.session.wants_no_drained() {
            return;
        }
        if conn.is_drained() {
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
        self.carrier.sends_in_flight(&mut keys);
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
